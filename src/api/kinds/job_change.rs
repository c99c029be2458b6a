//! What of a Job may change once it is there.

use serde_json::Value;

use crate::api::field_error::{Errors, FieldError};
use crate::api::json::{copy_key, is_empty, is_true, items_at, set, text_at};
use crate::api::kinds::job_rules::is_indexed;
use crate::api::kinds::pod_spec;

/// Parts of a Job's spec that never change.
const IMMUTABLE: [&str; 6] = [
    "completionMode",
    "selector",
    "podFailurePolicy",
    "backoffLimitPerIndex",
    "managedBy",
    "successPolicy",
];
/// Where its pods run: may change before any has been made.
const DIRECTIVES: [&str; 4] = ["nodeSelector", "affinity", "tolerations", "schedulingGates"];

/// Checks that only how fast and how long a Job runs changes.
pub(super) fn validate(old: &Value, new: &Value, errors: &mut Errors) {
    let (before, after) = (spec(old), spec(new));
    for key in IMMUTABLE {
        if !is_same(before.get(key), after.get(key)) {
            let value = after.get(key).unwrap_or(&Value::Null);
            errors.invalid(format!("spec.{key}"), value, "field is immutable");
        }
    }
    validate_completions(before, after, errors);
    validate_template(old, before, after, errors);
}

fn spec(object: &Value) -> &Value {
    object.get("spec").unwrap_or(&Value::Null)
}

fn is_same(a: Option<&Value>, b: Option<&Value>) -> bool {
    let is_none = |value: Option<&Value>| value.is_none_or(Value::is_null);
    a == b || (is_none(a) && is_none(b))
}

/// An Indexed Job may grow and shrink: its completions follow its parallelism.
fn validate_completions(before: &Value, after: &Value, errors: &mut Errors) {
    let (was, is) = (before.get("completions"), after.get("completions"));
    if is_same(was, is) {
        return;
    }
    let value = is.unwrap_or(&Value::Null);
    if !is_indexed(after) {
        errors.invalid("spec.completions", value, "field is immutable");
    } else if value.is_null() {
        let detail = "when completion mode is Indexed";
        errors.push(FieldError::required("spec.completions", detail));
    } else if is != after.get("parallelism") {
        errors.invalid(
            "spec.completions",
            value,
            "can only be modified in tandem with spec.parallelism",
        );
    }
}

fn validate_template(old: &Value, before: &Value, after: &Value, errors: &mut Errors) {
    let mut was = before.get("template").cloned().unwrap_or_default();
    let mut is = after.get("template").cloned().unwrap_or_default();
    // One that was stored by an older server may lack what is filled in today.
    pod_spec::default(&mut was);
    pod_spec::default(&mut is);
    let is_waiting = is_true(before, "/suspend") && text_at(old, "/status/startTime").is_empty();
    if is_waiting {
        for key in ["labels", "annotations"] {
            if let (Some(from), Some(to)) = (was.get("metadata"), is.get_mut("metadata")) {
                copy_key(from, to, key);
            }
        }
        if let (Some(from), Some(to)) = (was.get("spec"), is.get_mut("spec")) {
            for key in DIRECTIVES {
                copy_key(from, to, key);
            }
        }
    }
    if without_empty(&was) != without_empty(&is) {
        let value = after.get("template").unwrap_or(&Value::Null);
        errors.invalid("spec.template", value, "field is immutable");
    }
    let gates = |spec: &Value| {
        let gates = items_at(spec, "/template/spec/schedulingGates").iter();
        gates.map(|gate| text_at(gate, "/name").to_owned()).collect::<Vec<_>>()
    };
    let had = gates(before);
    if is_waiting && gates(after).iter().any(|gate| !had.contains(gate)) {
        errors.forbidden("spec.template.spec.schedulingGates", "only deletion is allowed");
    }
}

/// The template without keys that say nothing.
fn without_empty(template: &Value) -> Value {
    let mut template = template.clone();
    for key in ["metadata", "spec"] {
        if let Some(part) = template.get(key) {
            let mut part = part.clone();
            if let Some(map) = part.as_object_mut() {
                map.retain(|_, value| !is_empty(Some(value)));
            }
            set(&mut template, key, part);
        }
    }
    template
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::kinds::job::created;

    fn refusals(old: &Value, new: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        validate(old, new, &mut errors);
        let fields = errors.into_vec().into_iter();
        fields
            .map(|error| error.to_string().split(": ").take(2).collect::<Vec<_>>().join(": "))
            .collect()
    }

    fn change(spec: &Value, change: &Value) -> Vec<String> {
        let old = created(spec);
        let mut new = old.clone();
        json_patch::merge(&mut new, &json!({"spec": change}));
        refusals(&old, &new)
    }

    #[test]
    fn how_fast_and_how_long_a_job_runs_may_change() {
        for allowed in [
            json!({}),
            json!({"parallelism": 0}),
            json!({"suspend": true}),
            json!({"backoffLimit": 1}),
            json!({"activeDeadlineSeconds": 3}),
            json!({"ttlSecondsAfterFinished": 3}),
        ] {
            assert_eq!(change(&json!({}), &allowed), Vec::<String>::new(), "{allowed}");
        }
    }

    #[test]
    fn what_a_job_is_never_changes() {
        for (changed, field) in [
            (json!({"completions": 2}), "spec.completions: Invalid value"),
            (json!({"completions": null}), "spec.completions: Invalid value"),
            (json!({"completionMode": "Indexed"}), "spec.completionMode: Invalid value"),
            (json!({"selector": {"matchLabels": {"a": "b"}}}), "spec.selector: Invalid value"),
            (json!({"podFailurePolicy": {"rules": []}}), "spec.podFailurePolicy: Invalid value"),
            (json!({"managedBy": "a/b"}), "spec.managedBy: Invalid value"),
            (json!({"template": {"spec": {"containers": []}}}), "spec.template: Invalid value"),
            (
                json!({"template": {"spec": {"nodeSelector": {"a": "b"}}}}),
                "spec.template: Invalid value",
            ),
        ] {
            assert_eq!(change(&json!({}), &changed), [field], "{changed}");
        }
    }

    #[test]
    fn an_indexed_job_grows_with_its_parallelism() {
        let indexed = json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2});
        let both = json!({"completions": 4, "parallelism": 4});
        assert_eq!(change(&indexed, &both), Vec::<String>::new());
        let one = change(&indexed, &json!({"completions": 4}));
        assert_eq!(one, ["spec.completions: Invalid value"]);
    }

    #[test]
    fn where_pods_run_may_change_before_there_are_any() {
        let changed = json!({"template": {"metadata": {"annotations": {"a": "b"}},
            "spec": {"nodeSelector": {"a": "b"}, "tolerations": [{"operator": "Exists"}]}}});
        assert_eq!(change(&json!({"suspend": true}), &changed), Vec::<String>::new());
        let mut started = created(&json!({"suspend": true}));
        json_patch::merge(&mut started, &json!({"status": {"startTime": "2026-01-01T00:00:00Z"}}));
        let mut new = started.clone();
        json_patch::merge(&mut new, &json!({"spec": changed}));
        assert_eq!(refusals(&started, &new), ["spec.template: Invalid value"]);
    }
}
