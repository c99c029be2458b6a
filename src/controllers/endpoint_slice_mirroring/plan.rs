//! The slices that say what `Endpoints` say: a pure function.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort as Port, Endpoints};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;

use crate::controllers::object::controller_reference;

/// Names the service a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Names who keeps a slice.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// This controller, in Kubernetes' word for it.
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
/// Label of `Endpoints` that are not to be mirrored.
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Annotation of `Endpoints` that are a lock, not a list.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Who keeps `Endpoints` that are made of slices.
const ENDPOINTS_MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
/// What kubectl writes for itself.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Endpoints taken of one subset; Kubernetes' figure.
const ENDPOINTS_MAX: usize = 1000;

/// What a run does.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) create: Vec<EndpointSlice>,
    /// Each with the name and the version of the slice it replaces.
    pub(super) update: Vec<EndpointSlice>,
    pub(super) delete: Vec<Arc<EndpointSlice>>,
}

/// Whether this controller keeps the slice.
pub(super) fn is_ours(slice: &EndpointSlice) -> bool {
    slice.labels().get(MANAGED_BY).map(String::as_str) == Some(MANAGER)
}

/// Whether the `Endpoints` want slices.
pub(super) fn is_mirrored(endpoints: &Endpoints) -> bool {
    endpoints.labels().get(SKIP).map(String::as_str) != Some("true")
        && !endpoints.labels().contains_key(ENDPOINTS_MANAGED_BY)
        && !endpoints.annotations().contains_key(LEADER)
        && endpoints.metadata.deletion_timestamp.is_none()
}

/// One slice for each subset and family; `None` is nothing to mirror.
pub(super) fn plan(endpoints: Option<&Endpoints>, slices: &[Arc<EndpointSlice>]) -> Plan {
    let mut plan = Plan::default();
    let mut free: Vec<_> = slices.to_vec();
    for wanted in endpoints.into_iter().flat_map(wanted) {
        let fits = |old: &Arc<EndpointSlice>| {
            old.address_type == wanted.address_type && old.ports == wanted.ports
        };
        match free.iter().position(fits) {
            Some(at) => {
                let old = free.remove(at);
                if !is_same(&old, &wanted) {
                    plan.update.push(over(&old, wanted));
                }
            }
            None => plan.create.push(wanted),
        }
    }
    plan.delete = free;
    plan
}

fn is_same(old: &EndpointSlice, new: &EndpointSlice) -> bool {
    old.endpoints == new.endpoints
        && old.labels() == new.labels()
        && old.annotations() == new.annotations()
        && old.metadata.owner_references == new.metadata.owner_references
}

fn over(old: &EndpointSlice, mut new: EndpointSlice) -> EndpointSlice {
    new.metadata.generate_name = None;
    new.metadata.name.clone_from(&old.metadata.name);
    new.metadata.uid.clone_from(&old.metadata.uid);
    new.metadata.resource_version.clone_from(&old.metadata.resource_version);
    new
}

fn wanted(endpoints: &Endpoints) -> Vec<EndpointSlice> {
    let mut slices = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let others = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        let mut of_family: BTreeMap<bool, Vec<Endpoint>> = BTreeMap::new();
        for (address, is_ready) in ready.chain(others) {
            let Ok(ip) = address.ip.parse::<IpAddr>() else { continue };
            let list = of_family.entry(ip.is_ipv6()).or_default();
            if list.len() < ENDPOINTS_MAX {
                list.push(endpoint(address, is_ready));
            }
        }
        let ports: Vec<_> = subset.ports.iter().flatten().map(port).collect();
        for (is_v6, list) in of_family {
            slices.push(slice(endpoints, is_v6, list, ports.clone()));
        }
    }
    slices
}

fn endpoint(address: &EndpointAddress, is_ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(is_ready),
            ..EndpointConditions::default()
        }),
        hostname: address.hostname.clone().filter(|name| !name.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn port(port: &Port) -> EndpointPort {
    EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
        app_protocol: port.app_protocol.clone(),
    }
}

