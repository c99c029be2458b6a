//! How long a failed pod of a daemon set stays before its node gets another one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use tokio::time::Instant;

use crate::controllers::daemon_set::nodes::target;
use crate::controllers::daemon_set::plan::Why;

/// The first pause, and the longest: each is double the one before.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15 * 60));

/// The pauses by set and node, those of its present generation. Bounded by their numbers; forgotten when nothing failed for two of the
/// longest.
#[derive(Debug, Default)]
pub(super) struct Pauses(BTreeMap<(SetAt, String), Pause>);

/// A set by its uid, at one generation: what was mended is tried at once.
type SetAt = (String, i64);

fn set_at(set: &DaemonSet) -> SetAt {
    (set.uid().unwrap_or_default(), set.metadata.generation.unwrap_or(0))
}

#[derive(Debug, Clone, Copy)]
struct Pause {
    length: Duration,
    since: Instant,
}

impl Pauses {
    /// The nodes on which the set has to wait, and how long.
    pub(super) fn left(&self, set: &DaemonSet, now: Instant) -> BTreeMap<String, Duration> {
        let set = set_at(set);
        let of_set = self.0.iter().filter(|((of, _), _)| *of == set);
        of_set
            .filter_map(|((_, node), pause)| {
                let left = (pause.since + pause.length).checked_duration_since(now)?;
                (!left.is_zero()).then(|| (node.clone(), left))
            })
            .collect()
    }

    /// Notes which of the set's pods go because they have failed: the next one on their node stays
    /// longer.
    pub(super) fn note(&mut self, set: &DaemonSet, doomed: &[(Arc<Pod>, Why)], now: Instant) {
        for (pod, _) in doomed.iter().filter(|(_, why)| *why == Why::Failed) {
            self.replaced(set, target(pod).unwrap_or_default(), now);
        }
    }

    fn replaced(&mut self, set: &DaemonSet, node: &str, now: Instant) {
        self.0.retain(|_, pause| now.duration_since(pause.since) < PAUSES.1 * 2);
        let at = set_at(set);
        self.0.retain(|((uid, generation), _), _| *uid != at.0 || *generation == at.1);
        let key = (at, node.to_owned());
        let length = self.0.get(&key).map_or(PAUSES.0, |was| (was.length * 2).min(PAUSES.1));
        self.0.insert(key, Pause { length, since: now });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(uid: &str, generation: i64) -> DaemonSet {
        let metadata = json!({"name": "d", "uid": uid, "generation": generation});
        serde_json::from_value(json!({ "metadata": metadata })).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_double_up_to_a_quarter_of_an_hour_and_are_forgotten() {
        let mut pauses = Pauses::default();
        let one = set("s", 1);
        let left = |pauses: &Pauses| pauses.left(&one, Instant::now()).get("n").copied();
        assert_eq!(left(&pauses), None, "the first is replaced at once");
        for seconds in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900] {
            pauses.replaced(&one, "n", Instant::now());
            assert_eq!(left(&pauses), Some(Duration::from_secs(seconds)));
            assert!(pauses.left(&set("other", 1), Instant::now()).is_empty());
            tokio::time::advance(Duration::from_secs(seconds)).await;
            assert_eq!(left(&pauses), None);
        }
        tokio::time::advance(Duration::from_secs(1800)).await;
        pauses.replaced(&one, "n", Instant::now());
        assert_eq!(left(&pauses), Some(Duration::from_secs(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn only_failures_are_noted_and_what_was_mended_is_tried_at_once() {
        let mut pauses = Pauses::default();
        let pod = |node: &str| -> Arc<Pod> {
            let spec = json!({"nodeName": node, "containers": []});
            Arc::new(serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap())
        };
        let doomed = [
            (pod("a"), Why::Failed),
            (pod("b"), Why::Succeeded),
            (pod("c"), Why::Surplus),
            (pod("d"), Why::Outdated),
        ];
        pauses.note(&set("s", 1), &doomed, Instant::now());
        let left = |generation: i64| pauses.left(&set("s", generation), Instant::now());
        assert_eq!(left(1), BTreeMap::from([("a".to_owned(), Duration::from_secs(1))]));
        assert_eq!(left(2), BTreeMap::new());
    }
}
