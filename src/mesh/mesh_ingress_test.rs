//! Goal: what comes in at the ingress reaches a pod, is marked, and ends in order.
//! Method: as `mesh_harness` says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::local::Local;
use super::mesh_harness::{Act, PODS, Pods, cluster, get, routes, serve, soon, text};
use super::*;
use crate::net::Body;
use crate::net::http::{HttpStream, empty};
use crate::net::pki::NodeClass;
use crate::net::testing::{LOOPBACK, authority, endpoint};

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
