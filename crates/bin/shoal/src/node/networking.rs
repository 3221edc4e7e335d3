//! What this node is to its network, and what the network finds of the node.
//!
//! Owns: the address of the data path, its place in the node's description, the loops that keep
//! the network. Does not know: the membership beyond its addresses.
//! Invariant: a node describes its data path before it asks for tasks.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base::chain;
use ports::runtime::Runtime as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use types::DataPath;

use super::Node;
use crate::address::interfaces;
use crate::settings::Settings;

impl Node {
    /// Begins what keeps the node's network as it should be; it ends when told so.
    pub(crate) fn keep_networks(&self) -> (watch::Sender<bool>, JoinHandle<()>) {
        let (stop, stopped) = watch::channel(false);
        let (network, conditions) = (self.network.clone(), self.conditions.clone());
        let keeping = tokio::spawn(async move {
            let path = network.path().clone();
            let until = || {
                let mut stopped = stopped.clone();
                async move { drop(stopped.wait_for(|stop| *stop).await) }
            };
            tokio::join!(
                network.clone().keep(conditions, stopped.clone()),
                network.suspect(until()),
                network.keep_encryption(until()),
                path.run(until()),
                path.watch_peers(until()),
            );
        });
        (stop, keeping)
    }

    /// Keeps the description true: what is to be said of images and of the data path.
    pub(crate) async fn keep_described(self: Arc<Self>) {
        loop {
            let images = self.runtime.list_images().await.unwrap_or_default();
            let mut references: Vec<String> = images
                .into_iter()
                .flat_map(|image| image.references.into_iter().chain(image.digests))
                .collect();
            references.sort();
            references.dedup();
            let mut new =
                self.machine.description(&self.config.hostname, &self.config.labels, references);
            self.follow_address().await;
            new.data_path = self.data_path().await;
            self.description.send_if_modified(|known| {
                let changed = *known != new;
                if changed {
                    *known = new;
                }
                changed
            });
            // At once when the peers of encrypted networks wait for it.
            let _ = tokio::time::timeout(DESCRIBE_PERIOD, self.network.news()).await;
        }
    }

    /// Before the agent begins: where VXLAN packets come from, and what there is to say of it.
    pub(super) async fn begin_data_path(&self, settings: &Settings) {
        let address = settings.data_path.now(&interfaces(), None);
        if let Err(error) = self.network.set_address(Some(address)).await {
            tracing::warn!(error = %chain(&error), "the data path has no address yet");
        }
        let path = self.data_path().await;
        self.description.send_if_modified(|known| {
            let changed = known.data_path != path;
            known.data_path = path;
            changed
        });
    }

    /// `None`: this node is in no cluster.
    async fn member_settings(&self) -> Option<Settings> {
        self.active.lock().await.member.as_ref().map(|member| member.settings.clone())
    }

    /// The host may have another address by now, where its user named none.
    pub(super) async fn follow_address(&self) {
        let (settings, before) = (self.member_settings().await, self.network.address());
        let (Some(settings), Some(before)) = (settings, before) else { return };
        let address = settings.data_path.now(&interfaces(), Some(before));
        if address == before {
            return;
        }
        tracing::info!(%before, %address, "the data path has another address");
        if let Err(error) = self.network.set_address(Some(address)).await {
            tracing::warn!(error = %chain(&error), "the data path does not have its address yet");
        }
    }

    /// Keeps containers from the managers' ports, on this node and all others. An address with a
    /// name in it says its port only where another has the same.
    pub(super) async fn guard(&self, settings: &Settings, managers: &[String]) -> bool {
        let mut all: BTreeSet<SocketAddr> =
            managers.iter().filter_map(|text| text.parse().ok()).collect();
        let own = settings.advertise;
        all.extend([own, SocketAddr::new(own.ip(), settings.listen.port())]);
        match self.network.set_managers(all).await {
            Ok(()) => true,
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(%error, "containers may reach the managers' ports");
                false
            }
        }
    }

    /// The same for a member whose managers have changed.
    pub(super) async fn guard_as_told(&self, managers: &[String]) -> bool {
        match self.member_settings().await {
            Some(settings) => self.guard(&settings, managers).await,
            None => true,
        }
    }

    /// What is to be said of it now; what cannot be found out stays as it was said.
    pub(super) async fn data_path(&self) -> DataPath {
        match self.network.survey().await {
            Ok(path) => path,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "the data path is not described");
                self.description.borrow().data_path.clone()
            }
        }
    }
}

/// How often images are looked at for the node's description.
const DESCRIBE_PERIOD: Duration = Duration::from_secs(5);
