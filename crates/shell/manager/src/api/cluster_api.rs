//! The cluster's settings and join tokens.
//!
//! Owns: reading and changing them. Invariant: the CA's key never leaves the managers.

use std::str::FromStr;

use pki::{JoinToken, TokenSecret};
use ports::Clock;
use ports::store::Store;
use state::{Change, Snapshot};
use types::{Cluster, ErrorCode, Fault, NodeRole};
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
        ula_prefix: cluster.ula_prefix.map_or_else(String::new, |net| net.to_string()),
    }
}
