//! CronJob.

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::CronJob;
use serde_json::{Value, json};

use crate::api::cron::{Schedule, time_zone};
use crate::api::decode::typed;
use crate::api::field_error::{Errors, FieldError};
use crate::api::json::{child, is_true, items_at, set_default, set_default_text, str_at, text_at};
use crate::api::kinds::{job, job_rules, pod_warnings};
use crate::api::meta;
use crate::api::names::check_dns1123_subdomain;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::{age, since};

pub(super) const RESOURCE: Resource = Resource {
    group: "batch",
    version: "v1",
    plural: "cronjobs",
    singular: "cronjob",
    kind: "CronJob",
    list_kind: "CronJobList",
    description: "Makes Jobs by the clock.",
    short_names: &["cj"],
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
        Column::text("Schedule"),
        Column::text("Timezone"),
        Column { kind: "boolean", ..Column::text("Suspend") },
        Column::integer("Active"),
        Column::text("Last Schedule"),
        Column::AGE,
        Column::wide("Containers"),
        Column::wide("Images"),
        Column::wide("Selector"),
    ],
    field_selectors: &[],
    strategy: Strategy {
        default,
        validate,
        validate_create,
        validate_update,
        check_name: check_dns1123_subdomain,
        warnings: |object| {
            let template =
                object.pointer("/spec/jobTemplate/spec/template").unwrap_or(&Value::Null);
            pod_warnings::warnings(template, "spec.jobTemplate.spec.template.spec")
        },
        cells,
        ..Strategy::plain(typed::<CronJob>)
    },
};

/// Bytes of a name: a Job's may have 63, of which `-` and the minutes since 1970 take 11.
const NAME_BYTES_MAX: usize = 52;
const TIME_ZONE: &str = "/spec/timeZone";
/// Finished Jobs that are kept.
const SUCCESSFUL_KEPT: i64 = 3;
const FAILED_KEPT: i64 = 1;

fn default(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    set_default_text(spec, "concurrencyPolicy", "Allow");
    set_default(spec, "suspend", false);
    set_default(spec, "successfulJobsHistoryLimit", SUCCESSFUL_KEPT);
    set_default(spec, "failedJobsHistoryLimit", FAILED_KEPT);
    if let Some(job_spec) = child(spec, "jobTemplate").and_then(|template| child(template, "spec"))
    {
        job::default_spec(job_spec);
        // What is said of one Job is not of its template.
        if !is_true(job_spec, "/manualSelector") {
            crate::api::json::remove(job_spec, "manualSelector");
        }
    }
}

fn validate(object: &Value, errors: &mut Errors) {
    let name = meta::name(object);
    if name.len() > NAME_BYTES_MAX {
        let detail = format!("must be no more than {NAME_BYTES_MAX} characters");
        errors.invalid("metadata.name", &json!(name), &detail);
    }
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let schedule = text_at(spec, "/schedule");
    if schedule.is_empty() {
        errors.required("spec.schedule");
    } else if let Err(cause) = Schedule::parse(schedule) {
        errors.invalid("spec.schedule", &json!(schedule), &cause.to_string());
    }
    for key in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        if let Some(value) = spec.get(key).filter(|value| value.as_i64().is_some_and(|n| n < 0)) {
            errors.invalid(format!("spec.{key}"), value, "must be greater than or equal to 0");
        }
    }
    let policy = spec.get("concurrencyPolicy").unwrap_or(&Value::Null);
    errors.one_of("spec.concurrencyPolicy", policy, &["Allow", "Forbid", "Replace"]);
    let job_spec = spec.pointer("/jobTemplate/spec").unwrap_or(&Value::Null);
    let path = "spec.jobTemplate.spec";
    job_rules::validate_spec(job_spec, path, errors);
    if is_true(job_spec, "/manualSelector") {
        let value = json!(true);
        errors.push(FieldError::not_supported(
            format!("{path}.manualSelector"),
            &value,
            &["nil", "false"],
        ));
    }
    if let Some(selector) = job_spec.get("selector").filter(|selector| !selector.is_null()) {
        let detail = "`selector` will be auto-generated";
        errors.invalid(format!("{path}.selector"), selector, detail);
    }
}

/// A time zone that this server does not know may stay: another one may have known it.
fn validate_update(old: &Value, new: &Value, errors: &mut Errors) {
    if old.pointer(TIME_ZONE) != new.pointer(TIME_ZONE) {
        validate_create(new, errors);
    }
}

