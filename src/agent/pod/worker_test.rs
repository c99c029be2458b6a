//! Workers against a scripted runtime: what is started, stopped and told, in which order.

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
use k8s_openapi::api::core::v1::{ConfigMap, ContainerStatus, Pod, PodStatus, Secret, Service};
use kube::Api;
use kube::runtime::watcher;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::agent::config::RestartBackoff;
use crate::agent::dirs::{Dirs, PodDir, make_private};
use crate::agent::image::{ImageError, ImageSource, ReadyImage, ReadyVolume, Wanted};
use crate::agent::ipam::{Ipam, Range};
use crate::agent::pod::api::{Happening, PodApi, PodApiError};
use crate::agent::pod::objects::{NodeSources, Written};
use crate::agent::pod::probe::PodNetwork;
use crate::agent::pod::start::Shared;
use crate::agent::pod::worker::Worker;
use crate::agent::sessions::Live;
use crate::client::informer;
use crate::rt::{Rng, TaskGroup, WallClock};

#[path = "changes_test.rs"]
mod changes_test;
#[path = "command_test.rs"]
mod command_test;

/// Longest wait, in the test's own time, for something that must come.
const PATIENCE: Duration = Duration::from_secs(3600);

/// The lines of everything that happened, in order.
#[derive(Clone)]
struct Journal(watch::Sender<Vec<String>>);

impl Journal {
    fn note(&self, line: impl Into<String>) {
        self.0.send_modify(|lines| lines.push(line.into()));
    }

    fn lines(&self) -> Vec<String> {
        self.0.borrow().clone()
    }

    /// Waits until `wanted` was noted `times` times.
    async fn until(&self, wanted: &str, times: usize) {
        let mut lines = self.0.subscribe();
        let has = |lines: &Vec<String>| lines.iter().filter(|l| *l == wanted).count() >= times;
        let found = tokio::time::timeout(PATIENCE, lines.wait_for(has)).await;
        assert!(found.is_ok(), "{wanted:?} x{times} never came: {:#?}", self.lines());
    }

    fn position(&self, wanted: &str) -> usize {
        let lines = self.lines();
        let at = lines.iter().position(|line| line == wanted);
        at.unwrap_or_else(|| panic!("{wanted:?} is not in {lines:#?}"))
    }

    fn count(&self, wanted: &str) -> usize {
        self.lines().iter().filter(|line| *line == wanted).count()
    }
}

/// The API with one pod; writes come back as an informer brings them.
struct OnePod {
    journal: Journal,
    seen: Mutex<Option<watch::Sender<Arc<Pod>>>>,
    statuses: watch::Sender<PodStatus>,
}

impl OnePod {
    fn change(&self, change: impl FnOnce(&mut Pod)) -> Option<Pod> {
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
        Ok(base.clone())
    }

    async fn delete(&self, _: &Pod) -> Result<(), PodApiError> {
        self.journal.note("api delete");
        self.seen.lock().take();
        Ok(())
    }

    fn event(&self, _: &Pod, container: Option<&str>, (_, reason, message): Happening) {
        self.journal.note(format!("event {reason} {}: {message}", container.unwrap_or("pod")));
    }

    async fn config_map(&self, _: &str, _: &str) -> Result<Option<ConfigMap>, PodApiError> {
        Ok(None)
    }

    async fn secret(&self, _: &str, _: &str) -> Result<Option<Secret>, PodApiError> {
        Ok(None)
    }
}

/// Exit code and output of commands; one that is not here runs until it is stopped.
type Commands = Arc<Mutex<BTreeMap<String, (i32, String)>>>;

/// Runs nothing; the test says when a container ends.
#[derive(Clone)]
struct Script {
    journal: Journal,
    running: Arc<Mutex<BTreeMap<String, watch::Sender<Option<Exit>>>>>,
    commands: Commands,
}

struct ScriptedContainer {
    name: String,
    journal: Journal,
    exit: watch::Sender<Option<Exit>>,
    /// What a command has open until it ends.
    streams: Mutex<Option<Stdio>>,
}

fn exit(code: i32) -> Exit {
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
        self.exit.send_if_modified(|ended| {
            let is_first = ended.is_none();
            ended.get_or_insert(exit(137));
            is_first
        });
        self.streams.lock().take();
    }

    fn usage(&self) -> Usage {
        Usage::default()
    }
}

