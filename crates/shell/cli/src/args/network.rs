//! Definitions of `shoal network`.
//!
//! Owns: names, options, help. Does not know: what a command does.
//! Invariant: the words are docker's; what is not there is unknown and refused by name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clap::Subcommand;
use ipnet::IpNet;

use super::{Filters, ListFormat};
use crate::values::parse_label;

#[derive(Subcommand, Debug)]
pub(crate) enum Network {
    /// Create a network
    Create(Box<Create>),
    /// List the networks
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show everything about networks
    Inspect(Inspect),
    /// Have every node look at its paths to every other
    Check(Check),
    /// Remove networks
    #[command(visible_alias = "remove")]
    Rm(Rm),
    /// Remove all networks that nothing uses
    Prune(Prune),
    /// Connect a running container of this node to a network
    Connect(Connect),
    /// Disconnect a container of this node from a network that it was connected to
    Disconnect(Disconnect),
}

#[derive(clap::Args, Debug)]
pub(crate) struct Create {
    /// Driver: overlay for a network of the cluster; bridge, macvlan or ipvlan for one of this node
    #[arg(short, long, value_name = "DRIVER", default_value = "bridge")]
    pub(crate) driver: String,
    /// Whose it is: swarm or local; the driver says so where this does not
    #[arg(long, value_name = "SCOPE")]
    pub(crate) scope: Option<String>,
    /// Containers that no service made may join
    #[arg(long)]
    pub(crate) attachable: bool,
    /// No way out of the network
    #[arg(long)]
    pub(crate) internal: bool,
    /// The network of the routing mesh
    #[arg(long)]
    pub(crate) ingress: bool,
    /// Make a configuration for networks of this node, not a network
    #[arg(long)]
    pub(crate) config_only: bool,
    /// The configuration, of each node that makes the network, that it is made of
    #[arg(long, value_name = "NETWORK")]
    pub(crate) config_from: Option<String>,
    /// IPv4 addresses
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) ipv4: bool,
    /// IPv6 addresses too
    #[arg(long, value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) ipv6: bool,
    /// Subnet; may be given once for each family
    #[arg(long, value_name = "CIDR")]
    pub(crate) subnet: Vec<IpNet>,
    /// Part of a subnet that addresses are given out of
    #[arg(long, value_name = "CIDR")]
    pub(crate) ip_range: Vec<IpNet>,
    /// Next hop of the containers, in one of the subnets
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) gateway: Vec<IpAddr>,
    /// Address that is somebody else's; for networks of this node
    #[arg(long, value_name = "NAME=ADDRESS", value_parser = parse_label)]
    pub(crate) aux_address: Vec<(String, String)>,
    /// Who gives out addresses
    #[arg(long, value_name = "DRIVER", default_value = "default")]
    pub(crate) ipam_driver: String,
    /// Option of who gives out addresses; the default one has none
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(crate) ipam_opt: Vec<(String, String)>,
    /// Option of the driver, such as com.docker.network.driver.mtu=1400
    #[arg(short, long = "opt", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(crate) opt: Vec<(String, String)>,
    /// Label of the network
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(crate) label: Vec<(String, String)>,
    #[arg(value_name = "NETWORK")]
    pub(crate) name: String,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Ls {
    #[command(flatten)]
    pub(crate) filters: Filters,
    #[command(flatten)]
    pub(crate) format: ListFormat,
    /// Print IDs in full
    #[arg(long)]
    pub(crate) no_trunc: bool,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Inspect {
    /// Print with a Go template, or `json`
    #[arg(short, long, value_name = "TEMPLATE")]
    pub(crate) format: Option<String>,
    /// With peers, services and tasks
    #[arg(short, long)]
    pub(crate) verbose: bool,
    #[arg(value_name = "NETWORK", required = true)]
    pub(crate) networks: Vec<String>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Check {
    /// Print with a Go template, `table TEMPLATE`, `table` or `json`
    #[arg(long, value_name = "TEMPLATE")]
    pub(crate) format: Option<String>,
    /// Only print what is wrong
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// The networks of the cluster to be checked; none: all
    #[arg(value_name = "NETWORK")]
    pub(crate) networks: Vec<String>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Rm {
    /// Say nothing of networks that do not exist
    #[arg(short, long)]
    pub(crate) force: bool,
    #[arg(value_name = "NETWORK", required = true)]
    pub(crate) networks: Vec<String>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Prune {
    /// Only those that match: label=KEY, label=KEY=VALUE or label!=KEY
    #[command(flatten)]
    pub(crate) filters: Filters,
    /// Do not ask
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Connect {
    /// IPv4 address, such as 172.30.100.104
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) ip: Option<Ipv4Addr>,
    /// IPv6 address, such as 2001:db8::33
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) ip6: Option<Ipv6Addr>,
    /// Further name of the container on the network
    #[arg(long, value_name = "NAME")]
    pub(crate) alias: Vec<String>,
    /// Not supported: containers of one network know each other by name
    #[arg(long, value_name = "CONTAINER")]
    pub(crate) link: Vec<String>,
    #[arg(value_name = "NETWORK")]
    pub(crate) network: String,
    #[arg(value_name = "CONTAINER")]
    pub(crate) container: String,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Disconnect {
    /// Say nothing of a container or connection that does not exist
    #[arg(short, long)]
    pub(crate) force: bool,
    #[arg(value_name = "NETWORK")]
    pub(crate) network: String,
    #[arg(value_name = "CONTAINER")]
    pub(crate) container: String,
}
