//! The agent's loop: one session, many tasks.
//!
//! Owns: which tasks this node has, what is wanted of them, what has been reported.
//! Does not know: how a step is performed; each task has a loop of its own.
//! Invariant: an assignment older than the last one is refused; statuses are reported until a
//! session has taken them, and all of them again in each new session.

mod assign;
mod beat;
mod check;
mod contact;
mod directory;
mod orders;
mod upload;

use std::collections::BTreeMap;
use std::sync::Arc;

use base::{Id, IdSource, Millis};
use futures::FutureExt;
use futures::future::BoxFuture;
use lifecycle::{Observed, Wanted};
use ports::network::Network;
use ports::runtime::Runtime;
use ports::{Clock, Link, LinkError, SessionDialer};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use types::{
    Condition, DirectoryUpdate, NodeDescription, NodeId, NodeRole, TaskId, TaskState, TaskStatus,
};
use wire::agent_v1::{StoredNode, StoredTask};
use wire::v1::manager_message::Message as In;
use wire::v1::node_message::Message as Out;
use wire::v1::{self, ManagerMessage, NodeMessage};

use self::beat::beat_period;
use self::check::{Checked, Checks};
use self::contact::Contact;
pub use self::contact::PathLinks;
use self::directory::{Queue, carry_out};
use crate::container::{TaskIdentity, TaskNetworking};
use crate::db::{Batch, DbError, FORMAT, TaskDb};
use crate::logs::LogUplink;
use crate::session::Choice;
use crate::task::{Connected, Node, TaskLoop, Update, assigned, observed};

/// Updates of task loops waiting for the agent.
const UPDATES_MAX: usize = 1_024;
/// Updates taken in one turn, so that one transaction carries many.
const UPDATES_PER_TURN: usize = 512;
/// Wait before containers are looked for again, when that failed at the start.
const OBSERVE_RETRY: Millis = Millis::from_secs(1);

/// What an agent is made of.
pub struct Options<R, N, C, D> {
    pub node: NodeId,
    /// Host name, for tasks that start before a manager has named the node.
    pub hostname: String,
    pub runtime: R,
    pub network: N,
    pub clock: C,
    pub dialer: D,
    pub db: Arc<TaskDb>,
    pub ids: IdSource,
    /// Addresses to try when the node's own record has none.
    pub managers: Vec<String>,
    pub description: watch::Receiver<NodeDescription>,
    /// What is wrong with this node, as it knows itself.
    pub conditions: watch::Receiver<Vec<Condition>>,
    pub paths: PathLinks,
}

/// What the managers want of the node itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeOrders {
    pub role: Option<NodeRole>,
    pub renew_certificate: bool,
    pub managers: Vec<String>,
    /// A manager said that this node was removed from the cluster.
    pub removed: bool,
    pub connected: bool,
}

/// How the daemon talks to its agent.
#[derive(Clone, Debug)]
pub struct AgentHandle {
    pub orders: watch::Receiver<NodeOrders>,
}

struct LocalTask {
    stored: StoredTask,
    status: TaskStatus,
    wanted: watch::Sender<Wanted>,
    connected: watch::Sender<Connected>,
}

