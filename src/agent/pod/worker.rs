//! The task that drives one pod.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{Mutex, SetOnce, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::agent::backlog::Backlog;
use crate::agent::command::Commands;
use crate::agent::dirs::PodDir;
use crate::agent::fence::Stretch;
use crate::agent::pod::arrive::Arrival;
use crate::agent::pod::backoff::Backoff;
use crate::agent::pod::decide::{Due, Step};
use crate::agent::pod::plan::{PodPlan, deletion_grace, is_terminal, seconds};
use crate::agent::pod::probe::{ProbeEvent, Prober};
use crate::agent::pod::run::{Event, Running};
use crate::agent::pod::start::Shared;
use crate::agent::pod::state::{EVICTED, Outcome, PodState};
use crate::agent::pod::status::pod_status;
use crate::agent::pod::writer::{Numbered, StatusWriter, until_begun};
use crate::agent::residents::Verdict;
use crate::agent::sessions::Live;
use crate::client::EventType;
use crate::rt::TaskGroup;

/// News waiting for the worker.
const NEWS_MAX: usize = 64;
/// Time an evicted pod gets to end: the node needs back what it has.
const EVICTION_GRACE: Duration = Duration::from_secs(2);
/// Time the worker's own tasks get to end.
const TASKS_GRACE: Duration = Duration::from_secs(2);

/// Drives one pod from its first sight to its end.
pub(crate) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) tasks: TaskGroup,
    pub(super) seen: watch::Receiver<Arc<Pod>>,
    pub(super) plan: PodPlan,
    pub(super) dir: PodDir,
    /// Set once the pod's folder is there, or cannot be made.
    pub(super) made: Arc<SetOnce<()>>,
    /// Held by who writes the pod itself, or what its start has left, to its folder.
    pub(super) writing: Arc<Mutex<()>>,
    pub(super) state: PodState,
    pub(super) states: watch::Sender<Numbered>,
    pub(super) written: watch::Receiver<u64>,
    pub(super) sandbox: Option<Arc<dyn edgeorc_runtime::Pod>>,
    /// What sessions can reach.
    pub(super) live: Live,
    pub(super) running: Vec<Option<Running>>,
    pub(super) due: Vec<Due>,
    pub(super) backoffs: Vec<Backoff>,
    /// Containers that are stopped because they have another image now.
    pub(super) replaced: Vec<bool>,
    /// Newest generation of the pod's spec that was taken over.
    pub(super) generation: i64,
    /// What brings images and configuration here.
    pub(super) fetches: TaskGroup,
    pub(super) runs: u64,
    /// One queue for all, and boxed: each takes half a KiB, and room for 32 of what it carries.
    pub(super) news: (mpsc::Sender<Box<News>>, mpsc::Receiver<Box<News>>),
    pub(super) prober: Prober,
    /// Why the pod is evicted, once it is.
    pub(super) verdict: (watch::Sender<Verdict>, watch::Receiver<Verdict>),
    /// The stretch of the fence in which a server has said that the pod is still this node's.
    pub(super) confirmed: Option<Stretch>,
    /// For a pod that must be unique: whether it may run.
    pub(super) fence: Option<watch::Receiver<Option<Stretch>>>,
    number: u64,
    /// When the pod's start time was, on the clock that waits.
    started: Instant,
    /// When the pod was first seen, until its first container is started.
    pub(super) asked: Option<Instant>,
}

/// What the worker's tasks tell it.
pub(crate) enum News {
    /// A run has come to its end, or to that of its postStart hook.
    Run(Event),
    /// A probe has come to a verdict.
    Probe(ProbeEvent),
    /// A container has what it needs, or cannot have it now.
    Arrival(Arrival),
}

/// Why the main loop ended.
enum Over {
    /// Deletion was asked for, or the pod is gone from the API.
    Deleted,
    /// The agent stops.
    Cancelled,
}

