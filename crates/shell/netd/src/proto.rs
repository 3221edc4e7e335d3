//! Frames between a daemon and netd.
//!
//! Owns: the bytes of version 1. A frame is `length: u32`, `version: u8`, `kind: u8`, `tag: u32`,
//! then the payload; numbers are little-endian, `length` counts everything after itself. A request
//! carries a tag, and what answers it carries the same.
//! Does not know: sockets.
//! Invariant: additions only. A reader skips kinds that it does not know and ignores what follows
//! the fields that it knows: netd outlives the daemon that started it, and after a downgrade an
//! old daemon meets a new netd.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use types::{NetworkId, PortBinding, PortProtocol};

use crate::codec::{CodecError, Reader, Writer};
use crate::part::network_id;
use crate::tunnels::{put_statuses, put_tunnels, take_statuses, take_tunnels};
use crate::{Container, Forward, Origin, Scope, Tunnel, TunnelStatus, Upstream};

/// Version written into every frame.
pub const VERSION: u8 = 1;
/// Longest frame accepted, length field excluded.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// What one piece of a longer message may be; a single part may be longer.
pub(crate) const PIECE_BYTES_MAX: usize = 256 * 1024;
/// Bindings in one frame.
pub(crate) const BINDINGS_MAX: usize = 8_192;

/// What the daemon asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// One piece of a change of a directory; it takes effect with the last one.
    Directory {
        scope: Scope,
        full: bool,
        more: bool,
        index: u64,
        piece: Vec<u8>,
    },
    Serve(Container),
    Release(String),
    /// The whole set of ports, in pieces; it takes effect with the last one.
    Reserve {
        more: bool,
        bindings: Vec<PortBinding>,
    },
    /// The whole set of ports that ::1 is forwarded on.
    Loopback6(Vec<(PortProtocol, u16)>),
    /// All tunnels that are to be served, in pieces; a tunnel with more peers than fit into one
    /// comes again in the next. It takes effect with the last one.
    Tunnels {
        more: bool,
        tunnels: Vec<Tunnel>,
    },
    /// What is seen of the tunnels.
    TunnelsSeen,
    Status,
    /// Give all ports and tunnels up, for a successor, and remember them.
    Yield,
    /// End; with `forget` also without a trace in the run directory.
    Stop {
        forget: bool,
    },
}

/// What netd says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The first frame of every connection.
    Hello {
        build: String,
        pid: u32,
    },
    Done,
    /// The container is served at a port, or why not.
    Served {
        port: u16,
        error: String,
    },
    /// Those that could not be had, in pieces.
    Reserved {
        more: bool,
        missing: Vec<PortBinding>,
    },
    /// Counters in the order of [`crate::Counters`], and one piece of the containers served.
    Status {
        more: bool,
        index: u64,
        counters: Vec<u64>,
        containers: Vec<(String, u16)>,
    },
    /// What is seen of tunnels, in pieces as they are asked for.
    Tunnels {
        more: bool,
        tunnels: Vec<TunnelStatus>,
    },
}

/// The bytes are not a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The peer is not netd or a daemon of ours, or the stream is out of step.
    #[error("a frame of {length} bytes, the limit is {FRAME_BYTES_MAX}")]
    Length { length: usize },
    /// The same.
    #[error("a frame of kind {kind} cannot be read")]
    Payload {
        kind: u8,
        #[source]
        source: CodecError,
    },
}

/// Collects bytes until frames are whole. Holds at most one frame and one read.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    bytes: Vec<u8>,
    taken: usize,
}

/// A frame that is whole.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) tag: u32,
    pub(crate) payload: Vec<u8>,
}

impl Decoder {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..std::mem::take(&mut self.taken));
        self.bytes.extend_from_slice(bytes);
    }

    /// `None` when more bytes are needed.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let rest = &self.bytes[self.taken..];
        let Some((head, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*head) as usize;
        if !(HEAD_BYTES..=FRAME_BYTES_MAX).contains(&length) {
            return Err(FrameError::Length { length });
        }
        let Some(frame) = rest.get(..length) else { return Ok(None) };
        let tag = u32::from_le_bytes([frame[2], frame[3], frame[4], frame[5]]);
        let (kind, payload) = (frame[1], frame[HEAD_BYTES..].to_vec());
        self.taken += 4 + length;
        if self.taken == self.bytes.len() {
            self.bytes.clear();
            self.taken = 0;
            // What a large frame took is not kept.
            self.bytes.shrink_to(READ_BYTES);
        }
        Ok(Some(Frame { kind, tag, payload }))
    }
}

