//! `edgeorc logs`.

use futures_util::TryStreamExt as _;
use http::Method;
use http_body_util::BodyExt as _;
use serde_json::Value;

use super::api::{ACCEPT_JSON, ApiError, Session, build, chain};
use super::args::{Global, Logs};
use super::exit::Failure;
use super::{get, output, selector};
use crate::config::Environment;

/// Annotation that names the container a reader most likely wants.
const DEFAULT_CONTAINER: &str = "/metadata/annotations/kubectl.kubernetes.io~1default-container";
/// Longest refusal read, in bytes.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;

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
    let path = format!("/api/v1/namespaces/{}/pods/{pod}", session.namespace);
    let container = match &logs.container {
        Some(container) => Some(container.clone()),
        None => default_container(&session.get(&path, ACCEPT_JSON).await?),
    };
    let path = format!("{path}/log?{}", query(&logs, container.as_deref()));
    let request = build(Method::GET, &path, ACCEPT_JSON, "*/*", Vec::new())?;
    let unreachable = |cause: kube::Error| Failure::from(ApiError::Unreachable(chain(&cause)));
    let answer = session.client.send(request).await.map_err(unreachable)?;
    let status = answer.status();
    let mut body = answer.into_body().into_data_stream();
    if !status.is_success() {
        let mut text = Vec::new();
        while let Ok(Some(chunk)) = body.try_next().await
            && text.len() < REFUSAL_BYTES_MAX
        {
            text.extend_from_slice(&chunk);
        }
        let message = serde_json::from_slice::<Value>(&text)
            .ok()
            .and_then(|s| s.get("message").and_then(Value::as_str).map(str::to_owned));
        let text = message.unwrap_or_else(|| String::from_utf8_lossy(&text).into_owned());
        return Err(Failure::failed(format!("cannot read the log of {pod}: {text}")));
    }
    let copy = async {
        while let Some(chunk) = body.try_next().await.map_err(unreachable)? {
            output::bytes(&chunk)?;
        }
        Ok(())
    };
    tokio::select! {
        copied = copy => copied,
        // A quiet log would notice only with its next line.
        () = output::reader_gone(), if logs.follow => Err(Failure::reader_gone()),
    }
}

/// The container to show of a pod with several: the one its annotation names, or the first.
/// `None` when there is but one, or no pod to look at.
fn default_container(pod: &Value) -> Option<String> {
    let names: Vec<_> = pod
        .pointer("/spec/containers")
        .and_then(Value::as_array)?
        .iter()
        .filter_map(|container| container.get("name")?.as_str())
        .collect();
    if names.len() < 2 {
        return None;
    }
    let marked = pod.pointer(DEFAULT_CONTAINER).and_then(Value::as_str);
    let chosen = marked.filter(|name| names.contains(name)).or(names.first().copied())?;
    output::words(&format!("Defaulted container {chosen:?} out of: {}", names.join(", ")));
    Some(chosen.to_owned())
}

/// The query that kubectl would send for the same flags.
fn query(logs: &Logs, container: Option<&str>) -> String {
    let mut query = Vec::new();
    if let Some(container) = container {
        query.push(format!("container={}", get::escape(container)));
    }
    let flags =
        [("follow", logs.follow), ("timestamps", logs.timestamps), ("previous", logs.previous)];
    query.extend(flags.iter().filter(|(_, on)| *on).map(|(name, _)| format!("{name}=true")));
    // kubectl's `--tail -1` is all lines.
    if let Some(lines) = logs.tail.and_then(|lines| u64::try_from(lines).ok()) {
        query.push(format!("tailLines={lines}"));
    }
    if let Some(since) = logs.since {
        query.push(format!("sinceSeconds={}", since.as_secs().max(1)));
    }
    query.join("&")
}

/// The first pod of a deployment.
async fn pod_of(session: &Session, deployment: &str) -> Result<String, Failure> {
    let path = format!("/apis/apps/v1/namespaces/{}/deployments/{deployment}", session.namespace);
    let object = session.get(&path, ACCEPT_JSON).await?;
    let path = format!(
        "/api/v1/namespaces/{}/pods?labelSelector={}",
        session.namespace,
        get::escape(&selector::of(&object))
    );
    let pods = session.get(&path, ACCEPT_JSON).await?;
    pods.pointer("/items/0/metadata/name")
        .and_then(Value::as_str)
        .map(str::to_owned)
        .ok_or_else(|| Failure::failed(format!("deployment {deployment:?} has no pod")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_several_containers_the_marked_one_or_the_first_is_shown() {
        let mut pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        assert_eq!(default_container(&pod).as_deref(), Some("a"));
        pod["metadata"] = json!({"annotations": {"kubectl.kubernetes.io/default-container": "b"}});
        assert_eq!(default_container(&pod).as_deref(), Some("b"));
        let single = json!({"spec": {"containers": [{"name": "a"}]}});
        assert_eq!(default_container(&single), None);
    }
}
