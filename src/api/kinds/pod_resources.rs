//! Checks of what a container asks for, and of what it is limited to.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::api::field_error::Errors;
use crate::api::json::{entries_at, items_at, text_at};
use crate::api::quantity::Quantity;
use crate::api::quota::amount;
use crate::api::resource_names::{check_of_container, is_never_overcommitted};

/// Checks `resources` of `holder`; `field` is the holder's path.
pub(super) fn validate(holder: &Value, field: &str, errors: &mut Errors) {
    for list in ["limits", "requests"] {
        for (name, amount) in entries_at(holder, &format!("/resources/{list}")) {
            let path = format!("{field}.resources.{list}[{name}]");
            if let Err(rule) = check_of_container(name) {
                errors.invalid(&path, &name.as_str().into(), rule);
            }
            match nanos(amount) {
                None => errors.invalid(path, amount, "must be a quantity such as 100m or 64Mi"),
                Some(nanos) if nanos < 0 => {
                    errors.invalid(path, amount, "must be greater than or equal to 0");
                }
                Some(nanos) if is_never_overcommitted(name) && nanos % 1_000_000_000 != 0 => {
                    errors.invalid(path, amount, "must be an integer");
                }
                Some(_) => {}
            }
        }
    }
    let mut seen = BTreeSet::new();
    for (at, policy) in items_at(holder, "/resizePolicy").iter().enumerate() {
        let of = |key: &str| policy.get(key).unwrap_or(&Value::Null);
        let path = format!("{field}.resizePolicy");
        errors.one_of(&path, of("resourceName"), &["cpu", "memory"]);
        errors.one_of(&path, of("restartPolicy"), &["NotRequired", "RestartContainer"]);
        if !seen.insert(text_at(policy, "/resourceName")) {
            errors.duplicate(format!("{path}[{at}]"), of("resourceName"));
        }
    }
    for (name, request) in entries_at(holder, "/resources/requests") {
        let limit = holder.pointer("/resources/limits").and_then(|limits| limits.get(name));
        check_request(name, request, limit, field, errors);
    }
}

fn check_request(
    name: &str,
    request: &Value,
    limit: Option<&Value>,
    field: &str,
    errors: &mut Errors,
) {
    let is_exact = is_never_overcommitted(name);
    let Some(limit) = limit else {
        if is_exact {
            let detail = "Limit must be set for non overcommitable resources";
            errors.required_because(format!("{field}.resources.limits"), detail);
        }
        return;
    };
    let (Some(asked), Some(most)) = (nanos(request), nanos(limit)) else { return };
    let rule = match asked.cmp(&most) {
        std::cmp::Ordering::Equal => return,
        _ if is_exact => "equal to",
        std::cmp::Ordering::Less => return,
        std::cmp::Ordering::Greater => "less than or equal to",
    };
    let detail = format!("must be {rule} {name} limit of {}", text(limit));
    errors.invalid(format!("{field}.resources.requests"), request, &detail);
}

fn text(amount: &Value) -> String {
    amount.as_str().map_or_else(|| amount.to_string(), str::to_owned)
}

fn nanos(value: &Value) -> Option<i128> {
    amount(value).map(Quantity::nanos)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_resource_has_one_way_to_be_resized() {
        let policy =
            |name: &str, policy: &str| json!({"resourceName": name, "restartPolicy": policy});
        let refused = |policies: Value| {
            let mut errors = Errors::default();
            validate(&json!({"resizePolicy": policies}), "c", &mut errors);
            errors.into_vec().iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        let cpu = policy("cpu", "NotRequired");
        assert_eq!(refused(json!([cpu, policy("memory", "RestartContainer")])), "");
        assert_eq!(refused(json!([cpu, cpu])), "c.resizePolicy[1]: Duplicate value: \"cpu\"");
        for (policy, said) in [
            (policy("gpu", "NotRequired"), "c.resizePolicy: Unsupported value: \"gpu\""),
            (policy("cpu", "Foo"), "c.resizePolicy: Unsupported value: \"Foo\""),
        ] {
            assert!(refused(json!([policy])).starts_with(said), "{said}");
        }
    }

    #[test]
    fn what_is_asked_for_has_a_name_and_a_right_amount() {
        let refused = |resources: &Value| {
            let mut errors = Errors::default();
            validate(&json!({"resources": resources}), "c", &mut errors);
            errors.into_vec().iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        for fine in [
            json!({"limits": {"cpu": "0.5", "memory": 1024, "x.io/cam": "2"}, "requests": {"x.io/cam": 2}}),
            json!({"requests": {"cpu": "100m", "ephemeral-storage": "0"}}),
        ] {
            assert_eq!(refused(&fine), "");
        }
        for (resources, said) in [
            (
                json!({"limits": {"foo": "1"}}),
                "c.resources.limits[foo]: Invalid value: \"foo\": must be a standard resource for containers",
            ),
            (json!({"limits": {"cpu": "x"}}), "must be a quantity"),
            (
                json!({"limits": {"memory": "-1"}}),
                "c.resources.limits[memory]: Invalid value: \"-1\": must be greater than or equal to 0",
            ),
            (json!({"limits": {"x.io/cam": "500m"}}), "must be an integer"),
            (
                json!({"requests": {"x.io/cam": "1"}}),
                "c.resources.limits: Required value: Limit must be set",
            ),
            (
                json!({"requests": {"x.io/cam": "1"}, "limits": {"x.io/cam": "2"}}),
                "must be equal to x.io/cam limit of 2",
            ),
            (
                json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}),
                "c.resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            ),
        ] {
            let found = refused(&resources);
            assert!(found.contains(said), "{resources}: {found}");
        }
    }
}
