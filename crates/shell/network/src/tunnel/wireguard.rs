//! The kernel's WireGuard: its messages.
//!
//! Owns: reading a device, and setting what differs.
//! Does not know: which peers there should be.
//! Invariant: a peer has exactly one address inside; a private key is sent to the kernel and
//! nowhere else.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use types::NetworkKey;

use crate::namespace::in_new;
use crate::netlink::{CREATE, EXCLUSIVE, Message, Socket, attribute, attributes};
use crate::route::{Elsewhere, RouteSocket, link_header, octets, parse_ip};

/// Generic netlink to one family of the kernel's, in the namespace where it was opened.
#[derive(Debug)]
pub(crate) struct Generic {
    socket: Socket,
    family: u16,
}

impl Generic {
    pub(crate) fn open(family: &str) -> io::Result<Self> {
        let mut socket = Socket::open(libc::NETLINK_GENERIC)?;
        let message = Message::new(CONTROLLER, 0, &[GET_FAMILY, 1, 0, 0]).text(FAMILY_NAME, family);
        let answer = socket.ask(message)?;
        let id = answer.get(4..).and_then(|rest| attribute(rest, FAMILY_ID));
        let id = id.and_then(|bytes| bytes.first_chunk().copied()).map(u16::from_ne_bytes);
        let family = id.ok_or_else(|| io::Error::other(format!("{family} has no number")))?;
        Ok(Self { socket, family })
    }

    pub(crate) fn message(&self, command: u8) -> Message {
        Message::new(self.family, 0, &[command, 1, 0, 0])
    }

    pub(crate) fn ask(&mut self, message: Message) -> io::Result<Vec<u8>> {
        self.socket.ask(message)
    }
}

/// A peer as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) endpoint: Option<SocketAddr>,
    /// Addresses inside, with their prefix lengths.
    pub(crate) allowed: Vec<(IpAddr, u8)>,
    /// Seconds; zero: none.
    pub(crate) keepalive: u16,
    /// Of the wall clock; zero: there was none.
    pub(crate) handshake: Duration,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
}

impl Peer {
    /// Since the last handshake, by a clock that may have been set meanwhile.
    pub(crate) fn handshake_age(&self) -> Option<Duration> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (!self.handshake.is_zero()).then(|| now.saturating_sub(self.handshake))
    }
}

/// A device as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Device {
    /// `None`: it has no private key.
    pub(crate) public: Option<NetworkKey>,
    pub(crate) port: u16,
    pub(crate) peers: BTreeMap<NetworkKey, Peer>,
}

/// What a peer should become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Set {
    Remove,
    /// What is not said stays as it is.
    Put {
        address: Option<Ipv4Addr>,
        endpoint: Option<SocketAddr>,
        keepalive: Option<u16>,
    },
}

/// WireGuard in one namespace.
#[derive(Debug)]
pub(crate) struct WireGuard(Generic);

impl WireGuard {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self(Generic::open(KIND)?))
    }

    pub(crate) fn device(&mut self, name: &str) -> io::Result<Device> {
        let message = self.0.message(GET_DEVICE).text(DEVICE_NAME, name);
        let mut device = Device::default();
        for answer in self.0.socket.dump(message)? {
            parse_device(answer.get(4..).unwrap_or_default(), &mut device);
        }
        Ok(device)
    }

    /// Gives the device a key, which ends all its sessions, and a port.
    pub(crate) fn set_key(&mut self, name: &str, key: &[u8; 32], port: u16) -> io::Result<()> {
        let message = self.0.message(SET_DEVICE).text(DEVICE_NAME, name);
        let message = message.bytes(DEVICE_KEY, key).bytes(DEVICE_PORT, &port.to_ne_bytes());
        self.0.socket.request(message)
    }

    pub(crate) fn set_port(&mut self, name: &str, port: u16) -> io::Result<()> {
        let message = self.0.message(SET_DEVICE).text(DEVICE_NAME, name);
        self.0.socket.request(message.bytes(DEVICE_PORT, &port.to_ne_bytes()))
    }

    /// Changes these peers; the others stay.
    pub(crate) fn set_peers(&mut self, name: &str, all: &[(NetworkKey, Set)]) -> io::Result<()> {
        for part in all.chunks(PEERS_PER_MESSAGE) {
            let message = self.0.message(SET_DEVICE).text(DEVICE_NAME, name);
            let message = message.nested(DEVICE_PEERS, |list| {
                part.iter().fold(list, |list, (key, set)| {
                    list.nested(0, |peer| peer_attributes(peer.bytes(PEER_KEY, &key.0), set))
                })
            });
            self.0.socket.request(message)?;
        }
        Ok(())
    }
}

