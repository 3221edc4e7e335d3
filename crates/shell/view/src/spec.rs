//! `ServiceSpec` and everything below it.
//!
//! Owns: the shape of specs. Does not know: services.
//! Invariant: credentials for registries are never shown.

use serde_json::{Value, json};
use types::{
    ContainerSpec, EndpointSpec, FailureAction, Healthcheck, Mount, Placement, PortSpec, Resources,
    RestartCondition, RestartPolicy, ServiceMode, ServiceSpec, TaskSpec, UpdateConfig, UpdateOrder,
};

use crate::json::{Object, map, nanos};

/// The spec of a service.
#[must_use]
pub fn service_spec(spec: &ServiceSpec) -> Value {
    Object::new()
        .with("Name", spec.name.as_str())
        .with("Labels", map(&spec.labels))
        .with("TaskTemplate", task_spec(&spec.task))
        .with("Mode", mode(spec.mode))
        .filled("UpdateConfig", spec.update.as_ref().map(update))
        .filled("RollbackConfig", spec.rollback.as_ref().map(update))
        .filled("EndpointSpec", spec.endpoint.as_ref().map(endpoint))
        .build()
}

/// The template of a service's tasks.
pub(crate) fn task_spec(spec: &TaskSpec) -> Value {
    let resources = Object::new()
        .with("Limits", resources(&spec.limits))
        .with("Reservations", resources(&spec.reservations))
        .filled("SwapBytes", spec.memory_swap_bytes)
        .filled("MemorySwappiness", spec.memory_swappiness);
    let log_driver = spec
        .log_driver
        .as_ref()
        .map(|driver| json!({ "Name": driver.name, "Options": driver.options }));
    let networks: Vec<Value> = spec
        .networks
        .iter()
        .map(|network| {
            Object::new()
                .with("Target", network.target.as_str())
                .filled("Aliases", network.aliases.clone())
                .filled("DriverOpts", map(&network.driver_options))
                .build()
        })
        .collect();
    Object::new()
        .with("ContainerSpec", container(&spec.container))
        .with("Resources", resources)
        .with("RestartPolicy", restart(&spec.restart))
        .with("Placement", placement(&spec.placement))
        .filled("Networks", networks)
        .filled("LogDriver", log_driver)
        .with("ForceUpdate", spec.force_update)
        .with("Runtime", "container")
        .build()
}

pub(crate) fn container(spec: &ContainerSpec) -> Value {
    let mounts: Vec<Value> = spec.mounts.iter().map(mount).collect();
    let dns = spec.dns.as_ref().map(|dns| {
        Object::new()
            .filled("Nameservers", dns.nameservers.clone())
            .filled("Search", dns.search.clone())
            .filled("Options", dns.options.clone())
            .build()
    });
    let ulimits: Vec<Value> = spec
        .ulimits
        .iter()
        .map(|limit| json!({ "Name": limit.name, "Soft": limit.soft, "Hard": limit.hard }))
        .collect();
    Object::new()
        .with("Image", spec.image.as_str())
        .filled("Labels", map(&spec.labels))
        .filled("Command", spec.command.clone())
        .filled("Args", spec.args.clone())
        .filled("Hostname", spec.hostname.as_str())
        .filled("Env", spec.env.clone())
        .filled("Dir", spec.workdir.as_str())
        .filled("User", spec.user.as_str())
        .filled("Groups", spec.groups.clone())
        .with_some("Init", spec.init)
        .filled("StopSignal", spec.stop_signal.as_str())
        .filled("TTY", spec.tty)
        .filled("OpenStdin", spec.open_stdin)
        .filled("ReadOnly", spec.read_only)
        .filled("Mounts", mounts)
        .with_some("StopGracePeriod", spec.stop_grace.map(nanos))
        .filled("Healthcheck", spec.healthcheck.as_ref().map(healthcheck))
        .filled("Hosts", spec.hosts.clone())
        .filled("DNSConfig", dns)
        .filled("Secrets", files(&spec.secrets, "SecretID", "SecretName"))
        .filled("Configs", files(&spec.configs, "ConfigID", "ConfigName"))
        .filled("Isolation", spec.isolation.as_str())
        .filled("Sysctls", json!(spec.sysctls))
        .filled("CapabilityAdd", spec.cap_add.clone())
        .filled("CapabilityDrop", spec.cap_drop.clone())
        .filled("Ulimits", ulimits)
        .filled("OomScoreAdj", spec.oom_score_adj)
        .build()
}

impl Object {
    /// A field that is there when it was set, whatever its value.
    fn with_some(self, name: &str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }
}

