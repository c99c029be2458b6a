//! The frozen bodies of requests and answers between members.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::NodeId;
use crate::envelope::{Message, kind};
use crate::frozen::{EntryV1, LogIdV1, MemberV1, OutcomeV1, TxnV1, VoteV1};

/// Stands before the body of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AddressV1 {
    pub(crate) from: NodeId,
    pub(crate) from_store: [u8; 16],
    pub(crate) to: NodeId,
    pub(crate) to_store: [u8; 16],
}

/// A request and what answers it.
pub(crate) trait Request: Message {
    type Reply: Message;
}

macro_rules! message {
    ($type:ty, $kind:ident) => {
        impl Message for $type {
            const KIND: u16 = kind::$kind;
            const VERSION: u16 = 1;
        }
    };
    ($type:ty, $kind:ident => $reply:ty) => {
        message!($type, $kind);
        impl Request for $type {
            type Reply = $reply;
        }
    };
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AppendV1 {
    pub(crate) vote: VoteV1,
    pub(crate) prev: Option<LogIdV1>,
    pub(crate) entries: Vec<EntryV1>,
    pub(crate) commit: Option<LogIdV1>,
}
message!(AppendV1, APPEND => AppendReplyV1);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum AppendReplyV1 {
    Success,
    PartialSuccess(Option<LogIdV1>),
    Conflict,
    HigherVote(VoteV1),
}
message!(AppendReplyV1, APPEND_REPLY);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AskVoteV1 {
    pub(crate) vote: VoteV1,
    pub(crate) last: Option<LogIdV1>,
    pub(crate) is_transfer: bool,
}
message!(AskVoteV1, VOTE_REQUEST => VoteReplyV1);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AskPreVoteV1(pub(crate) AskVoteV1);
message!(AskPreVoteV1, PRE_VOTE_REQUEST => VoteReplyV1);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct VoteReplyV1 {
    pub(crate) vote: VoteV1,
    pub(crate) is_granted: bool,
    pub(crate) last: Option<LogIdV1>,
}
message!(VoteReplyV1, VOTE_REPLY);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotPartV1 {
    pub(crate) vote: VoteV1,
    /// Last entry in the snapshot; with `total` it tells snapshots apart.
    pub(crate) last: Option<LogIdV1>,
    pub(crate) total: u64,
    pub(crate) offset: u64,
    pub(crate) bytes: Bytes,
}
message!(SnapshotPartV1, SNAPSHOT_PART => SnapshotPartReplyV1);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotPartReplyV1 {
    pub(crate) vote: VoteV1,
    /// What the receiver wants next; the total when it is installed.
    pub(crate) next: u64,
}
message!(SnapshotPartReplyV1, SNAPSHOT_PART_REPLY);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TransferV1 {
    pub(crate) from: VoteV1,
    pub(crate) to: NodeId,
    pub(crate) last: Option<LogIdV1>,
}
message!(TransferV1, TRANSFER => TransferReplyV1);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum TransferReplyV1 {
    Taken,
    VoteChanged { expected: VoteV1, actual: VoteV1 },
    LogNotFlushed { expected: Option<LogIdV1>, actual: Option<LogIdV1> },
}
message!(TransferReplyV1, TRANSFER_REPLY);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ForwardTxnV1 {
    pub(crate) txn: TxnV1,
    pub(crate) deadline_ms: u64,
}
message!(ForwardTxnV1, FORWARD_TXN => ForwardTxnReplyV1);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ForwardTxnReplyV1 {
    Outcome(OutcomeV1),
    /// Nothing was written; who leads, if known.
    NotLeader(Option<NodeId>),
    Unknown(String),
    DiskFull(u64),
}
message!(ForwardTxnReplyV1, FORWARD_TXN_REPLY);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ReadIndexV1 {
    pub(crate) deadline_ms: u64,
}
message!(ReadIndexV1, READ_INDEX => ReadIndexReplyV1);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ReadIndexReplyV1 {
    /// Entries up to this index must be applied before the read.
    Index(u64),
    NotLeader(Option<NodeId>),
    NoQuorum,
}
message!(ReadIndexReplyV1, READ_INDEX_REPLY);

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum AdminV1 {
    AddLearner(MemberV1),
    SetVoters(Vec<NodeId>),
    Remove(NodeId),
    AllocateId,
    UpdateMember(MemberV1),
    TransferLeader(NodeId),
}
message!(AdminV1, ADMIN => AdminReplyV1);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum AdminReplyV1 {
    /// The allocated id, or 0.
    Done(u64),
    NotLeader(Option<NodeId>),
    /// Nothing was written; another change is under way.
    Busy(String),
    /// Nothing was written and nothing will be.
    Refused(String),
    Unknown(String),
}
message!(AdminReplyV1, ADMIN_REPLY);

/// Why a request was not served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum RefusalV1 {
    #[error("the sender is not a member")]
    NotMember,
    #[error("the sender was removed from the group")]
    Removed,
    #[error("the sender's store is not the member's")]
    WrongStore,
    #[error("the request is for another node")]
    WrongNode,
    #[error("the request cannot be read: {0}")]
    Malformed(String),
    #[error("the store has stopped: {0}")]
    Stopped(String),
}
message!(RefusalV1, REFUSAL);
