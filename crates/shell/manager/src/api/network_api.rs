//! Networks of the cluster, as users see and change them.
//!
//! Owns: what is checked against nodes and other networks before the write, lists, and who is on
//! a network.
//! Does not know: networks that a single node has for itself; how addresses are given out.
//! Invariant: a subnet that a node has a route to is refused with that route and that node.

use std::net::IpAddr;
use std::sync::Arc;

use base::Timestamp;
use ipnet::IpNet;
use ports::Clock;
use ports::store::Store;
use state::{Change, Snapshot};
use types::{
    Attachment, ErrorCode, Fault, Network, NetworkId, NetworkSpec, Node, NodeId, Service, Task,
    nets_overlap,
};
use wire::v1;

use super::{ControlApi, find};

impl<S: Store, C: Clock> ControlApi<S, C> {
    pub(super) async fn create_network(
        &self,
        request: v1::CreateNetworkRequest,
    ) -> Result<v1::CreateNetworkResponse, Fault> {
        let spec = request.spec.ok_or_else(|| Fault::invalid("spec", "is missing"))?;
        let spec = NetworkSpec::try_from(spec)?;
        types::check_network_spec(&spec)?;
        check_routes(&self.store.snapshot(), &spec)?;
        let id = NetworkId(self.mint());
        self.write(vec![Change::CreateNetwork { id, spec: Arc::new(spec) }]).await?;
        Ok(v1::CreateNetworkResponse { id: wire::bytes_of(id.0), warnings: Vec::new() })
    }

