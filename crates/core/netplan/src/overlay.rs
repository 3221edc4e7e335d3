//! One network on one node: who is where, and what virtual addresses lead to.
//!
//! Owns: routes, neighbours and forwarding entries of a network's namespace; its balancers.
//! Does not know: containers' own namespaces; published ports.
//! Invariant: an address of a container of this node leads to its link, whatever the directory says
//! of it; a network has elements of balancers only once it had a virtual address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use types::{
    EndpointMode, EndpointPart, NetworkPart, PeerPart, PortProtocol, ServiceId, ServicePart,
};

use crate::balance::{CLASSES, Step, class_of, rearrange};
use crate::directory::Table;
use crate::keys::{Bytes, Key};
use crate::numbers::{LINK_NET, link_v4, link_v6, node_hardware};
use crate::state::{Changes, Edit, Hardware, RouteKey, RouteTo, Value, Wanted};
use crate::{link, set};

/// What new connections are spread over.
pub(crate) type Backend = (IpAddr, u16);

/// What they come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Front {
    Virtual(IpAddr),
    /// For IPv6 or not, a port of this node.
    Port(bool, PortProtocol, u16),
}

impl Front {
    /// Of the classes.
    fn classes(self) -> &'static str {
        match self {
            Self::Virtual(IpAddr::V4(_)) => set::VIP4,
            Self::Virtual(IpAddr::V6(_)) => set::VIP6,
            Self::Port(false, ..) => set::PUBLISHED4,
            Self::Port(true, ..) => set::PUBLISHED6,
        }
    }

    /// The sets of the blocks that so many slots stand in, and how many in each; `None`: each slot
    /// is an element.
    fn blocks(self, slots: usize) -> Option<(&'static [&'static str], usize)> {
        match self {
            Self::Virtual(_) if slots > set::SLOTS_IN_BLOCKS => None,
            Self::Virtual(IpAddr::V4(_)) => Some((&set::BLOCKS4, set::PER_BLOCK4)),
            Self::Virtual(IpAddr::V6(_)) => Some((&set::BLOCKS6, set::PER_BLOCK6)),
            Self::Port(..) => None,
        }
    }

    /// The set of slots that are elements.
    fn slots(self) -> &'static str {
        match self {
            Self::Virtual(IpAddr::V4(_)) => set::BACKEND4,
            Self::Virtual(IpAddr::V6(_)) => set::BACKEND6,
            Self::Port(false, ..) => set::TARGET4,
            Self::Port(true, ..) => set::TARGET6,
        }
    }

    fn key(self) -> Key {
        match self {
            Self::Virtual(address) => Key::new().address(address),
            Self::Port(_, protocol, port) => Key::new().protocol(protocol).port(port),
        }
    }

    fn value(self, backend: Backend) -> Value {
        let address = Key::new().address(backend.0);
        Value::Bytes(match self {
            Self::Virtual(_) => address.done(),
            Self::Port(..) => address.port(backend.1).done(),
        })
    }
}

/// The slots of all fronts of one namespace.
#[derive(Clone, Debug, Default)]
pub(crate) struct Balancers(BTreeMap<Front, Vec<Backend>>);

impl Balancers {
    /// Spreads what comes to `front` over the backends; none: nothing leads there any more.
    pub(crate) fn spread(
        &mut self,
        front: Front,
        backends: &BTreeSet<Backend>,
        wanted: &mut Wanted,
        changes: &mut Changes,
    ) {
        let slots = self.0.entry(front).or_default();
        let before = slots.len();
        let steps = rearrange(slots, backends);
        match front.blocks(slots.len()) {
            Some(blocks) => put_blocks(front, blocks, slots, wanted, changes),
            None if front.blocks(before).is_some() => {
                let all = slots.iter().cloned().enumerate();
                let all = all.map(|(slot, backend)| Step::Set(slot, backend)).collect();
                put_slots(front, all, wanted, changes);
            }
            None => put_slots(front, steps, wanted, changes),
        }
        let key = front.key().done();
        match class_of(backends.len()) {
            0 => wanted.delete(front.classes(), key, &mut changes.edits),
            class => wanted.put(front.classes(), key, Value::Class(class), &mut changes.edits),
        }
        clear(front, before, slots.len(), wanted, changes);
        if slots.is_empty() {
            self.0.remove(&front);
        }
    }
}

