use serde_json::json;

use super::*;
use crate::mesh::testing::{node, service, slice_of};

fn routes() -> Routes {
    let services = [
        service(
            "web",
            json!({
                "clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9", "fd00:43::9"],
                "ports": [{ "name": "http", "port": 80 }, { "name": "dns", "port": 53, "protocol": "UDP" }],
            }),
        ),
        service("db", json!({ "clusterIP": "None", "ports": [{ "name": "sql", "port": 5432 }] })),
        service("idle", json!({ "clusterIP": "None" })),
        service("ext", json!({ "type": "ExternalName", "externalName": "Example.org." })),
    ];
    let endpoints = json!([
        { "addresses": ["10.42.0.5"], "hostname": "db-0" },
        { "addresses": ["10.42.1.5"] },
        { "addresses": ["10.42.1.6"], "conditions": { "ready": false, "serving": false } },
    ]);
    let ports = json!([{ "name": "sql", "port": 5433, "protocol": "TCP" }]);
    let slices = [slice_of("db", &ports, &endpoints)];
    let nodes = [node("a", "10.42.0.0/24"), node("b", "10.42.1.0/24")];
    Routes::build(&services, &slices, &nodes, [], "a")
}

fn ask(name: &str, kind: Kind) -> Found {
    let ranges = [Cidr::parse("10.43.0.0/16").unwrap()];
    look_up(&routes(), &ranges, name, kind)
}

/// What the answers say.
fn data(name: &str, kind: Kind) -> Vec<Data> {
    match ask(name, kind) {
        Found::Records { answers, .. } => {
            assert!(answers.iter().all(|record| record.name == name));
            answers.into_iter().map(|record| record.data).collect()
        }
        other => panic!("{name}: {other:?}"),
    }
}

fn ip(text: &str) -> Data {
    Data::Address(text.parse().unwrap())
}

fn place(weight: u16, port: u16, target: &str) -> Data {
    Data::Service { weight, port, target: target.to_owned() }
}

const WEB: &str = "web.default.svc.cluster.local";
const DB: &str = "db.default.svc.cluster.local";

#[test]
fn a_service_has_its_addresses_of_both_families() {
    assert_eq!(data(WEB, Kind::A), [ip("10.43.0.9")]);
    assert_eq!(data(WEB, Kind::Aaaa), [ip("fd00:43::9")]);
    assert_eq!(data(WEB, Kind::Txt), []);
}

#[test]
fn a_named_port_has_a_place() {
    assert_eq!(data(&format!("_http._tcp.{WEB}"), Kind::Srv), [place(100, 80, WEB)]);
    assert_eq!(data(&format!("_dns._udp.{WEB}"), Kind::Srv), [place(100, 53, WEB)]);
    assert_eq!(data(WEB, Kind::Srv), [place(50, 80, WEB), place(50, 53, WEB)]);
    assert_eq!(ask(&format!("_http._udp.{WEB}"), Kind::Srv), Found::NoSuchName);
    assert_eq!(ask(&format!("_x._tcp.{WEB}"), Kind::Srv), Found::NoSuchName);
    let Found::Records { additional, .. } = ask(&format!("_http._tcp.{WEB}"), Kind::Srv) else {
        panic!("no records");
    };
    let said: Vec<_> = additional.into_iter().map(|record| record.data).collect();
    assert_eq!(said, [ip("10.43.0.9"), ip("fd00:43::9")]);
}

#[test]
fn a_headless_service_has_the_addresses_of_its_ready_endpoints() {
    assert_eq!(data(DB, Kind::A), [ip("10.42.0.5"), ip("10.42.1.5")]);
    assert_eq!(data(DB, Kind::Aaaa), []);
    assert_eq!(data(&format!("db-0.{DB}"), Kind::A), [ip("10.42.0.5")]);
    assert_eq!(data(&format!("10-42-1-5.{DB}"), Kind::A), [ip("10.42.1.5")]);
    for gone in ["10-42-1-6", "10-42-0-5", "db-1"] {
        assert_eq!(ask(&format!("{gone}.{DB}"), Kind::A), Found::NoSuchName, "{gone}");
    }
    assert_eq!(ask("idle.default.svc.cluster.local", Kind::A), Found::NoSuchName);
}

