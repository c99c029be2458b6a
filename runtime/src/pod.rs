//! The sandbox of one pod.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::code::Loaded;
use crate::container::WasmContainer;
use crate::guest::Template;
use crate::imports::{Capability, MissingImports};
use crate::limits::Gauge;
use crate::logs::{Log, LogSize};
use crate::meter::Meter;
use crate::network::{PodNet, VirtualNetwork};
use crate::types::{Container, ContainerConfig, Pod, StartError};
use crate::volumes::{Quota, Quotas};
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
    /// Limits of the pod's volumes, by their folder.
    quotas: Arc<Mutex<BTreeMap<PathBuf, Arc<Quota>>>>,
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
        Self { core, net, network, memory, over, containers, quotas: Arc::default() }
    }

    fn template(&self, config: ContainerConfig, log: Arc<Log>, quotas: Quotas) -> Template {
        Template {
            engine: self.core.engine.clone(),
            net: Arc::clone(&self.net),
            log,
            meter: Meter::new(config.cpu_millis_max, config.cpu_millis, &self.core.shares),
            pulse: Arc::clone(self.core.ticker.pulse()),
            memory: Gauge::new(config.memory_bytes_max),
            pod_memory: Arc::clone(&self.memory),
            memory_bytes_max: self.core.plan.memory_bytes_max,
            instances_max: self.core.plan.instances_per_container_max(),
            requests_per_instance_max: self.core.requests_per_instance_max,
            start_wait_max: self.core.start_wait_max,
            clock: Arc::clone(&self.core.clock),
            keyvalue: Arc::clone(&self.core.keyvalue),
            values: Arc::new(config.config.clone().unwrap_or_default().into_iter().collect()),
            buckets: config.buckets.clone().map(Arc::new),
            quotas,
            kill: self.over.child_token(),
            traps: Arc::clone(&self.core.traps),
            config,
        }
    }
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
        if self.over.is_cancelled() {
            return Err(StartError::Host("the pod is destroyed".to_owned()));
        }
        let core = Arc::clone(&self.core);
        let (path, log_path) = (config.compiled.clone(), config.log_path.clone());
        let log_size = LogSize {
            file_bytes_max: config.log_bytes_max,
            bytes_per_second_max: config.log_bytes_per_second_max,
        };
        let limits: Vec<_> = config.mounts.iter().filter_map(|mount| mount.limit.clone()).collect();
        let known = Arc::clone(&self.quotas);
        let prepare = self.core.guests.spawn_blocking(move || {
            let loaded = core.code.load(&path)?;
            let clock = Arc::clone(&core.clock);
            let log = Log::create(log_path, log_size, clock, Arc::clone(&core.guests))
                .map_err(|error| StartError::Host(format!("cannot make the log: {error}")))?;
            let limits = limits.into_iter().map(|limit| {
                let mut known = known.lock();
                let new = || Quota::new(&limit.root, limit.bytes_max);
                Arc::clone(known.entry(limit.root.clone()).or_insert_with(new))
            });
            Ok::<_, StartError>((loaded, log, Quotas(limits.collect())))
        });
        let (loaded, log, quotas) =
            prepare.await.map_err(|error| StartError::Host(format!("start failed: {error}")))??;
        check_grants(&loaded, &config)?;
        let template = Arc::new(self.template(config, log, quotas));
        let container = WasmContainer::start(template, loaded).await?;
        let mut containers = self.containers.lock();
        // Restarts go through here: the ended ones need no further care.
        containers.retain(|container| !container.has_ended());
        containers.push(Arc::clone(&container));
        Ok(container)
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
