//! Who belongs to the cluster's raft, and how that changes.
//!
//! Owns: the guards that keep a majority reachable, and the steps of each change.
//! Does not know: nodes' roles; whoever calls has decided who should be a manager.
//! Invariant: no change is begun that would leave fewer reachable voters than a majority.

use std::collections::{BTreeMap, BTreeSet};

use base::Id;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{
    ChangeMembershipError, ClientWriteError, ForwardReason, InitializeError, RaftError,
};
use openraft::{ChangeMembers, Instant as _, RaftMetrics, ServerState};
use tokio::time::Instant;

use crate::errors::{MembershipError, ProposeError};
use crate::limits::{MEMBERS_MAX, PROMOTE_LAG_MAX, PROMOTE_POLL, TRANSFER_LIMIT};
use crate::machine::Machine;
use crate::raft_types::{Peer, Types};
use crate::space::best_successor;
use crate::store::{RaftStore, leader_of};

/// One member of the raft.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub raft_id: u64,
    pub node: Option<Id>,
    /// `host:port`.
    pub address: String,
    /// Whether it votes; a learner only receives.
    pub voter: bool,
    /// Whether the leader has heard from it lately; known on the leader only.
    pub reachable: Option<bool>,
    /// Up to where its log is the leader's; known on the leader only.
    pub matched: Option<u64>,
}

type Change = ChangeMembers<u64, Peer>;
type WriteError = RaftError<Types, ClientWriteError<Types>>;

