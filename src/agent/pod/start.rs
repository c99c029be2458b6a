//! From a container of the spec to a running one: image, configuration, sandbox.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use edgeorc_runtime::{
    Capability, ContainerConfig, Mount, PodConfig, PodId, PodRuntime, StartError, is_bucket_name,
};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SetOnce};

use crate::agent::backlog::Backlog;
use crate::agent::config::RestartBackoff;
use crate::agent::dirs::PodDir;
use crate::agent::fence::Fence;
use crate::agent::image::{
    ImageError, ImageSource, ReadyImage, SIGNATURE_VALIDATION_FAILED, Wanted,
};
use crate::agent::ipam::Ipam;
use crate::agent::pod::api::PodApi;
use crate::agent::pod::env::{self, ConfigError, Sources};
use crate::agent::pod::objects::NodeSources;
use crate::agent::pod::plan::{CONFIG_ANNOTATION, KEYVALUE_ANNOTATION, PodPlan, Role};
use crate::agent::pod::probe::PodNetwork;
use crate::agent::pod::state::{
    CREATE_CONTAINER_CONFIG_ERROR, CREATE_CONTAINER_ERROR, RUN_CONTAINER_ERROR, RunState,
};
use crate::agent::pod::worker::Worker;
use crate::agent::pod::{names, objects, scratch, termination_message, volumes};
use crate::agent::sessions::{LiveContainer, Stdin};
use crate::client::EventType;
use crate::rt::{Rng, TaskGroup, WallClock};

/// Size at which a container's log is rotated: with the rotated file, 20 MiB per container.
const LOG_BYTES_MAX: u64 = 10 * 1024 * 1024;
/// Lasting rate of a container's log: what is beyond would be rotated away within seconds.
const LOG_BYTES_PER_SECOND_MAX: u64 = 1024 * 1024;
/// Shortest wait before a pull or a missing ConfigMap is tried again.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// How long `ErrImagePull` is shown before `ImagePullBackOff`.
const PULL_ERROR_SHOWN: Duration = Duration::from_secs(1);
/// Pause between looks for an image that somebody has to bring or to mend.
const IMAGE_LOOK_INTERVAL: Duration = Duration::from_secs(30);

/// Starts that are at the disk at a time. More are no faster, and each takes a thread with its stack.
const AT_DISK_MAX: usize = 16;

/// Turns at the disk, of which pods that start together wait for one. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub(crate) struct DiskTurns(Arc<Semaphore>);

impl Default for DiskTurns {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_DISK_MAX)))
    }
}

impl DiskTurns {
    /// Waits for a turn, which is over when it is dropped.
    pub(super) async fn next(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).acquire_owned().await.ok()
    }
}

/// What all workers of the node share.
pub(crate) struct Shared {
    /// Whether pods that must be unique may run.
    pub(crate) fence: Fence,
    pub(crate) api: Arc<dyn PodApi>,
    pub(crate) runtime: Arc<dyn PodRuntime>,
    pub(crate) network: Arc<dyn PodNetwork>,
    pub(crate) images: Arc<dyn ImageSource>,
    pub(crate) ipam: Ipam,
    pub(crate) clock: WallClock,
    pub(crate) rng: Rng,
    pub(crate) host_ips: Vec<IpAddr>,
    pub(crate) allocatable: (u64, u64),
    /// What pods can refer to, as far as the node knows it by itself.
    pub(crate) node: Arc<NodeSources>,
    pub(crate) restart: RestartBackoff,
    pub(crate) shutdown_grace: Duration,
    pub(crate) disk: DiskTurns,
}

/// Why a container is not running.
#[derive(Debug)]
pub(crate) struct StartFailure {
    /// Kubernetes' waiting reason.
    pub(crate) reason: &'static str,
    /// For people.
    pub(crate) message: String,
    /// Trying again cannot help.
    pub(crate) is_final: bool,
    /// Shortest wait before the next try.
    pub(crate) delay_min: Duration,
    /// The wait is that and no longer: what failed has a back-off of its own.
    pub(crate) is_paced: bool,
}

impl StartFailure {
    pub(super) fn later(reason: &'static str, message: impl ToString) -> Self {
        let message = message.to_string();
        Self { reason, message, is_final: false, delay_min: RETRY_MIN, is_paced: false }
    }

    fn paced(reason: &'static str, message: impl ToString, delay_min: Duration) -> Self {
        Self { delay_min, is_paced: true, ..Self::later(reason, message) }
    }

    fn never(reason: &'static str, message: impl ToString) -> Self {
        Self { is_final: true, ..Self::later(reason, message) }
    }
}