enum Connection {
    Waiting { until: Millis },
    Dialling { address: String, dial: BoxFuture<'static, Dialled>, until: Millis },
    Up(Box<Session>),
}

type Dialled = Result<Link<NodeMessage, ManagerMessage>, LinkError>;

struct Session {
    address: String,
    link: Link<NodeMessage, ManagerMessage>,
    heartbeat: Millis,
    next_heartbeat: Millis,
    heard: Millis,
    /// When the heartbeat was sent that waits for its answer.
    asked: Option<Millis>,
    /// How far this node's clock is ahead of the manager's, and by how much that may be wrong.
    ahead: Option<(i64, u64)>,
    /// The first report names all tasks.
    inventory_due: bool,
    /// Parts of a full set that has not arrived completely.
    partial: Vec<v1::Assignments>,
    /// The same of an update of the directory.
    directory: Option<DirectoryUpdate>,
}

/// The agent of one node.
pub struct Agent<R, N, C, D> {
    node: Arc<Node<R, N, C>>,
    dialer: Arc<D>,
    db: Arc<TaskDb>,
    ids: IdSource,
    node_id: NodeId,
    hostname: String,
    description: watch::Receiver<NodeDescription>,
    conditions: watch::Receiver<Vec<Condition>>,
    contact: Contact,
    orders: watch::Sender<NodeOrders>,
    updates: mpsc::Receiver<Update>,
    tasks: BTreeMap<TaskId, LocalTask>,
    loops: JoinSet<()>,
    revisions: BTreeMap<(Vec<u8>, u64), v1::AssignedRevision>,
    stored: StoredNode,
    choice: Choice,
    connection: Connection,
    /// Updates of the directory that came in this process, and those on their way to the port.
    directories: u64,
    directory_queue: Arc<Queue>,
    carried: watch::Receiver<u64>,
    /// Statuses that the current session has not been given.
    unreported: BTreeMap<TaskId, TaskStatus>,
    uploads: BTreeMap<Id, AbortHandle>,
    upload_tasks: JoinSet<Id>,
    checks: Checks,
}

enum Cause {
    Shutdown,
    Timer,
    Updates(Vec<Update>),
    Dialled(Dialled),
    Message(Option<ManagerMessage>),
    Described,
    Conditions,
    Uploaded,
    Checked(Option<Checked>),
}

impl<R, N, C, D> Agent<R, N, C, D>
where
    R: Runtime,
    N: Network,
    C: Clock,
    D: SessionDialer<NodeMessage, ManagerMessage> + LogUplink,
{
    /// Reads the node's own record. Nothing is started yet.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub fn new(options: Options<R, N, C, D>) -> Result<(Self, AgentHandle), DbError> {
        let (_, mut stored) = options.db.load()?;
        stored.format = FORMAT;
        if stored.managers.is_empty() {
            stored.managers.clone_from(&options.managers);
        }
        let (updates_tx, updates) = mpsc::channel(UPDATES_MAX);
        let known = NodeOrders { managers: stored.managers.clone(), ..NodeOrders::default() };
        let (orders, orders_rx) = watch::channel(known);
        let begun = options.clock.monotonic();
        let node = Node {
            runtime: options.runtime,
            network: options.network,
            clock: options.clock,
            updates: updates_tx,
        };
        let node = Arc::new(node);
        let directory_queue = Arc::new(Queue::default());
        let (carried_tx, carried) = watch::channel(0);
        let mut loops = JoinSet::new();
        loops.spawn(carry_out(Arc::clone(&node), Arc::clone(&directory_queue), carried_tx));
        let hostname = match stored.name.is_empty() {
            true => options.hostname,
            false => stored.name.clone(),
        };
        let agent = Self {
            node,
            dialer: Arc::new(options.dialer),
            db: options.db,
            ids: options.ids,
            node_id: options.node,
            hostname,
            description: options.description,
            conditions: options.conditions,
            contact: Contact::new(options.paths, begun),
            orders,
            updates,
            tasks: BTreeMap::new(),
            loops,
            revisions: BTreeMap::new(),
            choice: Choice::new(stored.managers.clone()),
            stored,
            connection: Connection::Waiting { until: Millis::ZERO },
            directories: 0,
            directory_queue,
            carried,
            unreported: BTreeMap::new(),
            uploads: BTreeMap::new(),
            upload_tasks: JoinSet::new(),
            checks: Checks::new(),
        };
        Ok((agent, AgentHandle { orders: orders_rx }))
    }

