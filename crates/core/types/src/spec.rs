//! What a user wants of a service.
//!
//! Owns: the service spec with room for everything that Swarm's has.
//! Does not know: what of it this version acts on; the API refuses what it does not.
//! Invariant: defaults are docker's, so an empty field means what docker's users expect.

use std::collections::BTreeMap;
use std::net::IpAddr;

use base::Millis;

use crate::{
    EndpointMode, Family, Labels, NetworkId, Platform, PortProtocol, PublishMode, Slot, limits,
};

#[derive(Clone, Debug, PartialEq)]
pub struct ServiceSpec {
    pub name: String,
    pub labels: Labels,
    pub task: TaskSpec,
    pub mode: ServiceMode,
    pub update: Option<UpdateConfig>,
    pub rollback: Option<UpdateConfig>,
    pub endpoint: Option<EndpointSpec>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceMode {
    /// That many slots, numbered from 1.
    Replicated(u64),
    /// One task on every eligible node.
    Global,
    ReplicatedJob(ReplicatedJob),
    GlobalJob,
}

impl ServiceMode {
    /// Docker's word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Replicated(_) => "replicated",
            Self::Global => "global",
            Self::ReplicatedJob(_) => "replicated-job",
            Self::GlobalJob => "global-job",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicatedJob {
    pub max_concurrent: u64,
    pub total_completions: u64,
}

/// The template of a service's tasks: a change of it replaces them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TaskSpec {
    pub container: ContainerSpec,
    pub limits: Resources,
    pub reservations: Resources,
    pub restart: RestartPolicy,
    pub placement: Placement,
    pub log_driver: Option<LogDriver>,
    pub networks: Vec<NetworkAttachment>,
    /// Raised by `--force`: replaces the tasks though nothing else changed.
    pub force_update: u64,
    pub memory_swap_bytes: Option<i64>,
    pub memory_swappiness: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerSpec {
    pub image: String,
    pub labels: Labels,
    /// Replaces the image's entrypoint when not empty.
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub hostname: String,
    pub env: Vec<String>,
    pub workdir: String,
    pub user: String,
    pub groups: Vec<String>,
    pub read_only: bool,
    pub stop_signal: String,
    /// `None`: [`limits::STOP_GRACE_DEFAULT`].
    pub stop_grace: Option<Millis>,
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    pub tty: bool,
    pub open_stdin: bool,
    pub init: Option<bool>,
    pub mounts: Vec<Mount>,
    pub healthcheck: Option<Healthcheck>,
    pub hosts: Vec<String>,
    pub dns: Option<DnsConfig>,
    pub secrets: Vec<FileReference>,
    pub configs: Vec<FileReference>,
    pub sysctls: BTreeMap<String, String>,
    pub ulimits: Vec<Ulimit>,
    pub oom_score_adj: i64,
    pub privileges: Option<Privileges>,
    pub isolation: String,
    pub registry_auth: Secret,
}

impl ContainerSpec {
    #[must_use]
    pub fn stop_grace(&self) -> Millis {
        self.stop_grace.unwrap_or(limits::STOP_GRACE_DEFAULT)
    }
}

/// A text that is never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { "redacted" })
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    pub kind: String,
    pub source: String,
    pub target: String,
    pub read_only: bool,
    pub options: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Healthcheck {
    pub test: Vec<String>,
    pub interval: Millis,
    pub timeout: Millis,
    pub retries: u64,
    pub start_period: Millis,
    pub start_interval: Millis,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsConfig {
    pub nameservers: Vec<String>,
    pub search: Vec<String>,
    pub options: Vec<String>,
}

/// A secret or config given to a task as a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileReference {
    pub id: Vec<u8>,
    pub name: String,
    pub target: String,
    pub uid: String,
    pub gid: String,
    pub mode: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ulimit {
    pub name: String,
    pub soft: i64,
    pub hard: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Privileges {
    pub credential_spec: String,
    pub selinux: BTreeMap<String, String>,
    pub seccomp_mode: String,
    pub seccomp_profile: Vec<u8>,
    pub apparmor_mode: String,
    pub no_new_privileges: bool,
}

/// Amounts; zero is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Billionths of a core.
    pub cpu_nanos: u64,
    pub memory_bytes: u64,
    pub pids: u64,
    pub generic: BTreeMap<String, u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RestartCondition {
    None = 1,
    OnFailure = 2,
    #[default]
    Any = 3,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestartPolicy {
    pub condition: RestartCondition,
    pub delay: Millis,
    /// Per slot; zero: no limit.
    pub max_attempts: u64,
    /// Zero: the whole history counts.
    pub window: Millis,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            condition: RestartCondition::Any,
            delay: limits::RESTART_DELAY_DEFAULT,
            max_attempts: 0,
            window: Millis::ZERO,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    pub constraints: Vec<String>,
    /// Descriptors such as `node.labels.zone`, in order.
    pub spread: Vec<String>,
    /// Per node; zero: no limit.
    pub max_replicas: u64,
    pub platforms: Vec<Platform>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogDriver {
    pub name: String,
    pub options: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkAttachment {
    /// As a user writes it: name or id. Stored it is the id's text.
    pub target: String,
    /// Further names of the service on this network.
    pub aliases: Vec<String>,
    pub driver_options: BTreeMap<String, String>,
    /// Fixed addresses: the i-th of a family belongs to slot i.
    pub addresses: Vec<IpAddr>,
    /// Fixed virtual addresses, at most one of each family.
    pub vips: Vec<IpAddr>,
}

impl NetworkAttachment {
    /// The network, in a spec that is stored.
    #[must_use]
    pub fn network(&self) -> Option<NetworkId> {
        self.target.parse().ok()
    }

    /// The address that belongs to a slot.
    #[must_use]
    pub fn address_of(&self, slot: Slot, family: Family) -> Option<IpAddr> {
        let Slot::Replica(number) = slot else { return None };
        let nth = usize::try_from(number).ok()?.checked_sub(1)?;
        self.addresses.iter().copied().filter(|at| Family::of(*at) == family).nth(nth)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FailureAction {
    #[default]
    Pause = 1,
    Continue = 2,
    Rollback = 3,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpdateOrder {
    #[default]
    StopFirst = 1,
    StartFirst = 2,
}

#[derive(Clone, Debug, PartialEq)]
pub struct UpdateConfig {
    /// Zero: all at once.
    pub parallelism: u64,
    pub delay: Millis,
    pub failure_action: FailureAction,
    pub monitor: Millis,
    /// 0 to 1.
    pub max_failure_ratio: f64,
    pub order: UpdateOrder,
}

impl Default for UpdateConfig {
    fn default() -> Self {
        Self {
            parallelism: 1,
            delay: Millis::ZERO,
            failure_action: FailureAction::Pause,
            monitor: limits::UPDATE_MONITOR_DEFAULT,
            max_failure_ratio: 0.0,
            order: UpdateOrder::StopFirst,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSpec {
    pub mode: EndpointMode,
    pub ports: Vec<PortSpec>,
}

/// A port that a service publishes.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortSpec {
    /// May be empty; one that has a name is found by SRV queries.
    pub name: String,
    pub protocol: PortProtocol,
    pub target: u16,
    /// Zero: one is chosen; by the cluster for the mesh, else by each node.
    pub published: u16,
    pub mode: PublishMode,
    /// Address or interface that it is bound to on each node; empty: all.
    pub host: String,
}

impl ServiceSpec {
    #[must_use]
    pub fn endpoint_mode(&self) -> EndpointMode {
        self.endpoint.as_ref().map(|endpoint| endpoint.mode).unwrap_or_default()
    }

    /// What it publishes, as asked for.
    #[must_use]
    pub fn ports(&self) -> &[PortSpec] {
        self.endpoint.as_ref().map_or(&[], |endpoint| &endpoint.ports)
    }

    fn ports_of(&self, mode: PublishMode) -> impl Iterator<Item = &PortSpec> {
        self.ports().iter().filter(move |port| port.mode == mode)
    }

    /// Ports that each task publishes for itself.
    pub fn host_ports(&self) -> impl Iterator<Item = &PortSpec> {
        self.ports_of(PublishMode::Host)
    }

    /// Ports that every node publishes.
    pub fn mesh_ports(&self) -> impl Iterator<Item = &PortSpec> {
        self.ports_of(PublishMode::Ingress)
    }

    /// Its tasks need an address on the ingress network.
    #[must_use]
    pub fn needs_ingress(&self) -> bool {
        self.mesh_ports().next().is_some()
    }

    /// The networks that it is on, in the order of its tasks' interfaces; those that are not known
    /// by id are left out.
    pub fn networks(&self) -> impl Iterator<Item = (NetworkId, &NetworkAttachment)> {
        self.task.networks.iter().filter_map(|one| Some((one.network()?, one)))
    }
}
