//! The dispatcher's loop.
//!
//! Owns: the sessions and everything that waits to be stored because of them.
//! Does not know: what should run where. Invariant: the loop never waits for a node.

use std::collections::{BTreeMap, BTreeSet};

use base::Millis;
use dispatch::{Clocks, Departures, Directory, Liveness};
use ports::store::{Applied, ProposeError, Store};
use ports::{Batch, Clock, Cursor, Link};
use state::{Author, Change, ChangeSet, Event, Proposal, Snapshot};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use types::limits::SUSPICION_PERIOD;
use types::{
    NodeDescription, NodeId, NodeRole, NodeState, NodeStatus, ServiceId, TaskId, TaskStatus,
};
use wire::v1::manager_message::Message as Out;
use wire::v1::node_message::Message as In;
use wire::v1::{self, ManagerMessage, NodeMessage};

use super::paths::Questions;
use super::session::{Inventory, Session};
use super::{BadPaths, DispatcherHandle, Message, Reached};
use crate::options::{REPORTS_PER_PROPOSAL_MAX, SUBSCRIPTIONS_MAX, Timing};

/// Sessions with the nodes, and the loop that serves them.
pub struct Dispatcher<S, C> {
    store: S,
    pub(super) clock: C,
    timing: Timing,
    inbox: mpsc::Receiver<Message>,
    handle: DispatcherHandle,
    changes: Cursor,
    leading: bool,
    /// The state after the last batch of changes.
    pub(super) view: Snapshot,
    /// Nodes whose clocks count, of `view`.
    pub(super) managers: BTreeSet<NodeId>,
    pub(super) sessions: BTreeMap<NodeId, Session>,
    next_session: u64,
    readers: JoinSet<()>,
    liveness: Liveness,
    pub(super) clocks: Clocks,
    /// Nodes to which something may have to be told.
    pub(super) dirty: BTreeSet<NodeId>,
    pub(super) reports: BTreeMap<TaskId, TaskStatus>,
    pub(super) statuses: BTreeMap<NodeId, NodeStatus>,
    descriptions: BTreeMap<NodeId, NodeDescription>,
    /// Services of whose tasks some have left lately, and who did not let go of them in time.
    pub(super) laggards: BTreeMap<ServiceId, BTreeSet<NodeId>>,
    subscriptions: BTreeMap<base::Id, BTreeSet<NodeId>>,
    /// The state that nodes are told of: the one that the directory was derived from.
    pub(super) told: Snapshot,
    pub(super) directory: Directory,
    pub(super) departures: Departures,
    /// Deadlines of silence, and the nodes that have passed theirs.
    pub(super) silence: Liveness,
    pub(super) silent: BTreeSet<NodeId>,
    pub(super) questions: Questions,
    /// For everybody to read: of nodes with a session, as last judged.
    pub(super) bad_paths: watch::Sender<BadPaths>,
    /// When what was gathered is sent and stored.
    flush_at: Option<Millis>,
}

enum Cause {
    Shutdown,
    Leadership,
    Message(Message),
    Changes(Batch),
    Timer,
}

impl<S: Store, C: Clock> Dispatcher<S, C> {
    pub fn new(store: S, clock: C, timing: Timing) -> (Self, DispatcherHandle) {
        let (handle, inbox, bad_paths) = DispatcherHandle::new();
        let changes = store.watch();
        let dispatcher = Self {
            store,
            clock,
            timing,
            inbox,
            handle: handle.clone(),
            changes,
            leading: false,
            view: Snapshot::default(),
            managers: BTreeSet::new(),
            sessions: BTreeMap::new(),
            next_session: 1,
            readers: JoinSet::new(),
            liveness: Liveness::default(),
            clocks: Clocks::default(),
            dirty: BTreeSet::new(),
            reports: BTreeMap::new(),
            statuses: BTreeMap::new(),
            descriptions: BTreeMap::new(),
            laggards: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            told: Snapshot::default(),
            directory: Directory::default(),
            departures: Departures::default(),
            silence: Liveness::default(),
            silent: BTreeSet::new(),
            questions: Questions::new(),
            bad_paths,
            flush_at: None,
        };
        (dispatcher, handle)
    }

