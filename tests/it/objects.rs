//! Reading and writing objects.

use http::{Method, StatusCode};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api as KubeApi;
use kube::api::{ListParams, PostParams};
use serde_json::{Value, json};

use crate::support::Api;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const SERVICES: &str = "/api/v1/namespaces/default/services";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}})
}

fn deployment() -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [
            {"name": "a", "image": "x:1", "env": [{"name": "A", "value": "1"}]},
        ]}},
    }})
}

#[tokio::test]
async fn an_object_is_made_read_changed_and_deleted() {
    let api = Api::start().await;
    let made = api.post(MAPS, &map("a")).await;
    assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
    assert!(!made.at("/metadata/uid").as_str().unwrap().is_empty());
    let again = api.post(MAPS, &map("a")).await;
    assert_eq!((again.code, again.at("/reason")), (StatusCode::CONFLICT, json!("AlreadyExists")));
    let one = format!("{MAPS}/a");
    let mut read = api.get(&one).await.json();
    assert_eq!(read["metadata"]["resourceVersion"], made.at("/metadata/resourceVersion"));
    read["data"]["k"] = json!("w");
    assert_eq!(api.put(&one, &read).await.code, StatusCode::OK);
    let stale = api.put(&one, &read).await;
    assert_eq!((stale.code, stale.at("/reason")), (StatusCode::CONFLICT, json!("Conflict")));
    assert!(stale.at("/message").as_str().unwrap().contains("the object has been modified"));
    assert_eq!(api.delete(&one).await.at("/status"), json!("Success"));
    let missing = api.get(&one).await;
    assert_eq!(missing.at("/message"), json!("configmaps \"a\" not found"));
}