fn slice(
    endpoints: &Endpoints,
    is_v6: bool,
    list: Vec<Endpoint>,
    ports: Vec<EndpointPort>,
) -> EndpointSlice {
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), endpoints.name_any());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.remove(LAST_APPLIED);
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", endpoints.name_any())),
            namespace: endpoints.namespace(),
            labels: Some(labels),
            annotations: Some(annotations).filter(|all| !all.is_empty()),
            owner_references: Some(vec![controller_reference(endpoints)]),
            ..ObjectMeta::default()
        },
        address_type: if is_v6 { "IPv6" } else { "IPv4" }.to_owned(),
        endpoints: Some(list),
        ports: Some(ports),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn endpoints(subsets: Value) -> Endpoints {
        serde_json::from_value(json!({
            "metadata": {"name": "db", "namespace": "default", "uid": "e", "labels": {"a": "b"},
                "annotations": {LAST_APPLIED: "x", "keep": "me"}},
            "subsets": subsets,
        }))
        .unwrap()
    }

    /// The slices as the server would keep them.
    fn stored(plan: Plan) -> Vec<Arc<EndpointSlice>> {
        let named = |(at, mut slice): (usize, EndpointSlice)| {
            slice.metadata.name = Some(format!("db-{at}"));
            slice.metadata.resource_version = Some("1".to_owned());
            Arc::new(slice)
        };
        plan.create.into_iter().enumerate().map(named).collect()
    }

    #[test]
    fn endpoints_of_users_become_slices_of_each_family_that_belong_to_them() {
        let written = endpoints(json!([{
            "addresses": [{"ip": "192.0.2.1", "hostname": "h"}, {"ip": "2001:db8::1"}],
            "notReadyAddresses": [{"ip": "192.0.2.2"}],
            "ports": [{"name": "sql", "port": 5432}],
        }]));
        let made = plan(Some(&written), &[]);
        let [four, six] = made.create.as_slice() else { panic!("{:?}", made.create) };
        assert_eq!((four.address_type.as_str(), six.address_type.as_str()), ("IPv4", "IPv6"));
        let ready: Vec<_> = four
            .endpoints
            .iter()
            .flatten()
            .map(|one| (one.addresses.concat(), one.conditions.clone().unwrap().ready.unwrap()))
            .collect();
        assert_eq!(ready, [("192.0.2.1".to_owned(), true), ("192.0.2.2".to_owned(), false)]);
        assert_eq!(four.endpoints.as_ref().unwrap()[0].hostname.as_deref(), Some("h"));
        let port = &four.ports.as_ref().unwrap()[0];
        assert_eq!((port.name.as_deref(), port.port), (Some("sql"), Some(5432)));
        assert_eq!(four.labels()[SERVICE_NAME], "db");
        assert_eq!(four.labels()[MANAGED_BY], MANAGER);
        assert_eq!(four.labels()["a"], "b");
        assert_eq!(four.annotations().keys().collect::<Vec<_>>(), ["keep"]);
        let owner = &four.owner_references()[0];
        assert_eq!((owner.kind.as_str(), owner.uid.as_str()), ("Endpoints", "e"));
    }

    #[test]
    fn a_change_is_written_over_the_slice_that_is_there_and_nothing_is_written_twice() {
        let at =
            |ip: &str| endpoints(json!([{"addresses": [{"ip": ip}], "ports": [{"port": 80}]}]));
        let slices = stored(plan(Some(&at("192.0.2.1")), &[]));
        let same = plan(Some(&at("192.0.2.1")), &slices);
        assert!(same.create.is_empty() && same.update.is_empty() && same.delete.is_empty());
        let moved = plan(Some(&at("192.0.2.9")), &slices);
        assert_eq!((moved.create.len(), moved.update.len(), moved.delete.len()), (0, 1, 0));
        assert_eq!(moved.update[0].name_any(), "db-0");
        let gone = plan(None, &slices);
        assert_eq!((gone.create.len(), gone.update.len(), gone.delete.len()), (0, 0, 1));
    }

    #[test]
    fn endpoints_that_are_made_of_slices_or_are_locks_are_not_mirrored() {
        let plain = endpoints(json!([]));
        assert!(is_mirrored(&plain));
        for (labels, annotations) in [
            (json!({SKIP: "true"}), json!({})),
            (json!({ENDPOINTS_MANAGED_BY: "endpoint-controller"}), json!({})),
            (json!({}), json!({LEADER: "x"})),
        ] {
            let other: Endpoints = serde_json::from_value(json!({
                "metadata": {"name": "x", "labels": labels, "annotations": annotations},
            }))
            .unwrap();
            assert!(!is_mirrored(&other));
        }
    }
}
