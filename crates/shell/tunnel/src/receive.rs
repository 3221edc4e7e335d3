//! From the socket to the device.
//!
//! Owns: telling messages apart, decrypting, checking addresses, joining, answering handshakes.
//! Does not know: what is sent. Invariant: nothing of a datagram is used before it is authentic,
//! but for finding whom it may be from; nothing is kept for a sender who is not a peer.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, Tunn, TunnResult};

use crate::batch::Batch;
use crate::coalesce::Coalescer;
use crate::counters::DropCause;
use crate::engine::Shared;
use crate::key::PublicKey;
use crate::peer::{Peer, State};
use crate::split::IP4_HEADER;
use crate::table::{Table, View};
use crate::transmit::DATA;
use crate::udp::Inbox;

/// What was taken from the socket.
pub(crate) struct Inbound<'a> {
    view: View,
    inbox: Inbox,
    receiver: Receiver<'a>,
    messages: u64,
}

impl<'a> Inbound<'a> {
    pub(crate) fn new(shared: &'a Shared) -> Self {
        let coalescer = Coalescer::new(shared.tun.offload());
        let receiver = Receiver { shared, coalescer, answers: Batch::new() };
        let view = View::new(&shared.tables);
        Self { view, inbox: Inbox::new(), receiver, messages: 0 }
    }

    /// How many messages came so far, whatever they are.
    pub(crate) fn messages(&self) -> u64 {
        self.messages
    }

    /// Takes what there is, up to a bound; answers whether there may be more. What comes while the
    /// first of it is decrypted still joins it, so that the device gets fewer and larger packets.
    /// An error means that the socket is gone.
    pub(crate) fn step(&mut self) -> io::Result<bool> {
        let shared = self.receiver.shared;
        let enough = self.messages + MESSAGES_MAX;
        let more = loop {
            match self.inbox.receive(&shared.socket) {
                Ok(count) => self.take(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(false),
                Err(error) if is_passing(&error) => break Ok(true),
                Err(error) => break Err(error),
            }
            if self.messages >= enough {
                break Ok(true);
            }
        };
        self.receiver.finish();
        more
    }

    fn take(&mut self, count: usize) {
        let table = self.view.table(&self.receiver.shared.tables);
        for at in 0..count {
            let (bytes, size, from) = self.inbox.get(at);
            self.messages += bytes.len().div_ceil(size) as u64;
            self.receiver.take(table, bytes, size, from);
        }
    }
}

/// Interrupted, or the network's word about an earlier datagram.
fn is_passing(error: &io::Error) -> bool {
    let passing =
        [libc::EINTR, libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::ENETUNREACH, libc::ENOMEM];
    error.raw_os_error().is_some_and(|number| passing.contains(&number))
}

struct Receiver<'a> {
    shared: &'a Shared,
    coalescer: Coalescer,
    answers: Batch,
}

