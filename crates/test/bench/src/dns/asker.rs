//! A container's questions: many at a time, or one after the other.
//!
//! Owns: the messages and the loops that send them. Does not know: who answers.
//! Invariant: only an answer with an address counts.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg};
use nix::unistd::gettid;

use super::{MEASURED, prefer};
use crate::network::rig::enter;

/// Questions that are asked in turn.
#[derive(Clone)]
pub(super) struct Asked(Arc<[Vec<u8>]>);

impl Asked {
    pub(super) fn of(questions: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self(questions.into_iter().collect())
    }
}

/// For the address of a name.
pub(crate) fn question(name: &str) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// Answers a second with [`WINDOW`] questions under way.
pub(super) fn rate(namespace: &File, asked: &Asked, core: usize) -> Result<f64> {
    let asked = asked.clone();
    enter(namespace, move || {
        let socket = begin(core)?;
        let (mut buffers, mut next) = (vec![[0; ANSWER_BYTES]; BATCH], 0);
        let mut headers: MultiHeaders<SockaddrIn> = MultiHeaders::preallocate(BATCH, None);
        let mut counted: Option<Instant> = None;
        let (mut under_way, mut answers) = (0, 0_u64);
        let begun = Instant::now();
        loop {
            while under_way < WINDOW {
                let count = BATCH.min(WINDOW - under_way);
                send(&socket, &mut headers, &asked, &mut next, count)?;
                under_way += count;
            }
            let count = receive(&socket, &mut headers, &mut buffers)?;
            under_way -= count;
            match counted {
                None if begun.elapsed() > WARM_UP => counted = Some(Instant::now()),
                None => {}
                Some(since) => {
                    answers += count as u64;
                    if since.elapsed() > MEASURED {
                        return Ok(answers as f64 / since.elapsed().as_secs_f64());
                    }
                }
            }
        }
    })
}

/// Sorted nanoseconds from each question to its answer.
pub(super) fn latencies(namespace: &File, asked: &Asked, core: usize) -> Result<Vec<u64>> {
    let asked = asked.clone();
    enter(namespace, move || {
        let socket = begin(core)?;
        let (mut buffer, mut times) = ([0; ANSWER_BYTES], Vec::new());
        let begun = Instant::now();
        for question in asked.0.iter().cycle() {
            let sent = Instant::now();
            socket.send(question)?;
            let length = socket.recv(&mut buffer).context("no answer")?;
            let took = sent.elapsed();
            check(&buffer[..length])?;
            if begun.elapsed() > WARM_UP {
                times.push(took.as_nanos() as u64);
            }
            if begun.elapsed() > WARM_UP + MEASURED {
                break;
            }
        }
        times.sort_unstable();
        Ok(times)
    })
}

fn begin(core: usize) -> Result<UdpSocket> {
    let mut set = CpuSet::new();
    set.set(core)?;
    let thread = gettid();
    sched_setaffinity(thread, &set).with_context(|| format!("core {core}"))?;
    // As the one that answers.
    prefer(&thread.to_string());
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect("127.0.0.11:53")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn send(
    socket: &UdpSocket,
    headers: &mut MultiHeaders<SockaddrIn>,
    asked: &Asked,
    next: &mut usize,
    count: usize,
) -> Result<()> {
    let all = &asked.0;
    let slices: [[IoSlice<'_>; 1]; BATCH] =
        std::array::from_fn(|at| [IoSlice::new(&all[(*next + at) % all.len()])]);
    let flags = MsgFlags::empty();
    let to = [None; BATCH];
    let sent = sendmmsg(socket.as_raw_fd(), headers, &slices[..count], &to[..count], [], flags)?;
    ensure!(sent.count() == count, "the kernel's queue is full");
    *next += count;
    Ok(())
}

/// As many as there are, at least one.
fn receive(
    socket: &UdpSocket,
    headers: &mut MultiHeaders<SockaddrIn>,
    buffers: &mut [[u8; ANSWER_BYTES]],
) -> Result<usize> {
    let mut lengths = [0; BATCH];
    let mut count = 0;
    {
        let mut slices: Vec<[IoSliceMut<'_>; 1]> =
            buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let flags = MsgFlags::MSG_WAITFORONE;
        let received = recvmmsg(socket.as_raw_fd(), headers, slices.iter_mut(), flags, None);
        for message in received.context("no answer")? {
            lengths[count] = message.bytes;
            count += 1;
        }
    }
    for (buffer, length) in buffers.iter().zip(&lengths[..count]) {
        check(&buffer[..*length])?;
    }
    Ok(count)
}

fn check(answer: &[u8]) -> Result<()> {
    let is_good = answer.len() > 12 && answer[2] & 0x80 != 0 && answer[3] & 0xf == 0;
    if !is_good || answer[6..8] == [0, 0] {
        bail!("not an answer with an address: {answer:?}");
    }
    Ok(())
}

/// Questions under way.
const WINDOW: usize = 64;
/// Messages by one call.
const BATCH: usize = 32;
const ANSWER_BYTES: usize = 512;
const WARM_UP: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(2);
