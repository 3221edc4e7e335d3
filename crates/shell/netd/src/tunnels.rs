//! Tunnels to other nodes: what is asked for, what is seen, and their bytes.
//!
//! Owns: the forms of both between a daemon and netd, and their pieces.
//! Does not know: packets. Invariant: a private key is in none of them, only where it is kept.

mod device;
mod hosted;
mod serving;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV6};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use types::NetworkKey;

pub(crate) use hosted::Tunnels;

use crate::codec::{CodecError, Reader, Writer};
use crate::proto::{Reply, Request};

/// A tunnel that netd is to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Of this node's key; there is one tunnel of each.
    pub generation: u32,
    /// The namespace where its device is, or is made. The socket is in netd's own.
    pub netns: PathBuf,
    pub device: String,
    pub port: u16,
    /// This node's only address inside.
    pub address: Ipv4Addr,
    /// Of the device.
    pub mtu: u32,
    /// The file with the private key, which only its owner may read. netd reads it each time it
    /// begins, and keeps it nowhere else.
    pub key_file: PathBuf,
    pub peers: Vec<TunnelPeer>,
}

/// Another node at the far end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelPeer {
    /// The node's, for messages.
    pub number: u32,
    pub key: NetworkKey,
    /// `None`: it is learned from what comes.
    pub endpoint: Option<SocketAddr>,
    /// Its only address inside.
    pub address: Ipv4Addr,
    /// Whether a way through address translation is to be kept open.
    pub keepalive: bool,
}

/// What is seen of a tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TunnelStatus {
    pub generation: u32,
    /// `None` as long as it does not work.
    pub key: Option<NetworkKey>,
    /// How much work the kernel leaves to us: `none`, `tcp`, `udp`, `tunnel`.
    pub offload: String,
    /// What keeps it from working, or a peer from being served; it is tried again.
    pub failure: Option<String>,
    /// How often it has begun.
    pub starts: u64,
    pub traffic: TunnelTraffic,
    /// Of all packets, also those of no peer, by cause.
    pub drops: BTreeMap<String, u64>,
    pub peers: Vec<TunnelPeerStatus>,
}

/// What is seen of another node at the far end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelPeerStatus {
    pub key: NetworkKey,
    /// Where it was heard last, or is said to be.
    pub endpoint: Option<SocketAddr>,
    /// `None`: there was none.
    pub handshake_age: Option<Duration>,
    /// Whether packets can be sent at once.
    pub has_session: bool,
    pub traffic: TunnelTraffic,
    pub drops: BTreeMap<String, u64>,
}

/// What passed, in bytes and packets of the inside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelTraffic {
    pub sent_bytes: u64,
    pub sent_packets: u64,
    pub received_bytes: u64,
    pub received_packets: u64,
}

/// Something with a list that is told in pieces.
pub(crate) trait InPieces: Clone {
    type Item: Clone;
    fn items(&mut self) -> &mut Vec<Self::Item>;
    fn generation(&self) -> u32;
}

impl InPieces for Tunnel {
    type Item = TunnelPeer;

    fn items(&mut self) -> &mut Vec<TunnelPeer> {
        &mut self.peers
    }

    fn generation(&self) -> u32 {
        self.generation
    }
}

impl InPieces for TunnelStatus {
    type Item = TunnelPeerStatus;

    fn items(&mut self) -> &mut Vec<TunnelPeerStatus> {
        &mut self.peers
    }

    fn generation(&self) -> u32 {
        self.generation
    }
}

/// At least one piece, each with whether more follow: one tunnel, or a part of its peers.
fn pieces<T: InPieces>(all: Vec<T>) -> Vec<(bool, Vec<T>)> {
    let mut pieces = Vec::new();
    for mut tunnel in all {
        let mut rest = std::mem::take(tunnel.items());
        loop {
            let later = rest.split_off(rest.len().min(PEERS_IN_PIECE));
            let mut piece = tunnel.clone();
            *piece.items() = rest;
            pieces.push((true, vec![piece]));
            if later.is_empty() {
                break;
            }
            rest = later;
        }
    }
    match pieces.last_mut() {
        Some((more, _)) => *more = false,
        None => pieces.push((false, Vec::new())),
    }
    pieces
}

/// Puts a piece behind those that came before.
pub(crate) fn join<T: InPieces>(all: &mut Vec<T>, piece: Vec<T>) {
    for mut tunnel in piece {
        match all.iter_mut().find(|one| one.generation() == tunnel.generation()) {
            Some(known) => known.items().append(tunnel.items()),
            None => all.push(tunnel),
        }
    }
}

/// Whether a daemon may ask for so much.
pub(crate) fn are_too_many(all: &[Tunnel]) -> bool {
    all.len() > TUNNELS_MAX || all.iter().any(|tunnel| tunnel.peers.len() > PEERS_MAX)
}

/// All that are wanted, as the requests that say so.
pub(crate) fn tunnel_requests(all: Vec<Tunnel>) -> impl Iterator<Item = Request> {
    pieces(all).into_iter().map(|(more, tunnels)| Request::Tunnels { more, tunnels })
}

pub(crate) fn tunnel_replies(all: Vec<TunnelStatus>) -> Vec<Reply> {
    pieces(all).into_iter().map(|(more, tunnels)| Reply::Tunnels { more, tunnels }).collect()
}

pub(crate) fn put_tunnels(w: &mut Writer, tunnels: &[Tunnel]) {
    w.list(tunnels, |w, tunnel| {
        w.u32(tunnel.generation);
        w.blob(tunnel.netns.as_os_str().as_bytes());
        w.text(&tunnel.device);
        w.u16(tunnel.port);
        w.raw(&tunnel.address.octets());
        w.u32(tunnel.mtu);
        w.blob(tunnel.key_file.as_os_str().as_bytes());
        w.list(&tunnel.peers, |w, peer| {
            w.u32(peer.number);
            w.raw(&peer.key.0);
            put_endpoint(w, peer.endpoint);
            w.raw(&peer.address.octets());
            w.flag(peer.keepalive);
        });
    });
}

