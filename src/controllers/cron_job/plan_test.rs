use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::api::cron::time_zone;
use crate::controllers::cron_job::plan::{Plan, View, plan};

/// Every 10 minutes, made at 10:00.
fn cron_job(changes: &Value) -> CronJob {
    let mut object = json!({
        "metadata": {"name": "tick", "namespace": "n", "uid": "cj",
            "creationTimestamp": "2026-01-01T10:00:00Z"},
        "spec": {"schedule": "*/10 * * * *", "jobTemplate": {
            "metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}},
            "spec": {"template": {"spec": {"containers": []}}}}},
    });
    json_patch::merge(&mut object, changes);
    serde_json::from_value(object).unwrap()
}

/// A Job of it that started at `minute` past 10 and ended as `how` says.
fn job(name: &str, minute: u32, how: Option<&str>) -> Arc<Job> {
    let conditions: Vec<Value> =
        how.iter().map(|how| json!({"type": how, "status": "True"})).collect();
    let mut job = json!({
        "metadata": {"name": name, "namespace": "n", "uid": name},
        "status": {"startTime": format!("2026-01-01T10:{minute:02}:00Z"), "conditions": conditions},
    });
    if how == Some("Complete") {
        job["status"]["completionTime"] = json!(format!("2026-01-01T10:{minute:02}:30Z"));
    }
    Arc::new(serde_json::from_value(job).unwrap())
}

fn active(names: &[&str]) -> Value {
    let list: Vec<Value> = names.iter().map(|name| json!({"name": name, "uid": name})).collect();
    json!({"status": {"active": list, "lastScheduleTime": "2026-01-01T10:10:00Z"}})
}

fn at(cron_job: &CronJob, jobs: &[Arc<Job>], time: &str) -> Plan {
    let now: Timestamp = format!("2026-01-01T{time}Z").parse().unwrap();
    plan(&View { cron_job, jobs, now })
}

fn created(plan: &Plan) -> Option<String> {
    plan.create.as_ref().map(|job| job.name_any())
}

fn reasons(plan: &Plan) -> Vec<&'static str> {
    plan.told.iter().map(|(_, reason, _)| *reason).collect()
}

fn deleted(plan: &Plan) -> Vec<String> {
    plan.delete.iter().map(|job| job.name_any()).collect()
}

/// The name of the Job of that minute past 10.
fn name_at(minute: i64) -> Option<String> {
    let ten: Timestamp = "2026-01-01T10:00:00Z".parse().unwrap();
    Some(format!("tick-{}", ten.as_second() / 60 + minute))
}

#[test]
fn nothing_is_made_before_its_time() {
    let plan = at(&cron_job(&json!({})), &[], "10:09:59");
    assert_eq!(created(&plan), None);
    assert_eq!(plan.recheck_after, Some(Duration::from_secs(1)));
}

#[test]
fn a_job_is_made_at_its_time_and_says_which() {
    let plan = at(&cron_job(&json!({})), &[], "10:10:00");
    assert_eq!(created(&plan), name_at(10));
    let job = plan.create.unwrap();
    assert_eq!(
        job.annotations()["batch.kubernetes.io/cronjob-scheduled-timestamp"],
        "2026-01-01T10:10:00Z"
    );
    assert_eq!((job.annotations()["c"].as_str(), job.labels()["a"].as_str()), ("d", "b"));
    assert_eq!(job.owner_references()[0].uid, "cj");
    assert_eq!(plan.status.last_schedule_time.unwrap().0.to_string(), "2026-01-01T10:10:00Z");
    assert_eq!(plan.recheck_after, Some(Duration::from_secs(600)));
}

#[test]
fn of_missed_times_only_the_last_one_counts() {
    let plan = at(&cron_job(&json!({})), &[], "10:35:00");
    assert_eq!(created(&plan), name_at(30));
    assert_eq!(reasons(&plan), Vec::<&str>::new());
    let minutely = cron_job(&json!({"spec": {"schedule": "* * * * *"}}));
    let late = at(&minutely, &[], "13:00:00");
    assert_eq!(reasons(&late), ["TooManyMissedTimes"]);
    assert_eq!(created(&late), name_at(180));
}

#[test]
fn a_deadline_forgets_what_is_too_late() {
    let late = |seconds: i64| {
        let cron_job = cron_job(&json!({"spec": {"startingDeadlineSeconds": seconds}}));
        created(&at(&cron_job, &[], "10:12:00"))
    };
    assert_eq!(late(60), None);
    assert_eq!(late(180), name_at(10));
}

#[test]
fn a_time_that_was_used_makes_nothing() {
    let plan = at(&cron_job(&active(&[])), &[], "10:15:00");
    assert_eq!(created(&plan), None);
}

