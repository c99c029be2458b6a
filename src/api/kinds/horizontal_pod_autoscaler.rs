//! HorizontalPodAutoscaler.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::json::{child, int_at, is_unset, items_at, set_default, set_default_text, text_at};
use crate::api::kinds::autoscaler_rules;
use crate::api::kinds::workload::number;
use crate::api::meta;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;

pub(super) const RESOURCE: Resource = Resource {
    group: "autoscaling",
    version: "v2",
    plural: "horizontalpodautoscalers",
    singular: "horizontalpodautoscaler",
    kind: "HorizontalPodAutoscaler",
    list_kind: "HorizontalPodAutoscalerList",
    description: "Keeps as many replicas as a measured load asks for.",
    short_names: &["hpa"],
    categories: &["all"],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: true,
    has_scale: false,
    has_generation: false,
    subresources: &[],
    columns: &[
        Column::NAME,
        Column::text("Reference"),
        Column::text("Targets"),
        Column::text("MinPods"),
        Column::text("MaxPods"),
        Column::integer("Replicas"),
        Column::AGE,
    ],
    field_selectors: &[],
    strategy: Strategy {
        default,
        validate: autoscaler_rules::validate,
        cells,
        ..Strategy::plain(typed::<HorizontalPodAutoscaler>)
    },
};

/// CPU that pods should use, in percent of what they ask for, when nothing is said.
const CPU_PERCENT: i64 = 80;
/// Metrics that a row names; the rest are counted.
const METRICS_SHOWN_MAX: usize = 2;

fn default(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    set_default(spec, "minReplicas", 1);
    if items_at(spec, "/metrics").is_empty() {
        let target = json!({"type": "Utilization", "averageUtilization": CPU_PERCENT});
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": target}});
        crate::api::json::set(spec, "metrics", json!([cpu]));
    }
    if is_unset(spec.get("behavior")) {
        return;
    }
    let Some(behavior) = child(spec, "behavior") else { return };
    let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
    let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
    if let Some(up) = child(behavior, "scaleUp") {
        set_default(up, "stabilizationWindowSeconds", 0);
        set_default_text(up, "selectPolicy", "Max");
        set_default(up, "policies", json!([pods, percent]));
    }
    if let Some(down) = child(behavior, "scaleDown") {
        set_default_text(down, "selectPolicy", "Max");
        set_default(down, "policies", json!([percent]));
    }
}

/// What is measured and what it should be, as in `cpu: 12%/80%`.
fn target(spec: &Value, status: Option<&Value>) -> String {
    let (key, name) = match text_at(spec, "/type") {
        "Resource" => ("resource", text_at(spec, "/resource/name").to_owned()),
        "ContainerResource" => {
            ("containerResource", text_at(spec, "/containerResource/name").to_owned())
        }
        "Pods" => ("pods", String::new()),
        "Object" => ("object", String::new()),
        "External" => ("external", String::new()),
        _ => return "<unknown type>".to_owned(),
    };
    let wanted = |field: &str| spec.pointer(&format!("/{key}/target/{field}"));
    let found = |field: &str| status?.pointer(&format!("/{key}/current/{field}"));
    let unknown = || "<unknown>".to_owned();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let shown = if let Some(percent) = wanted("averageUtilization") {
        let found = found("averageUtilization").map_or_else(unknown, |n| format!("{n}%"));
        format!("{found}/{percent}%")
    } else if let Some(average) = wanted("averageValue").filter(|value| !value.is_null()) {
        let found = found("averageValue").map_or_else(unknown, text);
        let suffix = if key == "object" || key == "external" { " (avg)" } else { "" };
        format!("{found}/{}{suffix}", text(average))
    } else {
        let found = found("value").map_or_else(unknown, text);
        format!("{found}/{}", wanted("value").map_or_else(unknown, text))
    };
    if name.is_empty() { shown } else { format!("{name}: {shown}") }
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let metrics = items_at(object, "/spec/metrics");
    let current = items_at(object, "/status/currentMetrics");
    let shown: Vec<String> = metrics
        .iter()
        .enumerate()
        .take(METRICS_SHOWN_MAX)
        .map(|(at, metric)| target(metric, current.get(at)))
        .collect();
    let targets = match metrics.len() {
        0 => "<none>".to_owned(),
        n if n > METRICS_SHOWN_MAX => {
            format!("{} + {} more...", shown.join(", "), n - METRICS_SHOWN_MAX)
        }
        _ => shown.join(", "),
    };
    let reference = |key| text_at(object, key);
    let (kind, name) =
        (reference("/spec/scaleTargetRef/kind"), reference("/spec/scaleTargetRef/name"));
    let min = int_at(object, "/spec/minReplicas");
    vec![
        json!(meta::name(object)),
        json!(format!("{kind}/{name}")),
        json!(targets),
        json!(min.map_or_else(|| "<unset>".to_owned(), |min| min.to_string())),
        json!(number(object, "/spec/maxReplicas").to_string()),
        json!(number(object, "/status/currentReplicas")),
        json!(age(object, now)),
    ]
}

