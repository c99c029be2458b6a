use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::controllers::job::plan::{Plan, View, plan};
use crate::controllers::job::tracking::{Backoff, FINALIZER, INDEX, INDEX_FAILURES};

const NOW: &str = "2026-01-01T01:00:00Z";

fn job(spec: &Value, status: &Value) -> Job {
    let mut full = json!({"parallelism": 1, "completions": 1, "backoffLimit": 6, "template": {"spec": {
        "restartPolicy": "Never", "containers": [{"name": "c"}]}}});
    json_patch::merge(&mut full, spec);
    serde_json::from_value(json!({"metadata": {"name": "j", "namespace": "n", "uid": "j"},
        "spec": full, "status": status}))
    .unwrap()
}

/// A tracked pod in that phase, with `changes` merged in; one that ended did so a minute ago.
fn pod(name: &str, phase: &str, changes: &Value) -> Arc<Pod> {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "n", "uid": name, "finalizers": [FINALIZER],
            "creationTimestamp": "2026-01-01T00:58:00Z"},
        "status": {"phase": phase},
    });
    if matches!(phase, "Succeeded" | "Failed") {
        pod["status"]["containerStatuses"] = json!([{"name": "c", "image": "", "imageID": "",
            "ready": false, "restartCount": 0, "state": {"terminated":
                {"exitCode": 1, "finishedAt": "2026-01-01T00:59:00Z"}}}]);
    }
    json_patch::merge(&mut pod, changes);
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn indexed(name: &str, phase: &str, index: u32) -> Arc<Pod> {
    pod(name, phase, &json!({"metadata": {"annotations": {INDEX: index.to_string()}}}))
}

/// With Kubernetes' waits.
fn planned(job: &Job, pods: &[Arc<Pod>]) -> Plan {
    plan(&View {
        job,
        pods,
        now: NOW.parse().unwrap(),
        backoff: Backoff { min: Duration::from_secs(10), max: Duration::from_secs(600) },
    })
}

fn names(pods: &[Arc<Pod>]) -> Vec<String> {
    pods.iter().map(|pod| pod.name_any()).collect()
}

fn conditions(status: &JobStatus) -> Vec<String> {
    let of = |c: &k8s_openapi::api::batch::v1::JobCondition| {
        format!("{}={} {}", c.type_, c.status, c.reason.as_deref().unwrap_or_default())
    };
    status.conditions.iter().flatten().map(of).collect()
}

fn indexes(plan: &Plan) -> Vec<u32> {
    plan.create.iter().filter_map(|new| new.index).collect()
}

#[test]
fn a_new_job_makes_as_many_pods_as_may_run() {
    let plan = planned(&job(&json!({"completions": 5, "parallelism": 3}), &json!({})), &[]);
    assert_eq!(plan.create.len(), 3);
    assert!(!plan.is_status_first);
    assert_eq!(plan.status.start_time.unwrap().0.to_string(), NOW);
}

#[test]
fn no_more_pods_run_than_are_still_needed() {
    let five = job(&json!({"completions": 5, "parallelism": 3}), &json!({"succeeded": 4}));
    assert_eq!(planned(&five, &[]).create.len(), 1);
    let running = [pod("a", "Running", &json!({}))];
    assert_eq!(planned(&five, &running).create.len(), 0);
}

#[test]
fn a_pod_that_ended_is_written_down_before_it_is_let_go_and_then_counted() {
    let first = planned(&job(&json!({}), &json!({})), &[pod("a", "Succeeded", &json!({}))]);
    assert!(first.is_status_first);
    let uncounted = first.status.uncounted_terminated_pods.clone().unwrap();
    assert_eq!(uncounted.succeeded.unwrap(), ["a"]);
    assert_eq!((first.status.succeeded, names(&first.untrack)), (None, vec!["a".to_owned()]));
    assert_eq!(conditions(&first.status), ["SuccessCriteriaMet=True CompletionsReached"]);

    let written = job(&json!({}), &serde_json::to_value(&first.status).unwrap());
    let free = pod("a", "Succeeded", &json!({"metadata": {"finalizers": []}}));
    for pods in [vec![free], vec![]] {
        let second = planned(&written, &pods);
        assert_eq!(second.status.succeeded, Some(1));
        let uncounted = second.status.uncounted_terminated_pods.clone().unwrap();
        assert!(uncounted.succeeded.is_none());
        let wanted =
            ["SuccessCriteriaMet=True CompletionsReached", "Complete=True CompletionsReached"];
        assert_eq!(conditions(&second.status), wanted);
        assert_eq!(second.status.completion_time.unwrap().0.to_string(), NOW);
        assert_eq!(second.status.terminating, Some(0));
    }
}

