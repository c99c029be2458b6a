//! The runs of a pod's containers: how each starts, is followed, is judged and ends.

use std::sync::Arc;
use std::time::Duration;

use edgeorc_runtime::{Container, Exit, ExitReason};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::agent::pod::backoff;
use crate::agent::pod::decide::{Due, runs_again};
use crate::agent::pod::hooks::{self, Hook};
use crate::agent::pod::plan::{RestartPolicy, Role, deletion_grace};
use crate::agent::pod::probe::{ProbeEvent, Verdict};
use crate::agent::pod::start::StartFailure;
use crate::agent::pod::state::{CONTAINER_CREATING, CRASH_LOOP_BACK_OFF};
use crate::agent::pod::terminate::{DRAIN, GONE_GRACE};
use crate::agent::pod::termination_message;
use crate::agent::pod::worker::{News, Worker};
use crate::client::EventType;

/// Time a container gets to end when another one took the pod down with it.
const SIBLING_GRACE: Duration = Duration::from_secs(2);
/// Least time to end that a container gets after its preStop hook: kubelet's.
const STOP_GRACE_MIN: Duration = Duration::from_secs(2);

/// A container of this pod while it runs.
pub(super) struct Running {
    pub(super) container: Arc<dyn Container>,
    pub(super) run: u64,
    since: Instant,
    /// Ends the waiter of this run.
    cancel: CancellationToken,
    /// Ends its probes and its postStart hook; cancelled before `cancel` when it is being stopped.
    pub(super) probes: CancellationToken,
}

/// What became of a run.
pub(crate) struct Event {
    pub(super) container: usize,
    pub(super) run: u64,
    pub(super) what: What,
}

/// See [`Event`].
pub(crate) enum What {
    /// The postStart hook is over.
    PostStart(Result<(), String>),
    /// The run is over.
    Ended(Exit),
}

impl Worker {
    pub(super) fn hook(
        &self,
        at: usize,
        choose: impl Fn(
            &k8s_openapi::api::core::v1::Lifecycle,
        ) -> Option<k8s_openapi::api::core::v1::LifecycleHandler>,
    ) -> Option<Hook> {
        let spec = &self.plan.containers.get(at)?.spec;
        let handler = choose(spec.lifecycle.as_ref()?)?;
        Some(Hook {
            handler,
            spec: spec.clone(),
            ip: self.state.ips.first().copied(),
            network: Arc::clone(&self.shared.network),
            commands: self.prober.commands.clone(),
        })
    }

    /// Puts a container that did not start where the failure says.
    pub(super) fn not_started(&mut self, at: usize, failure: StartFailure) {
        let delay = self.delay_after(at, &failure);
        let now = self.shared.clock.now();
        let is_once = self.plan.restart_policy == RestartPolicy::Never;
        let Some(record) = self.state.containers.get_mut(at) else { return };
        let is_final = failure.is_final && (is_once || record.role == Role::Ephemeral);
        info!(
            k8s.container.name = record.name,
            container.reason = failure.reason,
            err = failure.message,
            "container not started"
        );
        let message = format!("Error: {}", failure.message);
        if is_final {
            record.end_unstarted(&failure.message, now);
        } else {
            record.wait(failure.reason, failure.message);
        }
        if let Some(due) = self.due.get_mut(at) {
            *due = if failure.is_final { Due::Never } else { Due::At(Instant::now() + delay) };
        }
        self.event_of(at, EventType::Warning, "Failed", message);
    }

    /// How long after a failure the next try is due.
    pub(super) fn delay_after(&mut self, at: usize, failure: &StartFailure) -> Duration {
        if failure.is_paced {
            return failure.delay_min;
        }
        self.next_delay(at, Duration::ZERO).max(failure.delay_min)
    }

    fn next_delay(&mut self, at: usize, ran: Duration) -> Duration {
        self.backoffs.get_mut(at).map_or(Duration::ZERO, |backoff| backoff.next(ran))
    }

