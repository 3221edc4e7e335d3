//! The checks of what users ask for.
//!
//! Owns: every refusal of a spec, with the field and what would be right.
//! Does not know: other objects; whether a name is taken is the store's to say.
//! Invariant: nothing that this version cannot act on gets past it.

mod local_network;
mod network;

use base::Millis;

pub use local_network::{check_local_network_spec, from_config};
pub use network::{
    POOL_DEFAULT, POOL_MASK, check_address_pools, check_aliases, check_network_spec,
};

use crate::limits::{
    CERTIFICATE_EXPIRY_MAX, CERTIFICATE_EXPIRY_MIN, CPU_NANOS_MIN, DATA_PATH_PORT_DEFAULT,
    DURATION_MAX, ENCRYPTION_PORTS_DEFAULT, HEARTBEAT_MAX, HEARTBEAT_MIN, LABEL_BYTES_MAX,
    LABELS_MAX, LIST_ENTRIES_MAX, MEMORY_BYTES_MIN, NAME_CHARS_MAX, REPLICAS_MAX, TASK_HISTORY_MAX,
    TEXT_BYTES_MAX,
};
use crate::{
    Capability, ClusterSpec, Constraint, ContainerSpec, Fault, ImageName, Labels, NodeSpec,
    Resources, ServiceMode, ServiceSpec, TaskSpec,
};

impl ServiceSpec {
    /// Refuses what is wrong with it or what this version does not do.
    pub fn check(&self) -> Result<(), Fault> {
        check_name("--name", &self.name)?;
        check_labels("--label", &self.labels)?;
        match self.mode {
            ServiceMode::Replicated(n) if n > REPLICAS_MAX => {
                return Err(Fault::invalid(
                    "--replicas",
                    format!("must be at most {REPLICAS_MAX}"),
                ));
            }
            ServiceMode::Replicated(_) | ServiceMode::Global => {}
            ServiceMode::ReplicatedJob(_) | ServiceMode::GlobalJob => {
                return Err(unsupported("--mode", self.mode.name()));
            }
        }
        if self.update.is_some() || self.rollback.is_some() {
            return Err(unsupported("spec.update", "update and rollback configuration"));
        }
        network::check_service(self)?;
        if self.task.placement.max_replicas > 0 && !matches!(self.mode, ServiceMode::Replicated(_))
        {
            return Err(Fault::invalid(
                "--replicas-max-per-node",
                "can only be used with replicated mode",
            ));
        }
        self.task.check()
    }
}

impl TaskSpec {
    fn check(&self) -> Result<(), Fault> {
        self.container.check()?;
        check_resources("limit", &self.limits)?;
        check_resources("reserve", &self.reservations)?;
        if self.reservations.pids > 0 {
            return Err(Fault::invalid(
                "spec.reservations.pids",
                "process counts are only limited",
            ));
        }
        check_duration("--restart-delay", self.restart.delay)?;
        check_duration("--restart-window", self.restart.window)?;
        check_list("--constraint", &self.placement.constraints)?;
        for text in &self.placement.constraints {
            Constraint::parse(text)?;
        }
        check_list("--placement-pref", &self.placement.spread)?;
        for descriptor in &self.placement.spread {
            check_spread(descriptor)?;
        }
        let absent = [
            (self.log_driver.is_some(), "--log-driver"),
            (self.memory_swap_bytes.is_some(), "--memory-swap"),
            (self.memory_swappiness.is_some(), "--memory-swappiness"),
        ];
        refuse_present(&absent)
    }
}

