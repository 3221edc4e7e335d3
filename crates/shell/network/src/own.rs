//! What the daemon may ask of networks that the node has for itself, and of who is on them.
//!
//! Owns: connecting a running container to such a network, and disconnecting it.
//! Does not know: the list's owner, names, the cluster.
//! Invariant: a container that could not be connected is as it was before.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use netplan::{AskedBy, LocalContainer};
use ports::runtime::RuntimeError;
use types::limits::NETWORKS_PER_CONTAINER_MAX;
use types::{
    Attachment, ErrorCode, Fault, LocalNetwork, NetworkId, NetworkPart, NetworkSpec, Subnet,
};

use crate::DataPath;
use crate::attach::{Lead, missing_links};
use crate::node::Node;

/// How a container is to be on a network.
#[derive(Clone, Debug)]
pub struct Joining {
    /// Addresses that are not said are chosen.
    pub attachment: Attachment,
    /// Further names on this network.
    pub aliases: Vec<String>,
}

impl DataPath {
    /// The networks that the node has, at the beginning.
    pub async fn set_local(&self, networks: Vec<LocalNetwork>) -> Result<(), RuntimeError> {
        self.with("make the node's own networks", move |node| node.set_local(networks)).await
    }

    /// Subnets for a new network of the node's own.
    ///
    /// # Errors
    /// When those asked for are somebody else's, or none is free.
    pub async fn plan_local(&self, spec: NetworkSpec) -> Result<Vec<Subnet>, Fault> {
        self.fallibly("choose subnets", move |node| node.plan_local(&spec)).await
    }

    /// Makes a network of the node's own. What is there already is no error.
    ///
    /// # Errors
    /// When the kernel or the host cannot do it; then nothing is left of it.
    pub async fn make_local(&self, network: LocalNetwork) -> Result<(), Fault> {
        self.fallibly("make the network", move |node| node.make_local(&network)).await
    }

    /// Takes it down again.
    ///
    /// # Errors
    /// When a container is on it.
    pub async fn remove_local(&self, id: NetworkId) -> Result<(), Fault> {
        self.fallibly("remove the network", move |node| node.remove_local(id)).await
    }

    /// Connects a running container to a network of the node's own.
    ///
    /// # Errors
    /// When it cannot be; then nothing has changed.
    pub async fn join(&self, id: &str, joining: Joining) -> Result<(), Fault> {
        let id = id.to_owned();
        self.fallibly("connect the container", move |node| node.join(&id, &joining)).await
    }

    /// Disconnects it from a network that it was connected to.
    ///
    /// # Errors
    /// When its service wants it there, or it is not there.
    pub async fn part(&self, id: &str, network: NetworkId) -> Result<(), Fault> {
        let id = id.to_owned();
        self.fallibly("disconnect the container", move |node| node.part(&id, network)).await
    }

    /// The containers of this node as they are connected.
    #[must_use]
    pub fn containers(&self) -> Vec<(String, LocalContainer)> {
        let node = self.inner.node();
        let all = node.planner.containers().iter();
        all.map(|(id, container)| (id.clone(), container.clone())).collect()
    }

    /// One of them.
    #[must_use]
    pub fn container(&self, id: &str) -> Option<LocalContainer> {
        self.inner.node().planner.containers().get(id).cloned()
    }

    /// Where a container's network namespace is.
    #[must_use]
    pub fn netns(&self, id: &str) -> std::path::PathBuf {
        self.inner.containers.path(id)
    }

    /// The networks of the node's own that are in the kernel.
    #[must_use]
    pub fn local(&self) -> Vec<LocalNetwork> {
        self.inner.node().local.values().cloned().collect()
    }

    /// The networks of the cluster that this node takes part in.
    #[must_use]
    pub fn overlays(&self) -> Vec<NetworkPart> {
        let node = self.inner.node();
        node.planner.networks().chain(node.planner.ingress()).cloned().collect()
    }

    async fn fallibly<T: Send + 'static>(
        &self,
        step: &'static str,
        work: impl FnOnce(&mut Node) -> io::Result<Result<T, Fault>> + Send + 'static,
    ) -> Result<T, Fault> {
        match self.with(step, work).await {
            Ok(result) => result,
            Err(error) => Err(Fault::new(ErrorCode::Internal, base::chain(&error).to_string())),
        }
    }
}

impl Node {
    fn join(&mut self, id: &str, joining: &Joining) -> io::Result<Result<(), Fault>> {
        let network = joining.attachment.network;
        let before = match self.check_join(id, network) {
            Ok(container) => container,
            Err(fault) => return Ok(Err(fault)),
        };
        if let Err(fault) = self.check_addresses(joining) {
            return Ok(Err(fault));
        }
        let mut after = before.clone();
        let planned = self.plan_link(&mut after, &before, &joining.attachment, AskedBy::Node);
        if let Err(error) = planned {
            return Ok(Err(Fault::new(ErrorCode::Conflict, error.to_string())));
        }
        if let Some(end) = after.links.last_mut() {
            end.aliases.clone_from(&joining.aliases);
        }
        match self.turn(id, &before, &after) {
            Ok(()) => Ok(Ok(())),
            Err(error) => {
                self.turn(id, &after, &before)?;
                Ok(Err(Fault::new(ErrorCode::FailedPrecondition, error.to_string())))
            }
        }
    }

