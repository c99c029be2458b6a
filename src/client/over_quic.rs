//! The servers of the cluster, from a node: the same API over QUIC.

use bytes::Bytes;
use http::{Request, Response};
use tokio::sync::watch;

use crate::client::failover::{Failover, SendFailure, Transport};
use crate::net::http::HttpError;
use crate::net::{Alpn, Body, Peers};
use crate::rt::Rng;

/// A client that speaks to whichever of `servers` (node names) answers, as the node this process
/// is by its certificate.
///
/// It stays with one server; when that fails, reads go on to the next at once, writes only if
/// nothing was sent. Must be called within a tokio runtime, as [`crate::client::in_process`].
#[must_use]
pub fn over_quic(peers: Peers, servers: watch::Receiver<Vec<String>>, rng: Rng) -> kube::Client {
    let failover = Failover::new(Quic(peers), servers, rng);
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let failover = failover.clone();
        async move { failover.call(request).await }
    });
    kube::Client::new(service, "default")
}

struct Quic(Peers);

impl Transport for Quic {
    type Body = Body;

    async fn send(
        &self,
        server: &str,
        request: Request<Bytes>,
    ) -> Result<Response<Body>, SendFailure> {
        let connection = self.0.get(server, Alpn::Api).await;
        let connection = connection.map_err(|err| SendFailure::NotSent(err.into()))?;
        let request = request.map(crate::net::http::full);
        crate::net::http::send(&connection, request).await.map_err(|err| match err {
            HttpError::NotSent(_) => SendFailure::NotSent(err.into()),
            _ => SendFailure::Unanswered(err.into()),
        })
    }
}
