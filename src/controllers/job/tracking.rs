//! What a Job's controller reads of one pod: its index, how it ended, whether it is counted yet.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, PodFailurePolicyRule};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::controllers::object::{full_name, is_deleting, phase};

/// Keeps a pod that has ended until it is counted.
pub(super) const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// Index of a pod of an Indexed Job: annotation and label.
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// How often pods of the same index failed before this one.
pub(super) const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// How often they failed in a way that the policy ignores.
pub(super) const INDEX_IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

/// Whether the pod is still to be counted.
pub(super) fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

fn annotation(pod: &Pod, key: &str) -> Option<u32> {
    pod.metadata.annotations.as_ref()?.get(key)?.parse().ok()
}

/// The pod's index, if it has one below `completions`.
pub(super) fn index_of(pod: &Pod, completions: u32) -> Option<u32> {
    annotation(pod, INDEX).filter(|index| *index < completions)
}

/// Failures of the pod's index before it: those that count, and those that are ignored.
pub(super) fn failures_before(pod: &Pod) -> (u32, u32) {
    (annotation(pod, INDEX_FAILURES).unwrap_or(0), annotation(pod, INDEX_IGNORED).unwrap_or(0))
}

/// Whether nothing of the pod runs any more: it ended, or its node confirmed its deletion.
pub(super) fn is_over(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
        || (is_deleting(&pod.metadata) && pod.metadata.deletion_grace_period_seconds == Some(0))
}

/// Whether the pod is on its way out.
pub(super) fn is_terminating(pod: &Pod) -> bool {
    is_deleting(&pod.metadata) && !is_over(pod)
}

/// Whether the pod counts as failed. One that is being deleted does so at once, unless a replacement
/// has to wait until it has ended.
pub(super) fn is_failed(pod: &Pod, replaces_failed_only: bool) -> bool {
    match phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        _ if replaces_failed_only => is_over(pod),
        _ => is_deleting(&pod.metadata),
    }
}

/// When the pod's last container ended; of one that never ran, when it was deleted or made.
pub(super) fn ended_at(pod: &Pod) -> Option<Timestamp> {
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_ref());
    let finished = containers.into_iter().flatten().filter_map(|container| {
        let terminated = container.state.as_ref()?.terminated.as_ref()?;
        terminated.finished_at.as_ref().map(|time| time.0)
    });
    let deleted = || {
        // The time stamp is when its grace will be over.
        let by = pod.metadata.deletion_timestamp.as_ref()?.0;
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
        by.checked_sub(jiff::SignedDuration::from_secs(grace)).ok()
    };
    let made = || pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    finished.max().or_else(deleted).or_else(made)
}

/// Restarts of all containers of a pod that goes on.
pub(super) fn restarts(pod: &Pod) -> i32 {
    let Some(status) = pod.status.as_ref() else { return 0 };
    let lists = [&status.init_container_statuses, &status.container_statuses];
    lists.into_iter().flatten().flatten().map(|container| container.restart_count).sum()
}

/// What the failure policy makes of a failed pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Judgement {
    /// It counts against the limits.
    Count,
    /// It does not count.
    Ignore,
    /// Its index has failed.
    FailIndex,
    /// The Job has failed; why.
    FailJob(String),
}

/// What the Job's failure policy says of `pod`, which has failed; the first rule that fits counts.
pub(super) fn judge(job: &Job, pod: &Pod) -> Judgement {
    let policy = job.spec.as_ref().and_then(|spec| spec.pod_failure_policy.as_ref());
    for (at, rule) in policy.into_iter().flat_map(|policy| policy.rules.iter()).enumerate() {
        let Some(what) = matched(rule, pod) else { continue };
        return match rule.action.as_str() {
            "Ignore" => Judgement::Ignore,
            "FailIndex" => Judgement::FailIndex,
            "FailJob" => Judgement::FailJob(format!("{what} matching FailJob rule at index {at}")),
            _ => Judgement::Count,
        };
    }
    Judgement::Count
}

