//! Requests, errors and latencies by route, Service and pod.
//!
//! Series come at the first request and go with the object they are of. Their number is bounded for
//! each kind: what is beyond is counted together as `other`, and that this happened is counted too.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;

/// Routes that have series of their own.
pub(super) const ROUTES_MAX: usize = 256;
/// Services that have series of their own.
pub(super) const SERVICES_MAX: usize = 512;
/// Pods that have series of their own: twice what a node runs, for those elsewhere that only the
/// asking node sees.
pub(super) const PODS_MAX: usize = 512;
/// What series beyond these are called.
const OTHER: &str = "other";
/// Classes of answers; the last is none.
const CODES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "none"];
/// Upper bounds of the buckets, in microseconds.
const BOUNDS_US: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];
/// Buckets, with the one for all that is slower.
const BUCKETS: usize = BOUNDS_US.len() + 1;
/// Looks back that rates are taken over; with the mesh's pause between two of them half a minute.
const MARKS_MAX: usize = 3;

/// Requests of one route, Service or pod. Counting takes no lock.
#[derive(Debug, Default)]
pub(super) struct RequestStats {
    by_code: [AtomicU64; CODES.len()],
    buckets: [AtomicU64; BUCKETS],
    nanos: AtomicU64,
}

impl RequestStats {
    /// A request was answered after `took`.
    pub(super) fn answered(&self, status: StatusCode, took: Duration) {
        self.count(usize::from(status.as_u16() / 100).saturating_sub(1), took);
    }

    /// A request got no answer.
    pub(super) fn failed(&self, took: Duration) {
        self.count(CODES.len() - 1, took);
    }

    fn count(&self, code: usize, took: Duration) {
        if let Some(counter) = self.by_code.get(code) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let slot = BOUNDS_US.iter().take_while(|bound| micros > **bound).count();
        if let Some(bucket) = self.buckets.get(slot) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Requests so far, with those that failed: no answer, or one from 500 on.
    fn totals(&self) -> (u64, u64) {
        let counts = self.by_code.each_ref().map(|counter| counter.load(Ordering::Relaxed));
        let [.., server, none] = counts;
        (counts.iter().sum(), server.saturating_add(none))
    }
}

/// A series with what is remembered of it for its rate.
#[derive(Debug)]
struct Series {
    stats: Arc<RequestStats>,
    /// When it was looked at, and what it had counted; oldest first.
    marks: VecDeque<(Instant, u64)>,
}

impl Series {
    fn new() -> Self {
        Self { stats: Arc::default(), marks: VecDeque::from([(Instant::now(), 0)]) }
    }

    fn per_second(&self, now: Instant) -> f64 {
        let Some((since, before)) = self.marks.front() else { return 0.0 };
        let seconds = now.saturating_duration_since(*since).as_secs_f64();
        let count = self.stats.totals().0.saturating_sub(*before);
        // What came at once was not more in a second than it was.
        f64_of(count) / seconds.max(1.0)
    }
}

/// What was asked of one Service or pod lately, as seen from this node.
#[derive(Debug, Clone, PartialEq)]
pub struct Traffic {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Requests per second, over the last 20 to 30 s, or since the first one if that is later, but not
    /// over less than a second.
    pub requests_per_second: f64,
    /// Requests so far.
    pub requests: u64,
    /// Of them, those without an answer or with one from 500 on.
    pub errors: u64,
}

/// The series of one kind of object.
pub(super) struct SeriesSet {
    /// What the metrics are called after, as in `edgeorc_mesh_KIND_requests_total`.
    kind: &'static str,
    labels: &'static [&'static str],
    max: usize,
    series: Mutex<BTreeMap<Vec<String>, Series>>,
    /// Objects that found no place.
    folded: Counter,
}

