//! What the mesh counts.

use std::collections::BTreeSet;
use std::sync::Arc;

use http::StatusCode;
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::decisions::Decisions;
use super::policy::Denials;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeClass {
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteCode {
    route: String,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteName {
    route: String,
}

/// Routes that have counters of their own; further ones share those of `other`.
const ROUTES_MAX: usize = 256;
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

type Seconds = Family<RouteName, Histogram, fn() -> Histogram>;

/// Counters of one route. Cheap to clone; all clones count into one.
#[derive(Debug, Clone)]
pub(super) struct RouteStats {
    by_class: [Counter; 5],
    seconds: Histogram,
}

impl RouteStats {
    pub(super) fn answered(&self, status: StatusCode, seconds: f64) {
        let class = usize::from(status.as_u16() / 100).saturating_sub(1);
        if let Some(counter) = self.by_class.get(class) {
            counter.inc();
        }
        self.seconds.observe(seconds);
    }
}

fn latencies() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 4.0, 8))
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
    ingress_refused: Family<Reason, Counter>,
    route_requests: Family<RouteCode, Counter>,
    route_seconds: Seconds,
    /// Names of the routes that are counted.
    routes: Arc<Mutex<BTreeSet<String>>>,
    pub(super) node_port_connections: Counter,
    pub(super) policy_denials: Arc<Denials>,
}

impl Default for MeshMetrics {
    fn default() -> Self {
        let ingress_requests: Family<CodeClass, Counter> = Family::default();
        let by_class =
            CLASSES.map(|code| ingress_requests.get_or_create(&CodeClass { code }).clone());
        Self {
            ingress_requests,
            by_class,
            ingress_seconds: Histogram::new(exponential_buckets(0.000_25, 2.5, 12)),
            decisions: Decisions::default(),
            ingress_refused: Family::default(),
            route_requests: Family::default(),
            route_seconds: Family::new_with_constructor(latencies),
            routes: Arc::default(),
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
        registry.register(
            "edgeorc_mesh_route_requests",
            "Requests answered, by route and class of status code",
            self.route_requests.clone(),
        );
        registry.register(
            "edgeorc_mesh_route_duration_seconds",
            "Time from a request's head to its response's head, by route",
            self.route_seconds.clone(),
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

    /// The counters of a route. Names are as many as there are routes: what is more than
    /// [`ROUTES_MAX`] is counted together.
    pub(super) fn route(&self, name: &str) -> RouteStats {
        let mut routes = self.routes.lock();
        let is_known = routes.contains(name);
        let name = if is_known || routes.len() < ROUTES_MAX { name } else { "other" };
        if !is_known && name != "other" {
            routes.insert(name.to_owned());
        }
        drop(routes);
        let counter = |code| {
            let labels = RouteCode { route: name.to_owned(), code };
            self.route_requests.get_or_create(&labels).clone()
        };
        let seconds = self.route_seconds.get_or_create(&RouteName { route: name.to_owned() });
        RouteStats { by_class: CLASSES.map(counter), seconds: seconds.clone() }
    }

    /// Requests sent again so far.
    #[must_use]
    pub fn retries(&self) -> u64 {
        self.decisions.retries_sent()
    }
}
