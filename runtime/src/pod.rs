//! The sandbox of one pod.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::code::{Entry, Loaded};
use crate::container::WasmContainer;
use crate::guest::Template;
use crate::limits::Gauge;
use crate::logs::Log;
use crate::meter::Meter;
use crate::network::{PodNet, UNKNOWN_PEER, VirtualNetwork};
use crate::stdio::{Input, Pipes, Stdio};
use crate::types::{BoxIo, Container, ContainerConfig, Pod, StartError};
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

    fn template(&self, config: ContainerConfig, log: Arc<Log>, pipes: Pipes) -> Template {
        Template {
            engine: self.core.engine.clone(),
            net: Arc::clone(&self.net),
            log,
            pipes,
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

    /// Loads the component, and makes its log if it is to have one.
    async fn prepare(
        &self,
        config: &ContainerConfig,
        has_log: bool,
    ) -> Result<(Arc<Loaded>, Arc<Log>), StartError> {
        if self.over.is_cancelled() {
            return Err(StartError::Host("the pod is destroyed".to_owned()));
        }
        let core = Arc::clone(&self.core);
        let (path, log_path) = (config.compiled.clone(), config.log_path.clone());
        let log_bytes_max = config.log_bytes_max;
        let prepare = self.core.guests.spawn_blocking(move || {
            let loaded = core.code.load(&path)?;
            let (clock, guests) = (Arc::clone(&core.clock), Arc::clone(&core.guests));
            let log = if has_log {
                Log::create(log_path, log_bytes_max, clock, guests)
                    .map_err(|error| StartError::Host(format!("cannot make the log: {error}")))?
            } else {
                Log::none(clock, guests)
            };
            Ok::<_, StartError>((loaded, log))
        });
        prepare.await.map_err(|error| StartError::Host(format!("start failed: {error}")))?
    }

    async fn launch(
        &self,
        template: Template,
        loaded: Arc<Loaded>,
    ) -> Result<Arc<dyn Container>, StartError> {
        let container = WasmContainer::start(Arc::new(template), loaded).await?;
        let mut containers = self.containers.lock();
        // Restarts go through here: the ended ones need no further care.
        containers.retain(|container| !container.has_ended());
        containers.push(Arc::clone(&container));
        Ok(container)
    }
}

#[async_trait]
impl Pod for WasmPod {
    async fn start(&self, config: ContainerConfig) -> Result<Arc<dyn Container>, StartError> {
        let (loaded, log) = self.prepare(&config, true).await?;
        self.launch(self.template(config, log, Pipes::default()), loaded).await
    }

    async fn start_with_stdin(
        &self,
        config: ContainerConfig,
        stdin: Input,
    ) -> Result<Arc<dyn Container>, StartError> {
        let (loaded, log) = self.prepare(&config, true).await?;
        self.launch(self.template(config, log, Pipes::input(stdin)), loaded).await
    }

    async fn exec(
        &self,
        config: ContainerConfig,
        stdio: Stdio,
    ) -> Result<Arc<dyn Container>, StartError> {
        let (loaded, log) = self.prepare(&config, false).await?;
        if !matches!(loaded.entry, Entry::CommandP2 | Entry::CommandP3) {
            return Err(StartError::Unsupported { reason: "it is not a command".to_owned() });
        }
        self.launch(self.template(config, log, Pipes::new(stdio)), loaded).await
    }

    async fn connect(&self, port: u16) -> std::io::Result<BoxIo> {
        let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let mut last = std::io::ErrorKind::ConnectionRefused.into();
        for ip in loopback.iter().chain(self.net.ips()) {
            match self.net.dial(UNKNOWN_PEER, SocketAddr::new(*ip, port)) {
                Ok(io) => return Ok(io),
                Err(error) => last = error,
            }
        }
        Err(last)
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
