//! What is counted of a Job's pods, and what is about to be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::batch::v1::{Job, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;

use crate::api::job_indexes::Indexes;
use crate::controllers::job::plan::{Pods, Wish, count};
use crate::controllers::job::tracking::{
    Judgement, failures_before, index_of, is_failed, is_tracked, judge,
};
use crate::controllers::job::verdict::Verdict;
use crate::controllers::object::phase;

/// Uids that wait to be counted, at most; more pods wait for the next pass.
const UNCOUNTED_MAX: usize = 500;

/// Counts of a Job.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    succeeded: usize,
    failed: usize,
    /// Uids of pods that ended and still have their finalizer.
    uncounted_succeeded: BTreeSet<String>,
    uncounted_failed: BTreeSet<String>,
    /// Indexes that have succeeded.
    pub(super) completed: Indexes,
    /// Indexes that have failed for good.
    pub(super) failed_indexes: Indexes,
}

impl Tally {
    /// What the status says, with the pods counted whose finalizers are gone.
    pub(super) fn of(wish: &Wish<'_>, status: &JobStatus, pods: &[Arc<Pod>]) -> Self {
        let number = |n: Option<i32>| usize::try_from(n.unwrap_or(0)).unwrap_or(0);
        let indexes =
            |text: Option<&String>| Indexes::read(text.map_or("", String::as_str), wish.indexes());
        let mut tally = Self {
            succeeded: number(status.succeeded),
            failed: number(status.failed),
            completed: indexes(status.completed_indexes.as_ref()),
            failed_indexes: indexes(status.failed_indexes.as_ref()),
            ..Self::default()
        };
        let tracked: BTreeMap<&str, ()> = pods
            .iter()
            .filter(|pod| is_tracked(pod))
            .filter_map(|pod| Some((pod.metadata.uid.as_deref()?, ())))
            .collect();
        let waiting = status.uncounted_terminated_pods.clone().unwrap_or_default();
        for uid in waiting.succeeded.into_iter().flatten() {
            if tracked.contains_key(uid.as_str()) {
                tally.uncounted_succeeded.insert(uid);
            } else {
                tally.succeeded = tally.succeeded.saturating_add(1);
            }
        }
        for uid in waiting.failed.into_iter().flatten() {
            if tracked.contains_key(uid.as_str()) {
                tally.uncounted_failed.insert(uid);
            } else {
                tally.failed = tally.failed.saturating_add(1);
            }
        }
        tally
    }

    /// Notes the pods that have ended and are not noted yet. Of a Job that has failed, those that have
    /// not succeeded have failed, whatever they do.
    pub(super) fn note_ended(
        &mut self,
        job: &Job,
        wish: &Wish<'_>,
        pods: &Pods<'_>,
        verdict: Option<&Verdict>,
    ) {
        let is_lost = matches!(verdict, Some(Verdict::Failed { .. }));
        for pod in pods.all.iter().filter(|pod| is_tracked(pod)) {
            if self.uncounted_succeeded.len() + self.uncounted_failed.len() >= UNCOUNTED_MAX {
                return;
            }
            let Some(uid) = pod.metadata.uid.as_deref() else { continue };
            if self.is_noted(uid) {
                continue;
            }
            if phase(pod) == "Succeeded" {
                self.note_success(wish, pod, uid);
            } else if is_failed(pod, wish.replaces_failed_only) {
                self.note_failure(job, wish, pod, uid);
            } else if is_lost && (!wish.is_indexed || index_of(pod, wish.indexes()).is_some()) {
                self.uncounted_failed.insert(uid.to_owned());
            }
        }
    }

    fn note_success(&mut self, wish: &Wish<'_>, pod: &Pod, uid: &str) {
        if !wish.is_indexed {
            self.uncounted_succeeded.insert(uid.to_owned());
        } else if let Some(index) = index_of(pod, wish.indexes()) {
            self.completed.insert(index);
        }
    }

    fn note_failure(&mut self, job: &Job, wish: &Wish<'_>, pod: &Pod, uid: &str) {
        let index = wish.is_indexed.then(|| index_of(pod, wish.indexes()));
        if index == Some(None) {
            return;
        }
        let judgement = judge(job, pod);
        if judgement == Judgement::Ignore {
            return;
        }
        self.uncounted_failed.insert(uid.to_owned());
        if let (Some(Some(index)), Some(limit)) = (index, wish.limit_per_index())
            && (failures_before(pod).0 >= limit || judgement == Judgement::FailIndex)
            && !self.completed.contains(index)
        {
            self.failed_indexes.insert(index);
        }
    }

    /// Whether the pod waits to be counted.
    pub(super) fn is_noted(&self, uid: &str) -> bool {
        self.uncounted_succeeded.contains(uid) || self.uncounted_failed.contains(uid)
    }

    /// Whether nothing waits to be counted.
    pub(super) fn is_settled(&self) -> bool {
        self.uncounted_succeeded.is_empty() && self.uncounted_failed.is_empty()
    }

    /// All that have succeeded.
    pub(super) fn succeeded_total(&self, wish: &Wish<'_>) -> usize {
        if wish.is_indexed {
            self.completed.len()
        } else {
            self.succeeded + self.uncounted_succeeded.len()
        }
    }

    /// All that have failed.
    pub(super) fn failed_total(&self) -> usize {
        self.failed + self.uncounted_failed.len()
    }

    /// Puts the counts into `status`.
    pub(super) fn write(&self, wish: &Wish<'_>, status: &mut JobStatus) {
        status.succeeded =
            count(if wish.is_indexed { self.completed.len() } else { self.succeeded });
        status.failed = count(self.failed);
        let text = |indexes: &Indexes| Some(indexes.to_string());
        let completed = text(&self.completed).filter(|text| !text.is_empty());
        status.completed_indexes = completed.filter(|_| wish.is_indexed);
        status.failed_indexes = wish.limit_per_index().and_then(|_| text(&self.failed_indexes));
        let list = |uids: &BTreeSet<String>| {
            (!uids.is_empty()).then(|| uids.iter().cloned().collect::<Vec<_>>())
        };
        status.uncounted_terminated_pods = Some(UncountedTerminatedPods {
            succeeded: list(&self.uncounted_succeeded),
            failed: list(&self.uncounted_failed),
        });
    }
}
