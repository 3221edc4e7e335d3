//! A node: a machine that is part of the cluster.
//!
//! Owns: what is wanted of it, what it says of itself, and what is known of it.
//! Invariant: `role` is what its certificate is issued for; `spec.role` is what is wanted.

use std::net::IpAddr;

use base::Timestamp;
use ipnet::IpNet;

use crate::{Labels, Meta, NodeEncryption, NodeId, PortBinding, Resources};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeRole {
    #[default]
    Worker = 1,
    Manager = 2,
}

impl NodeRole {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Manager => "manager",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Availability {
    #[default]
    Active = 1,
    /// No new tasks; running ones stay.
    Pause = 2,
    /// No tasks: those that run are replaced elsewhere.
    Drain = 3,
}

impl Availability {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Pause => "pause",
            Self::Drain => "drain",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeState {
    /// Not heard of since this leader began, or not yet for as long as the grace.
    #[default]
    Unknown = 1,
    Down = 2,
    Ready = 3,
    Disconnected = 4,
}

impl NodeState {
    pub const ALL: [Self; 4] = [Self::Unknown, Self::Down, Self::Ready, Self::Disconnected];

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Down => "down",
            Self::Ready => "ready",
            Self::Disconnected => "disconnected",
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSpec {
    pub name: String,
    pub labels: Labels,
    pub role: NodeRole,
    pub availability: Availability,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
}

impl Platform {
    /// Docker's names of the architectures for the kernel's.
    #[must_use]
    pub fn normal_architecture(name: &str) -> &str {
        match name {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
    }

    /// An empty part of `wanted` fits everything.
    #[must_use]
    pub fn fits(&self, wanted: &Self) -> bool {
        let same = |a: &str, b: &str| {
            b.is_empty() || Self::normal_architecture(a) == Self::normal_architecture(b)
        };
        same(&self.architecture, &wanted.architecture) && same(&self.os, &wanted.os)
    }
}

/// What a node says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeDescription {
    pub hostname: String,
    pub platform: Platform,
    pub resources: Resources,
    pub engine_version: String,
    pub engine_labels: Labels,
    /// References of the images it has, sorted.
    pub images: Vec<String>,
    pub data_path: DataPath,
}

/// Where a node's data path ends, and what it must not collide with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataPath {
    /// Where its VXLAN packets come from; `None`: not said yet.
    pub address: Option<IpAddr>,
    /// Bytes, of the link that has the address; zero: not known.
    pub mtu: u32,
    /// Networks that the host has routes to, sorted; default routes are not among them, nor those
    /// that this cluster's networks made.
    pub routes: Vec<IpNet>,
    /// `None`: not said yet.
    pub encryption: Option<NodeEncryption>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeStatus {
    pub state: NodeState,
    pub message: String,
    /// Address that the managers see.
    pub address: String,
    /// One per code, by code.
    pub conditions: Vec<Condition>,
    /// When the state was reached, in store time; `apply` sets it, whatever a change says.
    pub since: Timestamp,
}

impl NodeStatus {
    /// Whether a condition of this code stands.
    #[must_use]
    pub fn has(&self, code: ConditionCode) -> bool {
        self.conditions.iter().any(|condition| condition.code == code)
    }
}

/// What may be wrong with a node that answers all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConditionCode {
    /// Its clock differs from the managers': it does not stand for election.
    ClockOff = 1,
    /// A manager whose disk has no room: it takes no writes and does not lead.
    DiskFull = 2,
    /// A manager whose store has stopped: only a restart of its daemon helps.
    StoreStopped = 3,
    /// A program of the host holds a published port: the node does not publish it.
    PortTaken = 4,
    /// Rules of somebody else drop what the mesh or the data path needs.
    FirewallDrops = 5,
    /// Connections are about to find no room in the kernel's table.
    ConntrackFull = 6,
    /// It answers, but has not carried out for long what it was told of its networks.
    DataPathBehind = 7,
    /// Packets of its containers do not reach other nodes, or not all of them.
    PeerPath = 8,
    /// Packets of an encrypted network were seen unencrypted; they are dropped.
    ClearText = 9,
}

impl ConditionCode {
    pub const ALL: [Self; 9] = [
        Self::ClockOff,
        Self::DiskFull,
        Self::StoreStopped,
        Self::PortTaken,
        Self::FirewallDrops,
        Self::ConntrackFull,
        Self::DataPathBehind,
        Self::PeerPath,
        Self::ClearText,
    ];

    #[must_use]
    pub fn from_number(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|code| *code as i32 == number)
    }
}

/// One thing that is wrong with a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Condition {
    pub code: ConditionCode,
    /// For people, such as `clock 12 s ahead`.
    pub message: String,
    /// Those that the words are about, where they are about ports; perhaps not all.
    pub ports: Vec<PortBinding>,
}

impl Condition {
    /// One that words say all of.
    #[must_use]
    pub fn new(code: ConditionCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), ports: Vec::new() }
    }
}

/// A node's place among the managers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagerStatus {
    /// Its number in Raft, never used twice.
    pub raft_id: u64,
    /// `host:port` that the other managers use.
    pub address: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub id: NodeId,
    pub meta: Meta,
    pub spec: NodeSpec,
    pub description: NodeDescription,
    pub status: NodeStatus,
    pub role: NodeRole,
    pub manager: Option<ManagerStatus>,
    /// Small number unique among nodes, for the data path; zero until given.
    pub number: u32,
    pub certificate_expires: Timestamp,
}

impl Node {
    /// Its name for people: the spec's, else the host's.
    #[must_use]
    pub fn hostname(&self) -> &str {
        if self.description.hostname.is_empty() {
            &self.spec.name
        } else {
            &self.description.hostname
        }
    }

    /// Takes another status; the time of the state stays while the state does.
    pub fn take_status(&mut self, status: &NodeStatus, at: Timestamp) {
        let since = if self.status.state == status.state { self.status.since } else { at };
        self.status = NodeStatus { since, ..status.clone() };
    }

    /// It may be given new tasks.
    #[must_use]
    pub fn takes_tasks(&self) -> bool {
        self.status.state == NodeState::Ready && self.spec.availability == Availability::Active
    }

    /// Its tasks must be replaced elsewhere.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.status.state == NodeState::Down || self.spec.availability == Availability::Drain
    }
}