impl From<ImageError> for StartFailure {
    fn from(error: ImageError) -> Self {
        match &error {
            ImageError::Name(_) => Self::never("InvalidImageName", error),
            ImageError::NeverPulled(_) | ImageError::NotOpened(_) => {
                Self::paced("ErrImageNeverPull", error, IMAGE_LOOK_INTERVAL)
            }
            // Shown for a moment; then the container waits as `ImagePullBackOff`.
            ImageError::Pull { wait, .. } => {
                let wait = (*wait).min(PULL_ERROR_SHOWN);
                Self::paced("ErrImagePull", error, wait)
            }
            ImageError::Signature { wait, .. } => {
                let wait = *wait;
                Self::paced(SIGNATURE_VALIDATION_FAILED, error, wait)
            }
            ImageError::BackOff { wait, .. } => {
                let wait = *wait;
                Self::paced("ImagePullBackOff", error, wait)
            }
            ImageError::Refused { may_change: true, .. } => {
                Self::paced(CREATE_CONTAINER_ERROR, error, IMAGE_LOOK_INTERVAL)
            }
            ImageError::Refused { .. } => Self::never(CREATE_CONTAINER_ERROR, error),
            ImageError::Compile { wait, .. } => {
                let wait = *wait;
                Self::paced(CREATE_CONTAINER_ERROR, error, wait)
            }
            ImageError::Vanished | ImageError::Disk(_) => Self::later("ErrImagePull", error),
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
            StartError::MissingImports(missing) => {
                Self::never(RUN_CONTAINER_ERROR, missing.describe(how_to_grant))
            }
            _ => Self::never(RUN_CONTAINER_ERROR, error),
        }
    }
}

/// How a user grants what a component imports.
fn how_to_grant(capability: Capability) -> String {
    match capability {
        Capability::Config => format!(
            "grant it with the pod's annotation {CONFIG_ANNOTATION}, which names a ConfigMap"
        ),
        Capability::KeyValue => format!(
            "grant it with the pod's annotation {KEYVALUE_ANNOTATION}, which lists buckets, \
             such as \"default\""
        ),
    }
}

/// The values that `wasi:config` answers.
fn config_values(
    plan: &PodPlan,
    sources: &Sources,
) -> Result<Option<BTreeMap<String, String>>, ConfigError> {
    let Some(name) = &plan.config else { return Ok(None) };
    let map = sources.config_maps.get(name).and_then(Option::as_ref);
    let map = map.ok_or_else(|| ConfigError::NoObject { kind: "configmap", name: name.clone() })?;
    Ok(Some(map.data.clone().unwrap_or_default()))
}

/// The buckets that the pod was granted.
fn buckets(plan: &PodPlan) -> Result<Option<BTreeSet<String>>, ConfigError> {
    if let Some(name) = plan.buckets.iter().flatten().find(|name| !is_bucket_name(name)) {
        return Err(ConfigError::Unsupported(format!(
            "annotation {KEYVALUE_ANNOTATION}: {name:?} is no name of a bucket, which has up to \
             63 lower case letters, digits and dashes"
        )));
    }
    Ok(plan.buckets.clone())
}

/// A container ready to be started.
pub(super) struct Prepared {
    image: Box<ReadyImage>,
    sources: Arc<Sources>,
    ips: Vec<IpAddr>,
    /// Copies that the next agent may need.
    pub(super) backlog: Backlog,
}

impl Shared {
    /// Fetches and compiles the image, finds the pod's address and what its configuration names.
    /// What blocks is done in `tasks`. Nothing is written before the pod's folder is `made`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a write of volumes that has begun goes on to its end, or fails because the
    /// pod's folder is gone.
    pub(super) async fn prepare(
        &self,
        plan: &PodPlan,
        at: usize,
        pod: &Arc<Pod>,
        (dir, made): (&PodDir, &SetOnce<()>),
        tasks: &TaskGroup,
    ) -> Result<Prepared, StartFailure> {
        let missing = || StartFailure::never(RUN_CONTAINER_ERROR, "no such container");
        let container = plan.containers.get(at).ok_or_else(missing)?;
        let list = match container.role {
            Role::Main => "containers",
            Role::Init | Role::Sidecar => "initContainers",
            Role::Ephemeral => "ephemeralContainers",
        };
        let wanted = Wanted {
            pod,
            field_path: format!("spec.{list}{{{}}}", container.name),
            image: &container.image,
            pull: container.pull,
        };
        let image = self.images.ready(&wanted).await?;
        let images = volumes::image::collect(&*self.images, &self.node.dirs, pod, dir).await?;
        let backlog = Backlog::default();
        let ips = self
            .ipam
            .addresses(&plan.uid, dir, &backlog)
            .await
            .map_err(|cause| StartFailure::later(RUN_CONTAINER_ERROR, cause))?;
        let mut sources = Sources {
            ips: ips.clone(),
            host_ips: self.host_ips.clone(),
            allocatable: self.allocatable,
            images,
            ..Sources::default()
        };
        objects::collect(&*self.api, &self.node, pod, dir, &backlog, &mut sources).await?;
        let sources = Arc::new(sources);
        let (of, pod, dir) = (Arc::clone(&sources), Arc::clone(pod), dir.clone());
        made.wait().await;
        let _turn = self.disk.next().await;
        tasks
            .block("volumes-write", move || volumes::write_volumes(&pod, &dir, &of))
            .await
            .ok_or_else(stopping)??;
        Ok(Prepared { image: Box::new(image), sources, ips, backlog })
    }
}

