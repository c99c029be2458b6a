//! Job.

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::json::{
    child, int_at, is_true, is_unset, items_at, set_default, set_default_text, text_at,
};
use crate::api::kinds::workload::{self, number};
use crate::api::kinds::{job_change, job_rules, pod_spec};
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::{age, human_duration};
use crate::api::{meta, names};

pub(super) const RESOURCE: Resource = Resource {
    group: "batch",
    version: "v1",
    plural: "jobs",
    singular: "job",
    kind: "Job",
    list_kind: "JobList",
    description: "Runs pods until enough of them have succeeded.",
    short_names: &[],
    categories: &["all"],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: true,
    has_scale: false,
    has_generation: true,
    subresources: &[],
    columns: &[
        Column::NAME,
        Column::text("Status"),
        Column::text("Completions"),
        Column::text("Duration"),
        Column::AGE,
        Column::wide("Containers"),
        Column::wide("Images"),
        Column::wide("Selector"),
    ],
    field_selectors: &["status.successful"],
    strategy: Strategy {
        default,
        identify,
        validate: job_rules::validate,
        validate_create: job_rules::validate_create,
        validate_update: job_change::validate,
        warnings,
        cells,
        ..Strategy::plain(typed::<Job>)
    },
};

/// Labels of a Job's pods; the second of each pair is what older clients look for.
const UID_LABELS: [&str; 2] = ["batch.kubernetes.io/controller-uid", "controller-uid"];
const NAME_LABELS: [&str; 2] = ["batch.kubernetes.io/job-name", "job-name"];
/// Failures of pods before a Job has failed.
const BACKOFF_LIMIT: i64 = 6;

fn default(object: &mut Value) {
    let labels = object.pointer("/spec/template/metadata/labels").cloned();
    if meta::labels(object).is_none()
        && let Some(labels) = labels.filter(Value::is_object)
    {
        meta::set_field(object, "labels", labels);
    }
    if let Some(spec) = child(object, "spec") {
        default_spec(spec);
    }
}

/// Fills in a Job's spec, also that of a CronJob's template.
pub(super) fn default_spec(spec: &mut Value) {
    if is_unset(spec.get("completions")) && is_unset(spec.get("parallelism")) {
        set_default(spec, "completions", 1);
    }
    set_default(spec, "parallelism", 1);
    let has_limit_per_index = !is_unset(spec.get("backoffLimitPerIndex"));
    let limit = if has_limit_per_index { i64::from(i32::MAX) } else { BACKOFF_LIMIT };
    set_default(spec, "backoffLimit", limit);
    set_default_text(spec, "completionMode", "NonIndexed");
    set_default(spec, "suspend", false);
    set_default(spec, "manualSelector", false);
    let has_failure_policy = !is_unset(spec.get("podFailurePolicy"));
    let replacement = if has_failure_policy { "Failed" } else { "TerminatingOrFailed" };
    set_default_text(spec, "podReplacementPolicy", replacement);
    let rules = spec.pointer_mut("/podFailurePolicy/rules").and_then(Value::as_array_mut);
    for rule in rules.into_iter().flatten() {
        for pattern in pod_spec::items_of(rule, "onPodConditions") {
            set_default_text(pattern, "status", "True");
        }
    }
    if let Some(template) = child(spec, "template") {
        pod_spec::default(template);
    }
}

/// Gives a Job the selector and its pods the labels that no other Job has, unless its author sees to
/// that.
fn identify(object: &mut Value) {
    let (uid, name) = (meta::uid(object).to_owned(), meta::name(object).to_owned());
    let Some(spec) = child(object, "spec") else { return };
    if is_true(spec, "/manualSelector") {
        return;
    }
    let template = child(spec, "template").and_then(|template| child(template, "metadata"));
    let Some(labels) = template.and_then(|metadata| child(metadata, "labels")) else { return };
    for (keys, value) in [(UID_LABELS, &uid), (NAME_LABELS, &name)] {
        for key in keys {
            set_default(labels, key, value.as_str());
        }
    }
    let selector = child(spec, "selector").and_then(|selector| child(selector, "matchLabels"));
    if let (Some(labels), [key, _]) = (selector, UID_LABELS) {
        set_default(labels, key, uid);
    }
}

