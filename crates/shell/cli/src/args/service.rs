//! Definitions of `shoal service`.
//!
//! Owns: names, options, help. Does not know: what a command does.
//! Invariant: `create` and `update` share the options of one value; lists are set by `create` and
//! changed by `update` with `-add` and `-rm`.

use std::path::PathBuf;

use base::Millis;
use clap::{ArgAction, Subcommand, ValueEnum};
use types::{EndpointMode, NetworkAttachment};

use super::{Filters, InspectFormat, ListFormat};
use crate::networking::{Publish, parse_endpoint_mode, parse_network, parse_publish};
use crate::values::{
    parse_bytes, parse_command, parse_cpus, parse_duration, parse_label, parse_preference,
    parse_scale,
};

#[derive(Subcommand, Debug)]
pub(crate) enum Service {
    /// Create a service
    Create(Box<Create>),
    /// List the services
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// List the tasks of services
    Ps(Ps),
    /// Show everything about services
    Inspect(Inspect),
    /// Set how many replicas services have
    Scale(Scale),
    /// Change a service
    Update(Box<Update>),
    /// Remove services
    #[command(visible_alias = "remove")]
    Rm(Rm),
    /// Show what the tasks of services, or single tasks, have written
    Logs(Logs),
}

#[derive(clap::Args, Debug)]
pub(crate) struct Create {
    /// Name; a random one when it is not given
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// replicated, or global: one task on each suitable node
    #[arg(long, value_name = "MODE", default_value = "replicated")]
    pub(crate) mode: String,
    /// Label of the service
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(crate) label: Vec<(String, String)>,
    /// Label of the containers
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(crate) container_label: Vec<(String, String)>,
    /// Where tasks may run, such as node.role==worker or node.labels.zone!=a
    #[arg(long, value_name = "EXPRESSION")]
    pub(crate) constraint: Vec<String>,
    /// Over what tasks are spread: spread=node.labels.KEY
    #[arg(long, value_name = "PREFERENCE", value_parser = parse_preference)]
    pub(crate) placement_pref: Vec<String>,
    /// Environment variable; without a value it is taken from here
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// File with environment variables
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Network to attach to: NAME, or name=NAME,alias=…,ip=…,vip=…
    #[arg(long, value_name = "NETWORK", value_parser = parse_network)]
    pub(crate) network: Vec<NetworkAttachment>,
    /// Port to publish: [PUBLISHED:]TARGET[/PROTOCOL], or target=…,published=…,mode=host,address=…
    #[arg(short, long, value_name = "PORT", value_parser = parse_publish)]
    pub(crate) publish: Vec<Publish>,
    /// Server that is asked for names which are not the cluster's
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) dns: Vec<String>,
    /// Domain that names are looked for in
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) dns_search: Vec<String>,
    /// Option of the containers' resolver
    #[arg(long, value_name = "OPTION")]
    pub(crate) dns_option: Vec<String>,
    /// Line for /etc/hosts; the address may be host-gateway
    #[arg(long, value_name = "NAME:ADDRESS")]
    pub(crate) host: Vec<String>,
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) waiting: Waiting,
    /// Image, and what replaces its command
    #[arg(value_name = "IMAGE [COMMAND] [ARG...]", required = true, trailing_var_arg = true)]
    pub(crate) image_and_args: Vec<String>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Update {
    /// Image
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    /// What replaces the image's command, in one text
    #[arg(long, value_name = "COMMAND", allow_hyphen_values = true)]
    #[arg(value_parser = parse_words)]
    pub(crate) args: Option<Words>,
    /// Replace the tasks though nothing else changes
    #[arg(long)]
    pub(crate) force: bool,
    /// Add or replace a label of the service
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(crate) label_add: Vec<(String, String)>,
    /// Remove a label of the service
    #[arg(long, value_name = "KEY")]
    pub(crate) label_rm: Vec<String>,
    /// Add or replace a label of the containers
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(crate) container_label_add: Vec<(String, String)>,
    /// Remove a label of the containers
    #[arg(long, value_name = "KEY")]
    pub(crate) container_label_rm: Vec<String>,
    /// Add a constraint
    #[arg(long, value_name = "EXPRESSION")]
    pub(crate) constraint_add: Vec<String>,
    /// Remove a constraint
    #[arg(long, value_name = "EXPRESSION")]
    pub(crate) constraint_rm: Vec<String>,
    /// Add a placement preference
    #[arg(long, value_name = "PREFERENCE", value_parser = parse_preference)]
    pub(crate) placement_pref_add: Vec<String>,
    /// Remove a placement preference
    #[arg(long, value_name = "PREFERENCE", value_parser = parse_preference)]
    pub(crate) placement_pref_rm: Vec<String>,
    /// Add or replace an environment variable
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) env_add: Vec<String>,
    /// Remove an environment variable
    #[arg(long, value_name = "NAME")]
    pub(crate) env_rm: Vec<String>,
    /// Attach to a network
    #[arg(long, value_name = "NETWORK", value_parser = parse_network)]
    pub(crate) network_add: Vec<NetworkAttachment>,
    /// Leave a network
    #[arg(long, value_name = "NETWORK")]
    pub(crate) network_rm: Vec<String>,
    /// Publish a port, or change how it is published
    #[arg(long, value_name = "PORT", value_parser = parse_publish)]
    pub(crate) publish_add: Vec<Publish>,
    /// Publish a port no more, by its target port and protocol
    #[arg(long, value_name = "PORT", value_parser = parse_publish)]
    pub(crate) publish_rm: Vec<Publish>,
    /// Add a server that is asked for names which are not the cluster's
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) dns_add: Vec<String>,
    /// Remove such a server
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) dns_rm: Vec<String>,
    /// Add a domain that names are looked for in
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) dns_search_add: Vec<String>,
    /// Remove such a domain
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) dns_search_rm: Vec<String>,
    /// Add an option of the containers' resolver
    #[arg(long, value_name = "OPTION")]
    pub(crate) dns_option_add: Vec<String>,
    /// Remove such an option
    #[arg(long, value_name = "OPTION")]
    pub(crate) dns_option_rm: Vec<String>,
    /// Add a line to /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS")]
    pub(crate) host_add: Vec<String>,
    /// Remove a line from /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS")]
    pub(crate) host_rm: Vec<String>,
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) waiting: Waiting,
    #[arg(value_name = "SERVICE")]
    pub(crate) service: String,
}

