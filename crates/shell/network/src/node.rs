//! The data path of one node, namespace by namespace. Everything here blocks.
//!
//! Owns: the spaces, the plan, and that the one follows the other.
//! Does not know: who asks, and how many wait.
//! Invariant: a space that could not be changed as planned is repaired as a whole before anything
//! else is said about it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;

use ipnet::{IpNet, Ipv4Net};
use netplan::paths::AllPeers;
use netplan::{Changes, MeshLinks, Planner, Scope, Surplus, link};
use types::{DirectoryUpdate, LocalNetwork, NetworkId, PortBinding};

use crate::drain::Places;
use crate::names::{Names, choose_links};
use crate::namespace::{Namespaces, enter};
use crate::record::Records;
use crate::resolver::Resolvers;
use crate::route::{V4, V6};
use crate::space::{Kind, Space};
use crate::spare::Spares;
use crate::sysctl;
use crate::tunnel::Encryption;

/// See the module.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) names: Names,
    /// The host's namespace.
    pub(crate) namespace: OwnedFd,
    pub(crate) containers: Namespaces,
    /// Namespaces of networks and of the mesh.
    pub(crate) sandboxes: Namespaces,
    pub(crate) records: Records,
    pub(crate) links: MeshLinks,
    pub(crate) planner: Planner,
    pub(crate) host: Space,
    pub(crate) spaces: BTreeMap<Scope, Space>,
    /// Where this node's VXLAN packets come from.
    pub(crate) address: Option<IpAddr>,
    /// What the managers say is known, so what they do not say may go.
    heard_full: bool,
    pub(crate) resolvers: Resolvers,
    /// The container that was compared last.
    pub(crate) compared: String,
    pub(crate) next_link: u64,
    /// The node has a way out for IPv6.
    pub(crate) v6_outwards: bool,
    /// The kernel has objects for the time-outs of connections.
    pub(crate) time_outs: bool,
    /// Networks of the node's own.
    pub(crate) local: BTreeMap<NetworkId, LocalNetwork>,
    /// Of all networks, as last told, and whether that is news.
    peers: AllPeers,
    peers_changed: bool,
    /// Of the last socket for probes.
    token: u64,
    pub(crate) encryption: Encryption,
    pub(crate) spares: Spares,
}

impl Node {
    pub(crate) fn open(
        namespace: OwnedFd,
        run_dir: &Path,
        names: Names,
        subnet: Option<Ipv4Net>,
        address: Option<IpAddr>,
        spares: Spares,
    ) -> io::Result<Self> {
        let containers = Namespaces::open(run_dir.join("netns"))?;
        let sandboxes = Namespaces::open(run_dir.join("sandboxes"))?;
        let records = Records::open(run_dir.join("attached"))?;
        let kind = Kind::Host { link: names.gateway.clone() };
        let mut host = enter(&namespace, move || {
            sysctl::host()?;
            sysctl::raise_tracked_connections();
            Space::open(kind)
        })?;
        let links = find_links(&mut host, &names, subnet)?;
        let planner = Planner::new(links, &names.gateway);
        let mut node = Self {
            names,
            namespace,
            containers,
            sandboxes,
            records,
            links,
            planner,
            host,
            spaces: BTreeMap::new(),
            address,
            heard_full: false,
            resolvers: Resolvers::default(),
            compared: String::new(),
            next_link: 1,
            v6_outwards: false,
            time_outs: true,
            local: BTreeMap::new(),
            peers: AllPeers::new(),
            peers_changed: false,
            token: first_token(),
            encryption: Encryption::default(),
            spares,
        };
        node.recall()?;
        node.repair_scope(Scope::Mesh)?;
        node.probe_host()?;
        node.look_around()?;
        node.pass_firewalls()?;
        node.replace_spares(Vec::new());
        Ok(node)
    }

    /// Containers that an earlier daemon connected.
    fn recall(&mut self) -> io::Result<()> {
        for (id, container) in self.records.read_all()? {
            if !self.containers.is_mounted(&id) {
                self.records.remove(&id)?;
                continue;
            }
            self.planner.attach(&id, container);
        }
        Ok(())
    }

    /// Older kernels have no objects for time-outs: theirs are the host's own.
    fn probe_host(&mut self) -> io::Result<()> {
        if let Err(error) = self.repair_scope(Scope::Host) {
            tracing::warn!(%error, "connections of the mesh get the host's own time-outs");
            self.time_outs = false;
            self.repair_scope(Scope::Host)?;
        }
        Ok(())
    }

