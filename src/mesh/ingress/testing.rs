//! An ingress with pods that answer with what they were sent, for the tests of this room.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::{HttpObjects, HttpRoutes};
use crate::api::gateway::{CONTROLLER, GatewayObjects};
use crate::mesh::testing::{node, slice};
use crate::mesh::{BoxIo, Local, LocalError, Mesh, MeshConfig, Routes};
use crate::net::http::{HttpStream, full};
use crate::net::{Body, BodyError};
use crate::rt::{Rng, TaskGroup};

/// What is answered at `/big`: more than sockets hold.
pub(super) const BIG_BYTES: usize = 32 * 1024 * 1024;
/// It comes in pieces, as a pod's answer does.
const BIG_PIECE_BYTES: usize = 64 * 1024;
const SOON: Duration = Duration::from_secs(20);

/// Services of the tests, each with one pod; all have port 80.
pub(super) const PODS: &[(&str, &str)] =
    &[("a", "10.42.0.2"), ("b", "10.42.0.3"), ("slow", "10.42.0.4"), ("grpc", "10.42.0.5")];

pub(super) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.expect("in time")
}

pub(super) fn object<T: serde::de::DeserializeOwned>(value: Value) -> Arc<T> {
    Arc::new(serde_json::from_value(value).unwrap())
}

/// Pods of one node. They answer with the Service, the request line, the header and the body; at `/stream` with the body
/// while it comes, at `/strict` not at all if it breaks off.
#[derive(Debug, Default)]
pub(super) struct Echo {
    /// Services in the order in which their pods were asked, with the path.
    pub(super) seen: Mutex<Vec<String>>,
    arrived: tokio::sync::Notify,
}

impl Echo {
    async fn answer(&self, to: SocketAddr, request: Request<Body>) -> Response<Body> {
        let (service, _) = PODS.iter().find(|(_, ip)| *ip == to.ip().to_string()).unwrap();
        self.seen.lock().push(format!("{service} {}", request.uri().path()));
        self.arrived.notify_waiters();
        if *service == "slow" {
            std::future::pending::<()>().await;
        }
        if request.uri().path() == "/big" {
            let piece = Bytes::from(vec![b'x'; BIG_PIECE_BYTES]);
            let frame = move |_| Ok::<_, BodyError>(Frame::data(piece.clone()));
            let frames = (0..BIG_BYTES / BIG_PIECE_BYTES).map(frame);
            let body = StreamBody::new(futures_util::stream::iter(frames));
            return Response::new(body.boxed_unsync());
        }
        if request.uri().path() == "/stream" {
            return Response::new(request.into_body());
        }
        let (parts, body) = request.into_parts();
        let mut text = format!("{service}: {} {} {:?}\n", parts.method, parts.uri, parts.version);
        for (name, value) in &parts.headers {
            text.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
        }
        let Ok(body) = body.collect().await else {
            let mut broken = Response::new(full("broken"));
            *broken.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            return broken;
        };
        let is_grpc = parts.version == Version::HTTP_2;
        text.push_str(&format!("\n{}", String::from_utf8_lossy(&body.to_bytes())));
        let mut response = Response::new(if is_grpc { with_trailers(text) } else { full(text) });
        response.headers_mut().insert("x-pod", HeaderValue::from_static(service));
        response
    }

    /// Waits until so many requests were seen.
    pub(super) async fn wait_for(&self, count: usize) -> Vec<String> {
        soon(async {
            loop {
                let arrived = self.arrived.notified();
                let seen = self.seen.lock().clone();
                if seen.len() >= count {
                    return seen;
                }
                arrived.await;
            }
        })
        .await
    }
}

fn with_trailers(text: String) -> Body {
    let trailers = HeaderMap::from_iter([(
        header::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )]);
    let frames: [Result<Frame<Bytes>, BodyError>; 2] =
        [Ok(Frame::data(text.into())), Ok(Frame::trailers(trailers))];
    StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
}

#[derive(Debug)]
struct Pods(Arc<Echo>);

