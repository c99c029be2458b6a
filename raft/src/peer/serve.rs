//! The answering side: who may ask what, and what openraft says to it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::errors::{Fatal, RaftError};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest,
    VoteRequest, VoteResponse,
};
use openraft::{Snapshot, StorageError};
use tokio::time::Instant;

use crate::NodeId;
use crate::envelope::{self, EnvelopeError, Header, kind};
use crate::frozen::{BadMembership, LogIdV1};
use crate::peer::call::answer;
use crate::peer::receive::Received;
use crate::peer::wire::{
    AddressV1, AdminV1, AppendReplyV1, AppendV1, AskPreVoteV1, AskVoteV1, ForwardTxnV1,
    ReadIndexV1, RefusalV1, Request, SnapshotPartReplyV1, SnapshotPartV1, TransferReplyV1,
    TransferV1, VoteReplyV1,
};
use crate::replica::Inner;
use crate::type_config::{LogId, TypeConfig, Vote};

type C = TypeConfig;

impl From<EnvelopeError> for RefusalV1 {
    fn from(error: EnvelopeError) -> Self {
        Self::Malformed(error.to_string())
    }
}

impl From<BadMembership> for RefusalV1 {
    fn from(error: BadMembership) -> Self {
        Self::Malformed(error.to_string())
    }
}

impl From<RaftError<C>> for RefusalV1 {
    fn from(error: RaftError<C>) -> Self {
        Self::Stopped(error.to_string())
    }
}

impl From<Fatal<C>> for RefusalV1 {
    fn from(error: Fatal<C>) -> Self {
        Self::Stopped(error.to_string())
    }
}

impl From<StorageError<C>> for RefusalV1 {
    fn from(error: StorageError<C>) -> Self {
        Self::Stopped(error.to_string())
    }
}

/// Answers one request.
pub(crate) async fn serve(inner: &Arc<Inner>, from: NodeId, request: Bytes) -> Bytes {
    match dispatch(inner, from, &request).await {
        Ok(bytes) => bytes,
        Err(refusal) => {
            tracing::debug!(peer = from, err = %refusal, "refused a peer's request");
            answer(&refusal)
        }
    }
}

async fn dispatch(inner: &Arc<Inner>, from: NodeId, frame: &[u8]) -> Result<Bytes, RefusalV1> {
    let ms = Duration::from_millis;
    match Header::parse(frame)?.kind {
        kind::APPEND => append(inner, from, open(inner, from, frame)?).await,
        kind::VOTE_REQUEST => {
            let request: AskVoteV1 = open(inner, from, frame)?;
            Ok(answer(&vote_reply(&inner.raft.vote(vote_request(request)).await?)))
        }
        kind::PRE_VOTE_REQUEST => {
            let request: AskPreVoteV1 = open(inner, from, frame)?;
            Ok(answer(&vote_reply(&inner.raft.pre_vote(vote_request(request.0)).await?)))
        }
        kind::SNAPSHOT_PART => snapshot_part(inner, open(inner, from, frame)?).await,
        kind::TRANSFER => transfer(inner, open(inner, from, frame)?).await,
        kind::FORWARD_TXN => {
            let request: ForwardTxnV1 = open(inner, from, frame)?;
            Ok(answer(&inner.serve_txn(request.txn, ms(request.deadline_ms)).await))
        }
        kind::READ_INDEX => {
            let request: ReadIndexV1 = open(inner, from, frame)?;
            Ok(answer(&inner.barriers.serve(ms(request.deadline_ms)).await))
        }
        kind::ADMIN => {
            let request: AdminV1 = open(inner, from, frame)?;
            Ok(answer(&inner.serve_admin(request).await))
        }
        other => Err(RefusalV1::Malformed(format!("kind {other} is unknown"))),
    }
}

