//! A model of the managers' Raft group, behind the store's port.
//!
//! Owns: one log, who leads, how far each manager has applied it.
//! Does not know: what is in the log. Invariant: an entry is in the log only when a majority that
//! could hear the leader was there, and managers apply it in order.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base::{IdSource, Millis};
use ports::store::{Applied, Leadership, ProposeError, Store};
use ports::{ChangeLog, Cursor};
use state::{Member, Proposal, Snapshot};
use testkit::fake::Gate;
use tokio::sync::watch;
use tokio::time::{Duration, sleep};

/// How long a group is without a leader after one was lost.
const ELECTION: Millis = Millis(700);
/// How long a manager that goes on may believe that nothing has changed.
const DEAF_MAX: Millis = Millis(300);
/// How often followers apply and leadership is looked at.
const TICK: Duration = Duration::from_millis(10);

/// One manager of the group.
struct Seat {
    alive: bool,
    gate: Gate,
    /// Has stood still, or did a moment ago: it has not heard who leads since then.
    deaf_for: Millis,
    applied: usize,
    view: Snapshot,
    changes: ChangeLog,
    leadership: watch::Sender<Leadership>,
}

struct Inner {
    seats: Vec<Seat>,
    /// Encoded proposals, as the real log holds them.
    log: Vec<Vec<u8>>,
    leader: Option<usize>,
    term: u64,
    lost_for: Millis,
    /// Pairs of managers that do not hear each other.
    cut: BTreeSet<(usize, usize)>,
    random: IdSource,
    /// Running digest of everything that was applied.
    digest: u64,
}

/// The whole group.
#[derive(Clone)]
pub(crate) struct Group {
    inner: Arc<Mutex<Inner>>,
}

/// One manager's store.
#[derive(Clone)]
pub(crate) struct SimStore {
    group: Group,
    seat: usize,
}

impl Group {
    pub(crate) fn new(gates: &[Gate], random: IdSource) -> Self {
        let seat = |gate: &Gate| Seat {
            alive: true,
            gate: gate.clone(),
            deaf_for: Millis::ZERO,
            applied: 0,
            view: Snapshot::default(),
            changes: ChangeLog::default(),
            leadership: watch::Sender::new(Leadership::default()),
        };
        let inner = Inner {
            seats: gates.iter().map(seat).collect(),
            log: Vec::new(),
            leader: None,
            term: 0,
            lost_for: ELECTION,
            cut: BTreeSet::new(),
            random,
            digest: 0xcbf2_9ce4_8422_2325,
        };
        let group = Self { inner: Arc::new(Mutex::new(inner)) };
        tokio::spawn(group.clone().tick());
        group
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn store(&self, seat: usize) -> SimStore {
        SimStore { group: self.clone(), seat }
    }

    pub(crate) fn leader(&self) -> Option<usize> {
        self.lock().leader
    }

    /// The state after the whole log: what is acknowledged.
    pub(crate) fn committed(&self) -> Snapshot {
        let mut inner = self.lock();
        let seat = inner.leader.unwrap_or(0);
        inner.catch_up(seat);
        inner.seats[seat].view.clone()
    }

    pub(crate) fn digest(&self) -> u64 {
        self.lock().digest
    }

    pub(crate) fn set_alive(&self, seat: usize, alive: bool) {
        let mut inner = self.lock();
        inner.seats[seat].alive = alive;
        if alive {
            // A restarted daemon reads its log anew; watchers of the old one are gone.
            inner.seats[seat].changes = ChangeLog::default();
            inner.seats[seat].deaf_for = Millis::ZERO;
            inner.tell();
        }
        inner.lead();
    }

    pub(crate) fn set_cut(&self, a: usize, b: usize, cut: bool) {
        let mut inner = self.lock();
        let pair = (a.min(b), a.max(b));
        if cut {
            inner.cut.insert(pair);
        } else {
            inner.cut.remove(&pair);
        }
        inner.lead();
    }

    /// The manager's daemon stops where it stands, or goes on. For a while it then believes what
    /// it believed before.
    pub(crate) fn set_stopped(&self, seat: usize, stopped: bool) {
        let mut inner = self.lock();
        inner.seats[seat].gate.set_stopped(stopped);
        inner.seats[seat].deaf_for = match stopped {
            true => Millis::MAX,
            false => Millis(inner.random.below(DEAF_MAX.0)),
        };
        inner.lead();
    }

    async fn tick(self) {
        loop {
            sleep(TICK).await;
            let mut inner = self.lock();
            inner.listen();
            inner.lead();
            inner.elect();
            if let Some(leader) = inner.leader {
                for seat in 0..inner.seats.len() {
                    if inner.is_up(seat) && inner.hears(leader, seat) {
                        inner.catch_up(seat);
                    }
                }
            }
        }
    }
}

impl Inner {
    fn hears(&self, a: usize, b: usize) -> bool {
        a == b || !self.cut.contains(&(a.min(b), a.max(b)))
    }

    fn is_up(&self, seat: usize) -> bool {
        self.seats[seat].alive && !self.seats[seat].gate.is_stopped()
    }

    fn has_majority(&self, seat: usize) -> bool {
        let heard = (0..self.seats.len())
            .filter(|other| self.is_up(*other) && self.hears(seat, *other))
            .count();
        self.is_up(seat) && heard > self.seats.len() / 2
    }

