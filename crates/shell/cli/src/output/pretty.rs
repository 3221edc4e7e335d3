//! `inspect --pretty`: objects for people, laid out as docker's.
//!
//! Owns: the layout. Does not know: where the objects come from.
//! Invariant: a line whose value is empty is left out, where docker leaves it out.

use types::{
    Labels, Node, NodeEncryption, Resources, RestartCondition, Service, ServiceMode, TaskSpec,
    UpdateConfig,
};
use wire::v1::NodeView;

use super::human;

/// Lines of `label<tabs>value`.
#[derive(Default)]
struct Page(String);

impl Page {
    fn line(&mut self, text: impl AsRef<str>) {
        self.0.push_str(text.as_ref());
        self.0.push('\n');
    }

    /// A line unless the value is empty.
    fn filled(&mut self, head: &str, value: impl AsRef<str>) {
        if !value.as_ref().is_empty() {
            self.line(format!("{head}{}", value.as_ref()));
        }
    }

    fn labels(&mut self, head: &str, indent: &str, labels: &Labels) {
        if labels.is_empty() {
            return;
        }
        self.line(head);
        for (key, value) in labels {
            let value = if value.is_empty() { String::new() } else { format!("={value}") };
            self.line(format!("{indent}{key}{value}"));
        }
    }
}

/// A node.
pub(crate) fn node(node: &Node, view: &NodeView) -> String {
    let mut page = Page::default();
    page.line(format!("ID:\t\t\t{}", node.id));
    page.filled("Name:\t\t\t", &node.spec.name);
    page.labels("Labels:", " - ", &node.spec.labels);
    page.line(format!("Hostname:              \t{}", node.hostname()));
    page.line(format!("Joined at:             \t{}", node.meta.created));
    page.line("Status:");
    page.line(format!(" State:\t\t\t{}", human::title(node.status.state.name())));
    page.filled(" Message:              \t", &node.status.message);
    let availability = human::title(node.spec.availability.name());
    page.line(format!(" Availability:         \t{availability}"));
    page.filled(" Address:\t\t", &node.status.address);
    for condition in &view.conditions {
        page.line(format!(" Condition:\t\t{condition}"));
    }
    if let Some(manager) = &node.manager {
        let raft = match view.reachable {
            Some(true) => "Reachable",
            Some(false) => "Unreachable",
            None => "Unknown",
        };
        page.line("Manager Status:");
        page.line(format!(" Address:\t\t{}", manager.address));
        page.line(format!(" Raft Status:\t\t{raft}"));
        page.line(format!(" Leader:\t\t{}", if view.leader { "Yes" } else { "No" }));
    }
    let description = &node.description;
    page.line("Platform:");
    page.line(format!(" Operating System:\t{}", description.platform.os));
    page.line(format!(" Architecture:\t\t{}", description.platform.architecture));
    page.line("Resources:");
    page.line(format!(" CPUs:\t\t\t{}", human::cpus(description.resources.cpu_nanos)));
    page.line(format!(" Memory:\t\t{}", human::memory(description.resources.memory_bytes)));
    encryption(&mut page, description.data_path.encryption.as_ref());
    page.line(format!("Engine Version:\t\t{}", description.engine_version));
    page.labels("Engine Labels:", " - ", &description.engine_labels);
    if node.certificate_expires.0 > 0 {
        page.line(format!("Certificate expires:\t{}", node.certificate_expires));
    }
    page.line("");
    page.0
}

/// A node's end of encrypted networks; nothing until it has said it.
fn encryption(page: &mut Page, said: Option<&NodeEncryption>) {
    let Some(said) = said else { return };
    let (keys, sends_with) = (said.keys.keys(), said.sends_with);
    page.line(format!("Encryption:\t\t{}", said.backend.name()));
    page.filled(" Key Generations:\t", keys.map(u32::to_string).collect::<Vec<_>>().join(", "));
    if sends_with > 0 {
        page.line(format!(" Sends With:\t\t{sends_with}"));
    }
    page.line(format!(" UDP Segmentation:\t{}", if said.udp_segmentation { "Yes" } else { "No" }));
}

