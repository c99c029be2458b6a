//! RuntimeClass.

use jiff::Timestamp;
use k8s_openapi::api::node::v1::RuntimeClass;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::Errors;
use crate::api::json::{entries_at, text_at};
use crate::api::kinds::{pod_placement, taints};
use crate::api::meta;
use crate::api::names;
use crate::api::quantity::Quantity;
use crate::api::quota::amount;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::resource_names::check_of_container;
use crate::api::runtime_class::GROUP;
use crate::api::table::age;

pub(super) const RESOURCE: Resource = Resource {
    group: GROUP,
    version: "v1",
    plural: "runtimeclasses",
    singular: "runtimeclass",
    kind: "RuntimeClass",
    list_kind: "RuntimeClassList",
    description: "What pods that name it take beside their containers, and which nodes run them.",
    short_names: &[],
    categories: &[],
    is_namespaced: false,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: false,
    has_scale: false,
    has_generation: false,
    subresources: &[],
    columns: &[Column::NAME, Column::text("Handler"), Column::AGE],
    field_selectors: &[],
    strategy: Strategy {
        validate,
        validate_update,
        cells,
        ..Strategy::plain(typed::<RuntimeClass>)
    },
};

fn validate(object: &Value, errors: &mut Errors) {
    let handler = text_at(object, "/handler");
    if let Err(rule) = names::check_dns1123_label(handler) {
        errors.invalid("handler", &json!(handler), rule);
    }
    for (name, value) in entries_at(object, "/overhead/podFixed") {
        let field = format!("overhead.podFixed[{name}]");
        if let Err(rule) = check_of_container(name) {
            errors.invalid(&field, &json!(name), rule);
        }
        match amount(value).map(Quantity::nanos) {
            None => errors.invalid(field, value, "must be a quantity such as 100m or 64Mi"),
            Some(nanos) if nanos < 0 => {
                errors.invalid(field, value, "must be greater than or equal to 0");
            }
            Some(_) => {}
        }
    }
    let Some(scheduling) = object.get("scheduling") else { return };
    if let Some(labels) = scheduling.get("nodeSelector") {
        pod_placement::check_labels(labels, "scheduling.nodeSelector", errors);
    }
    taints::validate_tolerations(&json!({ "spec": scheduling }), "scheduling", errors);
}

fn validate_update(old: &Value, new: &Value, errors: &mut Errors) {
    if old.get("handler") != new.get("handler") {
        errors.invalid("handler", &json!(text_at(new, "/handler")), "field is immutable");
    }
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(meta::name(object)), json!(text_at(object, "/handler")), json!(age(object, now))]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(check: impl Fn(&mut Errors)) -> Vec<String> {
        let mut errors = Errors::default();
        check(&mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_runtime_class_has_a_handler_that_stays_and_says_right_things_of_pods() {
        let good = json!({"handler": "wasm", "overhead": {"podFixed": {"memory": "1Mi"}},
            "scheduling": {"nodeSelector": {"a": "b"},
                "tolerations": [{"key": "k", "operator": "Exists", "effect": "NoSchedule"}]}});
        assert_eq!(texts(|errors| validate(&good, errors)), Vec::<String>::new());
        for (class, said) in [
            (json!({}), "handler: Invalid value: \"\""),
            (json!({"handler": "A/b"}), "handler: Invalid value: \"A/b\""),
            (
                json!({"handler": "w", "overhead": {"podFixed": {"cpu": "-1"}}}),
                "overhead.podFixed[cpu]: Invalid value: \"-1\": must be greater than or equal to 0",
            ),
            (
                json!({"handler": "w", "overhead": {"podFixed": {"foo": "1"}}}),
                "overhead.podFixed[foo]: Invalid value: \"foo\"",
            ),
            (
                json!({"handler": "w", "scheduling": {"nodeSelector": {"a": "b c"}}}),
                "scheduling.nodeSelector: Invalid value: \"b c\"",
            ),
            (
                json!({"handler": "w", "scheduling": {"tolerations": [{"operator": "Equal"}]}}),
                "scheduling.tolerations[0].operator: Invalid value: \"Equal\"",
            ),
        ] {
            let found = texts(|errors| validate(&class, errors));
            assert!(found.len() == 1 && found[0].starts_with(said), "{said} in {found:?}");
        }
        let other = json!({"handler": "other"});
        assert_eq!(
            texts(|errors| validate_update(&good, &other, errors)),
            ["handler: Invalid value: \"other\": field is immutable"]
        );
    }
}
