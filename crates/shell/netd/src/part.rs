//! Parts of the directory as bytes, and the directory as a table of them.
//!
//! Owns: which parts a resolver needs, their encoding, and the mirror that both ends keep.
//! Does not know: how names follow from parts.
//! Invariant: additions only: a field is read when it is there and has a default otherwise, a kind
//! that is not known is kept out. A network that is removed takes its parts along.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use types::{
    DirectoryUpdate, EndpointMode, EndpointPart, NetworkId, NetworkPart, PortPart, PortProtocol,
    ServiceId, ServicePart, TaskId,
};

use crate::codec::{CodecError, Reader, Writer};

/// What the resolver keeps of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    pub(crate) id: NetworkId,
    pub(crate) name: String,
    pub(crate) subnets: Vec<IpNet>,
}

/// What the resolver keeps of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) network: NetworkId,
    pub(crate) id: ServiceId,
    pub(crate) name: String,
    pub(crate) aliases: Vec<String>,
    pub(crate) mode: EndpointMode,
    pub(crate) v4: Option<IpAddr>,
    pub(crate) v6: Option<IpAddr>,
    pub(crate) ports: Vec<Port>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) protocol: PortProtocol,
    pub(crate) target: u16,
}

/// What the resolver keeps of a task on one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) network: NetworkId,
    pub(crate) task: TaskId,
    pub(crate) service: Option<ServiceId>,
    pub(crate) v4: Option<IpAddr>,
    pub(crate) v6: Option<IpAddr>,
    pub(crate) names: Vec<String>,
    pub(crate) serving: bool,
}

/// One part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Network(Network),
    Service(Service),
    Endpoint(Endpoint),
}

/// Which part it is; those of a network stand together, the network itself first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PartKey {
    network: NetworkId,
    kind: u8,
    object: [u8; 16],
}

impl PartKey {
    pub(crate) fn network(network: NetworkId) -> Self {
        Self { network, kind: NETWORK, object: [0; 16] }
    }

    pub(crate) fn service(network: NetworkId, service: ServiceId) -> Self {
        Self { network, kind: SERVICE, object: service.to_bytes() }
    }

    pub(crate) fn endpoint(network: NetworkId, task: TaskId) -> Self {
        Self { network, kind: ENDPOINT, object: task.to_bytes() }
    }

    fn last_of(network: NetworkId) -> Self {
        Self { network, kind: u8::MAX, object: [u8::MAX; 16] }
    }

    fn is_network(&self) -> bool {
        self.kind == NETWORK
    }

    fn encode(&self, writer: &mut Writer) {
        writer.raw(&self.network.to_bytes());
        writer.u8(self.kind);
        writer.raw(&self.object);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let network = network_id(reader)?;
        let (kind, object) = (reader.u8()?, reader.array()?);
        Ok(Self { network, kind, object })
    }
}

/// One step from a directory to the next: removals first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) removed: Vec<PartKey>,
    pub(crate) parts: Vec<(PartKey, Box<[u8]>)>,
}

impl Change {
    /// What a resolver needs of an update.
    pub(crate) fn of(update: &DirectoryUpdate) -> Self {
        let mut change = Self::default();
        let removed = &mut change.removed;
        removed.extend(update.removed_networks.iter().map(|id| PartKey::network(*id)));
        removed.extend(update.removed_services.iter().map(|(n, s)| PartKey::service(*n, *s)));
        removed.extend(update.removed_endpoints.iter().map(|(n, t)| PartKey::endpoint(*n, *t)));
        let parts = &mut change.parts;
        parts.extend(update.networks.iter().map(|p| (PartKey::network(p.id), network(p))));
        let services = update.services.iter();
        parts.extend(services.map(|p| (PartKey::service(p.network, p.service), service(p))));
        let endpoints = update.endpoints.iter();
        parts.extend(endpoints.map(|p| (PartKey::endpoint(p.network, p.task), endpoint(p))));
        change
    }

    /// Pieces of at most `bytes_max` (or one part), each the payload of a frame.
    pub(crate) fn pieces(&self, bytes_max: usize) -> Vec<Vec<u8>> {
        let removed = self.removed.iter().map(|key| (key, None));
        let parts = self.parts.iter().map(|(key, bytes)| (key, Some(&**bytes)));
        pieces(removed.chain(parts), bytes_max)
    }

    /// Adds what one piece says.
    pub(crate) fn take_piece(&mut self, reader: &mut Reader<'_>) -> Result<(), CodecError> {
        while !reader.is_empty() {
            let is_there = reader.flag()?;
            let key = PartKey::decode(reader)?;
            if is_there {
                self.parts.push((key, reader.blob()?.into()));
            } else {
                self.removed.push(key);
            }
        }
        Ok(())
    }
}

fn pieces<'a>(
    items: impl Iterator<Item = (&'a PartKey, Option<&'a [u8]>)>,
    bytes_max: usize,
) -> Vec<Vec<u8>> {
    let (mut all, mut writer) = (Vec::new(), Writer::default());
    for (key, bytes) in items {
        let size = KEY_BYTES + bytes.map_or(0, |bytes| 4 + bytes.len());
        if !writer.bytes.is_empty() && writer.bytes.len() + size > bytes_max {
            all.push(std::mem::take(&mut writer.bytes));
        }
        writer.flag(bytes.is_some());
        key.encode(&mut writer);
        if let Some(bytes) = bytes {
            writer.blob(bytes);
        }
    }
    all.push(writer.bytes);
    all
}