    /// Serves until shutdown.
    pub async fn run(mut self, mut shutdown: watch::Receiver<bool>) {
        let mut leadership = self.store.leadership();
        loop {
            let now_leads = leadership.borrow_and_update().clone();
            self.set_leading(now_leads.is_leader, now_leads.leader.map(|(_, address)| address));
            let at = self.next_timer();
            let (clock, inbox, changes) = (self.clock.clone(), &mut self.inbox, &mut self.changes);
            let cause = tokio::select! {
                biased;
                _ = shutdown.wait_for(|stop| *stop) => Cause::Shutdown,
                _ = leadership.changed() => Cause::Leadership,
                batch = changes.next() => Cause::Changes(batch),
                () = clock.sleep_until(at) => Cause::Timer,
                Some(message) = inbox.recv() => Cause::Message(message),
            };
            match cause {
                Cause::Shutdown | Cause::Changes(Batch::Closed) => return,
                Cause::Leadership => {}
                Cause::Message(message) => self.receive(message),
                Cause::Changes(batch) => self.mark(&batch),
                Cause::Timer => self.on_timer().await,
            }
            while self.readers.try_join_next().is_some() {}
        }
    }

    fn next_timer(&self) -> Millis {
        let deadline = self.liveness.next_deadline();
        let silence = self.silence.next_deadline();
        let departure = self.departures.next_deadline();
        [self.flush_at, deadline, silence, departure]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(Millis::MAX)
    }

    fn set_leading(&mut self, leads: bool, leader: Option<String>) {
        if leads == self.leading {
            return;
        }
        self.leading = leads;
        self.liveness = Liveness::default();
        self.clocks = Clocks::default();
        self.look_afresh();
        self.reports.clear();
        self.statuses.clear();
        self.descriptions.clear();
        self.dirty.clear();
        self.subscriptions.clear();
        self.silence = Liveness::default();
        self.silent.clear();
        self.questions.clear();
        self.bad_paths.send_replace(BadPaths::new());
        if leads {
            self.rebuild_directory();
            let now = self.clock.monotonic();
            let grace = grace(&self.view);
            for node in self.view.nodes() {
                self.silence.watch(node.id, now, SUSPICION_PERIOD);
            }
            for node in self.view.nodes().filter(|node| node.status.state != NodeState::Down) {
                self.liveness.watch(node.id, now, grace);
            }
        }
        for session in std::mem::take(&mut self.sessions).into_values() {
            let leader = leader.clone().unwrap_or_default();
            let _ = session.send(Out::Redirect(v1::Redirect { leader }));
        }
    }

    /// Looks at everything: the changes before are not known one by one.
    fn look_afresh(&mut self) {
        self.view = self.store.snapshot();
        let manages = |node: &&std::sync::Arc<types::Node>| node.role == NodeRole::Manager;
        self.managers = self.view.nodes().filter(manages).map(|node| node.id).collect();
    }

