//! Counters that several devices of a pool draw on, such as the memory of a card that is cut up. KEP-4815.
//! They are kept and checked; no device that draws on any is given out here.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::api::field_error::{Errors, FieldError};
use crate::api::json::{entries_at, items_at, len_at, text_at};
use crate::api::names;
use crate::api::quota::amount;

/// Counters of one set.
const COUNTERS_MAX: usize = 32;

/// A list of sets of counters.
struct List {
    field: &'static str,
    /// The field that names a set.
    key: &'static str,
    sets_max: usize,
}

const SHARED: List = List { field: "sharedCounters", key: "name", sets_max: 8 };
const CONSUMED: List = List { field: "consumesCounters", key: "counterSet", sets_max: 2 };

/// Checks the counters that a slice has instead of devices.
pub(super) fn validate_shared(spec: &Value, errors: &mut Errors) {
    let is_said = |field: &str| !items_at(spec, field).is_empty();
    if is_said("/devices") && is_said("/sharedCounters") {
        let detail = "only one of `sharedCounters` or `devices` is allowed";
        errors.invalid("spec", &json!("{sharedCounters, devices}"), detail);
    }
    validate_sets(spec, &SHARED, "spec", errors);
}

/// Checks what a device takes of them; `path` is the device's.
pub(super) fn validate_consumed(device: &Value, path: &str, errors: &mut Errors) {
    validate_sets(device, &CONSUMED, path, errors);
}

fn validate_sets(holder: &Value, list: &List, path: &str, errors: &mut Errors) {
    let (path, key) = (format!("{path}.{}", list.field), list.key);
    let sets = items_at(holder, &format!("/{}", list.field));
    if sets.len() > list.sets_max {
        errors.push(FieldError::too_many(path.as_str(), sets.len(), list.sets_max));
    }
    let mut known = BTreeSet::new();
    for (at, set) in sets.iter().enumerate() {
        let path = format!("{path}[{at}]");
        let name = text_at(set, &format!("/{key}"));
        if name.is_empty() {
            errors.required(format!("{path}.{key}"));
        } else if let Err(rule) = names::check_dns1123_label(name) {
            errors.invalid(format!("{path}.{key}"), &json!(name), rule);
        } else if !known.insert(name) {
            errors.duplicate(format!("{path}.{key}"), &json!(name));
        }
        validate_counters(set, &format!("{path}.counters"), errors);
    }
}

fn validate_counters(set: &Value, path: &str, errors: &mut Errors) {
    match len_at(set, "/counters") {
        0 => errors.required(path),
        count if count > COUNTERS_MAX => {
            errors.push(FieldError::too_many(path, count, COUNTERS_MAX));
        }
        _ => {}
    }
    for (name, counter) in entries_at(set, "/counters") {
        let path = format!("{path}[{name}]");
        if let Err(rule) = names::check_dns1123_label(name) {
            errors.invalid(path.as_str(), &json!(name), rule);
        }
        let value = counter.get("value").unwrap_or(&Value::Null);
        if amount(value).is_none() {
            let detail = "must be a quantity such as 100m or 64Mi";
            errors.invalid(format!("{path}.value"), value, detail);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_named_and_have_amounts() {
        let texts = |check: fn(&Value, &mut Errors), holder: Value| {
            let mut errors = Errors::default();
            check(&holder, &mut errors);
            errors.into_vec().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let consumed = |device: &Value, errors: &mut Errors| validate_consumed(device, "d", errors);
        let none = Vec::<String>::new();
        let set = json!({"name": "card", "counters": {"memory": {"value": "8Gi"}}});
        assert_eq!(texts(validate_shared, json!({"sharedCounters": [set]})), none);
        let part = json!({"counterSet": "card", "counters": {"memory": {"value": "1Gi"}}});
        assert_eq!(texts(consumed, json!({"consumesCounters": [part]})), none);
        for (sets, wanted) in [
            (json!([set, set]), "spec.sharedCounters[1].name: Duplicate value: \"card\""),
            (json!([{"counters": set["counters"]}]), "spec.sharedCounters[0].name: Required value"),
            (json!([{"name": "card"}]), "spec.sharedCounters[0].counters: Required value"),
            (
                json!([{"name": "card", "counters": {"memory": {"value": "much"}}}]),
                "spec.sharedCounters[0].counters[memory].value: Invalid value: \"much\"",
            ),
        ] {
            let found = texts(validate_shared, json!({"sharedCounters": sets}));
            assert!(found.len() == 1 && found[0].starts_with(wanted), "{wanted} in {found:?}");
        }
        let both = json!({"sharedCounters": [set], "devices": [{"name": "a"}]});
        assert_eq!(
            texts(validate_shared, both),
            [
                "spec: Invalid value: \"{sharedCounters, devices}\": only one of `sharedCounters` or `devices` is allowed"
            ]
        );
        let of = |name: &str| json!({"counterSet": name, "counters": part["counters"]});
        let found = texts(consumed, json!({"consumesCounters": [of("a"), of("b"), of("c")]}));
        assert_eq!(found, ["d.consumesCounters: Too many: 3: must have at most 2 items"]);
    }
}
