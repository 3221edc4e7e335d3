//! What every name and address of a network stands for.
//!
//! Owns: the parts of a directory, and the tables that questions are looked up in.
//! Does not know: DNS messages, containers, sockets.
//! Invariant: the tables say what the parts say, no more: a part that is gone leaves no name.
//!
//! The tables hold numbers of parts; whether one is meant is read from the part itself.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;

use ipnet::IpNet;
use types::{EndpointMode, NetworkId, ServiceId};

use crate::codec::CodecError;
use crate::index::Index;
use crate::part::{
    Change, Endpoint, Item, ObjectKey, Part, PartKey, Service, both, endpoint_addresses, items,
    pieces,
};

/// Seconds for which an answer with virtual addresses may be kept.
pub(crate) const VIRTUAL_TTL_SECS: u32 = 30;
/// Seconds for which an answer with addresses of tasks may be kept.
pub(crate) const TASK_TTL_SECS: u32 = 1;

/// All networks of one directory.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    networks: HashMap<NetworkId, Names>,
}

/// The names of one network.
#[derive(Debug, Default)]
pub(crate) struct Names {
    own: Option<Own>,
    /// By their numbers; empty: the number is free.
    parts: Vec<Box<[u8]>>,
    free: Vec<u32>,
    hashing: RandomState,
    by_key: Index,
    by_name: Index,
    by_address: Index,
    services: HashMap<ServiceId, Balanced>,
}

/// What the network says of itself.
#[derive(Debug)]
struct Own {
    part: Box<[u8]>,
    name: String,
    /// The name as a key.
    suffix: Box<[u8]>,
    subnets: Vec<IpNet>,
}

/// A service, and who serves it.
#[derive(Debug, Default)]
struct Balanced {
    /// Its own part; endpoints may be there before it.
    part: Option<u32>,
    serving: Vec<u32>,
}

/// What a name stands for: the number of a part, and what of it is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Service(u32),
    Tasks(u32),
    Endpoint(u32),
}

/// A name that was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found<'a> {
    network: &'a Names,
    name: Looked<'a>,
    /// What follows `tasks.`
    tasks_of: Option<Looked<'a>>,
}

/// A name that is looked for, and its hash.
#[derive(Clone, Copy, Debug)]
struct Looked<'a> {
    key: &'a [u8],
    hash: u32,
}

/// One endpoint or service behind a named port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) port: u16,
    /// Without a dot at the end; empty: the name that was asked for.
    pub(crate) host: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) ttl: u32,
}

/// What an address is called on a container's networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reverse {
    Named {
        name: String,
        ttl: u32,
    },
    /// It lies in one of its subnets and nobody has it.
    Unused,
    Foreign,
}

impl Directory {
    /// Takes a change in. A part that cannot be read is left out and counted.
    pub(crate) fn apply(&mut self, change: Change) -> usize {
        for key in &change.removed {
            self.remove(key);
        }
        change.parts.into_iter().map(|(network, part)| self.put(network, part)).sum()
    }

    /// The same, of one piece.
    pub(crate) fn take_piece(&mut self, piece: &[u8]) -> Result<usize, CodecError> {
        let mut unreadable = 0;
        for item in items(piece) {
            match item? {
                Item::Removed(key) => self.remove(&key),
                Item::Part(network, part) => unreadable += self.put(network, part.into()),
            }
        }
        Ok(unreadable)
    }

    /// Parts, of all networks.
    pub(crate) fn len(&self) -> usize {
        self.networks.values().map(Names::len).sum()
    }

    /// All of it in pieces that make the same again; at least one.
    pub(crate) fn pieces(&self, bytes_max: usize) -> impl Iterator<Item = Vec<u8>> + '_ {
        let parts = self.networks.iter().flat_map(|(id, names)| {
            let own = names.own.iter().map(|own| &own.part);
            let others = names.parts.iter().filter(|part| !part.is_empty());
            own.chain(others).map(|part| Item::Part(*id, part))
        });
        pieces(parts, bytes_max)
    }

    /// The names of a network; `None` for one that no part is on.
    pub(crate) fn network(&self, id: NetworkId) -> Option<&Names> {
        self.networks.get(&id)
    }

    /// How many could not be read: none or one.
    fn put(&mut self, network: NetworkId, part: Box<[u8]>) -> usize {
        let names = match Part::read(&part) {
            Ok(Some(_)) => self.networks.entry(network).or_default(),
            Ok(None) => return 0,
            Err(CodecError::Short | CodecError::Text | CodecError::Value(_)) => return 1,
        };
        names.put(part);
        0
    }

    fn remove(&mut self, key: &PartKey) {
        if key.is_network() {
            self.networks.remove(&key.network);
            return;
        }
        let Some(names) = self.networks.get_mut(&key.network) else { return };
        if let Some(number) = names.number_of(&key.object) {
            names.take_out(number);
        }
        if names.len() == 0 {
            self.networks.remove(&key.network);
        }
    }
}

