//! HTTP/2 to pods that say so (`appProtocol: kubernetes.io/h2c`): gRPC, with its trailers.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::uri::{Authority, Scheme, Uri};
use http::{Request, Response, Version};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::debug;

use super::body::AnswerBody;
use super::headers::remove_hop_by_hop;
use super::refusal::Refusal;
use super::request::Answer;
use super::server::{DRAIN_TIMEOUT, Executor};
use crate::mesh::Mesh;
use crate::mesh::balancer::Backend;
use crate::mesh::call::HeadTimeout;
use crate::mesh::decisions::Fault;
use crate::mesh::endpoint::{EndpointState, InFlight};
use crate::mesh::policy::{Origin, is_denied};
use crate::mesh::routes::Place;
use crate::mesh::splice::Counted;
use crate::mesh::traced::Counting;
use crate::net::{Body, BodyError};
use crate::telemetry::trace::Span;

/// Endpoints that are tried for one request.
const ATTEMPTS_MAX: usize = 3;
/// Kept connections; when there are more, all that are closed are forgotten, then the first.
const CONNECTIONS_MAX: usize = 256;
/// Pause between pings on a kept connection.
const PING: Duration = Duration::from_secs(20);
/// Bytes of a response's header fields.
const HEADER_BYTES_MAX: u32 = 64 * 1024;

type Place2 = (SocketAddr, Place);

/// One connection to each endpoint that speaks HTTP/2.
#[derive(Default)]
pub(in crate::mesh) struct Http2Connections(Mutex<BTreeMap<Place2, SendRequest<Body>>>);

impl fmt::Debug for Http2Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http2Connections").field("open", &self.0.lock().len()).finish()
    }
}

impl Http2Connections {
    fn get(&self, place: &Place2) -> Option<SendRequest<Body>> {
        let mut open = self.0.lock();
        let sender = open.get(place)?.clone();
        if sender.is_closed() {
            open.remove(place);
            return None;
        }
        Some(sender)
    }

    /// Lets go of the connections: requests that run on them end as they would.
    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }

    fn put(&self, place: Place2, sender: SendRequest<Body>) {
        let mut open = self.0.lock();
        if open.len() >= CONNECTIONS_MAX {
            open.retain(|_, sender| !sender.is_closed());
        }
        if open.len() >= CONNECTIONS_MAX {
            open.pop_first();
        }
        open.insert(place, sender);
    }
}

impl Mesh {
    /// As `call`, by HTTP/2.
    pub(super) async fn call_http2(
        &self,
        backend: &Arc<Backend>,
        request: Request<Body>,
        wants_trailers: bool,
    ) -> Result<Answer, Refusal> {
        let service = backend.service.as_deref();
        let counting = Counting::new(service.map(|one| one.stats(&self.0.metrics.services)));
        let limit = request.extensions().get::<HeadTimeout>().map(|limit| limit.0);
        let calling = self.try_http2(backend, to_http2(request, wants_trailers)?);
        let limited = tokio::time::timeout(limit.unwrap_or(self.0.head_timeout), calling);
        let (mut response, kept) = limited.await.unwrap_or(Err(Refusal::Timeout))?;
        counting.answered(response.status());
        remove_hop_by_hop(response.headers_mut());
        *response.version_mut() = Version::HTTP_11;
        Ok(response.map(|body| {
            let body = body.map_err(BodyError::from).map_frame(move |frame| {
                // Counts as in flight, and its span goes on, until the last frame was taken.
                let _ = &kept;
                frame
            });
            AnswerBody::Other { body: body.boxed_unsync() }
        }))
    }

    async fn try_http2(
        &self,
        backend: &Backend,
        mut request: Request<Body>,
    ) -> Result<(Response<Incoming>, (InFlight, Option<Span>)), Refusal> {
        let mut tried: Vec<Arc<EndpointState>> = Vec::new();
        while tried.len() < ATTEMPTS_MAX {
            let picked = backend.pick(&tried, &self.0.dice, self.now_ms());
            let Some(endpoint) = picked else { break };
            let in_flight = InFlight::request(&endpoint);
            let mut span = self.client_span(&endpoint, tried.len(), &mut request);
            // The pod's node sees bytes only, so the request is counted for the pod here.
            let pod = endpoint.pod.clone();
            let counting = Counting::new(pod.as_deref().map(|pod| pod.stats(&self.0.metrics.pods)));
            let started = Instant::now();
            let sender = match self.http2_to(&endpoint).await {
                Ok(sender) => sender,
                Err(err) if err.downcast_ref().is_some_and(is_denied) => {
                    return Err(Refusal::Denied);
                }
                Err(err) => {
                    debug!(endpoint = %endpoint.address, %err, "endpoint not reached by HTTP/2");
                    let verdict = backend.failed(&endpoint, Fault::Unreachable, self.now_ms());
                    self.0.metrics.decisions.judged(Fault::Unreachable, verdict);
                    if let Some(span) = &mut span {
                        span.failed(Fault::Unreachable.name());
                    }
                    counting.forget();
                    tried.push(endpoint);
                    continue;
                }
            };
            match { sender }.try_send_request(request).await {
                Ok(response) => {
                    endpoint.succeeded(started.elapsed(), self.now_ms());
                    counting.answered(response.status());
                    if let Some(span) = &mut span {
                        span.answered(response.status());
                    }
                    return Ok((response, (in_flight, span)));
                }
                Err(mut failed) => {
                    let unsent = failed.take_message();
                    let err = failed.into_error();
                    debug!(endpoint = %endpoint.address, %err, "endpoint failed");
                    if let Some(span) = &mut span {
                        span.failed(Fault::Broken.name());
                    }
                    if unsent.is_some() {
                        counting.forget();
                    }
                    tried.push(endpoint);
                    request = unsent.ok_or(Refusal::BadGateway)?;
                }
            }
        }
        Err(if tried.is_empty() { Refusal::NoEndpoint } else { Refusal::BadGateway })
    }

    async fn http2_to(
        &self,
        endpoint: &Arc<EndpointState>,
    ) -> Result<SendRequest<Body>, BodyError> {
        let place = (endpoint.address, endpoint.place.clone());
        if let Some(sender) = self.0.ingress.http2.get(&place) {
            return Ok(sender);
        }
        let io = self.connect_endpoint(endpoint, Origin::Node, None).await?;
        let io = Counted { io, _in_flight: InFlight::new(endpoint) };
        let (sender, connection) = http2::Builder::new(Executor::new(&self.0.tasks))
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .max_header_list_size(HEADER_BYTES_MAX)
            .handshake(TokioIo::new(io))
            .await?;
        let mesh = self.clone();
        self.0.tasks.spawn("ingress-http2", |cancel| async move {
            let drained = async {
                cancel.cancelled().await;
                // Without a kept sender the connection ends with its last request.
                mesh.0.ingress.http2.clear();
                tokio::time::sleep(DRAIN_TIMEOUT).await;
            };
            tokio::select! {
                ended = connection => if let Err(err) = ended {
                    debug!(%err, "HTTP/2 connection to a pod ended");
                },
                () = drained => {}
            }
        });
        self.0.ingress.http2.put(place, sender.clone());
        Ok(sender)
    }
}

/// The host goes where HTTP/2 has it.
fn to_http2(mut request: Request<Body>, wants_trailers: bool) -> Result<Request<Body>, Refusal> {
    let host = request.headers_mut().remove(header::HOST);
    let host = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(host.ok_or(Refusal::Host("the request names no host"))?);
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| Refusal::Malformed)?;
    *request.version_mut() = Version::HTTP_2;
    if wants_trailers {
        request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
    }
    Ok(request)
}