    /// Ends a session; what its node said of itself is no longer known.
    pub(super) fn end_session(&mut self, node: NodeId) {
        self.sessions.remove(&node);
        self.drop_questions(node);
        self.bad_paths.send_if_modified(|known| known.remove(&node).is_some());
        self.clocks.forget(node);
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::Attach { node, address, link } => self.attach(node, address, link),
            Message::FromNode { node, session, message } => {
                if self.sessions.get(&node).is_some_and(|known| known.number == session) {
                    self.hear(node, *message);
                }
            }
            Message::Detached { node, session } => {
                if self.sessions.get(&node).is_some_and(|known| known.number == session) {
                    self.end_session(node);
                }
            }
            Message::Subscribe { wanted, tasks, reached } => {
                let _ = reached.send(self.subscribe(&wanted, &tasks));
            }
            Message::Unsubscribe { id } => self.unsubscribe(id),
            Message::Check(question) => self.ask(question),
        }
    }

    fn attach(&mut self, node: NodeId, address: String, link: Link<ManagerMessage, NodeMessage>) {
        let view = self.store.snapshot();
        if !self.leading {
            let leader = self.store.leadership().borrow().leader.clone();
            let leader = leader.map(|(_, address)| address).unwrap_or_default();
            let out = super::messages::message(Out::Redirect(v1::Redirect { leader }));
            let _ = link.tx.try_send(out);
            return;
        }
        if view.node(node).is_none() {
            return; // removed meanwhile: the closed link says it
        }
        self.view = view;
        let number = self.next_session;
        self.next_session += 1;
        self.clocks.forget(node);
        self.drop_questions(node);
        self.sessions.insert(node, Session::new(number, address, link.tx));
        self.readers.spawn(read_session(node, number, link.rx, self.handle.clone()));
    }

    fn hear(&mut self, node: NodeId, message: NodeMessage) {
        self.liveness.heard(node, self.clock.monotonic(), grace(&self.view));
        self.not_silent(node);
        match message.message {
            Some(In::Hello(hello)) => self.greet(node, hello),
            Some(In::Heartbeat(beat)) => self.take_heartbeat(node, beat),
            Some(In::Report(report)) => self.take_report(node, report),
            Some(In::Description(description)) => self.describe(node, description.into()),
            Some(In::Programmed(done)) => self.programmed(node, done),
            Some(In::Checked(checked)) => self.take_check(node, checked),
            None => tracing::debug!(node.id = %node, "message of an unknown kind passed over"),
        }
    }

    fn greet(&mut self, node: NodeId, hello: v1::Hello) {
        tracing::info!(node.id = %node, "node connected");
        let heartbeat_ms = self.view.cluster().map_or(0, |c| c.spec.dispatcher_heartbeat.0);
        let protocol = wire::PROTOCOL;
        self.send(node, Out::Welcome(v1::Welcome { protocol, heartbeat_ms }));
        if let Some(description) = hello.description {
            self.describe(node, description.into());
        }
        self.set_status(node, NodeState::Ready, "");
        if let Some(session) = self.sessions.get_mut(&node) {
            session.greeted = true;
        }
        self.dirty.insert(node);
        self.flush_soon();
    }

    fn describe(&mut self, node: NodeId, mut description: NodeDescription) {
        description.images.truncate(types::limits::REPORTED_IMAGES_MAX);
        description.images.sort();
        let said = description.data_path.encryption.iter().flat_map(|said| said.keys.values());
        let owner = |key| self.view.node_of_network_key(key).filter(|owner| *owner != node);
        if let Some(other) = said.filter_map(owner).next() {
            tracing::warn!(node.id = %node, %other, "node says another node's key: not taken");
        }
        if self.view.node(node).is_some_and(|known| known.description != description) {
            self.descriptions.insert(node, description);
            self.flush_soon();
        }
    }

    pub(super) fn send(&mut self, node: NodeId, out: Out) {
        let kept = self.sessions.get(&node).is_none_or(|session| session.send(out));
        if !kept {
            tracing::warn!(node.id = %node, "node does not take its messages, disconnected");
            self.end_session(node);
        }
    }

    pub(super) fn flush_soon(&mut self) {
        let soon = Millis(self.clock.monotonic().0 + self.timing.coalesce_period.0);
        self.flush_at = Some(self.flush_at.map_or(soon, |at| at.min(soon)));
    }

    /// Marks the nodes that an event concerns: by index, whatever their number.
    fn mark(&mut self, batch: &Batch) {
        if !self.leading {
            return;
        }
        self.view = self.store.snapshot();
        match batch {
            Batch::Events(batches) => {
                self.told = self.view.clone();
                for event in batches.iter().flat_map(|events| events.iter()) {
                    self.directory.mark(&self.told, event);
                    self.mark_event(event);
                }
            }
            Batch::Resync | Batch::Closed => {
                self.look_afresh();
                self.rebuild_directory();
                self.dirty.extend(self.sessions.keys());
            }
        }
        if !self.dirty.is_empty() {
            self.flush_soon();
        }
    }

    fn mark_event(&mut self, event: &Event) {
        match event {
            Event::Task { task, node, .. } => {
                self.dirty.extend(*node);
                if self.told.task(*task).is_none_or(|task| task.status.state.is_terminal()) {
                    self.departures.forget(*task);
                }
            }
            Event::Cluster => self.dirty.extend(self.sessions.keys()),
            Event::Node(id) => {
                let Some(node) = self.view.node(*id).cloned() else {
                    self.managers.remove(id);
                    self.end_session(*id);
                    self.liveness.forget(*id);
                    self.forget_silence(*id);
                    return;
                };
                match node.role {
                    NodeRole::Manager => self.managers.insert(*id),
                    NodeRole::Worker => self.managers.remove(id),
                };
                if node.manager.is_some() {
                    // Every node knows all managers.
                    self.dirty.extend(self.sessions.keys());
                }
                self.dirty.insert(*id);
                if node.status.state != NodeState::Down {
                    self.liveness.watch(*id, self.clock.monotonic(), grace(&self.view));
                    self.silence.watch(*id, self.clock.monotonic(), SUSPICION_PERIOD);
                }
            }
            Event::Service(_) | Event::Network(_) => {}
        }
    }

    async fn on_timer(&mut self) {
        let now = self.clock.monotonic();
        for node in self.liveness.expire(now) {
            tracing::warn!(node.id = %node, "node is down: no heartbeat within the grace");
            self.end_session(node);
            self.set_status(node, NodeState::Down, "heartbeat failure");
        }
        self.expire_silence(now);
        let overdue = self.departures.next_deadline().is_some_and(|at| at <= now);
        if overdue || self.flush_at.is_some_and(|at| at <= now) {
            self.flush_at = None;
            self.tell();
            let view = self.store.snapshot();
            self.store_gathered(&view).await;
        }
    }

    /// Networks first: tasks refer to them.
    fn tell(&mut self) {
        self.release_departures();
        self.tell_directory();
        let now = self.clock.monotonic();
        for node in std::mem::take(&mut self.dirty) {
            let Some(session) = self.sessions.get_mut(&node) else { continue };
            let (directory, departures) = (&self.directory, &mut self.departures);
            let index = directory.index();
            let holds = |task: &types::Task| {
                departures.holds(task.id, directory.networks_of(task.id), index, now)
            };
            let kept = session.update_directory(&self.told, node, directory, now)
                && session.update(&self.told, node, holds);
            if !kept {
                tracing::warn!(node.id = %node, "node does not take its messages, disconnected");
                self.end_session(node);
            }
        }
    }

    /// Stores what the nodes said. What is refused was about something that is gone.
    async fn store_gathered(&mut self, view: &Snapshot) {
        let atoms = self.take_gathered(view);
        if atoms.is_empty() {
            return;
        }
        let proposal = Proposal { time: self.clock.now(), atoms };
        match self.store.propose(proposal).await {
            Ok(Applied { .. }) => self.settle_inventories(),
            // Leadership may be back before the loop looks: that is a loss all the same, and the
            // nodes repeat what was dropped here only in new sessions.
            Err(ProposeError::NotLeader { leader }) => self.set_leading(false, leader),
            Err(error) => {
                // The nodes repeat what was lost when their sessions start anew.
                tracing::warn!(%error, "reports could not be stored, sessions start anew");
                self.sessions.clear();
            }
        }
    }

    /// What was lost is stored: those nodes may be told their tasks.
    fn settle_inventories(&mut self) {
        if !self.reports.is_empty() {
            return; // the rest comes with the next proposal
        }
        for (node, session) in &mut self.sessions {
            if session.inventory == Inventory::Storing {
                session.inventory = Inventory::Settled;
                self.dirty.insert(*node);
            }
        }
        if !self.dirty.is_empty() {
            self.flush_soon();
        }
    }

    fn take_gathered(&mut self, view: &Snapshot) -> Vec<ChangeSet> {
        let mut atoms = Vec::new();
        let exists = |node: &NodeId| view.node(*node).is_some();
        for (id, description) in std::mem::take(&mut self.descriptions) {
            if exists(&id) {
                let description = Box::new(description);
                atoms.push(dispatch_atom(Change::DescribeNode { id, description }));
            }
        }
        for (id, status) in std::mem::take(&mut self.statuses) {
            if exists(&id) {
                atoms.push(dispatch_atom(Change::SetNodeStatus { id, status }));
            }
        }
        atoms.extend(self.take_laggards(view));
        let mut reports = Vec::new();
        while reports.len() < REPORTS_PER_PROPOSAL_MAX {
            let Some(report) = self.reports.pop_first() else { break };
            reports.push(report);
        }
        if !self.reports.is_empty() {
            self.flush_soon();
        }
        if !reports.is_empty() {
            atoms.push(dispatch_atom(Change::ReportTasks(reports)));
        }
        atoms
    }

    fn subscribe(&mut self, wanted: &v1::LogSubscription, tasks: &[TaskId]) -> Reached {
        let (view, mut reached) = (self.store.snapshot(), Reached::default());
        let Ok(id) = wire::id::<base::Id>(&wanted.id, "id") else { return reached };
        if self.subscriptions.len() >= SUBSCRIPTIONS_MAX {
            return reached;
        }
        let mut by_node: BTreeMap<NodeId, Vec<TaskId>> = BTreeMap::new();
        for task in tasks.iter().filter_map(|id| view.task(*id)) {
            if let Some(node) = task.node {
                by_node.entry(node).or_default().push(task.id);
            }
        }
        for (node, tasks) in by_node {
            let tasks = tasks.iter().map(|id| wire::bytes_of(id.0)).collect();
            let message = v1::LogSubscription { tasks, ..wanted.clone() };
            let session = self.sessions.get(&node).filter(|session| session.greeted);
            match session.is_some_and(|session| session.send(Out::Subscribe(message))) {
                true => reached.nodes.push(node),
                false => reached.away.push(node),
            }
        }
        self.subscriptions.insert(id, reached.nodes.iter().copied().collect());
        reached
    }

    fn unsubscribe(&mut self, id: base::Id) {
        for node in self.subscriptions.remove(&id).unwrap_or_default() {
            self.send(node, Out::Unsubscribe(v1::LogUnsubscribe { id: wire::bytes_of(id) }));
        }
    }
}

pub(super) fn dispatch_atom(change: Change) -> ChangeSet {
    ChangeSet::one(Author::Dispatch, change)
}

/// From the last heartbeat until a node is down: never less than two heartbeats.
fn grace(view: &Snapshot) -> Millis {
    let spec = view.cluster().map(|cluster| cluster.spec.clone()).unwrap_or_default();
    spec.down_grace.max(Millis(spec.dispatcher_heartbeat.0.saturating_mul(2)))
}

/// Carries a session's messages into the loop, until either is gone.
async fn read_session(
    node: NodeId,
    session: u64,
    mut rx: mpsc::Receiver<NodeMessage>,
    handle: DispatcherHandle,
) {
    while let Some(message) = rx.recv().await {
        let message = Message::FromNode { node, session, message: Box::new(message) };
        if handle.inbox.send(message).await.is_err() {
            return;
        }
    }
    let _ = handle.inbox.send(Message::Detached { node, session }).await;
}
