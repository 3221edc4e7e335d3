//! One node's session, as the dispatcher's loop sees it.
//!
//! Owns: the outgoing queue, and the memory of what the node was told.
//! Invariant: a node that does not take its messages is disconnected, never waited for.

use dispatch::Told;
use state::Snapshot;
use tokio::sync::mpsc;
use types::{Condition, NodeId};
use wire::v1::{Directive, ManagerMessage, manager_message::Message as Out};

use super::messages;

/// Whether it is known which tasks the node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inventory {
    /// Its complete report has not come yet.
    Awaited,
    /// It has lost tasks, which is being stored.
    Storing,
    /// Nothing is assigned any more that it has lost.
    Settled,
}

pub(crate) struct Session {
    /// Tells sessions of one node apart.
    pub number: u64,
    pub address: String,
    /// The node has said hello.
    pub greeted: bool,
    pub inventory: Inventory,
    /// What the node says is wrong with it; `None` before its first heartbeat.
    pub conditions: Option<Vec<Condition>>,
    tx: mpsc::Sender<ManagerMessage>,
    told: Told,
    told_any: bool,
    directive: Option<Directive>,
}

impl Session {
    pub(crate) fn new(number: u64, address: String, tx: mpsc::Sender<ManagerMessage>) -> Self {
        Self {
            number,
            address,
            greeted: false,
            inventory: Inventory::Awaited,
            conditions: None,
            tx,
            told: Told::default(),
            told_any: false,
            directive: None,
        }
    }

    /// Queues a message; `false` when the node does not keep up or is gone.
    #[must_use]
    pub(crate) fn send(&self, out: Out) -> bool {
        self.tx.try_send(messages::message(out)).is_ok()
    }

    /// Tells the node what it does not know yet, its tasks once it has said which it has; `false`
    /// when it does not keep up.
    #[must_use]
    pub(crate) fn update(&mut self, view: &Snapshot, node: NodeId) -> bool {
        if !self.greeted {
            return true;
        }
        let directive = messages::directive(view, node);
        if directive.is_some() && directive != self.directive {
            self.directive.clone_from(&directive);
            let Some(directive) = directive else { return true };
            if !self.send(Out::Directive(directive)) {
                return false;
            }
        }
        if self.inventory != Inventory::Settled {
            return true;
        }
        let full = !self.told_any;
        let difference = self.told.update(view, node);
        if difference.is_empty() && !full {
            return true;
        }
        self.told_any = true;
        let messages = messages::assignments(view, &difference, full);
        messages.into_iter().all(|message| self.send(Out::Assignments(message)))
    }
}