/// Answers 200, but 500 at paths the test has broken.
struct Net {
    journal: Journal,
    broken: Mutex<Vec<String>>,
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
    ) -> Result<http::StatusCode, String> {
        let path = request.uri().path().to_owned();
        let is_broken = self.broken.lock().contains(&path);
        if !is_broken {
            self.journal.note(format!("GET {path}"));
        }
        Ok(if is_broken { http::StatusCode::INTERNAL_SERVER_ERROR } else { http::StatusCode::OK })
    }
}

struct Pictures;

impl ImageSource for Pictures {
    fn ready<'a>(
        &'a self,
        wanted: &'a Wanted<'a>,
    ) -> BoxFuture<'a, Result<ReadyImage, ImageError>> {
        let image = wanted.image.to_owned();
        std::future::ready(match wanted.image {
            "missing" => Err(ImageError::Pull {
                message: "no such image".to_owned(),
                wait: Duration::from_secs(5),
            }),
            _ => Ok(ReadyImage { compiled: PathBuf::from(&image), id: image }),
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

    fn adopt<'a>(&'a self, file: &'a Path) -> BoxFuture<'a, Result<PathBuf, ImageError>> {
        std::future::ready(Ok(file.to_owned())).boxed()
    }
}

/// One agent with one pod. The folder outlives it.
struct World {
    journal: Journal,
    api: Arc<OnePod>,
    shared: Arc<Shared>,
    net: Arc<Net>,
    running: Arc<Mutex<BTreeMap<String, watch::Sender<Option<Exit>>>>>,
    commands: Commands,
    live: Live,
    dir: PodDir,
    tasks: TaskGroup,
    cancel: CancellationToken,
    _range: watch::Sender<Option<Range>>,
}

impl World {
    fn start(root: &tempfile::TempDir, pod: Value) -> Self {
        let mut base = json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "1"},
            "spec": {"terminationGracePeriodSeconds": 30, "enableServiceLinks": false},
        });
        json_patch::merge(&mut base, &pod);
        Self::with(root, serde_json::from_value(base).unwrap())
    }

    fn with(root: &tempfile::TempDir, pod: Pod) -> Self {
        let journal = Journal(watch::channel(Vec::new()).0);
        let running = Arc::new(Mutex::new(BTreeMap::new()));
        let commands = Commands::default();
        let (sender, seen) = watch::channel(Arc::new(pod));
        let api = Arc::new(OnePod {
            journal: journal.clone(),
            seen: Mutex::new(Some(sender)),
            statuses: watch::channel(PodStatus::default()).0,
        });
        let net = Arc::new(Net { journal: journal.clone(), broken: Mutex::default() });
        let (range, known_range) = watch::channel(Range::parse("10.42.1.0/24"));
        let shared = Arc::new(Shared {
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
        });
        let dir = Dirs::create(root.path().to_owned()).unwrap().pod("u");
        let cancel = CancellationToken::new();
        let tasks = TaskGroup::new(&CancellationToken::new());
        let worker = Worker::new(Arc::clone(&shared), &tasks, seen, dir.clone());
        let live = worker.live();
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
            dir,
            tasks,
            cancel,
            _range: range,
        }
    }

    fn exit(&self, container: &str, code: i32) {
        self.running.lock()[container].send_replace(Some(exit(code)));
    }

    async fn status(&self, wanted: impl Fn(&PodStatus) -> bool) -> PodStatus {
        let mut statuses = self.api.statuses.subscribe();
        let found = tokio::time::timeout(PATIENCE, statuses.wait_for(|s| wanted(s))).await;
        match found {
            Ok(status) => status.unwrap().clone(),
            Err(_) => panic!("never came; {:#?}", self.api.statuses.borrow()),
        }
    }

    async fn phase(&self, phase: &str) -> PodStatus {
        self.status(|status| status.phase.as_deref() == Some(phase)).await
    }

    async fn ready(&self) -> PodStatus {
        let is_ready = |c: &ContainerStatus| c.ready;
        self.status(|s| s.container_statuses.as_ref().is_some_and(|all| all.iter().all(is_ready)))
            .await
    }

    fn delete(&self, grace: i64) {
        self.api.change(|pod| {
            let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.shared.clock.now());
            pod.metadata.deletion_timestamp = Some(now);
            pod.metadata.deletion_grace_period_seconds = Some(grace);
        });
    }

    /// The agent is stopped as by a power cut: nothing more is written.
    async fn cut(self) {
        self.tasks.shutdown(Duration::ZERO).await;
    }
}

