//! Removes pods that nobody else will: of nodes that are gone, deleted before they had a node, or
//! ended long ago.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::api::unique_pod::{REPLACED_AFTER, is_fenced};
use crate::client::is_not_found;
use crate::controllers::Context;
use crate::controllers::object::{disrupted, is_deleting, is_terminal, node_name};

/// How often there is a look.
const TICK: Duration = Duration::from_secs(1);

/// Why a pod goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// Its node does not exist; to be asked of the server first.
    NodeGone,
    /// It was deleted before it had a node: no agent will confirm.
    NeverBound,
    /// It ended, and too many have.
    Terminated,
}

/// Runs the controller until `cancel`.
pub(super) async fn run(context: Context, cancel: CancellationToken) {
    let _ = cancel.run_until_cancelled(look_for_ever(context)).await;
}

async fn look_for_ever(context: Context) {
    let mut changed = (context.informers.pods.changed(), context.informers.nodes.changed());
    changed.0.mark_changed();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut missing: BTreeMap<String, Instant> = BTreeMap::new();
    loop {
        tick.tick().await;
        let has_changed =
            changed.0.has_changed().unwrap_or(false) || changed.1.has_changed().unwrap_or(false);
        if !has_changed && missing.is_empty() {
            continue;
        }
        changed.0.mark_unchanged();
        changed.1.mark_unchanged();
        let pods = context.informers.pods.store.state();
        note_missing(&context, &pods, &mut missing);
        let patience = context.settings.orphaned_pod_after;
        // The node may still run what must be unique, until it has stopped it by itself.
        let is_gone = |pod: &Pod, node: &str| {
            let patience = if is_fenced(pod) { patience.max(REPLACED_AFTER) } else { patience };
            missing.get(node).is_some_and(|at| at.elapsed() >= patience)
        };
        for (pod, cause) in plan(&pods, is_gone, context.settings.terminated_pods_max) {
            if let Err(err) = remove(&context, &pod, cause).await {
                warn!(%err, "pod not collected");
                changed.0.mark_changed();
            }
        }
    }
}

/// Notes since when each node that pods name is missing.
fn note_missing(context: &Context, pods: &[Arc<Pod>], missing: &mut BTreeMap<String, Instant>) {
    let is_there = |name: &str| context.informers.nodes.store.named("", name).is_some();
    let named: BTreeMap<_, _> = pods
        .iter()
        .filter_map(|pod| node_name(pod))
        .filter(|name| !is_there(name))
        .map(|name| (name.to_owned(), missing.get(name).copied().unwrap_or_else(Instant::now)))
        .collect();
    *missing = named;
}

/// The pods that go, and why.
fn plan(
    pods: &[Arc<Pod>],
    is_gone: impl Fn(&Pod, &str) -> bool,
    terminated_max: usize,
) -> Vec<(Arc<Pod>, Cause)> {
    let mut doomed = Vec::new();
    let mut terminated = Vec::new();
    for pod in pods {
        match node_name(pod) {
            Some(node) if is_gone(pod, node) => doomed.push((Arc::clone(pod), Cause::NodeGone)),
            None if is_deleting(&pod.metadata) => doomed.push((Arc::clone(pod), Cause::NeverBound)),
            _ if is_terminal(pod) => terminated.push(Arc::clone(pod)),
            _ => {}
        }
    }
    terminated.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
    terminated.truncate(terminated.len().saturating_sub(terminated_max));
    doomed.extend(terminated.into_iter().map(|pod| (pod, Cause::Terminated)));
    doomed
}

/// What whoever watches sees of a pod that did not end by itself: it failed, and why.
fn last_status(pod: &Pod, cause: Cause, now: Timestamp) -> Option<Value> {
    if is_terminal(pod) {
        return None;
    }
    let message = "PodGC: node no longer exists";
    let conditions = (cause == Cause::NodeGone)
        .then(|| disrupted(pod, "DeletionByPodGC", message, now))
        .flatten();
    let status = match conditions {
        Some(conditions) => json!({ "phase": "Failed", "conditions": conditions }),
        None => json!({ "phase": "Failed" }),
    };
    Some(json!({ "metadata": { "uid": pod.uid() }, "status": status }))
}

