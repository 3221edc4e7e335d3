//! This node's membership: none, worker or manager, and the way between them.
//!
//! Owns: init, join, leave, promotion, demotion and renewal, and what runs because of them.
//! Does not know: services or tasks. Invariant: one change of membership at a time; what runs
//! follows from the files on disk, so that a start after a crash continues.

#[cfg(test)]
mod callers;
mod checks;
mod found;
mod networking;
mod own_networks;
mod teardown;

use std::sync::Arc;
use std::time::Duration;

use agent::{Agent, AgentHandle, GrpcDialer, NodeOrders, TaskDb};
use anyhow::{Context, Result};
use base::IdSource;
use pki::files::Stored;
use pki::{IdentityFiles, JoinToken, NodeKey, NodeTls};
use ports::Clock;
use ports::store::Store;
use runtime::ContainerRuntime;
use state::{Author, Change, ChangeSet, Proposal};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use types::{
    ClusterId, Condition, ErrorCode, Fault, ManagerStatus, NetworkSpec, NodeDescription, NodeId,
    NodeRole, NodeSpec, NodeState, NodeStatus,
};
use wire::v1;

use crate::address;
use crate::clock::SystemClock;
use crate::config::Config;
use crate::describe::Machine;
use crate::instance;
use crate::join;
use crate::manager_part::{Api, ManagerPart, Parts};
use crate::networks::NodeNetwork;
use crate::settings::{Settings, SwarmDir};
use checks::{check_free, check_joined_ports, check_leave, with_ports};
use found::InitPlan;

/// How long init and join wait for the managers to agree.
const AGREEMENT_MAX: Duration = Duration::from_secs(20);
/// Swarm's words.
const CERTIFICATE_EXPIRED: &str = "Swarm certificates have expired. To replace them, leave the \
                                   swarm and join again.";

/// This node.
pub(crate) struct Node {
    pub config: Config,
    pub machine: Machine,
    pub runtime: ContainerRuntime,
    network: NodeNetwork,
    dir: SwarmDir,
    ids: std::sync::Mutex<IdSource>,
    clock: SystemClock,
    description: watch::Sender<NodeDescription>,
    conditions: watch::Sender<Vec<Condition>>,
    active: Mutex<Active>,
}

/// What runs.
#[derive(Default)]
struct Active {
    member: Option<Member>,
    /// Why a member does not run as it should.
    error: Option<String>,
}

struct Member {
    settings: Settings,
    tls: Arc<NodeTls>,
    manager: Option<ManagerPart>,
    agent: AgentHandle,
    agent_task: JoinHandle<()>,
    stop_agent: watch::Sender<bool>,
    keeper: JoinHandle<()>,
}

/// What the control API may be asked here.
pub(crate) enum Standing {
    None,
    Worker,
    Starting,
    Manager(Box<Api>),
}

/// Facts for `shoal info`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub member: bool,
    pub node: Option<NodeId>,
    pub cluster: Option<ClusterId>,
    pub manager: bool,
    pub connected: bool,
    pub removed: bool,
    pub address: String,
    pub managers: Vec<String>,
    pub error: String,
}

impl Node {
    pub(crate) fn new(
        config: Config,
        runtime: ContainerRuntime,
        network: NodeNetwork,
    ) -> Result<Self> {
        let machine = Machine::read();
        let description = machine.description(&config.hostname, &config.labels, Vec::new());
        Ok(Self {
            dir: SwarmDir::new(&config.data_dir),
            config,
            machine,
            runtime,
            network,
            ids: std::sync::Mutex::new(instance::id_source()?),
            clock: SystemClock::new(),
            description: watch::Sender::new(description),
            conditions: watch::Sender::new(Vec::new()),
            active: Mutex::new(Active::default()),
        })
    }

    pub(crate) fn network(&self) -> &NodeNetwork {
        &self.network
    }

    fn source(&self) -> IdSource {
        let mut ids = self.ids.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        IdSource::new(ids.mint().as_u128())
    }