/// What of the pod the rule fits.
fn matched(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let name = full_name(&pod.metadata);
    if let Some(codes) = &rule.on_exit_codes {
        let lists = [&status.container_statuses, &status.init_container_statuses];
        let is_named = |container: &&ContainerStatus| {
            codes.container_name.as_ref().is_none_or(|wanted| *wanted == container.name)
        };
        return lists.into_iter().flatten().flatten().filter(is_named).find_map(|container| {
            let code = container.state.as_ref()?.terminated.as_ref()?.exit_code;
            let fits = code != 0 && (codes.values.contains(&code) == (codes.operator == "In"));
            let container = &container.name;
            fits.then(|| {
                format!("Container {container} for pod {name} failed with exit code {code}")
            })
        });
    }
    rule.on_pod_conditions.iter().flatten().find_map(|pattern| {
        let wanted = pattern.status.as_deref().unwrap_or("True");
        let has = status
            .conditions
            .iter()
            .flatten()
            .any(|condition| condition.type_ == pattern.type_ && condition.status == wanted);
        has.then(|| format!("Pod {name} has condition {}", pattern.type_))
    })
}

/// Waits between a failure and the next attempt: they double.
#[derive(Debug, Clone, Copy)]
pub(super) struct Backoff {
    pub(super) min: Duration,
    pub(super) max: Duration,
}

impl Backoff {
    /// How long the attempt after `failures` in a row, the last one at `last`, is still to wait.
    pub(super) fn left(
        self,
        failures: u32,
        last: Option<Timestamp>,
        now: Timestamp,
    ) -> Option<Duration> {
        let last = last.filter(|_| failures > 0)?;
        let factor = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        let delay = self.min.saturating_mul(factor).min(self.max);
        let passed = crate::controllers::object::elapsed(last, now);
        delay.checked_sub(passed).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(changes: &Value) -> Pod {
        let mut pod = json!({"metadata": {"name": "p", "namespace": "n"}});
        json_patch::merge(&mut pod, changes);
        serde_json::from_value(pod).unwrap()
    }

    fn exited(code: i32) -> Value {
        json!({"status": {"phase": "Failed", "containerStatuses": [{"name": "main", "image": "",
            "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": code}}}]}})
    }

    #[test]
    fn a_pod_that_is_deleted_has_failed_at_once_or_once_it_is_over() {
        let deleted = |grace: i64| {
            pod(&json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z",
                "deletionGracePeriodSeconds": grace}, "status": {"phase": "Running"}}))
        };
        assert!(is_failed(&deleted(30), false));
        assert!(!is_failed(&deleted(30), true));
        assert!(is_failed(&deleted(0), true));
        assert!(is_terminating(&deleted(30)) && !is_terminating(&deleted(0)));
        assert!(!is_failed(&pod(&json!({"status": {"phase": "Running"}})), false));
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let job: Job = serde_json::from_value(json!({"spec": {"template": {}, "podFailurePolicy": {"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": "main", "operator": "In", "values": [42]}},
            {"action": "FailIndex", "onExitCodes": {"operator": "NotIn", "values": [1, 2]}},
        ]}}}))
        .unwrap();
        let judged = |changes: &Value| judge(&job, &pod(changes));
        assert_eq!(judged(&exited(1)), Judgement::Count);
        assert_eq!(judged(&exited(7)), Judgement::FailIndex);
        assert_eq!(
            judged(&exited(42)),
            Judgement::FailJob("Container main for pod n/p failed with exit code 42 matching FailJob rule at index 1".into())
        );
        let mut disrupted = exited(42);
        disrupted["status"]["conditions"] = json!([{"type": "DisruptionTarget", "status": "True"}]);
        assert_eq!(judged(&disrupted), Judgement::Ignore);
        assert_eq!(judged(&exited(0)), Judgement::Count);
    }

    #[test]
    fn waits_double_up_to_a_bound_and_pass() {
        let backoff = Backoff { min: Duration::from_secs(10), max: Duration::from_secs(600) };
        let at = |second| Timestamp::from_second(second).unwrap();
        let left =
            |failures, passed| backoff.left(failures, Some(at(0)), at(passed)).map(|d| d.as_secs());
        assert_eq!(left(0, 0), None);
        assert_eq!(left(1, 0), Some(10));
        assert_eq!(left(1, 10), None);
        assert_eq!(left(2, 5), Some(15));
        assert_eq!(left(3, 0), Some(40));
        assert_eq!(left(40, 0), Some(600));
    }
}
