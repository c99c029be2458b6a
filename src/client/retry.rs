//! Bounded retries with back-off and jitter.

use std::future::Future;
use std::time::Duration;

use crate::rt::Rng;

/// The limits of a series of retries.
#[derive(Debug, Clone, Copy)]
pub struct RetryLimits {
    /// The wait before the first retry.
    pub delay_min: Duration,
    /// The longest wait.
    pub delay_max: Duration,
}

/// Waits that double from `delay_min` to `delay_max`, each shortened by up to half at random, so
/// that clients that failed together do not come back together.
#[derive(Debug, Clone)]
pub struct Backoff {
    limits: RetryLimits,
    rng: Rng,
    attempts: u32,
}

impl Backoff {
    /// A series that has not failed yet.
    #[must_use]
    pub fn new(limits: RetryLimits, rng: Rng) -> Self {
        Self { limits, rng, attempts: 0 }
    }

    /// How often [`Self::next_delay`] was asked since the last [`Self::reset`].
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// How long to wait after one more failure.
    pub fn next_delay(&mut self) -> Duration {
        let delay = retry_delay(self.limits, self.attempts, &self.rng);
        self.attempts = self.attempts.saturating_add(1);
        delay
    }

    /// Starts over, after a success.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// The wait after the `attempt`th failure (from 0): between half and the whole of what doubling gives.
#[must_use]
pub fn retry_delay(limits: RetryLimits, attempt: u32, rng: &Rng) -> Duration {
    let factor = 1_u32.checked_shl(attempt.min(20)).unwrap_or(u32::MAX);
    let full = limits.delay_min.saturating_mul(factor).min(limits.delay_max);
    let half = full / 2;
    let jitter_us = rng.below(u64::try_from(half.as_micros()).unwrap_or(u64::MAX));
    half + Duration::from_micros(jitter_us)
}

/// How often [`retry_on_conflict`] tries before it gives up.
const CONFLICT_ATTEMPTS_MAX: u32 = 5;

/// Runs `attempt` (read, change, write with the version read) again while it answers a conflict.
///
/// # Errors
///
/// The last error: a conflict after `CONFLICT_ATTEMPTS_MAX` tries, any other at once.
pub async fn retry_on_conflict<T, F, Fut>(rng: &Rng, mut attempt: F) -> Result<T, kube::Error>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, kube::Error>>,
{
    let limits =
        RetryLimits { delay_min: Duration::from_millis(10), delay_max: Duration::from_millis(200) };
    let mut backoff = Backoff::new(limits, rng.clone());
    loop {
        match attempt().await {
            Err(err) if is_conflict(&err) && backoff.attempts() + 1 < CONFLICT_ATTEMPTS_MAX => {
                tokio::time::sleep(backoff.next_delay()).await;
            }
            done => return done,
        }
    }
}

/// Whether the object changed since it was read: read again, decide again.
#[must_use]
pub fn is_conflict(err: &kube::Error) -> bool {
    matches!(err, kube::Error::Api(status) if status.code == 409 && status.reason == "Conflict")
}

/// Whether an object of that name is there already.
#[must_use]
pub fn is_already_exists(err: &kube::Error) -> bool {
    matches!(err, kube::Error::Api(status) if status.reason == "AlreadyExists")
}

/// Whether the object is not there.
#[must_use]
pub fn is_not_found(err: &kube::Error) -> bool {
    matches!(err, kube::Error::Api(status) if status.code == 404)
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn conflict() -> kube::Error {
        kube::Error::Api(Status::failure("stale", "Conflict").with_code(409).boxed())
    }

    #[test]
    fn delays_double_up_to_the_limit_and_are_jittered_by_half() {
        let limits =
            RetryLimits { delay_min: Duration::from_millis(10), delay_max: Duration::from_secs(1) };
        let rng = Rng::seeded(1);
        for (attempt, full_ms) in [(0, 10), (1, 20), (6, 640), (7, 1000), (40, 1000)] {
            let full = Duration::from_millis(full_ms);
            let delay = retry_delay(limits, attempt, &rng);
            assert!(delay >= full / 2 && delay <= full, "attempt {attempt}: {delay:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_conflict_is_retried_until_it_is_gone() {
        let (mut left, rng) = (3, Rng::seeded(1));
        let done = retry_on_conflict(&rng, || {
            left -= 1;
            let outcome = if left > 0 { Err(conflict()) } else { Ok(left) };
            async move { outcome }
        });
        assert_eq!(done.await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lasting_conflict_is_given_up() {
        let (mut tried, rng) = (0, Rng::seeded(1));
        let done = retry_on_conflict::<(), _, _>(&rng, || {
            tried += 1;
            async { Err(conflict()) }
        });
        assert!(is_conflict(&done.await.unwrap_err()));
        assert_eq!(tried, CONFLICT_ATTEMPTS_MAX);
    }
}
