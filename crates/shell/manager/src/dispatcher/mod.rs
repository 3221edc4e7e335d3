//! Sessions with the nodes: what they are told, what they report, whether they live.
//!
//! Owns: one session per node, the gathering of reports, heartbeat deadlines, log subscriptions.
//! Does not know: gRPC; a session is a pair of queues.
//! Invariant: only a leader has sessions; a manager that no longer leads sends its nodes away.

mod hearing;
mod messages;
mod networks;
mod paths;
mod run;
mod session;

use std::collections::BTreeMap;

use ports::Link;
use tokio::sync::{mpsc, oneshot, watch};
use types::{BadPath, NetworkCheck, NodeId, TaskId};
use wire::v1::{LogSubscription, ManagerMessage, NodeMessage};

use crate::options::INBOX_MAX;

pub(crate) use messages::manager_addresses as dispatcher_addresses;
pub use run::Dispatcher;

/// What the loop is told by others.
pub(crate) enum Message {
    Attach {
        node: NodeId,
        address: String,
        link: Link<ManagerMessage, NodeMessage>,
    },
    FromNode {
        node: NodeId,
        session: u64,
        message: Box<NodeMessage>,
    },
    Detached {
        node: NodeId,
        session: u64,
    },
    Subscribe {
        wanted: Box<LogSubscription>,
        tasks: Vec<TaskId>,
        reached: oneshot::Sender<Reached>,
    },
    Unsubscribe {
        id: base::Id,
    },
    Check(paths::Question),
}

/// What a node found, or why it found nothing.
pub(crate) type Checked = Result<NetworkCheck, String>;

/// Which nodes got a log subscription, and which could not be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    pub nodes: Vec<NodeId>,
    pub away: Vec<NodeId>,
}

/// How others talk to the dispatcher.
#[derive(Clone, Debug)]
pub struct DispatcherHandle {
    inbox: mpsc::Sender<Message>,
    bad_paths: watch::Receiver<BadPaths>,
}

/// What nodes say of their paths; those that see no bad one are not named.
pub(crate) type BadPaths = BTreeMap<NodeId, Vec<BadPath>>;

impl DispatcherHandle {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Message>, watch::Sender<BadPaths>) {
        let (inbox, messages) = mpsc::channel(INBOX_MAX);
        let (paths, bad_paths) = watch::channel(BadPaths::new());
        (Self { inbox, bad_paths }, messages, paths)
    }

    /// Gives a node's session to the dispatcher; waits while its inbox is full.
    pub async fn attach(
        &self,
        node: NodeId,
        address: String,
        link: Link<ManagerMessage, NodeMessage>,
    ) {
        // A dispatcher that has stopped drops the link, which ends the session.
        let _ = self.inbox.send(Message::Attach { node, address, link }).await;
    }

    /// Asks the nodes of `tasks` for their logs; lines come back through `PublishLogs`.
    pub async fn subscribe(&self, wanted: LogSubscription, tasks: Vec<TaskId>) -> Reached {
        let (reached, answer) = oneshot::channel();
        let message = Message::Subscribe { wanted: Box::new(wanted), tasks, reached };
        let _ = self.inbox.send(message).await;
        answer.await.unwrap_or_default()
    }

    /// Ends a subscription on every node.
    pub async fn unsubscribe(&self, id: base::Id) {
        let _ = self.inbox.send(Message::Unsubscribe { id }).await;
    }
}
