//! Goal: the core behaviours of HTTPRoute, and the rules of Ingress. Method: a real ingress on
//! loopback, asked over real connections; pods that answer with what they were sent.

use std::collections::BTreeMap;

use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::testing::{Site, ask_at, gateway, get, got, object, rules, soon, to};
use super::{HttpObjects, HttpRoutes};
use crate::net::Body;
use crate::net::http::{empty, full};

#[tokio::test]
async fn a_route_is_chosen_by_path_method_headers_and_query() {
    let path = |kind: &str, value: &str| json!({"path": {"type": kind, "value": value}});
    let site = Site::new(rules(json!([
        {"matches": [path("Exact", "/exact")], "backendRefs": to("a")},
        {"matches": [path("PathPrefix", "/pre")], "backendRefs": to("b")},
        {"matches": [{"method": "POST"}], "backendRefs": to("b")},
        {"matches": [{"headers": [{"name": "Version", "value": "two"}]}], "backendRefs": to("b")},
        {"matches": [{"queryParams": [{"name": "animal", "value": "whale"}]}],
         "backendRefs": to("b")},
        {"matches": [path("PathPrefix", "/")], "backendRefs": to("a")},
    ])))
    .await;
    for (method, path, header, pod) in [
        ("GET", "/exact", "", "a"),
        ("GET", "/pre", "", "b"),
        ("GET", "/pre/x", "", "b"),
        ("GET", "/prefix", "", "a"),
        ("POST", "/", "", "b"),
        ("GET", "/", "two", "b"),
        ("GET", "/", "three", "a"),
        ("GET", "/?animal=whale", "", "b"),
        ("GET", "/?animal=dolphin", "", "a"),
    ] {
        let request = Request::builder().method(method).uri(path).header("host", "any.com");
        let got = site.ask(request.header("version", header).body(empty()).unwrap()).await;
        assert_eq!((got.status, got.pod()), (StatusCode::OK, pod), "{method} {path} {header}");
    }
}

#[tokio::test]
async fn the_oldest_of_two_equal_routes_wins() {
    let rule = |service| json!([{"backendRefs": to(service)}]);
    let listeners = json!([{"name": "http", "port": 80, "protocol": "HTTP"}]);
    let site = Site::new(gateway(&listeners, &[(&[], rule("b")), (&[], rule("a"))])).await;
    assert_eq!(site.get("h", "/").await.pod(), "b");
}

#[tokio::test]
async fn hosts_of_listeners_and_routes_are_those_in_common() {
    let listeners = json!([
        {"name": "wild", "port": 80, "protocol": "HTTP", "hostname": "*.example.com"},
        {"name": "named", "port": 80, "protocol": "HTTP", "hostname": "very.specific.com"},
    ]);
    let rule = |service| json!([{"backendRefs": to(service)}]);
    let site = Site::new(gateway(
        &listeners,
        &[
            (&["foo.example.com", "nothing.org"], rule("a")),
            (&["very.specific.com", "*.specific.com"], rule("b")),
        ],
    ))
    .await;
    for (host, pod) in [
        ("foo.example.com", "a"),
        ("very.specific.com", "b"),
        ("bar.example.com", ""),
        ("nothing.org", ""),
        ("other.specific.com", ""),
    ] {
        let got = site.get(host, "/").await;
        assert_eq!(got.pod(), pod, "{host}");
        if pod.is_empty() {
            assert_eq!(got.status, StatusCode::NOT_FOUND);
        }
    }
}