/// A service on these networks.
pub(crate) fn service(service: &Service, networks: &[String]) -> String {
    let (spec, task) = (&service.spec, &service.spec.task);
    let mut page = Page::default();
    page.line(format!("ID:\t\t{}", service.id));
    page.line(format!("Name:\t\t{}", spec.name));
    page.labels("Labels:", " ", &spec.labels);
    match spec.mode {
        ServiceMode::Replicated(replicas) => {
            page.line("Service Mode:\tReplicated");
            page.line(format!(" Replicas:\t{replicas}"));
        }
        ServiceMode::Global => page.line("Service Mode:\tGlobal"),
        ServiceMode::ReplicatedJob(job) => {
            page.line("Service Mode:\tReplicatedJob");
            page.line(format!(" Max Concurrent:\t{}", job.max_concurrent));
            page.line(format!(" Total Completions:\t{}", job.total_completions));
        }
        ServiceMode::GlobalJob => page.line("Service Mode:\tGlobalJob"),
    }
    update_status(&mut page, service);
    if !service.reasons.is_empty() {
        page.line("Reasons:");
        for reason in &service.reasons {
            let (decider, message) = (&reason.decider, &reason.message);
            page.line(format!(" {decider}:\t{message} ({} tasks)", reason.count));
        }
    }
    placement(&mut page, task);
    if let Some(config) = &spec.update {
        page.line("UpdateConfig:");
        update_config(&mut page, config, "Update order:      ");
    }
    if let Some(config) = &spec.rollback {
        page.line("RollbackConfig:");
        update_config(&mut page, config, "Rollback order:    ");
    }
    container(&mut page, task);
    restart(&mut page, task);
    resources(&mut page, task);
    if !networks.is_empty() {
        page.line(format!("Networks: {} ", networks.join(" ")));
    }
    page.line(format!("Endpoint Mode:\t{}", spec.endpoint_mode().name()));
    ports(&mut page, service);
    page.line("");
    page.0
}

/// As they were given; before that, as they were asked for.
fn ports(page: &mut Page, service: &Service) {
    let given = service.endpoint.as_ref().map(|given| given.ports.as_slice());
    let ports = given.unwrap_or(service.spec.ports());
    if ports.is_empty() {
        return;
    }
    page.line("Ports:");
    for port in ports {
        page.line(format!(" PublishedPort = {}", port.published));
        page.line(format!("  Protocol = {}", port.protocol.name()));
        page.line(format!("  TargetPort = {}", port.target));
        page.line(format!("  PublishMode = {}", port.mode.name()));
        page.filled("  HostAddress = ", &port.host);
        page.filled("  Name = ", &port.name);
    }
}

fn update_status(page: &mut Page, service: &Service) {
    let Some(status) = &service.update else { return };
    page.line("UpdateStatus:");
    page.line(format!(" State:\t\t{}", status.state.name()));
    page.line(format!(" Started:\t{}", status.started));
    if status.completed.0 > 0 {
        page.line(format!(" Completed:\t{}", status.completed));
    }
    page.line(format!(" Message:\t{}", status.message));
}

fn placement(page: &mut Page, task: &TaskSpec) {
    let placement = &task.placement;
    page.line("Placement:");
    if !placement.constraints.is_empty() {
        page.line(format!(" Constraints:\t[{}]", placement.constraints.join(" ")));
    }
    if !placement.spread.is_empty() {
        let spread: Vec<String> =
            placement.spread.iter().map(|descriptor| format!("spread={descriptor}")).collect();
        page.line(format!(" Preferences:   [{}]", spread.join(" ")));
    }
    if placement.max_replicas > 0 {
        page.line(format!(" Max Replicas Per Node:   {}", placement.max_replicas));
    }
}

fn update_config(page: &mut Page, config: &UpdateConfig, order: &str) {
    let action = match config.failure_action {
        types::FailureAction::Pause => "pause",
        types::FailureAction::Continue => "continue",
        types::FailureAction::Rollback => "rollback",
    };
    let order_name = match config.order {
        types::UpdateOrder::StopFirst => "stop-first",
        types::UpdateOrder::StartFirst => "start-first",
    };
    page.line(format!(" Parallelism:\t{}", config.parallelism));
    if config.delay.0 > 0 {
        page.line(format!(" Delay:\t\t{}", human::go_duration(config.delay)));
    }
    page.line(format!(" On failure:\t{action}"));
    page.line(format!(" Monitoring Period: {}", human::go_duration(config.monitor)));
    page.line(format!(" Max failure ratio: {}", config.max_failure_ratio));
    page.line(format!(" {order}{order_name}"));
}

