//! LimitRange at admission: fills in and checks new pods and claims.

use serde_json::Value;

use crate::api::status::Status;
use crate::api::{self, limit_range, meta};
use crate::apiserver::error::ApiError;
use crate::apiserver::router::Call;
use crate::store::{Freshness, Page, Scope};

/// Gives a new object the defaults of its namespace, and refuses one that is out of bounds.
pub(super) async fn admit(call: &Call, object: &mut Value) -> Result<(), ApiError> {
    let resource = call.info.resource;
    if !resource.group.is_empty() || !limit_range::is_about(resource.plural, object) {
        return Ok(());
    }
    let Some(kind) = api::find("", "v1", "limitranges") else { return Ok(()) };
    let scope = Scope::new(kind, call.info.namespace.as_deref());
    let found = call.context.store.list(&scope, &Page::default(), Freshness::Any).await?;
    if found.items.is_empty() {
        return Ok(());
    }
    let ranges: Vec<Value> = found.items.into_iter().map(|stored| stored.object).collect();
    let errors = if resource.plural == "pods" {
        limit_range::fill_in(object, &ranges);
        limit_range::check_pod(object, &ranges)
    } else {
        limit_range::check_claim(object, &ranges)
    };
    if errors.is_empty() {
        return Ok(());
    }
    let name = meta::name(object);
    Err(Status::forbidden(resource, name, &limit_range::joined(&errors)).into())
}
