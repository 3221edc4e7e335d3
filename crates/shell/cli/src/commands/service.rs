//! `shoal service`.
//!
//! Owns: what is listed of services, how they are made and changed.
//! Does not know: how tasks are made and placed; it shows the reasons that the daemon gives.
//! Invariant: `update` and `scale` change the spec that they read, and read again when it changed.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};
use types::{ErrorCode, Service, ServiceMode, ServiceSpec};
use view::ServiceFacts;
use wire::v1;

use super::swarm::ATTEMPTS_MAX;
use super::task::{self, PsOptions, undigested};
use super::{
    Failures, id_text, logs, print, print_inspected, print_line, unknown_filter, warn_when_stale,
};
use crate::args::service::{
    Create, Inspect, Ls, Ps, Rm, Scale, Service as Command, Update, Waiting,
};
use crate::client::Daemon;
use crate::error::CliError;
use crate::output::{List, Row, human, pretty, row_of};
use crate::{progress, spec};

pub(super) async fn run(daemon: &mut Daemon, command: Command) -> Result<(), CliError> {
    match command {
        Command::Create(args) => create(daemon, &args).await,
        Command::Ls(args) => ls(daemon, &args).await,
        Command::Ps(args) => ps(daemon, args).await,
        Command::Inspect(args) => inspect(daemon, &args).await,
        Command::Scale(args) => scale(daemon, &args).await,
        Command::Update(mut args) => update(daemon, &mut args).await,
        Command::Rm(args) => rm(daemon, &args).await,
        Command::Logs(args) => logs::run(daemon, &args).await,
    }
}

const SERVICES: List = List {
    table: "{{.ID}}\t{{.Name}}\t{{.Mode}}\t{{.Replicas}}\t{{.Image}}\t{{.Ports}}",
    heads: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Mode", "MODE"),
        ("Replicas", "REPLICAS"),
        ("Image", "IMAGE"),
        ("Ports", "PORTS"),
        ("Reason", "REASON"),
    ],
    id: "ID",
};

/// A service and its numbers of tasks.
struct Shown {
    service: Service,
    facts: ServiceFacts,
}

impl Shown {
    fn of(view: v1::ServiceView) -> Result<Self, CliError> {
        Ok(Self {
            service: view.service.unwrap_or_default().try_into()?,
            facts: ServiceFacts {
                running: view.running,
                desired: view.desired,
                completed: view.completed,
            },
        })
    }

    fn row(&self, in_full: bool) -> Row {
        let spec = &self.service.spec;
        let id = self.service.id.to_string();
        let image = &spec.task.container.image;
        let reasons: Vec<&str> =
            self.service.reasons.iter().map(|reason| reason.message.as_str()).collect();
        row_of(json!({
            "ID": if in_full { id } else { human::short(&id) },
            "Name": spec.name,
            "Mode": spec.mode.name().replace('-', " "),
            "Replicas": self.replicas(),
            "Image": if in_full { image.clone() } else { undigested(image) },
            "Ports": view::published_ports(&self.service),
            "Reason": reasons.join("; "),
        }))
    }

    fn replicas(&self) -> String {
        let (spec, facts) = (&self.service.spec, self.facts);
        let mut text = format!("{}/{}", facts.running, facts.desired);
        let total = match spec.mode {
            ServiceMode::ReplicatedJob(job) => Some(job.total_completions),
            ServiceMode::GlobalJob => Some(facts.desired),
            ServiceMode::Replicated(_) | ServiceMode::Global => None,
        };
        if let Some(total) = total {
            text = format!("{text} ({}/{total} completed)", facts.completed);
        }
        match spec.task.placement.max_replicas {
            0 => text,
            most => format!("{text} (max {most} per node)"),
        }
    }
}

