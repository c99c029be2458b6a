//! Changes of the membership, on the leader.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::raft::Precondition;
use tokio::time::Instant;

use crate::envelope;
use crate::frozen::CommandV1;
use crate::peer::{AdminReplyV1, AdminV1};
use crate::replica::{Inner, Leader, leader_now};
use crate::type_config::{Command, StoredMembership, TypeConfig};
use crate::{Member, NodeId};

/// Ids tried before giving up; each try is an entry, so the first nearly always does.
const ALLOCATE_TRIES_MAX: u32 = 16;
/// For a quorum to agree on a change.
const ADMIN_DEADLINE: Duration = Duration::from_secs(8);
/// Between two looks whether leadership has moved.
const LOOK_EVERY: Duration = Duration::from_millis(20);

type Change = ChangeMembers<NodeId, Member>;
type Failure = RaftError<TypeConfig, ClientWriteError<TypeConfig>>;

impl Inner {
    /// Does one request as leader.
    pub(crate) async fn serve_admin(&self, request: AdminV1) -> AdminReplyV1 {
        match leader_now(&self.raft) {
            Leader::Me => {}
            Leader::Other(leader) => return AdminReplyV1::NotLeader(Some(leader.id)),
            Leader::Unknown => return AdminReplyV1::NotLeader(None),
        }
        let done = tokio::time::timeout(ADMIN_DEADLINE, self.do_admin(request)).await;
        done.unwrap_or_else(|_| AdminReplyV1::Unknown("no quorum agreed in time".to_owned()))
    }

    async fn do_admin(&self, request: AdminV1) -> AdminReplyV1 {
        match request {
            AdminV1::AddLearner(member) => self.add_learner(member.into()).await,
            AdminV1::SetVoters(ids) => self.set_voters(ids.into_iter().collect()).await,
            AdminV1::Remove(id) => self.remove(id).await,
            AdminV1::AllocateId => self.allocate_id().await,
            AdminV1::UpdateMember(member) => self.update_member(member.into()).await,
            AdminV1::TransferLeader(to) => self.transfer_leader(to).await,
        }
    }

    /// Changes members only if nobody else did since `seen`.
    async fn change(&self, change: Change, retain: bool, seen: &StoredMembership) -> AdminReplyV1 {
        let unchanged =
            Precondition::LastMembershipLogId { last_membership_log_id: *seen.log_id() };
        match self.raft.change_membership_if(change, retain, [unchanged]).await {
            Ok(_) => AdminReplyV1::Done(0),
            Err(e) => failed(e),
        }
    }

    async fn add_learner(&self, member: Member) -> AdminReplyV1 {
        let seen = self.membership();
        if let Some(known) = seen.get_node(&member.id) {
            return self.replace_member(known, member, &seen).await;
        }
        if self.shared.mvcc.read().removed().contains(&member.id) {
            return AdminReplyV1::Refused(format!("id {} was removed from the group", member.id));
        }
        if let Some((id, _)) = seen.nodes().find(|(_, m)| m.store_uuid == member.store_uuid) {
            return AdminReplyV1::Refused(format!("the store is already that of member {id}"));
        }
        let change = Change::AddNodes(BTreeMap::from([(member.id, member)]));
        self.change(change, true, &seen).await
    }

    async fn update_member(&self, member: Member) -> AdminReplyV1 {
        let seen = self.membership();
        match seen.get_node(&member.id) {
            Some(known) => self.replace_member(known, member, &seen).await,
            None => AdminReplyV1::Refused(format!("{} is not a member", member.id)),
        }
    }

    /// A new address is only believed for the same store: frames name both ids, so a wrong
    /// address leads to refusals, never to a second member under one id.
    async fn replace_member(
        &self,
        known: &Member,
        member: Member,
        seen: &StoredMembership,
    ) -> AdminReplyV1 {
        if known.store_uuid != member.store_uuid {
            return AdminReplyV1::Refused(format!("member {} has another store", member.id));
        }
        if *known == member {
            return AdminReplyV1::Done(0);
        }
        let change = Change::SetNodes(BTreeMap::from([(member.id, member)]));
        self.change(change, true, seen).await
    }

    async fn set_voters(&self, ids: BTreeSet<NodeId>) -> AdminReplyV1 {
        let seen = self.membership();
        if ids.is_empty() {
            return AdminReplyV1::Refused("a group needs a voter".to_owned());
        }
        if let Some(stranger) = ids.iter().find(|id| seen.get_node(id).is_none()) {
            return AdminReplyV1::Refused(format!("{stranger} is not a member"));
        }
        self.change(Change::ReplaceAllVoters(ids), true, &seen).await
    }

    async fn remove(&self, id: NodeId) -> AdminReplyV1 {
        let seen = self.membership();
        if seen.get_node(&id).is_none() {
            return AdminReplyV1::Done(0);
        }
        let voters: BTreeSet<NodeId> = seen.voter_ids().collect();
        if !voters.contains(&id) {
            return self.change(Change::RemoveNodes(BTreeSet::from([id])), true, &seen).await;
        }
        if voters.len() == 1 {
            return AdminReplyV1::Refused("a group needs a voter".to_owned());
        }
        self.change(Change::RemoveVoters(BTreeSet::from([id])), false, &seen).await
    }

    async fn allocate_id(&self) -> AdminReplyV1 {
        let nothing = CommandV1 { compact: 0, txns: Vec::new() };
        let bytes = match envelope::encode(&nothing) {
            Ok(bytes) => bytes,
            Err(e) => return AdminReplyV1::Refused(e.to_string()),
        };
        for _ in 0..ALLOCATE_TRIES_MAX {
            match self.raft.client_write(Command(bytes.clone())).await {
                Ok(response) => {
                    let id = response.log_id.index;
                    let is_taken = self.membership().get_node(&id).is_some()
                        || self.shared.mvcc.read().removed().contains(&id);
                    if !is_taken {
                        return AdminReplyV1::Done(id);
                    }
                }
                Err(e) => return failed(e),
            }
        }
        AdminReplyV1::Busy("the next ids are taken".to_owned())
    }

    async fn transfer_leader(&self, to: NodeId) -> AdminReplyV1 {
        if to == self.me.id {
            return AdminReplyV1::Done(0);
        }
        if !self.membership().voter_ids().any(|id| id == to) {
            return AdminReplyV1::Refused(format!("{to} is not a voter"));
        }
        if let Err(e) = self.raft.trigger().transfer_leader(to).await {
            return AdminReplyV1::Unknown(e.to_string());
        }
        let deadline = Instant::now() + self.config.election_timeout.1.saturating_mul(2);
        while Instant::now() < deadline {
            if matches!(leader_now(&self.raft), Leader::Other(leader) if leader.id == to) {
                return AdminReplyV1::Done(0);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        AdminReplyV1::Unknown(format!("{to} has not taken over yet"))
    }
}

fn failed(error: Failure) -> AdminReplyV1 {
    match error {
        RaftError::Fatal(e) => AdminReplyV1::Unknown(e.to_string()),
        RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
            AdminReplyV1::NotLeader(to.leader_id)
        }
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(to)) => {
            AdminReplyV1::Unknown(to.to_string())
        }
        RaftError::APIError(ClientWriteError::PreconditionFailed(e)) => {
            AdminReplyV1::Busy(e.to_string())
        }
        RaftError::APIError(ClientWriteError::ChangeMembershipError(e)) => match e {
            ChangeMembershipError::InProgress(_)
            | ChangeMembershipError::UncommittedLeaderLog(_) => AdminReplyV1::Busy(e.to_string()),
            other => AdminReplyV1::Refused(other.to_string()),
        },
    }
}
