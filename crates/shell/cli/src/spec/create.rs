//! The spec of `service create`.
//!
//! Owns: what each of its options sets, and the random name.
//! Does not know: the cluster; names that are taken are the daemon's to refuse.
//! Invariant: a mode that this version does not run is refused here, by the name of the option.

use std::hash::{BuildHasher, RandomState};

use types::{ContainerSpec, DnsConfig, EndpointSpec, PortSpec, ServiceMode, ServiceSpec, TaskSpec};

use super::apply_common;
use super::environment;
use crate::args::service::Create;
use crate::error::CliError;
use crate::values::labels;

pub(crate) fn create(args: &Create) -> Result<ServiceSpec, CliError> {
    let (image, arguments) = args
        .image_and_args
        .split_first()
        .ok_or_else(|| CliError::usage("IMAGE", "name the image to run"))?;
    let mut env = Vec::new();
    for path in &args.env_file {
        environment::merge(&mut env, environment::read(path)?);
    }
    environment::merge(&mut env, args.env.iter().filter_map(|entry| environment::resolve(entry)));
    let container = ContainerSpec {
        image: image.clone(),
        args: arguments.to_vec(),
        env,
        labels: labels(&args.container_label),
        ..ContainerSpec::default()
    };
    let mut task = TaskSpec { container, ..TaskSpec::default() };
    task.placement.constraints.clone_from(&args.constraint);
    task.placement.spread.clone_from(&args.placement_pref);
    task.networks.clone_from(&args.network);
    task.container.hosts.clone_from(&args.host);
    task.container.dns = dns(&args.dns, &args.dns_search, &args.dns_option);
    let mut spec = ServiceSpec {
        name: args.name.clone().unwrap_or_else(random_name),
        labels: labels(&args.label),
        task,
        mode: mode(args)?,
        update: None,
        rollback: None,
        endpoint: None,
    };
    let ports: Vec<PortSpec> = args.publish.iter().flat_map(|one| one.0.clone()).collect();
    if !ports.is_empty() {
        spec.endpoint = Some(EndpointSpec { ports, ..EndpointSpec::default() });
    }
    apply_common(&mut spec, &args.common)?;
    Ok(spec)
}

fn dns(nameservers: &[String], search: &[String], options: &[String]) -> Option<DnsConfig> {
    let dns = DnsConfig {
        nameservers: nameservers.to_vec(),
        search: search.to_vec(),
        options: options.to_vec(),
    };
    (dns != DnsConfig::default()).then_some(dns)
}

fn mode(args: &Create) -> Result<ServiceMode, CliError> {
    match (args.mode.as_str(), args.common.replicas) {
        ("replicated", replicas) => Ok(ServiceMode::Replicated(replicas.unwrap_or(1))),
        ("global", None) => Ok(ServiceMode::Global),
        ("global", Some(_)) => Err(CliError::usage(
            "--replicas",
            "replicas can only be used with replicated or replicated-job mode",
        )),
        (other, _) => Err(CliError::usage(
            "--mode",
            format!("unknown mode: {other}, only replicated and global supported"),
        )),
    }
}

