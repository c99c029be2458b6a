//! From a container of the spec to a running one: image, configuration, sandbox.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use edgeorc_runtime::{ContainerConfig, PodConfig, PodId, PodRuntime, StartError};
use k8s_openapi::api::core::v1::Pod;

use crate::agent::config::RestartPolicySettings;
use crate::agent::dirs::PodDir;
use crate::agent::image::{ImageError, Images};
use crate::agent::ipam::Ipam;
use crate::agent::pod::api::PodApi;
use crate::agent::pod::env::{self, ConfigError, Sources};
use crate::agent::pod::objects::NodeSources;
use crate::agent::pod::plan::{PodPlan, Role};
use crate::agent::pod::probe::PodNetwork;
use crate::agent::pod::state::{
    CREATE_CONTAINER_CONFIG_ERROR, CREATE_CONTAINER_ERROR, RUN_CONTAINER_ERROR, RunState,
};
use crate::agent::pod::worker::Worker;
use crate::agent::pod::{names, objects, volumes};
use crate::rt::{Rng, WallClock};

/// Size at which a container's log is rotated: with the rotated file, 20 MiB per container.
const LOG_BYTES_MAX: u64 = 10 * 1024 * 1024;
/// Shortest wait before a pull or a missing ConfigMap is tried again.
const RETRY_MIN: Duration = Duration::from_secs(1);

/// What all workers of the node share.
pub(crate) struct Shared {
    pub(crate) api: Arc<dyn PodApi>,
    pub(crate) runtime: Arc<dyn PodRuntime>,
    pub(crate) network: Arc<dyn PodNetwork>,
    pub(crate) images: Images,
    pub(crate) ipam: Ipam,
    pub(crate) clock: WallClock,
    pub(crate) rng: Rng,
    pub(crate) host_ips: Vec<IpAddr>,
    pub(crate) allocatable: (u64, u64),
    /// What pods can refer to, as far as the node knows it by itself.
    pub(crate) node: Arc<NodeSources>,
    pub(crate) restart: RestartPolicySettings,
    pub(crate) shutdown_grace: Duration,
}

/// Why a container is not running.
#[derive(Debug)]
pub(super) struct StartFailure {
    /// Kubernetes' waiting reason.
    pub(super) reason: &'static str,
    /// For people.
    pub(super) message: String,
    /// Trying again cannot help.
    pub(super) is_final: bool,
    /// Shortest wait before the next try.
    pub(super) delay_min: Duration,
}

impl StartFailure {
    fn later(reason: &'static str, message: impl ToString) -> Self {
        Self { reason, message: message.to_string(), is_final: false, delay_min: RETRY_MIN }
    }

    fn never(reason: &'static str, message: impl ToString) -> Self {
        Self { is_final: true, ..Self::later(reason, message) }
    }
}

impl From<ImageError> for StartFailure {
    fn from(error: ImageError) -> Self {
        match &error {
            ImageError::Name(_) => Self::never("InvalidImageName", error),
            ImageError::NeverPulled(_) => Self::never("ErrImageNeverPull", error),
            ImageError::Compile(_) => Self::never(CREATE_CONTAINER_ERROR, error),
            ImageError::Pull(_) | ImageError::Disk(_) => Self::later("ErrImagePull", error),
        }
    }
}

impl From<ConfigError> for StartFailure {
    fn from(error: ConfigError) -> Self {
        match error {
            ConfigError::Unsupported(_) => Self::never(CREATE_CONTAINER_CONFIG_ERROR, error),
            _ => Self::later(CREATE_CONTAINER_CONFIG_ERROR, error),
        }
    }
}

impl From<StartError> for StartFailure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Host(_) => Self::later(RUN_CONTAINER_ERROR, error),
            _ => Self::never(RUN_CONTAINER_ERROR, error),
        }
    }
}

/// A container ready to be started.
pub(super) struct Prepared {
    compiled: PathBuf,
    image_id: String,
    sources: Sources,
    ip: IpAddr,
}

