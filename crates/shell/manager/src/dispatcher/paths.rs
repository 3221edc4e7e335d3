//! Paths between nodes: what they say by themselves, and what they are asked.
//!
//! Owns: the questions that wait for an answer. Does not know: who asks, and what is made of it.
//! Invariant: an answer counts from the node that was asked, once; who asks is told when the node
//! goes away.

use std::collections::BTreeMap;

use base::Id;
use dispatch::is_down;
use ports::Clock;
use ports::store::Store;
use tokio::sync::oneshot;
use types::{BadPath, Condition, NetworkCheck, NetworkId, NodeId};
use wire::v1;
use wire::v1::manager_message::Message as Out;

use super::run::Dispatcher;
use super::{Checked, DispatcherHandle, Message};

/// Questions at a time; whoever asks bounds his own far below.
const QUESTIONS_MAX: usize = 1_024;

/// Those that wait.
pub(super) type Questions = BTreeMap<Id, (NodeId, oneshot::Sender<Checked>)>;

/// A question to one node.
pub(crate) struct Question {
    pub(crate) id: Id,
    pub(crate) node: NodeId,
    pub(crate) network: NetworkId,
    pub(crate) answer: oneshot::Sender<Checked>,
}

impl DispatcherHandle {
    /// Has a node look at a network; ends when the node has answered or its session is over.
    pub async fn check(&self, id: Id, node: NodeId, network: NetworkId) -> Checked {
        let (answer, answered) = oneshot::channel();
        let question = Question { id, node, network, answer };
        let _ = self.inbox.send(Message::Check(question)).await;
        answered.await.unwrap_or_else(|_| Err("its session with the managers is over".to_owned()))
    }

    /// What nodes last said of bad paths to peers that are there; only a leader knows of any.
    #[must_use]
    pub fn bad_paths(&self) -> BTreeMap<NodeId, Vec<BadPath>> {
        self.bad_paths.borrow().clone()
    }
}

impl<S: Store, C: Clock> Dispatcher<S, C> {
    pub(super) fn ask(&mut self, question: Question) {
        let Question { id, node, network, answer } = question;
        self.questions.retain(|_, (_, waiting)| !waiting.is_closed());
        let session = self.sessions.get(&node).filter(|session| session.greeted);
        let message =
            v1::CheckNetwork { id: wire::bytes_of(id), network: wire::bytes_of(network.0) };
        let refused = match session {
            None => "it has no session with the managers",
            Some(_) if self.questions.len() >= QUESTIONS_MAX => "too many checks at a time",
            Some(session) if !session.send(Out::Check(message)) => "it does not take its messages",
            Some(_) => {
                self.questions.insert(id, (node, answer));
                return;
            }
        };
        let _ = answer.send(Err(refused.to_owned()));
    }

    pub(super) fn take_check(&mut self, node: NodeId, checked: v1::NetworkChecked) {
        let Ok(id) = wire::id::<Id>(&checked.id, "id") else { return };
        if self.questions.get(&id).is_none_or(|(asked, _)| *asked != node) {
            return;
        }
        let Some((_, answer)) = self.questions.remove(&id) else { return };
        let found = match checked.check {
            Some(check) => NetworkCheck::try_from(check).map_err(|fault| fault.to_string()),
            None => Err(checked.problem),
        };
        let _ = answer.send(found);
    }

    /// Who waits for this node is told.
    pub(super) fn drop_questions(&mut self, node: NodeId) {
        self.questions.retain(|_, (asked, _)| *asked != node);
    }

    /// What a node says of its paths, which others may read. Peers that are silent or down are
    /// known to be away: nobody's path is to blame.
    pub(super) fn path_condition(&self, node: NodeId) -> Option<Condition> {
        let bad = match self.sessions.get(&node) {
            None => Vec::new(),
            Some(session) => {
                let bad = session.bad_paths.iter().copied();
                bad.filter(|bad| !self.is_away(bad.node)).collect()
            }
        };
        let condition = dispatch::path_condition(&self.view, &bad);
        self.bad_paths.send_if_modified(|known| match bad.is_empty() {
            true => known.remove(&node).is_some(),
            false => known.insert(node, bad.clone()).is_none_or(|before| before != bad),
        });
        condition
    }

    fn is_away(&self, node: NodeId) -> bool {
        is_down(&self.view, node)
            || self.silent.contains(&node)
            || self.sessions.get(&node).is_none_or(|session| !session.greeted)
    }
}
