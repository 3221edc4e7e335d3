//! Lists of tasks, for `service ps` and `node ps`.
//!
//! Owns: their columns and order: newest attempt of a slot first, older ones below it.
//! Does not know: which tasks are asked for.
//! Invariant: a name is that of the slot, `web.3`, or of the node on global services.

use std::cmp::Ordering;

use base::Timestamp;
use serde_json::json;
use types::{Slot, Task, TaskState};
use wire::v1;

use super::{now, unknown_filter, warn_when_stale};
use crate::args::{Filters, ListFormat};
use crate::client::Daemon;
use crate::error::CliError;
use crate::output::{List, Row, human, row_of};

const TASKS: List = List {
    table: "{{.ID}}\t{{.Name}}\t{{.Image}}\t{{.Node}}\t{{.DesiredState}}\t{{.CurrentState}}\t\
            {{.Error}}\t{{.Ports}}",
    heads: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Image", "IMAGE"),
        ("Node", "NODE"),
        ("DesiredState", "DESIRED STATE"),
        ("CurrentState", "CURRENT STATE"),
        ("Error", "ERROR"),
        ("Ports", "PORTS"),
    ],
    id: "ID",
};

/// How names and long texts are shown.
#[derive(Clone, Copy, Default)]
pub(crate) struct PsOptions {
    pub(crate) no_resolve: bool,
    pub(crate) no_trunc: bool,
}

/// A task with what its list shows besides.
pub(crate) struct Shown {
    pub(crate) task: Task,
    service_name: String,
    node_name: String,
    image: String,
    reason: String,
}

impl Shown {
    pub(crate) fn of(view: v1::TaskView) -> Result<Self, CliError> {
        let container = view.spec.and_then(|spec| spec.container).unwrap_or_default();
        Ok(Self {
            task: view.task.unwrap_or_default().try_into()?,
            service_name: view.service_name,
            node_name: view.node_name,
            image: container.image,
            reason: view.reason,
        })
    }

    /// `web.3`, or with the node's id on global services.
    pub(crate) fn name(&self, options: PsOptions) -> String {
        let service = if options.no_resolve || self.service_name.is_empty() {
            self.task.service.to_string()
        } else {
            self.service_name.clone()
        };
        match (self.task.slot, self.task.node) {
            (Slot::Replica(number), _) => format!("{service}.{number}"),
            (Slot::Node, Some(node)) => format!("{service}.{node}"),
            (Slot::Node, None) => service,
        }
    }

    /// What went wrong, or why it waits.
    pub(crate) fn error(&self) -> &str {
        match self.task.status.error.as_deref() {
            Some(error) => error,
            None if self.task.status.state < TaskState::Accepted => &self.reason,
            None => "",
        }
    }

    fn row(&self, name: String, options: PsOptions, now: Timestamp) -> Row {
        let status = &self.task.status;
        let id = self.task.id.to_string();
        let node = match self.task.node {
            Some(node) if options.no_resolve || self.node_name.is_empty() => node.to_string(),
            _ => self.node_name.clone(),
        };
        let state = human::title(status.state.name());
        let since = human::ago(now, status.at).to_lowercase();
        row_of(json!({
            "ID": if options.no_trunc { id } else { human::short(&id) },
            "Name": name,
            "Image": if options.no_trunc { self.image.clone() } else { undigested(&self.image) },
            "Node": node,
            "DesiredState": human::title(self.task.desired.name()),
            "CurrentState": format!("{state} {since}"),
            "Error": quoted(self.error(), options.no_trunc),
            "Ports": view::task_ports(&self.task),
        }))
    }
}

/// The reference without `@sha256:…`.
pub(super) fn undigested(image: &str) -> String {
    image.split('@').next().unwrap_or(image).to_owned()
}

fn quoted(error: &str, in_full: bool) -> String {
    if error.is_empty() {
        return String::new();
    }
    let one_line = error.replace(['\n', '\t'], " ");
    if in_full || one_line.chars().count() <= ERROR_CHARS_MAX {
        return format!("\"{one_line}\"");
    }
    let cut: String = one_line.chars().take(ERROR_CHARS_MAX - 1).collect();
    format!("\"{cut}…\"")
}

/// Adds `--filter` to a request.
pub(super) fn apply_filters(
    request: &mut v1::ListTasksRequest,
    filters: &Filters,
) -> Result<(), CliError> {
    for (key, value) in &filters.filters {
        match (key.as_str(), value.as_str()) {
            ("id", _) => request.ids.push(value.clone()),
            ("name", _) => request.names.push(value.clone()),
            ("node", _) => request.nodes.push(value.clone()),
            ("service", _) => request.services.push(value.clone()),
            ("label", _) => {
                let (key, value) = value.split_once('=').unwrap_or((value, ""));
                request.labels.insert(key.to_owned(), value.to_owned());
            }
            ("desired-state", "running" | "shutdown" | "accepted") => {
                let state = TaskState::from_name(value).unwrap_or_default();
                request.desired.push(state as i32);
            }
            ("desired-state", other) => {
                let text = format!("desired-state `{other}`: write running or shutdown");
                return Err(CliError::usage("--filter", text));
            }
            (other, _) => {
                let known = "desired-state, id, label, name, node, service";
                return Err(unknown_filter(other, known));
            }
        }
    }
    Ok(())
}