impl ContainerSpec {
    fn check(&self) -> Result<(), Fault> {
        if self.image.trim().is_empty() {
            return Err(
                Fault::invalid("image", "must not be empty").hint("name an image, e.g. nginx:1")
            );
        }
        ImageName::parse(&self.image)?;
        check_labels("--container-label", &self.labels)?;
        for (field, list) in [
            ("--entrypoint", &self.command),
            ("args", &self.args),
            ("--env", &self.env),
            ("--cap-add", &self.cap_add),
            ("--cap-drop", &self.cap_drop),
        ] {
            check_list(field, list)?;
        }
        for entry in &self.env {
            check_env(entry)?;
        }
        for capability in self.cap_add.iter().chain(&self.cap_drop) {
            check_capability(capability)?;
        }
        if !self.workdir.is_empty() && !self.workdir.starts_with('/') {
            return Err(Fault::invalid("--workdir", "must be an absolute path"));
        }
        check_hostname(&self.hostname)?;
        check_text("--user", &self.user)?;
        check_signal(&self.stop_signal)?;
        check_duration("--stop-grace-period", self.stop_grace())?;
        network::check_hosts(&self.hosts)?;
        self.dns.as_ref().map_or(Ok(()), network::check_dns)?;
        self.check_absent()
    }

    fn check_absent(&self) -> Result<(), Fault> {
        refuse_present(&[
            (!self.groups.is_empty(), "--group"),
            (self.tty, "--tty"),
            (self.open_stdin, "open_stdin"),
            (self.init.is_some(), "--init"),
            (!self.mounts.is_empty(), "--mount"),
            (self.healthcheck.is_some(), "--health-cmd"),
            (!self.secrets.is_empty(), "--secret"),
            (!self.configs.is_empty(), "--config"),
            (!self.sysctls.is_empty(), "--sysctl"),
            (!self.ulimits.is_empty(), "--ulimit"),
            (self.oom_score_adj != 0, "--oom-score-adj"),
            (self.privileges.is_some(), "--credential-spec"),
            (!self.isolation.is_empty(), "--isolation"),
            (!self.registry_auth.0.is_empty(), "--with-registry-auth"),
        ])
    }
}

/// Refuses labels that are too many, too large or without a key.
pub fn check_labels(field: &str, labels: &Labels) -> Result<(), Fault> {
    if labels.len() > LABELS_MAX {
        return Err(Fault::invalid(field, format!("at most {LABELS_MAX} labels are allowed")));
    }
    if labels.keys().any(|key| key.trim().is_empty()) {
        return Err(Fault::invalid(field, "a label needs a key: key=value"));
    }
    let bytes: usize = labels.iter().map(|(k, v)| k.len() + v.len()).sum();
    if bytes > LABEL_BYTES_MAX {
        return Err(Fault::invalid(
            field,
            format!("labels must not exceed {LABEL_BYTES_MAX} bytes"),
        ));
    }
    Ok(())
}

/// Refuses a node spec that no node may have.
pub fn check_node_spec(spec: &NodeSpec) -> Result<(), Fault> {
    check_labels("--label-add", &spec.labels)?;
    if spec.name.is_empty() { Ok(()) } else { check_name("name", &spec.name) }
}

/// The UDP ports of a new cluster: that of the data path, where zero is docker's, and the two of
/// encrypted networks, where none are the usual ones.
///
/// # Errors
/// Names the option, with what would be right.
pub fn check_udp_ports(data_path: u32, encryption: &[u32]) -> Result<(u16, [u16; 2]), Fault> {
    let in_range = |port: u32| u16::try_from(port).ok().filter(|port| UDP_PORTS.contains(port));
    let path = match data_path {
        0 => DATA_PATH_PORT_DEFAULT,
        port => in_range(port).ok_or_else(|| {
            // Docker's words.
            let message =
                format!("Datapath port number is not in valid range (1024-49151) : {port}");
            Fault::invalid("--data-path-port", message)
        })?,
    };
    let field = "--encryption-ports";
    let two = match *encryption {
        [] => ENCRYPTION_PORTS_DEFAULT,
        [first, second] => {
            let bad = |port: u32| {
                let message = format!("port {port} is not in the valid range (1024-49151)");
                Fault::invalid(field, message)
            };
            let port = |port: u32| in_range(port).ok_or_else(|| bad(port));
            [port(first)?, port(second)?]
        }
        _ => {
            let message = "two ports are needed, such as 4793,4794: one for the keys in use and \
                           one for those that replace them";
            return Err(Fault::invalid(field, message));
        }
    };
    if two[0] == two[1] {
        return Err(Fault::invalid(field, "the two ports must be different"));
    }
    if two.contains(&path) {
        let message = format!("port {path} is that of the data path: choose another one");
        return Err(Fault::invalid(field, message));
    }
    Ok((path, two))
}

