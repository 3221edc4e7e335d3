//! The OCI configuration of a container.
//!
//! Owns: docker's defaults for mounts, namespaces, masked paths and devices, and the limits.
//! Does not know: the image's files; user and working directory are settled in the shim.
//! Invariant: neither `linux.seccomp`, `process.capabilities` nor `noNewPrivileges` is set: the
//! shim applies them itself, because the library gets them wrong (see the shim's executor).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Linux, LinuxBuilder, LinuxCpuBuilder, LinuxDeviceCgroupBuilder, LinuxMemoryBuilder,
    LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxPidsBuilder, LinuxResources,
    LinuxResourcesBuilder, Mount, MountBuilder, ProcessBuilder, RootBuilder, Spec, SpecBuilder,
    UserBuilder,
};
use ports::runtime::{ContainerConfig, RuntimeError};

use crate::fail::{failed, invalid};
use crate::image::{ExecutionConfig, ImageConfig};

/// What the container will run as, with the image's defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) workdir: PathBuf,
    pub(crate) user: String,
    pub(crate) stop_signal: i32,
}

/// Paths and limits that the configuration needs besides.
#[derive(Clone, Debug)]
pub(crate) struct Place<'a> {
    /// Directory of the container.
    pub(crate) dir: &'a Path,
    pub(crate) cgroup: &'a Path,
    /// Whether this machine can bound swap.
    pub(crate) swap_limit: bool,
}

/// Fills in the image's defaults by docker's rules.
pub(crate) fn resolve_program(
    config: &ContainerConfig,
    image: &ImageConfig,
) -> Result<Program, RuntimeError> {
    let defaults = image.config.clone().unwrap_or_default();
    let args = command_line(config, &defaults);
    if args.is_empty() {
        return Err(invalid("command", "neither the image nor the service names a program"));
    }
    for (field, texts) in [("command", &args), ("env", &config.env)] {
        if texts.iter().any(|text| text.contains('\0')) {
            return Err(invalid(field, "contains a zero byte"));
        }
    }
    let workdir = config.workdir.as_deref().filter(|dir| !dir.is_empty());
    let workdir = workdir.or(defaults.working_dir.as_deref()).filter(|dir| !dir.is_empty());
    let workdir = PathBuf::from(workdir.unwrap_or("/"));
    if !workdir.is_absolute() {
        return Err(invalid("workdir", format!("{} is not absolute", workdir.display())));
    }
    let stop = config.stop_signal.as_deref().or(defaults.stop_signal.as_deref());
    let stop = stop.filter(|signal| !signal.is_empty()).unwrap_or("SIGTERM");
    Ok(Program {
        env: environment(config, &defaults),
        args,
        workdir,
        user: config.user.clone().or(defaults.user).unwrap_or_default(),
        stop_signal: parse_signal(stop)
            .ok_or_else(|| invalid("stop_signal", format!("{stop:?} is not a signal")))?,
    })
}

fn command_line(config: &ContainerConfig, defaults: &ExecutionConfig) -> Vec<String> {
    let own_command = !config.command.is_empty();
    let mut line = if own_command {
        config.command.clone()
    } else {
        defaults.entrypoint.clone().unwrap_or_default()
    };
    if own_command || !config.args.is_empty() {
        line.extend(config.args.iter().cloned());
    } else {
        line.extend(defaults.cmd.clone().unwrap_or_default());
    }
    line
}

fn environment(config: &ContainerConfig, defaults: &ExecutionConfig) -> Vec<String> {
    let mut order: Vec<String> = Vec::new();
    let mut values: BTreeMap<String, Option<String>> = BTreeMap::new();
    let base = [DEFAULT_PATH.to_owned(), format!("HOSTNAME={}", config.hostname)];
    let image = defaults.env.iter().flatten().cloned();
    for entry in base.into_iter().chain(image).chain(config.env.iter().cloned()) {
        let (key, value) = match entry.split_once('=') {
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (entry, None),
        };
        if key.is_empty() {
            continue;
        }
        if !values.contains_key(&key) {
            order.push(key.clone());
        }
        values.insert(key, value);
    }
    order
        .into_iter()
        .filter_map(|key| {
            let value = values.get(&key)?.as_ref()?;
            Some(format!("{key}={value}"))
        })
        .collect()
}

/// The configuration that the shim completes.
pub(crate) fn build_spec(
    config: &ContainerConfig,
    program: &Program,
    place: &Place<'_>,
) -> Result<Spec, RuntimeError> {
    build(config, program, place).map_err(|error| failed("build the configuration", &error))
}

