//! Distributed traces: W3C trace context in, spans out by OTLP.
//!
//! Data in: the header of requests; what happened to them. Data out: the header that goes on;
//! batches of spans, posted to a collector as protobuf.
//!
//! ```text
//! traceparent ── Tracer ── Span ── (dropped: ended) ── queue ── Exporter ══ HTTP ══ collector
//! ```
//!
//! # Invariants
//!
//! - Without a collector nothing is read, made or changed: what a request carries passes untouched.
//! - Nobody who serves a request waits for the collector: a span that finds the queue full is dropped
//!   and counted.
//! - A trace that is not sampled costs its ids and no span.
//! - The exporter is one task; its queue, its batches, its retries and its last flush are bounded.

mod connection;
mod context;
mod export;
mod otlp;
mod span;

#[cfg(test)]
mod export_test;
#[cfg(test)]
pub(crate) mod testing;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderMap;
use tokio::sync::mpsc;

pub use self::context::{TRACEPARENT, TRACESTATE, TraceContext};
pub use self::export::ExportMetrics;
pub(crate) use self::span::known_method;
pub use self::span::{Kind, Span};

use self::context::{Arrived, arrived};
use self::export::{Exporter, QUEUE_MAX};
use self::span::Record;
use crate::config::{Sampling, TracingSettings};
use crate::rt::{Rng, TaskGroup, WallClock};
use crate::telemetry::Metrics;

/// Begins spans. Cheap to clone; all clones are one. The default is off.
#[derive(Debug, Clone, Default)]
pub struct Tracer(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    sampling: Sampling,
    /// Ids below this bound are sampled.
    sampled_below: u64,
    ids: [AtomicU64; 2],
    clock: WallClock,
    queue: mpsc::Sender<Box<Record>>,
    metrics: ExportMetrics,
}

/// What a tracer is made with.
#[derive(Debug)]
pub struct TracerTools {
    /// Counts what becomes of the spans.
    pub metrics: Metrics,
    /// Owner of the exporter.
    pub tasks: TaskGroup,
    /// Tells when spans began.
    pub clock: WallClock,
    /// Seeds the ids.
    pub rng: Rng,
    /// `k8s.node.name` of all spans.
    pub node_name: String,
}

impl Tracer {
    /// Starts to export to where `settings` say; off without. Must be called within a tokio runtime.
    #[must_use]
    pub fn start(settings: Option<TracingSettings>, tools: TracerTools) -> Self {
        let Some(settings) = settings else { return Self::default() };
        let (queue, spans) = mpsc::channel(QUEUE_MAX);
        let metrics = ExportMetrics::default();
        tools.metrics.register(|registry| metrics.register(registry));
        let sampling = settings.sampling;
        let exporter =
            Exporter::new(settings, &tools.node_name, metrics.clone(), tools.rng.clone(), spans);
        tools.tasks.spawn("trace-export", |cancel| exporter.run(cancel));
        Self::feeding(queue, sampling, metrics, &tools)
    }

    fn feeding(
        queue: mpsc::Sender<Box<Record>>,
        sampling: Sampling,
        metrics: ExportMetrics,
        tools: &TracerTools,
    ) -> Self {
        let seed = || AtomicU64::new(tools.rng.below(u64::MAX));
        Self(Some(Arc::new(Inner {
            sampling,
            sampled_below: bound(sampling.ratio),
            ids: [seed(), seed()],
            clock: tools.clock.clone(),
            queue,
            metrics,
        })))
    }

    /// Whether traces are made at all.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// A request has come in from outside: goes on with the trace that it carries, or begins one, and
    /// puts the context for whoever gets the request into its header. The span is there when the
    /// trace is sampled.
    ///
    /// A header that says nothing valid is removed, `tracestate` with it.
    pub fn enter(&self, headers: &mut HeaderMap, name: impl FnOnce() -> String) -> Option<Span> {
        let inner = self.0.as_ref()?;
        let parent = match arrived(headers) {
            Arrived::Valid(parent) => Some(parent),
            Arrived::Nothing => None,
            Arrived::Invalid => {
                headers.remove(TRACEPARENT);
                headers.remove(TRACESTATE);
                None
            }
        };
        let context = inner.context(parent.as_ref());
        headers.insert(TRACEPARENT, context.header());
        if !context.is_sampled() {
            return None;
        }
        let mut span =
            Span::begin(inner, context, parent.map(|one| one.span_id), Kind::Server, name());
        span.set_state(headers);
        Some(span)
    }

