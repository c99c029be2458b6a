use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use super::*;
use crate::mesh::testing::{node, service, slice_of};

fn nodes() -> [Node; 3] {
    let in_zone = |name: &str, cidr: &str, zone: &str| {
        let mut node = node(name, cidr);
        let label = ("topology.kubernetes.io/zone".to_owned(), zone.to_owned());
        node.metadata.labels = Some([label].into());
        node
    };
    [
        in_zone("a", "10.42.0.0/24", "z1"),
        in_zone("b", "10.42.1.0/24", "z1"),
        in_zone("c", "10.42.2.0/24", "z2"),
    ]
}

fn route(spec: Value, endpoints: &Value) -> ServiceRoute {
    let ports = json!([{ "port": 8080, "protocol": "TCP" }, { "port": 53, "protocol": "UDP" }]);
    route_of(spec, &[slice_of("web", &ports, endpoints)])
}

fn route_of(spec: Value, slices: &[EndpointSlice]) -> ServiceRoute {
    let web = service("web", spec);
    let routes = Routes::build([&web], slices, &nodes(), [], "a");
    routes.services[&("default".to_owned(), "web".to_owned())].clone()
}

fn ips(targets: &[Target]) -> Vec<String> {
    targets.iter().map(|target| target.address.ip().to_string()).collect()
}

const HERE: &str = "10.42.0.2";
const NEAR: &str = "10.42.1.2";
const FAR: &str = "10.42.2.2";

fn at(ip: &str) -> Value {
    json!({ "addresses": [ip], "conditions": { "ready": true } })
}

fn ending(ip: &str) -> Value {
    let conditions = json!({ "ready": false, "serving": true, "terminating": true });
    json!({ "addresses": [ip], "conditions": conditions })
}

fn hinted(ip: &str, nodes: Option<&str>, zones: Option<&str>) -> Value {
    let list = |name: &str| json!([{ "name": name }]);
    let hints = json!({ "forNodes": nodes.map(list), "forZones": zones.map(list) });
    json!({ "addresses": [ip], "conditions": { "ready": true }, "hints": hints })
}

#[test]
fn clients_stay_within_their_family_where_there_are_endpoints_of_both() {
    let web = service(
        "web",
        json!({
            "clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9", "fd00:43::9"],
            "ipFamilies": ["IPv4", "IPv6"], "ports": [{ "port": 80 }],
        }),
    );
    let ports = json!([{ "port": 8080, "protocol": "TCP" }]);
    let four = slice_of("web", &ports, &json!([at(HERE)]));
    let mut six = slice_of("web", &ports, &json!([at("fd00:42::2")]));
    six.address_type = "IPv6".to_owned();
    let table = |slices: &[EndpointSlice]| {
        let routes = Routes::build([&web], slices, &nodes(), [], "a");
        crate::mesh::table::Table::build(routes, &Default::default(), |_| None)
    };
    let to = |table: &crate::mesh::table::Table, ip: &str| {
        let backend = table.cluster_ip(SocketAddr::new(ip.parse().unwrap(), 80)).unwrap();
        let endpoints = backend.endpoints.iter().map(|one| one.address.ip().to_string());
        endpoints.collect::<Vec<_>>()
    };
    let both = table(&[four.clone(), six]);
    assert_eq!(to(&both, "10.43.0.9"), [HERE]);
    assert_eq!(to(&both, "fd00:43::9"), ["fd00:42::2"]);
    let port = crate::mesh::routes::PortRef::Number(80);
    let first = both.service_port("default", "web", &port).unwrap();
    assert_eq!(first.endpoints.len(), 1, "the ingress uses the first family");
    // With one family of endpoints, both addresses lead there.
    let one = table(&[four]);
    assert_eq!(to(&one, "fd00:43::9"), [HERE]);
}

#[test]
fn local_policies_lead_to_endpoints_of_this_node_only() {
    let spec = |internal: &str, external: &str| {
        json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 30080 }],
            "internalTrafficPolicy": internal, "externalTrafficPolicy": external })
    };
    let endpoints = json!([at(HERE), at(NEAR), at(FAR)]);
    let both = route(spec("Local", "Local"), &endpoints);
    let port = &both.ports[0];
    assert_eq!(ips(&port.endpoints).len(), 3);
    assert_eq!(ips(port.internal.as_ref().unwrap()), [HERE]);
    assert_eq!(ips(port.external.as_ref().unwrap()), [HERE]);
    let one = route(spec("Cluster", "Local"), &endpoints);
    assert!(one.ports[0].internal.is_none() && one.ports[0].external.is_some());
    // There is none here: clients are refused, though there are others.
    let none = route(spec("Local", "Local"), &json!([at(NEAR)]));
    assert!(none.ports[0].internal.as_ref().unwrap().is_empty());
}

#[test]
fn endpoints_that_end_serve_when_no_other_is_ready_here() {
    let spec = json!({ "internalTrafficPolicy": "Local", "ports": [{ "port": 80 }] });
    let mixed = route(spec.clone(), &json!([ending(HERE), at(NEAR)]));
    assert_eq!(ips(&mixed.ports[0].endpoints), [NEAR]);
    assert_eq!(ips(mixed.ports[0].internal.as_ref().unwrap()), [HERE]);
    let all = route(spec, &json!([ending(HERE), ending(NEAR)]));
    assert_eq!(ips(&all.ports[0].endpoints), [HERE, NEAR]);
}

