//! What a deployment's status says: counts, and how its rollout goes.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetCondition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;

use crate::controllers::deployment::plan::wanted;
use crate::controllers::deployment::template::Wish;
use crate::controllers::object::elapsed;

/// The replica sets whose progress is judged.
pub(super) struct Rollout<'a> {
    pub(super) new: Option<&'a ReplicaSet>,
    pub(super) old: &'a [Arc<ReplicaSet>],
    /// The name of the replica set this run creates.
    pub(super) created: Option<String>,
}

/// The status as it should be, and when to look again for a missed deadline.
pub(super) fn status(
    deployment: &Deployment,
    rollout: &Rollout<'_>,
    now: Timestamp,
) -> (DeploymentStatus, Option<Duration>) {
    let mut status = counts(deployment, rollout);
    let was = deployment.status.as_ref();
    let mut conditions = was.and_then(|was| was.conditions.clone()).unwrap_or_default();
    set(&mut conditions, available(deployment, &status), now);
    let recheck_after = progressing(deployment, rollout, &status, &mut conditions, now);
    match failure(rollout) {
        Some(failure) => set(&mut conditions, failure, now),
        None => conditions.retain(|condition| condition.type_ != "ReplicaFailure"),
    }
    status.conditions = Some(conditions);
    (status, recheck_after)
}

/// The status `was`, and that the new replica set could not be made because of `why`.
pub(super) fn not_created(was: &DeploymentStatus, why: &str, now: Timestamp) -> DeploymentStatus {
    let mut status = was.clone();
    let conditions = status.conditions.get_or_insert_default();
    let condition = judged("Progressing", "False", "ReplicaSetCreateError", why.to_owned());
    set(conditions, condition, now);
    status
}

/// Whether the wish is fulfilled: all pods are of the present template and available.
pub(super) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let replicas = Some(Wish::of(deployment).replicas);
    status.updated_replicas == replicas
        && status.replicas == replicas
        && status.available_replicas == replicas
        && status.observed_generation >= deployment.metadata.generation
}

fn counts(deployment: &Deployment, rollout: &Rollout<'_>) -> DeploymentStatus {
    let all = || rollout.new.into_iter().chain(rollout.old.iter().map(Arc::as_ref));
    let sum = |of: fn(&ReplicaSet) -> i32| all().map(of).sum::<i32>();
    let replicas = |set: &ReplicaSet| set.status.as_ref().map_or(0, |status| status.replicas);
    let ready = |set: &ReplicaSet| {
        set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0)
    };
    let available = |set: &ReplicaSet| {
        set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
    };
    let available = sum(available);
    DeploymentStatus {
        replicas: Some(sum(replicas)),
        updated_replicas: Some(rollout.new.map_or(0, replicas)),
        ready_replicas: Some(sum(ready)),
        available_replicas: Some(available),
        unavailable_replicas: Some((sum(wanted) - available).max(0)),
        observed_generation: deployment.metadata.generation,
        collision_count: deployment.status.as_ref().and_then(|status| status.collision_count),
        ..DeploymentStatus::default()
    }
}

fn available(deployment: &Deployment, status: &DeploymentStatus) -> DeploymentCondition {
    let is_available =
        status.available_replicas.unwrap_or(0) >= Wish::of(deployment).available_min();
    if is_available {
        let message = "Deployment has minimum availability.";
        judged("Available", "True", "MinimumReplicasAvailable", message.to_owned())
    } else {
        let message = "Deployment does not have minimum availability.";
        judged("Available", "False", "MinimumReplicasUnavailable", message.to_owned())
    }
}

