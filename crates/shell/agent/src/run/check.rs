//! Looks at networks that a manager asks for.
//!
//! Owns: how many go on at a time, and the answers. Does not know: what is looked at.
//! Invariant: every question is answered while its session lasts; its answers end with it.

use std::sync::Arc;

use base::chain;
use bytes::Bytes;
use ports::network::Network;
use ports::runtime::{Runtime, RuntimeError};
use ports::{Clock, SessionDialer};
use tokio::task::JoinSet;
use types::{NetworkCheck, NetworkId};
use wire::v1::node_message::Message as Out;
use wire::v1::{self, ManagerMessage, NodeMessage};

use super::Agent;
use crate::logs::LogUplink;

/// Looks at a time; each sends some thousand packets a second for a few seconds.
const CHECKS_MAX: usize = 4;

/// The question's id, and what was found.
pub(super) type Checked = (Bytes, Result<NetworkCheck, RuntimeError>);

/// Those that go on.
pub(super) type Checks = JoinSet<Checked>;

impl<R, N, C, D> Agent<R, N, C, D>
where
    R: Runtime,
    N: Network,
    C: Clock,
    D: SessionDialer<NodeMessage, ManagerMessage> + LogUplink,
{
    pub(super) fn check(&mut self, question: v1::CheckNetwork) {
        let v1::CheckNetwork { id, network } = question;
        let problem = match wire::id::<NetworkId>(&network, "network") {
            Ok(network) if self.checks.len() < CHECKS_MAX => {
                let node = Arc::clone(&self.node);
                self.checks.spawn(async move { (id, node.network.examine(network).await) });
                return;
            }
            Ok(_) => "too many checks at a time on this node".to_owned(),
            Err(fault) => fault.to_string(),
        };
        self.send(Out::Checked(v1::NetworkChecked { id, check: None, problem }));
    }

    pub(super) fn checked(&mut self, (id, found): Checked) {
        let (check, problem) = match found {
            Ok(check) => (Some((&check).into()), String::new()),
            Err(error) => (None, chain(&error).to_string()),
        };
        self.send(Out::Checked(v1::NetworkChecked { id, check, problem }));
    }
}