/// Two words and a number; the daemon refuses the rare one that is taken.
fn random_name() -> String {
    let number = RandomState::new().hash_one(std::process::id());
    let pick = |words: &[&'static str], bits: u64| words[bits as usize % words.len()];
    let (left, right) = (pick(ADJECTIVES, number), pick(FISH, number >> 16));
    format!("{left}_{right}{}", (number >> 32) % 100)
}

const ADJECTIVES: &[&str] = &[
    "agile", "brave", "bright", "calm", "clever", "eager", "fast", "gentle", "happy", "keen",
    "kind", "lively", "lucid", "nimble", "proud", "quick", "quiet", "silent", "smooth", "steady",
    "swift", "tidy", "warm", "wise",
];
const FISH: &[&str] = &[
    "anchovy", "barbel", "bream", "capelin", "carp", "cod", "dace", "garfish", "goby", "grayling",
    "haddock", "hake", "herring", "mackerel", "minnow", "perch", "pilchard", "roach", "salmon",
    "sardine", "shad", "smelt", "sprat", "tuna",
];

#[cfg(test)]
mod tests {
    use base::Millis;
    use clap::Parser;
    use types::RestartCondition;

    use super::*;
    use crate::args::service::Service;
    use crate::args::{Args, Command};

    fn spec(line: &str) -> Result<ServiceSpec, CliError> {
        let words = ["shoal", "service", "create"].into_iter().chain(line.split_whitespace());
        let args = Args::try_parse_from(words).map_err(|error| CliError {
            exit: crate::Exit::Usage,
            ..CliError::failed(error.to_string())
        })?;
        let Command::Service(Service::Create(args)) = args.command else {
            panic!("not a service create")
        };
        create(&args)
    }

    #[test]
    fn every_option_reaches_the_spec() {
        let spec = spec(
            "--name web --replicas 3 --label a=b --container-label c=d \
             --constraint node.role==worker --placement-pref spread=node.labels.zone \
             --env X=1 --env X=2 --replicas-max-per-node 2 --limit-cpu 0.5 \
             --limit-memory 64m --limit-pids 100 --reserve-cpu .1 \
             --reserve-memory 32m --restart-condition on-failure --restart-delay 2s \
             --restart-max-attempts 3 --restart-window 1m --entrypoint /bin/sh --hostname h \
             --workdir /w --user 1:1 --read-only --cap-add net_admin --cap-drop ALL \
             --stop-grace-period 5s --stop-signal SIGINT nginx:1 -c x",
        )
        .unwrap();
        let (task, container) = (&spec.task, &spec.task.container);
        assert_eq!((spec.name.as_str(), spec.mode), ("web", ServiceMode::Replicated(3)));
        assert_eq!(spec.labels["a"], "b");
        assert_eq!(container.labels["c"], "d");
        assert_eq!(task.placement.constraints, ["node.role==worker"]);
        assert_eq!(task.placement.spread, ["node.labels.zone"]);
        assert_eq!(task.placement.max_replicas, 2);
        assert_eq!(container.env, ["X=2"]);
        assert_eq!((task.limits.cpu_nanos, task.limits.pids), (500_000_000, 100));
        assert_eq!(task.limits.memory_bytes, 64 << 20);
        assert_eq!(task.reservations.cpu_nanos, 100_000_000);
        assert_eq!(task.reservations.memory_bytes, 32 << 20);
        assert_eq!(task.restart.condition, RestartCondition::OnFailure);
        assert_eq!((task.restart.delay, task.restart.window), (Millis(2_000), Millis(60_000)));
        assert_eq!(task.restart.max_attempts, 3);
        assert_eq!(
            (container.image.as_str(), &container.command[..]),
            ("nginx:1", &["/bin/sh".to_owned()][..])
        );
        assert_eq!(container.args, ["-c", "x"]);
        assert_eq!((container.hostname.as_str(), container.workdir.as_str()), ("h", "/w"));
        assert_eq!((container.user.as_str(), container.read_only), ("1:1", true));
        assert_eq!(container.cap_add, ["CAP_NET_ADMIN"]);
        assert_eq!(container.cap_drop, ["ALL"]);
        assert_eq!(container.stop_grace, Some(Millis(5_000)));
        assert_eq!(container.stop_signal, "SIGINT");
    }

    #[test]
    fn defaults_are_dockers() {
        let spec = spec("nginx").unwrap();
        assert_eq!(spec.mode, ServiceMode::Replicated(1));
        assert_eq!(spec.task.restart.delay, Millis(5_000));
        assert!(spec.check().is_ok(), "{}", spec.name);
    }

    #[test]
    fn what_is_wrong_is_refused_by_name() {
        for (line, name) in [
            ("--mode globl nginx", "--mode"),
            ("--mode replicated-job nginx", "--mode"),
            ("--mode global --replicas 2 nginx", "--replicas"),
            ("--mode global --replicas-max-per-node 2 nginx", "--replicas-max-per-node"),
            ("--limit-memory 5x nginx", "--limit-memory"),
            ("--limit-cpu many nginx", "--limit-cpu"),
            ("--restart-delay 5 nginx", "--restart-delay"),
            ("--restart-condition never nginx", "--restart-condition"),
            ("--placement-pref node.labels.x nginx", "--placement-pref"),
            ("--label =x nginx", "--label"),
            ("--env-file /nonexistent nginx", "--env-file"),
            ("", "IMAGE"),
        ] {
            let error = spec(line).unwrap_err();
            assert!(error.message.contains(name), "{line}: {error}");
            assert_eq!(error.exit, crate::Exit::Usage, "{line}");
        }
    }
}
