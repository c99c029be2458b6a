//! One HTTP request to a backend: choose, send, retry elsewhere.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderValue;
use http::request::Parts;
use http::{Method, Request, Response};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::time::Instant;
use tracing::debug;

use super::Mesh;
use super::balancer::{Backend, NoChoice};
use super::decisions::{Fault, Retry};
use super::endpoint::{EndpointState, InFlight};
use super::local::LocalError;
use super::outside;
use super::policy::{Origin, SENDER, Sender};
use super::routes::{Place, Protocol};
use super::traced::Counting;
use super::wire::{self, Carries, DENIED, MESH_ERROR, REFUSED};
use crate::net::http::{HttpError, HttpStream};
use crate::net::{Body, BodyError};
use crate::telemetry::trace::Span;

/// Times a request is sent again at most.
const RETRIES_MAX: usize = 2;
/// Bodies up to this size are kept so that they can be sent again.
const REPLAY_BYTES_MAX: u64 = 64 * 1024;

/// Longest wait for the head of this request's response, in its extensions: what its route says in
/// place of the mesh's own limit.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadTimeout(pub(super) Duration);

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The Service has no endpoint that could take the request. Retry later; nothing was sent.
    #[error("no endpoint is ready")]
    NoEndpoint,
    /// No Service, pod or outside host has the name. Nothing was sent.
    #[error("no such name: {0}")]
    UnknownName(String),
    /// Every endpoint has as many requests in flight as one may have. Retry later; nothing was sent.
    #[error("every endpoint is busy: the circuit is open")]
    CircuitOpen,
    /// An endpoint broke off or could not be reached; it may have acted, unless the method is safe.
    #[error("the endpoint gave no answer: {0}")]
    Broken(#[source] BodyError),
    /// No answer in time; the endpoint may have acted.
    #[error("no answer in time")]
    Timeout,
    /// The request's own body could not be read to its end; no endpoint is at fault.
    #[error("the request's body broke off: {0}")]
    RequestBody(#[source] BodyError),
    /// A network policy of the pod that asks, or of the one that is asked, forbids it. Give up;
    /// nothing was sent to a pod.
    #[error("a network policy denies it")]
    Denied,
    /// The address or scheme is one that guests may not use. Give up.
    #[error("{0} cannot be reached from a pod")]
    Forbidden(String),
}

/// How one attempt failed.
enum Failure {
    /// Not a byte of it went to a pod; the request is whole.
    Unsent(Box<Request<Body>>, BodyError),
    /// No pod has seen it, but its body was read.
    NotReached,
    /// A pod may have acted.
    Broken(BodyError),
    Timeout,
    /// By a network policy, which says nothing of the endpoint.
    Denied,
}

impl Failure {
    /// What it says of the endpoint.
    fn fault(&self) -> Option<Fault> {
        match self {
            Self::Unsent(..) | Self::NotReached => Some(Fault::Unreachable),
            Self::Broken(_) => Some(Fault::Broken),
            Self::Timeout => Some(Fault::Timeout),
            Self::Denied => None,
        }
    }
}

/// What is kept of a request to send it again.
struct Replay {
    parts: Parts,
    body: Bytes,
    is_idempotent: bool,
}

impl Replay {
    fn request(&self) -> Request<Body> {
        let body = if self.body.is_empty() {
            crate::net::http::empty()
        } else {
            crate::net::http::full(self.body.clone())
        };
        Request::from_parts(self.parts.clone(), body)
    }
}

/// A response's body that keeps its endpoint's count of requests right, and the span of its try.
pub(super) type Tracked = Keeping<(InFlight, Option<Span>)>;

/// A body that keeps something until it is complete or given up.
#[derive(Debug)]
pub(super) struct Keeping<T> {
    body: Body,
    _kept: T,
}

impl<T> Keeping<T> {
    pub(super) fn new(body: Body, kept: T) -> Self {
        Self { body, _kept: kept }
    }
}

impl<T: Unpin> http_body::Body for Keeping<T> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What became of a request's own body; of one that was there whole, nothing can.
struct OwnFate(Option<Arc<AtomicBool>>);

impl OwnFate {
    /// Remembers whether the body of `request` fails while it is read, unless that is at its end already.
    fn watch(request: Request<Body>) -> (Request<Body>, Self) {
        if request.body().is_end_stream() {
            return (request, Self(None));
        }
        let has_failed = Arc::new(AtomicBool::new(false));
        let failed = Arc::clone(&has_failed);
        let watched = |body: Body| {
            let noted = body.map_err(move |err| {
                failed.store(true, Ordering::Relaxed);
                err
            });
            noted.boxed_unsync()
        };
        (request.map(watched), Self(Some(has_failed)))
    }

    /// Then no endpoint is at fault.
    fn has_failed(&self) -> bool {
        self.0.as_ref().is_some_and(|failed| failed.load(Ordering::Relaxed))
    }
}

/// How long a call may take, to the head of the response.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    /// All tries together, and the reading of a body that is kept for them.
    pub(super) total: Duration,
    /// One try. An endpoint that takes longer is held to be at fault.
    pub(super) per_try: Duration,
}