/// The request in a frame, once its sender may send it.
fn open<R: Request>(inner: &Inner, from: NodeId, frame: &[u8]) -> Result<R, RefusalV1> {
    let (address, request): (AddressV1, R) = envelope::decode_as(R::KIND, R::VERSION, frame)?;
    let is_for_me = address.to == inner.me.id && address.to_store == inner.me.store_uuid;
    if address.from != from || !is_for_me {
        return Err(RefusalV1::WrongNode);
    }
    if inner.shared.mvcc.read().removed().contains(&from) {
        return Err(RefusalV1::Removed);
    }
    match inner.membership().get_node(&from) {
        Some(member) if member.store_uuid == address.from_store => Ok(request),
        Some(_) => Err(RefusalV1::WrongStore),
        // Raft itself must hear members this replica does not know yet: a leader that was added
        // while it was away, or the one that adds it. Terms and logs decide what they may do.
        None if matches!(
            R::KIND,
            kind::APPEND
                | kind::VOTE_REQUEST
                | kind::PRE_VOTE_REQUEST
                | kind::SNAPSHOT_PART
                | kind::TRANSFER
        ) =>
        {
            Ok(request)
        }
        None => Err(RefusalV1::NotMember),
    }
}

fn vote_request(request: AskVoteV1) -> VoteRequest<C> {
    let mut rpc = VoteRequest::new(request.vote.into(), request.last.map(LogId::from));
    rpc.leadership_transfer = request.is_transfer;
    rpc
}

fn vote_reply(response: &VoteResponse<C>) -> VoteReplyV1 {
    VoteReplyV1 {
        vote: (&response.vote).into(),
        is_granted: response.vote_granted,
        last: response.last_log_id.as_ref().map(LogIdV1::from),
    }
}

async fn append(inner: &Inner, from: NodeId, request: AppendV1) -> Result<Bytes, RefusalV1> {
    let arrived = Instant::now();
    let mut entries = Vec::with_capacity(request.entries.len());
    for entry in request.entries {
        entries.push(entry.into_entry()?);
    }
    let rpc = AppendEntriesRequest {
        vote: request.vote.into(),
        prev_log_id: request.prev.map(LogId::from),
        entries,
        leader_commit: request.commit.map(LogId::from),
    };
    let response = inner.raft.append_entries(rpc).await?;
    if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
        *inner.heard.lock() = Some((from, arrived));
    }
    Ok(answer(&match response {
        AppendEntriesResponse::Success => AppendReplyV1::Success,
        AppendEntriesResponse::PartialSuccess(upto) => {
            AppendReplyV1::PartialSuccess(upto.as_ref().map(LogIdV1::from))
        }
        AppendEntriesResponse::Conflict => AppendReplyV1::Conflict,
        AppendEntriesResponse::HigherVote(vote) => AppendReplyV1::HigherVote((&vote).into()),
    }))
}

async fn snapshot_part(inner: &Arc<Inner>, part: SnapshotPartV1) -> Result<Bytes, RefusalV1> {
    let vote = Vote::from(part.vote);
    let total = part.total;
    let mine = inner.vote();
    if mine > vote {
        return Ok(answer(&SnapshotPartReplyV1 { vote: (&mine).into(), next: 0 }));
    }
    let mut incoming = inner.incoming.clone().lock_owned().await;
    let snapshots = inner.snapshots.clone();
    let work = tokio::task::spawn_blocking(move || incoming.part(&snapshots, &part));
    let received = work
        .await
        .map_err(std::io::Error::other)
        .and_then(|received| received)
        .map_err(|e| RefusalV1::Malformed(e.to_string()))?;
    let reply = match received {
        Received::Next(next) => SnapshotPartReplyV1 { vote: (&vote).into(), next },
        Received::Whole(snapshot) => {
            let meta = snapshot.meta.snapshot_meta()?;
            let snapshot = Snapshot { meta, snapshot: *snapshot };
            let response = inner.raft.install_full_snapshot(vote, snapshot).await?;
            SnapshotPartReplyV1 { vote: (&response.vote).into(), next: total }
        }
    };
    Ok(answer(&reply))
}

async fn transfer(inner: &Inner, request: TransferV1) -> Result<Bytes, RefusalV1> {
    let rpc =
        TransferLeaderRequest::new(request.from.into(), request.to, request.last.map(LogId::from));
    Ok(answer(&match inner.raft.handle_transfer_leader(rpc).await? {
        Ok(()) => TransferReplyV1::Taken,
        Err(TransferLeaderError::VoteChanged { expected, actual }) => {
            TransferReplyV1::VoteChanged { expected: (&expected).into(), actual: (&actual).into() }
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
            TransferReplyV1::LogNotFlushed {
                expected: expected.as_ref().map(LogIdV1::from),
                actual: actual.as_ref().map(LogIdV1::from),
            }
        }
    }))
}
