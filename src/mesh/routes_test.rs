use serde_json::json;

use super::*;
use crate::mesh::testing::{node, service, slice, slice_of};

fn port<'a>(routes: &'a Routes, service: &str, port: u16) -> &'a PortRoute {
    let service = &routes.services[&("default".to_owned(), service.to_owned())];
    service.ports.iter().find(|candidate| candidate.port == port).unwrap()
}

fn addresses(port: &PortRoute) -> Vec<String> {
    port.endpoints.iter().map(|target| target.address.to_string()).collect()
}

#[test]
fn a_service_leads_to_its_ready_endpoints_wherever_they_are() {
    let web = service(
        "web",
        json!({
            "clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"],
            "ports": [{ "port": 80, "nodePort": 30080 }],
        }),
    );
    let slices = [
        slice("web", 8080, &[("10.42.0.2", "a"), ("10.42.1.2", "b")]),
        slice("other", 9, &[("10.42.0.9", "a")]),
    ];
    let nodes = [node("a", "10.42.0.0/24"), node("b", "10.42.1.0/24")];
    let routes = Routes::build([&web], &slices, &nodes, [], "a");
    let found = port(&routes, "web", 80);
    assert_eq!(found.node_port, Some(30080));
    assert_eq!(
        found.endpoints,
        [
            Target { address: "10.42.0.2:8080".parse().unwrap(), place: Place::Local },
            Target { address: "10.42.1.2:8080".parse().unwrap(), place: Place::Node("b".into()) },
        ]
    );
    assert_eq!(routes.place_of("10.42.1.77".parse().unwrap()), Place::Node("b".into()));
    assert_eq!(routes.place_of("192.168.0.1".parse().unwrap()), Place::Outside);
    let service = &routes.services[&("default".to_owned(), "web".to_owned())];
    assert_eq!(service.cluster_ips.len(), 1);
}

#[test]
fn ports_are_tied_by_name_so_named_target_ports_may_differ() {
    let web = service(
        "web",
        json!({
            "ports": [{ "name": "http", "port": 80 }, { "name": "admin", "port": 81 }],
        }),
    );
    let at = |ip: &str| json!([{ "addresses": [ip] }]);
    let slices = [
        slice_of("web", &json!([{ "name": "http", "port": 8080 }]), &at("10.42.0.2")),
        slice_of("web", &json!([{ "name": "http", "port": 9090 }]), &at("10.42.0.3")),
        slice_of("web", &json!([{ "name": "admin", "port": 1 }]), &at("10.42.0.4")),
        slice_of(
            "web",
            &json!([{ "name": "http", "port": 2, "protocol": "UDP" }]),
            &at("10.42.0.5"),
        ),
    ];
    let routes = Routes::build([&web], &slices, [], [], "a");
    assert_eq!(addresses(port(&routes, "web", 80)), ["10.42.0.2:8080", "10.42.0.3:9090"]);
    assert_eq!(addresses(port(&routes, "web", 81)), ["10.42.0.4:1"]);
}

#[test]
fn endpoints_that_end_serve_only_when_no_other_is_ready() {
    let web = service("web", json!({ "ports": [{ "port": 80 }] }));
    let ending = json!({
        "addresses": ["10.42.0.2"],
        "conditions": { "ready": false, "serving": true, "terminating": true },
    });
    let starting = json!({
        "addresses": ["10.42.0.3"],
        "conditions": { "ready": false, "serving": false, "terminating": false },
    });
    let ready = json!({ "addresses": ["10.42.0.4"], "conditions": { "ready": true } });
    let ports = json!([{ "port": 80 }]);
    let build = |endpoints| {
        let slices = [slice_of("web", &ports, &endpoints)];
        addresses(port(&Routes::build([&web], &slices, [], [], "a"), "web", 80))
    };
    assert_eq!(build(json!([ending, starting, ready])), ["10.42.0.4:80"]);
    assert_eq!(build(json!([ending, starting])), ["10.42.0.2:80"]);
    assert!(build(json!([starting])).is_empty());
}
