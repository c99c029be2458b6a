//! What other nodes ask of this one: their traffic for its pods.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;

use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tracing::{debug, trace, warn};

use super::Mesh;
use super::call::mesh_error;
use super::local::LocalError;
use super::policy::{SENDER, Sender};
use super::routes::Protocol;
use super::splice::splice;
use super::wire::{self, Carries, DENIED, FAILED, MESH_ERROR, Opened, REFUSED};
use crate::net::{Body, BodyError, Connection, Stream};

/// Bytes of a head, and of a body's chunk in memory.
const BUFFER_BYTES_MAX: usize = 128 * 1024;
/// Header fields of one request.
const HEADERS_MAX: usize = 128;

impl Mesh {
    /// Serves the streams that a node opens on a mesh connection, until it ends. Only pods of this
    /// node are reached.
    pub async fn serve_peer(&self, conn: Connection) {
        let cancel = self.0.tasks.token().clone();
        while let Some(Ok(stream)) = cancel.run_until_cancelled(conn.accept_bi()).await {
            let mesh = self.clone();
            let peer = conn.peer().node.clone();
            self.0.tasks.spawn_until_cancelled("mesh-stream", async move {
                if let Err(err) = mesh.serve_mesh_stream(stream, &peer).await {
                    debug!(%peer, %err, "mesh stream failed");
                }
            });
        }
    }

    async fn serve_mesh_stream(&self, mut stream: Stream, peer: &str) -> io::Result<()> {
        let open = wire::accept(&mut stream).await?;
        if !self.0.table.load().is_local_pod(open.to.ip()) {
            // Routes of the two nodes differ for a moment after a change.
            warn!(%peer, address = %open.to, "asked for a pod that is not here");
            if open.carries == Carries::Tcp {
                return wire::answer(&mut stream, Opened::Unreachable).await;
            }
        }
        match open.carries {
            Carries::Http => self.serve_mesh_http(stream, open.to, peer).await,
            Carries::Udp { from } => {
                let sender = (peer, &open.sender);
                return self.serve_mesh_datagrams(stream, sender, from, open.to).await;
            }
            Carries::Tcp
                if self.admit_peer(peer, &open.sender, open.to, Protocol::Tcp).await.is_err() =>
            {
                wire::answer(&mut stream, Opened::Denied).await?;
            }
            Carries::Tcp => match self.0.local.connect(open.to).await {
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

    async fn serve_mesh_http(&self, stream: Stream, to: SocketAddr, peer: &str) {
        let service = service_fn(move |request: Request<Incoming>| {
            let mesh = self.clone();
            async move { Ok::<_, Infallible>(mesh.answer_peer(peer, to, request).await) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .max_buf_size(BUFFER_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            // The other node keeps streams for reuse and closes them in its own time.
            .header_read_timeout(None)
            .serve_connection(TokioIo::new(stream), service)
            .await;
        if let Err(err) = served {
            trace!(%err, "mesh http stream ended");
        }
    }

    async fn answer_peer(
        &self,
        peer: &str,
        to: SocketAddr,
        mut request: Request<Incoming>,
    ) -> Response<Body> {
        if !self.0.table.load().is_local_pod(to.ip()) {
            return mesh_error(REFUSED, StatusCode::SERVICE_UNAVAILABLE);
        }
        let sender = Sender::from_field(request.headers_mut().remove(SENDER).as_ref());
        if self.admit_peer(peer, &sender, to, Protocol::Tcp).await.is_err() {
            return mesh_error(DENIED, StatusCode::FORBIDDEN);
        }
        let request = request.map(|body| body.map_err(BodyError::from).boxed_unsync());
        match self.0.local.http(to, request).await {
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