/// Docker's range of the data path's port: below those that systems give out by themselves.
const UDP_PORTS: std::ops::RangeInclusive<u16> = 1_024..=49_151;

/// Refuses cluster settings out of their bounds.
pub fn check_cluster_spec(spec: &ClusterSpec) -> Result<(), Fault> {
    check_labels("labels", &spec.labels)?;
    if spec.task_history_limit > TASK_HISTORY_MAX {
        return Err(Fault::invalid(
            "--task-history-limit",
            format!("must be at most {TASK_HISTORY_MAX}"),
        ));
    }
    check_between(
        "--dispatcher-heartbeat",
        spec.dispatcher_heartbeat,
        HEARTBEAT_MIN,
        HEARTBEAT_MAX,
    )?;
    check_between("down_grace", spec.down_grace, HEARTBEAT_MIN, DURATION_MAX)?;
    check_between(
        "--cert-expiry",
        spec.certificate_expiry,
        CERTIFICATE_EXPIRY_MIN,
        CERTIFICATE_EXPIRY_MAX,
    )?;
    if spec.snapshot_interval == 0 {
        return Err(Fault::invalid("--snapshot-interval", "must be at least 1 log entry"));
    }
    refuse_present(&[(spec.autolock, "--autolock"), (spec.snapshots_kept > 0, "--max-snapshots")])
}

fn check_between(field: &str, value: Millis, min: Millis, max: Millis) -> Result<(), Fault> {
    if value < min || value > max {
        let message = format!("must be between {} and {}", seconds(min), seconds(max));
        return Err(Fault::invalid(field, message));
    }
    Ok(())
}

fn seconds(value: Millis) -> String {
    format!("{}s", value.0 as f64 / 1_000.0)
}

fn check_name(field: &str, name: &str) -> Result<(), Fault> {
    if name.chars().count() > NAME_CHARS_MAX {
        return Err(Fault::invalid(
            field,
            format!("name must be {NAME_CHARS_MAX} characters or fewer"),
        ));
    }
    let bytes = name.as_bytes();
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let inner = bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(b));
    if !(edge(bytes.first()) && edge(bytes.last()) && inner) {
        return Err(Fault::invalid(field, "name must be valid as a DNS name component")
            .hint("use letters, digits, - and _, and begin and end with a letter or digit"));
    }
    Ok(())
}

fn check_resources(kind: &str, resources: &Resources) -> Result<(), Fault> {
    if (1..CPU_NANOS_MIN).contains(&resources.cpu_nanos) {
        let cores = resources.cpu_nanos as f64 / 1e9;
        let message = format!("invalid cpu value {cores}: Must be at least 0.001");
        return Err(Fault::invalid(format!("--{kind}-cpu"), message));
    }
    if (1..MEMORY_BYTES_MIN).contains(&resources.memory_bytes) {
        let message =
            format!("invalid memory value {}: Must be at least 4MiB", resources.memory_bytes);
        return Err(Fault::invalid(format!("--{kind}-memory"), message));
    }
    if resources.cpu_nanos > 1_000_000_000_000_000 || resources.memory_bytes > 1 << 60 {
        return Err(Fault::invalid(format!("--{kind}-cpu or --{kind}-memory"), "is too large"));
    }
    refuse_present(&[(!resources.generic.is_empty(), "--generic-resource")])
}

fn check_duration(field: &str, duration: Millis) -> Result<(), Fault> {
    if duration > DURATION_MAX {
        return Err(Fault::invalid(field, "must be at most a year (8760h)"));
    }
    Ok(())
}

fn check_list(field: &str, list: &[String]) -> Result<(), Fault> {
    if list.len() > LIST_ENTRIES_MAX {
        return Err(Fault::invalid(
            field,
            format!("at most {LIST_ENTRIES_MAX} entries are allowed"),
        ));
    }
    list.iter().try_for_each(|text| check_text(field, text))
}

