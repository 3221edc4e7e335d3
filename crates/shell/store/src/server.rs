//! The listening side of Raft between managers.
//!
//! Owns: the checks of who calls, and the handing of calls to openraft.
//! Does not know: what entries mean.
//! Invariant: nothing reaches openraft that does not come from a manager of this cluster, for
//! this raft number, from the node that the membership names.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::TransferLeaderRequest;
use openraft::{Instant as _, Raft, RaftMetrics, ServerState};
use pki::{Identity, Roles};
use tonic::{Request, Response, Status, Streaming};
use wire::raft_v1::{self as pb, raft_server};

use crate::codec;
use crate::convert::{self, ConvertError};
use crate::disk::is_full;
use crate::limits::SNAPSHOT_IDLE;
use crate::machine::Machine;
use crate::raft_types::{Ballot, SnapshotMeta, Types};
use crate::snapshot::{SnapshotFile, SnapshotWriter, Snapshots};
use crate::state_machine::StateMachine;

type Snapshot = openraft::alias::SnapshotOf<Types, SnapshotFile>;

/// The service that other managers call.
pub(crate) struct Server<M: Machine> {
    pub(crate) own: u64,
    pub(crate) raft: Raft<Types, StateMachine<M>>,
    pub(crate) snapshots: Snapshots,
    /// Tells concurrent receptions apart.
    pub(crate) receptions: AtomicU64,
    /// When a member last called that leads, or seeks to.
    pub(crate) heard: Arc<Mutex<Option<Instant>>>,
    pub(crate) lease: Duration,
}

impl<M: Machine> Server<M> {
    /// The caller must be a manager, must mean this member, and must be the node that the
    /// membership has under its number. Somebody the membership does not have is let in only
    /// while no member leads: it may be a leader added while this member was away. To a cluster
    /// that is well, a manager that was removed can say nothing.
    fn check(&self, caller: &Identity, route: Option<pb::Route>) -> Result<(), Status> {
        let route = route.ok_or_else(|| Status::invalid_argument("raft message lacks route"))?;
        if route.to != self.own {
            return Err(Status::failed_precondition(format!(
                "this manager has raft number {:x}, the message is for {:x}",
                self.own, route.to
            )));
        }
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        match metrics.membership_config.membership().get_node(&route.from) {
            Some(peer) if peer.node == caller.node.as_u128() => {
                *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                Ok(())
            }
            None if !self.is_led(&metrics) => Ok(()),
            _ => Err(Status::permission_denied(format!(
                "node {} is not the member with raft number {:x}",
                caller.node, route.from
            ))),
        }
    }

    fn is_led(&self, metrics: &RaftMetrics<Types>) -> bool {
        let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let alone = metrics.membership_config.voter_ids().count() == 1;
        heard.is_some_and(|at| at.elapsed() < self.lease)
            || metrics.last_quorum_acked.is_some_and(|at| at.elapsed() < self.lease)
            || alone && metrics.state == ServerState::Leader
    }

    async fn receive(
        &self,
        meta: &SnapshotMeta,
        parts: &mut Streaming<pb::SnapshotPart>,
    ) -> Result<SnapshotFile, Status> {
        use pb::snapshot_part::Part;
        let number = self.receptions.fetch_add(1, Ordering::Relaxed);
        let (snapshots, head) = (self.snapshots.clone(), meta.clone());
        let mut writer =
            blocking(move || snapshots.create(&format!("receive-{number}"), &head)).await?;
        loop {
            match next_part(parts).await? {
                Part::Data(bytes) => {
                    writer = blocking(move || {
                        writer.write(&bytes)?;
                        Ok(writer)
                    })
                    .await?;
                }
                Part::End(end) if end.bytes == writer.bytes() => {
                    return blocking(move || SnapshotWriter::finish(writer)).await;
                }
                Part::End(_) | Part::Head(_) => {
                    return Err(Status::invalid_argument("snapshot has a piece too few or many"));
                }
            }
        }
    }
}

#[tonic::async_trait]
impl<M: Machine> raft_server::Raft for Server<M> {
    type AppendStream = Pin<Box<dyn Stream<Item = Result<pb::AppendResponse, Status>> + Send>>;

