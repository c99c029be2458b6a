use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use crate::controllers::endpoint_slice::plan::{MANAGED_BY, Plan, SERVICE_NAME, View, Zones, plan};

fn service(changes: &Value) -> Service {
    let mut service = json!({
        "metadata": { "name": "web", "namespace": "default", "uid": "s" },
        "spec": {
            "clusterIP": "10.43.0.7", "selector": { "app": "web" },
            "ports": [{ "name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP" }],
        },
    });
    json_patch::merge(&mut service, changes);
    serde_json::from_value(service).unwrap()
}

fn pod(at: u32, changes: &Value) -> Arc<Pod> {
    let mut pod = json!({
        "metadata": {
            "name": format!("web-{at:03}"), "namespace": "default", "uid": format!("u{at}"),
            "labels": { "app": "web" },
        },
        "spec": { "nodeName": "a", "containers": [] },
        "status": {
            "phase": "Running", "podIP": format!("10.42.{}.{}", at / 200, at % 200 + 1),
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    });
    json_patch::merge(&mut pod, changes);
    Arc::new(serde_json::from_value(pod).unwrap())
}

/// The slices as the server would keep them after `plan`.
fn stored(before: &[Arc<EndpointSlice>], plan: Plan) -> Vec<Arc<EndpointSlice>> {
    let name = |slice: &EndpointSlice| slice.metadata.name.clone();
    let mut slices: Vec<_> = before
        .iter()
        .filter(|old| !plan.delete.iter().any(|gone| name(gone) == name(old)))
        .map(|old| {
            let new = plan.update.iter().find(|new| name(new) == name(old));
            new.map_or_else(|| Arc::clone(old), |new| Arc::new(new.clone()))
        })
        .collect();
    for (at, mut slice) in plan.create.into_iter().enumerate() {
        slice.metadata.name = Some(format!("web-{}-{at}", before.len()));
        slice.metadata.resource_version = Some("1".into());
        slices.push(Arc::new(slice));
    }
    slices
}

fn plan_of(service: &Service, pods: &[Arc<Pod>], slices: &[Arc<EndpointSlice>]) -> Plan {
    plan_in(service, pods, slices, &Zones::new())
}

fn plan_in(
    service: &Service,
    pods: &[Arc<Pod>],
    slices: &[Arc<EndpointSlice>],
    zones: &Zones,
) -> Plan {
    plan(&View { service, pods, slices, zones })
}

fn sizes(slices: &[Arc<EndpointSlice>]) -> Vec<usize> {
    slices.iter().map(|slice| slice.endpoints.as_ref().unwrap().len()).collect()
}

#[test]
fn a_slice_says_where_each_pod_is_and_whether_it_serves() {
    let not_ready = json!({ "status": { "conditions": [] } });
    let leaving = json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } });
    let pods = [
        pod(0, &json!({})),
        pod(1, &not_ready),
        pod(2, &leaving),
        pod(3, &json!({ "status": { "podIP": null } })),
        pod(4, &json!({ "status": { "phase": "Succeeded" } })),
        pod(5, &json!({ "metadata": { "labels": { "app": "other" } } })),
    ];
    let plan = plan_of(&service(&json!({})), &pods, &[]);
    let [slice] = plan.create.as_slice() else { panic!("one slice: {:?}", plan.create) };
    let conditions: Vec<_> = slice
        .endpoints
        .as_ref()
        .unwrap()
        .iter()
        .map(|endpoint| {
            let conditions = endpoint.conditions.clone().unwrap();
            let name = endpoint.target_ref.clone().unwrap().name.unwrap();
            (
                name,
                conditions.ready.unwrap(),
                conditions.serving.unwrap(),
                conditions.terminating.unwrap(),
            )
        })
        .collect();
    assert_eq!(
        conditions,
        [
            ("web-000".to_owned(), true, true, false),
            ("web-001".to_owned(), false, false, false),
            ("web-002".to_owned(), false, true, true),
        ]
    );
    let first = &slice.endpoints.as_ref().unwrap()[0];
    assert_eq!(first.addresses, ["10.42.0.1"]);
    assert_eq!(first.node_name.as_deref(), Some("a"));
    let labels = slice.metadata.labels.as_ref().unwrap();
    assert_eq!(labels[SERVICE_NAME], "web");
    assert!(labels.contains_key(MANAGED_BY));
    assert!(!labels.contains_key("service.kubernetes.io/headless"));
    let port = &slice.ports.as_ref().unwrap()[0];
    assert_eq!((port.name.as_deref(), port.port), (Some("http"), Some(8080)));
    assert_eq!(slice.metadata.owner_references.as_ref().unwrap()[0].uid, "s");
}