    /// Waits for the end of a started container.
    pub(super) fn follow(&mut self, at: usize, container: Arc<dyn Container>) {
        self.runs += 1;
        let run = self.runs;
        let cancel = self.tasks.token().child_token();
        let probes = cancel.child_token();
        let (waiter, sender) = (Arc::clone(&container), self.news.0.clone());
        let ended = cancel.clone();
        self.tasks.spawn("container-wait", |group| async move {
            let exit = tokio::select! {
                exit = waiter.wait() => exit,
                () = ended.cancelled() => return,
                () = group.cancelled() => return,
            };
            let ended = Event { container: at, run, what: What::Ended(exit) };
            let _ = sender.send(Box::new(News::Run(ended))).await;
        });
        if let Some(slot) = self.running.get_mut(at) {
            *slot = Some(Running { container, run, since: Instant::now(), cancel, probes });
        }
    }

    /// The container runs and its postStart hook is done: from here on it is probed.
    pub(super) fn begin(&mut self, at: usize) {
        let Some(running) = self.running.get(at).and_then(Option::as_ref) else { return };
        let Some(plan) = self.plan.containers.get(at) else { return };
        let Some(record) = self.state.containers.get_mut(at) else { return };
        record.is_started = plan.spec.startup_probe.is_none();
        // One that took the place of a run that was ready is so until its probe says otherwise.
        let is_heir = std::mem::take(&mut record.is_heir);
        record.is_ready = record.is_started && (is_heir || plan.spec.readiness_probe.is_none());
        if let Some(ip) = self.state.ips.first() {
            let run = (at, running.run);
            self.prober.watch(run, record.is_ready, &plan.spec, *ip, &running.probes);
        }
    }

    /// Lets another run take the place of one that serves HTTP, which ends what it has begun beside that.
    /// `false`, and nothing has happened, if it has to stop first.
    pub(super) fn hand_over(&mut self, at: usize) -> bool {
        let (Some(slot), Some(plan), Some(record)) = (
            self.running.get_mut(at),
            self.plan.containers.get(at),
            self.state.containers.get_mut(at),
        ) else {
            return false;
        };
        let has_hook = plan.spec.lifecycle.as_ref().is_some_and(|all| all.pre_stop.is_some());
        let is_up = |running: &mut Running| {
            !running.probes.is_cancelled() && !has_hook && running.container.hand_over()
        };
        let Some(running) = slot.take_if(is_up) else { return false };
        running.cancel.cancel();
        let was_ready = record.is_ready;
        let now = self.shared.clock.now();
        record.ran = running.since.elapsed();
        record.end_stopped(0, reason(ExitReason::Stopped), "", now);
        record.restart_count = record.restart_count.saturating_add(1);
        record.image.clone_from(&plan.image);
        record.wait(CONTAINER_CREATING, "");
        (record.is_ready, record.is_heir) = (was_ready, was_ready);
        self.live.ended(&record.name);
        let (container, grace) = (running.container, self.plan.grace);
        self.tasks.spawn_until_cancelled("container-drain", async move {
            // Who found it before it went has asked by then.
            tokio::time::sleep(DRAIN).await;
            container.stop(grace).await;
        });
        true
    }

    fn is_current(&self, at: usize, run: u64) -> bool {
        self.running.get(at).and_then(Option::as_ref).is_some_and(|r| r.run == run)
    }

    /// Takes note of what became of a run, if that is the one that goes on.
    pub(super) async fn happened(&mut self, event: Event) {
        let at = event.container;
        if !self.is_current(at, event.run) {
            return;
        }
        match event.what {
            What::PostStart(done) => self.after_post_start(at, done),
            What::Ended(exit) => {
                self.record_end(at, &exit).await;
                self.publish();
            }
        }
    }

