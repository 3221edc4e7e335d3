//! `network check`: every node is asked for its paths, and what they say is judged.
//!
//! Owns: whom is asked, how many at a time, how long each may take.
//! Does not know: how a node looks at a path; the words for what is wrong.
//! Invariant: it ends: every node has a deadline, and one that is away is said to be.

use std::collections::BTreeMap;
use std::sync::Arc;

use dispatch::{Answer, PathVerdict, data_path_address, is_down, judge_paths, members};
use futures::StreamExt;
use ports::Clock;
use ports::store::Store;
use state::Snapshot;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use types::{Fault, Network, NetworkDriver, NodeId};
use wire::v1::{self, check_networks_item::Item};

use super::{CheckStream, ControlApi, find};
use crate::options::{CHECK_LIMIT, CHECKS_AT_A_TIME};

/// Items waiting for the reader.
const ITEMS_MAX: usize = 256;

type Sender = mpsc::Sender<Result<v1::CheckNetworksItem, Status>>;

/// The reader has gone away.
struct Gone;

impl<S: Store, C: Clock> ControlApi<S, C> {
    pub(super) fn check_networks(
        &self,
        request: v1::CheckNetworksRequest,
    ) -> Result<CheckStream, Fault> {
        let view = self.store.snapshot();
        let networks: Vec<Arc<Network>> = match request.refs.is_empty() {
            true => view.networks().filter(|network| is_checked(network)).cloned().collect(),
            false => {
                let found = request.refs.iter().map(|name| find::network(&view, name).cloned());
                found.collect::<Result<_, _>>()?
            }
        };
        if let Some(network) = networks.iter().find(|one| one.spec.driver.is_of_nodes()) {
            let (name, driver) = (&network.spec.name, network.spec.driver.name());
            let message = format!("network {name} ({driver}) has no paths between nodes");
            return Err(Fault::invalid("network", message).hint("name an overlay network"));
        }
        let (tx, rx) = mpsc::channel(ITEMS_MAX);
        let (api, only_bad) = (self.clone(), request.only_bad);
        tokio::spawn(async move {
            // Nobody is left to be told when the reader has gone away.
            let _ = api.check_all(&view, &networks, only_bad, &tx).await;
        });
        Ok(Box::pin(ReceiverStream::new(rx)))
    }

    async fn check_all(
        &self,
        view: &Snapshot,
        networks: &[Arc<Network>],
        only_bad: bool,
        tx: &Sender,
    ) -> Result<(), Gone> {
        let asked: Vec<(usize, NodeId)> = networks
            .iter()
            .enumerate()
            .flat_map(|(nth, network)| members(view, network).into_iter().map(move |id| (nth, id)))
            .filter(|(_, node)| !is_down(view, *node))
            .collect();
        let mut progress = v1::CheckProgress { asked: asked.len() as u32, answered: 0 };
        send(tx, Item::Progress(progress)).await?;
        let mut answers: Vec<BTreeMap<NodeId, Answer>> = vec![BTreeMap::new(); networks.len()];
        let questions = asked.into_iter().map(|(nth, node)| async move {
            let answer = self.dispatcher.check(self.mint(), node, networks[nth].id);
            let answer = match tokio::time::timeout(CHECK_LIMIT.as_duration(), answer).await {
                Ok(answer) => answer,
                Err(_) => Err(format!("it did not answer within {} s", CHECK_LIMIT.0 / 1_000)),
            };
            (nth, node, answer)
        });
        let mut questions = futures::stream::iter(questions).buffer_unordered(CHECKS_AT_A_TIME);
        while let Some((nth, node, answer)) = questions.next().await {
            answers[nth].insert(node, answer);
            progress.answered += 1;
            send(tx, Item::Progress(progress)).await?;
        }
        for (network, answers) in networks.iter().zip(&answers) {
            for verdict in judge_paths(view, network, answers) {
                if !only_bad || !verdict.problem.is_empty() {
                    send(tx, Item::Path(checked_path(view, network, verdict))).await?;
                }
            }
        }
        Ok(())
    }
}

/// Only overlays have paths between nodes; one that is not allocated yet has none either.
fn is_checked(network: &Network) -> bool {
    network.spec.driver == NetworkDriver::Overlay && network.is_allocated()
}

async fn send(tx: &Sender, item: Item) -> Result<(), Gone> {
    tx.send(Ok(v1::CheckNetworksItem { item: Some(item) })).await.map_err(|_| Gone)
}

fn checked_path(view: &Snapshot, network: &Network, verdict: PathVerdict) -> v1::CheckedPath {
    let name = |id: NodeId| {
        view.node(id).map_or_else(|| id.to_string(), |node| node.hostname().to_owned())
    };
    let address = verdict.peer.and_then(|peer| data_path_address(view, peer));
    let found = verdict.found.as_ref();
    v1::CheckedPath {
        network: network.spec.name.clone(),
        node: name(verdict.node),
        peer: verdict.peer.map(name).unwrap_or_default(),
        address: address.map(|address| address.to_string()).unwrap_or_default(),
        loss_percent: found.map_or(0, |path| path.loss_percent()),
        round_trip_us: found.map_or(0, |path| path.round_trip_us),
        mtu: found.map_or(0, |path| path.passes),
        mtu_wanted: found.map_or(0, |path| path.wanted),
        problem: verdict.problem,
        tunnel: found.and_then(|path| path.tunnel.as_ref()).map(Into::into),
    }
}
