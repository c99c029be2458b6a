//! HTTP/3 for clients that are anybody: a QUIC endpoint beside the one between nodes.
//!
//! Clients prove their address before they cost more than a packet when many come at once, and every
//! connection, stream and buffer has a bound: what a flood gets is refused by the endpoint itself.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::{Request, Response};
use bytes::{Buf as _, Bytes};
use http_body::Frame;
use http_body_util::BodyExt as _;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{IdleTimeout, VarInt};
use rustls::server::ResolvesServerCert;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, trace};

use crate::net::endpoint::BindError;
use crate::net::http::{Body, BodyError};
use crate::net::identity::provider;
use crate::rt::TaskGroup;

/// Connections at once; more are refused.
const CONNECTIONS_MAX: usize = 1024;
/// Connections from which on a client must first prove its address.
const CONNECTIONS_UNTIL_RETRY: usize = 128;
/// Handshakes at once; more are refused.
const HANDSHAKES_MAX: usize = 256;
/// Bytes that wait for the acceptance of a handshake, over all of them.
const HANDSHAKE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Time for a handshake, and for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence after which a connection is closed.
const IDLE_TIMEOUT_MS: u32 = 60_000;
/// Requests of one connection at once.
const STREAMS_MAX: u32 = 100;
/// Streams of a client in one direction: control, and two of QPACK.
const ONE_WAY_STREAMS_MAX: u32 = 8;
/// Bytes of one stream that may wait unread.
const STREAM_BYTES_MAX: u32 = 256 * 1024;
/// Bytes of one connection that may wait unread, or sent and not acknowledged.
const CONNECTION_BYTES_MAX: u32 = 1024 * 1024;
/// Bytes of a head.
const HEAD_BYTES_MAX: u64 = 64 * 1024;
/// Time in which a client takes nothing of what it is sent.
const WRITE_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Time for running requests to end when the process does.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(8);
/// Time for the last answer to arrive, and for the client to close.
const LAST_ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

type Receive = h3::server::RequestStream<h3_quinn::RecvStream, Bytes>;
type Sender = h3::server::RequestStream<h3_quinn::SendStream<Bytes>, Bytes>;
type Resolver = h3::server::RequestResolver<h3_quinn::Connection, Bytes>;

/// A UDP port at which HTTP/3 is spoken.
pub struct Http3Listener {
    quic: quinn::Endpoint,
}

impl fmt::Debug for Http3Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http3Listener").field("at", &self.quic.local_addr().ok()).finish()
    }
}

