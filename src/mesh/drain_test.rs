//! Goal: a node that stops in order loses no request, not even one that must not be sent twice.
//! Method: POSTs from one node to the pods of two, while one of these stops; each is counted by the
//! pod that acts on it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use serde_json::json;

use super::testing::{node, service, slice};
use super::*;
use crate::net::http::full;
use crate::net::pki::{CertificateAuthority, NodeClass};
use crate::net::testing::{authority, endpoint};
use crate::net::{Body, Endpoint};

/// Who posts at once.
const USERS: usize = 16;

/// A pod that acts on whatever it gets, after a moment.
#[derive(Debug, Default)]
struct Pods {
    acts: AtomicUsize,
}

#[async_trait]
impl Local for Pods {
    async fn connect(&self, _: Option<SocketAddr>, _: SocketAddr) -> std::io::Result<BoxIo> {
        Err(std::io::ErrorKind::ConnectionRefused.into())
    }

    async fn http(
        &self,
        _: SocketAddr,
        request: Request<Body>,
    ) -> Result<Response<Body>, LocalError> {
        let body = request.into_body().collect().await.map_err(LocalError::Failed)?.to_bytes();
        self.acts.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(2)).await;
        Ok(Response::new(full(body)))
    }
}

struct Site {
    endpoint: Endpoint,
    mesh: Mesh,
    pods: Arc<Pods>,
    tasks: TaskGroup,
    peers: Peers,
}

fn start(ca: &CertificateAuthority, name: &str) -> Site {
    let (endpoint, tasks) = endpoint(ca, name, NodeClass::Agent);
    let peers = Peers::new(endpoint.clone(), &tasks, Rng::seeded(5));
    let pods = Arc::new(Pods::default());
    let local: Arc<dyn Local> = pods.clone();
    let mut config = MeshConfig::new(name, local, tasks.clone(), Rng::seeded(7));
    config.peers = Some(peers.clone());
    config.node_port_ip = None;
    let mesh = Mesh::new(config);
    let (accepting, serving, pool, group) =
        (endpoint.clone(), mesh.clone(), peers.clone(), tasks.clone());
    tasks.spawn_until_cancelled("accept", async move {
        while let Some(conn) = accepting.accept().await {
            pool.adopt(&conn);
            let serving = serving.clone();
            // Ends by itself, in order.
            group.spawn("peer", |_| async move { serving.serve_peer(conn).await });
        }
    });
    Site { endpoint, mesh, pods, tasks, peers }
}

async fn posts(mesh: Mesh, stop: Arc<AtomicBool>) -> (usize, Vec<String>) {
    let (mut fine, mut failures) = (0, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        let request = Request::post("http://web/").body(full("once")).unwrap();
        let answer = match mesh.http("default", request).await {
            Ok(response) => {
                let body = response.into_body().collect().await;
                body.map(|body| body.to_bytes()).map_err(|err| err.to_string())
            }
            Err(err) => Err(err.to_string()),
        };
        match answer {
            Ok(body) if body == "once" => fine += 1,
            Ok(_) => failures.push("another body".to_owned()),
            Err(err) => failures.push(err),
        }
    }
    (fine, failures)
}

async fn stop_under_load() {
    let ca = authority();
    let (a, b) = (start(&ca, "a"), start(&ca, "b"));
    a.peers.set_address("b", b.endpoint.local_addr().unwrap());
    let services = [service("web", json!({ "clusterIP": "10.43.0.9", "ports": [{ "port": 80 }] }))];
    let slices = [slice("web", 8080, &[("10.42.0.2", "a"), ("10.42.1.2", "b")])];
    let nodes = [node("a", "10.42.0.0/24"), node("b", "10.42.1.0/24")];
    for site in [&a, &b] {
        site.mesh.publish(Routes::build(&services, &slices, &nodes, [], site.mesh.node_name()));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let users: Vec<_> = (0..USERS)
        .map(|_| {
            #[expect(clippy::disallowed_methods, reason = "a user of a test needs no owner")]
            tokio::spawn(posts(a.mesh.clone(), Arc::clone(&stop)))
        })
        .collect();
    // Far requests are one in sixteen until the near pod has many in flight.
    while b.pods.acts.load(Ordering::Relaxed) < 50 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Table a still names b's pod: the worst case.
    b.tasks.shutdown(Duration::from_secs(10)).await;
    b.endpoint.close().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    stop.store(true, Ordering::Relaxed);
    let (mut fine, mut failures) = (0, Vec::new());
    for user in users {
        let (more, failed) = user.await.unwrap();
        fine += more;
        failures.extend(failed);
    }
    assert!(failures.is_empty(), "{} of {fine}: {failures:?}", failures.len());
    let acts = a.pods.acts.load(Ordering::Relaxed) + b.pods.acts.load(Ordering::Relaxed);
    assert_eq!(acts, fine, "a request was acted on twice");
    assert!(b.tasks.is_empty(), "something of b goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_in_order_loses_no_post_and_doubles_none() {
    for _ in 0..5 {
        tokio::time::timeout(Duration::from_secs(60), stop_under_load()).await.expect("in time");
    }
}
