//! `shoal swarm`.
//!
//! Owns: docker's texts, with our name.
//! Does not know: how a cluster is made.
//! Invariant: settings that were not given are those that the cluster has, or the defaults.

use types::{ClusterSpec, ErrorCode};
use wire::v1;

use super::{id_text, network_key, print, print_line};
use crate::args::swarm::{Availability, Init, Join, JoinToken, Role, Settings, Swarm, Update};
use crate::client::Daemon;
use crate::error::CliError;

pub(super) async fn run(daemon: &mut Daemon, command: Swarm) -> Result<(), CliError> {
    match command {
        Swarm::Init(args) => init(daemon, args).await,
        Swarm::Join(args) => join(daemon, args).await,
        Swarm::Leave(args) => {
            daemon.local.leave(v1::LeaveRequest { force: args.force }).await?;
            print_line("Node left the swarm.")
        }
        Swarm::Update(args) => update(daemon, &args).await,
        Swarm::JoinToken(args) => join_token(daemon, &args).await,
        Swarm::RotateNetworkKey(args) => network_key::rotate(daemon, &args).await,
        Swarm::Ca => ca(daemon).await,
    }
}

async fn init(daemon: &mut Daemon, args: Init) -> Result<(), CliError> {
    types::check_udp_ports(args.data_path_port, &args.encryption_ports)
        .map_err(|fault| CliError::usage(&fault.field, &fault.message))?;
    let mut spec = ClusterSpec::default();
    apply(&mut spec, &args.settings);
    let request = v1::InitRequest {
        listen_addr: args.addresses.listen_addr,
        advertise_addr: args.addresses.advertise_addr,
        data_path_addr: args.addresses.data_path_addr,
        data_path_port: args.data_path_port,
        encryption_ports: args.encryption_ports,
        availability: availability(args.addresses.availability).into(),
        spec: Some((&spec).into()),
        address_pools: args.default_addr_pool,
        address_pool_mask: args.default_addr_pool_mask_length,
    };
    let answer = daemon.local.init(request).await?.into_inner();
    print(&format!(
        "Swarm initialized: current node ({}) is now a manager.\n\n{}\n\
         To add a manager to this swarm, run 'shoal swarm join-token manager' and follow the \
         instructions.\n",
        id_text(&answer.node_id),
        join_text(Role::Worker, &answer.worker_token, &answer.address),
    ))
}

fn join_text(role: Role, token: &str, address: &str) -> String {
    format!(
        "To add a {} to this swarm, run the following command:\n\n    \
         shoal swarm join --token {token} {address}\n",
        role.name(),
    )
}

async fn join(daemon: &mut Daemon, args: Join) -> Result<(), CliError> {
    let request = v1::JoinRequest {
        token: args.token,
        remotes: vec![args.remote],
        listen_addr: args.addresses.listen_addr,
        advertise_addr: args.addresses.advertise_addr,
        data_path_addr: args.addresses.data_path_addr,
        availability: availability(args.addresses.availability).into(),
    };
    let answer = daemon.local.join(request).await?.into_inner();
    let role = if answer.manager { "manager" } else { "worker" };
    print_line(format!("This node joined a swarm as a {role}."))
}

async fn update(daemon: &mut Daemon, args: &Update) -> Result<(), CliError> {
    if args.settings.is_empty() && args.default_addr_pool.is_empty() {
        return Err(CliError::usage("swarm update", "name a setting to change"));
    }
    let mut attempt = 1;
    loop {
        let cluster = daemon.control.get_cluster(v1::GetClusterRequest {}).await?.into_inner();
        let mut spec: ClusterSpec = cluster.spec.unwrap_or_default().into();
        apply(&mut spec, &args.settings);
        let request = v1::UpdateClusterRequest {
            spec_version: cluster.meta.unwrap_or_default().spec_version,
            spec: Some((&spec).into()),
            add_address_pools: args.default_addr_pool.clone(),
        };
        match daemon.control.update_cluster(request).await.map_err(CliError::from) {
            Err(error) if error.code == Some(ErrorCode::OutOfDate) && attempt < ATTEMPTS_MAX => {
                attempt += 1;
            }
            result => {
                result?;
                return print_line("Swarm updated.");
            }
        }
    }
}

async fn join_token(daemon: &mut Daemon, args: &JoinToken) -> Result<(), CliError> {
    let tokens = if args.rotate {
        let role = match args.role {
            Role::Worker => v1::NodeRole::Worker,
            Role::Manager => v1::NodeRole::Manager,
        };
        let request = v1::RotateJoinTokenRequest { role: role.into() };
        daemon.control.rotate_join_token(request).await?.into_inner()
    } else {
        daemon.control.get_join_tokens(v1::GetJoinTokensRequest {}).await?.into_inner()
    };
    let token = match args.role {
        Role::Worker => &tokens.worker,
        Role::Manager => &tokens.manager,
    };
    if args.quiet {
        return print_line(token);
    }
    if args.rotate {
        print(&format!("Successfully rotated {} join token.\n\n", args.role.name()))?;
    }
    print_line(join_text(args.role, token, &tokens.address))
}

async fn ca(daemon: &mut Daemon) -> Result<(), CliError> {
    let cluster = daemon.control.get_cluster(v1::GetClusterRequest {}).await?.into_inner();
    print_line(cluster.ca_certificate.trim_end())
}

fn apply(spec: &mut ClusterSpec, settings: &Settings) {
    spec.certificate_expiry = settings.cert_expiry.unwrap_or(spec.certificate_expiry);
    spec.dispatcher_heartbeat = settings.dispatcher_heartbeat.unwrap_or(spec.dispatcher_heartbeat);
    spec.task_history_limit = settings.task_history_limit.unwrap_or(spec.task_history_limit);
}

fn availability(argument: Availability) -> v1::Availability {
    match argument {
        Availability::Active => v1::Availability::Active,
        Availability::Pause => v1::Availability::Pause,
        Availability::Drain => v1::Availability::Drain,
    }
}

/// How often an update is tried anew when somebody else changed the object meanwhile.
pub(super) const ATTEMPTS_MAX: u32 = 5;