/// The labels that [`identify`] gives, with the values they must have.
pub(super) fn identity(object: &Value) -> [(&'static str, &str); 4] {
    let (uid, name) = (meta::uid(object), meta::name(object));
    let ([uid_key, old_uid_key], [name_key, old_name_key]) = (UID_LABELS, NAME_LABELS);
    [(uid_key, uid), (old_uid_key, uid), (name_key, name), (old_name_key, name)]
}

fn warnings(object: &Value) -> Vec<String> {
    let mut warnings = workload::warnings(object);
    let name = meta::name(object);
    if !name.is_empty() && names::check_dns1123_label(name).is_err() {
        warnings.push("metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended".to_owned());
    }
    let number = |pointer| int_at(object, pointer).unwrap_or(0);
    if text_at(object, "/spec/completionMode") == "Indexed"
        && number("/spec/completions") > 100_000
        && number("/spec/parallelism") > 10_000
    {
        warnings.push("spec.parallelism: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail".to_owned());
    }
    warnings
}

/// Whether the Job has a condition of that type that is true.
pub(super) fn has_condition(object: &Value, condition_type: &str) -> bool {
    items_at(object, "/status/conditions").iter().any(|condition| {
        text_at(condition, "/type") == condition_type && text_at(condition, "/status") == "True"
    })
}

fn state(object: &Value) -> &'static str {
    let is = |condition_type| has_condition(object, condition_type);
    if is("Complete") {
        "Complete"
    } else if is("Failed") {
        "Failed"
    } else if meta::deletion_timestamp(object).is_some() {
        "Terminating"
    } else if is("Suspended") {
        "Suspended"
    } else if is("FailureTarget") {
        "FailureTarget"
    } else if is("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

fn duration(object: &Value, now: Timestamp) -> String {
    let time = |pointer| text_at(object, pointer).parse::<Timestamp>().ok();
    let Some(start) = time("/status/startTime") else { return String::new() };
    let end = time("/status/completionTime").unwrap_or(now);
    human_duration(end.as_second().saturating_sub(start.as_second()))
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let succeeded = number(object, "/status/succeeded");
    let completions = match int_at(object, "/spec/completions") {
        Some(completions) => format!("{succeeded}/{completions}"),
        None => match number(object, "/spec/parallelism") {
            parallelism @ 2.. => format!("{succeeded}/1 of {parallelism}"),
            _ => format!("{succeeded}/1"),
        },
    };
    let [containers, images, selector] = workload::wide_cells(object);
    vec![
        json!(meta::name(object)),
        json!(state(object)),
        json!(completions),
        json!(duration(object, now)),
        json!(age(object, now)),
        containers,
        images,
        selector,
    ]
}

/// A Job as it is created, for tests of other rules.
#[cfg(test)]
pub(super) fn created(spec: &Value) -> Value {
    let mut object = json!({
        "metadata": {"name": "pi", "namespace": "default", "uid": "u"},
        "spec": {"template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}],
        }}},
    });
    if let Some(target) = object.get_mut("spec") {
        json_patch::merge(target, spec);
    }
    default(&mut object);
    identify(&mut object);
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::json::set;

    #[test]
    fn a_job_gets_defaults_a_selector_and_labels_of_its_own() {
        let job = created(&json!({}));
        for (pointer, wanted) in [
            ("/spec/completions", json!(1)),
            ("/spec/parallelism", json!(1)),
            ("/spec/backoffLimit", json!(6)),
            ("/spec/completionMode", json!("NonIndexed")),
            ("/spec/suspend", json!(false)),
            ("/spec/podReplacementPolicy", json!("TerminatingOrFailed")),
            ("/spec/selector/matchLabels", json!({"batch.kubernetes.io/controller-uid": "u"})),
            (
                "/spec/template/metadata/labels",
                json!({"batch.kubernetes.io/controller-uid": "u", "controller-uid": "u",
                    "batch.kubernetes.io/job-name": "pi", "job-name": "pi"}),
            ),
        ] {
            assert_eq!(job.pointer(pointer), Some(&wanted), "{pointer}");
        }
    }

    #[test]
    fn a_work_queue_has_no_completions_and_indexes_have_limits_of_their_own() {
        let queue = created(&json!({"parallelism": 3}));
        assert_eq!(queue.pointer("/spec/completions"), None);
        let indexed = created(&json!({"completionMode": "Indexed", "completions": 2,
            "backoffLimitPerIndex": 1, "podFailurePolicy": {"rules": [{"action": "Ignore",
                "onPodConditions": [{"type": "DisruptionTarget"}]}]}}));
        assert_eq!(indexed["spec"]["backoffLimit"], json!(i32::MAX));
        assert_eq!(indexed["spec"]["podReplacementPolicy"], "Failed");
        let status = indexed.pointer("/spec/podFailurePolicy/rules/0/onPodConditions/0/status");
        assert_eq!(status, Some(&json!("True")));
    }

    #[test]
    fn a_manual_selector_is_left_alone() {
        let selector = json!({"matchLabels": {"a": "b"}});
        let job = created(&json!({"manualSelector": true, "selector": selector,
            "template": {"metadata": {"labels": {"a": "b"}}}}));
        assert_eq!(job["spec"]["selector"], selector);
        assert_eq!(job["spec"]["template"]["metadata"]["labels"], json!({"a": "b"}));
        assert_eq!(job["metadata"]["labels"], json!({"a": "b"}));
    }

    #[test]
    fn a_row_tells_how_far_the_job_is() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let row = |spec: &Value, status: &Value| {
            let mut job = created(spec);
            set(&mut job, "status", status.clone());
            let cells = cells(&job, now);
            cells[1..4].iter().map(|cell| cell.as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let condition = |name: &str| json!([{"type": name, "status": "True"}]);
        let start = "2026-01-01T00:00:00Z";
        assert_eq!(row(&json!({}), &json!({})), ["Running", "0/1", ""]);
        assert_eq!(
            row(&json!({"parallelism": 3}), &json!({"startTime": start})),
            ["Running", "0/1 of 3", "60s"]
        );
        let done = json!({"startTime": start, "completionTime": "2026-01-01T00:00:07Z",
            "succeeded": 3, "conditions": condition("Complete")});
        assert_eq!(row(&json!({"completions": 3}), &done), ["Complete", "3/3", "7s"]);
        for name in ["Failed", "Suspended", "FailureTarget", "SuccessCriteriaMet"] {
            assert_eq!(row(&json!({}), &json!({"conditions": condition(name)}))[0], name);
        }
    }
}
