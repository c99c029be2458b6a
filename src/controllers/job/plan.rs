//! What makes a Job go on: a pure function of the Job, its pods and the time.
//!
//! A pod that has ended goes through three states, so that each is counted exactly once wherever the
//! controller stops between two steps: its uid is written into `status.uncountedTerminatedPods`; its
//! finalizer is taken away; the uid is replaced by one more in a number. Indexes that succeeded need
//! no uids: they are a set.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::controllers::job::tally::Tally;
use crate::controllers::job::tracking::{
    Backoff, Judgement, ended_at, failures_before, index_of, is_failed, is_over, is_terminating,
    is_tracked, judge, restarts,
};
use crate::controllers::job::verdict::{self, Facts, Verdict};
use crate::controllers::object::{elapsed, is_deleting, is_ready, node_name, phase};

/// Pods created or deleted in one pass; the next goes on from there.
pub(super) const BURST_MAX: usize = 500;

/// What a pass sees.
pub(super) struct View<'a> {
    pub(super) job: &'a Job,
    /// The Job's own pods.
    pub(super) pods: &'a [Arc<Pod>],
    pub(super) now: Timestamp,
    pub(super) backoff: Backoff,
}

/// A pod to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NewPod {
    /// Its index, in an Indexed Job.
    pub(super) index: Option<u32>,
    /// Failures of that index so far, where they have a limit of their own: those that count, and
    /// those that are ignored.
    pub(super) failures: Option<(u32, u32)>,
}

/// What a pass does, in this order: write the status if it must be first, take finalizers away, delete,
/// create.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) status: JobStatus,
    /// Nothing may be done to pods before the status is written.
    pub(super) is_status_first: bool,
    /// Pods that are noted as ended: their finalizers go.
    pub(super) untrack: Vec<Arc<Pod>>,
    /// Pods that are too many: they go without being counted.
    pub(super) drop: Vec<Arc<Pod>>,
    /// Pods of a Job that is decided: they go.
    pub(super) stop: Vec<Arc<Pod>>,
    pub(super) create: Vec<NewPod>,
    /// When time alone changes something.
    pub(super) recheck_after: Option<Duration>,
    /// The finished Job has outlived its time.
    pub(super) is_expired: bool,
}

impl Plan {
    /// Whether pods are written.
    pub(super) fn has_actions(&self) -> bool {
        !(self.untrack.is_empty()
            && self.drop.is_empty()
            && self.stop.is_empty()
            && self.create.is_empty())
    }

    fn recheck(&mut self, after: Option<Duration>) {
        self.recheck_after = [self.recheck_after, after].into_iter().flatten().min();
    }
}

/// The Job's pods by what they are doing.
pub(super) struct Pods<'a> {
    pub(super) all: &'a [Arc<Pod>],
    /// Neither over nor on their way out.
    pub(super) active: Vec<&'a Arc<Pod>>,
    /// On their way out.
    pub(super) terminating: Vec<&'a Arc<Pod>>,
}

impl<'a> Pods<'a> {
    fn of(pods: &'a [Arc<Pod>]) -> Self {
        let is_active = |pod: &&Arc<Pod>| !is_over(pod) && !is_deleting(&pod.metadata);
        Self {
            all: pods,
            active: pods.iter().filter(is_active).collect(),
            terminating: pods.iter().filter(|pod| is_terminating(pod)).collect(),
        }
    }
}

/// What the spec asks for, with its defaults.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish<'a> {
    pub(super) spec: &'a JobSpec,
    pub(super) completions: Option<u32>,
    pub(super) parallelism: u32,
    pub(super) is_indexed: bool,
    pub(super) is_suspended: bool,
    /// A replacement waits until the pod before it has ended.
    pub(super) replaces_failed_only: bool,
}

impl<'a> Wish<'a> {
    pub(super) fn of(spec: &'a JobSpec) -> Self {
        let count = |n: i32| u32::try_from(n).unwrap_or(0);
        Self {
            spec,
            completions: spec.completions.map(count),
            parallelism: count(spec.parallelism.unwrap_or(1)),
            is_indexed: spec.completion_mode.as_deref() == Some("Indexed"),
            is_suspended: spec.suspend == Some(true),
            replaces_failed_only: spec.pod_failure_policy.is_some()
                || spec.pod_replacement_policy.as_deref() == Some("Failed"),
        }
    }

    /// What indexes are below.
    pub(super) fn indexes(&self) -> u32 {
        self.completions.unwrap_or(0)
    }

