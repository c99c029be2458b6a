//! Whether a Job has succeeded or failed, and the conditions that say so.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::job_indexes::Indexes;
use crate::controllers::job::plan::{Pods, Wish, restarts_in_place};
use crate::controllers::job::tally::Tally;
use crate::controllers::job::tracking::{Judgement, is_failed, judge};
use crate::controllers::object::elapsed;

/// What became of a Job. Once written it never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Succeeded { reason: String, message: String },
    Failed { reason: String, message: String },
}

impl Verdict {
    fn failed(reason: &str, message: &str) -> Self {
        Self::Failed { reason: reason.to_owned(), message: message.to_owned() }
    }

    fn succeeded(reason: &str, message: &str) -> Self {
        Self::Succeeded { reason: reason.to_owned(), message: message.to_owned() }
    }

    /// The one that the status tells.
    pub(super) fn written(status: &JobStatus) -> Option<Self> {
        let words = |condition: &JobCondition| {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            (text(&condition.reason), text(&condition.message))
        };
        if let Some(condition) = find(status, "FailureTarget") {
            let (reason, message) = words(condition);
            return Some(Self::Failed { reason, message });
        }
        let (reason, message) = words(find(status, "SuccessCriteriaMet")?);
        Some(Self::Succeeded { reason, message })
    }
}

/// Why Jobs fail.
const REASONS: [&str; 5] = [
    "BackoffLimitExceeded",
    "DeadlineExceeded",
    "PodFailurePolicy",
    "MaxFailedIndexesExceeded",
    "FailedIndexes",
];

/// The reason as an event says it.
pub(super) fn known_reason(reason: &str) -> &'static str {
    REASONS.into_iter().find(|known| *known == reason).unwrap_or("Failed")
}

/// The condition of that type, if it is true.
pub(super) fn find<'a>(status: &'a JobStatus, condition_type: &str) -> Option<&'a JobCondition> {
    let mut conditions = status.conditions.iter().flatten();
    conditions.find(|condition| condition.type_ == condition_type && condition.status == "True")
}

/// When the Job was finished, if it is.
pub(super) fn finished_at(status: &JobStatus) -> Option<Timestamp> {
    let condition = find(status, "Complete").or_else(|| find(status, "Failed"))?;
    let time = condition.last_transition_time.as_ref().or(status.completion_time.as_ref());
    Some(time.map_or(Timestamp::UNIX_EPOCH, |time| time.0))
}

/// What a verdict is made of.
pub(super) struct Facts<'a> {
    pub(super) job: &'a Job,
    pub(super) wish: &'a Wish<'a>,
    pub(super) pods: &'a Pods<'a>,
    pub(super) tally: &'a Tally,
    pub(super) now: Timestamp,
}

