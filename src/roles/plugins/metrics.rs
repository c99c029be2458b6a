//! What is counted of plugins.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    /// As the configuration calls it: there are as many as an administrator names.
    plugin: String,
    result: &'static str,
}

/// Counters of one server. Cheap to clone; all clones count into one.
#[derive(Debug, Clone)]
pub(crate) struct PluginMetrics {
    calls: Family<Call, Counter>,
    seconds: Histogram,
}

impl Default for PluginMetrics {
    fn default() -> Self {
        // From 10 µs to 0.6 s.
        let seconds = Histogram::new(exponential_buckets(0.000_01, 4.0, 9));
        Self { calls: Family::default(), seconds }
    }
}

impl PluginMetrics {
    /// Adds everything to `registry`.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "edgeorc_scheduler_plugin_calls",
            "Calls of the scheduler's plugins that are components, by plugin and result",
            self.calls.clone(),
        );
        registry.register(
            "edgeorc_scheduler_plugin_call_seconds",
            "Time that these calls took",
            self.seconds.clone(),
        );
    }

    pub(super) fn called(&self, plugin: &str, is_ok: bool, seconds: f64) {
        let result = if is_ok { "ok" } else { "failed" };
        self.calls.get_or_create(&Call { plugin: plugin.to_owned(), result }).inc();
        self.seconds.observe(seconds);
    }
}
