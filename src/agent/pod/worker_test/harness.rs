//! A scripted runtime, an API with one pod, and an agent with that pod.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use edgeorc_runtime::{
    Body, BoxIo, Container, ContainerConfig, Exit, ExitReason, PodConfig, PodRuntime, StartError,
    Stdio, Usage,
};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt as _, Empty};
use k8s_openapi::api::core::v1::{ConfigMap, ContainerStatus, Pod, PodStatus, Secret, Service};
use kube::Api;
use kube::runtime::watcher;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::agent::config::RestartBackoff;
use crate::agent::dirs::{Dirs, PodDir, make_private};
use crate::agent::fence::Fence;
use crate::agent::image::{ImageConfig, ImageError, ImageSource, ReadyImage, ReadyVolume, Wanted};
use crate::agent::ipam::{Ipam, Ranges};
use crate::agent::pod::api::{Happening, PodApi, PodApiError};
use crate::agent::pod::objects::{NodeSources, Written};
use crate::agent::pod::probe::PodNetwork;
use crate::agent::pod::start::{DiskTurns, Shared};
use crate::agent::pod::worker::Worker;
use crate::agent::residents::Verdict;
use crate::agent::sessions::Live;
use crate::client::informer;
use crate::rt::{Rng, TaskGroup, WallClock};

/// Longest wait, in the test's own time, for something that must come.
pub(super) const PATIENCE: Duration = Duration::from_secs(3600);

/// The lines of everything that happened, in order.
#[derive(Clone)]
pub(super) struct Journal(pub(super) watch::Sender<Vec<String>>);

impl Journal {
    pub(super) fn note(&self, line: impl Into<String>) {
        self.0.send_modify(|lines| lines.push(line.into()));
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.0.borrow().clone()
    }

    /// Waits until `wanted` was noted `times` times.
    pub(super) async fn until(&self, wanted: &str, times: usize) {
        let mut lines = self.0.subscribe();
        let has = |lines: &Vec<String>| lines.iter().filter(|l| *l == wanted).count() >= times;
        let found = tokio::time::timeout(PATIENCE, lines.wait_for(has)).await;
        assert!(found.is_ok(), "{wanted:?} x{times} never came: {:#?}", self.lines());
    }

    pub(super) fn position(&self, wanted: &str) -> usize {
        let lines = self.lines();
        let at = lines.iter().position(|line| line == wanted);
        at.unwrap_or_else(|| panic!("{wanted:?} is not in {lines:#?}"))
    }

    pub(super) fn count(&self, wanted: &str) -> usize {
        self.lines().iter().filter(|line| *line == wanted).count()
    }
}

/// The API with one pod; writes come back as an informer brings them.
pub(super) struct OnePod {
    pub(super) journal: Journal,
    pub(super) seen: Mutex<Option<watch::Sender<Arc<Pod>>>>,
    pub(super) statuses: watch::Sender<PodStatus>,
    pub(super) config_maps: Mutex<BTreeMap<String, ConfigMap>>,
    /// What a read says when the watch is late.
    pub(super) fresh: Mutex<Option<Pod>>,
}

impl OnePod {
    pub(super) fn change(&self, change: impl FnOnce(&mut Pod)) -> Option<Pod> {
        let seen = self.seen.lock();
        let mut pod = seen.as_ref()?.borrow().as_ref().clone();
        let version: u64 = pod.metadata.resource_version.as_ref()?.parse().ok()?;
        pod.metadata.resource_version = Some((version + 1).to_string());
        change(&mut pod);
        seen.as_ref()?.send_replace(Arc::new(pod.clone()));
        Some(pod)
    }
}

#[async_trait]
impl PodApi for OnePod {
    async fn patch_status(&self, _: &Pod, patch: Value) -> Result<Pod, PodApiError> {
        let merged = self.change(|pod| {
            let mut value = serde_json::to_value(&*pod).unwrap();
            json_patch::merge(&mut value["status"], &patch["status"]);
            *pod = serde_json::from_value(value).unwrap();
        });
        let pod = merged.ok_or(PodApiError::Gone)?;
        let status = pod.status.clone().unwrap();
        let is_unready =
            status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "False");
        self.journal.note(format!(
            "status {} ready={}",
            status.phase.as_deref().unwrap(),
            !is_unready
        ));
        self.statuses.send_replace(status);
        Ok(pod)
    }

    async fn get(&self, base: &Pod) -> Result<Pod, PodApiError> {
        Ok(self.fresh.lock().clone().unwrap_or_else(|| base.clone()))
    }

    async fn delete(&self, _: &Pod) -> Result<(), PodApiError> {
        self.journal.note("api delete");
        self.seen.lock().take();
        Ok(())
    }

    fn event(&self, _: &Pod, container: Option<&str>, (_, reason, message): Happening) {
        self.journal.note(format!("event {reason} {}: {message}", container.unwrap_or("pod")));
    }

    async fn config_map(&self, _: &Pod, name: &str) -> Result<Option<ConfigMap>, PodApiError> {
        Ok(self.config_maps.lock().get(name).cloned())
    }

    async fn secret(&self, _: &Pod, _: &str) -> Result<Option<Secret>, PodApiError> {
        Ok(None)
    }
}

