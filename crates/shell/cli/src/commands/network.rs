//! `shoal network`.
//!
//! Owns: how a spec is made of options, and what is shown of networks.
//! Does not know: how addresses are given out. Invariant: what every node has (bridge, host, none)
//! is listed with the cluster's, as docker does.

use std::io::{self, IsTerminal, Write};

use serde_json::{Value as Json, json};
use types::{ErrorCode, IpamPool, NetworkDriver, NetworkSpec};
use wire::v1;

use super::{Failures, id_text, print_inspected, print_line, unknown_filter, warn_when_stale};
use crate::args::InspectFormat;
use crate::args::network::{Create, Inspect, Ls, Network as Command, Prune, Rm};
use crate::client::Daemon;
use crate::error::CliError;
use crate::output::{List, Row, human, row_of};
use crate::values::labels;

pub(super) async fn run(daemon: &mut Daemon, command: Command) -> Result<(), CliError> {
    match command {
        Command::Create(args) => create(daemon, &args).await,
        Command::Ls(args) => ls(daemon, &args).await,
        Command::Inspect(args) => inspect(daemon, &args).await,
        Command::Rm(args) => rm(daemon, &args).await,
        Command::Prune(args) => prune(daemon, &args).await,
    }
}

async fn create(daemon: &mut Daemon, args: &Create) -> Result<(), CliError> {
    let spec = Some((&spec(args)?).into());
    let request = v1::CreateNetworkRequest { spec };
    let created = daemon.control.create_network(request).await?.into_inner();
    created.warnings.iter().for_each(|warning| eprintln!("WARNING: {warning}"));
    print_line(id_text(&created.id))
}

fn spec(args: &Create) -> Result<NetworkSpec, CliError> {
    let driver = NetworkDriver::from_name(&args.driver).ok_or_else(|| {
        CliError::usage("--driver", format!("unknown driver {}", args.driver))
            .hint("networks of the cluster are overlays")
    })?;
    for (flag, count) in [("--ip-range", args.ip_range.len()), ("--gateway", args.gateway.len())] {
        if count > args.subnet.len() {
            return Err(CliError::usage(flag, "every one of them needs a --subnet"));
        }
    }
    let pool = |nth: usize, subnet: &ipnet::IpNet| IpamPool {
        subnet: Some(*subnet),
        range: args.ip_range.get(nth).copied(),
        gateway: args.gateway.get(nth).copied(),
    };
    Ok(NetworkSpec {
        name: args.name.clone(),
        labels: labels(&args.label),
        driver,
        attachable: args.attachable,
        ingress: args.ingress,
        internal: args.internal,
        ipv4: true,
        ipv6: args.ipv6,
        ipam: args.subnet.iter().enumerate().map(|(nth, net)| pool(nth, net)).collect(),
        options: args.opt.iter().cloned().collect(),
    })
}

async fn ls(daemon: &mut Daemon, args: &Ls) -> Result<(), CliError> {
    let request = list_request(&args.filters.filters)?;
    let wants_builtin = request.labels.is_empty()
        && (request.types.is_empty() || request.types.iter().any(|kind| kind == "builtin"))
        && (request.scopes.is_empty() || request.scopes.iter().any(|scope| scope == "local"))
        && request.dangling.is_none();
    let (ids, names) = (request.ids.clone(), request.names.clone());
    let drivers = request.drivers.clone();
    let list = daemon.control.list_networks(request).await?.into_inner();
    warn_when_stale(list.freshness.as_ref());
    let mut rows: Vec<(String, [String; 4])> = Vec::new();
    for network in list.networks.into_iter().filter_map(|view| view.network) {
        let spec = network.spec.unwrap_or_default();
        let driver = if spec.driver.is_empty() { "overlay".into() } else { spec.driver };
        let id = id_text(&network.id);
        rows.push((spec.name.clone(), [id, spec.name, driver, "swarm".into()]));
    }
    for (id, name, driver) in view::PREDEFINED.into_iter().filter(|_| wants_builtin) {
        let id = id.to_string();
        let matches = (ids.is_empty() || ids.iter().any(|prefix| id.starts_with(prefix.as_str())))
            && (names.is_empty() || names.iter().any(|part| name.contains(part.as_str())))
            && (drivers.is_empty() || drivers.iter().any(|other| other == driver));
        if matches {
            let row = [id, name.to_owned(), driver.to_owned(), "local".to_owned()];
            rows.push((name.to_owned(), row));
        }
    }
    rows.sort();
    let rows: Vec<Row> = rows.into_iter().map(|(_, cells)| row(&cells, args.no_trunc)).collect();
    NETWORKS.print(&args.format, &rows, &mut io::stdout().lock())
}

const NETWORKS: List = List {
    table: "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}",
    heads: &[
        ("ID", "NETWORK ID"),
        ("Name", "NAME"),
        ("Driver", "DRIVER"),
        ("Scope", "SCOPE"),
        ("Labels", "LABELS"),
    ],
    id: "ID",
};

fn row([id, name, driver, scope]: &[String; 4], full: bool) -> Row {
    let id = if full { id.clone() } else { human::short(id) };
    row_of(json!({ "ID": id, "Name": name, "Driver": driver, "Scope": scope }))
}