fn peer_attributes(peer: Message, set: &Set) -> Message {
    let Set::Put { address, endpoint, keepalive } = set else {
        return peer.number(PEER_FLAGS, REMOVE);
    };
    let flags = if address.is_some() { REPLACE_ADDRESSES } else { 0 };
    let mut peer = peer.number(PEER_FLAGS, flags);
    if let Some(endpoint) = endpoint {
        peer = peer.bytes(PEER_ENDPOINT, &socket_address(*endpoint));
    }
    if let Some(keepalive) = keepalive {
        peer = peer.bytes(PEER_KEEPALIVE, &keepalive.to_ne_bytes());
    }
    let Some(address) = address else { return peer };
    peer.nested(PEER_ADDRESSES, |list| {
        list.nested(0, |one| {
            one.bytes(ADDRESS_FAMILY, &(libc::AF_INET as u16).to_ne_bytes())
                .bytes(ADDRESS_ADDRESS, &octets((*address).into()))
                .bytes(ADDRESS_PREFIX, &[32])
        })
    })
}

/// `sockaddr_in` or `sockaddr_in6`.
fn socket_address(at: SocketAddr) -> Vec<u8> {
    let family = if at.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u16;
    let mut bytes = family.to_ne_bytes().to_vec();
    bytes.extend(at.port().to_be_bytes());
    match at {
        SocketAddr::V4(at) => {
            bytes.extend(at.ip().octets());
            bytes.extend([0; 8]);
        }
        SocketAddr::V6(at) => {
            bytes.extend(at.flowinfo().to_be_bytes());
            bytes.extend(at.ip().octets());
            bytes.extend(at.scope_id().to_ne_bytes());
        }
    }
    bytes
}

fn parse_socket_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(*bytes.first_chunk()?));
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
    let address: IpAddr = match family {
        libc::AF_INET => Ipv4Addr::from(*bytes.get(4..)?.first_chunk::<4>()?).into(),
        libc::AF_INET6 => Ipv6Addr::from(*bytes.get(8..)?.first_chunk::<16>()?).into(),
        _ => return None,
    };
    Some((address, port).into())
}

/// One message of a list; a device with many peers comes in several.
fn parse_device(bytes: &[u8], device: &mut Device) {
    for (kind, value) in attributes(bytes) {
        match kind {
            DEVICE_PUBLIC => device.public = value.first_chunk().copied().map(NetworkKey),
            DEVICE_PORT => {
                device.port = value.first_chunk().copied().map_or(0, u16::from_ne_bytes);
            }
            DEVICE_PEERS => {
                for (_, peer) in attributes(value) {
                    parse_peer(peer, device);
                }
            }
            _ => {}
        }
    }
}

/// The addresses of one peer may be spread over two messages.
fn parse_peer(bytes: &[u8], device: &mut Device) {
    let key = attribute(bytes, PEER_KEY).and_then(|key| key.first_chunk().copied());
    let Some(key) = key.map(NetworkKey) else { return };
    let peer = device.peers.entry(key).or_default();
    let long = |value: &[u8]| value.first_chunk().copied().map_or(0, u64::from_ne_bytes);
    for (kind, value) in attributes(bytes) {
        match kind {
            PEER_ENDPOINT => peer.endpoint = parse_socket_address(value),
            PEER_KEEPALIVE => {
                peer.keepalive = value.first_chunk().copied().map_or(0, u16::from_ne_bytes);
            }
            PEER_HANDSHAKE => {
                let parts = (long(value), long(value.get(8..).unwrap_or_default()));
                let rest = u32::try_from(parts.1).unwrap_or_default();
                peer.handshake = Duration::from_secs(parts.0) + Duration::from_nanos(rest.into());
            }
            PEER_RECEIVED => peer.received_bytes = long(value),
            PEER_SENT => peer.sent_bytes = long(value),
            PEER_ADDRESSES => {
                peer.allowed.extend(attributes(value).into_iter().filter_map(|(_, one)| {
                    let address = parse_ip(attribute(one, ADDRESS_ADDRESS)?)?;
                    Some((address, *attribute(one, ADDRESS_PREFIX)?.first()?))
                }));
            }
            _ => {}
        }
    }
}

/// Makes a device whose datagrams come and go where the request is made.
pub(crate) fn add_device(device: &Elsewhere<'_>) -> Message {
    of_kind(device.message())
}

fn of_kind(message: Message) -> Message {
    message.nested(libc::IFLA_LINKINFO, |info| info.text(libc::IFLA_INFO_KIND, KIND))
}

/// Whether the kernel makes devices of WireGuard, which loads its module where there is one.
pub(crate) fn probe() -> io::Result<bool> {
    in_new(|| {
        let header = link_header(0, 0);
        let message = Message::new(libc::RTM_NEWLINK, CREATE | EXCLUSIVE, &header);
        let message = of_kind(message.text(libc::IFLA_IFNAME, "probe"));
        match RouteSocket::open()?.request(message) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
            Err(error) => Err(error),
        }
    })
}