    /// Notes how a run ended.
    pub(super) async fn record_end(&mut self, at: usize, exit: &Exit) {
        let now = self.shared.clock.now();
        let ran = self.running.get_mut(at).and_then(Option::take).map(|running| {
            running.cancel.cancel();
            running.since.elapsed()
        });
        // The node stops, or the pod goes: the next agent must not take that for work that was done.
        let is_cut_off = self.state.is_terminating
            && matches!(exit.reason, ExitReason::Stopped | ExitReason::Killed);
        let is_replaced = self.replaced.get_mut(at).is_some_and(std::mem::take);
        let message = self.last_words(at, exit).await;
        let (Some(record), Some(plan)) =
            (self.state.containers.get_mut(at), self.plan.containers.get(at))
        else {
            return;
        };
        self.live.ended(&record.name);
        record.ran = ran.unwrap_or_default();
        let is_stopped = exit.reason == ExitReason::Stopped;
        if is_stopped {
            record.end_stopped(exit.code, reason(exit.reason), &message, now);
        } else {
            record.end(exit.code, reason(exit.reason), &message, now);
        }
        info!(
            k8s.container.name = record.name,
            container.exit_code = exit.code,
            container.message = message,
            elapsed_ms = u64::try_from(record.ran.as_millis()).unwrap_or(u64::MAX),
            "container ended"
        );
        if is_replaced {
            record.image.clone_from(&plan.image);
            record.restart_count = record.restart_count.saturating_add(1);
            record.wait(CONTAINER_CREATING, "");
            if let Some(due) = self.due.get_mut(at) {
                *due = Due::Now;
            }
        } else if !is_cut_off && !self.runs_again(at) {
            self.save().await;
        }
    }

    /// Whether a container that has ended is to run again, by itself.
    pub(super) fn runs_again(&self, at: usize) -> bool {
        let policy = self.plan.restart_policy;
        let record = self.state.containers.get(at);
        record.is_some_and(|c| c.ended().is_some_and(|ended| runs_again(policy, c.role, ended)))
    }

    /// What a container whose run has ended said last.
    async fn last_words(&self, at: usize, exit: &Exit) -> String {
        let (Some(record), Some(plan)) =
            (self.state.containers.get(at), self.plan.containers.get(at))
        else {
            return String::new();
        };
        let (dir, spec, run) = (self.dir.clone(), plan.spec.clone(), record.restart_count);
        let exit = exit.clone();
        let read = move || termination_message::read(&dir, &spec, run, &exit);
        self.tasks.block("last-words", read).await.unwrap_or_default()
    }

    pub(super) fn judged(&mut self, event: ProbeEvent) {
        let at = event.container;
        if !self.is_current(at, event.run) {
            return;
        }
        let spec = self.plan.containers.get(at).map(|plan| &plan.spec);
        let has_readiness = spec.is_some_and(|spec| spec.readiness_probe.is_some());
        let Some(record) = self.state.containers.get_mut(at) else { return };
        match event.verdict {
            Verdict::Started => {
                record.is_started = true;
                record.is_ready |= !has_readiness;
            }
            Verdict::Ready(is_ready) => record.is_ready = is_ready,
            Verdict::Unhealthy(why) => {
                return self.event_of(at, EventType::Warning, "Unhealthy", why);
            }
            Verdict::Suspicious(why) => {
                return self.event_of(at, EventType::Warning, "ProbeWarning", why);
            }
            Verdict::Kill { probe, grace } => {
                record.is_ready = false;
                let name = record.name.clone();
                warn!(k8s.container.name = name, probe, "a probe failed, stopping the container");
                let is_once = self.plan.restart_policy == RestartPolicy::Never
                    && record.role != Role::Sidecar;
                let then = if is_once { "" } else { ", will be restarted" };
                let message = format!("Container {name} failed {probe} probe{then}");
                self.event_of(at, EventType::Normal, "Killing", message);
                self.kill(at, grace.unwrap_or(self.plan.grace));
            }
        }
        self.publish();
    }

    /// Has a container stopped by a task of its own; its end comes as any other.
    pub(super) fn kill(&self, at: usize, grace: Duration) {
        let Some(running) = self.running.get(at).and_then(Option::as_ref) else { return };
        running.probes.cancel();
        let now = Instant::now();
        if let Some(stopping) = self.stopping(at, now + grace, now) {
            self.tasks.spawn_until_cancelled("container-stop", stopping);
        }
    }

