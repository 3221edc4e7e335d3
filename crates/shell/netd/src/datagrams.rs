//! Many datagrams by one call of the kernel.
//!
//! Owns: the buffers that questions come to and answers leave from, shared by all containers.
//! Does not know: what a question is. Invariant: nothing is allocated from one batch to the next.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::RawFd;

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg};

/// Questions of one container, and what is said to them.
#[derive(Debug)]
pub(crate) struct Batch {
    incoming: MultiHeaders<SockaddrIn>,
    outgoing: MultiHeaders<SockaddrIn>,
    buffers: Box<[[u8; QUESTION_BYTES_MAX]]>,
    received: Vec<(usize, SockaddrIn)>,
    answers: Vec<Vec<u8>>,
    peers: Vec<Option<SockaddrIn>>,
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// The answer is in the buffer.
    Answer,
    Nothing,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self {
            incoming: MultiHeaders::preallocate(BATCH_MAX, None),
            outgoing: MultiHeaders::preallocate(BATCH_MAX, None),
            buffers: vec![[0; QUESTION_BYTES_MAX]; BATCH_MAX].into(),
            received: Vec::with_capacity(BATCH_MAX),
            answers: vec![Vec::new(); BATCH_MAX],
            peers: Vec::with_capacity(BATCH_MAX),
        }
    }

    /// Takes what has come, at most [`BATCH_MAX`]; says whether there may be more. A longer
    /// datagram is cut.
    pub(crate) fn receive(&mut self, socket: RawFd) -> io::Result<bool> {
        self.received.clear();
        let mut slices = slices(&mut self.buffers);
        let flags = MsgFlags::MSG_DONTWAIT;
        let messages = recvmmsg(socket, &mut self.incoming, slices.iter_mut(), flags, None)?;
        for message in messages {
            // Each has one: the socket is not connected.
            let Some(peer) = message.address else { continue };
            self.received.push((message.bytes, peer));
        }
        Ok(self.received.len() == BATCH_MAX)
    }

    /// Lets `each` answer what was taken, then sends all answers; gives how many could not be.
    pub(crate) fn answer(
        &mut self,
        socket: RawFd,
        mut each: impl FnMut(&[u8], SockaddrIn, &mut Vec<u8>) -> Said,
    ) -> u64 {
        self.peers.clear();
        for ((length, peer), question) in self.received.iter().zip(&self.buffers) {
            let answer = &mut self.answers[self.peers.len()];
            if each(&question[..*length], *peer, answer) == Said::Answer {
                self.peers.push(Some(*peer));
            }
        }
        let (mut sent, mut undelivered) = (0, 0);
        while sent < self.peers.len() {
            match self.send(socket, sent) {
                Ok(count @ 1..) => sent += count,
                // The first of them is the one that is refused.
                Ok(_) | Err(_) => {
                    undelivered += 1;
                    sent += 1;
                }
            }
        }
        undelivered
    }

    fn send(&mut self, socket: RawFd, begin: usize) -> io::Result<usize> {
        let mut slices = [[IoSlice::new(&[])]; BATCH_MAX];
        for (slice, answer) in slices.iter_mut().zip(&self.answers[begin..]) {
            *slice = [IoSlice::new(answer)];
        }
        let peers = &self.peers[begin..];
        let flags = MsgFlags::MSG_DONTWAIT;
        let slices = &slices[..peers.len()];
        Ok(sendmmsg(socket, &mut self.outgoing, slices, peers, [], flags)?.count())
    }
}

fn slices(buffers: &mut [[u8; QUESTION_BYTES_MAX]]) -> [[IoSliceMut<'_>; 1]; BATCH_MAX] {
    let mut buffers = buffers.iter_mut();
    std::array::from_fn(|_| {
        let buffer = buffers.next().map_or(&mut [][..], |buffer| &mut buffer[..]);
        [IoSliceMut::new(buffer)]
    })
}

/// A question with every option that is in use fits many times.
pub(crate) const QUESTION_BYTES_MAX: usize = 4_096;
/// Questions taken from one container before others have their turn.
pub(crate) const BATCH_MAX: usize = 32;
