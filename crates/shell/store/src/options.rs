//! How a store is run.
//!
//! Owns: the options and the timings with their profiles. Does not know: what they lead to.
//! Invariant: a follower waits for several heartbeats before it stands for election.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base::{Id, Millis};
use openraft::{Config, ConfigError, SnapshotPolicy};
use pki::{DataKey, NodeTls};

use crate::limits::{APPEND_ENTRIES_MAX, PROMOTE_LAG_MAX, SEGMENT_BYTES};
use crate::machine::{Machine, OnApply};

/// Everything a store needs to run.
pub struct Options<M: Machine> {
    /// Directory of log and snapshots; made where it is missing.
    pub dir: PathBuf,
    /// Encrypts everything in it.
    pub key: DataKey,
    /// This manager's raft number; never used twice in a cluster. See [`crate::fresh_raft_id`].
    pub raft_id: u64,
    /// This node.
    pub node: Id,
    /// `host:port` under which the other managers reach this one.
    pub address: String,
    /// Certificate and trust for the connections between managers.
    pub tls: Arc<NodeTls>,
    /// The state before the first entry.
    pub machine: M,
    /// Told of every change.
    pub on_apply: OnApply<M::Reply>,
    pub tuning: Tuning,
}

/// What may be tuned.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    pub timing: Timing,
    /// A snapshot is written after this many entries.
    pub snapshot_entries: u64,
    /// And when the log holds this many bytes.
    pub snapshot_bytes: u64,
    /// Entries kept behind a snapshot for followers that are a little late.
    pub keep_entries: u64,
    /// With less free space than this, the manager gives up leadership and takes no proposals.
    pub free_bytes_floor: u64,
    /// A proposal that is not answered in this time is given up, its outcome unknown.
    pub proposal_timeout: Millis,
    /// A manager that is not to lead stands for election all the same when no member has led, or
    /// sought to, for this long.
    pub leaderless_patience: Millis,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            timing: Timing::LAN,
            snapshot_entries: 10_000,
            snapshot_bytes: 64 * 1024 * 1024,
            keep_entries: 500,
            free_bytes_floor: 4 * SEGMENT_BYTES,
            proposal_timeout: Millis::from_secs(30),
            leaderless_patience: Millis::from_secs(60),
        }
    }
}

/// When managers take each other for lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats.
    pub heartbeat: Millis,
    /// Shortest random wait before an election, on top of the lease.
    pub election_min: Millis,
    /// Longest such wait, and the lease of a leader.
    pub election_max: Millis,
}

impl Timing {
    /// One site: a lost leader is replaced in about 0.7 s.
    pub const LAN: Self =
        Self { heartbeat: Millis(60), election_min: Millis(180), election_max: Millis(360) };
    /// Several sites with up to some hundred milliseconds between them.
    pub const WAN: Self =
        Self { heartbeat: Millis(500), election_min: Millis(1_500), election_max: Millis(3_000) };

    pub(crate) const fn heartbeat(&self) -> Duration {
        self.heartbeat.as_duration()
    }

    pub(crate) const fn election_max(&self) -> Duration {
        self.election_max.as_duration()
    }

    /// A connection that cannot be made in this time will not be made.
    pub(crate) const fn connect_timeout(&self) -> Duration {
        self.election_max.as_duration()
    }

    /// Period of pings, and how long one may go unanswered.
    pub(crate) fn keep_alive(&self) -> Duration {
        (self.election_max.as_duration() * 2).max(Duration::from_secs(1))
    }

    /// Until a stream of appends must be open.
    pub(crate) fn append_idle(&self) -> Duration {
        self.election_max.as_duration() * 4
    }
}

impl Tuning {
    pub(crate) fn config(&self) -> Result<Config, ConfigError> {
        let Timing { heartbeat, election_min, election_max } = self.timing;
        let config = Config {
            cluster_name: "shoal".to_owned(),
            heartbeat_interval: heartbeat.0,
            election_timeout_min: election_min.0,
            election_timeout_max: election_max.0,
            max_payload_entries: APPEND_ENTRIES_MAX,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_entries),
            max_in_snapshot_log_to_keep: self.keep_entries,
            replication_lag_threshold: PROMOTE_LAG_MAX,
            install_snapshot_timeout: crate::limits::SNAPSHOT_IDLE.as_millis() as u64,
            enable_pre_vote: Some(true),
            // The state lives in memory: a restarted leader must be elected to know what counts.
            enable_leader_restore: Some(false),
            ..Config::default()
        };
        config.validate()
    }
}
