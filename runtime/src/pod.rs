//! The sandbox of one pod.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::container::WasmContainer;
use crate::guest::Template;
use crate::limits::Gauge;
use crate::logs::Log;
use crate::meter::Meter;
use crate::network::{PodNet, VirtualNetwork};
use crate::types::{Container, ContainerConfig, Pod, StartError};
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
        Self { core, net, network, memory: Gauge::new(memory_bytes_max), over, containers }
    }

    fn template(&self, config: ContainerConfig, log: Arc<Log>) -> Template {
        Template {
            engine: self.core.engine.clone(),
            net: Arc::clone(&self.net),
            log,
            meter: Meter::new(config.cpu_millis_max),
            pulse: Arc::clone(self.core.ticker.pulse()),
            memory: Gauge::new(config.memory_bytes_max),
            pod_memory: Arc::clone(&self.memory),
            memory_bytes_max: self.core.plan.memory_bytes_max,
            clock: Arc::clone(&self.core.clock),
            kill: self.over.child_token(),
            traps: Arc::clone(&self.core.traps),
            config,
        }
    }
}

#[async_trait]
impl Pod for WasmPod {
    async fn start(&self, config: ContainerConfig) -> Result<Arc<dyn Container>, StartError> {
        if self.over.is_cancelled() {
            return Err(StartError::Host("the pod is destroyed".to_owned()));
        }
        let core = Arc::clone(&self.core);
        let (path, log_path) = (config.compiled.clone(), config.log_path.clone());
        let log_bytes_max = config.log_bytes_max;
        let prepare = self.core.guests.spawn_blocking(move || {
            let loaded = core.code.load(&path)?;
            let clock = Arc::clone(&core.clock);
            let log = Log::create(log_path, log_bytes_max, clock, Arc::clone(&core.guests))
                .map_err(|error| StartError::Host(format!("cannot make the log: {error}")))?;
            Ok::<_, StartError>((loaded, log))
        });
        let (loaded, log) =
            prepare.await.map_err(|error| StartError::Host(format!("start failed: {error}")))??;
        let template = Arc::new(self.template(config, log));
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
