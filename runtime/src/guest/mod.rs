//! One guest: the data of its store, and the template from which a container's stores are made.
//!
//! Data in: a container's configuration, its pod's network and limits. Data out: stores with
//! exactly the capabilities that the configuration names.
//!
//! # Invariants
//!
//! - A store holds nothing of the host but what is listed in [`Guest`].
//! - Every store of a container is limited, metered and interruptible from its first instruction.

mod exit;
mod outgoing;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wasmtime::component::ResourceTable;
use wasmtime::{Engine, Store};
use wasmtime_wasi::cli::AsyncStdinStream;
use wasmtime_wasi::{FsPerms, HostWallClock, WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_config::{WasiConfig, WasiConfigVariables};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

pub(crate) use self::exit::{exit_of_code, exit_of_error, is_out_of_slots, killed};
use self::outgoing::OutgoingHttp;
use crate::keyvalue::{KeyValue, KeyValueView};
use crate::limits::{Gauge, Gauges, MemoryLimiter};
use crate::logs::{Channel, Log, LogStream};
use crate::meter::{Burst, Meter, Pulse};
use crate::network::{Intake, PodNet};
use crate::serve::Reuse;
use crate::stdio::Pipes;
use crate::tasks::Guests;
use crate::tls::{Tls, Trust};
use crate::types::{ContainerConfig, Exit, ExitReason};
use crate::volumes::Quotas;
use crate::wasm::WallClock;

/// Handles that one guest may hold: sockets, streams, requests, bodies.
const RESOURCES_MAX: usize = 8 << 10;
/// What a guest may hand over in one call, in bytes: the host has to copy it before it can judge it.
const CALL_BYTES_MAX: usize = 4 << 20;
/// Calls and streams of WASI 0.3 that one guest may have under way: each keeps what was handed over.
const CONCURRENT_MAX: usize = 4096;
/// Random bytes of one call; a guest that asks for more traps.
const RANDOM_BYTES_MAX: u64 = 1 << 20;
/// Size of the headers or trailers of one HTTP message in memory; more is a `header-error`.
const HEADERS_BYTES_MAX: usize = 128 << 10;

/// The data of one store.
pub(crate) struct Guest {
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    outgoing: OutgoingHttp,
    limiter: MemoryLimiter,
    burst: Arc<Burst>,
    net: Arc<PodNet>,
    intake: Intake,
    config: Arc<WasiConfigVariables>,
    buckets: Option<Arc<BTreeSet<String>>>,
    keyvalue: Arc<dyn KeyValue>,
    quotas: Quotas,
    tls: Tls,
}

impl Guest {
    pub(crate) fn burst(&self) -> &Arc<Burst> {
        &self.burst
    }

    pub(crate) fn limiter(&self) -> &MemoryLimiter {
        &self.limiter
    }

    /// What the host functions for sockets work on.
    pub(crate) fn sockets(&mut self) -> crate::sockets::SocketsView<'_> {
        self.burst.touch();
        let Self { table, net, intake, .. } = self;
        crate::sockets::SocketsView { table, net, intake }
    }

    /// Where it may block on files.
    pub(crate) fn threads(&self) -> &Arc<Guests> {
        self.net.guests()
    }

    /// Limits of the volumes that it sees.
    pub(crate) fn quotas(&self) -> &Quotas {
        &self.quotas
    }

    /// What the host functions for configuration work on.
    pub(crate) fn config(&mut self) -> WasiConfig<'_> {
        WasiConfig::new(&self.config)
    }

    /// What the host functions for buckets work on.
    pub(crate) fn keyvalue(&mut self) -> KeyValueView<'_> {
        self.burst.touch();
        KeyValueView {
            table: &mut self.table,
            pod: self.net.id(),
            granted: self.buckets.as_deref(),
            store: &self.keyvalue,
        }
    }

    /// What the host functions for TLS work on.
    pub(crate) fn tls_and_table(&mut self) -> (&mut Tls, &mut ResourceTable) {
        self.burst.touch();
        (&mut self.tls, &mut self.table)
    }

    /// What the host functions for streams and pollables work on.
    pub(crate) fn table(&mut self) -> &mut ResourceTable {
        self.burst.touch();
        &mut self.table
    }
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.burst.touch();
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for Guest {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        self.burst.touch();
        WasiHttpCtxView { hooks: &mut self.outgoing, table: &mut self.table, ctx: &mut self.http }
    }
}

struct WallClockOfHost(WallClock);

impl HostWallClock for WallClockOfHost {
    fn resolution(&self) -> Duration {
        Duration::from_nanos(1)
    }