#[test]
fn the_places_of_a_headless_service_are_its_endpoints_at_their_own_ports() {
    let (zero, other) = (format!("db-0.{DB}"), format!("10-42-1-5.{DB}"));
    assert_eq!(
        data(&format!("_sql._tcp.{DB}"), Kind::Srv),
        [place(50, 5433, &zero), place(50, 5433, &other)]
    );
}

#[test]
fn an_external_name_is_an_alias_whatever_is_asked() {
    for kind in [Kind::A, Kind::Aaaa, Kind::Cname, Kind::Srv] {
        let alias = Data::Alias("example.org".to_owned());
        assert_eq!(data("ext.default.svc.cluster.local", kind), [alias]);
    }
}

#[test]
fn a_pod_has_a_name_by_its_address() {
    assert_eq!(data("10-42-7-7.default.pod.cluster.local", Kind::A), [ip("10.42.7.7")]);
    assert_eq!(data("fd00-42--7.default.pod.cluster.local", Kind::Aaaa), [ip("fd00:42::7")]);
    assert_eq!(data("10-42-7-7.default.pod.cluster.local", Kind::Aaaa), []);
    assert_eq!(ask("web.default.pod.cluster.local", Kind::A), Found::NoSuchName);
}

#[test]
fn addresses_have_names() {
    let names = |name: &str| data(name, Kind::Ptr);
    assert_eq!(names("9.0.43.10.in-addr.arpa"), [Data::Pointer(WEB.to_owned())]);
    assert_eq!(names("5.0.42.10.in-addr.arpa"), [Data::Pointer(format!("db-0.{DB}"))]);
    assert_eq!(names("5.1.42.10.in-addr.arpa"), [Data::Pointer(format!("10-42-1-5.{DB}"))]);
    assert_eq!(data("9.0.43.10.in-addr.arpa", Kind::A), []);
    // Of the cluster's ranges, but nobody's: never asked of others.
    assert_eq!(ask("99.0.43.10.in-addr.arpa", Kind::Ptr), Found::NoSuchName);
    assert_eq!(ask("99.1.42.10.in-addr.arpa", Kind::Ptr), Found::NoSuchName);
    assert_eq!(ask("1.1.1.1.in-addr.arpa", Kind::Ptr), Found::NotOurs);
}

#[test]
fn a_name_that_is_not_there_is_told_from_one_that_has_nothing_of_the_kind() {
    for branch in [
        "cluster.local",
        "svc.cluster.local",
        "pod.cluster.local",
        "default.svc.cluster.local",
        "default.pod.cluster.local",
        "_tcp.web.default.svc.cluster.local",
    ] {
        assert_eq!(data(branch, Kind::A), [], "{branch}");
    }
    for nothing in [
        "x.cluster.local",
        "none.svc.cluster.local",
        "x.default.svc.cluster.local",
        "_sctp.web.default.svc.cluster.local",
        "a.b.web.default.svc.cluster.local",
        "x.ext.default.svc.cluster.local",
    ] {
        assert_eq!(ask(nothing, Kind::A), Found::NoSuchName, "{nothing}");
    }
    assert_eq!(ask("example.org", Kind::A), Found::NotOurs);
}

#[test]
fn the_version_of_the_specification_is_told() {
    let version = Data::Text("1.1.0".to_owned());
    assert_eq!(data("dns-version.cluster.local", Kind::Txt), [version]);
    assert_eq!(data("cluster.local", Kind::Soa), [Data::Authority]);
}

#[test]
fn all_endpoints_have_names_when_the_service_publishes_them_before_they_are_ready() {
    let services = [service(
        "all",
        json!({ "clusterIP": "None", "publishNotReadyAddresses": true, "ports": [{ "port": 1 }] }),
    )];
    // So the slices say, for such a Service.
    let conditions = json!({ "ready": true, "serving": false, "terminating": false });
    let endpoints = json!([{ "addresses": ["10.42.0.8"], "conditions": conditions }]);
    let slices = [slice_of("all", &json!([{ "port": 1 }]), &endpoints)];
    let routes = Routes::build(&services, &slices, [], [], "a");
    let found = look_up(&routes, &[], "all.default.svc.cluster.local", Kind::A);
    let Found::Records { answers, .. } = found else { panic!("{found:?}") };
    assert_eq!(answers.len(), 1);
}
