//! openraft's view of the other members.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, Snapshot};
use tokio::time::Instant;

use crate::frozen::{LogIdV1, VoteV1};
use crate::peer::wire::{
    AppendReplyV1, AppendV1, AskPreVoteV1, AskVoteV1, SnapshotPartV1, TransferReplyV1, TransferV1,
    VoteReplyV1,
};
use crate::peer::{CallError, Gate, Peers};
use crate::state::SnapshotFile;
use crate::type_config::{LogId, TypeConfig, Vote};
use crate::{Member, NodeId};

/// Bytes of a snapshot in one request.
const PART_BYTES_MAX: usize = 1024 * 1024;
/// For a part to be written, and for the last one, with which the snapshot is installed.
const PART_DEADLINE: Duration = Duration::from_secs(10);
const INSTALL_DEADLINE: Duration = Duration::from_secs(120);
/// Answers in a row that ask for something other than the next part.
const PART_REPEATS_MAX: u32 = 8;

type C = TypeConfig;
type RaftSnapshot = openraft::type_config::alias::SnapshotOf<C, SnapshotFile>;

/// Makes the connections openraft asks for.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    peers: Arc<Peers>,
    /// For a follower to write and answer, longer than a slow card stalls.
    append_deadline: Duration,
    gate: Arc<Gate>,
}

impl Network {
    pub(crate) fn new(peers: Arc<Peers>, append_deadline: Duration, gate: Arc<Gate>) -> Self {
        Self { peers, append_deadline, gate }
    }
}

impl RaftNetworkFactory<C> for Network {
    type Network = Peer;

    async fn new_client(&mut self, _target: NodeId, node: &Member) -> Peer {
        Peer { network: self.clone(), target: node.clone(), since: Instant::now() }
    }
}

/// One member as openraft calls it.
#[derive(Debug)]
pub(crate) struct Peer {
    network: Network,
    target: Member,
    /// When it was made: at the latest when this leader began to send.
    since: Instant,
}

fn rpc_error(error: CallError) -> RPCError<C> {
    match error {
        CallError::Lost(reason) => RPCError::Network(NetworkError::from_string(reason)),
        // openraft waits before it tries an unreachable peer again; a refusal deserves the same.
        CallError::Unreachable(reason) => RPCError::Unreachable(Unreachable::from_string(reason)),
        CallError::Refused(refusal) => RPCError::Unreachable(Unreachable::from_string(refusal)),
    }
}

fn ask_vote(rpc: &VoteRequest<C>) -> AskVoteV1 {
    AskVoteV1 {
        vote: (&rpc.vote).into(),
        last: rpc.last_log_id.as_ref().map(LogIdV1::from),
        is_transfer: rpc.leadership_transfer,
    }
}

fn vote_response(reply: VoteReplyV1) -> VoteResponse<C> {
    VoteResponse::new(Vote::from(reply.vote), reply.last.map(LogId::from), reply.is_granted)
}

impl RaftNetworkV2<C> for Peer {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<C>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<C>, RPCError<C>> {
        if self.network.gate.is_shut(self.since) {
            let reason = "no quorum answers: quiet, so that the others can elect".to_owned();
            return Err(rpc_error(CallError::Unreachable(reason)));
        }
        let request = AppendV1 {
            vote: (&rpc.vote).into(),
            prev: rpc.prev_log_id.as_ref().map(LogIdV1::from),
            entries: rpc.entries.iter().map(Into::into).collect(),
            commit: rpc.leader_commit.as_ref().map(LogIdV1::from),
        };
        let call = self.network.peers.call(&self.target, &request, self.network.append_deadline);
        Ok(match call.await.map_err(rpc_error)? {
            AppendReplyV1::Success => AppendEntriesResponse::Success,
            AppendReplyV1::PartialSuccess(upto) => {
                AppendEntriesResponse::PartialSuccess(upto.map(LogId::from))
            }
            AppendReplyV1::Conflict => AppendEntriesResponse::Conflict,
            AppendReplyV1::HigherVote(vote) => AppendEntriesResponse::HigherVote(vote.into()),
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<C>,
        _option: RPCOption,
    ) -> Result<VoteResponse<C>, RPCError<C>> {
        let request = ask_vote(&rpc);
        let call = self.network.peers.call(&self.target, &request, self.network.append_deadline);
        call.await.map(vote_response).map_err(rpc_error)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<C>,
        _option: RPCOption,
    ) -> Result<VoteResponse<C>, RPCError<C>> {
        let request = AskPreVoteV1(ask_vote(&rpc));
        let call = self.network.peers.call(&self.target, &request, self.network.append_deadline);
        call.await.map(vote_response).map_err(rpc_error)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: RaftSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<C>, StreamingError<C>> {
        let Snapshot { meta, snapshot } = snapshot;
        let last = meta.last_log_id.as_ref().map(LogIdV1::from);
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = self.send_snapshot((&vote).into(), last, snapshot) => sent,
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<C>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<C>, RPCError<C>> {
        let request = TransferV1 {
            from: req.from_leader().into(),
            to: *req.to_node_id(),
            last: req.last_log_id().map(LogIdV1::from),
        };
        let call = self.network.peers.call(&self.target, &request, self.network.append_deadline);
        Ok(match call.await.map_err(rpc_error)? {
            TransferReplyV1::Taken => Ok(()),
            TransferReplyV1::VoteChanged { expected, actual } => {
                Err(TransferLeaderError::VoteChanged {
                    expected: expected.into(),
                    actual: actual.into(),
                })
            }
            TransferReplyV1::LogNotFlushed { expected, actual } => {
                Err(TransferLeaderError::LogNotFlushed {
                    expected: expected.map(LogId::from),
                    actual: actual.map(LogId::from),
                })
            }
        })
    }

    fn backoff(&self) -> Option<Backoff> {
        None
    }
}

impl Peer {
    /// Sends part after part; the receiver says where to go on, so a broken transfer resumes.
    async fn send_snapshot(
        &self,
        vote: VoteV1,
        last: Option<LogIdV1>,
        snapshot: SnapshotFile,
    ) -> Result<SnapshotResponse<C>, StreamingError<C>> {
        let total = snapshot.bytes;
        let mut offset = 0;
        let mut repeats = 0;
        loop {
            let file = snapshot.clone();
            let read = tokio::task::spawn_blocking(move || file.part(offset, PART_BYTES_MAX));
            let part = read
                .await
                .map_err(std::io::Error::other)
                .and_then(|part| part)
                .map_err(|e| NetworkError::<C>::new(&e))?;
            let end = offset.saturating_add(u64::try_from(part.len()).unwrap_or(u64::MAX));
            let deadline = if end >= total { INSTALL_DEADLINE } else { PART_DEADLINE };
            let request = SnapshotPartV1 { vote, last, total, offset, bytes: Bytes::from(part) };
            let call = self.network.peers.call(&self.target, &request, deadline);
            let reply = call.await.map_err(|e| StreamingError::from(rpc_error(e)))?;
            if reply.next >= total || reply.vote != vote {
                return Ok(SnapshotResponse::new(Vote::from(reply.vote)));
            }
            repeats = if reply.next == end { 0 } else { repeats + 1 };
            if repeats > PART_REPEATS_MAX {
                let reason = format!("the receiver asks for byte {} again", reply.next);
                return Err(NetworkError::<C>::from_string(reason).into());
            }
            offset = reply.next;
        }
    }
}
