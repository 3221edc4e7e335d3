//! Paths to the peers: which one is probed when, and what the answers say.
//!
//! Owns: the pace of probes, and who has not answered for how long.
//! Does not know: sockets and clocks; times come in as arguments.
//! Invariant: a node sends a bounded number of probes a second, whatever there is to probe; each
//! peer is watched on one network, the other paths to it are looked at now and then.

mod measure;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use base::Millis;
use types::{BadPath, NetworkId, NodeId, PathTrouble};

pub use self::measure::{MEASURE_TICK, Measure};
use crate::plan::Scope;

/// The peers of one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peers {
    pub network: NetworkId,
    /// Bytes of the largest packet of the network.
    pub mtu: u32,
    pub peers: BTreeMap<u32, Peer>,
}

/// One of them, by its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub node: NodeId,
    /// Of the largest packet to it.
    pub mtu: u32,
}

/// All networks of this node that reach others.
pub type AllPeers = BTreeMap<Scope, Arc<Peers>>;

/// One question to one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    pub scope: Scope,
    pub number: u32,
    /// Of the whole packet.
    pub size: u32,
}

/// Questions of one size without an answer.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    unanswered: u32,
    /// When the first of them was asked.
    since: Millis,
}

impl Tally {
    fn asked(&mut self, now: Millis) {
        if self.unanswered == 0 {
            self.since = now;
        }
        self.unanswered = self.unanswered.saturating_add(1);
    }