    /// A request is on its way to this node's pod: a span within the sampled trace that its header
    /// carries, which the pod is then told of. Nothing else is touched.
    pub fn pass(&self, headers: &mut HeaderMap, name: impl FnOnce() -> String) -> Option<Span> {
        let inner = self.0.as_ref()?;
        let Arrived::Valid(parent) = arrived(headers) else { return None };
        if !parent.is_sampled() {
            return None;
        }
        let context = TraceContext { span_id: inner.span_id(), ..parent };
        headers.insert(TRACEPARENT, context.header());
        let mut span = Span::begin(inner, context, Some(parent.span_id), Kind::Server, name());
        span.set_state(headers);
        Some(span)
    }

    /// A span below `parent`, for a request that is sent on.
    #[must_use]
    pub fn child(&self, parent: &TraceContext, name: String) -> Option<Span> {
        let inner = self.0.as_ref().filter(|_| parent.is_sampled())?;
        let context = TraceContext { span_id: inner.span_id(), ..*parent };
        Some(Span::begin(inner, context, Some(parent.span_id), Kind::Client, name))
    }
}

impl Inner {
    /// The context of a span that begins here.
    fn context(&self, parent: Option<&TraceContext>) -> TraceContext {
        let span_id = self.span_id();
        if let Some(parent) = parent {
            let mut context = TraceContext { span_id, ..*parent };
            if !self.sampling.is_parent_based {
                context.set_sampled(self.is_sampled(&context.trace_id));
            }
            return context;
        }
        let [high, low] = [self.draw(0), self.draw(1)];
        let mut trace_id = [0; 16];
        for (to, from) in
            trace_id.iter_mut().zip(high.to_be_bytes().into_iter().chain(low.to_be_bytes()))
        {
            *to = from;
        }
        let mut context = TraceContext { trace_id, span_id, flags: 0 };
        context.set_sampled(self.is_sampled(&context.trace_id));
        context
    }

    /// By the last bytes of the trace's id, so that all who sample by ratio agree.
    fn is_sampled(&self, trace_id: &[u8; 16]) -> bool {
        let [.., a, b, c, d, e, f, g, h] = *trace_id;
        self.sampling.ratio >= 1.0
            || u64::from_be_bytes([a, b, c, d, e, f, g, h]) < self.sampled_below
    }

    fn span_id(&self) -> [u8; 8] {
        self.draw(1).to_be_bytes()
    }

    /// A number that is not 0, without a lock (SplitMix64).
    fn draw(&self, from: usize) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let [a, b] = &self.ids;
        let state = if from == 0 { a } else { b };
        let mut z = state.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        // An id of zeros means none.
        z.max(1)
    }
}

