//! Runs Jobs: makes their pods, counts how they end, decides when it is enough, removes what is done.
//!
//! Data in: Jobs and pods. Data out: pods, the status of Jobs, and deletions of Jobs whose time is over.
//!
//! # Invariants
//!
//! - Every pod that ends is counted exactly once, wherever the controller stops in between: see
//!   [`plan`]. What a cache shows is not taken for the counts of a status that this controller has not
//!   written itself: then the server is asked.
//! - Never more active pods than `parallelism`, but for those that it was lowered under.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Resource as _, ResourceExt as _};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::client::{
    Change, EventRecorder, EventType, Regarding, Store, is_not_found, revision_of,
};
use crate::controllers::Context;
use crate::controllers::job::plan::{Plan, View, plan};
use crate::controllers::job::tracking::{Backoff, is_tracked};
use crate::controllers::object::{Key, controller_of, full_name, is_deleting, key, selector_of};
use crate::controllers::owner_keys::keys_of_pod_change;
use crate::controllers::queue::{Next, Queue, Workers};

mod act;
mod own;
mod plan;
#[cfg(test)]
mod plan_test;
mod tally;
mod template;
#[cfg(test)]
mod tracked_test;
mod tracking;
mod verdict;

/// Jobs reconciled at once.
const RUNS_MAX: usize = 16;
/// How long a run waits for the cache to show its writes.
const CATCH_UP_MAX: Duration = Duration::from_secs(30);
/// Passes of one run; then others have their turn.
const PASSES_MAX: usize = 8;
/// The controller that a Job names when it means this one.
const MANAGER: &str = "kubernetes.io/job-controller";

/// What is to be looked at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    Job(Key),
    /// A pod that belonged to a Job and does so no more.
    Orphan(Key),
}

/// Runs the controller until `cancel`.
pub(super) async fn run(context: Context, events: EventRecorder, cancel: CancellationToken) {
    let queue = Queue::new();
    let informers = &context.informers;
    informers.jobs.subscribe(queue.feed(|change: &Change<'_, Job>, keys| {
        keys.push(Work::Job(key(change.object().as_ref())));
    }));
    let jobs = informers.jobs.store.clone();
    informers.pods.subscribe(queue.feed(move |change: &Change<'_, Pod>, keys| {
        work_of_pod_change(&jobs, change, keys);
    }));
    let workers = Workers { controller: "job", runs_max: RUNS_MAX, rng: context.rng.clone() };
    let controller = Controller { context, events, counted: Mutex::default() };
    workers.run(queue, cancel, |work| controller.reconcile(work)).await;
}

/// The Jobs a pod's change concerns: its controller, the one it had, or all that match.
fn work_of_pod_change(jobs: &Store<Job>, change: &Change<'_, Pod>, work: &mut Vec<Work>) {
    let selector = |job: &Job| selector_of(job.spec.as_ref()?.selector.as_ref()?);
    work.extend(keys_of_pod_change(jobs, change, selector).into_iter().map(Work::Job));
    let pod = change.object();
    let has_owner = controller_of(&pod.metadata).is_some();
    if !has_owner && is_tracked(pod) && matches!(change, Change::Applied { .. }) {
        work.push(Work::Orphan(key(pod.as_ref())));
    }
}

/// What of a status depends on pods being counted once.
#[derive(Debug, Clone, Default, PartialEq)]
struct Counts {
    uid: Option<String>,
    counts: (Option<i32>, Option<i32>),
    uncounted: (Vec<String>, Vec<String>),
}

impl Counts {
    fn of(job: &Job) -> Self {
        let status = job.status.clone().unwrap_or_default();
        let uncounted = status.uncounted_terminated_pods.unwrap_or_default();
        Self {
            uid: job.uid(),
            counts: (status.succeeded, status.failed),
            uncounted: (
                uncounted.succeeded.unwrap_or_default(),
                uncounted.failed.unwrap_or_default(),
            ),
        }
    }

    fn is_nothing(&self) -> bool {
        *self == Self { uid: self.uid.clone(), ..Self::default() }
    }
}

struct Controller {
    context: Context,
    events: EventRecorder,
    /// By Job, the counts that the cache of pods is known to be as new as.
    counted: Mutex<BTreeMap<Key, Counts>>,
}

