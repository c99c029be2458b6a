//! Chooses endpoints: power of two choices, and a budget for retries.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::endpoint::EndpointState;
use crate::rt::Rng;

/// Cheap random numbers without a lock (SplitMix64), seeded once.
#[derive(Debug)]
pub(super) struct Dice(AtomicU64);

impl Dice {
    pub(super) fn new(rng: &Rng) -> Self {
        Self(AtomicU64::new(rng.below(u64::MAX)))
    }

    /// As [`Self::below`], for shares.
    pub(super) fn below64(&self, bound: u64) -> u64 {
        let bound = usize::try_from(bound).unwrap_or(usize::MAX);
        u64::try_from(self.below(bound)).unwrap_or(u64::MAX)
    }

    /// A number in `0..bound`; 0 when `bound` is 0.
    pub(super) fn below(&self, bound: usize) -> usize {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let scaled = (u128::from(z) * bound as u128) >> 64;
        usize::try_from(scaled).unwrap_or(0)
    }
}

/// The endpoints of one Service port.
#[derive(Debug, Default)]
pub(super) struct Backend {
    pub(super) endpoints: Vec<Arc<EndpointState>>,
}

impl Backend {
    /// The endpoint for the next request: the cheaper of two at random. `None` when all of them
    /// are in `tried` (or there is none). Endpoints that are down or ejected come last.
    pub(super) fn pick(
        &self,
        tried: &[Arc<EndpointState>],
        dice: &Dice,
        now_ms: u64,
    ) -> Option<Arc<EndpointState>> {
        let is_fresh = |e: &Arc<EndpointState>| !tried.iter().any(|t| Arc::ptr_eq(t, e));
        if let [only] = self.endpoints.as_slice() {
            return is_fresh(only).then(|| Arc::clone(only));
        }
        let count = self.endpoints.len();
        let first = dice.below(count);
        let second = (first + 1 + dice.below(count.saturating_sub(1))) % count.max(1);
        let is_good = |e: &&Arc<EndpointState>| is_fresh(e) && e.is_available(now_ms);
        let a = self.endpoints.get(first).filter(is_good);
        let b = self.endpoints.get(second).filter(is_good);
        let found = match (a, b) {
            (Some(a), Some(b)) if b.cost(now_ms) < a.cost(now_ms) => Some(b),
            (Some(a), _) => Some(a),
            (None, Some(b)) => Some(b),
            (None, None) => {
                let (before, after) = self.endpoints.split_at_checked(first)?;
                let mut ring = after.iter().chain(before);
                // Better one that failed lately than none.
                ring.clone().find(is_good).or_else(|| ring.find(|e| is_fresh(e)))
            }
        };
        found.cloned()
    }
}

/// Tenths of a retry that each request earns: at most one in five is sent twice for long.
const EARNED_PER_REQUEST: i64 = 2;
const COST_OF_RETRY: i64 = 10;
/// Retries saved up at most: as many as may be in flight to a node that dies.
const SAVED_MAX: i64 = 1024 * COST_OF_RETRY;

/// Keeps retries from multiplying the load when everything fails.
#[derive(Debug)]
pub(super) struct RetryBudget(AtomicI64);

impl Default for RetryBudget {
    fn default() -> Self {
        Self(AtomicI64::new(SAVED_MAX))
    }
}

impl RetryBudget {
    /// A request came in.
    pub(super) fn earn(&self) {
        if self.0.load(Ordering::Relaxed) < SAVED_MAX {
            self.0.fetch_add(EARNED_PER_REQUEST, Ordering::Relaxed);
        }
    }

    /// Whether a request may be sent again.
    pub(super) fn spend(&self) -> bool {
        let left = self.0.fetch_sub(COST_OF_RETRY, Ordering::Relaxed);
        if left >= COST_OF_RETRY {
            return true;
        }
        self.0.fetch_add(COST_OF_RETRY, Ordering::Relaxed);
        false
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::mesh::endpoint::InFlight;
    use crate::mesh::routes::Place;

    fn backend(count: u8) -> Backend {
        let endpoint = |i| {
            let address = ([10, 42, 0, i], 80).into();
            Arc::new(EndpointState::new(address, Place::Local, None))
        };
        Backend { endpoints: (0..count).map(endpoint).collect() }
    }

    fn counts(backend: &Backend, dice: &Dice, now_ms: u64) -> Vec<usize> {
        let mut counts = vec![0; backend.endpoints.len()];
        for _ in 0..3000 {
            let picked = backend.pick(&[], dice, now_ms).unwrap();
            let at = backend.endpoints.iter().position(|e| Arc::ptr_eq(e, &picked)).unwrap();
            counts[at] += 1;
        }
        counts
    }

    #[test]
    fn equal_endpoints_get_equal_shares() {
        let dice = Dice::new(&Rng::seeded(1));
        let counts = counts(&backend(3), &dice, 0);
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }

    #[test]
    fn busy_slow_and_ejected_endpoints_get_less() {
        let dice = Dice::new(&Rng::seeded(2));
        let backend = backend(4);
        let _busy: Vec<_> = (0..5).map(|_| InFlight::new(&backend.endpoints[0])).collect();
        backend.endpoints[1].succeeded(Duration::from_millis(200), 0);
        backend.endpoints[2].failed(0);
        let spread = counts(&backend, &dice, 0);
        assert!(spread[3] > spread[0] && spread[3] > spread[1], "{spread:?}");
        assert_eq!(spread[2], 0);
        assert!(counts(&backend, &dice, 600)[2] > 500);
    }

    #[test]
    fn a_tried_endpoint_is_not_picked_again_and_the_ejected_are_the_last_resort() {
        let dice = Dice::new(&Rng::seeded(3));
        let backend = backend(2);
        let tried = vec![Arc::clone(&backend.endpoints[0])];
        for _ in 0..50 {
            let picked = backend.pick(&tried, &dice, 0).unwrap();
            assert!(Arc::ptr_eq(&picked, &backend.endpoints[1]));
        }
        backend.endpoints[1].failed(0);
        assert!(backend.pick(&tried, &dice, 0).is_some());
        assert!(backend.pick(&backend.endpoints.clone(), &dice, 0).is_none());
        assert!(Backend::default().pick(&[], &dice, 0).is_none());
    }

    #[test]
    fn retries_are_bounded_by_requests() {
        let budget = RetryBudget::default();
        while budget.spend() {}
        for _ in 0..50 {
            budget.earn();
        }
        assert_eq!((0..100).filter(|_| budget.spend()).count(), 10);
    }
}
