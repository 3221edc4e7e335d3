//! One task on this node: asks the core for the next step, and performs it.
//!
//! Owns: performing the steps of one task, and retrying what must not fail for good.
//! Does not know: the session, the database; it reports to the agent's loop.
//! Invariant: a step that takes long is given up when the task is no longer wanted to run.

use std::sync::Arc;

use base::{Millis, Timestamp, chain};
use futures::StreamExt;
use lifecycle::{Observed, Step, Wanted, decide_failure, decide_step};
use ports::Clock;
use ports::network::{Attached, Network};
use ports::runtime::{ContainerState, PullItem, Runtime, RuntimeError};
use tokio::sync::{mpsc, watch};
use types::{Attachment, TaskId, TaskSpec, TaskState, TaskStatus};

use crate::container::{TaskIdentity, TaskNetworking, container_config};

/// Wait between tries of what must succeed in the end (stopping, removing), and its cap.
const RETRY_FLOOR: Millis = Millis(200);
const RETRY_CAP: Millis = Millis::from_secs(30);
/// A task that needs networks waits that long until its node has been told of them.
const DIRECTORY_WAIT_MAX: Millis = Millis::from_secs(60);

/// What a task loop tells the agent's loop.
#[derive(Debug)]
pub(crate) enum Update {
    Status(TaskId, TaskStatus),
    /// Nothing of the task is left on this node.
    Forgotten(TaskId),
    /// The networks are as the managers said up to this index.
    Programmed {
        epoch: u64,
        index: u64,
    },
}

/// What the task loops share.
pub(crate) struct Node<R, N, C> {
    pub runtime: R,
    pub network: N,
    pub clock: C,
    pub updates: mpsc::Sender<Update>,
}

/// One task, its loop's own.
pub(crate) struct TaskLoop<R, N, C> {
    pub node: Arc<Node<R, N, C>>,
    pub identity: TaskIdentity,
    pub spec: Arc<TaskSpec>,
    pub status: TaskStatus,
    pub observed: Observed,
    pub network: TaskNetworking,
    /// The update of the directory that it has to wait for, and the last one carried out.
    pub directory: (u64, watch::Receiver<u64>),
    pub wanted: watch::Receiver<Wanted>,
    pub connected: watch::Receiver<Connected>,
    /// How often in a row the links could not be made as `connected` says; `None`: they are.
    pub unconnected: Option<u32>,
}

/// What a running task was connected to, and the update of the directory that it needs.
pub(crate) type Connected = (u64, Vec<Attachment>);

/// What a step came to.
enum Outcome {
    Done,
    /// No longer wanted: ask for the next step.
    GivenUp,
    Failed(RuntimeError),
}

impl<R: Runtime, N: Network, C: Clock> TaskLoop<R, N, C> {
    /// Runs until the task is forgotten, or the agent goes away.
    pub(crate) async fn run(mut self) {
        let mut failures = 0;
        self.recall_connections().await;
        self.recall_ports().await;
        loop {
            let wanted = *self.wanted.borrow_and_update();
            let step = decide_step(wanted, &self.status, &self.observed, self.node.clock.now());
            let outcome = match step {
                Step::Report(status) => {
                    self.report(status).await;
                    Outcome::Done
                }
                Step::Prepare => self.prepare().await,
                Step::Start => self.start().await,
                Step::Stop => self.stop().await,
                Step::Remove => self.remove().await,
                // A preparation that failed or was cut short may have left a part of itself.
                Step::Forget => match self.remove().await {
                    Outcome::Failed(error) => Outcome::Failed(error),
                    Outcome::Done | Outcome::GivenUp => {
                        let _ = self.node.updates.send(Update::Forgotten(self.identity.id)).await;
                        return;
                    }
                },
                Step::Wait => {
                    if !self.wait().await {
                        return;
                    }
                    Outcome::Done
                }
            };
            match outcome {
                Outcome::Done | Outcome::GivenUp => failures = 0,
                Outcome::Failed(error) if self.is_forward() => self.fail(&error).await,
                Outcome::Failed(error) => {
                    failures += 1;
                    self.retry_later(&error, failures).await;
                }
            }
        }
    }

    /// What an earlier daemon was told of connections it may not have done.
    async fn recall_connections(&mut self) {
        if matches!(self.observed, Observed::Running { .. }) {
            let there = self.node.network.connections(&self.id()).await;
            let wanted = &self.network.container.connected;
            let same = there.len() == wanted.len()
                && wanted.iter().all(|one| there.contains(&one.network));
            self.unconnected = (!same).then_some(0);
        }
    }

