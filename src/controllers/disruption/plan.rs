//! What the status of a disruption budget is: a pure function.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;

use crate::controllers::object::{elapsed, is_deleting, is_ready};

/// How long an eviction that was granted counts before it must have become a deletion.
const DELETION_TIMEOUT: Duration = Duration::from_secs(120);
/// Says whether pods may be evicted now.
const DISRUPTION_ALLOWED: &str = "DisruptionAllowed";

/// What a run sees.
pub(super) struct View<'a> {
    pub(super) budget: &'a PodDisruptionBudget,
    /// The pods it selects.
    pub(super) pods: &'a [Arc<Pod>],
    /// How many pods their owners want; an error says why nobody can tell.
    pub(super) scale: Result<i32, &'a str>,
    pub(super) now: Timestamp,
}

/// What comes of it.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) status: PodDisruptionBudgetStatus,
    /// Pods that were to be evicted, and never were.
    pub(super) not_deleted: Vec<Arc<Pod>>,
    /// When an eviction that was granted stops to count.
    pub(super) recheck_after: Option<Duration>,
}

/// Whether the number of pods the owners want matters to `budget`.
pub(super) fn needs_scale(budget: &PodDisruptionBudget) -> bool {
    let Some(spec) = &budget.spec else { return false };
    spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
}

/// The status as it should be.
pub(super) fn plan(view: &View<'_>) -> Outcome {
    let (disrupted, not_deleted, recheck_after) = disrupted(view);
    let expected = match view.scale {
        Ok(scale) if needs_scale(view.budget) => scale,
        Ok(_) => count(view.pods.len()),
        Err(reason) => return failed(view, reason, not_deleted, recheck_after),
    };
    let desired = desired(view.budget, expected);
    let is_healthy = |pod: &&Arc<Pod>| {
        !is_deleting(&pod.metadata) && !disrupted.contains_key(&pod.name_any()) && is_ready(pod)
    };
    let healthy = count(view.pods.iter().filter(is_healthy).count());
    let allowed = if expected <= 0 { 0 } else { healthy.saturating_sub(desired).max(0) };
    let (word, reason) =
        if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let status = PodDisruptionBudgetStatus {
        conditions: Some(conditions(view, word, reason, "")),
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        disruptions_allowed: Some(allowed),
        expected_pods: Some(expected),
        observed_generation: view.budget.metadata.generation,
    };
    Outcome { status, not_deleted, recheck_after }
}

/// Nobody can tell how many pods there should be: none may be evicted.
fn failed(
    view: &View<'_>,
    reason: &str,
    not_deleted: Vec<Arc<Pod>>,
    recheck_after: Option<Duration>,
) -> Outcome {
    let mut status = view.budget.status.clone().unwrap_or_default();
    status.disruptions_allowed = Some(0);
    status.observed_generation = view.budget.metadata.generation;
    status.conditions = Some(conditions(view, "False", "SyncFailed", reason));
    Outcome { status, not_deleted, recheck_after }
}

/// The pods whose eviction was granted and is not to be seen yet.
fn disrupted(view: &View<'_>) -> (BTreeMap<String, Time>, Vec<Arc<Pod>>, Option<Duration>) {
    let known = view.budget.status.as_ref().and_then(|status| status.disrupted_pods.as_ref());
    let (mut waiting, mut not_deleted, mut recheck) = (BTreeMap::new(), Vec::new(), None);
    let Some(known) = known else { return (waiting, not_deleted, recheck) };
    for pod in view.pods.iter().filter(|pod| !is_deleting(&pod.metadata)) {
        let Some(since) = known.get(&pod.name_any()) else { continue };
        // A pod of the same name that was made later is another one.
        let is_later = |made: &Time| made.0 > since.0 + SignedDuration::from_secs(1);
        if pod.metadata.creation_timestamp.as_ref().is_some_and(is_later) {
            continue;
        }
        match DELETION_TIMEOUT.checked_sub(elapsed(since.0, view.now)) {
            None | Some(Duration::ZERO) => not_deleted.push(Arc::clone(pod)),
            Some(left) => {
                waiting.insert(pod.name_any(), since.clone());
                recheck = Some(recheck.map_or(left, |known: Duration| known.min(left)));
            }
        }
    }
    (waiting, not_deleted, recheck)
}

/// How many pods must be healthy, of `expected`.
fn desired(budget: &PodDisruptionBudget, expected: i32) -> i32 {
    let Some(spec) = &budget.spec else { return 0 };
    if let Some(most) = &spec.max_unavailable {
        return expected.saturating_sub(scaled(most, expected)).max(0);
    }
    spec.min_available.as_ref().map_or(0, |least| scaled(least, expected))
}

/// The number, or the part of `whole`, rounded up.
fn scaled(value: &IntOrString, whole: i32) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let part = percent.saturating_mul(i64::from(whole)).saturating_add(99).div_euclid(100);
            i32::try_from(part).unwrap_or(i32::MAX)
        }
    }
}

