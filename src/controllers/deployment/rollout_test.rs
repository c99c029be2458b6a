use proptest::prelude::*;

use crate::controllers::deployment::rollout::{Part, Scale, proportional, roll};
use crate::controllers::deployment::template::Wish;

fn wish(replicas: i32, max_surge: i32, max_unavailable: i32) -> Wish {
    Wish { replicas, max_surge, max_unavailable, is_recreate: false, is_paused: false }
}

fn scale(wanted: i32, available: i32) -> Scale {
    Scale { wanted, available, there: wanted }
}

#[test]
fn each_step_of_a_rolling_update_is_as_kubernetes_takes_it() {
    // wish, new, old -> new wanted, old wanted
    for (wish, mut new, mut old, expected) in [
        // The first pods of a new deployment.
        (wish(3, 1, 0), scale(0, 0), vec![], (3, vec![])),
        // Surge first.
        (wish(3, 1, 0), scale(0, 0), vec![scale(3, 3)], (1, vec![3])),
        // Nothing moves until the surge pod is available.
        (wish(3, 1, 0), scale(1, 0), vec![scale(3, 3)], (1, vec![3])),
        (wish(3, 1, 0), scale(1, 1), vec![scale(3, 3)], (1, vec![2])),
        // Without surge the old ones make room.
        (wish(4, 0, 1), scale(0, 0), vec![scale(4, 4)], (0, vec![3])),
        (wish(4, 0, 1), scale(0, 0), vec![scale(3, 3)], (1, vec![3])),
        // Unhealthy old pods go at once.
        (wish(4, 1, 1), scale(1, 0), vec![scale(4, 2)], (1, vec![3])),
        // A status older than the spec frees no pod twice.
        (wish(10, 0, 2), scale(2, 0), vec![scale(8, 10)], (2, vec![8])),
        // Rollover: both old sets shrink, the oldest first.
        (wish(3, 1, 1), scale(2, 2), vec![scale(1, 1), scale(1, 1)], (2, vec![0, 0])),
        // Scaled down while rolling.
        (wish(2, 1, 0), scale(3, 3), vec![scale(0, 0)], (2, vec![0])),
    ] {
        roll(wish, &mut new, &mut old);
        let old: Vec<_> = old.iter().map(|scale| scale.wanted).collect();
        assert_eq!((new.wanted, old), expected, "{wish:?}");
    }
}

#[test]
fn shares_follow_the_sizes_and_the_rest_goes_to_the_largest() {
    // sizes, of how many they were, total -> shares
    for (sizes, of, total, shares) in [
        (vec![5, 5], 10, 20, vec![10, 10]),
        // Kubernetes' conformance test: 10 replicas and 3 more become 30 and 3 more.
        (vec![8, 5], 13, 33, vec![20, 13]),
        (vec![8, 5], 13, 20, vec![12, 8]),
        (vec![8, 5], 13, 13, vec![8, 5]),
        (vec![8, 5], 13, 6, vec![4, 2]),
        (vec![2, 1], 3, 0, vec![0, 0]),
        (vec![3, 3, 3], 9, 10, vec![4, 3, 3]),
        // Fewer than were allowed: the first takes what is left.
        (vec![3, 3], 10, 20, vec![14, 6]),
        // Nobody knows of how many they were.
        (vec![3, 2], 0, 8, vec![6, 2]),
    ] {
        let parts: Vec<_> = sizes.iter().map(|&size| Part { size, of }).collect();
        assert_eq!(proportional(&parts, total), shares, "{sizes:?} of {of} to {total}");
    }
}

/// What happens between two runs: which pods of which set become available.
#[derive(Debug, Clone)]
enum Happening {
    NewPodsBecomeAvailable(i32),
    StatusCatchesUp,
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    prop::collection::vec(
        prop_oneof![
            (1..4_i32).prop_map(Happening::NewPodsBecomeAvailable),
            Just(Happening::StatusCatchesUp),
        ],
        1..60,
    )
}

/// A replica set as it really is, behind what its status says.
#[derive(Debug, Clone, Copy)]
struct Real {
    scale: Scale,
    available: i32,
}

impl Real {
    /// The replica set's controller has done what the spec says: unavailable pods go first.
    fn settle(&mut self) {
        self.available = self.available.min(self.scale.wanted);
        self.scale.there = self.scale.wanted;
    }
}

proptest! {
    /// Goal: no order of events takes a rollout outside its fenceposts. Method: plays replica sets
    /// whose statuses lag, and whose pods become available at random.
    #[test]
    fn a_rollout_stays_within_its_fenceposts_and_ends(
        replicas in 1..12_i32,
        max_surge in 0..5_i32,
        max_unavailable in 0..5_i32,
        old_sets in 1..3_usize,
        happenings in happenings(),
    ) {
        prop_assume!(max_surge + max_unavailable > 0);
        let wish = wish(replicas, max_surge, max_unavailable.min(replicas));
        prop_assume!(wish.max_surge + wish.max_unavailable > 0);
        let mut old: Vec<_> = (0..old_sets).map(|_| Real { scale: scale(0, 0), available: 0 }).collect();
        old[0] = Real { scale: scale(replicas, replicas), available: replicas };
        let mut new = Real { scale: scale(0, 0), available: 0 };
        let finish = (0..200).flat_map(|_| {
            [Happening::NewPodsBecomeAvailable(100), Happening::StatusCatchesUp]
        });
        for happening in happenings.into_iter().chain(finish) {
            let mut scales: Vec<_> = old.iter().map(|real| real.scale).collect();
            roll(wish, &mut new.scale, &mut scales);
            for (real, scale) in old.iter_mut().zip(scales) {
                real.scale = scale;
                real.settle();
            }
            new.settle();
            let total = new.scale.wanted + old.iter().map(|real| real.scale.wanted).sum::<i32>();
            prop_assert!(total <= wish.total_max());
            let available = new.available + old.iter().map(|real| real.available).sum::<i32>();
            prop_assert!(available >= wish.available_min(), "{available} of {wish:?}");
            match happening {
                Happening::NewPodsBecomeAvailable(count) => {
                    new.available = (new.available + count).min(new.scale.wanted);
                }
                Happening::StatusCatchesUp => {
                    new.scale.available = new.available;
                    for real in &mut old {
                        real.scale.available = real.available;
                    }
                }
            }
        }
        prop_assert_eq!(new.scale.wanted, replicas);
        prop_assert!(old.iter().all(|real| real.scale.wanted == 0));
    }
}