/// What the node knows: that there are no Services.
fn node(root: &tempfile::TempDir) -> Arc<NodeSources> {
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
        ephemeral_bytes: 1 << 30,
        written: Written::default(),
    })
}

fn root() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn of<'a>(status: &'a PodStatus, name: &str) -> &'a ContainerStatus {
    let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    all.into_iter().find(|c| c.name == name).unwrap()
}

fn waiting(container: &ContainerStatus) -> (String, String) {
    let waiting = container.state.as_ref().and_then(|s| s.waiting.clone()).unwrap_or_default();
    (waiting.reason.unwrap_or_default(), waiting.message.unwrap_or_default())
}

#[tokio::test(start_paused = true)]
async fn inits_run_one_after_another_then_sidecars_then_the_mains() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {
        "initContainers": [
            {"name": "one"},
            {"name": "proxy", "restartPolicy": "Always",
                "startupProbe": {"httpGet": {"path": "/up", "port": 80}, "periodSeconds": 1}},
            {"name": "two"}],
        "containers": [{"name": "app"}, {"name": "helper"}]}}),
    );
    world.net.broken.lock().push("/up".to_owned());
    world.journal.until("start one", 1).await;
    assert_eq!(world.journal.count("start proxy"), 0);
    world.exit("one", 0);
    world.journal.until("start proxy", 1).await;
    world
        .journal
        .until(
            "event Unhealthy proxy: Startup probe failed: HTTP probe failed with statuscode: 500",
            1,
        )
        .await;
    assert_eq!(world.journal.count("start two"), 0, "the sidecar has not started yet");
    world.net.broken.lock().clear();
    world.journal.until("start two", 1).await;
    assert_eq!(world.journal.count("start app"), 0);
    world.exit("two", 0);
    let status = world.ready().await;
    assert!(world.journal.position("start app") < world.journal.position("start helper"));
    assert!(of(&status, "one").ready, "an init container that is done is ready");
    assert_eq!(status.phase.as_deref(), Some("Running"));
}

#[tokio::test(start_paused = true)]
async fn a_container_that_fails_takes_the_pod_with_it_and_all_start_again_in_order() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {
        "initContainers": [{"name": "init"}, {"name": "proxy", "restartPolicy": "Always"}],
        "containers": [{"name": "app"}, {"name": "helper"}]}}),
    );
    world.journal.until("start init", 1).await;
    world.exit("init", 0);
    world.ready().await;
    world.exit("app", 3);
    world.journal.until("start helper", 2).await;
    let lines = world.journal.lines();
    let stopped = lines.iter().position(|l| l == "stop helper within 2s").unwrap();
    assert!(lines[stopped..].iter().any(|l| l == "stop proxy within 2s"), "{lines:#?}");
    let again: Vec<&String> = lines[stopped..].iter().filter(|l| l.starts_with("start ")).collect();
    assert_eq!(again, ["start proxy", "start app", "start helper"]);
    assert_eq!(world.journal.count("start init"), 1);
    let status = world
        .status(|s| s.container_statuses.iter().flatten().all(|c| c.ready && c.restart_count == 1))
        .await;
    let last = of(&status, "app").last_state.as_ref().unwrap().terminated.clone().unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (3, Some("Error")));
    world
        .journal
        .until("event BackOff app: Back-off restarting failed container app in pod web_shop(u)", 1)
        .await;
}

