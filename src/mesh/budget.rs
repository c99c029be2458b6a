//! A budget for retries: they must not multiply the load when everything fails.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Tenths of a retry that each request earns: at most one in five is sent twice for long.
const EARNED_PER_REQUEST: i64 = 2;
const COST_OF_RETRY: i64 = 10;
/// Retries per second that are earned without any request: a quiet Service may retry too.
const EARNED_PER_SECOND: i64 = 10 * COST_OF_RETRY;
/// Retries saved up at most: as many as may be in flight to a node that dies.
const SAVED_MAX: i64 = 1024 * COST_OF_RETRY;

/// Tokens in tenths of a retry, earned by requests and by time.
#[derive(Debug)]
pub(super) struct RetryBudget {
    tokens: AtomicI64,
    refilled_ms: AtomicU64,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { tokens: AtomicI64::new(SAVED_MAX), refilled_ms: AtomicU64::new(0) }
    }
}

impl RetryBudget {
    /// A request came in.
    pub(super) fn earn(&self) {
        if self.tokens.load(Ordering::Relaxed) < SAVED_MAX {
            self.tokens.fetch_add(EARNED_PER_REQUEST, Ordering::Relaxed);
        }
    }

    /// Whether a request may be sent again.
    pub(super) fn spend(&self, now_ms: u64) -> bool {
        self.refill(now_ms);
        let left = self.tokens.fetch_sub(COST_OF_RETRY, Ordering::Relaxed);
        if left >= COST_OF_RETRY {
            return true;
        }
        self.tokens.fetch_add(COST_OF_RETRY, Ordering::Relaxed);
        false
    }

    /// What time has earned since it was last asked for.
    fn refill(&self, now_ms: u64) {
        let before = self.refilled_ms.load(Ordering::Relaxed);
        let passed = i64::try_from(now_ms.saturating_sub(before)).unwrap_or(i64::MAX);
        let earned = passed.saturating_mul(EARNED_PER_SECOND) / 1000;
        if earned == 0 {
            return;
        }
        let swapped =
            self.refilled_ms.compare_exchange(before, now_ms, Ordering::Relaxed, Ordering::Relaxed);
        if swapped.is_ok() {
            let room = SAVED_MAX.saturating_sub(self.tokens.load(Ordering::Relaxed)).max(0);
            self.tokens.fetch_add(earned.min(room), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_bounded_by_requests() {
        let budget = RetryBudget::default();
        while budget.spend(0) {}
        for _ in 0..50 {
            budget.earn();
        }
        assert_eq!((0..100).filter(|_| budget.spend(0)).count(), 10);
    }

    #[test]
    fn a_quiet_service_may_retry_some_times_a_second_and_time_saves_no_more_than_the_cap() {
        let budget = RetryBudget::default();
        while budget.spend(0) {}
        assert_eq!((0..100).filter(|_| budget.spend(1000)).count(), 10);
        assert_eq!((0..5000).filter(|_| budget.spend(3_600_000)).count(), 1024);
    }
}