#[test]
fn what_did_not_change_is_not_written() {
    let service = service(&json!({}));
    let pods: Vec<_> = (0..3).map(|at| pod(at, &json!({}))).collect();
    let slices = stored(&[], plan_of(&service, &pods, &[]));
    let mut turned = pods.clone();
    turned.reverse();
    for pods in [pods, turned] {
        let plan = plan_of(&service, &pods, &slices);
        assert!(plan.create.is_empty() && plan.update.is_empty() && plan.delete.is_empty());
    }
}

#[test]
fn many_pods_fill_several_slices_and_a_change_touches_one() {
    let service = service(&json!({}));
    let mut pods: Vec<_> = (0..250).map(|at| pod(at, &json!({}))).collect();
    let slices = stored(&[], plan_of(&service, &pods, &[]));
    assert_eq!(sizes(&slices), [100, 100, 50]);
    pods.remove(120);
    let plan = plan_of(&service, &pods, &slices);
    assert_eq!((plan.create.len(), plan.update.len(), plan.delete.len()), (0, 1, 0));
}

#[test]
fn a_pod_that_leaves_and_one_that_comes_touch_one_slice() {
    let service = service(&json!({}));
    let pods: Vec<_> = (0..150).map(|at| pod(at, &json!({}))).collect();
    let slices = stored(&[], plan_of(&service, &pods, &[]));
    let mut pods = pods;
    pods.remove(10);
    pods.push(pod(200, &json!({})));
    let plan = plan_of(&service, &pods, &slices);
    assert_eq!((plan.create.len(), plan.update.len(), plan.delete.len()), (0, 1, 0));
    assert_eq!(sizes(&stored(&slices, plan)), [100, 50]);
}

#[test]
fn pods_that_resolve_a_named_port_differently_are_in_different_slices() {
    let service = service(&json!({ "spec": { "ports": [{ "port": 80, "targetPort": "http" }] } }));
    let serving = |at: u32, port: i32| {
        pod(
            at,
            &json!({ "spec": { "containers": [{
                "name": "c", "ports": [{ "name": "http", "containerPort": port }],
            }]}}),
        )
    };
    let plan = plan_of(&service, &[serving(0, 8080), serving(1, 9090), serving(2, 8080)], &[]);
    let ports: Vec<_> = plan
        .create
        .iter()
        .map(|slice| {
            let port = slice.ports.as_ref().unwrap()[0].port.unwrap();
            (port, slice.endpoints.as_ref().unwrap().len())
        })
        .collect();
    assert_eq!(ports, [(8080, 2), (9090, 1)]);
}

#[test]
fn an_empty_service_keeps_one_empty_slice() {
    let service = service(&json!({}));
    let slices = stored(&[], plan_of(&service, &[], &[]));
    assert_eq!(sizes(&slices), [0]);
    let plan = plan_of(&service, &[], &slices);
    assert!(plan.create.is_empty() && plan.update.is_empty() && plan.delete.is_empty());
    let full = stored(&slices, plan_of(&service, &[pod(0, &json!({}))], &slices));
    assert_eq!(sizes(&full), [1]);
    let drained = stored(&full, plan_of(&service, &[], &full));
    assert_eq!(sizes(&drained), [0]);
}

