//! Goal: requests reach the right pods, are spread, and survive the loss of a node.
//! Method: real endpoints on loopback in one process, pods played by a script.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::balancer::Backend;
use super::local::{Local, LocalError};
use super::policy::{Origin, Sender};
use super::testing::{ingress, node, service, slice};
use super::*;
use crate::net::http::{HttpStream, empty, full};
use crate::net::pki::{CertificateAuthority, NodeClass};
use crate::net::testing::{LOOPBACK, authority, endpoint};
use crate::net::{Body, Endpoint};

const SOON: Duration = Duration::from_secs(20);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.expect("in time")
}

/// What a pod does with a request.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Act {
    Answer,
    Hang,
    Trap,
}

/// Pods of one node: each answers with its name, its address and what it was sent.
#[derive(Debug, Default)]
struct Pods {
    pods: Mutex<BTreeMap<SocketAddr, Act>>,
    seen: Mutex<Vec<String>>,
    arrived: tokio::sync::Notify,
}

impl Pods {
    fn new(pods: &[&str]) -> Arc<Self> {
        let this = Self::default();
        this.pods.lock().extend(pods.iter().map(|at| (at.parse().unwrap(), Act::Answer)));
        Arc::new(this)
    }

    fn set(&self, at: &str, act: Act) {
        self.pods.lock().insert(at.parse().unwrap(), act);
    }
}

