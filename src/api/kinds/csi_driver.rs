//! CSIDriver. No driver runs here: the object is kept for those who ask for it.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::storage::v1::CSIDriver;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::{Errors, FieldError};
use crate::api::json::{child, is_true, items_at, set, set_default, text_at};
use crate::api::meta;
use crate::api::names;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;

pub(super) const RESOURCE: Resource = Resource {
    group: "storage.k8s.io",
    version: "v1",
    plural: "csidrivers",
    singular: "csidriver",
    kind: "CSIDriver",
    list_kind: "CSIDriverList",
    description: "What a driver of storage can do, and wants to be told.",
    short_names: &[],
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
        Column::boolean("AttachRequired"),
        Column::boolean("PodInfoOnMount"),
        Column::boolean("StorageCapacity"),
        Column::text("TokenRequests"),
        Column::boolean("RequiresRepublish"),
        Column::text("Modes"),
        Column::AGE,
    ],
    field_selectors: &[],
    strategy: Strategy {
        default,
        validate,
        validate_update,
        cells,
        ..Strategy::plain(typed::<CSIDriver>)
    },
};

/// Longest name of a driver.
const NAME_LEN_MAX: usize = 63;
/// Shortest and longest life of a token, in seconds.
const TOKEN_SECONDS_MIN: i64 = 600;
const TOKEN_SECONDS_MAX: i64 = 1 << 32;
/// Shortest time between two counts of what a node takes, in seconds.
const PERIOD_SECONDS_MIN: i64 = 10;

/// Checks the name of a driver where another kind tells it.
pub(super) fn validate_name(name: &str, field: &str, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(field);
        return;
    }
    if name.len() > NAME_LEN_MAX {
        errors.push(FieldError::too_long(field, NAME_LEN_MAX));
    }
    if let Err(rule) = names::check_dns1123_subdomain(&name.to_lowercase()) {
        errors.invalid(field, &json!(name), rule);
    }
}

