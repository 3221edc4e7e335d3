//! What is refused before a membership changes.
//!
//! Owns: docker's words for it. Does not know: how a membership is changed.
//! Invariant: nothing here changes anything.

use types::{ErrorCode, Fault};

use super::{Active, Member};
use crate::{address, udp_ports};

const CLUSTER_EXISTS: &str = "This node is already part of a swarm. Use \"shoal swarm leave\" to \
                              leave this swarm and join another one.";

pub(super) fn check_free(active: &Active) -> Result<(), Fault> {
    match active.member.is_some() || active.error.is_some() {
        true => Err(Fault::new(ErrorCode::FailedPrecondition, CLUSTER_EXISTS)),
        false => Ok(()),
    }
}

/// Before a cluster takes this node in: its UDP ports, that of the data path first.
pub(super) async fn check_joined_ports(ports: &[u16]) -> Result<(), Fault> {
    match ports {
        [path, encryption @ ..] => {
            let ports = udp_ports::of_cluster(*path, encryption);
            udp_ports::check_free(&ports, udp_ports::PATIENCE).await
        }
        [] => Ok(()),
    }
}

pub(super) fn check_leave(member: &Member, force: bool) -> Result<(), Fault> {
    let (Some(manager), false) = (&member.manager, force) else { return Ok(()) };
    let voters = manager.store.raft().members().iter().filter(|member| member.voter).count();
    let rest = match voters {
        0 | 1 => "Removing the last manager erases all current state of the swarm. Use `--force` \
                  to ignore this message. "
            .to_owned(),
        all => format!(
            "Removing this node leaves {} managers out of {all}. Without a Raft quorum your swarm \
             will be inaccessible. The only way to restore a swarm that has lost consensus is to \
             reinitialize it with `--force-new-cluster`. Use `--force` to suppress this message.",
            all - 1
        ),
    };
    let message = format!(
        "You are attempting to leave the swarm on a node that is participating as a manager. {rest}"
    );
    Err(Fault::new(ErrorCode::FailedPrecondition, message))
}

pub(super) fn with_ports(remotes: &[String]) -> Result<Vec<String>, Fault> {
    let one = |remote: &String| match remote.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(remote.clone()),
        None if !remote.is_empty() => Ok(format!("{remote}:{}", address::PORT)),
        _ => Err(Fault::invalid("HOST:PORT", format!("`{remote}` is not an address of a manager"))),
    };
    match remotes.is_empty() {
        true => Err(Fault::invalid("HOST:PORT", "the address of a manager is missing")),
        false => remotes.iter().map(one).collect(),
    }
}
