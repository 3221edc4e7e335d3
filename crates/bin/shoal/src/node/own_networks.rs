//! Networks of this node, as its user sees and changes them.
//!
//! Owns: which of the node's parts a request goes to, and the one name space with the cluster's.
//! Does not know: how a network is made or joined.
//! Invariant: a name that the cluster has, as far as this node can tell, is no network's of its
//! own.

use ports::Clock as _;
use ports::store::Store as _;
use types::{ErrorCode, Fault, NetworkId, NetworkSpec};
use wire::v1;

use super::{Node, Standing};
use crate::networks::{Known, Wishes, name_taken};

impl Node {
    /// Makes a network of this node's own.
    pub(crate) async fn create_network(
        &self,
        request: v1::CreateNetworkRequest,
    ) -> Result<v1::CreateNetworkResponse, Fault> {
        let spec = request.spec.ok_or_else(|| Fault::invalid("spec", "is missing"))?;
        let spec = NetworkSpec::try_from(spec)?;
        if let Standing::Manager(api) = self.standing().await
            && api.store().snapshot().network_by_name(&spec.name).is_some()
        {
            return Err(name_taken(&spec.name));
        }
        let id = NetworkId(self.source().mint());
        self.network.create_own(spec, id, self.clock.now()).await?;
        Ok(v1::CreateNetworkResponse { id: wire::bytes_of(id.0), warnings: Vec::new() })
    }

    /// Connects a running container of this node to a network.
    pub(crate) async fn connect_network(
        &self,
        request: v1::ConnectNetworkRequest,
    ) -> Result<(), Fault> {
        let wishes = Wishes::of(&request)?;
        let (id, _) = self.network.running(&self.runtime, &request.container).await?;
        match self.network.find(&request.network)? {
            Known::Own(network) => self.network.connect_own(&id, &network, wishes).await,
            Known::Cluster(part) => {
                let message = format!("network {} not manually attachable", part.name);
                Err(Fault::new(ErrorCode::PermissionDenied, message))
            }
        }
    }

    /// Takes it off a network that it was connected to.
    pub(crate) async fn disconnect_network(
        &self,
        request: v1::DisconnectNetworkRequest,
    ) -> Result<(), Fault> {
        let result = self.try_disconnect(&request).await;
        match result {
            Err(fault) if request.force && fault.code == ErrorCode::NotFound => Ok(()),
            result => result,
        }
    }

    async fn try_disconnect(&self, request: &v1::DisconnectNetworkRequest) -> Result<(), Fault> {
        let (id, container) = self.network.find_container(&request.container)?;
        let known = self.network.find(&request.network)?;
        let name = container.names.first().unwrap_or(&id);
        if !container.links.iter().any(|end| end.network == Some(known.id())) {
            let network = known.name();
            let message = format!("container {name} is not connected to network {network}");
            return Err(Fault::new(ErrorCode::NotFound, message));
        }
        match known {
            Known::Own(network) => self.network.disconnect_own(&id, &network).await,
            Known::Cluster(part) => {
                let message =
                    format!("container {name} is on network {} because its service is", part.name);
                Err(Fault::new(ErrorCode::FailedPrecondition, message))
            }
        }
    }
}
