//! The thread that the machine lives on.
//!
//! Owns: the machine, the published view, the order in which changes are told.
//! Does not know: Raft, files.
//! Invariant: whoever is told of an entry, by hook, counter or reply, finds it in the view.

use std::io::Read;
use std::sync::Arc;
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use crate::limits::APPLY_QUEUE_MAX;
use crate::machine::{Applied, Machine, OnApply};
use crate::raft_types::Erased;

/// Handle of the thread; it ends when the last clone is dropped.
pub(crate) struct Applier<M: Machine> {
    queue: mpsc::Sender<Command>,
    view: Arc<ArcSwap<M::View>>,
    applied: watch::Receiver<u64>,
    _thread: Arc<ThreadGuard>,
}

impl<M: Machine> Clone for Applier<M> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            view: Arc::clone(&self.view),
            applied: self.applied.clone(),
            _thread: Arc::clone(&self._thread),
        }
    }
}

enum Command {
    /// Entries with their payloads; none for entries that are Raft's own.
    Apply {
        entries: Vec<(u64, Option<Bytes>)>,
        reply: Answer<Vec<Erased>>,
    },
    Restore {
        index: u64,
        source: Box<dyn Read + Send>,
        reply: Answer<()>,
    },
}

type Answer<T> = oneshot::Sender<Result<T, String>>;

/// Joins the thread when the last handle is gone; its queue is closed by then.
struct ThreadGuard(Option<JoinHandle<()>>);

impl Drop for ThreadGuard {
    fn drop(&mut self) {
        if let Some(handle) = self.0.take()
            && handle.join().is_err()
        {
            tracing::error!("state machine thread panicked");
        }
    }
}

impl<M: Machine> Applier<M> {
    pub(crate) fn start(machine: M, hook: OnApply<M::Reply>) -> std::io::Result<Self> {
        let (queue, commands) = mpsc::channel(APPLY_QUEUE_MAX);
        let view = Arc::new(ArcSwap::from_pointee(machine.view()));
        let (applied, applied_seen) = watch::channel(0);
        let worker = Worker { machine, hook, view: Arc::clone(&view), applied };
        let thread = std::thread::Builder::new()
            .name("state".to_owned())
            .spawn(move || worker.run(commands))?;
        let _thread = Arc::new(ThreadGuard(Some(thread)));
        Ok(Self { queue, view, applied: applied_seen, _thread })
    }

    /// The state after the last applied entry.
    pub(crate) fn view(&self) -> M::View {
        M::View::clone(&self.view.load())
    }

    /// Index of the last applied entry; 0 before the first.
    pub(crate) fn applied(&self) -> watch::Receiver<u64> {
        self.applied.clone()
    }

    /// Applies entries in order; a reply for each.
    pub(crate) async fn apply(
        &self,
        entries: Vec<(u64, Option<Bytes>)>,
    ) -> Result<Vec<Erased>, String> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Apply { entries, reply }, answer).await
    }

    /// Replaces the machine by what `source` holds; it ends with entry `index`.
    pub(crate) async fn restore(
        &self,
        index: u64,
        source: Box<dyn Read + Send>,
    ) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Restore { index, source, reply }, answer).await
    }

    async fn ask<T>(
        &self,
        command: Command,
        answer: oneshot::Receiver<Result<T, String>>,
    ) -> Result<T, String> {
        let gone = || "the state machine's thread is gone".to_owned();
        self.queue.send(command).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

struct Worker<M: Machine> {
    machine: M,
    hook: OnApply<M::Reply>,
    view: Arc<ArcSwap<M::View>>,
    applied: watch::Sender<u64>,
}

impl<M: Machine> Worker<M> {
    fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        while let Some(command) = commands.blocking_recv() {
            // Whoever asked may be gone; the state has changed all the same.
            match command {
                Command::Apply { entries, reply } => drop(reply.send(self.apply(entries))),
                Command::Restore { index, source, reply } => {
                    drop(reply.send(self.restore(index, source)));
                }
            }
        }
    }

    fn apply(&mut self, entries: Vec<(u64, Option<Bytes>)>) -> Result<Vec<Erased>, String> {
        let Some((last, _)) = entries.last().cloned() else { return Ok(Vec::new()) };
        let mut replies = Vec::with_capacity(entries.len());
        for (index, payload) in entries {
            let reply = match payload {
                None => None,
                Some(payload) => Some(
                    self.machine
                        .apply(index, &payload)
                        .map_err(|halt| format!("log entry {index} cannot be applied: {halt}"))?,
                ),
            };
            replies.push((index, reply));
        }
        self.view.store(Arc::new(self.machine.view()));
        for (index, reply) in &replies {
            if let Some(reply) = reply {
                (self.hook)(Applied::Entry { index: *index, reply });
            }
        }
        self.applied.send_replace(last);
        let erase = |reply: Option<M::Reply>| reply.map_or_else(Erased::none, Erased::new);
        Ok(replies.into_iter().map(|(_, reply)| erase(reply)).collect())
    }

    fn restore(&mut self, index: u64, mut source: Box<dyn Read + Send>) -> Result<(), String> {
        let machine = M::restore(&mut *source);
        self.machine = machine.map_err(|error| format!("snapshot cannot be restored: {error}"))?;
        self.view.store(Arc::new(self.machine.view()));
        (self.hook)(Applied::Restored { index });
        self.applied.send_replace(index);
        Ok(())
    }
}