/// A place that has no slot leads where another one of the block does: who chose among more slots
/// a moment ago finds a backend there.
fn put_blocks(
    front: Front,
    (sets, size): (&'static [&'static str], usize),
    slots: &[Backend],
    wanted: &mut Wanted,
    changes: &mut Changes,
) {
    for (set, block) in sets.iter().zip(slots.chunks(size)) {
        let all = block.iter().cycle().take(size);
        let value = all.fold(Key::new(), |value, backend| value.address(backend.0)).done();
        wanted.put(set, front.key().done(), Value::Bytes(value), &mut changes.edits);
    }
}

fn put_slots(front: Front, steps: Vec<Step<Backend>>, wanted: &mut Wanted, changes: &mut Changes) {
    for step in steps {
        if let Step::Set(slot, backend) = step {
            let key = front.key().slot(slot).done();
            wanted.put(front.slots(), key, front.value(backend), &mut changes.edits);
        }
    }
}

/// What slots were in and are not any more.
fn clear(front: Front, before: usize, now: usize, wanted: &mut Wanted, changes: &mut Changes) {
    // Who chose a slot a moment ago still finds it.
    let out = &mut changes.later;
    match (front.blocks(before), front.blocks(now)) {
        (Some((sets, size)), kept) => {
            let kept = kept.map_or(0, |_| now.div_ceil(size));
            for set in sets.iter().take(before.div_ceil(size)).skip(kept) {
                wanted.delete(set, front.key().done(), out);
            }
        }
        (None, kept) => {
            let kept = if kept.is_some() { 0 } else { now };
            for slot in kept..before {
                wanted.delete(front.slots(), front.key().slot(slot).done(), out);
            }
        }
    }
}

/// A container's end of a network on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) link: String,
    pub(crate) hardware: Hardware,
}

/// One namespace's part of one network.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fabric {
    pub(crate) wanted: Wanted,
    pub(crate) balancers: Balancers,
    /// Something is balanced here, or was.
    balanced: bool,
    /// Own number; the VXLAN device is there.
    number: Option<u32>,
    remote: BTreeMap<IpAddr, u32>,
    local: BTreeMap<IpAddr, End>,
    /// Of peers that take less than the network's.
    mtus: BTreeMap<u32, u32>,
}

impl Fabric {
    /// Gateways, refusals, and this node's own addresses on the network.
    pub(crate) fn lay(&mut self, part: &NetworkPart, own: u32, changes: &mut Changes) {
        if let Some(before) = self.number
            && before != own
        {
            self.number_addresses(before, false, changes);
        }
        self.number = Some(own);
        self.number_addresses(own, true, changes);
        self.lead_to_nodes(true, changes);
        for (net, gateway) in &part.subnets {
            self.wanted.address(link::LOOPBACK, host_net(*gateway), true, changes);
            let key = RouteKey { table: MAIN, net: net.trunc() };
            self.wanted.route(key, Some(RouteTo::UNREACHABLE), changes);
        }
    }

    /// One that balances from its beginning, by ports.
    pub(crate) fn balancing() -> Self {
        Self { balanced: true, ..Self::default() }
    }

    pub(crate) fn is_balanced(&self) -> bool {
        self.balanced
    }

    /// Prepares for the first virtual address. What is prepared stays, as connections that came
    /// through an address outlive it.
    pub(crate) fn balance(&mut self, changes: &mut Changes) {
        if std::mem::replace(&mut self.balanced, true) {
            return;
        }
        changes.balances = true;
        self.lay_choices(changes);
        for address in self.local.keys() {
            let (pairs, key) = self_pair(*address);
            self.wanted.put(pairs, key, Value::Member, &mut changes.edits);
        }
    }

