//! Which pod moves next: a pure function.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt as _;

use crate::controllers::object::{is_active, is_ready, node_name};

/// A set of equal pods.
pub(super) struct Set {
    pub(super) wanted: usize,
    /// The pods it owns.
    pub(super) pods: Vec<Arc<Pod>>,
}

/// How uneven a set lies, and the pod whose move makes it evener.
#[derive(Debug, PartialEq)]
pub(super) struct Move {
    pub(super) pod: Arc<Pod>,
    /// Pods on the fullest node more than on the emptiest.
    pub(super) gap: usize,
}

/// The pod to evict, if the set is whole and would lie evener for it.
pub(super) fn plan(set: &Set, nodes: &[Arc<Node>]) -> Option<Move> {
    let is_whole =
        set.pods.len() == set.wanted && set.pods.iter().all(|pod| is_active(pod) && is_ready(pod));
    let first = set.pods.first()?;
    // Wishes beyond labels are the scheduler's to weigh: such sets are left as they are.
    if !is_whole || first.spec.as_ref()?.affinity.is_some() {
        return None;
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for node in nodes.iter().filter(|node| takes(node, first)) {
        counts.insert(node.name_any(), 0);
    }
    for name in set.pods.iter().filter_map(|pod| node_name(pod)) {
        if let Some(count) = counts.get_mut(name) {
            *count += 1;
        }
    }
    let fewest = *counts.values().min()?;
    let (fullest, most) = counts.iter().max_by_key(|(_, count)| **count)?;
    let gap = most.checked_sub(fewest).filter(|gap| *gap >= 2)?;
    // The youngest: it has served for the shortest time.
    let here = set.pods.iter().filter(|pod| node_name(pod) == Some(fullest.as_str()));
    let born = |pod: &&Arc<Pod>| {
        let made = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (made, pod.name_any())
    };
    here.max_by_key(born).map(|pod| Move { pod: Arc::clone(pod), gap })
}

/// Whether a pod could be put on the node, as far as the node itself is concerned.
fn takes(node: &Node, pod: &Pod) -> bool {
    let (spec, status) = (node.spec.as_ref(), node.status.as_ref());
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let is_ready = conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
    let is_open = spec.and_then(|spec| spec.unschedulable) != Some(true);
    let taints = spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let is_free = taints.iter().all(|taint| taint.effect == "PreferNoSchedule");
    let wishes = pod.spec.as_ref().and_then(|spec| spec.node_selector.as_ref());
    let has_labels = wishes.is_none_or(|wishes| {
        wishes.iter().all(|(key, value)| node.labels().get(key) == Some(value))
    });
    is_ready && is_open && is_free && has_labels
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, spec: &Value) -> Arc<Node> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {"name": name}},
            "spec": spec, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}))
            .unwrap(),
        )
    }

    fn pod(name: &str, node: &str, spec: &Value) -> Arc<Pod> {
        let mut pod = json!({"metadata": {"name": name}, "spec": {"nodeName": node, "containers": []},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        json_patch::merge(&mut pod["spec"], spec);
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn moved(
        on: &[&str],
        nodes: &[Arc<Node>],
        wanted: usize,
        spec: &Value,
    ) -> Option<(String, usize)> {
        let pods: Vec<_> =
            on.iter().enumerate().map(|(at, node)| pod(&format!("p{at}"), node, spec)).collect();
        plan(&Set { wanted, pods }, nodes).map(|found| (found.pod.name_any(), found.gap))
    }

    #[test]
    fn a_pod_leaves_the_fullest_node_only_if_that_makes_it_evener() {
        let nodes = [node("a", &json!({})), node("b", &json!({})), node("c", &json!({}))];
        let none = json!({});
        let is = |name: &str, gap| Some((name.to_owned(), gap));
        assert_eq!(moved(&["a", "a", "a", "b", "b", "b"], &nodes, 6, &none), is("p5", 3));
        assert_eq!(moved(&["a", "a", "b", "b", "c"], &nodes, 5, &none), None);
        assert_eq!(moved(&["a", "a"], &nodes, 2, &none), is("p1", 2));
        assert_eq!(moved(&["a", "a"], &nodes, 3, &none), None, "the set is not whole");
        assert_eq!(moved(&["a", "b"], &nodes, 2, &none), None);
        assert_eq!(moved(&[], &nodes, 0, &none), None);
        let pinned = json!({"nodeSelector": {"name": "a"}});
        assert_eq!(moved(&["a", "a", "a"], &nodes, 3, &pinned), None);
        let choosy = json!({"affinity": {"nodeAffinity": {}}});
        assert_eq!(moved(&["a", "a", "a"], &nodes, 3, &choosy), None);
    }

    #[test]
    fn nodes_that_take_no_pods_are_not_counted() {
        let cordoned = [node("a", &json!({})), node("b", &json!({"unschedulable": true}))];
        assert_eq!(moved(&["a", "a", "a"], &cordoned, 3, &json!({})), None);
        let tainted = [
            node("a", &json!({})),
            node("b", &json!({"taints": [{"key": "k", "effect": "NoSchedule"}]})),
        ];
        assert_eq!(moved(&["a", "a", "a"], &tainted, 3, &json!({})), None);
    }
}
