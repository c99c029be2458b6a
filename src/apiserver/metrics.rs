//! `metrics.k8s.io`: what nodes and pods use, asked of their agents when somebody wants to know.
//!
//! A node that does not answer is left out, as one that metrics-server could not scrape.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use axum::body::Body;
use futures_util::StreamExt as _;
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use serde_json::{Value, json};

use crate::api::status::Status;
use crate::api::{self, meta};
use crate::apiserver::context::Context;
use crate::apiserver::error::ApiError;
use crate::apiserver::negotiate::Shape;
use crate::apiserver::read::Filter;
use crate::apiserver::router::Call;
use crate::apiserver::{forward, response};
use crate::store::{Freshness, Page, Scope};

/// The agent's path.
const SUMMARY: &str = "/stats/summary?only_cpu_and_memory=true";
/// Nodes asked at once.
const NODES_AT_ONCE: usize = 32;
/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Longest answer of a node, in bytes.
const SUMMARY_BYTES_MAX: usize = 8 << 20;
/// What rates of CPU go back to at most: twice the agents' pause between two looks.
const WINDOW: &str = "20s";

/// Answers by kind, name and selectors.
pub(super) async fn respond(call: Call, method: &Method) -> Result<Response<Body>, ApiError> {
    let resource = call.info.resource;
    if !matches!(method.as_str(), "GET" | "HEAD") || call.query.is_set("watch") {
        let verb = call.info.verb(method, call.query.is_set("watch"));
        return Err(Status::method_not_allowed(resource, verb).into());
    }
    let shape = Shape::negotiate(&call.headers, &call.query)?;
    let filter = Filter::of(&call)?;
    let items = if resource.is_namespaced {
        pods(&call, &filter).await?
    } else {
        nodes(&call, &filter).await?
    };
    let now = call.context.clock.now();
    match &call.info.name {
        Some(name) => {
            let found = items.first().ok_or_else(|| Status::not_found(resource, name))?;
            Ok(shape.respond(StatusCode::OK, resource, found, now))
        }
        None => {
            let list = shape.list(resource, items, json!({}), now);
            Ok(response::json(StatusCode::OK, &list))
        }
    }
}

/// Objects of the store that the request is about, of the kind with the same plural.
async fn objects(call: &Call, filter: &Filter) -> Result<Vec<Value>, ApiError> {
    let plural = call.info.resource.plural;
    let resource = api::find("", "v1", plural).ok_or_else(Status::no_such_path)?;
    let scope = Scope::new(resource, call.info.namespace.as_deref());
    let listed = call.context.store.list(&scope, &Page::default(), Freshness::Any).await?;
    let objects = listed.items.into_iter().map(|stored| stored.object);
    Ok(objects.filter(|object| filter.matches(object)).collect())
}

async fn nodes(call: &Call, filter: &Filter) -> Result<Vec<Value>, ApiError> {
    let objects = objects(call, filter).await?;
    let names = objects.iter().map(|node| meta::name(node).to_owned()).collect();
    let summaries = ask(&call.context, names, SUMMARY).await;
    let found = objects.iter().filter_map(|node| {
        let of_node = summaries.get(meta::name(node))?.get("node")?;
        let mut metrics = metrics_of(call, node, of_node)?;
        metrics.insert("usage".to_owned(), usage(of_node)?);
        Some(Value::Object(metrics))
    });
    Ok(found.collect())
}