/// Lists the tasks that `request` names.
pub(super) async fn ps(
    daemon: &mut Daemon,
    request: v1::ListTasksRequest,
    format: &ListFormat,
    options: PsOptions,
) -> Result<(), CliError> {
    let list = daemon.control.list_tasks(request).await?.into_inner();
    warn_when_stale(list.freshness.as_ref());
    let mut shown = Vec::new();
    for view in list.tasks {
        shown.push(Shown::of(view)?);
    }
    TASKS.print(format, &rows(shown, options, format.quiet, now()), &mut std::io::stdout().lock())
}

fn rows(mut tasks: Vec<Shown>, options: PsOptions, quiet: bool, now: Timestamp) -> Vec<Row> {
    tasks.sort_by(|a, b| order(a, b, options));
    let mut previous = String::new();
    let mut rows = Vec::new();
    for task in &tasks {
        let name = task.name(options);
        let is_older = name == previous && !quiet;
        previous.clone_from(&name);
        let name = if is_older { format!(" \\_ {name}") } else { name };
        rows.push(task.row(name, options, now));
    }
    rows
}

fn order(a: &Shown, b: &Shown, options: PsOptions) -> Ordering {
    human::natural(&a.name(options), &b.name(options))
        .then(b.task.meta.created.cmp(&a.task.meta.created))
        .then(b.task.meta.version.cmp(&a.task.meta.version))
        .then(a.task.id.cmp(&b.task.id))
}

const ERROR_CHARS_MAX: usize = 30;

#[cfg(test)]
pub(crate) mod tests {
    use base::Id;
    use types::{Meta, NodeId, ServiceId, TaskId, TaskStatus};

    use super::*;

    pub(crate) fn shown(id: u128, slot: u32, created: u64, state: TaskState, error: &str) -> Shown {
        let id = Id::from_u128(id).unwrap();
        Shown {
            task: Task {
                id: TaskId(id),
                meta: Meta { created: Timestamp(created), ..Meta::default() },
                service: ServiceId(id),
                revision: 1,
                slot: Slot::Replica(slot),
                node: Some(NodeId(id)),
                desired: TaskState::Running,
                status: TaskStatus {
                    state,
                    at: Timestamp(0),
                    error: (!error.is_empty()).then(|| error.into()),
                    ..TaskStatus::default()
                },
                network: None,
            },
            service_name: "web".into(),
            node_name: "node1".into(),
            image: "nginx:1@sha256:abc".into(),
            reason: "no suitable node".into(),
        }
    }

    #[test]
    fn older_attempts_stand_below_the_newest() {
        let long = "a text that is longer than thirty characters";
        let tasks = vec![
            shown(1, 10, 1, TaskState::Running, ""),
            shown(2, 2, 1, TaskState::Failed, long),
            shown(3, 2, 2, TaskState::Running, ""),
        ];
        let rows = rows(tasks, PsOptions::default(), false, Timestamp(7_000));
        let column = |name: &str| -> Vec<String> {
            rows.iter().map(|row| row[name].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(column("Name"), ["web.2", " \\_ web.2", "web.10"]);
        assert_eq!(column("Error"), ["", "\"a text that is longer than th…\"", ""]);
        assert_eq!(column("CurrentState")[0], "Running 7 seconds ago");
        assert_eq!(column("Image")[0], "nginx:1");
        assert_eq!(column("ID")[0], "000000000000");
    }

    #[test]
    fn a_task_that_waits_shows_the_services_reason() {
        assert_eq!(shown(1, 1, 1, TaskState::Pending, "").error(), "no suitable node");
        assert_eq!(shown(1, 1, 1, TaskState::Running, "").error(), "");
    }

    #[test]
    fn filters_are_checked() {
        let filter = |key: &str, value: &str| Filters { filters: vec![(key.into(), value.into())] };
        let mut request = v1::ListTasksRequest::default();
        apply_filters(&mut request, &filter("desired-state", "running")).unwrap();
        assert_eq!(request.desired, [TaskState::Running as i32]);
        for (key, value) in [("desired-state", "x"), ("colour", "red")] {
            assert!(apply_filters(&mut request, &filter(key, value)).is_err(), "{key}");
        }
    }
}
