//! What nodes are told of their networks, and the stops that wait for it.
//!
//! Owns: feeding the directory, who is silent, which stops are held back until nobody sends there.
//! Does not know: what a part says. Invariant: a node is told of its networks before the tasks
//! that are attached to them, both from the same state.

use base::Millis;
use dispatch::Overdue;
use ports::Clock;
use ports::store::Store;
use state::{Author, Change, ChangeSet, Plan, Snapshot};
use types::limits::{DEPARTURE_WAIT_MAX, SUSPECTS_ONE_IN, SUSPICION_PERIOD};
use types::{ConditionCode, NetworkId, Node, NodeId, NodeState, Reason};
use wire::v1;

use super::run::{Dispatcher, dispatch_atom};

impl<S: Store, C: Clock> Dispatcher<S, C> {
    /// A node has carried out what it was told.
    pub(super) fn programmed(&mut self, node: NodeId, done: v1::Programmed) {
        let epoch = self.view.cluster().map_or(0, |cluster| cluster.epoch);
        let Some(session) = self.sessions.get_mut(&node) else { return };
        if done.epoch == epoch {
            session.passes(done.index, self.clock.monotonic());
            if self.departures.next_deadline().is_some() {
                self.flush_soon();
            }
            let behind = ConditionCode::DataPathBehind;
            if self.view.node(node).is_some_and(|known| known.status.has(behind)) {
                self.set_status(node, NodeState::Ready, "");
            }
        }
    }

    /// A sign of life: silence begins anew.
    pub(super) fn not_silent(&mut self, node: NodeId) {
        self.silence.heard(node, self.clock.monotonic(), SUSPICION_PERIOD);
        if self.silent.remove(&node) {
            self.judge_silence();
        }
    }

    /// Nodes that have been silent for too long are suspected.
    pub(super) fn expire_silence(&mut self, now: Millis) {
        let silent = self.silence.expire(now);
        if !silent.is_empty() {
            self.silent.extend(silent);
            self.judge_silence();
        }
    }

    /// Silence counts unless too many are silent at once; of a node that is down it always does.
    fn judge_silence(&mut self) {
        let up = |node: &Node| node.status.state != NodeState::Down;
        let all = self.view.nodes().filter(|node| up(node)).count();
        let silent = self.view.nodes().filter(|node| up(node) && self.silent.contains(&node.id));
        let counts = silent.count() * SUSPECTS_ONE_IN <= all;
        let judged: Vec<(NodeId, bool)> = self
            .view
            .nodes()
            .map(|node| (node.id, self.silent.contains(&node.id) && (counts || !up(node))))
            .collect();
        for (node, suspected) in judged {
            self.directory.suspect(&self.told, node, suspected);
        }
        self.flush_soon();
    }

    pub(super) fn forget_silence(&mut self, node: NodeId) {
        self.silence.forget(node);
        self.silent.remove(&node);
    }

    /// Everything about networks is derived anew, and told anew.
    pub(super) fn rebuild_directory(&mut self) {
        self.told = self.view.clone();
        self.directory.rebuild(&self.told);
        self.sessions.values_mut().for_each(super::session::Session::forget_heard);
        self.departures = dispatch::Departures::default();
    }

    /// Lets go the stops that nobody has to be waited for any more.
    pub(super) fn release_departures(&mut self) {
        if self.departures.next_deadline().is_none() {
            return;
        }
        let (directory, sessions, silent) = (&self.directory, &self.sessions, &self.silent);
        let lowest = |network: NetworkId| {
            let live = directory.members(network).filter(|node| !silent.contains(node));
            let sessions = live.filter_map(|node| sessions.get(&node));
            let told = sessions.filter(|session| session.greeted);
            told.map(|session| session.programmed).min().unwrap_or(u64::MAX)
        };
        let mut known = std::collections::BTreeMap::new();
        let passed = |network: NetworkId| *known.entry(network).or_insert_with(|| lowest(network));
        let (gone, overdue) = self.departures.let_go(self.clock.monotonic(), passed);
        for service in gone.iter().filter_map(|task| Some(self.told.task(*task)?.service)) {
            self.laggards.entry(service).or_default();
        }
        overdue.iter().for_each(|one| self.name_laggards(one));
        let nodes = gone.iter().filter_map(|task| self.told.task(*task)?.node);
        self.dirty.extend(nodes);
    }

    fn name_laggards(&mut self, overdue: &Overdue) {
        let service = self.told.task(overdue.task).map(|task| task.service);
        for network in &overdue.networks {
            for node in self.directory.members(*network) {
                let behind = self.sessions.get(&node).filter(|s| s.programmed < overdue.index);
                if behind.is_some() {
                    let (task, name) = (overdue.task, self.told.node(node).map(|n| n.hostname()));
                    tracing::warn!(
                        task.id = %task, node.id = %node, name,
                        "node still sends to a task that is stopped now"
                    );
                    service.map(|id| self.laggards.entry(id).or_default().insert(node));
                }
            }
        }
    }

    /// What stands on services of nodes that were too slow; it goes when the next ones to leave
    /// are let go in time.
    pub(super) fn take_laggards(&mut self, view: &Snapshot) -> Vec<ChangeSet> {
        let (now, decider) = (self.clock.now(), Author::Dispatch.name());
        let mut plan = Plan::default();
        for (id, nodes) in std::mem::take(&mut self.laggards) {
            let Some(service) = view.service(id) else { continue };
            let known = service.reasons.iter().find(|reason| reason.decider == decider);
            let names: Vec<&str> =
                nodes.iter().filter_map(|id| Some(view.node(*id)?.hostname())).collect();
            let reason = (!names.is_empty()).then(|| Reason {
                decider: decider.into(),
                code: "still-sent-to".into(),
                message: format!(
                    "a task was stopped though {} still sent to it after {} s",
                    names.join(", "),
                    DEPARTURE_WAIT_MAX.0 / 1_000
                ),
                count: names.len() as u64,
                since: now,
            });
            if plan.rewrites_reason(now, known, reason.as_ref()) {
                let change = Change::SetReason { service: id, decider: decider.into(), reason };
                plan.atoms.push(dispatch_atom(change));
            }
        }
        plan.atoms
    }

    /// Tells what changed of the networks to whom it concerns.
    pub(super) fn tell_directory(&mut self) {
        let now = self.clock.monotonic();
        for node in self.directory.take_touched() {
            let Some(session) = self.sessions.get_mut(&node) else { continue };
            if !session.update_directory(&self.told, node, &self.directory, now) {
                tracing::warn!(node.id = %node, "node does not take its messages, disconnected");
                self.end_session(node);
            }
        }
    }
}
