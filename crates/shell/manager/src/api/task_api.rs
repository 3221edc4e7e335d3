//! Tasks, as users see them.
//!
//! Owns: lists by service, node, name and desired state, joined with names and reasons.
//! Invariant: a task that waits shows its service's reason.

use std::collections::BTreeSet;
use std::sync::Arc;

use ports::Clock;
use ports::store::Store;
use state::{Author, Snapshot};
use types::{Fault, NodeId, ServiceId, Task, TaskState};
use wire::v1;

use super::{ControlApi, find};

impl<S: Store, C: Clock> ControlApi<S, C> {
    pub(super) async fn get_task(&self, request: v1::ObjectRef) -> Result<v1::TaskView, Fault> {
        let (view, _) = self.read().await?;
        Ok(task_view(&view, find::task(&view, &request.r#ref)?))
    }

    pub(super) async fn list_tasks(
        &self,
        request: v1::ListTasksRequest,
    ) -> Result<v1::TaskList, Fault> {
        let (view, freshness) = self.read().await?;
        let services: BTreeSet<ServiceId> = request
            .services
            .iter()
            .map(|text| find::service(&view, text).map(|service| service.id))
            .collect::<Result<_, _>>()?;
        let nodes: BTreeSet<NodeId> = request
            .nodes
            .iter()
            .map(|text| find::node(&view, text).map(|node| node.id))
            .collect::<Result<_, _>>()?;
        let listed = |task: &Arc<Task>| {
            (nodes.is_empty() || task.node.is_some_and(|node| nodes.contains(&node)))
                && (services.is_empty() || services.contains(&task.service))
                && is_listed(&view, &request, task)
        };
        let mut tasks: Vec<v1::TaskView> = Vec::new();
        let mut add = |task: &Arc<Task>| {
            if listed(task) {
                tasks.push(task_view(&view, task));
            }
        };
        match (services.is_empty(), nodes.is_empty()) {
            (false, _) => {
                services.iter().flat_map(|id| view.tasks_of_service(*id)).for_each(&mut add)
            }
            (true, false) => nodes.iter().flat_map(|id| view.tasks_on_node(*id)).for_each(&mut add),
            (true, true) => view.tasks().for_each(&mut add),
        }
        Ok(v1::TaskList { tasks, freshness: Some(freshness) })
    }
}

fn is_listed(view: &Snapshot, request: &v1::ListTasksRequest, task: &Task) -> bool {
    let desired = |task: &Task| match task.desired {
        // Docker lists what is to be removed as shut down.
        TaskState::Remove => TaskState::Shutdown as i32,
        desired => desired as i32,
    };
    let labels = || {
        let service = view.service(task.service);
        service.is_some_and(|service| find::has_labels(&service.spec.labels, &request.labels))
    };
    find::any_prefix(&request.ids, &task.id.to_string())
        && find::any_prefix(&request.names, &find::task_name(view, task))
        && (request.desired.is_empty() || request.desired.contains(&desired(task)))
        && (request.labels.is_empty() || labels())
}

pub(super) fn task_view(view: &Snapshot, task: &Task) -> v1::TaskView {
    let service = view.service(task.service);
    let node = task.node.and_then(|id| view.node(id));
    let revision = view.revision(task.service, task.revision);
    let waits = task.status.state < TaskState::Assigned;
    // Before it is admitted it waits for the network, after that for a place.
    let decider = match task.status.state {
        TaskState::New => Author::Allocator,
        _ => Author::Scheduler,
    };
    let reason = service
        .filter(|_| waits)
        .and_then(|s| s.reasons.iter().find(|reason| reason.decider == decider.name()));
    v1::TaskView {
        task: Some(task.into()),
        service_name: service.map_or_else(String::new, |service| service.spec.name.clone()),
        node_name: node.map_or_else(String::new, |node| node.hostname().to_owned()),
        spec: revision.map(|revision| (&*revision.spec).into()),
        reason: reason.map_or_else(String::new, |reason| reason.message.clone()),
    }
}
