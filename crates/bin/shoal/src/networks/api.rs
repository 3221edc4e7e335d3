//! The part of the service `Local` that is about networks.
//!
//! Owns: finding networks and containers by what users type, lists, views, what is pruned.
//! Does not know: how a network is made or joined.
//! Invariant: a name that a network of the cluster has means that one; the node's own of the same
//! name is reached by its id.

use base::Timestamp;
use network::{AskedBy, LocalContainer};
use types::{
    ErrorCode, Fault, Labels, LocalNetwork, NetworkDriver, NetworkId, NetworkPart, NetworkSpec,
    Subnet,
};
use wire::v1;

use super::NodeNetwork;

/// A network as this node knows it.
#[derive(Clone, Debug)]
pub(crate) enum Known {
    Own(LocalNetwork),
    /// The cluster's; this node takes part in it.
    Cluster(NetworkPart),
}

impl Known {
    pub(crate) fn id(&self) -> NetworkId {
        match self {
            Self::Own(network) => network.id,
            Self::Cluster(part) => part.id,
        }
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Own(network) => &network.spec.name,
            Self::Cluster(part) => &part.name,
        }
    }

    const fn scope(&self) -> &'static str {
        match self {
            Self::Own(network) if !network.swarm => "local",
            Self::Own(_) | Self::Cluster(_) => "swarm",
        }
    }

    fn labels(&self) -> Labels {
        match self {
            Self::Own(network) => network.spec.labels.clone(),
            Self::Cluster(_) => Labels::new(),
        }
    }

    const fn driver(&self) -> NetworkDriver {
        match self {
            Self::Own(network) => network.spec.driver,
            Self::Cluster(part) => part.driver,
        }
    }
}

impl NodeNetwork {
    fn known(&self) -> Vec<Known> {
        let own = self.own.all().into_iter().map(Known::Own);
        own.chain(self.path.overlays().into_iter().map(Known::Cluster)).collect()
    }

    /// By id, by name, or by the beginning of an id.
    pub(crate) fn find(&self, text: &str) -> Result<Known, Fault> {
        pick(self.known(), text)
    }

    pub(crate) fn list(&self, request: &v1::ListNetworksRequest) -> Vec<v1::NodeNetworkView> {
        let containers = self.path.containers();
        let listed = |known: &Known| is_listed(known, request, is_used(known, &containers));
        let known = self.known().into_iter().filter(listed);
        known.map(|known| view(&known, &containers)).collect()
    }

    pub(crate) async fn get(&self, text: &str) -> Result<v1::NodeNetworkView, Fault> {
        let containers = self.path.containers();
        let known = self.find(text)?;
        let mut shown = view(&known, &containers);
        shown.containers = on_network(&known, &containers);
        if let Known::Cluster(part) = &known
            && part.encrypted
        {
            shown.tunnels = self.tunnels_to(part.id).await?;
        }
        Ok(shown)
    }

    async fn tunnels_to(&self, network: NetworkId) -> Result<Vec<v1::NetworkTunnel>, Fault> {
        let tunnels =
            self.path.tunnels_to(network).await.map_err(|error| {
                Fault::new(ErrorCode::Internal, base::chain(&error).to_string())
            })?;
        let one = |tunnel: network::TunnelTo| v1::NetworkTunnel {
            node: wire::bytes_of(tunnel.node.0),
            name: tunnel.name,
            address: tunnel.address.to_string(),
            tunnel: Some((&tunnel.check).into()),
        };
        Ok(tunnels.into_iter().map(one).collect())
    }

    pub(crate) async fn remove(&self, text: &str) -> Result<(), Fault> {
        match self.find(text)? {
            Known::Own(network) if !network.swarm => self.remove_own(&network).await,
            known => {
                let message = format!("network {} is the cluster's", known.name());
                Err(Fault::new(ErrorCode::NotAManager, message).hint("ask a manager"))
            }
        }
    }

    /// Each by itself: one that comes into use meanwhile stays, and the others go.
    pub(crate) async fn prune(
        &self,
        request: &v1::PruneNetworksRequest,
    ) -> Result<Vec<String>, Fault> {
        let mut names = Vec::new();
        for network in self.own.recorded().iter().filter(|network| is_pruned(network, request)) {
            match self.remove_own(network).await {
                Ok(()) => names.push(network.spec.name.clone()),
                Err(fault) if fault.code == ErrorCode::Conflict => {}
                Err(fault) => return Err(fault),
            }
        }
        Ok(names)
    }

