//! What the mesh counts.

use std::sync::Arc;

use http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::decisions::Decisions;
use super::policy::Denials;
use super::table::Table;
use super::traffic::{self, SeriesSet};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeClass {
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SeriesKind {
    kind: &'static str,
}

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Counters of one mesh. Cheap to clone; all clones count into one.
#[derive(Debug, Clone)]
pub struct MeshMetrics {
    ingress_requests: Family<CodeClass, Counter>,
    /// Looked up once: 1xx to 5xx.
    by_class: [Counter; 5],
    /// Time to the head of an ingress response, in seconds.
    pub(super) ingress_seconds: Histogram,
    pub(super) decisions: Decisions,
    ingress_refused: Family<Reason, Counter>,
    pub(super) routes: Arc<SeriesSet>,
    pub(super) services: Arc<SeriesSet>,
    /// Each request is counted once in the cluster: on the pod's node if that sees it, else on the
    /// node that asks.
    pub(super) pods: Arc<SeriesSet>,
    series_folded: Family<SeriesKind, Counter>,
    pub(super) node_port_connections: Counter,
    pub(super) policy_denials: Arc<Denials>,
}

impl Default for MeshMetrics {
    fn default() -> Self {
        let ingress_requests: Family<CodeClass, Counter> = Family::default();
        let by_class =
            CLASSES.map(|code| ingress_requests.get_or_create(&CodeClass { code }).clone());
        let series_folded: Family<SeriesKind, Counter> = Family::default();
        let set = |kind, labels, max| {
            let folded = series_folded.get_or_create_owned(&SeriesKind { kind });
            Arc::new(SeriesSet::new(kind, labels, max, folded))
        };
        Self {
            routes: set("route", &["route"], traffic::ROUTES_MAX),
            services: set("service", &["namespace", "service"], traffic::SERVICES_MAX),
            pods: set("pod", &["namespace", "pod"], traffic::PODS_MAX),
            series_folded: series_folded.clone(),
            ingress_requests,
            by_class,
            ingress_seconds: Histogram::new(exponential_buckets(0.000_25, 2.5, 12)),
            decisions: Decisions::default(),
            ingress_refused: Family::default(),
            node_port_connections: Counter::default(),
            policy_denials: Arc::default(),
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
            "edgeorc_mesh_ingress_refused",
            "Bad input refused at the ingress, by what was wrong",
            self.ingress_refused.clone(),
        );
        for set in [&self.routes, &self.services, &self.pods] {
            registry.register_collector(Box::new(Arc::clone(set)));
        }
        registry.register(
            "edgeorc_mesh_series_folded",
            "Routes, Services and pods that are counted as `other` since there are too many",
            self.series_folded.clone(),
        );
        registry.register(
            "edgeorc_mesh_node_port_connections",
            "Connections accepted at NodePorts",
            self.node_port_connections.clone(),
        );
        self.policy_denials.register(registry);
    }

    pub(super) fn ingress_answered(&self, status: StatusCode, seconds: f64) {
        let class = usize::from(status.as_u16() / 100).saturating_sub(1);
        if let Some(counter) = self.by_class.get(class) {
            counter.inc();
        }
        self.ingress_seconds.observe(seconds);
    }

    pub(super) fn ingress_refused(&self, reason: &'static str) {
        self.ingress_refused.get_or_create(&Reason { reason }).inc();
    }

    /// Drops the series of routes, Services and pods that `table` does not have.
    pub(super) fn forget(&self, table: &Table) {
        let routes = table.ingress.names();
        self.routes.retain(|key| key.first().is_some_and(|name| routes.contains(name.as_str())));
        self.services.retain(|key| match key {
            [namespace, name] => {
                table.routes.services.contains_key(&(namespace.clone(), name.clone()))
            }
            _ => false,
        });
        let pods = table.pod_names();
        self.pods.retain(|key| match key {
            [namespace, name] => pods.contains(&(namespace.as_str(), name.as_str())),
            _ => false,
        });
    }

    /// Requests sent again so far.
    #[must_use]
    pub fn retries(&self) -> u64 {
        self.decisions.retries_sent()
    }
}
