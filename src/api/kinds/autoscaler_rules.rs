//! What a HorizontalPodAutoscaler must hold to.

use serde_json::{Value, json};

use crate::api::field_error::{Errors, FieldError};
use crate::api::json::{int_at, is_unset, items_at, text_at};
use crate::api::quantity::Quantity;

/// Longest window of stabilization, in seconds.
const WINDOW_SECONDS_MAX: i64 = 3600;
/// Longest period of a policy, in seconds.
const PERIOD_SECONDS_MAX: i64 = 1800;

/// Checks an autoscaler.
pub(super) fn validate(object: &Value, errors: &mut Errors) {
    let spec = object.get("spec").unwrap_or(&Value::Null);
    for key in ["kind", "name"] {
        if text_at(spec, &format!("/scaleTargetRef/{key}")).is_empty() {
            errors.required(format!("spec.scaleTargetRef.{key}"));
        }
    }
    let (min, max) = (int_at(spec, "/minReplicas").unwrap_or(1), int_at(spec, "/maxReplicas"));
    let metrics = items_at(spec, "/metrics");
    if min < 0 {
        errors.invalid("spec.minReplicas", &json!(min), "must be greater than or equal to 0");
    }
    match max {
        Some(max) if max < 1 => {
            errors.invalid("spec.maxReplicas", &json!(max), "must be greater than 0");
        }
        Some(max) if max < min => {
            let detail = "must be greater than or equal to `minReplicas`";
            errors.invalid("spec.maxReplicas", &json!(max), detail);
        }
        _ => {}
    }
    // Without pods only what is not measured at pods can ask for the first one.
    let is_outer = |metric: &Value| matches!(text_at(metric, "/type"), "Object" | "External");
    if min == 0 && !metrics.iter().any(is_outer) {
        let detail = "must specify at least one Object or External metric to support scaling to zero replicas";
        errors.forbidden("spec.metrics", detail);
    }
    for (index, metric) in metrics.iter().enumerate() {
        validate_metric(metric, &format!("spec.metrics[{index}]"), errors);
    }
    for direction in ["scaleUp", "scaleDown"] {
        if let Some(rules) = spec.pointer(&format!("/behavior/{direction}")) {
            validate_rules(rules, &format!("spec.behavior.{direction}"), errors);
        }
    }
}

fn validate_metric(metric: &Value, path: &str, errors: &mut Errors) {
    let kind = text_at(metric, "/type");
    let key = match kind {
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        "Pods" => "pods",
        "Object" => "object",
        "External" => "external",
        "" => return errors.required(format!("{path}.type")),
        _ => {
            let all = ["ContainerResource", "External", "Object", "Pods", "Resource"];
            let value = metric.get("type").unwrap_or(&Value::Null);
            return errors.one_of(format!("{path}.type"), value, &all);
        }
    };
    let Some(source) = metric.get(key).filter(|source| source.is_object()) else {
        let detail = "must populate information for the given metric source";
        return errors.push(FieldError::required(format!("{path}.{key}"), detail));
    };
    let path = format!("{path}.{key}");
    let required: &[&str] = match key {
        "resource" => &["/name"],
        "containerResource" => &["/name", "/container"],
        "object" => &["/metric/name", "/describedObject/kind", "/describedObject/name"],
        _ => &["/metric/name"],
    };
    for pointer in required {
        if text_at(source, pointer).is_empty() {
            errors.required(format!("{path}{}", pointer.replace('/', ".")));
        }
    }
    let allowed: &[&str] = match key {
        "resource" | "containerResource" => &["averageUtilization", "averageValue"],
        "pods" => &["averageValue"],
        _ => &["value", "averageValue"],
    };
    validate_target(source, allowed, &format!("{path}.target"), errors);
}

fn validate_target(source: &Value, allowed: &[&str], path: &str, errors: &mut Errors) {
    let target = source.get("target").unwrap_or(&Value::Null);
    let kind = target.get("type").unwrap_or(&Value::Null);
    errors.one_of(format!("{path}.type"), kind, &["Utilization", "Value", "AverageValue"]);
    let found: Vec<&&str> = allowed.iter().filter(|key| !is_unset(target.get(**key))).collect();
    match found.as_slice() {
        [] => {
            let detail = format!("must set either of {}", allowed.join(" or "));
            errors.push(FieldError::required(path, &detail));
        }
        [_] => {}
        [_, second, ..] => {
            errors.forbidden(format!("{path}.{second}"), "may not set more than one kind of target")
        }
    }
    for key in ["averageUtilization", "averageValue", "value"] {
        let Some(value) = target.get(key).filter(|value| !value.is_null()) else { continue };
        let field = format!("{path}.{key}");
        if !allowed.contains(&key) {
            errors.forbidden(field, "may not be set for this kind of metric");
            continue;
        }
        let is_positive = match value.as_str() {
            Some(text) => text.parse::<Quantity>().is_ok_and(|quantity| quantity.nanos() > 0),
            None => value.as_i64().is_some_and(|n| n > 0),
        };
        if !is_positive {
            errors.invalid(field, value, "must be positive");
        }
    }
}

