//! What is to be sent, until it is worth a call.
//!
//! Owns: messages back to back, in runs of equal size to one peer.
//! Does not know: what a message says.
//! Invariant: messages leave in the order in which they were added.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::counters::{Counters, DropCause};
use crate::peer::Peer;
use crate::udp::Socket;

/// Messages that wait to be sent.
pub(crate) struct Batch {
    buffer: Vec<u8>,
    used: usize,
    runs: Vec<Run>,
}

/// Messages that go in one call.
struct Run {
    peer: Option<Arc<Peer>>,
    to: SocketAddr,
    begin: usize,
    end: usize,
    /// Bytes of each but the last.
    size: usize,
    count: usize,
    closed: bool,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self { buffer: vec![0; CAPACITY], used: 0, runs: Vec::with_capacity(RUNS_MAX) }
    }

    /// Whether it should be sent before more is added.
    pub(crate) fn is_full(&self) -> bool {
        self.used >= FULL || self.runs.len() >= RUNS_MAX
    }

    /// Room for a message around `length` bytes; what waits is sent first when there is none.
    pub(crate) fn room(
        &mut self,
        length: usize,
        socket: &Socket,
        counters: &Counters,
    ) -> &mut [u8] {
        let needed = (length + OVERHEAD).max(MESSAGE_MIN);
        if self.used + needed > self.buffer.len() {
            self.send(socket, counters);
        }
        &mut self.buffer[self.used..]
    }

    /// The next message stands in the room, with this length, and carries data for a peer.
    pub(crate) fn add(&mut self, peer: &Arc<Peer>, to: SocketAddr, length: usize) {
        let begin = self.used;
        self.used += length;
        if let Some(run) = self.runs.last_mut()
            && run.takes(peer, to, length)
        {
            run.end += length;
            run.count += 1;
            run.closed = length < run.size;
            return;
        }
        let peer = Some(Arc::clone(peer));
        let closed = false;
        let run = Run { peer, to, begin, end: self.used, size: length, count: 1, closed };
        self.runs.push(run);
    }

    /// The next message is to go by itself.
    pub(crate) fn add_alone(&mut self, to: SocketAddr, length: usize) {
        let begin = self.used;
        self.used += length;
        let run =
            Run { peer: None, to, begin, end: self.used, size: length, count: 1, closed: true };
        self.runs.push(run);
    }

    pub(crate) fn send(&mut self, socket: &Socket, counters: &Counters) {
        for run in self.runs.drain(..) {
            run.send(&self.buffer[run.begin..run.end], socket, counters);
        }
        self.used = 0;
    }

    /// The same, but for the last messages when others may yet go with them.
    pub(crate) fn send_whole(&mut self, socket: &Socket, counters: &Counters) {
        let Some(mut last) = self.runs.pop_if(|run| run.is_open()) else {
            return self.send(socket, counters);
        };
        if self.runs.is_empty() {
            self.runs.push(last);
            return self.send(socket, counters);
        }
        self.send(socket, counters);
        self.buffer.copy_within(last.begin..last.end, 0);
        last.end -= last.begin;
        last.begin = 0;
        self.used = last.end;
        self.runs.push(last);
    }
}

impl Run {
    /// Whether one more of the same may be added.
    fn is_open(&self) -> bool {
        !self.closed && self.count < SEGMENTS_MAX && self.end - self.begin + self.size <= BYTES_MAX
    }

    fn takes(&self, peer: &Arc<Peer>, to: SocketAddr, length: usize) -> bool {
        !self.closed
            && self.to == to
            && length <= self.size
            && self.count < SEGMENTS_MAX
            && self.end - self.begin + length <= BYTES_MAX
            && self.peer.as_ref().is_some_and(|own| Arc::ptr_eq(own, peer))
    }

    fn send(&self, bytes: &[u8], socket: &Socket, counters: &Counters) {
        let joined = self.count > 1 && !self.peer.as_ref().is_some_and(|peer| peer.is_plain());
        if joined {
            let size = self.size as u16;
            match socket.send_segments(bytes, size, self.to) {
                Ok(()) => return,
                Err(error) if is_about_segments(&error) => {
                    // The path takes less than it did, or the kernel does not segment at all.
                    if let Some(peer) = &self.peer {
                        peer.set_plain();
                    }
                }
                Err(_) => return self.lost(self.count as u64, counters),
            }
        }
        let lost = bytes.chunks(self.size).filter(|one| socket.send(one, self.to).is_err());
        self.lost(lost.count() as u64, counters);
    }

    fn lost(&self, count: u64, counters: &Counters) {
        if count > 0 {
            counters.drop_many(DropCause::SendFailed, count);
            if let Some(peer) = &self.peer {
                peer.counters.drop_many(DropCause::SendFailed, count);
            }
        }
    }
}

fn is_about_segments(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EMSGSIZE | libc::EIO))
}

const OVERHEAD: usize = 32;
/// The longest message that is no data: an initiation.
const MESSAGE_MIN: usize = 148;
/// The kernel's limit for one call.
const SEGMENTS_MAX: usize = 64;
const BYTES_MAX: usize = 65_000;
const RUNS_MAX: usize = 64;
/// Two super-packets, so that the other end has work while the next is encrypted.
const FULL: usize = 2 * BYTES_MAX;
const CAPACITY: usize = FULL + 2 * 65_536 + 4096;
