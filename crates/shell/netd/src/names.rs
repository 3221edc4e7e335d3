//! What every name and address of a network stands for.
//!
//! Owns: the tables that questions are looked up in, kept in step with the parts of a directory.
//! Does not know: DNS messages, containers, sockets.
//! Invariant: the tables say what the parts say, no more: a part that is gone leaves no name.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use types::{EndpointMode, NetworkId, ServiceId, TaskId};

use crate::codec::CodecError;
use crate::part::{Change, Endpoint, Mirror, Network, Part, Port, Service};

/// Seconds for which an answer with virtual addresses may be kept.
pub(crate) const VIRTUAL_TTL_SECS: u32 = 30;
/// Seconds for which an answer with addresses of tasks may be kept.
pub(crate) const TASK_TTL_SECS: u32 = 1;

/// The tables of all networks of one directory, and the parts they follow from.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    mirror: Mirror,
    networks: HashMap<NetworkId, Names>,
}

/// The names of one network.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// The network's own name as a key; empty until it is known.
    suffix: Box<[u8]>,
    name: String,
    subnets: Vec<IpNet>,
    services: HashMap<ServiceId, Balanced>,
    endpoints: HashMap<TaskId, Address>,
    names: HashMap<Box<[u8]>, Targets>,
    reverse: HashMap<IpAddr, Vec<(Owner, String)>>,
}

/// A service, and who serves it.
#[derive(Debug, Default)]
struct Balanced {
    /// Its own part is there, not only endpoints of it.
    is_known: bool,
    is_dnsrr: bool,
    v4: Option<IpAddr>,
    v6: Option<IpAddr>,
    ports: Vec<Port>,
    serving: Vec<Serving>,
}

#[derive(Debug)]
struct Serving {
    task: TaskId,
    v4: Option<IpAddr>,
    v6: Option<IpAddr>,
}

#[derive(Debug)]
struct Address {
    v4: Option<IpAddr>,
    v6: Option<IpAddr>,
    serving: bool,
    /// First of its names.
    name: String,
}

/// Who has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Service(ServiceId),
    Endpoint(TaskId),
}

/// What a name stands for; seldom more than one thing.
type Targets = Vec<Target>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Service(ServiceId),
    Tasks(ServiceId),
    Endpoint(TaskId),
}

/// A name that was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found<'a> {
    network: &'a Names,
    targets: &'a [Target],
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
    pub(crate) fn mirror(&self) -> &Mirror {
        &self.mirror
    }

    /// Takes a change in. A part that cannot be read is left out and counted.
    pub(crate) fn apply(&mut self, change: Change) -> usize {
        let mut unreadable = 0;
        for key in &change.removed {
            for bytes in self.mirror.remove(key) {
                self.take_out(&bytes);
            }
        }
        for (key, bytes) in change.parts {
            match Part::decode(&bytes) {
                Ok(Some(part)) => {
                    if let Some(old) = self.mirror.insert(key, bytes) {
                        self.take_out(&old);
                    }
                    self.take_in(part);
                }
                Ok(None) => {}
                Err(CodecError::Short | CodecError::Text | CodecError::Value(_)) => {
                    unreadable += 1;
                }
            }
        }
        unreadable
    }

    /// The names of a network; `None` for one that no part is on.
    pub(crate) fn network(&self, id: NetworkId) -> Option<&Names> {
        self.networks.get(&id)
    }

    fn take_in(&mut self, part: Part) {
        match part {
            Part::Network(part) => self.networks.entry(part.id).or_default().identify(part),
            Part::Service(part) => {
                self.networks.entry(part.network).or_default().add_service(part);
            }
            Part::Endpoint(part) => {
                self.networks.entry(part.network).or_default().add_endpoint(part);
            }
        }
    }

    fn take_out(&mut self, bytes: &[u8]) {
        // It was readable when it came in.
        let Ok(Some(part)) = Part::decode(bytes) else { return };
        let id = match &part {
            Part::Network(part) => part.id,
            Part::Service(part) => part.network,
            Part::Endpoint(part) => part.network,
        };
        let Some(names) = self.networks.get_mut(&id) else { return };
        match &part {
            Part::Network(_) => names.forget_itself(),
            Part::Service(part) => names.remove_service(part),
            Part::Endpoint(part) => names.remove_endpoint(part),
        }
        if names.is_empty() {
            self.networks.remove(&id);
        }
    }
}

impl Names {
    fn identify(&mut self, part: Network) {
        self.suffix = key_of(&part.name).unwrap_or_default();
        self.name = part.name;
        self.subnets = part.subnets;
    }