fn default(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    set_default(spec, "attachRequired", true);
    for key in ["podInfoOnMount", "requiresRepublish", "seLinuxMount", "storageCapacity"] {
        set_default(spec, key, false);
    }
    set_default(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    if items_at(spec, "/volumeLifecycleModes").is_empty() {
        set(spec, "volumeLifecycleModes", json!(["Persistent"]));
    }
}

fn validate(object: &Value, errors: &mut Errors) {
    let spec = object.get("spec").unwrap_or(&Value::Null);
    if let Some(policy) = spec.get("fsGroupPolicy").filter(|policy| !policy.is_null()) {
        let known = ["File", "None", "ReadWriteOnceWithFSType"];
        errors.one_of("spec.fsGroupPolicy", policy, &known);
    }
    for mode in items_at(spec, "/volumeLifecycleModes") {
        errors.one_of("spec.volumeLifecycleModes", mode, &["Persistent", "Ephemeral"]);
    }
    let period = spec.get("nodeAllocatableUpdatePeriodSeconds").unwrap_or(&Value::Null);
    if period.as_i64().is_some_and(|seconds| seconds < PERIOD_SECONDS_MIN) {
        let field = "spec.nodeAllocatableUpdatePeriodSeconds";
        errors.invalid(field, period, "must be greater than or equal to 10 seconds");
    }
    validate_tokens(spec, errors);
}

fn validate_tokens(spec: &Value, errors: &mut Errors) {
    let requests = items_at(spec, "/tokenRequests");
    let mut audiences = BTreeSet::new();
    for (at, request) in requests.iter().enumerate() {
        let path = format!("spec.tokenRequests[{at}]");
        let audience = text_at(request, "/audience");
        if !audiences.insert(audience) {
            errors.duplicate(format!("{path}.audience"), &json!(audience));
            continue;
        }
        let seconds = request.get("expirationSeconds").unwrap_or(&Value::Null);
        let detail = match seconds.as_i64() {
            Some(number) if number < TOKEN_SECONDS_MIN => {
                "may not specify a duration less than 10 minutes"
            }
            Some(number) if number > TOKEN_SECONDS_MAX => {
                "may not specify a duration larger than 2^32 seconds"
            }
            _ => continue,
        };
        errors.invalid(format!("{path}.expirationSeconds"), seconds, detail);
    }
    let in_secrets = spec.get("serviceAccountTokenInSecrets").unwrap_or(&Value::Null);
    if !in_secrets.is_null() && requests.is_empty() {
        errors.invalid(
            "spec.serviceAccountTokenInSecrets",
            in_secrets,
            "serviceAccountTokenInSecrets is set but no tokenRequests are specified",
        );
    }
}

fn validate_update(old: &Value, new: &Value, errors: &mut Errors) {
    for key in ["attachRequired", "volumeLifecycleModes"] {
        let pointer = format!("/spec/{key}");
        let sent = new.pointer(&pointer);
        if old.pointer(&pointer) != sent {
            let sent = sent.unwrap_or(&Value::Null);
            errors.invalid(format!("spec.{key}"), sent, "field is immutable");
        }
    }
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let requests = object.pointer("/spec/tokenRequests").and_then(Value::as_array);
    let audiences = requests.map_or_else(
        || "<unset>".to_owned(),
        |requests| {
            let audiences = requests.iter().map(|request| text_at(request, "/audience"));
            audiences.collect::<Vec<_>>().join(",")
        },
    );
    let modes = items_at(object, "/spec/volumeLifecycleModes").iter().filter_map(Value::as_str);
    let modes = modes.collect::<Vec<_>>().join(",");
    vec![
        json!(meta::name(object)),
        json!(is_true(object, "/spec/attachRequired")),
        json!(is_true(object, "/spec/podInfoOnMount")),
        json!(is_true(object, "/spec/storageCapacity")),
        json!(audiences),
        json!(is_true(object, "/spec/requiresRepublish")),
        json!(if modes.is_empty() { "<none>" } else { modes.as_str() }),
        json!(age(object, now)),
    ]
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
    fn a_driver_is_completed_and_its_row_is_as_kubectl_prints_it() {
        let mut driver = json!({"metadata": {"name": "d"}});
        default(&mut driver);
        let wanted = json!({"attachRequired": true, "podInfoOnMount": false, "seLinuxMount": false,
            "requiresRepublish": false, "storageCapacity": false,
            "fsGroupPolicy": "ReadWriteOnceWithFSType", "volumeLifecycleModes": ["Persistent"]});
        assert_eq!(driver["spec"], wanted);
        assert_eq!(texts(|errors| validate(&driver, errors)), Vec::<String>::new());
        let row = cells(&driver, Timestamp::UNIX_EPOCH);
        let wanted = json!(["d", true, false, false, "<unset>", false, "Persistent"]);
        assert_eq!(json!(row[..7]), wanted);
        driver["spec"]["tokenRequests"] = json!([{"audience": "a"}, {"audience": "b"}]);
        assert_eq!(cells(&driver, Timestamp::UNIX_EPOCH)[4], "a,b");
    }

    #[test]
    fn policy_modes_period_and_tokens_of_a_driver_are_checked() {
        let driver = json!({"spec": {"fsGroupPolicy": "Some", "volumeLifecycleModes": ["Brief"],
            "nodeAllocatableUpdatePeriodSeconds": 9, "tokenRequests": [
                {"audience": "a", "expirationSeconds": 599},
                {"audience": "b", "expirationSeconds": 4_294_967_297_i64},
                {"audience": "a"}]}});
        let found = texts(|errors| validate(&driver, errors));
        let wanted = [
            "spec.fsGroupPolicy: Unsupported value",
            "spec.volumeLifecycleModes: Unsupported value",
            "spec.nodeAllocatableUpdatePeriodSeconds: Invalid value: 9",
            "spec.tokenRequests[0].expirationSeconds: Invalid value: 599",
            "spec.tokenRequests[1].expirationSeconds: Invalid value: 4294967297",
            "spec.tokenRequests[2].audience: Duplicate value",
        ];
        assert_eq!(found.len(), wanted.len(), "{found:?}");
        for (found, wanted) in found.iter().zip(wanted) {
            assert!(found.starts_with(wanted), "{wanted} in {found}");
        }
        let alone = json!({"spec": {"serviceAccountTokenInSecrets": false}});
        let found = texts(|errors| validate(&alone, errors));
        assert!(found[0].ends_with("is set but no tokenRequests are specified"), "{found:?}");
    }

    #[test]
    fn whether_a_driver_attaches_and_what_for_it_is_used_stay() {
        let driver = |attaches: bool, modes: Value, has_pod: bool| {
            json!({"spec": {"attachRequired": attaches, "volumeLifecycleModes": modes,
                "podInfoOnMount": has_pod}})
        };
        let old = driver(true, json!(["Persistent"]), false);
        let changed = |new: &Value| texts(|errors| validate_update(&old, new, errors)).len();
        assert_eq!(changed(&driver(true, json!(["Persistent"]), true)), 0);
        assert_eq!(changed(&driver(false, json!(["Persistent"]), false)), 1);
        assert_eq!(changed(&driver(false, json!(["Ephemeral"]), false)), 2);
    }
}
