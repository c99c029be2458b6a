//! Listeners and their connections: HTTP/1.1 and HTTP/2, with TLS or without.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::HeaderValue;
use http::{Request, Version};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::refusal::Refusal;
use super::stalled::{Ended, Watched};
use crate::api::gateway::{HTTP_PORT, HTTPS_PORT};
use crate::mesh::Mesh;
use crate::net::http3::Http3Listener;
use crate::net::{self, BindError, Body};
use crate::rt::TaskGroup;

/// Connections of one listener at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 16_384;
/// Time for a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the head of a connection's first request.
const FIRST_HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the head of any later request, from the end of the one before: also how long an idle
/// connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Time in which a client takes nothing of what it is sent.
pub(super) const WRITE_PAUSE_MAX: Duration = Duration::from_secs(60);
/// Bytes of a head.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Header fields of a request.
const HEADERS_MAX: usize = 100;
/// Requests of one HTTP/2 connection at once.
const STREAMS_MAX: u32 = 256;
/// Streams that a client may have reset before they were looked at (CVE-2023-44487); more end the
/// connection.
const RESETS_PENDING_MAX: usize = 20;
/// Streams reset by us for errors of the client; more end the connection.
const ERROR_RESETS_MAX: usize = 256;
/// Bytes of one HTTP/2 stream that wait to be sent.
const SEND_BYTES_MAX: usize = 256 * 1024;
/// Time for running requests to end when the process does: less than the whole process has for it.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(8);
/// Time for which clients may keep in mind that there is HTTP/3.
const ALT_SVC_SECONDS: u32 = 24 * 60 * 60;
/// Pause after a failed accept: the process is out of something.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Lets HTTP/2 run its streams as tasks of the mesh.
#[derive(Debug, Clone)]
pub(super) struct Executor {
    tasks: TaskGroup,
    /// Whose clients are watched.
    mesh: Option<Mesh>,
}

impl Executor {
    /// For connections to pods.
    pub(super) fn new(tasks: &TaskGroup) -> Self {
        Self { tasks: tasks.clone(), mesh: None }
    }
}

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        let mesh = self.mesh.clone();
        self.tasks.spawn_hot("ingress-stream", |cancel| async move {
            let drained = async {
                cancel.cancelled().await;
                tokio::time::sleep(DRAIN_TIMEOUT).await;
            };
            tokio::select! {
                ended = Watched::new(future) => {
                    if let (Ended::NotRead, Some(mesh)) = (ended, mesh) {
                        mesh.0.ingress.refusals.note(&Refusal::NotRead, None);
                    }
                }
                () = drained => {}
            }
        });
    }
}

/// What a listener is in the table of routes.
#[derive(Debug)]
pub(super) struct Entry {
    /// 80 and 443 are the node's ingress, whatever their real numbers are.
    pub(super) port: u16,
    pub(super) is_tls: bool,
}

impl Entry {
    pub(super) fn scheme(&self) -> &'static str {
        if self.is_tls { "https" } else { "http" }
    }
}

/// One connection's client.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) entry: Arc<Entry>,
    /// Its address; made once per connection.
    pub(super) from: Option<HeaderValue>,
    /// HTTP/2 or later.
    pub(super) is_http2: bool,
}

/// What serves the connections of one listener.
struct Server {
    entry: Arc<Entry>,
    http: auto::Builder<Executor>,
    tls: Option<TlsAcceptor>,
}

impl Mesh {
    /// Serves the routes of port 80 on `listener` until the mesh's tasks are cancelled; then lets
    /// running requests end.
    pub async fn serve_ingress(&self, listener: TcpListener) {
        note_port(&self.0.ingress.http_port, &listener);
        let cancel = self.0.tasks.token().clone();
        self.serve_entry(listener, Entry { port: HTTP_PORT, is_tls: false }, &cancel).await;
    }

    /// Serves the routes of port 443 with TLS on `listener`, as [`Self::serve_ingress`].
    pub async fn serve_ingress_tls(&self, listener: TcpListener) {
        note_port(&self.0.ingress.https_port, &listener);
        let cancel = self.0.tasks.token().clone();
        self.serve_entry(listener, Entry { port: HTTPS_PORT, is_tls: true }, &cancel).await;
    }

    /// A UDP port for HTTP/3, with the certificates of port 443. Must be called within the runtime
    /// that is to serve it.
    ///
    /// # Errors
    ///
    /// See [`BindError`].
    pub fn bind_http3(&self, at: SocketAddr) -> Result<Http3Listener, BindError> {
        Http3Listener::bind(at, self.0.ingress.certificates.resolver(HTTPS_PORT))
    }

    /// Serves the routes of port 443 by HTTP/3, and tells clients of HTTPS that they can have it.
    pub async fn serve_ingress_http3(&self, listener: Http3Listener) {
        if let Some(at) = listener.local_addr() {
            let value = format!("h3=\":{}\"; ma={ALT_SVC_SECONDS}", at.port());
            if let Ok(value) = HeaderValue::try_from(value) {
                let _ = self.0.ingress.alt_svc.set(value);
            }
        }
        let entry = Arc::new(Entry { port: HTTPS_PORT, is_tls: true });
        let mesh = self.clone();
        let answer = move |from: SocketAddr, request: Request<Body>| {
            let from = HeaderValue::try_from(from.ip().to_canonical().to_string()).ok();
            let client = Client { entry: Arc::clone(&entry), from, is_http2: true };
            let mesh = mesh.clone();
            async move {
                let answer = mesh.answer_client(request, &client).await;
                answer.map(|body| body.boxed_unsync())
            }
        };
        listener.serve(&self.0.tasks, answer).await;
    }

