//! The dialling side of Raft between managers.
//!
//! Owns: one client per member and purpose, each on a connection of its own.
//! Does not know: what entries mean, who may be a member.
//! Invariant: every call ends: by an answer, by its limit or by the loss of its connection. A
//! connection is used only when its certificate names the node that the membership says.

use std::future::Future;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use base::Id;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RPCTypes};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{RaftNetworkFactory, RaftNetworkV2};
use pki::{Expected, NodeTls};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use wire::raft_v1::{self as pb, raft_client::RaftClient};

use crate::convert::{self, ConvertError};
use crate::limits::{
    MESSAGE_BYTES_MAX, SNAPSHOT_CHUNK_BYTES, SNAPSHOT_CHUNKS_QUEUED, SNAPSHOT_LIMIT,
};
use crate::options::Timing;
use crate::raft_types::{Ballot, Peer, Types};
use crate::snapshot::{SnapshotFile, Snapshots};

type RpcError = RPCError<Types>;
type BoxFuture<'a, T> = futures::future::BoxFuture<'a, T>;
type BoxStream<'a, T> = futures::stream::BoxStream<'a, T>;
type Snapshot = openraft::alias::SnapshotOf<Types, SnapshotFile>;

/// The protocol that marks a connection as Raft's.
pub(crate) const PROTOCOL: &[u8] = b"shoal-raft";

/// Makes the clients.
#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) own: u64,
    pub(crate) tls: Arc<NodeTls>,
    pub(crate) timing: Timing,
    pub(crate) snapshots: Snapshots,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &Peer) -> Client {
        self.client(target, node)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Peer) -> Client {
        self.client(target, node)
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &Peer) -> Client {
        self.client(target, node)
    }
}

impl Network {
    fn client(&self, target: u64, node: &Peer) -> Client {
        let client = self.connect(node).map_err(|reason| {
            tracing::error!(raft.peer = target, %reason, "member cannot be dialled");
            reason
        });
        Client {
            own: self.own,
            target,
            client,
            timing: self.timing,
            snapshots: self.snapshots.clone(),
        }
    }

    fn connect(&self, node: &Peer) -> Result<RaftClient<Channel>, String> {
        let expected = Expected { node: Id::from_u128(node.node) };
        let connector = pki::connector_for(&self.tls, expected, PROTOCOL)
            .map_err(|error| base::chain(&error).to_string())?;
        let endpoint = Endpoint::from_shared(format!("http://{}", node.address))
            .map_err(|_| format!("address {:?} is not host:port", node.address))?
            .connect_timeout(self.timing.connect_timeout())
            .http2_keep_alive_interval(self.timing.keep_alive())
            .keep_alive_timeout(self.timing.keep_alive())
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES);
        let channel = endpoint.connect_with_connector_lazy(connector);
        let client = RaftClient::new(channel);
        Ok(client
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }
}

/// One connection to one member, dialled at the first call and again after each break.
pub(crate) struct Client {
    own: u64,
    target: u64,
    client: Result<RaftClient<Channel>, String>,
    timing: Timing,
    snapshots: Snapshots,
}

impl Client {
    fn client(&self) -> Result<RaftClient<Channel>, RpcError> {
        match &self.client {
            Ok(client) => Ok(client.clone()),
            Err(reason) => Err(Unreachable::from_string(reason).into()),
        }
    }

    fn route(&self) -> Option<pb::Route> {
        Some(pb::Route { from: self.own, to: self.target })
    }

    fn timed_out(&self, action: RPCTypes, timeout: Duration) -> RpcError {
        Timeout { action, id: self.own, target: self.target, timeout }.into()
    }

    async fn unary<T>(
        &self,
        action: RPCTypes,
        limit: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, RpcError> {
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(refused(&status)),
            Err(_) => Err(self.timed_out(action, limit)),
        }
    }
}

impl RaftNetworkV2<Types> for Client {
    type SnapshotData = SnapshotFile;

    /// Used for heartbeats: see [`Self::stream_append`].
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RpcError> {
        let last = rpc.entries.last().map(|entry| entry.log_id).or(rpc.prev_log_id);
        let request = convert::append_request(self.route(), rpc);
        let mut client = self.client()?;
        let call = client.heartbeat(request);
        let answer = self.unary(RPCTypes::AppendEntries, option.hard_ttl(), call).await?;
        match convert::stream_result(answer).map_err(|error| malformed(&error))? {
            Ok(stored) if stored == last => Ok(AppendEntriesResponse::Success),
            Ok(stored) => Ok(AppendEntriesResponse::PartialSuccess(stored)),
            Err(openraft::raft::StreamAppendError::Conflict(_)) => {
                Ok(AppendEntriesResponse::Conflict)
            }
            Err(openraft::raft::StreamAppendError::HigherVote(ballot)) => {
                Ok(AppendEntriesResponse::HigherVote(ballot))
            }
        }
    }

