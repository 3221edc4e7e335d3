//! What the managers want of the node itself.
//!
//! Owns: taking it in, and remembering what the next start needs.
//! Does not know: how a role is changed or a certificate renewed; the daemon sees to that.
//! Invariant: addresses of managers are on disk before they are used.

use base::Millis;
use ports::network::Network;
use ports::runtime::Runtime;
use ports::{Clock, SessionDialer};
use types::NodeRole;
use wire::v1::{self, ManagerMessage, NodeMessage};

use super::beat::beat_period;
use super::{Agent, Connection, NodeOrders};
use crate::db::{Batch, DbError};
use crate::logs::LogUplink;

impl<R, N, C, D> Agent<R, N, C, D>
where
    R: Runtime,
    N: Network,
    C: Clock,
    D: SessionDialer<NodeMessage, ManagerMessage> + LogUplink,
{
    pub(super) fn set_heartbeat(&mut self, millis: u64) {
        let now = self.node.clock.monotonic();
        if let Connection::Up(session) = &mut self.connection
            && millis > 0
        {
            session.heartbeat = Millis(millis);
            let next = Millis(now.0 + beat_period(session.heartbeat).0);
            session.next_heartbeat = session.next_heartbeat.min(next);
        }
    }

    pub(super) fn direct(&mut self, directive: v1::Directive) -> Result<(), DbError> {
        self.set_heartbeat(directive.heartbeat_ms);
        let learned = self.choice.learn(directive.managers.clone());
        if learned || self.stored.name != directive.node_name {
            self.stored.managers = self.choice.managers().to_vec();
            self.stored.name.clone_from(&directive.node_name);
            self.hostname = directive.node_name;
            let batch = Batch { node: Some(self.stored.clone()), ..Batch::default() };
            self.db.write(&batch)?;
        }
        let role = match directive.role {
            1 => Some(NodeRole::Worker),
            2 => Some(NodeRole::Manager),
            _ => None,
        };
        let managers = self.choice.managers().to_vec();
        self.orders.send_if_modified(|orders| {
            let new = NodeOrders {
                role,
                renew_certificate: directive.renew_certificate,
                managers,
                removed: false,
                connected: true,
            };
            std::mem::replace(orders, new.clone()) != new
        });
        Ok(())
    }
}