    /// Serves one listener until `cancel`, its connections until the mesh's tasks are cancelled.
    pub(super) async fn serve_entry(
        &self,
        listener: TcpListener,
        entry: Entry,
        cancel: &CancellationToken,
    ) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let tls = entry.is_tls.then(|| self.0.ingress.certificates.server_config(entry.port));
        let tls = match tls.transpose() {
            Ok(tls) => tls,
            Err(err) => return tracing::error!(port = entry.port, %err, "cannot serve TLS"),
        };
        let server = Arc::new(Server {
            entry: Arc::new(entry),
            http: server(self),
            tls: tls.map(TlsAcceptor::from),
        });
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
        server: &Server,
        cancel: &CancellationToken,
    ) {
        net::attend(&client);
        let from = HeaderValue::try_from(from.ip().to_canonical().to_string()).ok();
        let Some(tls) = &server.tls else {
            return self.serve_http(Patient::new(client), from, server, cancel).await;
        };
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(Patient::new(client)));
        match cancel.run_until_cancelled(handshake).await {
            Some(Ok(Ok(stream))) => {
                Box::pin(self.serve_http(stream, from, server, cancel)).await;
            }
            Some(Ok(Err(err))) => debug!(%err, "a TLS handshake failed"),
            Some(Err(_)) => {
                self.0.ingress.refusals.note(&Refusal::TooSlow, from.as_ref());
            }
            None => {}
        }
    }

    async fn serve_http<I>(
        &self,
        io: I,
        from: Option<HeaderValue>,
        server: &Server,
        cancel: &CancellationToken,
    ) where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let was_used = Arc::new(AtomicBool::new(false));
        let of = |is_http2| {
            let (entry, from) = (Arc::clone(&server.entry), from.clone());
            Arc::new(Client { entry, from, is_http2 })
        };
        let (one, two) = (of(false), of(true));
        let (mesh, used) = (self.clone(), Arc::clone(&was_used));
        let service = service_fn(move |request: Request<Incoming>| {
            used.store(true, Ordering::Relaxed);
            let client = if request.version() == Version::HTTP_2 { &two } else { &one };
            let (mesh, client) = (mesh.clone(), Arc::clone(client));
            async move { Ok::<_, Infallible>(mesh.answer_client(request, &client).await) }
        });
        let conn = server.http.serve_connection_with_upgrades(TokioIo::new(io), service);
        let mut conn = pin!(conn);
        let unused = async {
            tokio::time::sleep(FIRST_HEAD_TIMEOUT).await;
            if was_used.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        let ended = tokio::select! {
            ended = conn.as_mut() => ended,
            () = unused => {
                self.0.ingress.refusals.note(&Refusal::TooSlow, from.as_ref());
                return;
            }
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
            if let Some(refusal) = judge(err.as_ref()) {
                self.0.ingress.refusals.note(&refusal, from.as_ref());
            }
        }
    }
}

/// What a client did wrong that its connection ended so; `None`: nothing.
fn judge(err: &(dyn std::error::Error + 'static)) -> Option<Refusal> {
    let mut cause = Some(err);
    while let Some(err) = cause {
        if let Some(err) = err.downcast_ref::<hyper::Error>() {
            if err.is_parse() {
                return Some(Refusal::Malformed);
            }
            if err.is_timeout() {
                return Some(Refusal::TooSlow);
            }
        }
        if err.downcast_ref::<io::Error>().is_some_and(|err| err.kind() == io::ErrorKind::TimedOut)
        {
            return Some(Refusal::NotRead);
        }
        let text = err.to_string();
        if text.contains("too_many_") || text.contains("ENHANCE_YOUR_CALM") {
            return Some(Refusal::Malformed);
        }
        cause = err.source();
    }
    None
}

fn note_port(port: &AtomicU16, listener: &TcpListener) {
    if let Ok(at) = listener.local_addr() {
        port.store(at.port(), Ordering::Relaxed);
    }
}

fn server(mesh: &Mesh) -> auto::Builder<Executor> {
    let tasks = mesh.0.tasks.clone();
    let mut server = auto::Builder::new(Executor { tasks, mesh: Some(mesh.clone()) });
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
        .max_pending_accept_reset_streams(RESETS_PENDING_MAX)
        .max_local_error_reset_streams(ERROR_RESETS_MAX)
        .max_send_buf_size(SEND_BYTES_MAX)
        .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX));
    server
}

/// A connection that ends when its client takes nothing for too long.
struct Patient<I> {
    io: I,
    /// Made when the client first lets us wait.
    pause: Option<Pin<Box<Sleep>>>,
    is_waiting: bool,
}

impl<I> Patient<I> {
    fn new(io: I) -> Self {
        Self { io, pause: None, is_waiting: false }
    }

    fn judge<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.is_waiting = false;
            return polled;
        }
        let until = || Instant::now() + WRITE_PAUSE_MAX;
        let is_new = !self.is_waiting;
        self.is_waiting = true;
        let pause = self.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until())));
        if is_new {
            pause.as_mut().reset(until());
        }
        match pause.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Patient<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Patient<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.judge(cx, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        self.judge(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
