//! Writes from any member: to the leader, again when that is safe, until the deadline.

use std::future::Future;
use std::time::Duration;

use rand::TryRngCore;
use rand::rngs::OsRng;
use tokio::time::{Instant, timeout};

use crate::frozen::TxnV1;
use crate::peer::{AdminReplyV1, AdminV1, CallError, ForwardTxnReplyV1, ForwardTxnV1};
use crate::proposer::{ProposeError, txn_bytes};
use crate::replica::{Inner, Leader, leader_now};
use crate::{KEY_BYTES_MAX, TXN_BYTES_MAX, Txn, TxnOutcome, WriteError};

/// For a transaction, all tries together.
const TXN_DEADLINE: Duration = Duration::from_secs(5);
/// For a change of membership, all tries together.
const ADMIN_DEADLINE: Duration = Duration::from_secs(10);
/// Between two tries, unless the leader changes sooner.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// What one try brought.
enum Try<T> {
    Done(T),
    /// Nothing was written.
    Nothing,
    /// It may have been written.
    Maybe(String),
    /// No other try would help; nothing was written by this one.
    Final(WriteError),
}

impl Inner {
    /// Applies a transaction through whoever leads.
    pub(crate) async fn txn(&self, mut txn: Txn) -> Result<TxnOutcome, WriteError> {
        if txn.request_id == [0; 16] {
            let drawn = OsRng.try_fill_bytes(&mut txn.request_id);
            drawn.map_err(|e| WriteError::Stopped(format!("no random numbers: {e}")))?;
        }
        let txn = TxnV1::from(txn);
        check_size(&txn)?;
        self.until_deadline(TXN_DEADLINE, |left| self.try_txn(txn.clone(), left)).await
    }

    /// Changes the membership through whoever leads.
    pub(crate) async fn admin(&self, request: AdminV1) -> Result<u64, WriteError> {
        self.until_deadline(ADMIN_DEADLINE, |left| self.try_admin(request.clone(), left)).await
    }