impl Names {
    fn len(&self) -> usize {
        self.parts.len() - self.free.len() + usize::from(self.own.is_some())
    }

    /// Takes in a part that can be read, in the place of the one with its key.
    fn put(&mut self, bytes: Box<[u8]>) {
        let Ok(Some(part)) = Part::read(&bytes) else { return };
        if let Part::Network(part) = part {
            let suffix = key_of(part.name).unwrap_or_default();
            let (name, subnets) = (part.name.to_owned(), part.subnets);
            self.own = Some(Own { part: bytes, name, suffix, subnets });
            return;
        }
        let Some(PartKey { object, .. }) = PartKey::of(NetworkId::MIN, &bytes) else { return };
        if let Some(old) = self.number_of(&object) {
            self.take_out(old);
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.parts.push(Box::default());
            self.parts.len() as u32 - 1
        });
        self.by_key.insert(self.hash(&object), number);
        match part {
            Part::Service(part) => self.add_service(number, &object, &part),
            Part::Endpoint(part) => self.add_endpoint(number, &part),
            Part::Network(_) => {}
        }
        self.parts[number as usize] = bytes;
    }

    fn take_out(&mut self, number: u32) {
        let bytes = std::mem::take(&mut self.parts[number as usize]);
        self.free.push(number);
        let Some(PartKey { object, .. }) = PartKey::of(NetworkId::MIN, &bytes) else { return };
        self.by_key.remove(self.hash(&object), number);
        // It was readable when it came in.
        match Part::read(&bytes) {
            Ok(Some(Part::Service(part))) => self.remove_service(number, &object, &part),
            Ok(Some(Part::Endpoint(part))) => self.remove_endpoint(number, &part),
            _ => {}
        }
    }

    fn add_service(&mut self, number: u32, object: &ObjectKey, part: &Service<'_>) {
        for name in part.names.clone() {
            self.add_name(name, number);
        }
        for address in both(part.v4, part.v6) {
            self.by_address.insert(self.hash_address(address), number);
        }
        // Endpoints may be there before their service, and stay when it is replaced.
        let Some(id) = ServiceId::from_bytes(&object[1..]) else { return };
        self.services.entry(id).or_default().part = Some(number);
    }

    fn remove_service(&mut self, number: u32, object: &ObjectKey, part: &Service<'_>) {
        for name in part.names.clone() {
            self.remove_name(name, number);
        }
        for address in both(part.v4, part.v6) {
            self.by_address.remove(self.hash_address(address), number);
        }
        let Some(id) = ServiceId::from_bytes(&object[1..]) else { return };
        let Some(balanced) = self.services.get_mut(&id) else { return };
        balanced.part = None;
        if balanced.serving.is_empty() {
            self.services.remove(&id);
        }
    }

    fn add_endpoint(&mut self, number: u32, part: &Endpoint<'_>) {
        for name in part.names.clone() {
            self.add_name(name, number);
        }
        // One without a name is nothing that an address could be called.
        for address in both(part.v4, part.v6).filter(|_| !part.name().is_empty()) {
            self.by_address.insert(self.hash_address(address), number);
        }
        if let (Some(service), true) = (part.service, part.serving) {
            self.services.entry(service).or_default().serving.push(number);
        }
    }

    fn remove_endpoint(&mut self, number: u32, part: &Endpoint<'_>) {
        for name in part.names.clone() {
            self.remove_name(name, number);
        }
        for address in both(part.v4, part.v6) {
            self.by_address.remove(self.hash_address(address), number);
        }
        let Some(service) = part.service.filter(|_| part.serving) else { return };
        let Some(balanced) = self.services.get_mut(&service) else { return };
        balanced.serving.retain(|other| *other != number);
        if balanced.serving.is_empty() && balanced.part.is_none() {
            self.services.remove(&service);
        }
    }

    fn add_name(&mut self, name: &str, number: u32) {
        if let Some(hash) = self.hash_name(name) {
            self.by_name.insert(hash, number);
        }
    }

    fn remove_name(&mut self, name: &str, number: u32) {
        if let Some(hash) = self.hash_name(name) {
            self.by_name.remove(hash, number);
        }
    }
}

