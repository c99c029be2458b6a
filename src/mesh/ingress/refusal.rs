//! What the ingress answers by itself when a request goes nowhere.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;
use tokio::time::Instant;
use tracing::{debug, info};

use super::body::AnswerBody;
use crate::mesh::MeshMetrics;
use crate::mesh::call::CallError;

/// Pause between two lines of the log for one kind of bad input.
const LOG_PAUSE_MS: u64 = 60_000;

/// Why a request or a connection was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Not HTTP, or too large a head.
    Malformed,
    /// No head in time.
    TooSlow,
    /// The client does not take what it is sent.
    NotRead,
    /// Host and authority say nothing, or different things.
    Host(&'static str),
    /// Its length is told in two ways.
    Length,
    /// A coding of the body that cannot be undone here.
    Coding,
    /// A method that is not served.
    Method,
    /// The body is larger than the route allows.
    TooLarge,
    /// No route.
    NotFound(String),
    /// The route's backend does not exist; with the status that the route's kind has for that.
    NoBackend(StatusCode),
    /// The pods gave no answer.
    NoEndpoint,
    /// The circuits of all endpoints are open.
    Busy,
    Timeout,
    BadGateway,
    /// A network policy of the pod does not admit this node.
    Denied,
    /// The client's body broke off.
    Broken,
}

impl Refusal {
    fn parts(&self) -> (StatusCode, &str) {
        match self {
            Self::Malformed => (StatusCode::BAD_REQUEST, "the request is malformed"),
            Self::TooSlow | Self::NotRead => (StatusCode::REQUEST_TIMEOUT, "the client is slow"),
            Self::Host(text) => (StatusCode::BAD_REQUEST, text),
            Self::Length => (StatusCode::BAD_REQUEST, "the request has two lengths"),
            Self::Coding => (StatusCode::NOT_IMPLEMENTED, "only chunks are a known coding"),
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not supported"),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "the request's body is too large"),
            Self::NotFound(text) => (StatusCode::NOT_FOUND, text),
            Self::NoBackend(status) => (*status, "the route has no backend for this request"),
            Self::NoEndpoint => (StatusCode::SERVICE_UNAVAILABLE, "no endpoint is ready"),
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, "every endpoint is busy"),
            Self::Timeout => (StatusCode::GATEWAY_TIMEOUT, "the endpoint gave no answer in time"),
            Self::BadGateway => (StatusCode::BAD_GATEWAY, "the endpoint gave no answer"),
            Self::Denied => (StatusCode::SERVICE_UNAVAILABLE, "a network policy denies it"),
            Self::Broken => (StatusCode::BAD_REQUEST, "the request's body broke off"),
        }
    }

    /// Which kind of bad input it is; `None`: an ordinary thing.
    fn kind(&self) -> Option<Kind> {
        match self {
            Self::Malformed => Some(Kind::Malformed),
            Self::TooSlow => Some(Kind::TooSlow),
            Self::NotRead => Some(Kind::NotRead),
            Self::Host(_) => Some(Kind::Host),
            Self::Length => Some(Kind::Length),
            Self::TooLarge => Some(Kind::TooLarge),
            _ => None,
        }
    }

    pub(super) fn answer(&self) -> Response<AnswerBody> {
        let (status, text) = self.parts();
        let body = Full::new(Bytes::from(format!("{text}\n")));
        let mut response = Response::new(AnswerBody::Line { body });
        *response.status_mut() = status;
        let headers = response.headers_mut();
        let kind = HeaderValue::from_static("text/plain; charset=utf-8");
        headers.insert(header::CONTENT_TYPE, kind);
        let is_last = matches!(
            self,
            Self::Host(_)
                | Self::Length
                | Self::Coding
                | Self::Malformed
                | Self::TooLarge
                | Self::TooSlow
                | Self::Broken
        );
        if is_last {
            // What follows on the connection cannot be trusted, or is not wanted.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.parts().1)
    }
}

impl From<CallError> for Refusal {
    fn from(err: CallError) -> Self {
        debug!(%err, "ingress request failed");
        match err {
            CallError::NoEndpoint | CallError::UnknownName(_) => Self::NoEndpoint,
            CallError::CircuitOpen => Self::Busy,
            CallError::Timeout => Self::Timeout,
            CallError::Denied => Self::Denied,
            CallError::RequestBody(_) => Self::Broken,
            _ => Self::BadGateway,
        }
    }
}

/// Kinds of bad input, for metrics and the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Malformed,
    TooSlow,
    NotRead,
    Host,
    Length,
    TooLarge,
}

impl Kind {
    const COUNT: usize = 6;

    fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::TooSlow => "too-slow",
            Self::NotRead => "not-read",
            Self::Host => "host",
            Self::Length => "length",
            Self::TooLarge => "too-large",
        }
    }
}

/// Counts bad input, and writes of each kind at most once a minute.
#[derive(Debug)]
pub(super) struct Refusals {
    metrics: MeshMetrics,
    started: Instant,
    /// When each kind was last logged, in milliseconds since the start plus one, and how many came
    /// since.
    logged: [(AtomicU64, AtomicU64); Kind::COUNT],
}

impl Refusals {
    pub(super) fn new(metrics: MeshMetrics) -> Self {
        Self { metrics, started: Instant::now(), logged: Default::default() }
    }

    /// Returns whether a line was written.
    pub(super) fn note(&self, refusal: &Refusal, from: Option<&HeaderValue>) -> bool {
        let Some(kind) = refusal.kind() else { return false };
        self.metrics.ingress_refused(kind.name());
        let Some((last, unwritten)) = self.logged.get(kind as usize) else { return false };
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1;
        let before = last.load(Ordering::Relaxed);
        let is_due = before == 0 || now.saturating_sub(before) >= LOG_PAUSE_MS;
        let is_mine = is_due
            && last.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if !is_mine {
            unwritten.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        let since = unwritten.swap(0, Ordering::Relaxed);
        let from = from.and_then(|from| from.to_str().ok()).unwrap_or_default();
        info!(reason = kind.name(), peer = from, since, "refused bad input at the ingress");
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_kind_of_bad_input_is_logged_once_a_minute() {
        let refusals = Refusals::new(MeshMetrics::default());
        assert!(refusals.note(&Refusal::Length, None));
        assert!(!refusals.note(&Refusal::Length, None));
        assert!(refusals.note(&Refusal::Host("x"), None));
        assert!(!refusals.note(&Refusal::NoEndpoint, None));
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(!refusals.note(&Refusal::Length, None));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(refusals.note(&Refusal::Length, None));
    }
}
