//! From a task's template to its container.
//!
//! Owns: names, labels, environment and limits of a task's container, as docker's users expect.
//! Does not know: how a container is made. Invariant: a function of its arguments.

use ports::network::Attached;
use ports::runtime::ContainerConfig;
use types::{NodeId, ServiceId, Slot, TaskId, TaskSpec};

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
        hostname: text(&container.hostname).unwrap_or_else(|| id[..HOSTNAME_CHARS].to_owned()),
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