/// Exit code and output of commands; one that is not here runs until it is stopped.
pub(super) type Commands = Arc<Mutex<BTreeMap<String, (i32, String)>>>;

/// Runs nothing; the test says when a container ends.
#[derive(Clone)]
pub(super) struct Script {
    pub(super) journal: Journal,
    pub(super) running: Arc<Mutex<BTreeMap<String, watch::Sender<Option<Exit>>>>>,
    pub(super) commands: Commands,
}

pub(super) struct ScriptedContainer {
    pub(super) name: String,
    pub(super) journal: Journal,
    pub(super) exit: watch::Sender<Option<Exit>>,
    /// What a command has open until it ends.
    pub(super) streams: Mutex<Option<Stdio>>,
}

pub(super) fn exit(code: i32) -> Exit {
    let reason = match code {
        0 => ExitReason::Completed,
        137 => ExitReason::Killed,
        _ => ExitReason::Error,
    };
    Exit { code, reason, message: String::new() }
}

#[async_trait]
impl PodRuntime for Script {
    async fn create(&self, _: PodConfig) -> Result<Arc<dyn edgeorc_runtime::Pod>, StartError> {
        Ok(Arc::new(self.clone()))
    }

    fn compatibility_hash(&self) -> String {
        "script".to_owned()
    }
}

#[async_trait]
impl edgeorc_runtime::Pod for Script {
    async fn start(&self, config: ContainerConfig) -> Result<Arc<dyn Container>, StartError> {
        if config.args.iter().any(|arg| arg == "--unsupported") {
            return Err(StartError::Unsupported { reason: "no".to_owned() });
        }
        // As the runtime does: a run that has begun has a log.
        make_private(config.log_path.parent().unwrap()).unwrap();
        std::fs::write(&config.log_path, "").unwrap();
        let (exit, _) = watch::channel(None);
        self.running.lock().insert(config.name.clone(), exit.clone());
        self.journal.note(format!("start {}", config.name));
        let (journal, streams) = (self.journal.clone(), Mutex::default());
        Ok(Arc::new(ScriptedContainer { name: config.name, journal, exit, streams }))
    }

    async fn exec(
        &self,
        config: ContainerConfig,
        stdio: Stdio,
    ) -> Result<Arc<dyn Container>, StartError> {
        let line = config.args.join(" ");
        self.journal.note(format!("exec in {}: {line}", config.name));
        let scripted = self.commands.lock().get(&line).cloned();
        let (ended, streams) = match scripted {
            Some((code, text)) => {
                stdio.stdout.try_send(text.into()).unwrap();
                (Some(exit(code)), None)
            }
            None => (None, Some(stdio)),
        };
        let (exit, _) = watch::channel(ended);
        let (journal, streams) = (self.journal.clone(), Mutex::new(streams));
        Ok(Arc::new(ScriptedContainer { name: format!("command {line}"), journal, exit, streams }))
    }

    async fn destroy(&self) {
        self.journal.note("destroy");
    }
}

#[async_trait]
impl Container for ScriptedContainer {
    async fn wait(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await.unwrap();
        ended.clone().unwrap()
    }

    async fn stop(&self, grace: Duration) {
        self.journal.note(format!("stop {} within {}s", self.name, grace.as_secs_f64().round()));
        // One that is called stubborn takes all the time it gets.
        let patience = if self.name.starts_with("stubborn") { grace } else { Duration::ZERO };
        let _ = tokio::time::timeout(patience, self.wait()).await;
        // One that is called polite ends by itself when it is told to.
        let told = Exit { code: 0, reason: ExitReason::Stopped, message: String::new() };
        let end = if self.name.starts_with("polite") { told } else { exit(137) };
        self.exit.send_if_modified(|ended| {
            let is_first = ended.is_none();
            ended.get_or_insert(end);
            is_first
        });
        self.streams.lock().take();
    }

    fn hand_over(&self) -> bool {
        let serves = self.name.starts_with("server");
        if serves {
            self.journal.note(format!("hand over {}", self.name));
        }
        serves
    }

    fn usage(&self) -> Usage {
        Usage::default()
    }
}

