//! What callers see: transactions, entries, events, members, errors.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A node's id in the Raft group. Allocated from the log, never used twice.
pub type NodeId = u64;
/// The store's one counter: +1 per committed write. Kubernetes calls it `resourceVersion`.
pub type Revision = u64;

/// A server as the others know it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Member {
    /// Raft id.
    pub id: NodeId,
    /// Node name, as in its certificate.
    pub name: String,
    /// Where to dial it, `host:port` of its QUIC endpoint.
    pub address: String,
    /// Random id of its data directory; a wiped or cloned disk has another one or is refused.
    pub store_uuid: [u8; 16],
}

/// Settings of one replica.
#[derive(Debug, Clone)]
pub struct Config {
    /// Folder for log, state and snapshots; created when missing.
    pub data_dir: PathBuf,
    /// This server.
    pub me: Member,
    /// Heartbeat of a leader. Default 150 ms.
    pub heartbeat: Duration,
    /// Shortest and longest election timeout. Default 600–1,200 ms.
    pub election_timeout: (Duration, Duration),
    /// Log entries between snapshots.
    pub snapshot_every: u64,
    /// Revisions kept at least for watches and list-at-revision. Default 10,000.
    pub history_revisions_min: u64,
    /// Age up to which revisions are kept at least. Default 5 min.
    pub history_age_min: Duration,
}

impl Config {
    /// The defaults of the design for a store of `me` in `data_dir`.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>, me: Member) -> Self {
        Self {
            data_dir: data_dir.into(),
            me,
            heartbeat: Duration::from_millis(150),
            election_timeout: (Duration::from_millis(600), Duration::from_millis(1_200)),
            snapshot_every: 20_000,
            history_revisions_min: 10_000,
            history_age_min: Duration::from_secs(300),
        }
    }
}

/// What must hold for a transaction to be applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Precondition {
    /// The key has no value.
    Absent(Vec<u8>),
    /// The key has a value.
    Present(Vec<u8>),
    /// The key's value was last written at this revision.
    ModRevision(Vec<u8>, Revision),
}

/// All or nothing: if every precondition holds, every put and delete happens at one revision.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Txn {
    /// Random; a repeat within the last [`REQUESTS_REMEMBERED_MAX`] gets the first answer again.
    pub request_id: [u8; 16],
    /// Checked in order; the first that fails is reported.
    pub preconditions: Vec<Precondition>,
    /// Keys with their new values.
    pub puts: Vec<(Vec<u8>, Vec<u8>)>,
    /// Keys to remove; an absent one is no error.
    pub deletes: Vec<Vec<u8>>,
}

/// How many request ids are remembered for repeats.
pub const REQUESTS_REMEMBERED_MAX: usize = 4096;
/// Largest key, in bytes.
pub const KEY_BYTES_MAX: usize = 1024;
/// Largest transaction (keys and values together), in bytes.
pub const TXN_BYTES_MAX: usize = 3 * 1024 * 1024;

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TxnOutcome {
    /// Applied at this revision.
    Committed(Revision),
    /// Nothing changed: precondition `index` failed; the key's present value, if any.
    Refused {
        /// Which precondition.
        index: usize,
        /// What the key holds instead.
        current: Option<Entry>,
    },
}

/// One key with its value and history counters (etcd's names).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Key.
    pub key: Bytes,
    /// Value.
    pub value: Bytes,
    /// Revision of the put that made the key.
    pub create_revision: Revision,
    /// Revision of the last put.
    pub mod_revision: Revision,
}

/// A page of a range, all at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Entries in key order.
    pub entries: Vec<Entry>,
    /// The revision all entries were read at.
    pub revision: Revision,
    /// Entries after the last one returned.
    pub remaining: u64,
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub revision: Revision,
    /// Key.
    pub key: Bytes,
    /// The value now; `None` is deleted.
    pub entry: Option<Entry>,
    /// The value before; `None` is created.
    pub previous: Option<Entry>,
}