#[test]
fn a_failed_pod_is_replaced_after_a_wait_that_doubles() {
    let failed = |name: &str| pod(name, "Failed", &json!({}));
    let at = |second: &str| {
        json!({"status": {"containerStatuses": [{"name": "c", "image": "",
        "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated":
            {"exitCode": 1, "finishedAt": format!("2026-01-01T00:59:{second}Z")}}}]}})
    };
    assert_eq!(planned(&job(&json!({}), &json!({})), &[failed("a")]).create.len(), 1);
    let late = [failed("a"), pod("b", "Failed", &at("55"))];
    let plan = planned(&job(&json!({}), &json!({})), &late);
    assert_eq!(plan.create.len(), 0);
    assert_eq!(plan.recheck_after, Some(Duration::from_secs(15)));
    let success = pod("c", "Succeeded", &at("54"));
    let both = [failed("a"), success, pod("b", "Failed", &at("55"))];
    let plan = planned(&job(&json!({"completions": 2}), &json!({})), &both);
    assert_eq!(plan.recheck_after, Some(Duration::from_secs(5)), "a success starts anew");
}

#[test]
fn too_many_failures_fail_the_job_and_stop_its_pods() {
    let spec = json!({"backoffLimit": 1, "parallelism": 2, "completions": 2});
    let pods = [
        pod("a", "Failed", &json!({})),
        pod("b", "Failed", &json!({})),
        pod("c", "Running", &json!({})),
    ];
    let first = planned(&job(&spec, &json!({"active": 1})), &pods);
    assert_eq!(conditions(&first.status), ["FailureTarget=True BackoffLimitExceeded"]);
    assert_eq!(names(&first.stop), ["c"]);
    let failed = first.status.uncounted_terminated_pods.clone().unwrap().failed.unwrap();
    assert_eq!(failed, ["a", "b", "c"]);
    let written = job(&spec, &serde_json::to_value(&first.status).unwrap());
    let second = planned(&written, &[]);
    assert_eq!(second.status.failed, Some(3));
    let wanted = ["FailureTarget=True BackoffLimitExceeded", "Failed=True BackoffLimitExceeded"];
    assert_eq!(conditions(&second.status), wanted);
    assert_eq!(second.status.completion_time, None);
}

#[test]
fn the_last_condition_waits_until_nothing_runs() {
    let status = json!({"conditions": [{"type": "FailureTarget", "status": "True", "reason": "DeadlineExceeded"}]});
    let ending = pod(
        "a",
        "Running",
        &json!({"metadata": {"finalizers": [],
        "deletionTimestamp": NOW, "deletionGracePeriodSeconds": 30}}),
    );
    let plan = planned(&job(&json!({}), &status), &[ending]);
    assert_eq!(conditions(&plan.status), ["FailureTarget=True DeadlineExceeded"]);
    assert_eq!(plan.status.terminating, Some(1));
}

#[test]
fn restarts_in_place_count_as_failures() {
    let spec = json!({"backoffLimit": 2, "template": {"spec": {"restartPolicy": "OnFailure"}}});
    let restarted = |count: i32| {
        let running = pod(
            "a",
            "Running",
            &json!({"status": {"containerStatuses": [{"name": "c",
            "image": "", "imageID": "", "ready": true, "restartCount": count}]}}),
        );
        conditions(&planned(&job(&spec, &json!({})), &[running]).status)
    };
    assert_eq!(restarted(1), Vec::<String>::new());
    assert_eq!(restarted(2), ["FailureTarget=True BackoffLimitExceeded"]);
}

