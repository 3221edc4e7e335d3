//! What the resolver is told beside what the managers say.
//!
//! Owns: names on networks that the node has for itself, each container by its names and aliases;
//! and what of an update is told ahead of the data path.
//! Does not know: questions. Invariant: what it was told last is what was so when somebody looked
//! last; every change of who is on a network looks.

use std::borrow::Cow;
use std::collections::BTreeSet;

use base::chain;
use netd::Scope;
use types::{DirectoryUpdate, EndpointPart, LocalNetwork, NetworkId, NetworkPart, NodeId, TaskId};

use super::NodeNetwork;

impl NodeNetwork {
    /// Tells the resolver, if something has changed. Names that cannot be told now are told with
    /// the next change; addresses work without.
    pub(super) async fn tell_names(&self) {
        let mut told = self.told.lock().await;
        let now = directory(&self.own.recorded(), &self.path.containers());
        if told.as_ref() == Some(&now) {
            return;
        }
        match self.names.update_scope(Scope::Node, &now).await {
            Ok(()) => *told = Some(now),
            Err(error) => {
                tracing::warn!(error = %chain(&error), "names of the node's networks are not told");
                *told = None;
            }
        }
    }
}

impl NodeNetwork {
    /// A container is on a network of the node's own.
    pub(super) fn is_on_own(&self, id: &str) -> bool {
        let container = self.path.container(id).unwrap_or_default();
        super::networks_of(&container).any(|network| self.own.get(network).is_some())
    }

    /// A container has come, or is otherwise than before.
    pub(super) async fn tell_names_of(&self, id: &str) {
        if self.is_on_own(id) {
            self.tell_names().await;
        }
    }
}

/// What a change takes away, without what it replaces; `None` when that is nothing, or when the
/// whole directory is told.
pub(super) fn departures(update: &DirectoryUpdate) -> Option<DirectoryUpdate> {
    if update.full {
        return None;
    }
    let stay: BTreeSet<(NetworkId, TaskId)> =
        update.endpoints.iter().map(|part| (part.network, part.task)).collect();
    let gone = update.removed_endpoints.iter().filter(|key| !stay.contains(key));
    let leaving = update.endpoints.iter().filter(|part| !part.serving);
    let departures = DirectoryUpdate {
        index: update.index,
        removed_endpoints: gone.copied().collect(),
        endpoints: leaving.cloned().collect(),
        ..DirectoryUpdate::default()
    };
    (!departures.is_empty()).then_some(departures)
}

/// Without networks that this node makes for itself: it knows who is on them.
pub(super) fn of_overlays(update: &DirectoryUpdate) -> Cow<'_, DirectoryUpdate> {
    if !update.networks.iter().any(|part| part.driver.is_of_nodes()) {
        return Cow::Borrowed(update);
    }
    let mut update = update.clone();
    update.networks.retain(|part| !part.driver.is_of_nodes());
    Cow::Owned(update)
}

/// Everything of it: there is little.
fn directory(
    networks: &[LocalNetwork],
    containers: &[(String, network::LocalContainer)],
) -> DirectoryUpdate {
    let part = |network: &LocalNetwork| NetworkPart {
        id: network.id,
        name: network.spec.name.clone(),
        driver: network.spec.driver,
        vni: 0,
        mtu: 0,
        ingress: false,
        internal: network.spec.internal,
        encrypted: false,
        subnets: network.subnets.iter().map(|subnet| (subnet.net, subnet.gateway)).collect(),
        options: network.spec.options.clone(),
        config_from: network.spec.config_from.clone(),
    };
    let mut update = DirectoryUpdate {
        full: true,
        networks: networks.iter().map(part).collect(),
        ..DirectoryUpdate::default()
    };
    for (id, container) in containers {
        // A container's id is its task's.
        let Ok(task) = id.parse::<TaskId>() else { continue };
        for end in &container.links {
            let Some(network) = end.network else { continue };
            if networks.iter().any(|own| own.id == network) {
                update.endpoints.push(EndpointPart {
                    network,
                    task,
                    service: None,
                    // It is this one; nobody asks which.
                    node: NodeId::MIN,
                    number: 0,
                    v4: end.v4,
                    v6: end.v6,
                    names: container.names.iter().chain(&end.aliases).cloned().collect(),
                    serving: true,
                });
            }
        }
    }
    update
}

#[cfg(test)]
mod tests {
    use network::{LocalContainer, LocalLink};
    use types::NetworkId;

    use super::*;

    #[test]
    fn what_leaves_is_told_ahead_and_what_comes_is_not() {
        let endpoint = |task, serving| EndpointPart {
            network: NetworkId::MAX,
            task,
            service: None,
            node: NodeId::MIN,
            number: 1,
            v4: None,
            v6: None,
            names: Vec::new(),
            serving,
        };
        let id = |number| TaskId(base::Id::from_u128(number).unwrap());
        let update = DirectoryUpdate {
            index: 7,
            endpoints: vec![endpoint(id(1), true), endpoint(id(2), false), endpoint(id(3), true)],
            // The second of them is replaced.
            removed_endpoints: vec![(NetworkId::MAX, id(4)), (NetworkId::MAX, id(3))],
            ..DirectoryUpdate::default()
        };
        let expected = DirectoryUpdate {
            index: 7,
            endpoints: vec![endpoint(id(2), false)],
            removed_endpoints: vec![(NetworkId::MAX, id(4))],
            ..DirectoryUpdate::default()
        };
        assert_eq!(departures(&update), Some(expected));
        let full = DirectoryUpdate { full: true, ..update.clone() };
        let comes = DirectoryUpdate { endpoints: vec![endpoint(id(1), true)], ..full.clone() };
        let comes = DirectoryUpdate { full: false, removed_endpoints: vec![], ..comes };
        assert_eq!((departures(&full), departures(&comes)), (None, None));
    }

    #[test]
    fn containers_are_known_by_names_and_aliases_on_the_nodes_own_networks_only() {
        let own = LocalNetwork::predefined_bridge();
        let task = TaskId::MAX;
        let link = |network, alias: &str| LocalLink {
            network,
            v4: Some([10, 0, 0, 2].into()),
            aliases: vec![alias.to_owned()],
            ..LocalLink::default()
        };
        let container = LocalContainer {
            names: vec!["web.1.x".into(), "web.1".into()],
            links: vec![
                link(Some(NetworkId::BRIDGE), "db"),
                link(Some(NetworkId::MAX), "no"),
                link(None, "no"),
            ],
            ..LocalContainer::default()
        };
        let all = [(task.to_string(), container.clone()), ("else".into(), container)];
        let update = directory(&[own], &all);
        assert!(update.full && update.networks.len() == 1 && update.endpoints.len() == 1);
        assert_eq!(update.endpoints[0].names, ["web.1.x", "web.1", "db"]);
    }
}
