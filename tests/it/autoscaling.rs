//! HorizontalPodAutoscalers: the API server and the controllers together; metrics are what the tests say.

use std::sync::Mutex;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::middleware::{Next, from_fn};
use axum::routing::get;
use edgeorc::controllers::Settings;
use http::header::WARNING;
use http::{Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::support::{Api, Cluster};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const SCALERS: &str = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";
const SCALERS_V1: &str = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers";
const SETS: &str = "/apis/apps/v1/namespaces/default/statefulsets";
const PODS: &str = "/api/v1/namespaces/default/pods";

/// What a metrics API answers to a path with its query.
type Metrics = fn(&str) -> Option<Value>;

/// Controllers that look every 50 ms, and get their metrics from `metrics`.
async fn start(metrics: Metrics) -> Cluster {
    let api = Api::start().await;
    let router = api.router.clone().layer(from_fn(move |request: Request<Body>, next: Next| {
        let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
        let answer = path.contains("metrics.k8s.io").then(|| metrics(&path));
        async move {
            let Some(answer) = answer else { return next.run(request).await };
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                "reason": "NotFound", "code": 404, "message": "nobody measures that"});
            let code = if answer.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
            let body = answer.unwrap_or(status).to_string();
            Response::builder().status(code).body(Body::from(body)).unwrap()
        }
    }));
    let client = edgeorc::client::in_process(router, "admin", &["system:masters"]);
    let autoscaler_interval = Duration::from_millis(50);
    Cluster::with(api, client, Settings { autoscaler_interval, ..Settings::default() })
}

/// A Deployment `name` of `replicas` whose pods serve, and ask for 100m of CPU in two containers.
async fn workload(cluster: &Cluster, name: &str, replicas: u32) {
    let container = |name: &str, cpu: &str| json!({"name": name, "image": "x", "resources": {"requests": {"cpu": cpu}}});
    let deployment = json!({"metadata": {"name": name}, "spec": {"replicas": replicas,
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers":
            [container("main", "60m"), container("side", "40m")]}}}});
    cluster.make(DEPLOYMENTS, &deployment).await;
    serve(cluster, name, replicas).await;
}

/// Waits for the pods of a workload, and lets them serve.
async fn serve(cluster: &Cluster, name: &str, replicas: u32) {
    let selected = format!("{PODS}?labelSelector=app%3D{name}");
    let wanted = usize::try_from(replicas).unwrap();
    let list = cluster
        .until_it(&selected, |list| list["items"].as_array().is_some_and(|i| i.len() == wanted))
        .await;
    for pod in list["items"].as_array().unwrap() {
        // Ready for long: what is measured since counts.
        let status = json!({"status": {"phase": "Running", "startTime": "2026-01-01T00:00:00Z",
            "conditions": [{"type": "Ready", "status": "True",
                "lastTransitionTime": "2026-01-01T00:00:01Z"}]}});
        let path = format!("{PODS}/{}/status", pod["metadata"]["name"].as_str().unwrap());
        let said = cluster.api.patch(&path, "merge", &status).await;
        assert_eq!(said.code, StatusCode::OK, "{said:?}");
    }
}

/// An autoscaler of the same name as its Deployment.
async fn scaler(cluster: &Cluster, name: &str, spec: &Value) -> String {
    let mut object = json!({"metadata": {"name": name}, "spec": {"maxReplicas": 10,
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}}});
    json_patch::merge(&mut object["spec"], spec);
    cluster.make(SCALERS, &object).await;
    format!("{SCALERS}/{name}")
}

/// Status and reason of a condition.
fn condition(object: &Value, name: &str) -> String {
    let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = all.into_iter().find(|condition| condition["type"] == name).unwrap_or_default();
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    format!("{} {}", text("status"), text("reason"))
}

fn replicas(name: &str) -> String {
    format!("{DEPLOYMENTS}/{name}")
}

