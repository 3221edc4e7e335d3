//! From a task's template to its container.
//!
//! Owns: names, labels, environment and limits of a task's container, as docker's users expect.
//! Does not know: how a container is made. Invariant: a function of its arguments.

use std::sync::Arc;

use base::Millis;
use ports::network::{Attached, ContainerNetwork, Drain, HostPort};
use ports::runtime::ContainerConfig;
use types::{Attachment, Fault, NodeId, ServiceId, Slot, TaskId, TaskNetwork, TaskSpec};
use wire::v1;

/// Bytes of one log file, and how many are kept.
const LOG_FILE_BYTES: u64 = 10 * 1024 * 1024;
const LOG_FILES: u32 = 5;
/// Characters of an identity that make a host name, as docker's.
const HOSTNAME_CHARS: usize = 12;

/// Who a task is.
#[derive(Clone, Debug)]
pub(crate) struct TaskIdentity {
    pub id: TaskId,
    pub service: ServiceId,
    pub service_name: String,
    pub slot: Slot,
    pub node: NodeId,
    pub node_name: String,
}

impl TaskIdentity {
    /// `web.1`, or `web.<node>` of a global service.
    pub(crate) fn name(&self) -> String {
        match self.slot {
            Slot::Replica(number) => format!("{}.{number}", self.service_name),
            Slot::Node => format!("{}.{}", self.service_name, self.node),
        }
    }
}

/// What a task's container sees of the network, and how it leaves.
#[derive(Clone, Debug)]
pub(crate) struct TaskNetworking {
    pub container: ContainerNetwork,
    /// `None`: nothing leads to it, so that it may be stopped at once.
    pub drain: Option<Drain>,
    /// Ports of this node that lead to it, as far as they are known.
    pub ports: Option<Arc<Vec<HostPort>>>,
}

impl TaskNetworking {
    /// # Errors
    /// When the assignment is not one that this version understands.
    pub(crate) fn new(
        task: &TaskIdentity,
        spec: &TaskSpec,
        assigned: Option<&v1::AssignedNetwork>,
    ) -> Result<Self, Fault> {
        let mut container = ContainerNetwork {
            id: task.id.to_string(),
            names: names(task),
            hostname: hostname(task, spec),
            hosts: spec.container.hosts.clone(),
            dns: spec.container.dns.clone().unwrap_or_default(),
            ..ContainerNetwork::default()
        };
        let Some(assigned) = assigned else { return Ok(Self::of(container, None)) };
        let given = assigned.network.clone().unwrap_or_default();
        let given: TaskNetwork = given.try_into()?;
        container.connected = given.connected.iter().map(|one| one.attachment).collect();
        (container.attachments, container.mesh) = (given.attachments, given.mesh);
        let ports = assigned.host_ports.iter().cloned().map(TryInto::try_into);
        container.host_ports = ports.collect::<Result<_, Fault>>()?;
        let (min, max) = (Millis(assigned.drain_min_ms), Millis(assigned.drain_max_ms));
        let drain = (max > Millis::ZERO).then_some(Drain { min: min.min(max), max });
        Ok(Self::of(container, drain))
    }

    fn of(container: ContainerNetwork, drain: Option<Drain>) -> Self {
        Self { container, drain, ports: None }
    }

    /// Keeps which ports were chosen.
    pub(crate) fn learn_ports(&mut self, attached: &[HostPort]) {
        self.ports = (!attached.is_empty()).then(|| Arc::new(attached.to_vec()));
    }

    /// It joins networks that the managers have to tell of first.
    pub(crate) fn needs_directory(&self) -> bool {
        let cluster = |attachment: &Attachment| !attachment.network.is_predefined();
        let mut all = self.container.attachments.iter().chain(&self.container.connected);
        self.container.mesh.is_some() || all.any(cluster)
    }
}

/// What an assignment says that the task was connected to, if it makes sense.
pub(crate) fn connected(assigned: Option<&v1::AssignedNetwork>) -> Option<Vec<Attachment>> {
    let given = assigned.and_then(|assigned| assigned.network.clone()).unwrap_or_default();
    let given: TaskNetwork = given.try_into().ok()?;
    Some(given.connected.into_iter().map(|one| one.attachment).collect())
}

/// By which it is known on networks of the node's own: as docker's, the container's name first.
fn names(task: &TaskIdentity) -> Vec<String> {
    let (id, name) = (task.id.to_string(), task.name());
    let short = id[..HOSTNAME_CHARS].to_owned();
    vec![format!("{name}.{id}"), name, short]
}

/// As the service wants it, else the beginning of the task's id, as docker does.
fn hostname(task: &TaskIdentity, spec: &TaskSpec) -> String {
    match spec.container.hostname.is_empty() {
        true => task.id.to_string()[..HOSTNAME_CHARS].to_owned(),
        false => spec.container.hostname.clone(),
    }
}

/// The container of a task.
pub(crate) fn container_config(
    task: &TaskIdentity,
    spec: &TaskSpec,
    network: Attached,
) -> ContainerConfig {
    let container = &spec.container;
    let id = task.id.to_string();
    let name = format!("{}.{id}", task.name());
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    let mut labels = container.labels.clone();
    for (key, value) in [
        ("com.docker.swarm.task", String::new()),
        ("com.docker.swarm.task.id", id.clone()),
        ("com.docker.swarm.task.name", name.clone()),
        ("com.docker.swarm.node.id", task.node.to_string()),
        ("com.docker.swarm.service.id", task.service.to_string()),
        ("com.docker.swarm.service.name", task.service_name.clone()),
    ] {
        labels.insert(key.to_owned(), value);
    }
    let mut env =
        vec![format!("SHOAL_TASK_NAME={}", task.name()), format!("SHOAL_NODE={}", task.node_name)];
    env.extend(container.env.iter().cloned());
    ContainerConfig {
        hostname: hostname(task, spec),
        id,
        name,
        image: container.image.clone(),
        command: container.command.clone(),
        args: container.args.clone(),
        env,
        workdir: text(&container.workdir),
        user: text(&container.user),
        groups: container.groups.clone(),
        labels,
        read_only: container.read_only,
        cap_add: container.cap_add.clone(),
        cap_drop: container.cap_drop.clone(),
        stop_signal: text(&container.stop_signal),
        cpu_nanos: spec.limits.cpu_nanos,
        memory_bytes: spec.limits.memory_bytes,
        pids: spec.limits.pids,
        netns: network.netns,
        hosts: network.hosts,
        resolv_conf: network.resolv_conf,
        log_file_bytes: LOG_FILE_BYTES,
        log_files: LOG_FILES,
    }
}
