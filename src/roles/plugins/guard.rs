//! A loaded plugin, and what keeps a bad one from costing more than a little.

use std::sync::Arc;
use std::time::Duration;

use edgeorc_runtime::{PluginError, PluginNode, PluginPod, SchedulerPlugin};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::roles::plugins::metrics::PluginMetrics;
use crate::scheduler::{Extension, ExtensionError, NodeFacts, PodFacts};

/// After a failure a plugin is not called for this long, twice as long after each further one.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Hears of the first failure of each pause.
pub(super) type Tell = Arc<dyn Fn(&str) + Send + Sync>;

/// A plugin behind a breaker: one that fails is left alone for a while.
pub(crate) struct Guarded {
    name: String,
    plugin: Mutex<SchedulerPlugin>,
    breaker: Mutex<Breaker>,
    metrics: PluginMetrics,
    tell: Tell,
}

#[derive(Debug, Default)]
struct Breaker {
    pause: Duration,
    /// Until when it is not called, and why.
    open: Option<(Instant, String)>,
}

impl Breaker {
    fn refusal(&self, now: Instant) -> Option<&str> {
        self.open.as_ref().filter(|(until, _)| now < *until).map(|(_, why)| why.as_str())
    }

    fn worked(&mut self) {
        *self = Self::default();
    }

    fn failed(&mut self, now: Instant, why: String) {
        self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        self.open = Some((now + self.pause, why));
    }
}

impl Guarded {
    pub(super) fn new(
        name: &str,
        plugin: SchedulerPlugin,
        metrics: PluginMetrics,
        tell: Tell,
    ) -> Self {
        let (plugin, breaker) = (Mutex::new(plugin), Mutex::default());
        Self { name: name.to_owned(), plugin, breaker, metrics, tell }
    }

    fn call<T>(
        &self,
        call: impl FnOnce(&mut SchedulerPlugin) -> Result<T, PluginError>,
    ) -> Result<T, ExtensionError> {
        let began = Instant::now();
        if let Some(why) = self.breaker.lock().refusal(began) {
            return Err(ExtensionError(why.to_owned()));
        }
        let answer = call(&mut self.plugin.lock());
        self.metrics.called(&self.name, answer.is_ok(), began.elapsed().as_secs_f64());
        answer.inspect(|_| self.breaker.lock().worked()).map_err(|error| {
            let why = error.to_string();
            self.breaker.lock().failed(Instant::now(), why.clone());
            tracing::warn!(plugin = self.name, err = why, "a scheduler plugin failed");
            (self.tell)(&why);
            ExtensionError(why)
        })
    }
}

impl Extension for Guarded {
    fn filter(
        &self,
        pod: &PodFacts<'_>,
        node: NodeFacts<'_>,
        time_max: Duration,
    ) -> Result<Result<(), String>, ExtensionError> {
        self.call(|plugin| plugin.filter(&of_pod(pod), &of_node(node), time_max))
    }

    fn score(
        &self,
        pod: &PodFacts<'_>,
        node: NodeFacts<'_>,
        time_max: Duration,
    ) -> Result<i64, ExtensionError> {
        self.call(|plugin| plugin.score(&of_pod(pod), &of_node(node), time_max))
    }
}

/// Stands in for a plugin that is not here.
pub(super) struct Absent(pub(super) String);

impl Extension for Absent {
    fn filter(
        &self,
        _: &PodFacts<'_>,
        _: NodeFacts<'_>,
        _: Duration,
    ) -> Result<Result<(), String>, ExtensionError> {
        Err(ExtensionError(self.0.clone()))
    }

    fn score(
        &self,
        _: &PodFacts<'_>,
        _: NodeFacts<'_>,
        _: Duration,
    ) -> Result<i64, ExtensionError> {
        Err(ExtensionError(self.0.clone()))
    }
}

fn of_pod(pod: &PodFacts<'_>) -> PluginPod {
    PluginPod {
        namespace: pod.namespace.to_owned(),
        labels: pairs(pod.labels),
        priority: pod.priority,
        images: pod.images.to_vec(),
        requests: pod.requests.clone(),
    }
}

fn of_node(node: NodeFacts<'_>) -> PluginNode {
    let taints = node.facts.taints.iter();
    let taints = taints.map(|taint| {
        (taint.key.clone(), taint.value.clone().unwrap_or_default(), taint.effect.clone())
    });
    PluginNode {
        name: node.name.to_owned(),
        labels: pairs(&node.facts.labels),
        taints: taints.collect(),
        allocatable: node.allocatable(),
    }
}

fn pairs(of: &std::collections::BTreeMap<String, String>) -> Vec<(String, String)> {
    of.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_fails_is_left_alone_for_longer_each_time_until_it_works() {
        let mut breaker = Breaker::default();
        let start = Instant::now();
        let mut now = start;
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(breaker.refusal(now), None);
            breaker.failed(now, "why".to_owned());
            let almost = now + Duration::from_secs(seconds) - Duration::from_millis(1);
            assert_eq!(breaker.refusal(almost), Some("why"), "{seconds}");
            now += Duration::from_secs(seconds);
        }
        breaker.worked();
        breaker.failed(now, "why".to_owned());
        assert_eq!(breaker.refusal(now + PAUSE_MIN), None);
    }
}