    /// Adopts what runs, then serves until shutdown. Containers go on when this returns.
    ///
    /// # Errors
    /// When the node's own record cannot be read or written.
    pub async fn run(mut self, mut shutdown: watch::Receiver<bool>) -> Result<(), DbError> {
        self.adopt(&mut shutdown).await?;
        loop {
            let at = self.next_timer();
            let clock = self.node.clock.clone();
            let cause = tokio::select! {
                biased;
                _ = shutdown.wait_for(|stop| *stop) => Cause::Shutdown,
                updates = take_updates(&mut self.updates) => Cause::Updates(updates),
                cause = next_of(&mut self.connection) => cause,
                Ok(()) = self.description.changed() => Cause::Described,
                Ok(()) = self.conditions.changed() => Cause::Conditions,
                Some(_) = self.upload_tasks.join_next() => Cause::Uploaded,
                Some(done) = self.checks.join_next() => Cause::Checked(done.ok()),
                () = clock.sleep_until(at) => Cause::Timer,
            };
            match cause {
                Cause::Shutdown => return Ok(()),
                Cause::Updates(updates) => self.take(updates)?,
                Cause::Dialled(dialled) => self.dialled(dialled),
                Cause::Message(Some(message)) => self.hear(message)?,
                Cause::Message(None) => self.hang_up("closed by the manager"),
                Cause::Described => self.describe(),
                Cause::Conditions => self.beat(),
                Cause::Uploaded => self.uploads.retain(|_, upload| !upload.is_finished()),
                Cause::Checked(done) => done.into_iter().for_each(|done| self.checked(done)),
                Cause::Timer => self.on_timer(),
            }
            while self.loops.try_join_next().is_some() {}
            self.report();
        }
    }

    /// Takes up the tasks on record with what is there of them, and removes what belongs to none.
    async fn adopt(&mut self, shutdown: &mut watch::Receiver<bool>) -> Result<(), DbError> {
        let (stored, _) = self.db.load()?;
        let seen = loop {
            match self.node.runtime.observe().await {
                Ok(seen) => break seen,
                Err(error) => {
                    tracing::error!(%error, "containers cannot be observed, trying again")
                }
            }
            let at = Millis(self.node.clock.monotonic().0 + OBSERVE_RETRY.0);
            tokio::select! {
                biased;
                _ = shutdown.wait_for(|stop| *stop) => return Ok(()),
                () = self.node.clock.sleep_until(at) => {}
            }
        };
        let mut found: BTreeMap<String, Observed> =
            seen.into_iter().map(|one| (one.id, observed(&one.state))).collect();
        for task in stored {
            let Some(id) = task.assignment.as_ref().and_then(|a| TaskId::from_bytes(&a.task))
            else {
                continue;
            };
            let observed = found.remove(&id.to_string()).unwrap_or(Observed::Absent);
            self.start_task(id, task, observed);
        }
        for id in found.into_keys() {
            tracing::warn!(container.id = id, "container of no task, removed");
            if let Err(error) = self.node.runtime.remove(&id).await {
                tracing::warn!(container.id = id, %error, "container of no task was not removed");
            }
        }
        self.detach_strangers().await;
        Ok(())
    }

    async fn detach_strangers(&mut self) {
        let attached = self.node.network.observe().await.unwrap_or_default();
        for id in attached {
            let known = id.parse().is_ok_and(|id: TaskId| self.tasks.contains_key(&id));
            if !known && let Err(error) = self.node.network.detach(&id).await {
                tracing::warn!(task.id = id, %error, "network of no task could not be removed");
            }
        }
    }

    /// Begins a task's loop.
    fn start_task(&mut self, id: TaskId, stored: StoredTask, observed: Observed) {
        let (Some(assignment), Some(revision)) = (&stored.assignment, &stored.revision) else {
            tracing::error!(task.id = %id, "task without a template passed over");
            return;
        };
        let spec = revision.spec.clone().unwrap_or_default();
        let (service, spec) = match (wire::id(&assignment.service, "service"), spec.try_into()) {
            (Ok(service), Ok(spec)) => (service, Arc::new(spec)),
            (Err(fault), _) | (_, Err(fault)) => {
                tracing::error!(task.id = %id, %fault, "task that makes no sense passed over");
                return;
            }
        };
        let identity = TaskIdentity {
            id,
            service,
            service_name: revision.service_name.clone(),
            slot: types::Slot::from_number(assignment.slot),
            node: self.node_id,
            node_name: self.hostname.clone(),
        };
        let status = stored.status.clone().and_then(|status| status.try_into().ok());
        let status = status.unwrap_or_else(|| assigned(self.node.clock.now()));
        let network = match TaskNetworking::new(&identity, &spec, assignment.network.as_ref()) {
            Ok(network) => network,
            Err(fault) => {
                tracing::error!(task.id = %id, %fault, "task that makes no sense passed over");
                return;
            }
        };
        let wanted = wanted_of(assignment.desired);
        let (tx, rx) = watch::channel(wanted);
        // What it refers to came before it, in this session or in the one to come.
        let number = self.directories.max(1);
        let (connect, connected) = watch::channel((number, network.container.connected.clone()));
        self.loops.spawn(
            TaskLoop {
                node: Arc::clone(&self.node),
                identity,
                spec,
                status: status.clone(),
                observed,
                network,
                directory: (number, self.carried.clone()),
                wanted: rx,
                connected,
                unconnected: None,
            }
            .run(),
        );
        self.tasks.insert(id, LocalTask { stored, status, wanted: tx, connected: connect });
    }

