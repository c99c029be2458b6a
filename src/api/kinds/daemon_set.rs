//! DaemonSet.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DaemonSet;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::Errors;
use crate::api::json::{child, entries_at, remove, set_default, set_default_text, text_at};
use crate::api::kinds::workload::{self, number};
use crate::api::meta;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;

pub(super) const RESOURCE: Resource = Resource {
    group: "apps",
    version: "v1",
    plural: "daemonsets",
    singular: "daemonset",
    kind: "DaemonSet",
    list_kind: "DaemonSetList",
    description: "Keeps one pod on each node that is fit for it.",
    short_names: &["ds"],
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
        Column::integer("Desired"),
        Column::integer("Current"),
        Column::integer("Ready"),
        Column::integer("Up-to-date"),
        Column::integer("Available"),
        Column::text("Node Selector"),
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
        ..Strategy::plain(typed::<DaemonSet>)
    },
};

/// Old templates kept for `kubectl rollout undo`.
const REVISIONS: i64 = 10;
const SURGE: &str = "/spec/updateStrategy/rollingUpdate/maxSurge";
const UNAVAILABLE: &str = "/spec/updateStrategy/rollingUpdate/maxUnavailable";

fn default(object: &mut Value) {
    workload::default(object);
    let Some(spec) = child(object, "spec") else { return };
    // It has as many as there are nodes.
    remove(spec, "replicas");
    set_default(spec, "revisionHistoryLimit", REVISIONS);
    let Some(strategy) = child(spec, "updateStrategy") else { return };
    set_default_text(strategy, "type", "RollingUpdate");
    if text_at(strategy, "/type") == "RollingUpdate"
        && let Some(rolling) = child(strategy, "rollingUpdate")
    {
        set_default(rolling, "maxUnavailable", 1);
        set_default(rolling, "maxSurge", 0);
    }
}

fn validate(object: &Value, errors: &mut Errors) {
    workload::validate(object, "daemonset", errors);
    let kind = object.pointer("/spec/updateStrategy/type").unwrap_or(&Value::Null);
    errors.one_of("spec.updateStrategy.type", kind, &["OnDelete", "RollingUpdate"]);
    workload::validate_share(object, SURGE, errors);
    workload::validate_share(object, UNAVAILABLE, errors);
    if kind != "RollingUpdate" {
        return;
    }
    let no_surge = workload::is_no_share(object, SURGE);
    let no_unavailable = workload::is_no_share(object, UNAVAILABLE);
    let field = "spec.updateStrategy.rollingUpdate";
    if no_surge && no_unavailable {
        let value = object.pointer(UNAVAILABLE).unwrap_or(&Value::Null);
        let detail = "cannot be 0 when maxSurge is 0";
        errors.invalid(format!("{field}.maxUnavailable"), value, detail);
    } else if !no_surge && !no_unavailable {
        let value = object.pointer(SURGE).unwrap_or(&Value::Null);
        let detail = "may not be set when maxUnavailable is non-zero";
        errors.invalid(format!("{field}.maxSurge"), value, detail);
    }
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let chosen: Vec<_> = entries_at(object, "/spec/template/spec/nodeSelector")
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    let chosen = if chosen.is_empty() { "<none>".to_owned() } else { chosen.join(",") };
    let [containers, images, selector] = workload::wide_cells(object);
    vec![
        json!(meta::name(object)),
        json!(number(object, "/status/desiredNumberScheduled")),
        json!(number(object, "/status/currentNumberScheduled")),
        json!(number(object, "/status/numberReady")),
        json!(number(object, "/status/updatedNumberScheduled")),
        json!(number(object, "/status/numberAvailable")),
        json!(chosen),
        json!(age(object, now)),
        containers,
        images,
        selector,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn daemon_set(strategy: &Value) -> Value {
        let mut object = json!({"metadata": {"name": "d"}, "spec": {
            "selector": {"matchLabels": {"a": "b"}}, "updateStrategy": strategy,
            "template": {"metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "x", "image": "y"}]}},
        }});
        default(&mut object);
        object
    }

    #[test]
    fn one_node_at_a_time_unless_told_otherwise() {
        let object = daemon_set(&Value::Null);
        let strategy = json!({"type": "RollingUpdate",
            "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}});
        assert_eq!(object.pointer("/spec/updateStrategy"), Some(&strategy));
        assert_eq!(object.pointer("/spec/revisionHistoryLimit"), Some(&json!(10)));
        assert_eq!(object.pointer("/spec/replicas"), None);
        let by_hand = daemon_set(&json!({"type": "OnDelete"}));
        assert_eq!(by_hand.pointer("/spec/updateStrategy"), Some(&json!({"type": "OnDelete"})));
    }

    #[test]
    fn surge_and_unavailability_exclude_each_other() {
        let texts = |surge: Value, unavailable: Value| {
            let rolling = json!({"maxSurge": surge, "maxUnavailable": unavailable});
            let mut errors = Errors::default();
            validate(&daemon_set(&json!({"rollingUpdate": rolling})), &mut errors);
            errors.into_vec().iter().map(ToString::to_string).collect::<String>()
        };
        assert_eq!(texts(json!(0), json!("10%")), "");
        assert_eq!(texts(json!("10%"), json!(0)), "");
        assert!(texts(json!(0), json!(0)).contains("cannot be 0 when maxSurge is 0"));
        assert!(texts(json!(1), json!(1)).contains("may not be set when maxUnavailable is"));
        assert!(texts(json!("101%"), json!(0)).contains("must not be greater than 100%"));
    }

    #[test]
    fn a_row_says_which_nodes() {
        let mut object = daemon_set(&Value::Null);
        assert_eq!(cells(&object, Timestamp::UNIX_EPOCH)[6], json!("<none>"));
        object["spec"]["template"]["spec"]["nodeSelector"] = json!({"disk": "ssd", "zone": "a"});
        object["status"] = json!({"desiredNumberScheduled": 3, "numberReady": 2});
        let row = cells(&object, Timestamp::UNIX_EPOCH);
        assert_eq!(row.len(), RESOURCE.columns.len());
        assert_eq!(row[1..4], [json!(3), json!(0), json!(2)]);
        assert_eq!(row[6], json!("disk=ssd,zone=a"));
    }
}
