//! A node that runs short, against a script of machine and pods.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;
use crate::agent::dirs::Dirs;
use crate::agent::pod::state::{EVICTED, Outcome};
use crate::agent::residents::Residents;
use crate::agent::usage::usage_test::{Guest, Scripted, guest};
use crate::agent::usage::{Disk, Machine as _};
use crate::rt::{TaskGroup, WallClock};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Notes what is asked of it; images that are deleted make the disk emptier.
struct Journal {
    lines: Mutex<Vec<String>>,
    machine: Scripted,
    image_bytes: Mutex<u64>,
}

#[async_trait]
impl Surroundings for Journal {
    async fn reclaim_images(&self) -> u64 {
        self.lines.lock().push("images".to_owned());
        let freed = std::mem::take(&mut *self.image_bytes.lock());
        let mut figures = self.machine.0.lock();
        figures.node_disk.available_bytes += freed;
        figures.image_disk.available_bytes += freed;
        freed
    }

    async fn until_tainted(&self, taint: &'static str) {
        self.lines.lock().push(format!("wait for {taint}"));
    }

    fn tell(&self, _: EventType, reason: &'static str, message: String) {
        self.lines.lock().push(format!("{reason}: {message}"));
    }
}

struct World {
    usage: Usage,
    machine: Scripted,
    journal: Arc<Journal>,
    dirs: Dirs,
    evictor: Evictor,
    pressure: watch::Receiver<Pressure>,
    tasks: TaskGroup,
    _root: tempfile::TempDir,
}

fn roomy() -> Figures {
    let disk =
        Disk { capacity_bytes: 10 * GIB, available_bytes: 5 * GIB, inodes: 1000, inodes_free: 900 };
    Figures {
        memory_bytes: 4 * GIB,
        memory_available_bytes: 2 * GIB,
        node_disk: disk,
        image_disk: disk,
        pids_max: 1000,
        pids: 10,
        ..Figures::default()
    }
}

impl World {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let machine = Scripted::default();
        *machine.0.lock() = roomy();
        let usage = Usage::new(WallClock::system(), Residents::default());
        usage.open("pi-1", Arc::new(machine.clone()), 1000);
        let journal = Arc::new(Journal {
            lines: Mutex::default(),
            machine: machine.clone(),
            image_bytes: Mutex::new(0),
        });
        let (evictor, pressure) =
            Evictor::new(usage.clone(), journal.clone(), EvictionSettings::default());
        let dirs = Dirs::create(root.path().to_owned()).unwrap();
        let tasks = TaskGroup::new(&CancellationToken::new());
        Self { usage, machine, journal, dirs, evictor, pressure, tasks, _root: root }
    }

    /// A pod that ends when it is told to, as its worker would have it.
    fn guest(&self, name: &str, memory_bytes: u64, changes: &Value) -> Guest {
        let guest = guest(&self.usage, &self.dirs, name, changes);
        guest.counter.0.lock().memory_bytes = memory_bytes;
        let (mut verdict, states) = (guest.verdict.clone(), guest.states.clone());
        self.tasks.spawn_until_cancelled("worker", async move {
            let Ok(message) = verdict.wait_for(Option::is_some).await else { return };
            let message = message.clone().unwrap();
            end(&states, Outcome::Failed { reason: Some(EVICTED), message });
        });
        guest
    }

    async fn look(&mut self) -> Vec<String> {
        self.evictor.look().await;
        std::mem::take(&mut *self.journal.lines.lock())
    }
}

fn end(states: &watch::Sender<crate::agent::pod::writer::Numbered>, outcome: Outcome) {
    states.send_modify(|(number, state)| {
        *number += 1;
        let mut ended = state.as_ref().clone();
        ended.outcome = Some(outcome);
        *state = Arc::new(ended);
    });
}

fn requests(memory: &str) -> Value {
    json!({"resources": {"requests": {"memory": memory}}})
}

fn with_request(name: &str, memory: &str, spec: &Value) -> Value {
    let mut container = json!({"name": name});
    json_patch::merge(&mut container, &requests(memory));
    let mut all = json!({"containers": [container]});
    json_patch::merge(&mut all, spec);
    json!({ "spec": all })
}

