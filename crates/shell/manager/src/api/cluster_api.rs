//! The cluster's settings and join tokens.
//!
//! Owns: reading and changing them. Invariant: the CA's key never leaves the managers.

use std::str::FromStr;

use dispatch::{KeyLag, KeyProgress};
use pki::{JoinToken, TokenSecret};
use ports::Clock;
use ports::store::Store;
use state::{Change, Snapshot};
use types::{Cluster, ErrorCode, Fault, NodeId, NodeRole};
use wire::v1;

use super::ControlApi;

impl<S: Store, C: Clock> ControlApi<S, C> {
    pub(super) async fn get_cluster(
        &self,
        _: v1::GetClusterRequest,
    ) -> Result<v1::ClusterView, Fault> {
        let (view, _) = self.read().await?;
        Ok(cluster_view(cluster(&view)?))
    }

    pub(super) async fn update_cluster(
        &self,
        request: v1::UpdateClusterRequest,
    ) -> Result<v1::ClusterView, Fault> {
        let spec = request.spec.ok_or_else(|| Fault::invalid("spec", "is missing"))?;
        let spec: types::ClusterSpec = spec.into();
        types::check_cluster_spec(&spec)?;
        let change = Change::UpdateCluster { expect: request.spec_version, spec: Box::new(spec) };
        let pools = request.add_address_pools;
        let further = (!pools.is_empty()).then_some(Change::AddAddressPools(pools));
        self.write(std::iter::once(change).chain(further).collect()).await?;
        Ok(cluster_view(cluster(&self.store.snapshot())?))
    }

    pub(super) async fn get_join_tokens(
        &self,
        _: v1::GetJoinTokensRequest,
    ) -> Result<v1::JoinTokens, Fault> {
        let (view, _) = self.read().await?;
        self.tokens(&view)
    }

    pub(super) async fn rotate_join_token(
        &self,
        request: v1::RotateJoinTokenRequest,
    ) -> Result<v1::JoinTokens, Fault> {
        let view = self.store.snapshot();
        let known = cluster(&view)?;
        let fresh = |text: &str| -> Result<String, Fault> {
            let internal =
                |error: pki::TokenError| Fault::new(ErrorCode::Internal, error.to_string());
            let token = JoinToken::from_str(text).map_err(internal)?;
            let secret = TokenSecret::mint().map_err(internal)?;
            Ok(JoinToken { secret, ..token }.text().to_string())
        };
        let (mut worker, mut manager) = (known.worker_token.clone(), known.manager_token.clone());
        match request.role {
            role if role == NodeRole::Worker as i32 => worker = fresh(&worker)?,
            role if role == NodeRole::Manager as i32 => manager = fresh(&manager)?,
            role => return Err(Fault::invalid("role", format!("unknown role {role}"))),
        }
        self.write(vec![Change::SetJoinTokens { worker, manager }]).await?;
        self.tokens(&self.store.snapshot())
    }

    /// The next change waits for the last one, because only two generations have ports.
    pub(super) async fn rotate_network_key(
        &self,
        _: v1::RotateNetworkKeyRequest,
    ) -> Result<v1::NetworkKeyProgress, Fault> {
        let (view, _) = self.read().await?;
        let expect = cluster(&view)?.network_key_generation;
        let progress = dispatch::key_progress(&view);
        if !progress.lags.is_empty() {
            return Err(still_changing(&view, &progress));
        }
        self.write(vec![Change::RotateNetworkKey { expect }]).await?;
        Ok(shown_progress(&self.store.snapshot()))
    }

    pub(super) async fn get_network_key_progress(
        &self,
        _: v1::GetNetworkKeyProgressRequest,
    ) -> Result<v1::NetworkKeyProgress, Fault> {
        let (view, _) = self.read().await?;
        Ok(shown_progress(&view))
    }

    fn tokens(&self, view: &Snapshot) -> Result<v1::JoinTokens, Fault> {
        let cluster = cluster(view)?;
        let addresses = crate::dispatcher_addresses(view);
        let leader = self.store.leadership().borrow().leader.clone().map(|(_, address)| address);
        Ok(v1::JoinTokens {
            worker: cluster.worker_token.clone(),
            manager: cluster.manager_token.clone(),
            address: leader.or_else(|| addresses.into_iter().next()).unwrap_or_default(),
        })
    }
}

pub(crate) fn cluster(view: &Snapshot) -> Result<&Cluster, Fault> {
    let missing = || Fault::new(ErrorCode::Unavailable, "the cluster's state is not loaded yet");
    view.cluster().map(|cluster| &**cluster).ok_or_else(missing)
}

fn still_changing(view: &Snapshot, progress: &KeyProgress) -> Fault {
    let name = |lag: &KeyLag| format!("{} waits for {}", hostname(view, lag.node), lag.waits_for);
    let mut texts: Vec<String> = progress.lags.iter().take(LAGS_NAMED_MAX).map(name).collect();
    if let more @ 1.. = progress.lags.len() - texts.len() {
        texts.push(format!("and {more} more"));
    }
    let message = format!(
        "the keys of encrypted networks are being changed already (generation {}): {}",
        progress.generation,
        texts.join(", ")
    );
    Fault::new(ErrorCode::FailedPrecondition, message).hint(
        "try again when these nodes are done; one that is broken is not waited for once it is down",
    )
}

fn shown_progress(view: &Snapshot) -> v1::NetworkKeyProgress {
    let progress = dispatch::key_progress(view);
    let lag = |lag: &KeyLag| v1::NetworkKeyLag {
        node: wire::bytes_of(lag.node.0),
        name: hostname(view, lag.node),
        waits_for: lag.waits_for.to_owned(),
    };
    v1::NetworkKeyProgress {
        generation: progress.generation,
        live: u32::try_from(progress.live).unwrap_or(u32::MAX),
        away: u32::try_from(progress.away).unwrap_or(u32::MAX),
        lags: progress.lags.iter().map(lag).collect(),
    }
}

fn hostname(view: &Snapshot, id: NodeId) -> String {
    view.node(id).map_or_else(|| id.to_string(), |node| node.hostname().to_owned())
}

/// Nodes that a refusal names.
const LAGS_NAMED_MAX: usize = 4;

fn cluster_view(cluster: &Cluster) -> v1::ClusterView {
    v1::ClusterView {
        id: wire::bytes_of(cluster.id.0),
        meta: Some(cluster.meta.into()),
        spec: Some((&cluster.spec).into()),
        ca_certificate: cluster.ca_certificate.clone(),
        format_level: cluster.format_level,
        data_path_port: cluster.data_path_port,
        address_pools: cluster.address_pools.clone(),
        address_pool_mask: cluster.address_pool_mask,
        encryption_ports: cluster.encryption_ports.map(u32::from).to_vec(),
        network_key_generation: cluster.network_key_generation,
        ula_prefix: cluster.ula_prefix.map_or_else(String::new, |net| net.to_string()),
    }
}
