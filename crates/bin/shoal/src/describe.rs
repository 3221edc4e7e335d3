//! What this node says of itself.
//!
//! Owns: reading the machine's size, kernel and platform.
//! Invariant: never fails; what cannot be read is empty or zero.

use types::{DataPath, Labels, NodeDescription, Platform, Resources};

/// Facts of the machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    pub cpus: u64,
    pub memory_bytes: u64,
    pub kernel: String,
    pub os: String,
    pub architecture: String,
    pub cgroup_version: String,
}

impl Machine {
    pub(crate) fn read() -> Self {
        let uname = nix::sys::utsname::uname().ok();
        let release = uname.as_ref().map(|u| u.release().to_string_lossy().into_owned());
        let machine = uname.as_ref().map(|u| u.machine().to_string_lossy().into_owned());
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            cpus: cpus as u64,
            memory_bytes: memory_bytes(),
            kernel: release.unwrap_or_default(),
            os: pretty_name(),
            architecture: machine.unwrap_or_default(),
            cgroup_version: cgroup_version().into(),
        }
    }

    pub(crate) fn description(
        &self,
        hostname: &str,
        labels: &Labels,
        images: Vec<String>,
    ) -> NodeDescription {
        NodeDescription {
            hostname: hostname.to_owned(),
            platform: Platform { architecture: self.architecture.clone(), os: "linux".into() },
            resources: Resources {
                cpu_nanos: self.cpus * 1_000_000_000,
                memory_bytes: self.memory_bytes,
                ..Resources::default()
            },
            engine_version: env!("CARGO_PKG_VERSION").into(),
            engine_labels: labels.clone(),
            images,
            data_path: DataPath::default(),
        }
    }
}

fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1_024
}

fn pretty_name() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    line.map_or_else(|| "Linux".into(), |name| name.trim_matches('"').to_owned())
}

fn cgroup_version() -> &'static str {
    match std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        true => "2",
        false => "1",
    }
}