impl Controller {
    async fn reconcile(&self, work: Work) -> Result<Next, kube::Error> {
        let key = match work {
            Work::Job(key) => key,
            Work::Orphan(key) => return self.let_go_orphan(&key).await,
        };
        let Some(mut job) = self.context.informers.jobs.store.named(&key.0, &key.1) else {
            self.counted.lock().remove(&key);
            return self.let_go_orphans_of(&key).await;
        };
        let manager = job.spec.as_ref().and_then(|spec| spec.managed_by.as_deref());
        if manager.is_some_and(|manager| manager != MANAGER) {
            return Ok(Next::Wait);
        }
        for _ in 0..PASSES_MAX {
            let pods = self.pods_of(&key, &job).await?;
            let settings = &self.context.settings;
            let plan = plan(&View {
                job: &job,
                pods: &pods,
                now: self.context.clock.now(),
                backoff: Backoff { min: settings.job_backoff_min, max: settings.job_backoff_max },
            });
            if plan.is_expired {
                self.expire(&job).await?;
                return Ok(Next::Wait);
            }
            if plan.is_status_first || !plan.has_actions() {
                job = self.write_status(&key, job, &plan).await?;
            }
            if !plan.has_actions() {
                return Ok(Next::after(plan.recheck_after));
            }
            self.act(&job, &plan).await?;
        }
        Ok(Next::After(Duration::ZERO))
    }

    /// Writes the planned status, if it differs from what is written.
    async fn write_status(
        &self,
        key: &Key,
        job: Arc<Job>,
        plan: &Plan,
    ) -> Result<Arc<Job>, kube::Error> {
        if job.status.as_ref() == Some(&plan.status) {
            return Ok(job);
        }
        let api: Api<Job> = Api::namespaced(self.context.client.clone(), &key.0);
        let new = Job { status: Some(plan.status.clone()), ..Job::clone(&job) };
        let written = api.replace_status(&key.1, &PostParams::default(), &new).await?;
        self.counted.lock().insert(key.clone(), Counts::of(&written));
        self.tell_changes(&job, &plan.status);
        let revision = revision_of(&written).unwrap_or(0);
        self.context.informers.jobs.catch_up(revision, CATCH_UP_MAX).await;
        Ok(Arc::new(written))
    }

    /// An event for each condition that has become true.
    fn tell_changes(&self, job: &Job, status: &JobStatus) {
        let had = job.status.clone().unwrap_or_default();
        for condition in status.conditions.iter().flatten() {
            if had.conditions.iter().flatten().any(|old| old == condition) {
                continue;
            }
            let reason = condition.reason.clone().unwrap_or_default();
            let message = condition.message.clone().unwrap_or_default();
            match (condition.type_.as_str(), condition.status.as_str()) {
                ("Complete", "True") => {
                    self.tell(job, EventType::Normal, "Completed", "Job completed".to_owned());
                }
                ("Failed", "True") => {
                    self.tell(job, EventType::Warning, verdict::known_reason(&reason), message);
                }
                ("Suspended", "True") => self.tell(job, EventType::Normal, "Suspended", message),
                ("Suspended", _) => self.tell(job, EventType::Normal, "Resumed", message),
                _ => {}
            }
        }
    }

    /// Deletes a finished Job whose time is over, with its pods, unless it was changed meanwhile.
    async fn expire(&self, job: &Job) -> Result<(), kube::Error> {
        let api: Api<Job> =
            Api::namespaced(self.context.client.clone(), &job.namespace().unwrap_or_default());
        let preconditions =
            Preconditions { uid: job.uid(), resource_version: job.resource_version() };
        let params = DeleteParams::foreground().preconditions(preconditions);
        match api.delete(&job.name_any(), &params).await {
            Err(err) if !is_not_found(&err) => Err(err),
            _ => Ok(()),
        }
    }

    fn tell(&self, job: &Job, event_type: EventType, reason: &'static str, message: String) {
        let name = full_name(job.meta());
        debug!(object.name = name, object.reason = reason, message, "job event");
        self.events.record(Regarding::of(job), event_type, reason, message);
    }

    /// Whether the cache of pods is as new as the Job's counts, as far as this controller knows.
    fn is_known(&self, key: &Key, job: &Job) -> bool {
        let counts = Counts::of(job);
        counts.is_nothing() || self.counted.lock().get(key) == Some(&counts)
    }

    /// Asks the server, not the cache.
    async fn is_still_there(&self, job: &Job) -> Result<bool, kube::Error> {
        let api: Api<Job> =
            Api::namespaced(self.context.client.clone(), &job.namespace().unwrap_or_default());
        let fresh = api.get_opt(&job.name_any()).await?;
        Ok(fresh.is_some_and(|fresh| fresh.uid() == job.uid() && !is_deleting(&fresh.metadata)))
    }
}