#[test]
fn a_clock_that_ran_ahead_keeps_nothing_from_being_made_when_it_is_right_again() {
    let ahead = cron_job(&json!({"status": {"lastScheduleTime": "2026-01-01T13:10:00Z"}}));
    let plan = at(&ahead, &[], "10:15:00");
    assert_eq!((created(&plan), plan.recheck_after), (None, Some(Duration::from_secs(300))));
    let noted = plan.status.last_schedule_time.unwrap().0.to_string();
    assert_eq!(noted, "2026-01-01T10:15:00Z");
    let right = cron_job(&json!({"status": {"lastScheduleTime": noted}}));
    assert_eq!(created(&at(&right, &[], "10:20:00")), name_at(20));
}

#[test]
fn policies_say_what_becomes_of_a_job_that_still_runs() {
    let running = [job("one", 10, None)];
    let with = |policy: &str| {
        let mut changes = active(&["one"]);
        changes["spec"] = json!({"concurrencyPolicy": policy});
        at(&cron_job(&changes), &running, "10:20:00")
    };
    let allow = with("Allow");
    assert_eq!((created(&allow), deleted(&allow)), (name_at(20), vec![]));
    assert_eq!(allow.status.active.unwrap().len(), 1);
    let forbid = with("Forbid");
    assert_eq!((created(&forbid), deleted(&forbid)), (None, vec![]));
    assert_eq!(reasons(&forbid), ["JobAlreadyActive"]);
    assert_eq!(forbid.status.last_schedule_time.unwrap().0.to_string(), "2026-01-01T10:10:00Z");
    let replace = with("Replace");
    assert_eq!((created(&replace), deleted(&replace)), (name_at(20), vec!["one".to_owned()]));
}

#[test]
fn suspension_stops_new_jobs_only() {
    let mut changes = active(&["one"]);
    changes["spec"] = json!({"suspend": true});
    let plan = at(&cron_job(&changes), &[job("one", 10, Some("Complete"))], "10:20:00");
    assert_eq!(created(&plan), None);
    assert_eq!(reasons(&plan), ["SawCompletedJob"]);
    assert_eq!(plan.status.active, None);
    assert_eq!(plan.status.last_successful_time.unwrap().0.to_string(), "2026-01-01T10:10:30Z");
}

#[test]
fn old_jobs_go_and_the_newest_stay() {
    let jobs = [
        job("c5", 5, Some("Complete")),
        job("c1", 1, Some("Complete")),
        job("c3", 3, Some("Complete")),
        job("c4", 4, Some("Complete")),
        job("f1", 1, Some("Failed")),
        job("f2", 2, Some("Failed")),
        job("run", 0, None),
    ];
    let plan = at(&cron_job(&active(&["run"])), &jobs, "10:11:00");
    assert_eq!(deleted(&plan), ["c1", "f1"]);
    let none = json!({"spec": {"successfulJobsHistoryLimit": 0, "failedJobsHistoryLimit": 0}});
    let plan = at(&cron_job(&none), &jobs[..2], "10:09:00");
    assert_eq!(deleted(&plan), ["c1", "c5"]);
}

#[test]
fn a_job_that_is_gone_or_strange_is_told() {
    let plan = at(&cron_job(&active(&["gone"])), &[job("manual", 1, None)], "10:11:00");
    assert_eq!(reasons(&plan), ["UnexpectedJob", "MissingJob"]);
    assert_eq!(plan.status.active, None);
}

#[test]
fn a_time_is_that_of_the_zone_and_the_annotation_says_so() {
    assert!(time_zone("Asia/Tokyo").is_ok(), "a machine without zones: install tzdata");
    let in_zone = |zone: &str, schedule: &str, time: &str| {
        let spec = json!({"spec": {"timeZone": zone, "schedule": schedule}});
        at(&cron_job(&spec), &[], time)
    };
    let early = in_zone("Asia/Tokyo", "30 20 * * *", "11:29:59");
    assert_eq!((created(&early), early.recheck_after), (None, Some(Duration::from_secs(1))));
    for (zone, schedule, told) in [
        ("Asia/Tokyo", "30 20 * * *", "2026-01-01T20:30:00+09:00"),
        ("America/New_York", "30 6 * * *", "2026-01-01T06:30:00-05:00"),
        ("Europe/London", "30 11 * * *", "2026-01-01T11:30:00Z"),
    ] {
        let plan = in_zone(zone, schedule, "11:30:00");
        assert_eq!(created(&plan), name_at(90), "{zone}");
        let job = plan.create.unwrap();
        let at = &job.annotations()["batch.kubernetes.io/cronjob-scheduled-timestamp"];
        assert_eq!(at, told);
    }
    let elsewhere = in_zone("America/New_York", "30 20 * * *", "11:30:00");
    assert_eq!(created(&elsewhere), None, "there it is half past six");
}

#[test]
fn a_zone_moves_the_time_and_what_is_unknown_is_told() {
    let unknown = cron_job(&json!({"spec": {"timeZone": "Middle/Earth"}}));
    assert_eq!(reasons(&at(&unknown, &[], "10:20:00")), ["UnknownTimeZone"]);
    let strange = cron_job(&json!({"spec": {"schedule": "often"}}));
    assert_eq!(reasons(&at(&strange, &[], "10:20:00")), ["UnparseableSchedule"]);
}
