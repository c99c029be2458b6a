//! Rates of CPU use, from counts that only grow.

use std::time::Duration;

use tokio::time::Instant;

/// Shortest time that a rate is told for: the start of a container is no lasting load.
const WINDOW_MIN: Duration = Duration::from_secs(1);

/// CPU time used, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Point {
    pub(super) at: Instant,
    pub(super) used: Duration,
}

/// CPU use so far and lately.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cpu {
    /// Time used in all.
    pub(crate) total: Duration,
    /// Billionths of a core, over `window`.
    pub(crate) rate_nanos: u64,
    /// Time that the rate was measured over.
    pub(crate) window: Duration,
}

/// The last two looks at one count.
#[derive(Debug, Clone, Copy)]
pub(super) struct Track {
    before: Point,
    last: Point,
}

impl Track {
    /// Of something that began to use time at `born`.
    pub(super) fn new(born: Instant) -> Self {
        let birth = Point { at: born, used: Duration::ZERO };
        Self { before: birth, last: birth }
    }

    /// Of something that was here before anybody looked.
    pub(super) fn from(now: Point) -> Self {
        Self { before: now, last: now }
    }

    /// Notes a look.
    pub(super) fn note(&mut self, now: Point) {
        // A count that is smaller began anew.
        self.before = if now.used < self.last.used {
            Point { at: self.last.at, used: Duration::ZERO }
        } else {
            self.last
        };
        self.last = now;
    }

    /// Use as of `now`: the rate goes back to the look before the last one.
    pub(super) fn cpu(&self, now: Point) -> Cpu {
        let window = now.at.saturating_duration_since(self.before.at).max(WINDOW_MIN);
        let used = now.used.checked_sub(self.before.used).unwrap_or(now.used);
        let rate = used.as_nanos().saturating_mul(1_000_000_000) / window.as_nanos().max(1);
        let rate_nanos = u64::try_from(rate).unwrap_or(u64::MAX);
        Cpu { total: now.used, rate_nanos, window }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(start: Instant, seconds: u64, used_ms: u64) -> Point {
        Point { at: start + Duration::from_secs(seconds), used: Duration::from_millis(used_ms) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_covers_the_last_two_looks() {
        let start = Instant::now();
        let mut track = Track::new(start);
        assert_eq!(track.cpu(point(start, 0, 1)).rate_nanos, 1_000_000, "a second at least");
        assert_eq!(track.cpu(point(start, 5, 500)).rate_nanos, 100_000_000);
        track.note(point(start, 10, 1_000));
        track.note(point(start, 20, 6_000));
        let cpu = track.cpu(point(start, 25, 8_500));
        assert_eq!((cpu.rate_nanos, cpu.window), (500_000_000, Duration::from_secs(15)));
        // It was started again.
        track.note(point(start, 30, 100));
        assert_eq!(track.cpu(point(start, 35, 1_500)).rate_nanos, 100_000_000);
    }
}