fn container(page: &mut Page, task: &TaskSpec) {
    let container = &task.container;
    let spaced = |list: &[String]| list.iter().map(|item| format!("{item} ")).collect::<String>();
    page.line("ContainerSpec:");
    page.line(format!(" Image:\t\t{}", container.image));
    page.filled(" Command:\t", spaced(&container.command));
    page.filled(" Args:\t\t", spaced(&container.args));
    page.filled(" Env:\t\t", spaced(&container.env));
    page.filled(" Dir:\t\t", &container.workdir);
    page.filled(" Hostname:\t", &container.hostname);
    page.filled(" User: ", &container.user);
    page.filled(" Capabilities added:\t", container.cap_add.join(" "));
    page.filled(" Capabilities dropped:\t", container.cap_drop.join(" "));
    page.filled(" StopSignal:\t", &container.stop_signal);
    if let Some(grace) = container.stop_grace {
        page.line(format!(" StopGracePeriod:\t{}", human::go_duration(grace)));
    }
    if container.read_only {
        page.line(" ReadOnly:\ttrue");
    }
    page.labels(" Labels:", "  ", &container.labels);
}

fn restart(page: &mut Page, task: &TaskSpec) {
    let policy = &task.restart;
    let condition = match policy.condition {
        RestartCondition::None => "none",
        RestartCondition::OnFailure => "on-failure",
        RestartCondition::Any => "any",
    };
    page.line("RestartPolicy:");
    page.line(format!(" Condition:\t{condition}"));
    page.line(format!(" Delay:\t\t{}", human::go_duration(policy.delay)));
    page.line(format!(" Max attempts:\t{}", policy.max_attempts));
    if policy.window.0 > 0 {
        page.line(format!(" Window:\t{}", human::go_duration(policy.window)));
    }
}

fn resources(page: &mut Page, task: &TaskSpec) {
    page.line("Resources:");
    for (head, amounts) in [(" Reservations:", &task.reservations), (" Limits:", &task.limits)] {
        if *amounts == Resources::default() {
            continue;
        }
        page.line(head);
        if amounts.cpu_nanos > 0 {
            page.line(format!("  CPU:\t\t{}", human::cpus(amounts.cpu_nanos)));
        }
        if amounts.memory_bytes > 0 {
            page.line(format!("  Memory:\t{}", human::memory(amounts.memory_bytes)));
        }
        if amounts.pids > 0 {
            page.line(format!("  PIDs:\t\t{}", amounts.pids));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use base::Id;
    use types::{
        Endpoint, Meta, NetworkKey, PortProtocol, PortSpec, PublishMode, ServiceId, ServiceSpec,
        TaskSpec,
    };

    use super::*;

    fn sample() -> Service {
        let spec = ServiceSpec {
            name: "web".into(),
            labels: Labels::new(),
            task: TaskSpec::default(),
            mode: ServiceMode::Global,
            update: None,
            rollback: None,
            endpoint: None,
        };
        Service {
            id: ServiceId(Id::from_u128(36).unwrap()),
            meta: Meta::default(),
            spec: Arc::new(spec),
            previous: None,
            revision: 7,
            update: None,
            reasons: Vec::new(),
            endpoint: None,
        }
    }

    #[test]
    fn a_nodes_end_of_encrypted_networks_is_shown_once_it_is_said() {
        let mut page = Page::default();
        encryption(&mut page, None);
        assert_eq!(page.0, "");
        let keys = [(2, NetworkKey([1; 32])), (3, NetworkKey([2; 32]))].into();
        let said = NodeEncryption { keys, sends_with: 2, ..NodeEncryption::default() };
        encryption(&mut page, Some(&said));
        assert_eq!(
            page.0,
            "Encryption:\t\tuser-space\n Key Generations:\t2, 3\n Sends With:\t\t2\n \
             UDP Segmentation:\tNo\n"
        );
    }

    #[test]
    fn networks_and_ports_are_laid_out_as_dockers() {
        let mut service = sample();
        let text = super::service(&service, &[]);
        assert!(text.ends_with("\nEndpoint Mode:\tvip\n\n"), "{text}");
        let port = |published, mode, host: &str| PortSpec {
            name: String::new(),
            protocol: PortProtocol::Tcp,
            target: 80,
            published,
            mode,
            host: host.into(),
        };
        let ports =
            vec![port(8_080, PublishMode::Ingress, ""), port(8_081, PublishMode::Host, "10.0.0.1")];
        service.endpoint = Some(Arc::new(Endpoint { ports, ..Endpoint::default() }));
        let text = super::service(&service, &["back".into(), "front".into()]);
        let expected = "Networks: back front \nEndpoint Mode:\tvip\nPorts:\n \
                        PublishedPort = 8080\n  Protocol = tcp\n  TargetPort = 80\n  \
                        PublishMode = ingress\n PublishedPort = 8081\n  Protocol = tcp\n  \
                        TargetPort = 80\n  PublishMode = host\n  HostAddress = 10.0.0.1\n\n";
        assert!(text.ends_with(expected), "{text}");
    }
}
