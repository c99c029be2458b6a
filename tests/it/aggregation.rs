//! API groups that another server answers: passed on, shown in discovery, watched over.

use std::net::Ipv4Addr;

use axum::Router;
use axum::body::Body;
use axum::response::IntoResponse as _;
use edgeorc::api::user::UserInfo;
use http::{Method, Request, StatusCode};
use serde_json::{Value, json};

use crate::support::{Api, Cluster};

const API_SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const SERVICES: &str = "/api/v1/namespaces/default/services";
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// A server of `acme.com/v1` that says what it was asked, and by whom. Its port.
async fn backend() -> u16 {
    let answer = async |request: Request<Body>| {
        let path = request.uri().path_and_query().unwrap().to_string();
        if path == "/apis/acme.com/v1" {
            let things = json!({"name": "things", "singularName": "thing", "namespaced": true,
                "kind": "Thing", "verbs": ["get", "list"]});
            return json!({"kind": "APIResourceList", "apiVersion": "v1",
                "groupVersion": "acme.com/v1", "resources": [things]})
            .to_string()
            .into_response();
        }
        if path.contains("/moved") {
            let to = [(http::header::LOCATION, "https://192.0.2.1/")];
            return (StatusCode::FOUND, to, String::new()).into_response();
        }
        let headers = request.headers();
        let all = |name: &str| -> Vec<String> {
            headers.get_all(name).iter().map(|v| v.to_str().unwrap().to_owned()).collect()
        };
        json!({"kind": "Thing", "path": path, "users": all("x-remote-user"),
            "groups": all("x-remote-group"), "authorization": all("authorization")})
        .to_string()
        .into_response()
    };
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(axum::serve(listener, Router::new().fallback(answer)).into_future());
    port
}

fn api_service(group: &str, port: u16) -> Value {
    json!({"metadata": {"name": format!("v1.{group}")}, "spec": {"group": group, "version": "v1",
        "groupPriorityMinimum": 100, "versionPriority": 10, "insecureSkipTLSVerify": true,
        "service": {"namespace": "default", "name": "adapter", "port": port}}})
}

fn service(port: u16) -> Value {
    json!({"metadata": {"name": "adapter"}, "spec": {"type": "ExternalName",
        "externalName": "localhost", "ports": [{"port": port, "appProtocol": "http"}]}})
}

#[tokio::test]
async fn a_group_that_another_server_answers_is_part_of_the_api() {
    let cluster = Cluster::start().await;
    let port = backend().await;
    cluster.make(API_SERVICES, &api_service("acme.com", port)).await;
    let path = "/apis/acme.com/v1/namespaces/default/things/a?x=1";
    let without = cluster.api.get(path).await;
    assert_eq!(without.code, StatusCode::SERVICE_UNAVAILABLE, "{without:?}");
    assert_eq!(without.at("/reason"), "ServiceUnavailable");
    let own = format!("{API_SERVICES}/v1.acme.com");
    let reason = "/status/conditions/0/reason";
    cluster.until(&own, reason, json!("ServiceNotFound")).await;

    cluster.make(SERVICES, &service(port)).await;
    cluster.until(&own, reason, json!("Passed")).await;
    let mut request = Request::builder().uri(path).body(Body::empty()).unwrap();
    request.headers_mut().insert("x-remote-user", "root".parse().unwrap());
    request.headers_mut().insert("authorization", "Basic x".parse().unwrap());
    request.extensions_mut().insert(UserInfo::new("jane", &["system:masters", "team"]));
    let answer = tower::ServiceExt::oneshot(cluster.api.router.clone(), request).await.unwrap();
    let body = axum::body::to_bytes(answer.into_body(), 10_000).await.unwrap();
    let said: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(said["path"], path);
    assert_eq!(said["users"], json!(["jane"]));
    assert_eq!(said["groups"], json!(["system:masters", "team"]));
    assert_eq!(said["authorization"], json!([]));
    let moved = cluster.api.get("/apis/acme.com/v1/moved").await;
    assert_eq!(moved.code, StatusCode::BAD_GATEWAY, "{moved:?}");
    assert!(!moved.headers.contains_key("location"), "{moved:?}");

    let groups = cluster.api.get("/apis").await.json();
    let is_it = |group: &&Value| group["name"] == "acme.com";
    assert!(groups["groups"].as_array().unwrap().iter().any(|group| is_it(&group)), "{groups}");
    assert_eq!(cluster.api.get("/apis/acme.com").await.at("/preferredVersion/version"), "v1");
    let list = cluster.api.get("/apis/acme.com/v1").await;
    assert_eq!(list.at("/resources/0/kind"), "Thing");
    let all = cluster.api.get_in("/apis", AGGREGATED).await.json();
    let items = all["items"].as_array().unwrap();
    let ours = items.iter().find(|item| item["metadata"]["name"] == "acme.com").unwrap();
    assert_eq!(ours["versions"][0]["freshness"], "Current");
    assert_eq!(ours["versions"][0]["resources"][0]["scope"], "Namespaced");
    cluster.end().await;
}

