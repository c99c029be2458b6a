//! One member of the group: opens the store, answers callers and peers.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::RaftError;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::barrier::Barriers;
use crate::dir::{DirLock, Space};
use crate::log::LogStore;
use crate::peer::{AdminV1, Incoming, Peers, serve};
use crate::proposer::Proposals;
use crate::sleep::Sleep;
use crate::state::{Db, Shared, Snapshots, StateMachine};
use crate::tasks::Tasks;
use crate::type_config::{StoredMembership, TypeConfig, Vote};
use crate::{
    Config, Entry, Member, NodeId, OpenError, Page, ReadError, Revision, Status, Transport, Txn,
    TxnOutcome, Watch, WriteError,
};

pub(crate) type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// For the last commit of the state file when the replica is shut down.
const FLUSH_DEADLINE: Duration = Duration::from_secs(10);

/// Who leads, as this replica knows it.
#[derive(Debug, Clone)]
pub(crate) enum Leader {
    Me,
    Other(Member),
    Unknown,
}

/// Who leads now.
pub(crate) fn leader_now(raft: &Raft) -> Leader {
    let metrics = raft.server_metrics();
    let metrics = metrics.borrow_watched();
    match metrics.current_leader {
        Some(id) if id == metrics.id && metrics.state.is_leader() => Leader::Me,
        Some(id) if id != metrics.id => {
            metrics.membership_config.get_node(&id).cloned().map_or(Leader::Unknown, Leader::Other)
        }
        Some(_) | None => Leader::Unknown,
    }
}

/// The parts of a replica.
pub(crate) struct Inner {
    pub(crate) me: Member,
    pub(crate) config: Config,
    pub(crate) raft: Raft,
    pub(crate) peers: Arc<Peers>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) snapshots: Arc<Snapshots>,
    /// An async lock: a part is written while it is held, so that parts do not overtake.
    pub(crate) incoming: Arc<tokio::sync::Mutex<Incoming>>,
    pub(crate) proposals: Proposals,
    pub(crate) barriers: Barriers,
    pub(crate) space: Space,
    pub(crate) sleep: Sleep,
    /// The member that led when something of a leader was last accepted here, and when that was.
    pub(crate) heard: Mutex<Option<(NodeId, Instant)>>,
    pub(crate) log: LogStore,
    pub(crate) db: Arc<Db>,
    pub(crate) status: watch::Receiver<Status>,
    /// Cancelled once nothing works any more.
    pub(crate) ended: CancellationToken,
    pub(crate) tasks: Tasks,
    pub(crate) lock: Mutex<Option<DirLock>>,
}

impl Inner {
    /// The newest membership in the log, committed or not.
    pub(crate) fn membership(&self) -> Arc<StoredMembership> {
        self.raft.server_metrics().borrow_watched().membership_config.clone()
    }

    /// The vote of this replica.
    pub(crate) fn vote(&self) -> Vote {
        self.raft.server_metrics().borrow_watched().vote
    }
}

/// One member of the replicated store. Cheap to clone; all clones are the same member.
///
/// Call [`Replica::shutdown`] before dropping the last clone: it waits until the files are closed.
#[derive(Clone)]
pub struct Replica {
    pub(crate) inner: Arc<Inner>,
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica").field("me", &self.inner.me).finish_non_exhaustive()
    }
}

impl Replica {
    /// Opens (or makes) the store in `config.data_dir` and starts Raft.
    ///
    /// # Errors
    ///
    /// See [`OpenError`].
    pub async fn open(config: Config, transport: Arc<dyn Transport>) -> Result<Self, OpenError> {
        crate::open::open(config, transport).await.map(|inner| Self { inner })
    }

    /// Makes this member the single voter of a group; does nothing when it is in one already.
    ///
    /// # Errors
    ///
    /// [`WriteError::Stopped`].
    pub async fn bootstrap(&self) -> Result<(), WriteError> {
        if self.is_initialized() {
            return Ok(());
        }
        let me = self.inner.me.clone();
        match self.inner.raft.initialize(BTreeMap::from([(me.id, me)])).await {
            // Refused: it is in a group by now.
            Ok(()) | Err(RaftError::APIError(_)) => Ok(()),
            Err(RaftError::Fatal(e)) => Err(WriteError::Stopped(e.to_string())),
        }
    }

