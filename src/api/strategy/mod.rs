//! What happens to an object on its way into the store: complete, prepare, check.
//!
//! Order on a create: [`decode()`] → [`prepare_create`] → admission → [`validate_create`].
//! Order on an update: [`decode()`] → [`prepare_update`] → [`validate_update`].
//! On `/status`: [`decode()`] → [`prepare_status_update`] → [`validate_update`].
//!
//! # Invariants
//!
//! - What only the server sets is never taken from a client.
//! - `status` and the rest of an object are never changed by one write.

use serde_json::{Value, json};

use crate::api::decode;
use crate::api::field_error::{Errors, FieldError};
use crate::api::json::{copy_key, is_empty, remove, set};
use crate::api::meta;
use crate::api::resource::Resource;
use crate::api::schema;

mod object_meta;

/// Metadata that only the server writes.
const SERVER_SET: &[&str] = &[
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "selfLink",
];

/// Completes a new object: type, defaults, no status, generation 1, nothing that only the server
/// sets. Uid, creation time and name generation are the caller's ([`meta::set_created`]).
pub fn prepare_create(res: &Resource, object: &mut Value) {
    meta::set_type(object, res);
    if object.get("metadata").is_none_or(|metadata| !metadata.is_object()) {
        set(object, "metadata", json!({}));
    }
    for key in SERVER_SET.iter().chain(&["resourceVersion"]) {
        meta::remove_field(object, key);
    }
    if res.has_status {
        remove(object, "status");
    }
    if res.has_generation {
        meta::set_generation(object, 1);
    }
    object_meta::tidy(object);
    (res.strategy.prepare_create)(object);
    (res.strategy.default)(object);
}

/// Completes a new object that has its name and uid.
pub fn identify(res: &Resource, object: &mut Value) {
    (res.strategy.identify)(object);
}

/// Completes a changed object from the stored one: server-set metadata and status are the old
/// ones, and the generation rises if the spec changed.
pub fn prepare_update(res: &Resource, old: &Value, new: &mut Value) {
    meta::set_type(new, res);
    keep_server_set(old, new);
    if res.has_status {
        copy_key(old, new, "status");
    }
    object_meta::tidy(new);
    (res.strategy.prepare_update)(old, new);
    (res.strategy.default)(new);
    if res.has_generation && is_spec_changed(old, new) {
        meta::set_generation(new, meta::generation(old).saturating_add(1));
    }
}

/// Completes a write to `/status`: all is old but the status, and `metadata.resourceVersion` and
/// `managedFields` as sent.
pub fn prepare_status_update(res: &Resource, old: &Value, new: &mut Value) {
    let mut result = old.clone();
    copy_key(new, &mut result, "status");
    for key in ["resourceVersion", "managedFields"] {
        if let Some(value) = new.get("metadata").and_then(|metadata| metadata.get(key)) {
            meta::set_field(&mut result, key, value.clone());
        }
    }
    meta::set_type(&mut result, res);
    // Kubernetes also takes labels and annotations here; no write changes both halves with us.
    *new = result;
}

/// Whether anything but metadata and status differs.
#[must_use]
pub fn is_spec_changed(old: &Value, new: &Value) -> bool {
    let rest = |object: &Value| -> Option<serde_json::Map<String, Value>> {
        let mut map = object.as_object()?.clone();
        for key in ["apiVersion", "kind", "metadata", "status"] {
            map.shift_remove(key);
        }
        map.retain(|_, value| !is_empty(Some(value)));
        Some(map)
    };
    rest(old) != rest(new)
}

/// Checks a new object. Empty: it may be stored.
#[must_use]
pub fn validate_create(res: &Resource, object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    object_meta::validate(res, object, &mut errors);
    (res.strategy.validate)(object, &mut errors);
    (res.strategy.validate_create)(object, &mut errors);
    errors.into_vec()
}

/// Checks a changed object against the stored one. Empty: it may be stored. What was wrong before, and
/// was stored by a version that did not know better, may stay.
#[must_use]
pub fn validate_update(res: &Resource, old: &Value, new: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    object_meta::validate(res, new, &mut errors);
    object_meta::validate_update(old, new, &mut errors);
    new_faults(res, old, new).into_iter().for_each(|error| errors.push(error));
    (res.strategy.validate_update)(old, new, &mut errors);
    errors.into_vec()
}

/// What is wrong with `new` and was not with `old`.
pub(in crate::api) fn new_faults(res: &Resource, old: &Value, new: &Value) -> Vec<FieldError> {
    let of = |object: &Value| {
        let mut errors = Errors::default();
        (res.strategy.validate)(object, &mut errors);
        errors.into_vec()
    };
    let mut found = of(new);
    if !found.is_empty() {
        let known = of(old);
        found.retain(|error| !known.contains(error));
    }
    found
}

/// What the server accepts and ignores, one text for a `Warning` header each.
#[must_use]
pub fn warnings(res: &Resource, object: &Value) -> Vec<String> {
    (res.strategy.warnings)(object)
}

/// Checks that the object has the types of its kind: numbers where numbers belong; writes its quantities in
/// canonical form, and drops nulls and fields that the kind does not have. Returns the paths of these
/// fields, such as `spec.replica`; for `fieldValidation`. With a bad quantity in `old`, which is stored
/// already, those of the object are not looked at: it could never be changed any more.
///
/// # Errors
///
/// The message of a 400.
pub fn decode(
    res: &Resource,
    object: &mut Value,
    old: Option<&Value>,
) -> Result<Vec<String>, String> {
    let handled = |err| {
        let kind = res.kind;
        format!("{kind} in version {:?} cannot be handled as a {kind}: {err}", res.version)
    };
    if crate::api::json::is_deeper_than(object, decode::DEPTH_MAX) {
        return Err(format!("the object is nested deeper than {} levels", decode::DEPTH_MAX));
    }
    if let Err(why) = schema::canonicalize(res, object) {
        let was_bad = |old: &Value| schema::canonicalize(res, &mut old.clone()).is_err();
        if !old.is_some_and(was_bad) {
            return Err(handled(why));
        }
    }
    let known = (res.strategy.decode)(object).map_err(handled)?;
    Ok(decode::drop_lost(object, &known))
}

fn keep_server_set(old: &Value, new: &mut Value) {
    if new.get("metadata").is_none_or(|metadata| !metadata.is_object()) {
        set(new, "metadata", json!({}));
    }
    let Some(old) = old.get("metadata") else { return };
    let Some(new) = new.get_mut("metadata") else { return };
    for key in SERVER_SET {
        copy_key(old, new, key);
    }
}
