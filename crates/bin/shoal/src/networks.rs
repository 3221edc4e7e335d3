//! The network of this node as its agent sees it: the data path and the names, as one.
//!
//! Owns: the order in which the two learn of a change, and carrying what one says to the other.
//! Does not know: netlink, resolvers. Invariant: a name is given out once the data path leads where
//! it says, and not any more once its task leaves; a container starts once its names are served.

mod api;
mod connect;
mod encryption;
mod names;
mod own;
mod suspicion;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent::PathLinks;
use anyhow::{Context, Result};
use base::chain;
use netd::Forward;
use network::{DataPath, LocalContainer, LocalLink};
use ports::network::{Attached, ContainerNetwork, Drain, Network};
use ports::runtime::RuntimeError;
use tokio::sync::{oneshot, watch};
use types::{
    Condition, ConditionCode, DirectoryUpdate, DnsConfig, Fault, NetworkCheck, NetworkId,
    NetworkPart, PortBinding, PortProtocol,
};

pub(crate) use api::Known;
pub(crate) use connect::Wishes;
pub(crate) use own::name_taken;

use crate::config::Config;
use crate::network_keys::NetworkKeys;
use crate::settings::SwarmDir;
use encryption::Encryption;
use own::OwnNetworks;

/// How often ports that a program of the host holds are asked for again.
const RESERVE_PERIOD: Duration = Duration::from_secs(2);
/// Wait before a step between the two is tried again.
const RETRY_PERIOD: Duration = Duration::from_millis(200);
const HOST_RESOLV_CONF: &str = "/etc/resolv.conf";

/// What the two learned by themselves.
enum Cause {
    Shutdown,
    Resolvers,
    Reservations,
    Conditions,
}

/// The network of this node. Clones share everything.
#[derive(Clone)]
pub(crate) struct NodeNetwork {
    path: DataPath,
    names: netd::Client,
    /// Networks of the cluster that this node takes part in; `None` before the managers have been
    /// heard.
    parts: Arc<Mutex<Option<BTreeMap<NetworkId, NetworkPart>>>>,
    /// Containers whose names are served, and whether nobody else is asked for them.
    served: Arc<Mutex<BTreeMap<String, bool>>>,
    /// Where this node's data path ends; `None` before it is in a cluster.
    address: watch::Sender<Option<IpAddr>>,
    own: OwnNetworks,
    encryption: Encryption,
    /// What the resolver was told of them.
    told: Arc<tokio::sync::Mutex<Option<DirectoryUpdate>>>,
    /// What the last attempts of containers to be on their networks came to.
    attempts: connect::Attempts,
    /// Whether a manager is heard.
    contact: watch::Sender<bool>,
    /// Of the last update.
    index: Arc<AtomicU64>,
    /// One change at a time, for both.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl NodeNetwork {
    pub(crate) async fn open(config: &Config, instance: &str) -> Result<Self> {
        let path = DataPath::open(network::NetworkOptions {
            run_dir: config.run_dir.clone(),
            instance_id: instance.to_owned(),
            subnet: None,
            address: None,
            encryption: config.encryption,
            resolver_port: netd::RESOLVER_PORT,
        })
        .await
        .context("network")?;
        let options = netd::Options::new(config.run_dir.clone(), build()?);
        let names = netd::Client::connect_or_start(options).await.context("names")?;
        let db = agent::NetworkDb::open(&config.data_dir.join("networks.db"))?;
        let keys = SwarmDir::new(&config.data_dir).network_keys();
        let this = Self {
            path,
            names,
            parts: Arc::default(),
            served: Arc::default(),
            address: watch::Sender::new(None),
            own: OwnNetworks::open(db)?,
            encryption: Encryption::new(NetworkKeys::new(keys)),
            told: Arc::default(),
            attempts: connect::Attempts::default(),
            contact: watch::Sender::new(true),
            index: Arc::default(),
            turn: Arc::default(),
        };
        this.recall_own().await.context("the node's own networks")?;
        this.tell_names().await;
        this.settle_keys().await.context("keys of encrypted networks")?;
        Ok(this)
    }

    /// For the agent, which tells the managers of bad paths and says whether it hears them.
    pub(crate) fn path_links(&self) -> PathLinks {
        PathLinks { bad: self.path.bad_paths(), contact: self.contact.clone() }
    }

    pub(crate) fn path(&self) -> &DataPath {
        &self.path
    }

