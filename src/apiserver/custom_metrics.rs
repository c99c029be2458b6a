//! `custom.metrics.k8s.io`: requests per second of pods and Services, asked of the nodes that see them.
//!
//! A node that does not answer is left out: what it saw is missing in the sum.

use std::collections::BTreeMap;

use axum::body::Body;
use http::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::api::custom_metrics::{GROUP, REQUESTS_PER_SECOND, VERSION, value};
use crate::api::status::Status;
use crate::api::{self, meta};
use crate::apiserver::error::ApiError;
use crate::apiserver::metrics::ask;
use crate::apiserver::request_info::RequestInfo;
use crate::apiserver::response;
use crate::apiserver::router::Call;
use crate::store::{Freshness, Page, Scope};

/// The agent's path.
const TRAFFIC: &str = "/stats/traffic";
/// What rates go back to at most.
const WINDOW_SECONDS: u64 = 30;
/// The name that stands for all that the selector lets through.
const ALL: &str = "*";

/// Whether a metric is asked for that is not measured here: an adapter may know it.
pub(super) fn is_foreign(info: &RequestInfo) -> bool {
    info.resource.group == GROUP
        && info.subresource.as_deref().is_some_and(|metric| metric != REQUESTS_PER_SECOND)
}

/// Whether a path is below the version, and not the list of what it serves: metrics of objects other than
/// pods and Services are an adapter's too.
pub(super) fn is_below(path: &str) -> bool {
    let mut parts = path.trim_matches('/').splitn(4, '/');
    let is_version = parts.by_ref().take(3).eq(["apis", GROUP, VERSION]);
    is_version && parts.next().is_some()
}

/// Answers `pods/NAME/requests-per-second` and `services/NAME/requests-per-second`.
pub(super) async fn respond(call: Call, method: &Method) -> Result<Response<Body>, ApiError> {
    let (Some(name), Some(metric)) = (&call.info.name, &call.info.subresource) else {
        return Err(Status::no_such_path().into());
    };
    if !matches!(method.as_str(), "GET" | "HEAD") {
        return Err(Status::method_not_allowed(call.info.resource, method.as_str()).into());
    }
    if metric != REQUESTS_PER_SECOND {
        return Err(Status::not_found(call.info.resource, metric).into());
    }
    let plural = call.info.resource.plural;
    let resource = api::find("", "v1", plural).ok_or_else(Status::no_such_path)?;
    let selector = call.query.labels()?;
    let scope = Scope::new(resource, call.info.namespace.as_deref());
    let listed = call.context.store.list(&scope, &Page::default(), Freshness::Any).await?;
    let objects: Vec<Value> = listed
        .items
        .into_iter()
        .map(|stored| stored.object)
        .filter(|object| name == ALL || meta::name(object) == name)
        .filter(|object| selector.matches(object))
        .collect();
    if name != ALL && objects.is_empty() {
        return Err(Status::not_found(resource, name).into());
    }
    let rates = rates(&call, plural).await?;
    let time = call.context.clock.now_rfc3339();
    let items: Vec<Value> = objects
        .iter()
        .filter_map(|object| {
            let key = (meta::namespace(object).to_owned(), meta::name(object).to_owned());
            // A pod that no node knows was asked nothing yet; one that does not run cannot be.
            let is_measured = plural == "services"
                || object.pointer("/status/phase").and_then(Value::as_str) == Some("Running");
            let millis = rates.get(&key).copied().unwrap_or(0);
            is_measured.then(|| value(object, &time, WINDOW_SECONDS, millis))
        })
        .collect();
    let list = json!({
        "kind": "MetricValueList",
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "metadata": {},
        "items": items,
    });
    Ok(response::json(StatusCode::OK, &list))
}

/// Thousandths of a request per second by namespace and name, of all nodes together.
async fn rates(call: &Call, plural: &str) -> Result<BTreeMap<(String, String), u64>, ApiError> {
    let nodes = api::find("", "v1", "nodes").ok_or_else(Status::no_such_path)?;
    let scope = Scope::new(nodes, None);
    let listed = call.context.store.list(&scope, &Page::default(), Freshness::Any).await?;
    let names = listed.items.iter().map(|stored| meta::name(&stored.object).to_owned()).collect();
    let answers = ask(&call.context, names, TRAFFIC).await;
    let mut rates = BTreeMap::new();
    for answer in answers.values() {
        for one in answer.get(plural).and_then(Value::as_array).into_iter().flatten() {
            let text = |key| one.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            let millis = one.get("millirequestsPerSecond").and_then(Value::as_u64).unwrap_or(0);
            let sum = rates.entry((text("namespace"), text("name"))).or_insert(0_u64);
            *sum = sum.saturating_add(millis);
        }
    }
    Ok(rates)
}
