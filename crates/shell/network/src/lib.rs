//! The data path of one node: what its containers reach, and what reaches them.
//!
//! Owns: namespaces, links, routes, neighbours and filter tables of this daemon instance.
//! Does not know: clusters, names, who runs in a namespace.
//! Invariant: everything of ours carries the instance id, so that two daemons of one machine do not
//! touch each other's; until the first full directory nothing of an earlier daemon is taken away.
//!
//! Each network has a routed namespace of its own, the sandbox: a VXLAN device to the other nodes,
//! a link to each container, a route to each address, no bridge. New connections to a virtual
//! address are translated there. The mesh is one more such namespace: the default route of
//! containers, the ingress network's sandbox, and where published ports are translated. The host
//! itself has one link and one table.

#![allow(unsafe_code)]

mod attach;
mod conditions;
mod container;
mod devices;
mod drain;
mod encryption;
mod firewall;
mod hops;
mod legacy;
mod load;
mod local;
mod names;
mod namespace;
mod netlink;
mod nft;
mod node;
mod own;
mod pair;
mod paths;
mod probe;
mod record;
mod resolver;
mod route;
mod sandbox;
mod settle;
mod sockets;
mod source_rule;
mod space;
mod spare;
mod strangers;
mod survey;
mod sysctl;
mod tables;
mod tracking;
mod tunnel;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base::chain;
use ipnet::Ipv4Net;
use ports::network::{Attached, ContainerNetwork, Drain, Network};
use ports::runtime::RuntimeError;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{oneshot, watch};
use types::{Condition, DirectoryUpdate, NetworkCheck, NetworkId, PortBinding};

use crate::drain::{Leaver, Looks};
pub use crate::encryption::{
    EncryptionMode, EncryptionSeen, EncryptionStatus, PeerSeen, PeerStatus, Rotation, Tunnel,
    TunnelKey, TunnelPeer, TunnelSeen, TunnelStatus, TunnelTo,
};
pub use crate::names::{CANDIDATES, is_own_link};
use crate::names::{Names, check_id};
use crate::namespace::Namespaces;
use crate::node::Node;
pub use crate::own::Joining;
pub use crate::paths::Silence;
use crate::paths::{Paths, set_if_other};
use crate::resolver::Resolvers;
use crate::spare::Spares;
pub use netplan::suspects;
pub use netplan::{AskedBy, LocalContainer, LocalLink};

/// What the network needs to be told.
#[derive(Clone, Debug)]
pub struct NetworkOptions {
    /// The daemon's run directory; some directories below it are ours.
    pub run_dir: PathBuf,
    /// Names this daemon among those of one machine: letters, digits and `-`, at most 32.
    pub instance_id: String,
    /// Where node-local addresses come from; `None`: the first free one of [`CANDIDATES`].
    pub subnet: Option<Ipv4Net>,
    /// Where this node's VXLAN packets come from; `None` before it is in a cluster.
    pub address: Option<IpAddr>,
    pub encryption: EncryptionMode,
    /// Where resolvers of containers listen unless [`DataPath::set_resolver`] says otherwise.
    pub resolver_port: u16,
}

/// The data path of this node. Clones share everything.
#[derive(Clone, Debug)]
pub struct DataPath {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// One change at a time, as the kernel has one lock for all of it; waited for here, where
    /// waiting costs no thread.
    gate: Arc<tokio::sync::Mutex<()>>,
    node: Mutex<Node>,
    containers: Namespaces,
    resolvers: Resolvers,
    subnet: Ipv4Net,
    looks: Looks,
    reservations: watch::Sender<BTreeSet<PortBinding>>,
    conditions: watch::Sender<Vec<Condition>>,
    paths: Paths,
    tunnels: watch::Sender<Vec<Tunnel>>,
    rotation: watch::Sender<Rotation>,
}