async fn remove(context: &Context, pod: &Pod, cause: Cause) -> Result<(), kube::Error> {
    if cause == Cause::NodeGone {
        let nodes: Api<Node> = Api::all(context.client.clone());
        if nodes.get_opt(node_name(pod).unwrap_or_default()).await?.is_some() {
            return Ok(());
        }
    }
    let namespace = pod.namespace().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
    if let Some(patch) = last_status(pod, cause, context.clock.now()) {
        match api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await
        {
            Err(err) if !is_not_found(&err) => return Err(err),
            _ => {}
        }
    }
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: pod.uid(), resource_version: None }),
        ..DeleteParams::default()
    };
    match api.delete(&pod.name_any(), &params).await {
        Err(err) if !is_not_found(&err) => Err(err),
        _ => {
            let name = pod.name_any();
            info!(k8s.namespace.name = namespace, k8s.pod.name = name, ?cause, "pod collected");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, value: &Value) -> Arc<Pod> {
        let mut pod = json!({ "metadata": { "name": name } });
        json_patch::merge(&mut pod, value);
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn only_pods_nobody_else_removes_are_collected() {
        let deleting = json!({ "deletionTimestamp": "2026-01-01T00:00:00Z" });
        let on = |node: &str| json!({ "containers": [], "nodeName": node });
        let ended = |time: &str| {
            json!({
                "metadata": { "creationTimestamp": time },
                "spec": on("a"), "status": { "phase": "Succeeded" },
            })
        };
        let pods = [
            pod("fine", &json!({ "spec": on("a") })),
            pod("stopping", &json!({ "spec": on("a"), "metadata": deleting })),
            pod("lost", &json!({ "spec": on("gone") })),
            pod("waiting", &json!({})),
            pod("never-bound", &json!({ "metadata": deleting })),
            pod("ended-late", &ended("2026-01-01T00:00:02Z")),
            pod("ended-early", &ended("2026-01-01T00:00:01Z")),
        ];
        let doomed: Vec<_> = plan(&pods, |_, node| node == "gone", 1)
            .into_iter()
            .map(|(pod, cause)| (pod.name_any(), cause))
            .collect();
        assert_eq!(
            doomed,
            [
                ("lost".to_owned(), Cause::NodeGone),
                ("never-bound".to_owned(), Cause::NeverBound),
                ("ended-early".to_owned(), Cause::Terminated),
            ]
        );
    }

    #[test]
    fn a_pod_that_did_not_end_by_itself_is_said_to_have_failed() {
        let now = Timestamp::UNIX_EPOCH;
        let lost = pod(
            "lost",
            &json!({"spec": {"containers": [], "nodeName": "gone"},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]}}),
        );
        let patch = last_status(&lost, Cause::NodeGone, now).unwrap();
        assert_eq!(patch["status"]["phase"], "Failed");
        let conditions = patch["status"]["conditions"].as_array().unwrap();
        assert_eq!(conditions[0]["type"], "Ready", "those of others stay");
        for (key, wanted) in [
            ("type", "DisruptionTarget"),
            ("status", "True"),
            ("reason", "DeletionByPodGC"),
            ("message", "PodGC: node no longer exists"),
        ] {
            assert_eq!(conditions[1][key], wanted);
        }
        let never = last_status(&pod("n", &json!({})), Cause::NeverBound, now).unwrap();
        assert_eq!(never["status"], json!({"phase": "Failed"}));
        let ended = pod("e", &json!({"status": {"phase": "Succeeded"}}));
        assert_eq!(last_status(&ended, Cause::Terminated, now), None);
    }
}
