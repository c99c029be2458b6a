//! What Deployment and ReplicaSet share: selector, template, replicas, wide columns.

use serde_json::{Value, json};

use crate::api::field_error::{Errors, FieldError};
use crate::api::json::{int_at, is_unset, items_at, set_default, text_at};
use crate::api::kinds::pod_spec;
use crate::api::selector::LabelSelector;

/// Fills in the template and the number of replicas.
pub(super) fn default(object: &mut Value) {
    let labels = object.pointer("/spec/template/metadata/labels").cloned();
    let Some(spec) = object.get_mut("spec") else { return };
    set_default(spec, "replicas", 1);
    if let (true, Some(labels)) = (is_unset(spec.get("selector")), labels) {
        set_default(spec, "selector", json!({ "matchLabels": labels }));
    }
    if let Some(template) = spec.get_mut("template").filter(|template| template.is_object()) {
        pod_spec::default(template);
    }
}

/// Checks selector, template and replicas.
pub(super) fn validate(object: &Value, errors: &mut Errors) {
    let template = object.pointer("/spec/template").unwrap_or(&Value::Null);
    let selector = object.pointer("/spec/selector");
    match selector.filter(|selector| !selector.is_null()).map(LabelSelector::from_json) {
        None => errors.required("spec.selector"),
        Some(Err(cause)) => {
            errors.invalid("spec.selector", selector.unwrap_or(&Value::Null), &cause.to_string());
        }
        Some(Ok(parsed)) if parsed.is_everything() => {
            let detail = "empty selector is invalid for deployment";
            errors.invalid("spec.selector", selector.unwrap_or(&Value::Null), detail);
        }
        Some(Ok(parsed)) if !parsed.matches(template) => {
            let labels = template.pointer("/metadata/labels").unwrap_or(&Value::Null);
            let detail = "`selector` does not match template `labels`";
            errors.invalid("spec.template.metadata.labels", labels, detail);
        }
        Some(Ok(_)) => {}
    }
    if let Some(replicas) = object.pointer("/spec/replicas")
        && replicas.as_i64().is_some_and(|n| n < 0)
    {
        errors.invalid("spec.replicas", replicas, "must be greater than or equal to 0");
    }
    pod_spec::validate(template, "spec.template.spec", errors);
    let policy = text_at(template, "/spec/restartPolicy");
    if matches!(policy, "Never" | "OnFailure") {
        errors.push(FieldError::not_supported(
            "spec.template.spec.restartPolicy",
            &json!(policy),
            &["Always"],
        ));
    }
}

/// The selector never changes.
pub(super) fn validate_update(old: &Value, new: &Value, errors: &mut Errors) {
    let (before, after) = (old.pointer("/spec/selector"), new.pointer("/spec/selector"));
    if before != after {
        errors.invalid("spec.selector", after.unwrap_or(&Value::Null), "field is immutable");
    }
}

/// A number of the status or spec as a cell.
pub(super) fn number(object: &Value, pointer: &str) -> i64 {
    int_at(object, pointer).unwrap_or(0)
}

/// Containers, images and selector, for `-o wide`.
pub(super) fn wide_cells(object: &Value) -> [Value; 3] {
    let list = |key: &str| {
        let containers = items_at(object, "/spec/template/spec/containers").iter();
        containers.map(|c| text_at(c, key)).collect::<Vec<_>>().join(",")
    };
    let selector = object
        .pointer("/spec/selector")
        .and_then(|selector| LabelSelector::from_json(selector).ok())
        .map(|selector| selector.to_string());
    [json!(list("/name")), json!(list("/image")), json!(selector.unwrap_or_default())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_selector_must_match_the_template() {
        let mut object = json!({"spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "c"}}, "spec": {"containers": [{"name": "x", "image": "y"}]}},
        }});
        default(&mut object);
        let mut errors = Errors::default();
        validate(&object, &mut errors);
        let text = errors.into_vec().iter().map(ToString::to_string).collect::<String>();
        assert!(text.contains("`selector` does not match template `labels`"), "{text}");
        assert_eq!(object.pointer("/spec/replicas"), Some(&json!(1)));
    }
}