fn list_request(filters: &[(String, String)]) -> Result<v1::ListNetworksRequest, CliError> {
    let mut request = v1::ListNetworksRequest::default();
    for (key, value) in filters {
        let value = value.clone();
        match key.as_str() {
            "id" => request.ids.push(value),
            "name" => request.names.push(value),
            "driver" => request.drivers.push(value),
            "scope" => request.scopes.push(value),
            "type" => request.types.push(value),
            "label" => {
                let (key, value) = value.split_once('=').unwrap_or((&value, ""));
                request.labels.insert(key.to_owned(), value.to_owned());
            }
            "dangling" => request.dangling = Some(matches!(value.as_str(), "true" | "1")),
            other => {
                let known = "dangling, driver, id, label, name, scope, type";
                return Err(unknown_filter(other, known));
            }
        }
    }
    Ok(request)
}

async fn inspect(daemon: &mut Daemon, args: &Inspect) -> Result<(), CliError> {
    let (mut failures, mut found) = (Failures::default(), Vec::new());
    for name in &args.networks {
        let request = v1::GetNetworkRequest { r#ref: name.clone(), verbose: args.verbose };
        let answer = daemon.control.get_network(request).await.map_err(CliError::from);
        let shown = answer.and_then(|answer| shown(answer.into_inner(), args.verbose));
        found.extend(failures.keep(shown));
    }
    let format = InspectFormat { format: args.format.clone(), pretty: false };
    print_inspected(&format, &found)?;
    failures.finish()
}

fn shown(answer: v1::NetworkView, verbose: bool) -> Result<Json, CliError> {
    let network = answer.network.clone().unwrap_or_default();
    let network = network.try_into().map_err(|fault: types::Fault| {
        CliError::failed(format!("the daemon's answer makes no sense: {fault}"))
    })?;
    let mut shown = view::network(&network);
    if verbose && let Some(object) = shown.as_object_mut() {
        object.insert("Peers".into(), peers(&answer));
        object.insert("Services".into(), services(&answer));
    }
    Ok(shown)
}

fn peers(answer: &v1::NetworkView) -> Json {
    let peer = |peer: &v1::NetworkPeer| json!({ "Name": peer.name, "IP": peer.address });
    answer.peers.iter().map(peer).collect()
}

/// As docker's verbose form: by name, with virtual addresses, ports and tasks.
fn services(answer: &v1::NetworkView) -> Json {
    let mut all = serde_json::Map::new();
    for service in &answer.services {
        let tasks: Vec<Json> = answer
            .tasks
            .iter()
            .filter(|task| task.service == service.service)
            .map(|task| {
                json!({
                    "Name": task.name,
                    "EndpointID": id_text(&task.task),
                    "EndpointIP": task.addresses.first(),
                    "Info": { "Host IP": task.node_address, "Node": task.node_name },
                })
            })
            .collect();
        let ports: Vec<String> = service
            .ports
            .iter()
            .map(|port| format!("Target: {}, Publish: {}", port.target, port.published))
            .collect();
        let value = json!({
            "VIP": service.vips.first().cloned().unwrap_or_default(),
            "VIPs": service.vips, "Ports": ports, "Tasks": tasks,
        });
        all.insert(service.name.clone(), value);
    }
    Json::Object(all)
}

async fn rm(daemon: &mut Daemon, args: &Rm) -> Result<(), CliError> {
    let mut failures = Failures::default();
    for name in &args.networks {
        let removed = daemon.control.remove_network(v1::ObjectRef { r#ref: name.clone() }).await;
        let result = match removed {
            Ok(_) => Ok(true),
            Err(status) if args.force && is_missing(&status) => Ok(false),
            Err(status) => Err(CliError::from(status)),
        };
        if failures.keep(result) == Some(true) {
            print_line(name)?;
        }
    }
    failures.finish()
}

fn is_missing(status: &tonic::Status) -> bool {
    wire::fault_of(status).code == ErrorCode::NotFound
}

async fn prune(daemon: &mut Daemon, args: &Prune) -> Result<(), CliError> {
    let mut request = v1::PruneNetworksRequest::default();
    for (key, value) in &args.filters.filters {
        let (label, wanted) = value.split_once('=').unwrap_or((value, ""));
        match key.as_str() {
            "label" => drop(request.labels.insert(label.to_owned(), wanted.to_owned())),
            "label!" => drop(request.not_labels.insert(label.to_owned(), wanted.to_owned())),
            other => return Err(unknown_filter(other, "label, label!")),
        }
    }
    if !args.force && !confirmed()? {
        return Ok(());
    }
    let pruned = daemon.control.prune_networks(request).await?.into_inner();
    if !pruned.names.is_empty() {
        print_line("Deleted Networks:")?;
    }
    pruned.names.iter().try_for_each(print_line)
}

/// Asks a person; who is none has to say `--force`.
fn confirmed() -> Result<bool, CliError> {
    if !io::stdin().is_terminal() {
        return Err(CliError::usage("--force", "is needed where nobody can be asked"));
    }
    eprint!(
        "WARNING! This will remove all networks that no service or task uses.\n\
         Are you sure you want to continue? [y/N] "
    );
    let _ = io::stderr().flush();
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    read.map_err(|error| CliError::failed(format!("cannot read the answer: {error}")))?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
