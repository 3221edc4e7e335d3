//! Parts of the directory as bytes, and the directory as a table of them.
//!
//! Owns: which parts a resolver needs, their encoding, and the mirror that a daemon keeps.
//! Does not know: how names follow from parts.
//! Invariant: additions only: a field is read when it is there, a kind that is not known is kept
//! out. A network that is removed takes its parts along.
//!
//! A part is its kind, the identity of its object on the network, and a body. It is kept as these
//! bytes and read where it lies: 100,000 of them are small, and a name is found without a copy.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use types::{
    DirectoryUpdate, EndpointMode, EndpointPart, NetworkId, NetworkPart, PortPart, PortProtocol,
    ServiceId, ServicePart, TaskId,
};

use crate::codec::{CodecError, Reader, Texts, Writer};

/// What the resolver keeps of a network.
#[derive(Clone, Debug)]
pub(crate) struct Network<'a> {
    pub(crate) name: &'a str,
    pub(crate) subnets: Vec<IpNet>,
}

/// What the resolver keeps of a service.
#[derive(Clone, Debug)]
pub(crate) struct Service<'a> {
    pub(crate) mode: EndpointMode,
    pub(crate) v4: Option<Ipv4Addr>,
    pub(crate) v6: Option<Ipv6Addr>,
    /// Its own name, and its aliases.
    pub(crate) names: Texts<'a>,
    ports: Reader<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Port<'a> {
    pub(crate) name: &'a str,
    pub(crate) protocol: PortProtocol,
    pub(crate) target: u16,
}

/// What the resolver keeps of a task on one network.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint<'a> {
    pub(crate) service: Option<ServiceId>,
    pub(crate) serving: bool,
    pub(crate) v4: Option<Ipv4Addr>,
    pub(crate) v6: Option<Ipv6Addr>,
    pub(crate) names: Texts<'a>,
}

/// One part.
#[derive(Clone, Debug)]
pub(crate) enum Part<'a> {
    Network(Network<'a>),
    Service(Service<'a>),
    Endpoint(Endpoint<'a>),
}

/// Which part it is; those of a network stand together, the network itself first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PartKey {
    pub(crate) network: NetworkId,
    pub(crate) object: ObjectKey,
}

/// Which part of a network it is: the first bytes of the part.
pub(crate) type ObjectKey = [u8; KEY_BYTES];

impl PartKey {
    pub(crate) fn network(network: NetworkId) -> Self {
        Self { network, object: object_key(NETWORK, [0; 16]) }
    }

    pub(crate) fn service(network: NetworkId, service: ServiceId) -> Self {
        Self { network, object: object_key(SERVICE, service.to_bytes()) }
    }

    pub(crate) fn endpoint(network: NetworkId, task: TaskId) -> Self {
        Self { network, object: object_key(ENDPOINT, task.to_bytes()) }
    }

    /// Of a part; `None` for one that is too short to be any.
    pub(crate) fn of(network: NetworkId, part: &[u8]) -> Option<Self> {
        part.first_chunk().map(|object| Self { network, object: *object })
    }

    pub(crate) fn is_network(&self) -> bool {
        self.object[0] == NETWORK
    }
}

fn object_key(kind: u8, object: [u8; 16]) -> ObjectKey {
    let mut key = [kind; KEY_BYTES];
    key[1..].copy_from_slice(&object);
    key
}

/// One step from a directory to the next: removals first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) removed: Vec<PartKey>,
    pub(crate) parts: Vec<(NetworkId, Box<[u8]>)>,
}

/// One step of a piece.
pub(crate) enum Item<'a> {
    Removed(PartKey),
    Part(NetworkId, &'a [u8]),
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
        parts.extend(update.networks.iter().map(|part| (part.id, network(part))));
        parts.extend(update.services.iter().map(|part| (part.network, service(part))));
        parts.extend(update.endpoints.iter().map(|part| (part.network, endpoint(part))));
        change
    }

    /// Pieces of at most `bytes_max` (or one part), each the payload of a frame; at least one.
    pub(crate) fn pieces(&self, bytes_max: usize) -> impl Iterator<Item = Vec<u8>> + '_ {
        let removed = self.removed.iter().map(|key| Item::Removed(*key));
        let parts = self.parts.iter().map(|(network, part)| Item::Part(*network, part));
        pieces(removed.chain(parts), bytes_max)
    }

    /// Adds what one piece says.
    pub(crate) fn take_piece(&mut self, piece: &[u8]) -> Result<(), CodecError> {
        for item in items(piece) {
            match item? {
                Item::Removed(key) => self.removed.push(key),
                Item::Part(network, part) => self.parts.push((network, part.into())),
            }
        }
        Ok(())
    }
}

