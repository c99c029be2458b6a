//! `edgeorc logs`.

use futures_util::TryStreamExt as _;
use http::Method;
use http_body_util::BodyExt as _;
use serde_json::Value;

use super::api::{ACCEPT_JSON, ApiError, Session, build};
use super::args::{Global, Logs};
use super::exit::Failure;
use super::{get, output};
use crate::config::Environment;

/// Prints a container's log as it arrives.
pub(super) async fn run(
    logs: Logs,
    global: &Global,
    environment: &Environment,
) -> Result<(), Failure> {
    let session = Session::open(global, environment).await?;
    let pod = match logs.pod.split_once('/') {
        Some(("pod" | "pods" | "po", name)) => name.to_owned(),
        Some((_, name)) => pod_of(&session, name).await?,
        None => logs.pod.clone(),
    };
    let path = format!("/api/v1/namespaces/{}/pods/{pod}/log?{}", session.namespace, query(&logs));
    let request = build(Method::GET, &path, ACCEPT_JSON, "*/*", Vec::new())?;
    let unreachable = |cause: kube::Error| Failure::from(ApiError::Unreachable(cause.to_string()));
    let answer = session.client.send(request).await.map_err(unreachable)?;
    let status = answer.status();
    let mut body = answer.into_body().into_data_stream();
    if !status.is_success() {
        let mut text = Vec::new();
        while let Ok(Some(chunk)) = body.try_next().await {
            text.extend_from_slice(&chunk);
        }
        let message = serde_json::from_slice::<Value>(&text)
            .ok()
            .and_then(|s| s.get("message").and_then(Value::as_str).map(str::to_owned));
        let text = message.unwrap_or_else(|| String::from_utf8_lossy(&text).into_owned());
        return Err(Failure::failed(format!("cannot read the log of {pod}: {text}")));
    }
    while let Some(chunk) = body.try_next().await.map_err(unreachable)? {
        output::data(&String::from_utf8_lossy(&chunk))?;
    }
    Ok(())
}

/// The query that kubectl would send for the same flags.
fn query(logs: &Logs) -> String {
    let mut query = Vec::new();
    if let Some(container) = &logs.container {
        query.push(format!("container={}", get::escape(container)));
    }
    let flags =
        [("follow", logs.follow), ("timestamps", logs.timestamps), ("previous", logs.previous)];
    query.extend(flags.iter().filter(|(_, on)| *on).map(|(name, _)| format!("{name}=true")));
    if let Some(lines) = logs.tail {
        query.push(format!("tailLines={lines}"));
    }
    if let Some(seconds) = logs.since {
        query.push(format!("sinceSeconds={seconds}"));
    }
    query.join("&")
}

/// The first pod of a deployment.
async fn pod_of(session: &Session, deployment: &str) -> Result<String, Failure> {
    let path = format!("/apis/apps/v1/namespaces/{}/deployments/{deployment}", session.namespace);
    let object = session.get(&path, ACCEPT_JSON).await?;
    let labels = object.pointer("/spec/selector/matchLabels").and_then(Value::as_object);
    let selector: Vec<_> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?)))
        .collect();
    let path = format!(
        "/api/v1/namespaces/{}/pods?labelSelector={}",
        session.namespace,
        get::escape(&selector.join(","))
    );
    let pods = session.get(&path, ACCEPT_JSON).await?;
    pods.pointer("/items/0/metadata/name")
        .and_then(Value::as_str)
        .map(str::to_owned)
        .ok_or_else(|| Failure::failed(format!("deployment {deployment:?} has no pod")))
}