impl Names {
    pub(crate) fn find<'a>(&'a self, key: &'a [u8]) -> Option<Found<'a>> {
        let looked = |key: &'a [u8]| Looked { key, hash: self.hash(key) };
        let tasks_of = key.strip_prefix(TASKS).filter(|rest| !rest.is_empty()).map(looked);
        let found = Found { network: self, name: looked(key), tasks_of };
        found.targets().next().is_some().then_some(found)
    }

    /// The part of `key` before this network's name, when it ends with it.
    pub(crate) fn prefix_of<'k>(&self, key: &'k [u8]) -> Option<&'k [u8]> {
        let suffix = self.own.as_ref().map_or(&[][..], |own| &own.suffix);
        if suffix.is_empty() || !key.ends_with(suffix) {
            return None;
        }
        let end = key.len() - suffix.len();
        let mut at = 0;
        while at < end {
            at += 1 + usize::from(key[at]);
        }
        // Otherwise the suffix begins in the middle of a label.
        (at == end && end > 0).then(|| &key[..end])
    }

    /// Who has an address on this network.
    pub(crate) fn reverse(&self, address: IpAddr) -> Reverse {
        let owners = self.by_address.find(self.hash_address(address));
        let named = owners.filter_map(|number| match self.part(number)? {
            Part::Service(part) if both(part.v4, part.v6).any(|own| own == address) => {
                Some((part.name(), VIRTUAL_TTL_SECS))
            }
            Part::Endpoint(part) if both(part.v4, part.v6).any(|own| own == address) => {
                Some((part.name(), TASK_TTL_SECS))
            }
            _ => None,
        });
        let own = self.own.as_ref();
        // The one that came last.
        if let Some((name, ttl)) = named.last() {
            let name = match own.filter(|own| !own.name.is_empty()) {
                Some(own) => format!("{name}.{}", own.name),
                None => name.to_owned(),
            };
            return Reverse::Named { name, ttl };
        }
        let mut subnets = own.iter().flat_map(|own| &own.subnets);
        if subnets.any(|net| net.contains(&address)) { Reverse::Unused } else { Reverse::Foreign }
    }

    /// Parts of that name, in the order in which they came.
    fn named<'a>(&'a self, name: Looked<'a>) -> impl Iterator<Item = (u32, Part<'a>)> + 'a {
        self.by_name.find(name.hash).filter_map(move |number| {
            let part = self.part(number)?;
            let mut names = match &part {
                Part::Service(part) => part.names.clone(),
                Part::Endpoint(part) => part.names.clone(),
                Part::Network(_) => return None,
            };
            names.any(|own| is_named(own, name.key)).then_some((number, part))
        })
    }

    fn part(&self, number: u32) -> Option<Part<'_>> {
        Part::read(self.parts.get(number as usize)?).ok().flatten()
    }

    fn number_of(&self, object: &ObjectKey) -> Option<u32> {
        let mut numbers = self.by_key.find(self.hash(object));
        numbers.find(|number| self.parts[*number as usize].starts_with(object))
    }

    fn hash(&self, bytes: &[u8]) -> u32 {
        let mut hasher = self.hashing.build_hasher();
        hasher.write(bytes);
        hasher.finish() as u32
    }

    fn hash_address(&self, address: IpAddr) -> u32 {
        match address {
            IpAddr::V4(v4) => self.hash(&v4.octets()),
            IpAddr::V6(v6) => self.hash(&v6.octets()),
        }
    }

    /// `None` when it cannot be a name in a question.
    fn hash_name(&self, name: &str) -> Option<u32> {
        let mut key = [0; NAME_BYTES_MAX];
        key_into(name, &mut key).map(|length| self.hash(&key[..length]))
    }
}