#[tokio::test]
async fn strangers_do_not_get_through_and_own_groups_stay_own() {
    let api = Api::start().await;
    let port = backend().await;
    assert_eq!(api.post(SERVICES, &service(port)).await.code, StatusCode::CREATED);
    let made = api.post(API_SERVICES, &api_service("acme.com", port)).await;
    assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
    let node = UserInfo::new("system:node:one", &["system:nodes"]);
    let path = "/apis/acme.com/v1/things";
    let refused = api.send_as(Some(node), Method::GET, path, "", Body::empty()).await;
    assert_eq!(refused.code, StatusCode::FORBIDDEN, "{refused:?}");
    let own = api.post(API_SERVICES, &api_service("apps", port)).await;
    assert_eq!(own.code, StatusCode::CREATED, "{own:?}");
    let warning = own.headers["warning"].to_str().unwrap().to_owned();
    assert!(warning.contains("apps/v1 is served by this server"), "{warning}");
    let list = api.get("/apis/apps/v1/namespaces/default/deployments").await;
    assert_eq!(list.at("/kind"), "DeploymentList");
    let more = api_service("custom.metrics.k8s.io", port);
    assert_eq!(api.post(API_SERVICES, &more).await.code, StatusCode::CREATED);
    let group = api.get("/apis/custom.metrics.k8s.io").await;
    assert_eq!(group.at("/versions/0/version"), "v1beta2");
    assert_eq!(group.at("/versions/1/version"), "v1");
    let groups = api.get("/apis").await.json();
    let is_it = |group: &&Value| group["name"] == "custom.metrics.k8s.io";
    assert_eq!(groups["groups"].as_array().unwrap().iter().filter(is_it).count(), 1);
    let other = api.get("/apis/other.com/v1/things").await;
    assert_eq!(other.code, StatusCode::NOT_FOUND, "{other:?}");
}

#[tokio::test]
async fn metrics_that_are_not_measured_here_are_an_adapters() {
    let api = Api::start().await;
    let port = backend().await;
    assert_eq!(api.post(SERVICES, &service(port)).await.code, StatusCode::CREATED);
    let version = "/apis/custom.metrics.k8s.io/v1beta2";
    let others = ["pods/*/rate", "ingresses.networking.k8s.io/front/rate", "metrics/rate"]
        .map(|metric| format!("{version}/namespaces/default/{metric}"));
    for path in &others {
        let without = api.get(path).await;
        assert_eq!(without.code, StatusCode::NOT_FOUND, "{without:?}");
    }
    let mut adapter = api_service("custom.metrics.k8s.io", port);
    adapter["metadata"]["name"] = json!("v1beta2.custom.metrics.k8s.io");
    adapter["spec"]["version"] = json!("v1beta2");
    let made = api.post(API_SERVICES, &adapter).await;
    assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
    for path in &others {
        let answer = api.get(path).await;
        assert_eq!(answer.at("/path"), path.as_str(), "{answer:?}");
    }
    let own = format!("{version}/namespaces/default/pods/*/requests-per-second");
    assert_eq!(api.get(&own).await.at("/kind"), "MetricValueList");
    for path in [version.to_owned(), format!("{version}/")] {
        let list = api.get(&path).await;
        assert_eq!(list.at("/kind"), "APIResourceList", "{list:?}");
    }
}
