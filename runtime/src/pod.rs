//! The sandbox of one pod.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::code::{Entry, Loaded};
use crate::container::{Begun, WasmContainer};
use crate::guest::Template;
use crate::imports::{Capability, MissingImports};
use crate::limits::Gauge;
use crate::logs::{Log, LogSize};
use crate::meter::{Meter, nanos};
use crate::network::{PodNet, VirtualNetwork};
use crate::stdio::{Input, Pipes, Stdio};
use crate::tls::Trust;
use crate::types::{BoxIo, Container, ContainerConfig, Pod, StartError, Usage, VolumeLimit};
use crate::volumes::{Quota, Quotas, Volumes};
use crate::wasm::Core;

/// A pod's network, limits and containers.
pub(crate) struct WasmPod {
    ground: Ground,
    network: Arc<VirtualNetwork>,
    containers: Mutex<Vec<Arc<WasmContainer>>>,
    /// CPU time of containers that are in the list no more, in nanoseconds.
    past_nanos: AtomicU64,
}

/// What all containers of a pod stand on. Cheap to clone.
#[derive(Clone)]
struct Ground {
    core: Arc<Core>,
    net: Arc<PodNet>,
    memory: Arc<Gauge>,
    /// Ends all containers and connections.
    over: CancellationToken,
    /// Limits of the pod's volumes; at most as many as its containers have mounts.
    quotas: Arc<Mutex<Vec<Arc<Quota>>>>,
}

/// What a container is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// One of the pod's own: it has a log.
    Own,
    /// A command of somebody's, who has its streams.
    Exec,
}

impl WasmPod {
    pub(crate) fn new(
        core: Arc<Core>,
        net: Arc<PodNet>,
        network: Arc<VirtualNetwork>,
        memory_bytes_max: Option<u64>,
        over: CancellationToken,
    ) -> Self {
        let memory = Gauge::new(memory_bytes_max);
        let ground = Ground { core, net, memory, over, quotas: Arc::default() };
        let (containers, past_nanos) = (Mutex::new(Vec::new()), AtomicU64::new(0));
        Self { ground, network, containers, past_nanos }
    }

    /// Starts a container on the guests' threads.
    async fn launch(
        &self,
        config: ContainerConfig,
        purpose: Purpose,
        pipes: Pipes,
    ) -> Result<Arc<dyn Container>, StartError> {
        if self.ground.over.is_cancelled() {
            return Err(StartError::Host("the pod is destroyed".to_owned()));
        }
        let ground = self.ground.clone();
        let begin = move || ground.begin(config, purpose, pipes);
        let begun = self.ground.core.guests.spawn_blocking(begin).await;
        let begun = begun.map_err(|error| StartError::Host(format!("start failed: {error}")))??;
        let container = WasmContainer::started(begun).await?;
        let mut containers = self.containers.lock();
        // Restarts go through here: the ended ones need no further care.
        containers.retain(|container| {
            let has_ended = container.has_ended();
            if has_ended {
                self.past_nanos.fetch_add(nanos(container.usage().cpu), Ordering::Relaxed);
            }
            !has_ended
        });
        containers.push(Arc::clone(&container));
        Ok(container)
    }
}

impl Ground {
    /// Loads the component, makes its log if it is to have one, and its first instance: all on one thread,
    /// since each that has to wake another one waits for that. Blocks on the disk.
    fn begin(
        &self,
        config: ContainerConfig,
        purpose: Purpose,
        pipes: Pipes,
    ) -> Result<Begun, StartError> {
        let prepared = self.prepare(&config, purpose == Purpose::Own)?;
        let loaded = Arc::clone(&prepared.loaded);
        check_grants(&loaded, &config)?;
        let is_command = matches!(loaded.entry, Entry::CommandP2 | Entry::CommandP3);
        if purpose == Purpose::Exec && !is_command {
            return Err(StartError::Unsupported { reason: "it is not a command".to_owned() });
        }
        let template = Arc::new(self.template(config, prepared, pipes));
        WasmContainer::begin(&template, &loaded)
    }

    fn template(&self, config: ContainerConfig, prepared: Prepared, pipes: Pipes) -> Template {
        let Prepared { log, quotas, loaded } = prepared;
        Template {
            engine: self.core.engine.clone(),
            net: Arc::clone(&self.net),
            taken: TaskTracker::new(),
            log,
            pipes,
            meter: Meter::new(
                config.cpu_millis_max,
                config.cpu_millis,
                &self.core.shares,
                config.may_run.clone(),
            ),
            pulse: Arc::clone(self.core.ticker.pulse()),
            memory: Gauge::new(config.memory_bytes_max),
            pod_memory: Arc::clone(&self.memory),
            node_memory: Arc::clone(&self.core.memory),
            memory_bytes_max: self.core.plan.memory_bytes_max,
            instances_max: self.core.plan.instances_per_container_max(),
            requests_per_instance_max: self.core.requests_per_instance_max,
            start_wait_max: self.core.start_wait_max,
            clock: Arc::clone(&self.core.clock),
            keyvalue: Arc::clone(&self.core.keyvalue),
            values: Arc::new(config.config.clone().unwrap_or_default().into_iter().collect()),
            buckets: config.buckets.clone().map(Arc::new),
            quotas,
            reuse: Arc::clone(&loaded.reuse),
            trust: Trust::new(
                Arc::clone(&self.core.trust),
                Arc::clone(&self.core.guests),
                Arc::clone(&self.core.clock),
                &config,
            ),
            kill: self.over.child_token(),
            traps: Arc::clone(&self.core.traps),
            config,
        }
    }