    /// Where the classes and slots of virtual addresses lead.
    fn lay_choices(&mut self, changes: &mut Changes) {
        for class in CLASSES {
            let key = Key::new().slot(*class as usize).done();
            self.wanted.put(set::CLASS, key, Value::Class(*class), &mut changes.edits);
        }
        for slot in 0..set::SLOTS_IN_BLOCKS {
            let key = Key::new().slot(slot).done();
            self.wanted.put(set::SLOT, key, Value::Class(slot as u32), &mut changes.edits);
        }
    }

    /// Undoes [`Fabric::lay`] for subnets that the network does not have any more.
    pub(crate) fn lift(&mut self, subnets: &[(IpNet, IpAddr)], changes: &mut Changes) {
        for (net, gateway) in subnets {
            self.wanted.address(link::LOOPBACK, host_net(*gateway), false, changes);
            self.wanted.route(RouteKey { table: MAIN, net: net.trunc() }, None, changes);
        }
    }

    fn number_addresses(&mut self, number: u32, present: bool, changes: &mut Changes) {
        for address in [IpAddr::V4(link_v4(number)), IpAddr::V6(link_v6(number))] {
            self.wanted.address(link::VXLAN, host_net(address), present, changes);
        }
    }

    /// Forgets this node's part in the network, for a namespace that outlives it.
    pub(crate) fn leave(&mut self, changes: &mut Changes) {
        if let Some(number) = self.number.take() {
            self.number_addresses(number, false, changes);
            self.lead_to_nodes(false, changes);
        }
    }

    fn lead_to_nodes(&mut self, present: bool, changes: &mut Changes) {
        let key = RouteKey { table: MAIN, net: LINK_NET.into() };
        self.wanted.route(key, present.then(|| RouteTo::link(link::VXLAN)), changes);
    }

    /// `at` is where the network's packets to the peer are sent.
    pub(crate) fn add_peer(&mut self, peer: &PeerPart, at: IpAddr, changes: &mut Changes) {
        let hardware = node_hardware(peer.number);
        let hop = IpAddr::V6(link_v6(peer.number));
        self.wanted.forward(hardware, Some(at), changes);
        self.wanted.neighbour(link::VXLAN, hop, Some(hardware), changes);
        let before = self.mtus.get(&peer.number).copied().unwrap_or_default();
        if peer.mtu == 0 {
            self.mtus.remove(&peer.number);
        } else {
            self.mtus.insert(peer.number, peer.mtu);
        }
        if before == peer.mtu {
            return;
        }
        let theirs: Vec<IpAddr> = self
            .remote
            .iter()
            .filter(|(_, n)| **n == peer.number)
            .map(|(address, _)| *address)
            .collect();
        for address in theirs {
            self.lead(address, changes);
        }
    }

    pub(crate) fn remove_peer(&mut self, number: u32, changes: &mut Changes) {
        self.mtus.remove(&number);
        self.wanted.forward(node_hardware(number), None, changes);
        self.wanted.neighbour(link::VXLAN, link_v6(number).into(), None, changes);
    }

    /// Where the directory says that an address is.
    pub(crate) fn add_remote(&mut self, part: &EndpointPart, changes: &mut Changes) {
        for address in addresses(part.v4, part.v6) {
            self.remote.insert(address, part.number);
            self.lead(address, changes);
        }
    }

    pub(crate) fn remove_remote(&mut self, part: &EndpointPart, changes: &mut Changes) {
        for address in addresses(part.v4, part.v6) {
            if self.remote.get(&address) == Some(&part.number) {
                self.remote.remove(&address);
                self.lead(address, changes);
            }
        }
    }

    pub(crate) fn add_local(&mut self, address: IpAddr, end: &End, changes: &mut Changes) {
        if let Some(before) = self.local.insert(address, end.clone())
            && before.link != end.link
        {
            self.wanted.neighbour(&before.link, address, None, changes);
        }
        self.wanted.neighbour(&end.link, address, Some(end.hardware), changes);
        self.lead(address, changes);
        if self.balanced {
            let (pairs, key) = self_pair(address);
            self.wanted.put(pairs, key, Value::Member, &mut changes.edits);
        }
    }

