//! From a container that is due to one that runs, while the rest of the pod goes on: pulling,
//! compiling and hooks take time.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

use crate::agent::pod::decide::{Due, Step, decide};
use crate::agent::pod::plan::Role;
use crate::agent::pod::run::{Event, What};
use crate::agent::pod::start::{Prepared, StartFailure};
use crate::agent::pod::state::RunState;
use crate::agent::pod::worker::{News, Worker};
use crate::client::EventType;

/// A container whose image and configuration are here, or cannot be had now.
pub(crate) struct Arrival {
    at: usize,
    /// What was asked for; the pod may name another image by now.
    image: String,
    /// Since when it is waited for.
    asked: Instant,
    /// How long that took.
    took: Duration,
    prepared: Result<Prepared, StartFailure>,
}

impl Worker {
    /// What is to be done next.
    pub(super) fn step(&self, now: Instant) -> Step {
        let (policy, fate) = (self.plan.restart_policy, self.plan.fate);
        decide(policy, fate, &self.state.containers, &self.due, now)
    }

    /// Has what the container needs brought here after `wait`. What comes of it is an [`Arrival`].
    pub(super) fn fetch(&mut self, at: usize, wait: Duration) {
        let Some(image) = self.plan.containers.get(at).map(|plan| plan.image.clone()) else {
            return;
        };
        if let Some(due) = self.due.get_mut(at) {
            *due = Due::Coming;
        }
        let asked = self.asked.take().unwrap_or_else(Instant::now);
        let (shared, plan, pod) = (Arc::clone(&self.shared), self.plan.clone(), self.pod());
        let (dir, made) = (self.dir.clone(), Arc::clone(&self.made));
        let (tasks, news) = (self.tasks.clone(), self.news.0.clone());
        self.fetches.spawn_until_cancelled("container-prepare", async move {
            // A timer that is due already still rings a millisecond or two later.
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            let prepared = shared.prepare(&plan, at, &pod, (&dir, &made), &tasks).await;
            let took = asked.elapsed();
            let arrival = Arrival { at, image, asked, took, prepared };
            let _ = news.send(Box::new(News::Arrival(arrival))).await;
        });
    }

    /// Starts a container that has what it needs, or has it tried again.
    pub(super) async fn arrived(&mut self, arrival: Arrival) {
        let Arrival { at, image, asked, took, prepared } = arrival;
        let plan = self.plan.containers.get(at);
        let is_same = plan.is_some_and(|plan| plan.image == image);
        let is_ephemeral = plan.is_some_and(|plan| plan.role == Role::Ephemeral);
        let awaits_image = self.awaits_image(at);
        let is_awaited =
            self.due.get(at) == Some(&Due::Coming) && (self.is_waiting(at) || awaits_image);
        if !is_same || !is_awaited {
            return;
        }
        if awaits_image && !self.gets_image(at, &prepared) {
            return;
        }
        if let Some(due) = self.due.get_mut(at) {
            *due = if is_ephemeral { Due::Never } else { Due::Now };
        }
        if !is_ephemeral && self.step(Instant::now()) != Step::Start(at) {
            // Another container has to start first again; then this one is looked at afresh.
            return;
        }
        if self.is_fenced_off() {
            // It waits for its turn, which comes when servers hear this node again.
            return;
        }
        let started = match prepared {
            Ok(mut prepared) => {
                let backlog = std::mem::take(&mut prepared.backlog);
                let started = self.launch(at, prepared).await;
                self.write_down(backlog);
                started
            }
            Err(failure) => Err(failure),
        };
        match started {
            Ok(()) if is_ephemeral => {}
            Ok(()) => {
                self.tell_started(at, asked, took);
                self.post_start(at);
            }
            Err(failure) => self.not_started(at, failure),
        }
        self.publish();
    }

    /// Makes room for a run with the new image of a container that runs. `false`: not now; the one that runs goes
    /// on until it is asked to stop.
    fn gets_image(&mut self, at: usize, prepared: &Result<Prepared, StartFailure>) -> bool {
        let Err(failure) = prepared else {
            if let Some(due) = self.due.get_mut(at) {
                *due = Due::Now;
            }
            // Without its turn it is stopped soon, and starts again with the new one.
            return !self.is_fenced_off() && self.give_way(at);
        };
        let message = format!("Error: {}", failure.message);
        let delay = self.delay_after(at, failure);
        if failure.is_final {
            if let Some(due) = self.due.get_mut(at) {
                *due = Due::Never;
            }
        } else {
            self.fetch(at, delay);
        }
        self.event_of(at, EventType::Warning, "Failed", message);
        false
    }

    fn is_waiting(&self, at: usize) -> bool {
        let record = self.state.containers.get(at);
        record.is_some_and(|record| matches!(record.state, RunState::Waiting { .. }))
    }

    /// Logs a start, with the time since the pod was seen or the container was due again: pulling,
    /// compiling, the waits for its configuration and for its address are all in it, and `took` of it.
    fn tell_started(&self, at: usize, asked: Instant, took: Duration) {
        let Some(record) = self.state.containers.get(at) else { return };
        info!(
            k8s.container.name = record.name,
            k8s.container.restart_count = record.restart_count,
            prepared_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            elapsed_us = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX),
            "container started"
        );
    }

    /// Has the postStart hook of a container run that has just started, as long as that runs.
    fn post_start(&mut self, at: usize) {
        let hook = self.hook(at, |lifecycle| lifecycle.post_start.clone());
        let Some(running) = self.running.get(at).and_then(Option::as_ref) else { return };
        let Some(hook) = hook else { return self.begin(at) };
        if let Some(record) = self.state.containers.get_mut(at) {
            record.is_in_post_start = true;
        }
        let (run, container) = (running.run, Arc::clone(&running.container));
        let (stopped, news) = (running.probes.clone(), self.news.0.clone());
        self.tasks.spawn_until_cancelled("post-start-hook", async move {
            let done = tokio::select! {
                done = hook.run() => done,
                // Its end is handled as any other.
                _ = container.wait() => return,
                () = stopped.cancelled() => return,
            };
            let done = Event { container: at, run, what: What::PostStart(done) };
            let _ = news.send(Box::new(News::Run(done))).await;
        });
    }

    /// The postStart hook is over. A container whose hook failed is stopped; those behind it wait
    /// for its end.
    pub(super) fn after_post_start(&mut self, at: usize, done: Result<(), String>) {
        match done {
            Ok(()) => {
                if let Some(record) = self.state.containers.get_mut(at) {
                    record.is_in_post_start = false;
                }
                self.begin(at);
            }
            Err(why) => {
                self.event_of(at, EventType::Warning, "FailedPostStartHook", why);
                self.kill(at, self.plan.grace);
            }
        }
        self.publish();
    }
}