#[tokio::test]
async fn without_metrics_bounds_hold_and_conditions_say_why_nothing_else_happens() {
    let cluster = start(|_| None).await;
    // None are wanted: somebody has switched it off.
    workload(&cluster, "off", 0).await;
    let off = scaler(&cluster, "off", &json!({"minReplicas": 2})).await;
    let is = |name: &'static str, wanted: &'static str| {
        move |object: &Value| condition(object, name) == wanted
    };
    cluster.until_it(&off, is("ScalingActive", "False ScalingDisabled")).await;
    assert_eq!(cluster.api.get(&replicas("off")).await.at("/spec/replicas"), json!(0));

    // Fewer and more than may be are brought into the bounds without a metric.
    workload(&cluster, "few", 1).await;
    let few = scaler(&cluster, "few", &json!({"minReplicas": 3})).await;
    cluster.until(&replicas("few"), "/spec/replicas", json!(3)).await;
    let said = cluster.until_it(&few, is("ScalingActive", "False FailedGetResourceMetric")).await;
    assert_eq!(condition(&said, "AbleToScale"), "True SucceededGetScale");
    workload(&cluster, "many", 4).await;
    scaler(&cluster, "many", &json!({"maxReplicas": 2})).await;
    cluster.until(&replicas("many"), "/spec/replicas", json!(2)).await;

    let nothing = scaler(&cluster, "nothing", &json!({})).await;
    cluster.until_it(&nothing, is("AbleToScale", "False FailedGetScale")).await;
    let events = "/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dfew";
    cluster
        .until_it(events, |list| {
            let words = "New size: 3; reason: Current number of replicas below Spec.MinReplicas";
            list["items"].as_array().is_some_and(|all| all.iter().any(|e| e["message"] == words))
        })
        .await;
    cluster.end().await;
}

/// Every API of metrics says that twice as much is used as should be.
fn doubled(path: &str) -> Option<Value> {
    let now = "2026-06-01T00:00:00Z";
    let value = |object: &str, value: &str| json!({"describedObject": {"name": object}, "timestamp": now, "value": value});
    let all = |items: Vec<Value>| Some(json!({"kind": "List", "items": items}));
    let (root, query) = path.split_once('?').unwrap_or((path, ""));
    match root {
        "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods" => {
            // The names of pods are not known here: they are asked for by the app's label.
            let names = NAMES.lock().unwrap().clone();
            let name = query.strip_prefix("labelSelector=app%3D").unwrap();
            let of_app = names.into_iter().filter(|pod| pod.starts_with(name));
            all(of_app
                .map(|pod| {
                    json!({"metadata": {"name": pod}, "timestamp": now, "window": "15s",
                        "containers": [{"name": "main", "usage": {"cpu": "90m"}},
                            {"name": "side", "usage": {"cpu": "10m"}}]})
                })
                .collect())
        }
        "/apis/custom.metrics.k8s.io/v1beta2/namespaces/default/pods/*/jobs" => {
            assert!(query.contains("metricLabelSelector=queue%3Da"), "{query}");
            let names = NAMES.lock().unwrap().clone();
            all(names.iter().map(|pod| value(pod, "20")).collect())
        }
        "/apis/custom.metrics.k8s.io/v1beta2/namespaces/default/services/front/rate" => {
            all(vec![value("front", "80")])
        }
        "/apis/custom.metrics.k8s.io/v1beta2/namespaces/default/ingresses.networking.k8s.io/front/rate" => {
            all(vec![value("front", "60")])
        }
        "/apis/custom.metrics.k8s.io/v1beta2/namespaces/default/metrics/rate" => {
            all(vec![value("default", "70")])
        }
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/default/queue" => {
            assert!(query.contains("labelSelector=region%3Deu"), "{query}");
            all(vec![json!({"value": "30"}), json!({"value": "10"})])
        }
        other => panic!("{other} was not expected"),
    }
}

