//! The end of a pod: out of the endpoints, hooks, mains, sidecars, then out of the API.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::agent::pod::api::PodApiError;
use crate::agent::pod::plan::{Role, deletion_grace};
use crate::agent::pod::probe::http_get;
use crate::agent::pod::worker::Worker;

/// Time that routing tables get to take the pod out before it stops: an endpoint change reaches
/// every node within 100 ms.
const DRAIN: Duration = Duration::from_millis(300);
/// Longest wait for the API to take "not ready".
const UNREADY_WRITE_MAX: Duration = Duration::from_secs(1);
/// Grace of a pod that has vanished from the API.
const GONE_GRACE: Duration = Duration::from_secs(2);
/// First and longest pause between two tries to remove the pod from the API.
const DELETE_RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

impl Worker {
    /// Ends the pod and removes what is left of it.
    pub(super) async fn terminate(&mut self) {
        let pod = std::sync::Arc::clone(&self.seen.borrow());
        let is_gone = self.seen.has_changed().is_err();
        let grace = if is_gone { GONE_GRACE } else { deletion_grace(&pod).unwrap_or(GONE_GRACE) };
        let ends_at = Instant::now() + grace;
        info!(grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX), "ending the pod");
        if self.running.iter().any(Option::is_some) {
            self.state.is_terminating = true;
            self.publish();
            if !is_gone {
                self.until_written(UNREADY_WRITE_MAX.min(grace)).await;
            }
            let drain_until = (Instant::now() + DRAIN).min(ends_at);
            self.pre_stop(ends_at).await;
            tokio::time::sleep_until(drain_until).await;
        }
        self.stop_all(ends_at.saturating_duration_since(Instant::now())).await;
        self.publish();
        if !is_gone {
            self.until_written(UNREADY_WRITE_MAX).await;
            self.remove(&pod).await;
        }
        self.shared.ipam.release(&self.plan.uid).await;
        if let Err(err) = self.dir.remove() {
            warn!(%err, "cannot remove the pod's files");
        }
    }

    /// Stops the mains together, then the sidecars in reverse order, then the sandbox.
    pub(super) async fn stop_all(&mut self, grace: Duration) {
        let ends_at = Instant::now() + grace;
        let of_role = |worker: &Self, is_main: bool| -> Vec<usize> {
            let roles = worker.plan.containers.iter().map(|c| c.role == Role::Main);
            roles.enumerate().filter(|(_, main)| *main == is_main).map(|(at, _)| at).collect()
        };
        let mains = of_role(self, true);
        let stopping = mains.iter().filter_map(|at| {
            let running = self.running.get(*at)?.as_ref()?;
            let container = std::sync::Arc::clone(&running.container);
            Some(async move { container.stop(grace).await })
        });
        join_all(stopping.collect::<Vec<_>>()).await;
        for at in mains {
            self.stop(at, Duration::ZERO).await;
        }
        for at in of_role(self, false).into_iter().rev() {
            self.stop(at, ends_at.saturating_duration_since(Instant::now())).await;
        }
        self.live.clear();
        if let Some(sandbox) = self.sandbox.take() {
            sandbox.destroy().await;
        }
    }

    /// Runs the preStop hooks of the mains, within the grace.
    async fn pre_stop(&self, ends_at: Instant) {
        let hooks = self.plan.containers.iter().enumerate().filter_map(|(at, plan)| {
            self.running.get(at)?.as_ref()?;
            let hook = plan.spec.lifecycle.as_ref()?.pre_stop.as_ref()?;
            Some((hook, &plan.spec))
        });
        let runs = hooks.map(|(hook, spec)| async move {
            if let Some(pause) = &hook.sleep {
                tokio::time::sleep(crate::agent::pod::plan::seconds(pause.seconds)).await;
            }
            if let (Some(get), Some(ip)) = (&hook.http_get, self.state.ips.first())
                && let Err(reason) = http_get(&*self.shared.network, get, spec, *ip).await
            {
                warn!(k8s.container.name = spec.name, reason, "preStop hook failed");
            }
        });
        let _ = tokio::time::timeout_at(ends_at, join_all(runs.collect::<Vec<_>>())).await;
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