/// Where `autoscaling/v1` keeps what it has no field for, in the words of v2.
const KEPT: [(&str, &str); 4] = [
    ("autoscaling.alpha.kubernetes.io/metrics", "/spec/metrics"),
    ("autoscaling.alpha.kubernetes.io/behavior", "/spec/behavior"),
    ("autoscaling.alpha.kubernetes.io/current-metrics", "/status/currentMetrics"),
    ("autoscaling.alpha.kubernetes.io/conditions", "/status/conditions"),
];

/// Makes an object of `autoscaling/v1`, or what is applied to one, one of v2.
pub(in crate::api) fn from_v1(object: &mut Value) {
    let mut kept = take_kept(object);
    if let Some(spec) = object.get_mut("spec").filter(|spec| spec.is_object()) {
        let percent = crate::api::json::remove(spec, "targetCPUUtilizationPercentage");
        let others = kept.remove("/spec/metrics");
        let mut metrics = others.and_then(|others| others.as_array().cloned()).unwrap_or_default();
        if let Some(percent) = percent.filter(|percent| !percent.is_null()) {
            let target = json!({"type": "Utilization", "averageUtilization": percent});
            let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": target}});
            metrics.push(cpu);
        }
        if !metrics.is_empty() {
            crate::api::json::set(spec, "metrics", metrics);
        }
        if let Some(behavior) = kept.remove("/spec/behavior") {
            crate::api::json::set(spec, "behavior", behavior);
        }
    }
    if let Some(status) = object.get_mut("status").filter(|status| status.is_object()) {
        let percent = crate::api::json::remove(status, "currentCPUUtilizationPercentage");
        let used = percent.filter(|percent| !percent.is_null()).map(|percent| {
            let current = json!({"averageUtilization": percent});
            json!([{"type": "Resource", "resource": {"name": "cpu", "current": current}}])
        });
        // What was kept says more: the amount, and all other metrics.
        if let Some(current) = kept.remove("/status/currentMetrics").or(used) {
            crate::api::json::set(status, "currentMetrics", current);
        }
        if let Some(conditions) = kept.remove("/status/conditions") {
            crate::api::json::set(status, "conditions", conditions);
        }
    }
}

/// Takes what [`to_v1`] keeps in annotations, by its place in v2.
fn take_kept(object: &mut Value) -> BTreeMap<&'static str, Value> {
    let mut kept = BTreeMap::new();
    let Some(metadata) = object.get_mut("metadata") else { return kept };
    let Some(annotations) = metadata.get_mut("annotations") else { return kept };
    let mut is_changed = false;
    for (key, pointer) in KEPT {
        let Some(text) = crate::api::json::remove(annotations, key) else { continue };
        is_changed = true;
        if let Some(Ok(value)) = text.as_str().map(serde_json::from_str::<Value>) {
            kept.insert(pointer, value);
        }
    }
    if is_changed && crate::api::json::is_empty(Some(&*annotations)) {
        crate::api::json::remove(metadata, "annotations");
    }
    kept
}

