//! A cluster before it exists: its root of trust, its tokens, its first node.
//!
//! Owns: what `init` draws and checks before anything is on disk.
//! Does not know: the store. Invariant: a plan that was made can be carried out.

use anyhow::Result;
use base::{IdSource, Timestamp};
use ipnet::Ipv6Net;
use pki::files::Stored;
use pki::{JoinToken, NodeKey, RootCa, Subject, TokenSecret};
use types::{Availability, Cluster, ClusterId, ClusterSpec, Fault, NetworkId, NodeId};
use wire::v1;

use super::internal;
use crate::udp_ports;

/// A new cluster, before anything of it is on disk.
pub(super) struct InitPlan {
    root: RootCa,
    pub(super) node: NodeId,
    pub(super) raft_id: u64,
    pub(super) availability: Availability,
    pub(super) cluster: Cluster,
    /// The routing mesh's network, which the cluster begins with.
    pub(super) ingress: NetworkId,
}

impl InitPlan {
    pub(super) fn new(
        request: &v1::InitRequest,
        mut ids: IdSource,
        now: Timestamp,
    ) -> Result<Self, Fault> {
        let spec = request.spec.clone().map(ClusterSpec::from).unwrap_or_default();
        types::check_cluster_spec(&spec)?;
        types::check_address_pools(&request.address_pools, request.address_pool_mask)?;
        let (data_path_port, encryption_ports) =
            types::check_udp_ports(request.data_path_port, &request.encryption_ports)?;
        let availability = match request.availability {
            0 | 1 => Availability::Active,
            2 => Availability::Pause,
            3 => Availability::Drain,
            _ => return Err(Fault::invalid("--availability", "is unknown")),
        };
        let broken = |error: anyhow::Error| internal(&error);
        let root = RootCa::generate(now).map_err(|error| broken(error.into()))?;
        let token = || -> Result<String, Fault> {
            let secret = TokenSecret::mint().map_err(|error| broken(error.into()))?;
            Ok(JoinToken { digest: root.digest(), secret }.text().to_string())
        };
        let cluster = Cluster {
            id: ClusterId(ids.mint()),
            meta: types::Meta::default(),
            spec,
            ca_certificate: root.certificate_pem(),
            ca_key: root.key_pem().to_owned(),
            worker_token: token()?,
            manager_token: token()?,
            format_level: types::limits::FORMAT_LEVEL,
            epoch: 1,
            data_path_port: u32::from(data_path_port),
            encryption_ports,
            network_key_generation: 1,
            address_pools: match request.address_pools.is_empty() {
                true => vec![types::POOL_DEFAULT.into()],
                false => request.address_pools.clone(),
            },
            address_pool_mask: match request.address_pool_mask {
                0 => types::POOL_MASK,
                mask => mask,
            },
            next_node_number: 1,
            ula_prefix: Some(ula_prefix(ids.mint().as_u128())),
            next_vni: types::limits::VNI_MIN,
            next_ports: std::collections::BTreeMap::new(),
        };
        let ingress = NetworkId(ids.mint());
        let node = NodeId(ids.mint());
        let raft_id = store::fresh_raft_id(ids.mint().as_u128() as u64);
        Ok(Self { root, node, raft_id, availability, cluster, ingress })
    }

    /// Whether this host has free what every node must.
    pub(super) async fn check_ports(&self) -> Result<(), Fault> {
        let path = u16::try_from(self.cluster.data_path_port).unwrap_or_default();
        let ports = udp_ports::of_cluster(path, &self.cluster.encryption_ports);
        udp_ports::check_free(&ports, udp_ports::PATIENCE).await
    }

    /// This node's key and certificate.
    pub(super) fn certificate(&self, now: Timestamp) -> Result<Stored> {
        let key = NodeKey::generate()?;
        let subject =
            Subject { node: self.node.0, role: pki::Role::Manager, cluster: self.cluster.id.0 };
        let expiry = self.cluster.spec.certificate_expiry;
        let issued = self.root.issue(&key.request()?, &subject, expiry, now)?;
        Ok(Stored { key, chain_pem: issued.chain_pem, roots_pem: self.root.certificate_pem() })
    }
}

/// A prefix of our own: 40 random bits behind `fd` (RFC 4193, section 3.2).
fn ula_prefix(random: u128) -> Ipv6Net {
    let bits = 0xfd << 120 | (random >> 88) << 80;
    Ipv6Net::new_assert(bits.into(), 48)
}
