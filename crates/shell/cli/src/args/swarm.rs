//! Definitions of `shoal swarm`.
//!
//! Owns: names, options, help. Does not know: what a command does.
//! Invariant: defaults are docker's.

use base::Millis;
use clap::{Subcommand, ValueEnum};

use crate::values::parse_duration;

#[derive(Subcommand, Debug)]
pub(crate) enum Swarm {
    /// Create a cluster with this node as its first manager
    Init(Init),
    /// Join a cluster as worker or manager, as the token says
    Join(Join),
    /// Leave the cluster
    Leave(Leave),
    /// Change the settings of the cluster
    Update(Update),
    /// Show or rotate the token that lets nodes join
    JoinToken(JoinToken),
    /// Give every node another key for encrypted networks; no packet is lost
    RotateNetworkKey(RotateNetworkKey),
    /// Show the certificate of the cluster's authority
    Ca,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Init {
    #[command(flatten)]
    pub(crate) addresses: Addresses,
    /// UDP port of the data path, 1024 to 49151 [default: 4789]
    #[arg(long, value_name = "PORT", default_value_t = 0, hide_default_value = true)]
    pub(crate) data_path_port: u32,
    /// Two UDP ports of encrypted networks, 1024 to 49151 [default: 4793,4794]
    #[arg(long, value_name = "PORT,PORT", value_delimiter = ',')]
    pub(crate) encryption_ports: Vec<u32>,
    /// Pools that networks' subnets are cut of, in CIDR form [default: 10.0.0.0/8]
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub(crate) default_addr_pool: Vec<String>,
    /// Prefix length of the subnets that are cut of the pools [default: 24]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) default_addr_pool_mask_length: u32,
    #[command(flatten)]
    pub(crate) settings: Settings,
}

/// How the other nodes reach this one.
#[derive(clap::Args, Debug)]
pub(crate) struct Addresses {
    /// Address to listen on for other nodes: IP or interface, with an optional port
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:2377")]
    pub(crate) listen_addr: String,
    /// Address that other nodes use: IP or interface, with an optional port
    #[arg(long, value_name = "ADDR", default_value = "", hide_default_value = true)]
    pub(crate) advertise_addr: String,
    /// Address or interface for traffic between containers [default: the advertised one]
    #[arg(long, value_name = "ADDR", default_value = "", hide_default_value = true)]
    pub(crate) data_path_addr: String,
    /// Whether this node gets tasks
    #[arg(long, value_enum, default_value = "active")]
    pub(crate) availability: Availability,
}

/// Settings of the cluster; what is not given stays, or is the default.
#[derive(clap::Args, Debug, Default)]
pub(crate) struct Settings {
    /// How long a node's certificate lasts, at least 1h [default: 2160h0m0s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) cert_expiry: Option<Millis>,
    /// How often nodes report that they are alive [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) dispatcher_heartbeat: Option<Millis>,
    /// How many old tasks are kept for each slot, all when negative [default: 5]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) task_history_limit: Option<i64>,
}

impl Settings {
    pub(crate) fn is_empty(&self) -> bool {
        self.cert_expiry.is_none()
            && self.dispatcher_heartbeat.is_none()
            && self.task_history_limit.is_none()
    }
}

#[derive(clap::Args, Debug)]
pub(crate) struct Join {
    /// Token that lets this node in, from `shoal swarm join-token`
    #[arg(long, value_name = "TOKEN")]
    pub(crate) token: String,
    #[command(flatten)]
    pub(crate) addresses: Addresses,
    /// Address of a manager
    #[arg(value_name = "HOST:PORT")]
    pub(crate) remote: String,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Leave {
    /// Leave though this node is a manager
    #[arg(short, long)]
    pub(crate) force: bool,
}

#[derive(clap::Args, Debug)]
#[command(arg_required_else_help = true)]
pub(crate) struct Update {
    /// Add pools that networks' subnets are cut of, in CIDR form; those there are stay
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub(crate) default_addr_pool: Vec<String>,
    #[command(flatten)]
    pub(crate) settings: Settings,
}

#[derive(clap::Args, Debug)]
pub(crate) struct RotateNetworkKey {
    /// Do not wait until every live node uses its new key
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Print nothing but what goes wrong
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(clap::Args, Debug)]
pub(crate) struct JoinToken {
    /// Which role the token gives
    #[arg(value_enum, value_name = "ROLE")]
    pub(crate) role: Role,
    /// Only print the token
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Make a new token; the old one lets nobody in any more
    #[arg(long)]
    pub(crate) rotate: bool,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Worker,
    Manager,
}

impl Role {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Manager => "manager",
        }
    }
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Availability {
    /// Gets tasks
    Active,
    /// Keeps its tasks and gets no new ones
    Pause,
    /// Has no tasks
    Drain,
}
