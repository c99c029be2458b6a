//! Where a Service is reached from outside: a pure function.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt as _;

/// Addresses in one status: clients need a few, and each change of a node writes them.
const ADDRESSES_MAX: usize = 64;
/// Label of nodes that are not to be told to clients outside.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// Whether the service's addresses are told by this controller.
pub(super) fn is_balanced(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    spec.type_.as_deref() == Some("LoadBalancer") && spec.load_balancer_class.is_none()
}

/// Whether only nodes with endpoints serve it.
pub(super) fn is_local(service: &Service) -> bool {
    let policy = service.spec.as_ref().and_then(|spec| spec.external_traffic_policy.as_deref());
    is_balanced(service) && policy == Some("Local")
}

/// The addresses that the status names now.
pub(super) fn addresses(service: &Service) -> Vec<String> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_ref());
    ingress.into_iter().flatten().filter_map(|one| one.ip.clone()).collect()
}

/// What of a node matters here: its addresses if it serves clients, those for the outside first.
pub(super) fn facts_of(node: &Node) -> Option<Vec<String>> {
    let status = node.status.as_ref()?;
    let is_ready = status
        .conditions
        .iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let is_leaving = node.metadata.deletion_timestamp.is_some();
    if !is_ready || is_leaving || node.labels().contains_key(EXCLUDED) {
        return None;
    }
    let of = |kind: &str| -> Vec<String> {
        let all = status.addresses.iter().flatten();
        all.filter(|one| one.type_ == kind).map(|one| one.address.clone()).collect()
    };
    let external = of("ExternalIP");
    Some(if external.is_empty() { of("InternalIP") } else { external })
}

/// The addresses that the status should name; `None` when that is not for this controller to say.
pub(super) fn plan(
    service: &Service,
    nodes: &[Arc<Node>],
    slices: &[Arc<EndpointSlice>],
) -> Option<Vec<String>> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() != Some("LoadBalancer") {
        // One that is no load balancer any more has no addresses of one.
        return Some(Vec::new());
    }
    if !is_balanced(service) {
        return None;
    }
    let with_endpoints: Option<BTreeSet<&str>> = is_local(service).then(|| {
        let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
        let is_ready = |ready: Option<bool>| ready != Some(false);
        endpoints
            .filter(|one| is_ready(one.conditions.as_ref().and_then(|all| all.ready)))
            .filter_map(|one| one.node_name.as_deref())
            .collect()
    });
    let families = spec.ip_families.as_deref().unwrap_or_default();
    let is_of_family = |text: &String| {
        let Ok(ip) = text.parse::<IpAddr>() else { return false };
        let family = if ip.is_ipv6() { "IPv6" } else { "IPv4" };
        families.is_empty() || families.iter().any(|one| one == family)
    };
    let mut sorted: Vec<&Arc<Node>> = nodes.iter().collect();
    sorted.sort_by_key(|node| (!has_external(node), node.name_any()));
    let mut found: Vec<String> = Vec::new();
    for node in sorted {
        let name = node.name_any();
        if with_endpoints.as_ref().is_some_and(|with| !with.contains(name.as_str())) {
            continue;
        }
        for address in facts_of(node).into_iter().flatten().filter(is_of_family) {
            if found.len() < ADDRESSES_MAX && !found.contains(&address) {
                found.push(address);
            }
        }
    }
    Some(found)
}

fn has_external(node: &Node) -> bool {
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref());
    addresses.into_iter().flatten().any(|one| one.type_ == "ExternalIP")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, is_ready: bool, addresses: &[(&str, &str)]) -> Arc<Node> {
        let address = |(kind, ip): &(&str, &str)| json!({"type": kind, "address": ip});
        let ready = if is_ready { "True" } else { "False" };
        let node = json!({
            "metadata": {"name": name},
            "status": {
                "addresses": addresses.iter().map(address).collect::<Vec<_>>(),
                "conditions": [{"type": "Ready", "status": ready}],
            },
        });
        Arc::new(serde_json::from_value(node).unwrap())
    }

    fn service(spec: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "s"}, "spec": spec})).unwrap()
    }

    fn nodes() -> Vec<Arc<Node>> {
        vec![
            node("a", true, &[("InternalIP", "10.0.0.1"), ("Hostname", "a")]),
            node("b", true, &[("InternalIP", "10.0.0.2"), ("ExternalIP", "203.0.113.2")]),
            node("c", false, &[("InternalIP", "10.0.0.3")]),
            node("d", true, &[("InternalIP", "fd00::4")]),
        ]
    }

    #[test]
    fn ready_nodes_are_told_with_the_addresses_for_the_outside_first() {
        let of = |spec: Value| plan(&service(spec), &nodes(), &[]);
        let balanced = json!({"type": "LoadBalancer", "ipFamilies": ["IPv4"]});
        assert_eq!(of(balanced).unwrap(), ["203.0.113.2", "10.0.0.1"]);
        let six = json!({"type": "LoadBalancer", "ipFamilies": ["IPv6"]});
        assert_eq!(of(six).unwrap(), ["fd00::4"]);
        let other = json!({"type": "LoadBalancer", "loadBalancerClass": "example.org/x"});
        assert_eq!(of(other), None);
        assert_eq!(of(json!({"type": "NodePort"})).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_service_whose_traffic_stays_on_its_node_is_told_of_nodes_with_endpoints() {
        let local = service(json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"}));
        let slice = json!({"addressType": "IPv4", "metadata": {"name": "s-1"}, "endpoints": [
            {"addresses": ["10.42.0.1"], "nodeName": "a", "conditions": {"ready": true}},
            {"addresses": ["10.42.1.1"], "nodeName": "b", "conditions": {"ready": false}},
        ]});
        let slice = Arc::new(serde_json::from_value(slice).unwrap());
        assert_eq!(plan(&local, &nodes(), &[slice]).unwrap(), ["10.0.0.1"]);
        assert!(plan(&local, &nodes(), &[]).unwrap().is_empty());
    }

    #[test]
    fn a_node_that_is_excluded_is_not_told() {
        let mut all = nodes();
        let mut labelled = (*all[1]).clone();
        labelled.metadata.labels = Some([(EXCLUDED.to_owned(), String::new())].into());
        all[1] = Arc::new(labelled);
        let balanced = service(json!({"type": "LoadBalancer", "ipFamilies": ["IPv4"]}));
        assert_eq!(plan(&balanced, &all, &[]).unwrap(), ["10.0.0.1"]);
    }
}