fn build(
    config: &ContainerConfig,
    program: &Program,
    place: &Place<'_>,
) -> Result<Spec, OciSpecError> {
    let process = ProcessBuilder::default()
        .terminal(false)
        .user(UserBuilder::default().uid(0u32).gid(0u32).build()?)
        .args(program.args.clone())
        .env(program.env.clone())
        .cwd(program.workdir.clone())
        .oom_score_adj(0)
        .build()?;
    let mut process = process;
    process.set_capabilities(None);
    process.set_rlimits(None);
    process.set_no_new_privileges(None);
    let root = RootBuilder::default()
        .path(place.dir.join(shim::files::ROOTFS))
        .readonly(config.read_only)
        .build()?;
    let mut spec = SpecBuilder::default()
        .version("1.0.2")
        .root(root)
        .hostname(config.hostname.clone())
        .process(process)
        .mounts(mounts(place.dir)?)
        .linux(linux(config, place)?)
        .build()?;
    spec.set_annotations(None);
    Ok(spec)
}

fn linux(config: &ContainerConfig, place: &Place<'_>) -> Result<Linux, OciSpecError> {
    let paths = |list: &[&str]| list.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces(config)?)
        .cgroups_path(place.cgroup)
        .resources(resources(config, place)?)
        .masked_paths(paths(MASKED_PATHS))
        .readonly_paths(paths(READONLY_PATHS))
        .build()?;
    linux.set_seccomp(None);
    Ok(linux)
}

fn namespaces(config: &ContainerConfig) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, Uts};
    let mut all = Vec::new();
    for kind in [Pid, Ipc, Uts, Mount, Cgroup] {
        all.push(LinuxNamespaceBuilder::default().typ(kind).build()?);
    }
    let network = LinuxNamespaceBuilder::default().typ(Network);
    let network = match config.netns.as_os_str().is_empty() {
        true => network,
        false => network.path(config.netns.clone()),
    };
    all.push(network.build()?);
    Ok(all)
}

fn resources(config: &ContainerConfig, place: &Place<'_>) -> Result<LinuxResources, OciSpecError> {
    let deny_all = LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build()?;
    let mut resources = LinuxResourcesBuilder::default().devices(vec![deny_all]);
    if config.cpu_nanos > 0 {
        // Nanoseconds of processor time a second, as microseconds a period.
        let quota = (config.cpu_nanos / (1_000_000_000 / CPU_PERIOD_US)).max(CPU_QUOTA_MIN_US);
        let quota = i64::try_from(quota).unwrap_or(i64::MAX);
        let cpu = LinuxCpuBuilder::default().quota(quota).period(CPU_PERIOD_US);
        resources = resources.cpu(cpu.build()?);
    }
    if config.memory_bytes > 0 {
        let limit = i64::try_from(config.memory_bytes).unwrap_or(i64::MAX);
        let mut memory = LinuxMemoryBuilder::default().limit(limit);
        if place.swap_limit {
            // Docker's default: as much swap as memory, the sum is what counts.
            memory = memory.swap(limit.saturating_mul(2));
        }
        resources = resources.memory(memory.build()?);
    }
    if config.pids > 0 {
        let limit = i64::try_from(config.pids).unwrap_or(i64::MAX);
        resources = resources.pids(LinuxPidsBuilder::default().limit(limit).build()?);
    }
    resources.build()
}

fn mounts(dir: &Path) -> Result<Vec<Mount>, OciSpecError> {
    let mut all = Vec::new();
    for (target, kind, options) in FILESYSTEMS {
        let options: Vec<String> = options.split(',').map(str::to_owned).collect();
        let mount = MountBuilder::default().destination(*target).typ(*kind).source(*kind);
        all.push(mount.options(options).build()?);
    }
    for name in ["resolv.conf", "hostname", "hosts"] {
        let options = vec!["bind".to_owned(), "rprivate".to_owned()];
        let mount = MountBuilder::default()
            .destination(Path::new("/etc").join(name))
            .typ("bind")
            .source(dir.join(name))
            .options(options);
        all.push(mount.build()?);
    }
    Ok(all)
}

/// Number of a signal given by name, with or without `SIG`, or by number.
pub(crate) fn parse_signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN+") {
        return offset.parse::<i32>().ok().map(|n| 34 + n).filter(|n| *n <= 64);
    }
    match name {
        "RTMIN" => Some(34),
        "RTMAX" => Some(64),
        name => format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|s| s as i32),
    }
}