    /// Pipelined: requests go out as they come, answers come back in order.
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<Types>, RpcError>>, RpcError>>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static,
    {
        Box::pin(async move {
            let mut client = self.client()?;
            let (route, limit) = (self.route(), self.timing.append_idle());
            let requests = input.map(move |rpc| convert::append_request(route, rpc));
            let opening = tokio::time::timeout(limit, client.append(requests)).await;
            let answers = opening
                .map_err(|_| self.timed_out(RPCTypes::AppendEntries, limit))?
                .map_err(|status| refused(&status))?
                .into_inner();
            let results = answers.map(|answer| match answer {
                Ok(answer) => convert::stream_result(answer).map_err(|error| malformed(&error)),
                Err(status) => Err(refused(&status)),
            });
            // The first error ends the stream; openraft begins a new one.
            let results = results.scan(false, |ended, result| {
                let now = std::mem::replace(ended, !matches!(result, Ok(Ok(_))));
                futures::future::ready((!now).then_some(result))
            });
            Ok(results.boxed())
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RpcError> {
        let request = convert::vote_request(self.route(), rpc, false);
        let mut client = self.client()?;
        let answer = self.unary(RPCTypes::Vote, option.soft_ttl(), client.vote(request)).await?;
        convert::vote_response(answer).map_err(|error| malformed(&error))
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RpcError> {
        let request = convert::vote_request(self.route(), rpc, true);
        let mut client = self.client()?;
        let answer = self.unary(RPCTypes::Vote, option.soft_ttl(), client.vote(request)).await?;
        convert::vote_response(answer).map_err(|error| malformed(&error))
    }

    async fn full_snapshot(
        &mut self,
        vote: Ballot,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let mut client = self.client().map_err(StreamingError::from)?;
        let (sender, parts) = mpsc::channel(SNAPSHOT_CHUNKS_QUEUED);
        let head = pb::SnapshotHead {
            route: self.route(),
            ballot: Some(convert::ballot(&vote)),
            meta: crate::codec::encode_meta(&snapshot.meta),
        };
        let snapshots = self.snapshots.clone();
        let reader = tokio::task::spawn_blocking(move || {
            send_snapshot(&snapshots, &snapshot.snapshot, head, &sender)
        });
        let call = client.snapshot(ReceiverStream::new(parts));
        let answer = tokio::select! {
            biased;
            closed = cancel => return Err(closed.into()),
            answer = tokio::time::timeout(SNAPSHOT_LIMIT, call) => {
                answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("snapshot took too long")))
            }
        };
        // Whatever happened, the reader has ended or will at its next piece: its receiver is gone.
        match (answer, reader.await) {
            (Ok(answer), _) => {
                let ballot = answer.into_inner().ballot;
                let ballot = convert::required_ballot(ballot).map_err(|error| malformed(&error))?;
                Ok(SnapshotResponse::new(ballot))
            }
            (Err(_), Ok(Err(error))) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(NetworkError::<Types>::new(&error).into())
            }
            (Err(status), _) => Err(refused(&status).into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RpcError> {
        let request = pb::TransferRequest {
            route: self.route(),
            from: Some(convert::ballot(req.from_leader())),
            last: req.last_log_id().map(convert::log_id),
            target: *req.to_node_id(),
        };
        let mut client = self.client()?;
        let call = client.transfer(request);
        let answer = self.unary(RPCTypes::TransferLeader, option.hard_ttl(), call).await?;
        match answer.refused.as_str() {
            "" => Ok(Ok(())),
            reason => Err(NetworkError::from_string(reason).into()),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        let (floor, cap) = (self.timing.heartbeat(), self.timing.election_max());
        let doubling = std::iter::successors(Some(floor), move |last| Some((*last * 2).min(cap)));
        Some(Backoff::new(doubling))
    }
}

/// Reads a snapshot and queues its pieces; blocks while the queue is full.
fn send_snapshot(
    snapshots: &Snapshots,
    file: &SnapshotFile,
    head: pb::SnapshotHead,
    parts: &mpsc::Sender<pb::SnapshotPart>,
) -> std::io::Result<()> {
    use pb::snapshot_part::Part;
    let send = |part| {
        let gone = |_| std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        parts.blocking_send(pb::SnapshotPart { part: Some(part) }).map_err(gone)
    };
    let mut reader = snapshots.read(file)?;
    send(Part::Head(head))?;
    let (mut buffer, mut bytes) = (vec![0; SNAPSHOT_CHUNK_BYTES], 0);
    loop {
        match reader.read(&mut buffer)? {
            0 => return send(Part::End(pb::SnapshotEnd { bytes })),
            count => {
                bytes += count as u64;
                send(Part::Data(Bytes::copy_from_slice(&buffer[..count])))?;
            }
        }
    }
}

/// What an error means for the next attempt: wait before dialling again, or try at once.
fn refused(status: &Status) -> RpcError {
    let text = format!("{:?}: {}", status.code(), status.message());
    match status.code() {
        Code::DeadlineExceeded | Code::Aborted | Code::Cancelled => {
            NetworkError::from_string(text).into()
        }
        _ => Unreachable::from_string(text).into(),
    }
}

fn malformed(error: &ConvertError) -> RpcError {
    Unreachable::from_string(error).into()
}

/// Room for one large read on the way, so that a stream is not stalled by round trips.
const WINDOW_BYTES: u32 = 8 * 1024 * 1024;
