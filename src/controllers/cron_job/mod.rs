//! Makes Jobs by the clock, and removes old ones.
//!
//! Data in: CronJobs and the Jobs they control. Data out: Jobs, and the status of CronJobs.
//!
//! # Invariants
//!
//! - One time makes one Job: its name says the time, so the second of two controllers finds it taken.
//! - Times that were missed make one Job, that of the last of them.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::{CronJob, Job};
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, ResourceExt as _};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::client::{
    Change, EventRecorder, EventType, Regarding, is_already_exists, is_not_found, revision_of,
};
use crate::controllers::Context;
use crate::controllers::cron_job::plan::{Plan, View, plan, reference};
use crate::controllers::object::{Key, is_controlled_by, key};
use crate::controllers::owner_keys::owner_key;
use crate::controllers::queue::{Next, Queue, Workers};

mod plan;
#[cfg(test)]
mod plan_test;

/// Cron jobs reconciled at once.
const RUNS_MAX: usize = 8;
/// How long a run waits for the cache to show its writes.
const CATCH_UP_MAX: Duration = Duration::from_secs(30);
/// A clock that is set forward is noticed this late at most.
const LOOK_MAX: Duration = Duration::from_secs(60);

/// Runs the controller until `cancel`.
pub(super) async fn run(context: Context, events: EventRecorder, cancel: CancellationToken) {
    let queue = Queue::new();
    let informers = &context.informers;
    informers.cron_jobs.subscribe(queue.feed(|change: &Change<'_, CronJob>, keys| {
        if matches!(change, Change::Applied { .. }) {
            keys.push(key(change.object().as_ref()));
        }
    }));
    informers.jobs.subscribe(queue.feed(|change: &Change<'_, Job>, keys| {
        keys.extend(owner_key::<CronJob>(&change.object().metadata));
    }));
    let workers = Workers { controller: "cron-job", runs_max: RUNS_MAX, rng: context.rng.clone() };
    let controller = Controller { context, events };
    workers.run(queue, cancel, |key| controller.reconcile(key)).await;
}

struct Controller {
    context: Context,
    events: EventRecorder,
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Result<Next, kube::Error> {
        let informers = &self.context.informers;
        let Some(cron_job) = informers.cron_jobs.store.named(&key.0, &key.1) else {
            return Ok(Next::Wait);
        };
        let mut jobs = informers.jobs.store.in_namespace(&key.0);
        jobs.retain(|job| is_controlled_by(&job.metadata, cron_job.as_ref()));
        let view = View { cron_job: &cron_job, jobs: &jobs, now: self.context.clock.now() };
        let mut plan = plan(&view);
        for (event_type, reason, message) in std::mem::take(&mut plan.told) {
            self.tell(&cron_job, event_type, reason, message);
        }
        let api: Api<Job> = Api::namespaced(self.context.client.clone(), &key.0);
        self.delete(&cron_job, &api, &plan.delete).await?;
        if let Some(job) = plan.create.take() {
            self.create(&cron_job, &api, &job, &mut plan).await?;
        }
        self.write_status(&key, &cron_job, &plan).await?;
        Ok(Next::after(plan.recheck_after.map(|after| after.min(LOOK_MAX))))
    }

    async fn delete(
        &self,
        cron_job: &CronJob,
        api: &Api<Job>,
        doomed: &[Arc<Job>],
    ) -> Result<(), kube::Error> {
        for job in doomed {
            let preconditions = Preconditions { uid: job.uid(), resource_version: None };
            let params = DeleteParams::background().preconditions(preconditions);
            match api.delete(&job.name_any(), &params).await {
                Ok(_) => {
                    let message = format!("Deleted job {}", job.name_any());
                    self.tell(cron_job, EventType::Normal, "SuccessfulDelete", message);
                }
                Err(err) if is_not_found(&err) => {}
                Err(err) => {
                    let message = format!("Error deleting job: {err}");
                    self.tell(cron_job, EventType::Warning, "FailedDelete", message);
                    return Err(err);
                }
            }
        }
        Ok(())
    }

    /// Makes the Job, and notes it as running. One that is there already was made by a run that could
    /// not write so.
    async fn create(
        &self,
        cron_job: &CronJob,
        api: &Api<Job>,
        job: &Job,
        plan: &mut Plan,
    ) -> Result<(), kube::Error> {
        let name = job.name_any();
        let made = match api.create(&PostParams::default(), job).await {
            Ok(made) => {
                let message = format!("Created job {name}");
                self.tell(cron_job, EventType::Normal, "SuccessfulCreate", message);
                made
            }
            Err(err) if is_already_exists(&err) => {
                let Some(there) = api.get_opt(&name).await? else { return Err(err) };
                if !is_controlled_by(&there.metadata, cron_job) {
                    let message = format!("Job {name} exists and is not this CronJob's");
                    self.tell(cron_job, EventType::Warning, "FailedCreate", message);
                    return Ok(());
                }
                there
            }
            Err(err) => {
                let message = format!("Error creating job: {err}");
                self.tell(cron_job, EventType::Warning, "FailedCreate", message);
                return Err(err);
            }
        };
        let active = plan.status.active.get_or_insert_default();
        if !active.iter().any(|one| one.uid == made.metadata.uid) {
            active.push(reference(&made));
        }
        let revision = revision_of(&made).unwrap_or(0);
        self.context.informers.jobs.catch_up(revision, CATCH_UP_MAX).await;
        Ok(())
    }

    async fn write_status(
        &self,
        key: &Key,
        cron_job: &CronJob,
        plan: &Plan,
    ) -> Result<(), kube::Error> {
        if cron_job.status.clone().unwrap_or_default() == plan.status {
            return Ok(());
        }
        let api: Api<CronJob> = Api::namespaced(self.context.client.clone(), &key.0);
        let new = CronJob { status: Some(plan.status.clone()), ..cron_job.clone() };
        let written = api.replace_status(&key.1, &PostParams::default(), &new).await?;
        let revision = revision_of(&written).unwrap_or(0);
        self.context.informers.cron_jobs.catch_up(revision, CATCH_UP_MAX).await;
        Ok(())
    }

    fn tell(
        &self,
        cron_job: &CronJob,
        event_type: EventType,
        reason: &'static str,
        message: String,
    ) {
        debug!(
            object.name = cron_job.name_any(),
            object.reason = reason,
            message,
            "cron job event"
        );
        self.events.record(Regarding::of(cron_job), event_type, reason, message);
    }
}
