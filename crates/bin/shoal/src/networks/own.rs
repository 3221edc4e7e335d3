//! The list of networks that the node has for itself.
//!
//! Owns: what is in the list, that it is on disk, which of it is in the kernel.
//! Does not know: who is on a network; how one is made.
//! Invariant: a network is in the kernel before it is in the list, and out of the list after it is
//! out of the kernel; so what is listed works, whenever the daemon ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent::NetworkDb;
use base::{Timestamp, chain};
use ports::Clock;
use types::{
    ErrorCode, Fault, LocalNetwork, NetworkDriver, NetworkId, NetworkPart, NetworkSpec,
    check_local_network_spec, from_config, limits::LOCAL_NETWORKS_MAX,
};

use super::NodeNetwork;
use crate::clock::SystemClock;

/// Networks of the node's own. Clones share everything.
#[derive(Clone, Debug)]
pub(crate) struct OwnNetworks {
    db: Arc<NetworkDb>,
    all: Arc<Mutex<BTreeMap<NetworkId, LocalNetwork>>>,
    /// One change at a time.
    changing: Arc<tokio::sync::Mutex<()>>,
}

impl OwnNetworks {
    pub(super) fn open(db: NetworkDb) -> Result<Self, agent::DbError> {
        let all = db.load()?.into_iter().map(|network| (network.id, network)).collect();
        Ok(Self { db: Arc::new(db), all: Arc::new(Mutex::new(all)), changing: Arc::default() })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NetworkId, LocalNetwork>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, id: NetworkId) -> Option<LocalNetwork> {
        self.lock().get(&id).cloned()
    }

    /// Those that somebody made, and what is known of the predefined bridge.
    pub(super) fn recorded(&self) -> Vec<LocalNetwork> {
        self.lock().values().cloned().collect()
    }

    /// What stands in a configuration.
    fn config(&self, name: &str) -> Result<NetworkSpec, Fault> {
        let all = self.lock();
        let named = |network: &&LocalNetwork| network.spec.name.eq_ignore_ascii_case(name);
        let (message, code) = match all.values().find(named) {
            Some(network) if network.spec.config_only => return Ok(network.spec.clone()),
            Some(_) => {
                (format!("network \"{name}\" is no configuration network"), ErrorCode::Invalid)
            }
            None => {
                (format!("configuration network \"{name}\" does not exist"), ErrorCode::NotFound)
            }
        };
        Err(Fault { code, ..Fault::invalid("--config-from", message) }.hint(
            "make it on this node: shoal network create --config-only --subnet … -o parent=… NAME",
        ))
    }

    /// A network that is made of this configuration.
    fn user_of(&self, config: &str) -> Option<String> {
        let all = self.lock();
        let uses = |network: &&LocalNetwork| network.spec.config_from.eq_ignore_ascii_case(config);
        all.values().find(uses).map(|network| network.spec.name.clone())
    }

    /// Every network of the node's own, the three that every node has among them.
    pub(super) fn all(&self) -> Vec<LocalNetwork> {
        let mut all = self.lock().clone();
        for network in predefined() {
            all.entry(network.id).or_insert(network);
        }
        all.into_values().collect()
    }
}

/// The networks that every node has.
fn predefined() -> [LocalNetwork; 3] {
    let alone = |id, name: &str, driver| {
        let spec = NetworkSpec { name: name.into(), driver, ipv4: true, ..NetworkSpec::default() };
        LocalNetwork { id, created: Timestamp(0), spec, subnets: Vec::new(), swarm: false }
    };
    [
        LocalNetwork::predefined_bridge(),
        alone(NetworkId::HOST, "host", NetworkDriver::Host),
        alone(NetworkId::NONE, "none", NetworkDriver::None),
    ]
}

impl NodeNetwork {
    /// Makes a network of the node's own.
    ///
    /// # Errors
    /// When its name, its subnet or its link is taken, or the kernel cannot do it.
    pub(crate) async fn create_own(
        &self,
        mut spec: NetworkSpec,
        id: NetworkId,
        now: Timestamp,
    ) -> Result<(), Fault> {
        if spec.config_only {
            // As docker shows them; the driver is said by who refers to it.
            spec.driver = NetworkDriver::None;
        }
        check_local_network_spec(&spec)?;
        let _changing = self.own.changing.lock().await;
        let known = self.own.all();
        let same = |name: &str| name.eq_ignore_ascii_case(&spec.name);
        let cluster = self.path.overlays();
        if known.iter().any(|other| same(&other.spec.name))
            || cluster.iter().any(|part| same(&part.name))
        {
            return Err(name_taken(&spec.name));
        }
        if known.len() >= LOCAL_NETWORKS_MAX {
            let message = format!("this node has {LOCAL_NETWORKS_MAX} networks already");
            return Err(Fault::new(ErrorCode::FailedPrecondition, message));
        }
        self.plan_and_make(spec, id, now, false).await
    }

