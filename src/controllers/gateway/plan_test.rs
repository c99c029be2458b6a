//! Goal: status says what the Gateway API wants it to say. Method: objects in, status out.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::gateway::{CONTROLLER, GatewayObjects};
use crate::controllers::gateway::plan::{Kind, Nodes, View, Write, plan};

fn object<T: serde::de::DeserializeOwned>(value: Value) -> Arc<T> {
    Arc::new(serde_json::from_value(value).unwrap())
}

fn secret(name: &str, key: &str) -> Value {
    use base64::Engine as _;
    let base64 = |text: String| base64::engine::general_purpose::STANDARD.encode(text);
    let pem = |label: &str| format!("-----BEGIN {label}-----\nAA==\n-----END {label}-----\n");
    json!({"metadata": {"namespace": "default", "name": name}, "type": "kubernetes.io/tls",
        "data": {"tls.crt": base64(pem("CERTIFICATE")), "tls.key": base64(key.to_owned())}})
}

fn view(listeners: Value, route: Value) -> View {
    View {
        objects: GatewayObjects {
            classes: vec![object(json!({"metadata": {"name": "edgeorc", "generation": 1},
                "spec": {"controllerName": CONTROLLER}}))],
            gateways: vec![object(json!({
                "metadata": {"namespace": "default", "name": "gw", "uid": "g", "generation": 3,
                    "resourceVersion": "7"},
                "spec": {"gatewayClassName": "edgeorc", "listeners": listeners}}))],
            routes: vec![object(json!({
                "metadata": {"namespace": "default", "name": "r", "generation": 2},
                "spec": route}))],
            ..GatewayObjects::default()
        },
        services: [(("default".to_owned(), "web".to_owned()), BTreeSet::from([80]))].into(),
        secrets: vec![
            object(secret("good", "-----BEGIN PRIVATE KEY-----\nAA==")),
            object(secret("bad", "nothing")),
        ],
        nodes: Nodes {
            count: 2,
            addresses: ["10.0.0.1", "10.0.0.2"].map(str::to_owned).into(),
            closed: [(9000, vec!["n1: in use".to_owned(), "n2: in use".to_owned()])].into(),
        },
        now: "2026-01-01T00:00:00Z".to_owned(),
        ..View::default()
    }
}

fn http() -> Value {
    json!([{"name": "http", "port": 80, "protocol": "HTTP"}])
}

fn status(writes: &[Write], kind: Kind) -> &Value {
    &writes.iter().find(|write| write.kind == kind).unwrap().status
}

/// `Type=Status/Reason` of each condition.
fn conditions(of: &Value) -> Vec<String> {
    let all = of.get("conditions").and_then(Value::as_array).unwrap();
    let text = |one: &Value, key: &str| one[key].as_str().unwrap().to_owned();
    let line = |one: &Value| {
        format!("{}={}/{}", text(one, "type"), text(one, "status"), text(one, "reason"))
    };
    all.iter().map(line).collect()
}

#[test]
fn a_gateway_that_is_served_says_so() {
    let route = json!({"parentRefs": [{"name": "gw"}],
        "rules": [{"backendRefs": [{"name": "web", "port": 80}]}]});
    let writes = plan(&view(http(), route));
    assert_eq!(conditions(status(&writes, Kind::GatewayClass)), ["Accepted=True/Accepted"]);
    let gateway = status(&writes, Kind::Gateway);
    assert_eq!(conditions(gateway), ["Accepted=True/Accepted", "Programmed=True/Programmed"]);
    assert_eq!(gateway["addresses"][1]["value"], "10.0.0.2");
    let listener = &gateway["listeners"][0];
    assert_eq!(listener["attachedRoutes"], 1);
    assert_eq!(listener["supportedKinds"][0]["kind"], "HTTPRoute");
    assert_eq!(
        conditions(listener),
        [
            "Accepted=True/Accepted",
            "Programmed=True/Programmed",
            "ResolvedRefs=True/ResolvedRefs",
            "Conflicted=False/NoConflicts",
        ]
    );
    let parent = &status(&writes, Kind::HttpRoute)["parents"][0];
    assert_eq!(parent["controllerName"], CONTROLLER);
    assert_eq!(parent["parentRef"], json!({"name": "gw"}));
    assert_eq!(conditions(parent), ["Accepted=True/Accepted", "ResolvedRefs=True/ResolvedRefs"]);
    assert_eq!(parent["conditions"][0]["observedGeneration"], 2);
}