impl DataPath {
    /// Prepares the node in the network namespace of the calling thread, and adopts what an earlier
    /// daemon of this instance left. Containers keep what they have.
    pub async fn open(options: NetworkOptions) -> Result<Self, RuntimeError> {
        let namespace = namespace::own_namespace()
            .map_err(|error| failed("find the network namespace", &chain(&error)))?;
        let NetworkOptions { run_dir, instance_id, subnet, address, encryption, resolver_port } =
            options;
        let node = blocking("prepare the network", move || {
            let spares = Spares::start(namespace.try_clone()?, resolver_port)?;
            let names = Names::of(&instance_id)?;
            let mut node = Node::open(namespace, &run_dir, names, subnet, address, spares)?;
            node.encryption.mode = encryption;
            Ok(node)
        })
        .await?;
        let subnet = node.links.v4;
        let reservations = watch::Sender::new(node.planner.bindings().clone());
        let inner = Inner {
            gate: Arc::default(),
            containers: node.containers.clone(),
            resolvers: node.resolvers.clone(),
            node: Mutex::new(node),
            subnet,
            looks: Looks::default(),
            reservations,
            conditions: watch::Sender::new(Vec::new()),
            paths: Paths::new(),
            tunnels: watch::Sender::default(),
            rotation: watch::Sender::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The node-local subnet.
    #[must_use]
    pub fn subnet(&self) -> Ipv4Net {
        self.inner.subnet
    }

    /// Ports of the node that its own programs must be kept from.
    #[must_use]
    pub fn reservations(&self) -> watch::Receiver<BTreeSet<PortBinding>> {
        self.inner.reservations.subscribe()
    }

    /// What is wrong on this node; one for each code.
    #[must_use]
    pub fn conditions(&self) -> watch::Receiver<Vec<Condition>> {
        self.inner.conditions.subscribe()
    }

    /// Ports that somebody else holds: they are not published here.
    pub async fn set_unavailable(&self, ports: BTreeSet<PortBinding>) -> Result<(), RuntimeError> {
        self.with("set the ports", move |node| node.set_unavailable(ports)).await
    }

    /// Where managers listen: no container reaches these ports of any node. VXLAN's is always one.
    pub async fn set_managers(&self, managers: BTreeSet<SocketAddr>) -> Result<(), RuntimeError> {
        self.with("guard the managers", move |node| node.set_managers(&managers)).await
    }

    /// Where this node's VXLAN packets come from.
    pub async fn set_address(&self, address: Option<IpAddr>) -> Result<(), RuntimeError> {
        self.with("set the data path address", move |node| node.set_address(address)).await
    }

    /// As [`Network::attach`]; `begun` gets the container's links when its namespace is there,
    /// while they are laid. It gets nothing when that does not come about.
    pub async fn attach_telling(
        &self,
        wanted: &ContainerNetwork,
        begun: oneshot::Sender<LocalContainer>,
    ) -> Result<Attached, RuntimeError> {
        check_id(&wanted.id)?;
        let step = "attach the task to the network";
        let (inner, wanted) = (Arc::clone(&self.inner), wanted.clone());
        let tell = |container: &LocalContainer| drop(begun.send(container.clone()));
        let (done, attached) = oneshot::channel();
        let gate = Arc::clone(&self.inner.gate).lock_owned().await;
        drop(tokio::task::spawn_blocking(move || {
            let _gate = gate;
            let _ = done.send(inner.carry_out(|node| node.attach(&wanted, tell)));
            inner.node().after_attach(&wanted);
        }));
        let attached = attached.await.map_err(|_| failed(step, &"it ended before its time"))?;
        attached.map_err(|error| failed(step, &chain(&error)))
    }

    /// Where a container's resolver listens, on 127.0.0.11 in its namespace.
    pub async fn set_resolver(&self, id: &str, port: u16) -> Result<(), RuntimeError> {
        check_id(id)?;
        if self.inner.resolvers.port_of(id) == Some(port) {
            return Ok(());
        }
        let id = id.to_owned();
        self.with("lead to the resolver", move |node| node.set_resolver(&id, port)).await
    }

    /// What the managers are told of this node's data path, of which `address` is the end.
    pub async fn survey(&self, address: Option<IpAddr>) -> Result<types::DataPath, RuntimeError> {
        self.with("look at the node's links", move |node| node.survey(address)).await
    }

    /// Compares everything with the kernel and makes it as wanted; answers how much differed.
    pub async fn repair(&self) -> Result<usize, RuntimeError> {
        self.mend(true).await
    }

    /// Keeps the kernel as wanted until told to stop: looks for changes by others twice a second,
    /// and compares everything every few seconds.
    pub async fn run(&self, shutdown: impl Future<Output = ()> + Send) {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut ticks = tokio::time::interval(LOOK_PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for tick in (0..LOOKS_PER_COMPARISON).cycle() {
            tokio::select! {
                biased;
                () = &mut shutdown => return,
                _ = ticks.tick() => {}
            }
            let thoroughly = tick + 1 == LOOKS_PER_COMPARISON;
            match self.mend(thoroughly).await {
                Ok(0) => {}
                Ok(count) => tracing::warn!(count, "the network was not as wanted: mended"),
                Err(error) => tracing::warn!(%error, "the network cannot be mended"),
            }
            if thoroughly {
                self.note_conditions().await;
            }
        }
    }

    async fn mend(&self, thoroughly: bool) -> Result<usize, RuntimeError> {
        self.with("repair the network", move |node| node.repair(thoroughly)).await
    }

    async fn note_conditions(&self) {
        match self.with("look for what is wrong", Node::conditions).await {
            Ok(now) => {
                self.inner.conditions.send_if_modified(|known| {
                    let other = *known != now;
                    *known = now;
                    other
                });
            }
            Err(error) => tracing::warn!(%error, "the node's conditions are not known"),
        }
    }

    /// How the kernel differs from what is wanted for one network, in words; nothing is mended.
    pub async fn check(&self, network: NetworkId) -> Result<Vec<String>, RuntimeError> {
        self.with("check the network", move |node| node.check(network)).await
    }

    /// Removes every trace of this instance: all containers' networks, the rules, the mounts.
    pub async fn remove_all(&self) -> Result<(), RuntimeError> {
        self.with("remove the network", Node::remove_all).await
    }

    /// Does one thing to the node, in a thread that may wait.
    async fn with<T: Send + 'static>(
        &self,
        step: &'static str,
        work: impl FnOnce(&mut Node) -> io::Result<T> + Send + 'static,
    ) -> Result<T, RuntimeError> {
        let inner = Arc::clone(&self.inner);
        let _gate = self.inner.gate.lock().await;
        blocking(step, move || inner.carry_out(work)).await
    }

    /// As [`DataPath::with`], in this thread, where the runtime has others to go on with meanwhile:
    /// for what takes little more than to wake another thread and to be woken by it.
    async fn with_here<T: Send + 'static>(
        &self,
        step: &'static str,
        work: impl FnOnce(&mut Node) -> io::Result<T> + Send + 'static,
    ) -> Result<T, RuntimeError> {
        if Handle::current().runtime_flavor() != RuntimeFlavor::MultiThread {
            return self.with(step, work).await;
        }
        let _gate = self.inner.gate.lock().await;
        let done = tokio::task::block_in_place(|| self.inner.carry_out(work));
        done.map_err(|error| failed(step, &chain(&error)))
    }
}

impl Network for DataPath {
    async fn update(&self, update: DirectoryUpdate) -> Result<(), RuntimeError> {
        let step = "program the network";
        let is_little = is_little(&update);
        let work = move |node: &mut Node| node.update(&update);
        let departed = match is_little {
            true => self.with_here(step, work).await?,
            false => self.with(step, work).await?,
        };
        self.forget_soon(departed);
        Ok(())
    }