    /// The container of this node that somebody means: by id, by name, or by the beginning of its
    /// id.
    pub(crate) fn find_container(&self, text: &str) -> Result<(String, LocalContainer), Fault> {
        let all = self.path.containers();
        let exact = |(id, container): &&(String, LocalContainer)| {
            id == text || container.names.iter().any(|name| name == text)
        };
        if let Some(found) = all.iter().find(exact) {
            return Ok(found.clone());
        }
        let mut found = all.iter().filter(|(id, _)| !text.is_empty() && id.starts_with(text));
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one.clone()),
            (None, _) => {
                let message = format!("No such container: {text}");
                Err(Fault::new(ErrorCode::NotFound, message)
                    .hint("name one of this node: by its id, or as service.slot.id"))
            }
            (Some(_), Some(_)) => {
                let message = format!("multiple containers found with provided prefix: {text}");
                Err(Fault::new(ErrorCode::Invalid, message))
            }
        }
    }
}

fn pick(known: Vec<Known>, text: &str) -> Result<Known, Fault> {
    let by_id = |known: &Known| known.id().to_string() == text;
    let by_name = |known: &Known| known.name().eq_ignore_ascii_case(text);
    let in_cluster = |known: &Known| known.scope() == "swarm";
    let found = known
        .iter()
        .find(|one| by_id(one))
        .or_else(|| known.iter().find(|one| by_name(one) && in_cluster(one)))
        .or_else(|| known.iter().find(|one| by_name(one)));
    if let Some(found) = found {
        return Ok(found.clone());
    }
    let starts = |one: &&Known| !text.is_empty() && one.id().to_string().starts_with(text);
    let mut found = known.iter().filter(starts);
    match (found.next(), found.count()) {
        (Some(one), 0) => Ok(one.clone()),
        (None, _) => Err(Fault::new(ErrorCode::NotFound, format!("network {text} not found"))),
        (Some(_), more) => {
            let message = format!("network {text} is ambiguous ({} matches found)", more + 1);
            Err(Fault::new(ErrorCode::Invalid, message))
        }
    }
}

fn is_used(known: &Known, containers: &[(String, LocalContainer)]) -> bool {
    let id = Some(known.id());
    containers.iter().any(|(_, container)| container.links.iter().any(|end| end.network == id))
}

fn has_labels(own: &Labels, wanted: &Labels) -> bool {
    wanted
        .iter()
        .all(|(key, value)| own.get(key).is_some_and(|there| value.is_empty() || there == value))
}

fn is_listed(known: &Known, request: &v1::ListNetworksRequest, in_use: bool) -> bool {
    let any = |wanted: &[String], own: &str| wanted.is_empty() || wanted.iter().any(|w| w == own);
    let id = known.id().to_string();
    let prefix = |wanted: &String| id.starts_with(wanted.as_str());
    let part = |wanted: &String| known.name().contains(wanted.as_str());
    let kind = if known.id().is_predefined() { "builtin" } else { "custom" };
    (request.ids.is_empty() || request.ids.iter().any(prefix))
        && (request.names.is_empty() || request.names.iter().any(part))
        && any(&request.drivers, known.driver().name())
        && any(&request.scopes, known.scope())
        && any(&request.types, kind)
        && has_labels(&known.labels(), &request.labels)
        // What every node has is never left over.
        && request.dangling.is_none_or(|dangling| {
            dangling != (in_use || known.id().is_predefined())
        })
}

fn is_pruned(network: &LocalNetwork, request: &v1::PruneNetworksRequest) -> bool {
    let labels = &network.spec.labels;
    !network.id.is_predefined()
        && !network.swarm
        && !network.spec.config_only
        && (request.until == 0 || network.created < Timestamp(request.until))
        && has_labels(labels, &request.labels)
        && (request.not_labels.is_empty() || !has_labels(labels, &request.not_labels))
}

fn view(known: &Known, containers: &[(String, LocalContainer)]) -> v1::NodeNetworkView {
    let in_use = is_used(known, containers);
    match known {
        Known::Own(network) => v1::NodeNetworkView {
            network: Some(network.into()),
            swarm: network.swarm,
            in_use,
            mtu: network.spec.mtu().unwrap_or_default(),
            ..v1::NodeNetworkView::default()
        },
        Known::Cluster(part) => v1::NodeNetworkView {
            network: Some((&as_network(part)).into()),
            swarm: true,
            in_use,
            vni: part.vni,
            mtu: part.mtu,
            ..v1::NodeNetworkView::default()
        },
    }
}

