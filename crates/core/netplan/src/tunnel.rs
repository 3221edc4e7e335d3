//! The namespace of encrypted networks on one node: what goes into the tunnel, and what may come.
//!
//! Owns: routes to the peers' addresses inside the tunnel, who may send with which identifier, and
//! that the host takes and sends nothing of such a network.
//! Does not know: keys' private halves, who encrypts.
//! Invariant: it is there while an encrypted network is, and a member of one network may not send
//! with the identifier of another.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use types::{NetworkKey, NetworkPart, NodeId, PeerEncryption, PeerPart, PortProtocol};

use crate::directory::Table;
use crate::keys::Key;
use crate::mesh::{Host, member_key};
use crate::numbers::tunnel_v4;
use crate::overlay::{MAIN, host_net};
use crate::plan::{All, Planner, Scope};
use crate::state::{Changes, Elements, RouteKey, RouteTo, Value, Wanted};
use crate::{link, set};

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tunnel {
    pub(crate) wanted: Wanted,
    own: Option<u32>,
    /// Identifiers of the encrypted networks.
    networks: BTreeSet<u32>,
    /// Those that each peer is on, by its number.
    shared: BTreeMap<u32, BTreeSet<u32>>,
    /// The generation of keys that leads to each peer.
    uses: BTreeMap<u32, u32>,
}

/// A node at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelNode {
    pub node: NodeId,
    /// Its hostname.
    pub name: String,
    pub address: IpAddr,
    pub encryption: PeerEncryption,
    /// Generations of which another peer has the same key, too: it is taken for that one's.
    pub doubles: BTreeSet<u32>,
}

impl Tunnel {
    pub(crate) fn is_wanted(&self) -> bool {
        !self.networks.is_empty()
    }

    fn open(&mut self, vni: u32, own: u32, changes: &mut Changes) {
        self.networks.insert(vni);
        if let Some(before) = self.own.replace(own).filter(|before| *before != own) {
            self.own_address(before, false, changes);
        }
        self.own_address(own, true, changes);
    }

    /// On the loopback, since devices come and go.
    fn own_address(&mut self, number: u32, present: bool, changes: &mut Changes) {
        let net = host_net(tunnel_v4(number).into());
        self.wanted.address(link::LOOPBACK, net, present, changes);
    }

    fn close(&mut self, vni: u32, changes: &mut Changes) {
        let numbers: Vec<u32> = self.shared.keys().copied().collect();
        for number in numbers {
            self.dismiss(vni, number, changes);
        }
        self.networks.remove(&vni);
        if self.networks.is_empty()
            && let Some(own) = self.own.take()
        {
            self.own_address(own, false, changes);
        }
    }

    fn admit(&mut self, vni: u32, number: u32, changes: &mut Changes) {
        self.shared.entry(number).or_default().insert(vni);
        let (set, key) = member_key(vni, tunnel_v4(number).into());
        self.wanted.put(set, key, Value::Member, &mut changes.edits);
        self.lead(number, changes);
    }

    fn dismiss(&mut self, vni: u32, number: u32, changes: &mut Changes) {
        let Some(networks) = self.shared.get_mut(&number) else { return };
        networks.remove(&vni);
        if networks.is_empty() {
            self.shared.remove(&number);
        }
        let (set, key) = member_key(vni, tunnel_v4(number).into());
        self.wanted.delete(set, key, &mut changes.edits);
        self.lead(number, changes);
    }

    /// A peer without a key that this node has, too, is not led to.
    fn lead(&mut self, number: u32, changes: &mut Changes) {
        let key = RouteKey { table: MAIN, net: host_net(tunnel_v4(number).into()) };
        let used = self.uses.get(&number).filter(|_| self.shared.contains_key(&number));
        let to = used.map(|generation| RouteTo::link(link::tunnel(*generation)));
        self.wanted.route(key, to, changes);
    }
}

/// What one peer takes part in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Membership {
    pub(crate) vni: u32,
    pub(crate) encrypted: bool,
    pub(crate) number: u32,
    pub(crate) address: IpAddr,
}

impl Membership {
    pub(crate) fn of(part: &NetworkPart, peer: &PeerPart) -> Self {
        let (vni, encrypted) = (part.vni, part.encrypted);
        Self { vni, encrypted, number: peer.number, address: peer.address }
    }

    /// Where packets of the network are sent to.
    pub(crate) fn destination(&self) -> IpAddr {
        if self.encrypted { tunnel_v4(self.number).into() } else { self.address }
    }
}

/// The memberships of all peers of one network.
pub(crate) fn memberships(table: &Table) -> Vec<Membership> {
    table.peers.values().map(|peer| Membership::of(&table.part, peer)).collect()
}