    /// Those who have gone on hear the others again, after a moment.
    fn listen(&mut self) {
        let mut news = false;
        for seat in &mut self.seats {
            let deaf = seat.deaf_for > Millis::ZERO;
            if deaf && !seat.gate.is_stopped() {
                seat.deaf_for = Millis(seat.deaf_for.0.saturating_sub(TICK.as_millis() as u64));
                news |= seat.deaf_for == Millis::ZERO;
            }
        }
        if news {
            self.tell();
        }
    }

    /// A leader that died or lost its majority leads no more.
    fn lead(&mut self) {
        if self.leader.is_some_and(|leader| !self.has_majority(leader)) {
            self.leader = None;
            self.lost_for = Millis::ZERO;
            self.tell();
        }
    }

    fn elect(&mut self) {
        if self.leader.is_some() {
            return;
        }
        self.lost_for = Millis(self.lost_for.0 + TICK.as_millis() as u64);
        if self.lost_for < ELECTION {
            return;
        }
        let able: Vec<usize> = (0..self.seats.len()).filter(|s| self.has_majority(*s)).collect();
        if able.is_empty() {
            return;
        }
        let chosen = able[self.random.below(able.len() as u64) as usize];
        self.catch_up(chosen);
        self.leader = Some(chosen);
        self.term += 1;
        self.tell();
    }

    fn tell(&self) {
        let hearing = |(_, seat): &(usize, &Seat)| seat.deaf_for == Millis::ZERO;
        for (number, seat) in self.seats.iter().enumerate().filter(hearing) {
            let known = self.leader.filter(|leader| seat.alive && self.hears(*leader, number));
            seat.leadership.send_replace(Leadership {
                term: self.term,
                is_leader: known == Some(number),
                leader: known.map(|leader| (leader as u64 + 1, address(leader))),
            });
        }
    }

    fn catch_up(&mut self, seat: usize) {
        while self.seats[seat].applied < self.log.len() {
            self.apply_next(seat);
        }
    }

    fn apply_next(&mut self, number: usize) -> Applied {
        let seat = &mut self.seats[number];
        let bytes = &self.log[seat.applied];
        seat.applied += 1;
        let index = seat.applied as u64;
        let proposal = wire::decode_proposal(bytes).expect("what was encoded can be decoded");
        let mut events = Vec::new();
        let results = seat.view.apply_proposal(index, &proposal, &mut events);
        seat.changes.publish(events);
        Applied { index, results }
    }

    /// Appends when a majority can hear the leader.
    fn append(&mut self, seat: usize, proposal: &Proposal) -> Result<Applied, ProposeError> {
        if self.leader != Some(seat) {
            let leader = self.leader.map(address);
            return Err(ProposeError::NotLeader { leader });
        }
        if !self.has_majority(seat) {
            return Err(ProposeError::NoQuorum);
        }
        let bytes = wire::encode_proposal(proposal);
        for byte in &bytes {
            self.digest = (self.digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.catch_up(seat);
        self.log.push(bytes);
        Ok(self.apply_next(seat))
    }
}

/// The address of a manager in the simulated world.
pub(crate) fn address(seat: usize) -> String {
    format!("manager-{seat}:2377")
}

impl Store for SimStore {
    fn snapshot(&self) -> Snapshot {
        self.group.lock().seats[self.seat].view.clone()
    }

    async fn propose(&self, proposal: Proposal) -> Result<Applied, ProposeError> {
        let (wait, unlucky, gate) = {
            let mut inner = self.group.lock();
            let gate = inner.seats[self.seat].gate.clone();
            (2 + inner.random.below(8), inner.random.below(200) == 0, gate)
        };
        sleep(Duration::from_millis(wait)).await;
        let applied = self.group.lock().append(self.seat, &proposal);
        // Whoever stood still when the answer came hears it late.
        gate.pass().await;
        // Now and then the answer is lost: the entry is in the log all the same.
        if unlucky && applied.is_ok() { Err(ProposeError::TimedOut) } else { applied }
    }

    async fn read_barrier(&self) -> Result<(), ProposeError> {
        let inner = self.group.lock();
        match inner.leader == Some(self.seat) && inner.has_majority(self.seat) {
            true => Ok(()),
            false => Err(ProposeError::NoQuorum),
        }
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.group.lock().seats[self.seat].leadership.subscribe()
    }

    fn watch(&self) -> Cursor {
        self.group.lock().seats[self.seat].changes.watch()
    }

    fn raft_id(&self) -> u64 {
        self.seat as u64 + 1
    }

    fn members(&self) -> Vec<Member> {
        let inner = self.group.lock();
        let member = |seat: usize| Member {
            raft_id: seat as u64 + 1,
            voter: true,
            caught_up: true,
            reachable: inner.hears(self.seat, seat),
        };
        (0..inner.seats.len()).map(member).collect()
    }

    async fn add_learner(&self, _: u64, _: types::NodeId, _: String) -> Result<(), ProposeError> {
        Err(ProposeError::Stopped { reason: "members are fixed in this model".into() })
    }

    async fn promote(&self, _: u64) -> Result<(), ProposeError> {
        Err(ProposeError::Stopped { reason: "members are fixed in this model".into() })
    }

    async fn remove(&self, _: u64) -> Result<(), ProposeError> {
        Err(ProposeError::Stopped { reason: "members are fixed in this model".into() })
    }

    async fn transfer_leadership(&self, _: u64) -> Result<(), ProposeError> {
        Err(ProposeError::Stopped { reason: "members are fixed in this model".into() })
    }
}
