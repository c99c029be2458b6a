//! Why a read or write was not done.

use edgeorc_raft::{ReadError, WriteError};

/// Why a read or write was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No such object. Give up.
    #[error("no such object")]
    NotFound,
    /// The object is there already. Give up, or update it.
    #[error("the object exists")]
    Exists,
    /// The object was written since it was read. Read again, reapply.
    #[error("written since it was read, last at revision {current}")]
    Conflict {
        /// Revision of the last write.
        current: u64,
    },
    /// A key that must be unique (an address, a port) is taken, or an object that is to be changed as
    /// well was changed meanwhile. Choose another, or read it again.
    #[error("{key} is taken")]
    SideTaken {
        /// Which.
        key: String,
    },
    /// The revision is older than the history kept. List again.
    #[error("revision {asked} is compacted, oldest is {oldest}")]
    Compacted {
        /// Revision asked for.
        asked: u64,
        /// Oldest revision readable.
        oldest: u64,
    },
    /// The revision is not here yet. Retry.
    #[error("revision {asked} is in the future, current is {current}")]
    Future {
        /// Revision asked for.
        asked: u64,
        /// Newest revision here.
        current: u64,
    },
    /// This server does not lead, and the object lives in the leader's memory. Ask the leader.
    #[error("this server is not the leader")]
    NotLeader,
    /// This server cannot serve its store; nothing was written. Retry later, or elsewhere.
    #[error("{0}")]
    Unavailable(String),
    /// No majority of the servers answered within the deadline; nothing was written. It was waited for
    /// already: tell whoever asked.
    #[error("the cluster has no quorum: no majority of its servers answered within {waited_ms} ms")]
    NoQuorum {
        /// How long we waited.
        waited_ms: u64,
    },
    /// The write may or may not have happened. Read before trying again.
    #[error("{0}")]
    Unknown(String),
    /// The object is too large. Give up.
    #[error("{0}")]
    TooLarge(String),
    /// The disk is full. Retry when space was freed.
    #[error("{0}")]
    DiskFull(String),
    /// What is stored is not JSON. A person must act.
    #[error("stored object is damaged: {0}")]
    Damaged(String),
}

impl From<WriteError> for StoreError {
    fn from(error: WriteError) -> Self {
        let text = error.to_string();
        match error {
            WriteError::TooLarge { .. } => Self::TooLarge(text),
            WriteError::Unknown { .. } => Self::Unknown(text),
            WriteError::DiskFull { .. } => Self::DiskFull(text),
            WriteError::NoLeader { waited_ms } => Self::NoQuorum { waited_ms },
            _ => Self::Unavailable(text),
        }
    }
}

impl From<ReadError> for StoreError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Compacted { asked, oldest } => Self::Compacted { asked, oldest },
            ReadError::Future { asked, current } => Self::Future { asked, current },
            ReadError::NoQuorum { waited_ms } => Self::NoQuorum { waited_ms },
            other => Self::Unavailable(other.to_string()),
        }
    }
}
