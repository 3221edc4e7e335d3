//! The types that openraft is run with.
//!
//! Owns: the choice of types, and short names for them.
//! Does not know: files, network.
//! Invariant: none of them leaves this crate.

use std::any::Any;
use std::fmt::{self, Debug, Display, Formatter};
use std::sync::Mutex;

use bytes::Bytes;

/// What is proposed; the machine knows what it means.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Payload(pub(crate) Bytes);

impl Debug for Payload {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.0.len())
    }
}

impl Display for Payload {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Debug::fmt(self, f)
    }
}

/// The machine's reply on its way to the proposer, its type erased: openraft need not know it.
pub(crate) struct Erased(Mutex<Option<Box<dyn Any + Send>>>);

impl Erased {
    pub(crate) fn none() -> Self {
        Self(Mutex::new(None))
    }

    pub(crate) fn new<R: Send + 'static>(reply: R) -> Self {
        Self(Mutex::new(Some(Box::new(reply))))
    }

    pub(crate) fn take<R: 'static>(self) -> Option<R> {
        let inner = self.0.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        inner?.downcast().ok().map(|reply| *reply)
    }
}

impl Debug for Erased {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("Erased")
    }
}

/// A member of the cluster's raft, as the log holds it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Peer {
    /// The node's identity as a number; 0 stands for none and is refused by the codec.
    pub(crate) node: u128,
    /// `host:port`.
    pub(crate) address: String,
}

openraft::declare_raft_types!(
    pub(crate) Types:
        D = Payload,
        R = Erased,
        NodeId = u64,
        Node = Peer,
);

pub(crate) type LogId = openraft::alias::LogIdOf<Types>;
pub(crate) type Ballot = openraft::alias::VoteOf<Types>;
pub(crate) type Leader = openraft::alias::LeaderIdOf<Types>;
pub(crate) type Entry = openraft::alias::EntryOf<Types>;
pub(crate) type EntryPayload = openraft::alias::PayloadOf<Types>;
pub(crate) type Membership = openraft::Membership<u64, Peer>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<Types>;
