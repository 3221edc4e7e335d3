//! What one namespace holds, and the way from one such state to another.
//!
//! Owns: routes, neighbours, forwarding entries, addresses, elements; their differences.
//! Does not know: why something is wanted.
//! Invariant: applying the changes from a state to another makes exactly the other.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;

use ipnet::IpNet;

use crate::keys::Bytes;

pub type Hardware = [u8; 6];

/// Which packets a route is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// 254 is the main one.
    pub table: u32,
    pub net: IpNet,
}

/// A link's name, which has fifteen bytes at most. It stands where it is used, as there are
/// hundreds of thousands of routes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkName {
    bytes: [u8; 15],
    length: u8,
}

impl LinkName {
    /// Of a longer one, which no link has, the beginning.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let length = name.floor_char_boundary(15);
        let mut bytes = [0; 15];
        bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
        Self { bytes, length: length as u8 }
    }
}

impl Deref for LinkName {
    type Target = str;

    fn deref(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }
}

impl fmt::Debug for LinkName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, formatter)
    }
}

/// Where they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteTo {
    /// `None`: refused at once, as unreachable.
    pub link: Option<LinkName>,
    /// Next hop, of either family, always directly on the link.
    pub via: Option<IpAddr>,
    /// The source address of what the namespace itself sends.
    pub source: Option<IpAddr>,
    /// Bytes; zero: the link's.
    pub mtu: u32,
}

impl RouteTo {
    pub const UNREACHABLE: Self = Self { link: None, via: None, source: None, mtu: 0 };

    #[must_use]
    pub fn link(name: &str) -> Self {
        Self { link: Some(LinkName::new(name)), via: None, source: None, mtu: 0 }
    }

    #[must_use]
    pub fn via(name: &str, hop: impl Into<IpAddr>) -> Self {
        Self { via: Some(hop.into()), ..Self::link(name) }
    }
}

/// What an element of a set or map says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// A set's: it is in.
    Member,
    Bytes(Bytes),
    /// The chain that picks one of so many slots, or is one; as the map has it, its number or the
    /// way to it.
    Class(u32),
}

/// Elements of one set by key.
pub type Elements = BTreeMap<Bytes, Value>;

/// Everything of one namespace that changes as the cluster does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub addresses: BTreeSet<(String, IpNet)>,
    pub routes: BTreeMap<RouteKey, RouteTo>,
    /// Permanent ones, by link and address.
    pub neighbours: BTreeMap<(String, IpAddr), Hardware>,
    /// Of the VXLAN device: where a hardware address is.
    pub forwarding: BTreeMap<Hardware, IpAddr>,
    pub elements: BTreeMap<&'static str, Elements>,
}

/// One step of a transaction. A map's value is replaced by its removal and an addition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edit {
    Put { set: &'static str, key: Bytes, value: Value },
    Replace { set: &'static str, key: Bytes, value: Value },
    Delete { set: &'static str, key: Bytes },
}

/// The way to a state, in the order of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub addresses: Vec<(String, IpNet)>,
    pub neighbours: Vec<((String, IpAddr), Hardware)>,
    pub forwarding: Vec<(Hardware, IpAddr)>,
    pub routes: Vec<(RouteKey, RouteTo)>,
    /// One transaction, or several when there are very many.
    pub edits: Vec<Edit>,
    /// Its own transaction, after `edits`: what a packet under way may still look up.
    pub later: Vec<Edit>,
    pub routes_gone: Vec<RouteKey>,
    pub neighbours_gone: Vec<(String, IpAddr)>,
    pub forwarding_gone: Vec<Hardware>,
    pub addresses_gone: Vec<(String, IpNet)>,
    /// The namespace balances from now on: its table is to be another one.
    pub balances: bool,
    /// A route that was there before became another, or went.
    pub(crate) reroutes: bool,
}

/// What becomes of what is there and not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surplus {
    /// It may be an earlier daemon's, and wanted by those that we have not heard of yet.
    Keep,
    Remove,
}