/// Names of all pods there are.
static NAMES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Goal: each kind of metric is asked for where Kubernetes has it, and makes as many replicas as the
/// formula says; the status shows what was found.
#[allow(clippy::too_many_lines, reason = "a table")]
#[tokio::test]
async fn each_kind_of_metric_is_found_and_makes_replicas() {
    let cluster = start(doubled).await;
    let resource = |target: Value| json!({"name": "cpu", "target": target});
    let mut inside = resource(json!({"type": "Utilization", "averageUtilization": 75}));
    inside["container"] = json!("main");
    let metric =
        |name: &str, labels: Value| json!({"name": name, "selector": {"matchLabels": labels}});
    let of = |kind: &str, key: &str, source: Value| json!({"type": kind, key: source});
    let service = json!({"apiVersion": "v1", "kind": "Service", "name": "front"});
    let ingress = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "name": "front"});
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "name": "default"});
    for (name, metric, wanted, current) in [
        // 100m of 100m, and 50 % are wanted.
        (
            "share",
            of(
                "Resource",
                "resource",
                resource(json!({"type": "Utilization", "averageUtilization": 50})),
            ),
            4,
            json!({"averageUtilization": 100, "averageValue": "100m"}),
        ),
        (
            "amount",
            of(
                "Resource",
                "resource",
                resource(json!({"type": "AverageValue", "averageValue": "50m"})),
            ),
            4,
            json!({"averageValue": "100m"}),
        ),
        // 90m of 60m in one container.
        (
            "inside",
            of("ContainerResource", "containerResource", inside),
            4,
            json!({"averageUtilization": 150, "averageValue": "90m"}),
        ),
        (
            "each",
            of(
                "Pods",
                "pods",
                json!({"metric": metric("jobs", json!({"queue": "a"})),
                    "target": {"type": "AverageValue", "averageValue": "10"}}),
            ),
            4,
            json!({"averageValue": "20"}),
        ),
        // 80 for all, 40 are wanted for the two that serve.
        (
            "object",
            of(
                "Object",
                "object",
                json!({"describedObject": service, "metric": {"name": "rate"},
                    "target": {"type": "Value", "value": "40"}}),
            ),
            4,
            json!({"value": "80"}),
        ),
        (
            "portion",
            of(
                "Object",
                "object",
                json!({"describedObject": service, "metric": {"name": "rate"},
                    "target": {"type": "AverageValue", "averageValue": "25"}}),
            ),
            4,
            json!({"averageValue": "20"}),
        ),
        // Of a kind with a group, and of the namespace itself.
        (
            "route",
            of(
                "Object",
                "object",
                json!({"describedObject": ingress, "metric": {"name": "rate"},
                    "target": {"type": "Value", "value": "30"}}),
            ),
            4,
            json!({"value": "60"}),
        ),
        (
            "space",
            of(
                "Object",
                "object",
                json!({"describedObject": namespace, "metric": {"name": "rate"},
                    "target": {"type": "Value", "value": "35"}}),
            ),
            4,
            json!({"value": "70"}),
        ),
        // All series together.
        (
            "outside",
            of(
                "External",
                "external",
                json!({"metric": metric("queue", json!({"region": "eu"})),
                    "target": {"type": "AverageValue", "averageValue": "10"}}),
            ),
            4,
            json!({"averageValue": "10"}),
        ),
    ] {
        workload(&cluster, name, 2).await;
        let list = cluster.api.get(PODS).await.json();
        let names = list["items"].as_array().unwrap().iter();
        *NAMES.lock().unwrap() =
            names.map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect();
        // Those that are made now never serve: one step up is all there is.
        let spec = json!({"metrics": [metric], "maxReplicas": 4});
        let path = scaler(&cluster, name, &spec).await;
        cluster.until(&replicas(name), "/spec/replicas", json!(wanted)).await;
        let shown = |object: &Value| {
            let metric = object.pointer("/status/currentMetrics/0").and_then(Value::as_object);
            let inner = metric.and_then(|metric| metric.iter().find(|(key, _)| *key != "type"));
            inner.map(|(_, inner)| inner["current"].clone()).unwrap_or_default()
        };
        let said = cluster.until_it(&path, |object| shown(object) == current).await;
        assert_eq!(condition(&said, "ScalingActive"), "True ValidMetricFound", "{name}");
        assert_eq!(said["status"]["desiredReplicas"], json!(wanted), "{name}");
    }
    cluster.end().await;
}