    /// A lost packet or two say nothing.
    fn is_silent(&self, now: Millis, period: Millis) -> bool {
        self.unanswered >= UNANSWERED_MIN && now.0.saturating_sub(self.since.0) >= period.0
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Path {
    small: Tally,
    full: Tally,
}

/// A number and the namespace that leads to it.
type Key = (Scope, u32);

/// Questions that may be asked by now, in thousandths.
#[derive(Debug, Default)]
struct Credit(u64);

impl Credit {
    fn take(&mut self, elapsed: Millis, thousandths_per_ms: u64, most: usize) -> usize {
        let earned = elapsed.0.saturating_mul(thousandths_per_ms);
        // What was not used up in a second is lost, so that nothing comes in a burst.
        let cap = (most as u64).saturating_mul(1_000);
        self.0 = self.0.saturating_add(earned).min(cap);
        let whole = self.0 / 1_000;
        self.0 %= 1_000;
        whole as usize
    }
}

/// The watch over all paths of this node.
#[derive(Debug, Default)]
pub struct Watch {
    all: AllPeers,
    paths: BTreeMap<Key, Path>,
    /// The network that each peer is watched on.
    watched: BTreeMap<u32, Scope>,
    /// Paths that did not answer the last time, but for those that are watched.
    doubtful: BTreeSet<Key>,
    now: Millis,
    last_watched: u32,
    last_surveyed: Option<Key>,
    last_doubted: Option<Key>,
    credits: [Credit; 3],
    alert: bool,
}

impl Watch {
    /// Takes the peers as they are by now; what is known of those that stay is kept.
    pub fn set_peers(&mut self, all: &AllPeers) {
        if self.all == *all {
            return;
        }
        self.all.clone_from(all);
        self.watched.clear();
        // The mesh reaches every node while there is one.
        for scope in self.all.keys().rev() {
            for number in self.all[scope].peers.keys() {
                if self.watched.len() < PATHS_MAX {
                    self.watched.insert(*number, *scope);
                }
            }
        }
        if let Some(mesh) = self.all.get(&Scope::Mesh) {
            let known = mesh.peers.keys().filter(|number| self.watched.contains_key(number));
            let known: Vec<u32> = known.copied().collect();
            self.watched.extend(known.into_iter().map(|number| (number, Scope::Mesh)));
        }
        let mut before = std::mem::take(&mut self.paths);
        let watched = self.watched.iter().map(|(number, scope)| (*scope, *number));
        let others = self
            .all
            .iter()
            .flat_map(|(scope, peers)| peers.peers.keys().map(move |number| (*scope, *number)));
        for key in watched.chain(others) {
            if self.paths.len() >= PATHS_MAX {
                break;
            }
            let path = before.remove(&key).unwrap_or_default();
            self.paths.entry(key).or_insert(path);
        }
        let (paths, all) = (&self.paths, &self.watched);
        self.doubtful.retain(|key| paths.contains_key(key) && all.get(&key.1) != Some(&key.0));
    }

    /// More questions, since somebody acts on the answers.
    pub fn set_alert(&mut self, alert: bool) {
        self.alert = alert;
    }

    /// What to ask now; counts as asked. To be called every [`TICK`].
    pub fn next(&mut self, now: Millis) -> Vec<Probe> {
        // A clock that was not looked at for long owes nothing.
        let elapsed = Millis(now.0.saturating_sub(self.now.0).min(1_000));
        self.now = now;
        let mut all = Vec::new();
        self.watch_peers(elapsed, now, &mut all);
        // Before the others, whose answers cannot be here yet.
        self.ask_doubtful(elapsed, now, &mut all);
        self.survey(elapsed, now, &mut all);
        all
    }

    fn watch_peers(&mut self, elapsed: Millis, now: Millis, all: &mut Vec<Probe>) {
        let most = if self.alert { ALERT_PER_SECOND } else { WATCHED_PER_SECOND };
        let count = self.credits[0].take(elapsed, self.watched.len().min(most) as u64, most);
        for _ in 0..count.min(self.watched.len()) {
            let next = next_after(&self.watched, self.last_watched);
            let Some((number, scope)) = next.map(|(number, scope)| (*number, *scope)) else {
                break;
            };
            self.last_watched = number;
            self.ask((scope, number), SMALL_BYTES, now, all);
        }
    }

    fn survey(&mut self, elapsed: Millis, now: Millis, all: &mut Vec<Probe>) {
        let rate = (self.paths.len() as u64 * 1_000).div_ceil(SURVEY_PERIOD.0.max(1));
        let count =
            self.credits[1].take(elapsed, rate.min(OTHERS_PER_SECOND as u64), OTHERS_PER_SECOND);
        for _ in 0..count.min(self.paths.len()) {
            let Some(key) = next_key(&self.paths, self.last_surveyed) else { break };
            self.last_surveyed = Some(key);
            self.ask_full(key, now, all);
        }
    }

    fn ask_doubtful(&mut self, elapsed: Millis, now: Millis, all: &mut Vec<Probe>) {
        let rate = self.doubtful.len().min(OTHERS_PER_SECOND) as u64;
        let count = self.credits[2].take(elapsed, rate, OTHERS_PER_SECOND);
        for _ in 0..count.min(self.doubtful.len()) {
            let after = self.last_doubted;
            let later = after.and_then(|key| {
                self.doubtful.range((Bound::Excluded(key), Bound::Unbounded)).next()
            });
            let Some(key) = later.or_else(|| self.doubtful.first()).copied() else { break };
            self.last_doubted = Some(key);
            if !self.is_watched(key) {
                self.ask(key, SMALL_BYTES, now, all);
            }
            self.ask_full(key, now, all);
        }
    }

    fn is_watched(&self, key: Key) -> bool {
        self.watched.get(&key.1) == Some(&key.0)
    }

    fn ask_full(&mut self, key: Key, now: Millis, all: &mut Vec<Probe>) {
        let peer = self.all.get(&key.0).and_then(|peers| peers.peers.get(&key.1));
        let Some(size) = peer.map(|peer| peer.mtu) else { return };
        // Asked again soon, unless the answer comes.
        self.doubtful.insert(key);
        self.ask(key, size, now, all);
    }

    fn ask(&mut self, key: Key, size: u32, now: Millis, all: &mut Vec<Probe>) {
        let Some(path) = self.paths.get_mut(&key) else { return };
        match size {
            SMALL_BYTES => path.small.asked(now),
            _ => path.full.asked(now),
        }
        all.push(Probe { scope: key.0, number: key.1, size });
    }

    /// A peer has answered; larger packets pass where smaller ones are not asked for.
    pub fn answered(&mut self, scope: Scope, number: u32, size: u32) {
        let key = (scope, number);
        let is_watched = self.is_watched(key);
        let Some(path) = self.paths.get_mut(&key) else { return };
        path.small = Tally::default();
        if size > SMALL_BYTES {
            path.full = Tally::default();
        }
        if path.full.unanswered == 0 && (is_watched || path.small.unanswered == 0) {
            self.doubtful.remove(&key);
        }
    }

    /// Numbers of peers that nothing comes back from.
    #[must_use]
    pub fn silent(&self, now: Millis, period: Millis) -> BTreeSet<u32> {
        let silent = |(number, scope): &(&u32, &Scope)| {
            let path = self.paths.get(&(**scope, **number));
            path.is_some_and(|path| path.small.is_silent(now, period))
        };
        self.watched.iter().filter(silent).map(|(number, _)| *number).collect()
    }

    /// How many peers are watched.
    #[must_use]
    pub fn watched(&self) -> usize {
        self.watched.len()
    }

    /// What is wrong, the same as long as it is; the first of very many. Of a peer that is silent
    /// where it is watched the other paths say nothing more.
    #[must_use]
    pub fn bad_paths(&self, now: Millis) -> Vec<BadPath> {
        let silent = self.silent(now, BAD_PERIOD);
        let watched =
            silent.iter().filter_map(|number| Some((*self.watched.get(number)?, *number)));
        let others = self.doubtful.iter().copied().filter(|(_, number)| !silent.contains(number));
        let bad = watched.chain(others).filter_map(|key| {
            let path = self.paths.get(&key)?;
            let peers = self.all.get(&key.0)?;
            let peer = peers.peers.get(&key.1)?;
            let trouble = if path.small.is_silent(now, BAD_PERIOD) {
                PathTrouble::Silent
            } else if path.full.is_silent(now, BAD_PERIOD) {
                PathTrouble::TooLarge(peer.mtu)
            } else {
                return None;
            };
            Some(BadPath { network: peers.network, node: peer.node, trouble })
        });
        let mut bad: Vec<BadPath> = bad.take(BAD_PATHS_MAX).collect();
        bad.sort_unstable();
        bad
    }
}

fn next_after<V>(all: &BTreeMap<u32, V>, last: u32) -> Option<(&u32, &V)> {
    all.range((Bound::Excluded(last), Bound::Unbounded)).next().or_else(|| all.iter().next())
}

fn next_key(all: &BTreeMap<Key, Path>, last: Option<Key>) -> Option<Key> {
    let later = last.and_then(|key| all.range((Bound::Excluded(key), Bound::Unbounded)).next());
    later.or_else(|| all.iter().next()).map(|(key, _)| *key)
}

/// How often the next questions are asked for.
pub const TICK: Millis = Millis(100);

/// Header, and what an answer is recognised by.
pub const SMALL_BYTES: u32 = 72;

/// Questions a second for liveness: each peer once, unless there are more. One costs this node
/// about ten microseconds.
const WATCHED_PER_SECOND: usize = 200;
/// The same while new connections depend on it.
const ALERT_PER_SECOND: usize = 500;
/// Questions a second about sizes and the other networks.
const OTHERS_PER_SECOND: usize = 50;
/// Each path is looked at once in so long, unless there are too many.
const SURVEY_PERIOD: Millis = Millis::from_secs(60);
/// Paths that are kept in mind; a node with more does not look at all of them.
const PATHS_MAX: usize = 50_000;
/// Questions in a row without an answer that mean something.
const UNANSWERED_MIN: u32 = 3;
/// For so long something must be wrong before it is said.
const BAD_PERIOD: Millis = Millis::from_secs(5);
/// Of more than so many others say enough.
const BAD_PATHS_MAX: usize = types::limits::BAD_PATHS_MAX;

#[cfg(test)]
mod tests;