pub(crate) fn take_tunnels(r: &mut Reader<'_>) -> Result<Vec<Tunnel>, CodecError> {
    r.list(|r| {
        Ok(Tunnel {
            generation: r.u32()?,
            netns: path(r)?,
            device: r.text()?,
            port: r.u16()?,
            address: r.array::<4>()?.into(),
            mtu: r.u32()?,
            key_file: path(r)?,
            peers: r.list(|r| {
                Ok(TunnelPeer {
                    number: r.u32()?,
                    key: NetworkKey(r.array()?),
                    endpoint: take_endpoint(r)?,
                    address: r.array::<4>()?.into(),
                    keepalive: r.flag()?,
                })
            })?,
        })
    })
}

pub(crate) fn put_statuses(w: &mut Writer, tunnels: &[TunnelStatus]) {
    w.list(tunnels, |w, tunnel| {
        w.u32(tunnel.generation);
        w.flag(tunnel.key.is_some());
        if let Some(key) = tunnel.key {
            w.raw(&key.0);
        }
        w.text(&tunnel.offload);
        w.flag(tunnel.failure.is_some());
        w.text(tunnel.failure.as_deref().unwrap_or_default());
        w.u64(tunnel.starts);
        put_traffic(w, tunnel.traffic);
        put_drops(w, &tunnel.drops);
        w.list(&tunnel.peers, |w, peer| {
            w.raw(&peer.key.0);
            put_endpoint(w, peer.endpoint);
            w.u64(peer.handshake_age.map_or(NEVER, millis));
            w.flag(peer.has_session);
            put_traffic(w, peer.traffic);
            put_drops(w, &peer.drops);
        });
    });
}

pub(crate) fn take_statuses(r: &mut Reader<'_>) -> Result<Vec<TunnelStatus>, CodecError> {
    r.list(|r| {
        let generation = r.u32()?;
        let key = if r.flag()? { Some(NetworkKey(r.array()?)) } else { None };
        let offload = r.text()?;
        let has_failed = r.flag()?;
        let failure = Some(r.text()?).filter(|_| has_failed);
        Ok(TunnelStatus {
            generation,
            key,
            offload,
            failure,
            starts: r.u64()?,
            traffic: take_traffic(r)?,
            drops: take_drops(r)?,
            peers: r.list(take_peer_status)?,
        })
    })
}

fn take_peer_status(r: &mut Reader<'_>) -> Result<TunnelPeerStatus, CodecError> {
    Ok(TunnelPeerStatus {
        key: NetworkKey(r.array()?),
        endpoint: take_endpoint(r)?,
        handshake_age: Some(r.u64()?).filter(|age| *age != NEVER).map(Duration::from_millis),
        has_session: r.flag()?,
        traffic: take_traffic(r)?,
        drops: take_drops(r)?,
    })
}

fn put_traffic(w: &mut Writer, traffic: TunnelTraffic) {
    let TunnelTraffic { sent_bytes, sent_packets, received_bytes, received_packets } = traffic;
    for count in [sent_bytes, sent_packets, received_bytes, received_packets] {
        w.u64(count);
    }
}

fn take_traffic(r: &mut Reader<'_>) -> Result<TunnelTraffic, CodecError> {
    Ok(TunnelTraffic {
        sent_bytes: r.u64()?,
        sent_packets: r.u64()?,
        received_bytes: r.u64()?,
        received_packets: r.u64()?,
    })
}

fn put_drops(w: &mut Writer, drops: &BTreeMap<String, u64>) {
    w.u32(drops.len() as u32);
    for (cause, count) in drops {
        w.text(cause);
        w.u64(*count);
    }
}

fn take_drops(r: &mut Reader<'_>) -> Result<BTreeMap<String, u64>, CodecError> {
    Ok(r.list(|r| Ok((r.text()?, r.u64()?)))?.into_iter().collect())
}

/// An address, and where there is one, its port and the scope of IPv6.
fn put_endpoint(w: &mut Writer, endpoint: Option<SocketAddr>) {
    w.address(endpoint.map(|endpoint| endpoint.ip()));
    let Some(endpoint) = endpoint else { return };
    w.u16(endpoint.port());
    if let SocketAddr::V6(v6) = endpoint {
        w.u32(v6.scope_id());
    }
}

fn take_endpoint(r: &mut Reader<'_>) -> Result<Option<SocketAddr>, CodecError> {
    let Some(ip) = r.address()? else { return Ok(None) };
    let port = r.u16()?;
    Ok(Some(match ip {
        std::net::IpAddr::V4(v4) => (v4, port).into(),
        std::net::IpAddr::V6(v6) => SocketAddrV6::new(v6, port, 0, r.u32()?).into(),
    }))
}

fn path(r: &mut Reader<'_>) -> Result<PathBuf, CodecError> {
    Ok(PathBuf::from(OsString::from_vec(r.blob()?.to_vec())))
}

fn millis(age: Duration) -> u64 {
    u64::try_from(age.as_millis()).unwrap_or(NEVER - 1).min(NEVER - 1)
}

/// Peers are told in pieces of so many: half a frame, if packets of each were dropped for every
/// reason that there is.
const PEERS_IN_PIECE: usize = 1_024;
/// Two while keys are changed, and two of a change before that which is not over yet.
const TUNNELS_MAX: usize = 4;
/// More than the nodes of the largest cluster.
const PEERS_MAX: usize = 20_000;
const NEVER: u64 = u64::MAX;