    /// Does nothing when another link has the address by now.
    pub(crate) fn remove_local(&mut self, address: IpAddr, end: &End, changes: &mut Changes) {
        self.wanted.neighbour(&end.link, address, None, changes);
        if self.local.get(&address).is_none_or(|there| there.link != end.link) {
            return;
        }
        self.local.remove(&address);
        self.lead(address, changes);
        let (pairs, key) = self_pair(address);
        self.wanted.delete(pairs, key, &mut changes.edits);
    }

    /// The route to one address.
    fn lead(&mut self, address: IpAddr, changes: &mut Changes) {
        let key = RouteKey { table: MAIN, net: host_net(address) };
        let to = match (self.local.get(&address), self.remote.get(&address)) {
            (Some(end), _) => Some(RouteTo::link(&end.link)),
            (None, Some(number)) if Some(*number) != self.number => Some(RouteTo {
                mtu: self.mtus.get(number).copied().unwrap_or_default(),
                ..RouteTo::via(link::VXLAN, link_v6(*number))
            }),
            _ => None,
        };
        self.wanted.route(key, to, changes);
    }

    /// The virtual addresses that a service has no more lead nowhere; `before` are those that it
    /// had.
    pub(crate) fn withdraw_service(
        &mut self,
        table: &Table,
        service: ServiceId,
        before: &BTreeSet<IpAddr>,
        changes: &mut Changes,
    ) {
        for address in before.difference(&virtuals_of(table, service)) {
            let front = Front::Virtual(*address);
            self.balancers.spread(front, &BTreeSet::new(), &mut self.wanted, changes);
        }
    }

    /// Answers the virtual addresses of a service, after they lead to its tasks.
    pub(crate) fn spread_service(
        &mut self,
        table: &Table,
        service: ServiceId,
        changes: &mut Changes,
    ) -> BTreeSet<IpAddr> {
        let now = virtuals_of(table, service);
        for address in &now {
            let backends =
                serving(table, service, address.is_ipv6()).map(|address| (address, 0)).collect();
            let front = Front::Virtual(*address);
            self.balancers.spread(front, &backends, &mut self.wanted, changes);
        }
        now
    }
}

/// Addresses of a service's tasks that take new connections: those on suspected nodes only when
/// there are no others.
pub(crate) fn serving(
    table: &Table,
    service: ServiceId,
    v6: bool,
) -> impl Iterator<Item = IpAddr> + '_ {
    let all = table.counts_all(service);
    let serves = move |part: &&EndpointPart| part.serving && (all || !table.is_suspected(part));
    table.endpoints_of(service).filter(serves).filter_map(move |part| match v6 {
        false => part.v4.map(IpAddr::V4),
        true => part.v6.map(IpAddr::V6),
    })
}

fn virtuals_of(table: &Table, service: ServiceId) -> BTreeSet<IpAddr> {
    table.services.get(&service).into_iter().flat_map(virtual_addresses).collect()
}

fn virtual_addresses(part: &ServicePart) -> impl Iterator<Item = IpAddr> {
    let has = part.mode == EndpointMode::Vip;
    addresses(part.v4.filter(|_| has), part.v6.filter(|_| has))
}

pub(crate) fn has_virtual_address(part: &ServicePart) -> bool {
    virtual_addresses(part).next().is_some()
}

pub(crate) fn addresses(
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
) -> impl Iterator<Item = IpAddr> {
    v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6))
}

