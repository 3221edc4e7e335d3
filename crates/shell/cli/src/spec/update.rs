//! What `service update` changes in a spec.
//!
//! Owns: the effect of each option, the `-add` and `-rm` forms.
//! Does not know: the daemon; the spec it starts from has been read before.
//! Invariant: removals come first, so that `--x-rm A --x-add A` moves A to the end.

use types::{DnsConfig, Labels, PortSpec, ServiceMode, ServiceSpec};

use super::{apply_common, environment, insert, set};
use crate::args::service::Update;
use crate::error::CliError;

pub(crate) fn update(spec: &mut ServiceSpec, args: &Update) -> Result<(), CliError> {
    apply_common(spec, &args.common)?;
    if let Some(replicas) = args.common.replicas {
        let ServiceMode::Replicated(count) = &mut spec.mode else {
            return Err(CliError::usage(
                "--replicas",
                "replicas can only be used with replicated mode",
            ));
        };
        *count = replicas;
    }
    change_labels(&mut spec.labels, &args.label_rm, &args.label_add);
    let task = &mut spec.task;
    let container = &mut task.container;
    set(&mut container.image, args.image.clone());
    set(&mut container.args, args.args.as_ref().map(|words| words.0.clone()));
    change_labels(&mut container.labels, &args.container_label_rm, &args.container_label_add);
    container.env.retain(|entry| {
        let name = environment::name_of(entry);
        !args.env_rm.iter().any(|removed| environment::name_of(removed) == name)
    });
    let added = args.env_add.iter().filter_map(|entry| environment::resolve(entry));
    environment::merge(&mut container.env, added);
    change_list(&mut task.placement.constraints, &args.constraint_rm, &args.constraint_add);
    change_list(&mut task.placement.spread, &args.placement_pref_rm, &args.placement_pref_add);
    change_list(&mut container.hosts, &args.host_rm, &args.host_add);
    let mut dns = container.dns.take().unwrap_or_default();
    change_list(&mut dns.nameservers, &args.dns_rm, &args.dns_add);
    change_list(&mut dns.search, &args.dns_search_rm, &args.dns_search_add);
    change_list(&mut dns.options, &args.dns_option_rm, &args.dns_option_add);
    container.dns = (dns != DnsConfig::default()).then_some(dns);
    task.networks.retain(|one| !args.network_rm.contains(&one.target));
    task.networks.extend(args.network_add.iter().cloned());
    if args.force {
        task.force_update += 1;
    }
    change_ports(spec, args);
    Ok(())
}

/// What is removed is known by its target, protocol and mode, as docker's.
fn change_ports(spec: &mut ServiceSpec, args: &Update) {
    let key = |port: &PortSpec| (port.target, port.protocol, port.mode);
    let removed: Vec<_> = args.publish_rm.iter().flat_map(|one| &one.0).map(key).collect();
    let added: Vec<PortSpec> = args.publish_add.iter().flat_map(|one| one.0.clone()).collect();
    if removed.is_empty() && added.is_empty() {
        return;
    }
    let endpoint = spec.endpoint.get_or_insert_default();
    endpoint.ports.retain(|port| !removed.contains(&key(port)) && !added.contains(port));
    endpoint.ports.extend(added);
}

fn change_labels(labels: &mut Labels, removed: &[String], added: &[(String, String)]) {
    for key in removed {
        labels.remove(key);
    }
    labels.extend(added.iter().cloned());
}

