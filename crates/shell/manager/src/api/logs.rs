//! Logs of tasks, from all their nodes at once.
//!
//! Owns: subscriptions, and carrying the nodes' lines to whoever asked.
//! Does not know: log files. Invariant: a reader that does not keep up slows its nodes down and
//! nobody else; one that goes away ends its subscription.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use base::{Id, Millis};
use ports::Clock;
use ports::store::Store;
use state::Snapshot;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use types::{Fault, NodeId, TaskId};
use wire::v1::{self, logs_item::Item};

use super::{ControlApi, LogStream, find};

/// Items waiting for one reader.
const ITEMS_MAX: usize = 256;
/// How long a node may be silent before its part is given up, when the logs are not followed.
const SILENCE_MAX: Millis = Millis::from_secs(10);

type Sender = mpsc::Sender<Result<v1::LogsItem, Status>>;

/// Where the nodes' lines go.
#[derive(Clone, Default)]
pub struct LogBroker {
    readers: Arc<Mutex<BTreeMap<Id, Reader>>>,
}

struct Reader {
    tx: Sender,
    /// Nodes that have not said that they are done.
    waiting: BTreeSet<NodeId>,
    names: Arc<BTreeMap<TaskId, Names>>,
}

/// What a line is labelled with.
struct Names {
    service: types::ServiceId,
    task: String,
    node: NodeId,
    node_name: String,
}

impl LogBroker {
    /// Takes lines from a node; `false` when nobody wants them any more.
    pub async fn publish(&self, node: NodeId, published: v1::LogsPublish) -> bool {
        let Ok(id) = wire::id::<Id>(&published.subscription, "subscription") else { return false };
        let (tx, names) = {
            let readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(reader) = readers.get(&id) else { return false };
            (reader.tx.clone(), Arc::clone(&reader.names))
        };
        let mut items: Vec<v1::LogsItem> =
            published.lines.into_iter().filter_map(|line| named(&names, node, line)).collect();
        if !published.warning.is_empty() {
            items.push(v1::LogsItem { item: Some(Item::Warning(published.warning)) });
        }
        for item in items {
            if tx.send(Ok(item)).await.is_err() {
                self.close(id);
                return false;
            }
        }
        if published.done {
            self.done(id, node);
        }
        true
    }

    fn done(&self, id: Id, node: NodeId) {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let over = readers.get_mut(&id).is_some_and(|reader| {
            reader.waiting.remove(&node);
            reader.waiting.is_empty()
        });
        if over {
            readers.remove(&id);
        }
    }

    fn close(&self, id: Id) {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    fn open(&self, id: Id, reader: Reader) {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).insert(id, reader);
    }

    fn is_open(&self, id: Id) -> bool {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&id)
    }

    /// Nodes that a reader still waits for.
    fn waiting(&self, id: Id) -> BTreeSet<NodeId> {
        let readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.get(&id).map(|reader| reader.waiting.clone()).unwrap_or_default()
    }
}

/// A node labels its lines with the task only, and only those of its own tasks are passed on.
fn named(
    names: &BTreeMap<TaskId, Names>,
    node: NodeId,
    mut line: v1::LogLine,
) -> Option<v1::LogsItem> {
    let task = wire::id::<TaskId>(&line.task, "task").ok()?;
    let known = names.get(&task).filter(|names| names.node == node)?;
    line.service = wire::bytes_of(known.service.0);
    line.node = wire::bytes_of(known.node.0);
    line.task_name.clone_from(&known.task);
    line.node_name.clone_from(&known.node_name);
    Some(v1::LogsItem { item: Some(Item::Line(line)) })
}

impl<S: Store, C: Clock> ControlApi<S, C> {
    pub(super) async fn logs(&self, request: v1::LogsRequest) -> Result<LogStream, Fault> {
        let view = self.store.snapshot();
        let tasks = wanted_tasks(&view, &request.services)?;
        let names = Arc::new(tasks.iter().filter_map(|id| names(&view, *id)).collect());
        let (tx, rx) = mpsc::channel(ITEMS_MAX);
        let id = self.mint();
        let nodes = tasks.iter().filter_map(|id| view.task(*id)?.node).collect();
        self.broker.open(id, Reader { tx: tx.clone(), waiting: nodes, names });
        let subscription = v1::LogSubscription {
            id: wire::bytes_of(id),
            tasks: Vec::new(),
            follow: request.follow,
            tail: request.tail,
            since: request.since,
            until: request.until,
        };
        let reached = self.dispatcher.subscribe(subscription, tasks).await;
        for node in &reached.away {
            let name = view.node(*node).map_or_else(|| node.to_string(), |n| n.hostname().into());
            let warning = format!("node {name} is away: its part of the logs is missing");
            let item = v1::LogsItem { item: Some(Item::Warning(warning)) };
            let _ = tx.try_send(Ok(item));
            self.broker.done(id, *node);
        }
        if reached.nodes.is_empty() {
            self.broker.close(id);
        }
        tokio::spawn(watch_reader(self.clone(), id, tx, request.follow, view));
        Ok(Box::pin(ReceiverStream::new(rx)))
    }
}

/// Ends a subscription when its reader is gone, all nodes are done, or one stays silent.
async fn watch_reader<S: Store, C: Clock>(
    api: ControlApi<S, C>,
    id: Id,
    tx: Sender,
    follow: bool,
    view: Snapshot,
) {
    let deadline = Millis(api.clock.monotonic().0 + SILENCE_MAX.0);
    while api.broker.is_open(id) {
        let now = api.clock.monotonic();
        if !follow && now >= deadline && tx.capacity() == ITEMS_MAX {
            for node in api.broker.waiting(id) {
                let name =
                    view.node(node).map_or_else(|| node.to_string(), |n| n.hostname().into());
                let warning = format!("node {name} does not answer: its logs may be incomplete");
                let _ = tx.try_send(Ok(v1::LogsItem { item: Some(Item::Warning(warning)) }));
            }
            break;
        }
        tokio::select! {
            biased;
            () = tx.closed() => break,
            () = api.clock.sleep_until(Millis(now.0 + 100)) => {}
        }
    }
    api.broker.close(id);
    api.dispatcher.unsubscribe(id).await;
}

/// Tasks of the services or the single tasks that were named.
fn wanted_tasks(view: &Snapshot, references: &[String]) -> Result<Vec<TaskId>, Fault> {
    let mut tasks = BTreeSet::new();
    for reference in references {
        match find::service(view, reference) {
            Ok(service) => tasks.extend(view.tasks_of_service(service.id).map(|task| task.id)),
            Err(_) => match find::task(view, reference) {
                Ok(task) => drop(tasks.insert(task.id)),
                Err(fault) => {
                    let message = format!("no such task or service: {reference}");
                    return Err(Fault { message, ..fault });
                }
            },
        }
    }
    Ok(tasks.into_iter().collect())
}

fn names(view: &Snapshot, id: TaskId) -> Option<(TaskId, Names)> {
    let task = view.task(id)?;
    let node = task.node?;
    let node_name = view.node(node).map_or_else(|| node.to_string(), |n| n.hostname().to_owned());
    let names = Names { service: task.service, task: find::task_name(view, task), node, node_name };
    Some((id, names))
}
