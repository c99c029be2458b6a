//! The `Endpoints` that say what the slices of a service say: a pure function.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;

/// Names who keeps an `Endpoints`; those of others are never removed.
pub(super) const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
/// This controller, in Kubernetes' word for it.
pub(super) const MANAGER: &str = "endpoint-controller";
/// Marks the `Endpoints` of services without an address.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Says that there are more than fit.
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Addresses in one object; Kubernetes' figure. Clients with more use slices.
const ADDRESSES_MAX: usize = 1000;

/// Ports of a subset in a form that can be sorted: name, protocol, number, application protocol.
type Ports = Vec<(String, String, i32, Option<String>)>;

/// What the service's `Endpoints` should be; `slices` are those of the endpoint slice controller.
pub(super) fn plan(service: &Service, slices: &[Arc<EndpointSlice>]) -> Endpoints {
    let mut subsets: BTreeMap<Ports, EndpointSubset> = BTreeMap::new();
    let family = primary_family(service);
    let mut all = Vec::new();
    let has_ports = service
        .spec
        .as_ref()
        .is_some_and(|spec| spec.ports.as_ref().is_some_and(|ports| !ports.is_empty()));
    // Pods that have none of the service's ports are no endpoints of it.
    let leads_nowhere =
        |slice: &EndpointSlice| has_ports && slice.ports.as_ref().is_none_or(Vec::is_empty);
    let slices = slices.iter().filter(|slice| slice.address_type == family);
    for slice in slices.filter(|slice| !leads_nowhere(slice)) {
        for endpoint in slice.endpoints.iter().flatten() {
            all.extend(address(endpoint).map(|(address, is_ready)| (slice, address, is_ready)));
        }
    }
    let is_cut = all.len() > ADDRESSES_MAX;
    // When not all fit, those that serve do.
    all.sort_by_key(|(_, _, is_ready)| !is_ready);
    all.truncate(ADDRESSES_MAX);
    for (slice, address, is_ready) in all {
        let subset = subsets.entry(ports(slice)).or_default();
        let list = if is_ready { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        list.get_or_insert_default().push(address);
    }
    let subsets = subsets.into_iter().map(|(ports, mut subset)| {
        for list in [&mut subset.addresses, &mut subset.not_ready_addresses].into_iter().flatten() {
            list.sort_by(|a, b| a.ip.cmp(&b.ip));
        }
        let ports = ports.into_iter().map(|(name, protocol, port, app_protocol)| EndpointPort {
            name: Some(name).filter(|name| !name.is_empty()),
            protocol: Some(protocol),
            port,
            app_protocol,
        });
        subset.ports = Some(ports.collect());
        subset
    });
    let subsets: Vec<_> = subsets.collect();
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    if service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    let annotations = BTreeMap::from([(OVER_CAPACITY.to_owned(), "truncated".to_owned())]);
    Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.namespace(),
            labels: Some(labels),
            annotations: is_cut.then_some(annotations),
            ..ObjectMeta::default()
        },
        subsets: Some(subsets).filter(|subsets| !subsets.is_empty()),
    }
}

/// The one family that `Endpoints` are of: the first of the service.
fn primary_family(service: &Service) -> &str {
    let spec = service.spec.as_ref();
    let named = spec.and_then(|spec| spec.ip_families.as_ref()?.first()).map(String::as_str);
    named.unwrap_or_else(|| {
        let ip = spec.and_then(|spec| spec.cluster_ip.as_deref()).unwrap_or_default();
        if ip.contains(':') { "IPv6" } else { "IPv4" }
    })
}

/// Whether the stored object says what `wanted` says.
pub(super) fn is_same(stored: &Endpoints, wanted: &Endpoints) -> bool {
    let is_cut = |one: &Endpoints| one.annotations().contains_key(OVER_CAPACITY);
    stored.subsets.as_deref().unwrap_or_default() == wanted.subsets.as_deref().unwrap_or_default()
        && stored.labels() == wanted.labels()
        && is_cut(stored) == is_cut(wanted)
}

/// The endpoint as an address, and whether it is ready; `None` when it is ending.
fn address(endpoint: &Endpoint) -> Option<(EndpointAddress, bool)> {
    let conditions = endpoint.conditions.as_ref();
    let is_ready = conditions.and_then(|all| all.ready) != Some(false);
    let is_ending = conditions.and_then(|all| all.terminating) == Some(true);
    if is_ending && !is_ready {
        return None;
    }
    let address = EndpointAddress {
        ip: endpoint.addresses.first()?.clone(),
        hostname: endpoint.hostname.clone(),
        node_name: endpoint.node_name.clone(),
        target_ref: endpoint.target_ref.clone(),
    };
    Some((address, is_ready))
}

