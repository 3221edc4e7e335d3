//! From options to specs.
//!
//! Owns: what each option of `service create` and `service update` does to a spec.
//! Does not know: the daemon; it checks the spec once more and alone knows the cluster.
//! Invariant: an option that was not given changes nothing.

mod create;
mod environment;
mod update;

pub(crate) use create::create;
pub(crate) use update::update;

use types::{RestartCondition, ServiceMode, ServiceSpec};

use crate::args::service::{Common, RestartCondition as RestartArgument};
use crate::error::CliError;

/// Applies the options that `create` and `update` share, except `--replicas`.
fn apply_common(spec: &mut ServiceSpec, common: &Common) -> Result<(), CliError> {
    let task = &mut spec.task;
    set(&mut task.limits.cpu_nanos, common.limit_cpu);
    set(&mut task.limits.memory_bytes, common.limit_memory);
    set(&mut task.limits.pids, common.limit_pids);
    set(&mut task.reservations.cpu_nanos, common.reserve_cpu);
    set(&mut task.reservations.memory_bytes, common.reserve_memory);
    set(&mut task.restart.condition, common.restart_condition.map(condition));
    set(&mut task.restart.delay, common.restart_delay);
    set(&mut task.restart.max_attempts, common.restart_max_attempts);
    set(&mut task.restart.window, common.restart_window);
    set(&mut task.container.command, common.entrypoint.as_ref().map(|words| words.0.clone()));
    set(&mut task.container.hostname, common.hostname.clone());
    set(&mut task.container.workdir, common.workdir.clone());
    set(&mut task.container.user, common.user.clone());
    set(&mut task.container.read_only, common.read_only);
    set(&mut task.container.stop_signal, common.stop_signal.clone());
    if common.stop_grace_period.is_some() {
        task.container.stop_grace = common.stop_grace_period;
    }
    apply_capabilities(spec, common);
    if let Some(mode) = common.endpoint_mode {
        spec.endpoint.get_or_insert_default().mode = mode;
    }
    if let Some(most) = common.replicas_max_per_node {
        if !matches!(spec.mode, ServiceMode::Replicated(_)) {
            return Err(CliError::usage(
                "--replicas-max-per-node",
                "replicas-max-per-node can only be used with replicated or replicated-job mode",
            ));
        }
        spec.task.placement.max_replicas = most;
    }
    Ok(())
}

/// As docker's: what is added is no longer dropped, and the other way round.
fn apply_capabilities(spec: &mut ServiceSpec, common: &Common) {
    let container = &mut spec.task.container;
    for name in common.cap_add.iter().map(|name| capability(name)) {
        container.cap_drop.retain(|other| *other != name);
        insert(&mut container.cap_add, name);
    }
    for name in common.cap_drop.iter().map(|name| capability(name)) {
        let was_added = container.cap_add.contains(&name);
        container.cap_add.retain(|other| *other != name);
        // On update the two cancel out; on create a name in both lists is dropped.
        if !was_added || common.cap_add.iter().any(|added| capability(added) == name) {
            insert(&mut container.cap_drop, name);
        }
    }
    container.cap_add.sort();
    container.cap_drop.sort();
}

/// `net_admin` and `CAP_NET_ADMIN` are the same; `ALL` stays as it is.
fn capability(name: &str) -> String {
    let upper = name.trim().to_ascii_uppercase();
    if upper == "ALL" || upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") }
}

fn condition(argument: RestartArgument) -> RestartCondition {
    match argument {
        RestartArgument::None => RestartCondition::None,
        RestartArgument::OnFailure => RestartCondition::OnFailure,
        RestartArgument::Any => RestartCondition::Any,
    }
}

fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

fn insert(list: &mut Vec<String>, item: String) {
    if !list.contains(&item) {
        list.push(item);
    }
}
