//! The structs that stand on disk and go over the wire, and their conversions.
//!
//! Frozen: a field is never added, removed or moved; a change is a new struct with the next
//! version. openraft's own serde layout is used nowhere.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::entry::RaftEntry;
use serde::{Deserialize, Serialize};

use crate::envelope::{Message, kind};
use crate::type_config::{
    Command, LogEntry, LogId, Membership, Payload, SnapshotMeta, StoredMembership, Vote, log_id,
};
use crate::{Entry, Member, NodeId, Precondition, Revision, Txn, TxnOutcome};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogIdV1 {
    pub(crate) term: u64,
    pub(crate) index: u64,
}

impl From<&LogId> for LogIdV1 {
    fn from(id: &LogId) -> Self {
        Self { term: id.leader_id.term, index: id.index }
    }
}

impl From<LogIdV1> for LogId {
    fn from(id: LogIdV1) -> Self {
        log_id(id.term, id.index)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VoteV1 {
    pub(crate) term: u64,
    pub(crate) voted_for: NodeId,
    pub(crate) committed: bool,
}

impl From<&Vote> for VoteV1 {
    fn from(vote: &Vote) -> Self {
        Self {
            term: vote.leader_id.term,
            voted_for: vote.leader_id.voted_for,
            committed: vote.committed,
        }
    }
}

impl From<VoteV1> for Vote {
    fn from(vote: VoteV1) -> Self {
        if vote.committed {
            Self::new_committed(vote.term, vote.voted_for)
        } else {
            Self::new(vote.term, vote.voted_for)
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemberV1 {
    pub(crate) id: NodeId,
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) store_uuid: [u8; 16],
}

impl From<Member> for MemberV1 {
    fn from(member: Member) -> Self {
        let Member { id, name, address, store_uuid } = member;
        Self { id, name, address, store_uuid }
    }
}

impl From<MemberV1> for Member {
    fn from(member: MemberV1) -> Self {
        let MemberV1 { id, name, address, store_uuid } = member;
        Self { id, name, address, store_uuid }
    }
}

/// Voter sets (two while a change is under way) and every member under its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MembershipV1 {
    pub(crate) voters: Vec<Vec<NodeId>>,
    pub(crate) members: Vec<(NodeId, MemberV1)>,
}

/// A stored membership names a voter that is not among its members.
#[derive(Debug, thiserror::Error)]
#[error("membership is inconsistent: {0}")]
pub(crate) struct BadMembership(String);

impl From<&Membership> for MembershipV1 {
    fn from(membership: &Membership) -> Self {
        let voters =
            membership.get_joint_config().iter().map(|set| set.iter().copied().collect()).collect();
        let members = membership.nodes().map(|(id, member)| (*id, member.clone().into())).collect();
        Self { voters, members }
    }
}

impl TryFrom<MembershipV1> for Membership {
    type Error = BadMembership;

    fn try_from(stored: MembershipV1) -> Result<Self, BadMembership> {
        if stored.voters.is_empty() && stored.members.is_empty() {
            return Ok(Self::default());
        }
        let voters: Vec<BTreeSet<NodeId>> =
            stored.voters.into_iter().map(|set| set.into_iter().collect()).collect();
        let members: BTreeMap<NodeId, Member> =
            stored.members.into_iter().map(|(id, member)| (id, member.into())).collect();
        Self::new(voters, members).map_err(|e| BadMembership(e.to_string()))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredMembershipV1 {
    pub(crate) log_id: Option<LogIdV1>,
    pub(crate) membership: MembershipV1,
}

impl From<&StoredMembership> for StoredMembershipV1 {
    fn from(stored: &StoredMembership) -> Self {
        Self {
            log_id: stored.log_id().as_ref().map(Into::into),
            membership: stored.membership().into(),
        }
    }
}

impl TryFrom<StoredMembershipV1> for StoredMembership {
    type Error = BadMembership;

    fn try_from(stored: StoredMembershipV1) -> Result<Self, BadMembership> {
        Ok(Self::new(stored.log_id.map(Into::into), stored.membership.try_into()?))
    }
}

/// The body of a log entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PayloadV1 {
    Blank,
    Command(Bytes),
    Membership(MembershipV1),
}

impl From<&Payload> for PayloadV1 {
    fn from(payload: &Payload) -> Self {
        match payload {
            Payload::Blank => Self::Blank,
            Payload::Normal(Command(bytes)) => Self::Command(bytes.clone()),
            Payload::Membership(membership) => Self::Membership(membership.into()),
        }
    }
}

impl TryFrom<PayloadV1> for Payload {
    type Error = BadMembership;

    fn try_from(payload: PayloadV1) -> Result<Self, BadMembership> {
        Ok(match payload {
            PayloadV1::Blank => Self::Blank,
            PayloadV1::Command(bytes) => Self::Normal(Command(bytes)),
            PayloadV1::Membership(membership) => Self::Membership(membership.try_into()?),
        })
    }
}

/// A log entry on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EntryV1 {
    pub(crate) id: LogIdV1,
    pub(crate) payload: PayloadV1,
}

impl From<&LogEntry> for EntryV1 {
    fn from(entry: &LogEntry) -> Self {
        Self { id: (&entry.log_id).into(), payload: (&entry.payload).into() }
    }
}

impl EntryV1 {
    pub(crate) fn into_entry(self) -> Result<LogEntry, BadMembership> {
        Ok(LogEntry::new(self.id.into(), self.payload.try_into()?))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PreconditionV1 {
    Absent(Bytes),
    Present(Bytes),
    ModRevision(Bytes, Revision),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TxnV1 {
    pub(crate) request_id: [u8; 16],
    pub(crate) preconditions: Vec<PreconditionV1>,
    pub(crate) puts: Vec<(Bytes, Bytes)>,
    pub(crate) deletes: Vec<Bytes>,
}

impl From<Txn> for TxnV1 {
    fn from(txn: Txn) -> Self {
        let preconditions = txn.preconditions.into_iter().map(|precondition| match precondition {
            Precondition::Absent(key) => PreconditionV1::Absent(key.into()),
            Precondition::Present(key) => PreconditionV1::Present(key.into()),
            Precondition::ModRevision(key, at) => PreconditionV1::ModRevision(key.into(), at),
        });
        Self {
            request_id: txn.request_id,
            preconditions: preconditions.collect(),
            puts: txn.puts.into_iter().map(|(key, value)| (key.into(), value.into())).collect(),
            deletes: txn.deletes.into_iter().map(Into::into).collect(),
        }
    }
}

/// What one log entry does: compact the history, then apply the transactions in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CommandV1 {
    /// History up to this revision is forgotten; 0 leaves it.
    pub(crate) compact: Revision,
    pub(crate) txns: Vec<TxnV1>,
}

impl Message for CommandV1 {
    const KIND: u16 = kind::COMMAND;
    const VERSION: u16 = 1;
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyValueV1 {
    pub(crate) key: Bytes,
    pub(crate) value: Bytes,
    pub(crate) create_revision: Revision,
    pub(crate) mod_revision: Revision,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum OutcomeV1 {
    Committed(Revision),
    Refused { index: u32, current: Option<KeyValueV1> },
}

impl From<TxnOutcome> for OutcomeV1 {
    fn from(outcome: TxnOutcome) -> Self {
        match outcome {
            TxnOutcome::Committed(revision) => Self::Committed(revision),
            TxnOutcome::Refused { index, current } => Self::Refused {
                index: u32::try_from(index).unwrap_or(u32::MAX),
                current: current.map(|Entry { key, value, create_revision, mod_revision }| {
                    KeyValueV1 { key, value, create_revision, mod_revision }
                }),
            },
        }
    }
}

impl From<OutcomeV1> for TxnOutcome {
    fn from(outcome: OutcomeV1) -> Self {
        match outcome {
            OutcomeV1::Committed(revision) => Self::Committed(revision),
            OutcomeV1::Refused { index, current } => Self::Refused {
                index: usize::try_from(index).unwrap_or(usize::MAX),
                current: current.map(|KeyValueV1 { key, value, create_revision, mod_revision }| {
                    Entry { key, value, create_revision, mod_revision }
                }),
            },
        }
    }
}

/// One version of one key, in the state file and in snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RowV1 {
    pub(crate) key: Bytes,
    pub(crate) create_revision: Revision,
    /// `None` is a deletion.
    pub(crate) value: Option<Bytes>,
}

/// One remembered request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RequestV1 {
    pub(crate) id: [u8; 16],
    pub(crate) outcome: RememberedV1,
}

/// Enough to give the first answer again; the value itself is in the history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RememberedV1 {
    Committed(Revision),
    /// Precondition `index` on `key` failed; the key held the value of `revision`, 0 is none.
    Refused {
        index: u32,
        key: Bytes,
        revision: Revision,
    },
}

/// Everything of the state but its rows and requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StateMetaV1 {
    pub(crate) applied: Option<LogIdV1>,
    pub(crate) membership: StoredMembershipV1,
    pub(crate) revision: Revision,
    /// Oldest revision that can be read.
    pub(crate) floor: Revision,
    /// Number of the next remembered request.
    pub(crate) next_request: u64,
    /// Ids that were members once: never again.
    pub(crate) removed: Vec<NodeId>,
}

impl Message for StateMetaV1 {
    const KIND: u16 = kind::STATE_META;
    const VERSION: u16 = 1;
}

impl StateMetaV1 {
    /// openraft's view of it.
    pub(crate) fn snapshot_meta(&self) -> Result<SnapshotMeta, BadMembership> {
        Ok(SnapshotMeta {
            last_log_id: self.applied.map(Into::into),
            last_membership: self.membership.clone().try_into()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: NodeId) -> Member {
        Member { id, name: format!("n{id}"), address: "a:1".into(), store_uuid: [9; 16] }
    }

    #[test]
    fn a_membership_survives_the_round_trip() {
        let nodes: BTreeMap<_, _> = (1..=3).map(|id| (id, member(id))).collect();
        let joint = vec![BTreeSet::from([1]), BTreeSet::from([1, 2])];
        let membership = Membership::new(joint, nodes).unwrap();
        let back = Membership::try_from(MembershipV1::from(&membership)).unwrap();
        assert_eq!(back, membership);
        let empty = Membership::default();
        assert_eq!(Membership::try_from(MembershipV1::from(&empty)).unwrap(), empty);
    }

    #[test]
    fn a_command_has_its_frozen_bytes() {
        let command = CommandV1 {
            compact: 5,
            txns: vec![TxnV1 {
                request_id: [1; 16],
                preconditions: vec![PreconditionV1::ModRevision(Bytes::from_static(b"k"), 3)],
                puts: vec![(Bytes::from_static(b"k"), Bytes::from_static(b"v"))],
                deletes: vec![Bytes::from_static(b"d")],
            }],
        };
        let mut body = Vec::new();
        crate::envelope::encode_body(&command, &mut body).unwrap();
        let hex: String = body.iter().map(|b| format!("{b:02x}")).collect();
        let golden = concat!(
            "0500000000000000",
            "0100000000000000",
            "01010101010101010101010101010101",
            "0100000000000000",
            "02000000",
            "01000000000000006b",
            "0300000000000000",
            "0100000000000000",
            "01000000000000006b",
            "010000000000000076",
            "0100000000000000",
            "010000000000000064",
        );
        assert_eq!(hex, golden);
    }

    #[test]
    fn a_vote_survives_the_round_trip() {
        for vote in [Vote::new(3, 7), Vote::new_committed(4, 9)] {
            assert_eq!(Vote::from(VoteV1::from(&vote)), vote);
        }
    }
}