impl Http3Listener {
    /// Listens on `address`; `resolver` chooses the certificate of each connection. Must be called
    /// within a tokio runtime, which then drives it.
    ///
    /// # Errors
    ///
    /// See [`BindError`].
    pub fn bind(
        address: SocketAddr,
        resolver: Arc<dyn ResolvesServerCert>,
    ) -> Result<Self, BindError> {
        let setup = |err: String| BindError::Setup(err);
        let mut tls = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|err| setup(err.to_string()))?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        tls.alpn_protocols = vec![b"h3".to_vec()];
        let crypto = QuicServerConfig::try_from(tls).map_err(|err| setup(err.to_string()))?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        let mut transport = quinn::TransportConfig::default();
        transport
            .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
            .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
            .max_concurrent_uni_streams(VarInt::from_u32(ONE_WAY_STREAMS_MAX))
            .stream_receive_window(VarInt::from_u32(STREAM_BYTES_MAX))
            .receive_window(VarInt::from_u32(CONNECTION_BYTES_MAX))
            .send_window(u64::from(CONNECTION_BYTES_MAX))
            .datagram_receive_buffer_size(None);
        config
            .transport_config(Arc::new(transport))
            .max_incoming(HANDSHAKES_MAX)
            .incoming_buffer_size_total(HANDSHAKE_BYTES_MAX);
        let quic = quinn::Endpoint::server(config, address).map_err(|source| {
            if source.kind() == std::io::ErrorKind::AddrInUse {
                BindError::InUse { address }
            } else {
                BindError::Socket { address, source }
            }
        })?;
        Ok(Self { quic })
    }

    /// The address it listens on.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.quic.local_addr().ok()
    }

    /// Serves every request with `answer` until `tasks` are cancelled.
    pub async fn serve<A, F>(self, tasks: &TaskGroup, answer: A)
    where
        A: Fn(SocketAddr, Request<Body>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let token = tasks.token().clone();
        while let Some(Some(incoming)) = token.run_until_cancelled(self.quic.accept()).await {
            let many = CONNECTIONS_MAX - places.available_permits() >= CONNECTIONS_UNTIL_RETRY;
            if many && incoming.may_retry() {
                // Fails only if it cannot be retried.
                let _ = incoming.retry();
                continue;
            }
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                incoming.refuse();
                continue;
            };
            let (group, answer) = (tasks.clone(), answer.clone());
            tasks.spawn("http3-connection", |cancel| async move {
                match tokio::time::timeout(HEAD_TIMEOUT, incoming).await {
                    Ok(Ok(conn)) => serve_connection(conn, &group, &cancel, answer).await,
                    Ok(Err(err)) => trace!(%err, "a QUIC handshake failed"),
                    Err(_) => trace!("a QUIC handshake took too long"),
                }
                drop(place);
            });
        }
        // Running requests end before; new connections are not accepted any more.
        let all = u32::try_from(CONNECTIONS_MAX).unwrap_or(u32::MAX);
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, places.acquire_many(all)).await;
        self.quic.close(VarInt::from_u32(0), b"shutting down");
    }
}

async fn serve_connection<A, F>(
    quic: quinn::Connection,
    tasks: &TaskGroup,
    cancel: &CancellationToken,
    answer: A,
) where
    A: Fn(SocketAddr, Request<Body>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let from = quic.remote_address();
    let mut builder = h3::server::builder();
    builder.max_field_section_size(HEAD_BYTES_MAX);
    let building = builder.build(h3_quinn::Connection::new(quic));
    let mut conn = match tokio::time::timeout(HEAD_TIMEOUT, building).await {
        Ok(Ok(conn)) => conn,
        _ => return,
    };
    let running = Arc::new(Semaphore::new(usize::try_from(STREAMS_MAX).unwrap_or(1)));
    let begin = |resolver| {
        // There are no more streams than places.
        let Ok(place) = Arc::clone(&running).try_acquire_owned() else { return };
        let answer = answer.clone();
        tasks.spawn("http3-stream", |cancel| async move {
            let late = async {
                cancel.cancelled().await;
                tokio::time::sleep(DRAIN_TIMEOUT).await;
            };
            tokio::select! {
                ended = exchange(resolver, from, answer) => {
                    if let Err(err) = ended {
                        debug!(%err, "an HTTP/3 exchange ended");
                    }
                }
                () = late => {}
            }
            drop(place);
        });
    };
    loop {
        match cancel.run_until_cancelled(conn.accept()).await {
            Some(Ok(Some(resolver))) => begin(resolver),
            Some(Ok(None)) => return,
            Some(Err(err)) => {
                trace!(%err, "an HTTP/3 connection ended");
                return;
            }
            None => break,
        }
    }
    // GOAWAY: the client may finish what it has begun, and goes elsewhere with the rest. The number
    // is that of requests from the last accepted one on, which is meant to be among them.
    let ending = async {
        conn.shutdown(1).await?;
        let done = async {
            let _ = running.acquire_many(STREAMS_MAX).await;
            tokio::time::sleep(LAST_ANSWER_TIMEOUT).await;
        };
        let mut done = std::pin::pin!(done);
        loop {
            tokio::select! {
                () = &mut done => return Ok(()),
                accepted = conn.accept() => match accepted? {
                    Some(resolver) => begin(resolver),
                    None => return Ok(()),
                }
            }
        }
    };
    let ended: Result<Result<(), h3::error::ConnectionError>, _> =
        tokio::time::timeout(DRAIN_TIMEOUT, ending).await;
    if let Ok(Err(err)) = ended {
        trace!(%err, "an HTTP/3 connection ended");
    }
}