pub(crate) fn host_net(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

fn self_pair(address: IpAddr) -> (&'static str, Bytes) {
    let sets = if address.is_ipv4() { set::SELF4 } else { set::SELF6 };
    (sets, Key::new().address(address).address(address).done())
}

/// Drops deletions of what is wanted again, from the second transaction. What the first one adds in
/// their place is there until then.
pub(crate) fn settle_edits(wanted: &Wanted, changes: &mut Changes) {
    let mut again = BTreeSet::new();
    changes.later.retain(|edit| match edit {
        Edit::Delete { set, key } => {
            let is_wanted = wanted.elements.get(set).is_some_and(|all| all.contains_key(key));
            if is_wanted {
                again.insert((*set, *key));
            }
            !is_wanted
        }
        Edit::Put { .. } | Edit::Replace { .. } => true,
    });
    if again.is_empty() {
        return;
    }
    for edit in &mut changes.edits {
        if let Edit::Put { set, key, value } = *edit
            && again.contains(&(set, key))
        {
            *edit = Edit::Replace { set, key, value };
        }
    }
}

/// The table that packets without a mark are routed by.
pub const MAIN: u32 = 254;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What the kernel holds after edits: nothing is added twice, nor removed that is not there.
    pub(crate) fn carry_out(
        kernel: &mut BTreeMap<&'static str, BTreeMap<Bytes, Value>>,
        edits: &[Edit],
    ) {
        for edit in edits {
            match *edit {
                Edit::Put { set, key, value } => {
                    assert_eq!(kernel.entry(set).or_default().insert(key, value), None, "{edit:?}");
                }
                Edit::Replace { set, key, value } => {
                    let before = kernel.get_mut(set).and_then(|all| all.insert(key, value));
                    assert!(before.is_some(), "{edit:?}");
                }
                Edit::Delete { set, key } => {
                    let before = kernel.get_mut(set).and_then(|all| all.remove(&key));
                    assert!(before.is_some(), "{edit:?}");
                }
            }
        }
    }

    /// Where a new connection goes that drew this slot of so many.
    fn led(
        kernel: &BTreeMap<&'static str, BTreeMap<Bytes, Value>>,
        address: IpAddr,
        (slot, class): (usize, usize),
    ) -> Option<Vec<u8>> {
        let front = Front::Virtual(address);
        let bytes = if address.is_ipv4() { 4 } else { 16 };
        let (set, key, place) = match front.blocks(class) {
            Some((sets, size)) => (sets[slot / size], front.key().done(), slot % size),
            None => (front.slots(), front.key().slot(slot).done(), 0),
        };
        match kernel.get(set)?.get(&key)? {
            Value::Bytes(all) => Some(all[place * bytes..][..bytes].to_vec()),
            Value::Member | Value::Class(_) => None,
        }
    }

    #[test]
    fn every_slot_leads_to_a_backend_whatever_class_was_seen_before_a_change() {
        for address in ["10.0.0.1", "fd00::1"].map(|text| text.parse::<IpAddr>().unwrap()) {
            let backend = |number: u16| match address {
                IpAddr::V4(_) => (IpAddr::from([10, 1, (number >> 8) as u8, number as u8]), 0),
                IpAddr::V6(_) => (IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 1, number]), 0),
            };
            let (mut balancers, mut wanted) = (Balancers::default(), Wanted::default());
            let (mut kernel, mut before) = (BTreeMap::new(), 0);
            for count in [1, 3, 5, 6, 11, 10, 12, 20, 21, 64, 70, 21, 20, 4, 9, 100, 2, 0, 30, 0] {
                let backends: BTreeSet<Backend> = (0..count).map(|n| backend(n * 7)).collect();
                let mut changes = Changes::default();
                let front = Front::Virtual(address);
                balancers.spread(front, &backends, &mut wanted, &mut changes);
                carry_out(&mut kernel, &changes.edits);
                let now = class_of(usize::from(count)) as usize;
                for class in [before, now].into_iter().filter(|class| *class > 0 && now > 0) {
                    let all: BTreeSet<Option<Vec<u8>>> =
                        (0..class).map(|slot| led(&kernel, address, (slot, class))).collect();
                    assert!(!all.contains(&None), "{before} to {count}: class {class}");
                    let known = |bytes: &[u8]| {
                        backends
                            .iter()
                            .any(|backend| *Key::new().address(backend.0).done() == *bytes)
                    };
                    let all: Vec<Vec<u8>> = all.into_iter().flatten().collect();
                    assert!(class != now || all.iter().all(|bytes| known(bytes)));
                    assert!(class != now || all.len() == backends.len());
                }
                carry_out(&mut kernel, &changes.later);
                let wanted: Vec<_> =
                    wanted.elements.iter().filter(|(_, all)| !all.is_empty()).collect();
                let held: Vec<_> = kernel.iter().filter(|(_, all)| !all.is_empty()).collect();
                assert_eq!(held, wanted, "{before} to {count}");
                before = now;
            }
            assert!(kernel.values().all(BTreeMap::is_empty), "{kernel:?}");
        }
    }
}