/// The steps of a piece, until one cannot be read.
pub(crate) fn items(piece: &[u8]) -> impl Iterator<Item = Result<Item<'_>, CodecError>> {
    let mut reader = Reader::new(piece);
    let mut is_over = false;
    std::iter::from_fn(move || {
        if is_over || reader.is_empty() {
            return None;
        }
        let item = item(&mut reader);
        is_over = item.is_err();
        Some(item)
    })
}

fn item<'a>(reader: &mut Reader<'a>) -> Result<Item<'a>, CodecError> {
    let is_there = reader.flag()?;
    let network = network_id(reader)?;
    if is_there {
        return Ok(Item::Part(network, reader.blob()?));
    }
    Ok(Item::Removed(PartKey { network, object: reader.array()? }))
}

pub(crate) fn pieces<'a>(
    items: impl Iterator<Item = Item<'a>>,
    bytes_max: usize,
) -> impl Iterator<Item = Vec<u8>> {
    let (mut items, mut is_first) = (items.peekable(), true);
    std::iter::from_fn(move || {
        if items.peek().is_none() && !is_first {
            return None;
        }
        is_first = false;
        let mut writer = Writer::default();
        while let Some(item) = items.next_if(|item| {
            let size = item.size();
            writer.bytes.is_empty() || writer.bytes.len() + size <= bytes_max
        }) {
            item.encode(&mut writer);
        }
        Some(writer.bytes)
    })
}

impl Item<'_> {
    fn size(&self) -> usize {
        let rest = match self {
            Self::Removed(_) => KEY_BYTES,
            Self::Part(_, part) => 4 + part.len(),
        };
        1 + 16 + rest
    }

    fn encode(&self, writer: &mut Writer) {
        match self {
            Self::Removed(key) => {
                writer.flag(false);
                writer.raw(&key.network.to_bytes());
                writer.raw(&key.object);
            }
            Self::Part(network, part) => {
                writer.flag(true);
                writer.raw(&network.to_bytes());
                writer.blob(part);
            }
        }
    }
}

/// All parts of a directory.
#[derive(Debug, Default)]
pub(crate) struct Mirror {
    parts: BTreeMap<PartKey, Box<[u8]>>,
}

impl Mirror {
    pub(crate) fn apply(&mut self, change: Change) {
        for key in &change.removed {
            if key.is_network() {
                self.parts.retain(|other, _| other.network != key.network);
            } else {
                self.parts.remove(key);
            }
        }
        let parts = change.parts.into_iter();
        self.parts
            .extend(parts.filter_map(|(network, part)| Some((PartKey::of(network, &part)?, part))));
    }

    /// The whole directory in pieces, as [`Change::pieces`]; at least one.
    pub(crate) fn pieces(&self, bytes_max: usize) -> impl Iterator<Item = Vec<u8>> + '_ {
        pieces(self.parts.iter().map(|(key, part)| Item::Part(key.network, part)), bytes_max)
    }
}

fn network(part: &NetworkPart) -> Box<[u8]> {
    let mut w = Writer::default();
    w.raw(&PartKey::network(part.id).object);
    w.text(&part.name);
    w.list(&part.subnets, |w, (net, _)| {
        w.address(Some(net.addr()));
        w.u8(net.prefix_len());
    });
    w.bytes.into()
}

fn service(part: &ServicePart) -> Box<[u8]> {
    let mut w = Writer::default();
    w.raw(&PartKey::service(part.network, part.service).object);
    w.flags([part.mode == EndpointMode::Dnsrr, part.v4.is_some(), part.v6.is_some(), false]);
    addresses(&mut w, part.v4, part.v6);
    w.texts(std::iter::once(&part.name).chain(&part.aliases));
    w.list(&part.ports, port);
    w.bytes.into()
}

fn port(w: &mut Writer, part: &PortPart) {
    w.text(&part.name);
    w.u8(part.protocol as u8);
    w.u16(part.target);
}

fn endpoint(part: &EndpointPart) -> Box<[u8]> {
    let names: usize = part.names.iter().map(|name| name.len() + 1).sum();
    let mut w = Writer { bytes: Vec::with_capacity(ENDPOINT_BYTES_MAX + names) };
    w.raw(&PartKey::endpoint(part.network, part.task).object);
    let is_there = [part.serving, part.v4.is_some(), part.v6.is_some(), part.service.is_some()];
    w.flags(is_there);
    addresses(&mut w, part.v4, part.v6);
    if let Some(service) = part.service {
        w.raw(&service.to_bytes());
    }
    w.texts(&part.names);
    w.bytes.into()
}

