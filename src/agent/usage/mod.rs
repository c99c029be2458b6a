//! What pods, containers and the node use, measured.
//!
//! Data in: the runtime's counts of each sandbox, the machine's figures, the pods' folders. Data
//! out: kubelet's `/stats/summary` and `/metrics/resource`, the last hour at `/stats/history`, the
//! node's load for its heartbeat, and what eviction judges by.
//!
//! # Invariants
//!
//! - Counting is cheap: at every look, 10 s apart, some numbers are read from memory; folders are
//!   walked only when somebody asks or a limit is to be kept, each at most every
//!   [`WALK_INTERVAL`] and so seldom that it takes less than a part in [`WALK_SHARE`] of a core.
//! - Nothing here writes to a disk.
//! - Figures of the machine come from [`Machine`] alone.

mod disk;
mod history;
mod machine;
mod prometheus;
mod routes;
mod summary;
mod track;
#[cfg(test)]
pub(crate) mod usage_test;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::agent::eviction::EvictionMetrics;
use crate::agent::pod::state::RunState;
use crate::agent::residents::{Resident, Residents};
use crate::mesh::Mesh;
use crate::rt::WallClock;
use history::History;
use track::{Point, Track};

pub(crate) use disk::{PodDisk, Tally};
pub use machine::{Disk, Figures, Machine, ThisMachine};
pub(crate) use routes::router;
pub(crate) use track::Cpu;

/// Shortest pause between two walks through one pod's folder: kubelet's.
const WALK_INTERVAL: Duration = Duration::from_secs(60);
/// A walk that took long is not repeated before so many times its length.
const WALK_SHARE: u32 = 500;
/// Part of a new rate in the node's load: a peak of some seconds is no reason to schedule elsewhere.
const LOAD_SHARE: f64 = 0.25;
/// The load is told in so many steps from idle to full.
const LOAD_STEPS: u64 = 20;
/// Memory is told in whole MiB.
const MEMORY_GRAIN: u64 = 1 << 20;

/// Measures the node and its pods. Exists before the agent. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(crate) struct Usage(Arc<Inner>);

struct Inner {
    clock: WallClock,
    residents: Residents,
    evictions: EvictionMetrics,
    node: OnceLock<NodeTools>,
    /// What sees the requests.
    mesh: OnceLock<Mesh>,
    state: Mutex<State>,
    /// One walk at a time.
    walking: Mutex<()>,
}

struct NodeTools {
    name: String,
    machine: Arc<dyn Machine>,
    cpu_millis: u64,
    since: Timestamp,
}

#[derive(Default)]
struct State {
    node: Option<Track>,
    /// Smoothed rate of the node, in thousandths of a core.
    load_millis: f64,
    figures: Figures,
    /// By pod's uid.
    pods: BTreeMap<String, Track>,
    /// By pod's uid and container's name, with the start of the run.
    containers: BTreeMap<(String, String), (Timestamp, Track)>,
    disks: BTreeMap<String, Walked>,
    /// When the first look was, and the last hour of the node and of each container.
    first_look: Option<Instant>,
    node_history: History,
    histories: BTreeMap<(String, String), History>,
}

/// A pod's disk use, and when it was looked at.
#[derive(Debug, Clone)]
pub(crate) struct Walked {
    pub(crate) disk: Arc<PodDisk>,
    pub(crate) time: Timestamp,
    at: Instant,
    took: Duration,
}

impl Walked {
    fn is_fresh(&self) -> bool {
        let pause = WALK_INTERVAL.max(self.took.saturating_mul(WALK_SHARE));
        self.at.elapsed() < pause
    }
}

/// What a node uses, with its pods.
#[derive(Debug, Clone)]
pub(crate) struct NodeUse {
    pub(crate) name: String,
    pub(crate) time: Timestamp,
    pub(crate) since: Timestamp,
    pub(crate) cpu: Cpu,
    pub(crate) figures: Figures,
    pub(crate) pods: Vec<PodUse>,
}

