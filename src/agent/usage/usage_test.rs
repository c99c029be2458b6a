//! What is measured of a scripted pod, as clients read it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use edgeorc_runtime::{
    Container, ContainerConfig, Exit, Pod as Sandbox, StartError, Usage as Counted,
};
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::ServiceExt as _;

use super::*;
use crate::agent::dirs::Dirs;
use crate::agent::pod::plan::PodPlan;
use crate::agent::pod::state::PodState;
use crate::agent::pod::writer::Numbered;
use crate::agent::residents::Verdict;
use crate::agent::sessions::{Live, LiveContainer};

const MIB: u64 = 1 << 20;

/// A machine whose figures the test sets.
#[derive(Clone, Default)]
pub(crate) struct Scripted(pub(crate) Arc<Mutex<Figures>>);

impl Machine for Scripted {
    fn read(&self) -> Figures {
        *self.0.lock()
    }
}

/// A sandbox, and the one container in it, that use what the test says.
#[derive(Clone, Default)]
pub(crate) struct Counter(pub(crate) Arc<Mutex<Counted>>);

#[async_trait]
impl Sandbox for Counter {
    async fn start(&self, _: ContainerConfig) -> Result<Arc<dyn Container>, StartError> {
        Ok(Arc::new(self.clone()))
    }

    fn usage(&self) -> Counted {
        *self.0.lock()
    }

    async fn destroy(&self) {}
}

#[async_trait]
impl Container for Counter {
    async fn wait(&self) -> Exit {
        std::future::pending().await
    }

    async fn stop(&self, _: Duration) {}

    fn usage(&self) -> Counted {
        *self.0.lock()
    }
}

/// A pod that runs, without a worker.
pub(crate) struct Guest {
    pub(crate) counter: Counter,
    pub(crate) live: Live,
    pub(crate) states: watch::Sender<Numbered>,
    pub(crate) verdict: watch::Receiver<Verdict>,
    pub(crate) dir: crate::agent::dirs::PodDir,
    _seen: watch::Sender<Arc<Pod>>,
}

/// Adds a pod of one container, called like the pod; `changes` are merged into it.
pub(crate) fn guest(usage: &Usage, dirs: &Dirs, name: &str, changes: &Value) -> Guest {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "shop", "uid": name},
        "spec": {"containers": [{"name": name}]},
    });
    json_patch::merge(&mut pod, changes);
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let now = usage.0.clock.now();
    let mut state = PodState::new(&PodPlan::read(&pod), &pod, &[], now);
    for record in &mut state.containers {
        record.state = RunState::Running { started_at: now, container_id: String::new() };
    }
    let (counter, live, dir) = (Counter::default(), Live::default(), dirs.pod(name));
    dir.create().unwrap();
    let sandbox: Arc<dyn Sandbox> = Arc::new(counter.clone());
    let container = LiveContainer {
        config: config(name),
        image: String::new(),
        container: Arc::new(counter.clone()),
        stdin: None,
    };
    live.started(&sandbox, container);
    let (seen_sender, seen) = watch::channel(Arc::new(pod));
    let (states, known) = watch::channel((0, Arc::new(state)));
    let (verdict, verdicts) = watch::channel(None);
    let (live, shown) = (live.clone(), live);
    let resident = Resident { seen, states: known, live: shown, dir: dir.clone(), verdict };
    usage.residents().insert(name, resident);
    Guest { counter, live, states, verdict: verdicts, dir, _seen: seen_sender }
}

fn config(name: &str) -> ContainerConfig {
    ContainerConfig {
        name: name.to_owned(),
        compiled: "x".into(),
        args: Vec::new(),
        env: Arc::default(),
        mounts: Vec::new(),
        memory_bytes_max: None,
        cpu_millis_max: None,
        cpu_millis: None,
        may_run: None,
        config: None,
        buckets: None,
        http_port: 80,
        fresh_instance_per_request: false,
        log_path: "x".into(),
        log_bytes_max: 1,
        log_bytes_per_second_max: 1,
    }
}

struct World {
    usage: Usage,
    machine: Scripted,
    dirs: Dirs,
    clock: WallClock,
    _root: tempfile::TempDir,
}

fn world() -> World {
    let root = tempfile::tempdir().unwrap();
    let clock = WallClock::manual(1_000);
    let (usage, machine) = (Usage::new(clock.clone(), Residents::default()), Scripted::default());
    machine.0.lock().memory_bytes = 1000 * MIB;
    machine.0.lock().memory_available_bytes = 600 * MIB;
    usage.open("pi-1", Arc::new(machine.clone()), 2000);
    let dirs = Dirs::create(root.path().to_owned()).unwrap();
    World { usage, machine, dirs, clock, _root: root }
}