impl Mesh {
    /// Sends `request` to an endpoint of `backend` and waits for the head of the response. The URI
    /// must be in origin form and `Host` be set.
    pub(super) async fn call(
        &self,
        backend: &Backend,
        origin: Origin<'_>,
        request: Request<Body>,
    ) -> Result<Response<Tracked>, CallError> {
        let longest = self.0.head_timeout;
        let per_try = request.extensions().get::<HeadTimeout>().map_or(longest, |limit| limit.0);
        let timeouts = Timeouts { total: longest.max(per_try), per_try };
        self.call_within(backend, origin, request, timeouts).await
    }

    /// As [`Self::call`], with timeouts of the caller's.
    pub(super) async fn call_within(
        &self,
        backend: &Backend,
        origin: Origin<'_>,
        request: Request<Body>,
        timeouts: Timeouts,
    ) -> Result<Response<Tracked>, CallError> {
        let service = backend.service.as_deref();
        let started = Instant::now();
        let stats = service.map(|one| one.stats(&self.0.metrics.services));
        let counting = Counting::since(started, stats);
        let trying = self.try_endpoints(backend, origin, request, timeouts, started);
        let (response, answered_at) = trying.await?;
        counting.answered_at(answered_at, response.status());
        Ok(response)
    }

    /// The response, and when it came. The clock is read twice if all goes well.
    async fn try_endpoints(
        &self,
        backend: &Backend,
        origin: Origin<'_>,
        request: Request<Body>,
        timeouts: Timeouts,
        started: Instant,
    ) -> Result<(Response<Tracked>, Instant), CallError> {
        let mut ends_at = started + timeouts.total;
        self.0.retries.earn();
        let (mut request, replay, own) = self.make_ready(backend, request, ends_at).await?;
        let (mut tried, mut last): (Vec<Arc<EndpointState>>, _) = (Vec::new(), None);
        // The one that came while the request waited.
        let mut newer: Option<Arc<Backend>> = None;
        // Nothing was waited for yet: the first try begins with the call.
        let mut unwaited = replay.is_none().then_some(started);
        loop {
            let backend = newer.as_deref().unwrap_or(backend);
            let started = unwaited.take().unwrap_or_else(Instant::now);
            let endpoint = match backend.choose(&tried, &self.0.dice, self.ms_of(started)) {
                Ok((endpoint, choice)) => {
                    self.0.metrics.decisions.chose(choice);
                    endpoint
                }
                Err(why) => {
                    let awaited = backend.awaited.as_ref().filter(|_| why == NoChoice::NoEndpoint);
                    if let Some(awaited) = awaited {
                        newer = Box::pin(self.await_endpoint(awaited, &tried)).await;
                        if newer.is_some() {
                            // The wait was the Service's; the endpoint has all its time.
                            ends_at = Instant::now() + timeouts.total;
                            continue;
                        }
                    }
                    return Err(last.unwrap_or_else(|| self.refused(why)));
                }
            };
            let in_flight = InFlight::request(&endpoint);
            let mut span = self.client_span(&endpoint, tried.len(), &mut request);
            let attempt_ends = (started + timeouts.per_try).min(ends_at);
            let attempt = self.attempt(&endpoint, origin, request);
            let attempt = tokio::time::timeout_at(attempt_ends, attempt);
            let failure = match attempt.await.unwrap_or(Err(Failure::Timeout)) {
                Ok(response) => {
                    let now = Instant::now();
                    if !own.has_failed() {
                        self.answered(backend, &endpoint, response.status(), (started, now));
                    }
                    if let Some(span) = &mut span {
                        span.answered(response.status());
                    }
                    let tracked = |body| Tracked::new(body, (in_flight, span));
                    return Ok((response.map(tracked), now));
                }
                Err(failure) => failure,
            };
            drop(in_flight);
            if own.has_failed() {
                return Err(CallError::RequestBody("it failed while it was sent".into()));
            }
            let Some(fault) = failure.fault() else { return Err(CallError::Denied) };
            if let Some(mut span) = span {
                span.failed(fault.name());
            }
            self.blame(backend, &endpoint, fault);
            let (again, err) = again(failure, replay.as_ref());
            debug!(endpoint = %endpoint.address, %err, is_safe = again.is_some(), "endpoint failed");
            tried.push(endpoint);
            match self.retry(again, tried.len()) {
                Some(again) => request = again,
                None => return Err(err),
            }
            last = Some(err);
        }
    }