/// What a pod uses.
#[derive(Debug, Clone)]
pub(crate) struct PodUse {
    pub(crate) uid: String,
    pub(crate) pod: Arc<Pod>,
    pub(crate) since: Timestamp,
    pub(crate) cpu: Cpu,
    /// Linear memory and tables of all its guests, commands included.
    pub(crate) memory_bytes: u64,
    /// Those that run.
    pub(crate) containers: Vec<ContainerUse>,
    /// If it was asked for.
    pub(crate) disk: Option<Walked>,
}

impl PodUse {
    pub(crate) fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    pub(crate) fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }
}

/// What a container uses.
#[derive(Debug, Clone)]
pub(crate) struct ContainerUse {
    pub(crate) name: String,
    pub(crate) since: Timestamp,
    pub(crate) cpu: Cpu,
    pub(crate) memory_bytes: u64,
}

/// The node's load as its heartbeat tells it, in coarse steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) cpu_millis: u64,
    pub(crate) memory_bytes: u64,
}

impl std::fmt::Debug for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Usage").finish_non_exhaustive()
    }
}

impl Usage {
    /// Measures nothing yet.
    pub(crate) fn new(clock: WallClock, residents: Residents) -> Self {
        let (node, mesh) = (OnceLock::new(), OnceLock::new());
        let (state, walking) = (Mutex::default(), Mutex::default());
        let evictions = EvictionMetrics::default();
        Self(Arc::new(Inner { clock, residents, evictions, node, mesh, state, walking }))
    }

    /// What is counted of evictions: it has to be there before the agent is.
    pub(crate) fn evictions(&self) -> &EvictionMetrics {
        &self.0.evictions
    }

    /// The pods that are measured.
    pub(crate) fn residents(&self) -> &Residents {
        &self.0.residents
    }

    /// Begins to measure. Only the first call has an effect.
    pub(crate) fn open(&self, name: &str, machine: Arc<dyn Machine>, cpu_millis: u64) {
        let (name, since) = (name.to_owned(), self.0.clock.now());
        let figures = machine.read();
        let _ = self.0.node.set(NodeTools { name, machine, cpu_millis, since });
        let mut state = self.0.state.lock();
        state.figures = figures;
        state.node = Some(Track::from(Point { at: Instant::now(), used: figures.cpu }));
    }

    /// Begins to tell what the mesh sees. Only the first call has an effect.
    pub(crate) fn watch_mesh(&self, mesh: &Mesh) {
        let _ = self.0.mesh.set(mesh.clone());
    }

    /// What sees the requests; `None` before the agent runs.
    pub(crate) fn mesh(&self) -> Option<&Mesh> {
        self.0.mesh.get()
    }

    /// The node's name; empty before the agent runs.
    pub(crate) fn node_name(&self) -> &str {
        self.0.node.get().map_or("", |node| node.name.as_str())
    }

    /// Reads the machine. Blocks for a moment.
    pub(crate) fn figures(&self) -> Figures {
        self.0.node.get().map(|node| node.machine.read()).unwrap_or_default()
    }