impl Facts<'_> {
    /// Whether it is decided; failures first.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        self.failed_by_policy()
            .or_else(|| self.failed_by_limit())
            .or_else(|| self.failed_by_time())
            .or_else(|| self.failed_by_index())
            .or_else(|| self.succeeded_by_policy())
            .or_else(|| self.completed())
    }

    fn failed_by_policy(&self) -> Option<Verdict> {
        self.wish.spec.pod_failure_policy.as_ref()?;
        let failed = self.pods.all.iter().filter(|pod| is_failed(pod, true));
        failed.into_iter().find_map(|pod| match judge(self.job, pod) {
            Judgement::FailJob(message) => Some(Verdict::failed("PodFailurePolicy", &message)),
            _ => None,
        })
    }

    fn failed_by_limit(&self) -> Option<Verdict> {
        let limit = self.wish.spec.backoff_limit.unwrap_or(6);
        let template = self.wish.spec.template.spec.as_ref();
        let policy = template.and_then(|spec| spec.restart_policy.as_deref());
        let restarts = restarts_in_place(self.pods);
        let is_restarted = policy == Some("OnFailure") && restarts > 0 && restarts >= limit;
        let failed = i32::try_from(self.tally.failed_total()).unwrap_or(i32::MAX);
        (failed > limit || is_restarted).then(|| {
            Verdict::failed("BackoffLimitExceeded", "Job has reached the specified backoff limit")
        })
    }

    fn failed_by_time(&self) -> Option<Verdict> {
        let deadline = self.wish.spec.active_deadline_seconds?;
        let start = self.job.status.as_ref()?.start_time.as_ref()?.0;
        let deadline = Duration::from_secs(u64::try_from(deadline).unwrap_or(0));
        let is_over = !self.wish.is_suspended && elapsed(start, self.now) >= deadline;
        is_over.then(|| {
            Verdict::failed("DeadlineExceeded", "Job was active longer than specified deadline")
        })
    }

    fn failed_by_index(&self) -> Option<Verdict> {
        self.wish.limit_per_index()?;
        let failed = self.tally.failed_indexes.len();
        let max = self.wish.spec.max_failed_indexes.and_then(|max| usize::try_from(max).ok());
        if max.is_some_and(|max| failed > max) {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return Some(Verdict::failed("MaxFailedIndexesExceeded", message));
        }
        let done = self.tally.completed.len() + failed;
        let is_over = failed > 0 && done >= self.wish.indexes() as usize;
        is_over.then(|| Verdict::failed("FailedIndexes", "Job has failed indexes"))
    }

    fn succeeded_by_policy(&self) -> Option<Verdict> {
        let policy = self.wish.spec.success_policy.as_ref().filter(|_| self.wish.is_indexed)?;
        let met = policy.rules.iter().position(|rule| {
            let count = rule.succeeded_count.and_then(|count| usize::try_from(count).ok());
            let (have, all) = match &rule.succeeded_indexes {
                Some(text) => {
                    let wanted = Indexes::read(text, self.wish.indexes());
                    (self.tally.completed.common(&wanted), wanted.len())
                }
                None => (self.tally.completed.len(), self.wish.indexes() as usize),
            };
            have >= count.unwrap_or(all)
        })?;
        Some(Verdict::succeeded("SuccessPolicy", &format!("Matched rules at index {met}")))
    }

    fn completed(&self) -> Option<Verdict> {
        let succeeded = self.tally.succeeded_total(self.wish);
        let is_enough = match self.wish.completions {
            None => succeeded > 0,
            Some(completions) => succeeded >= completions as usize,
        };
        (is_enough && self.pods.active.is_empty()).then(|| {
            let message = "Reached expected number of succeeded pods";
            Verdict::succeeded("CompletionsReached", message)
        })
    }
}

/// Brings the conditions up to date. The last one, `Complete` or `Failed`, comes once all is quiet:
/// nothing runs and everything is counted.
pub(super) fn write_conditions(
    status: &mut JobStatus,
    wish: &Wish<'_>,
    verdict: Option<&Verdict>,
    is_quiet: bool,
    now: Timestamp,
) {
    match verdict {
        Some(Verdict::Succeeded { reason, message }) => {
            set(status, ["SuccessCriteriaMet", "True", reason, message], now);
            if is_quiet {
                set(status, ["Complete", "True", reason, message], now);
                status.completion_time = Some(Time(now));
            }
        }
        Some(Verdict::Failed { reason, message }) => {
            set(status, ["FailureTarget", "True", reason, message], now);
            if is_quiet {
                set(status, ["Failed", "True", reason, message], now);
            }
        }
        None if wish.is_suspended => {
            set(status, ["Suspended", "True", "JobSuspended", "Job suspended"], now);
        }
        None if find(status, "Suspended").is_some() => {
            set(status, ["Suspended", "False", "JobResumed", "Job resumed"], now);
            status.start_time = Some(Time(now));
        }
        None => {}
    }
}

/// Sets a condition: type, status, reason, message. One that says so already stays as it is.
fn set(status: &mut JobStatus, words: [&str; 4], now: Timestamp) {
    let [condition_type, value, reason, message] = words;
    let conditions = status.conditions.get_or_insert_default();
    let had = conditions.iter().find(|condition| condition.type_ == condition_type);
    if had.is_some_and(|had| had.status == value && had.reason.as_deref() == Some(reason)) {
        return;
    }
    conditions.retain(|condition| condition.type_ != condition_type);
    conditions.push(JobCondition {
        type_: condition_type.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    });
}
