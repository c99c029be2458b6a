//! Back-off by name: what failed lately, and when it may be tried again.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Names remembered; the one that may be tried the soonest is forgotten first.
const NAMES_MAX: usize = 4096;

/// First and longest wait of a back-off that doubles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackoffSettings {
    /// Wait after the first failure.
    pub min: Duration,
    /// Longest wait.
    pub max: Duration,
}

/// A failure that is remembered.
#[derive(Debug, Clone)]
pub(super) struct Failed {
    /// When the next try may be.
    pub(super) until: Instant,
    /// What was said.
    pub(super) message: String,
    wait: Duration,
}

impl Failed {
    /// How long it is to wait still.
    pub(super) fn remaining(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }
}

/// Failures by name. A wait doubles with each failure in a row, and starts again when a name was
/// left alone for twice the longest wait.
#[derive(Debug)]
pub(super) struct Backoffs {
    settings: BackoffSettings,
    failed: Mutex<BTreeMap<String, Failed>>,
}

impl Backoffs {
    pub(super) fn new(settings: BackoffSettings) -> Self {
        Self { settings, failed: Mutex::default() }
    }

    /// The last failure, if it is too early for another try.
    pub(super) fn waiting(&self, name: &str) -> Option<Failed> {
        self.failed.lock().get(name).filter(|failed| failed.until > Instant::now()).cloned()
    }

    /// Notes a failure; how long to wait now, at least `wait_min`.
    pub(super) fn failed(&self, name: &str, message: &str, wait_min: Duration) -> Duration {
        let BackoffSettings { min, max } = self.settings;
        let now = Instant::now();
        let mut all = self.failed.lock();
        all.retain(|_, failed| failed.until + max.saturating_mul(2) > now);
        let wait = all.get(name).map_or(min, |last| last.wait.saturating_mul(2)).min(max);
        let until = now + wait.max(wait_min).min(max);
        all.insert(name.to_owned(), Failed { until, message: message.to_owned(), wait });
        if all.len() > NAMES_MAX
            && let Some(soonest) =
                all.iter().min_by_key(|(_, failed)| failed.until).map(|(name, _)| name.clone())
        {
            all.remove(&soonest);
        }
        until - now
    }

    /// Forgets a name that worked.
    pub(super) fn worked(&self, name: &str) {
        self.failed.lock().remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_double_up_to_the_longest_and_start_again_after_success() {
        let settings = BackoffSettings { min: Duration::from_secs(1), max: Duration::from_secs(5) };
        let all = Backoffs::new(settings);
        let mut waits = Vec::new();
        for _ in 0..4 {
            waits.push(all.failed("a", "no", Duration::ZERO).as_secs());
            tokio::time::advance(all.waiting("a").unwrap().remaining()).await;
            assert!(all.waiting("a").is_none());
        }
        assert_eq!(waits, [1, 2, 4, 5]);
        all.worked("a");
        assert_eq!(all.failed("a", "no", Duration::from_secs(3)).as_secs(), 3);
        assert!(all.waiting("b").is_none());
    }
}
