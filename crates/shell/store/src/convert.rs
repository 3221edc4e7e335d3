//! Raft's messages between openraft's types and the wire's.
//!
//! Owns: the conversions both ways. Does not know: connections.
//! Invariant: a missing part is refused by name, never replaced by a default.

use bytes::Bytes;
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, VoteRequest, VoteResponse,
};
use wire::raft_v1 as pb;

use crate::codec::{self, CodecError};
use crate::raft_types::{Ballot, Leader, LogId, Types};

/// The message is not one that this version can take.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConvertError {
    #[error("raft message lacks {0}")]
    Missing(&'static str),
    #[error("raft message has an entry that cannot be read")]
    Entry(#[from] CodecError),
}

pub(crate) fn log_id(id: &LogId) -> pb::LogId {
    pb::LogId { term: id.leader_id.term, leader: id.leader_id.node_id, index: id.index }
}

pub(crate) fn ballot(ballot: &Ballot) -> pb::Ballot {
    let Leader { term, node_id } = ballot.leader_id;
    pb::Ballot { term, leader: node_id, committed: ballot.committed }
}

pub(crate) fn to_log_id(id: pb::LogId) -> LogId {
    LogId { leader_id: Leader { term: id.term, node_id: id.leader }, index: id.index }
}

pub(crate) fn required_ballot(ballot: Option<pb::Ballot>) -> Result<Ballot, ConvertError> {
    let ballot = ballot.ok_or(ConvertError::Missing("ballot"))?;
    let leader_id = Leader { term: ballot.term, node_id: ballot.leader };
    Ok(Ballot { leader_id, committed: ballot.committed })
}

pub(crate) fn append_request(
    route: Option<pb::Route>,
    rpc: AppendEntriesRequest<Types>,
) -> pb::AppendRequest {
    pb::AppendRequest {
        route,
        ballot: Some(ballot(&rpc.vote)),
        previous: rpc.prev_log_id.as_ref().map(log_id),
        entries: rpc.entries.iter().map(codec::encode_entry).collect(),
        committed: rpc.leader_commit.as_ref().map(log_id),
    }
}

pub(crate) fn to_append_request(
    message: pb::AppendRequest,
) -> Result<AppendEntriesRequest<Types>, ConvertError> {
    let entries: Result<Vec<_>, CodecError> = message
        .entries
        .into_iter()
        // A copy of its own: a slice would keep the whole received message in memory.
        .map(|entry| codec::decode_entry(Bytes::copy_from_slice(&entry)))
        .collect();
    Ok(AppendEntriesRequest {
        vote: required_ballot(message.ballot)?,
        prev_log_id: message.previous.map(to_log_id),
        entries: entries?,
        leader_commit: message.committed.map(to_log_id),
    })
}

pub(crate) fn append_response(result: StreamAppendResult<Types>) -> pb::AppendResponse {
    use pb::append_response::Outcome;
    let outcome = match result {
        Ok(last) => Outcome::Stored(pb::Stored { last: last.as_ref().map(log_id) }),
        Err(StreamAppendError::Conflict(id)) => Outcome::Conflict(log_id(&id)),
        Err(StreamAppendError::HigherVote(higher)) => Outcome::Higher(ballot(&higher)),
    };
    pb::AppendResponse { outcome: Some(outcome) }
}

pub(crate) fn stream_result(
    message: pb::AppendResponse,
) -> Result<StreamAppendResult<Types>, ConvertError> {
    use pb::append_response::Outcome;
    match message.outcome.ok_or(ConvertError::Missing("outcome"))? {
        Outcome::Stored(stored) => Ok(Ok(stored.last.map(to_log_id))),
        Outcome::Conflict(id) => Ok(Err(StreamAppendError::Conflict(to_log_id(id)))),
        Outcome::Higher(higher) => {
            Ok(Err(StreamAppendError::HigherVote(required_ballot(Some(higher))?)))
        }
    }
}

pub(crate) fn vote_request(
    route: Option<pb::Route>,
    rpc: VoteRequest<Types>,
    pre: bool,
) -> pb::VoteRequest {
    pb::VoteRequest {
        route,
        ballot: Some(ballot(&rpc.vote)),
        last: rpc.last_log_id.as_ref().map(log_id),
        pre,
        transfer: rpc.leadership_transfer,
    }
}

pub(crate) fn to_vote_request(
    message: &pb::VoteRequest,
) -> Result<VoteRequest<Types>, ConvertError> {
    let ballot = required_ballot(message.ballot)?;
    let mut request = VoteRequest::new(ballot, message.last.map(to_log_id));
    request.leadership_transfer = message.transfer;
    Ok(request)
}

pub(crate) fn to_vote_message(response: &VoteResponse<Types>) -> pb::VoteResponse {
    pb::VoteResponse {
        ballot: Some(ballot(&response.vote)),
        granted: response.vote_granted,
        last: response.last_log_id.as_ref().map(log_id),
    }
}

pub(crate) fn vote_response(
    message: pb::VoteResponse,
) -> Result<VoteResponse<Types>, ConvertError> {
    let ballot = required_ballot(message.ballot)?;
    Ok(VoteResponse::new(ballot, message.last.map(to_log_id), message.granted))
}
