//! Deployment.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::Errors;
use crate::api::json::{child, is_unset, set_default, set_default_text, text_at};
use crate::api::kinds::workload::{self, number};
use crate::api::meta;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;

pub(super) const RESOURCE: Resource = Resource {
    group: "apps",
    version: "v1",
    plural: "deployments",
    singular: "deployment",
    kind: "Deployment",
    list_kind: "DeploymentList",
    description: "Keeps replicas of a pod, and replaces them step by step when it changes.",
    short_names: &["deploy"],
    categories: &["all"],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: true,
    has_scale: true,
    has_generation: true,
    subresources: &[],
    columns: &[
        Column::NAME,
        Column::text("Ready"),
        Column::integer("Up-to-date"),
        Column::integer("Available"),
        Column::AGE,
        Column::wide("Containers"),
        Column::wide("Images"),
        Column::wide("Selector"),
    ],
    field_selectors: &[],
    strategy: Strategy {
        default,
        validate,
        validate_update: workload::validate_update,
        warnings: workload::warnings,
        cells,
        ..Strategy::plain(typed::<Deployment>)
    },
};

/// Old ReplicaSets kept for `kubectl rollout undo`.
const REVISIONS: i64 = 10;
/// Seconds without progress after which a rollout is reported as stuck.
const PROGRESS_SECONDS: i64 = 600;

fn default(object: &mut Value) {
    workload::default(object);
    let Some(spec) = child(object, "spec") else { return };
    set_default(spec, "revisionHistoryLimit", REVISIONS);
    set_default(spec, "progressDeadlineSeconds", PROGRESS_SECONDS);
    let Some(strategy) = child(spec, "strategy") else { return };
    set_default_text(strategy, "type", "RollingUpdate");
    if text_at(strategy, "/type") == "RollingUpdate"
        && let Some(rolling) = child(strategy, "rollingUpdate")
    {
        set_default(rolling, "maxSurge", "25%");
        set_default(rolling, "maxUnavailable", "25%");
    }
}

const STRATEGY: &str = "/spec/strategy/rollingUpdate";

fn validate(object: &Value, errors: &mut Errors) {
    workload::validate(object, "deployment", errors);
    let kind = object.pointer("/spec/strategy/type").unwrap_or(&Value::Null);
    errors.one_of("spec.strategy.type", kind, &["Recreate", "RollingUpdate"]);
    let (surge, unavailable) =
        (format!("{STRATEGY}/maxSurge"), format!("{STRATEGY}/maxUnavailable"));
    workload::validate_share(object, &unavailable, errors);
    // More than all is a fair surge.
    workload::validate_amount(object, &surge, errors);
    if workload::is_no_share(object, &surge) && workload::is_no_share(object, &unavailable) {
        let value = object.pointer(&unavailable).unwrap_or(&Value::Null);
        let detail = "may not be 0 when `maxSurge` is 0";
        errors.invalid("spec.strategy.rollingUpdate.maxUnavailable", value, detail);
    }
    if kind == "Recreate" && !is_unset(object.pointer(STRATEGY)) {
        let detail = "may not be specified when strategy `type` is 'Recreate'";
        errors.forbidden("spec.strategy.rollingUpdate", detail);
    }
    let deadline = object.pointer("/spec/progressDeadlineSeconds").unwrap_or(&Value::Null);
    if deadline.as_i64().is_some_and(|seconds| seconds <= number(object, "/spec/minReadySeconds")) {
        let detail = "must be greater than minReadySeconds";
        errors.invalid("spec.progressDeadlineSeconds", deadline, detail);
    }
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let (ready, wanted) =
        (number(object, "/status/readyReplicas"), number(object, "/spec/replicas"));
    let [containers, images, selector] = workload::wide_cells(object);
    vec![
        json!(meta::name(object)),
        json!(format!("{ready}/{wanted}")),
        json!(number(object, "/status/updatedReplicas")),
        json!(number(object, "/status/availableReplicas")),
        json!(age(object, now)),
        containers,
        images,
        selector,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_filled_in_as_kubernetes_does() {
        let mut object = json!({"spec": {"template": {"spec": {"containers": []}}}});
        default(&mut object);
        for (key, wanted) in [
            ("replicas", json!(1)),
            ("revisionHistoryLimit", json!(10)),
            ("progressDeadlineSeconds", json!(600)),
            (
                "strategy",
                json!({"type": "RollingUpdate",
                    "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}),
            ),
        ] {
            assert_eq!(object["spec"][key], wanted, "{key}");
        }
        let mut at_once = json!({"spec": {"strategy": {"type": "Recreate"}}});
        default(&mut at_once);
        assert_eq!(at_once["spec"]["strategy"], json!({"type": "Recreate"}));
    }

    #[test]
    fn a_strategy_that_could_never_move_is_refused() {
        let texts = |strategy: Value, deadline: i64| {
            let mut object = json!({"spec": {
                "selector": {"matchLabels": {"a": "b"}}, "minReadySeconds": 5,
                "strategy": strategy, "progressDeadlineSeconds": deadline,
                "template": {"metadata": {"labels": {"a": "b"}},
                    "spec": {"containers": [{"name": "x", "image": "y"}]}},
            }});
            default(&mut object);
            let mut errors = Errors::default();
            validate(&object, &mut errors);
            errors.into_vec().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let rolling = |surge: Value, unavailable: Value| json!({"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}});
        for (strategy, deadline, wanted) in [
            (json!({}), 6, ""),
            (json!({"type": "Recreate"}), 6, ""),
            (rolling(json!("150%"), json!(0)), 6, ""),
            (rolling(json!("0%"), json!(0)), 6, "may not be 0 when `maxSurge` is 0"),
            (rolling(json!(-1), json!(1)), 6, "must be greater than or equal to 0"),
            (rolling(json!("abc"), json!(1)), 6, "maxSurge: Invalid value: \"abc\": a valid perc"),
            (rolling(json!(1), json!("abc")), 6, "a valid percent string must be"),
            (rolling(json!(1), json!("101%")), 6, "must not be greater than 100%"),
            (json!({"type": "Recreate", "rollingUpdate": {"maxSurge": 1}}), 6, "may not be spec"),
            (json!({"type": "Other"}), 6, "Unsupported value"),
            (json!({}), 5, "must be greater than minReadySeconds"),
        ] {
            let found = texts(strategy.clone(), deadline).join(";");
            assert!(found.is_empty() == wanted.is_empty(), "{strategy}: {found}");
            assert!(found.contains(wanted), "{strategy}: {found}");
        }
    }
}
