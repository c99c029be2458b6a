//! Strategic merge.
use crate::api::patch::{PatchError, merge_value};
use crate::api::resource::Resource;
use serde_json::Value;
pub(super) fn apply(_res: &Resource, object: &mut Value, patch: &Value) -> Result<(), PatchError> {
    merge_value(object, patch);
    Ok(())
}
