//! From the device to the socket.
//!
//! Owns: reading frames, choosing the peer, cutting and encrypting.
//! Does not know: what comes back. Invariant: what is read before the device is empty goes out
//! together, in its order.

use std::io;
use std::net::Ipv4Addr;

use boringtun::noise::TunnResult;

use crate::batch::Batch;
use crate::counters::DropCause;
use crate::engine::Shared;
use crate::split::split;
use crate::table::{Table, Tables, View};

/// What was read from the device and is not sent yet.
pub(crate) struct Outbound {
    view: View,
    batch: Batch,
    frame: Vec<u8>,
}

impl Outbound {
    pub(crate) fn new(tables: &Tables) -> Self {
        Self { view: View::new(tables), batch: Batch::new(), frame: vec![0; FRAME_MAX] }
    }

    /// Sends what the device has, as much as is worth some calls; answers whether there may be
    /// more, and then it is to be asked again. An error means that the device is gone.
    pub(crate) fn step(&mut self, shared: &Shared) -> io::Result<bool> {
        let Self { view, batch, frame } = self;
        let table = view.table(&shared.tables);
        loop {
            match shared.tun.read(frame) {
                Ok(length) => {
                    take(shared, table, &mut frame[..length], batch);
                    if batch.is_full() {
                        batch.send_whole(&shared.socket, &shared.counters);
                        return Ok(true);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    batch.send(&shared.socket, &shared.counters);
                    return Ok(false);
                }
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Interrupted
}

/// One frame of the device.
fn take(shared: &Shared, table: &Table, frame: &mut [u8], batch: &mut Batch) {
    let Some((header, packet)) = shared.tun.packet(frame) else {
        return shared.counters.drop(DropCause::Malformed);
    };
    let peer = destination(packet).and_then(|address| table.by_address(address));
    let Some(peer) = peer else { return shared.counters.drop(DropCause::NoPeer) };
    let drop = |cause| {
        shared.counters.drop(cause);
        peer.counters.drop(cause);
    };
    let mut state = peer.state();
    let Some(to) = state.endpoint else { return drop(DropCause::NoEndpoint) };
    let has_session = state.has_session();
    let (mut packets, mut bytes) = (0, 0);
    let cut = split(&header, packet, |segment| {
        if !has_session {
            if !state.may_park(&shared.parking) {
                return drop(DropCause::NoSession);
            }
            state.park(&shared.parking);
        }
        let Some(tunn) = state.tunn() else { return drop(DropCause::NoPeer) };
        let room = batch.room(segment.len(), &shared.socket, &shared.counters);
        if let TunnResult::WriteToNetwork(message) = tunn.encapsulate(segment, room) {
            let (kind, length) = (message[0], message.len());
            if kind == DATA {
                batch.add(peer, to, length);
            } else {
                batch.add_alone(to, length);
            }
        }
        packets += 1;
        bytes += segment.len() as u64;
    });
    match cut {
        Ok(_) => {
            shared.counters.sent(packets, bytes);
            peer.counters.sent(packets, bytes);
        }
        Err(_) => drop(DropCause::Malformed),
    }
}

fn destination(packet: &[u8]) -> Option<Ipv4Addr> {
    let address: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
    (packet[0] >> 4 == 4).then(|| address.into())
}

/// The protocol's kind of message that carries data.
pub(crate) const DATA: u8 = 4;
/// A virtio header, a link's, and the longest packet.
const FRAME_MAX: usize = 24 + 14 + 65_536;
