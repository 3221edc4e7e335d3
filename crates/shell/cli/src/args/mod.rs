//! The definitions of all commands, from which help and reference are made.
//!
//! Owns: names, options, defaults and help texts.
//! Does not know: what a command does.
//! Invariant: only options whose effect exists are defined.

pub(crate) mod daemon;
pub(crate) mod image;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod service;
pub(crate) mod swarm;
pub(crate) mod system;

use clap::{Parser, Subcommand};

/// Runs containers on a cluster of hosts.
#[derive(Parser, Debug)]
#[command(
    name = "shoal",
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) options: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Global {
    /// Daemon to talk to: unix:///path/to/shoal.sock or ssh://[user@]host[:port]
    #[arg(short = 'H', long, env = "SHOAL_HOST", value_name = "URL")]
    #[arg(default_value = "unix:///run/shoal/shoal.sock", hide_env_values = true)]
    pub(crate) host: String,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Run the daemon of this node
    Daemon(Box<daemon::DaemonArgs>),
    /// Manage the cluster
    #[command(subcommand)]
    Swarm(swarm::Swarm),
    /// Manage the nodes of the cluster
    #[command(subcommand)]
    Node(node::Node),
    /// Manage services
    #[command(subcommand)]
    Service(service::Service),
    /// Manage networks
    #[command(subcommand)]
    Network(network::Network),
    /// Manage the images of this node
    #[command(subcommand)]
    Image(image::Image),
    /// Show what this node is and what it knows
    Info(system::Info),
    /// Show the versions of this program and of the daemon
    Version(system::Version),
    /// Print the completion script of a shell
    Completion(system::Completion),
    /// What other programs use
    #[command(subcommand, hide = true)]
    System(system::System),
}

/// How a list is printed.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct ListFormat {
    /// Print with a Go template, `table TEMPLATE`, `table` or `json`
    #[arg(long, value_name = "TEMPLATE")]
    pub(crate) format: Option<String>,
    /// Only print IDs
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Which objects are listed.
#[derive(clap::Args, Debug, Clone, Default)]
pub(crate) struct Filters {
    /// Only list what matches; may be given several times
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    #[arg(value_parser = crate::values::parse_filter)]
    pub(crate) filters: Vec<(String, String)>,
}

/// How objects are inspected.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct InspectFormat {
    /// Print with a Go template, or `json`
    #[arg(short, long, value_name = "TEMPLATE")]
    pub(crate) format: Option<String>,
    /// Print for people instead of as JSON
    #[arg(long, conflicts_with = "format")]
    pub(crate) pretty: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn definitions_hold_together() {
        Args::command().debug_assert();
    }

    #[test]
    fn unknown_flags_are_refused_by_name() {
        for (line, name) in [
            ("shoal service create --mount a x", "--mount"),
            ("shoal service create --update-parallelism 2 x", "--update-parallelism"),
            ("shoal service create --tty x", "--tty"),
            ("shoal service update --rollback x", "--rollback"),
            ("shoal service update --limit-swap 1 x", "--limit-swap"),
            ("shoal swarm init --autolock", "--autolock"),
            ("shoal swarm ca --rotate", "--rotate"),
            ("shoal node update --bogus x", "--bogus"),
        ] {
            let error = Args::try_parse_from(line.split(' ')).unwrap_err().to_string();
            assert!(error.contains(name), "{line}: {error}");
        }
    }

    #[test]
    fn what_follows_the_image_is_the_command() {
        let line = "shoal service create --name a -d busybox sleep -x --name b";
        let args = Args::try_parse_from(line.split(' ')).unwrap();
        let Command::Service(service::Service::Create(create)) = args.command else {
            panic!("not a service create")
        };
        assert_eq!(create.image_and_args, ["busybox", "sleep", "-x", "--name", "b"]);
        assert_eq!(create.name.as_deref(), Some("a"));
    }
}