    /// `true` once this member belongs to a group (bootstrapped, or reached by a leader).
    #[must_use]
    pub fn is_initialized(&self) -> bool {
        self.inner.membership().voter_ids().next().is_some()
    }

    /// Applies a transaction through the leader, wherever it is, within 5 s. A request id of all
    /// zeros is replaced by a random one.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may yet be applied; a later call with the same request id tells.
    ///
    /// # Errors
    ///
    /// See [`WriteError`]; [`WriteError::Unknown`] means it may yet be applied.
    pub async fn txn(&self, txn: Txn) -> Result<TxnOutcome, WriteError> {
        self.inner.txn(txn).await
    }

    /// Waits until this member has applied everything committed before the call; local reads
    /// after it are linearizable. Returns the revision reached.
    ///
    /// # Errors
    ///
    /// [`ReadError::NoQuorum`] or [`ReadError::Stopped`].
    pub async fn read_barrier(&self) -> Result<Revision, ReadError> {
        tokio::select! {
            biased;
            () = self.inner.ended.cancelled() => {
                Err(ReadError::Stopped("the replica has ended".to_owned()))
            }
            reached = self.inner.barriers.wait() => reached,
        }
    }

    /// Newest revision applied here.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.inner.shared.mvcc.read().revision()
    }

    /// The key's value now, as known here.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<Entry> {
        self.inner.shared.mvcc.read().get(key)
    }

    /// Waits until this member has applied `revision`; for ever if it never comes or the replica
    /// ends.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn reached(&self, revision: Revision) {
        let mut applied = self.inner.shared.applied.subscribe();
        if applied.wait_for(|applied| applied.revision >= revision).await.is_err() {
            std::future::pending().await
        }
    }

    /// Keys from `start` up to, not including, `end` in order, at `at` or now; at most `limit`
    /// entries, 0 is all. An empty `end` is no bound.
    ///
    /// # Errors
    ///
    /// [`ReadError::Compacted`] or [`ReadError::Future`].
    pub fn range(
        &self,
        start: &[u8],
        end: &[u8],
        limit: usize,
        at: Option<Revision>,
    ) -> Result<Page, ReadError> {
        self.inner.shared.mvcc.read().range(start, end, limit, at)
    }

    /// As [`Self::range`], but [`Page::remaining`] is 1 for any number of keys after the page:
    /// for readers that go on page by page, who would else walk the whole range for each.
    ///
    /// # Errors
    ///
    /// As [`Self::range`].
    pub fn range_uncounted(
        &self,
        start: &[u8],
        end: &[u8],
        limit: usize,
        at: Option<Revision>,
    ) -> Result<Page, ReadError> {
        self.inner.shared.mvcc.read().page((start, end), limit, at, 1)
    }

    /// Every change of keys in `start..end` with a revision over `after`, each exactly once. An
    /// empty `end` is no bound.
    ///
    /// # Errors
    ///
    /// [`ReadError::Compacted`] when `after` is older than the history; [`ReadError::Future`]
    /// when it is not here yet.
    pub fn watch(&self, start: &[u8], end: &[u8], after: Revision) -> Result<Watch, ReadError> {
        let range = (start.to_vec(), end.to_vec());
        Watch::new(self.inner.shared.clone(), self.inner.ended.clone(), range, after)
    }

    /// Adds a member that gets the log but has no vote; a known id with the same store is updated.
    ///
    /// # Errors
    ///
    /// See [`WriteError`]; [`WriteError::Refused`] for an id that was removed or has another store.
    pub async fn add_learner(&self, member: Member) -> Result<(), WriteError> {
        self.inner.admin(AdminV1::AddLearner(member.into())).await.map(drop)
    }

    /// Makes exactly these members voters; the others stay on as learners.
    ///
    /// # Errors
    ///
    /// See [`WriteError`].
    pub async fn set_voters(&self, ids: Vec<NodeId>) -> Result<(), WriteError> {
        self.inner.admin(AdminV1::SetVoters(ids)).await.map(drop)
    }

    /// Takes a member out of the group. Its id is never used again.
    ///
    /// # Errors
    ///
    /// See [`WriteError`].
    pub async fn remove(&self, id: NodeId) -> Result<(), WriteError> {
        self.inner.admin(AdminV1::Remove(id)).await.map(drop)
    }

    /// An id that no member had or will have.
    ///
    /// # Errors
    ///
    /// See [`WriteError`].
    pub async fn allocate_id(&self) -> Result<NodeId, WriteError> {
        self.inner.admin(AdminV1::AllocateId).await
    }

    /// Records a member's changed name or address; its store must be the same.
    ///
    /// # Errors
    ///
    /// See [`WriteError`].
    pub async fn update_member(&self, member: Member) -> Result<(), WriteError> {
        self.inner.admin(AdminV1::UpdateMember(member.into())).await.map(drop)
    }

    /// What this member knows of the group; changes are announced.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.inner.status.clone()
    }

    /// Whether this member leads and a quorum has answered it within the election timeout, judged now:
    /// a process that stood still for a while must not believe its last [`Status`], and one whose machine was
    /// suspended no answer of before.
    #[must_use]
    pub fn has_quorum_now(&self) -> bool {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let mut voters = metrics.membership_config.voter_ids();
        let is_alone = voters.next() == Some(metrics.id) && voters.next().is_none();
        let age_max = self.inner.config.election_timeout.1;
        let acked = metrics.last_quorum_acked.as_ref().map(|acked| acked.elapsed());
        let awake_for = self.inner.sleep.noticed().map(|noticed| noticed.elapsed());
        let is_fresh =
            |age: Duration| age < age_max && awake_for.is_none_or(|awake_for| age < awake_for);
        metrics.state == openraft::ServerState::Leader && (is_alone || acked.is_some_and(is_fresh))
    }

    /// The last leader that was another member, and when it was last heard; `None` when there was none since
    /// this was last asked. A new leader learns from it for how long the one before has been silent.
    #[must_use]
    pub fn take_leader_heard(&self) -> Option<(NodeId, Instant)> {
        self.inner.heard.lock().take()
    }

    /// Hands leadership to the voter `to`; may be called on any member.
    ///
    /// # Errors
    ///
    /// See [`WriteError`]; [`WriteError::Unknown`] when `to` has not taken over in time.
    pub async fn transfer_leader(&self, to: NodeId) -> Result<(), WriteError> {
        self.inner.admin(AdminV1::TransferLeader(to)).await.map(drop)
    }

    /// Answers one request of a peer; `from` is the id the peer claims. The transport proves
    /// that the peer belongs to the cluster; ids and stores are checked here.
    pub async fn handle(&self, from: NodeId, request: Bytes) -> Bytes {
        serve(&self.inner, from, request).await
    }

    /// Stops Raft, makes the state durable and closes the files. Every later call fails.
    pub async fn shutdown(&self) {
        let inner = &self.inner;
        inner.ended.cancel();
        let flush =
            inner.raft.with_state_machine(|machine: &mut StateMachine| Box::pin(machine.flush()));
        match tokio::time::timeout(FLUSH_DEADLINE, flush).await {
            Ok(Ok(Ok(()))) => {}
            // The log has it all: the next start takes longer, nothing is lost.
            Ok(Ok(Err(e))) => tracing::warn!(err = %e, "cannot commit the state at shutdown"),
            Ok(Err(e)) => tracing::debug!(err = %e, "raft had ended before the shutdown"),
            Err(_) => tracing::warn!("the state was not committed in time at shutdown"),
        }
        if let Err(e) = inner.raft.shutdown().await {
            tracing::warn!(err = %e, "raft did not end cleanly");
        }
        inner.log.stop().await;
        inner.tasks.shutdown().await;
        let db = inner.db.clone();
        // Only a panic in it could fail, and then there is nothing left to close.
        drop(tokio::task::spawn_blocking(move || db.close()).await);
        drop(inner.lock.lock().take());
    }
}