/// The first pod of a StatefulSet uses 90m in its container, and 30m in its sidecar.
fn beside(path: &str) -> Option<Value> {
    const PATH: &str = "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods?labelSelector=app%3D";
    let name = path.strip_prefix(PATH)?;
    Some(json!({"kind": "PodMetricsList", "items": [{
        "metadata": {"name": format!("{name}-0")},
        "timestamp": "2026-06-01T00:00:00Z",
        "window": "15s",
        "containers": [{"name": "main", "usage": {"cpu": "90m"}},
            {"name": "proxy", "usage": {"cpu": "30m"}}],
    }]}))
}

/// Goal: sidecars count as what they use and as what they ask for; a container that asks for nothing is
/// named; what a metric showed keeps its place beside one that failed.
#[tokio::test]
async fn sidecars_count_and_one_without_a_request_is_named() {
    let cluster = start(beside).await;
    let resources = |cpu: &str| json!({"requests": {"cpu": cpu}});
    for (name, proxy) in [("full", resources("40m")), ("half", json!({}))] {
        let set = json!({"metadata": {"name": name}, "spec": {"replicas": 1, "serviceName": name,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {
                "containers": [{"name": "main", "image": "x", "resources": resources("60m")}],
                "initContainers": [{"name": "proxy", "image": "x", "restartPolicy": "Always",
                    "resources": proxy}]}}}});
        cluster.make(SETS, &set).await;
        serve(&cluster, name, 1).await;
    }
    let target = |percent: u32| json!({"type": "Utilization", "averageUtilization": percent});
    let all = json!({"type": "Resource", "resource": {"name": "cpu", "target": target(50)}});
    let unknown = json!({"type": "Pods", "pods": {"metric": {"name": "jobs"},
        "target": {"type": "AverageValue", "averageValue": "1"}}});
    let one = json!({"type": "ContainerResource", "containerResource": {"name": "cpu",
        "container": "proxy", "target": target(25)}});
    let metrics = json!([all, unknown, one]);
    let of = |name: &str| {
        let target = json!({"kind": "StatefulSet", "name": name});
        json!({"scaleTargetRef": target, "maxReplicas": 3, "metrics": metrics})
    };

    // 120m of 100m, and 30m of 40m.
    let full = scaler(&cluster, "full", &of("full")).await;
    let current = json!([
        {"type": "Resource", "resource": {"name": "cpu",
            "current": {"averageUtilization": 120, "averageValue": "120m"}}},
        {"type": ""},
        {"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "proxy",
            "current": {"averageUtilization": 75, "averageValue": "30m"}}},
    ]);
    let said = cluster.until_it(&full, |it| it["status"]["currentMetrics"] == current).await;
    assert_eq!(condition(&said, "ScalingActive"), "True ValidMetricFound");

    let half = scaler(&cluster, "half", &of("half")).await;
    let words = "missing request for cpu in container proxy of Pod half-0";
    let has_words = |it: &Value| it["status"]["conditions"].to_string().contains(words);
    let said = cluster.until_it(&half, has_words).await;
    assert_eq!(condition(&said, "ScalingActive"), "False FailedGetResourceMetric");
    cluster.end().await;
}