impl<M: Machine> RaftStore<M> {
    /// The members as this manager knows them.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let leads = metrics.state == ServerState::Leader;
        let member = |(id, peer): (&u64, &Peer)| Member {
            raft_id: *id,
            node: Id::from_u128(peer.node),
            address: peer.address.clone(),
            voter: voters.contains(id),
            reachable: leads.then(|| self.is_reachable(&metrics, *id)),
            matched: metrics
                .replication
                .as_ref()
                .and_then(|all| all.get(id).copied().flatten().map(|log_id| log_id.index)),
        };
        membership.nodes().map(member).collect()
    }

    /// Whether this manager belongs to a cluster.
    #[must_use]
    pub fn is_initialized(&self) -> bool {
        self.inner.has_history()
    }

    /// Begins a cluster with this manager alone, and waits until it leads.
    ///
    /// # Errors
    /// When it belongs to a cluster already.
    pub async fn bootstrap(&self) -> Result<(), MembershipError> {
        let members = BTreeMap::from([(self.inner.raft_id, self.inner.peer.clone())]);
        match self.inner.raft.initialize(members).await {
            Ok(()) => {}
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {
                return Err(MembershipError::Initialized);
            }
            Err(_) => return Err(self.stopped().into()),
        }
        let mut leadership = self.leadership();
        let limit = self.inner.tuning.proposal_timeout.as_duration();
        let ready = leadership.wait_for(|leadership| leadership.ready);
        match tokio::time::timeout(limit, ready).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(self.stopped().into()),
            Err(_) => Err(ProposeError::Unknown.into()),
        }
    }

    /// Adds a manager that only receives. Adding it again with another address changes that.
    ///
    /// # Errors
    /// When this manager does not lead, or the raft number is another node's.
    pub async fn add_learner(
        &self,
        raft_id: u64,
        node: Id,
        address: &str,
    ) -> Result<(), MembershipError> {
        let peer = Peer { node: node.as_u128(), address: address.to_owned() };
        let members = self.members();
        let change = match members.iter().find(|member| member.raft_id == raft_id) {
            Some(member) if member.node != Some(node) => {
                return Err(MembershipError::Taken(raft_id));
            }
            Some(member) if member.address == address => return Ok(()),
            Some(_) => Change::SetNodes(BTreeMap::from([(raft_id, peer)])),
            None if members.len() >= MEMBERS_MAX => {
                return Err(MembershipError::TooMany(MEMBERS_MAX));
            }
            None => Change::AddNodes(BTreeMap::from([(raft_id, peer)])),
        };
        self.change(change, Retain::Yes).await
    }

    /// Makes a learner a voter once it has caught up; waits for that within the limit of a
    /// proposal.
    ///
    /// # Errors
    /// When it has not caught up in time, or this manager does not lead.
    pub async fn promote(&self, raft_id: u64) -> Result<(), MembershipError> {
        let deadline = Instant::now() + self.inner.tuning.proposal_timeout.as_duration();
        loop {
            let metrics = self.inner.raft.metrics();
            let behind = {
                let metrics = metrics.borrow_watched();
                let membership = metrics.membership_config.membership();
                if membership.get_node(&raft_id).is_none() {
                    return Err(self.not_leader().unwrap_or(MembershipError::NotFound));
                }
                if membership.voter_ids().any(|voter| voter == raft_id) {
                    return Ok(());
                }
                let progress = metrics.replication.as_ref();
                let matched = progress.and_then(|all| all.get(&raft_id).copied().flatten());
                let last = metrics.last_log_index.unwrap_or(0);
                // Nothing received yet is far behind, however short the log is.
                matched.map_or(last + PROMOTE_LAG_MAX + 1, |id| last.saturating_sub(id.index))
            };
            if let Some(error) = self.not_leader() {
                return Err(error);
            }
            if behind <= PROMOTE_LAG_MAX {
                break;
            }
            if Instant::now() > deadline {
                return Err(MembershipError::Behind { behind });
            }
            tokio::time::sleep(PROMOTE_POLL).await;
        }
        self.change(Change::AddVoterIds(BTreeSet::from([raft_id])), Retain::Yes).await
    }

    /// Removes a member. The leader cannot remove itself: it hands leadership over and answers
    /// `NotLeader`; the next leader removes it when asked.
    ///
    /// # Errors
    /// When it is the last manager, unknown, or too few others would be reachable.
    pub async fn remove(&self, raft_id: u64) -> Result<(), MembershipError> {
        if let Some(error) = self.not_leader() {
            return Err(error);
        }
        let is_voter = {
            let metrics = self.inner.raft.metrics();
            let metrics = metrics.borrow_watched();
            let membership = metrics.membership_config.membership();
            if membership.get_node(&raft_id).is_none() {
                return Err(MembershipError::NotFound);
            }
            let voters: BTreeSet<u64> = membership.voter_ids().collect();
            if voters.contains(&raft_id) {
                self.check_quorum_without(&metrics, &voters, raft_id)?;
            }
            voters.contains(&raft_id)
        };
        if raft_id == self.inner.raft_id {
            self.transfer_leader().await?;
            let leader = self.leadership().borrow().leader.clone();
            return Err(MembershipError::NotLeader { leader });
        }
        let ids = BTreeSet::from([raft_id]);
        let change = if is_voter { Change::RemoveVoters(ids) } else { Change::RemoveNodes(ids) };
        self.change(change, Retain::No).await
    }

    /// Hands leadership to the voter that has most of the log. Returns when this manager no
    /// longer leads.
    ///
    /// # Errors
    /// When it does not lead, or nobody took over in time.
    pub async fn transfer_leader(&self) -> Result<(), MembershipError> {
        if let Some(error) = self.not_leader() {
            return Err(error);
        }
        let target = {
            let metrics = self.inner.raft.metrics();
            let metrics = metrics.borrow_watched();
            best_successor(&metrics, self.inner.tuning, &BTreeSet::new()).ok_or_else(|| {
                match metrics.membership_config.voter_ids().count().saturating_sub(1) {
                    0 => MembershipError::LastManager,
                    voters => {
                        let needed = voters / 2 + 1;
                        MembershipError::LossOfQuorum { reachable: 0, voters, needed }
                    }
                }
            })?
        };
        match self.transfer_leader_to(target).await {
            Err(MembershipError::NotLeader { .. }) => Ok(()),
            outcome => outcome,
        }
    }

    /// Hands leadership to one voter. Returns when it leads.
    ///
    /// # Errors
    /// When this manager does not lead, there is no such voter, or it did not take over in time.
    pub async fn transfer_leader_to(&self, raft_id: u64) -> Result<(), MembershipError> {
        if let Some(error) = self.not_leader() {
            return Err(error);
        }
        if raft_id == self.inner.raft_id {
            return Ok(());
        }
        if !self.members().iter().any(|member| member.raft_id == raft_id && member.voter) {
            return Err(MembershipError::NotFound);
        }
        let mut leadership = self.leadership();
        let deadline = Instant::now() + TRANSFER_LIMIT;
        // A target that lacks entries refuses, so it is asked again when it may have them.
        while Instant::now() < deadline {
            let leads = self.not_leader().is_none();
            if leads && self.inner.raft.trigger().transfer_leader(raft_id).await.is_err() {
                return Err(self.stopped().into());
            }
            let leads = leadership.wait_for(|now| {
                now.leader.as_ref().is_some_and(|leader| leader.raft_id == raft_id)
            });
            let pause = self.inner.tuning.timing.election_max();
            match tokio::time::timeout(pause, leads).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(_)) => return Err(self.stopped().into()),
                Err(_) => {}
            }
            // Somebody else may have won; with nobody known yet the election is under way.
            if let Some(MembershipError::NotLeader { leader: Some(leader) }) = self.not_leader() {
                return Err(MembershipError::NotLeader { leader: Some(leader) });
            }
        }
        Err(MembershipError::InProgress)
    }

    fn check_quorum_without(
        &self,
        metrics: &RaftMetrics<Types>,
        voters: &BTreeSet<u64>,
        removed: u64,
    ) -> Result<(), MembershipError> {
        let left: Vec<u64> = voters.iter().copied().filter(|id| *id != removed).collect();
        if left.is_empty() {
            return Err(MembershipError::LastManager);
        }
        let reachable = left.iter().filter(|id| self.is_reachable(metrics, **id)).count();
        let needed = left.len() / 2 + 1;
        if reachable < needed {
            let voters = left.len();
            return Err(MembershipError::LossOfQuorum { reachable, voters, needed });
        }
        Ok(())
    }

    fn is_reachable(&self, metrics: &RaftMetrics<Types>, id: u64) -> bool {
        if id == self.inner.raft_id {
            return true;
        }
        let acked = metrics.heartbeat.as_ref().and_then(|all| all.get(&id).copied().flatten());
        acked.is_some_and(|at| at.elapsed() < self.inner.tuning.timing.election_max() * 3)
    }

    fn not_leader(&self) -> Option<MembershipError> {
        let leadership = self.inner.raft.metrics();
        let leads = leadership.borrow_watched().state == ServerState::Leader;
        let leader = || self.leadership().borrow().leader.clone();
        (!leads).then(|| MembershipError::NotLeader { leader: leader() })
    }

    /// Makes one change; waits while another one, or the leader's first entry, is under way.
    async fn change(&self, change: Change, retain: Retain) -> Result<(), MembershipError> {
        let deadline = Instant::now() + self.inner.tuning.proposal_timeout.as_duration();
        loop {
            let retain = matches!(retain, Retain::Yes);
            let changing = self.inner.raft.change_membership(change.clone(), retain);
            let outcome = tokio::time::timeout_at(deadline, changing).await;
            let error = match outcome {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => self.changed(error),
                Err(_) => Some(ProposeError::Unknown.into()),
            };
            if let Some(error) = error {
                return Err(error);
            }
            if Instant::now() > deadline {
                return Err(MembershipError::InProgress);
            }
            tokio::time::sleep(PROMOTE_POLL).await;
        }
    }

    /// `None` when the change should be tried again.
    fn changed(&self, error: WriteError) -> Option<MembershipError> {
        let error = match error {
            RaftError::Fatal(_) => return Some(self.stopped().into()),
            RaftError::APIError(error) => error,
        };
        match error {
            ClientWriteError::ForwardToLeader(forward) => {
                let retry = forward.reason == ForwardReason::LeaseExpired;
                (!retry).then(|| MembershipError::NotLeader { leader: leader_of(&forward) })
            }
            ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_)) => None,
            ClientWriteError::ChangeMembershipError(ChangeMembershipError::LearnerNotFound(_)) => {
                Some(MembershipError::NotFound)
            }
            ClientWriteError::ChangeMembershipError(ChangeMembershipError::EmptyMembership(_)) => {
                Some(MembershipError::LastManager)
            }
            _ => Some(ProposeError::Unknown.into()),
        }
    }
}

/// What becomes of removed voters.
#[derive(Clone, Copy)]
enum Retain {
    Yes,
    No,
}
