//! One node's session, as the dispatcher's loop sees it.
//!
//! Owns: the outgoing queue, and the memory of what the node was told.
//! Invariant: a node that does not take its messages is disconnected, never waited for.

use base::Millis;
use dispatch::{Directory, Heard, Told};
use state::Snapshot;
use tokio::sync::mpsc;
use types::limits::BEHIND_AFTER;
use types::{BadPath, Condition, NodeId, Task};
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
    /// What it says of its paths to others.
    pub bad_paths: Vec<BadPath>,
    /// The index up to which the node's data path is as it was told.
    pub programmed: u64,
    /// Index of an update that it has not carried out, and since when; `None`: it owes nothing.
    owed: Option<(u64, Millis)>,
    /// Index of the last update.
    last_told: u64,
    tx: mpsc::Sender<ManagerMessage>,
    heard: Heard,
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
            bad_paths: Vec::new(),
            programmed: 0,
            owed: None,
            last_told: 0,
            tx,
            heard: Heard::default(),
            told: Told::default(),
            told_any: false,
            directive: None,
        }
    }

    /// The node has carried out its updates up to an index.
    pub(crate) fn passes(&mut self, index: u64, now: Millis) {
        self.programmed = self.programmed.max(index);
        if self.programmed >= self.last_told {
            self.owed = None;
        } else if self.owed.is_some_and(|(owed, _)| owed <= self.programmed) {
            self.owed = Some((self.last_told, now));
        }
    }

    /// Whether it takes too long over its updates; `None`: it has not carried out the first one.
    pub(crate) fn is_behind(&self, now: Millis) -> Option<bool> {
        let late = self.owed.is_some_and(|(_, since)| since.0 + BEHIND_AFTER.0 <= now.0);
        (late || self.programmed > 0).then_some(late)
    }

    /// Queues a message; `false` when the node does not keep up or is gone.
    #[must_use]
    pub(crate) fn send(&self, out: Out) -> bool {
        self.tx.try_send(messages::message(out)).is_ok()
    }

    /// Everything about networks is told anew.
    pub(crate) fn forget_heard(&mut self) {
        self.heard = Heard::default();
    }

    /// Tells the node what it does not know yet of its networks; `false` when it does not keep up.
    #[must_use]
    pub(crate) fn update_directory(
        &mut self,
        view: &Snapshot,
        node: NodeId,
        directory: &Directory,
        now: Millis,
    ) -> bool {
        if !self.greeted {
            return true;
        }
        let Some(update) = directory.update(view, node, &mut self.heard) else { return true };
        self.last_told = update.index;
        self.owed.get_or_insert((update.index, now));
        let messages = messages::directory(view, update);
        messages.into_iter().all(|message| self.send(Out::Directory(message)))
    }

    /// Tells the node what it does not know yet, its tasks once it has said which it has; `false`
    /// when it does not keep up.
    #[must_use]
    pub(crate) fn update(
        &mut self,
        view: &Snapshot,
        node: NodeId,
        holds: impl FnMut(&Task) -> bool,
    ) -> bool {
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
        let difference = self.told.update(view, node, holds);
        if difference.is_empty() && !full {
            return true;
        }
        self.told_any = true;
        let messages = messages::assignments(view, &difference, full);
        messages.into_iter().all(|message| self.send(Out::Assignments(message)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_behind_when_it_owes_an_update_for_too_long() {
        let mut session = Session::new(1, String::new(), mpsc::channel(1).0);
        assert_eq!(session.is_behind(Millis(0)), None);
        let owes = |session: &mut Session, index, at| {
            session.last_told = index;
            session.owed.get_or_insert((index, Millis(at)));
        };
        owes(&mut session, 5, 100);
        owes(&mut session, 9, 200);
        let late = Millis(100 + BEHIND_AFTER.0);
        assert_eq!(session.is_behind(late), Some(true));
        session.passes(5, late);
        assert_eq!(session.is_behind(late), Some(false), "it makes progress");
        assert_eq!(session.is_behind(Millis(late.0 + BEHIND_AFTER.0)), Some(true));
        session.passes(9, late);
        assert_eq!(session.is_behind(Millis::MAX), Some(false));
    }
}