impl Request {
    pub(crate) fn encode(&self, tag: u32) -> Vec<u8> {
        let mut w = Writer::default();
        let kind = match self {
            Self::Directory { scope, full, more, index, piece } => {
                w.u8(*scope as u8);
                w.flag(*full);
                w.flag(*more);
                w.u64(*index);
                w.blob(piece);
                DIRECTORY
            }
            Self::Serve(container) => {
                put_container(&mut w, container);
                SERVE
            }
            Self::Release(id) => {
                w.text(id);
                RELEASE
            }
            Self::Reserve { more, bindings } => {
                w.flag(*more);
                put_bindings(&mut w, bindings);
                RESERVE
            }
            Self::Loopback6(ports) => {
                w.list(ports, |w, (protocol, port)| {
                    w.u8(*protocol as u8);
                    w.u16(*port);
                });
                LOOPBACK6
            }
            Self::Tunnels { more, tunnels } => {
                w.flag(*more);
                put_tunnels(&mut w, tunnels);
                TUNNELS
            }
            Self::TunnelsSeen => TUNNELS_SEEN,
            Self::Status => STATUS,
            Self::Yield => YIELD,
            Self::Stop { forget } => {
                w.flag(*forget);
                STOP
            }
        };
        frame(kind, tag, &w.bytes)
    }

    /// `None` for a kind of a later version.
    pub(crate) fn decode(frame: &Frame) -> Result<Option<Self>, FrameError> {
        let mut r = Reader::new(&frame.payload);
        Self::read(frame.kind, &mut r)
            .map_err(|source| FrameError::Payload { kind: frame.kind, source })
    }

    fn read(kind: u8, r: &mut Reader<'_>) -> Result<Option<Self>, CodecError> {
        Ok(Some(match kind {
            DIRECTORY => Self::Directory {
                scope: Scope::from_number(r.u8()?).ok_or(CodecError::Value("a scope"))?,
                full: r.flag()?,
                more: r.flag()?,
                index: r.u64()?,
                piece: r.blob()?.to_vec(),
            },
            SERVE => Self::Serve(take_container(r)?),
            RELEASE => Self::Release(r.text()?),
            RESERVE => Self::Reserve { more: r.flag()?, bindings: take_bindings(r)? },
            LOOPBACK6 => {
                let ports =
                    r.list(|r| Ok((PortProtocol::from_number(r.u8()?.into()), r.u16()?)))?;
                Self::Loopback6(
                    ports
                        .into_iter()
                        .filter_map(|(protocol, port)| Some((protocol?, port)))
                        .collect(),
                )
            }
            TUNNELS => Self::Tunnels { more: r.flag()?, tunnels: take_tunnels(r)? },
            TUNNELS_SEEN => Self::TunnelsSeen,
            STATUS => Self::Status,
            YIELD => Self::Yield,
            STOP => Self::Stop { forget: r.flag()? },
            _ => return Ok(None),
        }))
    }
}

impl Reply {
    pub(crate) fn encode(&self, tag: u32) -> Vec<u8> {
        let mut w = Writer::default();
        let kind = match self {
            Self::Hello { build, pid } => {
                w.text(build);
                w.u32(*pid);
                HELLO
            }
            Self::Done => DONE,
            Self::Served { port, error } => {
                w.u16(*port);
                w.text(error);
                SERVED
            }
            Self::Reserved { more, missing } => {
                w.flag(*more);
                put_bindings(&mut w, missing);
                RESERVED
            }
            Self::Status { more, index, counters, containers } => {
                w.flag(*more);
                w.u64(*index);
                w.list(counters, |w, count| w.u64(*count));
                w.list(containers, |w, (id, port)| {
                    w.text(id);
                    w.u16(*port);
                });
                STATUS_REPLY
            }
            Self::Tunnels { more, tunnels } => {
                w.flag(*more);
                put_statuses(&mut w, tunnels);
                TUNNELS_REPLY
            }
        };
        frame(kind, tag, &w.bytes)
    }

    /// `None` for a kind of a later version.
    pub(crate) fn decode(frame: &Frame) -> Result<Option<Self>, FrameError> {
        let mut r = Reader::new(&frame.payload);
        Self::read(frame.kind, &mut r)
            .map_err(|source| FrameError::Payload { kind: frame.kind, source })
    }

