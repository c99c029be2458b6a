//! The guests' threads: the only place of this crate that starts tasks and threads.
//!
//! # Invariants
//!
//! - Guests and everything they wait for run here, at lower priority than the control plane.
//! - Every task is tracked, so that an owner can wait for its end.

use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;

use crate::types::StartError;

/// Threads for blocking file access of guests and for log files.
const BLOCKING_THREADS_MAX: usize = 16;

/// Owner of the guests' threads.
#[derive(Debug)]
pub(crate) struct Guests {
    /// Taken when dropped, because a runtime must not be dropped where tasks run.
    runtime: Mutex<Option<Runtime>>,
    handle: Handle,
}

/// The threads that guests run on, kept for as long as this lives. Cheap to clone.
#[derive(Debug, Clone)]
pub struct GuestThreads(pub(crate) Arc<Guests>);

impl GuestThreads {
    /// Where to start tasks.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        self.0.handle()
    }
}

impl Guests {
    pub(crate) fn start(threads: usize, niceness: i32) -> Result<Self, StartError> {
        let runtime = Builder::new_multi_thread()
            .thread_name("edgeorc-guest")
            .worker_threads(threads.max(1))
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .on_thread_start(move || {
                // On Linux this is the calling thread alone. Refusal costs fairness, not
                // correctness: raising niceness is always allowed.
                let _ = rustix::process::setpriority_process(None, niceness);
            })
            .enable_all()
            .build()
            .map_err(|error| StartError::Host(format!("cannot start guest threads: {error}")))?;
        let handle = runtime.handle().clone();
        Ok(Self { runtime: Mutex::new(Some(runtime)), handle })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Starts a task on the guests' threads. Its end is its owner's business: every caller hands
    /// it a cancellation token or bounds its life by a connection or a pod.
    pub(crate) fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.handle.spawn(future)
    }

    /// Runs blocking work on the guests' blocking threads.
    pub(crate) fn spawn_blocking<F, R>(&self, work: F) -> JoinHandle<R>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Send + 'static,
    {
        self.handle.spawn_blocking(work)
    }
}

impl Drop for Guests {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.lock().take() {
            runtime.shutdown_background();
        }
    }
}

/// Starts a named thread of normal priority.
pub(crate) fn start_thread(
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> Result<std::thread::JoinHandle<()>, StartError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .stack_size(64 << 10)
        .spawn(body)
        .map_err(|error| StartError::Host(format!("cannot start thread {name}: {error}")))
}
