//! The end of a pod: out of the endpoints, hooks, mains, sidecars, then out of the API.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::agent::pod::api::PodApiError;
use crate::agent::pod::plan::{Role, deletion_grace, is_terminal};
use crate::agent::pod::worker::Worker;
use crate::client::EventType;

/// Time that routing tables get to take the pod out before it stops: an endpoint change reaches
/// every node within 100 ms.
pub(super) const DRAIN: Duration = Duration::from_millis(300);
/// Longest wait for the API to take "not ready".
const UNREADY_WRITE_MAX: Duration = Duration::from_secs(1);
/// Time that pulls get to let go: they end at their next wait.
const FETCHES_GRACE: Duration = Duration::from_secs(1);
/// Grace of a pod that has vanished from the API.
pub(super) const GONE_GRACE: Duration = Duration::from_secs(2);
/// First and longest pause between two tries to remove the pod from the API.
const DELETE_RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

impl Worker {
    /// Ends the pod and removes what is left of it.
    pub(super) async fn terminate(&mut self) {
        let pod = self.pod();
        let is_gone = self.seen.has_changed().is_err();
        let grace = deletion_grace(&pod).unwrap_or(GONE_GRACE);
        let ends_at = Instant::now() + grace;
        info!(grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX), "ending the pod");
        let mut drained_at = Instant::now();
        if self.running.iter().any(Option::is_some) {
            self.state.is_terminating = true;
            self.publish();
            for at in 0..self.running.len() {
                self.event_of_stop(at);
            }
            if !is_gone {
                self.until_written(UNREADY_WRITE_MAX.min(grace)).await;
            }
            drained_at = Instant::now() + DRAIN;
        }
        self.stop_within_fence(ends_at, drained_at).await;
        // As kubelet: whoever watches sees how it ended before it is gone.
        if self.state.outcome.is_none() && !is_terminal(&pod) {
            self.state.outcome = self.state.outcome_of_deletion();
        }
        self.publish();
        if !is_gone {
            self.until_written(UNREADY_WRITE_MAX).await;
            self.remove(&pod).await;
        }
        self.shared.ipam.release(&self.plan.uid);
        let turn = Arc::clone(&self.writing).lock_owned().await;
        let dir = self.dir.clone();
        let remove = move || {
            let _turn = turn;
            dir.remove()
        };
        if let Some(Err(err)) = self.tasks.block("pod-remove", remove).await {
            warn!(%err, "cannot remove the pod's files");
        }
        info!("the pod is gone");
    }

    /// The node stops, the pod does not: it runs again when the node is back. Until then it must
    /// get no requests, so it leaves the endpoints first here as well.
    pub(super) async fn leave(&mut self) {
        let grace = self.shared.shutdown_grace;
        let ends_at = Instant::now() + grace;
        let mut drained_at = Instant::now();
        if self.running.iter().any(Option::is_some) {
            self.state.is_terminating = true;
            self.publish();
            self.until_written(UNREADY_WRITE_MAX.min(grace)).await;
            drained_at = Instant::now() + DRAIN;
        }
        self.stop_all(ends_at.saturating_duration_since(Instant::now()), drained_at).await;
    }

    fn event_of_stop(&self, at: usize) {
        let is_running = self.running.get(at).is_some_and(Option::is_some);
        if let Some(plan) = self.plan.containers.get(at).filter(|_| is_running) {
            let message = format!("Stopping container {}", plan.name);
            self.event_of(at, EventType::Normal, "Killing", message);
        }
    }

    /// Stops all containers, then the sandbox: hooks and all within one grace time. No container is stopped
    /// before `not_before`.
    pub(super) async fn stop_all(&mut self, grace: Duration, not_before: Instant) {
        let ends_at = Instant::now() + grace;
        self.fetches.shutdown(FETCHES_GRACE).await;
        for running in self.running.iter().flatten() {
            running.probes.cancel();
        }
        self.replaced.fill(false);
        self.stop_in_order(|_, _| true, ends_at, not_before).await;
        self.live.clear();
        if let Some(sandbox) = self.sandbox.take() {
            sandbox.destroy().await;
        }
    }

    /// Stops the mains and what looks at them together, then the sidecars in reverse order: those of
    /// them that are `wanted`, with their hooks.
    pub(super) async fn stop_in_order(
        &mut self,
        wanted: impl Fn(usize, Role) -> bool,
        ends_at: Instant,
        not_before: Instant,
    ) {
        let roles = self.plan.containers.iter().map(|c| c.role).enumerate();
        let (mains, others): (Vec<_>, Vec<_>) = roles
            .filter(|(at, role)| wanted(*at, *role))
            .partition(|(_, role)| matches!(role, Role::Main | Role::Ephemeral));
        let stopping = mains.iter().filter_map(|(at, _)| self.stopping(*at, ends_at, not_before));
        join_all(stopping.collect::<Vec<_>>()).await;
        for (at, _) in mains {
            self.note_end(at).await;
        }
        for (at, _) in others.into_iter().rev() {
            self.stop(at, ends_at).await;
        }
    }

    /// Removes the pod from the API, however long that takes.
    async fn remove(&self, pod: &k8s_openapi::api::core::v1::Pod) {
        let mut pause = DELETE_RETRY.0;
        while self.seen.has_changed().is_ok() {
            match self.shared.api.delete(pod).await {
                Ok(()) => return,
                Err(PodApiError::Refused(reason)) => {
                    warn!(reason, "the API does not let the pod go")
                }
                Err(err) => tracing::debug!(%err, "the pod is not removed yet"),
            }
            if self.tasks.token().run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
            pause = pause.saturating_mul(2).min(DELETE_RETRY.1);
        }
    }
}
