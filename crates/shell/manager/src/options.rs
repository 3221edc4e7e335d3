//! How often and how much: the knobs of the leader's loops.
//!
//! Owns: numbers with their reasons. Invariant: simulation and the daemon use the same defaults.

use base::Millis;

/// Periods and bounds of a manager's loops.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Every key of every decider is looked at again this often, whatever events said.
    pub full_scan_period: Millis,
    /// Assignments and statuses are gathered this long: one message carries many.
    pub coalesce_period: Millis,
    /// A decider turn that was refused is tried again after this.
    pub retry_period: Millis,
    /// Membership is compared with the nodes' roles this often.
    pub membership_period: Millis,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            full_scan_period: Millis::from_secs(30),
            coalesce_period: Millis(20),
            retry_period: Millis(50),
            membership_period: Millis(500),
        }
    }
}

/// Keys decided in one turn of the loop, before the atoms are proposed.
pub const KEYS_PER_TURN_MAX: usize = 1_000;
/// Atoms of one proposal.
pub const ATOMS_PER_PROPOSAL_MAX: usize = 200;
/// Reports gathered into one proposal.
pub const REPORTS_PER_PROPOSAL_MAX: usize = 10_000;
/// Messages waiting for the dispatcher's loop.
pub const INBOX_MAX: usize = 4_096;
/// Messages waiting for one session; a node that takes longer is disconnected.
pub const OUTBOX_MAX: usize = 256;
/// Tasks of one assignment message.
pub const TASKS_PER_MESSAGE_MAX: usize = 2_000;
/// Parts of one message of a directory: with names of the usual length less than a megabyte.
pub const PARTS_PER_MESSAGE_MAX: usize = 5_000;
/// Bytes of the text of one condition that a node reports of itself.
pub const CONDITION_BYTES_MAX: usize = 256;
/// Log subscriptions at a time.
pub const SUBSCRIPTIONS_MAX: usize = 256;
/// How long a node may take to look at one network.
pub const CHECK_LIMIT: Millis = Millis::from_secs(15);
/// Nodes that look at a network at a time, for one `network check`.
pub const CHECKS_AT_A_TIME: usize = 32;
