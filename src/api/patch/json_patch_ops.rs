//! JSON patch (RFC 6902), with limits.

use serde_json::Value;

use crate::api::patch::{COPY_BYTES_MAX, OPERATIONS_MAX, PatchError};

pub(super) fn apply(object: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let operations = patch.as_array().map_or(0, Vec::len);
    if operations > OPERATIONS_MAX {
        let message =
            format!("the patch has {operations} operations, at most {OPERATIONS_MAX} are allowed");
        return Err(PatchError::TooLarge(message));
    }
    let copies = patch
        .as_array()
        .into_iter()
        .flatten()
        .filter(|operation| operation.get("op").and_then(Value::as_str) == Some("copy"));
    // Each copy can at most double the object: what all of them could add is bounded before any runs.
    let size = object.to_string().len();
    let mut added = 0_usize;
    for _ in copies {
        added = added.saturating_mul(2).saturating_add(size);
        if added > COPY_BYTES_MAX {
            return Err(PatchError::TooLarge(format!(
                "copies may add at most {COPY_BYTES_MAX} bytes"
            )));
        }
    }
    let patch: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|err| PatchError::Malformed(err.to_string()))?;
    json_patch::patch(object, &patch).map_err(|err| PatchError::DoesNotApply(err.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn operations_apply_and_failed_tests_do_not() {
        let mut object = json!({"a": 1});
        apply(&mut object, &json!([{"op": "add", "path": "/b", "value": 2}])).unwrap();
        assert_eq!(object, json!({"a": 1, "b": 2}));
        let failed = apply(&mut object, &json!([{"op": "test", "path": "/a", "value": 9}]));
        assert!(matches!(failed, Err(PatchError::DoesNotApply(_))));
        assert!(matches!(apply(&mut object, &json!({})), Err(PatchError::Malformed(_))));
    }

    #[test]
    fn a_patch_that_grows_without_end_is_refused() {
        let mut object = json!({"a": "x".repeat(100)});
        let bomb: Vec<Value> =
            (0..40).map(|n| json!({"op": "copy", "from": "", "path": format!("/k{n}")})).collect();
        assert!(matches!(apply(&mut object, &Value::Array(bomb)), Err(PatchError::TooLarge(_))));
    }
}