    /// Failures that one index may have; `None` when they are not counted by index.
    pub(super) fn limit_per_index(&self) -> Option<u32> {
        let limit = self.spec.backoff_limit_per_index?;
        self.is_indexed.then(|| u32::try_from(limit).unwrap_or(0))
    }
}

/// The plan for one pass.
pub(super) fn plan(view: &View<'_>) -> Plan {
    let had = view.job.status.clone().unwrap_or_default();
    let Some(spec) = view.job.spec.as_ref() else { return Plan::default() };
    let (wish, pods) = (Wish::of(spec), Pods::of(view.pods));
    let mut plan = Plan { status: had.clone(), ..Plan::default() };
    let finished = verdict::finished_at(&had);
    if is_deleting(&view.job.metadata) || finished.is_some() {
        plan.untrack = tracked(view.pods);
        if let (Some(at), Some(ttl), false) =
            (finished, spec.ttl_seconds_after_finished, is_deleting(&view.job.metadata))
        {
            let ttl = Duration::from_secs(u64::try_from(ttl).unwrap_or(0));
            match ttl.checked_sub(elapsed(at, view.now)).filter(|left| !left.is_zero()) {
                Some(left) => plan.recheck(Some(left)),
                None => plan.is_expired = plan.untrack.is_empty(),
            }
        }
        return plan;
    }
    let mut tally = Tally::of(&wish, &had, view.pods);
    let decided = Verdict::written(&had);
    tally.note_ended(view.job, &wish, &pods, decided.as_ref());
    let facts = Facts { job: view.job, wish: &wish, pods: &pods, tally: &tally, now: view.now };
    let verdict = decided.or_else(|| facts.verdict());
    if matches!(verdict, Some(Verdict::Failed { .. })) {
        // From here on whatever has not succeeded has failed.
        tally.note_ended(view.job, &wish, &pods, verdict.as_ref());
    }
    plan.recheck(facts_deadline(view, &wish, verdict.is_some()));
    match &verdict {
        Some(_) => plan.stop = pods.active.iter().map(|pod| Arc::clone(pod)).collect(),
        None => manage(view, &wish, &pods, &tally, &mut plan),
    }
    plan.untrack = untracked(view.job, &wish, &pods, &tally, verdict.is_some());
    plan.status = status(view, &wish, &pods, &tally, verdict.as_ref());
    plan.is_status_first = is_counted_differently(&had, &plan.status);
    plan
}

fn tracked(pods: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
    pods.iter().filter(|pod| is_tracked(pod)).take(BURST_MAX).cloned().collect()
}

/// Until the Job's deadline, while it runs.
fn facts_deadline(view: &View<'_>, wish: &Wish<'_>, is_decided: bool) -> Option<Duration> {
    let deadline =
        wish.spec.active_deadline_seconds.filter(|_| !wish.is_suspended && !is_decided)?;
    let deadline = Duration::from_secs(u64::try_from(deadline).unwrap_or(0));
    let start = view.job.status.as_ref().and_then(|status| status.start_time.as_ref());
    let passed = start.map_or(Duration::ZERO, |start| elapsed(start.0, view.now));
    deadline.checked_sub(passed)
}

/// The pods whose finalizers are to go once the tally is written.
fn untracked(
    job: &Job,
    wish: &Wish<'_>,
    pods: &Pods<'_>,
    tally: &Tally,
    is_decided: bool,
) -> Vec<Arc<Pod>> {
    let kept = if is_decided { BTreeSet::new() } else { last_failures(job, wish, pods, tally) };
    let is_done = |pod: &&Arc<Pod>| {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let is_noted = tally.is_noted(uid);
        let is_counted_by_index = wish.is_indexed && phase(pod) == "Succeeded";
        let is_ignored = !is_noted
            && is_failed(pod, wish.replaces_failed_only)
            && (judge(job, pod) == Judgement::Ignore
                || (wish.is_indexed && index_of(pod, wish.indexes()).is_none()));
        is_tracked(pod) && (is_noted || is_counted_by_index || is_ignored) && !kept.contains(uid)
    };
    pods.all.iter().filter(is_done).take(BURST_MAX).cloned().collect()
}

/// Uids of the pods that alone know how often their index failed: their replacements are not there yet.
fn last_failures<'a>(
    job: &Job,
    wish: &Wish<'_>,
    pods: &Pods<'a>,
    tally: &Tally,
) -> BTreeSet<&'a str> {
    if wish.limit_per_index().is_none() {
        return BTreeSet::new();
    }
    let last = last_failed(job, wish, pods);
    let known = |index: u32, failures: (u32, u32)| {
        tally.completed.contains(index)
            || tally.failed_indexes.contains(index)
            || pods.active.iter().chain(&pods.terminating).any(|pod| {
                index_of(pod, wish.indexes()) == Some(index) && failures_before(pod) >= failures
            })
    };
    last.into_iter()
        .filter(|(index, (failures, _))| !known(*index, *failures))
        .filter_map(|(_, (_, pod))| pod.metadata.uid.as_deref())
        .collect()
}