#[async_trait]
impl Local for Pods {
    /// A server of HTTP/1.1 and HTTP/2 on bytes, which upgrades to an echo.
    async fn connect(&self, _: Option<SocketAddr>, to: SocketAddr) -> io::Result<BoxIo> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let echo = Arc::clone(&self.0);
        let service = service_fn(move |mut request: Request<hyper::body::Incoming>| {
            let echo = Arc::clone(&echo);
            async move {
                if request.headers().contains_key(header::UPGRADE) {
                    return Ok::<_, Infallible>(upgraded(&mut request));
                }
                let request = request.map(|body| body.map_err(BodyError::from).boxed_unsync());
                Ok(echo.answer(to, request).await)
            }
        });
        #[expect(clippy::disallowed_methods, reason = "a pod of a test needs no owner")]
        tokio::spawn(async move {
            let server = auto::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection_with_upgrades(TokioIo::new(far), service).await;
        });
        Ok(Box::new(near))
    }

    async fn http(
        &self,
        to: SocketAddr,
        request: Request<Body>,
    ) -> Result<Response<Body>, LocalError> {
        let is_strict = request.uri().path() == "/strict";
        let response = self.0.answer(to, request).await;
        if is_strict && response.status().is_server_error() {
            return Err(LocalError::Failed("the guest has ended".into()));
        }
        Ok(response)
    }
}

fn upgraded(request: &mut Request<hyper::body::Incoming>) -> Response<Body> {
    let mut response = Response::new(crate::net::http::empty());
    if request.headers()[header::UPGRADE] != "websocket" {
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return response;
    }
    let client = hyper::upgrade::on(request);
    #[expect(clippy::disallowed_methods, reason = "a pod of a test needs no owner")]
    tokio::spawn(async move {
        let (mut read, mut write) = tokio::io::split(TokioIo::new(client.await.unwrap()));
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    });
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    response
}

/// What a client got.
#[derive(Debug)]
pub(super) struct Got {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

impl Got {
    /// The Service that answered.
    pub(super) fn pod(&self) -> &str {
        self.headers.get("x-pod").map_or("", |pod| pod.to_str().unwrap())
    }

    pub(super) fn location(&self) -> &str {
        self.headers.get("location").map_or("", |to| to.to_str().unwrap())
    }
}

/// A node with an ingress.
pub(super) struct Site {
    pub(super) mesh: Mesh,
    pub(super) echo: Arc<Echo>,
    pub(super) http: SocketAddr,
    pub(super) https: SocketAddr,
    pub(super) tasks: TaskGroup,
}

impl Site {
    pub(super) async fn new(objects: HttpObjects) -> Self {
        let tasks = TaskGroup::new(&CancellationToken::new());
        let echo = Arc::new(Echo::default());
        let pods: Arc<dyn Local> = Arc::new(Pods(Arc::clone(&echo)));
        let mut config = MeshConfig::new("one", pods, tasks.clone(), Rng::seeded(3));
        config.node_port_ip = Some(std::net::Ipv4Addr::LOCALHOST.into());
        config.head_timeout = Duration::from_secs(5);
        let mesh = Mesh::new(config);
        let listen = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (plain, tls) = (listen().await, listen().await);
        let (http, https) = (plain.local_addr().unwrap(), tls.local_addr().unwrap());
        let serving = mesh.clone();
        tasks.spawn_until_cancelled("http", async move { serving.serve_ingress(plain).await });
        let serving = mesh.clone();
        tasks.spawn_until_cancelled("https", async move { serving.serve_ingress_tls(tls).await });
        let site = Self { mesh, echo, http, https, tasks };
        site.publish(objects);
        site
    }

    pub(super) fn publish(&self, mut objects: HttpObjects) {
        objects.services = services();
        let slices: Vec<EndpointSlice> =
            PODS.iter().map(|(name, ip)| slice(name, 8080, &[(ip, "one")])).collect();
        let services: Vec<&Service> = objects.services.iter().map(AsRef::as_ref).collect();
        let nodes = [node("one", "10.42.0.0/24")];
        let routes = Routes::build(services, &slices, &nodes, [], "one");
        self.mesh.publish(routes.with_http(HttpRoutes::build(&objects)));
    }