impl Changes {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// How many single things differ.
    #[must_use]
    pub fn len(&self) -> usize {
        self.addresses.len()
            + self.neighbours.len()
            + self.forwarding.len()
            + self.routes.len()
            + self.edits.len()
            + self.later.len()
            + self.routes_gone.len()
            + self.neighbours_gone.len()
            + self.forwarding_gone.len()
            + self.addresses_gone.len()
    }
}

impl Wanted {
    /// Sets or clears one route; what is so already is no change.
    pub(crate) fn route(&mut self, key: RouteKey, to: Option<RouteTo>, changes: &mut Changes) {
        match (to, self.routes.entry(key)) {
            (Some(to), Entry::Occupied(there)) if *there.get() == to => {}
            (Some(to), Entry::Occupied(mut there)) => {
                there.insert(to);
                changes.routes.push((key, to));
                changes.reroutes = true;
            }
            (Some(to), Entry::Vacant(place)) => {
                place.insert(to);
                changes.routes.push((key, to));
            }
            (None, Entry::Occupied(there)) => {
                there.remove();
                changes.routes_gone.push(key);
                changes.reroutes = true;
            }
            (None, Entry::Vacant(_)) => {}
        }
    }

    pub(crate) fn neighbour(
        &mut self,
        link: &str,
        address: IpAddr,
        hardware: Option<Hardware>,
        changes: &mut Changes,
    ) {
        let key = (link.to_owned(), address);
        match hardware {
            Some(hardware) if self.neighbours.get(&key) == Some(&hardware) => {}
            Some(hardware) => {
                self.neighbours.insert(key.clone(), hardware);
                changes.neighbours.push((key, hardware));
            }
            None => {
                if self.neighbours.remove(&key).is_some() {
                    changes.neighbours_gone.push(key);
                }
            }
        }
    }

    pub(crate) fn forward(&mut self, to: Hardware, at: Option<IpAddr>, changes: &mut Changes) {
        match at {
            Some(at) if self.forwarding.get(&to) == Some(&at) => {}
            Some(at) => {
                self.forwarding.insert(to, at);
                changes.forwarding.push((to, at));
            }
            None => {
                if self.forwarding.remove(&to).is_some() {
                    changes.forwarding_gone.push(to);
                }
            }
        }
    }

    pub(crate) fn address(&mut self, link: &str, net: IpNet, present: bool, out: &mut Changes) {
        let key = (link.to_owned(), net);
        if present {
            if self.addresses.insert(key.clone()) {
                out.addresses.push(key);
            }
        } else if self.addresses.remove(&key) {
            out.addresses_gone.push(key);
        }
    }

    /// Drops from the changes what a later one of them has undone.
    pub(crate) fn settle(&self, changes: &mut Changes) {
        changes.addresses.retain(|key| self.addresses.contains(key));
        changes.addresses_gone.retain(|key| !self.addresses.contains(key));
        changes.neighbours.retain(|(key, value)| self.neighbours.get(key) == Some(value));
        changes.neighbours_gone.retain(|key| !self.neighbours.contains_key(key));
        changes.forwarding.retain(|(key, value)| self.forwarding.get(key) == Some(value));
        changes.forwarding_gone.retain(|key| !self.forwarding.contains_key(key));
        // Routes that are all new are as many as endpoints, and none undoes another.
        if std::mem::take(&mut changes.reroutes) {
            changes.routes.retain(|(key, value)| self.routes.get(key) == Some(value));
            changes.routes_gone.retain(|key| !self.routes.contains_key(key));
        }
    }

    /// Makes a set hold exactly these.
    pub(crate) fn sync(&mut self, set: &'static str, wanted: Elements, out: &mut Vec<Edit>) {
        let gone: Vec<Bytes> = self
            .elements
            .get(set)
            .into_iter()
            .flat_map(BTreeMap::keys)
            .filter(|key| !wanted.contains_key(*key))
            .cloned()
            .collect();
        for key in gone {
            self.delete(set, key, out);
        }
        for (key, value) in wanted {
            self.put(set, key, value, out);
        }
    }

