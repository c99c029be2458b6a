//! Which pods of a replica set go first when there are too many.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt as _;

use crate::controllers::object::{elapsed, is_ready, node_name, phase, ready_since};

/// A user's hint: pods of lower cost go first. An integer, 0 when absent.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// How useful a pod is, whatever its age: bound, phase, ready, cost, peers on its node.
type Usefulness = (bool, u8, bool, i32, Reverse<usize>);

/// Pods as useful as each other that became ready at the same time.
type Batch = (Usefulness, Option<Timestamp>);

/// Sorted ascending, the first is deleted first: usefulness, ready age, batch, restarts, age, uid.
type Rank = (Usefulness, AgeClass, String, Reverse<(i32, i32)>, AgeClass, String);

/// Ages are compared by their power of two, so that no node loses all its pods just because they
/// started last. `None` is no age at all.
type AgeClass = Option<u32>;

/// Sorts `pods` so that those to delete first come first. The order is Kubernetes'.
///
/// `peers` is how many pods of the same application each node holds.
pub(super) fn by_deletion_order(
    pods: &mut [Arc<Pod>],
    peers: &BTreeMap<String, usize>,
    now: Timestamp,
) {
    // Of one age class the uid decides, but of pods that became ready at once restarts do. For that to
    // be an order, those stand together, where the first uid of them is.
    let mut first_uids: BTreeMap<Batch, String> = BTreeMap::new();
    for pod in pods.iter() {
        let uid = pod.uid().unwrap_or_default();
        let first = first_uids.entry(batch(pod, peers)).or_insert_with(|| uid.clone());
        if uid < *first {
            *first = uid;
        }
    }
    pods.sort_by_cached_key(|pod| {
        let batch = batch(pod, peers);
        let first_uid = first_uids.get(&batch).cloned().unwrap_or_default();
        rank(pod, batch, first_uid, now)
    });
}

fn rank(pod: &Pod, (usefulness, ready_since): Batch, first_uid: String, now: Timestamp) -> Rank {
    let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    (
        usefulness,
        ready_since.and_then(|since| age_class(since, now)),
        first_uid,
        Reverse(restarts(pod)),
        created.and_then(|since| age_class(since, now)),
        pod.uid().unwrap_or_default(),
    )
}

fn batch(pod: &Pod, peers: &BTreeMap<String, usize>) -> Batch {
    let node = node_name(pod);
    let phase_rank = match phase(pod) {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    };
    let peers_there = node.and_then(|node| peers.get(node)).copied().unwrap_or(0);
    let usefulness =
        (node.is_some(), phase_rank, is_ready(pod), deletion_cost(pod), Reverse(peers_there));
    (usefulness, ready_since(pod))
}

fn age_class(since: Timestamp, now: Timestamp) -> AgeClass {
    elapsed(since, now).as_nanos().checked_ilog2()
}

fn deletion_cost(pod: &Pod) -> i32 {
    let cost = pod.metadata.annotations.as_ref().and_then(|all| all.get(DELETION_COST));
    cost.and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

/// Restarts of the container that restarted most, and of the sidecar that did.
fn restarts(pod: &Pod) -> (i32, i32) {
    let Some(status) = pod.status.as_ref() else { return (0, 0) };
    let inits = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let sidecars: Vec<&str> = inits
        .filter(|one| one.restart_policy.as_deref() == Some("Always"))
        .map(|one| one.name.as_str())
        .collect();
    let others = status.init_container_statuses.iter().flatten();
    let others = others.filter(|one| sidecars.contains(&one.name.as_str()));
    (most_restarts(status.container_statuses.iter().flatten()), most_restarts(others))
}

fn most_restarts<'a>(statuses: impl Iterator<Item = &'a ContainerStatus>) -> i32 {
    statuses.map(|status| status.restart_count).max().unwrap_or(0)
}