/// The part `ratio` of all numbers of 64 bits.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a ratio is from 0 to 1, and a bit more or less of it is no matter"
)]
fn bound(ratio: f64) -> u64 {
    (ratio.clamp(0.0, 1.0) * u64::MAX as f64) as u64
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::testing::tracer;
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn headers(parent: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_str(parent).unwrap());
        headers.insert(TRACESTATE, HeaderValue::from_static("a=1,b=2"));
        headers
    }

    fn sampling(ratio: f64, is_parent_based: bool) -> Sampling {
        Sampling { ratio, is_parent_based }
    }

    fn name() -> String {
        "GET".to_owned()
    }

    #[tokio::test]
    async fn without_a_collector_a_request_passes_untouched() {
        let tracer = Tracer::default();
        let mut empty = HeaderMap::new();
        assert!(tracer.enter(&mut empty, || panic!("nothing is made")).is_none());
        // Not even a map: nothing was allocated.
        assert_eq!((empty.len(), empty.capacity()), (0, 0));
        let mut given = headers("not valid");
        assert!(tracer.enter(&mut given, name).is_none());
        assert!(tracer.pass(&mut given, name).is_none());
        assert_eq!(given, headers("not valid"));
    }

    #[tokio::test]
    async fn a_valid_context_is_continued_with_a_new_span() {
        let (tracer, mut spans) = tracer(sampling(0.0, true));
        let mut given = headers(PARENT);
        drop(tracer.enter(&mut given, name).unwrap());
        let text = given[TRACEPARENT].to_str().unwrap();
        assert!(text.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && text.ends_with("-01"));
        assert!(!text.contains("b7ad6b7169203331"));
        assert_eq!(given[TRACESTATE], "a=1,b=2");
        let span = spans.try_recv().unwrap();
        assert_eq!(hex::encode(span.parent.unwrap()), "b7ad6b7169203331");
        assert_eq!(span.context.header(), given[TRACEPARENT]);
        assert_eq!(span.state.as_deref(), Some("a=1,b=2"));
    }

    #[tokio::test]
    async fn an_invalid_context_is_dropped_and_a_trace_begins() {
        let (tracer, mut spans) = tracer(Sampling::default());
        for bad in ["", "x", "00-0-0-01", "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]
        {
            let mut given = headers(bad);
            drop(tracer.enter(&mut given, name).unwrap());
            assert!(!given.contains_key(TRACESTATE), "{bad}");
            let span = spans.try_recv().unwrap();
            assert_eq!(span.parent, None);
            assert_eq!(span.context.header(), given[TRACEPARENT]);
            assert!(!given[TRACEPARENT].to_str().unwrap().contains("0af7"), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_sender_decides_whether_its_trace_is_sampled_unless_it_has_no_say() {
        let not_sampled = PARENT.replace("-01", "-00");
        let (listens, _spans) = tracer(sampling(1.0, true));
        let mut given = headers(&not_sampled);
        assert!(listens.enter(&mut given, name).is_none());
        assert!(given[TRACEPARENT].to_str().unwrap().ends_with("-00"));
        let (deaf, _spans) = tracer(sampling(0.0, false));
        let mut given = headers(PARENT);
        assert!(deaf.enter(&mut given, name).is_none());
        assert!(given[TRACEPARENT].to_str().unwrap().ends_with("-00"));
        let (keen, _spans) = tracer(sampling(1.0, false));
        assert!(keen.enter(&mut headers(&not_sampled), name).is_some());
    }

    #[tokio::test]
    async fn the_ratio_of_traces_that_begin_here_is_kept() {
        let (tracer, mut spans) = tracer(sampling(0.25, true));
        let mut sampled = 0;
        for _ in 0..4000 {
            let mut headers = HeaderMap::new();
            let span = tracer.enter(&mut headers, name);
            let flag = headers[TRACEPARENT].to_str().unwrap().ends_with("-01");
            assert_eq!(span.is_some(), flag);
            sampled += usize::from(flag);
            drop(span);
            let _ = spans.try_recv();
        }
        assert!((850..1150).contains(&sampled), "{sampled}");
    }

    #[tokio::test]
    async fn on_the_way_to_a_pod_only_a_sampled_trace_gets_a_span() {
        let (tracer, mut spans) = tracer(Sampling::default());
        let mut given = headers(PARENT);
        drop(tracer.pass(&mut given, name).unwrap());
        let span = spans.try_recv().unwrap();
        assert_eq!(span.context.header(), given[TRACEPARENT]);
        for untouched in [PARENT.replace("-01", "-00"), "bad".to_owned()] {
            let mut given = headers(&untouched);
            assert!(tracer.pass(&mut given, name).is_none());
            assert_eq!(given, headers(&untouched));
        }
        let mut empty = HeaderMap::new();
        assert!(tracer.pass(&mut empty, name).is_none() && empty.is_empty());
    }
}