fn is_evicted(guest: &Guest) -> bool {
    guest.verdict.borrow().is_some()
}

#[tokio::test(start_paused = true)]
async fn a_node_with_enough_does_nothing() {
    let mut world = World::new();
    let web = world.guest("web", GIB, &json!({}));
    assert_eq!(world.look().await, Vec::<String>::new());
    assert!(!is_evicted(&web));
    assert_eq!(*world.pressure.borrow(), Pressure::default());
}

#[tokio::test(start_paused = true)]
async fn short_of_memory_the_pod_furthest_beyond_its_request_goes_first() {
    let mut world = World::new();
    let within = world.guest("within", 500 * MIB, &with_request("within", "512Mi", &json!({})));
    let beyond = world.guest("beyond", 60 * MIB, &with_request("beyond", "10Mi", &json!({})));
    let best_effort = world.guest("best-effort", 40 * MIB, &json!({}));
    let important = world.guest("important", 300 * MIB, &json!({"spec": {"priority": 10}}));
    world.machine.0.lock().memory_available_bytes = 52 * MIB;
    assert_eq!(
        world.look().await,
        [
            "NodeHasInsufficientMemory: Node pi-1 status is now: NodeHasInsufficientMemory",
            "EvictionThresholdMet: Attempting to reclaim memory",
            "wait for node.kubernetes.io/memory-pressure",
        ]
    );
    assert!(world.pressure.borrow().memory);
    let why = beyond.verdict.borrow().clone().unwrap();
    assert_eq!(
        why,
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: 52Mi. \
         Container beyond was using 60Mi, request is 10Mi, has larger consumption of memory."
    );
    // One at a time, then the next, and the one within its request last.
    assert!(!is_evicted(&best_effort) && !is_evicted(&important) && !is_evicted(&within));
    for gone in [&best_effort, &important, &within] {
        assert!(!is_evicted(gone));
        assert_eq!(world.look().await, ["wait for node.kubernetes.io/memory-pressure"]);
        assert!(is_evicted(gone));
    }
    assert_eq!(world.evictor.metrics.count(Some(Signal::MemoryAvailable)), 4);
    assert_eq!(world.evictor.metrics.count(None), 0);
}

#[tokio::test(start_paused = true)]
async fn critical_pods_and_those_whose_end_is_of_no_use_stay() {
    let mut world = World::new();
    let critical = json!({"spec": {"priority": 2_000_000_000}});
    let class = json!({"spec": {"priorityClassName": "system-node-critical"}});
    let fixed = json!({"metadata": {"annotations": {"kubernetes.io/config.source": "file"}}});
    let guests = [
        world.guest("critical", GIB, &critical),
        world.guest("class", GIB, &class),
        world.guest("static", GIB, &fixed),
        world.guest("tiny", MIB, &json!({})),
    ];
    world.machine.0.lock().memory_available_bytes = 0;
    for _ in 0..3 {
        world.look().await;
    }
    assert!(guests.iter().all(|guest| !is_evicted(guest)));
}