async fn create(daemon: &mut Daemon, args: &Create) -> Result<(), CliError> {
    let spec = spec::create(args)?;
    let request = v1::CreateServiceRequest { spec: Some((&spec).into()) };
    let answer = daemon.control.create_service(request).await?.into_inner();
    let id = id_text(&answer.id);
    warn(&answer.warnings);
    print_line(&id)?;
    wait(daemon, &id, &id, &args.waiting).await
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        eprintln!("{warning}");
    }
}

/// Waits for the service unless told not to; `shown` names it in the texts.
async fn wait(
    daemon: &mut Daemon,
    id: &str,
    shown: &str,
    waiting: &Waiting,
) -> Result<(), CliError> {
    if waiting.detach {
        return Ok(());
    }
    progress::wait(daemon, id, shown, waiting).await
}

async fn ls(daemon: &mut Daemon, args: &Ls) -> Result<(), CliError> {
    let mut request = v1::ListServicesRequest::default();
    for (key, value) in &args.filters.filters {
        match (key.as_str(), value.as_str()) {
            ("id", _) => request.ids.push(value.clone()),
            ("name", _) => request.names.push(value.clone()),
            ("mode", "replicated" | "global") => request.modes.push(value.clone()),
            ("mode", other) => {
                let text = format!("mode `{other}`: write replicated or global");
                return Err(CliError::usage("--filter", text));
            }
            ("label", _) => {
                let (key, value) = value.split_once('=').unwrap_or((value, ""));
                request.labels.insert(key.to_owned(), value.to_owned());
            }
            (other, _) => return Err(unknown_filter(other, "id, label, mode, name")),
        }
    }
    let list = daemon.control.list_services(request).await?.into_inner();
    warn_when_stale(list.freshness.as_ref());
    let mut shown = Vec::new();
    for view in list.services {
        shown.push(Shown::of(view)?);
    }
    shown.sort_by(|a, b| human::natural(&a.service.spec.name, &b.service.spec.name));
    let rows: Vec<Row> = shown.iter().map(|service| service.row(args.no_trunc)).collect();
    SERVICES.print(&args.format, &rows, &mut std::io::stdout().lock())
}

