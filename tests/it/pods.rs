//! Pods through the API server: what may change, gates, logs.

use axum::Router;
use axum::routing::get;
use http::StatusCode;
use http::Uri;
use serde_json::{Value, json};

use crate::support::{Answer, Api};

const PODS: &str = "/api/v1/namespaces/default/pods";

fn pod(spec: &Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "main", "image": "x:1"}]}});
    json_patch::merge(&mut pod["spec"], spec);
    pod
}

#[tokio::test]
async fn a_pod_behind_gates_is_not_bound_until_they_are_gone() {
    let api = Api::start().await;
    let gated = pod(&json!({"schedulingGates": [{"name": "acme.io/wait"}]}));
    let made = api.post(PODS, &gated).await;
    assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
    assert_eq!(made.at("/status/conditions/0/reason"), json!("SchedulingGated"));
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"},
        "target": {"kind": "Node", "name": "one"}});
    let bind = format!("{PODS}/p/binding");
    let refused = api.post(&bind, &binding).await;
    assert_eq!(refused.code, StatusCode::CONFLICT, "{refused:?}");
    let message = refused.at("/message").as_str().unwrap().to_owned();
    assert!(message.contains("pod p has non-empty .spec.schedulingGates"), "{message}");

    let one = format!("{PODS}/p");
    let gates = |names: &[&str]| {
        let gates: Vec<_> = names.iter().map(|name| json!({"name": name})).collect();
        json!({"spec": {"schedulingGates": gates}})
    };
    let more = api.patch(&one, "merge", &gates(&["acme.io/wait", "acme.io/more"])).await;
    assert_eq!(more.code.as_u16(), 422, "{more:?}");
    let selector = json!({"spec": {"nodeSelector": {"disk": "fast"}}});
    assert_eq!(api.patch(&one, "merge", &selector).await.code, StatusCode::OK);
    let open = api.patch(&one, "merge", &gates(&[])).await;
    assert_eq!(open.code, StatusCode::OK, "{open:?}");
    assert_eq!(api.post(&bind, &binding).await.code, StatusCode::CREATED);
    let bound = api.get(&one).await.json();
    let conditions = bound["status"]["conditions"].as_array().unwrap();
    assert_eq!(conditions.len(), 1, "{bound:#}");
    assert_eq!(conditions[0]["status"], "True");
    let late = api.patch(&one, "merge", &json!({"spec": {"nodeSelector": {"a": "b"}}})).await;
    assert_eq!(late.code.as_u16(), 422, "no longer gated: {late:?}");
    let nowhere =
        api.post(PODS, &pod(&json!({"schedulingGates": [{"name": "w"}], "nodeName": "n"}))).await;
    assert_eq!(nowhere.code.as_u16(), 422, "{nowhere:?}");
}

#[tokio::test]
async fn what_of_a_pod_may_change_is_changed_and_all_else_is_refused() {
    let api = Api::start().await;
    let limits = json!({"limits": {"cpu": "1", "memory": "64Mi"}});
    let main = json!([{"name": "main", "image": "x:1", "resources": limits}]);
    let made = api.post(PODS, &pod(&json!({"containers": main}))).await;
    assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
    assert_eq!(made.at("/status/qosClass"), json!("Guaranteed"));
    let one = format!("{PODS}/p");
    for (patch, code) in [
        (json!({"activeDeadlineSeconds": 100}), 200),
        (json!({"activeDeadlineSeconds": 99}), 200),
        (json!({"activeDeadlineSeconds": 100}), 422),
        (json!({"activeDeadlineSeconds": null}), 422),
        // Those that the server has added are there again.
        (json!({"tolerations": [{"key": "a", "operator": "Exists"}]}), 200),
        (json!({"tolerations": []}), 422),
        // A merge patch replaces the list, and all that the server has added to it.
        (json!({"containers": [{"name": "main", "image": "y:1"}]}), 422),
        (json!({"restartPolicy": "Never"}), 422),
        (json!({"terminationGracePeriodSeconds": 1}), 422),
        (json!({"hostname": "other"}), 422),
    ] {
        let answer = api.patch(&one, "merge", &json!({"spec": patch})).await;
        assert_eq!(answer.code.as_u16(), code, "{patch}: {answer:?}");
        if code == 422 {
            assert_eq!(answer.at("/reason"), json!("Invalid"));
        }
    }
    let image = json!({"spec": {"containers": [{"name": "main", "image": "z:1"}]}});
    let answer = api.patch(&one, "strategic-merge", &image).await;
    assert_eq!(answer.code, StatusCode::OK, "{answer:?}");
    assert_eq!(answer.at("/spec/containers/0/image"), json!("z:1"));
}