    /// Reads the body of a request that may be sent again, if it is small, and watches that of any other.
    async fn make_ready(
        &self,
        backend: &Backend,
        mut request: Request<Body>,
        ends_at: Instant,
    ) -> Result<(Request<Body>, Option<Replay>, OwnFate), CallError> {
        if backend.endpoints.len() > 1 || backend.awaited.is_some() {
            // A client may be slow to send even a small body.
            let preparing = tokio::time::timeout_at(ends_at, prepare(request));
            let (prepared, replay) = preparing.await.map_err(|_| self.timed_out())??;
            if replay.is_some() {
                return Ok((prepared, replay, OwnFate(None)));
            }
            request = prepared;
        }
        let (request, own) = OwnFate::watch(request);
        Ok((request, None, own))
    }

    fn blame(&self, backend: &Backend, endpoint: &EndpointState, fault: Fault) {
        let verdict = backend.failed(endpoint, fault, self.now_ms());
        self.0.metrics.decisions.judged(fault, verdict);
        if fault == Fault::Timeout {
            self.0.metrics.decisions.timed_out();
        }
    }

    /// The request to send once more, if it may be.
    fn retry(&self, again: Option<Request<Body>>, tried: usize) -> Option<Request<Body>> {
        let decision = match &again {
            None => Retry::Unsafe,
            Some(_) if tried > RETRIES_MAX => Retry::Attempts,
            Some(_) if !self.0.retries.spend(self.now_ms()) => Retry::Budget,
            Some(_) => Retry::Sent,
        };
        self.0.metrics.decisions.retried(decision);
        again.filter(|_| decision == Retry::Sent)
    }

    fn answered(
        &self,
        backend: &Backend,
        endpoint: &EndpointState,
        status: http::StatusCode,
        (started, ended): (Instant, Instant),
    ) {
        let now = self.ms_of(ended);
        endpoint.succeeded(ended.duration_since(started), now);
        if status.is_server_error() {
            let verdict = backend.failed(endpoint, Fault::Status, now);
            self.0.metrics.decisions.judged(Fault::Status, verdict);
        } else {
            endpoint.answered_well();
        }
    }

    fn refused(&self, why: NoChoice) -> CallError {
        match why {
            NoChoice::NoEndpoint => {
                self.0.metrics.decisions.refused_without_endpoint();
                CallError::NoEndpoint
            }
            NoChoice::CircuitOpen => {
                self.0.metrics.decisions.refused_by_circuit();
                CallError::CircuitOpen
            }
        }
    }

    fn timed_out(&self) -> CallError {
        self.0.metrics.decisions.timed_out();
        CallError::Timeout
    }

    async fn attempt(
        &self,
        endpoint: &Arc<EndpointState>,
        origin: Origin<'_>,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Failure> {
        let admitted = self.admit(origin, endpoint, Protocol::Tcp).await;
        admitted.map_err(|_| Failure::Denied)?;
        match &endpoint.place {
            Place::Local => self.send_local(endpoint, request).await,
            Place::Outside => {
                request.headers_mut().remove(SENDER);
                send_remote(endpoint, request).await
            }
            Place::Node(_) => {
                request.headers_mut().insert(SENDER, origin.to_field());
                send_remote(endpoint, request).await
            }
        }
    }

    async fn send_local(
        &self,
        endpoint: &EndpointState,
        request: Request<Body>,
    ) -> Result<Response<Body>, Failure> {
        match self.deliver(endpoint.address, endpoint.pod.as_ref(), request).await {
            Ok(response) => Ok(response),
            Err(LocalError::Refused(request)) => {
                Err(Failure::Unsent(request, "nothing listens at the endpoint".into()))
            }
            Err(LocalError::Failed(err)) => Err(Failure::Broken(err)),
        }
    }
}

