//! Nodes of a test: real endpoints on loopback in one process, pods played by a script.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

use super::local::{Local, LocalError};
use super::testing::{ingress, node, service, slice};
use super::*;
use crate::net::http::{empty, full};
use crate::net::pki::{CertificateAuthority, NodeClass};
use crate::net::testing::{LOOPBACK, authority, endpoint};
use crate::net::{Body, Endpoint};

const SOON: Duration = Duration::from_secs(20);

pub(super) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.expect("in time")
}

/// What a pod does with a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Act {
    Answer,
    Hang,
    Trap,
}

/// Pods of one node: each answers with its name, its address and what it was sent.
#[derive(Debug, Default)]
pub(super) struct Pods {
    pub(super) pods: Mutex<BTreeMap<SocketAddr, Act>>,
    pub(super) seen: Mutex<Vec<String>>,
    pub(super) arrived: tokio::sync::Notify,
    /// Whom each connection came from.
    pub(super) callers: Mutex<Vec<Option<SocketAddr>>>,
}

impl Pods {
    pub(super) fn new(pods: &[&str]) -> Arc<Self> {
        let this = Self::default();
        this.pods.lock().extend(pods.iter().map(|at| (at.parse().unwrap(), Act::Answer)));
        Arc::new(this)
    }

    pub(super) fn set(&self, at: &str, act: Act) {
        self.pods.lock().insert(at.parse().unwrap(), act);
    }
}

#[async_trait]
impl Local for Pods {
    async fn connect(&self, from: Option<SocketAddr>, to: SocketAddr) -> io::Result<BoxIo> {
        if !self.pods.lock().contains_key(&to) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        self.callers.lock().push(from);
        let (here, mut there) = tokio::io::duplex(1024);
        // Greets with its address and echoes the rest; lives as long as the other half.
        #[expect(clippy::disallowed_methods, reason = "a pod of a test needs no owner")]
        tokio::spawn(async move {
            let _ = there.write_all(format!("{to}\n").as_bytes()).await;
            let (mut read, mut write) = tokio::io::split(there);
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        });
        Ok(Box::new(here))
    }

    async fn http(
        &self,
        to: SocketAddr,
        request: Request<Body>,
    ) -> Result<Response<Body>, LocalError> {
        let act = self.pods.lock().get(&to).copied();
        let Some(act) = act else { return Err(LocalError::Refused(Box::new(request))) };
        self.seen.lock().push(format!("{} {} {to}", request.method(), request.uri()));
        self.arrived.notify_waiters();
        self.arrived.notify_one();
        match act {
            Act::Answer => {}
            Act::Hang => std::future::pending().await,
            Act::Trap => return Err(LocalError::Failed("trap".into())),
        }
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(LocalError::Failed)?.to_bytes();
        let mut response = Response::new(full([to.to_string().as_bytes(), b" ", &body].concat()));
        *response.headers_mut() = parts.headers;
        response.headers_mut().remove("content-length");
        Ok(response)
    }
}

/// A node with its mesh, in this process.
pub(super) struct Node {
    pub(super) endpoint: Endpoint,
    pub(super) mesh: Mesh,
    pub(super) pods: Arc<Pods>,
    pub(super) tasks: TaskGroup,
    pub(super) peers: Peers,
}

/// Serves what other nodes open at `endpoint`, until the end of `tasks`.
pub(super) fn serve_peers(endpoint: &Endpoint, mesh: &Mesh, peers: &Peers, tasks: &TaskGroup) {
    let (accepting, serving, pool, group) =
        (endpoint.clone(), mesh.clone(), peers.clone(), tasks.clone());
    tasks.spawn_until_cancelled("accept", async move {
        while let Some(conn) = accepting.accept().await {
            pool.adopt(&conn);
            let serving = serving.clone();
            group.spawn_until_cancelled("peer", async move { serving.serve_peer(conn).await });
        }
    });
}

pub(super) fn start(ca: &CertificateAuthority, name: &str, pods: &[&str]) -> Node {
    let (endpoint, tasks) = endpoint(ca, name, NodeClass::Agent);
    let peers = Peers::new(endpoint.clone(), &tasks, Rng::seeded(5));
    let pods = Pods::new(pods);
    let local: Arc<dyn Local> = pods.clone();
    let mut config = MeshConfig::new(name, local, tasks.clone(), Rng::seeded(7));
    config.peers = Some(peers.clone());
    config.node_port_ip = Some(LOOPBACK.ip());
    let mesh = Mesh::new(config);
    serve_peers(&endpoint, &mesh, &peers, &tasks);
    Node { endpoint, mesh, pods, tasks, peers }
}

/// Nodes a, b, c with one pod each, `10.42.N.2:8080`, all of Service `web`.
pub(super) const PODS: [(&str, &str); 3] =
    [("10.42.0.2", "a"), ("10.42.1.2", "b"), ("10.42.2.2", "c")];

pub(super) fn routes(pods: &[(&str, &str)], me: &str) -> Routes {
    let services = [service("web", json!({ "clusterIP": "10.43.0.9", "ports": [{ "port": 80 }] }))];
    let slices = [slice("web", 8080, pods)];
    let nodes = [node("a", "10.42.0.0/24"), node("b", "10.42.1.0/24"), node("c", "10.42.2.0/24")];
    let rules = [("app.local", "Prefix", "/", "web"), ("gone.local", "Prefix", "/", "none")];
    let ingresses = [ingress("web", "2026-01-01T00:00:00Z", &rules)];
    Routes::build(&services, &slices, &nodes, &ingresses, me)
}

pub(super) fn cluster(names: &[&str]) -> Vec<Node> {
    let ca = authority();
    let nodes: Vec<Node> = names
        .iter()
        .map(|name| {
            let (ip, _) = PODS.iter().find(|(_, node)| node == name).unwrap();
            start(&ca, name, &[&format!("{ip}:8080")])
        })
        .collect();
    let pods: Vec<_> = PODS.iter().filter(|(_, node)| names.contains(node)).copied().collect();
    for node in &nodes {
        node.peers.set_addresses(
            names
                .iter()
                .zip(&nodes)
                .map(|(name, node)| ((*name).to_owned(), node.endpoint.local_addr().unwrap()))
                .collect(),
        );
        node.mesh.publish(routes(&pods, node.mesh.node_name()));
    }
    nodes
}

pub(super) fn get(uri: &str) -> Request<Body> {
    Request::get(uri).body(empty()).unwrap()
}

pub(super) async fn text(response: Response<Body>) -> String {
    let bytes = soon(response.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub(super) async fn ask(mesh: &Mesh, request: Request<Body>) -> String {
    text(soon(mesh.http("default", request)).await.unwrap()).await.trim().to_owned()
}

pub(super) async fn serve(node: &Node) -> SocketAddr {
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let at = listener.local_addr().unwrap();
    let mesh = node.mesh.clone();
    node.tasks.spawn_until_cancelled("ingress", async move { mesh.serve_ingress(listener).await });
    at
}