#[tokio::test]
async fn a_request_is_for_the_most_specific_listener_only() {
    let listeners = json!([
        {"name": "any", "port": 80, "protocol": "HTTP"},
        {"name": "wild", "port": 80, "protocol": "HTTP", "hostname": "*.example.com"},
    ]);
    let mut objects = gateway(&listeners, &[(&[], json!([{"backendRefs": to("a")}]))]);
    objects.gateway.routes = vec![object(json!({
        "metadata": {"namespace": "default", "name": "r"},
        "spec": {"parentRefs": [{"name": "gw", "sectionName": "any"}],
                 "rules": [{"backendRefs": to("a")}]}}))];
    let site = Site::new(objects).await;
    assert_eq!(site.get("other.com", "/").await.pod(), "a");
    assert_eq!(site.get("foo.example.com", "/").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn backends_share_requests_by_weight() {
    let site = Site::new(rules(json!([{"backendRefs": [
        {"name": "a", "port": 80, "weight": 3},
        {"name": "b", "port": 80, "weight": 1},
        {"name": "empty", "port": 80, "weight": 0},
    ]}])))
    .await;
    let mut counts = BTreeMap::<String, usize>::new();
    for _ in 0..200 {
        *counts.entry(site.get("h", "/").await.pod().to_owned()).or_default() += 1;
    }
    assert_eq!(counts.len(), 2, "{counts:?}");
    assert!((110..190).contains(&counts["a"]), "{counts:?}");
}

#[tokio::test]
async fn what_has_no_backend_is_500_and_what_has_no_pod_is_503() {
    let rule = |path: &str, backends: serde_json::Value| {
        json!({"matches": [{"path": {"type": "PathPrefix", "value": path}}],
            "backendRefs": backends})
    };
    let site = Site::new(rules(json!([
        rule("/none", json!([])),
        rule("/missing", to("missing")),
        rule("/port", json!([{"name": "a", "port": 81}])),
        rule("/kind", json!([{"name": "a", "port": 80, "kind": "Bucket", "group": "x.io"}])),
        rule("/far", json!([{"name": "a", "port": 80, "namespace": "other"}])),
        rule("/zero", json!([{"name": "a", "port": 80, "weight": 0}])),
        rule("/empty", to("empty")),
    ])))
    .await;
    for path in ["/none", "/missing", "/port", "/kind", "/far", "/zero"] {
        let status = site.get("h", path).await.status;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "{path}");
    }
    assert_eq!(site.get("h", "/empty").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(site.get("h", "/unknown").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_grant_lets_a_route_refer_to_another_namespace() {
    let mut objects = gateway(
        &json!([{"name": "http", "port": 80, "protocol": "HTTP",
        "allowedRoutes": {"namespaces": {"from": "All"}}}]),
        &[],
    );
    objects.gateway.routes = vec![object(json!({
        "metadata": {"namespace": "team", "name": "r"},
        "spec": {"parentRefs": [{"name": "gw", "namespace": "default"}], "rules": [{
            "backendRefs": [{"name": "a", "port": 80, "namespace": "default"}]}]}}))];
    let site =
        Site::new(HttpObjects { gateway: objects.gateway.clone(), ..HttpObjects::default() }).await;
    assert_eq!(site.get("h", "/").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    objects.gateway.grants = vec![object(json!({
        "metadata": {"namespace": "default", "name": "g"},
        "spec": {"from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute",
                           "namespace": "team"}],
                 "to": [{"group": "", "kind": "Service"}]}}))];
    site.publish(objects);
    assert_eq!(site.get("h", "/").await.pod(), "a");
}

#[tokio::test]
async fn header_fields_are_changed_on_both_ways() {
    let site = Site::new(rules(json!([{
        "filters": [
            {"type": "RequestHeaderModifier", "requestHeaderModifier": {
                "set": [{"name": "X-Set", "value": "new"}],
                "add": [{"name": "X-Add", "value": "two"}],
                "remove": ["X-Remove"]}},
            {"type": "ResponseHeaderModifier", "responseHeaderModifier": {
                "set": [{"name": "X-Pod", "value": "set"}],
                "add": [{"name": "X-More", "value": "1"}]}}],
        "backendRefs": [{"name": "a", "port": 80, "filters": [
            {"type": "RequestHeaderModifier", "requestHeaderModifier": {
                "add": [{"name": "X-Backend", "value": "a"}]}}]}],
    }])))
    .await;
    let request = Request::get("/").header("host", "h").header("x-set", "old");
    let request = request.header("x-add", "one").header("x-remove", "1").body(empty()).unwrap();
    let got = site.ask(request).await;
    assert_eq!((got.pod(), got.headers["x-more"].to_str().unwrap()), ("set", "1"));
    for line in ["x-set: new\n", "x-add: one\n", "x-add: two\n", "x-backend: a\n"] {
        assert!(got.body.contains(line), "{line}{}", got.body);
    }
    assert!(!got.body.contains("x-remove") && !got.body.contains("old"), "{}", got.body);
}

#[tokio::test]
async fn redirects_are_answered_without_a_backend() {
    let rule = |path: &str, redirect: serde_json::Value| {
        json!({"matches": [{"path": {"type": "PathPrefix", "value": path}}],
            "filters": [{"type": "RequestRedirect", "requestRedirect": redirect}]})
    };
    let site = Site::new(rules(json!([
        rule("/host", json!({"hostname": "example.org"})),
        rule("/code", json!({"hostname": "example.org", "statusCode": 301})),
        rule("/full", json!({"path": {"type": "ReplaceFullPath", "replaceFullPath": "/new"}})),
        rule("/pre", json!({"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/x"}})),
        rule("/port", json!({"port": 8083})),
        rule("/tls", json!({"scheme": "https", "statusCode": 308})),
    ])))
    .await;
    for (path, status, location) in [
        ("/host/p?q=1", 302, "http://example.org/host/p?q=1"),
        ("/code", 301, "http://example.org/code"),
        ("/full/p?q=1", 302, "http://h.com/new?q=1"),
        ("/pre/p", 302, "http://h.com/x/p"),
        ("/port", 302, "http://h.com:8083/port"),
        ("/tls/p", 308, "https://h.com/tls/p"),
    ] {
        let got = site.get("h.com", path).await;
        assert_eq!((got.status.as_u16(), got.location()), (status, location), "{path}");
    }
    // A client that sees the real ports is sent to the real port.
    let got = site.get(&format!("h.com:{}", site.http.port()), "/tls").await;
    assert_eq!(got.location(), format!("https://h.com:{}/tls", site.https.port()));
    assert!(site.echo.seen.lock().is_empty());
}

#[tokio::test]
async fn host_and_path_are_rewritten() {
    let rule = |path: &str, rewrite: serde_json::Value| {
        json!({"matches": [{"path": {"type": "PathPrefix", "value": path}}],
            "filters": [{"type": "URLRewrite", "urlRewrite": rewrite}], "backendRefs": to("a")})
    };
    let site = Site::new(rules(json!([
        rule("/host", json!({"hostname": "inner"})),
        rule(
            "/pre/one",
            json!({"path": {"type": "ReplacePrefixMatch",
            "replacePrefixMatch": "/one"}})
        ),
        rule("/strip", json!({"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}})),
        rule("/full", json!({"path": {"type": "ReplaceFullPath", "replaceFullPath": "/all"}})),
    ])))
    .await;
    for (path, line, host) in [
        ("/host/x", "GET /host/x", "inner"),
        ("/pre/one/two?q=1", "GET /one/two?q=1", "h"),
        ("/strip/two", "GET /two", "h"),
        ("/strip", "GET / ", "h"),
        ("/full/a?q=1", "GET /all?q=1", "h"),
    ] {
        let body = site.get("h", path).await.body;
        assert!(body.contains(line) && body.contains(&format!("host: {host}\n")), "{body}");
        assert!(body.contains("x-forwarded-host: h\n"), "{body}");
    }
}

#[tokio::test]
async fn copies_go_to_mirrors_and_nobody_waits_for_them() {
    let mirror = |service: &str| {
        json!({"type": "RequestMirror",
            "requestMirror": {"backendRef": {"name": service, "port": 80}}})
    };
    let site = Site::new(rules(json!([{
        "filters": [mirror("slow"), mirror("b"), mirror("missing")], "backendRefs": to("a")}])))
    .await;
    let request = Request::post("/x").header("host", "h").body(full("body")).unwrap();
    let got = site.ask(request).await;
    assert_eq!(got.pod(), "a");
    assert!(got.body.ends_with("\nbody"), "{}", got.body);
    let mut seen = site.echo.wait_for(3).await;
    seen.sort();
    assert_eq!(seen, ["a /x", "b /x", "slow /x"]);
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_504() {
    let site = Site::new(rules(json!([
        {"matches": [{"path": {"type": "PathPrefix", "value": "/request"}}],
         "backendRefs": to("slow"), "timeouts": {"request": "50ms"}},
        {"matches": [{"path": {"type": "PathPrefix", "value": "/backend"}}],
         "backendRefs": to("slow"), "timeouts": {"request": "10s", "backendRequest": "50ms"}},
        {"matches": [{"path": {"type": "PathPrefix", "value": "/fast"}}],
         "backendRefs": to("a"), "timeouts": {"request": "0s"}},
    ])))
    .await;
    assert_eq!(site.get("h", "/request").await.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(site.get("h", "/backend").await.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(site.get("h", "/fast").await.pod(), "a");
}

#[tokio::test]
async fn a_filter_that_is_not_known_serves_nothing() {
    let site = Site::new(rules(json!([{"filters": [{"type": "ExtensionRef",
        "extensionRef": {"group": "x.io", "kind": "X", "name": "x"}}], "backendRefs": to("a")}])))
    .await;
    assert_eq!(site.get("h", "/").await.status, StatusCode::INTERNAL_SERVER_ERROR);
}

#[tokio::test]
async fn a_port_of_a_gateway_is_opened_and_closed_again() {
    // A port that was free a moment ago.
    let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let listeners = json!([{"name": "own", "port": port.port(), "protocol": "HTTP"}]);
    let objects = gateway(&listeners, &[(&[], json!([{"backendRefs": to("b")}]))]);
    let site = Site::new(objects).await;
    let at = site.mesh.open_gateway_ports()[&port.port()];
    assert_eq!(ask_at(at, get("h", "/")).await.pod(), "b");
    assert_eq!(site.get("h", "/").await.status, StatusCode::NOT_FOUND);
    site.publish(HttpObjects::default());
    assert!(site.mesh.open_gateway_ports().is_empty());

    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let listeners = json!([{"name": "own", "port": port, "protocol": "HTTP"}]);
    site.publish(gateway(&listeners, &[]));
    assert!(site.mesh.closed_gateway_ports().contains_key(&port));
}

#[tokio::test]
async fn a_websocket_is_passed_through() {
    let site = Site::new(rules(json!([{"backendRefs": to("a")}]))).await;
    let request = |protocol: &str| {
        Request::get("/ws")
            .header("host", "h")
            .header("connection", "keep-alive, Upgrade")
            .header("upgrade", protocol)
            .header("sec-websocket-key", "x")
            .body(empty())
            .unwrap()
    };
    let io = TokioIo::new(TcpStream::connect(site.http).await.unwrap());
    let (mut sender, conn) = hyper::client::conn::http1::handshake::<_, Body>(io).await.unwrap();
    site.tasks.spawn_until_cancelled("client", async move {
        let _ = conn.with_upgrades().await;
    });
    let mut response = soon(sender.send_request(request("websocket"))).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()["upgrade"], "websocket");
    let mut io = TokioIo::new(soon(hyper::upgrade::on(&mut response)).await.unwrap());
    io.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    soon(io.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"ping");
    // A pod that does not agree answers in its own way.
    let got = site.ask(request("other")).await;
    assert_eq!(got.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn grpc_reaches_a_pod_that_speaks_http_2_with_its_trailers() {
    let site = Site::new(rules(json!([{"backendRefs": to("grpc")}]))).await;
    let io = TokioIo::new(TcpStream::connect(site.http).await.unwrap());
    let (mut sender, conn) =
        hyper::client::conn::http2::handshake::<_, _, Body>(TokioExecutor::new(), io)
            .await
            .unwrap();
    site.tasks.spawn_until_cancelled("client", async move {
        let _ = conn.await;
    });
    for _ in 0..3 {
        let request = Request::post("http://h/pkg.Service/Method")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(full("message"))
            .unwrap();
        let response = soon(sender.send_request(request)).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let collected = soon(response.into_body().collect()).await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
        let text = String::from_utf8(collected.to_bytes().to_vec()).unwrap();
        assert!(text.starts_with("grpc: POST http://h/pkg.Service/Method HTTP/2"), "{text}");
        assert!(text.contains("te: trailers\n") && text.ends_with("\nmessage"), "{text}");
    }
}

#[tokio::test]
async fn http_2_clients_get_valid_answers_to_what_is_refused() {
    let site = Site::new(rules(json!([{"backendRefs": to("a")}]))).await;
    let io = TokioIo::new(TcpStream::connect(site.http).await.unwrap());
    let (mut sender, conn) =
        hyper::client::conn::http2::handshake::<_, _, Body>(TokioExecutor::new(), io)
            .await
            .unwrap();
    site.tasks.spawn_until_cancelled("client", async move {
        let _ = conn.await;
    });
    let request = Request::get("http://h/").header("host", "other").body(empty()).unwrap();
    let response = soon(sender.send_request(request)).await.unwrap();
    assert_eq!(got(response).await.status, StatusCode::BAD_REQUEST);
}

fn ingress(spec: serde_json::Value, annotations: serde_json::Value) -> HttpObjects {
    let ingress = object(json!({
        "metadata": {"namespace": "default", "name": "i", "annotations": annotations},
        "spec": spec}));
    HttpObjects { ingresses: vec![ingress], ..HttpObjects::default() }
}

fn backend(service: &str) -> serde_json::Value {
    json!({"service": {"name": service, "port": {"number": 80}}})
}

#[tokio::test]
async fn an_ingress_has_paths_a_default_and_no_other_kinds_of_backends() {
    let bucket = json!({"resource": {"kind": "Bucket", "name": "b", "apiGroup": "x.io"}});
    let site = Site::new(ingress(
        json!({
            "defaultBackend": backend("b"),
            "rules": [{"host": "*.h.com", "http": {"paths": [
                {"path": "/", "pathType": "Prefix", "backend": backend("a")},
                {"path": "/bucket", "pathType": "Exact", "backend": bucket}]}}]}),
        json!({}),
    ))
    .await;
    assert_eq!(site.get("x.h.com", "/p").await.pod(), "a");
    assert_eq!(site.get("y.x.h.com", "/p").await.pod(), "b");
    assert_eq!(site.get("h.com", "/p").await.pod(), "b");
    let status = site.get("x.h.com", "/bucket").await.status;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
}

#[tokio::test]
async fn annotations_of_an_ingress_redirect_limit_and_time_out() {
    let rules = json!({"rules": [
        {"host": "a.com", "http": {"paths": [
            {"path": "/", "pathType": "Prefix", "backend": backend("a")}]}},
        {"host": "slow.com", "http": {"paths": [
            {"path": "/", "pathType": "Prefix", "backend": backend("slow")}]}}]});
    let annotations = json!({"edgeorc.io/ssl-redirect": "true"});
    let site = Site::new(ingress(rules.clone(), annotations)).await;
    let got = site.get("a.com", "/x").await;
    assert_eq!((got.status.as_u16(), got.location()), (308, "https://a.com/x"));

    let annotations =
        json!({"edgeorc.io/max-body-size": "4", "edgeorc.io/request-timeout": "50ms"});
    site.publish(ingress(rules, annotations));
    let post = |body: &str| {
        Request::post("/").header("host", "a.com").body(full(body.to_owned())).unwrap()
    };
    assert_eq!(site.ask(post("1234")).await.pod(), "a");
    assert_eq!(site.ask(post("12345")).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(site.get("slow.com", "/").await.status, StatusCode::GATEWAY_TIMEOUT);
}

#[tokio::test]
async fn routes_are_counted_by_name() {
    let site = Site::new(rules(json!([{"backendRefs": to("a")}]))).await;
    for _ in 0..3 {
        site.get("h", "/").await;
    }
    let text = site.metrics();
    let line = r#"edgeorc_mesh_route_requests_total{route="httproute/default/r0/0",code="2xx"} 3"#;
    assert!(text.contains(line), "{text}");
}

#[test]
fn the_oldest_ingress_wins_and_other_classes_are_ignored() {
    let one = |name: &str, created: &str, service: &str, class: serde_json::Value| {
        object(json!({
            "metadata": {"namespace": "default", "name": name, "creationTimestamp": created},
            "spec": {"ingressClassName": class, "rules": [{"host": "app.local", "http": {"paths": [
                {"path": "/", "pathType": "Prefix", "backend": backend(service)}]}}]}}))
    };
    let routes = HttpRoutes::build(&HttpObjects {
        ingresses: vec![
            one("a", "2026-02-01T00:00:00Z", "new", json!(null)),
            one("b", "2026-01-01T00:00:00Z", "old", json!(null)),
            one("c", "2025-01-01T00:00:00Z", "x", json!("nginx")),
        ],
        ..HttpObjects::default()
    });
    let request = Request::get("/x").body(()).unwrap();
    let service = |host: &str| {
        let (action, _) = routes.table.find(80, host, &request)?;
        Some(action.choices[0].backend.as_ref()?.service.1.clone())
    };
    assert_eq!(service("app.local").as_deref(), Some("old"));
    assert_eq!(service("other.local"), None);
}