fn change_list(list: &mut Vec<String>, removed: &[String], added: &[String]) {
    list.retain(|item| !removed.contains(item));
    for item in added {
        insert(list, item.clone());
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use types::{ContainerSpec, TaskSpec};

    use super::*;
    use crate::args::service::Service;
    use crate::args::{Args, Command};

    fn before() -> ServiceSpec {
        let container = ContainerSpec {
            image: "nginx:1".into(),
            env: vec!["A=1".into(), "B=2".into()],
            labels: Labels::from([("c".into(), "1".into())]),
            cap_add: vec!["CAP_NET_ADMIN".into()],
            ..ContainerSpec::default()
        };
        let mut task = TaskSpec { container, ..TaskSpec::default() };
        task.placement.constraints = vec!["node.role==worker".into()];
        task.placement.spread = vec!["node.labels.a".into()];
        ServiceSpec {
            name: "web".into(),
            labels: Labels::from([("l".into(), "1".into())]),
            task,
            mode: ServiceMode::Replicated(2),
            update: None,
            rollback: None,
            endpoint: None,
        }
    }

    fn after(line: &str) -> Result<ServiceSpec, CliError> {
        let words = ["shoal", "service", "update"].into_iter().chain(line.split_whitespace());
        let args = Args::try_parse_from(words).unwrap();
        let Command::Service(Service::Update(args)) = args.command else {
            panic!("not a service update")
        };
        let mut spec = before();
        update(&mut spec, &args).map(|()| spec)
    }

    #[test]
    fn ports_are_added_beside_others_and_removed_by_target_protocol_and_mode() {
        let published = |line: &str| {
            let args = format!("{line} web");
            let words = ["shoal", "service", "update"].into_iter().chain(args.split_whitespace());
            let args = Args::try_parse_from(words).unwrap();
            let Command::Service(Service::Update(args)) = args.command else {
                panic!("not a service update")
            };
            let mut spec = after("--publish-add 8080:80 web").unwrap();
            update(&mut spec, &args).unwrap();
            let ports = spec.endpoint.unwrap().ports;
            ports.iter().map(|port| (port.published, port.target)).collect::<Vec<_>>()
        };
        assert_eq!(published("--publish-add 9090:80"), [(8080, 80), (9090, 80)]);
        assert_eq!(published("--publish-add 8080:80"), [(8080, 80)]);
        assert_eq!(published("--publish-rm 80"), []);
        assert_eq!(published("--publish-rm 80/udp"), [(8080, 80)]);
        assert_eq!(published("--publish-rm target=80,mode=host"), [(8080, 80)]);
        assert_eq!(published("--publish-rm 80 --publish-add 81:80"), [(81, 80)]);
    }

    #[test]
    fn without_options_nothing_changes() {
        assert_eq!(after("web").unwrap(), before());
    }

    #[test]
    fn lists_are_changed_by_add_and_rm() {
        let spec = after(
            "--label-rm l --label-add m=2 --container-label-rm c --container-label-add d=3 \
             --env-rm A --env-add B=3 --env-add C=4 --constraint-rm node.role==worker \
             --constraint-add node.labels.x==1 --placement-pref-rm spread=node.labels.a \
             --placement-pref-add spread=node.labels.b --image nginx:2 --force --replicas 0 \
             --cap-drop NET_ADMIN --args -x web",
        )
        .unwrap();
        let (task, container) = (&spec.task, &spec.task.container);
        assert_eq!(spec.labels, Labels::from([("m".into(), "2".into())]));
        assert_eq!(container.labels, Labels::from([("d".into(), "3".into())]));
        assert_eq!(container.env, ["B=3", "C=4"]);
        assert_eq!(task.placement.constraints, ["node.labels.x==1"]);
        assert_eq!(task.placement.spread, ["node.labels.b"]);
        assert_eq!((container.image.as_str(), task.force_update), ("nginx:2", 1));
        assert_eq!(spec.mode, ServiceMode::Replicated(0));
        assert_eq!((container.cap_add.len(), container.cap_drop.len()), (0, 0));
        assert_eq!(container.args, ["-x"]);
    }

    #[test]
    fn replicas_need_the_replicated_mode() {
        let args = Args::try_parse_from(["shoal", "service", "update", "--replicas", "2", "web"]);
        let Command::Service(Service::Update(args)) = args.unwrap().command else {
            panic!("not a service update")
        };
        let mut spec = ServiceSpec { mode: ServiceMode::Global, ..before() };
        let error = update(&mut spec, &args).unwrap_err();
        assert_eq!(error.message, "--replicas: replicas can only be used with replicated mode");
    }
}
