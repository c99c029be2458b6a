//! Which pods of a replica set go first when there are too many.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::controllers::object::{elapsed, is_ready, node_name, phase, ready_since};

/// A user's hint: pods of lower cost go first. An integer, 0 when absent.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Sorted ascending, the first is deleted first. The order is Kubernetes'; ages are compared by
/// their power of two, so that no node loses all its pods just because they started last.
type Rank<'a> = (bool, u8, bool, i32, Reverse<usize>, u32, Reverse<i32>, u32, &'a str);

/// Sorts `pods` so that those to delete first come first.
///
/// `peers` is how many pods of the same application each node holds.
pub(super) fn by_deletion_order(
    pods: &mut [Arc<Pod>],
    peers: &BTreeMap<String, usize>,
    now: Timestamp,
) {
    pods.sort_by(|a, b| rank(a, peers, now).cmp(&rank(b, peers, now)));
}

fn rank<'a>(pod: &'a Pod, peers: &BTreeMap<String, usize>, now: Timestamp) -> Rank<'a> {
    let node = node_name(pod);
    let phase_rank = match phase(pod) {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    };
    let is_ready = is_ready(pod);
    let ready_age = ready_since(pod).filter(|_| is_ready).map_or(0, |since| age_class(since, now));
    let created = pod.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
    (
        node.is_some(),
        phase_rank,
        is_ready,
        deletion_cost(pod),
        Reverse(node.and_then(|node| peers.get(node)).copied().unwrap_or(0)),
        ready_age,
        Reverse(restarts(pod)),
        age_class(created, now),
        pod.metadata.uid.as_deref().unwrap_or_default(),
    )
}

fn age_class(since: Timestamp, now: Timestamp) -> u32 {
    (elapsed(since, now).as_secs() + 1).ilog2()
}

fn deletion_cost(pod: &Pod) -> i32 {
    let cost = pod.metadata.annotations.as_ref().and_then(|all| all.get(DELETION_COST));
    cost.and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|status| status.restart_count).max().unwrap_or(0)
}