fn validate_create(object: &Value, errors: &mut Errors) {
    if let Some(zone) = str_at(object, TIME_ZONE)
        && let Err(cause) = time_zone(zone)
    {
        errors.invalid("spec.timeZone", &json!(zone), &cause.to_string());
    }
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let or = |text: Option<&str>, other: &str| {
        text.filter(|text| !text.is_empty()).unwrap_or(other).to_owned()
    };
    let last = str_at(object, "/status/lastScheduleTime");
    let list = |key: &str| {
        let pointer = "/spec/jobTemplate/spec/template/spec/containers";
        let containers = items_at(object, pointer).iter();
        containers.map(|c| text_at(c, key)).collect::<Vec<_>>().join(",")
    };
    vec![
        json!(meta::name(object)),
        json!(text_at(object, "/spec/schedule")),
        json!(or(str_at(object, "/spec/timeZone"), "<none>")),
        json!(if is_true(object, "/spec/suspend") { "True" } else { "False" }),
        json!(items_at(object, "/status/active").len()),
        json!(last.map_or_else(|| "<none>".to_owned(), |last| since(Some(last), now))),
        json!(age(object, now)),
        json!(list("/name")),
        json!(list("/image")),
        json!("<none>"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cron_job(changes: &Value) -> Value {
        let mut object = json!({"metadata": {"name": "tick", "namespace": "default"}, "spec": {
            "schedule": "* * * * *",
            "jobTemplate": {"spec": {"template": {"spec": {
                "restartPolicy": "OnFailure", "containers": [{"name": "c", "image": "i"}]}}}},
        }});
        json_patch::merge(&mut object, changes);
        default(&mut object);
        object
    }

    fn refusals(changes: &Value) -> String {
        let mut errors = Errors::default();
        validate(&cron_job(changes), &mut errors);
        validate_create(&cron_job(changes), &mut errors);
        errors.into_vec().iter().map(|error| format!("{error}\n")).collect()
    }

    #[test]
    fn defaults_are_kubernetes() {
        let object = cron_job(&json!({}));
        assert_eq!(object["spec"]["concurrencyPolicy"], "Allow");
        assert_eq!(object["spec"]["successfulJobsHistoryLimit"], 3);
        assert_eq!(object["spec"]["failedJobsHistoryLimit"], 1);
        assert_eq!(object["spec"]["jobTemplate"]["spec"]["backoffLimit"], 6);
        assert_eq!(object.pointer("/spec/jobTemplate/spec/selector"), None);
        assert_eq!(refusals(&json!({})), "");
        assert_eq!(refusals(&json!({"spec": {"timeZone": "Etc/UTC"}})), "");
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        for (changes, part) in [
            (json!({"metadata": {"name": "x".repeat(53)}}), "metadata.name: Invalid value"),
            (json!({"spec": {"schedule": ""}}), "spec.schedule: Required value"),
            (json!({"spec": {"schedule": "61 * * * *"}}), "spec.schedule: Invalid value"),
            (json!({"spec": {"schedule": "TZ=UTC * * * * *"}}), "use timeZone field instead"),
            (
                json!({"spec": {"timeZone": "Nowhere"}}),
                "spec.timeZone: Invalid value: \"Nowhere\": unknown time zone",
            ),
            (json!({"spec": {"timeZone": "Local"}}), "explicit time zone"),
            (
                json!({"spec": {"concurrencyPolicy": "Some"}}),
                "spec.concurrencyPolicy: Unsupported value",
            ),
            (
                json!({"spec": {"failedJobsHistoryLimit": -1}}),
                "spec.failedJobsHistoryLimit: Invalid value",
            ),
            (
                json!({"spec": {"jobTemplate": {"spec": {"manualSelector": true}}}}),
                "manualSelector: Unsupported value",
            ),
            (
                json!({"spec": {"jobTemplate": {"spec": {"selector": {}}}}}),
                "`selector` will be auto-generated",
            ),
            (
                json!({"spec": {"jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "Always"}}}}}}),
                "spec.jobTemplate.spec.template.spec.restartPolicy: Required value",
            ),
        ] {
            let found = refusals(&changes);
            assert!(found.contains(part), "{part:?} not in {found:?}");
        }
    }

    #[test]
    fn a_row_tells_when_it_ran_last() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let mut object = cron_job(&json!({}));
        assert_eq!(
            cells(&object, now)[1..6],
            [json!("* * * * *"), json!("<none>"), json!("False"), json!(0), json!("<none>")]
        );
        let status = json!({"active": [{}], "lastScheduleTime": "2026-01-01T00:00:00Z"});
        crate::api::json::set(&mut object, "status", status);
        assert_eq!(cells(&object, now)[4..6], [json!(1), json!("60s")]);
    }
}