impl World {
    /// Lets time go by, in which the node and every guest named use CPU, and looks.
    async fn pass(&self, seconds: u64, node_ms: u64, guests: &[(&Guest, u64)]) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
        let now = self.clock.now().as_second() + i64::try_from(seconds).unwrap();
        self.clock.set(now);
        self.machine.0.lock().cpu += Duration::from_millis(node_ms);
        for (guest, ms) in guests {
            guest.counter.0.lock().cpu += Duration::from_millis(*ms);
        }
        self.usage.look(self.usage.figures());
    }

    async fn ask(&self, path: &str) -> (http::StatusCode, String) {
        let request = http::Request::get(path).body(Body::empty()).unwrap();
        let answer = router(self.usage.clone()).oneshot(request).await.unwrap();
        let status = answer.status();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn a_summary_tells_rates_memory_and_files() {
    let world = world();
    let web = guest(&world.usage, &world.dirs, "web", &json!({}));
    web.counter.0.lock().memory_bytes = 3 * MIB;
    let volume = web.dir.volume("cache");
    std::fs::create_dir_all(&volume).unwrap();
    std::fs::write(volume.join("file"), vec![1; 100_000]).unwrap();
    world.pass(10, 4_000, &[(&web, 1_000)]).await;
    world.pass(10, 4_000, &[(&web, 2_000)]).await;
    let (status, text) = world.ask("/stats/summary").await;
    assert_eq!(status, http::StatusCode::OK);
    let summary: Value = serde_json::from_str(&text).unwrap();
    let at = |pointer: &str| summary.pointer(pointer).cloned().unwrap_or_default();
    assert_eq!(at("/node/nodeName"), "pi-1");
    assert_eq!(at("/node/cpu/usageNanoCores"), 400_000_000);
    assert_eq!(at("/node/memory/workingSetBytes"), 400 * MIB);
    assert_eq!(at("/node/memory/availableBytes"), 600 * MIB);
    assert_eq!(at("/pods/0/podRef"), json!({"name": "web", "namespace": "shop", "uid": "web"}));
    assert_eq!(at("/pods/0/containers/0/cpu/usageNanoCores"), 200_000_000);
    assert_eq!(at("/pods/0/containers/0/cpu/usageCoreNanoSeconds"), 3_000_000_000_u64);
    assert_eq!(at("/pods/0/memory/workingSetBytes"), 3 * MIB);
    assert_eq!(at("/pods/0/volume/0/name"), "cache");
    assert!(at("/pods/0/volume/0/usedBytes").as_u64().unwrap() >= 98_304, "{summary:#}");
    assert!(at("/pods/0/ephemeral-storage/usedBytes").as_u64().unwrap() >= 98_304);
    let (_, short) = world.ask("/stats/summary?only_cpu_and_memory=true").await;
    assert!(!short.contains("ephemeral-storage") && short.contains("usageNanoCores"));
}

#[tokio::test(start_paused = true)]
async fn the_metrics_have_kubelets_names() {
    let world = world();
    let web = guest(&world.usage, &world.dirs, "web", &json!({}));
    web.counter.0.lock().memory_bytes = 2 * MIB;
    world.pass(10, 1_500, &[(&web, 250)]).await;
    let (_, text) = world.ask("/metrics/resource").await;
    for line in [
        "# TYPE container_cpu_usage_seconds_total counter",
        "container_cpu_usage_seconds_total{container=\"web\",namespace=\"shop\",pod=\"web\"} 0.25 1010000",
        "container_memory_working_set_bytes{container=\"web\",namespace=\"shop\",pod=\"web\"} 2097152 1010000",
        "container_start_time_seconds{container=\"web\",namespace=\"shop\",pod=\"web\"} 1000.000 1010000",
        "node_cpu_usage_seconds_total 1.5 1010000",
        "node_memory_working_set_bytes 419430400 1010000",
        "pod_cpu_usage_seconds_total{namespace=\"shop\",pod=\"web\"} 0.25 1010000",
        "pod_memory_working_set_bytes{namespace=\"shop\",pod=\"web\"} 2097152 1010000",
        "resource_scrape_error 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_load_is_smooth_and_coarse() {
    let world = world();
    world.pass(10, 0, &[]).await;
    let load = world.usage.load().unwrap();
    assert_eq!(load, Load { cpu_millis: 0, memory_bytes: 400 * MIB });
    // Both cores for ten seconds: a peak.
    world.pass(10, 20_000, &[]).await;
    let peak = world.usage.load().unwrap().cpu_millis;
    assert!((100..=600).contains(&peak) && peak.is_multiple_of(100), "{peak}");
    for _ in 0..30 {
        world.pass(10, 20_000, &[]).await;
    }
    assert_eq!(world.usage.load().unwrap().cpu_millis, 2000);
    // Some MiB more or less tell nothing new.
    world.machine.0.lock().memory_available_bytes -= 7 * MIB;
    world.pass(10, 20_000, &[]).await;
    assert_eq!(world.usage.load().unwrap().memory_bytes, 400 * MIB);
}

#[tokio::test(start_paused = true)]
async fn a_folder_is_not_walked_again_at_once() {
    let world = world();
    let web = guest(&world.usage, &world.dirs, "web", &json!({}));
    let (_, resident) = world.usage.residents().all().remove(0);
    let inodes = || world.usage.disk_of("web", &resident).disk.total().inodes;
    assert_eq!(inodes(), 0);
    std::fs::write(web.dir.path().join("pod.json"), "{}").unwrap();
    assert_eq!(inodes(), 0, "it was walked a moment ago");
    tokio::time::advance(WALK_INTERVAL).await;
    assert_eq!(inodes(), 1);
}

#[tokio::test]
async fn before_the_agent_runs_there_is_no_answer() {
    let usage = Usage::new(WallClock::system(), Residents::default());
    let request = http::Request::get("/stats/summary").body(Body::empty()).unwrap();
    let answer = router(usage.clone()).oneshot(request).await.unwrap();
    assert_eq!(answer.status(), http::StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(usage.load(), None);
}