    fn read(kind: u8, r: &mut Reader<'_>) -> Result<Option<Self>, CodecError> {
        Ok(Some(match kind {
            HELLO => Self::Hello { build: r.text()?, pid: r.u32()? },
            DONE => Self::Done,
            SERVED => Self::Served { port: r.u16()?, error: r.text()? },
            RESERVED => Self::Reserved { more: r.flag()?, missing: take_bindings(r)? },
            STATUS_REPLY => Self::Status {
                more: r.flag()?,
                index: r.u64()?,
                counters: r.list(Reader::u64)?,
                containers: r.list(|r| Ok((r.text()?, r.u16()?)))?,
            },
            TUNNELS_REPLY => Self::Tunnels { more: r.flag()?, tunnels: take_statuses(r)? },
            _ => return Ok(None),
        }))
    }
}

fn frame(kind: u8, tag: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + HEAD_BYTES + payload.len());
    bytes.extend(((HEAD_BYTES + payload.len()) as u32).to_le_bytes());
    bytes.extend([VERSION, kind]);
    bytes.extend(tag.to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

fn put_container(w: &mut Writer, container: &Container) {
    w.text(&container.id);
    w.blob(container.netns.as_os_str().as_bytes());
    w.list(&container.networks, |w, id| w.raw(&id.to_bytes()));
    let upstreams = match &container.forward {
        Forward::None => None,
        Forward::Servers(upstreams) => Some(upstreams.as_slice()),
    };
    w.flag(upstreams.is_some());
    w.list(upstreams.unwrap_or_default(), |w, upstream| {
        w.address(Some(upstream.address.ip()));
        w.u16(upstream.address.port());
        w.u32(match upstream.address {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(v6) => v6.scope_id(),
        });
        w.flag(upstream.from == Origin::Host);
    });
}

fn take_container(r: &mut Reader<'_>) -> Result<Container, CodecError> {
    let id = r.text()?;
    let netns = PathBuf::from(std::ffi::OsString::from_vec(r.blob()?.to_vec()));
    let networks: Vec<NetworkId> = r.list(network_id)?;
    let forwards = r.flag()?;
    let upstreams = r.list(take_upstream)?;
    let forward = if forwards { Forward::Servers(upstreams) } else { Forward::None };
    Ok(Container { id, netns, networks, forward })
}

fn take_upstream(r: &mut Reader<'_>) -> Result<Upstream, CodecError> {
    let ip = r.address()?.ok_or(CodecError::Value("a server"))?;
    let (port, scope) = (r.u16()?, r.u32()?);
    let from = if r.flag()? { Origin::Host } else { Origin::Container };
    let address = match ip {
        std::net::IpAddr::V4(_) => SocketAddr::new(ip, port),
        std::net::IpAddr::V6(v6) => SocketAddrV6::new(v6, port, 0, scope).into(),
    };
    Ok(Upstream { address, from })
}

fn put_bindings(w: &mut Writer, bindings: &[PortBinding]) {
    w.list(bindings, |w, binding| {
        w.u8(binding.protocol as u8);
        w.u16(binding.port);
        w.address(binding.address);
    });
}

fn take_bindings(r: &mut Reader<'_>) -> Result<Vec<PortBinding>, CodecError> {
    r.list(|r| {
        let protocol = PortProtocol::from_number(i32::from(r.u8()?));
        let protocol = protocol.ok_or(CodecError::Value("a protocol"))?;
        Ok(PortBinding { protocol, port: r.u16()?, address: r.address()? })
    })
}

/// Bytes asked for at a time.
pub(crate) const READ_BYTES: usize = 16 * 1024;

/// Version, kind and tag.
const HEAD_BYTES: usize = 6;

const DIRECTORY: u8 = 1;
const SERVE: u8 = 2;
const RELEASE: u8 = 3;
const RESERVE: u8 = 4;
const LOOPBACK6: u8 = 5;
const STATUS: u8 = 6;
const STOP: u8 = 7;
const YIELD: u8 = 8;
const TUNNELS: u8 = 9;
const TUNNELS_SEEN: u8 = 10;

const HELLO: u8 = 128;
const DONE: u8 = 129;
const SERVED: u8 = 130;
const RESERVED: u8 = 131;
const STATUS_REPLY: u8 = 132;
const TUNNELS_REPLY: u8 = 133;

/// The address that is forwarded.
pub(crate) const LOOPBACK6_ADDRESS: Ipv6Addr = Ipv6Addr::LOCALHOST;

#[cfg(test)]
mod recorded;