/// Goal: a client of `autoscaling/v1` patches what it sees there, and nothing else changes.
#[tokio::test]
async fn a_patch_of_v1_changes_its_own_field_and_keeps_all_else() {
    const FIELD: &str = "/spec/targetCPUUtilizationPercentage";
    let api = Api::start().await;
    let metric = |name: &str, percent: u32| {
        json!({"type": "Resource", "resource": {"name": name,
            "target": {"type": "Utilization", "averageUtilization": percent}}})
    };
    let (memory, cpu) = (metric("memory", 60), |percent: u32| metric("cpu", percent));
    let scaler = json!({"metadata": {"name": "web"}, "spec": {"maxReplicas": 5,
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        "behavior": {"scaleUp": {"selectPolicy": "Min"}}, "metrics": [memory, cpu(50)]}});
    let made = api.post(SCALERS, &scaler).await;
    assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
    let (v1, v2) = (format!("{SCALERS_V1}/web"), format!("{SCALERS}/web"));
    let percent = |percent: Value| json!({"spec": {"targetCPUUtilizationPercentage": percent}});
    for (media, patch, metrics) in [
        ("merge", percent(json!(30)), json!([memory, cpu(30)])),
        ("strategic-merge", percent(json!(40)), json!([memory, cpu(40)])),
        (
            "json",
            json!([{"op": "test", "path": FIELD, "value": 40},
                {"op": "replace", "path": FIELD, "value": 45}]),
            json!([memory, cpu(45)]),
        ),
        (
            "merge",
            json!({"apiVersion": "autoscaling/v1", "metadata": {"labels": {"a": "b"}}}),
            json!([memory, cpu(45)]),
        ),
        ("merge", percent(Value::Null), json!([memory])),
        ("strategic-merge", percent(json!(70)), json!([memory, cpu(70)])),
        ("json", json!([{"op": "remove", "path": FIELD}]), json!([memory])),
    ] {
        let said = api.patch(&format!("{v1}?fieldValidation=Strict"), media, &patch).await;
        assert_eq!(said.code, StatusCode::OK, "{patch}: {said:?}");
        assert_eq!(said.headers.get(WARNING), None, "{patch}");
        assert_eq!(said.at("/apiVersion"), "autoscaling/v1", "{patch}");
        let stored = api.get(&v2).await;
        assert_eq!(stored.at("/spec/metrics"), metrics, "{patch}");
        assert_eq!(stored.at("/spec/behavior"), made.at("/spec/behavior"), "{patch}");
        assert_eq!(stored.at("/metadata/annotations"), Value::Null, "{patch}");
    }
    let nowhere = json!([{"op": "replace", "path": "/spec/metrics/0/type", "value": "Pods"}]);
    let refused = api.patch(&v1, "json", &nowhere).await;
    assert_eq!(refused.code.as_u16(), 422, "v1 has no such field: {refused:?}");
}