/// All parts of a directory.
#[derive(Debug, Default)]
pub(crate) struct Mirror {
    parts: BTreeMap<PartKey, Box<[u8]>>,
}

impl Mirror {
    pub(crate) fn len(&self) -> usize {
        self.parts.len()
    }

    /// Takes a part in; gives back the one that it replaces.
    pub(crate) fn insert(&mut self, key: PartKey, bytes: Box<[u8]>) -> Option<Box<[u8]>> {
        self.parts.insert(key, bytes)
    }

    /// Takes a part out, a network's with all that is on it; gives back what was there.
    pub(crate) fn remove(&mut self, key: &PartKey) -> Vec<Box<[u8]>> {
        if !key.is_network() {
            return self.parts.remove(key).into_iter().collect();
        }
        let range = *key..=PartKey::last_of(key.network);
        let gone: Vec<PartKey> = self.parts.range(range).map(|(key, _)| *key).collect();
        gone.iter().filter_map(|key| self.parts.remove(key)).collect()
    }

    pub(crate) fn apply(&mut self, change: Change) {
        for key in &change.removed {
            self.remove(key);
        }
        self.parts.extend(change.parts);
    }

    /// The whole directory in pieces, as [`Change::pieces`]; at least one.
    pub(crate) fn pieces(&self, bytes_max: usize) -> Vec<Vec<u8>> {
        pieces(self.parts.iter().map(|(key, bytes)| (key, Some(&**bytes))), bytes_max)
    }
}

fn network(part: &NetworkPart) -> Box<[u8]> {
    let mut w = Writer::default();
    w.u8(NETWORK);
    w.raw(&part.id.to_bytes());
    w.text(&part.name);
    w.list(&part.subnets, |w, (net, _)| {
        w.address(Some(net.addr()));
        w.u8(net.prefix_len());
    });
    w.bytes.into()
}

fn service(part: &ServicePart) -> Box<[u8]> {
    let mut w = Writer::default();
    w.u8(SERVICE);
    w.raw(&part.network.to_bytes());
    w.raw(&part.service.to_bytes());
    w.text(&part.name);
    w.list(&part.aliases, |w, alias| w.text(alias));
    w.u8(part.mode as u8);
    w.address(part.v4.map(IpAddr::V4));
    w.address(part.v6.map(IpAddr::V6));
    w.list(&part.ports, port);
    w.bytes.into()
}

fn port(w: &mut Writer, part: &PortPart) {
    w.text(&part.name);
    w.u8(part.protocol as u8);
    w.u16(part.target);
}

fn endpoint(part: &EndpointPart) -> Box<[u8]> {
    let mut w = Writer::default();
    w.u8(ENDPOINT);
    w.raw(&part.network.to_bytes());
    w.raw(&part.task.to_bytes());
    // Zero is no identity.
    w.raw(&part.service.map_or([0; 16], ServiceId::to_bytes));
    w.address(part.v4.map(IpAddr::V4));
    w.address(part.v6.map(IpAddr::V6));
    w.list(&part.names, |w, name| w.text(name));
    w.flag(part.serving);
    w.bytes.into()
}

impl Part {
    /// `None` for a kind of a later version.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Option<Self>, CodecError> {
        let mut r = Reader::new(bytes);
        Ok(match r.u8()? {
            NETWORK => Some(Self::Network(Network {
                id: network_id(&mut r)?,
                name: r.text()?,
                subnets: r.list(Reader::net)?,
            })),
            SERVICE => Some(Self::Service(Service {
                network: network_id(&mut r)?,
                id: ServiceId::from_bytes(r.raw(16)?).ok_or(CodecError::Value("a service"))?,
                name: r.text()?,
                aliases: r.list(Reader::text)?,
                mode: if r.u8()? == EndpointMode::Dnsrr as u8 {
                    EndpointMode::Dnsrr
                } else {
                    EndpointMode::Vip
                },
                v4: r.v4()?.map(IpAddr::V4),
                v6: r.v6()?.map(IpAddr::V6),
                ports: r.list(decode_port)?.into_iter().flatten().collect(),
            })),
            ENDPOINT => Some(Self::Endpoint(Endpoint {
                network: network_id(&mut r)?,
                task: TaskId::from_bytes(r.raw(16)?).ok_or(CodecError::Value("a task"))?,
                service: ServiceId::from_bytes(r.raw(16)?),
                v4: r.v4()?.map(IpAddr::V4),
                v6: r.v6()?.map(IpAddr::V6),
                names: r.list(Reader::text)?,
                serving: r.flag()?,
            })),
            _ => None,
        })
    }
}

fn decode_port(r: &mut Reader<'_>) -> Result<Option<Port>, CodecError> {
    let (name, protocol, target) = (r.text()?, r.u8()?, r.u16()?);
    let protocol = PortProtocol::from_number(i32::from(protocol));
    Ok(protocol.map(|protocol| Port { name, protocol, target }))
}

pub(crate) fn network_id(reader: &mut Reader<'_>) -> Result<NetworkId, CodecError> {
    NetworkId::from_bytes(reader.raw(16)?).ok_or(CodecError::Value("a network"))
}

const NETWORK: u8 = 1;
const SERVICE: u8 = 2;
const ENDPOINT: u8 = 3;

/// Of a key with its flag.
const KEY_BYTES: usize = 34;
