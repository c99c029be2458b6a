//! What Kubernetes' RuntimeClass admission does: a new pod gets what the class that it names says.

use serde_json::Value;

use crate::api::json::text_at;
use crate::api::status::Status;
use crate::api::{self, meta, runtime_class};
use crate::apiserver::error::ApiError;
use crate::apiserver::router::Call;
use crate::store::{Freshness, Key};

/// Completes a new pod.
///
/// # Errors
///
/// 403 when there is no such class, or the pod contradicts it.
pub(super) async fn admit(call: &Call, object: &mut Value) -> Result<(), ApiError> {
    let resource = call.info.resource;
    if !resource.group.is_empty() || resource.plural != "pods" {
        return Ok(());
    }
    let name = text_at(object, "/spec/runtimeClassName").to_owned();
    let forbidden = |pod: &Value, detail: &str| -> ApiError {
        Status::forbidden(resource, meta::name(pod), detail).into()
    };
    let class = if name.is_empty() { None } else { class(call, &name).await? };
    if class.is_none() && !name.is_empty() {
        let detail = format!("pod rejected: RuntimeClass {name:?} not found");
        return Err(forbidden(object, &detail));
    }
    runtime_class::apply(object, class.as_ref()).map_err(|detail| forbidden(object, &detail))
}

/// A class; the local copy is enough when it has it.
async fn class(call: &Call, name: &str) -> Result<Option<Value>, ApiError> {
    let Some(resource) = api::find(runtime_class::GROUP, "v1", "runtimeclasses") else {
        return Ok(None);
    };
    let key = Key::new(resource, None, name);
    for freshness in [Freshness::Any, Freshness::Latest] {
        let found = call.context.store.get(&key, freshness).await;
        if let Some(stored) = found.map_err(|error| ApiError::store(error, &key))? {
            return Ok(Some(stored.object));
        }
    }
    Ok(None)
}
