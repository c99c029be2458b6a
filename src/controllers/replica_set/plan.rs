//! What makes a replica set's pods as many as wanted: a pure function.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::Selector;

use crate::controllers::object::{
    Availability, availability, controller_of, is_active, is_deleting, is_ready, node_name,
};
use crate::controllers::owned::claim;
use crate::controllers::replica_set::rank::by_deletion_order;
use crate::controllers::template::count;

/// Pods created or deleted in one run; the next run goes on from there.
pub(super) const BURST_MAX: usize = 500;

/// What a run sees.
pub(super) struct View<'a> {
    pub(super) replica_set: &'a ReplicaSet,
    /// `None` when the selector is malformed or empty: then only the status is kept.
    pub(super) selector: Option<&'a Selector>,
    /// All pods of the namespace.
    pub(super) pods: &'a [Arc<Pod>],
    /// The uids of the replica sets of the same owner, this one included.
    pub(super) siblings: &'a BTreeSet<String>,
    pub(super) now: Timestamp,
}

/// What a run does.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Pods that match and have no controller: they become ours.
    pub(super) adopt: Vec<Arc<Pod>>,
    /// Pods of ours that no longer match: they are let go.
    pub(super) release: Vec<Arc<Pod>>,
    /// How many pods to create.
    pub(super) create: usize,
    /// The pods to delete, first things first.
    pub(super) delete: Vec<Arc<Pod>>,
    /// The pods that are ours and count, before any of the above.
    pub(super) active: Vec<Arc<Pod>>,
    /// When a ready pod becomes available.
    pub(super) recheck_after: Option<Duration>,
}

pub(super) fn plan(view: &View<'_>) -> Plan {
    let is_alive = !is_deleting(&view.replica_set.metadata);
    let claimed = claim(view.replica_set, view.selector, view.pods, |_| true);
    let mut plan = Plan { release: claimed.release, adopt: claimed.adopt, ..Plan::default() };
    plan.adopt.retain(|pod| is_active(pod));
    plan.active = claimed.owned.into_iter().filter(|pod| is_active(pod)).collect();
    plan.active.extend(plan.adopt.iter().cloned());
    if is_alive && view.selector.is_some() {
        scale(view, &mut plan);
    }
    plan.recheck_after = plan
        .active
        .iter()
        .filter_map(|pod| match availability(pod, min_ready_seconds(view.replica_set), view.now) {
            Availability::In(left) => Some(left),
            Availability::Available | Availability::No => None,
        })
        .min();
    plan
}

fn scale(view: &View<'_>, plan: &mut Plan) {
    let wanted = replicas(view.replica_set);
    let have = plan.active.len();
    if have < wanted {
        plan.create = (wanted - have).min(BURST_MAX);
    } else if have > wanted {
        let mut candidates = plan.active.clone();
        by_deletion_order(&mut candidates, &peers(view), view.now);
        candidates.truncate((have - wanted).min(BURST_MAX));
        plan.delete = candidates;
    }
}

/// How many active pods of the same application each node holds.
fn peers(view: &View<'_>) -> BTreeMap<String, usize> {
    let mut peers = BTreeMap::new();
    for pod in view.pods {
        let is_peer = is_active(pod)
            && controller_of(&pod.metadata).is_some_and(|owner| view.siblings.contains(&owner.uid));
        if let (true, Some(node)) = (is_peer, node_name(pod)) {
            *peers.entry(node.to_owned()).or_insert(0) += 1;
        }
    }
    peers
}

fn replicas(replica_set: &ReplicaSet) -> usize {
    let wanted = replica_set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    usize::try_from(wanted).unwrap_or(0)
}

fn min_ready_seconds(replica_set: &ReplicaSet) -> i32 {
    replica_set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
}

/// What the status should say of `active`, after a run that failed with `failure` or not.
pub(super) fn status(
    replica_set: &ReplicaSet,
    active: &[Arc<Pod>],
    failure: Option<(&str, String)>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let template_labels = replica_set
        .spec
        .as_ref()
        .and_then(|spec| spec.template.as_ref()?.metadata.as_ref()?.labels.as_ref());
    let is_fully_labeled = |pod: &&Arc<Pod>| {
        let labels = pod.metadata.labels.as_ref();
        template_labels.into_iter().flatten().all(|(key, value)| {
            labels.and_then(|labels| labels.get(key)).is_some_and(|found| found == value)
        })
    };
    let min_ready_seconds = min_ready_seconds(replica_set);
    let is_available =
        |pod: &&Arc<Pod>| availability(pod, min_ready_seconds, now) == Availability::Available;
    ReplicaSetStatus {
        replicas: count(active.len()),
        fully_labeled_replicas: Some(count(active.iter().filter(is_fully_labeled).count())),
        ready_replicas: Some(count(active.iter().filter(|pod| is_ready(pod)).count())),
        available_replicas: Some(count(active.iter().filter(is_available).count())),
        observed_generation: replica_set.metadata.generation,
        conditions: conditions(replica_set, failure, now),
        ..ReplicaSetStatus::default()
    }
}

/// The conditions as they are, but for `ReplicaFailure`, which is there while pods cannot be made.
fn conditions(
    replica_set: &ReplicaSet,
    failure: Option<(&str, String)>,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    let old = replica_set.status.as_ref().and_then(|status| status.conditions.clone());
    let was = old.iter().flatten().find(|condition| condition.type_ == "ReplicaFailure").cloned();
    let had_any = old.is_some();
    let mut conditions: Vec<_> = old.into_iter().flatten().collect();
    conditions.retain(|condition| condition.type_ != "ReplicaFailure");
    if let Some((reason, message)) = failure {
        let since = was
            .filter(|was| was.reason.as_deref() == Some(reason))
            .and_then(|was| was.last_transition_time)
            .unwrap_or(Time(now));
        conditions.push(ReplicaSetCondition {
            type_: "ReplicaFailure".to_owned(),
            status: "True".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(since),
        });
    }
    (had_any || !conditions.is_empty()).then_some(conditions)
}
