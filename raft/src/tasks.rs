//! The one place that spawns: every task has a name, this owner, and ends with its token.

use std::future::Future;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Owner of a replica's tasks. Dropping the last clone of the guard's token ends them.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    token: CancellationToken,
    tracker: TaskTracker,
}

impl Tasks {
    /// The token every task of this owner watches.
    pub(crate) fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Starts a task; it must return soon after [`Tasks::token`] is cancelled.
    #[expect(clippy::disallowed_methods, reason = "this is the owner the lint asks for")]
    pub(crate) fn spawn(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let task = self.tracker.track_future(async move {
            tracing::debug!(task.name = name, "task started");
            task.await;
            tracing::debug!(task.name = name, "task ended");
        });
        drop(tokio::spawn(task));
    }

    /// Tells every task to end and waits until all have.
    pub(crate) async fn shutdown(&self) {
        self.token.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.token.cancel();
    }
}
