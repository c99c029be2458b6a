//! The ingress: an HTTP/1.1 and HTTP/2 server on TCP that routes by host and path.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, Either, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::Mesh;
use super::call::{CallError, Tracked};
use crate::net::http::to_origin_form;
use crate::net::{Body, BodyError};
use crate::rt::TaskGroup;

/// Connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 8192;
/// Time for the head of a connection's first request.
const FIRST_HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the head of any later request, from the end of the one before: also how long an idle
/// connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of a head.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Header fields of a request.
const HEADERS_MAX: usize = 100;
/// Requests of one HTTP/2 connection at once.
const STREAMS_MAX: u32 = 256;
/// Time for running requests to end when the process does.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept: the process is out of something.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Fields that mean one connection, not the message (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHORIZATION,
];

/// A pod's body, or a line of ours.
type Answer = Response<Either<Tracked, Full<Bytes>>>;

/// Lets HTTP/2 run its streams as tasks of the mesh.
#[derive(Debug, Clone)]
struct Executor(TaskGroup);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn_hot("ingress-stream", |cancel| async move {
            let drained = async {
                cancel.cancelled().await;
                tokio::time::sleep(DRAIN_TIMEOUT).await;
            };
            tokio::select! {
                () = future => {}
                () = drained => {}
            }
        });
    }
}

