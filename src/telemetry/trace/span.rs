//! One step of a request's way.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderMap, Method, StatusCode};
use tokio::time::Instant;

use super::Inner;
use super::context::{TRACESTATE, TraceContext};

/// Bytes of one attribute's text; the rest is cut off.
const TEXT_BYTES_MAX: usize = 1024;
/// Attributes of one span; more are left out and counted.
const ATTRIBUTES_MAX: usize = 32;

/// Which side of a call a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Of the one who is asked.
    Server,
    /// Of the one who asks.
    Client,
}

/// An attribute's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Text(Cow<'static, str>),
    Number(i64),
}

/// What is exported of a span.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) context: TraceContext,
    pub(super) parent: Option<[u8; 8]>,
    pub(super) state: Option<String>,
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) started_at: SystemTime,
    pub(super) started: Instant,
    pub(super) took_nanos: u64,
    pub(super) attributes: Vec<(&'static str, Value)>,
    pub(super) attributes_left_out: u32,
    pub(super) is_error: bool,
}

impl Record {
    /// Nanoseconds since 1970.
    pub(super) fn start_nanos(&self) -> u64 {
        let since = self.started_at.duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A span that goes on; it ends when it is dropped.
#[derive(Debug)]
pub struct Span {
    tracer: Arc<Inner>,
    record: Option<Box<Record>>,
    context: TraceContext,
    /// It was told how its request ended.
    has_outcome: bool,
}

impl Span {
    pub(super) fn begin(
        tracer: &Arc<Inner>,
        context: TraceContext,
        parent: Option<[u8; 8]>,
        kind: Kind,
        name: String,
    ) -> Self {
        let record = Record {
            context,
            parent,
            state: None,
            kind,
            name,
            started_at: tracer.clock.system_time(),
            started: Instant::now(),
            took_nanos: 0,
            attributes: Vec::with_capacity(12),
            attributes_left_out: 0,
            is_error: false,
        };
        let (tracer, record) = (Arc::clone(tracer), Some(Box::new(record)));
        Self { tracer, record, context, has_outcome: false }
    }

    /// Its place in the trace: what children and the next node are told.
    #[must_use]
    pub fn context(&self) -> &TraceContext {
        &self.context
    }

    /// Names it anew, once more is known.
    pub fn rename(&mut self, name: impl FnOnce(&str) -> String) {
        if let Some(record) = &mut self.record {
            record.name = name(&record.name);
        }
    }

    /// Adds an attribute; a long text is cut off.
    pub fn text(&mut self, key: &'static str, text: impl Into<Cow<'static, str>>) {
        let mut text = text.into();
        if text.len() > TEXT_BYTES_MAX {
            let end = (0..=TEXT_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at));
            text = text.get(..end.unwrap_or(0)).unwrap_or_default().to_owned().into();
        }
        self.add(key, Value::Text(text));
    }

    /// Adds an attribute.
    pub fn number(&mut self, key: &'static str, number: impl Into<i64>) {
        self.add(key, Value::Number(number.into()));
    }

    fn add(&mut self, key: &'static str, value: Value) {
        let Some(record) = &mut self.record else { return };
        if record.attributes.len() < ATTRIBUTES_MAX {
            record.attributes.push((key, value));
        } else {
            record.attributes_left_out = record.attributes_left_out.saturating_add(1);
        }
    }

    /// Adds `http.request.method`, by the names that are known.
    pub fn method(&mut self, method: &Method) {
        self.text("http.request.method", known_method(method));
    }

    /// The request was answered: servers are at fault from 500 on, clients from 400 on.
    pub fn answered(&mut self, status: StatusCode) {
        self.has_outcome = true;
        self.number("http.response.status_code", status.as_u16());
        let is_client = self.record.as_ref().is_some_and(|record| record.kind == Kind::Client);
        let is_error = status.is_server_error() || is_client && status.is_client_error();
        if is_error {
            self.text("error.type", status.as_u16().to_string());
            self.mark_error();
        }
    }

    /// The request got no answer, for a reason out of a closed set.
    pub fn failed(&mut self, why: &'static str) {
        self.has_outcome = true;
        self.text("error.type", why);
        self.mark_error();
    }

    fn mark_error(&mut self) {
        if let Some(record) = &mut self.record {
            record.is_error = true;
        }
    }

    pub(super) fn set_state(&mut self, headers: &HeaderMap) {
        let Some(record) = &mut self.record else { return };
        let values = headers.get_all(TRACESTATE).iter().filter_map(|value| value.to_str().ok());
        for value in values {
            let state = record.state.get_or_insert_default();
            if !state.is_empty() {
                state.push(',');
            }
            state.push_str(value);
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if !self.has_outcome {
            self.failed("cancelled");
        }
        let Some(mut record) = self.record.take() else { return };
        record.took_nanos = u64::try_from(record.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        if self.tracer.queue.try_send(record).is_err() {
            self.tracer.metrics.queue_was_full();
        }
    }
}

/// As the semantic conventions have it: methods that are not known are one.
pub(crate) fn known_method(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "CONNECT" => "CONNECT",
        "OPTIONS" => "OPTIONS",
        "TRACE" => "TRACE",
        "PATCH" => "PATCH",
        "QUERY" => "QUERY",
        _ => "_OTHER",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sampling;
    use crate::telemetry::trace::testing::tracer;

    #[tokio::test]
    async fn a_span_ends_when_it_is_dropped_and_says_what_became_of_it() {
        let (tracer, mut spans) = tracer(Sampling::default());
        let begin = || tracer.enter(&mut HeaderMap::new(), || "GET".to_owned()).unwrap();
        let mut fine = begin();
        fine.answered(StatusCode::NOT_FOUND);
        drop(fine);
        let mut bad = begin();
        bad.answered(StatusCode::BAD_GATEWAY);
        let mut asking = tracer.child(bad.context(), "GET".to_owned()).unwrap();
        asking.answered(StatusCode::NOT_FOUND);
        drop((asking, bad, begin()));
        let outcome = |record: &Record| {
            let error = record.attributes.iter().find(|(key, _)| *key == "error.type");
            (record.is_error, error.map(|(_, value)| value.clone()))
        };
        let error = |text: &'static str| (true, Some(Value::Text(text.into())));
        let mut next = || outcome(&spans.try_recv().unwrap());
        assert_eq!(next(), (false, None));
        assert_eq!(next(), error("404"));
        assert_eq!(next(), error("502"));
        assert_eq!(next(), error("cancelled"));
    }

    #[tokio::test]
    async fn what_a_client_sends_has_a_bound() {
        let (tracer, mut spans) = tracer(Sampling::default());
        let mut span = tracer.enter(&mut HeaderMap::new(), || "GET".to_owned()).unwrap();
        span.text("url.path", "ä".repeat(2000));
        for _ in 0..40 {
            span.number("n", 1);
        }
        drop(span);
        let record = spans.try_recv().unwrap();
        let Value::Text(path) = &record.attributes[0].1 else { panic!() };
        assert_eq!(path.len(), 1024);
        assert_eq!(record.attributes.len(), ATTRIBUTES_MAX);
        assert!(record.attributes_left_out > 8);
        assert_eq!(known_method(&Method::from_bytes(b"BREW").unwrap()), "_OTHER");
    }
}