async fn pods(call: &Call, filter: &Filter) -> Result<Vec<Value>, ApiError> {
    let objects = objects(call, filter).await?;
    let node_of = |pod: &Value| {
        let node = pod.pointer("/spec/nodeName").and_then(Value::as_str)?;
        let phase = pod.pointer("/status/phase").and_then(Value::as_str);
        (!node.is_empty() && phase == Some("Running")).then(|| node.to_owned())
    };
    let summaries = ask(&call.context, objects.iter().filter_map(node_of).collect(), SUMMARY).await;
    let mut of_uid: BTreeMap<&str, &Value> = BTreeMap::new();
    for pod in summaries.values().filter_map(|summary| summary.get("pods")?.as_array()).flatten() {
        let uid = pod.pointer("/podRef/uid").and_then(Value::as_str).unwrap_or_default();
        of_uid.insert(uid, pod);
    }
    let found = objects.iter().filter_map(|pod| {
        let of_pod = of_uid.get(uid_on_node(pod))?;
        let containers = of_pod.get("containers")?.as_array()?.iter().filter_map(|container| {
            let name = container.get("name")?;
            Some(json!({ "name": name, "usage": usage(container)? }))
        });
        let containers: Vec<Value> = containers.collect();
        let mut metrics = metrics_of(call, pod, of_pod)?;
        metrics.insert("containers".to_owned(), json!(containers));
        Some(Value::Object(metrics))
    });
    Ok(found.collect())
}

/// The uid under which its agent knows a pod: a static one is shown by a mirror with another.
fn uid_on_node(pod: &Value) -> &str {
    let mirrored = pod.pointer("/metadata/annotations/kubernetes.io~1config.mirror");
    mirrored.and_then(Value::as_str).unwrap_or_else(|| meta::uid(pod))
}

/// What every answer says, of `object`.
fn metrics_of(
    call: &Call,
    object: &Value,
    measured: &Value,
) -> Option<serde_json::Map<String, Value>> {
    let resource = call.info.resource;
    let mut about = json!({
        "name": meta::name(object),
        "creationTimestamp": call.context.clock.now_rfc3339(),
    });
    let fields = about.as_object_mut()?;
    if resource.is_namespaced {
        fields.insert("namespace".to_owned(), json!(meta::namespace(object)));
    }
    if let Some(labels) = meta::labels(object) {
        fields.insert("labels".to_owned(), json!(labels));
    }
    let time = measured.pointer("/cpu/time").and_then(Value::as_str)?;
    let time: jiff::Timestamp = time.parse().ok()?;
    let answer = json!({
        "kind": resource.kind,
        "apiVersion": resource.api_version(),
        "metadata": about,
        "timestamp": jiff::Timestamp::from_second(time.as_second()).unwrap_or(time).to_string(),
        "window": WINDOW,
    });
    match answer {
        Value::Object(fields) => Some(fields),
        _ => None,
    }
}

/// CPU and memory as quantities.
fn usage(measured: &Value) -> Option<Value> {
    let nanos = measured.pointer("/cpu/usageNanoCores").and_then(Value::as_u64)?;
    let bytes = measured.pointer("/memory/workingSetBytes").and_then(Value::as_u64)?;
    let cpu = if nanos == 0 { "0".to_owned() } else { format!("{nanos}n") };
    Some(json!({ "cpu": cpu, "memory": format!("{}Ki", bytes / 1024) }))
}

/// What each of the nodes says at `path`, if it answers in time.
pub(super) async fn ask(
    context: &Context,
    nodes: BTreeSet<String>,
    path: &str,
) -> BTreeMap<String, Value> {
    let asked = nodes.into_iter().map(|node| async move {
        let answer = tokio::time::timeout(PATIENCE, told(context, &node, path)).await;
        Some((node, answer.ok().flatten()?))
    });
    let answers = futures_util::stream::iter(asked).buffer_unordered(NODES_AT_ONCE);
    answers.filter_map(std::future::ready).collect().await
}

async fn told(context: &Context, node: &str, path: &str) -> Option<Value> {
    let answer = context.forward.node(node, forward::get(path)).await.ok()?;
    if !forward::is_ok(&answer) {
        return None;
    }
    let body = Limited::new(answer.into_body(), SUMMARY_BYTES_MAX).collect().await.ok()?;
    serde_json::from_slice(&body.to_bytes()).ok()
}
