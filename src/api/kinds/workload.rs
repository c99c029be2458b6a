//! What the kinds that keep pods share: selector, template, replicas, update strategies, columns.

use serde_json::{Value, json};

use crate::api::field_error::{Errors, FieldError};
use crate::api::json::{int_at, items_at, set_default, text_at};
use crate::api::kinds::{pod_spec, pod_warnings};
use crate::api::selector::LabelSelector;

/// Fills in the template and the number of replicas.
pub(super) fn default(object: &mut Value) {
    let Some(spec) = object.get_mut("spec") else { return };
    set_default(spec, "replicas", 1);
    if let Some(template) = spec.get_mut("template").filter(|template| template.is_object()) {
        pod_spec::default(template);
    }
}

/// Checks selector, template and replicas; `kind` is how texts name what the object is.
pub(super) fn validate(object: &Value, kind: &str, errors: &mut Errors) {
    let template = object.pointer("/spec/template").unwrap_or(&Value::Null);
    let selector = object.pointer("/spec/selector");
    let mismatch = |errors: &mut Errors| {
        let labels = template.pointer("/metadata/labels").unwrap_or(&Value::Null);
        let detail = "`selector` does not match template `labels`";
        errors.invalid("spec.template.metadata.labels", labels, detail);
    };
    match selector.filter(|selector| !selector.is_null()).map(LabelSelector::from_json) {
        None => {
            errors.required("spec.selector");
            mismatch(errors);
        }
        Some(Err(cause)) => {
            errors.invalid("spec.selector", selector.unwrap_or(&Value::Null), &cause.to_string());
        }
        Some(Ok(parsed)) if parsed.is_everything() => {
            let detail = format!("empty selector is invalid for {kind}");
            errors.invalid("spec.selector", selector.unwrap_or(&Value::Null), &detail);
        }
        Some(Ok(parsed)) if !parsed.matches(template) => mismatch(errors),
        Some(Ok(_)) => {}
    }
    validate_template(object, errors);
}

/// What of the template's pods is without effect.
pub(super) fn warnings(object: &Value) -> Vec<String> {
    let template = object.pointer("/spec/template").unwrap_or(&Value::Null);
    pod_warnings::warnings(template, "spec.template.spec")
}

/// Checks the numbers of the spec, and a template whose pods run for ever.
pub(super) fn validate_template(object: &Value, errors: &mut Errors) {
    for key in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
        validate_not_negative(object, &format!("/spec/{key}"), errors);
    }
    let template = object.pointer("/spec/template").unwrap_or(&Value::Null);
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

/// The number at `pointer`, if there is one, is 0 or more.
pub(super) fn validate_not_negative(object: &Value, pointer: &str, errors: &mut Errors) {
    if let Some(number) = object.pointer(pointer)
        && number.as_i64().is_some_and(|number| number < 0)
    {
        errors.invalid(field_of(pointer), number, NOT_NEGATIVE);
    }
}

/// The value at `pointer`, if there is one, is a number of pods or a percentage, be it more than all.
pub(super) fn validate_amount(object: &Value, pointer: &str, errors: &mut Errors) {
    validate_not_negative(object, pointer, errors);
    let value = object.pointer(pointer).unwrap_or(&Value::Null);
    if value.is_string() && percent(value).is_none() {
        let detail = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
        errors.invalid(field_of(pointer), value, detail);
    }
}

/// The value at `pointer`, if there is one, is a number of pods or a percentage of them.
pub(super) fn validate_share(object: &Value, pointer: &str, errors: &mut Errors) {
    validate_amount(object, pointer, errors);
    let value = object.pointer(pointer).unwrap_or(&Value::Null);
    if percent(value).is_some_and(|digits| !digits.parse::<u32>().is_ok_and(|part| part <= 100)) {
        errors.invalid(field_of(pointer), value, "must not be greater than 100%");
    }
}

/// The digits of a percentage.
fn percent(value: &Value) -> Option<&str> {
    value.as_str()?.strip_suffix('%').filter(|digits| is_digits(digits))
}

/// Whether the share at `pointer` is none at all: `0` or `0%`.
pub(super) fn is_no_share(object: &Value, pointer: &str) -> bool {
    let value = object.pointer(pointer).unwrap_or(&Value::Null);
    let is_zero = |text: &str| text.strip_suffix('%').is_some_and(|n| n.parse() == Ok(0));
    value.as_i64() == Some(0) || value.as_str().is_some_and(is_zero)
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn field_of(pointer: &str) -> String {
    pointer.trim_start_matches('/').replace('/', ".")
}

const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

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
        .and_then(|selector| LabelSelector::of_workload(selector).ok())
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
        validate(&object, "deployment", &mut errors);
        let text = errors.into_vec().iter().map(ToString::to_string).collect::<String>();
        assert!(text.contains("`selector` does not match template `labels`"), "{text}");
        assert_eq!(object.pointer("/spec/replicas"), Some(&json!(1)));
    }

    #[test]
    fn a_selector_is_required_and_not_made_of_the_templates_labels() {
        let mut object = json!({"spec": {"template": {"metadata": {"labels": {"a": "c"}},
            "spec": {"containers": [{"name": "x", "image": "y"}]}}}});
        default(&mut object);
        assert_eq!(object.pointer("/spec/selector"), None);
        let mut errors = Errors::default();
        validate(&object, "deployment", &mut errors);
        let errors = errors.into_vec();
        let fields: Vec<_> = errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, ["spec.selector", "spec.template.metadata.labels"]);
        assert_eq!(errors[0].to_string(), "spec.selector: Required value");
    }

    #[test]
    fn shares_are_numbers_or_percentages_of_at_most_all() {
        let texts = |value: Value| {
            let mut errors = Errors::default();
            validate_share(&json!({"spec": {"x": value}}), "/spec/x", &mut errors);
            errors.into_vec().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        for good in [json!(0), json!(7), json!("0%"), json!("100%"), Value::Null] {
            assert_eq!(texts(good), Vec::<String>::new());
        }
        for (bad, word) in [
            (json!(-1), "spec.x: Invalid value: -1: must be greater than or equal to 0"),
            (json!("7"), "a valid percent string"),
            (json!("-7%"), "a valid percent string"),
            (json!("101%"), "must not be greater than 100%"),
            (json!("99999999999%"), "must not be greater than 100%"),
        ] {
            let found = texts(bad);
            assert!(found.len() == 1 && found[0].contains(word), "{found:?}");
        }
        let object = json!({"a": 0, "b": "00%", "c": "1%", "d": 1});
        let none = ["/a", "/b", "/c", "/d", "/e"].map(|pointer| is_no_share(&object, pointer));
        assert_eq!(none, [true, true, false, false, false]);
    }
}