    /// What the host looks like by now: addresses and routes that are not ours.
    pub(crate) fn look_around(&mut self) -> io::Result<bool> {
        let names: BTreeMap<u32, String> =
            self.host.learn_links()?.into_iter().map(|link| (link.index, link.name)).collect();
        let mut addresses: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        for (index, net) in self.host.route.addresses()? {
            if let Some(name) = names.get(&index).filter(|_| !self.links.is_alias(net.addr())) {
                addresses.entry(name.clone()).or_default().push(net.addr());
            }
        }
        let routes = self.host.route.routes(V6)?;
        self.v6_outwards = routes.iter().any(|route| {
            route.net.prefix_len() == 0
                && route.kind == libc::RTN_UNICAST
                && names.get(&route.link) != Some(&self.names.gateway)
        });
        let changes = self.planner.set_node_addresses(addresses);
        let changed = !changes.is_empty();
        self.carry_out(changes, &BTreeSet::new())?;
        Ok(changed)
    }

    /// Takes what the managers say; returns when the kernel holds it.
    /// Answers what left the balancers, of whichever node.
    pub(crate) fn update(&mut self, update: &DirectoryUpdate) -> io::Result<Places> {
        let begun = self.planner.begin(update);
        let mut whole: BTreeSet<Scope> =
            update.networks.iter().map(|part| self.scope_of(part.id)).collect();
        if update.own.is_some() || (update.full && !self.heard_full) {
            whole.extend(self.scopes());
        }
        self.heard_full |= update.full;
        let changes = self.finish(update, begun, &mut whole);
        self.note_peers(update);
        self.carry_out(changes, &whole)?;
        let tunnelled = self.spaces.contains_key(&Scope::Tunnel);
        if update.full || !update.removed_networks.is_empty() {
            self.remove_stale_sandboxes()?;
        }
        self.note_tunnel_nodes(update)?;
        if update.own.is_some() || tunnelled != self.spaces.contains_key(&Scope::Tunnel) {
            self.pass_firewalls()?;
        }
        Ok(self.take_departed())
    }

    fn take_departed(&mut self) -> Places {
        let mut departed = Places::new();
        for (scope, address) in self.planner.take_departed() {
            departed.entry(scope).or_default().insert(address);
        }
        departed
    }

    /// Remembers who is on which network, for those who look at the paths to them.
    fn note_peers(&mut self, update: &DirectoryUpdate) {
        let mut touched: BTreeSet<NetworkId> = update.removed_networks.iter().copied().collect();
        touched.extend(update.networks.iter().map(|part| part.id));
        touched.extend(update.peers.iter().map(|part| part.network));
        touched.extend(update.removed_peers.iter().map(|(network, _)| *network));
        if update.full || !touched.is_empty() {
            self.peers = self.planner.peers(&self.peers, |n| update.full || touched.contains(&n));
            self.peers_changed = true;
        }
    }

    /// The peers of all networks, when they are others than before.
    pub(crate) fn take_peers(&mut self) -> Option<AllPeers> {
        std::mem::take(&mut self.peers_changed).then(|| self.peers.clone())
    }

    /// Tells the answers of one socket from those of all others.
    pub(crate) fn next_token(&mut self) -> u64 {
        self.token = self.token.wrapping_add(0x0001_0001_0000_0001);
        self.token
    }

    pub(crate) fn set_suspected(
        &mut self,
        suspected: BTreeSet<u32>,
    ) -> io::Result<(DirectoryUpdate, Places)> {
        let (changes, update) = self.planner.set_suspected(suspected);
        self.carry_out(changes, &BTreeSet::new())?;
        Ok((update, self.take_departed()))
    }

    pub(crate) fn scope_of(&self, network: NetworkId) -> Scope {
        match self.planner.ingress() {
            Some(part) if part.id == network => Scope::Mesh,
            _ => Scope::Overlay(network),
        }
    }

    pub(crate) fn scopes(&self) -> Vec<Scope> {
        let mut all: Vec<Scope> =
            self.planner.networks().map(|part| Scope::Overlay(part.id)).collect();
        all.extend([Scope::Mesh, Scope::Host]);
        // Others need what is in it.
        let tunnel = self.planner.is_tunnelled().then_some(Scope::Tunnel);
        tunnel.into_iter().chain(all).collect()
    }

