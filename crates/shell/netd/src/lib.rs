//! What must outlive the daemon: names, reserved ports, the ::1 forwarder and tunnels of one node.
//!
//! Owns: the process `shoal netd`, the daemon's way to it, and what a container's `resolv.conf`
//! says.
//! Does not know: the daemon, the cluster's state, how packets are led to the resolver's port.
//! Invariant: netd makes nothing up: it answers what a daemon last told it, and goes on doing so
//! when no daemon is there.
//!
//! The daemon starts netd as `shoal netd DIRECTORY BUILD`. It listens on `netd.sock` in that
//! directory and keeps what it was told in `netd.state`, so that its successor can go on.

#[doc(hidden)]
pub mod fuzzing;
pub mod proto;

mod cache;
mod client;
mod codec;
mod counters;
mod datagrams;
mod forward;
mod index;
mod journal;
mod keeper;
mod launch;
mod link;
mod loopback;
mod names;
mod part;
mod query;
mod reserve;
mod resolv;
mod resolve;
mod server;
mod site;
mod spaces;
mod tunnels;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use types::NetworkId;

pub use client::{Client, ClientError, Options, Ports, Status};
pub use counters::Counters;
pub use resolv::{RESOLVER, RESOLVER_PORT, resolv_conf};
pub use tunnels::{Tunnel, TunnelPeer, TunnelPeerStatus, TunnelStatus, TunnelTraffic};

/// First argument that makes the binary netd.
pub const SUBCOMMAND: &str = "netd";

/// A container whose questions are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Unique on the node.
    pub id: String,
    /// Its network namespace; the sockets are opened inside.
    pub netns: PathBuf,
    /// Where names are looked for, in this order.
    pub networks: Vec<NetworkId>,
    /// Who is asked for names that are not ours.
    pub forward: Forward,
}

/// Who is asked for names that are not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forward {
    /// Nobody: other names do not exist. For containers with internal networks only.
    None,
    /// One after the other. Without any, other names cannot be resolved.
    Servers(Vec<Upstream>),
}

/// A server that questions are passed on to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Upstream {
    pub address: SocketAddr,
    pub from: Origin,
}

/// The network namespace that a question is passed on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    Container,
    /// netd's own, for servers on the host's loopback.
    Host,
}

/// Who says what is on a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The managers.
    Cluster = 0,
    /// The node itself, for its own networks.
    Node = 1,
}

impl Scope {
    pub(crate) const ALL: [Self; 2] = [Self::Cluster, Self::Node];

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| *scope as u8 == number)
    }
}

/// Becomes netd when the arguments say so, and then never returns.
///
/// Call this early in `main`, before any thread or runtime exists. With any other first argument
/// it does nothing.
pub fn run_if_netd() {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == SUBCOMMAND) {
        main(&args.collect::<Vec<_>>())
    }
}

/// Runs netd for the directory and build that `args` name; ends the process.
pub fn main(args: &[OsString]) -> ! {
    let [dir, build] = args else {
        eprintln!("shoal netd: exactly two arguments, a directory and a build, are expected");
        std::process::exit(EXIT_USAGE);
    };
    let code = match server::run(PathBuf::from(dir), build.to_string_lossy().into_owned()) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("shoal netd: {}", base::chain(&error));
            EXIT_FAILED
        }
    };
    std::process::exit(code);
}

const EXIT_FAILED: i32 = 1;
/// As docker's for a wrong use of the command.
const EXIT_USAGE: i32 = 125;
