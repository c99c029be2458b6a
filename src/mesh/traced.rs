//! What is told of a request on its way: spans within its trace, and counts.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use tokio::time::Instant;

use super::Mesh;
use super::call::Keeping;
use super::endpoint::EndpointState;
use super::local::LocalError;
use super::routes::Place;
use super::traffic::{RequestStats, Subject};
use crate::net::Body;
use crate::telemetry::trace::{Span, TRACEPARENT, TraceContext, known_method};

/// Counts one request when it is answered, or as one without an answer when it is given up.
#[derive(Debug)]
pub(super) struct Counting<'a> {
    stats: Option<&'a RequestStats>,
    started: Instant,
}

impl<'a> Counting<'a> {
    pub(super) fn new(stats: Option<&'a RequestStats>) -> Self {
        Self::since(Instant::now(), stats)
    }

    pub(super) fn since(started: Instant, stats: Option<&'a RequestStats>) -> Self {
        Self { stats, started }
    }

    pub(super) fn answered(self, status: StatusCode) {
        self.answered_at(Instant::now(), status);
    }

    pub(super) fn answered_at(mut self, at: Instant, status: StatusCode) {
        if let Some(stats) = self.stats.take() {
            stats.answered(status, at.duration_since(self.started));
        }
    }

    /// It was nobody's request: nothing is counted.
    pub(super) fn forget(mut self) {
        self.stats = None;
    }
}

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        if let Some(stats) = self.stats {
            stats.failed(self.started.elapsed());
        }
    }
}

impl Mesh {
    /// The span of one try at an endpoint, when the request came with a sampled trace at the ingress;
    /// the endpoint is told of it. A trace that a guest has begun itself is not touched here.
    pub(super) fn client_span(
        &self,
        endpoint: &EndpointState,
        tried: usize,
        request: &mut Request<Body>,
    ) -> Option<Span> {
        let parent = *request.extensions().get::<TraceContext>()?;
        let mut span = self.0.tracer.child(&parent, span_name(request))?;
        span.method(request.method());
        span.text("server.address", endpoint.address.ip().to_string());
        span.number("server.port", endpoint.address.port());
        if let Some(pod) = &endpoint.pod {
            name_pod(&mut span, pod);
        }
        if let Place::Node(node) = &endpoint.place {
            span.text("edgeorc.peer.node.name", node.to_string());
        }
        if tried > 0 {
            span.number("http.request.resend_count", i64::try_from(tried).unwrap_or(i64::MAX));
        }
        request.headers_mut().insert(TRACEPARENT, span.context().header());
        Some(span)
    }

    /// Hands a request to a pod of this node, and waits for the head of its answer. Here every request
    /// to a pod passes, wherever it came from: it is counted for the pod, and the pod's part of a
    /// sampled trace is a span.
    pub(super) async fn deliver(
        &self,
        to: SocketAddr,
        pod: Option<&Arc<Subject>>,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, LocalError> {
        let counting = Counting::new(pod.map(|pod| pod.stats(&self.0.metrics.pods)));
        let span = self.guest_span(to, pod, &mut request);
        match self.0.local.http(to, request).await {
            Ok(response) => {
                counting.answered(response.status());
                Ok(match span {
                    None => response,
                    Some(mut span) => {
                        span.answered(response.status());
                        response.map(|body| Keeping::new(body, span).boxed_unsync())
                    }
                })
            }
            Err(err) => {
                if let LocalError::Refused(_) = err {
                    counting.forget();
                }
                if let Some(mut span) = span {
                    span.failed(match err {
                        LocalError::Refused(_) => "refused",
                        LocalError::Failed(_) => "no_answer",
                    });
                }
                Err(err)
            }
        }
    }

    fn guest_span(
        &self,
        to: SocketAddr,
        pod: Option<&Arc<Subject>>,
        request: &mut Request<Body>,
    ) -> Option<Span> {
        if !self.0.tracer.is_on() {
            return None;
        }
        let name = span_name(request);
        let mut span = self.0.tracer.pass(request.headers_mut(), || name)?;
        span.method(request.method());
        span.text("url.path", request.uri().path().to_owned());
        span.text("server.address", to.ip().to_string());
        span.number("server.port", to.port());
        if let Some(pod) = pod {
            name_pod(&mut span, pod);
        }
        Some(span)
    }
}

fn name_pod(span: &mut Span, pod: &Subject) {
    span.text("k8s.namespace.name", pod.namespace.clone());
    span.text("k8s.pod.name", pod.name.clone());
}

/// What a span of the request is called as long as nothing better is known.
pub(super) fn span_name<B>(request: &Request<B>) -> String {
    match known_method(request.method()) {
        "_OTHER" => "HTTP",
        method => method,
    }
    .to_owned()
}