    fn prepare(&self, config: &ContainerConfig, has_log: bool) -> Result<Prepared, StartError> {
        let core = &self.core;
        let loaded = core.code.load(&config.compiled)?;
        let (clock, guests) = (Arc::clone(&core.clock), Arc::clone(&core.guests));
        let log = if has_log {
            let size = LogSize {
                file_bytes_max: config.log_bytes_max,
                bytes_per_second_max: config.log_bytes_per_second_max,
            };
            Log::create(config.log_path.clone(), size, clock, guests)
                .map_err(|error| StartError::Host(format!("cannot make the log: {error}")))?
        } else {
            Log::none(clock, guests)
        };
        let writable = config.mounts.iter().filter(|mount| !mount.is_read_only);
        let limits = writable.filter_map(|mount| {
            let quota = quota(&core.quotas, mount.limit.clone()?);
            quota.include(&mount.host_path);
            Some(quota)
        });
        let quotas = Quotas(limits.collect());
        // Kept over restarts: a volume is measured once.
        let mut own = self.quotas.lock();
        for quota in &quotas.0 {
            if !own.iter().any(|had| Arc::ptr_eq(had, quota)) {
                own.push(Arc::clone(quota));
            }
        }
        drop(own);
        Ok(Prepared { loaded, log, quotas })
    }
}

/// The quota of a volume, one for all pods that have it mounted. Blocks on the file system.
fn quota(known: &Mutex<Volumes>, limit: VolumeLimit) -> Arc<Quota> {
    let find = |known: &Volumes| {
        let had = known.get(&limit.root).and_then(Weak::upgrade);
        had.filter(|had| had.is_of(limit.bytes_max))
    };
    if let Some(had) = find(&known.lock()) {
        return had;
    }
    // Measured without the lock: other pods start meanwhile.
    let made = Quota::new(&limit.root, limit.bytes_max);
    let mut known = known.lock();
    if let Some(had) = find(&known) {
        return had;
    }
    known.retain(|_, quota| quota.strong_count() > 0);
    known.insert(limit.root, Arc::downgrade(&made));
    made
}

/// What a container needs before it can start.
struct Prepared {
    loaded: Arc<Loaded>,
    log: Arc<Log>,
    quotas: Quotas,
}

/// Whether the pod was granted what the component imports.
fn check_grants(loaded: &Loaded, config: &ContainerConfig) -> Result<(), StartError> {
    let is_granted = |capability| match capability {
        Some(Capability::Config) => config.config.is_some(),
        Some(Capability::KeyValue) => config.buckets.is_some(),
        None => true,
    };
    let denied = loaded.gated.iter().filter(|import| !is_granted(import.capability));
    let denied: Vec<_> = denied.cloned().collect();
    if denied.is_empty() {
        return Ok(());
    }
    Err(StartError::MissingImports(MissingImports::new(denied)))
}

#[async_trait]
impl Pod for WasmPod {
    async fn start(&self, config: ContainerConfig) -> Result<Arc<dyn Container>, StartError> {
        self.launch(config, Purpose::Own, Pipes::default()).await
    }

    async fn start_with_stdin(
        &self,
        config: ContainerConfig,
        stdin: Input,
        is_terminal: bool,
    ) -> Result<Arc<dyn Container>, StartError> {
        self.launch(config, Purpose::Own, Pipes::input(stdin, is_terminal)).await
    }

    async fn exec(
        &self,
        config: ContainerConfig,
        stdio: Stdio,
    ) -> Result<Arc<dyn Container>, StartError> {
        self.launch(config, Purpose::Exec, Pipes::new(stdio)).await
    }

    async fn connect(&self, port: u16) -> std::io::Result<BoxIo> {
        let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let mut last = std::io::ErrorKind::ConnectionRefused.into();
        for ip in loopback.iter().chain(self.ground.net.ips()) {
            // As from a process of the pod: it sees itself.
            let from = self.ground.net.source(*ip);
            match self.ground.net.dial(from, SocketAddr::new(*ip, port)).await {
                Ok(io) => return Ok(io),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn usage(&self) -> Usage {
        let containers = self.containers.lock();
        let present: Duration = containers.iter().map(|container| container.usage().cpu).sum();
        let past = Duration::from_nanos(self.past_nanos.load(Ordering::Relaxed));
        Usage { cpu: past.saturating_add(present), memory_bytes: self.ground.memory.used() }
    }

    async fn destroy(&self) {
        self.network.detach(&self.ground.net);
        self.ground.over.cancel();
        let containers = std::mem::take(&mut *self.containers.lock());
        for container in containers {
            container.kill().await;
        }
    }
}

impl Drop for WasmPod {
    fn drop(&mut self) {
        self.network.detach(&self.ground.net);
        self.ground.over.cancel();
    }
}
