//! WebSocket and whatever else a connection is upgraded to: after the pod has agreed, bytes.

use std::sync::Arc;

use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use http_body_util::BodyExt as _;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tracing::debug;

use super::body::AnswerBody;
use super::headers::{has_word, remove_hop_by_hop};
use super::refusal::Refusal;
use super::request::Answer;
use crate::mesh::Mesh;
use crate::mesh::balancer::Backend;
use crate::mesh::policy::{Origin, is_denied};
use crate::mesh::splice::splice;
use crate::mesh::traced::Counting;
use crate::net::{Body, BodyError};

/// Bytes of a head, and of a body's chunk in memory.
const BUFFER_BYTES_MAX: usize = 64 * 1024;

/// An upgrade that a client asks for.
pub(super) struct Upgrade {
    /// The client's side of the connection, once the answer is out.
    client: OnUpgrade,
    protocol: HeaderValue,
}

/// The upgrade that the request asks for, if it does.
pub(super) fn wanted<B>(request: &mut Request<B>) -> Option<Upgrade> {
    let protocol = request.headers().get(header::UPGRADE)?.clone();
    let is_asked = request.version() == Version::HTTP_11
        && has_word(request.headers(), &header::CONNECTION, "upgrade");
    // HTTP/2 without TLS is agreed on by its preface; nobody upgrades to it any more (RFC 9113).
    let is_h2c = protocol.as_bytes().eq_ignore_ascii_case(b"h2c");
    (is_asked && !is_h2c).then(|| Upgrade { client: hyper::upgrade::on(request), protocol })
}

impl Mesh {
    /// Sends the request on a connection of its own. If the pod agrees, the client's connection and
    /// that one become a pair of pipes; if not, its answer is an ordinary one.
    pub(super) async fn upgrade(
        &self,
        backend: &Arc<Backend>,
        mut request: Request<Body>,
        upgrade: Upgrade,
    ) -> Result<Answer, Refusal> {
        let headers = request.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, upgrade.protocol);
        let service = backend.service.as_deref();
        let counting = Counting::new(service.map(|one| one.stats(&self.0.metrics.services)));
        let exchange = async {
            let (io, endpoint) =
                self.connect_one_of(backend, Origin::Node, None).await.map_err(|err| {
                    debug!(%err, "no endpoint for an upgrade");
                    if is_denied(&err) { Refusal::Denied } else { Refusal::NoEndpoint }
                })?;
            let mut span = self.client_span(&endpoint, 0, &mut request);
            // The pod's node sees bytes only, so the request is counted for the pod here.
            let pod = endpoint.pod.as_deref();
            let counting = Counting::new(pod.map(|pod| pod.stats(&self.0.metrics.pods)));
            let broken = |err: hyper::Error| {
                debug!(%err, "upgrade failed");
                Refusal::BadGateway
            };
            let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
                .max_buf_size(BUFFER_BYTES_MAX)
                .handshake(TokioIo::new(io))
                .await
                .map_err(broken)?;
            self.0.tasks.spawn_until_cancelled("ingress-upgrade-exchange", async move {
                // How it ends is told by the response, its body, or the pipe.
                let _ = connection.with_upgrades().await;
            });
            let response = sender.send_request(request).await.map_err(broken)?;
            counting.answered(response.status());
            if let Some(span) = &mut span {
                span.answered(response.status());
            }
            Ok(response)
        };
        let limited = tokio::time::timeout(self.0.head_timeout, exchange);
        let mut response = limited.await.unwrap_or(Err(Refusal::Timeout))?;
        counting.answered(response.status());
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            remove_hop_by_hop(response.headers_mut());
            return Ok(response.map(|body| AnswerBody::Other {
                body: body.map_err(BodyError::from).boxed_unsync(),
            }));
        }
        let pod = hyper::upgrade::on(&mut response);
        let tasks = self.0.tasks.token().clone();
        self.0.tasks.spawn_until_cancelled("ingress-upgrade", async move {
            match tokio::try_join!(upgrade.client, pod) {
                Ok((client, pod)) => splice(TokioIo::new(client), TokioIo::new(pod), &tasks).await,
                Err(err) => debug!(%err, "a connection was not upgraded"),
            }
        });
        let mut answer = Response::new(AnswerBody::Line { body: Default::default() });
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *answer.headers_mut() = std::mem::take(response.headers_mut());
        Ok(answer)
    }
}
