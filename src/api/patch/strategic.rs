//! Strategic merge.
use serde_json::Value;
use crate::api::patch::{PatchError, merge_value};
use crate::api::resource::Resource;
pub(super) fn apply(_res: &Resource, object: &mut Value, patch: &Value) -> Result<(), PatchError> {
    merge_value(object, patch);
    Ok(())
}