impl Worker {
    /// A worker for the pod in `seen`; `states` tells everybody else where it is.
    pub(crate) fn new(
        shared: Arc<Shared>,
        tasks: &TaskGroup,
        seen: watch::Receiver<Arc<Pod>>,
        dir: PodDir,
    ) -> Self {
        let tasks = tasks.child();
        let pod = Arc::clone(&seen.borrow());
        let plan = PodPlan::read(&pod);
        let now = shared.clock.now();
        let mut state = PodState::new(&plan, &pod, &shared.host_ips, now);
        state.adopt_runs(|container| dir.last_run(container), now);
        let age = now.duration_since(state.start_time);
        let age = Duration::try_from(age).unwrap_or_default();
        let (states, _) = watch::channel((0, Arc::new(state.clone())));
        let news = mpsc::channel(NEWS_MAX);
        let live = Live::default();
        let prober = Prober {
            network: Arc::clone(&shared.network),
            commands: Commands::new(&shared, &dir, &live, &tasks),
            tasks: tasks.clone(),
            rng: shared.rng.clone(),
            news: news.0.clone(),
        };
        let (_, written) = watch::channel(0);
        let count = plan.containers.len();
        Self {
            asked: Some(Instant::now()),
            started: Instant::now().checked_sub(age).unwrap_or_else(Instant::now),
            backoffs: vec![Backoff::new(shared.restart); count],
            running: (0..count).map(|_| None).collect(),
            due: vec![Due::Now; count],
            replaced: vec![false; count],
            generation: 0,
            confirmed: None,
            fence: plan.is_fenced.then(|| shared.fence.changed()),
            fetches: tasks.child(),
            news,
            sandbox: None,
            live,
            runs: 0,
            number: 0,
            shared,
            tasks,
            seen,
            plan,
            dir,
            made: Arc::default(),
            writing: Arc::default(),
            state,
            states,
            written,
            prober,
            verdict: watch::channel(None),
        }
    }

    /// Where the pod is, for logs and the writer.
    pub(crate) fn states(&self) -> watch::Receiver<Numbered> {
        self.states.subscribe()
    }

    /// Where the pod is told that it is evicted.
    pub(crate) fn verdict(&self) -> watch::Sender<Verdict> {
        self.verdict.0.clone()
    }

    /// What of the pod runs, for `exec`, `attach` and `port-forward`.
    pub(crate) fn live(&self) -> Live {
        self.live.clone()
    }

    /// Runs the pod until it is gone or `cancel` fires. Boxed: a future holds what it was given twice.
    pub(crate) async fn run(mut self: Box<Self>, cancel: CancellationToken) {
        let (sender, written) = watch::channel(0);
        self.written = written;
        let is_back = self.dir.has_pod();
        let writer = StatusWriter {
            api: Arc::clone(&self.shared.api),
            clock: self.shared.clock.clone(),
            rng: self.shared.rng.clone(),
            states: self.states.subscribe(),
            seen: self.seen.clone(),
            written: sender,
            is_back,
        };
        let over = if is_terminal(&self.pod()) {
            // Nobody must wait for what it would write.
            drop(writer);
            self.until_deleted(&cancel).await
        } else {
            self.tasks.spawn("pod-status", |cancel| writer.run(cancel));
            if is_back {
                Box::pin(self.save()).await;
                let _ = self.made.set(());
            } else {
                self.arrive_on_disk().await;
            }
            self.drive(&cancel).await
        };
        match over {
            Over::Deleted => Box::pin(self.terminate()).await,
            Over::Cancelled => Box::pin(self.leave()).await,
        }
        self.tasks.shutdown(TASKS_GRACE).await;
    }