/// Whether a link of the calling thread's namespace cuts UDP by itself. Older kernels do not say.
pub(crate) fn segments_udp(link: u32) -> io::Result<bool> {
    let mut socket = Generic::open("ethtool")?;
    let message = socket.message(ETHTOOL_FEATURES);
    let message = message.nested(FEATURES_HEADER, |header| header.number(HEADER_LINK, link));
    let answer = socket.ask(message)?;
    let active = answer.get(4..).and_then(|rest| attribute(rest, FEATURES_ACTIVE));
    let bits = active.and_then(|set| attribute(set, SET_BITS)).unwrap_or_default();
    let name = |bit| attribute(bit, BIT_NAME);
    Ok(attributes(bits).into_iter().any(|(_, bit)| name(bit) == Some(UDP_SEGMENTATION)))
}

/// Of links, and of messages about them.
pub(crate) const KIND: &str = "wireguard";

const CONTROLLER: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

const GET_DEVICE: u8 = 0;
const SET_DEVICE: u8 = 1;
const DEVICE_NAME: u16 = 2;
const DEVICE_KEY: u16 = 3;
const DEVICE_PUBLIC: u16 = 4;
const DEVICE_PORT: u16 = 6;
const DEVICE_PEERS: u16 = 8;

const PEER_KEY: u16 = 1;
const PEER_FLAGS: u16 = 3;
const PEER_ENDPOINT: u16 = 4;
const PEER_KEEPALIVE: u16 = 5;
const PEER_HANDSHAKE: u16 = 6;
const PEER_RECEIVED: u16 = 7;
const PEER_SENT: u16 = 8;
const PEER_ADDRESSES: u16 = 9;
const REMOVE: u32 = 1;
const REPLACE_ADDRESSES: u32 = 2;
const ADDRESS_FAMILY: u16 = 1;
const ADDRESS_ADDRESS: u16 = 2;
const ADDRESS_PREFIX: u16 = 3;

/// Below the 64 KiB of an attribute: one takes 128 bytes at most.
const PEERS_PER_MESSAGE: usize = 400;

const ETHTOOL_FEATURES: u8 = 11;
const FEATURES_HEADER: u16 = 1;
const FEATURES_ACTIVE: u16 = 4;
const HEADER_LINK: u16 = 1;
const SET_BITS: u16 = 3;
const BIT_NAME: u16 = 2;
const UDP_SEGMENTATION: &[u8] = b"tx-udp-segmentation\0";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_comes_back_as_it_was() {
        for text in ["192.0.2.7:4793", "[fd00::7]:4794"] {
            let at: SocketAddr = text.parse().unwrap();
            let bytes = socket_address(at);
            assert_eq!(bytes.len(), if at.is_ipv4() { 16 } else { 28 });
            assert_eq!(parse_socket_address(&bytes), Some(at));
        }
        assert_eq!(parse_socket_address(&[2, 0, 1]), None);
    }

    #[test]
    fn a_device_is_read_from_several_messages() {
        let key = NetworkKey([7; 32]);
        let endpoint: SocketAddr = "192.0.2.7:4793".parse().unwrap();
        let set = Set::Put {
            address: Some([10, 0, 0, 7].into()),
            endpoint: Some(endpoint),
            keepalive: Some(25),
        };
        let first = Message::fragment()
            .bytes(DEVICE_PORT, &4793u16.to_ne_bytes())
            .bytes(DEVICE_PUBLIC, &[9; 32])
            .nested(DEVICE_PEERS, |list| {
                list.nested(0, |peer| peer_attributes(peer.bytes(PEER_KEY, &key.0), &set))
            });
        let second = Message::fragment().nested(DEVICE_PEERS, |list| {
            list.nested(0, |peer| {
                let time = [5u64.to_ne_bytes(), 9u64.to_ne_bytes()].concat();
                peer.bytes(PEER_KEY, &key.0).bytes(PEER_HANDSHAKE, &time)
            })
        });
        let mut device = Device::default();
        parse_device(first.as_bytes(), &mut device);
        parse_device(second.as_bytes(), &mut device);
        assert_eq!((device.port, device.public), (4793, Some(NetworkKey([9; 32]))));
        let peer = &device.peers[&key];
        assert_eq!(peer.allowed, [([10, 0, 0, 7].into(), 32)]);
        assert_eq!((peer.endpoint, peer.keepalive), (Some(endpoint), 25));
        assert_eq!(peer.handshake, Duration::new(5, 9));
        // Whatever is cut off is not there.
        for length in 0..first.as_bytes().len() {
            parse_device(&first.as_bytes()[..length], &mut Device::default());
        }
    }
}
