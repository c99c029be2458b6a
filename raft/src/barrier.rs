//! Linearizable reads: which index must be applied here, one question for all who wait.

use std::sync::Arc;
use std::time::Duration;

use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::peer::{CallError, Peers, ReadIndexReplyV1, ReadIndexV1};
use crate::replica::{Leader, Raft, leader_now};
use crate::state::Shared;
use crate::{ReadError, Revision};

/// Readers that may wait.
const QUEUE_LEN_MAX: usize = 4096;
/// For one reader, all tries together.
const DEADLINE: Duration = Duration::from_secs(5);
/// For one question to the leader.
const ROUND_DEADLINE: Duration = Duration::from_secs(2);
/// Between two tries.
const RETRY_PAUSE: Duration = Duration::from_millis(25);

/// What a round found: entries to apply before reading, or none; `Err` when Raft has ended.
type Round = Result<Option<u64>, String>;

/// Asks for barriers.
#[derive(Debug, Clone)]
pub(crate) struct Barriers {
    queue: mpsc::Sender<oneshot::Sender<Round>>,
    raft: Raft,
    shared: Arc<Shared>,
}

impl Barriers {
    /// Waits until everything committed before the call is applied here.
    pub(crate) async fn wait(&self) -> Result<Revision, ReadError> {
        let started = Instant::now();
        let deadline = started + DEADLINE;
        let stopped = || ReadError::Stopped("the replica is shut down".to_owned());
        while Instant::now() < deadline {
            let (reply, answer) = oneshot::channel();
            match timeout_at(deadline, self.queue.send(reply)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(stopped()),
                Err(_) => break,
            }
            match timeout_at(deadline, answer).await {
                Ok(Ok(Ok(Some(next_index)))) => {
                    let mut applied = self.shared.applied.subscribe();
                    let reached = applied.wait_for(|applied| applied.next_index >= next_index);
                    let revision = match timeout_at(deadline, reached).await {
                        Ok(Ok(applied)) => Some(applied.revision),
                        Ok(Err(_)) => return Err(stopped()),
                        Err(_) => None,
                    };
                    let Some(revision) = revision else { break };
                    return Ok(revision);
                }
                Ok(Ok(Ok(None))) => tokio::time::sleep(RETRY_PAUSE).await,
                Ok(Ok(Err(reason))) => return Err(ReadError::Stopped(reason)),
                Ok(Err(_)) => return Err(stopped()),
                Err(_) => break,
            }
        }
        let waited_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        Err(ReadError::NoQuorum { waited_ms })
    }

    /// Answers a member's question as leader.
    pub(crate) async fn serve(&self, deadline: Duration) -> ReadIndexReplyV1 {
        match timeout(deadline.min(ROUND_DEADLINE), read_index(&self.raft)).await {
            Ok(Ok(Some(next_index))) => ReadIndexReplyV1::Index(next_index.saturating_sub(1)),
            Ok(Ok(None)) => match leader_now(&self.raft) {
                Leader::Me | Leader::Unknown => ReadIndexReplyV1::NotLeader(None),
                Leader::Other(member) => ReadIndexReplyV1::NotLeader(Some(member.id)),
            },
            Ok(Err(_)) | Err(_) => ReadIndexReplyV1::NoQuorum,
        }
    }
}

/// Runs one round after the other; who comes during one waits for the next.
pub(crate) struct Rounds {
    queue: mpsc::Receiver<oneshot::Sender<Round>>,
    raft: Raft,
    peers: Arc<Peers>,
}

impl Rounds {
    pub(crate) fn new(raft: Raft, peers: Arc<Peers>, shared: Arc<Shared>) -> (Barriers, Self) {
        let (sender, queue) = mpsc::channel(QUEUE_LEN_MAX);
        let barriers = Barriers { queue: sender, raft: raft.clone(), shared };
        (barriers, Self { queue, raft, peers })
    }

    pub(crate) async fn run(mut self, token: CancellationToken) {
        loop {
            let first = tokio::select! {
                biased;
                () = token.cancelled() => break,
                first = self.queue.recv() => first,
            };
            let Some(first) = first else { break };
            let mut waiting = vec![first];
            while let Ok(next) = self.queue.try_recv() {
                waiting.push(next);
            }
            let round = tokio::select! {
                biased;
                () = token.cancelled() => break,
                round = self.round() => round,
            };
            for reader in waiting {
                // A reader that no longer waits does not need the answer.
                drop(reader.send(round.clone()));
            }
        }
    }

    async fn round(&self) -> Round {
        match leader_now(&self.raft) {
            Leader::Me => match timeout(ROUND_DEADLINE, read_index(&self.raft)).await {
                Ok(round) => round,
                Err(_) => Ok(None),
            },
            Leader::Unknown => Ok(None),
            Leader::Other(leader) => {
                let deadline_ms = u64::try_from(ROUND_DEADLINE.as_millis()).unwrap_or(u64::MAX);
                let question = ReadIndexV1 { deadline_ms };
                match self.peers.call(&leader, &question, ROUND_DEADLINE).await {
                    Ok(ReadIndexReplyV1::Index(index)) => Ok(Some(index.saturating_add(1))),
                    Ok(ReadIndexReplyV1::NotLeader(_) | ReadIndexReplyV1::NoQuorum) => Ok(None),
                    Err(CallError::Unreachable(_) | CallError::Lost(_) | CallError::Refused(_)) => {
                        Ok(None)
                    }
                }
            }
        }
    }
}

/// ReadIndex at the leader: a quorum confirms that it still leads.
async fn read_index(raft: &Raft) -> Round {
    match raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
        Ok(linearizer) => Ok(Some(linearizer.read_log_id().index().saturating_add(1))),
        Err(RaftError::APIError(
            LinearizableReadError::ForwardToLeader(_) | LinearizableReadError::QuorumNotEnough(_),
        )) => Ok(None),
        Err(RaftError::Fatal(e)) => Err(e.to_string()),
    }
}