#[test]
fn hints_lead_to_this_zone_if_all_endpoints_have_them() {
    let spec = json!({ "trafficDistribution": "PreferSameZone", "ports": [{ "port": 80 }] });
    let zone = |ip, zone| hinted(ip, None, Some(zone));
    let of = |endpoints: Value| {
        route(spec.clone(), &endpoints).ports[0].internal.as_ref().map(|targets| ips(targets))
    };
    let all = json!([zone(HERE, "z1"), zone(NEAR, "z1"), zone(FAR, "z2")]);
    assert_eq!(of(all).unwrap(), [HERE, NEAR]);
    // One without a hint, or none for here: all serve.
    assert_eq!(of(json!([zone(HERE, "z1"), at(FAR)])), None);
    assert_eq!(of(json!([zone(FAR, "z2")])), None);
}

#[test]
fn hints_for_nodes_come_before_those_for_zones() {
    let spec = json!({ "trafficDistribution": "PreferSameNode", "ports": [{ "port": 80 }] });
    let of = |endpoints: Value| {
        route(spec.clone(), &endpoints).ports[0].internal.as_ref().map(|targets| ips(targets))
    };
    let near = hinted(NEAR, Some("b"), Some("z1"));
    let far = hinted(FAR, Some("c"), Some("z2"));
    let here = hinted(HERE, Some("a"), Some("z1"));
    assert_eq!(of(json!([here, near, far])).unwrap(), [HERE]);
    assert_eq!(of(json!([near, far])).unwrap(), [NEAR]);
    assert_eq!(of(json!([far])), None);
}

#[test]
fn one_number_of_two_protocols_is_two_ports() {
    let spec = json!({ "ports": [
        { "name": "t", "port": 53, "protocol": "TCP" },
        { "name": "u", "port": 53, "protocol": "UDP" },
    ]});
    let ports = json!([
        { "name": "t", "port": 1053, "protocol": "TCP" },
        { "name": "u", "port": 1054, "protocol": "UDP" },
    ]);
    let route = route_of(spec, &[slice_of("web", &ports, &json!([at(HERE)]))]);
    let found: Vec<_> =
        route.ports.iter().map(|port| (port.protocol, port.endpoints[0].address.port())).collect();
    assert_eq!(found, [(Protocol::Tcp, 1053), (Protocol::Udp, 1054)]);
}

#[test]
fn a_load_balancer_is_reached_at_its_addresses_by_those_it_admits() {
    let spec = json!({ "type": "LoadBalancer", "clusterIP": "10.43.0.9",
        "externalTrafficPolicy": "Local", "healthCheckNodePort": 30100,
        "externalIPs": ["203.0.113.9"], "loadBalancerSourceRanges": ["192.0.2.0/24"],
        "ports": [{ "port": 80, "nodePort": 30080 }] });
    let web: Service = serde_json::from_value(json!({
        "metadata": { "namespace": "default", "name": "web" }, "spec": spec,
        "status": { "loadBalancer": { "ingress": [
            { "ip": "192.168.1.1" }, { "ip": "192.168.1.2", "ipMode": "Proxy" },
        ]}},
    }))
    .unwrap();
    let slices =
        [slice_of("web", &json!([{ "port": 8080 }]), &json!([at(HERE), ending(NEAR), at(FAR)]))];
    let routes = Routes::build([&web], &slices, &nodes(), [], "a");
    let route = &routes.services[&("default".to_owned(), "web".to_owned())];
    let outer: Vec<_> = route.outer_ips.iter().map(ToString::to_string).collect();
    assert_eq!(outer, ["192.168.1.1", "203.0.113.9"]);
    assert!(route.is_balanced);
    assert_eq!((route.health_port, route.local_count), (Some(30100), 1));
    assert_eq!(route.source_ranges, [Cidr::parse("192.0.2.0/24").unwrap()]);
}

#[test]
fn session_affinity_has_its_time() {
    let of = |spec: Value| route(spec, &json!([])).affinity_seconds;
    assert_eq!(of(json!({ "ports": [] })), None);
    assert_eq!(of(json!({ "sessionAffinity": "ClientIP" })), Some(10_800));
    let config = json!({ "clientIP": { "timeoutSeconds": 30 } });
    let short = json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": config });
    assert_eq!(of(short), Some(30));
    let headless = json!({ "clusterIP": "None", "sessionAffinity": "ClientIP" });
    assert_eq!(of(headless), None);
}

#[test]
fn endpoints_that_users_write_serve_as_others_do() {
    // No selector, no pods: addresses outside the cluster, and slices that nobody here keeps.
    let mut slice = slice_of("web", &json!([{ "port": 9000 }]), &json!([at("192.0.2.7")]));
    let labels = slice.metadata.labels.as_mut().unwrap();
    labels.insert("endpointslice.kubernetes.io/managed-by".to_owned(), "me".to_owned());
    let route = route_of(json!({ "ports": [{ "port": 80 }] }), &[slice]);
    let target = &route.ports[0].endpoints[0];
    assert_eq!(target.address.to_string(), "192.0.2.7:9000");
    assert_eq!(target.place, Place::Outside);
}

#[test]
fn a_headless_service_has_names_for_all_its_ready_endpoints() {
    let endpoints = json!([
        { "addresses": [HERE], "hostname": "db-0" },
        at(NEAR),
        ending(FAR),
    ]);
    let headless = route(json!({ "clusterIP": "None" }), &endpoints);
    let labels: Vec<_> = headless.hosts.iter().map(HostRoute::label).collect();
    assert_eq!(labels, ["db-0", "10-42-1-2"]);
    // With an address of its own, a Service has names for those that have host names.
    let plain = route(json!({ "clusterIP": "10.43.0.9" }), &endpoints);
    assert_eq!(plain.hosts.len(), 1);
    assert_eq!(dashed("::1".parse().unwrap()), "0--1");
    assert_eq!(dashed("fd00:42::".parse().unwrap()), "fd00-42--0");
}
