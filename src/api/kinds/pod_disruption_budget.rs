//! PodDisruptionBudget.

use jiff::Timestamp;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::Errors;
use crate::api::json::{entries_at, int_at, is_unset};
use crate::api::kinds::workload;
use crate::api::meta;
use crate::api::names;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::selector::LabelSelector;
use crate::api::table::age;

pub(super) const RESOURCE: Resource = Resource {
    group: "policy",
    version: "v1",
    plural: "poddisruptionbudgets",
    singular: "poddisruptionbudget",
    kind: "PodDisruptionBudget",
    list_kind: "PodDisruptionBudgetList",
    description: "How many pods of a set may be evicted at a time.",
    short_names: &["pdb"],
    categories: &[],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: true,
    has_scale: false,
    has_generation: true,
    subresources: &[],
    columns: &[
        Column::NAME,
        Column::text("Min Available"),
        Column::text("Max Unavailable"),
        Column::integer("Allowed Disruptions"),
        Column::AGE,
    ],
    field_selectors: &[],
    strategy: Strategy {
        validate,
        check_name: names::check_dns1123_subdomain,
        cells,
        ..Strategy::plain(typed::<PodDisruptionBudget>)
    },
};

/// Shown where nothing is set.
const UNSET: &str = "N/A";

fn validate(object: &Value, errors: &mut Errors) {
    let at = |key: &str| object.pointer(&format!("/spec/{key}")).filter(|value| !value.is_null());
    let (least, most) = (at("minAvailable"), at("maxUnavailable"));
    if let (Some(_), Some(_)) = (least, most) {
        let spec = object.get("spec").cloned().unwrap_or_default();
        errors.invalid("spec", &spec, "minAvailable and maxUnavailable cannot be both set");
    }
    for key in ["minAvailable", "maxUnavailable"] {
        workload::validate_share(object, &format!("/spec/{key}"), errors);
    }
    if let Some(selector) = at("selector")
        && let Err(cause) = LabelSelector::from_json(selector)
    {
        errors.invalid("spec.selector", selector, &cause.to_string());
    }
    if let Some(policy) = at("unhealthyPodEvictionPolicy") {
        errors.one_of(
            "spec.unhealthyPodEvictionPolicy",
            policy,
            &["AlwaysAllow", "IfHealthyBudget"],
        );
    }
    for key in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
        let number = int_at(object, &format!("/status/{key}")).unwrap_or(0);
        if number < 0 {
            let detail = "must be greater than or equal to 0";
            errors.invalid(format!("status.{key}"), &json!(number), detail);
        }
    }
    for (pod, _) in entries_at(object, "/status/disruptedPods") {
        if names::check_dns1123_subdomain(pod).is_err() {
            errors.invalid("status.disruptedPods", &json!(pod), "must be the name of a pod");
        }
    }
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let part = |key: &str| match object.pointer(&format!("/spec/{key}")) {
        value if is_unset(value) => UNSET.to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => UNSET.to_owned(),
    };
    vec![
        json!(meta::name(object)),
        json!(part("minAvailable")),
        json!(part("maxUnavailable")),
        json!(int_at(object, "/status/disruptionsAllowed").unwrap_or(0)),
        json!(age(object, now)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(spec: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        validate(&json!({"metadata": {"name": "web"}, "spec": spec}), &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_budget_is_one_number_or_one_percentage() {
        for fine in [
            json!({"minAvailable": 1}),
            json!({"maxUnavailable": "30%"}),
            json!({"minAvailable": "100%", "selector": {}}),
            json!({"unhealthyPodEvictionPolicy": "AlwaysAllow"}),
        ] {
            assert_eq!(refused(&fine), Vec::<String>::new(), "{fine}");
        }
        for (bad, said) in [
            (json!({"minAvailable": 1, "maxUnavailable": 1}), "cannot be both set"),
            (json!({"minAvailable": -1}), "greater than or equal to 0"),
            (json!({"minAvailable": "101%"}), "must not be greater than 100%"),
            (json!({"maxUnavailable": "few"}), "a valid percent string must be"),
            (json!({"maxUnavailable": "%"}), "a valid percent string must be"),
            (json!({"unhealthyPodEvictionPolicy": "Never"}), "supported values"),
            (
                json!({"selector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}}),
                "spec.selector",
            ),
        ] {
            let errors = refused(&bad);
            assert!(errors.len() == 1 && errors[0].contains(said), "{bad}: {errors:?}");
        }
    }

    #[test]
    fn a_row_shows_what_is_set() {
        let budget = json!({"metadata": {"name": "web"}, "spec": {"maxUnavailable": "10%"},
            "status": {"disruptionsAllowed": 2}});
        let row = cells(&budget, Timestamp::UNIX_EPOCH);
        assert_eq!(row[..4], [json!("web"), json!("N/A"), json!("10%"), json!(2)]);
    }
}
