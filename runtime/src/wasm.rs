//! The runtime in production: wasmtime.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use wasmtime::Engine;

use crate::code::Code;
use crate::engine::{self, Plan};
use crate::keyvalue::{KeyValue, NoKeyValue};
use crate::limits::Gauge;
use crate::machine::Machine;
use crate::meter::Ticker;
use crate::network::{PodNet, VirtualNetwork};
use crate::pod::WasmPod;
use crate::shares::Shares;
use crate::tasks::{GuestThreads, Guests};
use crate::tls::NodeTrust;
use crate::types::{Counters, Pod, PodConfig, PodRuntime, StartError, Uplink};
use crate::volumes::Volumes;

/// Tells the time for people: log stamps and the guests' wall clock.
pub type WallClock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// Requests that an HTTP instance answers before it is replaced.
const REQUESTS_PER_INSTANCE_MAX: usize = 100_000;
/// Time in which an HTTP instance must be made.
const START_WAIT_MAX: Duration = Duration::from_secs(60);

/// Memory kept from pods, for the node and the system, in bytes.
const MEMORY_RESERVED_BYTES: u64 = 128 << 20;

/// Settings of a [`WasmRuntime`].
#[derive(Clone)]
pub struct RuntimeConfig {
    /// Threads for guests that answer and wait, and as many for those that compute, which run when
    /// nothing else of the machine wants to. `None`: as many as it has cores.
    pub guest_threads: Option<usize>,
    /// Source of wall time.
    pub wall_clock: WallClock,
    /// Where the buckets of `wasi:keyvalue` live. Default: nowhere.
    pub keyvalue: Arc<dyn KeyValue>,
    /// Requests after which an HTTP instance is replaced, so that what it leaks goes. Default
    /// 100,000.
    pub requests_per_instance_max: usize,
    /// Time in which an HTTP instance must be made, its start functions included. Default 60 s:
    /// interpreters on small machines take their time.
    pub start_wait_max: Duration,
    /// Address bits that the sandboxes are planned for, if fewer than the machine has. Default: all.
    /// Compiled code must be made for the same: [`crate::compile_file_for`].
    pub address_bits_max: Option<u32>,
    /// Whether guests are interpreted although this machine could run native code, as they are on
    /// machines that cannot. Default: no. Compiled code must be made for the same.
    pub is_interpreted: bool,
    /// Linear memory of all pods together, in bytes; a guest that wants more is out of memory,
    /// whatever its own limit says. Default: what the machine has, less 128 MiB for the node and
    /// the system, but at least half.
    pub memory_bytes_max: Option<u64>,
}

impl RuntimeConfig {
    /// The defaults with this clock.
    #[must_use]
    pub fn new(wall_clock: WallClock) -> Self {
        Self {
            guest_threads: None,
            wall_clock,
            keyvalue: Arc::new(NoKeyValue),
            requests_per_instance_max: REQUESTS_PER_INSTANCE_MAX,
            start_wait_max: START_WAIT_MAX,
            address_bits_max: None,
            is_interpreted: false,
            memory_bytes_max: None,
        }
    }
}

impl std::fmt::Debug for RuntimeConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RuntimeConfig")
            .field("guest_threads", &self.guest_threads)
            .finish_non_exhaustive()
    }
}

fn memory_of_pods(machine_bytes: u64) -> u64 {
    machine_bytes.saturating_sub(MEMORY_RESERVED_BYTES).max(machine_bytes / 2)
}

/// What all pods share.
pub(crate) struct Core {
    pub(crate) engine: Engine,
    pub(crate) plan: Plan,
    pub(crate) code: Code,
    pub(crate) ticker: Ticker,
    pub(crate) guests: Arc<Guests>,
    pub(crate) clock: WallClock,
    pub(crate) keyvalue: Arc<dyn KeyValue>,
    pub(crate) traps: Arc<AtomicU64>,
    pub(crate) shares: Arc<Shares>,
    /// What the memory of all pods counts against.
    pub(crate) memory: Arc<Gauge>,
    /// Whom containers trust that do not say themselves.
    pub(crate) trust: Arc<NodeTrust>,
    pub(crate) quotas: Arc<Mutex<Volumes>>,
    pub(crate) requests_per_instance_max: usize,
    pub(crate) start_wait_max: Duration,
}