    pub(super) async fn remove_network(&self, request: v1::ObjectRef) -> Result<v1::Empty, Fault> {
        let view = self.store.snapshot();
        let id = find::network(&view, &request.r#ref)?.id;
        self.write(vec![Change::RemoveNetwork(id)]).await?;
        Ok(v1::Empty {})
    }

    /// Each network by itself: one that comes into use meanwhile stays, and the others go.
    pub(super) async fn prune_networks(
        &self,
        request: v1::PruneNetworksRequest,
    ) -> Result<v1::PruneNetworksResponse, Fault> {
        let view = self.store.snapshot();
        let mut names = Vec::new();
        for network in view.networks().filter(|network| is_pruned(&view, &request, network)) {
            match self.write(vec![Change::RemoveNetwork(network.id)]).await {
                Ok(_) => names.push(network.spec.name.clone()),
                Err(fault) if matches!(fault.code, ErrorCode::Conflict | ErrorCode::NotFound) => {}
                Err(fault) => return Err(fault),
            }
        }
        Ok(v1::PruneNetworksResponse { names })
    }

    pub(super) async fn get_network(
        &self,
        request: v1::GetNetworkRequest,
    ) -> Result<v1::NetworkView, Fault> {
        let (view, _) = self.read().await?;
        let network = find::network(&view, &request.r#ref)?;
        let mut shown = network_view(&view, network);
        if request.verbose {
            shown.peers = peers(&view, network);
            self.add_problems(&view, network, &mut shown.peers);
            shown.services =
                view.services_on_network(network.id).map(|s| on_network(network, s)).collect();
            shown.tasks =
                view.tasks_on_network(network.id).map(|t| attached(&view, network, t)).collect();
        }
        Ok(shown)
    }

    /// What the peers say of their paths to each other; only a leader knows.
    fn add_problems(&self, view: &Snapshot, network: &Network, peers: &mut [v1::NetworkPeer]) {
        let bad = self.dispatcher.bad_paths();
        for peer in peers {
            let Ok(node) = wire::id::<NodeId>(&peer.node, "node") else { continue };
            if dispatch::is_down(view, node) {
                peer.problems.push("the node is down".to_owned());
            } else if let Some(bad) = bad.get(&node) {
                peer.problems = dispatch::paths_on(view, network, bad);
            }
        }
    }

    pub(super) async fn list_networks(
        &self,
        request: v1::ListNetworksRequest,
    ) -> Result<v1::NetworkList, Fault> {
        let (view, freshness) = self.read().await?;
        let networks = view.networks().filter(|network| is_listed(&view, &request, network));
        let networks = networks.map(|network| network_view(&view, network)).collect();
        Ok(v1::NetworkList { networks, freshness: Some(freshness) })
    }
}

/// Packets for a node's own neighbours must not end in a network of the cluster.
fn check_routes(view: &Snapshot, spec: &NetworkSpec) -> Result<(), Fault> {
    for net in spec.ipam.iter().filter_map(|pool| pool.subnet) {
        if let Some((route, node)) = colliding_route(view, net) {
            let host = node.hostname();
            let message = format!("subnet {net} overlaps with route {route} of node {host}");
            return Err(Fault::invalid("--subnet", message)
                .hint("choose a subnet that no node has a route to"));
        }
    }
    Ok(())
}

fn colliding_route(view: &Snapshot, net: IpNet) -> Option<(IpNet, &Arc<Node>)> {
    view.nodes().find_map(|node| {
        let mut routes = node.description.data_path.routes.iter();
        routes.find(|route| nets_overlap(**route, net)).map(|route| (*route, node))
    })
}

fn network_view(view: &Snapshot, network: &Network) -> v1::NetworkView {
    let in_use = view.is_network_used(network.id);
    v1::NetworkView { network: Some(network.into()), in_use, ..v1::NetworkView::default() }
}

fn is_listed(view: &Snapshot, request: &v1::ListNetworksRequest, network: &Network) -> bool {
    let one_of =
        |wanted: &[String], own: &str| wanted.is_empty() || wanted.iter().any(|w| w == own);
    let named = |part: &String| network.spec.name.contains(part.as_str());
    find::any_prefix(&request.ids, &network.id.to_string())
        && (request.names.is_empty() || request.names.iter().any(named))
        && one_of(&request.drivers, network.spec.driver.name())
        && one_of(&request.scopes, "swarm")
        // Docker counts the ingress network among those that users made.
        && one_of(&request.types, "custom")
        && find::has_labels(&network.spec.labels, &request.labels)
        && request.dangling.is_none_or(|dangling| dangling != view.is_network_used(network.id))
}

fn is_pruned(view: &Snapshot, request: &v1::PruneNetworksRequest, network: &Network) -> bool {
    let labels = &network.spec.labels;
    !network.spec.ingress
        && !view.is_network_used(network.id)
        && (request.until == 0 || network.meta.created < Timestamp(request.until))
        && find::has_labels(labels, &request.labels)
        && (request.not_labels.is_empty() || !find::has_labels(labels, &request.not_labels))
}

/// Of the ingress network every node is one, for each publishes its ports.
fn peers(view: &Snapshot, network: &Network) -> Vec<v1::NetworkPeer> {
    let peer = |id: NodeId, tasks: u32| {
        let node = view.node(id)?;
        let said = node.description.data_path.encryption.as_ref();
        Some(v1::NetworkPeer {
            node: wire::bytes_of(id.0),
            name: node.hostname().to_owned(),
            address: data_path_address(node),
            tasks,
            problems: Vec::new(),
            encryption: said.filter(|_| network.spec.is_encrypted()).map(Into::into),
        })
    };
    if !network.spec.ingress {
        return view
            .nodes_on_network(network.id)
            .filter_map(|(id, tasks)| peer(id, tasks))
            .collect();
    }
    let present: std::collections::BTreeMap<_, _> = view.nodes_on_network(network.id).collect();
    let tasks = |node: &Arc<Node>| present.get(&node.id).copied().unwrap_or(0);
    view.nodes().filter_map(|node| peer(node.id, tasks(node))).collect()
}

/// Where its packets come from; before it has said so, where the managers see it.
fn data_path_address(node: &Node) -> String {
    let address = node.description.data_path.address;
    address.map_or_else(|| node.status.address.clone(), |address| address.to_string())
}

fn on_network(network: &Network, service: &Service) -> v1::NetworkService {
    let vip = service.held().find(|vip| vip.network == network.id);
    let ports = service.endpoint.iter().flat_map(|endpoint| &endpoint.ports);
    v1::NetworkService {
        service: wire::bytes_of(service.id.0),
        name: service.spec.name.clone(),
        mode: service.spec.endpoint_mode().name().into(),
        vips: vip.map(|vip| with_prefix(network, vip)).unwrap_or_default(),
        ports: ports.map(Into::into).collect(),
    }
}

fn attached(view: &Snapshot, network: &Network, task: &Task) -> v1::NetworkTask {
    let node = task.node.and_then(|id| view.node(id));
    let held = task.held().find(|one| one.network == network.id);
    v1::NetworkTask {
        task: wire::bytes_of(task.id.0),
        name: find::task_name(view, task),
        service: wire::bytes_of(task.service.0),
        node: task.node.map(|node| wire::bytes_of(node.0)).unwrap_or_default(),
        node_name: node.map_or_else(String::new, |node| node.hostname().to_owned()),
        node_address: node.map_or_else(String::new, |node| data_path_address(node)),
        addresses: held.map(|one| with_prefix(network, one)).unwrap_or_default(),
        state: task.status.state as i32,
    }
}

/// Addresses as docker writes them: with the prefix length of their subnet.
pub(super) fn with_prefix(network: &Network, one: &Attachment) -> Vec<String> {
    let prefixed = |address: IpAddr| match network.subnet_of(address) {
        Some(subnet) => format!("{address}/{}", subnet.net.prefix_len()),
        None => address.to_string(),
    };
    one.addresses().map(prefixed).collect()
}
