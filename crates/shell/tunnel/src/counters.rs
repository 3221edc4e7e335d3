//! What passed and what was dropped.
//!
//! Owns: the causes of drops, and counters that threads share.
//! Does not know: what a packet is. Invariant: a counter only grows.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! causes {
    ($($(#[doc = $doc:literal])+ $name:ident => $text:literal,)+) => {
        /// Why a packet was dropped.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DropCause {
            $($(#[doc = $doc])+ $name,)+
        }

        impl DropCause {
            /// All of them, in order.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The word for metrics.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

causes! {
    /// To be sent: the super-packet and its header do not agree.
    Malformed => "malformed",
    /// To be sent: no peer has the destination address.
    NoPeer => "no-peer",
    /// To be sent: it is not known where the peer is.
    NoEndpoint => "no-endpoint",
    /// To be sent: there is no session yet, and enough packets wait for one.
    NoSession => "no-session",
    /// To be sent: the system refused it.
    SendFailed => "send-failed",
    /// Received: not a message of the protocol.
    Garbage => "garbage",
    /// Received: a handshake or data of a peer that is not known.
    UnknownPeer => "unknown-peer",
    /// Received: made without our public key, or with another one.
    WrongKey => "wrong-key",
    /// Received: for a session that is not there any more, or was never.
    UnknownSession => "unknown-session",
    /// Received: altered on the way, or made by somebody without the session's key.
    Forged => "forged",
    /// Received: seen before, or older than what was seen.
    Replayed => "replayed",
    /// Received: more handshakes than are answered; the sender got a cookie to prove its address.
    Limited => "limited",
    /// Received: a true peer sent what is no IP packet.
    NotIp => "not-ip",
    /// Received: a true peer sent with an address that is not its own.
    WrongSource => "wrong-source",
    /// Received: a true peer sent to an address that is not ours.
    WrongDestination => "wrong-destination",
    /// Received: the device did not take it.
    WriteFailed => "write-failed",
}

impl fmt::Display for DropCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What passed, in bytes and packets of the inside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    pub sent_bytes: u64,
    pub sent_packets: u64,
    pub received_bytes: u64,
    pub received_packets: u64,
}

/// What was dropped, by cause.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Drops([u64; COUNT]);

impl fmt::Debug for Drops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|(cause, count)| (cause.name(), count))).finish()
    }
}

impl Drops {
    #[must_use]
    pub fn of(&self, cause: DropCause) -> u64 {
        self.0[cause as usize]
    }

    /// All causes that occurred.
    pub fn iter(&self) -> impl Iterator<Item = (DropCause, u64)> + '_ {
        DropCause::ALL.iter().map(|cause| (*cause, self.of(*cause))).filter(|(_, count)| *count > 0)
    }
}

/// Shared by threads.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    sent_bytes: AtomicU64,
    sent_packets: AtomicU64,
    received_bytes: AtomicU64,
    received_packets: AtomicU64,
    drops: [AtomicU64; COUNT],
}

impl Counters {
    pub(crate) fn drop(&self, cause: DropCause) {
        self.drop_many(cause, 1);
    }

    pub(crate) fn drop_many(&self, cause: DropCause, count: u64) {
        self.drops[cause as usize].fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn sent(&self, packets: u64, bytes: u64) {
        self.sent_packets.fetch_add(packets, Ordering::Relaxed);
        self.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn received(&self, packets: u64, bytes: u64) {
        self.received_packets.fetch_add(packets, Ordering::Relaxed);
        self.received_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn traffic(&self) -> Traffic {
        Traffic {
            sent_bytes: self.sent_bytes.load(Ordering::Relaxed),
            sent_packets: self.sent_packets.load(Ordering::Relaxed),
            received_bytes: self.received_bytes.load(Ordering::Relaxed),
            received_packets: self.received_packets.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn drops(&self) -> Drops {
        Drops(std::array::from_fn(|at| self.drops[at].load(Ordering::Relaxed)))
    }
}

const COUNT: usize = DropCause::ALL.len();
