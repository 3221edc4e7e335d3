//! `ClusterInfo` and `SwarmSpec`.
//!
//! Owns: the shape of the cluster. Does not know: its secrets; tokens are asked for by name.
//! Invariant: neither the authority's key nor a join token is ever part of it.

use serde_json::{Value, json};
use types::{ClusterId, ClusterSpec, Meta};

use crate::json::{Object, map, nanos};

/// What there is to show of the cluster besides its spec.
#[derive(Clone, Debug)]
pub struct ClusterFacts<'a> {
    pub id: ClusterId,
    pub meta: Meta,
    /// PEM.
    pub ca_certificate: &'a str,
    pub data_path_port: u32,
    /// UDP ports of encrypted networks.
    pub encryption_ports: [u16; 2],
    /// Of the keys that nodes should have.
    pub network_key_generation: u32,
    pub address_pools: &'a [String],
    pub address_pool_mask: u32,
}

#[must_use]
pub fn cluster(spec: &ClusterSpec, facts: &ClusterFacts<'_>) -> Value {
    Object::new()
        .with("ID", facts.id.to_string())
        .meta(&facts.meta)
        .with("Spec", cluster_spec(spec))
        .with("TLSInfo", json!({ "TrustRoot": facts.ca_certificate }))
        .with("RootRotationInProgress", false)
        .with("DataPathPort", facts.data_path_port)
        .with("EncryptionPorts", facts.encryption_ports.to_vec())
        .with("NetworkKeyGeneration", facts.network_key_generation)
        .with("DefaultAddrPool", facts.address_pools.to_vec())
        .with("SubnetSize", facts.address_pool_mask)
        .build()
}

#[must_use]
pub fn cluster_spec(spec: &ClusterSpec) -> Value {
    Object::new()
        .with("Name", "default")
        .with("Labels", map(&spec.labels))
        .with("Orchestration", json!({ "TaskHistoryRetentionLimit": spec.task_history_limit }))
        .with(
            "Raft",
            json!({
                "SnapshotInterval": spec.snapshot_interval, "KeepOldSnapshots": spec.snapshots_kept,
            }),
        )
        .with("Dispatcher", json!({ "HeartbeatPeriod": nanos(spec.dispatcher_heartbeat) }))
        .with("CAConfig", json!({ "NodeCertExpiry": nanos(spec.certificate_expiry) }))
        .with("EncryptionConfig", json!({ "AutoLockManagers": spec.autolock }))
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_in_nanoseconds() {
        let shown = cluster_spec(&ClusterSpec::default());
        assert_eq!(shown["Dispatcher"]["HeartbeatPeriod"], 5_000_000_000_u64);
        assert_eq!(shown["CAConfig"]["NodeCertExpiry"], 7_776_000_000_000_000_u64);
        assert_eq!(shown["Orchestration"]["TaskHistoryRetentionLimit"], 5);
    }
}
