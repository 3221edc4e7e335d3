//! What this node tells Prometheus.
//!
//! Owns: gathering the facts when they are asked for, and the port's place in the daemon's life.
//! Does not know: names of metrics, HTTP. Invariant: nothing is gathered that nobody asks for, and
//! a membership that waits for others keeps no scrape waiting.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use metrics::{
    BuildFacts, EncryptionFacts, Facts, ManagerFacts, MemberFacts, PeerFacts, Server, TunnelFacts,
    Unavailable,
};
use ports::store::Store;

use crate::config::Config;
use crate::manager_part::Api;
use crate::node::{Node, Standing};

/// Listens where metrics are wanted, and notes the port that was given.
pub(crate) async fn bind(config: &mut Config) -> Result<Option<Server>> {
    let Some(wanted) = config.metrics_addr else { return Ok(None) };
    let server = Server::bind(wanted)
        .await
        .with_context(|| format!("--metrics-addr {wanted}: cannot listen"))?;
    tracing::info!(address = %server.address(), "metrics are served");
    config.metrics_addr = Some(server.address());
    Ok(Some(server))
}

impl Node {
    /// Answers until it is aborted.
    pub(crate) async fn serve_metrics(self: Arc<Self>, server: Server) {
        let gather = move || {
            let node = Arc::clone(&self);
            async move { node.metrics().await }
        };
        server.run(gather, std::future::pending()).await;
    }

    async fn metrics(&self) -> Result<Facts, Unavailable> {
        let member = self.facts_now().and_then(|facts| {
            let (cluster, node) = (facts.cluster?, facts.node?);
            Some(MemberFacts { cluster, node, manager: facts.manager })
        });
        let manager = match self.standing().await {
            Standing::Manager(api) => Some(of_manager(*api).await?),
            Standing::None | Standing::Worker | Standing::Starting => None,
        };
        let build = BuildFacts { version: crate::BUILD.version, commit: crate::BUILD.commit };
        Ok(Facts { build, member, manager, encryption: self.encryption().await })
    }

    /// `None`: the data path is busy, and nothing is known of it just now.
    async fn encryption(&self) -> Option<EncryptionFacts> {
        let status = self.network().path().encryption_status();
        match tokio::time::timeout(ENCRYPTION_LIMIT, status).await {
            Ok(Ok(status)) => Some(of_encryption(status)),
            Ok(Err(error)) => {
                tracing::warn!(error = %base::chain(&error), "metrics of encrypted networks");
                None
            }
            Err(_) => None,
        }
    }
}

/// Of this manager's own copy of the state, in a thread that may take its time.
async fn of_manager(api: Api) -> Result<ManagerFacts, Unavailable> {
    let counted = tokio::task::spawn_blocking(move || {
        let view = api.store().snapshot();
        let mut facts = ManagerFacts {
            leader: api.store().leadership().borrow().is_leader,
            services: view.service_count() as u64,
            networks: view.network_count() as u64,
            ..ManagerFacts::default()
        };
        for node in view.nodes() {
            *facts.nodes.entry(node.status.state).or_default() += 1;
        }
        for task in view.tasks() {
            *facts.tasks.entry(task.status.state).or_default() += 1;
        }
        facts
    });
    counted.await.map_err(|error| Unavailable(error.to_string()))
}

fn of_encryption(status: network::EncryptionStatus) -> EncryptionFacts {
    let now = SystemTime::now();
    let peer = |peer: network::PeerStatus| PeerFacts {
        node: peer.node,
        hostname: peer.name,
        in_use: peer.used,
        last_handshake: peer.seen.handshake_age.and_then(|age| now.checked_sub(age)),
        sent_bytes: peer.seen.sent_bytes,
        received_bytes: peer.seen.received_bytes,
        drops: peer.seen.drops,
    };
    let tunnel = |tunnel: network::TunnelStatus| TunnelFacts {
        generation: tunnel.generation,
        works: tunnel.works,
        peers: tunnel.peers.into_iter().map(peer).collect(),
        drops: tunnel.drops,
    };
    EncryptionFacts {
        backend: status.backend,
        generation: (status.sends_with != 0).then_some(status.sends_with),
        tunnels: status.tunnels.into_iter().map(tunnel).collect(),
        clear_received: status.clear_in,
        clear_sent: status.clear_out,
        strange: status.strange,
    }
}

/// Less than a scrape has.
const ENCRYPTION_LIMIT: Duration = Duration::from_secs(3);
