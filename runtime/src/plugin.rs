//! Plugins of the scheduler: components that compute and reach nothing.
//!
//! Data in: compiled code, pods and nodes as plain values. Data out: a verdict, or points.
//!
//! # Invariants
//!
//! - Nothing is offered to a plugin: calling whatever it imports ends the call.
//! - No call takes longer than it was given, or more memory than the plugin may have.
//! - An instance that a call ended by force is never used again.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::{InstancePre, Linker};
use wasmtime::{Engine, Store, Trap};

use self::generated::exports::edgeorc::scheduler::plugin as wit;
use crate::code::deserialize;
use crate::engine::Plan;
use crate::limits::{Gauge, Gauges, MemoryLimiter};
use crate::machine::Machine;
use crate::meter::{Pulse, TICK, Ticker};
use crate::types::StartError;

/// What a plugin may hand over in one call, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Calls after which an instance is replaced, so that what it leaks goes.
const CALLS_PER_INSTANCE_MAX: u32 = 100_000;

#[allow(clippy::all, unreachable_pub, missing_debug_implementations, reason = "generated")]
mod generated {
    wasmtime::component::bindgen!({
        path: "wit/scheduler.wit",
        world: "edgeorc:scheduler/scheduler-plugin",
    });
}

/// A pod, as far as plugins hear of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PluginPod {
    /// Its namespace.
    pub namespace: String,
    /// Its labels, by name.
    pub labels: Vec<(String, String)>,
    /// Its priority.
    pub priority: i32,
    /// Images of its containers.
    pub images: Vec<String>,
    /// `cpu` in thousandths of a core, `memory` and `ephemeral-storage` in bytes, others counted.
    pub requests: Vec<(String, i64)>,
}

/// A node, as far as plugins hear of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PluginNode {
    /// Its name.
    pub name: String,
    /// Its labels, by name.
    pub labels: Vec<(String, String)>,
    /// Key, value and effect of each of its taints.
    pub taints: Vec<(String, String, String)>,
    /// As a pod's requests.
    pub allocatable: Vec<(String, i64)>,
}

/// Why a plugin gave no answer. The next call has a new instance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PluginError {
    /// It computed for longer than it was given.
    #[error("it gave no answer within {} ms", .0.as_millis())]
    Late(Duration),
    /// It wanted more memory than it may have.
    #[error("it wanted more than its {0} bytes of memory")]
    Memory(u64),
    /// It trapped, called something that is not there, or its answer cannot be read.
    #[error("it failed: {0}")]
    Failed(String),
}

/// Loads plugins. One engine with a thread that sleeps while no plugin runs; cheap to clone.
#[derive(Debug, Clone)]
pub struct PluginEngine {
    engine: Engine,
    ticker: Arc<Ticker>,
    memory_bytes_max: usize,
}

impl PluginEngine {
    /// For code that was compiled for the sandboxes of this `machine`.
    ///
    /// # Errors
    ///
    /// [`StartError::Host`] when the engine or its thread cannot be made.
    pub fn new(machine: Machine) -> Result<Self, StartError> {
        let plan = Plan::new(machine);
        plan.try_executor()?;
        // No pool: plugins are few and stay.
        let engine =
            plan.compiler().map_err(|error| StartError::Host(format!("no engine: {error:#}")))?;
        let ticker = Arc::new(Ticker::start(&engine)?);
        Ok(Self { engine, ticker, memory_bytes_max: plan.memory_bytes_max })
    }

    /// Loads compiled code, and tries whether it can be instantiated with `memory_bytes_max` bytes of
    /// memory within `time_max`. Blocks.
    ///
    /// # Errors
    ///
    /// [`StartError`]: it is no plugin, or does not start.
    pub fn load(
        &self,
        code: &Path,
        memory_bytes_max: u64,
        time_max: Duration,
    ) -> Result<SchedulerPlugin, StartError> {
        let unsupported =
            |error: wasmtime::Error| StartError::Unsupported { reason: format!("{error:#}") };
        let component = deserialize(&self.engine, code).map_err(unsupported)?;
        let mut linker = Linker::new(&self.engine);
        linker.define_unknown_imports_as_traps(&component).map_err(unsupported)?;
        let pre = linker.instantiate_pre(&component).map_err(unsupported)?;
        let exports = wit::GuestIndices::new(&pre).map_err(unsupported)?;
        let mut plugin =
            SchedulerPlugin { engine: self.clone(), pre, exports, memory_bytes_max, live: None };
        let tried = plugin.run(time_max, |_, _| Ok(()));
        tried.map_err(|error| StartError::Unsupported { reason: error.to_string() })?;
        Ok(plugin)
    }
}

/// What wasmtime keeps for a plugin.
struct State {
    limiter: MemoryLimiter,
}

struct Live {
    store: Store<State>,
    guest: wit::Guest,
    calls: u32,
}

