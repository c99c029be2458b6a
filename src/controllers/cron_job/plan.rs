//! What a CronJob does next: a pure function of it, its Jobs and the time.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::ResourceExt as _;

use crate::api::cron::{Schedule, time_zone};
use crate::client::EventType;
use crate::controllers::object::{controller_reference, elapsed, is_deleting};

/// Missed times that are counted; with more of them, people are told.
const MISSED_MAX: usize = 100;
/// When a Job was due, in its zone.
const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

/// What a pass sees.
pub(super) struct View<'a> {
    pub(super) cron_job: &'a CronJob,
    /// The Jobs it controls.
    pub(super) jobs: &'a [Arc<Job>],
    pub(super) now: Timestamp,
}

/// Something to tell people.
pub(super) type Told = (EventType, &'static str, String);

/// What a pass does.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) status: CronJobStatus,
    /// Jobs that go: finished ones beyond what is kept, and with `Replace` the running ones.
    pub(super) delete: Vec<Arc<Job>>,
    pub(super) create: Option<Box<Job>>,
    pub(super) told: Vec<Told>,
    /// Until the next time.
    pub(super) recheck_after: Option<Duration>,
}

/// How a finished Job ended.
fn ending(job: &Job) -> Option<&'static str> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let is = |kind: &str| conditions.iter().any(|c| c.type_ == kind && c.status == "True");
    if is("Complete") {
        Some("Complete")
    } else if is("Failed") {
        Some("Failed")
    } else {
        None
    }
}

/// The plan for one pass.
pub(super) fn plan(view: &View<'_>) -> Plan {
    let mut plan =
        Plan { status: view.cron_job.status.clone().unwrap_or_default(), ..Plan::default() };
    let spec = &view.cron_job.spec;
    note_jobs(view, &mut plan);
    if is_deleting(&view.cron_job.metadata) {
        return plan;
    }
    forget_old(view, spec, &mut plan);
    if spec.suspend != Some(true) {
        start(view, spec, &mut plan);
    }
    plan
}

/// Brings the list of running Jobs up to date.
fn note_jobs(view: &View<'_>, plan: &mut Plan) {
    let mut active = plan.status.active.take().unwrap_or_default();
    for job in view.jobs {
        let uid = job.metadata.uid.as_ref();
        let is_listed = active.iter().any(|one| one.uid.as_ref() == uid);
        match ending(job) {
            None if !is_listed => {
                let message = format!(
                    "Saw a job that the controller did not create or forgot: {}",
                    job.name_any()
                );
                plan.told.push((EventType::Warning, "UnexpectedJob", message));
            }
            Some(ending) if is_listed => {
                active.retain(|one| one.uid.as_ref() != uid);
                let message = format!("Saw completed job: {}, condition: {ending}", job.name_any());
                plan.told.push((EventType::Normal, "SawCompletedJob", message));
            }
            _ => {}
        }
        if ending(job) == Some("Complete") {
            let completed = job.status.as_ref().and_then(|status| status.completion_time.clone());
            let last = plan.status.last_successful_time.take();
            plan.status.last_successful_time = last.max(completed);
        }
    }
    active.retain(|one| {
        let is_there = view.jobs.iter().any(|job| job.metadata.uid == one.uid);
        if !is_there {
            let name = one.name.clone().unwrap_or_default();
            plan.told.push((
                EventType::Normal,
                "MissingJob",
                format!("Active job went missing: {name}"),
            ));
        }
        is_there
    });
    plan.status.active = (!active.is_empty()).then_some(active);
}

/// Finished Jobs beyond those that are kept: the oldest go.
fn forget_old(view: &View<'_>, spec: &CronJobSpec, plan: &mut Plan) {
    for (how, kept) in [
        ("Complete", spec.successful_jobs_history_limit.unwrap_or(3)),
        ("Failed", spec.failed_jobs_history_limit.unwrap_or(1)),
    ] {
        let finished = view.jobs.iter().filter(|job| ending(job) == Some(how));
        let mut finished: Vec<_> =
            finished.filter(|job| !is_deleting(&job.metadata)).cloned().collect();
        finished.sort_by_key(|job| {
            let started = job.status.as_ref().and_then(|status| status.start_time.clone());
            (started, job.name_any())
        });
        let kept = usize::try_from(kept).unwrap_or(0);
        let surplus = finished.len().saturating_sub(kept);
        plan.delete.extend(finished.into_iter().take(surplus));
    }
}

