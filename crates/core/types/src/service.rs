//! A service: the desired state, and how far it has come.
//!
//! Owns: the record, its revisions, update status and reasons.
//! Invariant: a revision is never changed; a changed template is a new one.

use std::sync::Arc;

use base::Timestamp;

use crate::constraint::Constraint;
use crate::{Endpoint, Meta, Node, PortSpec, ServiceId, ServiceSpec, TaskSpec, VirtualAddress};

#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    pub id: ServiceId,
    pub meta: Meta,
    pub spec: Arc<ServiceSpec>,
    /// The spec before the last change by a user.
    pub previous: Option<Arc<ServiceSpec>>,
    /// Raft index of the change that made the current template.
    pub revision: u64,
    pub update: Option<UpdateStatus>,
    /// Why it is not as wanted; one per decider, sorted by its name.
    pub reasons: Vec<Reason>,
    /// What it was given of the network; `None`: nothing yet, or nothing is wanted.
    pub endpoint: Option<Arc<Endpoint>>,
}

impl Service {
    /// The virtual addresses that it holds.
    pub fn held(&self) -> impl Iterator<Item = &VirtualAddress> {
        self.endpoint.iter().flat_map(|endpoint| &endpoint.vips)
    }
}

/// One version of a service's template, shared by all tasks that run it.
#[derive(Clone, Debug, PartialEq)]
pub struct Revision {
    pub service: ServiceId,
    pub number: u64,
    pub spec: Arc<TaskSpec>,
    /// Ports that each of its tasks publishes for itself.
    pub host_ports: Arc<[PortSpec]>,
    /// Its tasks have an address on the ingress network.
    pub mesh: bool,
    /// The constraints of `spec`, read once: every decision about a place asks for them.
    constraints: Arc<[Constraint]>,
}

impl Revision {
    /// Constraints that make no sense are left out: the checks of a spec refuse them.
    #[must_use]
    pub fn new(service: ServiceId, number: u64, spec: Arc<TaskSpec>) -> Self {
        let parse = |text: &String| Constraint::parse(text).ok();
        let constraints = spec.placement.constraints.iter().filter_map(parse).collect();
        Self { service, number, spec, host_ports: Arc::default(), mesh: false, constraints }
    }

    /// The same, with what its tasks publish.
    #[must_use]
    pub fn publishing(mut self, host_ports: Vec<PortSpec>, mesh: bool) -> Self {
        self.host_ports = host_ports.into();
        self.mesh = mesh;
        self
    }

    /// The template of a service as it is wanted now.
    #[must_use]
    pub fn of(service: ServiceId, number: u64, spec: &ServiceSpec) -> Self {
        Self::new(service, number, Arc::new(spec.task.clone()))
            .publishing(spec.host_ports().cloned().collect(), spec.needs_ingress())
    }

    /// Its tasks are given something of the network before they can go anywhere.
    #[must_use]
    pub fn needs_network(&self) -> bool {
        self.mesh || !self.spec.networks.is_empty()
    }

    /// What its tasks publish is the same: whoever changes from the one to the other need not be
    /// replaced for that.
    #[must_use]
    pub fn publishes_as(&self, other: &Self) -> bool {
        self.mesh == other.mesh && self.host_ports == other.host_ports
    }

    /// Whether the labels and so on of `node` are as the constraints want them.
    #[must_use]
    pub fn constraints_match(&self, node: &Node) -> bool {
        self.constraints.iter().all(|constraint| constraint.matches(node))
    }

    /// Whether it runs on the platform of `node`.
    #[must_use]
    pub fn platform_fits(&self, node: &Node) -> bool {
        let wanted = &self.spec.placement.platforms;
        wanted.is_empty() || wanted.iter().any(|one| node.description.platform.fits(one))
    }

    /// Whether a task may be on `node`, as far as labels and platform go.
    #[must_use]
    pub fn allows(&self, node: &Node) -> bool {
        self.constraints_match(node) && self.platform_fits(node)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateState {
    Updating = 1,
    Paused = 2,
    Completed = 3,
    RollbackStarted = 4,
    RollbackPaused = 5,
    RollbackCompleted = 6,
}

impl UpdateState {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Updating => "updating",
            Self::Paused => "paused",
            Self::Completed => "completed",
            Self::RollbackStarted => "rollback_started",
            Self::RollbackPaused => "rollback_paused",
            Self::RollbackCompleted => "rollback_completed",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateStatus {
    pub state: UpdateState,
    pub started: Timestamp,
    pub completed: Timestamp,
    pub message: String,
}

/// Why a service is not as wanted, in the words of one decider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    pub decider: String,
    /// From a closed list of that decider, e.g. `no-suitable-node`.
    pub code: String,
    pub message: String,
    /// How many tasks it concerns.
    pub count: u64,
    pub since: Timestamp,
}