    /// Continues what the disk says this node is.
    pub(crate) async fn resume(self: &Arc<Self>) -> Result<()> {
        let Some(settings) = self.dir.load()? else {
            // Outside of a cluster there is nothing of one to be kept.
            self.forget_networks().await;
            return Ok(());
        };
        let mut active = self.active.lock().await;
        match self.start_member(settings).await {
            Ok(member) => active.member = Some(member),
            Err(error) => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "this node's membership cannot start"
                );
                active.error = Some(format!("{error:#}"));
            }
        }
        Ok(())
    }

    async fn start_member(self: &Arc<Self>, settings: Settings) -> Result<Member> {
        let files = IdentityFiles::new(self.dir.certificates());
        let stored = files.load()?.context("this node's certificate is missing")?;
        let tls = NodeTls::new(&stored.key, &stored.chain_pem, &stored.roots_pem)?;
        let manager = match tls.identity().role {
            pki::Role::Manager => Some(self.start_manager(&settings, &tls).await?),
            pki::Role::Worker => None,
        };
        self.begin_data_path(&settings).await;
        self.start_agent(settings, tls, manager).await
    }

    /// The manager of this node, with the Raft number it has or one that the leader gives it.
    async fn start_manager(&self, settings: &Settings, tls: &Arc<NodeTls>) -> Result<ManagerPart> {
        let raft_id = match store::stored_raft_id(&self.dir.raft())? {
            Some(raft_id) => raft_id,
            None => {
                let address = settings.advertise.to_string();
                join::join_managers(tls, &settings.remotes, &address)
                    .await
                    .context("the managers do not take this node")?
            }
        };
        self.open_manager(settings, tls, raft_id).await
    }

    async fn open_manager(
        &self,
        settings: &Settings,
        tls: &Arc<NodeTls>,
        raft_id: u64,
    ) -> Result<ManagerPart> {
        ManagerPart::start(Parts {
            config: &self.config,
            dir: &self.dir,
            node: NodeId(tls.identity().node),
            raft_id,
            listen: settings.listen,
            advertise: settings.advertise,
            tls: Arc::clone(tls),
            ids: self.source(),
            conditions: self.conditions.clone(),
        })
        .await
    }

    async fn start_agent(
        self: &Arc<Self>,
        settings: Settings,
        tls: Arc<NodeTls>,
        manager: Option<ManagerPart>,
    ) -> Result<Member> {
        let (agent, handle) = Agent::new(agent::Options {
            node: NodeId(tls.identity().node),
            hostname: self.config.hostname.clone(),
            runtime: self.runtime.clone(),
            network: self.network.clone(),
            clock: self.clock,
            dialer: GrpcDialer::new(Arc::clone(&tls)),
            db: Arc::new(TaskDb::open(&self.dir.tasks())?),
            ids: self.source(),
            managers: settings.remotes.clone(),
            description: self.description.subscribe(),
            conditions: self.conditions.subscribe(),
            paths: self.network.path_links(),
        })?;
        let managers = handle.orders.borrow().managers.clone();
        self.guard(&settings, &managers).await;
        let (stop_agent, stopped) = watch::channel(false);
        let agent_task = tokio::spawn(async move {
            if let Err(error) = agent.run(stopped).await {
                tracing::error!(error = %base::chain(&error), "the agent has stopped");
            }
        });
        let keeper = tokio::spawn(keep_membership(Arc::clone(self), handle.orders.clone()));
        Ok(Member { settings, tls, manager, agent: handle, agent_task, stop_agent, keeper })
    }

    /// What the control API may be asked on this node.
    pub(crate) async fn standing(&self) -> Standing {
        // A change of membership takes seconds; callers are told, not kept.
        let Ok(active) = self.active.try_lock() else { return Standing::Starting };
        match &active.member {
            None if active.error.is_some() => Standing::Starting,
            None => Standing::None,
            Some(Member { manager: Some(manager), .. }) => {
                Standing::Manager(Box::new(manager.control.clone()))
            }
            Some(_) => Standing::Worker,
        }
    }

    pub(crate) async fn facts(&self) -> Facts {
        self.facts_of(&*self.active.lock().await)
    }

    /// `None`: the membership starts or changes just now.
    pub(crate) fn facts_now(&self) -> Option<Facts> {
        self.active.try_lock().ok().map(|active| self.facts_of(&active))
    }

    fn facts_of(&self, active: &Active) -> Facts {
        let error = active.error.clone().unwrap_or_default();
        let Some(member) = &active.member else { return Facts { error, ..Facts::default() } };
        let identity = member.tls.identity();
        let expired = identity.is_expired(self.clock.now());
        let error = if expired { CERTIFICATE_EXPIRED.to_owned() } else { error };
        let orders = member.agent.orders.borrow().clone();
        let managers = match orders.managers.is_empty() {
            true => member.settings.remotes.clone(),
            false => orders.managers.clone(),
        };
        Facts {
            member: true,
            node: Some(NodeId(identity.node)),
            cluster: Some(ClusterId(identity.cluster)),
            manager: member.manager.is_some(),
            connected: orders.connected,
            removed: orders.removed,
            address: member.settings.advertise.ip().to_string(),
            managers,
            error,
        }
    }

    /// Makes this node the first manager of a new cluster.
    pub(crate) async fn init(
        self: &Arc<Self>,
        request: v1::InitRequest,
    ) -> Result<v1::InitResponse, Fault> {
        let mut active = self.active.lock().await;
        check_free(&active)?;
        let (listen, advertise) = (&request.listen_addr, &request.advertise_addr);
        let addresses = address::read(listen, advertise, &request.data_path_addr)?;
        let advertise = addresses.advertise;
        let plan = InitPlan::new(&request, self.source(), self.clock.now())?;
        let settings = Settings::new(addresses, vec![advertise.to_string()]);
        plan.check_ports().await?;
        match self.found(&plan, settings).await {
            Ok(member) => active.member = Some(member),
            Err(error) => {
                let _ = self.dir.clear();
                return Err(internal(&error));
            }
        }
        active.error = None;
        Ok(v1::InitResponse {
            node_id: wire::bytes_of(plan.node.0),
            worker_token: plan.cluster.worker_token.clone(),
            address: advertise.to_string(),
        })
    }

    async fn found(self: &Arc<Self>, plan: &InitPlan, settings: Settings) -> Result<Member> {
        self.dir.clear()?;
        let stored = plan.certificate(self.clock.now())?;
        IdentityFiles::new(self.dir.certificates()).save(&stored)?;
        let tls = NodeTls::new(&stored.key, &stored.chain_pem, &stored.roots_pem)?;
        // The first networks must not collide with this host's.
        self.begin_data_path(&settings).await;
        let manager = self.open_manager(&settings, &tls, plan.raft_id).await?;
        let begun = async {
            manager.store.raft().bootstrap().await.context("the store cannot begin")?;
            let mut leadership = manager.store.leadership();
            let leads = leadership.wait_for(|now| now.is_leader);
            tokio::time::timeout(AGREEMENT_MAX, leads)
                .await
                .context("this manager does not come to lead")??;
            self.write_first(&manager, plan, &settings, &tls).await
        };
        if let Err(error) = begun.await {
            manager.stop().await;
            return Err(error);
        }
        self.dir.save(&settings)?;
        self.start_agent(settings, tls, Some(manager)).await
    }

    async fn write_first(
        &self,
        manager: &ManagerPart,
        plan: &InitPlan,
        settings: &Settings,
        tls: &NodeTls,
    ) -> Result<()> {
        let status = NodeStatus {
            state: NodeState::Unknown,
            message: String::new(),
            address: settings.advertise.ip().to_string(),
            ..NodeStatus::default()
        };
        let node = types::Node {
            id: plan.node,
            meta: types::Meta::default(),
            spec: NodeSpec {
                role: NodeRole::Manager,
                availability: plan.availability,
                ..NodeSpec::default()
            },
            description: self.description.borrow().clone(),
            status,
            role: NodeRole::Manager,
            manager: Some(ManagerStatus {
                raft_id: plan.raft_id,
                address: settings.advertise.to_string(),
            }),
            number: 0,
            certificate_expires: tls.identity().not_after,
        };
        let changes = vec![
            Change::CreateCluster(Box::new(plan.cluster.clone())),
            Change::CreateNode(Box::new(node)),
            Change::CreateNetwork { id: plan.ingress, spec: Arc::new(NetworkSpec::ingress()) },
        ];
        let atoms = vec![ChangeSet { author: Author::Api, changes }];
        let applied = manager.store.propose(Proposal { time: self.clock.now(), atoms }).await?;
        applied.results.into_iter().collect::<Result<Vec<()>, _>>()?;
        Ok(())
    }

    /// Joins a cluster with a token.
    pub(crate) async fn join(
        self: &Arc<Self>,
        request: v1::JoinRequest,
    ) -> Result<v1::JoinResponse, Fault> {
        let mut active = self.active.lock().await;
        check_free(&active)?;
        let token: JoinToken = request.token.parse().map_err(|error: pki::TokenError| {
            Fault::invalid("--token", error.to_string().trim_start_matches("--token: "))
        })?;
        let remotes = with_ports(&request.remotes)?;
        let (listen, advertise) = (&request.listen_addr, &request.advertise_addr);
        let addresses = address::read(listen, advertise, &request.data_path_addr)?;
        check_joined_ports(&join::udp_ports(&token, &remotes).await?).await?;
        let key = NodeKey::generate().map_err(|error| internal(&error.into()))?;
        let issued =
            join::issue(&token, &remotes, &key, request.availability, &self.config.hostname)
                .await?;
        let managers = issued.managers.clone();
        let settings = Settings::new(addresses, managers);
        let (node_id, manager) = (issued.node_id.clone(), issued.role == NodeRole::Manager as i32);
        match self.enter(settings, key, issued).await {
            Ok(member) => active.member = Some(member),
            Err(error) => {
                let _ = self.dir.clear();
                return Err(internal(&error));
            }
        }
        active.error = None;
        if let Some(Member { manager: Some(part), .. }) = &active.member {
            part.until_led(AGREEMENT_MAX).await;
        }
        Ok(v1::JoinResponse { node_id, manager })
    }

    async fn enter(
        self: &Arc<Self>,
        settings: Settings,
        key: NodeKey,
        issued: v1::IssueResponse,
    ) -> Result<Member> {
        self.dir.clear()?;
        let stored = Stored { key, chain_pem: issued.certificate, roots_pem: issued.root };
        IdentityFiles::new(self.dir.certificates()).save(&stored)?;
        let tls = NodeTls::new(&stored.key, &stored.chain_pem, &stored.roots_pem)?;
        let manager = match tls.identity().role {
            pki::Role::Manager => Some(self.start_manager(&settings, &tls).await?),
            pki::Role::Worker => None,
        };
        self.dir.save(&settings)?;
        self.begin_data_path(&settings).await;
        self.start_agent(settings, tls, manager).await
    }

    /// Leaves the cluster: stops the tasks and forgets everything of it.
    pub(crate) async fn leave(self: &Arc<Self>, force: bool) -> Result<(), Fault> {
        let mut active = self.active.lock().await;
        if active.member.is_none() && active.error.is_none() {
            let message = "This node is not part of a swarm";
            return Err(Fault::new(ErrorCode::FailedPrecondition, message));
        }
        if let Some(member) = &active.member {
            check_leave(member, force)?;
            if member.manager.is_some() {
                // Best effort: the others may be away, which is why it is forced.
                let others = member.settings.remotes.clone();
                let leaving = join::leave_managers(&member.tls, &others);
                let _ = tokio::time::timeout(Duration::from_secs(5), leaving).await;
            }
        }
        if let Some(member) = active.member.take() {
            stop_member(member).await;
        }
        active.error = None;
        // The file that makes this node a member goes first.
        self.dir.clear().map_err(|error| internal(&error))?;
        self.remove_tasks().await;
        Ok(())
    }

    /// Stops what runs because of the membership; containers go on.
    pub(crate) async fn stop(&self) {
        if let Some(member) = self.active.lock().await.member.take() {
            stop_member(member).await;
        }
    }

    /// Renews the certificate, and becomes what it says.
    async fn renew(self: &Arc<Self>, orders: &NodeOrders) -> Result<()> {
        let (tls, managers) = {
            let active = self.active.lock().await;
            let Some(member) = &active.member else { return Ok(()) };
            let managers = match orders.managers.is_empty() {
                true => member.settings.remotes.clone(),
                false => orders.managers.clone(),
            };
            (Arc::clone(&member.tls), managers)
        };
        let key = NodeKey::generate()?;
        let issued = join::renew(&tls, &managers, &key).await?;
        let stored = Stored { key, chain_pem: issued.certificate, roots_pem: issued.root };
        IdentityFiles::new(self.dir.certificates()).save(&stored)?;
        tls.replace(&stored.key, &stored.chain_pem, &stored.roots_pem)?;
        tracing::info!(role = %tls.identity().role, "certificate renewed");
        self.follow_role(&managers).await
    }

    /// Starts or stops the manager as the certificate says.
    async fn follow_role(self: &Arc<Self>, managers: &[String]) -> Result<()> {
        let mut active = self.active.lock().await;
        let Some(member) = active.member.as_mut() else { return Ok(()) };
        match (member.tls.identity().role, member.manager.is_some()) {
            (pki::Role::Manager, false) => {
                member.settings.remotes = managers.to_vec();
                self.dir.save(&member.settings)?;
                self.dir.clear_raft()?;
                let part = self.start_manager(&member.settings, &member.tls).await?;
                member.manager = Some(part);
                tracing::info!("this node is a manager now");
            }
            (pki::Role::Worker, true) => {
                if let Some(part) = member.manager.take() {
                    part.stop().await;
                }
                self.dir.clear_raft()?;
                tracing::info!("this node is a worker now");
            }
            _ => {}
        }
        Ok(())
    }

    async fn certificate(&self) -> Option<pki::Identity> {
        self.active.lock().await.member.as_ref().map(|member| member.tls.identity())
    }
}

