//! Request counters.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use crate::telemetry::Metrics;

/// Upper bounds of the duration histogram, in seconds.
const BUCKETS: [f64; 9] = [0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    verb: &'static str,
    resource: &'static str,
    code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Verb {
    verb: &'static str,
}

/// Counts and times requests. Verbs and resources come from closed sets.
#[derive(Debug, Clone)]
pub(super) struct Stats {
    requests: Family<Request, Counter>,
    duration: Family<Verb, Histogram, fn() -> Histogram>,
}

impl Stats {
    pub(super) fn register(metrics: &Metrics) -> Self {
        let new: fn() -> Histogram = || Histogram::new(BUCKETS);
        let stats =
            Self { requests: Family::default(), duration: Family::new_with_constructor(new) };
        metrics.register(|registry| {
            let requests = stats.requests.clone();
            registry.register(
                "edgeorc_apiserver_requests",
                "Requests by verb, resource and code",
                requests,
            );
            let help = "Time until the response head, by verb";
            registry.register(
                "edgeorc_apiserver_request_duration_seconds",
                help,
                stats.duration.clone(),
            );
        });
        stats
    }

    pub(super) fn record(
        &self,
        verb: &'static str,
        resource: &'static str,
        code: u16,
        took: Duration,
    ) {
        self.requests.get_or_create(&Request { verb, resource, code }).inc();
        self.duration.get_or_create(&Verb { verb }).observe(took.as_secs_f64());
    }
}