/// Options of one value: `create` sets them, `update` changes those that are given.
#[derive(clap::Args, Debug, Default)]
pub(crate) struct Common {
    /// vip: one virtual address, balanced; or dnsrr: the addresses of the tasks [default: vip]
    #[arg(long, value_name = "MODE", value_parser = parse_endpoint_mode)]
    pub(crate) endpoint_mode: Option<EndpointMode>,
    /// Number of tasks [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) replicas: Option<u64>,
    /// Most tasks on one node, 0 for any number
    #[arg(long, value_name = "N")]
    pub(crate) replicas_max_per_node: Option<u64>,
    /// CPUs that a task cannot exceed, such as 0.5
    #[arg(long, value_name = "CPUS", value_parser = parse_cpus)]
    pub(crate) limit_cpu: Option<u64>,
    /// Memory that a task cannot exceed, such as 512m
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) limit_memory: Option<u64>,
    /// Processes that a task cannot exceed, 0 for any number
    #[arg(long, value_name = "N")]
    pub(crate) limit_pids: Option<u64>,
    /// CPUs that are set aside for a task
    #[arg(long, value_name = "CPUS", value_parser = parse_cpus)]
    pub(crate) reserve_cpu: Option<u64>,
    /// Memory that is set aside for a task
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) reserve_memory: Option<u64>,
    /// When tasks that ended are replaced [default: any]
    #[arg(long, value_enum, value_name = "CONDITION")]
    pub(crate) restart_condition: Option<RestartCondition>,
    /// Delay before a task is replaced [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) restart_delay: Option<Millis>,
    /// How often a task is replaced within the window, 0 for ever
    #[arg(long, value_name = "N")]
    pub(crate) restart_max_attempts: Option<u64>,
    /// Window in which replacements count, 0 for all time
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) restart_window: Option<Millis>,
    /// What replaces the image's entrypoint, in one text
    #[arg(long, value_name = "COMMAND", value_parser = parse_words)]
    pub(crate) entrypoint: Option<Words>,
    /// Host name of the containers
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// User, and group: NAME|UID[:GROUP|GID]
    #[arg(short, long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Root file system of the containers is read-only
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", action = ArgAction::Set)]
    pub(crate) read_only: Option<bool>,
    /// Add a capability
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) cap_add: Vec<String>,
    /// Drop a capability
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) cap_drop: Vec<String>,
    /// Time between the stop signal and the kill [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) stop_grace_period: Option<Millis>,
    /// Signal that stops a container [default: the image's, else SIGTERM]
    #[arg(long, value_name = "SIGNAL")]
    pub(crate) stop_signal: Option<String>,
}

