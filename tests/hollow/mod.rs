//! What a hollow node has in the place of sandboxes and of a machine.
//!
//! Containers run nothing. They start, stay and end as their environment says: `HOLLOW_START_MS` is
//! how long a start takes, `HOLLOW_RUN_MS` after how long the container ends by itself (not at all
//! without it), `HOLLOW_EXIT` with what code (0). What runs where stands on a [`Board`], which notes
//! when two containers are one too many.

#![allow(dead_code, reason = "the bench and the simulation use different parts of it")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use edgeorc::agent::{Disk, Figures, Machine};
use edgeorc_runtime::{
    Container, ContainerConfig, Exit, ExitReason, Pod, PodConfig, PodId, PodRuntime, StartError,
    Usage,
};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const GIB: u64 = 1 << 30;

/// A machine with memory and disk to spare, and always as busy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CalmMachine;

impl Machine for CalmMachine {
    fn read(&self) -> Figures {
        let disk = Disk {
            capacity_bytes: 64 * GIB,
            available_bytes: 48 * GIB,
            inodes: 1 << 20,
            inodes_free: 1 << 19,
        };
        Figures {
            memory_bytes: 8 * GIB,
            memory_available_bytes: 6 * GIB,
            node_disk: disk,
            image_disk: disk,
            pids_max: 1 << 15,
            pids: 100,
            ..Figures::default()
        }
    }
}

/// Where a container runs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) node: String,
    pub(crate) uid: String,
}

/// What runs on all nodes of a simulation, and what was wrong with it.
#[derive(Debug, Default)]
pub(crate) struct Board {
    /// By namespace, name of the pod and name of the container.
    running: Mutex<BTreeMap<[String; 3], Vec<Place>>>,
    /// Two containers of one name at one time, in words.
    pub(crate) wrongs: Mutex<Vec<String>>,
}

impl Board {
    fn begin(&self, key: &[String; 3], place: &Place) {
        let mut running = self.running.lock();
        let places = running.entry(key.clone()).or_default();
        if let Some(other) = places.first() {
            let wrong = format!("{key:?} began on {place:?} while it ran on {other:?}");
            self.wrongs.lock().push(wrong);
        }
        places.push(place.clone());
    }

    fn end(&self, key: &[String; 3], place: &Place) {
        let mut running = self.running.lock();
        let Some(places) = running.get_mut(key) else { return };
        if let Some(at) = places.iter().position(|one| one == place) {
            places.swap_remove(at);
        }
        if places.is_empty() {
            running.remove(key);
        }
    }

    /// The machine is off, and all that ran on it.
    pub(crate) fn lose(&self, node: &str) {
        self.running.lock().retain(|_, places| {
            places.retain(|place| place.node != node);
            !places.is_empty()
        });
    }

    /// Nodes of the containers that run, by namespace, pod and container.
    pub(crate) fn running(&self) -> BTreeMap<[String; 3], Vec<Place>> {
        self.running.lock().clone()
    }
}

/// Runs the pods of one node by their script.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    pub(crate) node: String,
    /// `None`: nobody looks.
    pub(crate) board: Option<Arc<Board>>,
    /// Whether runs leave a log behind, by which the next agent of the node knows of them.
    pub(crate) has_logs: bool,
}

#[async_trait]
impl PodRuntime for Script {
    async fn create(&self, pod: PodConfig) -> Result<Arc<dyn Pod>, StartError> {
        let off = CancellationToken::new();
        Ok(Arc::new(ScriptedPod { id: pod.id, script: self.clone(), off }))
    }

    fn compatibility_hash(&self) -> String {
        "script".to_owned()
    }
}

struct ScriptedPod {
    id: PodId,
    script: Script,
    off: CancellationToken,
}

fn number(config: &ContainerConfig, name: &str) -> Option<u64> {
    let (_, value) = config.env.iter().find(|(key, _)| key == name)?;
    value.parse().ok()
}

fn exit(code: i32) -> Exit {
    let reason = match code {
        0 => ExitReason::Completed,
        137 => ExitReason::Killed,
        _ => ExitReason::Error,
    };
    Exit { code, reason, message: String::new() }
}

fn open_log(path: &Path) -> Result<(), StartError> {
    std::fs::write(path, "").map_err(|cause| StartError::Host(cause.to_string()))
}

#[async_trait]
impl Pod for ScriptedPod {
    async fn start(&self, config: ContainerConfig) -> Result<Arc<dyn Container>, StartError> {
        if let Some(ms) = number(&config, "HOLLOW_START_MS") {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        if self.script.has_logs {
            open_log(&config.log_path)?;
        }
        let ends = number(&config, "HOLLOW_RUN_MS").map(|ms| {
            let code = number(&config, "HOLLOW_EXIT").and_then(|code| i32::try_from(code).ok());
            (tokio::time::Instant::now() + Duration::from_millis(ms), code.unwrap_or(0))
        });
        let entry = self.script.board.clone().map(|board| {
            let key = [self.id.namespace.clone(), self.id.name.clone(), config.name.clone()];
            let (node, uid) = (self.script.node.clone(), self.id.uid.clone());
            Entry::new(board, key, Place { node, uid })
        });
        let off = self.off.child_token();
        let (ended, _) = watch::channel(None);
        Ok(Arc::new(ScriptedContainer { off, ends, ended, entry: Mutex::new(entry) }))
    }

    async fn destroy(&self) {
        self.off.cancel();
    }
}

/// A line on the board, for as long as the container runs.
struct Entry {
    board: Arc<Board>,
    key: [String; 3],
    place: Place,
}

impl Entry {
    fn new(board: Arc<Board>, key: [String; 3], place: Place) -> Self {
        board.begin(&key, &place);
        Self { board, key, place }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.board.end(&self.key, &self.place);
    }
}

struct ScriptedContainer {
    off: CancellationToken,
    ends: Option<(tokio::time::Instant, i32)>,
    ended: watch::Sender<Option<i32>>,
    entry: Mutex<Option<Entry>>,
}

impl ScriptedContainer {
    fn end(&self, code: i32) -> Exit {
        self.entry.lock().take();
        self.ended.send_if_modified(|ended| ended.is_none() && ended.replace(code).is_none());
        exit(self.ended.borrow().unwrap_or(code))
    }
}

#[async_trait]
impl Container for ScriptedContainer {
    async fn wait(&self) -> Exit {
        let by_itself = async {
            match self.ends {
                Some((at, code)) => {
                    tokio::time::sleep_until(at).await;
                    code
                }
                None => std::future::pending().await,
            }
        };
        let mut ended = self.ended.subscribe();
        let code = tokio::select! {
            biased;
            Ok(code) = ended.wait_for(Option::is_some) => code.unwrap_or(137),
            () = self.off.cancelled() => 137,
            code = by_itself => code,
        };
        self.end(code)
    }

    async fn stop(&self, _: Duration) {
        self.end(137);
    }

    fn usage(&self) -> Usage {
        Usage { cpu: Duration::ZERO, memory_bytes: 1 << 20 }
    }
}