#[tokio::test(start_paused = true)]
async fn short_of_disk_what_nobody_uses_goes_before_pods() {
    let mut world = World::new();
    let web = world.guest("web", 0, &json!({}));
    let done = world.guest("done", 0, &json!({}));
    // It had ended when the agent was started.
    let before = world.guest("before", 0, &json!({"status": {"phase": "Succeeded"}}));
    before.live.clear();
    for pod in [&web, &done, &before] {
        let folder = pod.dir.volume("data");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("file"), vec![1; 8 << 20]).unwrap();
        std::fs::write(pod.dir.path().join("pod.json"), "{}").unwrap();
    }
    end(&done.states, Outcome::Succeeded);
    *world.journal.image_bytes.lock() = GIB;
    {
        let mut figures = world.machine.0.lock();
        figures.node_disk.available_bytes = GIB / 2;
        figures.image_disk.available_bytes = GIB * 3 / 2;
    }
    assert_eq!(
        world.look().await,
        [
            "NodeHasDiskPressure: Node pi-1 status is now: NodeHasDiskPressure",
            "EvictionThresholdMet: Attempting to reclaim ephemeral-storage",
            "images",
        ]
    );
    assert!(!is_evicted(&web), "that was enough");
    for pod in [&done, &before] {
        assert!(!pod.dir.volume("data").exists() && pod.dir.has_pod());
    }
    // No images are left, and the disk fills again.
    world.machine.0.lock().node_disk.available_bytes = GIB / 2;
    assert_eq!(world.look().await, ["images", "wait for node.kubernetes.io/disk-pressure"]);
    let why = web.verdict.borrow().clone().unwrap();
    assert!(
        why.starts_with(
            "The node was low on resource: ephemeral-storage. Threshold quantity: 1Gi, available: 512Mi."
        ),
        "{why}"
    );
    assert!(!is_evicted(&done) && !is_evicted(&before));
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_of_images_alone_costs_no_pod() {
    let mut world = World::new();
    let web = world.guest("web", 0, &json!({}));
    std::fs::write(web.dir.path().join("pod.json"), vec![1; 8 << 20]).unwrap();
    {
        let mut figures = world.machine.0.lock();
        figures.has_image_disk = true;
        figures.image_disk.available_bytes = 0;
    }
    for _ in 0..2 {
        assert!(world.look().await.contains(&"images".to_owned()));
    }
    assert!(!is_evicted(&web) && world.pressure.borrow().disk);
}

#[tokio::test(start_paused = true)]
async fn a_lack_of_processes_is_told_and_evicts_nobody() {
    let mut world = World::new();
    let web = world.guest("web", GIB, &json!({}));
    world.machine.0.lock().pids = 999;
    let told = world.look().await;
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(world.pressure.borrow().pid && !is_evicted(&web));
}

#[tokio::test(start_paused = true)]
async fn pressure_ends_five_minutes_after_its_last_sign() {
    let mut world = World::new();
    world.machine.0.lock().memory_available_bytes = 0;
    world.look().await;
    *world.machine.0.lock() = roomy();
    tokio::time::advance(Duration::from_secs(290)).await;
    assert_eq!(world.look().await, Vec::<String>::new());
    assert!(world.pressure.borrow().memory);
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(
        world.look().await,
        ["NodeHasSufficientMemory: Node pi-1 status is now: NodeHasSufficientMemory"]
    );
    assert!(!world.pressure.borrow().memory);
}

#[tokio::test(start_paused = true)]
async fn a_pod_beyond_its_own_limit_goes_and_the_node_is_not_short() {
    let mut world = World::new();
    let limits = json!({"spec": {"containers": [
        {"name": "greedy", "resources": {"limits": {"ephemeral-storage": "1Mi"}}},
    ]}});
    let greedy = world.guest("greedy", 0, &limits);
    let free = world.guest("free", 0, &json!({}));
    for pod in [&greedy, &free] {
        let folder = pod.dir.volume("data");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("file"), vec![1; 2 << 20]).unwrap();
    }
    assert_eq!(world.look().await, Vec::<String>::new());
    assert_eq!(
        greedy.verdict.borrow().as_deref(),
        Some("Pod ephemeral local storage usage exceeds the total limit of containers 1Mi.")
    );
    assert!(!is_evicted(&free));
    assert_eq!(*world.pressure.borrow(), Pressure::default());
    assert_eq!(world.evictor.metrics.count(None), 1);
}

#[tokio::test(start_paused = true)]
async fn an_evicted_pod_that_does_not_end_holds_up_one_look_only() {
    let mut world = World::new();
    let stuck = guest(&world.usage, &world.dirs, "stuck", &json!({}));
    stuck.counter.0.lock().memory_bytes = GIB;
    let next = world.guest("next", 10 * MIB, &json!({}));
    world.machine.0.lock().memory_available_bytes = 0;
    let began = Instant::now();
    world.look().await;
    assert!(is_evicted(&stuck) && !is_evicted(&next));
    assert_eq!(began.elapsed(), GONE_MAX);
    world.look().await;
    assert!(is_evicted(&next));
}

#[test]
fn a_machine_that_nobody_can_read_is_not_short() {
    assert_eq!(Scripted::default().read(), Figures::default());
    let thresholds = EvictionSettings::default().thresholds;
    assert_eq!(shortages(&thresholds, &Figures::default()), []);
}
