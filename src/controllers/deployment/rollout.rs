//! How many pods each replica set of a deployment should have: pure arithmetic.

use crate::controllers::deployment::template::Wish;

/// The numbers of one replica set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Scale {
    /// `spec.replicas`.
    pub(super) wanted: i32,
    /// How many of its pods are available.
    pub(super) available: i32,
    /// How many pods it has: more than it should while it takes some away.
    pub(super) there: i32,
}

impl Scale {
    /// The available pods that will still be there once the replica set has heard of `wanted`: its
    /// status may be older than its spec.
    fn lasting(self) -> i32 {
        self.available.min(self.wanted)
    }
}

/// One step of a rolling update. Changes `wanted` of `new` and of `old` (oldest first) so that
/// never more than [`Wish::total_max`] pods are asked for, and never an available pod is taken
/// that [`Wish::available_min`] needs.
pub(super) fn roll(wish: Wish, new: &mut Scale, old: &mut [Scale]) {
    grow(wish, new, old);
    let total = new.wanted + old.iter().map(|scale| scale.wanted).sum::<i32>();
    let new_unavailable = new.wanted - new.lasting();
    let surplus = total - wish.available_min() - new_unavailable;
    if surplus <= 0 {
        return;
    }
    let freed = drop_unhealthy(old, surplus);
    drop_healthy(wish, *new, old, surplus - freed);
}

/// The first half of a step: as many new pods as there is room for. Takes no old one away.
pub(super) fn grow(wish: Wish, new: &mut Scale, old: &[Scale]) {
    if new.wanted >= wish.replicas {
        new.wanted = wish.replicas;
        return;
    }
    // Pods that their set has not taken away yet leave no room.
    let total = new.wanted + old.iter().map(|scale| scale.wanted.max(scale.there)).sum::<i32>();
    let room = (wish.total_max() - total).max(0);
    new.wanted += room.min(wish.replicas - new.wanted);
}

/// Old pods that serve nobody go first, so that a broken old revision cannot block its successor.
fn drop_unhealthy(old: &mut [Scale], surplus: i32) -> i32 {
    let mut freed = 0;
    for scale in old {
        let unhealthy = scale.wanted - scale.lasting();
        let take = unhealthy.min(surplus - freed);
        scale.wanted -= take;
        freed += take;
    }
    freed
}

fn drop_healthy(wish: Wish, new: Scale, old: &mut [Scale], surplus: i32) {
    let available = new.lasting() + old.iter().map(|scale| scale.lasting()).sum::<i32>();
    let mut left = (available - wish.available_min()).min(surplus);
    for scale in old {
        let take = scale.wanted.min(left).max(0);
        scale.wanted -= take;
        left -= take;
    }
}

/// A replica set that is scaled with others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// `spec.replicas`.
    pub(super) size: i32,
    /// The most pods the deployment allowed when the set was last scaled; 0 when nobody knows.
    pub(super) of: i32,
}

/// Spreads `total` pods over replica sets, the largest first, each by its part of what was allowed before;
/// what rounding leaves, or takes too much, is the first one's. Used when a deployment is scaled while
/// it rolls. Source: `GetReplicaSetProportion` of Kubernetes' deployment controller.
pub(super) fn proportional(sets: &[Part], total: i32) -> Vec<i32> {
    let has = sets.iter().fold(0_i32, |sum, set| sum.saturating_add(set.size));
    let to_add = total.max(0).saturating_sub(has);
    let mut added = 0;
    let mut sizes = Vec::with_capacity(sets.len());
    for set in sets {
        let (wish, left) = (share(*set, total.max(0)) - set.size, to_add - added);
        let share = if to_add > 0 { wish.min(left) } else { wish.max(left) };
        let share = if set.size == 0 || to_add == 0 { 0 } else { share };
        added += share;
        sizes.push(set.size + share);
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    sizes
}

/// What is the set's of `total`, rounded to the nearest.
fn share(set: Part, total: i32) -> i32 {
    if set.of <= 0 {
        return set.size;
    }
    let (twice, of) = (2 * i64::from(set.size) * i64::from(total), i64::from(set.of));
    i32::try_from((twice + of) / (2 * of)).unwrap_or(i32::MAX)
}