/// Makes the Job that is due, if one is.
fn start(view: &View<'_>, spec: &CronJobSpec, plan: &mut Plan) {
    let zone = match spec.time_zone.as_deref().map_or(Ok(TimeZone::UTC), time_zone) {
        Ok(zone) => zone,
        Err(err) => {
            plan.told.push((EventType::Warning, "UnknownTimeZone", err.to_string()));
            return;
        }
    };
    let schedule = match Schedule::parse(&spec.schedule) {
        Ok(schedule) => schedule,
        Err(err) => {
            let message = format!("unparseable schedule: {:?} : {err}", spec.schedule);
            plan.told.push((EventType::Warning, "UnparseableSchedule", message));
            return;
        }
    };
    plan.recheck_after = schedule.next(view.now, &zone).map(|next| elapsed(view.now, next));
    let last = plan.status.last_schedule_time.as_ref().map(|time| time.0);
    let created = view.cron_job.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let mut since = last.or(created).unwrap_or(view.now);
    if since > view.now {
        // It was noted by a clock that ran ahead: who waited for it would make nothing for hours. A Job is
        // not made twice all the same, since its time is its name.
        plan.status.last_schedule_time = Some(Time(view.now));
        since = view.now;
    }
    let deadline = spec.starting_deadline_seconds.map(jiff::SignedDuration::from_secs);
    if let Some(earliest) = deadline.and_then(|deadline| view.now.checked_sub(deadline).ok()) {
        since = since.max(earliest);
    }
    let Some((due, missed)) = schedule.missed(since, view.now, &zone, MISSED_MAX + 1) else {
        return;
    };
    if missed > MISSED_MAX {
        let message = format!(
            "too many missed start times: more than {MISSED_MAX}. Set or decrease .spec.startingDeadlineSeconds or check clock skew"
        );
        plan.told.push((EventType::Warning, "TooManyMissedTimes", message));
    }
    let is_running = plan.status.active.is_some();
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if is_running => {
            let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
            plan.told.push((EventType::Normal, "JobAlreadyActive", message.to_owned()));
            return;
        }
        Some("Replace") if is_running => {
            let running = view.jobs.iter().filter(|job| ending(job).is_none());
            plan.delete.extend(running.cloned());
            plan.status.active = None;
        }
        _ => {}
    }
    plan.create = Some(Box::new(job_of(view.cron_job, spec, due, &zone)));
    plan.status.last_schedule_time = Some(Time(due));
}

/// The Job of that time. Its name says which: the same time never makes two.
fn job_of(cron_job: &CronJob, spec: &CronJobSpec, due: Timestamp, zone: &TimeZone) -> Job {
    let meta = spec.job_template.metadata.clone().unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    let local = due.to_zoned(zone.clone());
    let at = if local.offset().seconds() == 0 {
        due.to_string()
    } else {
        local.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
    };
    annotations.insert(SCHEDULED_AT.to_owned(), at);
    Job {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", cron_job.name_any(), due.as_second().div_euclid(60))),
            namespace: cron_job.namespace(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(cron_job)]),
            ..ObjectMeta::default()
        },
        spec: spec.job_template.spec.clone(),
        status: None,
    }
}

/// How a running Job is listed.
pub(super) fn reference(job: &Job) -> ObjectReference {
    ObjectReference {
        api_version: Some("batch/v1".to_owned()),
        kind: Some("Job".to_owned()),
        name: job.metadata.name.clone(),
        namespace: job.metadata.namespace.clone(),
        uid: job.metadata.uid.clone(),
        resource_version: job.metadata.resource_version.clone(),
        ..ObjectReference::default()
    }
}