/// What a node was told, in the shape of a network.
fn as_network(part: &NetworkPart) -> LocalNetwork {
    let spec = NetworkSpec {
        name: part.name.clone(),
        driver: part.driver,
        ingress: part.ingress,
        internal: part.internal,
        ipv4: part.subnets.iter().any(|(net, _)| net.addr().is_ipv4()),
        ipv6: part.subnets.iter().any(|(net, _)| net.addr().is_ipv6()),
        options: part.options.clone(),
        ..NetworkSpec::default()
    };
    let subnet =
        |(net, gateway): &(ipnet::IpNet, std::net::IpAddr)| Subnet::new(*net, None, Some(*gateway));
    let subnets = part.subnets.iter().map(subnet).collect();
    LocalNetwork { id: part.id, created: Timestamp(0), spec, subnets, swarm: true }
}

fn on_network(known: &Known, containers: &[(String, LocalContainer)]) -> Vec<v1::NetworkContainer> {
    let nets: Vec<ipnet::IpNet> = match known {
        Known::Own(network) => network.nets().collect(),
        Known::Cluster(part) => part.subnets.iter().map(|(net, _)| *net).collect(),
    };
    let prefixed = |address: std::net::IpAddr| {
        let net = nets.iter().find(|net| net.contains(&address));
        net.map_or_else(|| address.to_string(), |net| format!("{address}/{}", net.prefix_len()))
    };
    let mut all = Vec::new();
    for (id, container) in containers {
        for end in container.links.iter().filter(|end| end.network == Some(known.id())) {
            let own = end.v4.map(Into::into).into_iter().chain(end.v6.map(Into::into));
            let hardware: Vec<String> =
                end.hardware.iter().map(|byte| format!("{byte:02x}")).collect();
            all.push(v1::NetworkContainer {
                id: id.clone(),
                name: container.names.first().unwrap_or(id).clone(),
                hardware: hardware.join(":"),
                addresses: own.map(prefixed).collect(),
                connected: end.asked_by != AskedBy::Service,
            });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(number: u128, name: &str) -> Known {
        let mut network = LocalNetwork::predefined_bridge();
        network.id = NetworkId(base::Id::from_u128(number << 64).unwrap());
        network.spec.name = name.into();
        Known::Own(network)
    }

    fn cluster(number: u128, name: &str) -> Known {
        let Known::Own(network) = own(number, name) else { unreachable!() };
        Known::Cluster(NetworkPart {
            id: network.id,
            name: name.into(),
            driver: NetworkDriver::Overlay,
            vni: 4096,
            mtu: 1450,
            ingress: false,
            internal: false,
            encrypted: false,
            subnets: Vec::new(),
            options: Default::default(),
            config_from: String::new(),
        })
    }

    #[test]
    fn a_name_of_the_cluster_means_the_clusters_and_the_other_has_its_id() {
        let all = || vec![own(1, "lan"), own(2, "back"), cluster(3, "Back")];
        let found = |text: &str| pick(all(), text).map(|known| known.scope());
        assert_eq!(found("lan").unwrap(), "local");
        assert_eq!(found("back").unwrap(), "swarm");
        assert_eq!(found(&own(2, "").id().to_string()).unwrap(), "local");
        assert_eq!(found("x").unwrap_err().code, ErrorCode::NotFound);
        assert_eq!(found("0").unwrap_err().message, "network 0 is ambiguous (3 matches found)");
        assert_eq!(found("").unwrap_err().code, ErrorCode::NotFound);
    }

    #[test]
    fn lists_are_filtered_as_the_clusters_are() {
        let mut bridge = own(1, "lan");
        if let Known::Own(network) = &mut bridge {
            network.spec.labels.insert("team".into(), "a".into());
        }
        let base = v1::ListNetworksRequest::default();
        let label = |value: &str| [("team".to_owned(), value.to_owned())].into();
        for (request, listed) in [
            (base.clone(), true),
            (v1::ListNetworksRequest { scopes: vec!["swarm".into()], ..base.clone() }, false),
            (v1::ListNetworksRequest { drivers: vec!["bridge".into()], ..base.clone() }, true),
            (v1::ListNetworksRequest { types: vec!["builtin".into()], ..base.clone() }, false),
            (v1::ListNetworksRequest { labels: label("a"), ..base.clone() }, true),
            (v1::ListNetworksRequest { labels: label("b"), ..base.clone() }, false),
            (v1::ListNetworksRequest { dangling: Some(true), ..base.clone() }, true),
            (v1::ListNetworksRequest { dangling: Some(false), ..base.clone() }, false),
            (v1::ListNetworksRequest { names: vec!["an".into()], ..base.clone() }, true),
        ] {
            assert_eq!(is_listed(&bridge, &request, false), listed, "{request:?}");
        }
    }
}
