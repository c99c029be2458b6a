//! Goal: one trace across the ingress, the hop to another node and its pod; counts by Service and
//! pod; and a collector that is in trouble troubles nobody. Method: two nodes on loopback in one
//! process, and a collector that decodes with the published types.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use opentelemetry_proto::tonic::trace::v1::Span as Exported;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use parking_lot::Mutex;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::mesh_harness::serve_peers;
use super::testing::{ingress, node, service, slice};
use super::*;
use crate::config::{Sampling, TracingSettings};
use crate::net::http::{HttpStream, empty, full};
use crate::net::pki::{CertificateAuthority, NodeClass};
use crate::net::testing::{LOOPBACK, authority, endpoint};
use crate::net::{Body, Endpoint};
use crate::telemetry::trace::testing::{Act, Collecting, attribute, settings, tools};
use crate::telemetry::trace::{TRACEPARENT, TRACESTATE};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("in time")
}

/// A pod that keeps the header of what it was asked.
#[derive(Debug, Default)]
struct Pods(Mutex<Vec<http::HeaderMap>>);

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
        self.0.lock().push(request.headers().clone());
        if request.uri().path() == "/trap" {
            return Err(LocalError::Failed("trap".into()));
        }
        Ok(Response::new(full("fine")))
    }
}

struct Site {
    _endpoint: Endpoint,
    mesh: Mesh,
    pods: Arc<Pods>,
    tasks: TaskGroup,
    peers: Peers,
    at: SocketAddr,
}

async fn start(ca: &CertificateAuthority, name: &str, tracing: Option<TracingSettings>) -> Site {
    let (endpoint, tasks) = endpoint(ca, name, NodeClass::Agent);
    let peers = Peers::new(endpoint.clone(), &tasks, Rng::seeded(5));
    let pods = Arc::new(Pods::default());
    let local: Arc<dyn Local> = pods.clone();
    let mut config = MeshConfig::new(name, local, tasks.clone(), Rng::seeded(7));
    config.peers = Some(peers.clone());
    config.node_port_ip = None;
    let mut tools = tools(&tasks);
    // Ids of two nodes differ.
    tools.rng = Rng::seeded(name.len() as u64 + u64::from(name.as_bytes()[0]));
    config.tracer = Tracer::start(tracing, tools);
    let mesh = Mesh::new(config);
    serve_peers(&endpoint, &mesh, &peers, &tasks);
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let at = listener.local_addr().unwrap();
    let serving = mesh.clone();
    tasks.spawn_until_cancelled("ingress", async move { serving.serve_ingress(listener).await });
    Site { _endpoint: endpoint, mesh, pods, tasks, peers, at }
}

/// Nodes a and b; the only pod of `web` is on b.
async fn two(tracing: Option<TracingSettings>) -> (Site, Site) {
    let ca = authority();
    let (a, b) = (start(&ca, "a", tracing.clone()).await, start(&ca, "b", tracing).await);
    a.peers.set_address("b", b._endpoint.local_addr().unwrap());
    for site in [&a, &b] {
        site.mesh.publish(routes(site.mesh.node_name(), true));
    }
    (a, b)
}

fn routes(me: &str, has_web: bool) -> Routes {
    let services = [service("web", json!({ "clusterIP": "10.43.0.9", "ports": [{ "port": 80 }] }))];
    let slices = [slice("web", 8080, &[("10.42.1.2", "b")])];
    let nodes = [node("a", "10.42.0.0/24"), node("b", "10.42.1.0/24")];
    let rules = [("app.local", "Prefix", "/", "web")];
    let ingresses = [ingress("web", "2026-01-01T00:00:00Z", &rules)];
    if has_web {
        Routes::build(&services, &slices, &nodes, &ingresses, me)
    } else {
        Routes::build([], [], &nodes, [], me)
    }
}

async fn ask(at: SocketAddr, path: &str, parent: Option<&str>) -> http::StatusCode {
    let mut request = Request::get(path).header("host", "app.local");
    if let Some(parent) = parent {
        request = request.header(TRACEPARENT, parent).header(TRACESTATE, "vendor=1");
    }
    let stream = HttpStream::new(TcpStream::connect(at).await.unwrap()).await.unwrap();
    let sent = stream.send(request.body(empty()).unwrap(), None);
    let response = soon(sent).await.unwrap();
    let status = response.status();
    let _ = soon(response.into_body().collect()).await;
    status
}

fn find(spans: &[Exported], kind: SpanKind, is_root: bool) -> &Exported {
    let is_it = |span: &&Exported| {
        span.kind() == kind && (attribute(span, "url.scheme").is_some() == is_root)
    };
    spans.iter().find(is_it).expect("the span is there")
}