/// The conditions with the one that is ours; its time moves only with its word.
fn conditions(view: &View<'_>, word: &str, reason: &str, message: &str) -> Vec<Condition> {
    let had = view.budget.status.as_ref().and_then(|status| status.conditions.clone());
    let mut all = had.unwrap_or_default();
    let is_ours = |condition: &&Condition| condition.type_ == DISRUPTION_ALLOWED;
    let since = all.iter().find(is_ours).filter(|had| had.status == word);
    let since = since.map_or(Time(view.now), |had| had.last_transition_time.clone());
    all.retain(|condition| condition.type_ != DISRUPTION_ALLOWED);
    all.push(Condition {
        type_: DISRUPTION_ALLOWED.to_owned(),
        status: word.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: view.budget.metadata.generation,
        last_transition_time: since,
    });
    all
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, is_ready: bool) -> Arc<Pod> {
        let ready = if is_ready { "True" } else { "False" };
        let pod = json!({"metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn budget(spec: &Value, status: &Value) -> PodDisruptionBudget {
        let value = json!({"metadata": {"name": "b", "generation": 3}, "spec": spec,
            "status": status});
        serde_json::from_value(value).unwrap()
    }

    fn run(spec: &Value, pods: &[Arc<Pod>], scale: Result<i32, &str>) -> Outcome {
        let budget = budget(
            spec,
            &json!({"disruptionsAllowed": 1, "currentHealthy": 0,
            "desiredHealthy": 0, "expectedPods": 0}),
        );
        let now = "2026-01-01T01:00:00Z".parse().unwrap();
        plan(&View { budget: &budget, pods, scale, now })
    }

    #[test]
    fn what_may_go_is_what_is_healthy_beyond_what_must_be() {
        let pods: Vec<_> =
            ["a", "b", "c", "d"].iter().map(|name| pod(name, *name != "d")).collect();
        // Spec, scale of the owners; expected, desired, healthy, allowed.
        for (spec, scale, wanted) in [
            (json!({"minAvailable": 2}), 10, (4, 2, 3, 1)),
            (json!({"minAvailable": 4}), 10, (4, 4, 3, 0)),
            (json!({"minAvailable": "50%"}), 4, (4, 2, 3, 1)),
            (json!({"minAvailable": "51%"}), 4, (4, 3, 3, 0)),
            (json!({"maxUnavailable": 1}), 4, (4, 3, 3, 0)),
            (json!({"maxUnavailable": 2}), 4, (4, 2, 3, 1)),
            (json!({"maxUnavailable": "26%"}), 4, (4, 2, 3, 1)),
            (json!({"maxUnavailable": 5}), 4, (4, 0, 3, 3)),
            (json!({"maxUnavailable": "100%"}), 0, (0, 0, 3, 0)),
            (json!({}), 4, (4, 0, 3, 3)),
        ] {
            let status = run(&spec, &pods, Ok(scale)).status;
            let got = [
                status.expected_pods,
                status.desired_healthy,
                status.current_healthy,
                status.disruptions_allowed,
            ];
            assert_eq!(got, [wanted.0, wanted.1, wanted.2, wanted.3].map(Some), "{spec}");
            let word = status.conditions.unwrap()[0].status.clone();
            assert_eq!(word, if wanted.3 > 0 { "True" } else { "False" }, "{spec}");
            assert_eq!(status.observed_generation, Some(3));
        }
    }

    #[test]
    fn while_nobody_knows_how_many_there_should_be_none_may_go() {
        let status = run(&json!({"maxUnavailable": 1}), &[pod("a", true)], Err("no owner")).status;
        assert_eq!(status.disruptions_allowed, Some(0));
        let condition = &status.conditions.unwrap()[0];
        assert_eq!(
            (condition.reason.as_str(), condition.message.as_str()),
            ("SyncFailed", "no owner")
        );
    }

    #[test]
    fn an_eviction_that_was_granted_counts_until_it_is_seen_or_two_minutes_have_gone() {
        let status = |since: &str| {
            json!({"disruptionsAllowed": 0, "currentHealthy": 0,
            "desiredHealthy": 0, "expectedPods": 0, "disruptedPods": {"a": since, "gone": since}})
        };
        let pods = [pod("a", true), pod("b", true)];
        let at = |since: &str| {
            let budget = budget(&json!({"minAvailable": 1}), &status(since));
            let now = "2026-01-01T01:00:00Z".parse().unwrap();
            plan(&View { budget: &budget, pods: &pods, scale: Ok(0), now })
        };
        let fresh = at("2026-01-01T00:59:00Z");
        assert_eq!(
            (fresh.status.current_healthy, fresh.status.disruptions_allowed),
            (Some(1), Some(0))
        );
        assert_eq!(fresh.status.disrupted_pods.unwrap().len(), 1, "of pods that are there");
        assert_eq!(fresh.recheck_after, Some(Duration::from_secs(60)));
        let late = at("2026-01-01T00:57:00Z");
        assert_eq!(
            (late.status.current_healthy, late.status.disruptions_allowed),
            (Some(2), Some(1))
        );
        assert_eq!((late.not_deleted.len(), late.status.disrupted_pods), (1, None));
        let of_another = at("2025-12-31T23:00:00Z");
        assert_eq!(of_another.not_deleted.len(), 0, "the pod is younger than the eviction");
    }
}
