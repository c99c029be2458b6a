//! One member of the group: opens the store, answers callers and peers.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    Config, Entry, Member, NodeId, OpenError, Page, ReadError, Revision, Status, Transport, Txn,
    TxnOutcome, Watch, WriteError,
};

/// One member of the replicated store. Cheap to clone; all clones are the same member.
#[derive(Debug, Clone)]
pub struct Replica {
    status: tokio::sync::watch::Receiver<Status>,
}

impl Replica {
    /// Opens (or makes) the store in `config.data_dir` and starts Raft.
    ///
    /// # Errors
    ///
    /// See [`OpenError`].
    #[expect(clippy::unused_async, reason = "the signature callers code against")]
    pub async fn open(
        config: Config,
        transport: Arc<dyn Transport>,
    ) -> Result<Self, OpenError> {
        let _ = (config, transport);
        Err(OpenError::Raft("not wired yet".to_owned()))
    }

    /// Makes this member the single voter of a group; does nothing when it is in one already.
    ///
    /// # Errors
    ///
    /// [`WriteError::Stopped`].
    pub async fn bootstrap(&self) -> Result<(), WriteError> {
        Err(stopped())
    }

    /// `true` once this member belongs to a group (bootstrapped, or reached by a leader).
    #[must_use]
    pub fn is_initialized(&self) -> bool {
        false
    }

    /// Applies a transaction through the leader, wherever it is, within 5 s.
    ///
    /// # Errors
    ///
    /// See [`WriteError`]; [`WriteError::Unknown`] means it may yet be applied.
    pub async fn txn(&self, txn: Txn) -> Result<TxnOutcome, WriteError> {
        let _ = txn;
        Err(stopped())
    }

    /// Waits until this member has applied everything committed before the call; local reads
    /// after it are linearizable. Returns the revision reached.
    ///
    /// # Errors
    ///
    /// [`ReadError::NoQuorum`] or [`ReadError::Stopped`].
    pub async fn read_barrier(&self) -> Result<Revision, ReadError> {
        Err(ReadError::Stopped(String::new()))
    }

    /// Newest revision applied here.
    #[must_use]
    pub fn revision(&self) -> Revision {
        0
    }

    /// The key's value now, as known here.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<Entry> {
        let _ = key;
        None
    }

    /// The key's value at `revision`.
    ///
    /// # Errors
    ///
    /// [`ReadError::Compacted`] or [`ReadError::Future`].
    pub fn get_at(&self, key: &[u8], revision: Revision) -> Result<Option<Entry>, ReadError> {
        let _ = (key, revision);
        Ok(None)
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
        let _ = (start, end, limit, at);
        Err(ReadError::Stopped(String::new()))
    }

    /// Every change of keys in `start..end` with a revision over `after`, each exactly once.
    ///
    /// # Errors
    ///
    /// [`ReadError::Compacted`] when `after` is older than the history; [`ReadError::Future`]
    /// when it is not here yet.
    pub fn watch(&self, start: &[u8], end: &[u8], after: Revision) -> Result<Watch, ReadError> {
        let _ = (start, end, after);
        Err(ReadError::Stopped(String::new()))
    }

    /// Adds a member that gets the log but has no vote; a known id with the same store is updated.
    ///
    /// # Errors
    ///
    /// See [`WriteError`].
    pub async fn add_learner(&self, member: Member) -> Result<(), WriteError> {
        let _ = member;
        Err(stopped())
    }

    /// Makes exactly these members voters; the others stay on as learners.
    ///
    /// # Errors
    ///
    /// See [`WriteError`].
    pub async fn set_voters(&self, ids: Vec<NodeId>) -> Result<(), WriteError> {
        let _ = ids;
        Err(stopped())
    }

    /// Takes a member out of the group.
    ///
    /// # Errors
    ///
    /// See [`WriteError`].
    pub async fn remove(&self, id: NodeId) -> Result<(), WriteError> {
        let _ = id;
        Err(stopped())
    }

    /// An id that no member had or will have.
    ///
    /// # Errors
    ///
    /// See [`WriteError`].
    pub async fn allocate_id(&self) -> Result<NodeId, WriteError> {
        Err(stopped())
    }

    /// Records a member's changed name or address.
    ///
    /// # Errors
    ///
    /// See [`WriteError`].
    pub async fn update_member(&self, member: Member) -> Result<(), WriteError> {
        let _ = member;
        Err(stopped())
    }

    /// What this member knows of the group; changes are announced.
    #[must_use]
    pub fn status(&self) -> tokio::sync::watch::Receiver<Status> {
        self.status.clone()
    }

    /// Hands leadership to the voter `to`; call on the leader or anywhere (forwarded).
    ///
    /// # Errors
    ///
    /// See [`WriteError`].
    pub async fn transfer_leader(&self, to: NodeId) -> Result<(), WriteError> {
        let _ = to;
        Err(stopped())
    }

    /// Answers one request of a peer; `from` is the id the peer proved or claimed.
    pub async fn handle(&self, from: NodeId, request: Bytes) -> Bytes {
        let _ = (from, request);
        Bytes::new()
    }

    /// Stops Raft, makes the state durable and closes the files. Every later call fails.
    pub async fn shutdown(&self) {}
}

fn stopped() -> WriteError {
    WriteError::Stopped(String::new())
}