/// Keeps the Progressing condition; returns when its deadline passes, if one runs.
fn progressing(
    deployment: &Deployment,
    rollout: &Rollout<'_>,
    status: &DeploymentStatus,
    conditions: &mut Vec<DeploymentCondition>,
    now: Timestamp,
) -> Option<Duration> {
    let spec = deployment.spec.as_ref()?;
    let deadline = spec.progress_deadline_seconds.filter(|&seconds| seconds != i32::MAX);
    let Some(deadline) = deadline else {
        // What was said when there was one would stand for ever.
        conditions.retain(|condition| condition.type_ != "Progressing");
        return None;
    };
    let deadline = Duration::from_secs(u64::try_from(deadline).ok()?);
    let was = conditions.iter().find(|condition| condition.type_ == "Progressing").cloned();
    let reason = was.as_ref().and_then(|was| was.reason.as_deref()).unwrap_or_default();
    let says = |verdict, reason, message| judged("Progressing", verdict, reason, message);
    let is_paused = spec.paused == Some(true);
    if is_paused {
        // That a rollout has failed is true while it is on hold, too.
        if !matches!(reason, "DeploymentPaused" | "ProgressDeadlineExceeded") {
            let message = "Deployment is paused".to_owned();
            set(conditions, says("Unknown", "DeploymentPaused", message), now);
        }
        return None;
    }
    if let Some(name) = &rollout.created {
        let message = format!("Created new replica set \"{name}\"");
        set(conditions, says("True", "NewReplicaSetCreated", message), now);
        return Some(deadline);
    }
    let name = rollout.new.map_or_else(|| deployment.name_any(), |set| set.name_any());
    if reason == "DeploymentPaused" {
        let message = "Deployment is resumed".to_owned();
        set(conditions, says("Unknown", "DeploymentResumed", message), now);
        return Some(deadline);
    }
    if is_complete(deployment, status) {
        if reason != "NewReplicaSetAvailable" {
            let message = format!("ReplicaSet \"{name}\" has successfully progressed.");
            set(conditions, says("True", "NewReplicaSetAvailable", message), now);
        }
        return None;
    }
    // A deployment that was complete and lost pods is not rolling out: no deadline runs.
    let is_rolled_out = status.replicas == status.updated_replicas;
    if is_rolled_out && reason == "NewReplicaSetAvailable" {
        return None;
    }
    if was.is_none() && rollout.new.is_some() {
        let message = format!("Found new replica set \"{name}\"");
        set(conditions, says("True", "FoundNewReplicaSet", message), now);
        return Some(deadline);
    }
    if has_progressed(deployment.status.as_ref(), status) || reason == "NewReplicaSetAvailable" {
        let message = format!("ReplicaSet \"{name}\" is progressing.");
        let mut condition = says("True", "ReplicaSetUpdated", message);
        condition.last_update_time = Some(Time(now));
        set(conditions, condition, now);
        return Some(deadline);
    }
    if reason == "ProgressDeadlineExceeded" {
        return None;
    }
    let since = was?.last_update_time?.0;
    let left = deadline.checked_sub(elapsed(since, now)).filter(|left| !left.is_zero());
    if left.is_none() {
        let message = format!("ReplicaSet \"{name}\" has timed out progressing.");
        set(conditions, says("False", "ProgressDeadlineExceeded", message), now);
    }
    left
}

fn has_progressed(was: Option<&DeploymentStatus>, is: &DeploymentStatus) -> bool {
    let counts = |status: &DeploymentStatus| {
        let updated = status.updated_replicas.unwrap_or(0);
        let old = status.replicas.unwrap_or(0) - updated;
        let ready = status.ready_replicas.unwrap_or(0);
        (updated, old, ready, status.available_replicas.unwrap_or(0))
    };
    let was = was.map_or((0, 0, 0, 0), counts);
    let is = counts(is);
    is.0 > was.0 || is.1 < was.1 || is.2 > was.2 || is.3 > was.3
}

/// The first trouble a replica set has making pods, the new one's before the old ones'.
fn failure(rollout: &Rollout<'_>) -> Option<DeploymentCondition> {
    let of = |set: &ReplicaSet| -> Option<ReplicaSetCondition> {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|condition| condition.type_ == "ReplicaFailure").cloned()
    };
    let found = rollout.new.and_then(of).or_else(|| rollout.old.iter().find_map(|set| of(set)))?;
    Some(DeploymentCondition {
        type_: found.type_,
        status: found.status,
        reason: found.reason,
        message: found.message,
        ..DeploymentCondition::default()
    })
}

fn judged(type_: &str, status: &str, reason: &str, message: String) -> DeploymentCondition {
    DeploymentCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        ..DeploymentCondition::default()
    }
}

/// Puts `condition` in place of the one of its type, unless that says the same already.
fn set(
    conditions: &mut Vec<DeploymentCondition>,
    mut condition: DeploymentCondition,
    now: Timestamp,
) {
    let was = conditions.iter().find(|was| was.type_ == condition.type_);
    if let Some(was) = was {
        let is_same = was.status == condition.status
            && was.reason == condition.reason
            && condition.last_update_time.is_none();
        if is_same {
            return;
        }
        if was.status == condition.status {
            condition.last_transition_time = was.last_transition_time.clone();
        }
    }
    let now = Some(Time(now));
    condition.last_transition_time = condition.last_transition_time.or_else(|| now.clone());
    condition.last_update_time = condition.last_update_time.or(now);
    match conditions.iter_mut().find(|was| was.type_ == condition.type_) {
        Some(was) => *was = condition,
        None => conditions.push(condition),
    }
}