/// Sends on a kept stream, or on a new one.
async fn send_remote(
    endpoint: &Arc<EndpointState>,
    mut request: Request<Body>,
) -> Result<Response<Body>, Failure> {
    while let Some(stream) = endpoint.take_stream() {
        match send_on(endpoint, stream, request).await {
            // A kept stream may have ended meanwhile, which says nothing of the endpoint.
            Err(Failure::Unsent(unsent, _)) => request = *unsent,
            other => return other,
        }
    }
    match open_stream(endpoint).await {
        Ok(stream) => send_on(endpoint, stream, request).await,
        Err(err) => Err(Failure::Unsent(Box::new(request), err)),
    }
}

async fn open_stream(endpoint: &EndpointState) -> Result<HttpStream, BodyError> {
    if endpoint.place == Place::Outside {
        return Ok(HttpStream::new(outside::connect(endpoint.address).await?).await?);
    }
    let peer = endpoint.peer.as_ref().ok_or("this node has no mesh to others")?;
    let conn = wire::connection(peer).await?;
    // The stream is kept for the requests of others: each says who sends it.
    let opening = wire::open(&conn, Carries::Http, endpoint.address, Sender::Untold);
    Ok(HttpStream::new(opening.await?).await?)
}

async fn send_on(
    endpoint: &Arc<EndpointState>,
    stream: HttpStream,
    request: Request<Body>,
) -> Result<Response<Body>, Failure> {
    let home = Arc::downgrade(endpoint);
    let recycle = Box::new(move |stream| {
        if let Some(endpoint) = home.upgrade() {
            endpoint.keep_stream(stream);
        }
    });
    match stream.send(request, Some(recycle)).await {
        Ok(response) => match response.headers().get(MESH_ERROR) {
            None => Ok(response),
            Some(value) if value == REFUSED => Err(Failure::NotReached),
            Some(value) if value == DENIED => Err(Failure::Denied),
            Some(_) => Err(Failure::Broken("the pod gave no answer".into())),
        },
        Err(failed) => Err(match failed.unsent {
            Some(unsent) => Failure::Unsent(unsent, failed.error.into()),
            None if endpoint.peer.is_some() && failed.error.is_unread() => Failure::NotReached,
            None => Failure::Broken(failed.error.into()),
        }),
    }
}

/// The request to send again, if it may be, and what to tell if not.
fn again(failure: Failure, replay: Option<&Replay>) -> (Option<Request<Body>>, CallError) {
    let idempotent = || replay.filter(|replay| replay.is_idempotent).map(Replay::request);
    match failure {
        Failure::Unsent(request, err) => (Some(*request), CallError::Broken(err)),
        Failure::NotReached => {
            let err = CallError::Broken("nothing listens at the endpoint".into());
            (replay.map(Replay::request), err)
        }
        Failure::Broken(err) => (idempotent(), CallError::Broken(err)),
        // A second wait as long as the first is more than a client has.
        Failure::Timeout => (None, CallError::Timeout),
        Failure::Denied => (None, CallError::Denied),
    }
}

/// Keeps what is needed to send the request again: its head, and its body if that is small.
async fn prepare(request: Request<Body>) -> Result<(Request<Body>, Option<Replay>), CallError> {
    let (parts, body) = request.into_parts();
    let is_small = body.size_hint().upper().is_some_and(|bytes| bytes <= REPLAY_BYTES_MAX);
    if !is_small {
        return Ok((Request::from_parts(parts, body), None));
    }
    let body = if body.is_end_stream() {
        Bytes::new()
    } else {
        body.collect().await.map_err(CallError::RequestBody)?.to_bytes()
    };
    let is_idempotent = matches!(
        parts.method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    );
    let replay = Replay { parts, body, is_idempotent };
    Ok((replay.request(), Some(replay)))
}

/// The value that stands for this mesh error in a response between nodes.
pub(super) fn mesh_error(value: HeaderValue, status: http::StatusCode) -> Response<Body> {
    let mut response = Response::new(crate::net::http::empty());
    *response.status_mut() = status;
    response.headers_mut().insert(MESH_ERROR, value);
    response
}

impl From<HttpError> for CallError {
    fn from(err: HttpError) -> Self {
        Self::Broken(err.into())
    }
}