    fn check_join(&self, id: &str, network: NetworkId) -> Result<LocalContainer, Fault> {
        let container =
            self.planner.containers().get(id).filter(|_| self.containers.is_mounted(id));
        let Some(container) = container.cloned() else {
            return Err(Fault::new(ErrorCode::NotFound, format!("No such container: {id}")));
        };
        let refuse = |code, message| Err(Fault::new(code, message));
        if container.links.is_empty() {
            let message = "container cannot be connected to a network: it has that of the host, \
                           or none";
            return refuse(ErrorCode::FailedPrecondition, message.to_owned());
        }
        let name = container.names.first().map_or(id, String::as_str);
        let title = self.local.get(&network).map_or("", |known| known.spec.name.as_str());
        if container.links.iter().any(|end| end.network == Some(network)) {
            let message = format!("endpoint with name {name} already exists in network {title}");
            return refuse(ErrorCode::Conflict, message);
        }
        if container.links.len() >= NETWORKS_PER_CONTAINER_MAX {
            let message =
                format!("container {name} is on {NETWORKS_PER_CONTAINER_MAX} networks already");
            return refuse(ErrorCode::FailedPrecondition, message);
        }
        Ok(container)
    }

    fn check_addresses(&self, joining: &Joining) -> Result<(), Fault> {
        let network = joining.attachment.network;
        let Some(known) = self.local.get(&network) else {
            return Err(Fault::new(ErrorCode::NotFound, format!("network {network} not found")));
        };
        for address in joining.attachment.addresses() {
            let flag = if address.is_ipv4() { "--ip" } else { "--ip6" };
            if network == NetworkId::BRIDGE {
                let message =
                    "user specified IP address is supported on user defined networks only";
                return Err(Fault::invalid(flag, message));
            }
            if !known.may_hold(address) {
                let nets: Vec<String> = known.nets().map(|net| net.to_string()).collect();
                let message = format!(
                    "{address} is no address that a container of network {} may have: its subnets \
                     are {}",
                    known.spec.name,
                    nets.join(", ")
                );
                return Err(Fault::invalid(flag, message));
            }
            if let Some(other) = self.holder(network, address) {
                let message = format!("Address already in use: {address} is that of {other}");
                return Err(Fault { code: ErrorCode::Conflict, ..Fault::invalid(flag, message) });
            }
        }
        Ok(())
    }

    fn holder(&self, network: NetworkId, address: IpAddr) -> Option<String> {
        let (id, container) = self.planner.containers().iter().find(|(_, container)| {
            container.links.iter().any(|end| {
                let own = end.v4.map(IpAddr::V4).into_iter().chain(end.v6.map(IpAddr::V6));
                end.network == Some(network) && own.into_iter().any(|held| held == address)
            })
        })?;
        Some(container.names.first().unwrap_or(id).clone())
    }

    fn part(&mut self, id: &str, network: NetworkId) -> io::Result<Result<(), Fault>> {
        let title = self
            .local
            .get(&network)
            .map_or_else(|| network.to_string(), |known| known.spec.name.clone());
        let Some(before) = self.planner.containers().get(id).cloned() else {
            let message = format!("No such container: {id}");
            return Ok(Err(Fault::new(ErrorCode::NotFound, message)));
        };
        let name = before.names.first().map_or(id, String::as_str);
        let end = before.links.iter().find(|end| end.network == Some(network));
        let fault = match end.map(|end| end.asked_by) {
            Some(AskedBy::Node) => None,
            None => Some(Fault::new(
                ErrorCode::NotFound,
                format!("container {name} is not connected to network {title}"),
            )),
            Some(AskedBy::Service | AskedBy::Managers) => Some(Fault::new(
                ErrorCode::FailedPrecondition,
                format!("container {name} is on network {title} because its service is"),
            )),
        };
        if let Some(fault) = fault {
            return Ok(Err(fault));
        }
        let mut after = before.clone();
        after.links.retain(|end| end.network != Some(network));
        self.turn(id, &before, &after).map(Ok)
    }

    /// From one form of a container to another that differs in what it was connected to.
    fn turn(
        &mut self,
        id: &str,
        before: &LocalContainer,
        after: &LocalContainer,
    ) -> io::Result<()> {
        self.records.write(id, after)?;
        let changes = self.planner.attach(id, after.clone());
        let connected = self.connect(id, Lead::Elsewhere, None);
        self.carry_out(changes, &BTreeSet::new())?;
        self.cut(id, &missing_links(before, after))?;
        connected?.settle(after)
    }
}