impl fmt::Debug for SeriesSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SeriesSet").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl SeriesSet {
    pub(super) fn new(
        kind: &'static str,
        labels: &'static [&'static str],
        max: usize,
        folded: Counter,
    ) -> Self {
        Self { kind, labels, max, series: Mutex::default(), folded }
    }

    /// The counters of an object; those of `other` when there are too many.
    pub(super) fn of(&self, key: &[&str]) -> Arc<RequestStats> {
        let key: Vec<String> = key.iter().map(|part| (*part).to_owned()).collect();
        let mut series = self.series.lock();
        if let Some(known) = series.get(&key) {
            return Arc::clone(&known.stats);
        }
        let key = if series.len() < self.max {
            key
        } else {
            self.folded.inc();
            self.labels.iter().map(|_| OTHER.to_owned()).collect()
        };
        Arc::clone(&series.entry(key).or_insert_with(Series::new).stats)
    }

    /// Forgets the series of objects that are gone.
    pub(super) fn retain(&self, is_there: impl Fn(&[String]) -> bool) {
        let is_other = |key: &[String]| key.iter().all(|part| part == OTHER);
        self.series.lock().retain(|key, _| is_other(key) || is_there(key));
    }

    /// Takes a look, for rates. Called every [`super::HOUSEKEEPING`].
    pub(super) fn mark(&self) {
        let now = Instant::now();
        for series in self.series.lock().values_mut() {
            series.marks.push_back((now, series.stats.totals().0));
            if series.marks.len() > MARKS_MAX {
                series.marks.pop_front();
            }
        }
    }

    /// What was asked of each object.
    pub(super) fn traffic(&self) -> Vec<Traffic> {
        let now = Instant::now();
        let series = self.series.lock();
        let of = |(key, series): (&Vec<String>, &Series)| {
            let [namespace, name] = key.as_slice() else { return None };
            let (requests, errors) = series.stats.totals();
            let requests_per_second = series.per_second(now);
            let (namespace, name) = (namespace.clone(), name.clone());
            Some(Traffic { namespace, name, requests_per_second, requests, errors })
        };
        series.iter().filter_map(of).collect()
    }

    fn each(
        &self,
        mut write: impl FnMut(&[(&'static str, &str)], &RequestStats) -> fmt::Result,
    ) -> fmt::Result {
        let series = self.series.lock();
        for (key, one) in series.iter() {
            let labels: Vec<_> =
                self.labels.iter().copied().zip(key.iter().map(String::as_str)).collect();
            write(&labels, &one.stats)?;
        }
        Ok(())
    }
}

impl Collector for SeriesSet {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let kind = self.kind;
        let name = format!("edgeorc_mesh_{kind}_requests");
        let help = format!("Requests by {kind} and class of status code; none is no answer");
        let mut metric = encoder.encode_descriptor(&name, &help, None, MetricType::Counter)?;
        self.each(|labels, stats| {
            for (code, counter) in CODES.iter().zip(&stats.by_code) {
                let count = counter.load(Ordering::Relaxed);
                // A class that never was takes no line.
                if count > 0 {
                    let labels = [labels, &[("code", *code)]].concat();
                    metric
                        .encode_family(&labels)?
                        .encode_counter::<NoLabelSet, _, u64>(&count, None)?;
                }
            }
            Ok(())
        })?;
        let name = format!("edgeorc_mesh_{kind}_duration_seconds");
        let help = format!("Time from a request's head to its response's head, by {kind}");
        let mut metric = encoder.encode_descriptor(&name, &help, None, MetricType::Histogram)?;
        self.each(|labels, stats| {
            let counts = stats.buckets.each_ref().map(|bucket| bucket.load(Ordering::Relaxed));
            let bounds =
                BOUNDS_US.iter().map(|micros| f64_of(*micros) / 1e6).chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
            let sum = f64_of(stats.nanos.load(Ordering::Relaxed)) / 1e9;
            let labels = labels.to_vec();
            metric.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                sum,
                counts.iter().sum(),
                &buckets,
                None,
            )
        })
    }
}

/// A Service or a pod, with its counters once there was a request.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) namespace: String,
    pub(super) name: String,
    stats: OnceLock<Arc<RequestStats>>,
}

impl Subject {
    pub(super) fn new(namespace: &str, name: &str) -> Self {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        Self { namespace, name, stats: OnceLock::new() }
    }

    pub(super) fn is(&self, namespace: &str, name: &str) -> bool {
        self.namespace == namespace && self.name == name
    }

