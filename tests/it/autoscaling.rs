//! HorizontalPodAutoscalers: the API server and the controllers together; metrics are what the tests say.

use std::sync::Mutex;
use std::time::Duration;

use axum::body::Body;
use axum::middleware::{Next, from_fn};
use edgeorc::controllers::Settings;
use http::{Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::support::{Api, Cluster};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const SCALERS: &str = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";
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