    /// As it was set last.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        *self.address.borrow()
    }

    pub(crate) async fn set_address(&self, address: Option<IpAddr>) -> Result<(), RuntimeError> {
        self.address.send_replace(address);
        self.path.set_address(address).await
    }

    /// Keeps containers from what managers listen on.
    pub(crate) async fn set_managers(
        &self,
        managers: BTreeSet<SocketAddr>,
    ) -> Result<(), RuntimeError> {
        self.path.set_managers(managers).await
    }

    /// What the managers are told of the data path.
    pub(crate) async fn survey(&self) -> Result<types::DataPath, RuntimeError> {
        let address = *self.address.borrow();
        self.path.survey(address).await
    }

    /// Removes every trace, when no container needs it.
    pub(crate) async fn remove_all(&self) -> Result<(), RuntimeError> {
        if let Err(error) = self.names.stop().await {
            tracing::warn!(error = %chain(&error), "netd goes on");
        }
        self.path.remove_all().await
    }

    /// Carries between the two what they learn by themselves, until shutdown: where resolvers
    /// listen, which ports must be reserved, which of them could not be had.
    pub(crate) async fn keep(
        self,
        conditions: watch::Sender<Vec<Condition>>,
        mut shutdown: watch::Receiver<bool>,
    ) {
        let (mut ports, mut wanted) = (self.names.ports(), self.path.reservations());
        let mut trouble = self.path.conditions();
        // Whether containers of an earlier daemon are led to this very netd is not known yet.
        let (mut missing, mut epoch) = (false, None);
        ports.mark_changed();
        wanted.mark_changed();
        trouble.mark_changed();
        loop {
            let cause = tokio::select! {
                biased;
                _ = shutdown.wait_for(|stop| *stop) => Cause::Shutdown,
                Ok(()) = ports.changed() => Cause::Resolvers,
                Ok(()) = wanted.changed() => Cause::Reservations,
                Ok(()) = trouble.changed() => Cause::Conditions,
                () = tokio::time::sleep(RESERVE_PERIOD), if missing => Cause::Reservations,
            };
            match cause {
                Cause::Shutdown => return,
                Cause::Resolvers => {
                    let now = ports.borrow_and_update().clone();
                    if epoch != Some(now.epoch) {
                        match self.lead_to(&now).await {
                            true => epoch = Some(now.epoch),
                            false => ports.mark_changed(),
                        }
                    }
                }
                Cause::Reservations => {
                    let bindings = wanted.borrow_and_update().iter().copied().collect();
                    missing = self.reserve(bindings).await;
                }
                Cause::Conditions => {
                    let found = trouble.borrow_and_update().clone();
                    conditions.send_if_modified(|known| set_conditions(known, OF_NETWORK, found));
                }
            }
        }
    }

    /// Another netd holds the resolvers now: every container is led to its new port.
    async fn lead_to(&self, ports: &netd::Ports) -> bool {
        for (id, port) in &ports.by_container {
            if let Err(error) = self.path.set_resolver(id, *port).await {
                // Gone meanwhile, or the data path is mended by its own loop.
                tracing::warn!(container.id = id, error = %chain(&error), "resolver not led to");
            }
        }
        match self.names.settled(ports.epoch).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "netd was not told");
                tokio::time::sleep(RETRY_PERIOD).await;
                false
            }
        }
    }

    /// Reserves what the data path publishes; `true` when something could not be had.
    async fn reserve(&self, wanted: Vec<PortBinding>) -> bool {
        let missing = match self.names.reserve(&wanted).await {
            Ok(missing) => missing,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "ports are not reserved");
                tokio::time::sleep(RETRY_PERIOD).await;
                return true;
            }
        };
        let held = |binding: &&PortBinding| !missing.contains(binding);
        let loopback: Vec<(PortProtocol, u16)> = wanted
            .iter()
            .filter(held)
            .filter(|binding| binding.address.is_none() && binding.protocol != PortProtocol::Sctp)
            .map(|binding| (binding.protocol, binding.port))
            .collect();
        if let Err(error) = self.names.forward_loopback6(&loopback).await {
            tracing::warn!(error = %chain(&error), "published ports do not answer on ::1");
        }
        let any = !missing.is_empty();
        if let Err(error) = self.path.set_unavailable(missing.into_iter().collect()).await {
            tracing::warn!(error = %chain(&error), "ports that others hold may be published");
            return true;
        }
        any
    }

    /// It is on internal networks only, and nothing is published of it.
    fn without_a_way_out(&self, container: &LocalContainer) -> bool {
        let parts = self.parts();
        let is_internal = |end: &LocalLink| {
            let Some(id) = end.network else { return true };
            match (self.own.get(id), parts.as_ref()) {
                (Some(own), _) => own.spec.internal,
                (None, Some(parts)) => parts.get(&id).is_some_and(|part| part.internal),
                // Not heard yet since the daemon's start: as it was before.
                (None, None) => !container.outward,
            }
        };
        let mesh = container.links.iter().find(|end| end.network.is_none());
        let own = |v4: std::net::Ipv4Addr| self.path.subnet().contains(&v4);
        let in_mesh = mesh.is_some_and(|end| !end.v4.is_some_and(own));
        let on_any = networks_of(container).next().is_some();
        !in_mesh && on_any && container.links.iter().all(is_internal)
    }

    fn parts(&self) -> MutexGuard<'_, Option<BTreeMap<NetworkId, NetworkPart>>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn learn_parts(&self, update: &DirectoryUpdate) {
        let mut known = self.parts();
        if update.full {
            *known = Some(BTreeMap::new());
        }
        // A session begins with a full update.
        let Some(parts) = known.as_mut() else { return };
        for id in &update.removed_networks {
            parts.remove(id);
        }
        parts.extend(update.networks.iter().map(|part| (part.id, part.clone())));
    }

    /// Networks of the container that the cluster has and each node makes for itself.
    fn of_nodes(&self, wanted: &ContainerNetwork) -> Vec<NetworkPart> {
        let parts = self.parts();
        let all = wanted.attachments.iter().filter_map(|one| parts.as_ref()?.get(&one.network));
        all.filter(|part| part.driver.is_of_nodes()).cloned().collect()
    }

    /// Makes what the container needs of networks that this node has for itself.
    async fn ensure_local(&self, wanted: &ContainerNetwork) -> Result<(), Fault> {
        if wanted.attachments.iter().any(|one| one.network == NetworkId::BRIDGE) {
            self.ensure_bridge().await?;
        }
        for part in self.of_nodes(wanted) {
            self.ensure_of_cluster(&part).await?;
        }
        Ok(())
    }

    /// Serves those again that were served before it was known which of their networks have no way
    /// out: after a start, until the managers have been heard.
    async fn serve_changed(&self) {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (id, is_closed) in served {
            let container = self.path.container(&id);
            if container.is_some_and(|one| self.without_a_way_out(&one) != is_closed)
                && let Err(error) = self.serve_again(&id).await
            {
                tracing::warn!(container.id = id, error = %chain(&error), "names not as wanted");
            }
        }
    }

    async fn try_attach(&self, wanted: &ContainerNetwork) -> Result<Attached, RuntimeError> {
        self.ensure_local(wanted).await.map_err(|fault| RuntimeError::Failed {
            step: "make the node's part of a network",
            problem: fault.message,
        })?;
        // Names are served while links are laid.
        let (begun, container) = oneshot::channel();
        let served = async {
            let alone = [NetworkId::HOST, NetworkId::NONE];
            if wanted.attachments.iter().any(|one| alone.contains(&one.network)) {
                return Ok(None);
            }
            let (container, host) = tokio::join!(container, host_resolvers());
            // Without one the attachment has failed.
            let Ok(container) = container else { return Ok(None) };
            let port = self.serve(&wanted.id, &container, &host).await?;
            Ok::<_, RuntimeError>(Some((port, netd::resolv_conf(&host, &wanted.dns))))
        };
        let (attached, served) = tokio::join!(self.path.attach_telling(wanted, begun), served);
        let mut attached = attached?;
        if let Some((port, text)) = served? {
            self.path.set_resolver(&wanted.id, port).await?;
            attached.resolv_conf = Some(text);
        }
        self.tell_names_of(&wanted.id).await;
        Ok(attached)
    }

    /// Serves the names of one whose networks have changed.
    async fn serve_again(&self, id: &str) -> Result<(), RuntimeError> {
        let Some(container) = self.path.container(id) else {
            return Err(RuntimeError::NoContainer { id: id.to_owned() });
        };
        let port = self.serve(id, &container, &host_resolvers().await).await?;
        self.path.set_resolver(id, port).await
    }

    /// Serves the container's names; answers on which port.
    async fn serve(
        &self,
        id: &str,
        container: &LocalContainer,
        host: &str,
    ) -> Result<u16, RuntimeError> {
        let nameservers = container.nameservers.clone();
        let is_closed = self.without_a_way_out(container);
        let forward = match is_closed {
            true => Forward::None,
            false => Forward::choose(host, &DnsConfig { nameservers, ..DnsConfig::default() }),
        };
        let served = netd::Container {
            id: id.to_owned(),
            netns: self.path.netns(id),
            networks: networks_of(container).collect(),
            forward,
        };
        let port = self.names.serve(served).await.map_err(|error| failed("serve names", &error))?;
        self.served.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), is_closed);
        Ok(port)
    }
}

