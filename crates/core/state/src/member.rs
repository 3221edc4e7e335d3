//! A member of the managers' group.
//!
//! Owns: the facts about one, as its leader sees them. Invariant: plain data, decided on elsewhere.

/// One member of the Raft group, as its leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub raft_id: u64,
    pub voter: bool,
    /// Has all that is committed, or nearly.
    pub caught_up: bool,
    /// Answered within the last election time-out.
    pub reachable: bool,
}