#[test]
fn what_is_said_already_is_not_written_and_conditions_keep_their_times() {
    let route = json!({"parentRefs": [{"name": "gw"}], "rules": []});
    let mut view = view(http(), route);
    let first = plan(&view);
    assert_eq!(first.len(), 3);
    let mut gateway = (*view.objects.gateways[0]).clone();
    gateway.status = Some(status(&first, Kind::Gateway).clone());
    let mut class = (*view.objects.classes[0]).clone();
    class.status = Some(status(&first, Kind::GatewayClass).clone());
    let mut route = (*view.objects.routes[0]).clone();
    route.status = Some(status(&first, Kind::HttpRoute).clone());
    view.objects.gateways = vec![Arc::new(gateway.clone())];
    view.objects.classes = vec![Arc::new(class)];
    view.objects.routes = vec![Arc::new(route)];
    view.now = "2026-02-02T00:00:00Z".to_owned();
    assert!(plan(&view).is_empty());
    gateway.metadata.generation = Some(4);
    view.objects.gateways = vec![Arc::new(gateway)];
    let again = plan(&view);
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].resource_version.as_deref(), Some("7"));
    let condition = &again[0].status["conditions"][0];
    assert_eq!(condition["observedGeneration"], 4);
    assert_eq!(condition["lastTransitionTime"], "2026-01-01T00:00:00Z");
}

#[test]
fn a_route_that_is_not_taken_says_why() {
    let reasons = |listeners: Value, route: Value| {
        let writes = plan(&view(listeners, route));
        conditions(&status(&writes, Kind::HttpRoute)["parents"][0])
    };
    let backend = json!([{"backendRefs": [{"name": "web", "port": 80}]}]);
    let route = |parent: Value, hosts: Value| json!({"parentRefs": [parent], "hostnames": hosts, "rules": backend});
    let resolved = "ResolvedRefs=True/ResolvedRefs";
    let gw = json!({"name": "gw"});
    assert_eq!(
        reasons(http(), route(json!({"name": "gw", "sectionName": "none"}), json!([]))),
        ["Accepted=False/NoMatchingParent", resolved]
    );
    let named = json!([{"name": "h", "port": 80, "protocol": "HTTP", "hostname": "a.com"}]);
    assert_eq!(
        reasons(named, route(gw.clone(), json!(["b.com"]))),
        ["Accepted=False/NoMatchingListenerHostname", resolved]
    );
    let closed = json!([{"name": "h", "port": 80, "protocol": "HTTP",
        "allowedRoutes": {"namespaces": {"from": "Selector", "selector": {}}}}]);
    assert_eq!(
        reasons(closed, route(gw.clone(), json!([]))),
        ["Accepted=False/NotAllowedByListeners", resolved]
    );
    let filter = json!({"parentRefs": [gw], "rules": [{"filters": [{"type": "CORS"}]}]});
    assert_eq!(reasons(http(), filter), ["Accepted=False/UnsupportedValue", resolved]);
}

#[test]
fn a_reference_that_does_not_count_says_why() {
    for (backend, reason) in [
        (json!({"name": "none", "port": 80}), "BackendNotFound"),
        (json!({"name": "web", "port": 81}), "BackendNotFound"),
        (json!({"name": "web", "port": 80, "namespace": "other"}), "RefNotPermitted"),
        (json!({"name": "web", "kind": "Bucket", "group": "x.io"}), "InvalidKind"),
    ] {
        let route = json!({"parentRefs": [{"name": "gw"}],
            "rules": [{"backendRefs": [{"name": "web", "port": 80}, backend]}]});
        let writes = plan(&view(http(), route));
        let parent = &status(&writes, Kind::HttpRoute)["parents"][0];
        let wanted = format!("ResolvedRefs=False/{reason}");
        assert_eq!(conditions(parent), ["Accepted=True/Accepted".to_owned(), wanted]);
    }
}