    /// Takes one look at all counts.
    pub(crate) fn look(&self, figures: Figures) {
        let (now, clock) = (Instant::now(), self.0.clock.now());
        let residents = self.0.residents.all();
        let mut state = self.0.state.lock();
        let point = Point { at: now, used: figures.cpu };
        if let Some(track) = &mut state.node {
            track.note(point);
            let rate = f64_of(track.cpu(point).rate_nanos) / 1e6;
            state.load_millis += (rate - state.load_millis) * LOAD_SHARE;
        }
        state.figures = figures;
        let state = &mut *state;
        let uids: BTreeSet<&str> = residents.iter().map(|(uid, _)| uid.as_str()).collect();
        state.pods.retain(|uid, _| uids.contains(uid.as_str()));
        state.containers.retain(|(uid, _), _| uids.contains(uid.as_str()));
        state.disks.retain(|uid, _| uids.contains(uid.as_str()));
        state.histories.retain(|(uid, _), _| uids.contains(uid.as_str()));
        let first = *state.first_look.get_or_insert(now);
        let minute = now.saturating_duration_since(first).as_secs() / history::POINT_SECONDS;
        if let Some(track) = &state.node {
            let millis = track.cpu(point).rate_nanos / 1_000_000;
            state.node_history.note(minute, millis, figures.memory_used_bytes());
        }
        for (uid, resident) in &residents {
            let Some(sandbox) = resident.live.sandbox() else { continue };
            let runs = runs(resident);
            let born = runs.iter().map(|run| run.since).min().unwrap_or(clock);
            let used = sandbox.usage().cpu;
            let new = || Track::new(instant_of(born, clock, now));
            state.pods.entry(uid.clone()).or_insert_with(new).note(Point { at: now, used });
            for run in runs {
                let key = (uid.clone(), run.name);
                let new = || (run.since, Track::new(instant_of(run.since, clock, now)));
                let known = state.containers.entry(key.clone()).or_insert_with(new);
                if known.0 != run.since {
                    *known = new();
                }
                let at_run = Point { at: now, used: run.used };
                known.1.note(at_run);
                let millis = known.1.cpu(at_run).rate_nanos / 1_000_000;
                let histories = state.histories.entry(key).or_default();
                histories.note(minute, millis, run.memory_bytes);
            }
        }
    }

    /// The last hour of the node and of its containers, as JSON; `None` before the agent runs.
    pub(crate) fn history(&self) -> Option<Value> {
        let node = self.0.node.get()?;
        let residents = self.0.residents.all();
        let state = self.0.state.lock();
        let mut containers = Vec::new();
        for (uid, resident) in &residents {
            let pod = resident.pod();
            let of_pod = (uid.clone(), String::new())..;
            let all = state.histories.range(of_pod).take_while(|((of, _), _)| of == uid);
            containers.extend(all.map(|((_, name), history)| {
                json!({
                    "namespace": pod.metadata.namespace, "pod": pod.metadata.name, "uid": uid,
                    "container": name, "usage": history.to_value(),
                })
            }));
        }
        Some(json!({
            "nodeName": node.name, "time": self.0.clock.now_rfc3339(),
            "pointSeconds": history::POINT_SECONDS, "pointsMax": history::POINTS_MAX,
            "usage": state.node_history.to_value(), "containers": containers,
        }))
    }

    /// Everything, as of now; `None` before the agent runs. With `has_disks` it blocks on the file
    /// system.
    pub(crate) fn measure(&self, has_disks: bool) -> Option<NodeUse> {
        let node = self.0.node.get()?;
        let figures = node.machine.read();
        let residents = self.0.residents.all();
        let of_pod = |(uid, resident): &(String, Resident)| PodUse {
            disk: has_disks.then(|| self.disk_of(uid, resident)),
            ..self.of_pod(uid, resident)
        };
        let pods = residents.iter().map(of_pod).collect();
        let now = Point { at: Instant::now(), used: figures.cpu };
        let track = self.0.state.lock().node.unwrap_or_else(|| Track::from(now));
        let (name, time) = (node.name.clone(), self.0.clock.now());
        Some(NodeUse { name, time, since: node.since, cpu: track.cpu(now), figures, pods })
    }