    fn next_timer(&self) -> Millis {
        let session = match &self.connection {
            Connection::Waiting { until } | Connection::Dialling { until, .. } => *until,
            Connection::Up(session) => {
                let silent = Millis(session.heard.0 + session.heartbeat.0 * 3);
                session.next_heartbeat.min(silent)
            }
        };
        session.min(self.contact.deadline())
    }

    fn on_timer(&mut self) {
        let now = self.node.clock.monotonic();
        self.contact.expire(now);
        match &mut self.connection {
            Connection::Waiting { until } if *until <= now => self.dial(now),
            Connection::Dialling { until, .. } if *until <= now => self.hang_up("no answer"),
            Connection::Up(session) => {
                if Millis(session.heard.0 + session.heartbeat.0 * 3) <= now {
                    return self.hang_up("the manager is silent");
                }
                if session.next_heartbeat <= now {
                    self.beat();
                }
            }
            Connection::Waiting { .. } | Connection::Dialling { .. } => {}
        }
    }

    fn dial(&mut self, now: Millis) {
        let until = Millis(now.0 + self.choice.patience().0);
        let Some(address) = self.choice.address() else {
            self.connection = Connection::Waiting { until };
            return;
        };
        let (dialer, to) = (Arc::clone(&self.dialer), address.clone());
        let dial = async move { dialer.dial(&to).await }.boxed();
        self.connection = Connection::Dialling { address, dial, until };
    }

    fn dialled(&mut self, dialled: Dialled) {
        let Connection::Dialling { address, .. } = &self.connection else { return };
        let address = address.clone();
        match dialled {
            Ok(link) => {
                let now = self.node.clock.monotonic();
                let heartbeat = types::limits::HEARTBEAT_DEFAULT;
                self.connection = Connection::Up(Box::new(Session {
                    address,
                    link,
                    heartbeat,
                    next_heartbeat: Millis(now.0 + beat_period(heartbeat).0),
                    heard: now,
                    asked: None,
                    ahead: None,
                    inventory_due: true,
                    partial: Vec::new(),
                    directory: None,
                }));
                self.greet();
            }
            Err(error) => {
                if let LinkError::Refused { problem, .. } = &error
                    && problem.contains("was removed from swarm")
                {
                    self.orders.send_modify(|orders| orders.removed = true);
                }
                self.hang_up(&error.to_string());
            }
        }
    }

    fn greet(&mut self) {
        let description = (&*self.description.borrow_and_update()).into();
        let (epoch, index) = (self.stored.epoch, self.stored.index);
        let hello =
            v1::Hello { protocol: wire::PROTOCOL, description: Some(description), epoch, index };
        self.send(Out::Hello(hello));
        // Everything is reported anew: what the last session took may not have been stored.
        self.unreported = self.tasks.iter().map(|(id, task)| (*id, task.status.clone())).collect();
    }

    fn describe(&mut self) {
        let description = (&*self.description.borrow_and_update()).into();
        if matches!(self.connection, Connection::Up(_)) {
            self.send(Out::Description(description));
        }
    }

    fn send(&mut self, out: Out) {
        let message = NodeMessage { message: Some(out) };
        if let Connection::Up(session) = &self.connection
            && session.link.tx.try_send(message).is_err()
        {
            self.hang_up("the manager does not take messages");
        }
    }