#[test]
fn a_listener_that_cannot_be_served_says_why() {
    let https = |secret: Value| {
        json!({"name": "l", "port": 443, "protocol": "HTTPS",
            "tls": {"certificateRefs": [secret]}})
    };
    let http = |port: u16| json!({"name": "l", "port": port, "protocol": "HTTP"});
    let mut odd = http(80);
    odd["allowedRoutes"] = json!({"kinds": [{"kind": "HTTPRoute"}, {"kind": "Odd"}]});
    let accepted = "Accepted=True/Accepted";
    for (listener, wanted) in [
        (
            https(json!({"name": "good"})),
            [accepted, "Programmed=True/Programmed", "ResolvedRefs=True/ResolvedRefs"],
        ),
        (
            https(json!({"name": "bad"})),
            [accepted, "Programmed=False/Invalid", "ResolvedRefs=False/InvalidCertificateRef"],
        ),
        (
            https(json!({"name": "none"})),
            [accepted, "Programmed=False/Invalid", "ResolvedRefs=False/InvalidCertificateRef"],
        ),
        (
            https(json!({"name": "x", "namespace": "other"})),
            [accepted, "Programmed=False/Invalid", "ResolvedRefs=False/RefNotPermitted"],
        ),
        (
            http(9000),
            [
                "Accepted=False/PortUnavailable",
                "Programmed=False/Invalid",
                "ResolvedRefs=True/ResolvedRefs",
            ],
        ),
        (odd, [accepted, "Programmed=True/Programmed", "ResolvedRefs=False/InvalidRouteKinds"]),
        (
            json!({"name": "l", "port": 53, "protocol": "UDP"}),
            [
                "Accepted=False/UnsupportedProtocol",
                "Programmed=False/Invalid",
                "ResolvedRefs=True/ResolvedRefs",
            ],
        ),
    ] {
        let writes = plan(&view(json!([listener]), json!({})));
        let gateway = status(&writes, Kind::Gateway);
        assert_eq!(conditions(&gateway["listeners"][0])[..3], wanted, "{listener}");
        if wanted[1].contains("False") {
            assert_eq!(conditions(gateway)[1], "Programmed=False/Invalid", "{listener}");
        }
    }
}

#[test]
fn entries_of_other_controllers_stay() {
    let mut view = view(http(), json!({"parentRefs": [{"name": "gw"}, {"name": "theirs"}]}));
    let theirs = json!({"parentRef": {"name": "theirs"}, "controllerName": "x.io/y",
        "conditions": []});
    let stale = json!({"parentRef": {"name": "old"}, "controllerName": CONTROLLER,
        "conditions": []});
    let mut route = (*view.objects.routes[0]).clone();
    route.status = Some(json!({"parents": [theirs, stale]}));
    view.objects.routes = vec![Arc::new(route)];
    let writes = plan(&view);
    let parents = status(&writes, Kind::HttpRoute)["parents"].as_array().unwrap();
    assert_eq!(parents.len(), 2);
    assert_eq!(parents[0], theirs);
    assert_eq!(parents[1]["parentRef"], json!({"name": "gw"}));
}

#[test]
fn an_ingress_gets_the_addresses_of_the_nodes() {
    let mut view = view(json!([]), json!({}));
    let ingress = |name: &str, class: &str| {
        object(json!({"metadata": {"namespace": "default", "name": name},
            "spec": {"ingressClassName": class}}))
    };
    view.ingresses = vec![ingress("ours", "edgeorc"), ingress("theirs", "nginx")];
    let writes = plan(&view);
    let ours: Vec<_> = writes.iter().filter(|write| write.kind == Kind::Ingress).collect();
    assert_eq!(ours.len(), 1);
    assert_eq!(ours[0].status["loadBalancer"]["ingress"][0]["ip"], "10.0.0.1");
    let mut settled = (*view.ingresses[0]).clone();
    settled.status = serde_json::from_value(ours[0].status.clone()).unwrap();
    view.ingresses = vec![Arc::new(settled)];
    assert!(plan(&view).iter().all(|write| write.kind != Kind::Ingress));
}
