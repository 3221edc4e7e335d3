//! Definitions of `shoal network`.
//!
//! Owns: names, options, help. Does not know: what a command does.
//! Invariant: the words are docker's; what is not there is unknown and refused by name.

use std::net::IpAddr;

use clap::Subcommand;
use ipnet::IpNet;

use super::{Filters, ListFormat};
use crate::values::parse_label;

#[derive(Subcommand, Debug)]
pub(crate) enum Network {
    /// Create a network
    Create(Create),
    /// List the networks
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show everything about networks
    Inspect(Inspect),
    /// Remove networks
    #[command(visible_alias = "remove")]
    Rm(Rm),
    /// Remove all networks that nothing uses
    Prune(Prune),
}

#[derive(clap::Args, Debug)]
pub(crate) struct Create {
    /// Driver; networks of the cluster are overlays
    #[arg(short, long, value_name = "DRIVER", default_value = "overlay")]
    pub(crate) driver: String,
    /// Containers that no service made may join
    #[arg(long)]
    pub(crate) attachable: bool,
    /// No way out of the network
    #[arg(long)]
    pub(crate) internal: bool,
    /// The network of the routing mesh
    #[arg(long)]
    pub(crate) ingress: bool,
    /// IPv6 addresses too
    #[arg(long)]
    pub(crate) ipv6: bool,
    /// Subnet; may be given once for each family
    #[arg(long, value_name = "CIDR")]
    pub(crate) subnet: Vec<IpNet>,
    /// Part of the subnet that addresses are given out of, in the order of the subnets
    #[arg(long, value_name = "CIDR")]
    pub(crate) ip_range: Vec<IpNet>,
    /// Next hop of the containers, in the order of the subnets
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) gateway: Vec<IpAddr>,
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
