//! Who votes: the first one, three or five servers, never an even number.

use edgeorc_raft::{NodeId, Role, Status};

/// Entries a learner may lag behind and still be made a voter.
const PROMOTION_LAG_MAX: u64 = 64;
/// Most voters: more make writes slower and tolerate no likely failure more.
const VOTERS_MAX: usize = 5;

/// The voters the group should have instead of its present ones; `None` when they are right or
/// this replica is not the one to say.
///
/// Present voters stay; learners that have caught up fill the places, lowest id first.
#[must_use]
pub fn plan_voters(status: &Status) -> Option<Vec<NodeId>> {
    if status.role != Role::Leader || !status.has_quorum {
        return None;
    }
    let is_caught_up =
        |id: &NodeId| status.lag.get(id).is_some_and(|lag| *lag <= PROMOTION_LAG_MAX);
    let present = || status.voters.iter().copied().filter(|id| status.members.contains_key(id));
    let learners = status.members.keys().copied().filter(|id| !status.voters.contains(id));
    let mut candidates: Vec<NodeId> = present().chain(learners.filter(is_caught_up)).collect();
    let odd = |n: usize| if n.is_multiple_of(2) { n.saturating_sub(1) } else { n };
    // Never below the present number: a group shrinks only when a person removes a member.
    let wanted = odd(candidates.len()).min(VOTERS_MAX).max(present().count());
    candidates.truncate(wanted);
    candidates.sort_unstable();
    let mut voters = status.voters.clone();
    voters.sort_unstable();
    (candidates != voters).then_some(candidates)
}

#[cfg(test)]
mod tests {
    use edgeorc_raft::Member;

    use super::*;

    fn status(voters: &[NodeId], lags: &[(NodeId, u64)]) -> Status {
        let ids = voters.iter().copied().chain(lags.iter().map(|(id, _)| *id));
        Status {
            role: Role::Leader,
            has_quorum: true,
            voters: voters.to_vec(),
            members: ids.map(|id| (id, Member { id, ..Member::default() })).collect(),
            lag: lags.iter().copied().collect(),
            ..Status::default()
        }
    }

    type Case<'a> = (&'a [NodeId], &'a [(NodeId, u64)], Option<Vec<NodeId>>);

    #[test]
    fn voters_come_in_odd_numbers() {
        let cases: [Case<'_>; 6] = [
            (&[1], &[], None),
            (&[1], &[(5, 0)], None),
            (&[1], &[(5, 0), (9, 3)], Some(vec![1, 5, 9])),
            (&[1], &[(5, 0), (9, 1_000_000)], None),
            (&[1, 5, 9], &[(12, 0)], None),
            (&[1, 5, 9], &[(12, 0), (13, 0), (14, 0)], Some(vec![1, 5, 9, 12, 13])),
        ];
        for (voters, lags, wanted) in cases {
            assert_eq!(plan_voters(&status(voters, lags)), wanted, "{voters:?} {lags:?}");
        }
    }

    #[test]
    fn only_a_leader_with_a_quorum_decides() {
        let mut without = status(&[1], &[(2, 0), (3, 0)]);
        without.has_quorum = false;
        assert_eq!(plan_voters(&without), None);
        without.role = Role::Follower;
        assert_eq!(plan_voters(&without), None);
    }
}
