//! JSON patch.
use crate::api::patch::PatchError;
use serde_json::Value;
pub(super) fn apply(object: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let patch: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|err| PatchError::Malformed(err.to_string()))?;
    json_patch::patch(object, &patch).map_err(|err| PatchError::DoesNotApply(err.to_string()))
}