#[tokio::test]
async fn a_log_is_asked_of_the_node_once_the_container_has_run() {
    let agent = Router::new().route(
        "/containerLogs/default/p/main",
        get(async |uri: Uri| uri.query().unwrap_or_default().to_owned()),
    );
    let api = Api::start_with_node(agent).await;
    api.post(PODS, &pod(&json!({"nodeName": "one"}))).await;
    let log = format!("{PODS}/p/log");
    let early = api.get(&log).await;
    assert_eq!(early.code, StatusCode::BAD_REQUEST);
    assert_eq!(
        early.at("/message"),
        json!("container \"main\" in pod \"p\" is waiting to start: ContainerCreating")
    );
    let running = json!({"status": {"containerStatuses": [{"name": "main", "image": "x:1",
        "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}}]}});
    let told = api.patch(&format!("{PODS}/p/status"), "merge", &running).await;
    assert_eq!(told.code, StatusCode::OK, "{told:?}");
    for (query, forwarded) in [
        ("", ""),
        ("container=main&follow=true&tailLines=3", "follow=true&tailLines=3"),
        (
            "sinceTime=2026-01-01T01:00:00%2B01:00&timestamps=true&limitBytes=9",
            "sinceTime=2026-01-01T01:00:00%2B01:00&timestamps=true&limitBytes=9",
        ),
        ("sinceSeconds=5&insecureSkipTLSVerifyBackend=true", "sinceSeconds=5"),
    ] {
        let answer = api.get(&format!("{log}?{query}")).await;
        assert_eq!(answer.code, StatusCode::OK, "{query}: {answer:?}");
        assert_eq!(String::from_utf8_lossy(&answer.bytes), forwarded, "{query}");
        assert_eq!(answer.headers[http::header::CONTENT_TYPE], "text/plain");
    }
    for (query, code) in [
        ("container=other", 400),
        ("previous=true", 400),
        ("tailLines=-1", 422),
        ("sinceSeconds=0", 422),
        ("limitBytes=0", 422),
        ("sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z", 422),
    ] {
        assert_eq!(api.get(&format!("{log}?{query}")).await.code.as_u16(), code, "{query}");
    }
}

#[tokio::test]
async fn what_has_no_effect_is_told_when_it_is_asked_for_and_not_again() {
    let api = Api::start().await;
    let container = json!({"name": "main", "image": "x:1", "workingDir": "/app"});
    let warned = |answer: &Answer| answer.headers.get_all("warning").iter().count();
    let made = api.post(PODS, &pod(&json!({"containers": [container]}))).await;
    assert_eq!(warned(&made), 1, "{made:?}");
    let said = made.headers["warning"].to_str().unwrap();
    assert!(said.starts_with("299 - \"spec.containers[0].workingDir: guests begin at /"), "{said}");
    let labelled = json!({"metadata": {"labels": {"a": "b"}}});
    assert_eq!(warned(&api.patch(&format!("{PODS}/p"), "merge", &labelled).await), 0);
    let changed = json!({"spec": {"activeDeadlineSeconds": 100}});
    assert_eq!(warned(&api.patch(&format!("{PODS}/p"), "merge", &changed).await), 1);
}
