//! The API on a TLS listener and on QUIC connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;

use crate::api::user::UserInfo;
use crate::net::{self, Connection, Peer, Tunnels};
use crate::rt::TaskGroup;

/// Most TLS connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 4096;
/// Time for a TLS handshake, for the first request after it, and for the head of any later one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 128 * 1024;
/// Silence after which an HTTP/2 client is asked whether it is still there, and the time it has for
/// an answer.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(15);
/// Time for running requests to end when the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a failed accept: usually the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Requests that one HTTP/2 connection may have open.
const STREAMS_MAX: u32 = 1024;

/// Serves HTTPS until `tasks` are cancelled. The user is the client certificate's. What is no HTTPS
/// but a tunnel of another node goes to `tunnels`.
pub async fn serve_tls(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    router: Router,
    tunnels: Tunnels,
    tasks: &TaskGroup,
) {
    let acceptor = TlsAcceptor::from(tls);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let token = tasks.token().clone();
    loop {
        let accept = async {
            let place = Arc::clone(&places).acquire_owned().await.ok()?;
            Some((place, listener.accept().await))
        };
        let Some(Some((place, accepted))) = token.run_until_cancelled(accept).await else { return };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(err) => {
                tracing::warn!(%err, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (acceptor, router, tunnels) = (acceptor.clone(), router.clone(), tunnels.clone());
        tasks.spawn("https-connection", |cancel| async move {
            let _place = place;
            connection(stream, acceptor, router, tunnels, cancel).await;
        });
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
    tunnels: Tunnels,
    cancel: CancellationToken,
) {
    net::attend(&stream);
    let handshake = tokio::time::timeout(HEAD_TIMEOUT, acceptor.accept(stream));
    let Some(Ok(Ok(stream))) = cancel.run_until_cancelled(handshake).await else { return };
    if net::is_tunnel(stream.get_ref().1.alpn_protocol()) {
        let chain = stream.get_ref().1.peer_certificates().map(<[_]>::to_vec);
        let serving = tunnels.serve(stream, chain.as_deref());
        let _ = cancel.run_until_cancelled(serving).await;
        return;
    }
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let user = certificate.and_then(|der| Peer::from_certificate(der).ok()).map(|p| user_of(&p));
    serve_http(stream, user, router, cancel).await;
}

/// Serves HTTP/1.1 or HTTP/2 until the client is done, or says nothing for too long, or `cancel`.
async fn serve_http(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    user: Option<UserInfo>,
    router: Router,
    cancel: CancellationToken,
) {
    let was_used = Arc::new(AtomicBool::new(false));
    let used = Arc::clone(&was_used);
    let service = ServiceBuilder::new()
        .map_request(move |mut request: http::Request<hyper::body::Incoming>| {
            used.store(true, Ordering::Relaxed);
            if let Some(user) = &user {
                request.extensions_mut().insert(user.clone());
            }
            request.map(axum::body::Body::new)
        })
        .service(router);
    let builder = builder();
    let conn =
        builder.serve_connection_with_upgrades(TokioIo::new(io), TowerToHyperService::new(service));
    tokio::pin!(conn);
    // Which HTTP the client speaks shows in its first bytes, and no timer of the protocols runs
    // before they are here.
    let unused = async {
        tokio::time::sleep(HEAD_TIMEOUT).await;
        if was_used.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        ended = conn.as_mut() => {
            if let Err(err) = ended {
                tracing::debug!(%err, "https connection failed");
            }
            return;
        }
        () = unused => {
            tracing::debug!("https connection without a request");
            return;
        }
        () = cancel.cancelled() => conn.as_mut().graceful_shutdown(),
    }
    // Open requests may finish; logs that are followed never do.
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, conn).await;
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX))
        .max_concurrent_streams(STREAMS_MAX);
    builder
}

/// Serves the API on one QUIC connection until it ends. The user is the peer.
pub async fn serve_quic(conn: Connection, router: Router, tasks: &TaskGroup) {
    let user = user_of(conn.peer());
    let service = ServiceBuilder::new()
        .map_request(move |mut request: http::Request<net::Body>| {
            request.extensions_mut().insert(user.clone());
            request.map(axum::body::Body::new)
        })
        .service(router);
    net::http::serve(conn, service, tasks).await;
}

/// A peer of the network as a user of the API.
fn user_of(peer: &Peer) -> UserInfo {
    let mut groups = peer.groups.clone();
    groups.push("system:authenticated".to_owned());
    UserInfo { name: peer.user.clone(), groups }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
    use tokio::time::Instant;

    use super::*;

    /// A client's end of a connection that is served until the owner of the group ends it.
    fn connect(tasks: &TaskGroup) -> DuplexStream {
        let (client, server) = tokio::io::duplex(4096);
        let router = Router::new()
            .route("/", get(async || "hello"))
            .route("/never", get(std::future::pending::<&'static str>));
        tasks.spawn("connection", |cancel| serve_http(server, None, router, cancel));
        client
    }

    fn tasks() -> TaskGroup {
        TaskGroup::new(&CancellationToken::new())
    }

    async fn ends_within(mut client: DuplexStream, longest: Duration) {
        let started = Instant::now();
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(10 * longest, client.read_to_end(&mut rest)).await;
        assert!(started.elapsed() <= longest, "kept for {:?}", started.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_asks_is_not_waited_for() {
        for first_bytes in ["", "P", "PRI * HTTP/2.0\r\n\r\n", "GET / HT"] {
            let tasks = tasks();
            let mut client = connect(&tasks);
            client.write_all(first_bytes.as_bytes()).await.unwrap();
            ends_within(client, HEAD_TIMEOUT + Duration::from_secs(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_asked_may_take_its_time() {
        let tasks = tasks();
        let mut client = connect(&tasks);
        for _ in 0..3 {
            client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            let mut answer = [0; 4096];
            let len = client.read(&mut answer).await.unwrap();
            assert!(String::from_utf8_lossy(&answer[..len]).contains("200 OK"));
            tokio::time::sleep(HEAD_TIMEOUT / 2).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_never_comes_does_not_hold_up_the_stop() {
        let tasks = tasks();
        let mut client = connect(&tasks);
        client.write_all(b"GET /never HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        tokio::time::sleep(2 * HEAD_TIMEOUT).await;
        let started = Instant::now();
        tasks.shutdown(Duration::from_secs(60)).await;
        assert!(started.elapsed() <= DRAIN_TIMEOUT);
    }
}