async fn find(daemon: &mut Daemon, name: &str) -> Result<Shown, CliError> {
    let reference = v1::ObjectRef { r#ref: name.to_owned() };
    match daemon.control.get_service(reference).await.map_err(CliError::from) {
        Ok(view) => Shown::of(view.into_inner()),
        Err(error) if error.is_not_found() => {
            Err(CliError { message: format!("no such service: {name}"), ..error })
        }
        Err(error) => Err(error),
    }
}

async fn ps(daemon: &mut Daemon, args: Ps) -> Result<(), CliError> {
    let mut failures = Failures::default();
    let mut request = v1::ListTasksRequest::default();
    for name in &args.services {
        let found = failures.keep(find(daemon, name).await);
        request.services.extend(found.map(|shown| shown.service.id.to_string()));
    }
    if !request.services.is_empty() {
        task::apply_filters(&mut request, &args.filters)?;
        let options = PsOptions { no_resolve: args.no_resolve, no_trunc: args.no_trunc };
        task::ps(daemon, request, &args.format, options).await?;
    }
    failures.finish()
}

async fn inspect(daemon: &mut Daemon, args: &Inspect) -> Result<(), CliError> {
    let mut failures = Failures::default();
    let mut found = Vec::new();
    for name in &args.services {
        found.extend(failures.keep(find(daemon, name).await));
    }
    if args.format.pretty {
        let names = network_names(daemon, &found).await?;
        for Shown { service, .. } in &found {
            let attached = service.spec.task.networks.iter();
            let shown = |target: &String| names.get(target).unwrap_or(target).clone();
            let networks: Vec<String> = attached.map(|one| shown(&one.target)).collect();
            print(&pretty::service(service, &networks))?;
        }
    } else {
        let objects: Vec<Json> =
            found.iter().map(|shown| view::service(&shown.service, shown.facts)).collect();
        print_inspected(&args.format, &objects)?;
    }
    failures.finish()
}

/// A spec names networks by id: what these are called.
async fn network_names(
    daemon: &mut Daemon,
    found: &[Shown],
) -> Result<BTreeMap<String, String>, CliError> {
    let ids = found.iter().flat_map(|shown| &shown.service.spec.task.networks);
    let ids: Vec<String> = ids.map(|attached| attached.target.clone()).collect();
    if ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let request = v1::ListNetworksRequest { ids, ..v1::ListNetworksRequest::default() };
    let list = daemon.control.list_networks(request).await?.into_inner();
    let networks = list.networks.into_iter().filter_map(|view| view.network);
    let name = |network: v1::Network| {
        (id_text(&network.id), network.spec.map(|spec| spec.name).unwrap_or_default())
    };
    let predefined = ["host", "none", "bridge"].into_iter().filter_map(|name| {
        Some((types::NetworkId::from_predefined_name(name)?.to_string(), name.to_owned()))
    });
    Ok(networks.map(name).chain(predefined).collect())
}

/// Changes a service's spec, again when somebody else changed it meanwhile; gives its id.
async fn change(
    daemon: &mut Daemon,
    name: &str,
    edit: impl Fn(&mut ServiceSpec) -> Result<(), CliError>,
) -> Result<String, CliError> {
    let mut attempt = 1;
    loop {
        let service = find(daemon, name).await?.service;
        let mut spec = ServiceSpec::clone(&service.spec);
        edit(&mut spec)?;
        let request = v1::UpdateServiceRequest {
            id: service.id.to_bytes().to_vec().into(),
            spec_version: service.meta.spec_version,
            spec: Some((&spec).into()),
        };
        match daemon.control.update_service(request).await.map_err(CliError::from) {
            Ok(answer) => {
                warn(&answer.into_inner().warnings);
                return Ok(service.id.to_string());
            }
            Err(error) if error.code == Some(ErrorCode::OutOfDate) && attempt < ATTEMPTS_MAX => {
                attempt += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn update(daemon: &mut Daemon, args: &mut Update) -> Result<(), CliError> {
    // A spec names networks by id.
    for name in &mut args.network_rm {
        if types::NetworkId::from_predefined_name(name).is_none() {
            let request = v1::GetNetworkRequest { r#ref: name.clone(), verbose: false };
            let found = daemon.control.get_network(request).await?.into_inner();
            *name = super::id_text(&found.network.unwrap_or_default().id);
        }
    }
    let args = &*args;
    let id = change(daemon, &args.service, |spec| spec::update(spec, args)).await?;
    print_line(&args.service)?;
    wait(daemon, &id, &args.service, &args.waiting).await
}

async fn scale(daemon: &mut Daemon, args: &Scale) -> Result<(), CliError> {
    let mut failures = Failures::default();
    let mut scaled = Vec::new();
    for (name, replicas) in &args.scales {
        let changed = change(daemon, name, |spec| {
            let ServiceMode::Replicated(count) = &mut spec.mode else {
                let text = "scale can only be used with replicated or replicated-job mode";
                return Err(CliError::failed(format!("{name}: {text}")));
            };
            *count = *replicas;
            Ok(())
        })
        .await;
        if let Some(id) = failures.keep(changed) {
            print_line(format!("{name} scaled to {replicas}"))?;
            scaled.push((id, name));
        }
    }
    for (id, name) in scaled {
        failures.keep(wait(daemon, &id, name, &args.waiting).await);
    }
    failures.finish()
}

async fn rm(daemon: &mut Daemon, args: &Rm) -> Result<(), CliError> {
    let mut failures = Failures::default();
    for name in &args.services {
        let reference = v1::ObjectRef { r#ref: name.clone() };
        let removed = daemon.control.remove_service(reference).await.map_err(CliError::from);
        if failures.keep(removed).is_some() {
            print_line(name)?;
        }
    }
    failures.finish()
}
