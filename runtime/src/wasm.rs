//! The runtime in production: wasmtime.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;

use crate::network::VirtualNetwork;
use crate::types::{Counters, Pod, PodConfig, PodRuntime, StartError, Uplink};

/// Tells the time for people: log stamps and the guests' wall clock.
pub type WallClock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// Settings of a [`WasmRuntime`].
#[derive(Clone)]
pub struct RuntimeConfig {
    /// Threads that run guests. `None`: one less than the machine has cores, at least one.
    pub guest_threads: Option<usize>,
    /// Niceness of those threads, 0 to 19. Default 5: guests yield to the control plane.
    pub niceness: i32,
    /// Source of wall time.
    pub wall_clock: WallClock,
}

impl RuntimeConfig {
    /// The defaults with this clock.
    #[must_use]
    pub fn new(wall_clock: WallClock) -> Self {
        Self { guest_threads: None, niceness: 5, wall_clock }
    }
}

impl std::fmt::Debug for RuntimeConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RuntimeConfig")
            .field("guest_threads", &self.guest_threads)
            .field("niceness", &self.niceness)
            .finish_non_exhaustive()
    }
}

/// Runs pods in wasmtime.
#[derive(Debug)]
pub struct WasmRuntime {}

impl WasmRuntime {
    /// Probes the machine, makes the engine and starts the guests' threads.
    ///
    /// # Errors
    ///
    /// [`StartError::Host`] when the engine or the threads cannot be made.
    pub fn new(
        _config: RuntimeConfig,
        _uplink: Arc<dyn Uplink>,
        _network: Arc<VirtualNetwork>,
    ) -> Result<Self, StartError> {
        Ok(Self {})
    }

    /// What was found out about the machine and chosen for it, as one line for people.
    #[must_use]
    pub fn machine(&self) -> String {
        String::new()
    }

    /// Counts since start, for metrics.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters::new()
    }
}

#[async_trait]
impl PodRuntime for WasmRuntime {
    async fn create(&self, _pod: PodConfig) -> Result<Arc<dyn Pod>, StartError> {
        Err(StartError::Host("not built".into()))
    }

    fn compatibility_hash(&self) -> String {
        crate::compile::compatibility_hash()
    }
}