impl Mesh {
    /// Serves Ingress routes on `listener` until the mesh's tasks are cancelled; then lets running
    /// requests end.
    pub async fn serve_ingress(&self, listener: TcpListener) {
        let cancel = self.0.tasks.token().clone();
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let server = Arc::new(server(&self.0.tasks));
        let accepting = async {
            loop {
                let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
                let (client, from) = match listener.accept().await {
                    Ok(accepted) => accepted,
                    Err(err) => {
                        warn!(%err, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                };
                let (mesh, server) = (self.clone(), Arc::clone(&server));
                self.0.tasks.spawn_hot("ingress-connection", move |cancel| async move {
                    mesh.serve_client(client, from, &server, &cancel).await;
                    drop(permit);
                });
            }
        };
        let _ = cancel.run_until_cancelled(accepting).await;
    }

    async fn serve_client(
        &self,
        client: TcpStream,
        from: SocketAddr,
        server: &auto::Builder<Executor>,
        cancel: &CancellationToken,
    ) {
        // Fails only on a connection that is gone already.
        let _ = client.set_nodelay(true);
        let was_used = AtomicBool::new(false);
        // An address is always a valid value; made once per connection.
        let from = HeaderValue::try_from(from.ip().to_canonical().to_string()).ok();
        let (was_used, from) = (&was_used, &from);
        let service = service_fn(move |request: Request<Incoming>| {
            was_used.store(true, Ordering::Relaxed);
            let (mesh, from) = (self.clone(), from.clone());
            async move { Ok::<_, Infallible>(mesh.answer_client(request, from).await) }
        });
        let mut conn = pin!(server.serve_connection(TokioIo::new(client), service));
        let unused = async {
            tokio::time::sleep(FIRST_HEAD_TIMEOUT).await;
            if was_used.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        let ended = tokio::select! {
            ended = conn.as_mut() => ended,
            () = unused => return,
            () = cancel.cancelled() => {
                conn.as_mut().graceful_shutdown();
                match tokio::time::timeout(DRAIN_TIMEOUT, conn).await {
                    Ok(ended) => ended,
                    Err(_) => return,
                }
            }
        };
        if let Err(err) = ended {
            debug!(%err, "ingress connection ended");
        }
    }

    async fn answer_client(&self, request: Request<Incoming>, from: Option<HeaderValue>) -> Answer {
        let started = Instant::now();
        let answer = match self.route_client(request, from).await {
            Ok(response) => response.map(Either::Left),
            Err(refusal) => refusal,
        };
        self.0.metrics.ingress_answered(answer.status(), started.elapsed().as_secs_f64());
        answer
    }

    async fn route_client(
        &self,
        request: Request<Incoming>,
        from: Option<HeaderValue>,
    ) -> Result<Response<Tracked>, Answer> {
        if request.method() == Method::CONNECT {
            return Err(line(StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not supported"));
        }
        let backend = {
            let Some(host) = host_of(&request) else {
                return Err(line(StatusCode::BAD_REQUEST, "the request names no host"));
            };
            let table = self.0.table.load();
            match table.ingress.find(host, request.uri().path()) {
                Some(backend) => Arc::clone(backend),
                None => {
                    let text = format!("no route for {host}{}", request.uri().path());
                    return Err(line(StatusCode::NOT_FOUND, &text));
                }
            }
        };
        let mut request = request.map(|body| body.map_err(BodyError::from).boxed_unsync());
        let client = from.clone();
        prepare(&mut request, from);
        let client = client.as_ref().and_then(|client| client.to_str().ok()).unwrap_or_default();
        let backend = self.for_client(backend, client);
        match self.call(&backend, request).await {
            Ok(mut response) => {
                remove_hop_by_hop(response.headers_mut());
                *response.version_mut() = Version::HTTP_11;
                Ok(response)
            }
            Err(err) => Err(refusal(&err)),
        }
    }
}

fn server(tasks: &TaskGroup) -> auto::Builder<Executor> {
    let mut server = auto::Builder::new(Executor(tasks.clone()));
    server
        .http1()
        // One write of one piece: gathering costs the kernel more than copying small bodies costs us.
        .writev(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX);
    server
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(HEAD_TIMEOUT)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX));
    server
}

/// The host a request is for, without port.
fn host_of<B>(request: &Request<B>) -> Option<&str> {
    if let Some(authority) = request.uri().authority() {
        return Some(authority.host());
    }
    let host = request.headers().get(header::HOST)?.to_str().ok()?;
    if host.starts_with('[') {
        return host.split_once(']').map(|(ip, _)| ip.trim_start_matches('['));
    }
    let host = host.split_once(':').map_or(host, |(host, _)| host);
    (!host.is_empty()).then_some(host)
}

/// Turns the client's request into the one that the pod gets.
fn prepare(request: &mut Request<Body>, from: Option<HeaderValue>) {
    // Sets Host from the authority of an HTTP/2 request.
    to_origin_form(request);
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    remove_hop_by_hop(headers);
    if let Some(from) = from {
        let chain = match headers.get(X_FORWARDED_FOR).map(HeaderValue::as_bytes) {
            None => Some(from),
            Some(before) => {
                HeaderValue::from_bytes(&[before, b", ", from.as_bytes()].concat()).ok()
            }
        };
        if let Some(chain) = chain {
            headers.insert(X_FORWARDED_FOR, chain);
        }
    }
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    if let Some(host) = headers.get(header::HOST).cloned() {
        headers.insert(X_FORWARDED_HOST, host);
    }
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    // Most messages have none: one look at the few names there are is cheaper than a search for each.
    if !headers.keys().any(|name| HOP_BY_HOP.contains(name)) {
        return;
    }
    if let Some(named) = headers.get(header::CONNECTION).cloned() {
        // The field names further fields that mean this connection only.
        for name in named.to_str().unwrap_or_default().split(',') {
            headers.remove(name.trim());
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

fn refusal(err: &CallError) -> Answer {
    debug!(%err, "ingress request failed");
    match err {
        CallError::NoEndpoint => line(StatusCode::SERVICE_UNAVAILABLE, "no endpoint is ready"),
        CallError::CircuitOpen => line(StatusCode::SERVICE_UNAVAILABLE, "every endpoint is busy"),
        CallError::Timeout => {
            line(StatusCode::GATEWAY_TIMEOUT, "the endpoint gave no answer in time")
        }
        CallError::RequestBody(_) => line(StatusCode::BAD_REQUEST, "the request's body broke off"),
        CallError::Broken(_) | CallError::Forbidden(_) => {
            line(StatusCode::BAD_GATEWAY, "the endpoint gave no answer")
        }
    }
}

fn line(status: StatusCode, text: &str) -> Answer {
    let mut response = Response::new(Either::Right(Full::new(Bytes::from(format!("{text}\n")))));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
