//! What Kubernetes' Priority admission does: a new pod has the priority of its class, and one class
//! at most is for pods that name none.

use serde_json::{Value, json};

use crate::api::json::{is_true, text_at};
use crate::api::status::Status;
use crate::api::{self, meta, priority};
use crate::apiserver::error::ApiError;
use crate::apiserver::router::Call;
use crate::store::{Freshness, Key, Page, Scope};

/// Marks a pod that a node runs by itself: it is there whatever its priority.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// Completes a new pod, and judges a new or changed class.
///
/// # Errors
///
/// 403 when the pod names a class that does not exist or says another priority itself, or when there
/// is another default class.
pub(super) async fn admit(call: &Call, object: &mut Value) -> Result<(), ApiError> {
    let resource = call.info.resource;
    match (resource.group, resource.plural) {
        ("", "pods") => admit_pod(call, object).await,
        (priority::GROUP, "priorityclasses") => check_default(call, object).await,
        _ => Ok(()),
    }
}

async fn admit_pod(call: &Call, pod: &mut Value) -> Result<(), ApiError> {
    if meta::annotation(pod, MIRROR_ANNOTATION).is_some() {
        return Ok(());
    }
    let name = text_at(pod, "/spec/priorityClassName").to_owned();
    let forbidden = |pod: &Value, detail: &str| -> ApiError {
        Status::forbidden(call.info.resource, meta::name(pod), detail).into()
    };
    let classes;
    let found;
    let class = if name.is_empty() {
        classes = all(call).await?;
        priority::global_default(&classes)
    } else {
        found = class(call, &name).await?;
        if found.is_none() {
            let detail = format!("no PriorityClass with name {name} was found");
            return Err(forbidden(pod, &detail));
        }
        found.as_ref()
    };
    priority::apply(pod, class).map_err(|detail| forbidden(pod, &detail))
}

/// Refuses a second default.
pub(super) async fn check_default(call: &Call, class: &Value) -> Result<(), ApiError> {
    if !is_true(class, "/globalDefault") {
        return Ok(());
    }
    let classes = all(call).await?;
    match priority::global_default(&classes) {
        Some(other) if meta::name(other) != meta::name(class) => {
            let detail = format!(
                "PriorityClass {} is already marked as default. Only one default can exist",
                meta::name(other)
            );
            Err(Status::forbidden(call.info.resource, meta::name(class), &detail).into())
        }
        _ => Ok(()),
    }
}

/// A class; the local copy is enough when it has it.
async fn class(call: &Call, name: &str) -> Result<Option<Value>, ApiError> {
    let Some(resource) = api::find(priority::GROUP, "v1", "priorityclasses") else {
        return Ok(None);
    };
    let key = Key::new(resource, None, name);
    for freshness in [Freshness::Any, Freshness::Latest] {
        let found = call.context.store.get(&key, freshness).await;
        if let Some(stored) = found.map_err(|error| ApiError::store(error, &key))? {
            return Ok(Some(stored.object));
        }
    }
    // A new cluster has the system's classes a moment later; its pods need not wait for them.
    Ok(priority::system_value(name)
        .map(|value| json!({"metadata": {"name": name}, "value": value})))
}

/// All classes, as the local copy has them: there are few.
async fn all(call: &Call) -> Result<Vec<Value>, ApiError> {
    let Some(resource) = api::find(priority::GROUP, "v1", "priorityclasses") else {
        return Ok(Vec::new());
    };
    let key = Key::new(resource, None, "");
    let scope = Scope::new(resource, None);
    let listed = call.context.store.list(&scope, &Page::default(), Freshness::Any).await;
    let listed = listed.map_err(|error| ApiError::store(error, &key))?;
    Ok(listed.items.into_iter().map(|stored| stored.object).collect())
}
