//! Addresses and ports of Services in the API.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use http::StatusCode;
use serde_json::{Value, json};

use crate::support::Api;

const SERVICES: &str = "/api/v1/namespaces/default/services";

fn node_port(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"type": "NodePort", "selector": {"a": "b"},
        "ports": [{"port": 80}]}})
}

#[tokio::test]
async fn services_made_at_once_never_share_an_address_or_a_port() {
    let api = Api::start().await;
    let names: Vec<String> = (0..60).map(|at| format!("s{at}")).collect();
    let objects: Vec<Value> = names.iter().map(|name| node_port(name)).collect();
    let made = join_all(objects.iter().map(|object| api.post(SERVICES, object))).await;
    let (mut ips, mut ports) = (BTreeSet::new(), BTreeSet::new());
    for answer in &made {
        assert_eq!(answer.code, StatusCode::CREATED, "{answer:?}");
        ips.insert(answer.at("/spec/clusterIP").to_string());
        ports.insert(answer.at("/spec/ports/0/nodePort").to_string());
    }
    assert_eq!((ips.len(), ports.len()), (60, 60));
}

#[tokio::test]
async fn addresses_and_ports_come_back_when_a_service_goes_or_changes() {
    let api = Api::start().await;
    let made = api.post(SERVICES, &node_port("a")).await;
    let (ip, port) = (made.at("/spec/clusterIP"), made.at("/spec/ports/0/nodePort"));
    let heir = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"type": "NodePort", "clusterIP": ip,
            "ports": [{"port": 80, "nodePort": port}]}})
    };
    let one = format!("{SERVICES}/a");
    let plain = api.patch(&one, "merge", &json!({"spec": {"type": "ClusterIP"}})).await;
    assert_eq!(plain.code, StatusCode::OK, "{plain:?}");
    assert_eq!(plain.at("/spec/clusterIP"), ip);
    let taken = api.post(SERVICES, &heir("b")).await;
    assert!(taken.at("/message").as_str().unwrap().contains("provided IP is already allocated"));
    let named = json!({"spec": {"type": "ExternalName", "externalName": "a.example"}});
    let named = api.patch(&one, "merge", &named).await;
    assert_eq!((named.code, named.at("/spec/clusterIP")), (StatusCode::OK, Value::Null));
    let free = api.post(SERVICES, &heir("b")).await;
    assert_eq!(free.code, StatusCode::CREATED, "{free:?}");
    let back = json!({"spec": {"type": "ClusterIP", "externalName": null}});
    let back = api.patch(&one, "merge", &back).await;
    assert!(back.at("/spec/clusterIP").is_string() && back.at("/spec/clusterIP") != ip);
    api.delete(&format!("{SERVICES}/b")).await;
    let free = api.post(SERVICES, &heir("c")).await;
    assert_eq!(free.code, StatusCode::CREATED, "{free:?}");
}

#[tokio::test]
async fn a_cluster_of_one_family_refuses_the_other_and_a_dry_run_claims_nothing() {
    let api = Api::start().await;
    let both = json!({"metadata": {"name": "a"}, "spec": {"ipFamilyPolicy": "RequireDualStack",
        "selector": {"a": "b"}, "ports": [{"port": 80}]}});
    let refused = api.post(SERVICES, &both).await;
    assert_eq!(refused.code.as_u16(), 422, "{refused:?}");
    assert_eq!(refused.at("/details/causes/0/field"), json!("spec.ipFamilyPolicy"));
    let chosen = json!({"metadata": {"name": "a"}, "spec": {"clusterIP": "10.43.0.77",
        "ports": [{"port": 80}]}});
    let dry = api.post(&format!("{SERVICES}?dryRun=All"), &chosen).await;
    assert_eq!(dry.code, StatusCode::CREATED, "{dry:?}");
    let made = api.post(SERVICES, &chosen).await;
    assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
}
