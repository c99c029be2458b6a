//! Writes on the leader: waiting transactions share log entries, and say when to compact.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::errors::{ClientWriteError, RaftError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::envelope;
use crate::frozen::{CommandV1, PreconditionV1, TxnV1};
use crate::replica::Raft;
use crate::state::Shared;
use crate::type_config::Command;
use crate::{Config, Revision, TxnOutcome};

/// Transactions that may wait for an entry.
const QUEUE_LEN_MAX: usize = 4096;
/// Bytes of transactions that are waiting or under way, in units of [`PERMIT_BYTES`].
const PERMITS_MAX: usize = 32 * 1024;
const PERMIT_BYTES: usize = 1024;
/// Entries under way at once: while they are, what arrives gathers for the next.
const ENTRIES_IN_FLIGHT_MAX: usize = 4;
/// Transactions and bytes of one entry; a larger transaction goes alone.
const ENTRY_TXNS_MAX: usize = 256;
const ENTRY_BYTES_MAX: usize = 1024 * 1024;
/// History is kept at most this long, whatever its age.
const HISTORY_BYTES_MAX: usize = 64 * 1024 * 1024;
const HISTORY_REVISIONS_MAX: u64 = 200_000;
/// Points in time remembered to tell the age of revisions, and their distance.
const SAMPLES_MAX: usize = 1024;
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
const SAMPLES_PER_AGE: u32 = 300;

/// Why a transaction has no outcome.
#[derive(Debug, Clone)]
pub(crate) enum ProposeError {
    /// Nothing was written.
    NotLeader,
    /// It may yet be applied.
    Unknown(String),
    /// Raft has ended; it may have been written.
    Stopped(String),
}

type Answer = Result<TxnOutcome, ProposeError>;

#[derive(Debug)]
struct Proposal {
    txn: TxnV1,
    bytes: usize,
    reply: oneshot::Sender<Answer>,
    /// Its share of the memory for waiting transactions.
    permit: OwnedSemaphorePermit,
}

/// Hands transactions to the proposer.
#[derive(Debug, Clone)]
pub(crate) struct Proposals {
    queue: mpsc::Sender<Proposal>,
    memory: Arc<Semaphore>,
}

