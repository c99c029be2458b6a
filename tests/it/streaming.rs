//! exec and port-forward through the API server, with a stand-in for the node's agent.
//!
//! Method: client and server share a pipe in memory; the agent is a router that echoes.

use axum::Router;
use axum::body::Body;
use axum::extract::RawQuery;
use axum::routing::post;
use bytes::Bytes;
use edgeorc::api::user::UserInfo;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tower::ServiceBuilder;

use crate::support::Api;

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// An agent: commands get back what they write, and exit with 3 at the end of their input; port 80
/// echoes, port 82 reads nothing, other ports refuse. Says when a request's body has ended.
fn agent() -> (Router, mpsc::Receiver<String>) {
    let (ended, ends) = mpsc::channel(8);
    let echo = move |prefix: &'static [u8], mut body: Body, what: String| {
        let ended = ended.clone();
        let (sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(8);
        tokio::spawn(async move {
            let _ = sender.send(Ok(Bytes::from_static(prefix))).await;
            let mut pending = Vec::new();
            while let Some(Ok(frame)) = body.frame().await {
                pending.extend_from_slice(&frame.into_data().unwrap());
                if prefix.is_empty() {
                    let _ = sender.send(Ok(std::mem::take(&mut pending).into())).await;
                }
                // The version came with the first frame; stdin is kind 0, its end kind 5.
                if pending.len() >= 6 && pending[1] == 0 {
                    pending.remove(0);
                    pending[0] = 1;
                    let _ = sender.send(Ok(std::mem::take(&mut pending).into())).await;
                }
                if pending == [5, 0, 0, 0, 0] {
                    let _ = sender.send(Ok(Bytes::from_static(&[3, 0, 0, 0, 4, 0, 0, 0, 3]))).await;
                    break;
                }
            }
            let _ = ended.send(what).await;
        });
        let stream = futures_util::stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|bytes| (bytes, receiver))
        });
        Body::from_stream(stream)
    };
    let forward = echo.clone();
    let exec = post(async move |RawQuery(query): RawQuery, body: Body| {
        echo(&[1], body, query.unwrap_or_default())
    });
    let port = post(async move |RawQuery(query): RawQuery, body: Body| {
        let query = query.unwrap_or_default();
        if query == "port=80" {
            Ok(forward(&[], body, query))
        } else if query == "port=82" {
            let silent = async move {
                let _unread = body;
                std::future::pending::<Result<Bytes, std::io::Error>>().await
            };
            Ok(Body::from_stream(futures_util::stream::once(silent)))
        } else {
            Err((StatusCode::BAD_GATEWAY, "connection refused".to_owned()))
        }
    });
    let router =
        Router::new().route("/exec/default/p/main", exec).route("/portForward/default/p", port);
    (router, ends)
}

async fn api() -> (Api, mpsc::Receiver<String>) {
    let (agent, ends) = agent();
    let api = Api::start_with_node(agent).await;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"nodeName": "one", "containers": [{"name": "main", "image": "x"}]}});
    let made = api.post("/api/v1/namespaces/default/pods", &pod).await;
    assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
    (api, ends)
}

/// Sends an upgrade request as `user` over a pipe in memory.
async fn ask(api: &Api, user: UserInfo, path: &str, protocol: &str) -> Response<Incoming> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let service = ServiceBuilder::new()
        .map_request(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(user.clone());
            request.map(Body::new)
        })
        .service(api.router.clone());
    tokio::spawn(async move {
        let builder = auto::Builder::new(TokioExecutor::new());
        let service = TowerToHyperService::new(service);
        let _ = builder.serve_connection_with_upgrades(TokioIo::new(far), service).await;
    });
    let client = hyper::client::conn::http1::handshake(TokioIo::new(near)).await;
    let (mut sender, connection) = client.unwrap();
    tokio::spawn(connection.with_upgrades());
    let request = Request::get(path)
        .header("host", "api")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("sec-websocket-protocol", protocol)
        .body(Empty::<Bytes>::new());
    sender.send_request(request.unwrap()).await.unwrap()
}

async fn open(api: &Api, path: &str, protocol: &str) -> Socket {
    let admin = UserInfo::new("admin", &["system:masters"]);
    let response = ask(api, admin, path, protocol).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let io = hyper::upgrade::on(response).await.unwrap();
    WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Client, None).await
}

async fn receive(socket: &mut Socket) -> Vec<u8> {
    loop {
        match socket.next().await.unwrap().unwrap() {
            Message::Binary(bytes) => return bytes.to_vec(),
            Message::Close(_) => panic!("closed"),
            _ => {}
        }
    }
}

const EXEC: &str =
    "/api/v1/namespaces/default/pods/p/exec?command=a&command=b+c&stdin=true&stdout=true";

