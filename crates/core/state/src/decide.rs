//! The one shape of a decision.
//!
//! Owns: what a decider is given, what it returns, and the trait that one loop drives.
//! Invariant: same inputs, same plan; events only mark keys dirty, the decider never sees them.

use std::collections::BTreeSet;
use std::fmt::Debug;

use base::{IdSource, Millis, Timestamp};
use types::{Reason, ServiceId};

use crate::{ChangeSet, Event, Snapshot};

/// How often the text of a reason may change while its code stays.
const REASON_REWRITE_PERIOD: Millis = Millis::from_secs(5);

/// What a decider may look at.
pub struct Ctx<'a> {
    pub view: &'a Snapshot,
    pub now: Timestamp,
    pub ids: &'a mut IdSource,
}

/// What a decider wants: writes, when to ask again, and why.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub atoms: Vec<ChangeSet>,
    pub wake_at: Option<Timestamp>,
    pub notes: Vec<Note>,
    /// The plan was cut at its limit: ask again at once.
    pub more: bool,
}

impl Plan {
    /// Asks again at `at`, or earlier when something else asked for that.
    pub fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |other| other.min(at)));
    }

    pub fn note(&mut self, code: &'static str, service: Option<ServiceId>, text: String) {
        self.notes.push(Note { code, service, text });
    }

    /// Whether a decider's reason is to be written over the one that stands: at once when its code
    /// changes or it goes, otherwise at most every five seconds; then it asks again in time.
    #[must_use]
    pub fn rewrites_reason(
        &mut self,
        now: Timestamp,
        known: Option<&Reason>,
        wanted: Option<&Reason>,
    ) -> bool {
        match (known, wanted) {
            (None, None) => false,
            (Some(known), Some(wanted)) if known.code == wanted.code => {
                let changed = known.message != wanted.message || known.count != wanted.count;
                let due = known.since + REASON_REWRITE_PERIOD;
                if changed && due > now {
                    self.wake(due);
                }
                changed && due <= now
            }
            _ => true,
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.atoms.is_empty() && self.wake_at.is_none() && !self.more
    }
}

/// Why something was decided, or could not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// From a closed list of the decider.
    pub code: &'static str,
    pub service: Option<ServiceId>,
    pub text: String,
}

/// A decider. One loop drives all of them.
pub trait Decider {
    type Key: Ord + Copy + Debug;
    const NAME: &'static str;

    /// Adds every key: at start-up and at each periodic full scan.
    fn mark_all(view: &Snapshot, dirty: &mut BTreeSet<Self::Key>);

    /// Adds the keys an event touches. The event is used for nothing else.
    fn mark(view: &Snapshot, event: &Event, dirty: &mut BTreeSet<Self::Key>);

    /// Same inputs, same plan. A key whose object is gone is valid input.
    fn decide(ctx: &mut Ctx<'_>, key: Self::Key) -> Plan;
}
