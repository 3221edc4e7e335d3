//! The thread from the device to the socket.
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
use crate::table::{Table, View};

/// Runs until the wake-up; an error means that the device is gone.
pub(crate) fn run(shared: &Shared) -> io::Result<()> {
    let mut view = View::new(&shared.tables);
    let mut batch = Batch::new();
    let mut frame = vec![0; FRAME_MAX];
    loop {
        match shared.tun.read(&mut frame) {
            Ok(length) => {
                take(shared, view.table(), &mut frame[..length], &mut batch);
                if batch.is_full() {
                    batch.send(&shared.socket, &shared.counters);
                    if shared.is_stopped() {
                        return Ok(());
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                batch.send(&shared.socket, &shared.counters);
                if !shared.wake.wait(std::os::fd::AsFd::as_fd(&shared.tun))? {
                    return Ok(());
                }
            }
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error),
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
