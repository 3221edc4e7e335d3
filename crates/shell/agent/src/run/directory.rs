//! The directory: what the managers say of the networks, carried out in the order it came.
//!
//! Owns: gathering the parts of an update, the queue before the port, the word back to the
//! manager. Does not know: what the parts mean.
//! Invariant: updates are carried out one at a time and in order; one that fails is tried again
//! until it succeeds or a full one makes it needless.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base::{Millis, chain};
use ports::network::Network;
use ports::runtime::Runtime;
use ports::{Clock, SessionDialer};
use tokio::sync::{Notify, watch};
use types::DirectoryUpdate;
use wire::v1::node_message::Message as Out;
use wire::v1::{self, ManagerMessage, NodeMessage};

use super::{Agent, Connection};
use crate::db::DbError;
use crate::logs::LogUplink;
use crate::task::{Node, Update};

/// Updates that wait for the port; beyond it the session begins anew, with one full update.
const QUEUE_MAX: usize = 256;
/// Wait between tries of an update that failed, and its cap.
const RETRY_FLOOR: Millis = Millis(100);
const RETRY_CAP: Millis = Millis::from_secs(5);

/// An update under way to the port.
struct Item {
    /// Counts the updates of this process.
    number: u64,
    epoch: u64,
    update: DirectoryUpdate,
}

/// Updates that wait for the port.
#[derive(Default)]
pub(crate) struct Queue {
    items: Mutex<VecDeque<Item>>,
    filled: Notify,
}

impl Queue {
    /// `false` when there is no room. A full update takes the place of all before it.
    fn push(&self, item: Item) -> bool {
        let mut items = self.lock();
        if item.update.full {
            items.clear();
        }
        if items.len() >= QUEUE_MAX {
            return false;
        }
        items.push_back(item);
        self.filled.notify_one();
        true
    }

    async fn pop(&self) -> Item {
        loop {
            if let Some(item) = self.lock().pop_front() {
                return item;
            }
            self.filled.notified().await;
        }
    }

    fn has_full(&self) -> bool {
        self.lock().iter().any(|item| item.update.full)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Item>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Carries out what is queued; ends with the agent, which aborts it.
pub(crate) async fn carry_out<R: Runtime, N: Network, C: Clock>(
    node: Arc<Node<R, N, C>>,
    queue: Arc<Queue>,
    carried: watch::Sender<u64>,
) {
    loop {
        let item = queue.pop().await;
        let (epoch, index) = (item.epoch, item.update.index);
        if try_until_done(&node, &queue, item.update).await {
            carried.send_replace(item.number);
            // An agent that is gone needs no word.
            let _ = node.updates.send(Update::Programmed { epoch, index }).await;
        }
    }
}

/// `false` when a full update came meanwhile that makes this one needless.
async fn try_until_done<R: Runtime, N: Network, C: Clock>(
    node: &Node<R, N, C>,
    queue: &Queue,
    update: DirectoryUpdate,
) -> bool {
    let mut failures: u32 = 0;
    loop {
        let Err(error) = node.network.update(update.clone()).await else { return true };
        tracing::warn!(error = %chain(&error), failures, "networks not as wanted, trying again");
        let wait = RETRY_FLOOR.saturating_mul(1 << failures.min(10)).min(RETRY_CAP);
        failures += 1;
        let at = Millis(node.clock.monotonic().0 + wait.0);
        node.clock.sleep_until(at).await;
        if queue.has_full() {
            return false;
        }
    }
}

impl<R, N, C, D> Agent<R, N, C, D>
where
    R: Runtime,
    N: Network,
    C: Clock,
    D: SessionDialer<NodeMessage, ManagerMessage> + LogUplink,
{
    /// Gathers the parts of an update, then queues it as a whole.
    pub(super) fn take_directory(&mut self, message: v1::Directory) -> Result<(), DbError> {
        let Connection::Up(session) = &mut self.connection else { return Ok(()) };
        let (epoch, more) = (message.epoch, message.more);
        let part: DirectoryUpdate = match message.try_into() {
            Ok(part) => part,
            Err(fault) => {
                tracing::error!(%fault, "a directory that makes no sense");
                self.hang_up("a directory that makes no sense");
                return Ok(());
            }
        };
        let gathered = match session.directory.take() {
            None => part,
            Some(mut gathered) => {
                join(&mut gathered, part);
                gathered
            }
        };
        if more {
            session.directory = Some(gathered);
            return Ok(());
        }
        self.directories += 1;
        let item = Item { number: self.directories, epoch, update: gathered };
        if !self.directory_queue.push(item) {
            self.hang_up("the data path does not keep up");
        }
        Ok(())
    }

    /// Tells the manager how far this node has come.
    pub(super) fn programmed(&mut self, epoch: u64, index: u64) {
        self.send(Out::Programmed(v1::Programmed { epoch, index }));
    }
}

/// Appends the next part of an update.
fn join(whole: &mut DirectoryUpdate, part: DirectoryUpdate) {
    whole.full |= part.full;
    whole.index = part.index;
    whole.own = part.own.or(whole.own.take());
    whole.networks.extend(part.networks);
    whole.removed_networks.extend(part.removed_networks);
    whole.peers.extend(part.peers);
    whole.removed_peers.extend(part.removed_peers);
    whole.services.extend(part.services);
    whole.removed_services.extend(part.removed_services);
    whole.endpoints.extend(part.endpoints);
    whole.removed_endpoints.extend(part.removed_endpoints);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(number: u64, full: bool) -> Item {
        Item { number, epoch: 0, update: DirectoryUpdate { full, ..DirectoryUpdate::default() } }
    }

    #[tokio::test]
    async fn a_full_update_takes_the_place_of_those_before_it() {
        let queue = Queue::default();
        for number in 0..QUEUE_MAX as u64 {
            assert!(queue.push(item(number, false)));
        }
        assert!(!queue.push(item(999, false)), "the queue is bounded");
        assert!(queue.push(item(1_000, true)) && queue.has_full());
        assert!(queue.push(item(1_001, false)));
        assert_eq!((queue.pop().await.number, queue.pop().await.number), (1_000, 1_001));
    }
}
