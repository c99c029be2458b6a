//! What a stateful set's status says.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;

use crate::controllers::object::is_deleting;
use crate::controllers::stateful_set::plan::{
    Revisions, Wish, is_running_and_ready, is_serving, revision_of,
};
use crate::controllers::template::count;

/// The status of `set` whose pods are `owned`. A rolling update that is over makes its revision the
/// current one.
pub(super) fn status(
    set: &StatefulSet,
    wish: Wish,
    known: &Revisions<'_>,
    owned: &[Arc<Pod>],
    now: Timestamp,
) -> StatefulSetStatus {
    let of = |test: &dyn Fn(&Pod) -> bool| count(owned.iter().filter(|pod| test(pod)).count());
    let is_of = |pod: &Pod, revision: &str| {
        revision_of(pod) == Some(revision) && !is_deleting(&pod.metadata)
    };
    let updated = of(&|pod| is_of(pod, known.update));
    let available = of(&|pod| is_serving(pod, wish, now));
    let total = count(owned.len());
    let is_complete = wish.partition.is_some()
        && [updated, available, total].iter().all(|count| *count == wish.replicas);
    let current = if is_complete { known.update } else { &known.current };
    let was = set.status.as_ref();
    StatefulSetStatus {
        replicas: total,
        ready_replicas: Some(of(&|pod| is_running_and_ready(pod) && !is_deleting(&pod.metadata))),
        available_replicas: Some(available),
        current_replicas: Some(of(&|pod| is_of(pod, current))),
        updated_replicas: Some(updated),
        current_revision: Some(current.to_owned()),
        update_revision: Some(known.update.to_owned()),
        observed_generation: set.metadata.generation,
        collision_count: was.and_then(|was| was.collision_count),
        conditions: was.and_then(|was| was.conditions.clone()),
    }
}

/// Whether two statuses say the same, an absent count being zero.
pub(super) fn is_same(a: &StatefulSetStatus, b: &StatefulSetStatus) -> bool {
    let of = |status: &StatefulSetStatus| {
        let counts = [
            Some(status.replicas),
            status.ready_replicas,
            status.available_replicas,
            status.current_replicas,
            status.updated_replicas,
        ];
        (
            counts.map(|count| count.unwrap_or(0)),
            status.observed_generation,
            status.current_revision.clone().unwrap_or_default(),
            status.update_revision.clone().unwrap_or_default(),
        )
    };
    of(a) == of(b)
}