    /// Which ports an earlier daemon chose, when it did not come to say so.
    async fn recall_ports(&mut self) {
        let is_made = matches!(self.observed, Observed::Created | Observed::Running { .. });
        let publishes = !self.network.container.host_ports.is_empty();
        if self.status.state >= TaskState::Running || !is_made || !publishes {
            return;
        }
        let mut wanted = self.wanted.clone();
        tokio::select! {
            biased;
            _ = wanted.wait_for(|wanted| !is_wanted(*wanted)) => {}
            attached = self.attach() => match attached {
                Ok(attached) => self.network.learn_ports(&attached.host_ports),
                Err(error) => {
                    tracing::warn!(task.id = %self.identity.id, %error, "its ports are not known");
                }
            },
        }
    }

    fn id(&self) -> String {
        self.identity.id.to_string()
    }

    /// The task is still on its way to running: a failure ends it.
    fn is_forward(&self) -> bool {
        !self.status.state.is_terminal() && is_wanted(*self.wanted.borrow())
    }

    async fn report(&mut self, status: TaskStatus) {
        let ports = self.network.ports.clone().filter(|_| status.state == TaskState::Running);
        let status = TaskStatus { ports, ..status };
        tracing::debug!(task.id = %self.identity.id, state = status.state.name(), "task moved");
        let is_over = status.state.is_terminal();
        let publishes = !self.network.container.host_ports.is_empty();
        if is_over && publishes {
            // Whoever comes after it may want the same port.
            self.leave().await;
        }
        self.status = status.clone();
        let _ = self.node.updates.send(Update::Status(self.identity.id, status)).await;
        if is_over && !publishes {
            self.leave().await;
        }
    }

    /// What has ended needs no network, though its container stays for its logs.
    async fn leave(&self) {
        if let Err(error) = self.node.network.detach(&self.id()).await {
            // Tried again with the removal of its container.
            tracing::warn!(task.id = %self.identity.id, %error, "its network is not left");
        }
    }

    async fn fail(&mut self, error: &RuntimeError) {
        let code = match error {
            RuntimeError::NotExecutable { code, .. } => Some(*code),
            _ => None,
        };
        // What is rejected may work on another node: which one it was is part of the reason.
        let text = match self.status.state < TaskState::Starting {
            true => format!("node {}: {}", self.identity.node_name, chain(error)),
            false => chain(error).to_string(),
        };
        tracing::warn!(task.id = %self.identity.id, error = text, "task failed");
        let now = self.node.clock.now();
        self.report(decide_failure(&self.status, &text, code, now)).await;
    }

    /// Stopping and removing must succeed in the end.
    async fn retry_later(&mut self, error: &RuntimeError, failures: u32) {
        tracing::warn!(task.id = %self.identity.id, %error, failures, "step failed, trying again");
        let wait = RETRY_FLOOR.saturating_mul(1 << failures.min(10)).min(RETRY_CAP);
        let at = Millis(self.node.clock.monotonic().0 + wait.0);
        tokio::select! {
            biased;
            _ = self.wanted.changed() => {}
            () = self.node.clock.sleep_until(at) => {}
        }
    }

    async fn prepare(&mut self) -> Outcome {
        let mut wanted = self.wanted.clone();
        let prepared = tokio::select! {
            biased;
            _ = wanted.wait_for(|wanted| !is_wanted(*wanted)) => return Outcome::GivenUp,
            prepared = self.prepare_all() => prepared,
        };
        match prepared {
            Ok(attached) => {
                self.network.learn_ports(&attached.host_ports);
                self.observed = Observed::Created;
                Outcome::Done
            }
            Err(error) => Outcome::Failed(error),
        }
    }

    /// Image and network at the same time, then the container.
    async fn prepare_all(&self) -> Result<Attached, RuntimeError> {
        let (image, attached) = tokio::join!(self.image(), self.attach());
        image?;
        let attached = attached?;
        let config = container_config(&self.identity, &self.spec, attached.clone());
        self.node.runtime.create(&config).await?;
        Ok(attached)
    }

    /// Joins its networks, once this node knows them.
    async fn attach(&self) -> Result<Attached, RuntimeError> {
        if self.network.needs_directory() {
            let (number, mut carried) = (self.directory.0, self.directory.1.clone());
            let clock = &self.node.clock;
            let until = Millis(clock.monotonic().0 + DIRECTORY_WAIT_MAX.0);
            tokio::select! {
                biased;
                known = carried.wait_for(|carried| *carried >= number) => drop(known),
                () = clock.sleep_until(until) => {
                    return Err(RuntimeError::Failed {
                        step: "join the task's networks",
                        problem: "this node has not been told of them in time".to_owned(),
                    });
                }
            }
        }
        self.node.network.attach(&self.network.container).await
    }

