//! The API on a TLS listener and on QUIC connections.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tower::ServiceBuilder;

use crate::api::user::UserInfo;
use crate::net::{self, Connection, Peer};
use crate::rt::TaskGroup;

/// Most TLS connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 4096;
/// Time for a TLS handshake and for a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept: usually the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Requests that one HTTP/2 connection may have open.
const STREAMS_MAX: u32 = 1024;

/// Serves HTTPS until `tasks` are cancelled. The user is the client certificate's.
pub async fn serve_tls(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    router: Router,
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
        let (acceptor, router) = (acceptor.clone(), router.clone());
        tasks.spawn("https-connection", |cancel| async move {
            let _place = place;
            connection(stream, acceptor, router, cancel).await;
        });
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
    cancel: tokio_util::sync::CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let handshake = tokio::time::timeout(HEAD_TIMEOUT, acceptor.accept(stream));
    let Some(Ok(Ok(stream))) = cancel.run_until_cancelled(handshake).await else { return };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let user = certificate.and_then(|der| Peer::from_certificate(der).ok()).map(|p| user_of(&p));
    let service = ServiceBuilder::new()
        .map_request(move |mut request: http::Request<hyper::body::Incoming>| {
            if let Some(user) = &user {
                request.extensions_mut().insert(user.clone());
            }
            request.map(axum::body::Body::new)
        })
        .service(router);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(STREAMS_MAX);
    let conn = builder
        .serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(conn);
    tokio::select! {
        ended = conn.as_mut() => {
            if let Err(err) = ended {
                tracing::debug!(%err, "https connection failed");
            }
            return;
        }
        () = cancel.cancelled() => conn.as_mut().graceful_shutdown(),
    }
    // Open requests may finish; the owner of the task group ends the patience.
    let _ = conn.await;
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
