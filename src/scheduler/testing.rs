//! Nodes and pods of tests.

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use crate::scheduler::decide::decide;
use crate::scheduler::node::Facts;
use crate::scheduler::view::ClusterView;

/// A node of 4 cores, 4 GiB and 110 pods, with `changes` merged in.
pub(super) fn node(name: &str, changes: &Value) -> Node {
    let mut node = json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "status": { "allocatable": { "cpu": "4", "memory": "4Gi", "pods": "110" } },
    });
    json_patch::merge(&mut node, changes);
    serde_json::from_value(node).unwrap()
}

/// A pod of one container, with `changes` merged in.
pub(super) fn pod(changes: &Value) -> Pod {
    let mut pod = json!({
        "metadata": { "name": "p", "namespace": "default", "uid": "p" },
        "spec": { "containers": [{ "name": "c" }] },
    });
    json_patch::merge(&mut pod, changes);
    serde_json::from_value(pod).unwrap()
}

pub(super) fn owned(owner: &str, cpu: &str, memory: &str) -> Pod {
    pod(&json!({
        "metadata": { "ownerReferences": [{
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": owner,
            "controller": true,
        }]},
        "spec": { "containers": [{
            "name": "c", "resources": { "requests": { "cpu": cpu, "memory": memory } },
        }]},
    }))
}

pub(super) fn view(nodes: &[Node]) -> ClusterView {
    let mut view = ClusterView::new();
    for node in nodes {
        view.set_node(node.metadata.name.as_deref().unwrap(), Some(Facts::of(node)));
    }
    view
}

/// Decides for `pod` and counts it; the node, or the text of the refusal.
pub(super) fn schedule(view: &mut ClusterView, pod: &Pod, at: usize) -> Result<String, String> {
    let chosen = decide(view, pod, at as u64 * 7919).map_err(|err| err.to_string())?.to_owned();
    view.assume(&named(pod, &format!("p{at}")), &chosen);
    Ok(chosen)
}

/// The pod under another name, as another pod.
pub(super) fn named(pod: &Pod, name: &str) -> Pod {
    let mut pod = pod.clone();
    pod.metadata.name = Some(name.to_owned());
    pod.metadata.uid = Some(name.to_owned());
    pod
}