impl Proposals {
    /// Writes one transaction as leader.
    ///
    /// # Cancel safety
    ///
    /// Once polled it may be applied, whether or not anyone waits.
    pub(crate) async fn propose(&self, txn: TxnV1) -> Answer {
        let stopped = || ProposeError::Stopped("the replica is shut down".to_owned());
        let (reply, answer) = oneshot::channel();
        let bytes = txn_bytes(&txn);
        let permits = u32::try_from(bytes.div_ceil(PERMIT_BYTES).clamp(1, PERMITS_MAX));
        let memory = self.memory.clone().acquire_many_owned(permits.unwrap_or(1));
        let permit = memory.await.map_err(|_| stopped())?;
        let proposal = Proposal { txn, bytes, reply, permit };
        self.queue.send(proposal).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

/// Keys and values of a transaction.
pub(crate) fn txn_bytes(txn: &TxnV1) -> usize {
    let puts = txn.puts.iter().map(|(key, value)| key.len().saturating_add(value.len()));
    let deletes = txn.deletes.iter().map(Bytes::len);
    let preconditions = txn.preconditions.iter().map(|precondition| match precondition {
        PreconditionV1::Absent(key)
        | PreconditionV1::Present(key)
        | PreconditionV1::ModRevision(key, _) => key.len(),
    });
    puts.chain(deletes).chain(preconditions).fold(0, usize::saturating_add)
}

/// Gathers transactions into entries.
pub(crate) struct Proposer {
    raft: Raft,
    queue: mpsc::Receiver<Proposal>,
    retention: Retention,
}

impl Proposer {
    pub(crate) fn new(raft: Raft, shared: Arc<Shared>, config: &Config) -> (Proposals, Self) {
        let (sender, queue) = mpsc::channel(QUEUE_LEN_MAX);
        let retention = Retention {
            shared,
            revisions_min: config.history_revisions_min,
            age_min: config.history_age_min,
            samples: VecDeque::new(),
            old_enough: 0,
        };
        let memory = Arc::new(Semaphore::new(PERMITS_MAX));
        (Proposals { queue: sender, memory }, Self { raft, queue, retention })
    }

    pub(crate) async fn run(mut self, token: CancellationToken) {
        let mut in_flight = FuturesUnordered::new();
        loop {
            tokio::select! {
                biased;
                () = token.cancelled() => break,
                Some(()) = in_flight.next(), if !in_flight.is_empty() => {}
                first = self.queue.recv(), if in_flight.len() < ENTRIES_IN_FLIGHT_MAX => {
                    let Some(first) = first else { break };
                    let batch = self.gather(first);
                    let compact = self.retention.compact();
                    in_flight.push(write(self.raft.clone(), batch, compact));
                }
            }
        }
    }

    fn gather(&mut self, first: Proposal) -> Vec<Proposal> {
        let mut bytes = first.bytes;
        let mut batch = vec![first];
        // One that does not fit any more still goes: the limit is on when to stop taking.
        while batch.len() < ENTRY_TXNS_MAX
            && bytes < ENTRY_BYTES_MAX
            && let Ok(next) = self.queue.try_recv()
        {
            bytes = bytes.saturating_add(next.bytes);
            batch.push(next);
        }
        batch
    }
}

async fn write(raft: Raft, batch: Vec<Proposal>, compact: Revision) {
    let mut txns = Vec::with_capacity(batch.len());
    let mut replies = Vec::with_capacity(batch.len());
    // Held until the entry is applied or refused.
    let mut permits = Vec::with_capacity(batch.len());
    for Proposal { txn, reply, permit, .. } in batch {
        txns.push(txn);
        replies.push(reply);
        permits.push(permit);
    }
    let answers = match envelope::encode(&CommandV1 { compact, txns }) {
        Ok(bytes) => raft.client_write(Command(bytes)).await.map_err(propose_error),
        Err(e) => Err(ProposeError::Unknown(e.to_string())),
    };
    match answers {
        Ok(response) => {
            let mut outcomes = response.data.0.into_iter();
            for reply in replies {
                let outcome = outcomes
                    .next()
                    .ok_or_else(|| ProposeError::Unknown("the entry has no outcome".to_owned()));
                // Who no longer waits does not need the answer.
                drop(reply.send(outcome));
            }
        }
        Err(e) => {
            for reply in replies {
                drop(reply.send(Err(e.clone())));
            }
        }
    }
}

fn propose_error(error: RaftError<crate::type_config::TypeConfig, WriteRejected>) -> ProposeError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => ProposeError::NotLeader,
        RaftError::APIError(e) => ProposeError::Unknown(e.to_string()),
        RaftError::Fatal(e) => ProposeError::Stopped(e.to_string()),
    }
}

type WriteRejected = ClientWriteError<crate::type_config::TypeConfig>;

/// Decides how far the history may be compacted. Only the leader's answer counts: it goes into
/// the log with the next entry, so without writes there is nothing to do.
#[derive(Debug)]
struct Retention {
    shared: Arc<Shared>,
    revisions_min: u64,
    age_min: Duration,
    /// When which revision was the newest.
    samples: VecDeque<(Instant, Revision)>,
    /// Newest revision known to be older than `age_min`.
    old_enough: Revision,
}

impl Retention {
    /// Revision up to which to forget; 0 is nothing.
    fn compact(&mut self) -> Revision {
        let (revision, floor, history_bytes) = {
            let mvcc = self.shared.mvcc.read();
            (mvcc.revision(), mvcc.floor(), mvcc.history_bytes())
        };
        let now = Instant::now();
        let every = SAMPLE_EVERY.min(self.age_min / SAMPLES_PER_AGE);
        if self.samples.back().is_none_or(|(at, _)| now.duration_since(*at) >= every) {
            self.samples.push_back((now, revision));
        }
        while let Some((at, revision)) = self.samples.front().copied()
            && (now.duration_since(at) >= self.age_min || self.samples.len() > SAMPLES_MAX)
        {
            self.old_enough = revision;
            self.samples.pop_front();
        }
        let kept = revision.saturating_sub(floor);
        if history_bytes > HISTORY_BYTES_MAX || kept > HISTORY_REVISIONS_MAX {
            return floor.saturating_add(kept / 2);
        }
        let target = self.old_enough.min(revision.saturating_sub(self.revisions_min));
        let step = (self.revisions_min / 10).max(1);
        if target >= floor.saturating_add(step) { target } else { 0 }
    }
}
