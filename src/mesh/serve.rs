//! What other nodes ask of this one: their traffic for its pods.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;
use tracing::{debug, trace, warn};

use super::Mesh;
use super::call::mesh_error;
use super::caller;
use super::local::LocalError;
use super::policy::{SENDER, Sender};
use super::routes::Protocol;
use super::splice::splice;
use super::wire::{self, Carries, DENIED, FAILED, MESH_ERROR, Opened, REFUSED};
use crate::net::{Body, BodyError, BoxIo, Connection, Stream};

/// Bytes of a head, and of a body's chunk in memory.
const BUFFER_BYTES_MAX: usize = 128 * 1024;
/// Header fields of one request.
const HEADERS_MAX: usize = 128;
/// Time for the requests of a connection to end when the process does: less than the whole process
/// has for it.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(8);
/// Pause between two looks at what is left of them.
const DRAIN_LOOK: Duration = Duration::from_millis(10);
/// Time for the last answer of a stream to arrive.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(2);

/// The body of a request, which tells whether it was read to its end: only then can what follows it
/// be said to be another request.
struct Marked {
    body: Incoming,
    was_read: Arc<AtomicBool>,
}

impl Marked {
    fn of(body: Incoming, was_read: &Arc<AtomicBool>) -> Self {
        was_read.store(false, Ordering::Relaxed);
        Self { body, was_read: Arc::clone(was_read) }
    }
}

impl Drop for Marked {
    fn drop(&mut self) {
        self.was_read.store(HttpBody::is_end_stream(&self.body), Ordering::Relaxed);
    }
}

impl HttpBody for Marked {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        HttpBody::poll_frame(Pin::new(&mut self.body), cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        HttpBody::is_end_stream(&self.body)
    }

    fn size_hint(&self) -> SizeHint {
        HttpBody::size_hint(&self.body)
    }
}

impl Mesh {
    /// Serves the streams that a node opens on a mesh connection, until it ends. Only pods of this
    /// node are reached.
    ///
    /// When the mesh's tasks are cancelled, what runs on the connection ends in order, within
    /// `DRAIN_TIMEOUT`: give it the time.
    pub async fn serve_peer(&self, conn: Connection) {
        let cancel = self.0.tasks.token().clone();
        let served = Arc::new(());
        conn.drive_on(&self.0.threads);
        while let Some(Ok(stream)) = cancel.run_until_cancelled(conn.accept_bi()).await {
            self.spawn_mesh_stream(&conn, stream, &served);
        }
        if cancel.is_cancelled() && !conn.is_closed() {
            self.drain_peer(&conn, &served).await;
        }
    }

    /// `served` is held until the stream's last answer has arrived.
    fn spawn_mesh_stream(&self, conn: &Connection, stream: Stream, served: &Arc<()>) {
        let mesh = self.clone();
        let (peer, served) = (conn.peer().node.clone(), Arc::clone(served));
        self.0.tasks.spawn_hot_on(&self.0.threads, "mesh-stream", |cancel| async move {
            if let Err(err) = mesh.serve_mesh_stream(stream, &peer, &cancel).await {
                debug!(%peer, %err, "mesh stream failed");
            }
            drop(served);
        });
    }

    /// Lets the requests on the connection end, in both directions, and closes it in a way that tells
    /// the peer: whatever it still waits for was not looked at.
    async fn drain_peer(&self, conn: &Connection, served: &Arc<()>) {
        let refusing = async {
            // New streams are answered as well, by a refusal.
            while let Ok(stream) = conn.accept_bi().await {
                self.spawn_mesh_stream(conn, stream, served);
            }
        };
        let ended = async {
            loop {
                self.0.table.load().drop_kept_streams();
                if conn.streams() == 0 && Arc::strong_count(served) == 1 {
                    return;
                }
                tokio::time::sleep(DRAIN_LOOK).await;
            }
        };
        tokio::select! {
            () = refusing => {}
            ended = tokio::time::timeout(DRAIN_TIMEOUT, ended) => match ended {
                Ok(()) => conn.close_drained(),
                Err(_) => conn.close("shutting down"),
            }
        }
    }

