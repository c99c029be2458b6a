//! The guests' threads: the only place of this crate that starts tasks and threads.
//!
//! # Invariants
//!
//! - Guests and everything they wait for run here, at lower priority than the control plane.
//! - A guest that computes for longer than a tick does so on the batch threads, which run only where
//!   nothing else wants to (`SCHED_IDLE` of Linux): see [`crate::lanes`].
//! - Every task is tracked, so that an owner can wait for its end.

use std::cell::Cell;
use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use thread_priority::{NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;

use crate::lanes::Lane;
use crate::types::StartError;

/// Threads for blocking file access of guests and for log files.
const BLOCKING_THREADS_MAX: usize = 16;

thread_local! {
    static LANE: Cell<Option<Lane>> = const { Cell::new(None) };
}

/// The lane that this thread belongs to, if it is one of the guests'.
pub(crate) fn lane_of_this_thread() -> Option<Lane> {
    LANE.get()
}

/// Owner of the guests' threads.
#[derive(Debug)]
pub(crate) struct Guests {
    interactive: Threads,
    batch: Threads,
}

/// The threads of one lane.
#[derive(Debug)]
struct Threads {
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

impl Threads {
    fn start(lane: Lane, threads: usize, niceness: i32) -> Result<Self, StartError> {
        let mut builder = Builder::new_multi_thread();
        let name = match lane {
            Lane::Interactive => "edgeorc-guest",
            Lane::Batch => "edgeorc-batch",
        };
        builder
            .thread_name(name)
            .worker_threads(threads.max(1))
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .on_thread_start(move || {
                LANE.set(Some(lane));
                set_priority(lane, niceness);
            });
        let runtime = builder
            .enable_all()
            .build()
            .map_err(|error| StartError::Host(format!("cannot start guest threads: {error}")))?;
        let handle = runtime.handle().clone();
        Ok(Self { runtime: Mutex::new(Some(runtime)), handle })
    }
}

/// Lowers the priority of this thread. Refusal costs fairness, not correctness: giving up priority is
/// always allowed.
fn set_priority(lane: Lane, niceness: i32) {
    if lane == Lane::Batch {
        let policy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
        let this = thread_priority::thread_native_id();
        let lowest = ThreadPriority::Min;
        let _ = thread_priority::set_thread_priority_and_policy(this, lowest, policy);
    } else {
        // On Linux this is the calling thread alone.
        let _ = rustix::process::setpriority_process(None, niceness);
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.lock().take() {
            runtime.shutdown_background();
        }
    }
}

impl Guests {
    /// Starts `threads` threads for each lane.
    pub(crate) fn start(threads: usize, niceness: i32) -> Result<Self, StartError> {
        Ok(Self {
            interactive: Threads::start(Lane::Interactive, threads, niceness)?,
            batch: Threads::start(Lane::Batch, threads, niceness)?,
        })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.interactive.handle
    }

    /// Starts a task on the guests' threads. Its end is its owner's business: every caller hands
    /// it a cancellation token or bounds its life by a connection or a pod.
    pub(crate) fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.spawn_in(Lane::Interactive, future)
    }

    /// As [`Guests::spawn`], on the threads of `lane`.
    pub(crate) fn spawn_in<F>(&self, lane: Lane, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        match lane {
            Lane::Interactive => self.interactive.handle.spawn(future),
            Lane::Batch => self.batch.handle.spawn(future),
        }
    }

    /// Runs blocking work on the guests' blocking threads.
    pub(crate) fn spawn_blocking<F, R>(&self, work: F) -> JoinHandle<R>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Send + 'static,
    {
        self.interactive.handle.spawn_blocking(work)
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