/// A host without the file has no resolver: then only our names are known.
async fn host_resolvers() -> String {
    tokio::fs::read_to_string(HOST_RESOLV_CONF).await.unwrap_or_default()
}

/// In the order in which names are looked for.
fn networks_of(container: &LocalContainer) -> impl Iterator<Item = NetworkId> {
    container.links.iter().filter_map(|end| end.network)
}

impl Network for NodeNetwork {
    async fn update(&self, update: DirectoryUpdate) -> Result<(), RuntimeError> {
        self.learn_parts(&update);
        let _turn = self.turn.lock().await;
        self.index.store(update.index, Ordering::Relaxed);
        if self.encryption.learn(&update)
            && let Err(error) = self.settle_keys().await
        {
            tracing::warn!(error = format!("{error:#}"), "keys of encrypted networks");
            self.encryption.try_again();
        }
        // Nobody is sent to one that leaves while the data path is still at work, or in trouble.
        let told = match names::departures(&update) {
            Some(departures) => self.names.update(&departures).await,
            None => Ok(()),
        };
        self.path.update(update.clone()).await?;
        self.encryption.carried_out();
        let told = match told {
            Ok(()) => self.names.update(&names::of_overlays(&update)).await,
            failed => failed,
        };
        told.map_err(|error| failed("change names", &error))?;
        if update.full || !update.networks.is_empty() {
            self.serve_changed().await;
        }
        if update.full || !update.removed_networks.is_empty() {
            self.release_of_cluster().await;
        }
        Ok(())
    }

