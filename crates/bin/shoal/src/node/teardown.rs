//! What a node takes away when it leaves its cluster, and when its daemon ends.
//!
//! Owns: removing tasks' containers and networks, and what only those need.
//! Does not know: the membership. Invariant: while a container is there, nothing that it or the
//! next daemon needs is touched.

use ports::network::Network as _;
use ports::runtime::Runtime as _;

use types::DirectoryUpdate;

use super::Node;

impl Node {
    /// Removes every container and network of the cluster's tasks.
    pub(super) async fn remove_tasks(&self) {
        for container in self.runtime.observe().await.unwrap_or_default() {
            let grace = types::limits::STOP_GRACE_DEFAULT;
            let _ = self.runtime.stop(&container.id, grace).await;
            if let Err(error) = self.runtime.remove(&container.id).await {
                tracing::warn!(container.id = container.id, %error, "container not removed");
            }
        }
        for id in self.network.observe().await.unwrap_or_default() {
            if let Err(error) = self.network.detach(&id).await {
                tracing::warn!(task.id = id, %error, "network could not be removed");
            }
        }
        self.forget_networks().await;
        self.network.release_bridge().await;
        self.release().await;
    }

    /// Outside of a cluster there are none of its networks. The node's own stay.
    pub(super) async fn forget_networks(&self) {
        let nothing = DirectoryUpdate { full: true, ..DirectoryUpdate::default() };
        if let Err(error) = self.network.update(nothing).await {
            tracing::warn!(%error, "networks could not be removed");
        }
    }

    /// A node without containers leaves no groups and no rules on its machine; with containers
    /// everything stays as it is. Nothing may be started meanwhile.
    async fn release(&self) {
        if let Err(error) = self.runtime.release_groups().await {
            tracing::warn!(%error, "unused control groups stay");
        }
    }

    /// At the daemon's end: what only containers need goes when there are none.
    pub(crate) async fn release_all(&self) {
        self.release().await;
        let idle = self.runtime.observe().await.is_ok_and(|all| all.is_empty())
            && self.network.observe().await.is_ok_and(|all| all.is_empty());
        if idle && let Err(error) = self.network.remove_all().await {
            tracing::warn!(%error, "the network's rules stay");
        }
    }
}