fn check_text(field: &str, text: &str) -> Result<(), Fault> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(Fault::invalid(field, format!("must be at most {TEXT_BYTES_MAX} bytes")));
    }
    if text.contains('\0') {
        return Err(Fault::invalid(field, "must not contain a zero byte"));
    }
    Ok(())
}

fn check_env(entry: &str) -> Result<(), Fault> {
    if entry.is_empty() || entry.starts_with('=') {
        return Err(Fault::invalid("--env", format!("`{entry}` has no name: write NAME=value")));
    }
    if entry.contains("{{") {
        return Err(unsupported("--env", "templates"));
    }
    Ok(())
}

fn check_hostname(hostname: &str) -> Result<(), Fault> {
    if hostname.contains("{{") {
        return Err(unsupported("--hostname", "templates"));
    }
    let label = |part: &str| {
        (1..=63).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    if hostname.is_empty() || (hostname.len() <= 64 && hostname.split('.').all(label)) {
        return Ok(());
    }
    Err(Fault::invalid("--hostname", "must be DNS labels joined by dots, at most 64 characters"))
}

fn check_spread(descriptor: &str) -> Result<(), Fault> {
    let lower = descriptor.to_ascii_lowercase();
    let known = ["node.labels.", "engine.labels."]
        .iter()
        .any(|prefix| lower.starts_with(prefix) && lower.len() > prefix.len());
    if known {
        return Ok(());
    }
    Err(Fault::invalid("--placement-pref", format!("cannot spread over `{descriptor}`"))
        .hint("write spread=node.labels.KEY or spread=engine.labels.KEY"))
}

fn check_signal(signal: &str) -> Result<(), Fault> {
    let name = signal.trim_start_matches("SIG");
    let number = signal.parse::<u8>().is_ok_and(|n| (1..=64).contains(&n));
    let realtime = name.starts_with("RTMIN") || name.starts_with("RTMAX");
    if signal.is_empty() || number || realtime || SIGNALS.contains(&name) {
        return Ok(());
    }
    Err(Fault::invalid("--stop-signal", format!("`{signal}` is not a signal"))
        .hint("write for example SIGTERM, INT or 15"))
}

fn check_capability(text: &str) -> Result<(), Fault> {
    match Capability::parse(text) {
        Some(_) => Ok(()),
        None => {
            Err(Fault::invalid("--cap-add or --cap-drop", format!("`{text}` is not a capability"))
                .hint("write for example NET_ADMIN, CAP_SYS_TIME or ALL"))
        }
    }
}

fn refuse_present(fields: &[(bool, &str)]) -> Result<(), Fault> {
    match fields.iter().find(|(present, _)| *present) {
        Some((_, field)) => Err(unsupported(field, "this field")),
        None => Ok(()),
    }
}

fn unsupported(field: &str, what: &str) -> Fault {
    Fault {
        code: crate::ErrorCode::Unimplemented,
        ..Fault::invalid(field, format!("{what}: not supported by this version"))
    }
}

const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Mount, Placement};

    fn spec(change: impl FnOnce(&mut ServiceSpec)) -> ServiceSpec {
        let container = ContainerSpec { image: "nginx:1".into(), ..ContainerSpec::default() };
        let mut spec = ServiceSpec {
            name: "web".into(),
            labels: Labels::new(),
            task: TaskSpec { container, ..TaskSpec::default() },
            mode: ServiceMode::Replicated(1),
            update: None,
            rollback: None,
            endpoint: None,
        };
        change(&mut spec);
        spec
    }

    #[test]
    fn the_udp_ports_of_a_cluster_are_three() {
        assert_eq!(check_udp_ports(0, &[]), Ok((4789, ENCRYPTION_PORTS_DEFAULT)));
        assert_eq!(check_udp_ports(4_790, &[51_820 - 10_000, 1_024]), Ok((4_790, [41_820, 1_024])));
        for (path, two, field, words) in [
            (1_023, &[][..], "--data-path-port", "valid range (1024-49151) : 1023"),
            (0, &[4_793], "--encryption-ports", "two ports are needed"),
            (0, &[4_793, 4_794, 4_795], "--encryption-ports", "two ports are needed"),
            (0, &[4_793, 4_793], "--encryption-ports", "must be different"),
            (0, &[4_793, 51_820], "--encryption-ports", "port 51820 is not in the valid range"),
            (0, &[4_789, 4_793], "--encryption-ports", "4789 is that of the data path"),
            (4_794, &[], "--encryption-ports", "4794 is that of the data path"),
        ] {
            let fault = check_udp_ports(path, two).unwrap_err();
            assert_eq!(fault.field, field, "{path} {two:?}");
            assert!(fault.message.contains(words), "{}", fault.message);
        }
    }

    #[test]
    fn a_plain_spec_passes() {
        assert_eq!(spec(|_| {}).check(), Ok(()));
    }

    #[test]
    fn every_refusal_names_the_field() {
        let cases: Vec<(&str, ServiceSpec)> = vec![
            ("--name", spec(|s| s.name = "-web".into())),
            ("--name", spec(|s| s.name = "x".repeat(64))),
            ("--replicas", spec(|s| s.mode = ServiceMode::Replicated(REPLICAS_MAX + 1))),
            ("--mode", spec(|s| s.mode = ServiceMode::GlobalJob)),
            (
                "--replicas-max-per-node",
                spec(|s| {
                    s.mode = ServiceMode::Global;
                    s.task.placement.max_replicas = 1;
                }),
            ),
            ("image", spec(|s| s.task.container.image = String::new())),
            ("image", spec(|s| s.task.container.image = "Nginx".into())),
            ("image", spec(|s| s.task.container.image = "a b".into())),
            ("--limit-cpu", spec(|s| s.task.limits.cpu_nanos = 1)),
            ("--limit-memory", spec(|s| s.task.limits.memory_bytes = 4096)),
            ("--reserve-memory", spec(|s| s.task.reservations.memory_bytes = 1)),
            (
                "--constraint",
                spec(|s| {
                    s.task.placement = Placement {
                        constraints: vec!["node.rol==x".into()],
                        ..Placement::default()
                    }
                }),
            ),
            ("--placement-pref", spec(|s| s.task.placement.spread = vec!["node.id".into()])),
            ("--env", spec(|s| s.task.container.env = vec!["=x".into()])),
            ("--workdir", spec(|s| s.task.container.workdir = "tmp".into())),
            ("--hostname", spec(|s| s.task.container.hostname = "a..b".into())),
            ("--stop-signal", spec(|s| s.task.container.stop_signal = "SIGNOPE".into())),
            ("--cap-add or --cap-drop", spec(|s| s.task.container.cap_add = vec!["FLY".into()])),
            ("--mount", spec(|s| s.task.container.mounts = vec![Mount::default()])),
            ("--restart-delay", spec(|s| s.task.restart.delay = Millis::MAX)),
            (
                "--label",
                spec(|s| {
                    s.labels.insert(" ".into(), "x".into());
                }),
            ),
        ];
        for (field, spec) in cases {
            assert_eq!(spec.check().unwrap_err().field, field);
        }
    }

    #[test]
    fn cluster_settings_have_bounds() {
        let with = |change: fn(&mut ClusterSpec)| {
            let mut spec = ClusterSpec::default();
            change(&mut spec);
            check_cluster_spec(&spec)
        };
        assert_eq!(with(|_| {}), Ok(()));
        assert_eq!(
            with(|s| s.dispatcher_heartbeat = Millis(1)).unwrap_err().field,
            "--dispatcher-heartbeat"
        );
        assert_eq!(with(|s| s.certificate_expiry = Millis(1)).unwrap_err().field, "--cert-expiry");
        assert_eq!(with(|s| s.snapshot_interval = 0).unwrap_err().field, "--snapshot-interval");
    }
}
