//! Kubernetes objects in few words, for the tests of this room.

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::Ingress;
use serde_json::{Value, json};

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

pub(super) fn service(name: &str, spec: Value) -> Service {
    object(json!({ "metadata": { "namespace": "default", "name": name }, "spec": spec }))
}

/// A slice of one unnamed port; each endpoint is an address and the node it is on.
pub(super) fn slice(of: &str, port: u16, endpoints: &[(&str, &str)]) -> EndpointSlice {
    let endpoint = |(ip, node): &(&str, &str)| {
        json!({
            "addresses": [ip], "nodeName": node, "conditions": { "ready": true },
            "targetRef": { "kind": "Pod", "name": ip },
        })
    };
    let endpoints: Vec<_> = endpoints.iter().map(endpoint).collect();
    slice_of(of, &json!([{ "port": port, "protocol": "TCP" }]), &json!(endpoints))
}

pub(super) fn slice_of(of: &str, ports: &Value, endpoints: &Value) -> EndpointSlice {
    object(json!({
        "addressType": "IPv4",
        "metadata": {
            "namespace": "default", "name": format!("{of}-1"),
            "labels": { "kubernetes.io/service-name": of },
        },
        "endpoints": endpoints, "ports": ports,
    }))
}

pub(super) fn node(name: &str, cidr: &str) -> Node {
    object(json!({ "metadata": { "name": name }, "spec": { "podCIDR": cidr } }))
}

/// One rule: host, path type, path, Service; always port 80.
pub(super) fn ingress(name: &str, created: &str, rules: &[(&str, &str, &str, &str)]) -> Ingress {
    let rule = |(host, kind, path, service): &(&str, &str, &str, &str)| {
        let backend = json!({ "service": { "name": service, "port": { "number": 80 } } });
        let paths = json!([{ "path": path, "pathType": kind, "backend": backend }]);
        if host.is_empty() {
            json!({ "http": { "paths": paths } })
        } else {
            json!({ "host": host, "http": { "paths": paths } })
        }
    };
    let rules: Vec<_> = rules.iter().map(rule).collect();
    object(json!({
        "metadata": { "namespace": "default", "name": name, "creationTimestamp": created },
        "spec": { "rules": rules },
    }))
}