impl<'a> Found<'a> {
    fn targets(&self) -> impl Iterator<Item = Target> + 'a {
        let network = self.network;
        let own = network.named(self.name).map(|(number, part)| match part {
            Part::Service(_) | Part::Network(_) => Target::Service(number),
            Part::Endpoint(_) => Target::Endpoint(number),
        });
        let tasks_of = self.tasks_of.into_iter().flat_map(|name| network.named(name));
        let services = tasks_of.filter(|(_, part)| matches!(part, Part::Service(_)));
        own.chain(services.map(|(number, _)| Target::Tasks(number)))
    }

    /// Adds all addresses, of both families, and says for how many seconds they may be kept.
    pub(crate) fn addresses(&self, into: &mut Vec<IpAddr>) -> u32 {
        let mut ttl = VIRTUAL_TTL_SECS;
        let mut is_service = false;
        for target in self.targets() {
            let (number, of_tasks) = match target {
                Target::Service(number) => (number, false),
                Target::Tasks(number) => (number, true),
                Target::Endpoint(_) => continue,
            };
            is_service = true;
            ttl = ttl.min(self.network.virtual_or_serving(number, of_tasks, into));
        }
        // The name of a service goes before the same name of a container.
        if is_service {
            return ttl;
        }
        for only_serving in [true, false] {
            for target in self.targets() {
                let Target::Endpoint(number) = target else { continue };
                if let Some(Part::Endpoint(part)) = self.network.part(number)
                    && (part.serving || !only_serving)
                {
                    into.extend(both(part.v4, part.v6));
                }
            }
            if !into.is_empty() {
                break;
            }
        }
        TASK_TTL_SECS
    }

    /// Where a port of that name and protocol is served, for each service of this name.
    pub(crate) fn locations(&self, port: &str, protocol: &str) -> Vec<Location> {
        let mut all = Vec::new();
        for target in self.targets() {
            let (Target::Service(number) | Target::Tasks(number)) = target else { continue };
            let Some(Part::Service(service)) = self.network.part(number) else { continue };
            let mut ports = service.ports().filter(|own| {
                own.name.eq_ignore_ascii_case(port)
                    && own.protocol.name().eq_ignore_ascii_case(protocol)
            });
            let Some(port) = ports.next().map(|port| port.target) else { continue };
            if matches!(target, Target::Service(_)) && service.mode == EndpointMode::Vip {
                let addresses = both(service.v4, service.v6).collect();
                let (host, ttl) = (String::new(), VIRTUAL_TTL_SECS);
                all.push(Location { port, host, addresses, ttl });
                continue;
            }
            for number in self.network.serving(number) {
                let Some(Part::Endpoint(part)) = self.network.part(*number) else { continue };
                let addresses = both(part.v4, part.v6).collect();
                let host = part.name().to_owned();
                all.push(Location { port, host, addresses, ttl: TASK_TTL_SECS });
            }
        }
        all
    }
}

impl Names {
    /// Of a service's part; says for how many seconds they may be kept.
    fn virtual_or_serving(&self, number: u32, of_tasks: bool, into: &mut Vec<IpAddr>) -> u32 {
        let Some(Part::Service(service)) = self.part(number) else { return VIRTUAL_TTL_SECS };
        if of_tasks || service.mode == EndpointMode::Dnsrr {
            for number in self.serving(number) {
                let (v4, v6) = endpoint_addresses(&self.parts[*number as usize]);
                into.extend(both(v4, v6));
            }
            return TASK_TTL_SECS;
        }
        into.extend(both(service.v4, service.v6));
        VIRTUAL_TTL_SECS
    }

    /// The endpoints that serve the service of a part.
    fn serving(&self, number: u32) -> &[u32] {
        let bytes = self.parts.get(number as usize).map_or(&[][..], |part| part);
        let id = bytes.get(1..17).and_then(ServiceId::from_bytes);
        let balanced = id.and_then(|id| self.services.get(&id));
        balanced.map_or(&[], |balanced| &balanced.serving)
    }
}

/// The form in which names are looked up: as in a question, labels with their lengths, in lower
/// case, without the empty label at the end. `None` when it cannot be a name.
pub(crate) fn key_of(name: &str) -> Option<Box<[u8]>> {
    let mut key = [0; NAME_BYTES_MAX];
    key_into(name, &mut key).map(|length| key[..length].into())
}

/// Gives the length of the key.
fn key_into(name: &str, key: &mut [u8; NAME_BYTES_MAX]) -> Option<usize> {
    let mut at = 0;
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        let end = at + 1 + label.len();
        // One byte is left for the empty label.
        let place = key.get_mut(at..end).filter(|_| end < NAME_BYTES_MAX)?;
        place[0] = length;
        place[1..].copy_from_slice(label.as_bytes());
        place[1..].make_ascii_lowercase();
        at = end;
    }
    Some(at)
}

/// A name has that key.
fn is_named(name: &str, key: &[u8]) -> bool {
    let mut own = [0; NAME_BYTES_MAX];
    key_into(name, &mut own).is_some_and(|length| own[..length] == *key)
}

/// Bytes of the longest name in a message, with the empty label at the end (RFC 1035, 3.1).
pub(crate) const NAME_BYTES_MAX: usize = 255;
/// The label before the name of a service that stands for its tasks.
const TASKS: &[u8] = b"\x05tasks";