    /// This node's part of a network of the cluster that each node makes for itself.
    ///
    /// # Errors
    /// When the configuration that it is made of is not here, or the kernel cannot do it.
    pub(super) async fn ensure_of_cluster(&self, part: &NetworkPart) -> Result<(), Fault> {
        let _changing = self.own.changing.lock().await;
        if let Some(known) = self.own.get(part.id) {
            return self.path.make_local(known).await;
        }
        let spec = NetworkSpec {
            name: part.name.clone(),
            driver: part.driver,
            internal: part.internal,
            ipv4: true,
            options: part.options.clone(),
            config_from: part.config_from.clone(),
            ..NetworkSpec::default()
        };
        self.plan_and_make(spec, part.id, SystemClock::new().now(), true).await
    }

    /// Takes away this node's parts of networks that it takes no part in any more, unless a
    /// container is still on them. Before the managers have been heard it may take part in all.
    pub(super) async fn release_of_cluster(&self) {
        let _changing = self.own.changing.lock().await;
        let parts = self.parts().as_ref().map(|parts| parts.keys().copied().collect());
        let Some(parts): Option<BTreeSet<NetworkId>> = parts else { return };
        let left = |network: &LocalNetwork| network.swarm && !parts.contains(&network.id);
        for network in self.own.recorded().into_iter().filter(left) {
            match self.take_away(&network).await {
                Err(fault) if fault.code != ErrorCode::Conflict => {
                    let (name, error) = (&network.spec.name, &fault.message);
                    tracing::warn!(name, error, "a network is not taken away");
                }
                _ => {}
            }
        }
    }

    async fn plan_and_make(
        &self,
        mut spec: NetworkSpec,
        id: NetworkId,
        created: Timestamp,
        swarm: bool,
    ) -> Result<(), Fault> {
        if !spec.config_from.is_empty() {
            spec = from_config(&spec, &self.own.config(&spec.config_from)?)?;
        }
        let subnets = match spec.config_only {
            true => Vec::new(),
            false => self.path.plan_local(spec.clone()).await?,
        };
        self.make(LocalNetwork { id, created, spec, subnets, swarm }).await
    }

    /// Puts it into the kernel, which has nothing of a configuration.
    async fn lay(&self, network: &LocalNetwork) -> Result<(), Fault> {
        match network.spec.config_only {
            true => Ok(()),
            false => self.path.make_local(network.clone()).await,
        }
    }

    async fn make(&self, network: LocalNetwork) -> Result<(), Fault> {
        self.lay(&network).await?;
        if let Err(error) = self.own.db.put(&network) {
            // What is not on disk must not be in the kernel.
            self.path.remove_local(network.id).await?;
            return Err(Fault::new(ErrorCode::Internal, chain(&error).to_string()));
        }
        self.own.lock().insert(network.id, network);
        self.tell_names().await;
        Ok(())
    }

    /// Removes a network that no container is on.
    ///
    /// # Errors
    /// When it is in use, or one that every node has.
    pub(crate) async fn remove_own(&self, network: &LocalNetwork) -> Result<(), Fault> {
        let name = &network.spec.name;
        if network.id.is_predefined() {
            let message = format!("{name} is a pre-defined network and cannot be removed");
            return Err(Fault::new(ErrorCode::PermissionDenied, message));
        }
        let _changing = self.own.changing.lock().await;
        if network.spec.config_only
            && let Some(user) = self.own.user_of(name)
        {
            let message = format!("configuration network \"{name}\" is in use by network {user}");
            return Err(Fault::new(ErrorCode::Conflict, message));
        }
        self.take_away(network).await
    }

    async fn take_away(&self, network: &LocalNetwork) -> Result<(), Fault> {
        self.path.remove_local(network.id).await?;
        if let Err(error) = self.own.db.remove(network.id) {
            // It is there again as long as it is listed.
            self.lay(network).await?;
            return Err(Fault::new(ErrorCode::Internal, chain(&error).to_string()));
        }
        self.own.lock().remove(&network.id);
        self.tell_names().await;
        Ok(())
    }

    /// The predefined bridge is made when the first container needs it.
    pub(super) async fn ensure_bridge(&self) -> Result<(), Fault> {
        let _changing = self.own.changing.lock().await;
        match self.own.get(NetworkId::BRIDGE) {
            Some(known) => self.path.make_local(known).await,
            None => {
                let mut network = LocalNetwork::predefined_bridge();
                network.subnets = self.path.plan_local(network.spec.clone()).await?;
                self.make(network).await
            }
        }
    }

    /// Puts into the kernel what was listed when the daemon ended. The predefined bridge only
    /// where a container is on it.
    pub(super) async fn recall_own(&self) -> Result<(), ports::runtime::RuntimeError> {
        let containers = self.path.containers();
        let bridged = containers
            .iter()
            .flat_map(|(_, container)| &container.links)
            .any(|end| end.network == Some(NetworkId::BRIDGE));
        let mut networks = self.own.recorded();
        networks.retain(|network| bridged || network.id != NetworkId::BRIDGE);
        networks.retain(|network| !network.spec.config_only);
        self.path.set_local(networks).await
    }

    /// Takes the predefined bridge out of the kernel when no container is on it.
    pub(crate) async fn release_bridge(&self) {
        let _changing = self.own.changing.lock().await;
        // With a container on it, it stays.
        let _ = self.path.remove_local(NetworkId::BRIDGE).await;
    }
}

pub(crate) fn name_taken(name: &str) -> Fault {
    let message = format!("network with name {name} already exists");
    Fault { code: ErrorCode::Conflict, ..Fault::invalid("name", message) }
}