    async fn attach(&self, wanted: &ContainerNetwork) -> Result<Attached, RuntimeError> {
        self.attach_telling(wanted, oneshot::channel().0).await
    }

    async fn drain(&self, id: &str, limit: Drain) {
        let begun = tokio::time::Instant::now();
        let (least, most) = (begun + limit.min.as_duration(), begun + limit.max.as_duration());
        let most = most.max(least);
        let leaver = Leaver { id: id.to_owned(), places: self.inner.node().places_of(id) };
        let mut looks = tokio::time::interval(DRAIN_PERIOD);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let ended = async {
            loop {
                let now = looks.tick().await;
                // What cannot be counted is waited for as if it were open.
                if now >= least && self.open_connections(leaver.clone()).await == Some(0) {
                    break;
                }
            }
        };
        let _ = tokio::time::timeout_at(most, ended).await;
        self.forget(leaver.places).await;
    }

    async fn detach(&self, id: &str) -> Result<(), RuntimeError> {
        check_id(id)?;
        let id = id.to_owned();
        self.with("detach the task from the network", move |node| node.detach(&id)).await
    }

    async fn connections(&self, id: &str) -> Vec<NetworkId> {
        let links = self.container(id).map(|container| container.links).unwrap_or_default();
        let connected = links.into_iter().filter(|end| end.asked_by == AskedBy::Managers);
        connected.filter_map(|end| end.network).collect()
    }

    async fn examine(&self, network: NetworkId) -> Result<NetworkCheck, RuntimeError> {
        self.look_at(network).await
    }

    async fn observe(&self) -> Result<Vec<String>, RuntimeError> {
        self.with("observe the network", Node::observe).await
    }
}

impl Inner {
    /// Does one thing to the node, and passes on what it changed.
    fn carry_out<T>(&self, work: impl FnOnce(&mut Node) -> io::Result<T>) -> io::Result<T> {
        let mut node = self.node();
        let result = work(&mut node);
        if let Some(peers) = node.take_peers() {
            self.paths.peers.send_replace(peers);
        }
        set_if_other(&self.tunnels, node.tunnels());
        set_if_other(&self.rotation, node.rotation());
        let bindings = node.planner.bindings();
        self.reservations.send_if_modified(|known| {
            let other = known != bindings;
            if other {
                known.clone_from(bindings);
            }
            other
        });
        result
    }

    fn node(&self) -> MutexGuard<'_, Node> {
        self.node.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn failed(step: &'static str, error: &dyn std::fmt::Display) -> RuntimeError {
    RuntimeError::Failed { step, problem: error.to_string() }
}

async fn blocking<T: Send + 'static>(
    step: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, RuntimeError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| failed(step, &chain(&error))),
        Err(error) => Err(failed(step, &error)),
    }
}

/// It is about a few services and endpoints, and nothing else.
fn is_little(update: &DirectoryUpdate) -> bool {
    let removed = update.removed_services.len() + update.removed_endpoints.len();
    let others = update.networks.len() + update.peers.len() + update.removed_peers.len();
    let no_others = others + update.removed_networks.len() == 0 && update.own.is_none();
    let parts = update.services.len() + update.endpoints.len() + removed;
    !update.full && no_others && parts <= LITTLE
}

/// Parts whose programming takes some 0.1 ms.
const LITTLE: usize = 16;

/// How soon somebody else's change is noticed.
const LOOK_PERIOD: Duration = Duration::from_millis(500);

/// How soon the end of the last connection is noticed.
const DRAIN_PERIOD: Duration = Duration::from_millis(100);

/// One of so many looks compares everything, noticed or not.
const LOOKS_PER_COMPARISON: u32 = 10;

#[cfg(test)]
mod tests;