    /// Runs the preStop hook of a container, then stops it: not before `not_before`, within
    /// `ends_at`, but never with less than [`STOP_GRACE_MIN`], and sooner if somebody shortens the
    /// grace of the pod's deletion meanwhile. `None` if it does not run.
    pub(super) fn stopping(
        &self,
        at: usize,
        ends_at: Instant,
        not_before: Instant,
    ) -> Option<impl Future<Output = ()> + Send + 'static> {
        let running = self.running.get(at)?.as_ref()?;
        let container = Arc::clone(&running.container);
        let hook = self.hook(at, |lifecycle| lifecycle.pre_stop.clone());
        let (api, pod) = (Arc::clone(&self.shared.api), self.pod());
        let name = self.plan.containers.get(at)?.name.clone();
        let shortened = shortened(self.seen.clone(), ends_at);
        Some(async move {
            let stopping = async {
                if let Some(hook) = hook
                    && let Err(why) = hooks::within(ends_at, hook).await
                {
                    warn!(k8s.container.name = name, reason = why, "preStop hook failed");
                    api.event(&pod, Some(&name), (EventType::Warning, "FailedPreStopHook", why));
                }
                tokio::time::sleep_until(not_before.min(ends_at)).await;
                let left = ends_at.saturating_duration_since(Instant::now());
                container.stop(left.max(STOP_GRACE_MIN)).await;
            };
            tokio::select! {
                () = stopping => {}
                grace = shortened => container.stop(grace).await,
            }
        })
    }

    /// Stops one container and notes its end.
    pub(super) async fn stop(&mut self, at: usize, ends_at: Instant) {
        let Some(stopping) = self.stopping(at, ends_at, Instant::now()) else { return };
        stopping.await;
        self.note_end(at).await;
    }

    /// Notes the end of a container that was told to stop.
    pub(super) async fn note_end(&mut self, at: usize) {
        let Some(running) = self.running.get(at).and_then(Option::as_ref) else { return };
        let exit = Arc::clone(&running.container).wait().await;
        self.record_end(at, &exit).await;
    }

    /// Stops what shares the fate of `failed`: soon, since the pod is down until it runs again.
    pub(super) async fn stop_siblings(&mut self, failed: usize) {
        let now = Instant::now();
        let is_sibling = |at, role| at != failed && role != Role::Ephemeral;
        self.stop_in_order(is_sibling, now + SIBLING_GRACE, now).await;
    }

    /// Puts containers into the back-off of the one that failed.
    pub(super) fn back_off(&mut self, failed: usize, containers: &[usize]) {
        let ran = self.state.containers.get(failed).map_or(Duration::ZERO, |record| record.ran);
        let delay = self.next_delay(failed, ran);
        let then = Instant::now() + delay;
        let pod = format!("{}_{}({})", self.plan.name, self.plan.namespace, self.plan.uid);
        for at in containers {
            let Some(record) = self.state.containers.get_mut(*at) else { continue };
            record.restart_count = record.restart_count.saturating_add(1);
            let (wait, name) = (backoff::show(delay), &record.name);
            let message = format!("back-off {wait} restarting failed container={name} pod={pod}");
            record.wait(CRASH_LOOP_BACK_OFF, message);
            if let Some(due) = self.due.get_mut(*at) {
                *due = Due::At(then);
            }
        }
        if let Some(plan) = self.plan.containers.get(failed) {
            let message =
                format!("Back-off restarting failed container {} in pod {pod}", plan.name);
            self.event_of(failed, EventType::Warning, "BackOff", message);
        }
        self.publish();
    }

    /// Tells people what happened to a container.
    pub(super) fn event_of(&self, at: usize, kind: EventType, reason: &'static str, what: String) {
        let name = self.plan.containers.get(at).map(|plan| plan.name.as_str());
        self.shared.api.event(&self.pod(), name, (kind, reason, what));
    }
}

/// Waits until the pod's deletion has to be over before `ends_at`, and says in what time. A pod that
/// vanishes from the API meanwhile was deleted by force.
async fn shortened(mut seen: watch::Receiver<Arc<Pod>>, ends_at: Instant) -> Duration {
    if seen.has_changed().is_err() {
        return std::future::pending().await;
    }
    loop {
        let grace = deletion_grace(&seen.borrow_and_update());
        if let Some(grace) = grace
            && Instant::now() + grace < ends_at
        {
            return grace;
        }
        if seen.changed().await.is_err() {
            return GONE_GRACE;
        }
    }
}

/// Kubernetes' word for how a run ended.
fn reason(reason: ExitReason) -> &'static str {
    match reason {
        ExitReason::Completed | ExitReason::Stopped => "Completed",
        ExitReason::OomKilled => "OOMKilled",
        ExitReason::Error | ExitReason::Killed => "Error",
    }
}
