//! Wall-clock time, for time stamps that people and certificates read.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use tokio::time::Instant;

/// Tells the time of day. The system's in production; set by hand in tests.
///
/// Use `tokio::time` to wait and to measure; this clock may jump.
#[derive(Debug, Clone)]
pub struct WallClock(Source);

#[derive(Debug, Clone)]
enum Source {
    System,
    /// The system's, once it is later than this time and what has gone by since.
    Floored(SystemTime, Instant),
    Manual(Arc<AtomicI64>),
}

impl WallClock {
    /// The system's clock.
    #[must_use]
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// The system's clock, which was known to be at `floor` before: on a machine that wakes up without
    /// knowing the time, this one goes on from there until the system has learnt it.
    #[must_use]
    pub fn not_before(floor: SystemTime) -> Self {
        let is_fine = Self::system().system_time() >= floor;
        Self(if is_fine { Source::System } else { Source::Floored(floor, Instant::now()) })
    }

    /// A clock that stands at `unix_seconds` until [`Self::set`].
    #[must_use]
    pub fn manual(unix_seconds: i64) -> Self {
        Self(Source::Manual(Arc::new(AtomicI64::new(unix_seconds))))
    }

    /// Moves a manual clock; no effect on the system's.
    pub fn set(&self, unix_seconds: i64) {
        if let Source::Manual(at) = &self.0 {
            at.store(unix_seconds, Ordering::Relaxed);
        }
    }

    /// Now, in UTC, with sub-second digits.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        Timestamp::try_from(self.system_time()).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// Now, as Kubernetes writes `metav1.Time`: RFC 3339 with whole seconds.
    #[must_use]
    pub fn now_rfc3339(&self) -> String {
        let now = self.now();
        Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
    }

    /// Now, as the standard library's type.
    #[must_use]
    pub fn system_time(&self) -> SystemTime {
        match &self.0 {
            #[expect(clippy::disallowed_methods, reason = "this is the seam the lint points to")]
            Source::System => SystemTime::now(),
            Source::Floored(floor, since) => {
                Self::system().system_time().max(*floor + since.elapsed())
            }
            Source::Manual(at) => {
                let seconds = u64::try_from(at.load(Ordering::Relaxed)).unwrap_or(0);
                UNIX_EPOCH + Duration::from_secs(seconds)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_woke_up_too_early_goes_on_from_where_it_was() {
        let system = WallClock::system().system_time();
        let year = Duration::from_secs(365 * 86_400);
        let clock = WallClock::not_before(system + year);
        assert!(clock.system_time() >= system + year);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(clock.system_time() >= system + year + Duration::from_secs(60));
        let fine = WallClock::not_before(system - year);
        assert!(fine.system_time() < system + year);
    }

    #[test]
    fn a_manual_clock_stands_where_it_was_set() {
        let clock = WallClock::manual(0);
        assert_eq!(clock.now_rfc3339(), "1970-01-01T00:00:00Z");
        clock.set(1_700_000_000);
        assert_eq!(clock.now_rfc3339(), "2023-11-14T22:13:20Z");
    }
}