/// A peer of the network sends from there: this one, or one that took its place.
pub(crate) fn is_shared(table: &Table, gone: &Membership) -> bool {
    let all = table.peers.values().map(|peer| Membership::of(&table.part, peer));
    all.into_iter().any(|peer| peer.destination() == gone.destination())
}

/// What the host does with packets of a network that are not encrypted.
fn seal(host: &mut Host, part: &NetworkPart, present: bool, changes: &mut Changes) {
    host.guard(part.vni, present, changes);
    let key = Key::new().vni(part.vni).done();
    match present && part.encrypted {
        true => host.wanted.put(set::SEALED, key, Value::Member, &mut changes.edits),
        false => host.wanted.delete(set::SEALED, key, &mut changes.edits),
    }
}

impl Planner {
    pub(crate) fn open_network(&mut self, part: &NetworkPart, own: u32, all: &mut All) {
        // Before anything of it leads anywhere.
        seal(&mut self.host, part, true, all.entry(Scope::Host).or_default());
        if part.encrypted {
            self.tunnel.open(part.vni, own, all.entry(Scope::Tunnel).or_default());
        }
    }

    pub(crate) fn close_network(&mut self, part: &NetworkPart, all: &mut All) {
        if part.encrypted {
            self.tunnel.close(part.vni, all.entry(Scope::Tunnel).or_default());
        }
        seal(&mut self.host, part, false, all.entry(Scope::Host).or_default());
    }

    /// From where, and by which way, a peer may send.
    pub(crate) fn admit_peer(&mut self, peer: &Membership, all: &mut All) {
        if peer.encrypted {
            let changes = all.entry(Scope::Tunnel).or_default();
            self.tunnel.admit(peer.vni, peer.number, changes);
        } else {
            self.host.admit(peer.vni, peer.address, all.entry(Scope::Host).or_default());
        }
    }

    pub(crate) fn dismiss_peer(&mut self, peer: &Membership, all: &mut All) {
        if peer.encrypted {
            let changes = all.entry(Scope::Tunnel).or_default();
            self.tunnel.dismiss(peer.vni, peer.number, changes);
        } else {
            self.host.dismiss(peer.vni, peer.address, all.entry(Scope::Host).or_default());
        }
    }

    /// The generation of keys that each peer is to be reached with, by number.
    pub fn set_generations(&mut self, uses: BTreeMap<u32, u32>) -> All {
        let mut all = All::new();
        let before = std::mem::replace(&mut self.tunnel.uses, uses);
        let touched: BTreeSet<u32> =
            before.keys().chain(self.tunnel.uses.keys()).copied().collect();
        let changes = all.entry(Scope::Tunnel).or_default();
        for number in touched {
            self.tunnel.lead(number, changes);
        }
        self.settle(all)
    }

    /// Whether the node is on an encrypted network.
    #[must_use]
    pub fn is_tunnelled(&self) -> bool {
        self.tunnel.is_wanted()
    }

    /// The nodes that this one shares an encrypted network with, by number.
    #[must_use]
    pub fn tunnel_nodes(&self) -> BTreeMap<u32, TunnelNode> {
        let mut nodes: BTreeMap<u32, TunnelNode> = BTreeMap::new();
        let tables = self.overlays.values().map(|overlay| &overlay.table).chain(&self.ingress);
        for peer in tables.filter(|t| t.part.encrypted).flat_map(|table| table.peers.values()) {
            let node = nodes.entry(peer.number).or_insert_with(|| TunnelNode {
                node: peer.node,
                name: peer.name.clone(),
                address: peer.address,
                encryption: PeerEncryption::default(),
                doubles: BTreeSet::new(),
            });
            // Said on one network before the other.
            if let Some(said) = &peer.encryption
                && said.keys.last_key_value() >= node.encryption.keys.last_key_value()
            {
                node.encryption.clone_from(said);
            }
        }
        let mut known: BTreeSet<(u32, NetworkKey)> = BTreeSet::new();
        for node in nodes.values_mut() {
            node.encryption.keys.retain(|generation, key| {
                let first = known.insert((*generation, *key));
                if !first {
                    node.doubles.insert(*generation);
                }
                first
            });
        }
        nodes
    }

    /// Ports of nodes that are no container's business.
    pub(crate) fn guard_ports(&mut self, all: &mut All) {
        let own = self.own().map(|own| own.encryption.ports);
        let ports: Elements = own
            .into_iter()
            .flatten()
            .map(|port| Key::new().protocol(PortProtocol::Udp).port(port).done())
            .map(|key| (key, Value::Member))
            .collect();
        self.mesh.guard(&self.managers, ports, all.entry(Scope::Mesh).or_default());
        self.guard_bridges(all);
    }
}

#[cfg(test)]
mod tests;