/// By index, the failures up to now, and the pod that failed last.
type LastFailed<'a> = BTreeMap<u32, ((u32, u32), &'a Arc<Pod>)>;

fn last_failed<'a>(job: &Job, wish: &Wish<'_>, pods: &Pods<'a>) -> LastFailed<'a> {
    let mut last = LastFailed::new();
    for pod in pods.all.iter().filter(|pod| is_tracked(pod)) {
        let Some(index) = index_of(pod, wish.indexes()) else { continue };
        if !is_failed(pod, wish.replaces_failed_only) {
            continue;
        }
        let (failures, ignored) = failures_before(pod);
        let now = match judge(job, pod) {
            Judgement::Ignore => (failures, ignored.saturating_add(1)),
            _ => (failures.saturating_add(1), ignored),
        };
        let entry = last.entry(index).or_insert((now, pod));
        if entry.0 < now {
            *entry = (now, pod);
        }
    }
    last
}

/// Decides which pods to drop or to create.
fn manage(view: &View<'_>, wish: &Wish<'_>, pods: &Pods<'_>, tally: &Tally, plan: &mut Plan) {
    let active = pods.active.len();
    // One that lost its finalizer, as when it was being dropped, could end without being counted.
    let lost = pods.active.iter().filter(|pod| !is_tracked(pod));
    plan.drop = lost.take(BURST_MAX).map(|pod| Arc::clone(pod)).collect();
    if !plan.drop.is_empty() {
        return;
    }
    if wish.is_suspended {
        plan.drop = pods.active.iter().take(BURST_MAX).map(|pod| Arc::clone(pod)).collect();
        return;
    }
    let wanted = wanted_active(wish, tally, active);
    plan.drop = surplus(wish, pods, active.saturating_sub(wanted));
    if !plan.drop.is_empty() {
        return;
    }
    let held = if wish.replaces_failed_only { pods.terminating.len() } else { 0 };
    let missing = wanted.saturating_sub(active + held).min(BURST_MAX);
    if missing == 0 {
        return;
    }
    if wish.limit_per_index().is_none()
        && let Some(left) = backoff_left(view, wish)
    {
        plan.recheck(Some(left));
        return;
    }
    if wish.is_indexed {
        let (indexes, wait) = pending_indexes(view, wish, pods, tally, missing);
        plan.create = indexes;
        plan.recheck(wait);
    } else {
        plan.create = vec![NewPod { index: None, failures: None }; missing];
    }
}

/// How many pods should run.
fn wanted_active(wish: &Wish<'_>, tally: &Tally, active: usize) -> usize {
    let parallelism = wish.parallelism as usize;
    match wish.completions {
        // A work queue: once one has succeeded no more are started.
        None if tally.succeeded_total(wish) > 0 => active,
        None => parallelism,
        Some(completions) => {
            let done = tally.succeeded_total(wish) + tally.failed_indexes.len();
            (completions as usize).saturating_sub(done).min(parallelism)
        }
    }
}

/// Pods that are too many: those without a proper index, all but one of each index, and then the least
/// useful ones until `least` are found.
fn surplus(wish: &Wish<'_>, pods: &Pods<'_>, least: usize) -> Vec<Arc<Pod>> {
    let mut ranked = pods.active.clone();
    ranked.sort_by_key(|pod| {
        let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let is_running = phase(pod) == "Running";
        (node_name(pod).is_some(), is_running, is_ready(pod), Reverse(created), &pod.metadata.name)
    });
    let mut doomed: Vec<Arc<Pod>> = Vec::new();
    let mut rest: Vec<&Arc<Pod>> = Vec::new();
    let mut seen = BTreeSet::new();
    // The most useful pod of an index comes last, so it is seen first from behind.
    for pod in ranked.into_iter().rev() {
        let is_good = !wish.is_indexed
            || index_of(pod, wish.indexes()).is_some_and(|index| seen.insert(index));
        if is_good {
            rest.push(pod);
        } else {
            doomed.push(Arc::clone(pod));
        }
    }
    let more = least.saturating_sub(doomed.len());
    doomed.extend(rest.into_iter().rev().take(more).cloned());
    doomed.truncate(BURST_MAX);
    doomed
}