#[test]
fn a_deadline_ends_a_job_and_is_waited_for() {
    let after = |seconds: i64| {
        let job = job(
            &json!({"activeDeadlineSeconds": seconds}),
            &json!({"startTime": "2026-01-01T00:59:00Z"}),
        );
        planned(&job, &[pod("a", "Running", &json!({}))])
    };
    assert_eq!(conditions(&after(60).status), ["FailureTarget=True DeadlineExceeded"]);
    assert_eq!(after(90).recheck_after, Some(Duration::from_secs(30)));
}

#[test]
fn of_a_limit_and_a_deadline_that_are_over_at_once_the_limit_is_told() {
    let spec = json!({"backoffLimit": 0, "activeDeadlineSeconds": 60});
    let late = job(&spec, &json!({"startTime": "2026-01-01T00:59:00Z"}));
    let plan = planned(&late, &[pod("a", "Failed", &json!({}))]);
    assert_eq!(conditions(&plan.status), ["FailureTarget=True BackoffLimitExceeded"]);
}

#[test]
fn a_work_queue_is_done_when_one_has_succeeded_and_all_have_ended() {
    let queue = job(&json!({"completions": null, "parallelism": 3}), &json!({}));
    assert_eq!(planned(&queue, &[]).create.len(), 3);
    let some = [pod("a", "Succeeded", &json!({})), pod("b", "Running", &json!({}))];
    let plan = planned(&queue, &some);
    assert_eq!((plan.create.len(), conditions(&plan.status)), (0, vec![]));
    let all = [pod("a", "Succeeded", &json!({})), pod("b", "Failed", &json!({}))];
    let wanted = ["SuccessCriteriaMet=True CompletionsReached"];
    assert_eq!(conditions(&planned(&queue, &all).status), wanted);
}

#[test]
fn indexes_are_made_once_each_and_told_as_ranges() {
    let spec = json!({"completionMode": "Indexed", "completions": 6, "parallelism": 3});
    let with = |status: &Value, pods: &[Arc<Pod>]| planned(&job(&spec, status), pods);
    assert_eq!(indexes(&with(&json!({}), &[])), [0, 1, 2]);
    let done = json!({"completedIndexes": "0,2-3", "succeeded": 3});
    assert_eq!(indexes(&with(&done, &[indexed("a", "Running", 1)])), [4, 5]);
    let plan = with(&done, &[indexed("a", "Succeeded", 1), indexed("b", "Running", 4)]);
    assert_eq!(plan.status.completed_indexes.as_deref(), Some("0-3"));
    assert_eq!((plan.status.succeeded, names(&plan.untrack)), (Some(4), vec!["a".to_owned()]));
    assert!(plan.is_status_first);
}

#[test]
fn a_second_pod_of_an_index_goes_and_so_does_one_without() {
    let spec = json!({"completionMode": "Indexed", "completions": 3, "parallelism": 3});
    let pods = [
        indexed("a", "Pending", 0),
        indexed("b", "Running", 0),
        indexed("c", "Running", 7),
        pod("d", "Running", &json!({})),
    ];
    let mut dropped = names(&planned(&job(&spec, &json!({})), &pods).drop);
    dropped.sort();
    assert_eq!(dropped, ["a", "c", "d"]);
}

#[test]
fn an_index_has_failures_of_its_own() {
    let spec = json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2,
        "backoffLimitPerIndex": 1, "backoffLimit": i32::MAX});
    let first =
        planned(&job(&spec, &json!({})), &[indexed("a", "Failed", 0), indexed("b", "Running", 1)]);
    let made: Vec<_> = first.create.iter().map(|new| (new.index, new.failures)).collect();
    assert_eq!(made, [(Some(0), Some((1, 0)))]);
    assert!(
        first.untrack.is_empty(),
        "it alone knows of the failure until its replacement is there"
    );
    let again = |name: &str, phase: &str| {
        let annotations = json!({INDEX: "0", INDEX_FAILURES: "1"});
        pod(name, phase, &json!({"metadata": {"annotations": annotations}}))
    };
    let written = serde_json::to_value(&first.status).unwrap();
    let pods = [indexed("a", "Failed", 0), again("c", "Running"), indexed("b", "Running", 1)];
    assert_eq!(names(&planned(&job(&spec, &written), &pods).untrack), ["a"]);
    let pods = [again("c", "Failed"), indexed("b", "Succeeded", 1)];
    let last = planned(&job(&spec, &written), &pods);
    assert_eq!(last.status.failed_indexes.as_deref(), Some("0"));
    assert_eq!(conditions(&last.status), ["FailureTarget=True FailedIndexes"]);
}

