//! Definitions of `shoal node`.
//!
//! Owns: names, options, help. Does not know: what a command does.
//! Invariant: a node is named by its ID, a prefix of it, its name, or `self`.

use clap::Subcommand;

use super::swarm::{Availability, Role};
use super::{Filters, InspectFormat, ListFormat};
use crate::values::parse_label;

#[derive(Subcommand, Debug)]
pub(crate) enum Node {
    /// List the nodes of the cluster
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show everything about nodes
    Inspect(Inspect),
    /// List the tasks of nodes
    Ps(Ps),
    /// Change a node
    Update(Update),
    /// Make workers managers
    Promote(Names),
    /// Make managers workers
    Demote(Names),
    /// Remove nodes that are down from the cluster
    #[command(visible_alias = "remove")]
    Rm(Rm),
}

#[derive(clap::Args, Debug)]
pub(crate) struct Ls {
    #[command(flatten)]
    pub(crate) filters: Filters,
    #[command(flatten)]
    pub(crate) format: ListFormat,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Inspect {
    #[command(flatten)]
    pub(crate) format: InspectFormat,
    /// Nodes; `self` is this one
    #[arg(value_name = "NODE", required = true)]
    pub(crate) nodes: Vec<String>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Ps {
    #[command(flatten)]
    pub(crate) filters: Filters,
    #[command(flatten)]
    pub(crate) format: ListFormat,
    /// Print IDs instead of names
    #[arg(long)]
    pub(crate) no_resolve: bool,
    /// Print everything in full
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// Nodes; `self` is this one
    #[arg(value_name = "NODE", default_value = "self")]
    pub(crate) nodes: Vec<String>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Update {
    /// Whether the node gets tasks
    #[arg(long, value_enum)]
    pub(crate) availability: Option<Availability>,
    /// Add or replace a label
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(crate) label_add: Vec<(String, String)>,
    /// Remove a label
    #[arg(long, value_name = "KEY")]
    pub(crate) label_rm: Vec<String>,
    /// Role that the node should have
    #[arg(long, value_enum)]
    pub(crate) role: Option<Role>,
    #[arg(value_name = "NODE")]
    pub(crate) node: String,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Names {
    #[arg(value_name = "NODE", required = true)]
    pub(crate) nodes: Vec<String>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Rm {
    /// Remove a node though it is not down
    #[arg(short, long)]
    pub(crate) force: bool,
    #[arg(value_name = "NODE", required = true)]
    pub(crate) nodes: Vec<String>,
}