#[async_trait]
impl Local for Pods {
    async fn connect(&self, to: SocketAddr) -> io::Result<BoxIo> {
        if !self.pods.lock().contains_key(&to) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
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
struct Node {
    endpoint: Endpoint,
    mesh: Mesh,
    pods: Arc<Pods>,
    tasks: TaskGroup,
    peers: Peers,
}

fn start(ca: &CertificateAuthority, name: &str, pods: &[&str]) -> Node {
    let (endpoint, tasks) = endpoint(ca, name, NodeClass::Agent);
    let peers = Peers::new(endpoint.clone(), &tasks, Rng::seeded(5));
    let pods = Pods::new(pods);
    let local: Arc<dyn Local> = pods.clone();
    let mut config = MeshConfig::new(name, local, tasks.clone(), Rng::seeded(7));
    config.peers = Some(peers.clone());
    config.node_port_ip = Some(LOOPBACK.ip());
    let mesh = Mesh::new(config);
    let (accepting, serving, pool, group) =
        (endpoint.clone(), mesh.clone(), peers.clone(), tasks.clone());
    tasks.spawn_until_cancelled("accept", async move {
        while let Some(conn) = accepting.accept().await {
            pool.adopt(&conn);
            let serving = serving.clone();
            group.spawn_until_cancelled("peer", async move { serving.serve_peer(conn).await });
        }
    });
    Node { endpoint, mesh, pods, tasks, peers }
}

/// Nodes a, b, c with one pod each, `10.42.N.2:8080`, all of Service `web`.
const PODS: [(&str, &str); 3] = [("10.42.0.2", "a"), ("10.42.1.2", "b"), ("10.42.2.2", "c")];

fn routes(pods: &[(&str, &str)], me: &str) -> Routes {
    let services = [service("web", json!({ "clusterIP": "10.43.0.9", "ports": [{ "port": 80 }] }))];
    let slices = [slice("web", 8080, pods)];
    let nodes = [node("a", "10.42.0.0/24"), node("b", "10.42.1.0/24"), node("c", "10.42.2.0/24")];
    let rules = [("app.local", "Prefix", "/", "web"), ("gone.local", "Prefix", "/", "none")];
    let ingresses = [ingress("web", "2026-01-01T00:00:00Z", &rules)];
    Routes::build(&services, &slices, &nodes, &ingresses, me)
}

fn cluster(names: &[&str]) -> Vec<Node> {
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

fn get(uri: &str) -> Request<Body> {
    Request::get(uri).body(empty()).unwrap()
}

async fn text(response: Response<Body>) -> String {
    let bytes = soon(response.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn ask(mesh: &Mesh, request: Request<Body>) -> String {
    text(soon(mesh.http("default", request)).await.unwrap()).await.trim().to_owned()
}

#[tokio::test]
async fn requests_from_any_node_reach_the_pods_of_all_nodes() {
    let nodes = cluster(&["a", "b", "c"]);
    for node in &nodes {
        // A way that was slow to open is used less for a while, so this asks for as long as it takes.
        soon(async {
            let mut counts = BTreeMap::<String, usize>::new();
            while counts.len() < 3 || counts.values().any(|count| *count <= 5) {
                *counts.entry(ask(&node.mesh, get("http://web/")).await).or_default() += 1;
            }
            assert_eq!(counts.len(), 3, "{counts:?}");
        })
        .await;
    }
    // Bodies travel too, and pods are reached by address and by Service address.
    let put = Request::put("http://10.42.1.2:8080/x").body(full("body")).unwrap();
    assert_eq!(ask(&nodes[0].mesh, put).await, "10.42.1.2:8080 body");
    let post = Request::post("http://10.43.0.9/x").body(full("body")).unwrap();
    assert!(ask(&nodes[2].mesh, post).await.ends_with(":8080 body"));
}

#[tokio::test]
async fn a_large_body_streams_through_a_hop() {
    let nodes = cluster(&["a", "b"]);
    let big = "x".repeat(3_000_000);
    let request = Request::post("http://10.42.1.2:8080/").body(full(big.clone())).unwrap();
    let answer = ask(&nodes[0].mesh, request).await;
    assert_eq!(answer.len(), "10.42.1.2:8080 ".len() + big.len());
}

#[tokio::test]
async fn a_request_in_flight_to_a_dying_node_is_answered_by_another() {
    let nodes = cluster(&["a", "b"]);
    let [a, b] = nodes.as_slice() else { panic!() };
    b.pods.set("10.42.1.2:8080", Act::Hang);
    // Ask until one request hangs at b, then take b away without a goodbye from its mesh.
    let (mesh, arrived) = (a.mesh.clone(), b.pods.clone());
    let asking = async {
        loop {
            assert_eq!(ask(&mesh, get("http://web/")).await, "10.42.0.2:8080");
            if !arrived.seen.lock().is_empty() {
                return;
            }
        }
    };
    let killing = async {
        b.pods.arrived.notified().await;
        b.endpoint.close().await;
    };
    Box::pin(soon(async { tokio::join!(asking, killing) })).await;
    assert!(a.mesh.metrics().retries() >= 1);
    // From now on b is known to be down, and nobody waits for it.
    for _ in 0..20 {
        assert_eq!(ask(&a.mesh, get("http://web/")).await, "10.42.0.2:8080");
    }
}

#[tokio::test]
async fn a_node_that_dies_silently_fails_its_requests_within_a_second() {
    let ca = authority();
    let a = start(&ca, "a", &["10.42.0.2:8080"]);
    // Node b lives on its own runtime, which is dropped as a killed process would be.
    let (tell, told) = std::sync::mpsc::channel();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    #[expect(clippy::disallowed_methods, reason = "the process of a node, for a test")]
    let process = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let b = runtime.block_on(async {
            let b = start(&ca, "b", &[]);
            b.pods.set("10.42.1.2:8080", Act::Hang);
            b.mesh.publish(routes(&PODS[..2], "b"));
            b
        });
        tell.send((b.endpoint.local_addr().unwrap(), Arc::clone(&b.pods))).unwrap();
        ended.recv().unwrap();
        runtime.shutdown_background();
        drop(b);
    });
    let (address, pods) = told.recv().unwrap();
    a.peers.set_address("b", address);
    a.mesh.publish(routes(&PODS[..2], "a"));
    let mesh = a.mesh.clone();
    let waiting = async {
        while pods.seen.lock().is_empty() {
            assert_eq!(ask(&mesh, get("http://web/")).await, "10.42.0.2:8080");
        }
        Instant::now()
    };
    let killing = async {
        pods.arrived.notified().await;
        end.send(()).unwrap();
        Instant::now()
    };
    let (answered, killed) = Box::pin(soon(async { tokio::join!(waiting, killing) })).await;
    // 900 ms by the settings; the rest is for a busy machine.
    assert!(answered - killed < Duration::from_millis(1300), "{:?}", answered - killed);
    for _ in 0..10 {
        assert_eq!(ask(&a.mesh, get("http://web/")).await, "10.42.0.2:8080");
    }
    process.join().unwrap();
}

#[tokio::test]
async fn what_no_pod_has_seen_is_retried_and_what_one_may_have_done_is_not() {
    let nodes = cluster(&["a", "b"]);
    let [a, b] = nodes.as_slice() else { panic!() };
    b.pods.pods.lock().clear();
    for _ in 0..20 {
        // Nothing listens at b: even a POST may go elsewhere.
        let post = Request::post("http://web/").body(full("once")).unwrap();
        assert_eq!(ask(&a.mesh, post).await, "10.42.0.2:8080 once");
    }
    a.mesh.publish(routes(&PODS[1..2], "a"));
    b.pods.set("10.42.1.2:8080", Act::Trap);
    let failed = soon(a.mesh.http("default", get("http://web/"))).await;
    assert!(matches!(failed, Err(CallError::Broken(_))), "{failed:?}");

    a.pods.set("10.42.0.2:8080", Act::Trap);
    a.mesh.publish(routes(&PODS[..2], "a"));
    a.pods.seen.lock().clear();
    b.pods.seen.lock().clear();
    let post = Request::post("http://web/").body(full("once")).unwrap();
    assert!(soon(a.mesh.http("default", post)).await.is_err());
    assert_eq!(a.pods.seen.lock().len() + b.pods.seen.lock().len(), 1);
    assert!(soon(a.mesh.http("default", get("http://web/"))).await.is_err());
    assert_eq!(a.pods.seen.lock().len() + b.pods.seen.lock().len(), 3);
}

#[tokio::test]
async fn guests_do_not_reach_the_hosts_own_addresses() {
    let nodes = cluster(&["a"]);
    let mesh = &nodes[0].mesh;
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let at = listener.local_addr().unwrap();
    let refused = soon(mesh.connect(at)).await.err().unwrap();
    assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    let refused = soon(mesh.http("default", get(&format!("http://{at}/")))).await;
    assert!(matches!(refused, Err(CallError::Forbidden(_))));
    // A Service's address at a port it does not have.
    let refused = soon(mesh.connect("10.43.0.9:81".parse().unwrap())).await.err().unwrap();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    assert!(soon(mesh.resolve("default", "localhost")).await.is_empty());
    assert_eq!(
        soon(mesh.resolve("default", "web")).await,
        ["10.43.0.9".parse::<IpAddr>().unwrap()]
    );
}

#[tokio::test]
async fn a_peer_reaches_pods_of_this_node_only() {
    let nodes = cluster(&["a", "b"]);
    let conn = soon(nodes[0].peers.get("b", crate::net::Alpn::Mesh)).await.unwrap();
    for address in ["10.42.0.2:8080", "127.0.0.1:22"] {
        let to = address.parse().unwrap();
        let tcp =
            soon(wire::open(&conn, wire::Carries::Tcp, to, Sender::Untold)).await.unwrap_err();
        assert_eq!(tcp.kind(), io::ErrorKind::HostUnreachable);
        let http = soon(wire::open(&conn, wire::Carries::Http, to, Sender::Untold)).await.unwrap();
        let stream = HttpStream::new(http).await.unwrap();
        let mut request = get("/");
        request.headers_mut().insert("host", "x".parse().unwrap());
        let response = soon(stream.send(request, None)).await.unwrap();
        assert_eq!(response.headers()[wire::MESH_ERROR], "refused");
    }
}

async fn greeting(io: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        line.push(soon(io.read_u8()).await.unwrap());
    }
    String::from_utf8(line).unwrap().trim().to_owned()
}

#[tokio::test]
async fn byte_connections_reach_pods_here_and_there() {
    let nodes = cluster(&["a", "b"]);
    for to in ["10.42.0.2:8080", "10.42.1.2:8080"] {
        let mut io = soon(nodes[0].mesh.connect(to.parse().unwrap())).await.unwrap();
        assert_eq!(greeting(&mut io).await, to);
        io.write_all(b"echo").await.unwrap();
        io.shutdown().await.unwrap();
        let mut rest = String::new();
        soon(io.read_to_string(&mut rest)).await.unwrap();
        assert_eq!(rest, "echo");
    }
    let refused = soon(nodes[0].mesh.connect("10.42.1.2:9".parse().unwrap())).await.err().unwrap();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let mut io = soon(nodes[0].mesh.connect("10.43.0.9:80".parse().unwrap())).await.unwrap();
        seen.insert(greeting(&mut io).await);
    }
    assert_eq!(seen.len(), 2);
}

#[tokio::test]
async fn node_ports_open_splice_and_close_with_their_service() {
    let nodes = cluster(&["a", "b"]);
    let [a, b] = nodes.as_slice() else { panic!() };
    b.pods.pods.lock().clear();
    let mut with_port = routes(&PODS[..2], "a");
    // The system chooses the number: a test must not.
    for service in with_port.services.values_mut() {
        service.ports[0].node_port = Some(0);
    }
    a.mesh.publish(with_port);
    let at = a.mesh.open_node_ports()[&0];
    for _ in 0..10 {
        // b's pod is gone, so each connection that was meant for it goes to a's.
        let mut client = soon(TcpStream::connect(at)).await.unwrap();
        assert_eq!(greeting(&mut client).await, "10.42.0.2:8080");
        client.write_all(b"ping").await.unwrap();
        client.shutdown().await.unwrap();
        let mut rest = String::new();
        soon(client.read_to_string(&mut rest)).await.unwrap();
        assert_eq!(rest, "ping");
    }
    a.mesh.publish(routes(&PODS[..2], "a"));
    assert!(a.mesh.open_node_ports().is_empty());
    soon(async {
        while TcpStream::connect(at).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn serve(node: &Node) -> SocketAddr {
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let at = listener.local_addr().unwrap();
    let mesh = node.mesh.clone();
    node.tasks.spawn_until_cancelled("ingress", async move { mesh.serve_ingress(listener).await });
    at
}

async fn through(at: SocketAddr, request: Request<Body>) -> Response<Body> {
    let stream = HttpStream::new(soon(TcpStream::connect(at)).await.unwrap()).await.unwrap();
    soon(stream.send(request, None)).await.unwrap()
}

#[tokio::test]
async fn the_ingress_routes_by_host_and_marks_what_it_forwards() {
    let nodes = cluster(&["a", "b"]);
    let at = serve(&nodes[0]).await;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let request = Request::get("/hello?x=1")
            .header("host", "App.local:8080")
            .header("connection", "keep-alive, x-secret")
            .header("x-secret", "1")
            .header("x-forwarded-for", "10.9.9.9")
            .body(empty())
            .unwrap();
        let response = through(at, request).await;
        assert_eq!(response.status(), 200);
        let headers = response.headers();
        assert_eq!(headers["x-forwarded-for"], "10.9.9.9, 127.0.0.1");
        assert_eq!(headers["x-forwarded-host"], "App.local:8080");
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert!(!headers.contains_key("x-secret"));
        seen.insert(text(response).await);
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(nodes[0].pods.seen.lock()[0].starts_with("GET /hello?x=1"));

    for (host, status) in
        [("other.local", StatusCode::NOT_FOUND), ("gone.local", StatusCode::SERVICE_UNAVAILABLE)]
    {
        let request = Request::get("/path").header("host", host).body(empty()).unwrap();
        let response = through(at, request).await;
        assert_eq!(response.status(), status);
        let body = text(response).await;
        assert_eq!(body.lines().count(), 1);
        if status == StatusCode::NOT_FOUND {
            assert!(body.contains("other.local/path"), "{body}");
        }
    }
}

#[tokio::test]
async fn pods_that_fail_are_502_and_pods_that_hang_are_504() {
    let ca = authority();
    let pods = Pods::new(&["10.42.0.2:8080"]);
    let (_endpoint, tasks) = endpoint(&ca, "a", NodeClass::Agent);
    let local: Arc<dyn Local> = pods.clone();
    let mut config = MeshConfig::new("a", local, tasks.clone(), Rng::seeded(1));
    config.node_port_ip = None;
    config.head_timeout = Duration::from_millis(50);
    let mesh = Mesh::new(config);
    mesh.publish(routes(&PODS[..1], "a"));
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let at = listener.local_addr().unwrap();
    let serving = mesh.clone();
    tasks.spawn_until_cancelled("ingress", async move { serving.serve_ingress(listener).await });
    for (act, status) in [
        (Act::Answer, StatusCode::OK),
        (Act::Trap, StatusCode::BAD_GATEWAY),
        (Act::Hang, StatusCode::GATEWAY_TIMEOUT),
    ] {
        pods.set("10.42.0.2:8080", act);
        let request = Request::get("/").header("host", "app.local").body(empty()).unwrap();
        assert_eq!(through(at, request).await.status(), status);
    }
}

#[tokio::test]
async fn kept_streams_are_used_again() {
    let nodes = cluster(&["a", "b"]);
    nodes[0].mesh.publish(routes(&PODS[1..2], "a"));
    for _ in 0..5 {
        ask(&nodes[0].mesh, get("http://web/")).await;
    }
    let table = nodes[0].mesh.0.table.load();
    let backend = table.cluster_ip("10.43.0.9:80".parse().unwrap()).unwrap();
    assert!(backend.endpoints[0].take_stream().is_some());
    assert!(backend.endpoints[0].take_stream().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_at_once_all_get_their_own_answer() {
    let nodes = cluster(&["a", "b", "c"]);
    let at = serve(&nodes[0]).await;
    let asking = (0..64).map(|client| async move {
        let mut stream = HttpStream::new(TcpStream::connect(at).await.unwrap()).await.unwrap();
        for n in 0..40 {
            let sent = format!("{client}-{n}");
            let request =
                Request::put("/").header("host", "app.local").body(full(sent.clone())).unwrap();
            let (back, kept) = tokio::sync::oneshot::channel();
            let recycle = Box::new(move |stream| drop(back.send(stream)));
            let response = stream.send(request, Some(recycle)).await.unwrap();
            assert_eq!(response.status(), 200);
            let got = text(response).await;
            assert_eq!(got.split_once(' ').unwrap().1, sent);
            stream = kept.await.unwrap();
        }
    });
    soon(futures_util::future::join_all(asking)).await;
}

#[tokio::test]
async fn the_ingress_speaks_http_2_without_tls() {
    let nodes = cluster(&["a"]);
    let at = serve(&nodes[0]).await;
    let io = hyper_util::rt::TokioIo::new(TcpStream::connect(at).await.unwrap());
    let (mut sender, conn) = hyper::client::conn::http2::handshake::<_, _, Body>(
        hyper_util::rt::TokioExecutor::new(),
        io,
    )
    .await
    .unwrap();
    nodes[0].tasks.spawn_until_cancelled("client", async move {
        let _ = conn.await;
    });
    let response = soon(sender.send_request(get("http://app.local/x"))).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-forwarded-host"], "app.local");
    let body = soon(response.into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(body, "10.42.0.2:8080 ");
}

#[tokio::test]
async fn running_requests_end_before_the_ingress_does() {
    let nodes = cluster(&["a"]);
    let at = serve(&nodes[0]).await;
    let (mesh, pods) = (nodes[0].mesh.clone(), Arc::clone(&nodes[0].pods));
    let stream = HttpStream::new(TcpStream::connect(at).await.unwrap()).await.unwrap();
    let (send, chunk) = tokio::sync::oneshot::channel::<bytes::Bytes>();
    let body = futures_util::stream::once(async move {
        Ok::<_, crate::net::BodyError>(http_body::Frame::data(chunk.await.unwrap()))
    });
    let body = http_body_util::StreamBody::new(body).boxed_unsync();
    let request = Request::post("/").header("host", "app.local").body(body).unwrap();
    let ending = async {
        pods.arrived.notified().await;
        mesh.0.tasks.token().cancel();
        send.send(bytes::Bytes::from_static(b"late")).unwrap();
    };
    let (response, ()) = tokio::join!(soon(stream.send(request, None)), ending);
    assert!(text(response.unwrap()).await.ends_with("late"));
}

#[tokio::test]
async fn a_request_costs_an_ingress_connection_little_memory() {
    let nodes = cluster(&["a"]);
    let backend = Backend::default();
    let calling = nodes[0].mesh.call(&backend, Origin::Node, get("/"));
    assert!(size_of_val(&calling) < 6 * 1024, "{}", size_of_val(&calling));
}

#[tokio::test(start_paused = true)]
async fn clients_that_send_their_heads_too_slowly_are_cut_off() {
    let tasks = TaskGroup::new(&tokio_util::sync::CancellationToken::new());
    let local: Arc<dyn Local> = Pods::new(&["10.42.0.2:8080"]);
    let mut config = MeshConfig::new("a", local, tasks.clone(), Rng::seeded(1));
    config.node_port_ip = None;
    let mesh = Mesh::new(config);
    mesh.publish(routes(&PODS[..1], "a"));
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let at = listener.local_addr().unwrap();
    tasks.spawn_until_cancelled("ingress", async move { mesh.serve_ingress(listener).await });
    for head in ["", "G", "GET / HTTP/1.1\r\nHost: app.local\r\n", "PRI * HTTP/2.0\r\n"] {
        let mut client = TcpStream::connect(at).await.unwrap();
        client.write_all(head.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        // Paused time moves on when nothing else does.
        let ended = client.read_to_end(&mut rest).await;
        assert!(ended.is_err() || rest.is_empty(), "{head}");
    }
}