    /// Sets an element; what is so already is no change.
    pub(crate) fn put(&mut self, set: &'static str, key: Bytes, value: Value, out: &mut Vec<Edit>) {
        match self.elements.entry(set).or_default().insert(key, value) {
            Some(before) if before == value => {}
            Some(_) => out.push(Edit::Replace { set, key, value }),
            None => out.push(Edit::Put { set, key, value }),
        }
    }

    pub(crate) fn delete(&mut self, set: &'static str, key: Bytes, out: &mut Vec<Edit>) {
        if self.elements.get_mut(set).is_some_and(|elements| elements.remove(&key).is_some()) {
            out.push(Edit::Delete { set, key });
        }
    }

    /// The way from what was observed to what is wanted.
    #[must_use]
    pub fn changes_from(&self, observed: &Self, surplus: Surplus) -> Changes {
        let mut changes = self.route_changes_from(observed, surplus);
        self.add_edits(observed, surplus, &mut changes);
        changes
    }

    /// The same without the elements, for whom they are known to be right.
    #[must_use]
    pub fn route_changes_from(&self, observed: &Self, surplus: Surplus) -> Changes {
        let mut changes = Changes {
            addresses: self.addresses.difference(&observed.addresses).cloned().collect(),
            neighbours: differing(&self.neighbours, &observed.neighbours),
            forwarding: differing(&self.forwarding, &observed.forwarding),
            routes: differing(&self.routes, &observed.routes),
            ..Changes::default()
        };
        if surplus == Surplus::Remove {
            let gone = observed.addresses.difference(&self.addresses);
            changes.addresses_gone = gone.cloned().collect();
            changes.neighbours_gone = missing(&observed.neighbours, &self.neighbours);
            changes.forwarding_gone = missing(&observed.forwarding, &self.forwarding);
            changes.routes_gone = missing(&observed.routes, &self.routes);
        }
        changes
    }

    fn add_edits(&self, observed: &Self, surplus: Surplus, changes: &mut Changes) {
        let mut last = Vec::new();
        for (set, wanted) in &self.elements {
            let there = observed.elements.get(set);
            for (key, value) in wanted {
                let before = there.and_then(|elements| elements.get(key));
                let (set, key, value) = (*set, *key, *value);
                let verdict = matches!(value, Value::Class(_));
                let edit = match before {
                    Some(before) if *before == value => continue,
                    Some(_) => Edit::Replace { set, key, value },
                    None => Edit::Put { set, key, value },
                };
                if verdict { last.push(edit) } else { changes.edits.push(edit) }
            }
        }
        changes.edits.extend(last);
        if surplus == Surplus::Remove {
            self.add_removals(observed, changes);
        }
    }

    fn add_removals(&self, observed: &Self, changes: &mut Changes) {
        for (set, there) in &observed.elements {
            let wanted = self.elements.get(set);
            for (key, value) in there {
                if wanted.is_some_and(|elements| elements.contains_key(key)) {
                    continue;
                }
                let edit = Edit::Delete { set, key: *key };
                // What leads to slots goes before the slots.
                match value {
                    Value::Bytes(_) => changes.later.push(edit),
                    Value::Class(_) | Value::Member => changes.edits.push(edit),
                }
            }
        }
    }
}

fn differing<K: Ord + Clone, V: PartialEq + Clone>(
    wanted: &BTreeMap<K, V>,
    there: &BTreeMap<K, V>,
) -> Vec<(K, V)> {
    wanted
        .iter()
        .filter(|(key, value)| there.get(key) != Some(value))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn missing<K: Ord + Clone, V>(there: &BTreeMap<K, V>, wanted: &BTreeMap<K, V>) -> Vec<K> {
    there.keys().filter(|key| !wanted.contains_key(key)).cloned().collect()
}