#[tokio::test(start_paused = true)]
async fn with_a_fate_of_their_own_only_the_failed_one_starts_again() {
    let root = root();
    let world = World::start(
        &root,
        json!({
        "metadata": {"annotations": {"edgeorc.io/fate": "container"}},
        "spec": {"containers": [{"name": "app"}, {"name": "helper"}]}}),
    );
    world.ready().await;
    world.exit("app", 1);
    world.journal.until("start app", 2).await;
    assert_eq!(world.journal.count("start helper"), 1);
    assert_eq!(world.journal.count("stop helper within 2s"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_starts_again_whatever_the_policy_and_does_not_hold_the_pod() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {"restartPolicy": "Never",
        "initContainers": [{"name": "proxy", "restartPolicy": "Always"}],
        "containers": [{"name": "app"}]}}),
    );
    world.ready().await;
    world.exit("proxy", 1);
    world.journal.until("start proxy", 2).await;
    assert_eq!(world.journal.count("start app"), 1);
    world.exit("app", 0);
    world.phase("Succeeded").await;
    assert!(world.journal.position("stop proxy within 30s") < world.journal.position("destroy"));
}

#[tokio::test(start_paused = true)]
async fn policy_and_exit_codes_give_the_phase() {
    for (policy, codes, phase) in [
        ("Never", [0, 0], "Succeeded"),
        ("Never", [0, 2], "Failed"),
        ("OnFailure", [0, 0], "Succeeded"),
    ] {
        let root = root();
        let world = World::start(
            &root,
            json!({"spec": {"restartPolicy": policy,
            "containers": [{"name": "a"}, {"name": "b"}]}}),
        );
        world.ready().await;
        world.exit("a", codes[0]);
        world.exit("b", codes[1]);
        let status = world.phase(phase).await;
        let ready = status.conditions.iter().flatten().find(|c| c.type_ == "Ready").unwrap();
        let reason = if phase == "Succeeded" { "PodCompleted" } else { "PodFailed" };
        assert_eq!(ready.reason.as_deref(), Some(reason));
    }
    for (policy, code) in [("Always", 0), ("Always", 1), ("OnFailure", 1)] {
        let root = root();
        let world = World::start(
            &root,
            json!({"spec": {"restartPolicy": policy,
            "containers": [{"name": "a"}]}}),
        );
        world.ready().await;
        world.exit("a", code);
        world.journal.until("start a", 2).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_init_that_fails_ends_a_pod_that_never_restarts_and_is_tried_again_in_others() {
    let root = root();
    let spec = |policy: &str| {
        json!({"spec": {"restartPolicy": policy,
        "initContainers": [{"name": "init"}], "containers": [{"name": "app"}]}})
    };
    let world = World::start(&root, spec("Never"));
    world.journal.until("start init", 1).await;
    world.exit("init", 1);
    world.phase("Failed").await;
    assert_eq!(world.journal.count("start app"), 0);
    let root = self::root();
    let world = World::start(&root, spec("Always"));
    world.journal.until("start init", 1).await;
    world.exit("init", 1);
    world.journal.until("start init", 2).await;
    assert_eq!(world.journal.count("start app"), 0);
}

#[tokio::test(start_paused = true)]
async fn crash_loops_back_off_with_kubernetes_words() {
    let root = root();
    let world = World::start(&root, json!({"spec": {"containers": [{"name": "app"}]}}));
    let mut waits = Vec::new();
    for run in 1..=12 {
        world.journal.until("start app", run).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let since = Instant::now();
        world.exit("app", 1);
        world.journal.until("start app", run + 1).await;
        waits.push(since.elapsed().as_secs_f64());
    }
    assert!(waits[0] < 0.03 && waits[5] < 0.4, "{waits:?}");
    assert!(waits[11] >= 10.0, "crashes soon after the start are a loop: {waits:?}");
    world.exit("app", 1);
    let status = world
        .status(|s| s.container_statuses.iter().flatten().any(|c| c.restart_count == 13))
        .await;
    let (reason, message) = waiting(of(&status, "app"));
    assert_eq!(reason, "CrashLoopBackOff");
    assert_eq!(message, "back-off 10s restarting failed container=app pod=web_shop(u)");
}

#[tokio::test(start_paused = true)]
async fn deletion_takes_the_pod_out_of_the_endpoints_runs_hooks_and_stops_in_order() {
    let root = root();
    let pre_stop = |path: &str| json!({"preStop": {"httpGet": {"path": path, "port": 80}}});
    let world = World::start(
        &root,
        json!({"spec": {
        "initContainers": [
            {"name": "first", "restartPolicy": "Always", "lifecycle": pre_stop("/bye-first")},
            {"name": "second", "restartPolicy": "Always"}],
        "containers": [{"name": "app", "lifecycle": pre_stop("/bye-app")}, {"name": "helper"}]}}),
    );
    world.ready().await;
    world.journal.until("status Running ready=true", 1).await;
    world.delete(20);
    world.journal.until("worker ended", 1).await;
    let order = [
        "event Killing app: Stopping container app",
        "status Running ready=false",
        "GET /bye-app",
        "stop app within 20s",
        "stop second within 20s",
        "GET /bye-first",
        "stop first within 20s",
        "destroy",
        "api delete",
        "worker ended",
    ];
    let lines = world.journal.lines();
    let deleted = world.journal.position(order[0]);
    let at: Vec<usize> = order
        .iter()
        .map(|wanted| {
            let found = lines[deleted..].iter().position(|line| line == wanted);
            found.unwrap_or_else(|| panic!("{wanted:?} is not in {lines:#?}"))
        })
        .collect();
    assert!(at.is_sorted(), "{at:?} {lines:#?}");
    assert!(!world.dir.has_pod(), "its files are gone");
}

#[tokio::test(start_paused = true)]
async fn hooks_and_containers_share_one_grace_time() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {
        "initContainers": [{"name": "stubborn-proxy", "restartPolicy": "Always"}],
        "containers": [{"name": "stubborn-app", "lifecycle": {"preStop": {"sleep": {"seconds": 60}}}}]}}),
    );
    world.ready().await;
    let since = Instant::now();
    world.delete(10);
    world.journal.until("worker ended", 1).await;
    // Two containers that do not obey get the least time each, once the hook has used up all.
    assert!(since.elapsed() < Duration::from_secs(10 + 2 + 2 + 1), "{:?}", since.elapsed());
    world
        .journal
        .until(
            "event FailedPreStopHook stubborn-app: the hook took longer than the grace period",
            1,
        )
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_grace_that_is_shortened_while_the_pod_ends_counts() {
    let spec = json!({"spec": {"containers": [{"name": "stubborn",
        "lifecycle": {"preStop": {"sleep": {"seconds": 600}}}}]}});
    for is_forced in [false, true] {
        let root = root();
        let world = World::start(&root, spec.clone());
        world.ready().await;
        world.delete(3600);
        tokio::time::sleep(Duration::from_secs(10)).await;
        let since = Instant::now();
        if is_forced {
            world.api.seen.lock().take();
        } else {
            world.delete(1);
        }
        world.journal.until("worker ended", 1).await;
        assert!(since.elapsed() < Duration::from_secs(6), "{is_forced}: {:?}", since.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_gone_from_the_api_is_stopped_and_forgotten() {
    let root = root();
    let world = World::start(&root, json!({"spec": {"containers": [{"name": "app"}]}}));
    world.ready().await;
    world.api.seen.lock().take();
    world.journal.until("worker ended", 1).await;
    assert_eq!(world.journal.count("api delete"), 0);
    assert!(!world.dir.has_pod());
}

#[tokio::test(start_paused = true)]
async fn an_active_deadline_ends_the_pod() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {"activeDeadlineSeconds": 60,
        "containers": [{"name": "app"}]}}),
    );
    world.ready().await;
    let since = Instant::now();
    let status = world.phase("Failed").await;
    assert!((59..62).contains(&since.elapsed().as_secs()), "{:?}", since.elapsed());
    assert_eq!(status.reason.as_deref(), Some("DeadlineExceeded"));
    assert_eq!(
        status.message.as_deref(),
        Some("Pod was active on the node longer than the specified deadline")
    );
    assert_eq!(world.journal.count("stop app within 30s"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_is_lowered_while_the_pod_runs_counts() {
    let root = root();
    let world = World::start(&root, json!({"spec": {"containers": [{"name": "app"}]}}));
    world.ready().await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(world.journal.count("destroy"), 0);
    world.api.change(|pod| pod.spec.as_mut().unwrap().active_deadline_seconds = Some(5));
    let status = world.phase("Failed").await;
    assert_eq!(status.reason.as_deref(), Some("DeadlineExceeded"));
}

#[tokio::test(start_paused = true)]
async fn a_container_is_ready_after_its_post_start_hook_and_killed_if_that_fails() {
    let root = root();
    let hook = json!({"postStart": {"httpGet": {"path": "/hello", "port": 80}}});
    let world = World::start(
        &root,
        json!({"spec": {"containers": [
        {"name": "app", "lifecycle": hook}, {"name": "next"}]}}),
    );
    world.net.broken.lock().push("/hello".to_owned());
    world
        .journal
        .until("event FailedPostStartHook app: HTTP probe failed with statuscode: 500", 1)
        .await;
    world.journal.until("stop app within 30s", 1).await;
    world.net.broken.lock().clear();
    world.ready().await;
    let lines = world.journal.lines();
    let failed = lines.iter().position(|l| l.starts_with("event FailedPostStartHook")).unwrap();
    assert!(failed < world.journal.position("start next"), "the next container waits for the hook");
}

#[tokio::test(start_paused = true)]
async fn a_liveness_failure_stops_the_container_with_hook_and_grace_and_starts_it_again() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {"containers": [{"name": "stubborn",
        "lifecycle": {"preStop": {"httpGet": {"path": "/bye", "port": 80}}},
        "livenessProbe": {"httpGet": {"path": "/live", "port": 80}, "periodSeconds": 1,
            "failureThreshold": 2, "terminationGracePeriodSeconds": 7}}]}}),
    );
    world.ready().await;
    world.net.broken.lock().push("/live".to_owned());
    world
        .journal
        .until(
            "event Killing stubborn: Container stubborn failed liveness probe, will be restarted",
            1,
        )
        .await;
    world.net.broken.lock().clear();
    world.journal.until("start stubborn", 2).await;
    assert!(world.journal.position("GET /bye") < world.journal.position("stop stubborn within 7s"));
    assert_eq!(world.journal.count("stop stubborn within 7s"), 1);
    // While it ends, the worker still listens: a second pod's deletion would not wait.
    let status = world.ready().await;
    assert_eq!(of(&status, "stubborn").restart_count, 1);
}