/// Work on the disk did not come to its end.
fn stopping() -> StartFailure {
    StartFailure::later(RUN_CONTAINER_ERROR, "the node did not finish its work on the disk")
}

impl Worker {
    /// Starts a prepared container in the pod's sandbox.
    pub(super) async fn launch(
        &mut self,
        at: usize,
        prepared: Prepared,
    ) -> Result<(), StartFailure> {
        let sandbox = self.sandbox(&prepared.ips).await?;
        let pod = Arc::clone(&self.seen.borrow());
        let missing = || StartFailure::never(RUN_CONTAINER_ERROR, "no such container");
        let plan = self.plan.containers.get(at).ok_or_else(missing)?.clone();
        let run = self.state.containers.get(at).map_or(0, |record| record.restart_count);
        let log_path = self.dir.log_file(&plan.name, run);
        let env = env::environment(&pod, &plan.spec, &prepared.sources)?;
        let args = env::arguments(&plan.spec, &env, &prepared.image.config);
        let env = Arc::new(env::with_image(env, &prepared.image.config));
        for what in env::skipped(&pod, &plan.spec, &prepared.sources) {
            self.event_of(at, EventType::Warning, "InvalidEnvironmentVariableNames", what);
        }
        let (spec, dir, of) = (plan.spec.clone(), self.dir.clone(), Arc::clone(&prepared.sources));
        let own_env = Arc::clone(&env);
        let lay_out = move || -> Result<Vec<Mount>, ConfigError> {
            forget_old_logs(&dir, &spec.name, run)?;
            let mut mounts = volumes::mounts(&pod, &spec, &dir, &of, &own_env)?;
            termination_message::add(&dir, &spec, &mut mounts)?;
            scratch::add(&dir, &spec, &mut mounts)?;
            Ok(mounts)
        };
        let turn = self.shared.disk.clone().next().await;
        let mut mounts = self.tasks.block("mounts", lay_out).await.ok_or_else(stopping)??;
        drop(turn);
        if plan.role == Role::Ephemeral {
            mounts.extend(self.surroundings(&plan, &mounts)?);
        }
        let config = ContainerConfig {
            name: plan.name.clone(),
            compiled: prepared.image.compiled,
            args,
            env,
            mounts,
            memory_bytes_max: plan.memory_bytes_max,
            cpu_millis_max: plan.cpu_millis_max,
            cpu_millis: plan.cpu_millis,
            may_run: self.may_run(),
            config: config_values(&self.plan, &prepared.sources)?,
            buckets: buckets(&self.plan)?,
            log_bytes_per_second_max: LOG_BYTES_PER_SECOND_MAX,
            http_port: plan.http_port,
            fresh_instance_per_request: self.plan.fresh_instance_per_request,
            log_path,
            log_bytes_max: LOG_BYTES_MAX,
        };
        let (container, stdin) = if plan.spec.stdin == Some(true) {
            let (stdin, input) = Stdin::new(plan.spec.stdin_once == Some(true));
            let is_terminal = plan.spec.tty == Some(true);
            let started = sandbox.start_with_stdin(config.clone(), input, is_terminal).await?;
            (started, Some(stdin))
        } else {
            (sandbox.start(config.clone()).await?, None)
        };
        let (image, own) = (plan.image.clone(), Arc::clone(&container));
        self.live.started(&sandbox, LiveContainer { config, image, container: own, stdin });
        self.follow(at, container);
        let now = self.shared.clock.now();
        let id = format!("wasmtime://{}-{}-{run}", self.plan.uid, plan.name);
        if let Some(record) = self.state.containers.get_mut(at) {
            record.image.clone_from(&plan.image);
            record.image_id = prepared.image.id;
            record.volume_mounts = volumes::shown_mounts(&plan.spec, &prepared.sources);
            record.state = RunState::Running { started_at: now, container_id: id };
        }
        self.state.is_initialized |= plan.role == Role::Main;
        self.event_of(at, EventType::Normal, "Started", format!("Started container {}", plan.name));
        Ok(())
    }