/// Runs pods in wasmtime.
pub struct WasmRuntime {
    core: Arc<Core>,
    uplink: Arc<dyn Uplink>,
    network: Arc<VirtualNetwork>,
    compatibility_hash: String,
}

impl std::fmt::Debug for WasmRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WasmRuntime").field("plan", &self.core.plan).finish_non_exhaustive()
    }
}

impl WasmRuntime {
    /// Probes the machine, makes the engine and starts the guests' threads.
    ///
    /// # Errors
    ///
    /// [`StartError::Host`] when the engine or the threads cannot be made.
    pub fn new(
        config: RuntimeConfig,
        uplink: Arc<dyn Uplink>,
        network: Arc<VirtualNetwork>,
    ) -> Result<Self, StartError> {
        let host = |error: wasmtime::Error| StartError::Host(format!("{error:#}"));
        let machine = Machine::probe().with_address_bits_max(config.address_bits_max);
        let machine = if config.is_interpreted { machine.interpreted() } else { machine };
        let plan = Plan::new(machine);
        plan.try_executor()?;
        let (engine, plan) = plan.engine()?;
        let memory_bytes_max =
            config.memory_bytes_max.unwrap_or_else(|| memory_of_pods(machine.memory_bytes));
        let threads = config.guest_threads.unwrap_or(plan.machine.cores);
        let core = Core {
            code: Code::new(&engine).map_err(host)?,
            ticker: Ticker::start(&engine)?,
            guests: Arc::new(Guests::start(threads)?),
            clock: config.wall_clock,
            keyvalue: config.keyvalue,
            traps: Arc::new(AtomicU64::new(0)),
            shares: Shares::new(threads),
            memory: Gauge::new(Some(memory_bytes_max)),
            trust: Arc::default(),
            quotas: Arc::default(),
            requests_per_instance_max: config.requests_per_instance_max,
            start_wait_max: config.start_wait_max,
            plan,
            engine,
        };
        let compatibility_hash = engine::compatibility_hash(&core.engine);
        Ok(Self { core: Arc::new(core), uplink, network, compatibility_hash })
    }

    /// What was found out about the machine and chosen for it, as one line for people.
    #[must_use]
    pub fn machine(&self) -> String {
        self.core.plan.to_string()
    }

    /// The threads that guests run on. A server that hands requests to guests is best run there as
    /// well: two changes of thread per request cost more than the rest of the way.
    #[must_use]
    pub fn threads(&self) -> GuestThreads {
        GuestThreads(Arc::clone(&self.core.guests))
    }

    /// Counts since start, for metrics.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let components = u64::try_from(self.core.code.count()).unwrap_or(u64::MAX);
        Counters::from([
            ("components_loaded", components),
            ("guest_traps_total", self.core.traps.load(Ordering::Relaxed)),
        ])
    }
}

#[async_trait]
impl PodRuntime for WasmRuntime {
    async fn create(&self, pod: PodConfig) -> Result<Arc<dyn Pod>, StartError> {
        let over = CancellationToken::new();
        let net = PodNet::new(
            &pod,
            Arc::clone(&self.core.guests),
            Arc::clone(&self.uplink),
            over.clone(),
        );
        self.network.attach(&net).map_err(|ip| {
            StartError::Host(format!("another pod of this node has the address {ip}"))
        })?;
        Ok(Arc::new(WasmPod::new(
            Arc::clone(&self.core),
            net,
            Arc::clone(&self.network),
            pod.memory_bytes_max,
            over,
        )))
    }

    fn compatibility_hash(&self) -> String {
        self.compatibility_hash.clone()
    }
}
