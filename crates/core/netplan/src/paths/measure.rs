//! The paths to all peers of one network, measured at once.
//!
//! Owns: how many questions are asked, of which sizes, and what was found.
//! Does not know: sockets and clocks.
//! Invariant: it ends, whatever is answered: every stage asks a fixed number of questions and waits
//! a fixed time.

use std::collections::{BTreeMap, VecDeque};

use base::Millis;
use types::{NodeId, PathCheck};

use super::{Peers, SMALL_BYTES};

/// What was found of one path.
#[derive(Clone, Copy, Debug)]
struct Measured {
    node: NodeId,
    sent: u32,
    answered: u32,
    /// Of the answers to small questions, together.
    round_us: u64,
    /// Of the largest packet that should pass.
    wanted: u32,
    /// Of the largest one that came back; zero: none did.
    passes: u32,
    /// Beyond what passes, this much more does not.
    step: u32,
}

impl Measured {
    /// The largest size that passes is to be found yet.
    fn is_open(&self) -> bool {
        self.answered > 0 && self.passes < self.wanted && self.step > 1
    }
}

/// A measurement under way.
#[derive(Debug)]
pub struct Measure {
    paths: BTreeMap<u32, Measured>,
    queue: VecDeque<(u32, u32)>,
    /// Once everything of a stage is asked: how long answers are waited for.
    until: Option<Millis>,
    stage: u32,
    outstanding: usize,
}

impl Measure {
    #[must_use]
    pub fn new(peers: &Peers) -> Self {
        let path = |peer: &super::Peer| Measured {
            node: peer.node,
            sent: 0,
            answered: 0,
            round_us: 0,
            wanted: peer.mtu,
            passes: 0,
            step: peer.mtu.saturating_sub(SMALL_BYTES),
        };
        let paths: BTreeMap<u32, Measured> =
            peers.peers.iter().map(|(number, peer)| (*number, path(peer))).collect();
        let queue = paths.keys().map(|number| (*number, SMALL_BYTES)).collect();
        Self { paths, queue, until: None, stage: 0, outstanding: 0 }
    }

    /// Numbers and sizes to ask now, a bounded number every [`MEASURE_TICK`]; `None`: it is over.
    pub fn next(&mut self, now: Millis) -> Option<Vec<(u32, u32)>> {
        if let Some(until) = self.until {
            if now < until && self.outstanding > 0 {
                return Some(Vec::new());
            }
            self.until = None;
            if !self.begin_stage() {
                return None;
            }
        }
        let count = self.queue.len().min(PER_TICK);
        let asked: Vec<(u32, u32)> = self.queue.drain(..count).collect();
        for (number, size) in &asked {
            let counts = *size == SMALL_BYTES && self.stage > 0;
            if let Some(path) = self.paths.get_mut(number).filter(|_| counts) {
                path.sent += 1;
            }
        }
        self.outstanding += asked.len();
        if self.queue.is_empty() {
            let period = if self.stage == 0 { WARM_UP_PERIOD } else { ANSWER_PERIOD };
            self.until = Some(Millis(now.0 + period.0));
        }
        Some(asked)
    }

    /// First everything that is counted; then sizes between what passes and what does not, for
    /// paths that are cut. `false`: none are.
    fn begin_stage(&mut self) -> bool {
        self.stage += 1;
        self.outstanding = 0;
        if self.stage == 1 {
            self.queue_rounds();
            return !self.queue.is_empty();
        }
        if self.stage > STAGES_MAX {
            return false;
        }
        for (number, path) in self.paths.iter_mut().filter(|(_, path)| path.is_open()) {
            let low = path.passes.max(SMALL_BYTES);
            let high = low.saturating_add(path.step).min(path.wanted);
            path.step = (high - low).div_ceil(SIZES).max(1);
            let sizes = (1..SIZES).map(|n| low + n * path.step).filter(|size| *size < high);
            // Each twice, since one may be lost for another reason.
            for size in sizes {
                self.queue.extend([(*number, size); 2]);
            }
        }
        !self.queue.is_empty()
    }

    fn queue_rounds(&mut self) {
        let rounds = (QUESTIONS_MAX / self.paths.len().max(1)).clamp(ROUNDS_MIN, ROUNDS_MAX);
        for round in 0..rounds {
            for (number, path) in &self.paths {
                self.queue.push_back((*number, SMALL_BYTES));
                if round < FULL_ROUNDS {
                    self.queue.push_back((*number, path.wanted));
                }
            }
        }
    }

    pub fn answered(&mut self, number: u32, size: u32, round_us: u64) {
        let Some(path) = self.paths.get_mut(&number) else { return };
        self.outstanding = self.outstanding.saturating_sub(1);
        if size == SMALL_BYTES && path.answered < path.sent {
            path.answered += 1;
            path.round_us = path.round_us.saturating_add(round_us);
        }
        path.passes = path.passes.max(size);
    }

    /// What was found by now.
    #[must_use]
    pub fn checks(&self) -> Vec<PathCheck> {
        let check = |path: &Measured| PathCheck {
            node: path.node,
            sent: path.sent,
            answered: path.answered,
            round_trip_us: path.round_us.checked_div(u64::from(path.answered)).unwrap_or_default(),
            wanted: path.wanted,
            passes: path.passes,
            tunnel: None,
        };
        self.paths.values().map(check).collect()
    }
}

/// How often the next questions are asked for, and how many there are at once.
pub const MEASURE_TICK: Millis = Millis(20);
const PER_TICK: usize = 40;

/// Small questions of one measurement, shared by the peers, and bounds of what one gets.
const QUESTIONS_MAX: usize = 8_000;
const ROUNDS_MIN: usize = 4;
const ROUNDS_MAX: usize = 50;
/// Questions of the full size; they would pass, so few are enough.
const FULL_ROUNDS: usize = 4;
/// The first packets between two hosts may be lost until the kernels have found each other: they
/// are not counted, and waited for so long.
const WARM_UP_PERIOD: Millis = Millis(500);
/// After the last question of a stage.
const ANSWER_PERIOD: Millis = Millis(700);
/// A range of sizes is cut in so many in one stage, and all of 64 KiB is known after four.
const SIZES: u32 = 16;
const STAGES_MAX: u32 = 5;