/// Answers 200, but 500 at paths the test has broken, and nothing at those it has muted.
pub(super) struct Net {
    pub(super) journal: Journal,
    pub(super) broken: Mutex<Vec<String>>,
    pub(super) muted: Mutex<Vec<String>>,
    /// Where paths lead to.
    pub(super) moved: Mutex<BTreeMap<String, String>>,
}

#[async_trait]
impl PodNetwork for Net {
    async fn connect(&self, _: SocketAddr) -> std::io::Result<BoxIo> {
        Err(std::io::ErrorKind::ConnectionRefused.into())
    }

    async fn http(
        &self,
        _: SocketAddr,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, String> {
        let path = request.uri().path().to_owned();
        if self.muted.lock().contains(&path) {
            self.journal.note(format!("GET {path} without an answer"));
            std::future::pending::<()>().await;
        }
        let mut response = http::Response::builder();
        if let Some(location) = self.moved.lock().get(&path) {
            response = response.status(302).header("location", location);
        } else if self.broken.lock().contains(&path) {
            response = response.status(500);
        } else {
            self.journal.note(format!("GET {path}"));
        }
        let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        Ok(response.body(body).unwrap())
    }
}

/// Every image is there, but `missing` ones; one that is `endless` never comes.
pub(super) struct Pictures;

impl ImageSource for Pictures {
    fn ready<'a>(
        &'a self,
        wanted: &'a Wanted<'a>,
    ) -> BoxFuture<'a, Result<ReadyImage, ImageError>> {
        let image = wanted.image.to_owned();
        if image == "endless" {
            return std::future::pending().boxed();
        }
        std::future::ready(match wanted.image {
            "missing" => Err(ImageError::Pull {
                message: "no such image".to_owned(),
                wait: Duration::from_secs(5),
            }),
            _ => Ok(ReadyImage {
                compiled: PathBuf::from(&image),
                id: image,
                config: ImageConfig::default(),
            }),
        })
        .boxed()
    }

    fn volume<'a>(
        &'a self,
        wanted: &'a Wanted<'a>,
        had: Option<ReadyVolume>,
    ) -> BoxFuture<'a, Result<ReadyVolume, ImageError>> {
        let fresh =
            || ReadyVolume { hex: "00".to_owned(), id: format!("{}@sha256:00", wanted.image) };
        std::future::ready(match wanted.image {
            "missing" => Err(ImageError::Pull {
                message: "no such image".to_owned(),
                wait: Duration::from_secs(5),
            }),
            _ => Ok(had.unwrap_or_else(fresh)),
        })
        .boxed()
    }

    fn adopt<'a>(
        &'a self,
        file: &'a Path,
        _whose: Option<&'a str>,
    ) -> BoxFuture<'a, Result<PathBuf, ImageError>> {
        std::future::ready(Ok(file.to_owned())).boxed()
    }
}

/// One agent with one pod. The folder outlives it.
pub(super) struct World {
    pub(super) journal: Journal,
    pub(super) api: Arc<OnePod>,
    pub(super) shared: Arc<Shared>,
    pub(super) net: Arc<Net>,
    pub(super) running: Arc<Mutex<BTreeMap<String, watch::Sender<Option<Exit>>>>>,
    pub(super) commands: Commands,
    pub(super) live: Live,
    pub(super) verdict: watch::Sender<Verdict>,
    pub(super) dir: PodDir,
    pub(super) tasks: TaskGroup,
    pub(super) cancel: CancellationToken,
    pub(super) _range: watch::Sender<Option<Ranges>>,
}