impl Shared {
    /// Fetches and compiles the image, finds the pod's address and what its configuration names.
    pub(super) async fn prepare(
        &self,
        plan: &PodPlan,
        at: usize,
        pod: &Pod,
        dir: &PodDir,
    ) -> Result<Prepared, StartFailure> {
        let missing = || StartFailure::never(RUN_CONTAINER_ERROR, "no such container");
        let container = plan.containers.get(at).ok_or_else(missing)?;
        let image = self.images.ready(&container.image, container.pull).await?;
        let ip = self
            .ipam
            .address(&plan.uid, dir)
            .await
            .map_err(|cause| StartFailure::later(RUN_CONTAINER_ERROR, cause))?;
        let mut sources = Sources {
            ips: vec![ip],
            host_ips: self.host_ips.clone(),
            allocatable: self.allocatable,
            ..Sources::default()
        };
        objects::collect(&*self.api, &self.node, pod, dir, &mut sources).await?;
        volumes::write_volumes(pod, dir, &sources)?;
        self.node.written.tell(&plan.uid);
        Ok(Prepared { compiled: image.compiled, image_id: image.id, sources, ip })
    }
}

impl Worker {
    /// Starts a prepared container in the pod's sandbox.
    pub(super) async fn launch(
        &mut self,
        at: usize,
        prepared: Prepared,
    ) -> Result<(), StartFailure> {
        let sandbox = self.sandbox(prepared.ip).await?;
        let pod = Arc::clone(&self.seen.borrow());
        let missing = || StartFailure::never(RUN_CONTAINER_ERROR, "no such container");
        let plan = self.plan.containers.get(at).ok_or_else(missing)?.clone();
        let run = self.state.containers.get(at).map_or(0, |record| record.restart_count);
        let log_path = self.dir.log_file(&plan.name, run);
        self.forget_old_logs(&plan.name, run)?;
        let env = env::environment(&pod, &plan.spec, &prepared.sources)?;
        let mounts = volumes::mounts(&pod, &plan.spec, &self.dir, &prepared.sources, &env)?;
        let config = ContainerConfig {
            name: plan.name.clone(),
            compiled: prepared.compiled,
            args: env::arguments(&plan.spec, &env),
            env,
            mounts,
            memory_bytes_max: plan.memory_bytes_max,
            cpu_millis_max: plan.cpu_millis_max,
            http_port: plan.http_port,
            fresh_instance_per_request: self.plan.fresh_instance_per_request,
            log_path,
            log_bytes_max: LOG_BYTES_MAX,
        };
        let container = sandbox.start(config).await?;
        self.follow(at, container);
        let now = self.shared.clock.now();
        let id = format!("wasmtime://{}-{}-{run}", self.plan.uid, plan.name);
        if let Some(record) = self.state.containers.get_mut(at) {
            record.image_id = prepared.image_id;
            record.state = RunState::Running { started_at: now, container_id: id };
            record.is_started = plan.spec.startup_probe.is_none();
            record.is_ready = record.is_started && plan.spec.readiness_probe.is_none();
        }
        self.state.is_initialized |= plan.role == Role::Main;
        Ok(())
    }

    /// The pod's sandbox, made with its first container.
    async fn sandbox(&mut self, ip: IpAddr) -> Result<Arc<dyn edgeorc_runtime::Pod>, StartFailure> {
        if let Some(sandbox) = &self.sandbox {
            return Ok(Arc::clone(sandbox));
        }
        let config = PodConfig {
            id: PodId {
                namespace: self.plan.namespace.clone(),
                name: self.plan.name.clone(),
                uid: self.plan.uid.clone(),
            },
            ips: vec![ip],
            hostname: self.plan.hostname.clone(),
            memory_bytes_max: self.plan.memory_bytes_max(),
            hosts: names::host_aliases(&self.seen.borrow()),
            searches: names::searches(&self.seen.borrow()),
        };
        let sandbox = self.shared.runtime.create(config).await?;
        self.sandbox = Some(Arc::clone(&sandbox));
        self.state.ips = vec![ip];
        self.state.has_sandbox = true;
        Ok(sandbox)
    }

    /// Keeps the logs of this run and the one before.
    fn forget_old_logs(&self, container: &str, run: u32) -> Result<(), StartFailure> {
        let folder = self.dir.logs(container);
        let failed = |cause: std::io::Error| StartFailure::from(ConfigError::Disk(cause));
        crate::agent::dirs::make_private(&folder).map_err(failed)?;
        if let Some(old) = run.checked_sub(2) {
            let path = self.dir.log_file(container, old);
            let rotated = crate::agent::logs::rotated(&path);
            for path in [path, rotated] {
                let _ = std::fs::remove_file(path);
            }
        }
        Ok(())
    }
}
