//! Turns by name, so many a second: what one name does too often waits, and no other name with it.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How often something may be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    /// Lasting, in a second.
    pub(crate) per_second: u32,
    /// At once, after a rest.
    pub(crate) burst: u32,
    /// Longest wait for a turn.
    pub(crate) wait_max: Duration,
}

/// The turn would come too late. Retry later, or tell whoever asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many at the same time")]
pub(crate) struct TooMany;

/// When each name is at rest again: by then all its turns are paid for.
#[derive(Debug)]
pub(crate) struct Pace {
    rate: Rate,
    /// Those at rest are not remembered, so there are as many as names at work.
    rests: Mutex<BTreeMap<String, Instant>>,
}

impl Pace {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, rests: Mutex::default() }
    }

    /// Waits for a turn of `name`; first come, first served.
    ///
    /// # Errors
    ///
    /// [`TooMany`], at once.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe; the turn is lost.
    pub(crate) async fn turn(&self, name: &str) -> Result<(), TooMany> {
        let at = self.take(name, Instant::now())?;
        tokio::time::sleep_until(at).await;
        Ok(())
    }

    fn take(&self, name: &str, now: Instant) -> Result<Instant, TooMany> {
        let step = Duration::from_secs(1) / self.rate.per_second.max(1);
        let ahead = step.saturating_mul(self.rate.burst.saturating_sub(1));
        let mut rests = self.rests.lock();
        rests.retain(|_, rest| *rest > now);
        let rest = rests.get(name).copied().unwrap_or(now);
        let wait = rest.saturating_duration_since(now).saturating_sub(ahead);
        if wait > self.rate.wait_max {
            return Err(TooMany);
        }
        rests.insert(name.to_owned(), rest + step);
        Ok(now + wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_goes_at_once_and_what_is_beyond_waits_for_itself_alone() {
        let wait_max = Duration::from_secs(2);
        let pace = Pace::new(Rate { per_second: 10, burst: 5, wait_max });
        let started = Instant::now();
        for _ in 0..5 {
            pace.turn("a").await.unwrap();
        }
        assert_eq!(started.elapsed(), Duration::ZERO);
        for _ in 0..10 {
            pace.turn("a").await.unwrap();
        }
        assert_eq!(started.elapsed(), Duration::from_secs(1));
        pace.turn("b").await.unwrap();
        assert_eq!(started.elapsed(), Duration::from_secs(1));
        // Many at a time: so many that the last would wait for too long.
        let now = Instant::now();
        let taken = (0..100).filter(|_| pace.take("a", now).is_ok()).count();
        assert_eq!(taken, 20);
        tokio::time::advance(Duration::from_secs(10)).await;
        pace.turn("c").await.unwrap();
        assert_eq!(pace.rests.lock().len(), 1);
    }
}
