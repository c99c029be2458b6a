//! How many pods each replica set of a deployment should have: pure arithmetic.

use crate::controllers::deployment::template::Wish;

/// The numbers of one replica set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scale {
    /// `spec.replicas`.
    pub(super) wanted: i32,
    /// How many of its pods are available.
    pub(super) available: i32,
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
    let total = new.wanted + old.iter().map(|scale| scale.wanted).sum::<i32>();
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

/// Spreads `total` pods over replica sets in proportion to the `sizes` they have; what rounding
/// leaves goes to the largest. Used when a deployment is scaled while it rolls.
pub(super) fn proportional(sizes: &[i32], total: i32) -> Vec<i32> {
    let sum: i64 = sizes.iter().map(|&size| i64::from(size)).sum();
    if sum == 0 {
        return sizes.to_vec();
    }
    let share = |size: i32| {
        i32::try_from(i64::from(size) * i64::from(total.max(0)) / sum).unwrap_or(i32::MAX)
    };
    let mut shares: Vec<i32> = sizes.iter().map(|&size| share(size)).collect();
    let left = total.max(0) - shares.iter().sum::<i32>();
    let largest =
        sizes.iter().enumerate().max_by_key(|(at, size)| (**size, std::cmp::Reverse(*at)));
    if let Some(share) = largest.and_then(|(at, _)| shares.get_mut(at)) {
        *share += left;
    }
    shares
}
