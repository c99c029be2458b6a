//! How long a failed pod of a daemon set stays before its node gets another one.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// The first pause, and the longest: each is double the one before.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15 * 60));

/// The pauses by set and node. Bounded by their numbers; forgotten when nothing failed for two of the
/// longest.
#[derive(Debug, Default)]
pub(super) struct Pauses(BTreeMap<(String, String), Pause>);

#[derive(Debug, Clone, Copy)]
struct Pause {
    length: Duration,
    since: Instant,
}

impl Pauses {
    /// The nodes on which the set `uid` has to wait, and how long.
    pub(super) fn left(&self, uid: &str, now: Instant) -> BTreeMap<String, Duration> {
        let of_set = self.0.iter().filter(|((of, _), _)| of == uid);
        of_set
            .filter_map(|((_, node), pause)| {
                let left = (pause.since + pause.length).checked_duration_since(now)?;
                (!left.is_zero()).then(|| (node.clone(), left))
            })
            .collect()
    }

    /// A failed pod of the set was replaced: the next one stays longer.
    pub(super) fn replaced(&mut self, uid: &str, node: &str, now: Instant) {
        self.0.retain(|_, pause| now.duration_since(pause.since) < PAUSES.1 * 2);
        let key = (uid.to_owned(), node.to_owned());
        let length = self.0.get(&key).map_or(PAUSES.0, |was| (was.length * 2).min(PAUSES.1));
        self.0.insert(key, Pause { length, since: now });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_double_up_to_a_quarter_of_an_hour_and_are_forgotten() {
        let mut pauses = Pauses::default();
        let left = |pauses: &Pauses| pauses.left("s", Instant::now()).get("n").copied();
        assert_eq!(left(&pauses), None, "the first is replaced at once");
        for seconds in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900] {
            pauses.replaced("s", "n", Instant::now());
            assert_eq!(left(&pauses), Some(Duration::from_secs(seconds)));
            assert!(pauses.left("other", Instant::now()).is_empty());
            tokio::time::advance(Duration::from_secs(seconds)).await;
            assert_eq!(left(&pauses), None);
        }
        tokio::time::advance(Duration::from_secs(1800)).await;
        pauses.replaced("s", "n", Instant::now());
        assert_eq!(left(&pauses), Some(Duration::from_secs(1)));
    }
}