/// A command in words; a type of its own, since a list is an option given several times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Words(pub(crate) Vec<String>);

fn parse_words(text: &str) -> Result<Words, String> {
    parse_command(text).map(Words)
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestartCondition {
    None,
    OnFailure,
    Any,
}

/// Whether a command waits until a service is as wanted.
#[derive(clap::Args, Debug, Clone, Default)]
pub(crate) struct Waiting {
    /// Do not wait until the service is as wanted
    #[arg(short, long, value_name = "BOOL", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", default_value = "false", action = ArgAction::Set)]
    #[arg(hide_default_value = true)]
    pub(crate) detach: bool,
    /// Show no progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// End with exit code 124 and the reason when waiting takes longer
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) wait_timeout: Option<Millis>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Ls {
    #[command(flatten)]
    pub(crate) filters: Filters,
    #[command(flatten)]
    pub(crate) format: ListFormat,
    /// Print IDs and images in full
    #[arg(long)]
    pub(crate) no_trunc: bool,
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
    #[arg(value_name = "SERVICE", required = true)]
    pub(crate) services: Vec<String>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Inspect {
    #[command(flatten)]
    pub(crate) format: InspectFormat,
    #[arg(value_name = "SERVICE", required = true)]
    pub(crate) services: Vec<String>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Scale {
    #[command(flatten)]
    pub(crate) waiting: Waiting,
    #[arg(value_name = "SERVICE=REPLICAS", required = true, value_parser = parse_scale)]
    pub(crate) scales: Vec<(String, u64)>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Rm {
    #[arg(value_name = "SERVICE", required = true)]
    pub(crate) services: Vec<String>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Logs {
    /// Go on with new lines
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Do not turn IDs into names
    #[arg(long)]
    pub(crate) no_resolve: bool,
    /// Leave out the IDs of tasks
    #[arg(long)]
    pub(crate) no_task_ids: bool,
    /// Print IDs in full
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// Print lines as they were written, without who wrote them
    #[arg(long)]
    pub(crate) raw: bool,
    /// Only lines since a time (2026-01-31T12:00:00) or for as long (10m)
    #[arg(long, value_name = "TIME", default_value = "", hide_default_value = true)]
    pub(crate) since: String,
    /// Only so many of the last lines of each task, or all
    #[arg(short = 'n', long, value_name = "N", default_value = "all")]
    pub(crate) tail: String,
    /// Show when each line was written
    #[arg(short, long)]
    pub(crate) timestamps: bool,
    /// Services or tasks
    #[arg(value_name = "SERVICE|TASK", required = true)]
    pub(crate) targets: Vec<String>,
}