#[tokio::test]
async fn one_trace_goes_through_the_ingress_and_the_hop_to_the_pod_of_another_node() {
    let tasks = TaskGroup::new(&CancellationToken::new());
    let (collector, to) = Collecting::start(&tasks).await;
    let (a, b) = two(Some(settings(to))).await;
    assert_eq!(ask(a.at, "/x?secret=1", Some(PARENT)).await, 200);
    collector.wait(|collector| collector.spans().len() == 3).await;
    let spans = collector.spans();
    let ids: std::collections::BTreeSet<_> = spans.iter().map(|span| &span.trace_id).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(hex::encode(&spans[0].trace_id), "0af7651916cd43dd8448eb211c80319c");
    let server = find(&spans, SpanKind::Server, true);
    let client = find(&spans, SpanKind::Client, false);
    let guest = find(&spans, SpanKind::Server, false);
    assert_eq!(hex::encode(&server.parent_span_id), "b7ad6b7169203331");
    assert_eq!(client.parent_span_id, server.span_id);
    assert_eq!(guest.parent_span_id, client.span_id);
    assert_eq!(server.trace_state, "vendor=1");
    assert_eq!(server.name, "GET ingress/default/web");
    for (key, value) in [
        ("http.request.method", "GET"),
        ("url.path", "/x"),
        ("url.scheme", "http"),
        ("server.address", "app.local"),
        ("client.address", "127.0.0.1"),
        ("network.protocol.version", "1.1"),
        ("edgeorc.route", "ingress/default/web"),
        ("http.response.status_code", "200"),
    ] {
        assert_eq!(attribute(server, key).as_deref(), Some(value), "{key}");
    }
    for span in [client, guest] {
        for (key, value) in [
            ("k8s.pod.name", "10.42.1.2"),
            ("k8s.namespace.name", "default"),
            ("server.address", "10.42.1.2"),
            ("server.port", "8080"),
            ("http.response.status_code", "200"),
        ] {
            assert_eq!(attribute(span, key).as_deref(), Some(value), "{key}");
        }
    }
    assert_eq!(attribute(client, "edgeorc.peer.node.name").unwrap(), "b");
    assert!(spans.iter().all(|span| format!("{span:?}").find("secret").is_none()));
    // The pod is told of its own span.
    let seen = b.pods.0.lock()[0].clone();
    let told = format!("00-{}-{}-01", hex::encode(&guest.trace_id), hex::encode(&guest.span_id));
    assert_eq!(seen[TRACEPARENT], told.as_str());
    assert_eq!(seen[TRACESTATE], "vendor=1");
}

#[tokio::test]
async fn a_pod_that_gives_no_answer_is_an_error_in_all_spans() {
    let tasks = TaskGroup::new(&CancellationToken::new());
    let (collector, to) = Collecting::start(&tasks).await;
    let (a, _b) = two(Some(settings(to))).await;
    assert_eq!(ask(a.at, "/trap", None).await, 502);
    collector.wait(|collector| collector.spans().len() == 3).await;
    let spans = collector.spans();
    let error = |kind, is_root| attribute(find(&spans, kind, is_root), "error.type").unwrap();
    assert_eq!(error(SpanKind::Server, true), "502");
    assert_eq!(error(SpanKind::Client, false), "broken");
    assert_eq!(error(SpanKind::Server, false), "no_answer");
}

#[tokio::test]
async fn without_a_collector_the_context_passes_as_it_came() {
    let (a, b) = two(None).await;
    assert_eq!(ask(a.at, "/", Some(PARENT)).await, 200);
    assert_eq!(ask(a.at, "/", Some("not valid")).await, 200);
    assert_eq!(ask(a.at, "/", None).await, 200);
    let seen = b.pods.0.lock().clone();
    assert_eq!(seen[0][TRACEPARENT], PARENT);
    assert_eq!(seen[1][TRACEPARENT], "not valid");
    assert_eq!(seen[1][TRACESTATE], "vendor=1");
    assert!(!seen[2].contains_key(TRACEPARENT));
}

#[tokio::test]
async fn what_is_not_sampled_is_carried_and_not_exported() {
    let tasks = TaskGroup::new(&CancellationToken::new());
    let (collector, to) = Collecting::start(&tasks).await;
    let mut never = settings(to);
    never.sampling = Sampling { ratio: 0.0, is_parent_based: true };
    let (a, b) = two(Some(never)).await;
    assert_eq!(ask(a.at, "/", None).await, 200);
    assert_eq!(ask(a.at, "/", Some(PARENT)).await, 200);
    collector.wait(|collector| collector.spans().len() == 3).await;
    let seen = b.pods.0.lock().clone();
    assert!(seen[0][TRACEPARENT].to_str().unwrap().ends_with("-00"));
    assert_eq!(hex::encode(&collector.spans()[0].trace_id), "0af7651916cd43dd8448eb211c80319c");
}

