//! The wait before a container runs again: kubelet's rule, by default in milliseconds.

use std::time::Duration;

use crate::agent::config::RestartBackoff;

/// A run of this many times the longest wait was no crash: kubelet's factor.
const STABLE_FACTOR: u32 = 2;

/// The waits of one container: each is twice the last, until a run was long enough to be called stable.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    settings: RestartBackoff,
    last: Option<Duration>,
}

impl Backoff {
    pub(crate) fn new(settings: RestartBackoff) -> Self {
        Self { settings, last: None }
    }

    /// The wait after a run that lasted `ran`.
    pub(crate) fn next(&mut self, ran: Duration) -> Duration {
        let RestartBackoff { min, max } = self.settings;
        let is_stable = ran >= max.saturating_mul(STABLE_FACTOR);
        let next = match self.last {
            Some(last) if !is_stable => last.saturating_mul(2).min(max),
            Some(_) | None => min,
        };
        self.last = Some(next);
        next
    }
}

/// A wait for people: `40ms`, `2.56s`, `5m0s`.
pub(crate) fn show(wait: Duration) -> String {
    if wait < Duration::from_secs(1) {
        return format!("{}ms", wait.as_millis());
    }
    let (minutes, seconds) = (wait.as_secs() / 60, wait.as_secs() % 60);
    if minutes > 0 {
        return format!("{minutes}m{seconds}s");
    }
    let text = format!("{:.2}", wait.as_secs_f64());
    format!("{}s", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(ran: &[u64]) -> Vec<u64> {
        let mut backoff = Backoff::new(RestartBackoff::default());
        let next = |ms: &u64| backoff.next(Duration::from_millis(*ms)).as_millis();
        ran.iter().map(next).map(|ms| u64::try_from(ms).unwrap()).collect()
    }

    #[test]
    fn waits_double_up_to_the_longest_and_start_again_after_a_stable_run() {
        assert_eq!(
            waits(&[0; 12]),
            [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10_000, 10_000]
        );
        // An app that crashes some time after each start is in a crash loop too.
        assert_eq!(waits(&[300; 4]), [10, 20, 40, 80]);
        assert_eq!(waits(&[300, 300, 20_000, 300]), [10, 20, 10, 20]);
    }

    #[test]
    fn waits_read_as_people_write_them() {
        for (ms, text) in
            [(10, "10ms"), (1000, "1s"), (2560, "2.56s"), (10_000, "10s"), (300_000, "5m0s")]
        {
            assert_eq!(show(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn with_kubernetes_waits_it_is_kubernetes_back_off() {
        let seconds = Duration::from_secs;
        let settings = RestartBackoff { min: seconds(10), max: seconds(300) };
        let mut backoff = Backoff::new(settings);
        let mut next = |ran: u64| backoff.next(seconds(ran)).as_secs();
        let waits: Vec<_> = (0..7).map(|_| next(1)).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(next(599), 300);
        assert_eq!(next(600), 10);
    }
}