    /// What a pod uses of CPU and memory.
    pub(crate) fn of_pod(&self, uid: &str, resident: &Resident) -> PodUse {
        let (now, clock) = (Instant::now(), self.0.clock.now());
        let used = resident.live.sandbox().map(|sandbox| sandbox.usage()).unwrap_or_default();
        let runs = runs(resident);
        let born = runs.iter().map(|run| run.since).min().unwrap_or(clock);
        let state = self.0.state.lock();
        let new = |since| Track::new(instant_of(since, clock, now));
        let track = state.pods.get(uid).copied().unwrap_or_else(|| new(born));
        let containers = runs.into_iter().map(|run| {
            let known = state.containers.get(&(uid.to_owned(), run.name.clone()));
            let known = known.filter(|known| known.0 == run.since);
            let track = known.map_or_else(|| new(run.since), |known| known.1);
            ContainerUse {
                cpu: track.cpu(Point { at: now, used: run.used }),
                name: run.name,
                since: run.since,
                memory_bytes: run.memory_bytes,
            }
        });
        PodUse {
            uid: uid.to_owned(),
            pod: resident.pod(),
            since: resident.states.borrow().1.start_time,
            cpu: track.cpu(Point { at: now, used: used.cpu }),
            memory_bytes: used.memory_bytes,
            containers: containers.collect(),
            disk: None,
        }
    }

    /// A pod's disk use, not older than [`WALK_INTERVAL`] or what is worth it. Blocks on the file
    /// system.
    pub(crate) fn disk_of(&self, uid: &str, resident: &Resident) -> Walked {
        let _walking = self.0.walking.lock();
        let known = self.0.state.lock().disks.get(uid).filter(|known| known.is_fresh()).cloned();
        if let Some(known) = known {
            return known;
        }
        let (at, time) = (Instant::now(), self.0.clock.now());
        let disk = Arc::new(disk::measure(resident.dir.path()));
        let walked = Walked { disk, time, at, took: at.elapsed() };
        self.0.state.lock().disks.insert(uid.to_owned(), walked.clone());
        walked
    }

    /// The node's load for its heartbeat; `None` before the first look.
    pub(crate) fn load(&self) -> Option<Load> {
        let node = self.0.node.get()?;
        let state = self.0.state.lock();
        let memory = state.figures.memory_bytes;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a smoothed rate is finite, not negative, and far below the bound"
        )]
        let cpu_millis = state.load_millis.round() as u64;
        (memory > 0).then(|| Load {
            cpu_millis: in_steps(cpu_millis, node.cpu_millis, 1),
            memory_bytes: in_steps(state.figures.memory_used_bytes(), memory, MEMORY_GRAIN),
        })
    }
}

/// One run of a container that goes on.
struct Run {
    name: String,
    since: Timestamp,
    used: Duration,
    memory_bytes: u64,
}

/// The containers of a pod that run.
fn runs(resident: &Resident) -> Vec<Run> {
    let (_, state) = resident.states.borrow().clone();
    let since = |name: &str| {
        let record = state.containers.iter().find(|record| record.name == name)?;
        match &record.state {
            RunState::Running { started_at, .. } => Some(*started_at),
            RunState::Waiting { .. } | RunState::Ended(_) => None,
        }
    };
    let running = resident.live.containers().into_iter();
    let run = running.filter_map(|(name, container)| {
        let usage = container.usage();
        let since = since(&name)?;
        Some(Run { name, since, used: usage.cpu, memory_bytes: usage.memory_bytes })
    });
    run.collect()
}

/// The moment of a time of day, on the clock that waits.
fn instant_of(time: Timestamp, clock: Timestamp, now: Instant) -> Instant {
    let age = Duration::try_from(clock.duration_since(time)).unwrap_or_default();
    now.checked_sub(age).unwrap_or(now)
}

/// The nearest of [`LOAD_STEPS`] steps to `whole`, each so many times `grain`.
fn in_steps(amount: u64, whole: u64, grain: u64) -> u64 {
    let step = (whole / LOAD_STEPS / grain * grain).max(grain);
    amount.saturating_add(step / 2) / step * step
}

#[expect(clippy::cast_precision_loss, reason = "rates are far below what a float holds exactly")]
fn f64_of(number: u64) -> f64 {
    number as f64
}