#[tokio::test(start_paused = true)]
async fn readiness_follows_its_probe() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {"containers": [{"name": "app",
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 80}, "periodSeconds": 1}}]}}),
    );
    world.ready().await;
    world.net.broken.lock().push("/ready".to_owned());
    world.status(|s| s.container_statuses.iter().flatten().all(|c| !c.ready)).await;
    assert_eq!(world.journal.count("stop app within 30s"), 0);
    world.net.broken.lock().clear();
    world.ready().await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_start_says_why_and_is_tried_again_if_that_can_help() {
    let root = root();
    let world =
        World::start(&root, json!({"spec": {"containers": [{"name": "app", "image": "missing"}]}}));
    let status = world
        .status(|s| s.container_statuses.iter().flatten().any(|c| waiting(c).0 == "ErrImagePull"))
        .await;
    assert!(waiting(of(&status, "app")).1.contains("no such image"));
    world.journal.until("event Failed app: Error: no such image", 3).await;
    let root = self::root();
    let world = World::start(
        &root,
        json!({"spec": {"restartPolicy": "Never",
        "containers": [{"name": "app", "args": ["--unsupported"]}]}}),
    );
    let status = world.phase("Failed").await;
    let ended = of(&status, "app").state.clone().unwrap().terminated.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_deref()), (128, Some("ContainerCannotRun")));
}