async fn exchange<A, F>(resolver: Resolver, from: SocketAddr, answer: A) -> Result<(), BodyError>
where
    A: Fn(SocketAddr, Request<Body>) -> F,
    F: Future<Output = Response<Body>>,
{
    let resolving = tokio::time::timeout(HEAD_TIMEOUT, resolver.resolve_request());
    let (request, stream) = resolving.await.map_err(|_| "no head in time")??;
    let (mut send, receive) = stream.split();
    let body = Incoming { receive, is_over: false };
    let response = answer(from, request.map(|()| body.boxed_unsync())).await;
    let (mut parts, mut body) = response.into_parts();
    parts.version = ::http::Version::HTTP_3;
    within(send.send_response(Response::from_parts(parts, ()))).await?;
    while let Some(frame) = body.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            Err(err) => {
                // Without this the client would take what it has for the whole.
                send.stop_stream(h3::error::Code::H3_INTERNAL_ERROR);
                return Err(err);
            }
        };
        match frame.into_data() {
            Ok(data) => within(send.send_data(data)).await?,
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    within(send.send_trailers(trailers)).await?;
                }
            }
        }
    }
    finish(&mut send).await
}

async fn finish(send: &mut Sender) -> Result<(), BodyError> {
    within(send.finish()).await
}

/// A client that takes nothing for too long is given up.
async fn within<E: Into<BodyError>>(
    sending: impl Future<Output = Result<(), E>>,
) -> Result<(), BodyError> {
    match tokio::time::timeout(WRITE_PAUSE_MAX, sending).await {
        Ok(sent) => sent.map_err(Into::into),
        Err(_) => Err("the client does not read".into()),
    }
}

/// The body of a request.
struct Incoming {
    receive: Receive,
    is_over: bool,
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if !this.is_over {
            match this.receive.poll_recv_data(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(err)) => return Poll::Ready(Some(Err(err.into()))),
                Poll::Ready(Ok(Some(mut data))) => {
                    let data = data.copy_to_bytes(data.remaining());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Poll::Ready(Ok(None)) => this.is_over = true,
            }
        }
        match this.receive.poll_recv_trailers(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(None)) => Poll::Ready(None),
            Poll::Ready(Ok(Some(trailers))) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Poll::Ready(Err(err)) => Poll::Ready(Some(Err(err.into()))),
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A client that trusts everybody.

    use super::*;

    /// One request at `at`, under `name`; the answer with its whole body.
    pub(crate) async fn ask(
        at: SocketAddr,
        name: &str,
        verifier: Arc<dyn rustls::client::danger::ServerCertVerifier>,
        request: Request<Bytes>,
    ) -> Result<Response<Bytes>, BodyError> {
        let mut tls = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h3".to_vec()];
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls)?;
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse()?)?;
        let config = quinn::ClientConfig::new(Arc::new(crypto));
        let conn = endpoint.connect_with(config, at, name)?.await?;
        let (mut driver, mut sender) = h3::client::new(h3_quinn::Connection::new(conn)).await?;
        #[expect(clippy::disallowed_methods, reason = "a client of a test needs no owner")]
        let driving = tokio::spawn(async move {
            let _ = std::future::poll_fn(|cx| driver.poll_close(cx)).await;
        });
        let (parts, body) = request.into_parts();
        let mut stream = sender.send_request(Request::from_parts(parts, ())).await?;
        stream.send_data(body).await?;
        stream.finish().await?;
        let head = stream.recv_response().await?;
        let mut bytes = bytes::BytesMut::new();
        while let Some(mut data) = stream.recv_data().await? {
            bytes.extend_from_slice(&data.copy_to_bytes(data.remaining()));
        }
        driving.abort();
        Ok(head.map(|()| bytes.freeze()))
    }
}
