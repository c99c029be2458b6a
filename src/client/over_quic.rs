//! The servers of the cluster, from a node: the same API over QUIC.

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
        request: Request<Body>,
    ) -> Result<Response<Body>, SendFailure> {
        let connection = self.0.get(server, Alpn::Api).await;
        let connection = connection.map_err(|err| SendFailure::NotSent(err.into()))?;
        crate::net::http::send(&connection, request).await.map_err(|err| match err {
            HttpError::NotSent(_) => SendFailure::NotSent(err.into()),
            _ => SendFailure::Unanswered(err.into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::{Ipv4Addr, SocketAddr};

    use axum::routing::get;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::net::pki::{CertificateAuthority, NodeClass};
    use crate::net::{Endpoint, Identity, NetConfig};
    use crate::rt::{TaskGroup, WallClock};

    /// An endpoint of the node `name`.
    fn endpoint(ca: &CertificateAuthority, name: &str, tasks: &TaskGroup) -> Endpoint {
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let class = if name.starts_with('s') { NodeClass::Server } else { NodeClass::Agent };
        let keys = ca.generate_node(name, &[loopback.ip()], class).unwrap();
        let clock = WallClock::system();
        let identity = Identity::new(&keys.cert_pem, &keys.key_pem, ca.cert_pem(), &clock).unwrap();
        Endpoint::bind(loopback, identity, NetConfig::default(), tasks).unwrap()
    }

    /// Serves its own name at `/` until `tasks` end.
    fn serve(endpoint: Endpoint, name: &'static str, tasks: &TaskGroup) {
        let router = axum::Router::new().route("/", get(move || async move { name }));
        let group = tasks.clone();
        tasks.spawn_until_cancelled("server", async move {
            while let Some(connection) = endpoint.accept().await {
                let (router, tasks) = (router.clone(), group.clone());
                group.spawn_until_cancelled("connection", async move {
                    crate::net::http::serve(connection, router, &tasks).await;
                });
            }
        });
    }

    async fn ask(client: &kube::Client) -> String {
        let request = Request::get("/").body(Vec::new()).unwrap();
        client.request_text(request).await.unwrap()
    }

    /// Goal: the death of a server is not seen by its clients. Method: real endpoints on loopback,
    /// one of which ends without a word.
    #[tokio::test]
    async fn another_server_answers_when_the_one_in_use_dies() {
        let ca = CertificateAuthority::generate("test", &WallClock::system()).unwrap();
        let cancel = CancellationToken::new();
        let (mine, mut servers, mut addresses) =
            (TaskGroup::new(&cancel), BTreeMap::new(), BTreeMap::new());
        for name in ["s1", "s2"] {
            let tasks = TaskGroup::new(&cancel);
            let endpoint = endpoint(&ca, name, &tasks);
            addresses.insert(name.to_owned(), endpoint.local_addr().unwrap());
            serve(endpoint, name, &tasks);
            servers.insert(name, tasks);
        }
        let peers = Peers::new(endpoint(&ca, "a1", &mine), &mine, Rng::seeded(1));
        let names = addresses.keys().cloned().collect();
        peers.set_addresses(addresses);
        let client = over_quic(peers, watch::channel(names).1, Rng::seeded(1));
        let first = ask(&client).await;
        assert_eq!(ask(&client).await, first, "it stays with the server that answers");
        let dying = servers.remove(first.as_str()).unwrap();
        dying.shutdown(std::time::Duration::from_secs(1)).await;
        assert_ne!(ask(&client).await, first);
        cancel.cancel();
    }
}