    fn forget_itself(&mut self) {
        self.suffix = Box::default();
        self.name = String::new();
        self.subnets = Vec::new();
    }

    fn is_empty(&self) -> bool {
        self.name.is_empty() && self.services.is_empty() && self.endpoints.is_empty()
    }

    fn add_service(&mut self, part: Service) {
        for (name, target) in service_names(&part) {
            self.add_name(&name, target);
        }
        for address in [part.v4, part.v6].into_iter().flatten() {
            self.add_reverse(address, Owner::Service(part.id), &part.name);
        }
        // Endpoints may be there before their service, and stay when it is replaced.
        let balanced = self.services.entry(part.id).or_default();
        balanced.is_known = true;
        balanced.is_dnsrr = part.mode == EndpointMode::Dnsrr;
        (balanced.v4, balanced.v6, balanced.ports) = (part.v4, part.v6, part.ports);
    }

    fn remove_service(&mut self, part: &Service) {
        for (name, target) in service_names(part) {
            self.remove_name(&name, target);
        }
        for address in [part.v4, part.v6].into_iter().flatten() {
            self.remove_reverse(address, Owner::Service(part.id));
        }
        if let Some(balanced) = self.services.get_mut(&part.id) {
            balanced.is_known = false;
            if balanced.serving.is_empty() {
                self.services.remove(&part.id);
            }
        }
    }

    fn add_endpoint(&mut self, part: Endpoint) {
        for name in &part.names {
            self.add_name(name, Target::Endpoint(part.task));
        }
        let name = part.names.first().cloned().unwrap_or_default();
        for address in [part.v4, part.v6].into_iter().flatten() {
            self.add_reverse(address, Owner::Endpoint(part.task), &name);
        }
        if let (Some(service), true) = (part.service, part.serving) {
            let serving = Serving { task: part.task, v4: part.v4, v6: part.v6 };
            self.services.entry(service).or_default().serving.push(serving);
        }
        let address = Address { v4: part.v4, v6: part.v6, serving: part.serving, name };
        self.endpoints.insert(part.task, address);
    }

    fn remove_endpoint(&mut self, part: &Endpoint) {
        for name in &part.names {
            self.remove_name(name, Target::Endpoint(part.task));
        }
        for address in [part.v4, part.v6].into_iter().flatten() {
            self.remove_reverse(address, Owner::Endpoint(part.task));
        }
        self.endpoints.remove(&part.task);
        let Some(service) = part.service.filter(|_| part.serving) else { return };
        let Some(balanced) = self.services.get_mut(&service) else { return };
        balanced.serving.retain(|serving| serving.task != part.task);
        if balanced.serving.is_empty() && !balanced.is_known {
            self.services.remove(&service);
        }
    }

    fn add_name(&mut self, name: &str, target: Target) {
        let Some(key) = key_of(name) else { return };
        let targets = self.names.entry(key).or_default();
        if !targets.contains(&target) {
            targets.push(target);
        }
    }

    fn remove_name(&mut self, name: &str, target: Target) {
        let Some(key) = key_of(name) else { return };
        if let Some(targets) = self.names.get_mut(&key) {
            targets.retain(|other| *other != target);
            if targets.is_empty() {
                self.names.remove(&key);
            }
        }
    }

    fn add_reverse(&mut self, address: IpAddr, owner: Owner, name: &str) {
        if !name.is_empty() {
            self.reverse.entry(address).or_default().push((owner, name.to_owned()));
        }
    }

    fn remove_reverse(&mut self, address: IpAddr, owner: Owner) {
        if let Some(owners) = self.reverse.get_mut(&address) {
            owners.retain(|(other, _)| *other != owner);
            if owners.is_empty() {
                self.reverse.remove(&address);
            }
        }
    }
}

impl Names {
    pub(crate) fn find(&self, key: &[u8]) -> Option<Found<'_>> {
        let targets = self.names.get(key)?;
        Some(Found { network: self, targets })
    }

    /// The part of `key` before this network's name, when it ends with it.
    pub(crate) fn prefix_of<'k>(&self, key: &'k [u8]) -> Option<&'k [u8]> {
        if self.suffix.is_empty() || !key.ends_with(&self.suffix) {
            return None;
        }
        let end = key.len() - self.suffix.len();
        let mut at = 0;
        while at < end {
            at += 1 + usize::from(key[at]);
        }
        // Otherwise the suffix begins in the middle of a label.
        (at == end && end > 0).then(|| &key[..end])
    }

    /// Who has an address on this network.
    pub(crate) fn reverse(&self, address: IpAddr) -> Reverse {
        match self.reverse.get(&address).and_then(|owners| owners.last()) {
            Some((owner, name)) => {
                let ttl = match owner {
                    Owner::Service(_) => VIRTUAL_TTL_SECS,
                    Owner::Endpoint(_) => TASK_TTL_SECS,
                };
                let name = if self.name.is_empty() {
                    name.clone()
                } else {
                    format!("{name}.{}", self.name)
                };
                Reverse::Named { name, ttl }
            }
            None if self.subnets.iter().any(|net| net.contains(&address)) => Reverse::Unused,
            None => Reverse::Foreign,
        }
    }
}