#[test]
fn too_many_failed_indexes_end_the_job() {
    let spec = json!({"completionMode": "Indexed", "completions": 9, "parallelism": 2,
        "backoffLimitPerIndex": 0, "maxFailedIndexes": 1, "backoffLimit": i32::MAX});
    let pods = [indexed("a", "Failed", 0), indexed("b", "Failed", 1)];
    let plan = planned(&job(&spec, &json!({})), &pods);
    assert_eq!(conditions(&plan.status), ["FailureTarget=True MaxFailedIndexesExceeded"]);
}

#[test]
fn a_success_policy_ends_a_job_early() {
    let spec = json!({"completionMode": "Indexed", "completions": 9, "parallelism": 3,
        "successPolicy": {"rules": [{"succeededIndexes": "0-2", "succeededCount": 2}]}});
    let pods = [indexed("a", "Succeeded", 0), indexed("b", "Running", 3)];
    assert_eq!(conditions(&planned(&job(&spec, &json!({})), &pods).status), Vec::<String>::new());
    let pods =
        [indexed("a", "Succeeded", 0), indexed("c", "Succeeded", 2), indexed("b", "Running", 3)];
    let plan = planned(&job(&spec, &json!({})), &pods);
    assert_eq!(conditions(&plan.status), ["SuccessCriteriaMet=True SuccessPolicy"]);
    assert_eq!(names(&plan.stop), ["b"]);
}

#[test]
fn a_failure_policy_judges_by_exit_code() {
    let policy = |action: &str| {
        json!({"podReplacementPolicy": "Failed", "podFailurePolicy": {"rules": [
        {"action": action, "onExitCodes": {"operator": "In", "values": [1]}}]}})
    };
    let failed = [pod("a", "Failed", &json!({}))];
    let plan = planned(&job(&policy("FailJob"), &json!({})), &failed);
    assert_eq!(conditions(&plan.status), ["FailureTarget=True PodFailurePolicy"]);
    let plan = planned(&job(&policy("Ignore"), &json!({})), &failed);
    assert_eq!((plan.create.len(), names(&plan.untrack)), (1, vec!["a".to_owned()]));
    assert_eq!(plan.status.uncounted_terminated_pods.unwrap().failed, None);
    let plan = planned(&job(&policy("Count"), &json!({})), &failed);
    assert_eq!(plan.status.uncounted_terminated_pods.unwrap().failed.unwrap(), ["a"]);
}

#[test]
fn a_failure_policy_gives_an_index_up_before_its_limit() {
    let with = |action: &str| {
        let rule = json!({"action": action, "onExitCodes": {"operator": "In", "values": [1]}});
        let spec = json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2,
            "backoffLimitPerIndex": 5, "backoffLimit": i32::MAX,
            "podFailurePolicy": {"rules": [rule]}});
        planned(&job(&spec, &json!({})), &[indexed("a", "Failed", 0), indexed("b", "Running", 1)])
    };
    let given_up = with("FailIndex");
    assert_eq!(given_up.status.failed_indexes.as_deref(), Some("0"));
    assert_eq!(indexes(&given_up), Vec::<u32>::new());
    let counted = with("Count");
    assert_eq!(counted.status.failed_indexes.as_deref(), Some(""));
    assert_eq!(indexes(&counted), [0]);
}

#[test]
fn a_replacement_waits_for_the_end_if_the_policy_says_so() {
    let ending = [pod(
        "a",
        "Running",
        &json!({"metadata": {"deletionTimestamp": NOW,
        "deletionGracePeriodSeconds": 30}}),
    )];
    let at_once = planned(&job(&json!({}), &json!({})), &ending);
    assert_eq!(at_once.status.uncounted_terminated_pods.unwrap().failed.unwrap(), ["a"]);
    let waits = job(&json!({"podReplacementPolicy": "Failed"}), &json!({}));
    let plan = planned(&waits, &ending);
    assert_eq!((plan.create.len(), plan.untrack.len(), plan.status.terminating), (0, 0, Some(1)));
}

