//! Waiting for a Deployment, with an eye on what keeps it.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::api::{ACCEPT_JSON, Session};
use super::exit::{self, Failure};
use super::get;
use super::progress::Progress;

/// How often the Deployment is looked at.
const POLL: Duration = Duration::from_millis(50);
/// Restarts after which a crash loop is called a failure.
const RESTARTS_MAX: u64 = 5;
/// Waiting reasons that time does not heal.
const HOPELESS: &[&str] = &[
    "RunContainerError",
    "CreateContainerConfigError",
    "CreateContainerError",
    "InvalidImageName",
    "ErrImageNeverPull",
];

/// Waits until every replica of the newest template is available.
pub(super) async fn until_ready(
    session: &Session,
    name: &str,
    limit: Duration,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let deadline = Instant::now() + limit;
    let path = format!("/apis/apps/v1/namespaces/{}/deployments/{name}", session.namespace);
    loop {
        let trouble = match session.get(&path, ACCEPT_JSON).await {
            Ok(deployment) => {
                let count =
                    |path: &str| deployment.pointer(path).and_then(Value::as_u64).unwrap_or(0);
                let wanted = count("/spec/replicas");
                let is_seen = count("/status/observedGeneration") >= count("/metadata/generation");
                let ready =
                    count("/status/availableReplicas").min(count("/status/updatedReplicas"));
                if is_seen && ready >= wanted && count("/status/replicas") == wanted {
                    return Ok(());
                }
                progress.step(&format!("{ready} of {wanted} pods ready"));
                trouble(session, name).await?
            }
            Err(error) if error.is_transient() => Some("the API server does not answer".to_owned()),
            Err(error) => return Err(error.into()),
        };
        if Instant::now() >= deadline {
            let why = trouble.map(|why| format!("; {why}")).unwrap_or_default();
            return Err(Failure::with(
                exit::TIMEOUT,
                format!("{name} is not ready after {} s{why}", limit.as_secs()),
            ));
        }
        sleep(POLL).await;
    }
}

/// What keeps the app's pods from being ready. Fails at once when time will not heal it.
async fn trouble(session: &Session, name: &str) -> Result<Option<String>, Failure> {
    let selector = get::escape(&format!("app.kubernetes.io/name={name}"));
    let path = format!("/api/v1/namespaces/{}/pods?labelSelector={selector}", session.namespace);
    let Ok(pods) = session.get(&path, ACCEPT_JSON).await else { return Ok(None) };
    let mut found = None;
    for pod in pods.get("items").and_then(Value::as_array).into_iter().flatten() {
        let pod_name = pod.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        for list in ["/status/initContainerStatuses", "/status/containerStatuses"] {
            for status in pod.pointer(list).and_then(Value::as_array).into_iter().flatten() {
                let text =
                    |path: &str| status.pointer(path).and_then(Value::as_str).unwrap_or_default();
                let reason = text("/state/waiting/reason");
                let last = text("/lastState/terminated/message");
                let message = [text("/state/waiting/message"), last]
                    .into_iter()
                    .find(|message| !message.is_empty())
                    .unwrap_or_default();
                let restarts = status.get("restartCount").and_then(Value::as_u64).unwrap_or(0);
                let sentence = format!("pod {pod_name}: {reason}: {message}");
                if HOPELESS.contains(&reason)
                    || (reason == "CrashLoopBackOff" && restarts >= RESTARTS_MAX)
                {
                    return Err(Failure::failed(format!("{name} does not start: {sentence}")));
                }
                if !matches!(reason, "" | "ContainerCreating" | "PodInitializing") {
                    found = Some(sentence);
                }
            }
        }
        let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
        for condition in conditions.into_iter().flatten() {
            if condition.get("reason").and_then(Value::as_str) == Some("Unschedulable") {
                let message = condition.get("message").and_then(Value::as_str).unwrap_or_default();
                found = Some(format!("pod {pod_name} cannot be scheduled: {message}"));
            }
        }
    }
    Ok(found)
}
