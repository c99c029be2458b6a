//! Threads of their own for tasks that must not wait for their turn behind those of all others.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

/// A runtime beside the main one; its tasks are spawned by [`crate::rt::TaskGroup::spawn_on`].
///
/// Dropping it ends what still runs there, without waiting for it.
#[derive(Debug)]
pub struct Threads {
    /// Taken when dropped, because a runtime must not be dropped where tasks run.
    runtime: Option<Runtime>,
    handle: Handle,
}

impl Threads {
    /// Starts `workers` threads called `name`, and up to `blocking_max` for what waits for a disk.
    ///
    /// # Errors
    ///
    /// What the system says when it refuses a thread or a descriptor.
    pub fn start(name: &str, workers: usize, blocking_max: usize) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .thread_name(name)
            .worker_threads(workers)
            .max_blocking_threads(blocking_max)
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        Ok(Self { runtime: Some(runtime), handle })
    }

    /// Where to spawn.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::rt::TaskGroup;

    #[tokio::test]
    async fn tasks_run_on_them_while_all_other_threads_are_taken() {
        let threads = Threads::start("apart", 1, 1).unwrap();
        let tasks = TaskGroup::new(&CancellationToken::new());
        let (tell, mut told) = oneshot::channel();
        tasks.spawn_on(threads.handle(), "tells", |_| async move {
            let _ = tell.send(std::thread::current().name().map(str::to_owned));
        });
        // The only thread of this test's own runtime waits here.
        let name = loop {
            match told.try_recv() {
                Err(oneshot::error::TryRecvError::Empty) => std::thread::yield_now(),
                name => break name,
            }
        };
        assert_eq!(name.unwrap().as_deref(), Some("apart"));
        // A runtime may not be dropped where tasks run; this may.
        drop(threads);
    }
}