    /// Its counters in `set`, which must be the same at each call.
    pub(super) fn stats(&self, set: &SeriesSet) -> &RequestStats {
        self.stats.get_or_init(|| set.of(&[&self.namespace, &self.name]))
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below what a float holds exactly")]
fn f64_of(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn pods(max: usize) -> SeriesSet {
        SeriesSet::new("pod", &["namespace", "pod"], max, Counter::default())
    }

    fn text(set: SeriesSet) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(set));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn requests_errors_and_latencies_are_told_in_prometheus_words() {
        let set = pods(8);
        let stats = set.of(&["default", "a"]);
        stats.answered(StatusCode::OK, MS);
        stats.answered(StatusCode::BAD_GATEWAY, 30 * MS);
        stats.failed(60_000 * MS);
        let text = text(set);
        for line in [
            "# TYPE edgeorc_mesh_pod_requests counter",
            "edgeorc_mesh_pod_requests_total{namespace=\"default\",pod=\"a\",code=\"2xx\"} 1",
            "edgeorc_mesh_pod_requests_total{namespace=\"default\",pod=\"a\",code=\"5xx\"} 1",
            "edgeorc_mesh_pod_requests_total{namespace=\"default\",pod=\"a\",code=\"none\"} 1",
            "edgeorc_mesh_pod_duration_seconds_count{namespace=\"default\",pod=\"a\"} 3",
            "edgeorc_mesh_pod_duration_seconds_sum{namespace=\"default\",pod=\"a\"} 60.031",
            "edgeorc_mesh_pod_duration_seconds_bucket{le=\"0.001\",namespace=\"default\",pod=\"a\"} 1",
            "edgeorc_mesh_pod_duration_seconds_bucket{le=\"10.0\",namespace=\"default\",pod=\"a\"} 2",
            "edgeorc_mesh_pod_duration_seconds_bucket{le=\"+Inf\",namespace=\"default\",pod=\"a\"} 3",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("4xx"));
    }

    #[test]
    fn what_is_beyond_the_limit_is_counted_together_and_told() {
        let set = pods(2);
        for name in ["a", "b", "c", "d", "a"] {
            set.of(&["default", name]).answered(StatusCode::OK, MS);
        }
        assert_eq!(set.folded.get(), 2);
        let traffic = set.traffic();
        let names: Vec<_> = traffic.iter().map(|one| (one.name.as_str(), one.requests)).collect();
        assert_eq!(names, [("a", 2), ("b", 1), ("other", 2)]);
    }

    #[test]
    fn the_series_of_an_object_go_with_it_and_make_room() {
        let set = pods(2);
        for name in ["a", "b", "c"] {
            set.of(&["default", name]).answered(StatusCode::OK, MS);
        }
        set.retain(|key| key != ["default", "a"]);
        set.of(&["default", "d"]).answered(StatusCode::OK, MS);
        let names: Vec<_> = set.traffic().into_iter().map(|one| one.name).collect();
        // `other` takes a place of its own once it is there.
        assert_eq!(names, ["b", "other"]);
        assert!(!text(set).contains("pod=\"a\""));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_requests_are_not_taken_for_a_flood() {
        let set = pods(8);
        let rate = |set: &SeriesSet| set.traffic()[0].requests_per_second;
        for _ in 0..3 {
            set.of(&["default", "a"]).answered(StatusCode::OK, MS);
        }
        for (wait, wanted) in [(0, 3.0), (2, 3.0), (998, 3.0), (3000, 0.75)] {
            tokio::time::advance(wait * MS).await;
            assert!((rate(&set) - wanted).abs() < 1e-3, "{} after {wait} ms more", rate(&set));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn rates_are_those_of_the_last_half_minute() {
        let set = pods(8);
        let stats = set.of(&["default", "a"]);
        let rate = |set: &SeriesSet| set.traffic()[0].requests_per_second;
        for _ in 0..100 {
            stats.answered(StatusCode::OK, MS);
        }
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!((rate(&set) - 10.0).abs() < 1e-9);
        for _ in 0..6 {
            set.mark();
            tokio::time::advance(Duration::from_secs(10)).await;
        }
        assert!(rate(&set) < 1e-9, "{}", rate(&set));
        for _ in 0..60 {
            stats.failed(MS);
        }
        assert!((rate(&set) - 2.0).abs() < 1e-9, "{}", rate(&set));
        assert_eq!(set.traffic()[0].errors, 60);
    }
}
