//! `shoal network`.
//!
//! Owns: whether the cluster or the node is asked, and putting both answers together.
//! Does not know: how addresses are given out. Invariant: networks of the cluster and of the node
//! are listed, found and removed alike; a name that the cluster has is the cluster's.

mod inspect;
mod spec;

use std::collections::BTreeMap;
use std::io::{self, BufRead, IsTerminal, Write};

use serde_json::json;
use types::ErrorCode;
use wire::v1;

use super::{Failures, id_text, print_inspected, print_line, unknown_filter, warn_when_stale};
use crate::args::InspectFormat;
use crate::args::network::{
    Connect, Create, Disconnect, Inspect, Ls, Network as Command, Prune, Rm,
};
use crate::client::Daemon;
use crate::error::CliError;
use crate::output::{List, Row, human, row_of};

pub(super) async fn run(daemon: &mut Daemon, command: Command) -> Result<(), CliError> {
    match command {
        Command::Create(args) => create(daemon, &args).await,
        Command::Ls(args) => ls(daemon, &args).await,
        Command::Inspect(args) => inspect(daemon, &args).await,
        Command::Check(args) => super::network_check::run(daemon, &args).await,
        Command::Rm(args) => rm(daemon, &args).await,
        Command::Prune(args) => prune(daemon, &args).await,
        Command::Connect(args) => connect(daemon, &args).await,
        Command::Disconnect(args) => disconnect(daemon, &args).await,
    }
}

async fn create(daemon: &mut Daemon, args: &Create) -> Result<(), CliError> {
    let (spec, side) = spec::of(args)?;
    let request = v1::CreateNetworkRequest { spec: Some((&spec).into()) };
    let created = match side {
        Side::Cluster => daemon.control.create_network(request).await?,
        Side::Node => daemon.local.create_network(request).await?,
    };
    let created = created.into_inner();
    created.warnings.iter().for_each(|warning| eprintln!("WARNING: {warning}"));
    print_line(id_text(&created.id))
}

/// Whose a network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Cluster,
    Node,
}

/// Where this is no manager, what the node itself knows is all there is.
fn no_manager(status: &tonic::Status) -> bool {
    wire::fault_of(status).code == ErrorCode::NotAManager
}

async fn ls(daemon: &mut Daemon, args: &Ls) -> Result<(), CliError> {
    let request = list_request(&args.filters.filters)?;
    let mut rows: BTreeMap<String, [String; 4]> = BTreeMap::new();
    let here = daemon.local.list_networks(request.clone()).await?.into_inner();
    for view in here.networks {
        let network = view.network.unwrap_or_default();
        let scope = if view.swarm { "swarm" } else { "local" };
        let (id, spec) = (id_text(&network.id), network.spec.unwrap_or_default());
        rows.insert(id.clone(), cells(id, spec, scope));
    }
    match daemon.control.list_networks(request).await {
        Ok(list) => {
            let list = list.into_inner();
            warn_when_stale(list.freshness.as_ref());
            // What a manager says of its networks counts.
            rows.retain(|_, cells| cells[3] != "swarm");
            for network in list.networks.into_iter().filter_map(|view| view.network) {
                let (id, spec) = (id_text(&network.id), network.spec.unwrap_or_default());
                rows.insert(id.clone(), cells(id, spec, "swarm"));
            }
        }
        Err(status) if no_manager(&status) => {}
        Err(status) => return Err(status.into()),
    }
    let mut rows: Vec<[String; 4]> = rows.into_values().collect();
    rows.sort_by(|a, b| (&a[1], &a[0]).cmp(&(&b[1], &b[0])));
    let rows: Vec<Row> = rows.iter().map(|cells| row(cells, args.no_trunc)).collect();
    NETWORKS.print(&args.format, &rows, &mut io::stdout().lock())
}

fn cells(id: String, spec: v1::NetworkSpec, scope: &str) -> [String; 4] {
    let driver = if spec.driver.is_empty() { "overlay".into() } else { spec.driver };
    [id, spec.name, driver, scope.into()]
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
        let shown = match find(daemon, name, args.verbose).await {
            Ok(known) => inspect::shown(known, args.verbose),
            Err(error) => Err(error),
        };
        found.extend(failures.keep(shown));
    }
    let format = InspectFormat { format: args.format.clone(), pretty: false };
    print_inspected(&format, &found)?;
    failures.finish()
}

/// A network as it was found.
enum Known {
    /// The node's own, or one of the cluster where nobody but the node can be asked.
    Node(Box<v1::NodeNetworkView>),
    /// The cluster's, and what this node knows of it.
    Cluster(Box<v1::NetworkView>, Option<Box<v1::NodeNetworkView>>),
}