impl World {
    pub(super) fn start(root: &tempfile::TempDir, pod: Value) -> Self {
        let mut base = json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "1"},
            "spec": {"terminationGracePeriodSeconds": 30, "enableServiceLinks": false},
        });
        json_patch::merge(&mut base, &pod);
        Self::with(root, serde_json::from_value(base).unwrap())
    }

    pub(super) fn with(root: &tempfile::TempDir, pod: Pod) -> Self {
        let journal = Journal(watch::channel(Vec::new()).0);
        let running = Arc::new(Mutex::new(BTreeMap::new()));
        let commands = Commands::default();
        let (sender, seen) = watch::channel(Arc::new(pod));
        let api = Arc::new(OnePod {
            journal: journal.clone(),
            seen: Mutex::new(Some(sender)),
            statuses: watch::channel(PodStatus::default()).0,
            config_maps: Mutex::default(),
            fresh: Mutex::default(),
        });
        let net = Arc::new(Net {
            journal: journal.clone(),
            broken: Mutex::default(),
            muted: Mutex::default(),
            moved: Mutex::default(),
        });
        let (range, known_range) = watch::channel(Ranges::parse(&["10.42.1.0/24".to_owned()]));
        let shared = Arc::new(Shared {
            fence: Fence::paused(),
            api: api.clone(),
            runtime: Arc::new(Script {
                journal: journal.clone(),
                running: Arc::clone(&running),
                commands: Arc::clone(&commands),
            }),
            network: net.clone(),
            images: Arc::new(Pictures),
            ipam: Ipam::new(known_range),
            clock: WallClock::system(),
            rng: Rng::seeded(7),
            host_ips: Vec::new(),
            allocatable: (1000, 1 << 30),
            node: node(root),
            restart: RestartBackoff::default(),
            shutdown_grace: Duration::from_secs(10),
            disk: DiskTurns::default(),
        });
        let dir = Dirs::create(root.path().to_owned()).unwrap().pod("u");
        let cancel = CancellationToken::new();
        let tasks = TaskGroup::new(&CancellationToken::new());
        let worker = Box::new(Worker::new(Arc::clone(&shared), &tasks, seen, dir.clone()));
        let (live, verdict) = (worker.live(), worker.verdict());
        let (told, end) = (journal.clone(), cancel.clone());
        tasks.spawn("pod", |_| async move {
            worker.run(end).await;
            told.note("worker ended");
        });
        Self {
            journal,
            api,
            shared,
            net,
            running,
            commands,
            live,
            verdict,
            dir,
            tasks,
            cancel,
            _range: range,
        }
    }

    pub(super) fn exit(&self, container: &str, code: i32) {
        self.running.lock()[container].send_replace(Some(exit(code)));
    }

    pub(super) async fn status(&self, wanted: impl Fn(&PodStatus) -> bool) -> PodStatus {
        let mut statuses = self.api.statuses.subscribe();
        let found = tokio::time::timeout(PATIENCE, statuses.wait_for(|s| wanted(s))).await;
        match found {
            Ok(status) => status.unwrap().clone(),
            Err(_) => panic!("never came; {:#?}", self.api.statuses.borrow()),
        }
    }

    pub(super) async fn phase(&self, phase: &str) -> PodStatus {
        self.status(|status| status.phase.as_deref() == Some(phase)).await
    }

    pub(super) async fn ready(&self) -> PodStatus {
        let is_ready = |c: &ContainerStatus| c.ready;
        self.status(|s| s.container_statuses.as_ref().is_some_and(|all| all.iter().all(is_ready)))
            .await
    }

    pub(super) fn delete(&self, grace: i64) {
        self.api.change(|pod| {
            let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.shared.clock.now());
            pod.metadata.deletion_timestamp = Some(now);
            pod.metadata.deletion_grace_period_seconds = Some(grace);
        });
    }

    /// The agent is stopped as by a power cut: nothing more is written.
    pub(super) async fn cut(self) {
        self.tasks.shutdown(Duration::ZERO).await;
    }
}

/// What the node knows: that there are no Services.
pub(super) fn node(root: &tempfile::TempDir) -> Arc<NodeSources> {
    let empty = tower::service_fn(async |request: http::Request<kube::client::Body>| {
        if request.uri().query().is_some_and(|query| query.contains("watch=")) {
            std::future::pending::<()>().await;
        }
        let list = json!({"apiVersion": "v1", "kind": "ServiceList",
            "metadata": {"resourceVersion": "1"}, "items": []});
        let body = kube::client::Body::from(list.to_string().into_bytes());
        Ok::<_, Infallible>(http::Response::new(body))
    });
    let client = kube::Client::new(empty, "default");
    let tasks = TaskGroup::new(&CancellationToken::new());
    let services = Api::<Service>::all(client);
    Arc::new(NodeSources {
        node_name: "one".to_owned(),
        dirs: Dirs::create(root.path().to_owned()).unwrap(),
        clock: WallClock::system(),
        services: informer(services, watcher::Config::default(), &tasks),
        host_paths: Arc::new([]),
        devices: Arc::new([]),
        ephemeral_bytes: 1 << 30,
        written: Written::default(),
    })
}

pub(super) fn root() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

pub(super) fn of<'a>(status: &'a PodStatus, name: &str) -> &'a ContainerStatus {
    let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    all.into_iter().find(|c| c.name == name).unwrap()
}

/// Whether the status tells of the container, and that it is as wanted.
pub(super) fn is(
    status: &PodStatus,
    name: &str,
    wanted: impl Fn(&ContainerStatus) -> bool,
) -> bool {
    let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    all.into_iter().any(|c| c.name == name && wanted(c))
}

pub(super) fn waiting(container: &ContainerStatus) -> (String, String) {
    let waiting = container.state.as_ref().and_then(|s| s.waiting.clone()).unwrap_or_default();
    (waiting.reason.unwrap_or_default(), waiting.message.unwrap_or_default())
}
