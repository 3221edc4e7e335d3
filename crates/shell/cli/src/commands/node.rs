//! `shoal node`.
//!
//! Owns: what is listed of nodes, and how they are changed.
//! Does not know: how a role changes; it states what is wanted.
//! Invariant: `self` stands for the node whose socket is asked, wherever a node is named.

use serde_json::{Value as Json, json};
use types::{ErrorCode, Node, NodeRole};
use view::NodeFacts;
use wire::v1;

use super::swarm::ATTEMPTS_MAX;
use super::task::{self, PsOptions};
use super::{
    Failures, id_text, print, print_inspected, print_line, unknown_filter, warn_when_stale,
};
use crate::args::node::{Inspect, Ls, Names, Node as Command, Ps, Rm, Update};
use crate::args::swarm::{Availability, Role};
use crate::client::Daemon;
use crate::error::CliError;
use crate::output::{List, Row, human, pretty, row_of};

pub(super) async fn run(daemon: &mut Daemon, command: Command) -> Result<(), CliError> {
    match command {
        Command::Ls(args) => ls(daemon, &args).await,
        Command::Inspect(args) => inspect(daemon, &args).await,
        Command::Ps(args) => ps(daemon, args).await,
        Command::Update(args) => update(daemon, &args).await,
        Command::Promote(args) => change_roles(daemon, &args, NodeRole::Manager).await,
        Command::Demote(args) => change_roles(daemon, &args, NodeRole::Worker).await,
        Command::Rm(args) => rm(daemon, &args).await,
    }
}

const NODES: List = List {
    table: "{{.ID}}{{if .Self}} *{{else}}  {{end}}\t{{.Hostname}}\t{{.Status}}\t\
            {{.Availability}}\t{{.ManagerStatus}}\t{{.EngineVersion}}",
    heads: &[
        ("ID", "ID"),
        ("Self", ""),
        ("Hostname", "HOSTNAME"),
        ("Status", "STATUS"),
        ("Availability", "AVAILABILITY"),
        ("ManagerStatus", "MANAGER STATUS"),
        ("EngineVersion", "ENGINE VERSION"),
        ("TLSStatus", "TLS STATUS"),
        ("Tasks", "TASKS"),
        ("Conditions", "CONDITIONS"),
    ],
    id: "ID",
};

/// A node and what is known of it besides its record.
struct Shown {
    node: Node,
    view: v1::NodeView,
}

impl Shown {
    fn of(mut view: v1::NodeView) -> Result<Self, CliError> {
        let node = view.node.take().unwrap_or_default().try_into()?;
        Ok(Self { node, view })
    }

    fn json(&self) -> Json {
        let facts = NodeFacts {
            leader: self.view.leader,
            reachable: self.view.reachable,
            conditions: &self.view.conditions,
            now: super::now(),
        };
        view::node(&self.node, facts)
    }

    fn row(&self, own: &str) -> Row {
        let node = &self.node;
        let manager = match (&node.manager, self.view.leader, self.view.reachable) {
            (None, ..) => "",
            (Some(_), true, _) => "Leader",
            (Some(_), false, Some(true)) => "Reachable",
            (Some(_), false, Some(false)) => "Unreachable",
            (Some(_), false, None) => "Unknown",
        };
        let mut status = human::title(node.status.state.name());
        if !self.view.conditions.is_empty() {
            status = format!("{status} ({})", self.view.conditions.join(", "));
        }
        let id = node.id.to_string();
        row_of(json!({
            "Self": id == own, "ID": id, "Hostname": node.hostname(), "Status": status,
            "Availability": human::title(node.spec.availability.name()),
            "ManagerStatus": manager, "EngineVersion": node.description.engine_version,
            "TLSStatus": view::tls_status(node, super::now()), "Tasks": self.view.tasks,
            "Conditions": self.view.conditions.join(", "),
        }))
    }
}

/// The request of `node ls`; `None` when nothing can match.
fn list_request(args: &Ls) -> Result<Option<v1::ListNodesRequest>, CliError> {
    let mut request = v1::ListNodesRequest::default();
    let mut nothing = false;
    for (key, value) in &args.filters.filters {
        let (label, wanted) = value.split_once('=').unwrap_or((value, ""));
        let label = (label.to_owned(), wanted.to_owned());
        match (key.as_str(), value.as_str()) {
            ("id", _) => request.ids.push(value.clone()),
            ("name", _) => request.names.push(value.clone()),
            ("label" | "engine.label", _) => request.engine_labels.extend([label]),
            ("node.label", _) => request.node_labels.extend([label]),
            ("role", "manager") => request.roles.push(v1::NodeRole::Manager.into()),
            ("role", "worker") => request.roles.push(v1::NodeRole::Worker.into()),
            ("role", other) => {
                let text = format!("role `{other}`: write manager or worker");
                return Err(CliError::usage("--filter", text));
            }
            ("membership", "accepted") => {}
            ("membership", "pending") => nothing = true,
            ("membership", other) => {
                let text = format!("membership `{other}`: write accepted or pending");
                return Err(CliError::usage("--filter", text));
            }
            (other, _) => {
                return Err(unknown_filter(other, "id, label, membership, name, node.label, role"));
            }
        }
    }
    Ok((!nothing).then_some(request))
}