/// A name that the cluster has is the cluster's; an id is whose it is.
async fn find(daemon: &mut Daemon, name: &str, verbose: bool) -> Result<Known, CliError> {
    let request = v1::GetNetworkRequest { r#ref: name.to_owned(), verbose };
    let here = daemon.local.get_network(request.clone()).await.map(tonic::Response::into_inner);
    let there = daemon.control.get_network(request).await.map(tonic::Response::into_inner);
    match (here, there) {
        (Ok(here), Err(status)) if !here.swarm || no_manager(&status) => {
            Ok(Known::Node(Box::new(here)))
        }
        (Ok(here), Ok(there)) => Ok(choose(name, here, there)),
        (Err(status), Ok(there)) if is_missing(&status) => {
            Ok(Known::Cluster(Box::new(there), None))
        }
        // That a worker does not know it says more than that it is none.
        (Err(here), Err(there)) if no_manager(&there) => Err(here.into()),
        (_, Err(status)) | (Err(status), _) => Err(status.into()),
    }
}

fn choose(name: &str, here: v1::NodeNetworkView, there: v1::NetworkView) -> Known {
    let id = |network: Option<&[u8]>| id_text(network.unwrap_or_default());
    let own = id(here.network.as_ref().map(|network| &*network.id));
    let is_own = !here.swarm
        && (own == name || {
            let theirs = there.network.as_ref().and_then(|network| network.spec.as_ref());
            let named = theirs.is_some_and(|spec| spec.name.eq_ignore_ascii_case(name));
            !named && id(there.network.as_ref().map(|network| &*network.id)) != name
        });
    match is_own {
        true => Known::Node(Box::new(here)),
        false => {
            let here = Some(here).filter(|here| here.swarm).map(Box::new);
            Known::Cluster(Box::new(there), here)
        }
    }
}

async fn rm(daemon: &mut Daemon, args: &Rm) -> Result<(), CliError> {
    let mut failures = Failures::default();
    for name in &args.networks {
        let result = match remove(daemon, name).await {
            Ok(removed) => Ok(removed),
            Err(error) if args.force && error.code == Some(ErrorCode::NotFound) => Ok(false),
            Err(error) => Err(error),
        };
        if failures.keep(result) == Some(true) {
            print_line(name)?;
        }
    }
    failures.finish()
}

/// `false` when somebody was asked and said no.
async fn remove(daemon: &mut Daemon, name: &str) -> Result<bool, CliError> {
    match find(daemon, name, false).await? {
        Known::Cluster(there, _) => {
            let network = there.network.unwrap_or_default();
            let is_ingress = network.spec.is_some_and(|spec| spec.ingress);
            if is_ingress && !asked(INGRESS_WARNING, &mut io::stdin().lock())? {
                return Ok(false);
            }
            let r#ref = id_text(&network.id);
            daemon.control.remove_network(v1::ObjectRef { r#ref }).await?;
        }
        Known::Node(here) => {
            let r#ref = id_text(&here.network.unwrap_or_default().id);
            daemon.local.remove_network(v1::ObjectRef { r#ref }).await?;
        }
    }
    Ok(true)
}

fn is_missing(status: &tonic::Status) -> bool {
    wire::fault_of(status).code == ErrorCode::NotFound
}

async fn connect(daemon: &mut Daemon, args: &Connect) -> Result<(), CliError> {
    if !args.link.is_empty() {
        let message = "links are not supported: containers of one network know each other by name";
        return Err(CliError::usage("--link", message).hint("give another name with --alias"));
    }
    let text = |address: Option<String>| address.unwrap_or_default();
    let request = v1::ConnectNetworkRequest {
        network: args.network.clone(),
        container: args.container.clone(),
        ip: text(args.ip.map(|ip| ip.to_string())),
        ip6: text(args.ip6.map(|ip| ip.to_string())),
        aliases: args.alias.clone(),
    };
    daemon.local.connect_network(request).await?;
    Ok(())
}

async fn disconnect(daemon: &mut Daemon, args: &Disconnect) -> Result<(), CliError> {
    let request = v1::DisconnectNetworkRequest {
        network: args.network.clone(),
        container: args.container.clone(),
        force: args.force,
    };
    daemon.local.disconnect_network(request).await?;
    Ok(())
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
    let mut names = daemon.local.prune_networks(request.clone()).await?.into_inner().names;
    match daemon.control.prune_networks(request).await {
        Ok(pruned) => names.extend(pruned.into_inner().names),
        Err(status) if no_manager(&status) => {}
        Err(status) => return Err(status.into()),
    }
    if !names.is_empty() {
        print_line("Deleted Networks:")?;
    }
    names.iter().try_for_each(print_line)
}

/// Asks a person; who is none has to say `--force`.
fn confirmed() -> Result<bool, CliError> {
    if !io::stdin().is_terminal() {
        return Err(CliError::usage("--force", "is needed where nobody can be asked"));
    }
    let warning = "WARNING! This will remove all networks that no service or task uses.";
    asked(warning, &mut io::stdin().lock())
}

/// Asks on standard error; whoever says nothing at all is told that an answer is needed.
fn asked(warning: &str, input: &mut impl BufRead) -> Result<bool, CliError> {
    eprint!("{warning}\nAre you sure you want to continue? [y/N] ");
    let _ = io::stderr().flush();
    let mut answer = String::new();
    match input.read_line(&mut answer) {
        Ok(0) => Err(CliError::failed("nobody answered: write y to the standard input")),
        Ok(_) => Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")),
        Err(error) => Err(CliError::failed(format!("cannot read the answer: {error}"))),
    }
}

/// As docker's.
const INGRESS_WARNING: &str = "WARNING! Before removing the routing-mesh network, make sure all \
    the nodes in your swarm run the same version. Otherwise, removal may not be effective and \
    functionality of newly created ingress networks will be impaired.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_a_yes() {
        for (said, expected) in
            [("y\n", true), ("YES", true), ("\n", false), ("n\n", false), ("yes please\n", false)]
        {
            assert_eq!(asked(INGRESS_WARNING, &mut said.as_bytes()).unwrap(), expected, "{said}");
        }
        let error = asked(INGRESS_WARNING, &mut io::empty()).unwrap_err();
        assert!(error.message.starts_with("nobody answered"), "{error}");
    }
}