#[tokio::test]
async fn a_command_gets_its_input_and_the_client_its_exit_code() {
    let (api, mut ends) = api().await;
    let mut socket = open(&api, EXEC, "v5.channel.k8s.io").await;
    socket.send(Message::Binary(Bytes::from_static(b"\0hello"))).await.unwrap();
    assert_eq!(receive(&mut socket).await, b"\x01hello");
    socket.send(Message::Binary(Bytes::from_static(b"\xff\0"))).await.unwrap();
    let status = receive(&mut socket).await;
    assert_eq!(status[0], 3);
    let status: Value = serde_json::from_slice(&status[1..]).unwrap();
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"][0]["message"], "3");
    assert!(matches!(socket.next().await, Some(Ok(Message::Close(_)))));
    let asked = ends.recv().await.unwrap();
    assert_eq!(asked, "command=a&command=b%20c&stdin=true&tty=false&");
}

#[tokio::test]
async fn the_node_learns_that_a_client_is_gone_or_breaks_the_protocol() {
    let (api, mut ends) = api().await;
    let socket = open(&api, EXEC, "v4.channel.k8s.io").await;
    drop(socket);
    ends.recv().await.unwrap();
    let mut socket = open(&api, EXEC, "v4.channel.k8s.io").await;
    // The end of a stream is not part of version 4.
    socket.send(Message::Binary(Bytes::from_static(b"\xff\0"))).await.unwrap();
    ends.recv().await.unwrap();
    assert!(matches!(socket.next().await, Some(Ok(Message::Close(_)))));
}

#[tokio::test]
async fn ports_are_forwarded_over_channels() {
    let (api, mut ends) = api().await;
    let path = "/api/v1/namespaces/default/pods/p/portforward?ports=80&ports=81";
    let mut socket = open(&api, path, "v4.channel.k8s.io").await;
    let mut begun = Vec::new();
    let mut refused = String::new();
    while begun.len() < 4 || refused.is_empty() {
        let message = receive(&mut socket).await;
        if message[0] == 3 && message.len() > 3 {
            refused = String::from_utf8_lossy(&message[1..]).into_owned();
        } else {
            begun.push(message);
        }
    }
    assert_eq!(begun, [vec![0, 80, 0], vec![1, 80, 0], vec![2, 81, 0], vec![3, 81, 0]]);
    assert!(refused.starts_with("error forwarding port 81 to pod p, uid "), "{refused}");
    assert!(refused.ends_with(": connection refused"), "{refused}");
    socket.send(Message::Binary(Bytes::from_static(b"\0hello"))).await.unwrap();
    assert_eq!(receive(&mut socket).await, b"\0hello");
    drop(socket);
    assert_eq!(ends.recv().await.unwrap(), "port=80");
}

#[tokio::test]
async fn a_pod_that_reads_nothing_ends_its_own_connection_and_no_other() {
    let (api, _ends) = api().await;
    let path = "/api/v1/namespaces/default/pods/p/portforward?ports=82&ports=80";
    let mut socket = open(&api, path, "v4.channel.k8s.io").await;
    for _ in 0..4 {
        receive(&mut socket).await;
    }
    tokio::time::pause();
    let (mut sink, mut stream) = socket.split();
    let sending = async {
        let piece = Bytes::from(vec![0; 32 * 1024]);
        for _ in 0..200 {
            sink.send(Message::Binary(piece.clone())).await.unwrap();
        }
        sink.send(Message::Binary(Bytes::from_static(b"\x02hello"))).await.unwrap();
    };
    let receiving = async {
        let mut got = Vec::new();
        while got.len() < 2 {
            if let Message::Binary(bytes) = stream.next().await.unwrap().unwrap() {
                got.push(String::from_utf8_lossy(&bytes).into_owned());
            }
        }
        got
    };
    let both = async { tokio::join!(sending, receiving).1 };
    let got = tokio::time::timeout(std::time::Duration::from_secs(60), both).await.unwrap();
    assert!(got[0].starts_with("\x01error forwarding port 82 to pod p, uid "), "{got:?}");
    assert!(got[0].ends_with(": the pod reads nothing"), "{got:?}");
    assert_eq!(got[1], "\x02hello");
}

#[tokio::test]
async fn what_cannot_be_a_session_is_refused() {
    let (api, _ends) = api().await;
    let admin = || UserInfo::new("admin", &["system:masters"]);
    let refused = async |user: UserInfo, path: &str, protocol: &str| {
        ask(&api, user, path, protocol).await.status().as_u16()
    };
    assert_eq!(refused(admin(), &EXEC.replace("/p/", "/q/"), "v5.channel.k8s.io").await, 404);
    assert_eq!(refused(admin(), EXEC, "v9.channel.k8s.io").await, 400);
    let wrong = format!("{EXEC}&container=other");
    assert_eq!(refused(admin(), &wrong, "v5.channel.k8s.io").await, 400);
    let silent = "/api/v1/namespaces/default/pods/p/exec?command=a";
    assert_eq!(refused(admin(), silent, "v5.channel.k8s.io").await, 400);
    let node = UserInfo::new("system:node:two", &["system:nodes"]);
    assert_eq!(refused(node, EXEC, "v5.channel.k8s.io").await, 403);
    assert_eq!(api.get(EXEC).await.code, StatusCode::BAD_REQUEST);
}