async fn ls(daemon: &mut Daemon, args: &Ls) -> Result<(), CliError> {
    let request = list_request(args)?;
    let own = own_id(daemon).await?;
    let list = match request {
        Some(request) => daemon.control.list_nodes(request).await?.into_inner(),
        None => v1::NodeList::default(),
    };
    warn_when_stale(list.freshness.as_ref());
    let mut shown = Vec::new();
    for view in list.nodes {
        shown.push(Shown::of(view)?);
    }
    shown.sort_by(|a, b| human::natural(a.node.hostname(), b.node.hostname()));
    let rows: Vec<Row> = shown.iter().map(|node| node.row(&own)).collect();
    NODES.print(&args.format, &rows, &mut std::io::stdout().lock())
}

async fn own_id(daemon: &mut Daemon) -> Result<String, CliError> {
    Ok(id_text(&daemon.local.info(v1::InfoRequest {}).await?.into_inner().node_id))
}

/// The node that `name` stands for.
async fn find(daemon: &mut Daemon, name: &str) -> Result<Shown, CliError> {
    let reference = if name == "self" { own_id(daemon).await? } else { name.to_owned() };
    Shown::of(daemon.control.get_node(v1::ObjectRef { r#ref: reference }).await?.into_inner())
}

async fn inspect(daemon: &mut Daemon, args: &Inspect) -> Result<(), CliError> {
    let mut failures = Failures::default();
    let mut found = Vec::new();
    for name in &args.nodes {
        found.extend(failures.keep(find(daemon, name).await));
    }
    if args.format.pretty {
        for node in &found {
            print(&pretty::node(&node.node, &node.view))?;
        }
    } else {
        let objects: Vec<Json> = found.iter().map(Shown::json).collect();
        print_inspected(&args.format, &objects)?;
    }
    failures.finish()
}

async fn ps(daemon: &mut Daemon, args: Ps) -> Result<(), CliError> {
    let mut failures = Failures::default();
    let mut request = v1::ListTasksRequest::default();
    for name in &args.nodes {
        let found = failures.keep(find(daemon, name).await);
        request.nodes.extend(found.map(|shown| shown.node.id.to_string()));
    }
    if !request.nodes.is_empty() {
        task::apply_filters(&mut request, &args.filters)?;
        let options = PsOptions { no_resolve: args.no_resolve, no_trunc: args.no_trunc };
        task::ps(daemon, request, &args.format, options).await?;
    }
    failures.finish()
}

async fn update(daemon: &mut Daemon, args: &Update) -> Result<(), CliError> {
    change(daemon, &args.node, |node| edit(node, args).map(|()| true)).await?;
    print_line(&args.node)
}

fn edit(node: &mut Node, args: &Update) -> Result<(), CliError> {
    for key in &args.label_rm {
        if node.spec.labels.remove(key).is_none() {
            return Err(CliError::failed(format!("key {key} doesn't exist in node's labels")));
        }
    }
    node.spec.labels.extend(args.label_add.iter().cloned());
    node.spec.availability = match args.availability {
        None => node.spec.availability,
        Some(Availability::Active) => types::Availability::Active,
        Some(Availability::Pause) => types::Availability::Pause,
        Some(Availability::Drain) => types::Availability::Drain,
    };
    node.spec.role = match args.role {
        None => node.spec.role,
        Some(Role::Worker) => NodeRole::Worker,
        Some(Role::Manager) => NodeRole::Manager,
    };
    Ok(())
}

/// Changes a node's spec, again when somebody else changed it meanwhile.
/// Gives whether there was anything to change.
async fn change(
    daemon: &mut Daemon,
    name: &str,
    edit: impl Fn(&mut Node) -> Result<bool, CliError>,
) -> Result<bool, CliError> {
    let mut attempt = 1;
    loop {
        let mut shown = find(daemon, name).await?;
        if !edit(&mut shown.node)? {
            return Ok(false);
        }
        let request = v1::UpdateNodeRequest {
            id: shown.node.id.to_bytes().to_vec().into(),
            spec_version: shown.node.meta.spec_version,
            spec: Some((&shown.node.spec).into()),
        };
        match daemon.control.update_node(request).await.map_err(CliError::from) {
            Err(error) if error.code == Some(ErrorCode::OutOfDate) && attempt < ATTEMPTS_MAX => {
                attempt += 1;
            }
            result => return result.map(|_| true),
        }
    }
}

async fn change_roles(daemon: &mut Daemon, args: &Names, role: NodeRole) -> Result<(), CliError> {
    let mut failures = Failures::default();
    for name in &args.nodes {
        let changed = change(daemon, name, |node| {
            let differs = node.spec.role != role;
            node.spec.role = role;
            Ok(differs)
        })
        .await;
        let text = match (failures.keep(changed), role) {
            (None, _) => continue,
            (Some(true), NodeRole::Manager) => {
                format!("Node {name} promoted to a manager in the swarm.")
            }
            (Some(true), NodeRole::Worker) => format!("Manager {name} demoted in the swarm."),
            (Some(false), role) => format!("Node {name} is already a {}.", role.name()),
        };
        print_line(text)?;
    }
    failures.finish()
}

async fn rm(daemon: &mut Daemon, args: &Rm) -> Result<(), CliError> {
    let mut failures = Failures::default();
    for name in &args.nodes {
        let request = v1::RemoveNodeRequest { r#ref: name.clone(), force: args.force };
        let result = daemon.control.remove_node(request).await.map_err(CliError::from);
        if failures.keep(result).is_some() {
            print_line(name)?;
        }
    }
    failures.finish()
}