    async fn serve_mesh_stream(
        &self,
        mut stream: Stream,
        peer: &str,
        cancel: &CancellationToken,
    ) -> io::Result<()> {
        let open = wire::accept(&mut stream).await?;
        if !self.0.table.load().is_local_pod(open.to.ip()) {
            // Routes of the two nodes differ for a moment after a change.
            warn!(%peer, address = %open.to, "asked for a pod that is not here");
            if let Carries::Tcp { .. } = open.carries {
                return wire::answer(&mut stream, Opened::Unreachable).await;
            }
        }
        match open.carries {
            Carries::Http => self.serve_mesh_http(stream, open.to, peer, cancel).await,
            Carries::Udp { from } => {
                let sender = (peer, &open.sender);
                let serving = self.serve_mesh_datagrams(stream, sender, from, open.to);
                return cancel.run_until_cancelled(serving).await.unwrap_or(Ok(()));
            }
            Carries::Tcp { .. }
                if self.admit_peer(peer, &open.sender, open.to, Protocol::Tcp).await.is_err() =>
            {
                wire::answer(&mut stream, Opened::Denied).await?;
            }
            Carries::Tcp { from } => match self.connect_local(from, peer, open.to).await {
                Ok(pod) => {
                    wire::answer(&mut stream, Opened::Connected).await?;
                    splice(stream, pod, self.0.tasks.token()).await;
                }
                Err(err) => {
                    trace!(%err, address = %open.to, "pod not reached");
                    wire::answer(&mut stream, Opened::Refused).await?;
                }
            },
        }
        Ok(())
    }

    /// Connects to a pod of this node, which sees `from` if that is one that `peer` may speak for.
    async fn connect_local(
        &self,
        from: Option<SocketAddr>,
        peer: &str,
        to: SocketAddr,
    ) -> io::Result<BoxIo> {
        let from = from.filter(|from| {
            let place = self.0.table.load().routes.place_of(from.ip().to_canonical());
            caller::speaks_for(&place, peer)
        });
        self.0.local.connect(from.map(|from| caller::shown(from, to.ip())), to).await
    }

    async fn serve_mesh_http(
        &self,
        stream: Stream,
        to: SocketAddr,
        peer: &str,
        cancel: &CancellationToken,
    ) {
        let end = stream.end();
        let was_read = end.marker();
        let service = service_fn(|request: Request<Incoming>| {
            let request = request.map(|body| Marked::of(body, &was_read).boxed_unsync());
            let was_read = Arc::clone(&was_read);
            async move {
                let response = if cancel.is_cancelled() {
                    drop(request);
                    mesh_error(REFUSED, StatusCode::SERVICE_UNAVAILABLE)
                } else {
                    self.answer_peer(peer, to, request).await
                };
                if response.headers().get(MESH_ERROR).is_some_and(|why| why == REFUSED) {
                    // Nobody has looked at it, nor at what is left of its body.
                    was_read.store(true, Ordering::Relaxed);
                }
                Ok::<_, Infallible>(response)
            }
        });
        let conn = hyper::server::conn::http1::Builder::new()
            .max_buf_size(BUFFER_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            // The other node keeps streams for reuse and closes them in its own time.
            .header_read_timeout(None)
            .serve_connection(TokioIo::new(stream), service);
        let mut conn = Box::pin(conn);
        was_read.store(true, Ordering::Relaxed);
        let served = tokio::select! {
            served = conn.as_mut() => served,
            () = cancel.cancelled() => {
                conn.as_mut().graceful_shutdown();
                match tokio::time::timeout(DRAIN_TIMEOUT, conn.as_mut()).await {
                    Ok(served) => served,
                    Err(_) => return,
                }
            }
        };
        drop(conn);
        match served {
            Err(err) => trace!(%err, "mesh http stream ended"),
            Ok(()) if cancel.is_cancelled() => {
                let _ = tokio::time::timeout(ARRIVAL_TIMEOUT, end.arrived()).await;
            }
            Ok(()) => {}
        }
    }

    async fn answer_peer(
        &self,
        peer: &str,
        to: SocketAddr,
        mut request: Request<Body>,
    ) -> Response<Body> {
        let pod = {
            let table = self.0.table.load();
            if !table.is_local_pod(to.ip()) {
                return mesh_error(REFUSED, StatusCode::SERVICE_UNAVAILABLE);
            }
            table.pod(to.ip()).cloned()
        };
        let sender = Sender::from_field(request.headers_mut().remove(SENDER).as_ref());
        if self.admit_peer(peer, &sender, to, Protocol::Tcp).await.is_err() {
            return mesh_error(DENIED, StatusCode::FORBIDDEN);
        }
        match self.deliver(to, pod.as_ref(), request).await {
            Ok(mut response) => {
                response.headers_mut().remove(MESH_ERROR);
                response
            }
            Err(LocalError::Refused(_)) => mesh_error(REFUSED, StatusCode::SERVICE_UNAVAILABLE),
            Err(LocalError::Failed(err)) => {
                debug!(address = %to, %err, "pod gave no answer");
                mesh_error(FAILED, StatusCode::BAD_GATEWAY)
            }
        }
    }
}
