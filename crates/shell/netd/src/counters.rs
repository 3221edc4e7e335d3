//! What has happened since netd began, as numbers.
//!
//! Owns: the counters and their order in the protocol.
//! Does not know: who reads them. Invariant: additions only, at the end.

use std::cell::Cell;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What has happened since netd began.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// The same, counting.
        #[derive(Debug, Default)]
        pub(crate) struct Counting {
            $(pub(crate) $name: Cell<u64>,)*
        }

        impl Counting {
            pub(crate) fn list(&self) -> Vec<u64> {
                vec![$(self.$name.get(),)*]
            }
        }

        impl Counters {
            /// Of an older netd the last ones are missing, of a newer one there are more.
            pub(crate) fn from_list(list: &[u64]) -> Self {
                let mut list = list.iter().copied();
                Self { $($name: list.next().unwrap_or(0),)* }
            }
        }
    };
}

counters! {
    /// Messages that came from containers.
    questions,
    /// Answered from what is known here.
    answered,
    /// Passed on to a server.
    forwarded,
    /// Answered from what a server had said.
    cached,
    /// Not a question that can be understood.
    malformed,
    /// Not passed on: too many were under way.
    refused,
    /// Passed on, and no server gave an answer.
    unanswered,
    /// Answers of servers that did not fit the question.
    mismatched,
    /// Answers that the container's socket did not take.
    undelivered,
    /// Connections beyond the limit, closed at once.
    connections_refused,
    /// Connections that were closed because they were too slow.
    connections_slow,
    /// Connections and senders on ::1 beyond the limit.
    loopback_refused,
    /// Parts of a directory that could not be read.
    unreadable,
}

/// One more.
pub(crate) fn count(counter: &Cell<u64>) {
    counter.set(counter.get().wrapping_add(1));
}
