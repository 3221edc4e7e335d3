//! Settings of the cluster.
//!
//! Owns: the conversions of `ClusterSpec` and of the stored record.
//! Does not know: who may see the record's secrets.
//! Invariant: a record that goes out and comes back is the same.

use base::Millis;
use types::{Cluster, ClusterSpec, Fault, PortProtocol};

use super::encryption::ports;
use super::{id, malformed, required};
use crate::v1;

impl From<&ClusterSpec> for v1::ClusterSpec {
    fn from(spec: &ClusterSpec) -> Self {
        Self {
            labels: spec.labels.clone(),
            task_history_limit: spec.task_history_limit,
            dispatcher_heartbeat_ms: spec.dispatcher_heartbeat.0,
            certificate_expiry_ms: spec.certificate_expiry.0,
            snapshot_interval: spec.snapshot_interval,
            snapshots_kept: spec.snapshots_kept,
            down_grace_ms: spec.down_grace.0,
            autolock: spec.autolock,
        }
    }
}

impl From<v1::ClusterSpec> for ClusterSpec {
    fn from(spec: v1::ClusterSpec) -> Self {
        Self {
            labels: spec.labels,
            task_history_limit: spec.task_history_limit,
            dispatcher_heartbeat: Millis(spec.dispatcher_heartbeat_ms),
            certificate_expiry: Millis(spec.certificate_expiry_ms),
            snapshot_interval: spec.snapshot_interval,
            snapshots_kept: spec.snapshots_kept,
            down_grace: Millis(spec.down_grace_ms),
            autolock: spec.autolock,
        }
    }
}

impl From<&Cluster> for v1::Cluster {
    fn from(cluster: &Cluster) -> Self {
        let next_ports = cluster.next_ports.iter();
        let next_ports = next_ports.map(|(protocol, port)| (*protocol as u32, u32::from(*port)));
        Self {
            id: cluster.id.to_bytes().to_vec().into(),
            meta: Some(cluster.meta.into()),
            spec: Some((&cluster.spec).into()),
            ca_certificate: cluster.ca_certificate.clone(),
            ca_key: cluster.ca_key.clone(),
            worker_token: cluster.worker_token.clone(),
            manager_token: cluster.manager_token.clone(),
            format_level: cluster.format_level,
            epoch: cluster.epoch,
            data_path_port: cluster.data_path_port,
            encryption_ports: cluster.encryption_ports.map(u32::from).to_vec(),
            network_key_generation: cluster.network_key_generation,
            address_pools: cluster.address_pools.clone(),
            address_pool_mask: cluster.address_pool_mask,
            next_node_number: cluster.next_node_number,
            ula_prefix: cluster.ula_prefix.map_or_else(String::new, |net| net.to_string()),
            next_vni: cluster.next_vni,
            next_ports: next_ports.collect(),
        }
    }
}

impl TryFrom<v1::Cluster> for Cluster {
    type Error = Fault;

    fn try_from(cluster: v1::Cluster) -> Result<Self, Fault> {
        Ok(Self {
            id: id(&cluster.id, "cluster.id")?,
            meta: required(cluster.meta, "cluster.meta")?.into(),
            spec: required(cluster.spec, "cluster.spec")?.into(),
            ca_certificate: cluster.ca_certificate,
            ca_key: cluster.ca_key,
            worker_token: cluster.worker_token,
            manager_token: cluster.manager_token,
            format_level: cluster.format_level,
            epoch: cluster.epoch,
            data_path_port: cluster.data_path_port,
            encryption_ports: ports(&cluster.encryption_ports, "cluster.encryption_ports")?,
            network_key_generation: cluster.network_key_generation,
            address_pools: cluster.address_pools,
            address_pool_mask: cluster.address_pool_mask,
            next_node_number: cluster.next_node_number,
            ula_prefix: match cluster.ula_prefix.as_str() {
                "" => None,
                text => Some(text.parse().map_err(|_| malformed("cluster.ula_prefix", "is none"))?),
            },
            next_vni: cluster.next_vni,
            next_ports: cluster.next_ports.into_iter().map(next_port).collect::<Result<_, _>>()?,
        })
    }
}

fn next_port((protocol, port): (u32, u32)) -> Result<(PortProtocol, u16), Fault> {
    let known = i32::try_from(protocol).ok().and_then(PortProtocol::from_number);
    known
        .zip(u16::try_from(port).ok())
        .ok_or_else(|| malformed("cluster.next_ports", "is not known to this version"))
}

#[cfg(test)]
mod tests {
    use base::Id;
    use types::{ClusterId, Labels, Meta};

    use super::*;

    #[test]
    fn a_cluster_comes_back_as_it_was() {
        let cluster = Cluster {
            id: ClusterId(Id::from_u128(7).unwrap()),
            meta: Meta::default(),
            spec: ClusterSpec {
                labels: Labels::from([("a".into(), "b".into())]),
                task_history_limit: -1,
                ..ClusterSpec::default()
            },
            ca_certificate: "c".into(),
            ca_key: "k".into(),
            worker_token: "w".into(),
            manager_token: "m".into(),
            format_level: 1,
            epoch: 2,
            data_path_port: 4789,
            encryption_ports: [4793, 4794],
            network_key_generation: 2,
            address_pools: vec!["10.0.0.0/8".into()],
            address_pool_mask: 24,
            next_node_number: 3,
            ula_prefix: Some("fd12:3456:789a::/48".parse().unwrap()),
            next_vni: 4096,
            next_ports: [(PortProtocol::Udp, 30_000)].into(),
        };
        assert_eq!(Cluster::try_from(v1::Cluster::from(&cluster)), Ok(cluster));
    }
}