fn addresses(w: &mut Writer, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) {
    if let Some(v4) = v4 {
        w.raw(&v4.octets());
    }
    if let Some(v6) = v6 {
        w.raw(&v6.octets());
    }
}

impl<'a> Part<'a> {
    /// `None` for a kind of a later version.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Option<Self>, CodecError> {
        let mut r = Reader::new(bytes);
        let [kind, object @ ..]: ObjectKey = r.array()?;
        let object = ServiceId::from_bytes(&object);
        match kind {
            SERVICE | ENDPOINT if object.is_none() => Err(CodecError::Value("an identity")),
            NETWORK => Network::read(r).map(|part| Some(Self::Network(part))),
            SERVICE => Service::read(r).map(|part| Some(Self::Service(part))),
            ENDPOINT => Endpoint::read(r).map(|part| Some(Self::Endpoint(part))),
            _ => Ok(None),
        }
    }
}

impl<'a> Network<'a> {
    fn read(mut r: Reader<'a>) -> Result<Self, CodecError> {
        Ok(Self { name: r.str()?, subnets: r.list(Reader::net)? })
    }
}

impl<'a> Service<'a> {
    fn read(mut r: Reader<'a>) -> Result<Self, CodecError> {
        let [is_dnsrr, has_v4, has_v6, _] = r.flags()?;
        let mode = if is_dnsrr { EndpointMode::Dnsrr } else { EndpointMode::Vip };
        let (v4, v6) = read_addresses(&mut r, has_v4, has_v6)?;
        let names = r.texts()?;
        let ports = r.clone();
        // All of it is read once, so that later readings of it hold.
        r.list(|r| read_port(r).map(drop))?;
        Ok(Self { mode, v4, v6, names, ports })
    }

    /// Its own name.
    pub(crate) fn name(&self) -> &'a str {
        self.names.clone().next().unwrap_or_default()
    }

    pub(crate) fn ports(&self) -> impl Iterator<Item = Port<'a>> {
        let mut ports = self.ports.clone();
        let count = ports.u32().unwrap_or(0);
        (0..count).filter_map(move |_| read_port(&mut ports).ok().flatten())
    }
}

impl<'a> Endpoint<'a> {
    fn read(mut r: Reader<'a>) -> Result<Self, CodecError> {
        let [serving, has_v4, has_v6, has_service] = r.flags()?;
        let (v4, v6) = read_addresses(&mut r, has_v4, has_v6)?;
        let service = if has_service {
            let bytes = r.raw(16)?;
            Some(ServiceId::from_bytes(bytes).ok_or(CodecError::Value("a service"))?)
        } else {
            None
        };
        Ok(Self { service, serving, v4, v6, names: r.texts()? })
    }

    /// First of its names.
    pub(crate) fn name(&self) -> &'a str {
        self.names.clone().next().unwrap_or_default()
    }
}

fn read_addresses(
    r: &mut Reader<'_>,
    has_v4: bool,
    has_v6: bool,
) -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>), CodecError> {
    let v4 = if has_v4 { Some(r.array::<4>()?.into()) } else { None };
    let v6 = if has_v6 { Some(r.array::<16>()?.into()) } else { None };
    Ok((v4, v6))
}

/// The addresses of an endpoint's part, without a look at its names.
pub(crate) fn endpoint_addresses(part: &[u8]) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let mut r = Reader::new(part.get(KEY_BYTES..).unwrap_or_default());
    let Ok([_, has_v4, has_v6, _]) = r.flags() else { return (None, None) };
    read_addresses(&mut r, has_v4, has_v6).unwrap_or((None, None))
}

/// `None` for a protocol of a later version.
fn read_port<'a>(r: &mut Reader<'a>) -> Result<Option<Port<'a>>, CodecError> {
    let (name, protocol, target) = (r.str()?, r.u8()?, r.u16()?);
    let protocol = PortProtocol::from_number(i32::from(protocol));
    Ok(protocol.map(|protocol| Port { name, protocol, target }))
}

/// Both families, IPv4 first.
pub(crate) fn both(v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) -> impl Iterator<Item = IpAddr> {
    v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6))
}

pub(crate) fn network_id(reader: &mut Reader<'_>) -> Result<NetworkId, CodecError> {
    NetworkId::from_bytes(reader.raw(16)?).ok_or(CodecError::Value("a network"))
}

const NETWORK: u8 = 1;
const SERVICE: u8 = 2;
const ENDPOINT: u8 = 3;

/// Kind and object.
const KEY_BYTES: usize = 17;
/// Without names: key, flags, addresses, service, and the number of names.
const ENDPOINT_BYTES_MAX: usize = KEY_BYTES + 1 + 4 + 16 + 16 + 2;