#[tokio::test]
async fn what_a_guest_sends_keeps_the_trace_that_the_guest_gave_it() {
    let tasks = TaskGroup::new(&CancellationToken::new());
    let (collector, to) = Collecting::start(&tasks).await;
    let (a, b) = two(Some(settings(to))).await;
    let plain = Request::get("http://web/").body(empty()).unwrap();
    let response = soon(a.mesh.http("default", plain)).await.unwrap();
    let _ = response.into_body().collect().await;
    let own = Request::get("http://web/").header(TRACEPARENT, PARENT).body(empty()).unwrap();
    let response = soon(a.mesh.http("default", own)).await.unwrap();
    let _ = response.into_body().collect().await;
    collector.wait(|collector| !collector.spans().is_empty()).await;
    let spans = collector.spans();
    assert_eq!(spans.len(), 1);
    assert_eq!(hex::encode(&spans[0].parent_span_id), "b7ad6b7169203331");
    let seen = b.pods.0.lock().clone();
    assert!(!seen[0].contains_key(TRACEPARENT));
    assert!(seen[1][TRACEPARENT].to_str().unwrap().contains("0af7651916cd43dd8448eb211c80319c"));
}

#[tokio::test]
async fn a_collector_that_hangs_or_is_busy_slows_no_request() {
    let tasks = TaskGroup::new(&CancellationToken::new());
    let (collector, to) = Collecting::start(&tasks).await;
    let mut impatient = settings(to);
    impatient.timeout = Duration::from_millis(500);
    let (a, _b) = two(Some(impatient)).await;
    for act in [Act::Hang, Act::Answer(http::StatusCode::SERVICE_UNAVAILABLE, None)] {
        collector.set(act);
        assert_eq!(ask(a.at, "/", None).await, 200);
        let asked = collector.asked();
        collector.wait(|collector| collector.asked() > asked).await;
        let started = Instant::now();
        for _ in 0..200 {
            assert_eq!(ask(a.at, "/", None).await, 200);
        }
        // Had each of them waited for the collector, it would be 100 s.
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    }
}

#[tokio::test]
async fn requests_are_counted_once_for_their_service_and_their_pod_and_forgotten_with_them() {
    let (a, b) = two(None).await;
    for _ in 0..3 {
        assert_eq!(ask(a.at, "/", None).await, 200);
    }
    assert_eq!(ask(a.at, "/trap", None).await, 502);
    let one = |traffic: Vec<Traffic>| {
        let [one] = traffic.as_slice() else { panic!("{traffic:?}") };
        (one.namespace.clone(), one.name.clone(), one.requests, one.errors)
    };
    let named =
        |name: &str, requests, errors| ("default".into(), name.to_owned(), requests, errors);
    // The Service where it was asked for, the pod where it is.
    assert_eq!(one(a.mesh.service_traffic()), named("web", 4, 1));
    assert!(a.mesh.pod_traffic().is_empty());
    assert_eq!(one(b.mesh.pod_traffic()), named("10.42.1.2", 4, 1));
    assert!(b.mesh.service_traffic().is_empty());
    assert!(a.mesh.service_traffic()[0].requests_per_second > 0.0);
    let text = |mesh: &Mesh| {
        let metrics = crate::telemetry::Metrics::default();
        metrics.register(|registry| mesh.metrics().register(registry));
        metrics.encode()
    };
    let before = text(&a.mesh);
    for line in [
        "edgeorc_mesh_service_requests_total{namespace=\"default\",service=\"web\",code=\"2xx\"} 3",
        "edgeorc_mesh_service_requests_total{namespace=\"default\",service=\"web\",code=\"none\"} 1",
        "edgeorc_mesh_route_requests_total{route=\"ingress/default/web\",code=\"5xx\"} 1",
        "edgeorc_mesh_route_duration_seconds_count{route=\"ingress/default/web\"} 4",
    ] {
        assert!(before.contains(line), "{line} is not in\n{before}");
    }
    for site in [&a, &b] {
        site.mesh.publish(routes(site.mesh.node_name(), false));
        let after = text(&site.mesh);
        assert!(!after.contains("\"web\"") && !after.contains("10.42.1.2"), "{after}");
        assert!(site.mesh.service_traffic().is_empty() && site.mesh.pod_traffic().is_empty());
        site.tasks.token().cancel();
    }
}