/// Shows an object of v2 as one of `autoscaling/v1`.
pub(in crate::api) fn to_v1(object: &mut Value) {
    let Some(spec) = object.get("spec").filter(|spec| spec.is_object()) else { return };
    let is_cpu = |metric: &&Value| {
        text_at(metric, "/resource/name") == "cpu"
            && metric.pointer("/resource/target/averageUtilization").is_some()
    };
    let metrics = items_at(spec, "/metrics");
    let percent = metrics.iter().find(is_cpu);
    let percent =
        percent.and_then(|cpu| cpu.pointer("/resource/target/averageUtilization").cloned());
    let others: Vec<Value> = metrics.iter().filter(|metric| !is_cpu(metric)).cloned().collect();
    let current = items_at(object, "/status/currentMetrics").iter();
    let used = current.filter(|one| text_at(one, "/resource/name") == "cpu");
    let used: Option<Value> =
        used.filter_map(|one| one.pointer("/resource/current/averageUtilization").cloned()).next();
    let mut kept = Vec::new();
    for (key, pointer) in KEPT {
        let value = match pointer {
            "/spec/metrics" => Some(json!(others)),
            other => object.pointer(other).cloned(),
        };
        let is_empty = |value: &Value| crate::api::json::is_empty(Some(value));
        if let Some(value) = value.filter(|value| !is_empty(value)) {
            kept.push((key, value.to_string()));
        }
    }
    // What stands there already was not kept here, and would be taken for it on the way back.
    take_kept(object);
    if let Some(spec) = object.get_mut("spec") {
        crate::api::json::remove(spec, "metrics");
        crate::api::json::remove(spec, "behavior");
        if let Some(percent) = percent {
            crate::api::json::set(spec, "targetCPUUtilizationPercentage", percent);
        }
    }
    if let Some(status) = object.get_mut("status").filter(|status| status.is_object()) {
        crate::api::json::remove(status, "currentMetrics");
        crate::api::json::remove(status, "conditions");
        if let Some(used) = used {
            crate::api::json::set(status, "currentCPUUtilizationPercentage", used);
        }
    }
    if kept.is_empty() {
        return;
    }
    let annotations = child(object, "metadata").and_then(|metadata| child(metadata, "annotations"));
    if let Some(annotations) = annotations {
        for (key, text) in kept {
            crate::api::json::set(annotations, key, text);
        }
    }
}

