//! Port to the network of one node: what its containers see, and what reaches them.
//!
//! Owns: what the agent may ask of the data path and of discovery, and what it is told.
//! Does not know: netlink, nftables, resolvers.
//! Invariant: every call is idempotent, so that a loop which lost its memory may simply ask again;
//! until the first full update nothing is taken away that an earlier daemon made.

use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;

use base::Millis;
pub use types::HostPort;
use types::{Attachment, DirectoryUpdate, DnsConfig, NetworkCheck, NetworkId};

use crate::runtime::RuntimeError;

/// What one container needs of the network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerNetwork {
    /// The container's id: letters, digits, `-` and `_`, at most 64. Unique on the node.
    pub id: String,
    /// By which others on the node's own networks find it; the first one is its name.
    pub names: Vec<String>,
    pub hostname: String,
    /// One interface each, eth0, eth1… in this order. `NetworkId::HOST` and `NetworkId::NONE`
    /// stand alone. On networks of the node's own, addresses that are not said are chosen.
    pub attachments: Vec<Attachment>,
    /// Networks of the cluster that it was connected to later; what it was connected to on this
    /// node alone stays, whatever this says.
    pub connected: Vec<Attachment>,
    /// Its address on the ingress network, when one of its ports is published by the mesh.
    pub mesh: Option<Attachment>,
    /// Ports of this node that lead to this container.
    pub host_ports: Vec<HostPort>,
    /// Lines for `/etc/hosts`, as docker's users write them: `name:address`; the address may be
    /// `host-gateway`.
    pub hosts: Vec<String>,
    pub dns: DnsConfig,
}

/// What a container's network came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// The network namespace to join.
    pub netns: PathBuf,
    /// Lines for `/etc/hosts` after those of the loopback.
    pub hosts: Vec<(IpAddr, String)>,
    /// The container's `/etc/resolv.conf`; `None`: the host's.
    pub resolv_conf: Option<String>,
    /// As asked for, the chosen ones filled in.
    pub host_ports: Vec<HostPort>,
}

/// How long a container that has left the balancers may keep its open connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// At least this long, since names were given out that lead to it.
    pub min: Millis,
    pub max: Millis,
}

/// The network of one node's containers.
///
/// All calls may be made concurrently, also for one container; each ends within a minute.
pub trait Network: Send + Sync + 'static {
    /// Takes what the managers say of the networks that this node takes part in, and returns when
    /// the data path and the names are as it says. Updates are given one at a time.
    fn update(
        &self,
        update: DirectoryUpdate,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Makes the container's network namespace with all its interfaces, or mends it.
    /// Does nothing when it is there already.
    fn attach(
        &self,
        wanted: &ContainerNetwork,
    ) -> impl Future<Output = Result<Attached, RuntimeError>> + Send;

    /// Waits until no connection to the container is open any more, or the time is over.
    fn drain(&self, id: &str, limit: Drain) -> impl Future<Output = ()> + Send;

    /// Removes the namespace and all that leads to it. What is not there is not an error.
    fn detach(&self, id: &str) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Networks of the cluster that a container was connected to, as far as is remembered here.
    fn connections(&self, id: &str) -> impl Future<Output = Vec<NetworkId>> + Send;

    /// Looks at one network: what is not as wanted on this node, and the paths to its peers.
    /// Takes seconds.
    fn examine(
        &self,
        network: NetworkId,
    ) -> impl Future<Output = Result<NetworkCheck, RuntimeError>> + Send;

    /// The containers that have a namespace here.
    fn observe(&self) -> impl Future<Output = Result<Vec<String>, RuntimeError>> + Send;
}
