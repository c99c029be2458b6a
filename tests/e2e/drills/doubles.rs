//! Whether a pod that must be unique ever ran twice at a time.
//!
//! Method: the pods log a line every 50 ms, and all nodes stamp lines by the same clock, since they are
//! processes of one machine. A thread follows the log files of all nodes, also of nodes that are cut
//! off. Of two pods of one name, the last line of the older must be before the first of the newer.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::Value;

/// Pause between two looks at the files.
const LOOK: Duration = Duration::from_millis(20);

/// The lines of one pod: its node, its first and its last.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) node: String,
    pub(super) first: Timestamp,
    pub(super) last: Timestamp,
}

/// Pods by name and uid.
type Runs = BTreeMap<String, BTreeMap<String, Run>>;

/// Follows the logs of the pods of StatefulSets until it is dropped.
pub(super) struct Doubles {
    runs: Arc<Mutex<Runs>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Doubles {
    /// Follows the nodes whose folders are these.
    pub(super) fn watch(nodes: Vec<PathBuf>) -> Self {
        let (runs, stop) = (Arc::new(Mutex::new(Runs::new())), Arc::new(AtomicBool::new(false)));
        let (seen, is_over) = (Arc::clone(&runs), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut pods = BTreeMap::new();
            while !is_over.load(Ordering::Relaxed) {
                for node in &nodes {
                    find(node, &mut pods);
                }
                pods.retain(|_, pod: &mut Option<Pod>| {
                    pod.as_mut().is_none_or(|pod| pod.follow(&seen))
                });
                std::thread::sleep(LOOK);
            }
        });
        Self { runs, stop, thread: Some(thread) }
    }

    /// Fails if any two overlapped.
    pub(super) fn assert_none(&self) {
        for (name, runs) in &*self.runs.lock() {
            let mut runs: Vec<_> = runs.iter().collect();
            runs.sort_by_key(|(_, run)| run.first);
            for pair in runs.windows(2) {
                let ((_, older), (_, newer)) = (&pair[0], &pair[1]);
                assert!(older.last < newer.first, "{name} ran twice at a time: {pair:?}");
            }
        }
    }

    /// The pod of this uid, if it has logged.
    pub(super) fn run(&self, name: &str, uid: &str) -> Option<Run> {
        self.runs.lock().get(name)?.get(uid).cloned()
    }
}

impl Drop for Doubles {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A pod's folder whose logs are followed.
struct Pod {
    name: String,
    uid: String,
    node: String,
    folder: PathBuf,
    logs: BTreeMap<PathBuf, (File, String)>,
}

/// Adds the folders that are new; those of other pods as `None`.
fn find(node: &Path, pods: &mut BTreeMap<PathBuf, Option<Pod>>) {
    for entry in std::fs::read_dir(node.join("agent/pods")).into_iter().flatten().flatten() {
        let folder = entry.path();
        let uid = entry.file_name().to_string_lossy().into_owned();
        if uid.starts_with('.') || pods.contains_key(&folder) {
            continue;
        }
        let bytes = std::fs::read(folder.join("pod.json")).unwrap_or_default();
        // It is being written.
        let Ok(pod) = serde_json::from_slice::<Value>(&bytes) else { continue };
        let is_unique = pod["metadata"]["ownerReferences"][0]["kind"] == "StatefulSet";
        let found = is_unique.then(|| Pod {
            name: pod["metadata"]["name"].as_str().unwrap().to_owned(),
            uid,
            node: node.file_name().unwrap().to_string_lossy().into_owned(),
            folder: folder.clone(),
            logs: BTreeMap::new(),
        });
        pods.insert(folder, found);
    }
}

impl Pod {
    /// Reads what is new. Returns whether more may come.
    fn follow(&mut self, runs: &Mutex<Runs>) -> bool {
        let is_there = self.folder.exists();
        for container in std::fs::read_dir(self.folder.join("logs")).into_iter().flatten().flatten()
        {
            for log in std::fs::read_dir(container.path()).into_iter().flatten().flatten() {
                let path = log.path();
                if !self.logs.contains_key(&path)
                    && let Ok(file) = File::open(&path)
                {
                    self.logs.insert(path, (file, String::new()));
                }
            }
        }
        for (file, rest) in self.logs.values_mut() {
            // A removed file can be read to its end.
            let _ = file.read_to_string(rest);
            while let Some((line, after)) = rest.split_once('\n') {
                let stamp =
                    line.split(' ').next().and_then(|stamp| stamp.parse::<Timestamp>().ok());
                let at = stamp.unwrap_or_else(|| panic!("no time stamp: {line}"));
                let mut runs = runs.lock();
                let all = runs.entry(self.name.clone()).or_default();
                let run = all.entry(self.uid.clone()).or_insert_with(|| Run {
                    node: self.node.clone(),
                    first: at,
                    last: at,
                });
                run.last = run.last.max(at);
                *rest = after.to_owned();
            }
        }
        is_there
    }
}
