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
use crate::container::WasmContainer;
use crate::guest::Template;
use crate::imports::{Capability, MissingImports};
use crate::limits::Gauge;
use crate::logs::{Log, LogSize};
use crate::meter::{Meter, nanos};
use crate::network::{PodNet, UNKNOWN_PEER, VirtualNetwork};
use crate::stdio::{Input, Pipes, Stdio};
use crate::tls::Trust;
use crate::types::{BoxIo, Container, ContainerConfig, Pod, StartError, Usage, VolumeLimit};
use crate::volumes::{Quota, Quotas, Volumes};
use crate::wasm::Core;

/// A pod's network, limits and containers.
pub(crate) struct WasmPod {
    core: Arc<Core>,
    net: Arc<PodNet>,
    network: Arc<VirtualNetwork>,
    memory: Arc<Gauge>,
    /// Ends all containers and connections.
    over: CancellationToken,
    containers: Mutex<Vec<Arc<WasmContainer>>>,
    /// CPU time of containers that are in the list no more, in nanoseconds.
    past_nanos: AtomicU64,
    /// Limits of the pod's volumes; at most as many as its containers have mounts.
    quotas: Arc<Mutex<Vec<Arc<Quota>>>>,
}

impl WasmPod {
    pub(crate) fn new(
        core: Arc<Core>,
        net: Arc<PodNet>,
        network: Arc<VirtualNetwork>,
        memory_bytes_max: Option<u64>,
        over: CancellationToken,
    ) -> Self {
        let containers = Mutex::new(Vec::new());
        let memory = Gauge::new(memory_bytes_max);
        let past_nanos = AtomicU64::new(0);
        Self { core, net, network, memory, over, containers, past_nanos, quotas: Arc::default() }
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

    /// Loads the component, and makes its log if it is to have one.
    async fn prepare(
        &self,
        config: &ContainerConfig,
        has_log: bool,
    ) -> Result<Prepared, StartError> {
        if self.over.is_cancelled() {
            return Err(StartError::Host("the pod is destroyed".to_owned()));
        }
        let core = Arc::clone(&self.core);
        let (path, log_path) = (config.compiled.clone(), config.log_path.clone());
        let log_size = LogSize {
            file_bytes_max: config.log_bytes_max,
            bytes_per_second_max: config.log_bytes_per_second_max,
        };
        let limits: Vec<_> = config
            .mounts
            .iter()
            .filter(|mount| !mount.is_read_only)
            .filter_map(|mount| Some((mount.limit.clone()?, mount.host_path.clone())))
            .collect();
        let (known, own) = (Arc::clone(&self.core.quotas), Arc::clone(&self.quotas));
        let prepare = self.core.guests.spawn_blocking(move || {
            let loaded = core.code.load(&path)?;
            let (clock, guests) = (Arc::clone(&core.clock), Arc::clone(&core.guests));
            let log = if has_log {
                Log::create(log_path, log_size, clock, guests)
                    .map_err(|error| StartError::Host(format!("cannot make the log: {error}")))?
            } else {
                Log::none(clock, guests)
            };
            let limits = limits.into_iter().map(|(limit, folder)| {
                let quota = quota(&known, limit);
                quota.include(&folder);
                quota
            });
            let quotas = Quotas(limits.collect());
            // Kept over restarts: a volume is measured once.
            let mut own = own.lock();
            for quota in &quotas.0 {
                if !own.iter().any(|had| Arc::ptr_eq(had, quota)) {
                    own.push(Arc::clone(quota));
                }
            }
            drop(own);
            Ok::<_, StartError>(Prepared { loaded, log, quotas })
        });
        let prepared =
            prepare.await.map_err(|error| StartError::Host(format!("start failed: {error}")))??;
        check_grants(&prepared.loaded, config)?;
        Ok(prepared)
    }

    async fn launch(
        &self,
        config: ContainerConfig,
        prepared: Prepared,
        pipes: Pipes,
    ) -> Result<Arc<dyn Container>, StartError> {
        let loaded = Arc::clone(&prepared.loaded);
        let template = Arc::new(self.template(config, prepared, pipes));
        let container = WasmContainer::start(template, loaded).await?;
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
        let prepared = self.prepare(&config, true).await?;
        self.launch(config, prepared, Pipes::default()).await
    }

    async fn start_with_stdin(
        &self,
        config: ContainerConfig,
        stdin: Input,
        is_terminal: bool,
    ) -> Result<Arc<dyn Container>, StartError> {
        let prepared = self.prepare(&config, true).await?;
        self.launch(config, prepared, Pipes::input(stdin, is_terminal)).await
    }

    async fn exec(
        &self,
        config: ContainerConfig,
        stdio: Stdio,
    ) -> Result<Arc<dyn Container>, StartError> {
        let prepared = self.prepare(&config, false).await?;
        if !matches!(prepared.loaded.entry, Entry::CommandP2 | Entry::CommandP3) {
            return Err(StartError::Unsupported { reason: "it is not a command".to_owned() });
        }
        self.launch(config, prepared, Pipes::new(stdio)).await
    }

    async fn connect(&self, port: u16) -> std::io::Result<BoxIo> {
        let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let mut last = std::io::ErrorKind::ConnectionRefused.into();
        for ip in loopback.iter().chain(self.net.ips()) {
            match self.net.dial(UNKNOWN_PEER, SocketAddr::new(*ip, port)).await {
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
        Usage { cpu: past.saturating_add(present), memory_bytes: self.memory.used() }
    }

    async fn destroy(&self) {
        self.network.detach(&self.net);
        self.over.cancel();
        let containers = std::mem::take(&mut *self.containers.lock());
        for container in containers {
            container.kill().await;
        }
    }
}

impl Drop for WasmPod {
    fn drop(&mut self) {
        self.network.detach(&self.net);
        self.over.cancel();
    }
}
