//! Tells the API server about a choice, or about there being none.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tracing::debug;

use crate::client::{Backoff, RetryLimits, is_not_found};
use crate::rt::Rng;

/// Waits between tries of a binding whose outcome is unknown.
const RETRY: RetryLimits =
    RetryLimits { delay_min: Duration::from_millis(50), delay_max: Duration::from_secs(1) };
/// How often a binding is tried before the choice is taken back.
const TRIES_MAX: u32 = 6;
/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How a binding ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bound {
    /// The pod is bound to the node chosen.
    Yes,
    /// It is not, or nobody can tell: look again, and choose again if it still waits.
    No,
}

/// Binds the pod of that name and uid to `node`.
///
/// An unknown outcome is tried again with the same node: a second binding of a bound pod is
/// refused by the server, so the pod cannot end up on two nodes.
pub(super) async fn bind(client: &kube::Client, pod: &Pod, node: &str, rng: &Rng) -> Bound {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let mut backoff = Backoff::new(RETRY, rng.clone());
    loop {
        match tokio::time::timeout(REQUEST_TIMEOUT, post(&pods, pod, node)).await {
            Ok(Ok(())) => return Bound::Yes,
            Ok(Err(err)) if is_refusal(&err) => return judge_refusal(&pods, pod, node).await,
            Ok(Err(err)) => debug!(%err, attempt = backoff.attempts(), "binding not answered"),
            Err(_) => debug!(attempt = backoff.attempts(), "binding not answered in time"),
        }
        if backoff.attempts() + 1 >= TRIES_MAX {
            return Bound::No;
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

async fn post(pods: &Api<Pod>, pod: &Pod, node: &str) -> Result<(), kube::Error> {
    let name = pod.name_any();
    let binding = Binding {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: pod.namespace(),
            uid: pod.uid(),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let params = PostParams::default();
    let answer =
        pods.create_subresource::<_, serde_json::Value>("binding", &name, &params, &binding);
    answer.await.map(drop)
}

/// Whether the server has decided against it, as opposed to not having decided.
fn is_refusal(err: &kube::Error) -> bool {
    matches!(err, kube::Error::Api(status) if (400..500).contains(&status.code)
        && status.code != 408 && status.code != 429)
}

/// A refusal after an unanswered try may mean that the try had worked.
async fn judge_refusal(pods: &Api<Pod>, pod: &Pod, node: &str) -> Bound {
    match tokio::time::timeout(REQUEST_TIMEOUT, pods.get(&pod.name_any())).await {
        Ok(Ok(found)) if found.uid() == pod.uid() => {
            let bound = found.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
            if bound == Some(node) { Bound::Yes } else { Bound::No }
        }
        _ => Bound::No,
    }
}

/// What a pod's status is to say of its waiting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Why no node takes it.
    pub(super) message: String,
    /// The node that others leave for it.
    pub(super) nominated: Option<String>,
}

/// Writes that the pod waits, and for what, if its status does not say so yet.
pub(super) async fn say_unschedulable(
    client: &kube::Client,
    pod: &Pod,
    refusal: &Refusal,
    now: Timestamp,
) -> Result<(), kube::Error> {
    let conditions = with_refusal(pod, &refusal.message, now);
    let status = pod.status.as_ref();
    let had = status.and_then(|status| status.nominated_node_name.as_deref());
    let mut fields = serde_json::Map::new();
    if let Some(conditions) = conditions {
        fields.insert("conditions".to_owned(), json!(conditions));
    }
    if had.unwrap_or_default() != refusal.nominated.as_deref().unwrap_or_default() {
        fields.insert("nominatedNodeName".to_owned(), json!(refusal.nominated));
    }
    if fields.is_empty() {
        return Ok(());
    }
    patch_status(client, pod, &serde_json::Value::Object(fields)).await
}

/// Writes that the pod does not get the node any more that others were to leave for it.
pub(super) async fn say_displaced(client: &kube::Client, pod: &Pod) -> Result<(), kube::Error> {
    patch_status(client, pod, &json!({ "nominatedNodeName": null })).await
}

async fn patch_status(
    client: &kube::Client,
    pod: &Pod,
    status: &serde_json::Value,
) -> Result<(), kube::Error> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let patch = json!({
        "metadata": { "uid": pod.uid(), "resourceVersion": pod.resource_version() },
        "status": status,
    });
    pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map(drop)
}

/// Tells a pod to leave for one of higher priority: in order, and with the reason in its status.
pub(super) async fn evict(
    client: &kube::Client,
    pod: &Pod,
    scheduler: &str,
    now: Timestamp,
) -> Result<(), kube::Error> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let mut read = pod.clone();
    for _ in 0..TRIES_MAX {
        let conditions = with_disruption(&read, scheduler, now);
        match patch_status(client, &read, &json!({ "conditions": conditions })).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {
                read = pods.get(&pod.name_any()).await?;
                if read.uid() != pod.uid() {
                    return Ok(());
                }
            }
            Err(err) if is_not_found(&err) => return Ok(()),
            other => {
                other?;
                break;
            }
        }
    }
    let preconditions = Preconditions { uid: pod.uid(), resource_version: None };
    let params = DeleteParams::default().preconditions(preconditions);
    match pods.delete(&pod.name_any(), &params).await {
        Err(err) if !is_not_found(&err) => Err(err),
        _ => Ok(()),
    }
}

/// The pod's conditions with `DisruptionTarget`.
fn with_disruption(pod: &Pod, scheduler: &str, now: Timestamp) -> Vec<PodCondition> {
    let status = pod.status.as_ref();
    let mut conditions = status.and_then(|status| status.conditions.clone()).unwrap_or_default();
    conditions.retain(|condition| condition.type_ != "DisruptionTarget");
    conditions.push(PodCondition {
        type_: "DisruptionTarget".to_owned(),
        status: "True".to_owned(),
        reason: Some("PreemptionByScheduler".to_owned()),
        message: Some(format!("{scheduler}: preempting to accommodate a higher priority pod")),
        last_transition_time: Some(Time(now)),
        ..PodCondition::default()
    });
    conditions
}

/// The pod's conditions with `PodScheduled` false; `None` when they are so already.
fn with_refusal(pod: &Pod, message: &str, now: Timestamp) -> Option<Vec<PodCondition>> {
    let status = pod.status.as_ref();
    let mut conditions = status.and_then(|status| status.conditions.clone()).unwrap_or_default();
    let at = conditions.iter().position(|condition| condition.type_ == "PodScheduled");
    let was = at.map(|at| conditions.remove(at));
    let is_same = was.as_ref().is_some_and(|was| {
        was.status == "False"
            && was.reason.as_deref() == Some("Unschedulable")
            && was.message.as_deref() == Some(message)
    });
    if is_same {
        return None;
    }
    let since = was.filter(|was| was.status == "False").and_then(|was| was.last_transition_time);
    conditions.push(PodCondition {
        type_: "PodScheduled".to_owned(),
        status: "False".to_owned(),
        reason: Some("Unschedulable".to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: since.or(Some(Time(now))),
        ..PodCondition::default()
    });
    Some(conditions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_condition_is_written_once_per_message() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut pod = Pod::default();
        let conditions = with_refusal(&pod, "no", at(1)).unwrap();
        pod.status.get_or_insert_default().conditions = Some(conditions);
        assert_eq!(with_refusal(&pod, "no", at(2)), None);
        let conditions = with_refusal(&pod, "still no", at(3)).unwrap();
        assert_eq!(conditions.len(), 1);
        assert_eq!(conditions[0].last_transition_time, Some(Time(at(1))));
    }
}