    /// Makes the kernel follow the plan: `whole` ones by comparison, the others by the changes.
    pub(crate) fn carry_out(
        &mut self,
        changes: BTreeMap<Scope, Changes>,
        whole: &BTreeSet<Scope>,
    ) -> io::Result<()> {
        let mut result = Ok(());
        let scopes: BTreeSet<Scope> = changes.keys().chain(whole).copied().collect();
        for scope in scopes {
            if self.planner.wanted(scope).is_none() {
                continue;
            }
            let known = scope == Scope::Host || self.spaces.contains_key(&scope);
            let applied = match changes.get(&scope) {
                Some(changes) if known && !changes.balances && !whole.contains(&scope) => {
                    self.space(scope).map_or(Ok(()), |space| space.apply(changes))
                }
                _ => {
                    // The changes are not carried out one by one, so nothing is as it was.
                    if let Some(space) = self.space(scope) {
                        space.doubt();
                    }
                    self.repair_scope(scope).map(drop)
                }
            };
            let settled = applied.or_else(|error| {
                tracing::debug!(?scope, %error, "a change failed; comparing everything");
                self.repair_scope(scope).map(drop)
            });
            if result.is_ok() {
                result = settled;
            }
        }
        result
    }

    pub(crate) fn space(&mut self, scope: Scope) -> Option<&mut Space> {
        match scope {
            Scope::Host => Some(&mut self.host),
            scope => self.spaces.get_mut(&scope),
        }
    }

    /// Compares one namespace with the plan and makes it so; answers how much differed.
    pub(crate) fn repair_scope(&mut self, scope: Scope) -> io::Result<usize> {
        self.ensure(scope)?;
        let known = self.heard_full && (scope != Scope::Tunnel || self.has_keys());
        let surplus = if known { Surplus::Remove } else { Surplus::Keep };
        let Some(wanted) = self.planner.wanted(scope) else { return Ok(0) };
        let space = match scope {
            Scope::Host => Some(&mut self.host),
            scope => self.spaces.get_mut(&scope),
        };
        space.map_or(Ok(0), |space| space.repair(wanted, surplus))
    }

    /// Looks at everything that may have changed, or at everything; answers how much differed.
    pub(crate) fn repair(&mut self, thoroughly: bool) -> io::Result<usize> {
        let mut count = 0;
        let mut result = Ok(());
        enter(&self.namespace, sysctl::host)?;
        if thoroughly {
            self.spares.look()?;
        }
        if thoroughly || self.host.is_doubtful() {
            count += usize::from(self.look_around()?);
            count += self.pass_firewalls()?;
            count += self.mend_local();
        }
        for scope in self.scopes() {
            let mounted = self.sandbox_is_there(scope);
            let doubtful = self.space(scope).is_none_or(|space| space.is_doubtful());
            if thoroughly || doubtful || !mounted {
                match self.mend_scope(scope) {
                    Ok(differing) => count += differing,
                    Err(error) => result = Err(error),
                }
            }
        }
        result?;
        self.look_at_tunnel(thoroughly)?;
        count += self.repair_containers(thoroughly)?;
        Ok(count)
    }

    /// Repairs one namespace; answers how much others had changed in it.
    fn mend_scope(&mut self, scope: Scope) -> io::Result<usize> {
        if scope != Scope::Tunnel {
            return self.repair_scope(scope);
        }
        let before = self.space(scope).map(|space| space.links().clone());
        let differing = self.repair_scope(scope)?;
        // What encrypts has made a device, or ended one: its routes follow.
        let follows = self.space(scope).map(|space| space.links()) != before.as_ref();
        Ok(if follows { 0 } else { differing })
    }

    /// How the kernel differs from what is wanted for one network, in words.
    pub(crate) fn check(&mut self, network: NetworkId) -> io::Result<Vec<String>> {
        let scope = self.scope_of(network);
        let Some(wanted) = self.planner.wanted(scope) else {
            return Ok(vec![format!("this node takes no part in network {network}")]);
        };
        let Some(space) = self.spaces.get_mut(&scope) else {
            return Ok(vec!["the namespace of the network is missing".to_owned()]);
        };
        let mut all = Vec::new();
        if space.index(link::VXLAN)?.is_none() {
            all.push("there is no VXLAN device: the node has no data path address yet".to_owned());
        }
        let changes = space.differences(wanted)?;
        for (count, what) in [
            (changes.routes.len(), "routes are missing"),
            (changes.neighbours.len() + changes.forwarding.len(), "peers are missing"),
            (changes.addresses.len(), "addresses are missing"),
            (changes.edits.len(), "rules are not as wanted"),
            (changes.routes_gone.len(), "routes are too many"),
            (changes.later.len(), "entries of balancers are too many"),
        ] {
            if count > 0 {
                all.push(format!("{count} {what}; they are mended within seconds"));
            }
        }
        let parts = self.planner.networks().chain(self.planner.ingress());
        if parts.into_iter().any(|part| part.id == network && part.encrypted) {
            all.extend(self.tunnel_problems()?);
        }
        Ok(all)
    }

