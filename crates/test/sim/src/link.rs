//! The network between nodes and managers.
//!
//! Owns: delays, cuts, and the end of sessions. Does not know: what is said.
//! Invariant: like a stream, a link never loses a message between two that arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent::LogUplink;
use base::IdSource;
use manager::DispatcherHandle;
use ports::{Link, LinkError, SessionDialer};
use testkit::fake::Gate;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Duration, sleep};
use types::NodeId;
use wire::v1::{LogsPublish, ManagerMessage, NodeMessage};

/// A stream that carries nothing for this long is broken.
const STALL_MAX: Duration = Duration::from_secs(8);
const STALL_POLL: Duration = Duration::from_millis(100);

struct Inner {
    /// Hosts and managers that do not reach each other.
    cut: BTreeSet<(usize, usize)>,
    managers: BTreeMap<usize, DispatcherHandle>,
    /// Open links by host and manager.
    open: Vec<(usize, usize, AbortHandle)>,
    random: IdSource,
    /// Of each host; those of the managers come first.
    gates: Vec<Gate>,
}

#[derive(Clone)]
pub(crate) struct Net {
    inner: Arc<Mutex<Inner>>,
}

impl Net {
    pub(crate) fn new(random: IdSource, gates: Vec<Gate>) -> Self {
        let (cut, managers, open) = (BTreeSet::new(), BTreeMap::new(), Vec::new());
        let inner = Inner { cut, managers, open, random, gates };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_cut(&self, host: usize, manager: usize, cut: bool) {
        let mut inner = self.lock();
        if cut {
            inner.cut.insert((host, manager));
        } else {
            inner.cut.remove(&(host, manager));
        }
    }

    /// A manager's dispatcher has begun, or (`None`) its daemon has died.
    pub(crate) fn set_manager(&self, manager: usize, handle: Option<DispatcherHandle>) {
        let mut inner = self.lock();
        match handle {
            Some(handle) => drop(inner.managers.insert(manager, handle)),
            None => {
                inner.managers.remove(&manager);
                inner.close(|(_, other)| other == manager);
            }
        }
    }

    /// A host's daemon has died: its links end.
    pub(crate) fn close_host(&self, host: usize) {
        self.lock().close(|(other, _)| other == host);
    }

    /// Nothing gets through: the line is cut, or one of the ends stands still.
    fn is_blocked(&self, host: usize, manager: usize) -> bool {
        let inner = self.lock();
        let stopped = [host, manager].iter().any(|end| inner.gates[*end].is_stopped());
        stopped || inner.cut.contains(&(host, manager))
    }

    fn gate(&self, host: usize) -> Gate {
        self.lock().gates[host].clone()
    }

    fn delay(&self) -> Duration {
        let mut inner = self.lock();
        // Mostly quick, now and then slow.
        let wait = match inner.random.below(50) {
            0 => inner.random.below(1_500),
            _ => 1 + inner.random.below(15),
        };
        Duration::from_millis(wait)
    }

    /// Carries messages one way until either end or the network gives up.
    async fn carry<T: Send>(
        self,
        (host, manager): (usize, usize),
        mut from: mpsc::Receiver<T>,
        to: mpsc::Sender<T>,
    ) {
        loop {
            let message = tokio::select! {
                biased;
                () = to.closed() => return,
                message = from.recv() => match message { Some(message) => message, None => return },
            };
            sleep(self.delay()).await;
            let mut stalled = Duration::ZERO;
            while self.is_blocked(host, manager) {
                sleep(STALL_POLL).await;
                stalled += STALL_POLL;
                if stalled >= STALL_MAX {
                    return;
                }
            }
            if to.send(message).await.is_err() {
                return;
            }
        }
    }
}

impl Inner {
    fn close(&mut self, which: impl Fn((usize, usize)) -> bool) {
        self.open.retain(|(host, manager, task)| {
            let closes = which((*host, *manager));
            if closes {
                task.abort();
            }
            !closes && !task.is_finished()
        });
    }
}

/// One host's way to the managers.
#[derive(Clone)]
pub(crate) struct Dialer {
    pub net: Net,
    pub host: usize,
    pub node: NodeId,
}

impl SessionDialer<NodeMessage, ManagerMessage> for Dialer {
    async fn dial(&self, address: &str) -> Result<Link<NodeMessage, ManagerMessage>, LinkError> {
        sleep(self.net.delay()).await;
        self.net.gate(self.host).pass().await;
        let unreachable =
            || LinkError::Unreachable { address: address.to_owned(), problem: "no answer".into() };
        let number = address.trim_start_matches("manager-").trim_end_matches(":2377");
        let manager: usize = number.parse().map_err(|_| unreachable())?;
        // The kernel takes the connection, but nobody answers on it.
        self.net.gate(manager).pass().await;
        let handle = {
            let inner = self.net.lock();
            let cut = inner.cut.contains(&(self.host, manager));
            inner.managers.get(&manager).filter(|_| !cut).cloned().ok_or_else(unreachable)?
        };
        let (node_end, node_far) = Link::pair(64);
        let (manager_end, manager_far) = Link::pair(64);
        let ends = (self.host, manager);
        let up = tokio::spawn(self.net.clone().carry(ends, node_far.rx, manager_far.tx));
        let down = tokio::spawn(self.net.clone().carry(ends, manager_far.rx, node_far.tx));
        {
            let mut inner = self.net.lock();
            inner.open.retain(|(_, _, task)| !task.is_finished());
            inner.open.push((self.host, manager, up.abort_handle()));
            inner.open.push((self.host, manager, down.abort_handle()));
        }
        handle.attach(self.node, format!("10.0.0.{}", self.host + 1), manager_end).await;
        Ok(node_end)
    }
}

impl LogUplink for Dialer {
    async fn publish(&self, _: &str, mut stream: mpsc::Receiver<LogsPublish>) {
        while stream.recv().await.is_some() {}
    }
}