#[tokio::test]
async fn v1_keeps_metrics_and_conditions_of_the_status_in_annotations() {
    let api = Api::start().await;
    let scaler = json!({"metadata": {"name": "web"}, "spec": {"maxReplicas": 5,
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}}});
    assert_eq!(api.post(SCALERS, &scaler).await.code, StatusCode::CREATED);
    let (v1, v2) = (format!("{SCALERS_V1}/web"), format!("{SCALERS}/web"));
    let current = json!([{"type": "Resource", "resource": {"name": "cpu",
        "current": {"averageUtilization": 40, "averageValue": "40m"}}}]);
    let conditions = json!([{"type": "AbleToScale", "status": "True",
        "reason": "ReadyForNewScale", "message": "m",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
    let status = json!({"status": {"currentReplicas": 2, "desiredReplicas": 2,
        "currentMetrics": current, "conditions": conditions}});
    let said = api.patch(&format!("{v2}/status"), "merge", &status).await;
    assert_eq!(said.code, StatusCode::OK, "{said:?}");

    let seen = api.get(&v1).await;
    assert_eq!(seen.at("/status/currentCPUUtilizationPercentage"), 40);
    assert_eq!(seen.at("/status/currentMetrics"), Value::Null);
    let kept = |key: &str| {
        let text =
            seen.at(&format!("/metadata/annotations/autoscaling.alpha.kubernetes.io~1{key}"));
        serde_json::from_str::<Value>(text.as_str().unwrap()).unwrap()
    };
    assert_eq!(kept("current-metrics"), current);
    assert_eq!(kept("conditions"), conditions);

    // A status that is written through v1 comes back whole.
    let status = json!({"status": {"currentReplicas": 3}});
    let said = api.patch(&format!("{v1}/status"), "merge", &status).await;
    assert_eq!(said.code, StatusCode::OK, "{said:?}");
    let put = api.put(&format!("{v1}/status"), &said.json()).await;
    assert_eq!(put.code, StatusCode::OK, "{put:?}");
    let stored = api.get(&v2).await;
    assert_eq!(stored.at("/status/currentReplicas"), 3);
    assert_eq!(stored.at("/status/currentMetrics"), current);
    assert_eq!(stored.at("/status/conditions"), conditions);
}

/// What the node `one` has seen.
const SEEN: &str = r#"{
    "pods": [{"namespace": "default", "name": "a", "millirequestsPerSecond": 1500},
        {"namespace": "other", "name": "b", "millirequestsPerSecond": 9000}],
    "services": [{"namespace": "default", "name": "front", "millirequestsPerSecond": 2500}]}"#;

#[tokio::test]
async fn requests_per_second_are_asked_of_the_nodes_and_told_by_pod_and_service() {
    let api = Api::start_with_node(Router::new().route("/stats/traffic", get(async || SEEN))).await;
    // Nobody answers for `two`: what it saw is missing.
    for node in ["one", "two"] {
        let made = api.post("/api/v1/nodes", &json!({"metadata": {"name": node}})).await;
        assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
    }
    for (name, app, phase) in [
        ("a", "web", "Running"),
        ("b", "web", "Running"),
        ("c", "web", "Pending"),
        ("d", "db", "Running"),
    ] {
        let pod = json!({"metadata": {"name": name, "labels": {"app": app}},
            "spec": {"containers": [{"name": "main", "image": "x:1"}]}});
        assert_eq!(api.post(PODS, &pod).await.code, StatusCode::CREATED);
        let status = json!({"status": {"phase": phase}});
        let said = api.patch(&format!("{PODS}/{name}/status"), "merge", &status).await;
        assert_eq!(said.code, StatusCode::OK, "{said:?}");
    }
    let service = json!({"metadata": {"name": "front"}, "spec": {"ports": [{"port": 80}]}});
    let made = api.post("/api/v1/namespaces/default/services", &service).await;
    assert_eq!(made.code, StatusCode::CREATED, "{made:?}");

    let path = |of: &str| format!("/apis/custom.metrics.k8s.io/v1beta2/namespaces/default/{of}");
    let told = |list: Value| -> Vec<String> {
        assert_eq!(list["kind"], "MetricValueList", "{list}");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let one = |item: &Value| {
            assert_eq!(item["metric"]["name"], "requests-per-second");
            let object = &item["describedObject"];
            format!("{} {} {}", text(&object["kind"]), text(&object["name"]), text(&item["value"]))
        };
        list["items"].as_array().unwrap().iter().map(one).collect()
    };
    for (of, wanted) in [
        // One that is not asked is there with nothing; one that does not run is not.
        ("pods/*/requests-per-second?labelSelector=app%3Dweb", vec!["Pod a 1500m", "Pod b 0m"]),
        ("pods/*/requests-per-second", vec!["Pod a 1500m", "Pod b 0m", "Pod d 0m"]),
        ("pods/a/requests-per-second", vec!["Pod a 1500m"]),
        ("services/front/requests-per-second", vec!["Service front 2500m"]),
    ] {
        let answer = api.get(&path(of)).await;
        assert_eq!(answer.code, StatusCode::OK, "{of}: {answer:?}");
        assert_eq!(told(answer.json()), wanted, "{of}");
    }
    for of in [
        "services/none/requests-per-second",
        "services/front/errors",
        "ingresses.networking.k8s.io/front/requests-per-second",
        "metrics/requests-per-second",
    ] {
        let answer = api.get(&path(of)).await;
        assert_eq!(answer.code, StatusCode::NOT_FOUND, "{of}: {answer:?}");
    }
    let write = api.post(&path("services/front/requests-per-second"), &json!({})).await;
    assert_eq!(write.code, StatusCode::METHOD_NOT_ALLOWED, "{write:?}");
}