/// Target, kind and options of what every container has.
const FILESYSTEMS: &[(&str, &str, &str)] = &[
    ("/proc", "proc", "nosuid,noexec,nodev"),
    ("/dev", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
    ("/dev/pts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
    ("/sys", "sysfs", "nosuid,noexec,nodev,ro"),
    ("/sys/fs/cgroup", "cgroup", "ro,nosuid,noexec,nodev"),
    ("/dev/mqueue", "mqueue", "nosuid,noexec,nodev"),
    ("/dev/shm", "tmpfs", "nosuid,noexec,nodev,mode=1777,size=65536k"),
];

const MASKED_PATHS: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

const READONLY_PATHS: &[&str] =
    &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const CPU_PERIOD_US: u64 = 100_000;
/// The kernel refuses less.
const CPU_QUOTA_MIN_US: u64 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn image(entrypoint: &[&str], cmd: &[&str]) -> ImageConfig {
        let list = |texts: &[&str]| Some(texts.iter().map(|t| (*t).to_owned()).collect());
        ImageConfig {
            config: Some(ExecutionConfig {
                user: Some("app".into()),
                env: list(&["PATH=/bin", "A=1", "B=2"]),
                entrypoint: list(entrypoint),
                cmd: list(cmd),
                working_dir: Some("/srv".into()),
                stop_signal: Some("SIGQUIT".into()),
            }),
            ..ImageConfig::default()
        }
    }

    #[test]
    fn command_lines_follow_dockers_rules() {
        let cases: [(&[&str], &[&str], &[&str]); 4] = [
            (&[], &[], &["ep", "cmd"]),
            (&[], &["x"], &["ep", "x"]),
            (&["own"], &[], &["own"]),
            (&["own"], &["x"], &["own", "x"]),
        ];
        for (command, args, expected) in cases {
            let list = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect();
            let config = ContainerConfig {
                command: list(command),
                args: list(args),
                ..ContainerConfig::default()
            };
            let program = resolve_program(&config, &image(&["ep"], &["cmd"])).unwrap();
            assert_eq!(program.args, expected);
        }
    }

    #[test]
    fn the_service_wins_over_the_image() {
        let image = image(&["ep"], &[]);
        let program = resolve_program(&ContainerConfig::default(), &image).unwrap();
        assert_eq!((program.user.as_str(), program.stop_signal), ("app", libc::SIGQUIT));
        assert_eq!(program.workdir, Path::new("/srv"));
        let config = ContainerConfig {
            env: vec!["B=3".into(), "A".into(), "C=a=b".into()],
            user: Some("0".into()),
            workdir: Some("/w".into()),
            stop_signal: Some("int".into()),
            hostname: "h".into(),
            ..ContainerConfig::default()
        };
        let program = resolve_program(&config, &image).unwrap();
        assert_eq!(program.env, ["PATH=/bin", "HOSTNAME=h", "B=3", "C=a=b"]);
        assert_eq!((program.user.as_str(), program.stop_signal), ("0", libc::SIGINT));
        assert_eq!(program.workdir, Path::new("/w"));
    }

    #[test]
    fn bad_values_name_their_field() {
        let cases: [(&str, ContainerConfig); 3] = [
            (
                "stop_signal",
                ContainerConfig { stop_signal: Some("SIGNOPE".into()), ..Default::default() },
            ),
            ("workdir", ContainerConfig { workdir: Some("rel".into()), ..Default::default() }),
            ("command", ContainerConfig { args: vec!["a\0b".into()], ..Default::default() }),
        ];
        for (name, config) in cases {
            match resolve_program(&config, &image(&["ep"], &[])) {
                Err(RuntimeError::Invalid { field, .. }) => assert_eq!(field, name),
                other => panic!("{name}: {other:?}"),
            }
        }
        let empty = resolve_program(&ContainerConfig::default(), &ImageConfig::default());
        assert!(matches!(empty, Err(RuntimeError::Invalid { field: "command", .. })));
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("TERM", Some(15)),
            ("SIGTERM", Some(15)),
            ("sigkill", Some(9)),
            ("10", Some(10)),
            ("RTMIN+3", Some(37)),
            ("SIGRTMAX", Some(64)),
            ("0", None),
            ("65", None),
            ("NOPE", None),
        ] {
            assert_eq!(parse_signal(text), number, "{text}");
        }
    }
}
