//! Services, as users see and change them.
//!
//! Owns: checks before the write, lists with counts.
//! Does not know: what becomes of a service; the orchestrator does.
//! Invariant: the store refuses what changed meanwhile; nothing here retries for the user.

use std::sync::Arc;

use ports::Clock;
use ports::store::Store;
use state::{Change, Snapshot};
use types::{
    Fault, NodeState, Service, ServiceId, ServiceMode, ServiceSpec, Task, TaskState, limits,
};
use wire::v1;

use super::{ControlApi, find};

impl<S: Store, C: Clock> ControlApi<S, C> {
    pub(super) async fn create_service(
        &self,
        request: v1::CreateServiceRequest,
    ) -> Result<v1::CreateServiceResponse, Fault> {
        let spec = checked(request.spec)?;
        let id = ServiceId(self.mint());
        self.write(vec![Change::CreateService { id, spec: Arc::new(spec) }]).await?;
        Ok(v1::CreateServiceResponse { id: wire::bytes_of(id.0), warnings: Vec::new() })
    }

    pub(super) async fn update_service(
        &self,
        request: v1::UpdateServiceRequest,
    ) -> Result<v1::UpdateServiceResponse, Fault> {
        let id = wire::id(&request.id, "id")?;
        let spec = Arc::new(checked(request.spec)?);
        let change = Change::UpdateService { id, expect: request.spec_version, spec };
        self.write(vec![change]).await?;
        let view = self.store.snapshot();
        let service = view.service(id).map(|service| service_view(&view, service));
        Ok(v1::UpdateServiceResponse { service, warnings: Vec::new() })
    }

    pub(super) async fn remove_service(&self, request: v1::ObjectRef) -> Result<v1::Empty, Fault> {
        let view = self.store.snapshot();
        let id = find::service(&view, &request.r#ref)?.id;
        self.write(vec![Change::RemoveService(id)]).await?;
        Ok(v1::Empty {})
    }

    pub(super) async fn get_service(
        &self,
        request: v1::ObjectRef,
    ) -> Result<v1::ServiceView, Fault> {
        let (view, _) = self.read().await?;
        Ok(service_view(&view, find::service(&view, &request.r#ref)?))
    }

    pub(super) async fn list_services(
        &self,
        request: v1::ListServicesRequest,
    ) -> Result<v1::ServiceList, Fault> {
        let (view, freshness) = self.read().await?;
        let listed = |service: &&Arc<Service>| {
            find::any_prefix(&request.ids, &service.id.to_string())
                && find::any_prefix(&request.names, &service.spec.name)
                && (request.modes.is_empty()
                    || request.modes.iter().any(|mode| mode == service.spec.mode.name()))
                && find::has_labels(&service.spec.labels, &request.labels)
        };
        let services = view.services().filter(listed).map(|s| service_view(&view, s)).collect();
        Ok(v1::ServiceList { services, freshness: Some(freshness) })
    }
}

fn checked(spec: Option<v1::ServiceSpec>) -> Result<ServiceSpec, Fault> {
    use prost::Message as _;
    let spec = spec.ok_or_else(|| Fault::invalid("spec", "is missing"))?;
    let bytes = spec.encoded_len();
    if bytes > limits::SPEC_BYTES_MAX {
        let max = limits::SPEC_BYTES_MAX;
        return Err(Fault::invalid(
            "spec",
            format!("has {bytes} bytes, at most {max} are allowed"),
        ));
    }
    let spec = ServiceSpec::try_from(spec)?;
    spec.check()?;
    Ok(spec)
}

fn service_view(view: &Snapshot, service: &Service) -> v1::ServiceView {
    let (mut running, mut active) = (0, 0);
    for task in view.tasks_of_service(service.id) {
        active += u64::from(task.desired <= TaskState::Running && !task.status.state.is_terminal());
        running += u64::from(runs(view, task));
    }
    let desired = match service.spec.mode {
        ServiceMode::Replicated(replicas) => replicas,
        _ => active,
    };
    v1::ServiceView { service: Some(service.into()), running, desired, completed: 0 }
}

/// A task counts as running only where its node was heard of.
fn runs(view: &Snapshot, task: &Task) -> bool {
    let node = task.node.and_then(|id| view.node(id));
    task.desired == TaskState::Running
        && task.status.state == TaskState::Running
        && node.is_some_and(|node| node.status.state != NodeState::Down)
}
