//! `nodes/proxy`: what of kubelet's own paths a node's agent answers.

use axum::body::Body;
use http::{Method, Response};

use crate::api::status::Status;
use crate::apiserver::error::ApiError;
use crate::apiserver::forward;
use crate::apiserver::router::Call;
use crate::store::Freshness;

/// Paths that are passed on. Logs and sessions have ways of their own, which look at the pod first.
const PATHS: [&str; 4] = ["healthz", "stats/summary", "stats/history", "metrics/resource"];
/// Parameter that is passed on.
const PARAMETER: &str = "only_cpu_and_memory";

/// Passes a request on to the agent.
pub(super) async fn respond(call: Call, method: &Method) -> Result<Response<Body>, ApiError> {
    let Some(key) = call.info.key() else { return Err(Status::no_such_path().into()) };
    if !matches!(method.as_str(), "GET" | "HEAD") {
        return Err(Status::method_not_allowed(key.resource, method.as_str()).into());
    }
    let path = PATHS.iter().find(|path| **path == call.info.rest.trim_matches('/'));
    let path = path.ok_or_else(Status::no_such_path)?;
    let found = call.context.store.get(&key, Freshness::Any).await;
    if found.map_err(|error| ApiError::store(error, &key))?.is_none() {
        return Err(Status::not_found(key.resource, &key.name).into());
    }
    let is_short = call.query.is_set(PARAMETER);
    let path = if is_short { format!("/{path}?{PARAMETER}=true") } else { format!("/{path}") };
    call.context.forward.node(&key.name, forward::get(&path)).await
}