fn validate_rules(rules: &Value, path: &str, errors: &mut Errors) {
    if let Some(window) = int_at(rules, "/stabilizationWindowSeconds")
        && !(0..=WINDOW_SECONDS_MAX).contains(&window)
    {
        let detail = format!("must be between 0 and {WINDOW_SECONDS_MAX}");
        errors.invalid(format!("{path}.stabilizationWindowSeconds"), &json!(window), &detail);
    }
    if let Some(select) = rules.get("selectPolicy").filter(|select| !select.is_null()) {
        errors.one_of(format!("{path}.selectPolicy"), select, &["Disabled", "Max", "Min"]);
    }
    let policies = items_at(rules, "/policies");
    if policies.is_empty() && rules.get("policies").is_some() {
        let detail = "must specify at least one Policy";
        errors.push(FieldError::required(format!("{path}.policies"), detail));
    }
    for (index, policy) in policies.iter().enumerate() {
        let path = format!("{path}.policies[{index}]");
        let kind = policy.get("type").unwrap_or(&Value::Null);
        errors.one_of(format!("{path}.type"), kind, &["Percent", "Pods"]);
        let value = int_at(policy, "/value").unwrap_or(0);
        if value <= 0 {
            errors.invalid(format!("{path}.value"), &json!(value), "must be greater than zero");
        }
        let period = int_at(policy, "/periodSeconds").unwrap_or(0);
        if !(1..=PERIOD_SECONDS_MAX).contains(&period) {
            let detail = format!("must be between 1 and {PERIOD_SECONDS_MAX}");
            errors.invalid(format!("{path}.periodSeconds"), &json!(period), &detail);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::kinds::horizontal_pod_autoscaler::completed;

    fn refusals(spec: &Value) -> String {
        let mut errors = Errors::default();
        validate(&completed(spec), &mut errors);
        errors.into_vec().iter().map(|error| format!("{error}\n")).collect()
    }

    fn rate(target: &Value) -> Value {
        json!({"type": "Object", "object": {"metric": {"name": "requests-per-second"},
            "describedObject": {"kind": "Service", "name": "web"}, "target": target}})
    }

    #[test]
    fn what_is_right_is_taken() {
        let average = json!({"type": "AverageValue", "averageValue": "10"});
        for spec in [
            json!({}),
            json!({"minReplicas": 0, "metrics": [rate(&average)]}),
            json!({"metrics": [rate(&json!({"type": "Value", "value": "10k"}))]}),
            json!({"behavior": {"scaleDown": {"selectPolicy": "Disabled"}}}),
        ] {
            assert_eq!(refusals(&spec), "", "{spec}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        let cpu = |target: Value| json!({"metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]});
        for (spec, part) in [
            (
                json!({"maxReplicas": 0}),
                "spec.maxReplicas: Invalid value: 0: must be greater than 0",
            ),
            (json!({"minReplicas": 6}), "must be greater than or equal to `minReplicas`"),
            (json!({"minReplicas": -1}), "spec.minReplicas: Invalid value"),
            (
                json!({"minReplicas": 0}),
                "spec.metrics: Forbidden: must specify at least one Object",
            ),
            (json!({"scaleTargetRef": {"name": ""}}), "spec.scaleTargetRef.name: Required value"),
            (json!({"metrics": [{"type": "Some"}]}), "spec.metrics[0].type: Unsupported value"),
            (json!({"metrics": [{"type": "Pods"}]}), "spec.metrics[0].pods: Required value"),
            (cpu(json!({"type": "Utilization"})), "target: Required value: must set either of"),
            (cpu(json!({"type": "Utilization", "averageUtilization": 0})), "must be positive"),
            (cpu(json!({"type": "Value", "value": "1"})), "target.value: Forbidden"),
            (
                cpu(json!({"type": "Utilization", "averageUtilization": 1, "averageValue": "1"})),
                "more than one kind",
            ),
            (
                json!({"behavior": {"scaleUp": {"policies": []}}}),
                "scaleUp.policies: Required value",
            ),
            (
                json!({"behavior": {"scaleUp": {"stabilizationWindowSeconds": 3601}}}),
                "between 0 and 3600",
            ),
            (
                json!({"behavior": {"scaleDown": {"policies": [{"type": "Pods", "value": 0, "periodSeconds": 1801}]}}}),
                "periodSeconds: Invalid value",
            ),
        ] {
            let found = refusals(&spec);
            assert!(found.contains(part), "{part:?} not in {found:?}");
        }
    }
}
