//! PriorityClass.

use jiff::Timestamp;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::Errors;
use crate::api::json::{int_at, is_true, is_unset, set_default_text, text_at};
use crate::api::meta;
use crate::api::priority::{self, PREEMPT_LOWER, USER_VALUE_MAX};
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;

pub(super) const RESOURCE: Resource = Resource {
    group: priority::GROUP,
    version: "v1",
    plural: "priorityclasses",
    singular: "priorityclass",
    kind: "PriorityClass",
    list_kind: "PriorityClassList",
    description: "How important pods are: who is placed first, and who has to go for whom.",
    short_names: &["pc"],
    categories: &[],
    is_namespaced: false,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: false,
    has_scale: false,
    has_generation: true,
    subresources: &[],
    columns: &[
        Column::NAME,
        Column::integer("Value"),
        Column { kind: "boolean", ..Column::text("Global-Default") },
        Column::AGE,
        Column::text("PreemptionPolicy"),
    ],
    field_selectors: &[],
    strategy: Strategy {
        default: |object| set_default_text(object, "preemptionPolicy", PREEMPT_LOWER),
        validate,
        validate_update,
        cells,
        ..Strategy::plain(typed::<PriorityClass>)
    },
};

fn validate(object: &Value, errors: &mut Errors) {
    let value = int_at(object, "/value").unwrap_or(0);
    let name = meta::name(object);
    if name.starts_with(priority::SYSTEM_PREFIX) {
        if priority::system_value(name) != Some(value) {
            let detail =
                "priority class names with 'system-' prefix are reserved for system use only";
            errors.forbidden("metadata.name", detail);
        }
    } else if value > USER_VALUE_MAX {
        let detail =
            format!("maximum allowed value of a user defined priority is {USER_VALUE_MAX}");
        errors.forbidden("value", &detail);
    }
    let policy = object.get("preemptionPolicy").cloned().unwrap_or_default();
    if !policy.is_null() {
        errors.one_of("preemptionPolicy", &policy, &["Never", PREEMPT_LOWER]);
    }
}

fn validate_update(old: &Value, new: &Value, errors: &mut Errors) {
    if int_at(old, "/value").unwrap_or(0) != int_at(new, "/value").unwrap_or(0) {
        errors.forbidden("value", "may not be changed in an update.");
    }
    let key = "preemptionPolicy";
    let is_same = old.get(key) == new.get(key) || is_unset(old.get(key));
    if !is_same {
        let sent = new.get(key).cloned().unwrap_or_default();
        errors.invalid(key, &sent, "field is immutable");
    }
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(meta::name(object)),
        json!(int_at(object, "/value").unwrap_or(0)),
        json!(is_true(object, "/globalDefault")),
        json!(age(object, now)),
        json!(text_at(object, "/preemptionPolicy")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(class: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        validate(class, &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn values_and_names_of_the_system_are_its_own() {
        let class = |name: &str, value: i64| json!({"metadata": {"name": name}, "value": value});
        assert!(errors(&class("high", 1_000_000_000)).is_empty());
        assert!(errors(&class("low", -5)).is_empty());
        assert_eq!(
            errors(&class("higher", 1_000_000_001)),
            ["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"]
        );
        assert!(errors(&class("system-node-critical", 2_000_001_000)).is_empty());
        for (name, value) in [("system-node-critical", 5), ("system-mine", 2_000_001_000)] {
            assert!(errors(&class(name, value))[0].starts_with("metadata.name: Forbidden"));
        }
        let mut odd = class("odd", 1);
        odd["preemptionPolicy"] = json!("Sometimes");
        assert!(errors(&odd)[0].starts_with("preemptionPolicy: Unsupported value"));
    }

    #[test]
    fn neither_value_nor_policy_change() {
        let class = |value: i64, policy: &str| json!({"value": value, "preemptionPolicy": policy});
        let changed = |old: &Value, new: &Value| {
            let mut errors = Errors::default();
            validate_update(old, new, &mut errors);
            errors.into_vec().len()
        };
        let old = class(5, "Never");
        assert_eq!(changed(&old, &old), 0);
        assert_eq!(changed(&old, &class(6, "Never")), 1);
        assert_eq!(changed(&old, &class(5, PREEMPT_LOWER)), 1);
    }
}