#[tokio::test(start_paused = true)]
async fn last_words_are_in_the_status() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "app"}]}}),
    );
    world.ready().await;
    std::fs::write(world.dir.termination("app").join("termination-log"), "out of paper").unwrap();
    world.exit("app", 4);
    let status = world.phase("Failed").await;
    let ended = of(&status, "app").state.clone().unwrap().terminated.unwrap();
    assert_eq!(ended.message.as_deref(), Some("out of paper"));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_had_ended_is_not_run_again_by_the_next_agent() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {"restartPolicy": "OnFailure", "containers": [{"name": "app"}]}}),
    );
    world.ready().await;
    world.exit("app", 0);
    world.phase("Succeeded").await;
    let dir = world.dir.clone();
    world.cut().await;
    let pod = dir.read_pod().unwrap();
    assert_eq!(pod.status.as_ref().unwrap().phase.as_deref(), Some("Succeeded"));
    let world = World::with(&root, pod);
    world.delete(30);
    world.journal.until("worker ended", 1).await;
    assert_eq!(world.journal.count("start app"), 0);
}

#[tokio::test(start_paused = true)]
async fn the_part_of_a_pod_that_was_done_is_not_done_again_by_the_next_agent() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {"restartPolicy": "OnFailure",
        "containers": [{"name": "once"}, {"name": "app"}]}}),
    );
    world.ready().await;
    world.exit("once", 0);
    world
        .status(|s| s.container_statuses.iter().flatten().any(|c| c.name == "once" && !c.ready))
        .await;
    let dir = world.dir.clone();
    world.cut().await;
    let world = World::with(&root, dir.read_pod().unwrap());
    world.journal.until("start app", 1).await;
    world.exit("app", 0);
    world.phase("Succeeded").await;
    assert_eq!(world.journal.count("start once"), 0);
}