    async fn until_deadline<T, F: Future<Output = Try<T>>>(
        &self,
        deadline: Duration,
        attempt: impl Fn(Duration) -> F,
    ) -> Result<T, WriteError> {
        let started = Instant::now();
        let mut maybe = None;
        loop {
            if self.ended.is_cancelled() {
                let reason = "the replica has ended".to_owned();
                return Err(outcome(started, maybe, || WriteError::Stopped(reason)));
            }
            let left = deadline.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Err(outcome(started, maybe, || WriteError::NoLeader {
                    waited_ms: waited_ms(started),
                }));
            }
            let tried = tokio::select! {
                biased;
                tried = timeout(left, attempt(left)) => tried,
                () = self.ended.cancelled() => Ok(Try::Maybe("the replica ended".to_owned())),
            };
            match tried {
                Ok(Try::Done(done)) => return Ok(done),
                Ok(Try::Nothing) => {}
                Ok(Try::Maybe(reason)) => maybe = Some(reason),
                Ok(Try::Final(error)) => return Err(outcome(started, maybe, || error)),
                Err(_) => {
                    maybe.get_or_insert_with(|| "no answer in time".to_owned());
                }
            }
            self.pause(deadline.saturating_sub(started.elapsed())).await;
        }
    }

    /// Waits a little, less when something changes.
    async fn pause(&self, left: Duration) {
        let mut status = self.status.clone();
        let leader = status.borrow_and_update().leader;
        let changed = status.wait_for(|status| status.leader != leader);
        // Waited or changed: the next try tells.
        drop(timeout(RETRY_PAUSE.min(left), changed).await);
    }

    async fn try_txn(&self, txn: TxnV1, left: Duration) -> Try<TxnOutcome> {
        let leader = match leader_now(&self.raft) {
            Leader::Unknown => return Try::Nothing,
            Leader::Other(leader) => leader,
            Leader::Me => {
                if let Err(free_bytes) = self.space.check() {
                    return Try::Final(WriteError::DiskFull { free_bytes });
                }
                return match self.proposals.propose(txn).await {
                    Ok(outcome) => Try::Done(outcome),
                    Err(ProposeError::NotLeader) => Try::Nothing,
                    Err(ProposeError::Unknown(reason) | ProposeError::Stopped(reason)) => {
                        Try::Maybe(reason)
                    }
                };
            }
        };
        let request = ForwardTxnV1 { txn, deadline_ms: ms(left) };
        match self.peers.call(&leader, &request, left).await {
            Ok(ForwardTxnReplyV1::Outcome(outcome)) => Try::Done(outcome.into()),
            Ok(ForwardTxnReplyV1::NotLeader(_)) => Try::Nothing,
            Ok(ForwardTxnReplyV1::Unknown(reason)) => Try::Maybe(reason),
            Ok(ForwardTxnReplyV1::DiskFull(free_bytes)) => {
                Try::Final(WriteError::DiskFull { free_bytes })
            }
            Err(CallError::Unreachable(_) | CallError::Refused(_)) => Try::Nothing,
            Err(CallError::Lost(reason)) => Try::Maybe(reason),
        }
    }

    async fn try_admin(&self, request: AdminV1, left: Duration) -> Try<u64> {
        let reply = match leader_now(&self.raft) {
            Leader::Unknown => return Try::Nothing,
            Leader::Me => self.serve_admin(request).await,
            Leader::Other(leader) => match self.peers.call(&leader, &request, left).await {
                Ok(reply) => reply,
                Err(CallError::Unreachable(_) | CallError::Refused(_)) => return Try::Nothing,
                Err(CallError::Lost(reason)) => return Try::Maybe(reason),
            },
        };
        match reply {
            AdminReplyV1::Done(id) => Try::Done(id),
            AdminReplyV1::NotLeader(_) | AdminReplyV1::Busy(_) => Try::Nothing,
            AdminReplyV1::Refused(reason) => Try::Final(WriteError::Refused(reason)),
            AdminReplyV1::Unknown(reason) => Try::Maybe(reason),
        }
    }

    /// Applies a member's transaction as leader.
    pub(crate) async fn serve_txn(&self, txn: TxnV1, deadline: Duration) -> ForwardTxnReplyV1 {
        match leader_now(&self.raft) {
            Leader::Me => {}
            Leader::Other(leader) => return ForwardTxnReplyV1::NotLeader(Some(leader.id)),
            Leader::Unknown => return ForwardTxnReplyV1::NotLeader(None),
        }
        if let Err(free) = self.space.check() {
            return ForwardTxnReplyV1::DiskFull(free);
        }
        match timeout(deadline.min(TXN_DEADLINE), self.proposals.propose(txn)).await {
            Ok(Ok(outcome)) => ForwardTxnReplyV1::Outcome(outcome.into()),
            Ok(Err(ProposeError::NotLeader)) => ForwardTxnReplyV1::NotLeader(None),
            Ok(Err(ProposeError::Unknown(reason) | ProposeError::Stopped(reason))) => {
                ForwardTxnReplyV1::Unknown(reason)
            }
            Err(_) => ForwardTxnReplyV1::Unknown("no quorum agreed in time".to_owned()),
        }
    }
}

/// "Nothing was written" is only true if no earlier try may have.
fn outcome(
    started: Instant,
    maybe: Option<String>,
    error: impl FnOnce() -> WriteError,
) -> WriteError {
    match maybe {
        Some(cause) => WriteError::Unknown { waited_ms: waited_ms(started), cause },
        None => error(),
    }
}

fn check_size(txn: &TxnV1) -> Result<(), WriteError> {
    let bytes = txn_bytes(txn);
    if bytes > TXN_BYTES_MAX {
        return Err(WriteError::TooLarge { bytes, max: TXN_BYTES_MAX });
    }
    let keys = txn.puts.iter().map(|(key, _)| key).chain(&txn.deletes);
    match keys.map(|key| key.len()).max() {
        Some(bytes) if bytes > KEY_BYTES_MAX => {
            Err(WriteError::TooLarge { bytes, max: KEY_BYTES_MAX })
        }
        Some(_) | None => Ok(()),
    }
}

fn waited_ms(started: Instant) -> u64 {
    ms(started.elapsed())
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