    /// Sandboxes of networks that this node has no part in any more.
    fn remove_stale_sandboxes(&mut self) -> io::Result<()> {
        if !self.heard_full {
            return Ok(());
        }
        let wanted: BTreeSet<String> = self
            .planner
            .networks()
            .map(|part| part.id.to_string())
            .chain([MESH.to_owned()])
            .chain(self.planner.is_tunnelled().then(|| TUNNEL.to_owned()))
            .collect();
        for name in self.sandboxes.list()? {
            if !wanted.contains(&name) {
                self.remove_sandbox(&name)?;
            }
        }
        self.spaces.retain(|scope, _| self.planner.wanted(*scope).is_some());
        self.spares.keep(|network| self.planner.network(network).is_some());
        Ok(())
    }

    pub(crate) fn set_address(&mut self, address: Option<IpAddr>) -> io::Result<()> {
        if self.address == address {
            return Ok(());
        }
        self.address = address;
        let all = self.scopes().into_iter().collect();
        self.carry_out(BTreeMap::new(), &all)
    }

    pub(crate) fn set_managers(&mut self, managers: &BTreeSet<SocketAddr>) -> io::Result<()> {
        let changes = self.planner.set_managers(managers);
        self.carry_out(changes, &BTreeSet::new())
    }

    pub(crate) fn set_unavailable(&mut self, ports: BTreeSet<PortBinding>) -> io::Result<()> {
        let changes = self.planner.set_unavailable(ports);
        self.carry_out(changes, &BTreeSet::new())
    }

    /// The containers; those whose namespace is gone are forgotten on the way.
    pub(crate) fn observe(&mut self) -> io::Result<Vec<String>> {
        let there = self.containers.list()?;
        let gone: Vec<String> = self
            .planner
            .containers()
            .keys()
            .filter(|id| there.binary_search(id).is_err())
            .cloned()
            .collect();
        for id in gone {
            self.detach(&id)?;
        }
        self.sweep_links()?;
        Ok(there)
    }

    /// Takes everything of this instance away.
    pub(crate) fn remove_all(&mut self) -> io::Result<()> {
        let all: Vec<String> = self.planner.containers().keys().cloned().collect();
        for id in all.into_iter().chain(self.containers.list()?) {
            self.detach(&id)?;
        }
        self.sweep_links()?;
        for name in self.sandboxes.list()? {
            self.remove_sandbox(&name)?;
        }
        self.spaces.clear();
        self.take_down_local()?;
        self.leave_firewalls()?;
        let table = self.names.table.clone();
        self.host.remove_table(crate::nft::INET, &table)?;
        if let Some(index) = self.host_link()? {
            self.host.route.delete_links(&[index], self.names.group)?;
        }
        self.records.remove_all()?;
        self.containers.close()?;
        self.sandboxes.close()
    }

    /// All that the managers know was said once.
    pub(crate) fn has_heard(&self) -> bool {
        self.heard_full
    }

    pub(crate) fn vxlan_port(&self) -> Option<u16> {
        self.planner.own().map(|own| own.data_path_port)
    }
}

/// The subnets of the link to the mesh.
fn find_links(host: &mut Space, names: &Names, asked: Option<Ipv4Net>) -> io::Result<MeshLinks> {
    let gateway = host.index(&names.gateway)?;
    let addresses = host.route.addresses()?;
    let own: Vec<IpNet> = addresses
        .into_iter()
        .filter(|(index, _)| Some(*index) == gateway)
        .map(|(_, net)| net)
        .collect();
    let mut routes = Vec::new();
    for family in [V4, V6] {
        let all = host.route.routes(family)?.into_iter();
        routes.extend(all.filter(|route| Some(route.link) != gateway).map(|route| route.net));
    }
    choose_links(names, &own, &routes, asked)
        .ok_or_else(|| io::Error::other("every candidate subnet is in use; name one"))
}

/// Where this process begins to count, unlike any other.
fn first_token() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.unwrap_or_default().as_nanos() as u64;
    now ^ (u64::from(std::process::id()) << 48)
}

/// Names of the mesh's namespace and of the tunnel's; no network's identity is so short.
pub(crate) const MESH: &str = "mesh";
pub(crate) const TUNNEL: &str = "enc";