#[tokio::test(start_paused = true)]
async fn restarts_are_counted_over_restarts_of_the_agent_without_writing_at_each() {
    let root = root();
    let world = World::start(&root, json!({"spec": {"containers": [{"name": "app"}]}}));
    for run in 1..=3 {
        world.journal.until("start app", run).await;
        world.exit("app", 1);
    }
    world.journal.until("start app", 4).await;
    let dir = world.dir.clone();
    world.cut().await;
    assert_eq!(dir.read_pod().unwrap().status.unwrap().phase.as_deref(), Some("Pending"));
    let world = World::with(&root, dir.read_pod().unwrap());
    let status = world.ready().await;
    assert_eq!(of(&status, "app").restart_count, 4);
    let last = of(&status, "app").last_state.as_ref().unwrap().terminated.clone().unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (255, Some("Unknown")));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_has_ended_gives_its_address_back() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "app"}]}}),
    );
    let had = world.ready().await.pod_ip.unwrap();
    world.exit("app", 0);
    world.phase("Succeeded").await;
    world.shared.ipam.reserve("other", had.parse().unwrap());
    let dir = Dirs::create(root.path().to_owned()).unwrap().pod("other");
    assert_eq!(world.shared.ipam.address("other", &dir).await.unwrap().to_string(), had);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_stops_ends_its_containers_and_keeps_the_pod() {
    let root = root();
    let world = World::start(&root, json!({"spec": {"containers": [{"name": "app"}]}}));
    world.ready().await;
    world.cancel.cancel();
    world.journal.until("worker ended", 1).await;
    assert_eq!(world.journal.count("stop app within 10s"), 1);
    assert_eq!(world.journal.count("api delete"), 0);
    assert!(world.dir.has_pod());
}

#[tokio::test(start_paused = true)]
async fn an_image_volume_is_shown_in_the_status_and_one_that_cannot_be_had_holds_the_pod() {
    let pod = |image: &str| {
        json!({"spec": {
            "containers": [{"name": "app", "image": "app",
                "volumeMounts": [{"name": "v", "mountPath": "/m", "readOnly": true}]}],
            "volumes": [{"name": "v", "image": {"reference": image}}]}})
    };
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.path().join("images/trees/00")).unwrap();
    let world = World::start(&root, pod("data:v1"));
    let status = world.ready().await;
    let shown = serde_json::to_value(&status.container_statuses.unwrap()[0].volume_mounts).unwrap();
    assert_eq!(
        shown,
        json!([{"name": "v", "mountPath": "/m", "readOnly": true, "recursiveReadOnly": "Enabled",
            "volumeStatus": {"image": {"imageRef": "data:v1@sha256:00"}}}])
    );
    world.cut().await;
    let root = tempfile::tempdir().unwrap();
    let world = World::start(&root, pod("missing"));
    let is_told = |status: &PodStatus| {
        let waiting = status.container_statuses.as_ref()?[0].state.as_ref()?.waiting.clone()?;
        (waiting.reason.as_deref() == Some("ErrImagePull")).then_some(())
    };
    world.status(|status| is_told(status).is_some()).await;
    assert_eq!(world.journal.count("start app"), 0);
}
