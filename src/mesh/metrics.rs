//! What the mesh counts.

use http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::decisions::Decisions;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeClass {
    code: &'static str,
}

/// Counters of one mesh. Cheap to clone; all clones count into one.
#[derive(Debug, Clone)]
pub struct MeshMetrics {
    ingress_requests: Family<CodeClass, Counter>,
    /// Looked up once: 1xx to 5xx.
    by_class: [Counter; 5],
    /// Time to the head of an ingress response, in seconds.
    pub(super) ingress_seconds: Histogram,
    pub(super) decisions: Decisions,
    pub(super) node_port_connections: Counter,
}

impl Default for MeshMetrics {
    fn default() -> Self {
        let ingress_requests: Family<CodeClass, Counter> = Family::default();
        let by_class = ["1xx", "2xx", "3xx", "4xx", "5xx"]
            .map(|code| ingress_requests.get_or_create(&CodeClass { code }).clone());
        Self {
            ingress_requests,
            by_class,
            ingress_seconds: Histogram::new(exponential_buckets(0.000_25, 2.5, 12)),
            decisions: Decisions::default(),
            node_port_connections: Counter::default(),
        }
    }
}

impl MeshMetrics {
    /// Adds everything to `registry`, under names that start with `edgeorc_mesh`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "edgeorc_mesh_ingress_requests",
            "Requests answered at the ingress, by class of status code",
            self.ingress_requests.clone(),
        );
        registry.register(
            "edgeorc_mesh_ingress_duration_seconds",
            "Time from a request's head to its response's head at the ingress",
            self.ingress_seconds.clone(),
        );
        self.decisions.register(registry);
        registry.register(
            "edgeorc_mesh_node_port_connections",
            "Connections accepted at NodePorts",
            self.node_port_connections.clone(),
        );
    }

    pub(super) fn ingress_answered(&self, status: StatusCode, seconds: f64) {
        let class = usize::from(status.as_u16() / 100).saturating_sub(1);
        if let Some(counter) = self.by_class.get(class) {
            counter.inc();
        }
        self.ingress_seconds.observe(seconds);
    }

    /// Requests sent again so far.
    #[must_use]
    pub fn retries(&self) -> u64 {
        self.decisions.retries_sent()
    }
}
