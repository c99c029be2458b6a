//! What Kubernetes' PersistentVolumeClaimResize admission does: a claim grows only if its class says so.

use serde_json::Value;

use crate::api::json::{is_true, text_at};
use crate::api::quantity::Quantity;
use crate::api::quota::amount;
use crate::api::status::Status;
use crate::api::{self, meta};
use crate::apiserver::error::ApiError;
use crate::apiserver::router::Call;
use crate::store::{Freshness, Key};

/// Where the name of the class stands.
const CLASS: &str = "/spec/storageClassName";
/// In Kubernetes' words.
const REFUSAL: &str = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";

/// Judges a change of a claim.
///
/// # Errors
///
/// 403 when it asks for more than `old` did, and its class does not allow that or is not there.
pub(super) async fn admit(call: &Call, old: &Value, claim: &Value) -> Result<(), ApiError> {
    let resource = call.info.resource;
    let is_claim = resource.group.is_empty() && resource.plural == "persistentvolumeclaims";
    if !is_claim || size(claim) <= size(old) {
        return Ok(());
    }
    let (name, had) = (text_at(claim, CLASS), text_at(old, CLASS));
    if !name.is_empty() && name == had && may_grow(call, name).await? {
        return Ok(());
    }
    Err(Status::forbidden(resource, meta::name(claim), REFUSAL).into())
}

/// What the claim asks for, in billionths of a byte.
fn size(claim: &Value) -> i128 {
    let asked = claim.pointer("/spec/resources/requests/storage").and_then(amount);
    asked.map_or(0, Quantity::nanos)
}

/// Whether claims of the class may grow. The local copy is enough for a "yes".
async fn may_grow(call: &Call, class: &str) -> Result<bool, ApiError> {
    let Some(resource) = api::find("storage.k8s.io", "v1", "storageclasses") else {
        return Ok(false);
    };
    let key = Key::new(resource, None, class);
    for freshness in [Freshness::Any, Freshness::Latest] {
        let found = call.context.store.get(&key, freshness).await;
        let found = found.map_err(|error| ApiError::store(error, &key))?;
        if found.is_some_and(|stored| is_true(&stored.object, "/allowVolumeExpansion")) {
            return Ok(true);
        }
    }
    Ok(false)
}
