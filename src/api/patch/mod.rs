//! The three ways to patch an object, and the patch that `apply` makes.
//!
//! # Invariants
//!
//! - A patch is applied whole or not at all.
//! - Depth, operations and copied bytes have limits.

use serde_json::Value;

use crate::api::decode::DEPTH_MAX;
use crate::api::json::is_deeper_than;
use crate::api::resource::Resource;

mod json_patch_ops;
mod merge_keys;
mod strategic;
mod three_way;

/// Operations that one JSON patch may have (Kubernetes' limit).
pub const OPERATIONS_MAX: usize = 10_000;
/// Bytes that `copy` operations of one JSON patch may add.
pub const COPY_BYTES_MAX: usize = 3 * 1024 * 1024;

/// Why a patch cannot be applied. The object may then be half changed: throw it away.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch itself is wrong: answer 400.
    #[error("{0}")]
    Malformed(String),
    /// The patch is right but does not fit the object, such as a failed `test`: answer 422.
    #[error("{0}")]
    DoesNotApply(String),
    /// The patch is larger than a named limit: answer 413.
    #[error("{0}")]
    TooLarge(String),
}

/// Applies an RFC 6902 JSON patch.
///
/// # Errors
///
/// See [`PatchError`].
pub fn json(object: &mut Value, patch: &Value) -> Result<(), PatchError> {
    check_depth(patch)?;
    json_patch_ops::apply(object, patch)?;
    check_depth(object)
}

/// Applies an RFC 7386 merge patch.
///
/// # Errors
///
/// When the patch is no object, or nests too deeply.
pub fn merge(object: &mut Value, patch: &Value) -> Result<(), PatchError> {
    check_depth(patch)?;
    if !patch.is_object() {
        return Err(PatchError::Malformed("the merge patch must be a JSON object".to_owned()));
    }
    merge_value(object, patch);
    Ok(())
}

/// Applies a strategic merge patch with the merge keys of the kind's fields.
///
/// # Errors
///
/// See [`PatchError`].
pub fn strategic(res: &Resource, object: &mut Value, patch: &Value) -> Result<(), PatchError> {
    check_depth(patch)?;
    strategic::apply(res, object, patch)
}

/// The strategic merge patch that `apply` sends: makes an object as `wanted`, takes away what only
/// `last` (the object as it was applied before; null when it never was) asked for, and leaves alone
/// what others added.
#[must_use]
pub fn three_way(res: &Resource, last: &Value, wanted: &Value) -> Value {
    three_way::make(res, last, wanted)
}

fn check_depth(value: &Value) -> Result<(), PatchError> {
    if is_deeper_than(value, DEPTH_MAX) {
        return Err(PatchError::TooLarge(format!("nested deeper than {DEPTH_MAX} levels")));
    }
    Ok(())
}

fn merge_value(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.shift_remove(key);
        } else {
            merge_value(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}
