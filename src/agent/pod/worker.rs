//! The task that drives one pod.

use std::sync::Arc;
use std::time::Duration;

use edgeorc_runtime::{Container, Exit, ExitReason};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::agent::dirs::PodDir;
use crate::agent::pod::decide::{Backoff, Due, Step, decide};
use crate::agent::pod::plan::{PodPlan, RestartPolicy, deletion_grace, is_terminal};
use crate::agent::pod::probe::{ProbeEvent, Prober, Verdict};
use crate::agent::pod::start::{Shared, StartFailure};
use crate::agent::pod::state::{CRASH_LOOP_BACK_OFF, PodState, RunState};
use crate::agent::pod::writer::{Numbered, StatusWriter};
use crate::rt::TaskGroup;

/// Ends and verdicts of containers waiting for the worker.
const EVENTS_MAX: usize = 64;
/// Time a container gets to end when its pod restarts or its probe condemned it.
const RESTART_GRACE: Duration = Duration::from_secs(2);

/// A container of this pod while it runs.
pub(super) struct Running {
    pub(super) container: Arc<dyn Container>,
    pub(super) run: u64,
    pub(super) since: Instant,
    /// Ends the probes and the waiter of this run.
    pub(super) cancel: CancellationToken,
}

/// The end of a run.
struct Ending {
    container: usize,
    run: u64,
    exit: Exit,
}