#[tokio::test]
async fn what_does_not_belong_is_refused_with_its_reason() {
    let api = Api::start().await;
    let nowhere = api.post("/api/v1/namespaces/nowhere/configmaps", &map("a")).await;
    assert_eq!(nowhere.at("/message"), json!("namespaces \"nowhere\" not found"));
    let bad_name = api.post(MAPS, &map("A B")).await;
    assert_eq!((bad_name.code.as_u16(), bad_name.at("/reason")), (422, json!("Invalid")));
    let not_json = api.send(Method::POST, MAPS, "application/json", "{").await;
    assert_eq!(not_json.code, StatusCode::BAD_REQUEST);
    let not_protobuf =
        api.send(Method::POST, MAPS, "application/vnd.kubernetes.protobuf", "x").await;
    assert_eq!(not_protobuf.code, StatusCode::BAD_REQUEST);
    let not_known = api.send(Method::POST, MAPS, "application/cbor", "x").await;
    assert_eq!(not_known.code, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let mut unknown = map("a");
    unknown["nonsense"] = json!(1);
    let strict = api.post(&format!("{MAPS}?fieldValidation=Strict"), &unknown).await;
    assert!(
        strict.at("/message").as_str().unwrap().contains("unknown field \"nonsense\""),
        "{strict:?}"
    );
    let warned = api.post(MAPS, &unknown).await;
    assert_eq!(warned.code, StatusCode::CREATED);
    assert!(warned.headers.contains_key(http::header::WARNING));
    let stranger = api.send_as(None, Method::GET, MAPS, "", "").await;
    assert_eq!(stranger.code, StatusCode::FORBIDDEN);
    let nowhere = api.get("/api/v1/nonsense").await;
    assert_eq!(nowhere.code, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_dry_run_and_yaml_and_generated_names_work_as_in_kubernetes() {
    let api = Api::start().await;
    let dry = api.post(&format!("{MAPS}?dryRun=All"), &map("dry")).await;
    assert_eq!(dry.code, StatusCode::CREATED);
    assert_eq!(api.get(&format!("{MAPS}/dry")).await.code, StatusCode::NOT_FOUND);
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  generateName: some-\n";
    let made = api.send(Method::POST, MAPS, "application/yaml", yaml).await;
    let name = made.at("/metadata/name");
    assert!(name.as_str().is_some_and(|n| n.starts_with("some-") && n.len() == 10), "{made:?}");
}

#[tokio::test]
async fn a_list_is_paged_at_one_revision() {
    let api = Api::start().await;
    for n in 0..5 {
        api.post(MAPS, &map(&format!("m{n}"))).await;
    }
    let first = api.get(&format!("{MAPS}?limit=2")).await;
    assert_eq!(first.at("/metadata/remainingItemCount"), json!(3));
    let token = first.at("/metadata/continue");
    api.post(MAPS, &map("m9")).await;
    api.delete(&format!("{MAPS}/m4")).await;
    let rest = api.get(&format!("{MAPS}?limit=9&continue={}", token.as_str().unwrap())).await;
    let names: Vec<_> = rest.json()["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["metadata"]["name"].clone())
        .collect();
    assert_eq!(names, ["m2", "m3", "m4"]);
    assert_eq!(rest.at("/metadata/resourceVersion"), first.at("/metadata/resourceVersion"));
    let maps: KubeApi<ConfigMap> = KubeApi::namespaced(api.client(), "default");
    let selected = maps.list(&ListParams::default().fields("metadata.name=m1")).await.unwrap();
    assert_eq!(selected.items.len(), 1);
    maps.create(&PostParams::default(), &ConfigMap::default()).await.unwrap_err();
}

#[tokio::test]
async fn patches_merge_by_name_and_scale_counts_as_a_change() {
    let api = Api::start().await;
    let made = api.post(DEPLOYMENTS, &deployment()).await;
    assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
    assert_eq!(made.at("/spec/replicas"), json!(1));
    let one = format!("{DEPLOYMENTS}/web");
    let patch = json!({"spec": {"template": {"spec": {"containers": [
        {"name": "a", "env": [{"name": "B", "value": "2"}]},
        {"name": "b", "image": "y:1"},
    ]}}}});
    let patched = api.patch(&one, "strategic-merge", &patch).await;
    assert_eq!(patched.code, StatusCode::OK, "{patched:?}");
    let containers = patched.at("/spec/template/spec/containers");
    assert_eq!(containers.as_array().unwrap().len(), 2);
    let first = containers.as_array().unwrap().iter().find(|c| c["name"] == "a").unwrap();
    assert_eq!((first["image"].as_str(), first["env"].as_array().unwrap().len()), (Some("x:1"), 2));
    assert_eq!(patched.at("/metadata/generation"), json!(2));
    let scaled =
        api.patch(&format!("{one}/scale"), "merge", &json!({"spec": {"replicas": 4}})).await;
    assert_eq!((scaled.at("/kind"), scaled.at("/spec/replicas")), (json!("Scale"), json!(4)));
    assert_eq!(api.get(&one).await.at("/metadata/generation"), json!(3));
    let same = api.patch(&one, "merge", &json!({"spec": {"replicas": 4}})).await;
    assert_eq!(same.at("/metadata/generation"), json!(3));
    let mut wrong = deployment();
    wrong["spec"]["selector"] = json!({"matchLabels": {"app": "other"}});
    let refused = api.put(&one, &wrong).await;
    assert_eq!(refused.code.as_u16(), 422, "{refused:?}");
    assert_eq!(api.patch(&one, "apply", &json!({})).await.code, StatusCode::UNSUPPORTED_MEDIA_TYPE);
}

#[tokio::test]
async fn the_same_quantity_in_other_words_is_no_change() {
    let api = Api::start().await;
    let with = |cpu: Value| {
        let mut object = deployment();
        let resources = json!({"limits": {"cpu": cpu, "memory": "1024Mi"}});
        object["spec"]["template"]["spec"]["containers"][0]["resources"] = resources;
        object
    };
    let one = format!("{DEPLOYMENTS}/web");
    assert_eq!(api.post(DEPLOYMENTS, &with(json!("1000m"))).await.code, StatusCode::CREATED);
    let limits = "/spec/template/spec/containers/0/resources/limits";
    let stored = api.get(&one).await;
    assert_eq!(stored.at(limits), json!({"cpu": "1", "memory": "1Gi"}), "as Kubernetes writes it");
    for cpu in [json!(1), json!("1.0"), json!("1e0")] {
        assert_eq!(api.put(&one, &with(cpu)).await.code, StatusCode::OK);
    }
    let patch = json!([{"op": "replace", "path": format!("{limits}/cpu"), "value": "1000m"}]);
    let patched = api.patch(&one, "json", &patch).await;
    assert_eq!(patched.code, StatusCode::OK, "{patched:?}");
    assert_eq!(patched.at("/metadata"), stored.at("/metadata"), "nothing was written");
    let (path, body) = (format!("{one}?fieldManager=b"), with(json!("1000m")).to_string());
    let applied = api.send(Method::PATCH, &path, "application/apply-patch+yaml", body).await;
    assert_eq!(applied.code, StatusCode::OK, "no conflict: {applied:?}");
    assert_eq!(applied.at("/metadata/generation"), json!(1));
}

#[tokio::test]
async fn services_never_share_an_address_or_a_port() {
    let api = Api::start().await;
    let service = |name: &str, more: Value| {
        let mut spec = json!({"type": "NodePort", "selector": {"a": "b"}, "ports": [{"port": 80}]});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
    };
    let first = api.post(SERVICES, &service("a", json!({}))).await;
    assert_eq!(first.code, StatusCode::CREATED, "{first:?}");
    let (ip, port) = (first.at("/spec/clusterIP"), first.at("/spec/ports/0/nodePort"));
    let taken = api.post(SERVICES, &service("b", json!({"clusterIP": ip}))).await;
    assert_eq!(taken.code.as_u16(), 422, "{taken:?}");
    assert!(taken.at("/message").as_str().unwrap().contains("provided IP is already allocated"));
    let taken =
        api.post(SERVICES, &service("b", json!({"ports": [{"port": 80, "nodePort": port}]}))).await;
    assert_eq!(taken.code.as_u16(), 422, "{taken:?}");
    api.delete(&format!("{SERVICES}/a")).await;
    let free = api
        .post(
            SERVICES,
            &service("b", json!({"clusterIP": ip, "ports": [{"port": 80, "nodePort": port}]})),
        )
        .await;
    assert_eq!(free.code, StatusCode::CREATED, "{free:?}");
}

#[tokio::test]
async fn a_pod_is_bound_once_and_leaves_in_two_steps() {
    let api = Api::start().await;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "image": "x:1"}]}});
    let made = api.post(PODS, &pod).await;
    assert_eq!(
        (made.code, made.at("/status/phase")),
        (StatusCode::CREATED, json!("Pending")),
        "{made:?}"
    );
    let binding = |node: &str| json!({"target": {"name": node}});
    let path = format!("{PODS}/p/binding");
    assert_eq!(api.post(&path, &binding("n1")).await.code, StatusCode::CREATED);
    assert_eq!(api.post(&path, &binding("n2")).await.code, StatusCode::CONFLICT);
    let one = format!("{PODS}/p");
    let leaving = api.delete(&one).await;
    assert_eq!(leaving.at("/metadata/deletionGracePeriodSeconds"), json!(30));
    assert_eq!(api.get(&one).await.code, StatusCode::OK);
    api.delete(&format!("{one}?gracePeriodSeconds=0")).await;
    assert_eq!(api.get(&one).await.code, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_finalizer_keeps_an_object_until_it_is_taken_away() {
    let api = Api::start().await;
    let mut kept = map("kept");
    kept["metadata"]["finalizers"] = json!(["example.org/hold"]);
    api.post(MAPS, &kept).await;
    let one = format!("{MAPS}/kept");
    assert!(api.delete(&one).await.at("/metadata/deletionTimestamp").is_string());
    assert_eq!(api.get(&one).await.code, StatusCode::OK);
    api.patch(&one, "merge", &json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(api.get(&one).await.code, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn events_and_node_leases_never_reach_the_log() {
    let api = Api::start().await;
    let revision = |answer: Value| {
        answer["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap()
    };
    let before = revision(api.get(MAPS).await.json());
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let lease = json!({"metadata": {"name": "n"}, "spec": {"holderIdentity": "n"}});
    assert_eq!(api.post(leases, &lease).await.code, StatusCode::CREATED);
    for n in 0..10 {
        let renewed = api
            .patch(
                &format!("{leases}/n"),
                "merge",
                &json!({"spec": {"leaseDurationSeconds": n + 1}}),
            )
            .await;
        assert_eq!(renewed.code, StatusCode::OK, "{renewed:?}");
    }
    let event = json!({"metadata": {"generateName": "e-"}, "involvedObject": {"kind": "Pod", "name": "p"}, "reason": "R", "type": "Normal"});
    let made = api.post("/api/v1/namespaces/default/events", &event).await;
    assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
    let found = api.get("/api/v1/events?fieldSelector=involvedObject.name=p").await;
    assert_eq!(found.json()["items"].as_array().unwrap().len(), 1);
    assert_eq!(revision(api.get(MAPS).await.json()), before);
}

#[tokio::test]
async fn a_patch_that_names_a_version_is_checked_against_it() {
    let api = Api::start().await;
    let made = api.post(MAPS, &map("a")).await;
    let version = made.at("/metadata/resourceVersion");
    let one = format!("{MAPS}/a");
    let json_patch = |version: &Value, value: &str| {
        json!([
            {"op": "replace", "path": "/metadata/resourceVersion", "value": version},
            {"op": "replace", "path": "/data/k", "value": value},
        ])
    };
    let merge = |version: &Value, value: &str| json!({"metadata": {"resourceVersion": version}, "data": {"k": value}});
    let fits = api.patch(&one, "json", &json_patch(&version, "1")).await;
    assert_eq!(fits.code, StatusCode::OK, "{fits:?}");
    let stale = api.patch(&one, "json", &json_patch(&version, "2")).await;
    assert_eq!((stale.code, stale.at("/reason")), (StatusCode::CONFLICT, json!("Conflict")));
    let stale = api.patch(&one, "merge", &merge(&version, "2")).await;
    assert_eq!((stale.code, stale.at("/reason")), (StatusCode::CONFLICT, json!("Conflict")));
    let fits = api.patch(&one, "merge", &merge(&fits.at("/metadata/resourceVersion"), "3")).await;
    assert_eq!((fits.code, fits.at("/data/k")), (StatusCode::OK, json!("3")));
}

#[tokio::test]
async fn a_port_that_is_taken_is_refused_in_an_update_as_in_a_create() {
    let api = Api::start().await;
    let service = |name: &str, port: u16| {
        json!({"metadata": {"name": name}, "spec": {
            "type": "NodePort", "selector": {"a": "b"}, "ports": [{"port": 80, "nodePort": port}],
        }})
    };
    for (name, port) in [("a", 30001), ("b", 30002)] {
        let made = api.post(SERVICES, &service(name, port)).await;
        assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
    }
    let taken = json!([{"op": "replace", "path": "/spec/ports/0/nodePort", "value": 30001}]);
    let refused = api.patch(&format!("{SERVICES}/b"), "json", &taken).await;
    assert_eq!(refused.code.as_u16(), 422, "{refused:?}");
    assert_eq!(refused.at("/details/name"), json!("b"));
    assert!(refused.at("/message").as_str().unwrap().contains("already allocated"), "{refused:?}");
    let moved = json!({"spec": {"clusterIP": "10.43.7.7"}});
    let refused = api.patch(&format!("{SERVICES}/b"), "merge", &moved).await;
    assert!(refused.at("/message").as_str().unwrap().contains("may not change once set"));
}

#[tokio::test]
async fn a_token_of_another_collection_is_refused_in_both_tiers() {
    let api = Api::start().await;
    for n in 0..3 {
        api.post(MAPS, &map(&format!("m{n}"))).await;
    }
    let token = api.get(&format!("{MAPS}?limit=1")).await.at("/metadata/continue");
    let token = token.as_str().unwrap().to_owned();
    for path in ["/api/v1/namespaces/default/events", "/api/v1/namespaces/kube-system/configmaps"] {
        let refused = api.get(&format!("{path}?limit=1&continue={token}")).await;
        assert_eq!(refused.code, StatusCode::BAD_REQUEST, "{path}: {refused:?}");
    }
}

#[tokio::test]
async fn a_selective_list_is_paged_without_gaps_and_doubles() {
    let api = Api::start().await;
    for n in 0..20 {
        let mut object = map(&format!("m{n:02}"));
        object["metadata"]["labels"] = json!({"odd": (n % 2 == 1).to_string()});
        api.post(MAPS, &object).await;
    }
    let (mut names, mut token) = (Vec::new(), String::new());
    loop {
        let page =
            api.get(&format!("{MAPS}?limit=3&labelSelector=odd%3Dtrue&continue={token}")).await;
        let items = page.json()["items"].as_array().unwrap().clone();
        assert!(items.len() <= 3);
        names
            .extend(items.iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()));
        match page.at("/metadata/continue").as_str() {
            Some(next) => token = next.to_owned(),
            None => break,
        }
    }
    let wanted: Vec<String> = (0..10).map(|n| format!("m{:02}", 2 * n + 1)).collect();
    assert_eq!(names, wanted);
}