#[test]
fn a_headless_service_that_publishes_all_says_so() {
    let service = service(&json!({
        "spec": { "clusterIP": "None", "publishNotReadyAddresses": true },
    }));
    let plan = plan_of(&service, &[pod(0, &json!({ "status": { "conditions": [] } }))], &[]);
    let slice = &plan.create[0];
    assert!(slice.metadata.labels.as_ref().unwrap().contains_key("service.kubernetes.io/headless"));
    let conditions = slice.endpoints.as_ref().unwrap()[0].conditions.clone().unwrap();
    assert_eq!((conditions.ready, conditions.serving), (Some(true), Some(false)));
}

#[test]
fn each_family_of_a_service_has_slices_of_its_own() {
    let two = json!({"status": {"podIPs": [{"ip": "10.42.0.1"}, {"ip": "fd00:42::1"}]}});
    let pods = [pod(0, &two), pod(1, &json!({}))];
    let both = service(&json!({"spec": {"ipFamilies": ["IPv4", "IPv6"]}}));
    let slices = stored(&[], plan_of(&both, &pods, &[]));
    let listed = |slices: &[Arc<EndpointSlice>]| -> Vec<(String, Vec<String>)> {
        let ips = |slice: &EndpointSlice| {
            slice.endpoints.iter().flatten().map(|one| one.addresses.concat()).collect()
        };
        slices.iter().map(|slice| (slice.address_type.clone(), ips(slice))).collect()
    };
    assert_eq!(
        listed(&slices),
        [
            ("IPv4".to_owned(), vec!["10.42.0.1".to_owned(), "10.42.0.2".to_owned()]),
            ("IPv6".to_owned(), vec!["fd00:42::1".to_owned()]),
        ]
    );
    assert!(plan_of(&both, &pods, &slices).update.is_empty());
    // A family that the service has no longer goes with its slices.
    let one = service(&json!({"spec": {"ipFamilies": ["IPv6"]}}));
    let plan = plan_of(&one, &pods, &slices);
    assert_eq!((plan.create.len(), plan.update.len(), plan.delete.len()), (0, 0, 1));
    assert_eq!(plan.delete[0].address_type, "IPv4");
}

#[test]
fn endpoints_say_their_zone_and_who_should_use_them() {
    let zones: Zones = [("a".to_owned(), "z1".to_owned())].into();
    let leaving = json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } });
    let elsewhere = json!({ "spec": { "nodeName": "b" } });
    let pods = [pod(0, &json!({})), pod(1, &leaving), pod(2, &elsewhere)];
    let hints = |distribution: Value| -> Vec<Value> {
        let service = service(&json!({ "spec": { "trafficDistribution": distribution } }));
        let plan = plan_in(&service, &pods, &[], &zones);
        let endpoints = plan.create[0].endpoints.clone().unwrap();
        assert_eq!(endpoints[0].zone.as_deref(), Some("z1"));
        assert_eq!(endpoints[2].zone, None);
        endpoints.iter().map(|one| serde_json::to_value(&one.hints).unwrap()).collect()
    };
    let zone = json!({ "forZones": [{ "name": "z1" }] });
    assert_eq!(hints(json!(null)), [json!(null), json!(null), json!(null)]);
    assert_eq!(hints(json!("PreferClose")), [zone.clone(), json!(null), json!(null)]);
    assert_eq!(hints(json!("PreferSameZone")), [zone, json!(null), json!(null)]);
    let node = |name: &str| json!({ "forNodes": [{ "name": name }] });
    let mut near = node("a");
    near["forZones"] = json!([{ "name": "z1" }]);
    assert_eq!(hints(json!("PreferSameNode")), [near, json!(null), node("b")]);
}

#[test]
fn a_pod_has_a_name_of_its_own_within_the_service_that_is_its_subdomain() {
    let named = |subdomain: &str| {
        let spec = json!({ "spec": { "hostname": "h", "subdomain": subdomain } });
        let plan = plan_of(&service(&json!({})), &[pod(0, &spec)], &[]);
        plan.create[0].endpoints.as_ref().unwrap()[0].hostname.clone()
    };
    assert_eq!(named("web").as_deref(), Some("h"));
    assert_eq!(named("other"), None);
}