/// Role of this replica now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// Gets the log, has no vote.
    #[default]
    Learner,
    /// Voter, follows.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
    /// A fatal error ended Raft; the process must stop.
    Stopped,
}

/// What the replica knows of its group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// Role of this replica.
    pub role: Role,
    /// Present term.
    pub term: u64,
    /// The leader as far as known.
    pub leader: Option<NodeId>,
    /// `true` while this replica leads and a quorum answered within the election timeout.
    pub has_quorum: bool,
    /// Ids with a vote.
    pub voters: Vec<NodeId>,
    /// Every member, voters and learners.
    pub members: BTreeMap<NodeId, Member>,
    /// Last applied log index.
    pub applied_index: u64,
    /// Leader only: entries each member lags behind.
    pub lag: BTreeMap<NodeId, u64>,
}

/// Why a write was not acknowledged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// Larger than [`TXN_BYTES_MAX`] or a key over [`KEY_BYTES_MAX`]. Give up.
    #[error("transaction of {bytes} bytes is over the limit of {max}")]
    TooLarge {
        /// Size sent.
        bytes: usize,
        /// Limit.
        max: usize,
    },
    /// No leader is known within the deadline; nothing was written. Retry later.
    #[error("no leader after {waited_ms} ms")]
    NoLeader {
        /// How long we waited.
        waited_ms: u64,
    },
    /// The write may or may not commit. Retry only with the same request id.
    #[error("outcome unknown after {waited_ms} ms: {cause}")]
    Unknown {
        /// How long we waited.
        waited_ms: u64,
        /// What happened.
        cause: String,
    },
    /// The disk is nearly full; nothing was written. Retry when space was freed.
    #[error("disk is full: {free_bytes} bytes free")]
    DiskFull {
        /// Bytes free on the data folder's filesystem.
        free_bytes: u64,
    },
    /// The group does not allow it (not a member, another store, the last voter); nothing was
    /// written. Give up.
    #[error("refused by the group: {0}")]
    Refused(String),
    /// This replica has ended. Give up.
    #[error("the store has stopped: {0}")]
    Stopped(String),
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The revision is older than the history kept. List again.
    #[error("revision {asked} is compacted, oldest is {oldest}")]
    Compacted {
        /// Revision asked for.
        asked: Revision,
        /// Oldest revision still readable.
        oldest: Revision,
    },
    /// The revision is not here yet. Retry.
    #[error("revision {asked} is in the future, current is {current}")]
    Future {
        /// Revision asked for.
        asked: Revision,
        /// Newest revision here.
        current: Revision,
    },
    /// No quorum confirmed the read in time. Retry later, or read stale.
    #[error("no quorum after {waited_ms} ms")]
    NoQuorum {
        /// How long we waited.
        waited_ms: u64,
    },
    /// This replica has ended. Give up.
    #[error("the store has stopped: {0}")]
    Stopped(String),
}

/// Why the replica did not open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A file or folder could not be read or written.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A record is damaged with good ones after it: not a torn tail. The node must come back as a new member.
    #[error("the log is corrupt at byte {offset} of {path}: {reason}")]
    Corrupt {
        /// File.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What was found.
        reason: String,
    },
    /// The folder belongs to another node or cluster, or another process has it open.
    #[error("{0}")]
    Foreign(String),
    /// Raft refused to start.
    #[error("cannot start raft: {0}")]
    Raft(String),
}

/// Why a peer did not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// No connection; nothing was sent. Safe to retry.
    #[error("cannot reach {peer}: {reason}")]
    Unreachable {
        /// Node name.
        peer: String,
        /// Why.
        reason: String,
    },
    /// Sent, but no answer: the peer may have acted.
    #[error("no answer from {peer}: {reason}")]
    Lost {
        /// Node name.
        peer: String,
        /// Why.
        reason: String,
    },
}

/// Carries frames between replicas: QUIC in production, a router with faults in tests.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Sends one request and waits for its answer, at most `deadline`.
    ///
    /// # Errors
    ///
    /// See [`TransportError`].
    async fn call(
        &self,
        peer: &Member,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, TransportError>;
}
