//! LimitRange.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::LimitRange;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::Errors;
use crate::api::json::{entries_at, items_at, text_at};
use crate::api::quota::amount;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::{limit_range, meta, resource_names};

pub(super) const RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    plural: "limitranges",
    singular: "limitrange",
    kind: "LimitRange",
    list_kind: "LimitRangeList",
    description: "Bounds and defaults of what is asked for in a namespace.",
    short_names: &["limits"],
    categories: &[],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: false,
    has_scale: false,
    has_generation: false,
    subresources: &[],
    columns: &[Column::NAME, Column::text("Created At")],
    field_selectors: &[],
    strategy: Strategy {
        default: limit_range::complete,
        validate,
        cells: |object: &Value, _: Timestamp| {
            vec![json!(meta::name(object)), json!(meta::creation_timestamp(object))]
        },
        ..Strategy::plain(typed::<LimitRange>)
    },
};

/// The bounds in the order in which each must not exceed the next.
const RISING: [&str; 4] = ["min", "defaultRequest", "default", "max"];

fn validate(object: &Value, errors: &mut Errors) {
    let mut kinds: Vec<&str> = Vec::new();
    for (at, limit) in items_at(object, "/spec/limits").iter().enumerate() {
        let path = format!("spec.limits[{at}]");
        let kind = text_at(limit, "/type");
        if kind.is_empty() {
            errors.required(format!("{path}.type"));
        } else if kinds.contains(&kind) {
            errors.duplicate(format!("{path}.type"), &json!(kind));
        }
        kinds.push(kind);
        validate_names(&path, kind, limit, errors);
        validate_amounts(&path, limit, errors);
        if kind == "Pod" {
            for key in ["default", "defaultRequest"] {
                if limit.get(key).is_some_and(|given| given.is_object()) {
                    let detail = "may not be specified when `type` is 'Pod'";
                    errors.forbidden(format!("{path}.{key}"), detail);
                }
            }
        }
        let has_bound = |key: &str| limit.pointer(&format!("/{key}/storage")).is_some();
        if kind == "PersistentVolumeClaim" && !has_bound("min") && !has_bound("max") {
            let detail =
                "either minimum or maximum storage value is required, but neither was provided";
            errors.push(crate::api::FieldError::required(format!("{path}.limits"), detail));
        }
    }
}

fn validate_names(path: &str, kind: &str, limit: &Value, errors: &mut Errors) {
    if let Err(rule) = resource_names::check_limit_type(kind)
        && !kind.is_empty()
    {
        errors.invalid(format!("{path}.type"), &json!(kind), rule);
    }
    for key in RISING.iter().chain(&["maxLimitRequestRatio"]) {
        for (name, _) in entries_at(limit, &format!("/{key}")) {
            let checked = match kind {
                "Pod" | "Container" => resource_names::check_of_container(name),
                _ => resource_names::check_of_limit(name),
            };
            if let Err(rule) = checked {
                errors.invalid(format!("{path}.{key}[{name}]"), &json!(name), rule);
            }
        }
    }
}

fn validate_amounts(path: &str, limit: &Value, errors: &mut Errors) {
    for key in RISING.iter().chain(&["maxLimitRequestRatio"]) {
        for (name, value) in entries_at(limit, &format!("/{key}")) {
            if amount(value).is_none_or(|amount| amount.nanos() < 0) {
                let detail = "must be a quantity that is not negative";
                errors.invalid(format!("{path}.{key}[{name}]"), value, detail);
            }
        }
    }
    for (at, low) in RISING.iter().enumerate() {
        for (name, value) in entries_at(limit, &format!("/{low}")) {
            let Some(least) = amount(value) else { continue };
            let above = RISING.iter().skip(at + 1).find_map(|high| {
                let most = limit.pointer(&format!("/{high}"))?.get(name).and_then(amount)?;
                (least.nanos() > most.nanos()).then_some((high, most))
            });
            if let Some((high, most)) = above {
                let word = |key: &str| match key {
                    "defaultRequest" => "default request".to_owned(),
                    other => other.to_owned(),
                };
                let detail = format!(
                    "{} value {least} is greater than {} value {most}",
                    word(low),
                    word(high)
                );
                errors.invalid(format!("{path}.{low}[{name}]"), value, &detail);
            }
        }
    }
    for (name, value) in entries_at(limit, "/maxLimitRequestRatio") {
        if amount(value).is_some_and(|ratio| ratio.nanos() < 1_000_000_000) {
            let detail = format!("ratio {} is less than 1", text_at(value, ""));
            errors.invalid(format!("{path}.maxLimitRequestRatio[{name}]"), value, &detail);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_must_not_contradict_each_other() {
        let refused = |limit: &Value| {
            let mut errors = Errors::default();
            validate(&json!({"spec": {"limits": [limit]}}), &mut errors);
            errors.into_vec().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let fine = json!({"type": "Container", "min": {"cpu": "1"}, "max": {"cpu": "2"}});
        assert_eq!(refused(&fine), Vec::<String>::new());
        for (limit, said) in [
            (json!({}), "spec.limits[0].type: Required value"),
            (
                json!({"type": "Container", "min": {"cpu": "3"}, "max": {"cpu": "2"}}),
                "min value 3 is greater than max value 2",
            ),
            (
                json!({"type": "Container", "default": {"cpu": "1"}, "defaultRequest": {"cpu": "2"}}),
                "default request value 2 is greater than default value 1",
            ),
            (json!({"type": "Pod", "default": {"cpu": "1"}}), "may not be specified"),
            (json!({"type": "PersistentVolumeClaim"}), "either minimum or maximum"),
            (json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "500m"}}), "less than 1"),
            (json!({"type": "Container", "max": {"cpu": "-1"}}), "not negative"),
        ] {
            let errors = refused(&limit);
            assert!(errors.len() == 1 && errors[0].contains(said), "{limit}: {errors:?}");
        }
    }
}