    /// What is seldom done is boxed: a pod that runs keeps the room that its task needs at most.
    async fn drive(&mut self, cancel: &CancellationToken) -> Over {
        loop {
            if cancel.is_cancelled() {
                return Over::Cancelled;
            }
            if self.is_deleted() {
                return Over::Deleted;
            }
            if is_terminal(&self.pod()) {
                // It ended before the agent was restarted, or the API has given it up.
                Box::pin(self.stop_all(self.plan.grace, Instant::now())).await;
                return self.until_deleted(cancel).await;
            }
            if self.is_fenced_off() {
                Box::pin(self.stand_back(cancel)).await;
                continue;
            }
            let verdict = self.verdict.1.borrow_and_update().clone();
            if let Some(message) = verdict {
                let reason = Some(EVICTED);
                return Box::pin(self.finish(Outcome::Failed { reason, message }, cancel)).await;
            }
            Box::pin(self.take_changes()).await;
            let now = Instant::now();
            let deadline = self.deadline();
            if deadline.is_some_and(|at| at <= now) {
                return Box::pin(self.finish(past_deadline(), cancel)).await;
            }
            match self.step(now) {
                Step::Start(at) => self.fetch(at, Duration::ZERO),
                Step::Restart(at) => self.back_off(at, &[at]),
                Step::RestartTogether(at) => {
                    Box::pin(self.stop_siblings(at)).await;
                    let again: Vec<usize> = (0..self.state.containers.len())
                        .filter(|at| self.runs_again_with_its_pod(*at))
                        .collect();
                    self.back_off(at, &again);
                }
                Step::Wait(wake) => {
                    let wake = wake.into_iter().chain(deadline).min();
                    self.wait(wake, cancel).await;
                }
                Step::Finish(outcome) => {
                    return Box::pin(self.finish(outcome, cancel)).await;
                }
            }
        }
    }

    /// The pod has ended: nothing of it runs any more, and what it held is free.
    async fn finish(&mut self, outcome: Outcome, cancel: &CancellationToken) -> Over {
        info!(pod.outcome = ?outcome, "the pod has ended");
        let is_evicted = outcome.is_evicted();
        if let Outcome::Failed { reason: Some(reason), message } = &outcome {
            let kind = if is_evicted { EventType::Warning } else { EventType::Normal };
            self.event(kind, reason, message.clone());
        }
        let grace = if is_evicted { EVICTION_GRACE.min(self.plan.grace) } else { self.plan.grace };
        self.stop_all(grace, Instant::now()).await;
        self.state.outcome = Some(outcome);
        // Whoever hears of it may count on it.
        self.save().await;
        if is_evicted {
            let dir = self.dir.clone();
            if let Some(Err(err)) = self.tasks.block("pod-shed", move || dir.shed()).await {
                warn!(%err, "cannot remove what the evicted pod has left");
            }
        }
        self.shared.ipam.release(&self.plan.uid);
        self.publish();
        self.until_deleted(cancel).await
    }

    /// When `activeDeadlineSeconds` ends; the field may be set or lowered while the pod runs.
    fn deadline(&self) -> Option<Instant> {
        let allowed = self.pod().spec.as_ref()?.active_deadline_seconds?;
        self.started.checked_add(seconds(allowed))
    }

    /// Containers that have done their work do not run again, and those that wait need no push.
    fn runs_again_with_its_pod(&self, at: usize) -> bool {
        self.state.containers.get(at).is_some_and(|container| {
            container.counts_for_readiness() && (container.is_running() || self.runs_again(at))
        })
    }

    /// The pod as the API has it.
    pub(super) fn pod(&self) -> Arc<Pod> {
        Arc::clone(&self.seen.borrow())
    }

    /// Whether the pod is to go: deletion is marked, or it has vanished from the API.
    pub(super) fn is_deleted(&self) -> bool {
        let is_gone = self.seen.has_changed().is_err();
        is_gone || deletion_grace(&self.seen.borrow()).is_some()
    }

    async fn until_deleted(&mut self, cancel: &CancellationToken) -> Over {
        loop {
            if self.is_deleted() {
                return Over::Deleted;
            }
            tokio::select! {
                () = cancel.cancelled() => return Over::Cancelled,
                changed = self.seen.changed() => if changed.is_err() { return Over::Deleted },
            }
        }
    }

