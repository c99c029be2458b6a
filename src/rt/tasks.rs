//! A bounded number of short-lived tasks that come and go: connections, pods, requests.

use std::future::Future;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::instrument::Instrumented;
use tracing::{Instrument, debug_span, info_span, warn};

/// Owns tasks that start and end while their owner runs. Cheap to clone; all clones are one group.
///
/// For the fixed tasks of a role use [`crate::rt::Supervisor`], which reports how each one ended.
#[derive(Debug, Clone)]
pub struct TaskGroup {
    tracker: TaskTracker,
    cancel: CancellationToken,
}

impl TaskGroup {
    /// A group whose tasks end when `parent` is cancelled, or at [`Self::shutdown`].
    #[must_use]
    pub fn new(parent: &CancellationToken) -> Self {
        Self { tracker: TaskTracker::new(), cancel: parent.child_token() }
    }

    /// A group within this one: ends with it, can be ended alone.
    #[must_use]
    pub fn child(&self) -> Self {
        Self::new(&self.cancel)
    }

    /// The token that ends the group's tasks.
    #[must_use]
    pub fn token(&self) -> &CancellationToken {
        &self.cancel
    }

    /// Runs `task` under `name`. The closure gets the token it must obey: nothing ends a task that
    /// does not listen, [`Self::shutdown`] only stops waiting for it. See
    /// [`Self::spawn_until_cancelled`] for bodies that need not listen.
    pub fn spawn<F, Fut>(&self, name: &'static str, task: F)
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.tracker.spawn(self.named(name, task));
    }

    /// As [`Self::spawn`], on the threads of another runtime.
    pub fn spawn_on<F, Fut>(&self, threads: &Handle, name: &'static str, task: F)
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.tracker.spawn_on(self.named(name, task), threads);
    }

    /// As [`Self::spawn`], for tasks that are woken for every request: entering the span of a task
    /// takes longer than what some of them do. It is only there when the log level is debug.
    pub fn spawn_hot<F, Fut>(&self, name: &'static str, task: F)
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.tracker.spawn(self.hot(name, task));
    }

    /// As [`Self::spawn_hot`], on the threads of another runtime.
    pub fn spawn_hot_on<F, Fut>(&self, threads: &Handle, name: &'static str, task: F)
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.tracker.spawn_on(self.hot(name, task), threads);
    }

    fn hot<F, Fut>(&self, name: &'static str, task: F) -> Instrumented<Fut>
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        task(self.cancel.child_token()).instrument(debug_span!("task", task.name = name))
    }

    fn named<F, Fut>(&self, name: &'static str, task: F) -> Instrumented<Fut>
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        task(self.cancel.child_token()).instrument(info_span!("task", task.name = name))
    }

    /// Runs `task` until it ends or the group is cancelled, whichever is first.
    ///
    /// For bodies that need no clean-up of their own: the future is dropped at cancellation.
    pub fn spawn_until_cancelled<Fut>(&self, name: &'static str, task: Fut)
    where
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.spawn(name, |cancel| async move {
            let _ = cancel.run_until_cancelled(task).await;
        });
    }

    /// Runs `work`, which may block, on a thread for such, and waits for it. `None`: it panicked,
    /// or the process ends.
    ///
    /// # Cancel safety
    ///
    /// Work that has begun goes on to its end when the future is dropped: the group counts it, and
    /// [`Self::shutdown`] waits for it. Whatever it must hold meanwhile, it has to own.
    pub async fn block<T, F>(&self, name: &'static str, work: F) -> Option<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let span = info_span!("task", task.name = name);
        let done = self.tracker.spawn_blocking(move || span.in_scope(work)).await;
        done.inspect_err(|err| warn!(task.name = name, %err, "blocking work did not end")).ok()
    }

    /// How many tasks run now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    /// Whether no task runs now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }

    /// Cancels every task and waits for them, at most `grace`.
    pub async fn shutdown(&self, grace: Duration) {
        self.cancel.cancel();
        self.tracker.close();
        if tokio::time::timeout(grace, self.tracker.wait()).await.is_err() {
            warn!(tasks = self.tracker.len(), "grace period over with tasks left");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn blocking_work_goes_on_without_its_caller_and_the_group_waits_for_it() {
        let group = TaskGroup::new(&CancellationToken::new());
        assert_eq!(group.block("adds", || 1 + 1).await, Some(2));
        let (go, gate) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        {
            let blocked = group.block("waits", move || {
                let _ = gate.recv();
                let _ = tell.send("done");
            });
            let gone = tokio::time::timeout(Duration::from_millis(1), blocked);
            tokio::select! {
                biased;
                _ = gone => {}
                () = std::future::ready(()) => {}
            }
        }
        assert_eq!(group.len(), 1);
        drop(go);
        group.shutdown(Duration::from_secs(60)).await;
        assert!(group.is_empty());
        assert_eq!(told.try_recv(), Ok("done"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_ends_its_tasks_and_leaves_its_parent_running() {
        let parent = CancellationToken::new();
        let group = TaskGroup::new(&parent);
        group.spawn_until_cancelled("waits", std::future::pending());
        assert_eq!(group.len(), 1);
        group.shutdown(Duration::from_secs(1)).await;
        assert!(group.is_empty());
        assert!(!parent.is_cancelled());
    }
}
