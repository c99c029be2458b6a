//! `autoscaling/v1` Scale of kinds that have `/scale`.

use serde_json::{Value, json};

use crate::api::field_error::FieldError;
use crate::api::json::{child, int_at, set};
use crate::api::meta;
use crate::api::resource::Resource;
use crate::api::selector::LabelSelector;

/// The Scale of `object`.
#[must_use]
pub fn get(res: &Resource, object: &Value) -> Value {
    debug_assert!(res.has_scale, "{} has no scale", res.kind);
    let selector = object
        .pointer("/spec/selector")
        .and_then(|selector| LabelSelector::of_workload(selector).ok())
        .map(|selector| selector.to_string())
        .unwrap_or_default();
    let metadata = object.get("metadata").cloned().unwrap_or_else(|| json!({}));
    let kept = ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"];
    let metadata: serde_json::Map<String, Value> = kept
        .into_iter()
        .filter_map(|key| Some((key.to_owned(), metadata.get(key)?.clone())))
        .collect();
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": { "replicas": int_at(object, "/spec/replicas").unwrap_or(0) },
        "status": {
            "replicas": int_at(object, "/status/replicas").unwrap_or(0),
            "selector": selector,
        },
    })
}

/// Writes the replicas of `scale`, and its resource version if it has one, into `object`.
///
/// # Errors
///
/// What is wrong with `scale`; answer 422.
pub fn apply(res: &Resource, object: &mut Value, scale: &Value) -> Result<(), FieldError> {
    debug_assert!(res.has_scale, "{} has no scale", res.kind);
    let sent = scale.pointer("/spec/replicas");
    let replicas = match sent {
        None | Some(Value::Null) => 0,
        Some(value) => {
            let number = value.as_i64().unwrap_or(i64::MAX);
            let rule = if number < 0 { NOT_NEGATIVE } else { NOT_HUGE };
            i32::try_from(number)
                .ok()
                .filter(|number| *number >= 0)
                .ok_or_else(|| FieldError::invalid("spec.replicas", value, rule))?
        }
    };
    if let Some(spec) = child(object, "spec") {
        set(spec, "replicas", replicas);
    }
    let version = meta::resource_version(scale).to_owned();
    if !version.is_empty() {
        meta::set_field(object, "resourceVersion", version);
    }
    Ok(())
}

const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
const NOT_HUGE: &str = "must be a number of at most 2147483647";
