//! Log uploads: the lines of tasks, for who follows them.
//!
//! Owns: how many go on at a time. Does not know: how a log is read or sent.
//! Invariant: an upload ends with its session, or when it is no longer wanted.

use std::sync::Arc;

use base::Id;
use ports::network::Network;
use ports::runtime::Runtime;
use ports::{Clock, SessionDialer};
use tokio::sync::mpsc;
use wire::v1::{self, ManagerMessage, NodeMessage};

use super::{Agent, Connection};
use crate::logs::{LogUplink, read_all};

/// Log uploads at a time.
const UPLOADS_MAX: usize = 64;

impl<R, N, C, D> Agent<R, N, C, D>
where
    R: Runtime,
    N: Network,
    C: Clock,
    D: SessionDialer<NodeMessage, ManagerMessage> + LogUplink,
{
    pub(super) fn upload(&mut self, subscription: v1::LogSubscription) {
        let Connection::Up(session) = &self.connection else { return };
        let Some(id) = Id::from_bytes(&subscription.id) else { return };
        if self.uploads.len() >= UPLOADS_MAX {
            tracing::warn!("too many log uploads, one more refused");
            return;
        }
        let (node, dialer) = (Arc::clone(&self.node), Arc::clone(&self.dialer));
        let address = session.address.clone();
        let upload = self.upload_tasks.spawn(async move {
            let (tx, rx) = mpsc::channel(16);
            let read = read_all(&node.runtime, subscription, tx);
            tokio::join!(read, dialer.publish(&address, rx));
            id
        });
        self.uploads.insert(id, upload);
    }
}