    pub(super) async fn ask(&self, request: Request<Body>) -> Got {
        ask_at(self.http, request).await
    }

    pub(super) async fn get(&self, host: &str, path: &str) -> Got {
        self.ask(get(host, path)).await
    }

    /// What `/metrics` says of the mesh.
    pub(super) fn metrics(&self) -> String {
        let mut registry = prometheus_client::registry::Registry::default();
        self.mesh.metrics().register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    /// Sends bytes and reads until the end or for a while.
    pub(super) async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.write_all(bytes).await;
        let reading = stream.read_to_end(&mut answer);
        let _ = tokio::time::timeout(Duration::from_secs(2), reading).await;
        String::from_utf8_lossy(&answer).into_owned()
    }
}

pub(super) fn get(host: &str, path: &str) -> Request<Body> {
    Request::get(path).header("host", host).body(crate::net::http::empty()).unwrap()
}

pub(super) async fn ask_at(at: SocketAddr, request: Request<Body>) -> Got {
    let stream = HttpStream::new(TcpStream::connect(at).await.unwrap()).await.unwrap();
    let response = soon(stream.send(request, None)).await.unwrap();
    got(response).await
}

pub(super) async fn got<B>(response: Response<B>) -> Got
where
    B: http_body::Body,
    B::Error: std::fmt::Debug,
{
    let (parts, body) = response.into_parts();
    let bytes = soon(body.collect()).await.unwrap().to_bytes();
    let body = String::from_utf8(bytes.to_vec()).unwrap();
    Got { status: parts.status, headers: parts.headers, body }
}

/// Services of [`PODS`], and `empty`, which has no pod. `other/far` is a second name for `a`.
pub(super) fn services() -> Vec<Arc<Service>> {
    let service = |name: &str| {
        let port = if name == "grpc" {
            json!({"port": 80, "appProtocol": "kubernetes.io/h2c"})
        } else {
            json!({"port": 80})
        };
        object(json!({"metadata": {"namespace": "default", "name": name},
            "spec": {"clusterIP": "None", "ports": [port]}}))
    };
    PODS.iter().map(|(name, _)| service(name)).chain([service("empty")]).collect()
}

/// A Gateway `gw` with these listeners, and a route for each pair of hosts and rules.
pub(super) fn gateway(listeners: &Value, routes: &[(&[&str], Value)]) -> HttpObjects {
    let route = |(at, (hosts, rules)): (usize, &(&[&str], Value))| {
        object(json!({
            "metadata": {"namespace": "default", "name": format!("r{at}"),
                "creationTimestamp": format!("2026-01-01T00:00:{at:02}Z")},
            "spec": {"parentRefs": [{"name": "gw"}], "hostnames": hosts, "rules": rules}}))
    };
    let gateway = object(json!({"metadata": {"namespace": "default", "name": "gw"},
        "spec": {"gatewayClassName": "edgeorc", "listeners": listeners}}));
    HttpObjects {
        gateway: GatewayObjects {
            classes: vec![object(json!({"metadata": {"name": "edgeorc"},
                "spec": {"controllerName": CONTROLLER}}))],
            gateways: vec![gateway],
            routes: routes.iter().enumerate().map(route).collect(),
            namespaces: BTreeMap::from([("default".to_owned(), BTreeMap::new())]),
            ..GatewayObjects::default()
        },
        ..HttpObjects::default()
    }
}

/// One route at a listener of port 80.
pub(super) fn rules(rules: Value) -> HttpObjects {
    gateway(&json!([{"name": "http", "port": 80, "protocol": "HTTP"}]), &[(&[], rules)])
}

pub(super) fn to(service: &str) -> Value {
    json!([{"name": service, "port": 80}])
}
