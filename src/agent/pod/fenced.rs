//! Pods that must be unique: they run only while servers hear this node, and stop by themselves
//! otherwise, before anybody replaces them.

use std::time::Duration;

use edgeorc_runtime::MayRun;
use futures_util::future::join_all;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::agent::fence::Stretch;
use crate::agent::pod::api::PodApiError;
use crate::agent::pod::decide::Due;
use crate::agent::pod::worker::Worker;

/// Pause between two tries to ask whether the pod is still this node's.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// Time that pulls get to let go.
const FETCHES_GRACE: Duration = Duration::from_millis(500);

impl Worker {
    /// Whether the pod must not run now. Asks the clock: to be called before each act.
    pub(super) fn is_fenced_off(&self) -> bool {
        self.plan.is_fenced
            && (self.confirmed.is_none() || self.shared.fence.open() != self.confirmed)
    }

    /// What the runtime asks before each stretch of a container's running: nobody has to act in time. A
    /// process that stood still, and with it its guests, goes on where it was.
    pub(super) fn may_run(&self) -> Option<MayRun> {
        let (fence, confirmed) = (self.shared.fence.clone(), self.confirmed);
        self.plan.is_fenced.then(|| MayRun::new(move || fence.open() == confirmed))
    }

    /// Stops what runs, without grace, then waits until a server has said that the pod is still this
    /// node's, that somebody wants it to go, or that the agent stops.
    pub(super) async fn stand_back(&mut self, cancel: &CancellationToken) {
        self.confirmed = None;
        if self.running.iter().any(Option::is_some) {
            warn!("no server hears this node: the pod, which must be unique, is stopped");
            self.stop_at_once().await;
            self.publish();
        }
        let mut fence = self.shared.fence.changed();
        while !cancel.is_cancelled() && !self.is_deleted() && self.confirmed.is_none() {
            let is_answered = match self.shared.fence.open() {
                Some(stretch) => self.ask(stretch).await,
                None => false,
            };
            if self.confirmed.is_some() {
                info!("the pod is this node's");
                return;
            }
            let again = async {
                if is_answered {
                    // What comes next is in the pod's own watch.
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(ASK_AGAIN).await;
            };
            tokio::select! {
                () = cancel.cancelled() => {}
                changed = self.seen.changed() => if changed.is_err() { return },
                _ = fence.changed() => {}
                () = again => {}
            }
        }
    }

    /// Asks a server for the pod as it is now. Returns whether there was an answer.
    ///
    /// The heartbeat that opened the fence came first: whoever replaces this pod has marked it deleted
    /// long before, which the answer shows.
    async fn ask(&mut self, stretch: Stretch) -> bool {
        match self.shared.api.get(&self.pod()).await {
            Ok(fresh) => {
                let is_ours = fresh.metadata.deletion_timestamp.is_none();
                self.confirmed = is_ours.then_some(stretch);
                true
            }
            Err(PodApiError::Gone) => true,
            Err(err) => {
                debug!(%err, "not known yet whether the pod is still this node's");
                false
            }
        }
    }

    /// Stops everything in the pod, without hooks and grace, and makes it ready to start again.
    async fn stop_at_once(&mut self) {
        let stopping = self.running.iter().flatten().map(|running| {
            running.probes.cancel();
            let container = std::sync::Arc::clone(&running.container);
            async move { container.stop(Duration::ZERO).await }
        });
        join_all(stopping.collect::<Vec<_>>()).await;
        for at in 0..self.running.len() {
            self.note_end(at).await;
        }
        self.live.clear();
        if let Some(sandbox) = self.sandbox.take() {
            sandbox.destroy().await;
        }
        self.fetches.shutdown(FETCHES_GRACE).await;
        self.fetches = self.tasks.child();
        for due in self.due.iter_mut().filter(|due| **due == Due::Coming) {
            *due = Due::Now;
        }
    }

    /// Stops the pod within its grace, which ends at once should the fence close meanwhile.
    pub(super) async fn stop_within_fence(&mut self, ends_at: Instant, not_before: Instant) {
        let grace = ends_at.saturating_duration_since(Instant::now());
        if !self.plan.is_fenced {
            return self.stop_all(grace, not_before).await;
        }
        let (fence, confirmed) = (self.shared.fence.clone(), self.confirmed);
        let over = async move {
            if let Some(stretch) = confirmed {
                fence.ended(stretch).await;
            }
        };
        let is_stopped = tokio::select! {
            biased;
            () = over => false,
            () = self.stop_all(grace, not_before) => true,
        };
        if !is_stopped {
            self.stop_at_once().await;
        }
    }
}