/// How long the next pod is still to wait for the failures since the last success.
fn backoff_left(view: &View<'_>, wish: &Wish<'_>) -> Option<Duration> {
    let succeeded = view.pods.iter().filter(|pod| phase(pod) == "Succeeded");
    let last_success = succeeded.filter_map(|pod| ended_at(pod)).max();
    let failed: Vec<Timestamp> = view
        .pods
        .iter()
        .filter(|pod| is_failed(pod, wish.replaces_failed_only))
        .filter(|pod| judge(view.job, pod) != Judgement::Ignore)
        .filter_map(|pod| ended_at(pod))
        .filter(|at| last_success.is_none_or(|success| *at > success))
        .collect();
    let failures = u32::try_from(failed.len()).unwrap_or(u32::MAX);
    view.backoff.left(failures, failed.into_iter().max(), view.now)
}

/// The first `missing` indexes that have no pod and are not done, and when the next one may start that
/// waits after a failure.
fn pending_indexes(
    view: &View<'_>,
    wish: &Wish<'_>,
    pods: &Pods<'_>,
    tally: &Tally,
    missing: usize,
) -> (Vec<NewPod>, Option<Duration>) {
    let held: &[&Arc<Pod>] = if wish.replaces_failed_only { &pods.terminating } else { &[] };
    let busy: BTreeSet<u32> =
        pods.active.iter().chain(held).filter_map(|pod| index_of(pod, wish.indexes())).collect();
    let has_limit = wish.limit_per_index().is_some();
    let last = if has_limit { last_failed(view.job, wish, pods) } else { LastFailed::new() };
    let (mut found, mut wait) = (Vec::new(), None);
    for index in 0..wish.indexes() {
        if found.len() >= missing {
            break;
        }
        let is_done = tally.completed.contains(index) || tally.failed_indexes.contains(index);
        if is_done || busy.contains(&index) {
            continue;
        }
        let before = last.get(&index);
        let left = before.and_then(|((failures, ignored), pod)| {
            view.backoff.left(failures.saturating_add(*ignored), ended_at(pod), view.now)
        });
        if let Some(left) = left {
            wait = Some(wait.map_or(left, |wait: Duration| wait.min(left)));
            continue;
        }
        let failures = has_limit.then(|| before.map_or((0, 0), |(failures, _)| *failures));
        found.push(NewPod { index: Some(index), failures });
    }
    (found, wait)
}

fn status(
    view: &View<'_>,
    wish: &Wish<'_>,
    pods: &Pods<'_>,
    tally: &Tally,
    verdict: Option<&Verdict>,
) -> JobStatus {
    let had = view.job.status.clone().unwrap_or_default();
    let mut status = JobStatus {
        active: count(pods.active.len()),
        ready: Some(count_of(pods.active.iter().filter(|pod| is_ready(pod)).count())),
        terminating: Some(count_of(pods.terminating.len())),
        ..had
    };
    tally.write(wish, &mut status);
    let is_quiet = pods.active.is_empty() && pods.terminating.is_empty() && tally.is_settled();
    verdict::write_conditions(&mut status, wish, verdict, is_quiet, view.now);
    if wish.is_suspended && verdict.is_none() {
        status.start_time = None;
    } else if status.start_time.is_none() && !wish.is_suspended {
        status.start_time = Some(Time(view.now));
    }
    status
}

/// Whether the two differ in what must be known before pods are changed.
fn is_counted_differently(a: &JobStatus, b: &JobStatus) -> bool {
    let words = |status: &JobStatus| {
        let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
        let lists = (uncounted.succeeded.unwrap_or_default(), uncounted.failed.unwrap_or_default());
        let counts = (status.succeeded.unwrap_or(0), status.failed.unwrap_or(0));
        let indexes = (
            status.completed_indexes.clone().unwrap_or_default(),
            status.failed_indexes.clone().unwrap_or_default(),
        );
        (lists, counts, indexes, status.conditions.clone().unwrap_or_default())
    };
    words(a) != words(b)
}

/// A count as Kubernetes writes it: none is left out.
pub(super) fn count(n: usize) -> Option<i32> {
    (n > 0).then(|| count_of(n))
}

fn count_of(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// Restarts of the containers of pods that go on, which count as failures where a pod is restarted in
/// its place.
pub(super) fn restarts_in_place(pods: &Pods<'_>) -> i32 {
    let goes_on = |pod: &&Arc<Pod>| matches!(phase(pod), "Running" | "Pending");
    pods.all.iter().filter(goes_on).map(|pod| restarts(pod)).sum()
}