    async fn attach(&self, wanted: &ContainerNetwork) -> Result<Attached, RuntimeError> {
        let attached = self.try_attach(wanted).await;
        self.attempts.note(&wanted.id, attached.as_ref().err());
        attached
    }

    async fn drain(&self, id: &str, limit: Drain) {
        self.path.drain(id, limit).await;
    }

    async fn detach(&self, id: &str) -> Result<(), RuntimeError> {
        let released = self.names.release(id).await;
        self.served.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        self.attempts.forget(id);
        let on_own = self.is_on_own(id);
        self.path.detach(id).await?;
        if on_own {
            self.tell_names().await;
            self.release_of_cluster().await;
        }
        released.map_err(|error| failed("stop serving names", &error))
    }

    async fn connections(&self, id: &str) -> Vec<NetworkId> {
        self.path.connections(id).await
    }

    async fn examine(&self, network: NetworkId) -> Result<NetworkCheck, RuntimeError> {
        self.path.examine(network).await
    }

    async fn observe(&self) -> Result<Vec<String>, RuntimeError> {
        self.path.observe().await
    }
}

fn failed(step: &'static str, error: &netd::ClientError) -> RuntimeError {
    RuntimeError::Failed { step, problem: chain(error).to_string() }
}

/// Conditions that the data path finds.
const OF_NETWORK: &[ConditionCode] = &[
    ConditionCode::PortTaken,
    ConditionCode::FirewallDrops,
    ConditionCode::ConntrackFull,
    ConditionCode::ClearText,
];

/// Puts `found` in the place of the conditions of these codes; whether that changed anything.
pub(crate) fn set_conditions(
    known: &mut Vec<Condition>,
    codes: &[ConditionCode],
    found: Vec<Condition>,
) -> bool {
    let mut new: Vec<Condition> =
        known.iter().filter(|one| !codes.contains(&one.code)).cloned().collect();
    new.extend(found);
    new.sort();
    let changed = *known != new;
    *known = new;
    changed
}

/// Another program, though it calls itself by the same version, is another build.
fn build() -> Result<String> {
    let version = crate::BUILD.version;
    let meta = std::fs::metadata("/proc/self/exe").context("this program")?;
    let changed = meta.modified().context("this program")?;
    let changed = changed.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Ok(format!("{version}-{}-{}", crate::BUILD.commit, changed.as_millis()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_of_others_stay() {
        let of = |code, message: &str| Condition::new(code, message);
        let mut known = vec![of(ConditionCode::DiskFull, "full")];
        let taken = vec![of(ConditionCode::PortTaken, "tcp 80")];
        assert!(set_conditions(&mut known, OF_NETWORK, taken.clone()));
        assert!(!set_conditions(&mut known, OF_NETWORK, taken));
        assert_eq!(known.len(), 2);
        assert!(set_conditions(&mut known, &[ConditionCode::DiskFull], Vec::new()));
        assert_eq!(known[0].code, ConditionCode::PortTaken);
    }
}