impl Receiver<'_> {
    /// Datagrams of one size from one sender; runs of data for one session are taken together.
    fn take(&mut self, table: &Table, bytes: &[u8], size: usize, from: SocketAddr) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let first = &rest[..size.min(rest.len())];
            let run = match session_of(first) {
                Some(session) => {
                    let same = |one: &&[u8]| session_of(one) == Some(session);
                    let run: usize = rest.chunks(size).take_while(same).map(<[u8]>::len).sum();
                    self.data(table, session, &rest[..run], size, from);
                    run
                }
                None => {
                    self.other(table, first, from);
                    first.len()
                }
            };
            rest = &rest[run..];
        }
    }

    /// Everything goes out.
    fn finish(&mut self) {
        let shared = self.shared;
        self.coalescer.flush(&mut |frame| shared.deliver(frame));
        self.answers.send(&shared.socket, &shared.counters);
    }

    fn data(&mut self, table: &Table, session: u32, bytes: &[u8], size: usize, from: SocketAddr) {
        let shared = self.shared;
        let Some(peer) = table.by_receiver(session) else {
            let count = bytes.chunks(size).count() as u64;
            return shared.counters.drop_many(DropCause::UnknownPeer, count);
        };
        let mut state = peer.state();
        let (mut packets, mut all, mut authentic) = (0, 0, false);
        for message in bytes.chunks(size) {
            let Some(tunn) = state.tunn() else { break };
            let open = |place: &mut [u8]| {
                let opened = open(shared, peer, tunn, message, from.ip(), place);
                authentic |= opened.is_some();
                let length = opened.filter(|length| *length > 0)?;
                packets += 1;
                all += length as u64;
                Some(length)
            };
            self.coalescer.receive(message.len(), open, &mut |frame| shared.deliver(frame));
        }
        shared.counters.received(packets, all);
        peer.counters.received(packets, all);
        if authentic {
            state.heard_from(from);
            if state.has_parked() && state.has_session() {
                self.send_parked(peer, &mut state, from);
            }
        }
    }

    fn other(&mut self, table: &Table, message: &[u8], from: SocketAddr) {
        let index = |at: usize| {
            let bytes = message.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_le_bytes(bytes))
        };
        let receiver = match Tunn::parse_incoming_packet(message) {
            Ok(Packet::HandshakeInit(_)) => return self.initiation(table, message, from),
            Ok(Packet::HandshakeResponse(_)) => index(8),
            Ok(Packet::PacketCookieReply(_)) => index(4),
            _ => return self.shared.counters.drop(DropCause::Garbage),
        };
        match receiver.and_then(|receiver| table.by_receiver(receiver)) {
            Some(peer) => self.answer(&Arc::clone(peer), message, from),
            None => self.shared.counters.drop(DropCause::UnknownPeer),
        }
    }

    /// Somebody wants a session: who it is must be found out first.
    fn initiation(&mut self, table: &Table, message: &[u8], from: SocketAddr) {
        let shared = self.shared;
        let mut cookie = [0; COOKIE_MAX];
        let checked = shared.limiter.verify_packet(Some(from.ip()), message, &mut cookie);
        let initiation = match checked {
            Ok(Packet::HandshakeInit(initiation)) => initiation,
            Err(TunnResult::WriteToNetwork(reply)) => return self.limit(reply, from),
            Ok(_) => return shared.counters.drop(DropCause::Garbage),
            Err(_) => return shared.counters.drop(DropCause::WrongKey),
        };
        let Ok(half) = parse_handshake_anon(&shared.secret, &shared.public, &initiation) else {
            return shared.counters.drop(DropCause::Forged);
        };
        match table.by_key(&PublicKey::from_bytes(half.peer_static_public)) {
            Some(peer) => self.answer(&Arc::clone(peer), message, from),
            None => shared.counters.drop(DropCause::UnknownPeer),
        }
    }

    /// A message of a handshake with a peer.
    fn answer(&mut self, peer: &Arc<Peer>, message: &[u8], from: SocketAddr) {
        let shared = self.shared;
        let mut state = peer.state();
        let Some(tunn) = state.tunn() else { return };
        let room = self.answers.room(COOKIE_MAX, &shared.socket, &shared.counters);
        match tunn.decapsulate(Some(from.ip()), message, room) {
            TunnResult::WriteToNetwork(reply) if reply[0] == COOKIE => {
                let length = reply.len();
                self.answers.add_alone(from, length);
                drop_of(shared, peer, DropCause::Limited);
            }
            TunnResult::WriteToNetwork(reply) => {
                let length = reply.len();
                self.answers.add_alone(from, length);
                state.note_handshake();
                state.heard_from(from);
                if state.has_session() {
                    self.send_parked(peer, &mut state, from);
                }
            }
            TunnResult::Err(WireGuardError::WrongTai64nTimestamp) => {
                drop_of(shared, peer, DropCause::Replayed);
                self.answer_old(&mut state, from);
            }
            TunnResult::Err(error) => drop_of(shared, peer, cause_of(&error)),
            _ => {}
        }
    }

    /// The peer's clock may have been set back while it had no session: it takes our initiation.
    fn answer_old(&mut self, state: &mut State, from: SocketAddr) {
        if !state.may_answer_old() {
            return;
        }
        let shared = self.shared;
        let room = self.answers.room(COOKIE_MAX, &shared.socket, &shared.counters);
        if let Some(message) = state.initiate(room) {
            let length = message.len();
            self.answers.add_alone(from, length);
        }
    }

    fn limit(&mut self, reply: &[u8], from: SocketAddr) {
        let shared = self.shared;
        let room = self.answers.room(reply.len(), &shared.socket, &shared.counters);
        room[..reply.len()].copy_from_slice(reply);
        self.answers.add_alone(from, reply.len());
        shared.counters.drop(DropCause::Limited);
    }

    /// There is a session now: what waited for it goes out.
    fn send_parked(&mut self, peer: &Arc<Peer>, state: &mut State, to: SocketAddr) {
        let shared = self.shared;
        state.unpark(&shared.parking);
        let Some(tunn) = state.tunn() else { return };
        loop {
            let room = self.answers.room(PACKET_MAX, &shared.socket, &shared.counters);
            let TunnResult::WriteToNetwork(message) = tunn.decapsulate(None, &[], room) else {
                return;
            };
            let (kind, length) = (message[0], message.len());
            if kind != DATA {
                return self.answers.add_alone(to, length);
            }
            self.answers.add(peer, to, length);
        }
    }
}

