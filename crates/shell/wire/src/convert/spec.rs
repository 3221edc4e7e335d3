//! Service specs, whole and in parts.
//!
//! Owns: the conversions of everything below `ServiceSpec`.
//! Does not know: which of it this version acts on.
//! Invariant: a spec that goes out and comes back is the same spec.

use base::Millis;
use types::{
    ContainerSpec, DnsConfig, FailureAction, Fault, FileReference, Healthcheck, LogDriver, Mount,
    Placement, Platform, Privileges, ReplicatedJob, Resources, RestartCondition, RestartPolicy,
    Secret, ServiceMode, ServiceSpec, TaskSpec, Ulimit, UpdateConfig, UpdateOrder,
};

use super::{required, unknown};
use crate::v1;

impl From<&ServiceSpec> for v1::ServiceSpec {
    fn from(spec: &ServiceSpec) -> Self {
        Self {
            name: spec.name.clone(),
            labels: spec.labels.clone(),
            task: Some((&spec.task).into()),
            mode: Some(spec.mode.into()),
            update: spec.update.as_ref().map(Into::into),
            rollback: spec.rollback.as_ref().map(Into::into),
            endpoint: spec.endpoint.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<v1::ServiceSpec> for ServiceSpec {
    type Error = Fault;

    fn try_from(spec: v1::ServiceSpec) -> Result<Self, Fault> {
        Ok(Self {
            name: spec.name,
            labels: spec.labels,
            task: required(spec.task, "spec.task")?.try_into()?,
            mode: required(spec.mode, "spec.mode")?.try_into()?,
            update: spec.update.map(TryInto::try_into).transpose()?,
            rollback: spec.rollback.map(TryInto::try_into).transpose()?,
            endpoint: spec.endpoint.map(TryInto::try_into).transpose()?,
        })
    }
}

impl From<ServiceMode> for v1::ServiceMode {
    fn from(mode: ServiceMode) -> Self {
        use v1::service_mode::Mode;
        let mode = match mode {
            ServiceMode::Replicated(replicas) => Mode::Replicated(replicas),
            ServiceMode::Global => Mode::Global(v1::Global {}),
            ServiceMode::ReplicatedJob(job) => Mode::ReplicatedJob(v1::ReplicatedJob {
                max_concurrent: job.max_concurrent,
                total_completions: job.total_completions,
            }),
            ServiceMode::GlobalJob => Mode::GlobalJob(v1::Global {}),
        };
        Self { mode: Some(mode) }
    }
}

impl TryFrom<v1::ServiceMode> for ServiceMode {
    type Error = Fault;

    fn try_from(mode: v1::ServiceMode) -> Result<Self, Fault> {
        use v1::service_mode::Mode;
        Ok(match required(mode.mode, "spec.mode")? {
            Mode::Replicated(replicas) => Self::Replicated(replicas),
            Mode::Global(_) => Self::Global,
            Mode::ReplicatedJob(job) => Self::ReplicatedJob(ReplicatedJob {
                max_concurrent: job.max_concurrent,
                total_completions: job.total_completions,
            }),
            Mode::GlobalJob(_) => Self::GlobalJob,
        })
    }
}

impl From<&TaskSpec> for v1::TaskSpec {
    fn from(spec: &TaskSpec) -> Self {
        Self {
            container: Some((&spec.container).into()),
            limits: Some((&spec.limits).into()),
            reservations: Some((&spec.reservations).into()),
            restart: Some((&spec.restart).into()),
            placement: Some((&spec.placement).into()),
            log_driver: spec.log_driver.as_ref().map(|driver| v1::LogDriver {
                name: driver.name.clone(),
                options: driver.options.clone(),
            }),
            networks: spec.networks.iter().map(Into::into).collect(),
            force_update: spec.force_update,
            memory_swap_bytes: spec.memory_swap_bytes,
            memory_swappiness: spec.memory_swappiness,
        }
    }
}

impl TryFrom<v1::TaskSpec> for TaskSpec {
    type Error = Fault;

    fn try_from(spec: v1::TaskSpec) -> Result<Self, Fault> {
        Ok(Self {
            container: required(spec.container, "spec.task.container")?.into(),
            limits: spec.limits.map(Into::into).unwrap_or_default(),
            reservations: spec.reservations.map(Into::into).unwrap_or_default(),
            restart: spec.restart.map(TryInto::try_into).transpose()?.unwrap_or_default(),
            placement: spec.placement.map(Into::into).unwrap_or_default(),
            log_driver: spec
                .log_driver
                .map(|driver| LogDriver { name: driver.name, options: driver.options }),
            networks: spec.networks.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            force_update: spec.force_update,
            memory_swap_bytes: spec.memory_swap_bytes,
            memory_swappiness: spec.memory_swappiness,
        })
    }
}

impl From<&ContainerSpec> for v1::ContainerSpec {
    fn from(spec: &ContainerSpec) -> Self {
        Self {
            image: spec.image.clone(),
            labels: spec.labels.clone(),
            command: spec.command.clone(),
            args: spec.args.clone(),
            hostname: spec.hostname.clone(),
            env: spec.env.clone(),
            workdir: spec.workdir.clone(),
            user: spec.user.clone(),
            groups: spec.groups.clone(),
            read_only: spec.read_only,
            stop_signal: spec.stop_signal.clone(),
            stop_grace_ms: spec.stop_grace.map(|grace| grace.0),
            cap_add: spec.cap_add.clone(),
            cap_drop: spec.cap_drop.clone(),
            tty: spec.tty,
            open_stdin: spec.open_stdin,
            init: spec.init,
            mounts: spec.mounts.iter().map(Into::into).collect(),
            healthcheck: spec.healthcheck.as_ref().map(Into::into),
            hosts: spec.hosts.clone(),
            dns: spec.dns.as_ref().map(|dns| v1::DnsConfig {
                nameservers: dns.nameservers.clone(),
                search: dns.search.clone(),
                options: dns.options.clone(),
            }),
            secrets: spec.secrets.iter().map(Into::into).collect(),
            configs: spec.configs.iter().map(Into::into).collect(),
            sysctls: spec.sysctls.clone(),
            ulimits: spec.ulimits.iter().map(Into::into).collect(),
            oom_score_adj: spec.oom_score_adj,
            privileges: spec.privileges.as_ref().map(Into::into),
            isolation: spec.isolation.clone(),
            registry_auth: spec.registry_auth.0.clone(),
        }
    }
}

impl From<v1::ContainerSpec> for ContainerSpec {
    fn from(spec: v1::ContainerSpec) -> Self {
        Self {
            image: spec.image,
            labels: spec.labels,
            command: spec.command,
            args: spec.args,
            hostname: spec.hostname,
            env: spec.env,
            workdir: spec.workdir,
            user: spec.user,
            groups: spec.groups,
            read_only: spec.read_only,
            stop_signal: spec.stop_signal,
            stop_grace: spec.stop_grace_ms.map(Millis),
            cap_add: spec.cap_add,
            cap_drop: spec.cap_drop,
            tty: spec.tty,
            open_stdin: spec.open_stdin,
            init: spec.init,
            mounts: spec.mounts.into_iter().map(Into::into).collect(),
            healthcheck: spec.healthcheck.map(Into::into),
            hosts: spec.hosts,
            dns: spec.dns.map(|dns| DnsConfig {
                nameservers: dns.nameservers,
                search: dns.search,
                options: dns.options,
            }),
            secrets: spec.secrets.into_iter().map(Into::into).collect(),
            configs: spec.configs.into_iter().map(Into::into).collect(),
            sysctls: spec.sysctls,
            ulimits: spec.ulimits.into_iter().map(Into::into).collect(),
            oom_score_adj: spec.oom_score_adj,
            privileges: spec.privileges.map(Into::into),
            isolation: spec.isolation,
            registry_auth: Secret(spec.registry_auth),
        }
    }
}

/// Both directions of a message whose fields have the same names and types.
macro_rules! same {
    ($type:ident: $($field:ident),+) => {
        impl From<&$type> for v1::$type {
            fn from(value: &$type) -> Self {
                Self { $($field: value.$field.clone()),+ }
            }
        }

        impl From<v1::$type> for $type {
            fn from(value: v1::$type) -> Self {
                Self { $($field: value.$field),+ }
            }
        }
    };
}

same!(Mount: kind, source, target, read_only, options);
same!(Ulimit: name, soft, hard);
same!(Resources: cpu_nanos, memory_bytes, pids, generic);
same!(Platform: architecture, os);

impl From<&Healthcheck> for v1::Healthcheck {
    fn from(check: &Healthcheck) -> Self {
        Self {
            test: check.test.clone(),
            interval_ms: check.interval.0,
            timeout_ms: check.timeout.0,
            retries: check.retries,
            start_period_ms: check.start_period.0,
            start_interval_ms: check.start_interval.0,
        }
    }
}

impl From<v1::Healthcheck> for Healthcheck {
    fn from(check: v1::Healthcheck) -> Self {
        Self {
            test: check.test,
            interval: Millis(check.interval_ms),
            timeout: Millis(check.timeout_ms),
            retries: check.retries,
            start_period: Millis(check.start_period_ms),
            start_interval: Millis(check.start_interval_ms),
        }
    }
}

impl From<&FileReference> for v1::FileReference {
    fn from(file: &FileReference) -> Self {
        Self {
            id: file.id.clone().into(),
            name: file.name.clone(),
            target: file.target.clone(),
            uid: file.uid.clone(),
            gid: file.gid.clone(),
            mode: file.mode,
        }
    }
}

impl From<v1::FileReference> for FileReference {
    fn from(file: v1::FileReference) -> Self {
        Self {
            id: file.id.into(),
            name: file.name,
            target: file.target,
            uid: file.uid,
            gid: file.gid,
            mode: file.mode,
        }
    }
}

impl From<&Privileges> for v1::Privileges {
    fn from(privileges: &Privileges) -> Self {
        Self {
            credential_spec: privileges.credential_spec.clone(),
            selinux: privileges.selinux.clone(),
            seccomp_mode: privileges.seccomp_mode.clone(),
            seccomp_profile: privileges.seccomp_profile.clone().into(),
            apparmor_mode: privileges.apparmor_mode.clone(),
            no_new_privileges: privileges.no_new_privileges,
        }
    }
}

impl From<v1::Privileges> for Privileges {
    fn from(privileges: v1::Privileges) -> Self {
        Self {
            credential_spec: privileges.credential_spec,
            selinux: privileges.selinux,
            seccomp_mode: privileges.seccomp_mode,
            seccomp_profile: privileges.seccomp_profile.into(),
            apparmor_mode: privileges.apparmor_mode,
            no_new_privileges: privileges.no_new_privileges,
        }
    }
}

impl From<&RestartPolicy> for v1::RestartPolicy {
    fn from(policy: &RestartPolicy) -> Self {
        Self {
            condition: policy.condition as i32,
            delay_ms: policy.delay.0,
            max_attempts: policy.max_attempts,
            window_ms: policy.window.0,
        }
    }
}

impl TryFrom<v1::RestartPolicy> for RestartPolicy {
    type Error = Fault;

    fn try_from(policy: v1::RestartPolicy) -> Result<Self, Fault> {
        Ok(Self {
            condition: match policy.condition {
                0 | 3 => RestartCondition::Any,
                1 => RestartCondition::None,
                2 => RestartCondition::OnFailure,
                other => return Err(unknown("spec.task.restart.condition", other)),
            },
            delay: Millis(policy.delay_ms),
            max_attempts: policy.max_attempts,
            window: Millis(policy.window_ms),
        })
    }
}

impl From<&Placement> for v1::Placement {
    fn from(placement: &Placement) -> Self {
        Self {
            constraints: placement.constraints.clone(),
            spread: placement.spread.clone(),
            max_replicas: placement.max_replicas,
            platforms: placement.platforms.iter().map(Into::into).collect(),
        }
    }
}

impl From<v1::Placement> for Placement {
    fn from(placement: v1::Placement) -> Self {
        Self {
            constraints: placement.constraints,
            spread: placement.spread,
            max_replicas: placement.max_replicas,
            platforms: placement.platforms.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<&UpdateConfig> for v1::UpdateConfig {
    fn from(config: &UpdateConfig) -> Self {
        Self {
            parallelism: config.parallelism,
            delay_ms: config.delay.0,
            failure_action: config.failure_action as i32,
            monitor_ms: config.monitor.0,
            max_failure_ratio: config.max_failure_ratio,
            order: config.order as i32,
        }
    }
}

impl TryFrom<v1::UpdateConfig> for UpdateConfig {
    type Error = Fault;

    fn try_from(config: v1::UpdateConfig) -> Result<Self, Fault> {
        Ok(Self {
            parallelism: config.parallelism,
            delay: Millis(config.delay_ms),
            failure_action: match config.failure_action {
                0 | 1 => FailureAction::Pause,
                2 => FailureAction::Continue,
                3 => FailureAction::Rollback,
                other => return Err(unknown("spec.update.failure_action", other)),
            },
            monitor: Millis(config.monitor_ms),
            max_failure_ratio: config.max_failure_ratio,
            order: match config.order {
                0 | 1 => UpdateOrder::StopFirst,
                2 => UpdateOrder::StartFirst,
                other => return Err(unknown("spec.update.order", other)),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use types::EndpointSpec;

    use super::*;

    fn port() -> types::PortSpec {
        types::PortSpec { target: 80, published: 8080, ..types::PortSpec::default() }
    }

    fn full() -> ServiceSpec {
        let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let container = ContainerSpec {
            image: "nginx:1".into(),
            labels: labels.clone(),
            command: vec!["/bin/sh".into()],
            args: vec!["-c".into()],
            env: vec!["A=1".into()],
            stop_grace: Some(Millis(0)),
            init: Some(false),
            mounts: vec![Mount { target: "/x".into(), ..Mount::default() }],
            healthcheck: Some(Healthcheck { interval: Millis(5), ..Healthcheck::default() }),
            dns: Some(DnsConfig::default()),
            secrets: vec![FileReference {
                id: vec![1, 2],
                mode: 0o444,
                ..FileReference::default()
            }],
            privileges: Some(Privileges::default()),
            registry_auth: Secret("s".into()),
            ..ContainerSpec::default()
        };
        let task = TaskSpec {
            container,
            limits: Resources { pids: 3, ..Resources::default() },
            restart: RestartPolicy {
                condition: RestartCondition::None,
                ..RestartPolicy::default()
            },
            placement: Placement {
                platforms: vec![Platform { architecture: "amd64".into(), os: "linux".into() }],
                ..Placement::default()
            },
            networks: vec![types::NetworkAttachment {
                target: "net".into(),
                aliases: vec!["a".into()],
                addresses: vec!["10.0.0.9".parse().unwrap(), "fd00::9".parse().unwrap()],
                vips: vec!["10.0.0.8".parse().unwrap()],
                ..types::NetworkAttachment::default()
            }],
            memory_swappiness: Some(0),
            ..TaskSpec::default()
        };
        ServiceSpec {
            name: "web".into(),
            labels,
            task,
            mode: ServiceMode::Replicated(3),
            update: Some(UpdateConfig {
                order: UpdateOrder::StartFirst,
                ..UpdateConfig::default()
            }),
            rollback: None,
            endpoint: Some(EndpointSpec { ports: vec![port()], ..EndpointSpec::default() }),
        }
    }

    #[test]
    fn a_spec_comes_back_as_it_was() {
        for mode in [
            ServiceMode::Replicated(0),
            ServiceMode::Global,
            ServiceMode::ReplicatedJob(ReplicatedJob { max_concurrent: 1, total_completions: 2 }),
            ServiceMode::GlobalJob,
        ] {
            let spec = ServiceSpec { mode, ..full() };
            assert_eq!(ServiceSpec::try_from(v1::ServiceSpec::from(&spec)), Ok(spec));
        }
    }

    #[test]
    fn what_is_missing_or_unknown_is_named() {
        let message = v1::ServiceSpec::from(&full());
        type Change = fn(&mut v1::ServiceSpec);
        let cases: [(&str, Change); 4] = [
            ("spec.task", |spec| spec.task = None),
            ("spec.mode", |spec| spec.mode = Some(v1::ServiceMode { mode: None })),
            ("spec.task.restart.condition", |spec| {
                spec.task.as_mut().unwrap().restart.as_mut().unwrap().condition = 99;
            }),
            ("spec.update.order", |spec| spec.update.as_mut().unwrap().order = 99),
        ];
        for (field, change) in cases {
            let mut message = message.clone();
            change(&mut message);
            assert_eq!(ServiceSpec::try_from(message).unwrap_err().field, field);
        }
    }
}