    fn now(&self) -> Duration {
        (self.0)().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

/// What a container's stores are made of.
pub(crate) struct Template {
    pub(crate) engine: Engine,
    pub(crate) config: ContainerConfig,
    pub(crate) net: Arc<PodNet>,
    /// TCP connections that the container has taken.
    pub(crate) taken: TaskTracker,
    pub(crate) log: Arc<Log>,
    /// Standard streams that are not the log's.
    pub(crate) pipes: Pipes,
    pub(crate) meter: Arc<Meter>,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) memory: Arc<Gauge>,
    pub(crate) pod_memory: Arc<Gauge>,
    pub(crate) node_memory: Arc<Gauge>,
    /// Size that one memory can grow to on this engine, in bytes.
    pub(crate) memory_bytes_max: usize,
    /// Instances that an HTTP container may have at the same time.
    pub(crate) instances_max: usize,
    /// Requests after which one of them is replaced.
    pub(crate) requests_per_instance_max: usize,
    /// Time in which one of them must be made.
    pub(crate) start_wait_max: Duration,
    pub(crate) clock: WallClock,
    pub(crate) keyvalue: Arc<dyn KeyValue>,
    /// What `wasi:config` answers, and the buckets: of the configuration, shared by all stores.
    pub(crate) values: Arc<WasiConfigVariables>,
    pub(crate) buckets: Option<Arc<BTreeSet<String>>>,
    pub(crate) quotas: Quotas,
    /// Whom its TLS sessions trust.
    pub(crate) trust: Arc<Trust>,
    /// What is known of the component's instances.
    pub(crate) reuse: Arc<Reuse>,
    /// Ends the container at once.
    pub(crate) kill: CancellationToken,
    /// Counts traps for the metrics.
    pub(crate) traps: Arc<std::sync::atomic::AtomicU64>,
}

impl Template {
    pub(crate) fn config(&self) -> &ContainerConfig {
        &self.config
    }

    pub(crate) fn net(&self) -> &Arc<PodNet> {
        &self.net
    }

    pub(crate) fn kill(&self) -> &CancellationToken {
        &self.kill
    }

    /// Memory at which an HTTP instance takes no further request, in bytes: two thirds of what it
    /// may have.
    pub(crate) fn memory_mark(&self) -> u64 {
        let slot = u64::try_from(self.memory_bytes_max).unwrap_or(u64::MAX);
        self.memory.max().unwrap_or(u64::MAX).min(slot) / 3 * 2
    }

    /// A fresh store.
    ///
    /// # Errors
    ///
    /// A mount that cannot be opened.
    pub(crate) fn store(&self) -> wasmtime::Result<Store<Guest>> {
        let burst = Burst::new(Arc::clone(&self.meter), Arc::clone(&self.pulse));
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(HEADERS_BYTES_MAX);
        let mut table = ResourceTable::new();
        table.set_max_capacity(RESOURCES_MAX);
        let guest = Guest {
            table,
            wasi: self.wasi()?,
            http,
            outgoing: OutgoingHttp::new(Arc::clone(&self.net)),
            limiter: MemoryLimiter::new(
                Gauges {
                    container: Arc::clone(&self.memory),
                    pod: Arc::clone(&self.pod_memory),
                    node: Arc::clone(&self.node_memory),
                },
                self.memory_bytes_max,
            ),
            burst: Arc::clone(&burst),
            net: Arc::clone(&self.net),
            intake: Intake { taken: self.taken.clone(), over: self.kill.clone() },
            config: Arc::clone(&self.values),
            buckets: self.buckets.clone(),
            keyvalue: Arc::clone(&self.keyvalue),
            quotas: self.quotas.clone(),
            tls: Tls::new(Arc::clone(&self.net), Arc::clone(&self.trust), Arc::clone(&self.meter)),
        };
        let mut store = Store::new(&self.engine, guest);
        store.set_hostcall_fuel(CALL_BYTES_MAX);
        store.set_max_component_handles(RESOURCES_MAX);
        if let Some(concurrent) = store.concurrent_resource_table() {
            concurrent.set_max_capacity(CONCURRENT_MAX);
        }
        store.limiter(|guest| &mut guest.limiter);
        burst.govern(&mut store, self.kill.clone());
        Ok(store)
    }

    fn wasi(&self) -> wasmtime::Result<WasiCtx> {
        let mut builder = WasiCtx::builder();
        builder
            .args(&self.config.args)
            .envs(self.config.env.as_slice())
            .max_random_size(RANDOM_BYTES_MAX)
            .wall_clock(WallClockOfHost(Arc::clone(&self.clock)))
            // The host's own sockets: nothing that is linked uses them.
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false);
        let log = |channel| LogStream::new(&self.log, channel, self.pipes.is_terminal());
        match self.pipes.take_output() {
            Some((stdout, stderr)) => builder.stdout(stdout).stderr(stderr),
            None => builder.stdout(log(Channel::Stdout)).stderr(log(Channel::Stderr)),
        };
        if let Some(stdin) = self.pipes.take_stdin() {
            builder.stdin(AsyncStdinStream::new(stdin));
        }
        if !self.config.env.iter().any(|(name, _)| name == "HOSTNAME") {
            builder.env("HOSTNAME", self.net.hostname());
        }
        for mount in &self.config.mounts {
            let perms = if mount.is_read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite };
            builder.preopened_dir(&mount.host_path, &mount.guest_path, perms)?;
        }
        Ok(builder.build())
    }

    /// An instance ended before its time: tells the log and the metrics.
    pub(crate) fn trapped(&self, exit: &Exit) {
        if exit.reason != ExitReason::Completed {
            self.traps.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            // As the guest's own lines: it may trap as often as it likes.
            for line in exit.message.lines() {
                self.log.line(Channel::Stderr, true, line.as_bytes());
            }
        }
    }
}
