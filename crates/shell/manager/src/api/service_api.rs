//! Services, as users see and change them.
//!
//! Owns: checks before the write, lists with counts.
//! Does not know: what becomes of a service; the orchestrator does.
//! Invariant: the store refuses what changed meanwhile; nothing here retries for the user.

use std::sync::Arc;

use dispatch::Hindrances;
use ports::Clock;
use ports::store::Store;
use state::{Change, Snapshot};
use types::{
    Fault, NetworkId, NodeState, PortProtocol, Service, ServiceId, ServiceMode, ServiceSpec, Task,
    TaskState, limits,
};
use wire::v1;

use super::{ControlApi, find};

impl<S: Store, C: Clock> ControlApi<S, C> {
    pub(super) async fn create_service(
        &self,
        request: v1::CreateServiceRequest,
    ) -> Result<v1::CreateServiceResponse, Fault> {
        let spec = checked(&self.store.snapshot(), request.spec)?;
        let id = ServiceId(self.mint());
        self.write(vec![Change::CreateService { id, spec: Arc::new(spec) }]).await?;
        Ok(v1::CreateServiceResponse { id: wire::bytes_of(id.0), warnings: Vec::new() })
    }

    pub(super) async fn update_service(
        &self,
        request: v1::UpdateServiceRequest,
    ) -> Result<v1::UpdateServiceResponse, Fault> {
        let id = wire::id(&request.id, "id")?;
        let spec = Arc::new(checked(&self.store.snapshot(), request.spec)?);
        let change = Change::UpdateService { id, expect: request.spec_version, spec };
        self.write(vec![change]).await?;
        let view = self.store.snapshot();
        let hindrances = self.hindrances(&view);
        let service = view.service(id).map(|service| service_view(&view, &hindrances, service));
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
        let service = find::service(&view, &request.r#ref)?;
        Ok(service_view(&view, &self.hindrances(&view), service))
    }

    /// What nodes say that keeps services from being reached.
    fn hindrances<'a>(&self, view: &'a Snapshot) -> Hindrances<'a> {
        Hindrances::new(view, self.dispatcher.bad_paths())
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
        let hindrances = self.hindrances(&view);
        let shown = |service: &Arc<Service>| service_view(&view, &hindrances, service);
        let services = view.services().filter(listed).map(shown).collect();
        Ok(v1::ServiceList { services, freshness: Some(freshness) })
    }
}

fn checked(view: &Snapshot, spec: Option<v1::ServiceSpec>) -> Result<ServiceSpec, Fault> {
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
    let mut spec = ServiceSpec::try_from(spec)?;
    spec.check()?;
    resolve_networks(view, &mut spec)?;
    check_own_ports(view, &spec)?;
    Ok(spec)
}

/// Networks are named by people and stored by identity, so that a name may be used again.
fn resolve_networks(view: &Snapshot, spec: &mut ServiceSpec) -> Result<(), Fault> {
    let mut seen = Vec::new();
    for attached in &mut spec.task.networks {
        let id = match NetworkId::from_predefined_name(&attached.target) {
            Some(id) => id,
            None if attached.network().is_some_and(NetworkId::is_predefined) => continue,
            None => {
                find::network(view, &attached.target)
                    .map_err(|fault| Fault { field: "--network".into(), ..fault })?
                    .id
            }
        };
        if seen.contains(&id) {
            let message = format!("service is already attached to network {}", attached.target);
            return Err(Fault::invalid("--network", message));
        }
        seen.push(id);
        attached.target = id.to_string();
    }
    Ok(())
}

/// What the cluster itself listens on is not for services.
fn check_own_ports(view: &Snapshot, spec: &ServiceSpec) -> Result<(), Fault> {
    for port in spec.ports() {
        let number = u32::from(port.published);
        let used = match port.protocol {
            PortProtocol::Udp => {
                view.cluster().and_then(|cluster| cluster.owner_of_udp_port(port.published))
            }
            PortProtocol::Tcp => {
                let listens = |node: &Arc<types::Node>| {
                    let manager = node.manager.as_ref();
                    let port = manager.and_then(|manager| manager.address.rsplit(':').next());
                    port.is_some_and(|port| port == number.to_string())
                };
                view.nodes().any(listens).then_some("the managers of the cluster")
            }
            PortProtocol::Sctp => None,
        };
        if let Some(whose) = used.filter(|_| number != 0) {
            let protocol = port.protocol.name();
            let message = format!("port {number}/{protocol} is that of {whose}");
            return Err(Fault::invalid("--publish", message).hint("publish another one"));
        }
    }
    Ok(())
}

fn service_view(
    view: &Snapshot,
    hindrances: &Hindrances<'_>,
    service: &Service,
) -> v1::ServiceView {
    let (mut running, mut active) = (0, 0);
    for task in view.tasks_of_service(service.id) {
        active += u64::from(task.desired <= TaskState::Running && !task.status.state.is_terminal());
        running += u64::from(runs(view, task));
    }
    let desired = match service.spec.mode {
        ServiceMode::Replicated(replicas) => replicas,
        _ => active,
    };
    let mut shown = v1::Service::from(service);
    shown.reasons.extend(hindrances.reasons(service).iter().map(Into::into));
    v1::ServiceView { service: Some(shown), running, desired, completed: 0 }
}

/// A task counts as running only where its node was heard of.
fn runs(view: &Snapshot, task: &Task) -> bool {
    let node = task.node.and_then(|id| view.node(id));
    task.desired == TaskState::Running
        && task.status.state == TaskState::Running
        && node.is_some_and(|node| node.status.state != NodeState::Down)
}