fn files(list: &[types::FileReference], id: &str, name: &str) -> Vec<Value> {
    list.iter()
        .map(|file| {
            let target = json!({
                "Name": file.target, "UID": file.uid, "GID": file.gid, "Mode": file.mode,
            });
            let text = base::Id::from_bytes(&file.id).map(|id| id.to_string()).unwrap_or_default();
            Object::new().with("File", target).with(id, text).with(name, file.name.as_str()).build()
        })
        .collect()
}

fn mount(mount: &Mount) -> Value {
    Object::new()
        .with("Type", mount.kind.as_str())
        .filled("Source", mount.source.as_str())
        .with("Target", mount.target.as_str())
        .filled("ReadOnly", mount.read_only)
        .filled("Options", json!(mount.options))
        .build()
}

fn healthcheck(check: &Healthcheck) -> Value {
    Object::new()
        .filled("Test", check.test.clone())
        .filled("Interval", nanos(check.interval))
        .filled("Timeout", nanos(check.timeout))
        .filled("StartPeriod", nanos(check.start_period))
        .filled("StartInterval", nanos(check.start_interval))
        .filled("Retries", check.retries)
        .build()
}

fn resources(amounts: &Resources) -> Value {
    let generic: Vec<Value> = amounts
        .generic
        .iter()
        .map(|(kind, count)| json!({ "DiscreteResourceSpec": { "Kind": kind, "Value": count } }))
        .collect();
    Object::new()
        .filled("NanoCPUs", amounts.cpu_nanos)
        .filled("MemoryBytes", amounts.memory_bytes)
        .filled("Pids", amounts.pids)
        .filled("GenericResources", generic)
        .build()
}

fn restart(policy: &RestartPolicy) -> Value {
    let condition = match policy.condition {
        RestartCondition::None => "none",
        RestartCondition::OnFailure => "on-failure",
        RestartCondition::Any => "any",
    };
    Object::new()
        .with("Condition", condition)
        .with("Delay", nanos(policy.delay))
        .with("MaxAttempts", policy.max_attempts)
        .filled("Window", nanos(policy.window))
        .build()
}

fn placement(placement: &Placement) -> Value {
    let preferences: Vec<Value> = placement
        .spread
        .iter()
        .map(|descriptor| json!({ "Spread": { "SpreadDescriptor": descriptor } }))
        .collect();
    let platforms: Vec<Value> = placement
        .platforms
        .iter()
        .map(|platform| json!({ "Architecture": platform.architecture, "OS": platform.os }))
        .collect();
    Object::new()
        .filled("Constraints", placement.constraints.clone())
        .filled("Preferences", preferences)
        .filled("MaxReplicas", placement.max_replicas)
        .filled("Platforms", platforms)
        .build()
}

fn mode(mode: ServiceMode) -> Value {
    match mode {
        ServiceMode::Replicated(replicas) => json!({ "Replicated": { "Replicas": replicas } }),
        ServiceMode::Global => json!({ "Global": {} }),
        ServiceMode::ReplicatedJob(job) => json!({ "ReplicatedJob": {
            "MaxConcurrent": job.max_concurrent, "TotalCompletions": job.total_completions,
        } }),
        ServiceMode::GlobalJob => json!({ "GlobalJob": {} }),
    }
}

fn update(config: &UpdateConfig) -> Value {
    let action = match config.failure_action {
        FailureAction::Pause => "pause",
        FailureAction::Continue => "continue",
        FailureAction::Rollback => "rollback",
    };
    let order = match config.order {
        UpdateOrder::StopFirst => "stop-first",
        UpdateOrder::StartFirst => "start-first",
    };
    Object::new()
        .with("Parallelism", config.parallelism)
        .filled("Delay", nanos(config.delay))
        .with("FailureAction", action)
        .filled("Monitor", nanos(config.monitor))
        .with("MaxFailureRatio", config.max_failure_ratio)
        .with("Order", order)
        .build()
}

pub(crate) fn port(port: &PortSpec) -> Value {
    Object::new()
        .filled("Name", port.name.as_str())
        .with("Protocol", port.protocol.name())
        .with("TargetPort", port.target)
        .filled("PublishedPort", port.published)
        .with("PublishMode", port.mode.name())
        .filled("HostAddress", port.host.as_str())
        .build()
}

pub(crate) fn endpoint(endpoint: &EndpointSpec) -> Value {
    let ports: Vec<Value> = endpoint.ports.iter().map(port).collect();
    Object::new().filled("Mode", endpoint.mode.name()).filled("Ports", ports).build()
}