    fn hang_up(&mut self, why: &str) {
        if let Connection::Up(session) = &mut self.connection {
            self.choice.lost(std::mem::take(&mut session.address));
        }
        let wait = self.choice.failed(&mut self.ids);
        tracing::debug!(why, "no session with a manager");
        let until = Millis(self.node.clock.monotonic().0 + wait.0);
        self.connection = Connection::Waiting { until };
        self.uploads.values().for_each(AbortHandle::abort);
        self.uploads.clear();
        self.checks.abort_all();
        self.orders.send_if_modified(|orders| std::mem::take(&mut orders.connected));
    }

    fn hear(&mut self, message: ManagerMessage) -> Result<(), DbError> {
        let now = self.node.clock.monotonic();
        if let Connection::Up(session) = &mut self.connection {
            session.heard = now;
        }
        if !matches!(message.message, Some(In::Redirect(_)) | None) {
            self.contact.heard(now);
        }
        match message.message {
            Some(In::Welcome(welcome)) => {
                self.choice.succeeded();
                self.set_heartbeat(welcome.heartbeat_ms);
                self.orders.send_modify(|orders| orders.connected = true);
            }
            Some(In::Redirect(redirect)) => {
                self.choice.redirected(redirect.leader);
                self.hang_up("sent to another manager");
            }
            Some(In::Directive(directive)) => self.direct(directive)?,
            Some(In::Assignments(assignments)) => self.assign(assignments)?,
            Some(In::Directory(directory)) => self.take_directory(directory)?,
            Some(In::Subscribe(subscription)) => self.upload(subscription),
            Some(In::Check(question)) => self.check(question),
            Some(In::Unsubscribe(end)) => {
                let upload = Id::from_bytes(&end.id).and_then(|id| self.uploads.remove(&id));
                upload.inspect(AbortHandle::abort);
            }
            Some(In::Heartbeat(answer)) => self.compare_clocks(now, answer.time),
            None => {}
        }
        Ok(())
    }

    fn take(&mut self, updates: Vec<Update>) -> Result<(), DbError> {
        let mut batch = Batch::default();
        for update in updates {
            match update {
                Update::Status(id, status) => {
                    let Some(task) = self.tasks.get_mut(&id) else { continue };
                    task.status = status.clone();
                    task.stored.status = Some((&status).into());
                    batch.put.push((id, task.stored.clone()));
                    self.unreported.insert(id, status);
                }
                Update::Programmed { epoch, index } => self.programmed(epoch, index),
                Update::Forgotten(id) => {
                    self.tasks.remove(&id);
                    self.unreported.remove(&id);
                    batch.delete.push(id);
                }
            }
        }
        if batch.is_empty() { Ok(()) } else { self.db.write(&batch) }
    }

    /// Gives the session what it does not have.
    fn report(&mut self) {
        let Connection::Up(session) = &mut self.connection else { return };
        let complete = std::mem::take(&mut session.inventory_due);
        if self.unreported.is_empty() && !complete {
            return;
        }
        let tasks = std::mem::take(&mut self.unreported)
            .iter()
            .map(|(id, status)| v1::TaskReport {
                task: wire::bytes_of(id.0),
                status: Some(status.into()),
            })
            .collect();
        self.send(Out::Report(v1::StatusReport { tasks, complete }));
    }
}

fn wanted_of(desired: i32) -> Wanted {
    // A state that this version does not know is one to stop for.
    Wanted::Desired(TaskState::from_number(desired).unwrap_or(TaskState::Shutdown))
}

async fn take_updates(updates: &mut mpsc::Receiver<Update>) -> Vec<Update> {
    let mut taken = Vec::new();
    if updates.recv_many(&mut taken, UPDATES_PER_TURN).await == 0 {
        // The agent holds a sender itself, so this is never over.
        std::future::pending::<()>().await;
    }
    taken
}

/// The next thing that the connection brings; never, while it waits.
async fn next_of(connection: &mut Connection) -> Cause {
    match connection {
        Connection::Waiting { .. } => std::future::pending().await,
        Connection::Dialling { dial, .. } => Cause::Dialled(dial.await),
        Connection::Up(session) => Cause::Message(session.link.rx.recv().await),
    }
}
