//! Keys changed while datagrams pass.
//!
//! Owns: two flows of datagrams, one each way, and a change of both nodes' keys meanwhile.
//! Does not know: how a cluster agrees on it. Invariant: a datagram counts as lost when it was sent
//! and did not come, once, before all was over.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use integration::Load;

use super::Wire;
use super::lines::Hosts;
use super::node::{Kind, Node, inner};
use super::space::Space;

/// What became of the datagrams.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Passed {
    pub(super) sent: u64,
    pub(super) lost: u64,
}

/// A second generation of keys beside the first, each node led to it in its turn, and the first
/// ended.
pub(super) fn change_keys() -> Result<Passed> {
    let Hosts { spaces, nodes: old } = Hosts::lay(&Kind::Ours, Wire::Segments)?;
    let there = begin(&spaces[0], &spaces[1], 2)?;
    let back = begin(&spaces[1], &spaces[0], 1)?;
    std::thread::sleep(BEFORE);
    let start =
        |at: usize| Node::start_generation(&Kind::Ours, &spaces[at], &spaces[at], at as u8 + 1, 1);
    let mut new = [start(0)?, start(1)?];
    new[0].add_peer(2)?;
    new[1].add_peer(1)?;
    for node in &mut new {
        node.await_sessions()?;
    }
    for (number, node) in (1..).zip(&new) {
        let (own, other) = (inner(number), inner(3 - number));
        let space = &spaces[usize::from(number) - 1];
        space.run(&format!("ip route add {other}/32 dev {} src {own}", node.link))?;
        std::thread::sleep(SKEW);
    }
    drop(old);
    std::thread::sleep(AFTER);
    let (there, back) = (there.end()?, back.end()?);
    let sent = there.sent + back.sent;
    Ok(Passed { sent, lost: sent - there.received - back.received })
}

fn begin(from: &Space, to: &Space, other: u8) -> Result<Load> {
    let target = SocketAddr::from((inner(other), TARGET_PORT));
    Load::begin(from.path().as_ref(), to.path().as_ref(), target, RATE, BYTES)
}

const BYTES: usize = 1300;
/// Datagrams a second, one way: 100 Mb/s.
const RATE: u32 = 100_000_000 / 8 / BYTES as u32;
const TARGET_PORT: u16 = 7777;
const BEFORE: Duration = Duration::from_millis(500);
/// Between the two nodes; and as long again until the first generation ends.
const SKEW: Duration = Duration::from_millis(300);
const AFTER: Duration = Duration::from_millis(500);