/// An autoscaler as it is created, for tests of other rules.
#[cfg(test)]
pub(super) fn completed(spec: &Value) -> Value {
    let mut object = json!({"metadata": {"name": "web", "namespace": "default"}, "spec": {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        "maxReplicas": 5}});
    json_patch::merge(&mut object, &json!({ "spec": spec }));
    default(&mut object);
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_metrics_it_is_cpu_and_behavior_has_the_usual_rules() {
        let object =
            completed(&json!({"behavior": {"scaleDown": {"stabilizationWindowSeconds": 5}}}));
        assert_eq!(int_at(&object, "/spec/minReplicas"), Some(1));
        let percent = "/spec/metrics/0/resource/target/averageUtilization";
        assert_eq!(int_at(&object, percent), Some(80));
        let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
        let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
        let up = json!({"stabilizationWindowSeconds": 0, "selectPolicy": "Max",
            "policies": [pods, percent]});
        let down = json!({"selectPolicy": "Max", "policies": [percent]});
        let mut said = down.clone();
        crate::api::json::set(&mut said, "stabilizationWindowSeconds", 5);
        assert_eq!(object["spec"]["behavior"], json!({"scaleUp": up, "scaleDown": said}));
        // No window down is five minutes, to the controller.
        let object = completed(&json!({"behavior": {"scaleUp": {"policies": [percent]}}}));
        let mut said = up.clone();
        crate::api::json::set(&mut said, "policies", json!([percent]));
        assert_eq!(object["spec"]["behavior"], json!({"scaleUp": said, "scaleDown": down}));
        assert_eq!(completed(&json!({})).pointer("/spec/behavior"), None);
    }

    #[test]
    fn what_v1_has_no_field_for_makes_the_round_trip() {
        let metrics = json!([
            {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
            {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}},
        ]);
        let v2 = completed(
            &json!({"metrics": metrics, "behavior": {"scaleUp": {"selectPolicy": "Min"}}}),
        );
        let mut v1 = v2.clone();
        to_v1(&mut v1);
        assert_eq!(int_at(&v1, "/spec/targetCPUUtilizationPercentage"), Some(50));
        assert_eq!(v1.pointer("/spec/metrics"), None);
        from_v1(&mut v1);
        assert_eq!(v1, v2);
    }

    #[test]
    fn what_v1_has_no_field_for_in_the_status_makes_the_round_trip() {
        let cpu =
            json!({"name": "cpu", "current": {"averageUtilization": 40, "averageValue": "40m"}});
        let status = json!({"currentReplicas": 2, "desiredReplicas": 2,
            "currentMetrics": [{"type": "Resource", "resource": cpu}, {"type": ""}],
            "conditions": [{"type": "AbleToScale", "status": "True", "reason": "ReadyForNewScale"}]});
        let mut v2 = completed(&json!({}));
        crate::api::json::set(&mut v2, "status", status.clone());
        let mut v1 = v2.clone();
        to_v1(&mut v1);
        let shown = json!({"currentReplicas": 2, "desiredReplicas": 2,
            "currentCPUUtilizationPercentage": 40});
        assert_eq!(v1["status"], shown);
        for (key, field) in [("current-metrics", "currentMetrics"), ("conditions", "conditions")] {
            let key = format!("autoscaling.alpha.kubernetes.io/{key}");
            let kept = v1["metadata"]["annotations"][key.as_str()].as_str().unwrap();
            assert_eq!(serde_json::from_str::<Value>(kept).unwrap(), status[field]);
        }
        from_v1(&mut v1);
        assert_eq!(v1, v2);
        // A client of v1 alone says less.
        let mut alone = json!({"status": {"currentCPUUtilizationPercentage": 40}});
        from_v1(&mut alone);
        let cpu = json!({"name": "cpu", "current": {"averageUtilization": 40}});
        let wanted = json!({"currentMetrics": [{"type": "Resource", "resource": cpu}]});
        assert_eq!(alone, json!({"status": wanted}));
    }

    #[test]
    fn what_stands_in_annotations_of_v2_is_not_taken_for_what_v1_keeps() {
        let mut v2 = completed(&json!({}));
        let annotations = json!({"a": "b", "autoscaling.alpha.kubernetes.io/metrics": "[{}]"});
        crate::api::json::set(v2.get_mut("metadata").unwrap(), "annotations", annotations);
        let metrics = v2["spec"]["metrics"].clone();
        to_v1(&mut v2);
        assert_eq!(v2["metadata"]["annotations"], json!({"a": "b"}));
        from_v1(&mut v2);
        assert_eq!(v2["metadata"]["annotations"], json!({"a": "b"}));
        assert_eq!(v2["spec"]["metrics"], metrics);
    }

    #[test]
    fn what_is_applied_to_v1_changes_the_same_of_v2() {
        let mut applied = json!({"spec": {"targetCPUUtilizationPercentage": 30, "maxReplicas": 9}});
        from_v1(&mut applied);
        let percent = "/spec/metrics/0/resource/target/averageUtilization";
        assert_eq!(int_at(&applied, percent), Some(30));
        let mut other = json!({"spec": {"maxReplicas": 9}});
        from_v1(&mut other);
        assert_eq!(other, json!({"spec": {"maxReplicas": 9}}));
    }

    #[test]
    fn a_row_tells_what_is_and_what_should_be() {
        let mut object = completed(&json!({}));
        assert_eq!(
            cells(&object, Timestamp::UNIX_EPOCH)[1..6],
            [
                json!("Deployment/web"),
                json!("cpu: <unknown>/80%"),
                json!("1"),
                json!("5"),
                json!(0)
            ]
        );
        let current = json!([{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 12}}}]);
        crate::api::json::set(
            &mut object,
            "status",
            json!({"currentMetrics": current, "currentReplicas": 2}),
        );
        assert_eq!(cells(&object, Timestamp::UNIX_EPOCH)[2], "cpu: 12%/80%");
        let memory = json!({"name": "memory", "target": {"averageUtilization": 50}});
        let cpu = object["spec"]["metrics"][0].clone();
        let two = json!([cpu, {"type": "Resource", "resource": memory}]);
        crate::api::json::set(object.get_mut("spec").unwrap(), "metrics", two);
        let memory = json!({"name": "memory", "current": {"averageUtilization": 7}});
        let current = json!([{"type": ""}, {"type": "Resource", "resource": memory}]);
        let status = json!({"currentMetrics": current});
        crate::api::json::set(&mut object, "status", status);
        let row = cells(&object, Timestamp::UNIX_EPOCH);
        assert_eq!(row[2], "cpu: <unknown>/80%, memory: 7%/50%", "the first one failed");
        let rate = completed(
            &json!({"metrics": [{"type": "Object", "object": {"describedObject": {},
            "metric": {"name": "requests-per-second"}, "target": {"type": "AverageValue", "averageValue": "10"}}}]}),
        );
        assert_eq!(cells(&rate, Timestamp::UNIX_EPOCH)[2], "<unknown>/10 (avg)");
    }
}
