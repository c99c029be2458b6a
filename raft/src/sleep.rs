//! Notices that the machine was suspended: the clock of the runtime stands still meanwhile, and what it says
//! of the age of an answer is too little.

use std::time::Duration;

use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// Two looks at the clocks may differ by this much without a sleep: the thread may be held up between
/// reading one and the other.
const JITTER: Duration = Duration::from_millis(100);

/// When this machine was last found to have slept.
#[derive(Debug, Default)]
pub(crate) struct Sleep(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// All sleep since the machine was started, as far as it was seen.
    slept: Option<Duration>,
    noticed: Option<Instant>,
}

impl Sleep {
    /// When a sleep was last noticed, which is at the first of these calls after it. Answers to what was
    /// sent earlier may be older than they look.
    pub(crate) fn noticed(&self) -> Option<Instant> {
        // In this order: what is held up between the two looks like less sleep, never like more.
        let since_boot = read(ClockId::Boottime);
        let awake = read(ClockId::Monotonic);
        self.look(since_boot.saturating_sub(awake), Instant::now())
    }

    fn look(&self, slept: Duration, now: Instant) -> Option<Instant> {
        let mut seen = self.0.lock();
        let known = *seen.slept.get_or_insert(slept);
        if slept > known.saturating_add(JITTER) {
            seen.noticed = Some(now);
        }
        seen.slept = Some(known.max(slept));
        seen.noticed
    }
}

fn read(clock: ClockId) -> Duration {
    let now = clock_gettime(clock);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_sleep_is_noticed_once_and_jitter_is_none() {
        let sleep = Sleep::default();
        let hour = Duration::from_secs(3600);
        assert_eq!(sleep.look(hour, Instant::now()), None, "it slept before this process began");
        assert_eq!(sleep.look(hour - JITTER, Instant::now()), None);
        assert_eq!(sleep.look(hour + JITTER, Instant::now()), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        let woke = Instant::now();
        assert_eq!(sleep.look(hour + 3 * JITTER, woke), Some(woke));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(sleep.look(hour + 3 * JITTER, Instant::now()), Some(woke));
    }

    #[test]
    fn a_machine_that_does_not_sleep_is_found_awake() {
        let sleep = Sleep::default();
        assert!(sleep.noticed().is_none() && sleep.noticed().is_none());
    }
}
