//! What is counted of evictions.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::config::Signal;

/// Why a pod was evicted for itself: it used more disk than its limits.
const LIMITS: &str = "limits";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Cause {
    signal: &'static str,
}

/// Counters of one node. Cheap to clone; all clones count into one.
#[derive(Debug, Clone)]
pub(crate) struct EvictionMetrics(Family<Cause, Counter>);

impl Default for EvictionMetrics {
    fn default() -> Self {
        let evictions = Family::default();
        for signal in Signal::ALL.map(Signal::name).into_iter().chain([LIMITS]) {
            // From zero on: what never happened is seen, too.
            let evictions: &Family<Cause, Counter> = &evictions;
            drop(evictions.get_or_create(&Cause { signal }));
        }
        Self(evictions)
    }
}

impl EvictionMetrics {
    /// Adds everything to `registry`.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "edgeorc_agent_evictions",
            "Pods that this node evicted, by what it was short of, or because of their own limits",
            self.0.clone(),
        );
    }

    /// `None`: the pod's own limits.
    pub(super) fn evicted(&self, signal: Option<Signal>) {
        let signal = signal.map_or(LIMITS, Signal::name);
        self.0.get_or_create(&Cause { signal }).inc();
    }

    #[cfg(test)]
    pub(super) fn count(&self, signal: Option<Signal>) -> u64 {
        let signal = signal.map_or(LIMITS, Signal::name);
        self.0.get_or_create(&Cause { signal }).get()
    }
}