    /// Pulls the image unless this node has it.
    async fn image(&self) -> Result<(), RuntimeError> {
        let reference = &self.spec.container.image;
        if self.node.runtime.find_image(reference).await?.is_some() {
            return Ok(());
        }
        let mut pull = self.node.runtime.pull_image(reference, None);
        while let Some(item) = pull.next().await {
            if let PullItem::Done(_) = item? {
                return Ok(());
            }
        }
        Err(RuntimeError::ImageMissing { reference: reference.clone(), detail: String::new() })
    }

    async fn start(&mut self) -> Outcome {
        if let Err(error) = self.node.runtime.start(&self.id()).await {
            return Outcome::Failed(error);
        }
        self.observe().await
    }

    async fn stop(&mut self) -> Outcome {
        if let Some(limit) = self.network.drain {
            // The balancers have let go of it: who is still connected may finish.
            let id = self.id();
            tokio::select! {
                biased;
                _ = self.node.runtime.wait(&id) => return self.observe().await,
                () = self.node.network.drain(&id, limit) => {}
            }
        }
        let grace = self.spec.container.stop_grace();
        if let Err(error) = self.node.runtime.stop(&self.id(), grace).await {
            return Outcome::Failed(error);
        }
        self.observe().await
    }

    async fn remove(&mut self) -> Outcome {
        let id = self.id();
        let removed = self.node.runtime.remove(&id).await;
        let detached = self.node.network.detach(&id).await;
        match removed.and(detached) {
            Ok(()) => {
                self.observed = Observed::Absent;
                Outcome::Done
            }
            Err(error) => Outcome::Failed(error),
        }
    }

    /// Looks what has become of the container.
    async fn observe(&mut self) -> Outcome {
        let id = self.id();
        match self.node.runtime.observe().await {
            Ok(all) => {
                let found = all.into_iter().find(|one| one.id == id);
                self.observed = found.map_or(Observed::Absent, |one| observed(&one.state));
                Outcome::Done
            }
            Err(error) => Outcome::Failed(error),
        }
    }

    /// Joins the networks that a running task was connected to, and leaves those that it is not
    /// any more; `false` when the agent is gone.
    async fn follow_connections(&mut self, failures: u32) -> bool {
        let (number, connected) = self.connected.borrow_and_update().clone();
        self.directory.0 = self.directory.0.max(number);
        self.network.container.connected = connected;
        let mut wanted = self.wanted.clone();
        let attached = tokio::select! {
            biased;
            changed = wanted.changed() => return changed.is_ok(),
            attached = self.attach() => attached,
        };
        let Err(error) = attached else {
            self.unconnected = None;
            return true;
        };
        tracing::warn!(task.id = %self.identity.id, %error, failures, "not connected yet");
        self.unconnected = Some(failures.saturating_add(1));
        let wait = RETRY_FLOOR.saturating_mul(1 << failures.min(10)).min(RETRY_CAP);
        let at = Millis(self.node.clock.monotonic().0 + wait.0);
        let mut connected = self.connected.clone();
        tokio::select! {
            biased;
            changed = wanted.changed() => changed.is_ok(),
            changed = connected.changed() => changed.is_ok(),
            () = self.node.clock.sleep_until(at) => true,
        }
    }

    /// Waits for another wish or for the container's end; `false` when the agent is gone.
    async fn wait(&mut self) -> bool {
        let id = self.id();
        let running = matches!(self.observed, Observed::Running { .. });
        if let Some(failures) = self.unconnected.filter(|_| running) {
            return self.follow_connections(failures).await;
        }
        tokio::select! {
            biased;
            changed = self.wanted.changed() => changed.is_ok(),
            changed = self.connected.changed(), if running => {
                self.unconnected = Some(0);
                changed.is_ok()
            }
            ended = self.node.runtime.wait(&id), if running => {
                match ended {
                    Ok(state) => self.observed = observed(&state),
                    Err(error) => {
                        let task = self.identity.id;
                        tracing::warn!(task.id = %task, %error, "lost sight of container");
                        self.observed = Observed::Lost;
                    }
                }
                true
            }
        }
    }
}

fn is_wanted(wanted: Wanted) -> bool {
    matches!(wanted, Wanted::Desired(desired) if desired <= TaskState::Running)
}

/// What the runtime saw, in the words of the lifecycle.
pub(crate) fn observed(state: &ContainerState) -> Observed {
    match state {
        ContainerState::Created => Observed::Created,
        ContainerState::Running { pid, .. } => Observed::Running { pid: *pid },
        ContainerState::Exited(exit) => Observed::Exited { code: exit.code, oom: exit.oom },
        ContainerState::Lost => Observed::Lost,
    }
}

/// The status of a task that has none yet.
pub(crate) fn assigned(at: Timestamp) -> TaskStatus {
    TaskStatus { state: TaskState::Assigned, at, ..TaskStatus::default() }
}