/// Renews the certificate in time, and whenever the managers want another role.
async fn keep_membership(node: Arc<Node>, mut orders: watch::Receiver<NodeOrders>) {
    let mut failures: u32 = 0;
    let mut ids = node.source();
    let mut jitter = move || ids.below(1_000_000) as f64 / 1_000_000.0;
    let mut share = jitter();
    let mut guarded = orders.borrow().managers.clone();
    loop {
        let wanted = orders.borrow_and_update().clone();
        if guarded != wanted.managers && node.guard_as_told(&wanted.managers).await {
            guarded.clone_from(&wanted.managers);
        }
        let Some(identity) = node.certificate().await else { return };
        let role = match identity.role {
            pki::Role::Manager => NodeRole::Manager,
            pki::Role::Worker => NodeRole::Worker,
        };
        let due = pki::renew_at(identity.not_before, identity.not_after, share);
        let now = node.clock.now();
        let role_differs = wanted.role.is_some_and(|wanted| wanted != role);
        if now >= due || role_differs || wanted.renew_certificate {
            match node.renew(&wanted).await {
                Ok(()) => (failures, share) = (0, jitter()),
                Err(error) => {
                    failures += 1;
                    tracing::warn!(error = format!("{error:#}"), "certificate not renewed yet");
                    let wait = pki::retry_after(failures, jitter());
                    tokio::time::sleep(wait.as_duration()).await;
                }
            }
            continue;
        }
        if let Err(error) = node.follow_role(&wanted.managers).await {
            tracing::warn!(error = format!("{error:#}"), "role not taken yet");
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        }
        // A clock that jumps is noticed within a minute.
        let wait = due.since(now).as_duration().min(Duration::from_secs(60));
        tokio::select! {
            biased;
            changed = orders.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn stop_member(member: Member) {
    member.keeper.abort();
    member.stop_agent.send_replace(true);
    let _ = member.agent_task.await;
    if let Some(manager) = member.manager {
        manager.stop().await;
    }
}

fn internal(error: &anyhow::Error) -> Fault {
    match error.chain().find_map(|cause| cause.downcast_ref::<Fault>()) {
        Some(fault) => fault.clone(),
        None => Fault::new(ErrorCode::Internal, format!("{error:#}")),
    }
}