/// Drives one pod from its first sight to its end.
pub(crate) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) tasks: TaskGroup,
    pub(super) seen: watch::Receiver<Arc<Pod>>,
    pub(super) plan: PodPlan,
    pub(super) dir: PodDir,
    pub(super) state: PodState,
    pub(super) states: watch::Sender<Numbered>,
    pub(super) written: watch::Receiver<u64>,
    pub(super) sandbox: Option<Arc<dyn edgeorc_runtime::Pod>>,
    pub(super) running: Vec<Option<Running>>,
    due: Vec<Due>,
    backoff: Backoff,
    /// How long the last run that ended had lasted.
    last_run: Duration,
    runs: u64,
    number: u64,
    endings: (mpsc::Sender<Ending>, mpsc::Receiver<Ending>),
    verdicts: mpsc::Receiver<ProbeEvent>,
    pub(super) prober: Prober,
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
        let state = PodState::new(&plan, &pod, &shared.host_ips, shared.clock.now());
        let (states, _) = watch::channel((0, Arc::new(state.clone())));
        let (sender, verdicts) = mpsc::channel(EVENTS_MAX);
        let prober = Prober {
            network: Arc::clone(&shared.network),
            tasks: tasks.clone(),
            rng: shared.rng.clone(),
            events: sender,
        };
        let (_, written) = watch::channel(0);
        let count = plan.containers.len();
        Self {
            backoff: Backoff::new(shared.restart),
            running: (0..count).map(|_| None).collect(),
            due: vec![Due::Now; count],
            endings: mpsc::channel(EVENTS_MAX),
            sandbox: None,
            last_run: Duration::ZERO,
            runs: 0,
            number: 0,
            shared,
            tasks,
            seen,
            plan,
            dir,
            state,
            states,
            written,
            verdicts,
            prober,
        }
    }

    /// Where the pod is, for logs and the writer.
    pub(crate) fn states(&self) -> watch::Receiver<Numbered> {
        self.states.subscribe()
    }

    /// Runs the pod until it is gone or `cancel` fires.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        let (sender, written) = watch::channel(0);
        self.written = written;
        let writer = StatusWriter {
            api: Arc::clone(&self.shared.api),
            clock: self.shared.clock.clone(),
            rng: self.shared.rng.clone(),
            states: self.states.subscribe(),
            seen: self.seen.clone(),
            written: sender,
        };
        let pod = Arc::clone(&self.seen.borrow());
        let over = if is_terminal(&pod) {
            self.until_deleted(&cancel).await
        } else {
            self.tasks.spawn("pod-status", |cancel| writer.run(cancel));
            if let Err(err) = self.dir.create().and_then(|()| self.dir.write_pod(&pod)) {
                warn!(%err, "cannot keep the pod on disk");
            }
            self.drive(&cancel).await
        };
        match over {
            Over::Deleted => self.terminate().await,
            Over::Cancelled => self.stop_all(self.shared.shutdown_grace).await,
        }
        self.tasks.shutdown(RESTART_GRACE).await;
    }

    async fn drive(&mut self, cancel: &CancellationToken) -> Over {
        loop {
            if cancel.is_cancelled() {
                return Over::Cancelled;
            }
            if self.is_deleted() {
                return Over::Deleted;
            }
            let now = Instant::now();
            let (policy, fate) = (self.plan.restart_policy, self.plan.fate);
            match decide(policy, fate, &self.state.containers, &self.due, now) {
                Step::Start(at) => self.start(at, cancel).await,
                Step::Restart(at) => self.back_off(&[at]),
                Step::RestartTogether(at) => {
                    self.stop_siblings(at).await;
                    let again: Vec<usize> = (0..self.state.containers.len())
                        .filter(|at| self.runs_again_with_its_pod(*at))
                        .collect();
                    self.back_off(&again);
                }
                Step::Wait(wake) => self.wait(wake, cancel).await,
                Step::Finish(outcome) => {
                    info!(pod.outcome = ?outcome, "the pod has ended");
                    self.stop_all(self.plan.grace).await;
                    self.state.outcome = Some(outcome);
                    self.publish();
                    return self.until_deleted(cancel).await;
                }
            }
        }
    }

    /// Init containers that have done their work do not run again.
    fn runs_again_with_its_pod(&self, at: usize) -> bool {
        use crate::agent::pod::plan::Role;
        self.state.containers.get(at).is_some_and(|container| {
            container.role != Role::Init && !matches!(container.state, RunState::Waiting { .. })
        })
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
        tokio::select! {
            () = cancel.cancelled() => {}
            _ = self.seen.changed() => {}
            () = timer => {}
            Some(ending) = self.endings.1.recv() => self.ended(ending),
            Some(event) = self.verdicts.recv() => self.judged(event).await,
        }
    }

    /// Starts a container, unless the pod is deleted meanwhile: pulling and compiling take time.
    async fn start(&mut self, at: usize, cancel: &CancellationToken) {
        let pod = Arc::clone(&self.seen.borrow());
        let prepared = {
            let mut seen = self.seen.clone();
            let prepare = self.shared.prepare(&self.plan, at, &pod, &self.dir);
            tokio::select! {
                prepared = prepare => prepared,
                () = cancel.cancelled() => return,
                _ = async {
                    while seen.changed().await.is_ok() {
                        if deletion_grace(&seen.borrow()).is_some() {
                            return;
                        }
                    }
                } => return,
            }
        };
        let started = match prepared {
            Ok(prepared) => self.launch(at, prepared).await,
            Err(failure) => Err(failure),
        };
        match started {
            Ok(()) => self.due_now(at),
            Err(failure) => self.not_started(at, failure),
        }
        self.publish();
    }

    fn due_now(&mut self, at: usize) {
        if let Some(due) = self.due.get_mut(at) {
            *due = Due::Now;
        }
    }

    /// Puts a container that did not start where the failure says.
    fn not_started(&mut self, at: usize, failure: StartFailure) {
        let delay = if failure.is_paced {
            failure.delay_min
        } else {
            self.backoff.next(Duration::ZERO).max(failure.delay_min)
        };
        let now = self.shared.clock.now();
        let is_final = failure.is_final && self.plan.restart_policy == RestartPolicy::Never;
        let Some(record) = self.state.containers.get_mut(at) else { return };
        info!(
            k8s.container.name = record.name,
            container.reason = failure.reason,
            err = failure.message,
            "container not started"
        );
        if is_final {
            record.end_unstarted(&failure.message, now);
        } else {
            record.wait(failure.reason, failure.message);
        }
        if let Some(due) = self.due.get_mut(at) {
            *due = if failure.is_final { Due::Never } else { Due::At(Instant::now() + delay) };
        }
    }

    /// Follows a started container: its end, and its probes.
    pub(super) fn follow(&mut self, at: usize, container: Arc<dyn Container>) {
        self.runs += 1;
        let run = self.runs;
        let cancel = self.tasks.token().child_token();
        let (waiter, sender) = (Arc::clone(&container), self.endings.0.clone());
        let ended = cancel.clone();
        self.tasks.spawn("container-wait", |group| async move {
            let exit = tokio::select! {
                exit = waiter.wait() => exit,
                () = ended.cancelled() => return,
                () = group.cancelled() => return,
            };
            let _ = sender.send(Ending { container: at, run, exit }).await;
        });
        if let (Some(plan), Some(ip)) = (self.plan.containers.get(at), self.state.ips.first()) {
            self.prober.watch((at, run), &plan.spec, *ip, &cancel);
        }
        if let Some(slot) = self.running.get_mut(at) {
            *slot = Some(Running { container, run, since: Instant::now(), cancel });
        }
    }

    fn is_current(&self, at: usize, run: u64) -> bool {
        self.running.get(at).and_then(Option::as_ref).is_some_and(|r| r.run == run)
    }

    fn ended(&mut self, ending: Ending) {
        if !self.is_current(ending.container, ending.run) {
            return;
        }
        self.record_end(ending.container, &ending.exit);
        self.publish();
    }

    /// Notes how a run ended.
    pub(super) fn record_end(&mut self, at: usize, exit: &Exit) {
        if let Some(running) = self.running.get_mut(at).and_then(Option::take) {
            running.cancel.cancel();
            let ran = running.since.elapsed();
            if let Some(record) = self.state.containers.get(at) {
                info!(
                    k8s.container.name = record.name,
                    container.exit_code = exit.code,
                    container.message = exit.message,
                    elapsed_ms = u64::try_from(ran.as_millis()).unwrap_or(u64::MAX),
                    "container ended"
                );
            }
            self.last_run = ran;
        }
        let now = self.shared.clock.now();
        if let Some(record) = self.state.containers.get_mut(at) {
            record.end(exit.code, reason(exit.reason), &exit.message, now);
        }
    }

    async fn judged(&mut self, event: ProbeEvent) {
        if !self.is_current(event.container, event.run) {
            return;
        }
        let has_readiness = self
            .plan
            .containers
            .get(event.container)
            .is_some_and(|c| c.spec.readiness_probe.is_some());
        let Some(record) = self.state.containers.get_mut(event.container) else { return };
        match event.verdict {
            Verdict::Started => {
                record.is_started = true;
                record.is_ready |= !has_readiness;
            }
            Verdict::Ready(is_ready) => record.is_ready = is_ready,
            Verdict::Kill(why) => {
                warn!(
                    k8s.container.name = record.name,
                    reason = why,
                    "a probe failed, stopping the container"
                );
                self.stop(event.container, RESTART_GRACE).await;
            }
        }
        self.publish();
    }

    /// Stops one container and notes its end.
    pub(super) async fn stop(&mut self, at: usize, grace: Duration) {
        let Some(running) = self.running.get(at).and_then(Option::as_ref) else { return };
        let container = Arc::clone(&running.container);
        container.stop(grace).await;
        let exit = container.wait().await;
        self.record_end(at, &exit);
    }

    async fn stop_siblings(&mut self, failed: usize) {
        let others = (0..self.running.len()).rev().filter(|at| *at != failed);
        for at in others.collect::<Vec<_>>() {
            self.stop(at, RESTART_GRACE).await;
        }
    }

    /// Puts containers into back-off before their next run.
    fn back_off(&mut self, containers: &[usize]) {
        let delay = self.backoff.next(self.last_run);
        let then = Instant::now() + delay;
        for at in containers {
            let Some(record) = self.state.containers.get_mut(*at) else { continue };
            record.restart_count = record.restart_count.saturating_add(1);
            let message = format!("back-off {} ms restarting failed container", delay.as_millis());
            record.wait(CRASH_LOOP_BACK_OFF, message);
            if let Some(due) = self.due.get_mut(*at) {
                *due = Due::At(then);
            }
        }
        self.publish();
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
}

/// Kubernetes' word for how a run ended.
fn reason(reason: ExitReason) -> &'static str {
    match reason {
        ExitReason::Completed => "Completed",
        ExitReason::OomKilled => "OOMKilled",
        ExitReason::Error | ExitReason::Killed => "Error",
    }
}