/// A plugin with an instance that answers one call after the other.
pub struct SchedulerPlugin {
    engine: PluginEngine,
    pre: InstancePre<State>,
    exports: wit::GuestIndices,
    memory_bytes_max: u64,
    live: Option<Live>,
}

impl std::fmt::Debug for SchedulerPlugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SchedulerPlugin").finish_non_exhaustive()
    }
}

impl SchedulerPlugin {
    /// Whether the pod may go to the node, or why not. Blocks for `time_max` at most, and a few
    /// milliseconds.
    ///
    /// # Errors
    ///
    /// [`PluginError`].
    pub fn filter(
        &mut self,
        pod: &PluginPod,
        node: &PluginNode,
        time_max: Duration,
    ) -> Result<Result<(), String>, PluginError> {
        let (pod, node) = (pod.to_wit(), node.to_wit());
        self.run(time_max, |guest, store| guest.call_filter(store, &pod, &node))
    }

    /// The points of the node for the pod, as the plugin says them. Blocks as [`Self::filter`].
    ///
    /// # Errors
    ///
    /// [`PluginError`].
    pub fn score(
        &mut self,
        pod: &PluginPod,
        node: &PluginNode,
        time_max: Duration,
    ) -> Result<i64, PluginError> {
        let (pod, node) = (pod.to_wit(), node.to_wit());
        self.run(time_max, |guest, store| guest.call_score(store, &pod, &node))
    }

    /// Calls into the instance, which is made if there is none; one that failed is dropped.
    fn run<T>(
        &mut self,
        time_max: Duration,
        call: impl FnOnce(&wit::Guest, &mut Store<State>) -> wasmtime::Result<T>,
    ) -> Result<T, PluginError> {
        let ticks = u64::try_from(time_max.as_millis() / TICK.as_millis()).unwrap_or(u64::MAX);
        let _running = Running::begin(self.engine.ticker.pulse());
        let mut live = match self.live.take() {
            Some(mut live) => {
                live.store.set_epoch_deadline(ticks.saturating_add(1));
                live
            }
            None => self.start(ticks, time_max)?,
        };
        live.store.set_hostcall_fuel(ANSWER_BYTES_MAX);
        let answer = call(&live.guest, &mut live.store)
            .map_err(|error| self.judge(&error, &live.store, time_max))?;
        live.calls += 1;
        if live.calls < CALLS_PER_INSTANCE_MAX {
            self.live = Some(live);
        }
        Ok(answer)
    }

    fn start(&self, ticks: u64, time_max: Duration) -> Result<Live, PluginError> {
        let gauges = Gauges {
            container: Gauge::new(Some(self.memory_bytes_max)),
            pod: Gauge::new(None),
            node: Gauge::new(None),
        };
        let limiter = MemoryLimiter::new(gauges, self.engine.memory_bytes_max);
        let mut store = Store::new(&self.engine.engine, State { limiter });
        store.limiter(|state| &mut state.limiter);
        store.epoch_deadline_trap();
        store.set_epoch_deadline(ticks.saturating_add(1));
        let made = self.pre.instantiate(&mut store);
        let made = made.and_then(|instance| self.exports.load(&mut store, &instance));
        match made {
            Ok(guest) => Ok(Live { store, guest, calls: 0 }),
            Err(error) => Err(self.judge(&error, &store, time_max)),
        }
    }

    fn judge(
        &self,
        error: &wasmtime::Error,
        store: &Store<State>,
        time_max: Duration,
    ) -> PluginError {
        let trap = error.downcast_ref::<Trap>();
        if trap == Some(&Trap::Interrupt) {
            return PluginError::Late(time_max);
        }
        if store.data().limiter.is_hit() {
            return PluginError::Memory(self.memory_bytes_max);
        }
        // The whole chain has the names of the guest's functions in it; the cause says it all.
        PluginError::Failed(error.root_cause().to_string())
    }
}

/// The engine's epoch is raised for as long as this lives.
struct Running<'a>(&'a Pulse);

impl<'a> Running<'a> {
    fn begin(pulse: &'a Pulse) -> Self {
        pulse.enter();
        Self(pulse)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl PluginPod {
    fn to_wit(&self) -> wit::Pod {
        wit::Pod {
            namespace: self.namespace.clone(),
            labels: self.labels.clone(),
            priority: self.priority,
            images: self.images.clone(),
            requests: self.requests.clone(),
        }
    }
}

impl PluginNode {
    fn to_wit(&self) -> wit::Node {
        let taint = |(key, value, effect): &(String, String, String)| wit::Taint {
            key: key.clone(),
            value: value.clone(),
            effect: effect.clone(),
        };
        wit::Node {
            name: self.name.clone(),
            labels: self.labels.clone(),
            taints: self.taints.iter().map(taint).collect(),
            allocatable: self.allocatable.clone(),
        }
    }
}