/// The receiver's number of a message with data.
fn session_of(message: &[u8]) -> Option<u32> {
    let head: &[u8; 8] = message.first_chunk()?;
    let is_data = head[..4] == [DATA, 0, 0, 0] && message.len() >= DATA_MIN;
    is_data.then(|| u32::from_le_bytes([head[4], head[5], head[6], head[7]]))
}

/// Decrypts and checks one packet; `None` when it is not authentic, 0 when there is nothing for the
/// device.
fn open(
    shared: &Shared,
    peer: &Peer,
    tunn: &mut Tunn,
    message: &[u8],
    from: IpAddr,
    place: &mut [u8],
) -> Option<usize> {
    let dropped = |cause| {
        drop_of(shared, peer, cause);
        Some(0)
    };
    match tunn.decapsulate(Some(from), message, place) {
        TunnResult::WriteToTunnelV4(packet, source) => {
            // The length is what the packet says of itself.
            if packet.len() < IP4_HEADER {
                return dropped(DropCause::NotIp);
            }
            if source != peer.config.address {
                return dropped(DropCause::WrongSource);
            }
            if packet[16..20] != shared.address.octets() {
                return dropped(DropCause::WrongDestination);
            }
            Some(packet.len())
        }
        TunnResult::WriteToTunnelV6(..) => dropped(DropCause::WrongSource),
        // Only what is decrypted is looked at as a packet.
        TunnResult::Err(WireGuardError::InvalidPacket) => dropped(DropCause::NotIp),
        TunnResult::Err(error) => {
            drop_of(shared, peer, cause_of(&error));
            None
        }
        // To keep the way open.
        TunnResult::Done | TunnResult::WriteToNetwork(_) => Some(0),
    }
}

fn cause_of(error: &WireGuardError) -> DropCause {
    match error {
        WireGuardError::InvalidCounter
        | WireGuardError::DuplicateCounter
        | WireGuardError::WrongTai64nTimestamp => DropCause::Replayed,
        WireGuardError::NoCurrentSession
        | WireGuardError::WrongIndex
        | WireGuardError::UnexpectedPacket => DropCause::UnknownSession,
        WireGuardError::InvalidMac | WireGuardError::WrongKey => DropCause::WrongKey,
        WireGuardError::UnderLoad => DropCause::Limited,
        WireGuardError::InvalidAeadTag | WireGuardError::InvalidTai64nTimestamp => {
            DropCause::Forged
        }
        _ => DropCause::Garbage,
    }
}

fn drop_of(shared: &Shared, peer: &Peer, cause: DropCause) {
    shared.counters.drop(cause);
    peer.counters.drop(cause);
}

/// Taken before the other direction has its turn: a quarter of a millisecond.
const MESSAGES_MAX: u64 = 256;
const COOKIE: u8 = 3;
/// The longest answer that is no data.
const COOKIE_MAX: usize = 148;
/// Header and tag.
const DATA_MIN: usize = 32;
const PACKET_MAX: usize = 65_535;
