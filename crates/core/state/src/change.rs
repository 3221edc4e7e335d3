//! What may be changed, and by whom.
//!
//! Owns: the closed list of changes and of authors, and the table of who may write what.
//! Invariant: each field has exactly one writer.

use std::sync::Arc;

use base::Timestamp;
use types::{
    Cluster, ClusterSpec, Connection, Endpoint, ManagerStatus, NetworkId, NetworkSpec, Node,
    NodeDescription, NodeId, NodeRole, NodeSpec, NodeStatus, Reason, ServiceId, ServiceSpec,
    SlotKey, Subnet, Tally, TaskId, TaskNetwork, TaskState, TaskStatus, UpdateStatus,
};

/// One change. Lists of tasks keep a change of thousands small.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    CreateCluster(Box<Cluster>),
    UpdateCluster {
        expect: u64,
        spec: Box<ClusterSpec>,
    },
    /// Further pools, behind those that the cluster has.
    AddAddressPools(Vec<String>),
    /// Keys of encrypted networks are to be those of the generation after this one.
    RotateNetworkKey {
        expect: u32,
    },
    SetJoinTokens {
        worker: String,
        manager: String,
    },
    CreateNode(Box<Node>),
    UpdateNode {
        id: NodeId,
        expect: u64,
        spec: NodeSpec,
    },
    DescribeNode {
        id: NodeId,
        description: Box<NodeDescription>,
    },
    SetNodeStatus {
        id: NodeId,
        status: NodeStatus,
    },
    SetNodeRole {
        id: NodeId,
        role: NodeRole,
    },
    SetNodeManager {
        id: NodeId,
        manager: Option<ManagerStatus>,
    },
    SetNodeNumber {
        id: NodeId,
        number: u32,
    },
    SetNodeCertificate {
        id: NodeId,
        expires: Timestamp,
    },
    RemoveNode(NodeId),
    CreateService {
        id: ServiceId,
        spec: Arc<ServiceSpec>,
    },
    UpdateService {
        id: ServiceId,
        expect: u64,
        spec: Arc<ServiceSpec>,
    },
    RemoveService(ServiceId),
    SetUpdateStatus {
        id: ServiceId,
        status: Option<UpdateStatus>,
    },
    SetReason {
        service: ServiceId,
        decider: String,
        reason: Option<Reason>,
    },
    /// One task for every slot of the ranges (both ends included) and every node, with identities
    /// drawn from `seed` in that order.
    CreateTasks {
        service: ServiceId,
        revision: u64,
        seed: u128,
        desired: TaskState,
        slots: Vec<(u32, u32)>,
        nodes: Vec<NodeId>,
    },
    /// New → Pending.
    AdmitTasks(Vec<TaskId>),
    /// Pending → Assigned.
    AssignTasks(Vec<(TaskId, NodeId)>),
    /// Raises the desired state; one that is higher already stays.
    DesireTasks {
        desired: TaskState,
        tasks: Vec<TaskId>,
    },
    /// What the nodes report; what is older than what is known, or of a task that is gone, is
    /// passed over.
    ReportTasks(Vec<(TaskId, TaskStatus)>),
    RemoveTasks(Vec<TaskId>),
    SetTally {
        service: ServiceId,
        slot: SlotKey,
        tally: Option<Tally>,
    },
    CreateNetwork {
        id: NetworkId,
        spec: Arc<NetworkSpec>,
    },
    RemoveNetwork(NetworkId),
    /// Gives a network its identifier, MTU and subnets; later a further subnet behind those it has.
    AllocateNetwork {
        id: NetworkId,
        vni: u32,
        mtu: u32,
        subnets: Vec<Subnet>,
    },
    SetEndpoint {
        service: ServiceId,
        endpoint: Option<Arc<Endpoint>>,
    },
    /// New → Pending, with what the tasks are given of the network.
    AttachTasks(Vec<(TaskId, TaskNetwork)>),
    /// A running task is on one more network.
    ConnectTask {
        task: TaskId,
        connection: Box<Connection>,
    },
    /// It is not any more on a network that it was connected to.
    DisconnectTask {
        task: TaskId,
        network: NetworkId,
    },
}

/// Who made a change set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Author {
    /// A user, through the control API; and joining, through the certificate service.
    Api = 1,
    Allocator = 2,
    Orchestrator = 3,
    Scheduler = 4,
    /// The dispatcher: liveness, and what the nodes report.
    Dispatch = 5,
    /// Roles, membership, certificates.
    Cluster = 6,
}

impl Author {
    pub const ALL: [Self; 6] = [
        Self::Api,
        Self::Allocator,
        Self::Orchestrator,
        Self::Scheduler,
        Self::Dispatch,
        Self::Cluster,
    ];

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Allocator => "allocator",
            Self::Orchestrator => "orchestrator",
            Self::Scheduler => "scheduler",
            Self::Dispatch => "dispatch",
            Self::Cluster => "cluster",
        }
    }

    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|author| *author as u32 == number)
    }

    /// The table of one writer per field.
    #[must_use]
    pub fn may_make(self, change: &Change) -> bool {
        match change {
            Change::CreateCluster(_)
            | Change::UpdateCluster { .. }
            | Change::AddAddressPools(_)
            | Change::RotateNetworkKey { .. }
            | Change::SetJoinTokens { .. }
            | Change::CreateNode(_)
            | Change::UpdateNode { .. }
            | Change::RemoveNode(_)
            | Change::CreateService { .. }
            | Change::UpdateService { .. }
            | Change::RemoveService(_)
            | Change::CreateNetwork { .. }
            | Change::RemoveNetwork(_) => self == Self::Api,
            Change::SetNodeNumber { .. }
            | Change::AdmitTasks(_)
            | Change::AllocateNetwork { .. }
            | Change::SetEndpoint { .. }
            | Change::AttachTasks(_)
            | Change::ConnectTask { .. }
            | Change::DisconnectTask { .. } => self == Self::Allocator,
            Change::SetUpdateStatus { .. }
            | Change::CreateTasks { .. }
            | Change::DesireTasks { .. }
            | Change::RemoveTasks(_)
            | Change::SetTally { .. } => self == Self::Orchestrator,
            Change::AssignTasks(_) => self == Self::Scheduler,
            Change::DescribeNode { .. } | Change::SetNodeStatus { .. } | Change::ReportTasks(_) => {
                self == Self::Dispatch
            }
            Change::SetNodeRole { .. }
            | Change::SetNodeManager { .. }
            | Change::SetNodeCertificate { .. } => self == Self::Cluster,
            Change::SetReason { decider, .. } => decider == self.name(),
        }
    }
}

/// An atom: its changes land together or not at all.
#[derive(Clone, Debug, PartialEq)]
pub struct ChangeSet {
    pub author: Author,
    pub changes: Vec<Change>,
}

impl ChangeSet {
    #[must_use]
    pub fn one(author: Author, change: Change) -> Self {
        Self { author, changes: vec![change] }
    }
}

/// What one entry of the log holds: atoms, and the time at which they were decided.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Proposal {
    pub time: Timestamp,
    pub atoms: Vec<ChangeSet>,
}
