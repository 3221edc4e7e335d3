//! The list of networks that the node has for itself.
//!
//! Owns: what is in the list, that it is on disk, which of it is in the kernel.
//! Does not know: who is on a network; how one is made.
//! Invariant: a network is in the kernel before it is in the list, and out of the list after it is
//! out of the kernel; so what is listed works, whenever the daemon ends.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent::NetworkDb;
use base::{Timestamp, chain};
use types::{
    ErrorCode, Fault, LocalNetwork, NetworkDriver, NetworkId, NetworkSpec,
    check_local_network_spec, limits::LOCAL_NETWORKS_MAX,
};

use super::NodeNetwork;

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
        LocalNetwork { id, created: Timestamp(0), spec, subnets: Vec::new() }
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
        spec: NetworkSpec,
        id: NetworkId,
        now: Timestamp,
    ) -> Result<(), Fault> {
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
        let subnets = self.path.plan_local(spec.clone()).await?;
        self.make(LocalNetwork { id, created: now, spec, subnets }).await
    }

    async fn make(&self, network: LocalNetwork) -> Result<(), Fault> {
        self.path.make_local(network.clone()).await?;
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
        self.path.remove_local(network.id).await?;
        if let Err(error) = self.own.db.remove(network.id) {
            // It is there again as long as it is listed.
            self.path.make_local(network.clone()).await?;
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