    /// The pod's sandbox, made with its first container.
    async fn sandbox(
        &mut self,
        ips: &[IpAddr],
    ) -> Result<Arc<dyn edgeorc_runtime::Pod>, StartFailure> {
        if let Some(sandbox) = &self.sandbox {
            return Ok(Arc::clone(sandbox));
        }
        let (searches, ndots) = volumes::lookups(&self.seen.borrow());
        let config = PodConfig {
            id: PodId {
                namespace: self.plan.namespace.clone(),
                name: self.plan.name.clone(),
                uid: self.plan.uid.clone(),
            },
            ips: ips.to_vec(),
            hostname: self.plan.hostname.clone(),
            memory_bytes_max: self.plan.memory_bytes_max(),
            hosts: names::host_aliases(&self.seen.borrow()),
            searches,
            ndots,
        };
        let sandbox = self.shared.runtime.create(config).await?;
        self.sandbox = Some(Arc::clone(&sandbox));
        self.state.ips = ips.to_vec();
        self.state.has_sandbox = true;
        Ok(sandbox)
    }
}

/// Keeps the logs of this run and the one before.
fn forget_old_logs(dir: &PodDir, container: &str, run: u32) -> std::io::Result<()> {
    dir.make(&dir.logs(container))?;
    if let Some(old) = run.checked_sub(2) {
        let path = dir.log_file(container, old);
        let rotated = crate::agent::log_file::rotated(&path);
        for path in [path, rotated] {
            let _ = std::fs::remove_file(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgeorc_runtime::{MissingImport, MissingImports};

    #[test]
    fn a_missing_import_is_told_with_the_annotation_that_grants_it() {
        let import = |name: &str, capability| MissingImport { name: name.to_owned(), capability };
        let missing = MissingImports {
            named: vec![
                import("acme:gpio/pins@1.0.0", None),
                import("wasi:keyvalue/store@0.2.0-draft", Some(Capability::KeyValue)),
            ],
            more: 0,
        };
        let failure = StartFailure::from(StartError::MissingImports(missing));
        assert!(failure.is_final);
        let text = failure.message;
        assert!(text.contains("acme:gpio/pins@1.0.0, which edgeorc does not provide"), "{text}");
        assert!(text.contains("wasi:keyvalue/store@0.2.0-draft: grant it with"), "{text}");
        assert!(text.contains("edgeorc.io/keyvalue"), "{text}");
    }

    #[test]
    fn a_bucket_that_cannot_be_one_is_refused() {
        let pod = |list: &str| {
            let pod = serde_json::json!({"metadata": {"annotations": {KEYVALUE_ANNOTATION: list}}});
            PodPlan::read(&serde_json::from_value(pod).unwrap())
        };
        assert!(buckets(&pod("a,b")).unwrap().is_some());
        assert!(matches!(buckets(&pod("a,B/c")), Err(ConfigError::Unsupported(_))));
        assert!(buckets(&pod("")).unwrap().is_none());
    }

    #[test]
    fn every_failure_has_kubernetes_reason_and_a_wait_if_that_can_help() {
        let text = || "why".to_owned();
        let wait = Duration::from_secs(20);
        let image = |error: ImageError| StartFailure::from(error);
        let config = |error: ConfigError| StartFailure::from(error);
        let start = |error: StartError| StartFailure::from(error);
        for (failure, reason, is_final, delay) in [
            (image(ImageError::Name(text())), "InvalidImageName", true, RETRY_MIN),
            (
                image(ImageError::NeverPulled(text())),
                "ErrImageNeverPull",
                false,
                IMAGE_LOOK_INTERVAL,
            ),
            (
                image(ImageError::Pull { message: text(), wait }),
                "ErrImagePull",
                false,
                PULL_ERROR_SHOWN,
            ),
            (
                image(ImageError::BackOff { image: text(), message: text(), wait }),
                "ImagePullBackOff",
                false,
                wait,
            ),
            (
                image(ImageError::Refused { message: text(), may_change: false }),
                "CreateContainerError",
                true,
                RETRY_MIN,
            ),
            (
                image(ImageError::Refused { message: text(), may_change: true }),
                "CreateContainerError",
                false,
                IMAGE_LOOK_INTERVAL,
            ),
            (
                image(ImageError::Compile { message: text(), wait }),
                "CreateContainerError",
                false,
                wait,
            ),
            (image(ImageError::Vanished), "ErrImagePull", false, RETRY_MIN),
            (
                config(ConfigError::Unsupported(text())),
                "CreateContainerConfigError",
                true,
                RETRY_MIN,
            ),
            (
                config(ConfigError::NoObject { kind: "secret", name: text() }),
                "CreateContainerConfigError",
                false,
                RETRY_MIN,
            ),
            (
                start(StartError::Unsupported { reason: text() }),
                "RunContainerError",
                true,
                RETRY_MIN,
            ),
        ] {
            let got = (failure.reason, failure.is_final, failure.delay_min);
            assert_eq!(got, (reason, is_final, delay), "{failure:?}");
        }
    }
}
