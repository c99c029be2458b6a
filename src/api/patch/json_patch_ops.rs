//! JSON patch (RFC 6902), with limits.

use json_patch::PatchOperation;
use serde::Deserialize as _;
use serde_json::Value;

use crate::api::patch::{COPY_BYTES_MAX, OPERATIONS_MAX, PatchError};

pub(super) fn apply(object: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let operations = patch.as_array().map_or(0, Vec::len);
    if operations > OPERATIONS_MAX {
        let message =
            format!("the patch has {operations} operations, at most {OPERATIONS_MAX} are allowed");
        return Err(PatchError::TooLarge(message));
    }
    let patch: Vec<PatchOperation> =
        Vec::deserialize(patch).map_err(|err| PatchError::Malformed(err.to_string()))?;
    let mut copied = 0_usize;
    for operation in &patch {
        if let PatchOperation::Copy(copy) = operation {
            let source = object.pointer(copy.from.as_str());
            copied = copied.saturating_add(source.map_or(0, |source| source.to_string().len()));
            if copied > COPY_BYTES_MAX {
                return Err(PatchError::TooLarge(format!(
                    "copies may add at most {COPY_BYTES_MAX} bytes"
                )));
            }
        }
        // One at a time, so that each copy is measured before it is made.
        json_patch::patch_unsafe(object, std::slice::from_ref(operation))
            .map_err(|err| PatchError::DoesNotApply(err.to_string()))?;
    }
    Ok(())
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

    #[test]
    fn many_small_copies_of_a_large_object_are_no_bomb() {
        let mut object = json!({"a": "x".repeat(100_000), "b": "y"});
        let copies: Vec<Value> = (0..50)
            .map(|n| json!({"op": "copy", "from": "/b", "path": format!("/k{n}")}))
            .collect();
        apply(&mut object, &Value::Array(copies)).unwrap();
        assert_eq!(object["k49"], "y");
    }

    #[test]
    fn too_many_operations_are_refused() {
        let one = json!({"op": "test", "path": "", "value": {}});
        let many = Value::Array(vec![one; OPERATIONS_MAX + 1]);
        assert!(matches!(apply(&mut json!({}), &many), Err(PatchError::TooLarge(_))));
    }
}