impl Found<'_> {
    /// Adds all addresses, of both families, and says for how many seconds they may be kept.
    pub(crate) fn addresses(&self, into: &mut Vec<IpAddr>) -> u32 {
        let mut ttl = VIRTUAL_TTL_SECS;
        let mut is_service = false;
        for target in self.targets {
            match target {
                Target::Service(id) => {
                    is_service = true;
                    ttl = ttl.min(self.network.virtual_or_serving(*id, into));
                }
                Target::Tasks(id) => {
                    is_service = true;
                    ttl = TASK_TTL_SECS;
                    self.network.serving(*id, into);
                }
                Target::Endpoint(_) => {}
            }
        }
        // The name of a service goes before the same name of a container.
        if is_service {
            return ttl;
        }
        for only_serving in [true, false] {
            for target in self.targets {
                let Target::Endpoint(id) = target else { continue };
                if let Some(address) = self.network.endpoints.get(id)
                    && (address.serving || !only_serving)
                {
                    into.extend(address.v4.into_iter().chain(address.v6));
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
        for target in self.targets {
            let (Target::Service(id) | Target::Tasks(id)) = target else { continue };
            let Some(service) = self.network.services.get(id) else { continue };
            let Some(port) = service.port(port, protocol) else { continue };
            if matches!(target, Target::Service(_)) && !service.is_dnsrr {
                let mut addresses = Vec::new();
                let ttl = self.network.virtual_or_serving(*id, &mut addresses);
                all.push(Location { port, host: String::new(), addresses, ttl });
                continue;
            }
            for serving in &service.serving {
                let named = self.network.endpoints.get(&serving.task);
                all.push(Location {
                    port,
                    host: named.map(|address| address.name.clone()).unwrap_or_default(),
                    addresses: serving.v4.into_iter().chain(serving.v6).collect(),
                    ttl: TASK_TTL_SECS,
                });
            }
        }
        all
    }
}

impl Names {
    fn virtual_or_serving(&self, id: ServiceId, into: &mut Vec<IpAddr>) -> u32 {
        let Some(service) = self.services.get(&id) else { return VIRTUAL_TTL_SECS };
        if service.is_dnsrr {
            self.serving(id, into);
            return TASK_TTL_SECS;
        }
        into.extend(service.v4.into_iter().chain(service.v6));
        VIRTUAL_TTL_SECS
    }

    fn serving(&self, id: ServiceId, into: &mut Vec<IpAddr>) {
        let serving = self.services.get(&id).map_or(&[][..], |service| &service.serving);
        into.extend(serving.iter().flat_map(|one| one.v4.into_iter().chain(one.v6)));
    }
}

impl Balanced {
    fn port(&self, name: &str, protocol: &str) -> Option<u16> {
        let is_meant = |port: &&Port| {
            port.name.eq_ignore_ascii_case(name)
                && port.protocol.name().eq_ignore_ascii_case(protocol)
        };
        self.ports.iter().find(is_meant).map(|port| port.target)
    }
}

/// Its names and what each stands for.
fn service_names(part: &Service) -> impl Iterator<Item = (String, Target)> {
    let names = std::iter::once(&part.name).chain(&part.aliases);
    names.flat_map(|name| {
        let tasks = format!("tasks.{name}");
        [(name.clone(), Target::Service(part.id)), (tasks, Target::Tasks(part.id))]
    })
}

/// The form in which names are looked up: as in a question, labels with their lengths, in lower
/// case, without the empty label at the end. `None` when it cannot be a name.
pub(crate) fn key_of(name: &str) -> Option<Box<[u8]>> {
    let mut key = Vec::with_capacity(name.len() + 1);
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        key.push(length);
        key.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
    }
    (key.len() < NAME_BYTES_MAX).then(|| key.into())
}

/// Bytes of the longest name in a message, with the empty label at the end (RFC 1035, 3.1).
pub(crate) const NAME_BYTES_MAX: usize = 255;
