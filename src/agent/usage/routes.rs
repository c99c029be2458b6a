//! The agent's paths for measured use, in kubelet's names: `GET /stats/summary` and
//! `GET /metrics/resource`; `GET /stats/history`, the last hour; and `GET /stats/traffic`, what the
//! mesh of this node sees.

use axum::Router;
use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use serde_json::{Value, json};
use std::collections::BTreeMap;

use crate::agent::usage::{NodeUse, Usage, prometheus, summary};
use crate::mesh::Traffic;

/// Kubelet's parameter for a summary without disks.
const WITHOUT_DISKS: &str = "only_cpu_and_memory";
/// Media type of Prometheus' text.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The paths.
pub(crate) fn router(usage: Usage) -> Router {
    Router::new()
        .route("/stats/summary", get(stats))
        .route("/stats/history", get(hour))
        .route("/metrics/resource", get(metrics))
        .route("/stats/traffic", get(traffic))
        .with_state(usage)
}

async fn stats(
    State(usage): State<Usage>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Result<Response, (StatusCode, &'static str)> {
    let is_set = |value: &String| matches!(value.as_str(), "true" | "1");
    let has_disks = !query.get(WITHOUT_DISKS).is_some_and(is_set);
    let node = measure(usage, has_disks).await?;
    let json = summary::summary(&node).to_string();
    Ok(([(CONTENT_TYPE, "application/json")], json).into_response())
}

async fn hour(State(usage): State<Usage>) -> Result<Response, (StatusCode, &'static str)> {
    let starting = (StatusCode::SERVICE_UNAVAILABLE, "the agent is starting");
    let json = usage.history().ok_or(starting)?.to_string();
    Ok(([(CONTENT_TYPE, "application/json")], json).into_response())
}

async fn metrics(State(usage): State<Usage>) -> Result<Response, (StatusCode, &'static str)> {
    let node = measure(usage, false).await?;
    Ok(([(CONTENT_TYPE, PROMETHEUS)], prometheus::text(&node)).into_response())
}

/// Requests by pod and Service, in thousandths per second.
async fn traffic(State(usage): State<Usage>) -> Result<Response, (StatusCode, &'static str)> {
    let starting = (StatusCode::SERVICE_UNAVAILABLE, "the agent is starting");
    let mesh = usage.mesh().ok_or(starting)?;
    let list = |traffic: Vec<Traffic>| -> Vec<Value> {
        let one = |one: Traffic| {
            json!({
                "namespace": one.namespace,
                "name": one.name,
                "millirequestsPerSecond": millis(one.requests_per_second),
            })
        };
        traffic.into_iter().map(one).collect()
    };
    let told = json!({
        "pods": list(mesh.pod_traffic()),
        "services": list(mesh.service_traffic()),
    });
    Ok(([(CONTENT_TYPE, "application/json")], told.to_string()).into_response())
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate is finite, not negative, and far below the bound"
)]
fn millis(rate: f64) -> u64 {
    (rate * 1000.0).round() as u64
}

async fn measure(usage: Usage, has_disks: bool) -> Result<NodeUse, (StatusCode, &'static str)> {
    let measured = tokio::task::spawn_blocking(move || usage.measure(has_disks)).await;
    let starting = (StatusCode::SERVICE_UNAVAILABLE, "the agent is starting");
    measured.ok().flatten().ok_or(starting)
}
