//! The replicated state behind its port.
//!
//! Owns: the state as a machine of the log, and the port's calls as calls of the store.
//! Does not know: what is decided on the state.
//! Invariant: events are published after the view shows what they tell of.

use std::io::{self, Read};

use ports::store::{Applied, Leadership, ProposeError, Store};
use ports::{ChangeLog, Cursor};
use state::{Event, Member, Proposal, Snapshot};
use tokio::sync::watch;

use crate::{
    ApplyHalt, Machine, MembershipError, OnApply, OpenError, Options, RaftStore, ReadError,
};

/// The state as a machine of the log.
#[derive(Default)]
pub struct StateMachine {
    state: Snapshot,
}

/// What applying one entry came to.
#[derive(Clone)]
pub struct Reply {
    applied: Applied,
    events: std::sync::Arc<[Event]>,
}

impl Machine for StateMachine {
    type Reply = Reply;
    type View = Snapshot;

    fn apply(&mut self, index: u64, payload: &[u8]) -> Result<Reply, ApplyHalt> {
        let halt = |error: wire::StoredError| ApplyHalt { reason: base::chain(&error).to_string() };
        let proposal = wire::decode_proposal(payload).map_err(halt)?;
        let mut events = Vec::new();
        let results = self.state.apply_proposal(index, &proposal, &mut events);
        Ok(Reply { applied: Applied { index, results }, events: events.into() })
    }

    fn view(&self) -> Snapshot {
        self.state.clone()
    }

    fn encode_snapshot(
        view: &Snapshot,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        wire::encode_snapshot(view, sink)
    }

    fn restore(source: &mut dyn Read) -> io::Result<Self> {
        let damaged = |error: wire::StoredError| io::Error::new(io::ErrorKind::InvalidData, error);
        Ok(Self { state: wire::decode_snapshot(source).map_err(damaged)? })
    }
}

/// The replicated state of one manager; clones share it.
#[derive(Clone)]
pub struct Replicated {
    store: RaftStore<StateMachine>,
    changes: ChangeLog,
    leadership: watch::Receiver<Leadership>,
}

impl Replicated {
    /// Opens the store; `options` gets the machine and the hook from here.
    ///
    /// # Errors
    /// As [`RaftStore::open`].
    pub async fn open(
        options: impl FnOnce(StateMachine, OnApply<Reply>) -> Options<StateMachine>,
    ) -> Result<Self, OpenError> {
        let changes = ChangeLog::default();
        let log = changes.clone();
        let on_apply: OnApply<Reply> = Box::new(move |applied| match applied {
            crate::Applied::Entry { reply, .. } => log.publish(reply.events.to_vec()),
            crate::Applied::Restored { .. } => log.reset(),
        });
        let store = RaftStore::open(options(StateMachine::default(), on_apply)).await?;
        let (tx, leadership) = watch::channel(Leadership::default());
        tokio::spawn(follow(store.leadership(), tx));
        Ok(Self { store, changes, leadership })
    }

    /// The store itself: bootstrap, members, figures, shutdown.
    #[must_use]
    pub fn raft(&self) -> &RaftStore<StateMachine> {
        &self.store
    }
}

/// Carries leadership into the port's form, until the store or every reader is gone.
async fn follow(mut from: watch::Receiver<crate::Leadership>, to: watch::Sender<Leadership>) {
    loop {
        let now = from.borrow_and_update().clone();
        to.send_replace(Leadership {
            term: now.term,
            is_leader: now.is_me && now.ready,
            leader: now.leader.map(|leader| (leader.raft_id, leader.address)),
        });
        tokio::select! {
            biased;
            () = to.closed() => return,
            changed = from.changed() => if changed.is_err() { return },
        }
    }
}

impl Store for Replicated {
    fn snapshot(&self) -> Snapshot {
        self.store.view()
    }

    async fn propose(&self, proposal: Proposal) -> Result<Applied, ProposeError> {
        let bytes = wire::encode_proposal(&proposal);
        tokio::select! {
            biased;
            reply = self.store.propose(bytes) => {
                reply.map(|reply| reply.applied).map_err(propose_error)
            }
            () = lost_for(self.leadership.clone(), LOST_WAIT) => Err(ProposeError::TimedOut),
        }
    }

    async fn read_barrier(&self) -> Result<(), ProposeError> {
        self.store.read_barrier().await.map_err(|error| match error {
            ReadError::NotLeader { leader } => {
                ProposeError::NotLeader { leader: leader.map(|leader| leader.address) }
            }
            ReadError::NoQuorum => ProposeError::NoQuorum,
            ReadError::Halted(reason) => ProposeError::Stopped { reason: reason.to_string() },
        })
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    fn watch(&self) -> Cursor {
        self.changes.watch()
    }

    fn raft_id(&self) -> u64 {
        self.store.raft_id()
    }

    fn members(&self) -> Vec<Member> {
        let last = self.store.metrics().last_index;
        let one = |member: crate::Member| Member {
            raft_id: member.raft_id,
            voter: member.voter,
            caught_up: member.raft_id == self.store.raft_id()
                || member.matched.is_some_and(|matched| matched + LAG_MAX >= last),
            reachable: member.reachable.unwrap_or(false),
        };
        self.store.members().into_iter().map(one).collect()
    }

    async fn add_learner(
        &self,
        raft_id: u64,
        node: types::NodeId,
        address: String,
    ) -> Result<(), ProposeError> {
        self.store.add_learner(raft_id, node.0, &address).await.map_err(membership_error)
    }

    async fn promote(&self, raft_id: u64) -> Result<(), ProposeError> {
        self.store.promote(raft_id).await.map_err(membership_error)
    }

    async fn remove(&self, raft_id: u64) -> Result<(), ProposeError> {
        self.store.remove(raft_id).await.map_err(membership_error)
    }

    async fn transfer_leadership(&self, to: u64) -> Result<(), ProposeError> {
        self.store.transfer_leader_to(to).await.map_err(membership_error)
    }
}

/// Ends once this manager has not led for `wait` without a break.
async fn lost_for(mut leadership: watch::Receiver<Leadership>, wait: std::time::Duration) {
    loop {
        if leadership.wait_for(|now| !now.is_leader).await.is_err() {
            return;
        }
        let regained = leadership.wait_for(|now| now.is_leader);
        if tokio::time::timeout(wait, regained).await.is_err() {
            return;
        }
    }
}

/// How long a proposal under way outlives the leadership that it was made in.
const LOST_WAIT: std::time::Duration = std::time::Duration::from_secs(3);
/// Entries that a learner may lack when it is made a voter.
const LAG_MAX: u64 = 200;

fn propose_error(error: crate::ProposeError) -> ProposeError {
    match error {
        crate::ProposeError::NotLeader { leader } => {
            ProposeError::NotLeader { leader: leader.map(|leader| leader.address) }
        }
        crate::ProposeError::NoQuorum => ProposeError::NoQuorum,
        crate::ProposeError::TooLarge { bytes, max } => ProposeError::TooLarge { bytes, max },
        crate::ProposeError::NoSpace { path, missing_bytes } => {
            ProposeError::NoSpace { path, missing_bytes }
        }
        crate::ProposeError::Unknown => ProposeError::TimedOut,
        crate::ProposeError::Halted(reason) => ProposeError::Stopped { reason: reason.to_string() },
    }
}

fn membership_error(error: MembershipError) -> ProposeError {
    match error {
        MembershipError::NotLeader { leader } => {
            ProposeError::NotLeader { leader: leader.map(|leader| leader.address) }
        }
        error => ProposeError::Stopped { reason: base::chain(&error).to_string() },
    }
}