fn ports(slice: &EndpointSlice) -> Ports {
    let mut ports: Ports = slice
        .ports
        .iter()
        .flatten()
        .map(|port| {
            (
                port.name.clone().unwrap_or_default(),
                port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                port.port.unwrap_or(0),
                port.app_protocol.clone(),
            )
        })
        .collect();
    ports.sort_unstable();
    ports
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service() -> Service {
        let service = json!({
            "metadata": {"name": "web", "namespace": "default", "labels": {"a": "b"}},
            "spec": {"clusterIP": "10.43.0.7", "selector": {"app": "web"}},
        });
        serde_json::from_value(service).unwrap()
    }

    fn slice(port: u16, endpoints: &[(String, bool, bool)]) -> Arc<EndpointSlice> {
        let endpoints: Vec<Value> = endpoints
            .iter()
            .map(|(ip, is_ready, is_ending)| {
                json!({
                    "addresses": [ip],
                    "conditions": {"ready": is_ready, "terminating": is_ending},
                })
            })
            .collect();
        let slice = json!({
            "metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "", "port": port, "protocol": "TCP"}],
        });
        Arc::new(serde_json::from_value(slice).unwrap())
    }

    fn ip(last: usize) -> String {
        format!("10.42.{}.{}", last / 200, last % 200 + 1)
    }

    #[test]
    fn slices_with_the_same_ports_become_one_subset() {
        let slices = [
            slice(80, &[(ip(2), true, false), (ip(1), true, false)]),
            slice(80, &[(ip(3), false, false), (ip(4), false, true)]),
            slice(81, &[(ip(5), true, true)]),
        ];
        let made = plan(&service(), &slices);
        let subsets = serde_json::to_value(made.subsets.unwrap()).unwrap();
        assert_eq!(
            subsets,
            json!([
                {"addresses": [{"ip": ip(1)}, {"ip": ip(2)}], "notReadyAddresses": [{"ip": ip(3)}],
                 "ports": [{"port": 80, "protocol": "TCP"}]},
                {"addresses": [{"ip": ip(5)}], "ports": [{"port": 81, "protocol": "TCP"}]},
            ])
        );
    }

    #[test]
    fn pods_with_none_of_the_services_ports_are_no_endpoints_and_a_service_may_have_none() {
        let mut slice = (*slice(80, &[(ip(1), true, false)])).clone();
        slice.ports = Some(Vec::new());
        let slices = [Arc::new(slice)];
        assert_eq!(plan(&service(), &slices).subsets.unwrap().len(), 1, "headless without ports");
        let mut named = service();
        let ports = json!([{"port": 80, "targetPort": "none"}]);
        named.spec.as_mut().unwrap().ports = Some(serde_json::from_value(ports).unwrap());
        assert_eq!(plan(&named, &slices).subsets, None);
    }

    #[test]
    fn what_says_the_same_is_not_written() {
        let slices = [slice(80, &[(ip(1), true, false)])];
        let mut stored = plan(&service(), &slices);
        stored.metadata.resource_version = Some("7".into());
        assert!(is_same(&stored, &plan(&service(), &slices)));
        assert!(!is_same(&stored, &plan(&service(), &[])));
        assert!(plan(&service(), &[]).subsets.is_none());
    }

    #[test]
    fn a_service_of_both_families_has_endpoints_of_its_first() {
        let mut both = service();
        both.spec.as_mut().unwrap().ip_families = Some(vec!["IPv6".into(), "IPv4".into()]);
        let mut six = (*slice(80, &[("fd00:42::1".to_owned(), true, false)])).clone();
        six.address_type = "IPv6".to_owned();
        let made = plan(&both, &[slice(80, &[(ip(1), true, false)]), Arc::new(six)]);
        let subsets = made.subsets.unwrap();
        assert_eq!(subsets.len(), 1);
        assert_eq!(subsets[0].addresses.as_ref().unwrap()[0].ip, "fd00:42::1");
    }

    #[test]
    fn more_than_a_thousand_addresses_are_cut_and_marked() {
        let all: Vec<_> = (0..1100).map(|at| (ip(at), at >= 100, false)).collect();
        let made = plan(&service(), &[slice(80, &all)]);
        let subsets = made.subsets.clone().unwrap();
        assert_eq!(subsets[0].addresses.as_ref().unwrap().len(), ADDRESSES_MAX);
        assert_eq!(made.annotations()[OVER_CAPACITY], "truncated");
    }
}