    /// Waits for the next thing that may change what is to be done.
    async fn wait(&mut self, wake: Option<Instant>, cancel: &CancellationToken) {
        let timer = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let fence = &mut self.fence;
        let fence = async move {
            match fence {
                Some(fence) => drop(fence.changed().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = cancel.cancelled() => {}
            _ = self.seen.changed() => {}
            () = timer => {}
            () = fence => {}
            Ok(()) = self.verdict.1.changed() => {}
            Some(news) = self.news.1.recv() => match *news {
                News::Run(event) => Box::pin(self.happened(event)).await,
                News::Probe(event) => self.judged(event),
                News::Arrival(arrival) => Box::pin(self.arrived(arrival)).await,
            },
        }
    }

    /// Tells the writer and the log readers where the pod is.
    pub(super) fn publish(&mut self) {
        self.number += 1;
        self.states.send_replace((self.number, Arc::new(self.state.clone())));
    }

    /// Waits until the API has the newest state, at most `limit`.
    pub(super) async fn until_written(&mut self, limit: Duration) {
        let number = self.number;
        let _ =
            tokio::time::timeout(limit, self.written.wait_for(|written| *written >= number)).await;
    }

    /// Has the folder of a pod made that was not here before. The containers wait for that once they have
    /// what they need from elsewhere, and not for what is written there.
    async fn arrive_on_disk(&self) {
        // Nobody may remove the folder before it is made.
        let turn = Arc::clone(&self.writing).lock_owned().await;
        let (tasks, dir, pod) = (self.tasks.clone(), self.dir.clone(), self.as_it_is());
        let (made, mut states) = (Arc::clone(&self.made), self.states.subscribe());
        let disk = self.shared.disk.clone();
        self.tasks.spawn("pod-save", |_| async move {
            let own = dir.clone();
            let at_disk = disk.next().await;
            if let Some(Err(err)) = tasks.block("pod-folder", move || own.create()).await {
                warn!(%err, "cannot make the pod's folder");
            }
            drop(at_disk);
            let _ = made.set(());
            until_begun(&mut states).await;
            let _at_disk = disk.next().await;
            let write = move || {
                let _turn = turn;
                dir.write_new_pod(&pod())
            };
            told(tasks.block("pod-save", write).await);
        });
    }

    /// Writes what a start has left for later, and tells those who keep volumes up to date.
    pub(super) fn write_down(&self, backlog: Backlog) {
        if backlog.is_empty() {
            return self.shared.node.written.tell(&self.plan.uid);
        }
        let (tasks, dir, writing) =
            (self.tasks.clone(), self.dir.clone(), Arc::clone(&self.writing));
        let (shared, uid) = (Arc::clone(&self.shared), self.plan.uid.clone());
        self.tasks.spawn("copies-write", |_| async move {
            let turn = writing.lock_owned().await;
            let _at_disk = shared.disk.next().await;
            let write = move || {
                let _turn = turn;
                dir.write_down(backlog)
            };
            told(tasks.block("copies-write", write).await);
            shared.node.written.tell(&uid);
        });
    }

    /// Keeps the pod and where it is on disk, for an agent that starts without the API. Called when
    /// something ended for good, not at every restart: that the logs tell.
    pub(super) async fn save(&self) {
        let turn = Arc::clone(&self.writing).lock_owned().await;
        let (dir, pod) = (self.dir.clone(), self.as_it_is());
        let write = move || {
            let _turn = turn;
            dir.create()?;
            dir.write_pod(&pod())
        };
        told(self.tasks.block("pod-save", write).await);
    }

    /// Makes the pod with its status as it is now.
    fn as_it_is(&self) -> impl FnOnce() -> Pod + Send + use<> {
        let (pod, state, now) = (self.pod(), self.state.clone(), self.shared.clock.now());
        move || {
            let mut pod = pod.as_ref().clone();
            pod.status = Some(pod_status(&pod, &state, now));
            pod
        }
    }

    /// Tells people what happened to the pod.
    pub(super) fn event(&self, kind: EventType, reason: &'static str, message: String) {
        self.shared.api.event(&self.pod(), None, (kind, reason, message));
    }
}

fn told(written: Option<std::io::Result<()>>) {
    if let Some(Err(err)) = written {
        warn!(%err, "cannot keep the pod on disk");
    }
}

fn past_deadline() -> Outcome {
    Outcome::Failed {
        reason: Some("DeadlineExceeded"),
        message: "Pod was active on the node longer than the specified deadline".to_owned(),
    }
}

#[cfg(test)]
#[path = "worker_test.rs"]
mod worker_test;