    async fn append(
        &self,
        request: Request<Streaming<pb::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let caller = manager(&request)?.clone();
        let mut messages = request.into_inner();
        // The first message is looked at here, so that a stranger gets a plain refusal.
        let first = messages.message().await?;
        let first = first.ok_or_else(|| Status::invalid_argument("no raft message"))?;
        self.check(&caller, first.route)?;
        let route = first.route;
        let all = futures::stream::once(futures::future::ready(Ok(first))).chain(messages);
        // Input ends at the first message that cannot be taken; the leader begins a new stream.
        let requests = all.scan((), move |(), message| {
            let message = message.ok().filter(|message| message.route == route);
            let taken = message.map(convert::to_append_request).transpose();
            futures::future::ready(taken.unwrap_or_else(|error| {
                tracing::error!(error = %base::chain(&error), "append refused");
                None
            }))
        });
        let results = self.raft.stream_append(requests).map(|result| match result {
            Ok(result) => Ok(convert::append_response(result)),
            Err(fatal) => Err(Status::unavailable(fatal.to_string())),
        });
        Ok(Response::new(Box::pin(results)))
    }

    async fn heartbeat(
        &self,
        request: Request<pb::AppendRequest>,
    ) -> Result<Response<pb::AppendResponse>, Status> {
        let caller = manager(&request)?;
        self.check(caller, request.get_ref().route)?;
        let request = convert::to_append_request(request.into_inner()).map_err(malformed)?;
        let (previous, last) =
            (request.prev_log_id, request.entries.last().map(|entry| entry.log_id));
        let answer = self.raft.append_entries(request).await;
        let answer = answer.map_err(|error| Status::unavailable(error.to_string()))?;
        let result = answer.into_stream_result(previous, last.or(previous));
        Ok(Response::new(convert::append_response(result)))
    }

    async fn vote(
        &self,
        request: Request<pb::VoteRequest>,
    ) -> Result<Response<pb::VoteResponse>, Status> {
        let caller = manager(&request)?;
        let message = request.get_ref();
        self.check(caller, message.route)?;
        let vote = convert::to_vote_request(message).map_err(malformed)?;
        let answer =
            if message.pre { self.raft.pre_vote(vote).await } else { self.raft.vote(vote).await };
        let answer = answer.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(convert::to_vote_message(&answer)))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<pb::SnapshotPart>>,
    ) -> Result<Response<pb::SnapshotResponse>, Status> {
        use pb::snapshot_part::Part;
        let caller = manager(&request)?.clone();
        let mut parts = request.into_inner();
        let Part::Head(head) = next_part(&mut parts).await? else {
            return Err(Status::invalid_argument("snapshot lacks its head"));
        };
        self.check(&caller, head.route)?;
        let ballot: Ballot = convert::required_ballot(head.ballot).map_err(malformed)?;
        let meta = codec::decode_meta(head.meta).map_err(|error| malformed(error.into()))?;
        let snapshot = self.receive(&meta, &mut parts).await?;
        let answer = self.raft.install_full_snapshot(ballot, Snapshot { meta, snapshot }).await;
        let answer = answer.map_err(|fatal| Status::unavailable(fatal.to_string()))?;
        Ok(Response::new(pb::SnapshotResponse { ballot: Some(convert::ballot(&answer.vote)) }))
    }

    async fn transfer(
        &self,
        request: Request<pb::TransferRequest>,
    ) -> Result<Response<pb::TransferResponse>, Status> {
        let caller = manager(&request)?;
        let message = *request.get_ref();
        self.check(caller, message.route)?;
        let from = convert::required_ballot(message.from).map_err(malformed)?;
        let last = message.last.map(convert::to_log_id);
        let transfer = TransferLeaderRequest::new(from, message.target, last);
        let answer = self.raft.handle_transfer_leader(transfer).await;
        let answer = answer.map_err(|fatal| Status::unavailable(fatal.to_string()))?;
        let refused = answer.err().map_or_else(String::new, |error| error.to_string());
        Ok(Response::new(pb::TransferResponse { refused }))
    }
}

fn manager<T>(request: &Request<T>) -> Result<&Identity, Status> {
    pki::require(request, Roles::Manager, pki::wall_now())
}

async fn next_part(
    parts: &mut Streaming<pb::SnapshotPart>,
) -> Result<pb::snapshot_part::Part, Status> {
    let next = tokio::time::timeout(SNAPSHOT_IDLE, parts.message()).await;
    let next = next.map_err(|_| Status::deadline_exceeded("snapshot makes no progress"))??;
    let part = next.and_then(|message| message.part);
    part.ok_or_else(|| Status::invalid_argument("snapshot ends before its end"))
}

/// File work, off the raft thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    match done.map_err(|_| Status::internal("snapshot could not be written"))? {
        Ok(value) => Ok(value),
        Err(error) if is_full(&error) => {
            Err(Status::resource_exhausted(format!("no room for a snapshot: {error}")))
        }
        Err(error) => Err(Status::internal(format!("snapshot could not be written: {error}"))),
    }
}

fn malformed(error: ConvertError) -> Status {
    Status::invalid_argument(base::chain(&error).to_string())
}