#[test]
fn a_suspended_job_drops_its_pods_uncounted_and_starts_anew_later() {
    let spec = json!({"suspend": true});
    let status = json!({"startTime": "2026-01-01T00:00:00Z", "active": 1});
    let plan = planned(&job(&spec, &status), &[pod("a", "Running", &json!({}))]);
    assert_eq!(names(&plan.drop), ["a"]);
    assert_eq!(conditions(&plan.status), ["Suspended=True JobSuspended"]);
    assert_eq!(plan.status.start_time, None);
    let written = serde_json::to_value(&plan.status).unwrap();
    let resumed = planned(&job(&json!({}), &written), &[]);
    assert_eq!(conditions(&resumed.status), ["Suspended=False JobResumed"]);
    assert_eq!(resumed.status.start_time.unwrap().0.to_string(), NOW);
    assert_eq!(resumed.create.len(), 1);
}

#[test]
fn surplus_pods_go_when_fewer_may_run() {
    let three = job(&json!({"completions": 5, "parallelism": 1}), &json!({}));
    let pods = [
        pod("a", "Running", &json!({"spec": {"nodeName": "n", "containers": []}})),
        pod("b", "Pending", &json!({})),
        pod("c", "Pending", &json!({"spec": {"nodeName": "n", "containers": []}})),
    ];
    assert_eq!(names(&planned(&three, &pods).drop), ["b", "c"]);
}

#[test]
fn a_pod_that_could_end_unseen_goes() {
    let lost = [pod("a", "Running", &json!({"metadata": {"finalizers": []}}))];
    assert_eq!(names(&planned(&job(&json!({}), &json!({})), &lost).drop), ["a"]);
}

#[test]
fn a_finished_job_lets_all_go_and_expires() {
    let finished = |ttl: Value| {
        let status = json!({"conditions": [{"type": "Complete", "status": "True",
            "lastTransitionTime": "2026-01-01T00:59:00Z"}]});
        job(&json!({"ttlSecondsAfterFinished": ttl}), &status)
    };
    let plan = planned(&finished(json!(90)), &[pod("a", "Succeeded", &json!({}))]);
    assert_eq!((names(&plan.untrack), plan.is_expired), (vec!["a".to_owned()], false));
    assert_eq!(plan.recheck_after, Some(Duration::from_secs(30)));
    assert!(planned(&finished(json!(60)), &[]).is_expired);
    assert!(planned(&finished(json!(0)), &[]).is_expired);
    assert!(!planned(&finished(Value::Null), &[]).is_expired);
}

#[test]
fn a_pod_on_its_way_out_failed_when_it_was_deleted_and_not_when_its_grace_is_over() {
    let going = |ago: &str| {
        let meta = json!({"deletionTimestamp": ago, "deletionGracePeriodSeconds": 600});
        pod("a", "Running", &json!({ "metadata": meta }))
    };
    // Its replacement is due ten seconds after that.
    let nine_minutes_left = "2026-01-01T01:09:00Z";
    let plan = planned(&job(&json!({}), &json!({})), &[going(nine_minutes_left)]);
    assert_eq!((plan.create.len(), plan.recheck_after), (1, None));
    let meta = json!({"deletionTimestamp": NOW, "deletionGracePeriodSeconds": i64::MAX});
    let strange = pod("a", "Running", &json!({ "metadata": meta }));
    assert!(planned(&job(&json!({}), &json!({})), &[strange]).create.len() <= 1, "no panic");
}

#[test]
fn a_job_being_deleted_only_lets_its_pods_go() {
    let mut deleted = job(&json!({}), &json!({}));
    deleted.metadata.deletion_timestamp = Some(
        k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(NOW.parse::<Timestamp>().unwrap()),
    );
    let plan = planned(&deleted, &[pod("a", "Running", &json!({}))]);
    assert_eq!(
        (names(&plan.untrack), plan.create.len(), plan.stop.len()),
        (vec!["a".to_owned()], 0, 0)
    );
    assert_eq!(plan.status, deleted.status.unwrap_or_default());
}
