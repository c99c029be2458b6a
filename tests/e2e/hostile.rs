//! Guests that mean harm, beside one that means well.
//!
//! Goal: the node stays `Ready`, its heartbeats are never late, the neighbour answers as before, and
//! each culprit ends with the reason a user would look for. Method: one node with `hello` under a
//! light load for the whole test; the culprits come one after another, and each is looked at while it
//! does its worst. `just bench-pods` measures the neighbour's loss; the bounds here are wide, since
//! this build is slow and its machine may be shared.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::bad_guests::{compile_bomb, generated};
use crate::support::{Block, Node, PATIENCE, eventually, get, guest, hello, succeed};

/// Requests per second at the neighbour.
const RATE: u32 = 50;
/// Longest answer of the neighbour in 99 of 100 requests, while a culprit is at it.
const P99_MAX: Duration = Duration::from_secs(2);
/// No single answer takes longer.
const WORST_MAX: Duration = Duration::from_secs(5);
/// The most that may lie between two heartbeats, in seconds: one of a second late, and half a second for a
/// machine that has other work.
const HEARTBEAT_GAP_MAX: f64 = 2.5;
/// How long each culprit is watched at least.
const WATCHED: Duration = Duration::from_secs(6);
/// Generated modules that run at once; `just bench-pods` runs 10,000.
const GENERATED: u64 = 40;
/// The compiler gives up after two minutes.
const COMPILE_PATIENCE: Duration = Duration::from_secs(200);

/// A light load on `hello`, and every answer's time.
struct Load {
    stop: Arc<AtomicBool>,
    answers: Receiver<Result<Duration, String>>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    fn start(to: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, answers) = channel();
        let is_over = Arc::clone(&stop);
        let thread = std::thread::spawn(move || Self::run(to, &is_over, &sender));
        Self { stop, answers, thread: Some(thread) }
    }

    fn run(to: SocketAddr, is_over: &AtomicBool, answers: &Sender<Result<Duration, String>>) {
        let mut next = Instant::now();
        while !is_over.load(Ordering::Relaxed) {
            // Timed from when it was due: a stall counts for all requests that it held up.
            let took = match get(to, "good.default.localhost", "/", WORST_MAX * 2) {
                Ok(answer) if answer.code == 200 => Ok(next.elapsed()),
                Ok(answer) => Err(format!("{answer:?}")),
                Err(cause) => Err(cause.to_string()),
            };
            let _ = answers.send(took);
            next += Duration::from_secs(1) / RATE;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }

    /// Forgets what was measured between two phases; a bad answer fails there as well.
    fn forget(&self, phase: &str) {
        let bad: Vec<_> = self.answers.try_iter().filter_map(Result::err).collect();
        assert!(bad.is_empty(), "before {phase}: {bad:?}");
    }

    /// p50, p99 and the worst since the last call; fails on any bad answer.
    fn measured(&self, phase: &str) -> [Duration; 3] {
        let answers: Result<Vec<_>, _> = self.answers.try_iter().collect();
        let mut took = answers.unwrap_or_else(|why| panic!("{phase}: hello failed: {why}"));
        assert!(took.len() > 20, "{phase}: only {} answers", took.len());
        took.sort();
        let at = |percent: usize| took[(took.len() - 1) * percent / 100];
        [at(50), at(99), at(100)]
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The node's heartbeats, as its server hears them.
#[derive(Clone, Copy)]
struct Heartbeats {
    heard: u64,
    /// Those that came more than [`HEARTBEAT_GAP_MAX`] after the one before.
    late: u64,
}

impl Heartbeats {
    fn look(node: &Node) -> Self {
        let metrics = succeed(&mut node.kubectl(&["get", "--raw", "/metrics"]));
        let value = |series: &str| -> u64 {
            let name = format!("edgeorc_node_heartbeat_interval_seconds_{series} ");
            let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
            line.unwrap_or_else(|| panic!("no {name}")).trim().parse().unwrap()
        };
        let heard = value("count");
        let in_time = value(&format!("bucket{{le=\"{HEARTBEAT_GAP_MAX:?}\"}}"));
        Self { heard, late: heard - in_time }
    }
}

/// A node with a neighbour, and what is watched of them.
struct Town {
    node: Node,
    load: Load,
    heartbeats: Heartbeats,
    ready_since: String,
}

impl Town {
    fn start(folder: &Path) -> Self {
        let node = Node::start(folder, "one", Block::take().address(1), None);
        node.wait_ready();
        let file = hello().to_str().unwrap().to_owned();
        succeed(&mut node.edgeorc(&["deploy", &file, "--name", "good", "--wait"]));
        eventually("hello answers", PATIENCE, || {
            match get(node.ingress(), "good.default.localhost", "/", Duration::from_secs(5)) {
                Ok(answer) if answer.code == 200 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        let load = Load::start(node.ingress());
        let heartbeats = Heartbeats::look(&node);
        let ready_since = ready(&node);
        let mut town = Self { node, load, heartbeats, ready_since };
        town.watch("nobody", |_| ());
        town
    }

    /// Pushes a guest; its image.
    fn push(&self, name: &str, file: &Path) -> String {
        let file = file.to_str().unwrap();
        succeed(&mut self.node.edgeorc(&["deploy", file, "--name", name, "--replicas", "0"]));
        let image = "jsonpath={.spec.template.spec.containers[0].image}";
        succeed(&mut self.node.kubectl(&["get", "deploy", name, "-o", image]))
    }

    /// Runs a pod of one container; `spec` is in flow style.
    fn pod(&self, name: &str, spec: &str) {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\n\
             spec: {{terminationGracePeriodSeconds: 1, {spec}}}\n"
        );
        let file = self.node.data_dir.with_extension(format!("{name}.yaml"));
        std::fs::write(&file, text).unwrap();
        succeed(&mut self.node.kubectl(&["apply", "-f", file.to_str().unwrap()]));
    }

    fn of_pod(&self, name: &str, path: &str) -> String {
        let path = format!("jsonpath={{{path}}}");
        let output = self.node.kubectl(&["get", "pod", name, "-o", &path]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Waits until the status of a pod's container says a word, now or of its last run.
    fn until_told(&self, name: &str, limit: Duration, word: &str) {
        eventually(&format!("{name} ends with {word}"), limit, || {
            let told = self.of_pod(name, ".status.containerStatuses[0]");
            if told.contains(word) { Ok(()) } else { Err(told) }
        });
    }

    /// Lets a culprit do its worst while `act` waits for its end, then judges the others.
    fn watch(&mut self, phase: &str, act: impl FnOnce(&Self)) {
        self.load.forget(phase);
        let begin = Instant::now();
        act(self);
        std::thread::sleep(WATCHED.saturating_sub(begin.elapsed()));
        let [p50, p99, worst] = self.load.measured(phase);
        let before = std::mem::replace(&mut self.heartbeats, Heartbeats::look(&self.node));
        let (heard, late) =
            (self.heartbeats.heard - before.heard, self.heartbeats.late - before.late);
        eprintln!(
            "{phase}: hello p50 {p50:?}, p99 {p99:?}, worst {worst:?}; {heard} heartbeats, {late} late"
        );
        assert!(p99 < P99_MAX && worst < WORST_MAX, "{phase}: hello p99 {p99:?}, worst {worst:?}");
        assert!(late == 0, "{phase}: {late} heartbeats came too long after the one before");
        let at_least = begin.elapsed().as_secs_f64() / HEARTBEAT_GAP_MAX - 1.0;
        assert!(heard as f64 >= at_least, "{phase}: only {heard} heartbeats");
        assert_eq!(ready(&self.node), self.ready_since, "{phase}: the node was not Ready");
    }

    fn delete(&self, kind: &str, name: &str) {
        succeed(&mut self.node.kubectl(&["delete", kind, name, "--timeout=60s"]));
    }

    /// Runs generated modules, each in a pod of its own, until every one was started or refused.
    fn run_generated(&self, folder: &Path) {
        let (mut pods, mut count) = (String::new(), 0);
        for seed in 0..GENERATED {
            let Some(wasm) = generated(seed) else { continue };
            let (file, name) = (folder.join("generated.wasm"), format!("generated-{seed}"));
            std::fs::write(&file, wasm).unwrap();
            let push = ["push", file.to_str().unwrap(), &name, "-o", "name"];
            let image = succeed(&mut self.node.edgeorc(&push));
            pods.push_str(&format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: generated}}}}\n\
                 spec: {{terminationGracePeriodSeconds: 0, restartPolicy: Never, \
                 containers: [{{name: app, image: {}}}]}}\n",
                image.trim()
            ));
            count += 1;
        }
        assert!(count > GENERATED / 2, "only {count} modules came out");
        let file = folder.join("generated.yaml");
        std::fs::write(&file, pods).unwrap();
        succeed(&mut self.node.kubectl(&["apply", "-f", file.to_str().unwrap()]));
        let path = r#"jsonpath={range .items[*]}{.status.containerStatuses[0].state}{"\n"}{end}"#;
        let args = ["get", "pods", "-l", "app=generated", "-o", path];
        eventually("every generated module is judged", COMPILE_PATIENCE, || {
            let states = succeed(&mut self.node.kubectl(&args));
            let judged = ["running", "terminated", "CreateContainerError", "RunContainerError"];
            let is_judged = |state: &&str| judged.iter().any(|word| state.contains(word));
            if states.lines().filter(is_judged).count() as u64 == count {
                Ok(())
            } else {
                Err(states)
            }
        });
        let delete = ["delete", "pods", "-l", "app=generated", "--timeout=60s"];
        succeed(&mut self.node.kubectl(&delete));
    }
}

/// Since when the node is Ready; anything else if it is not.
fn ready(node: &Node) -> String {
    let path = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status} {.status.conditions[?(@.type=="Ready")].lastTransitionTime}"#;
    let told = succeed(&mut node.kubectl(&["get", "node", &node.name, "-o", path]));
    assert!(told.starts_with("True "), "the node is not Ready: {told}");
    told
}

#[test]
fn hostile_guests_harm_nobody_but_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let mut town = Town::start(folder.path());

    // More of them than there are threads for guests.
    let image = town.push("spinner-image", &guest("bad-spinner"));
    let spinners = ["spinner-1", "spinner-2", "spinner-3", "spinner-4"];
    for name in spinners {
        town.pod(name, &format!("containers: [{{name: app, image: {image}}}]"));
    }
    town.watch("four spinners", |town| {
        for name in spinners {
            town.until_told(name, PATIENCE, r#""running":"#);
        }
    });
    for name in spinners {
        town.delete("pod", name);
    }

    let image = town.push("grower-image", &guest("bad-grower"));
    let grower = format!(
        "containers: [{{name: app, image: {image}, resources: {{limits: {{memory: 64Mi}}}}}}]"
    );
    town.pod("grower", &grower);
    town.watch("a memory grower", |town| town.until_told("grower", PATIENCE, "OOMKilled"));
    town.delete("pod", "grower");

    let image = town.push("busybox-image", &guest("busybox"));
    let volume = "volumes: [{name: data, emptyDir: {sizeLimit: 16Mi}}]";
    let container = format!(
        "{{name: app, image: {image}, volumeMounts: [{{name: data, mountPath: /data}}], \
         terminationMessagePolicy: FallbackToLogsOnError"
    );
    // Lines of 10 kB, 640 kB of them at once, again and again.
    let flood = format!(
        "x=0123456789; x=$x$x$x$x$x$x$x$x$x$x; x=$x$x$x$x$x$x$x$x$x$x; x=$x$x$x$x$x$x$x$x$x$x; \
         cd /data; echo $x > a; cat a a a a a a a a > b; cat b b b b b b b b > c; {} sleep 600",
        "cat c c c c c c c c; ".repeat(8)
    );
    let flood = format!(r#"{volume}, containers: [{container}, command: [sh, -c, "{flood}"]}}]"#);
    town.pod("flood", &flood);
    town.watch("a log flood", |town| {
        eventually("the log says that lines were dropped", PATIENCE, || {
            let log = town.node.kubectl(&["logs", "flood"]).output().unwrap();
            let log = String::from_utf8_lossy(&log.stdout).into_owned();
            if log.contains("dropped") { Ok(()) } else { Err(log.len()) }
        });
    });
    let logs = town.node.data_dir.join("agent");
    assert!(bytes_below(&logs, ".log") < 64 << 20, "the logs are bounded");
    town.delete("pod", "flood");

    // Eight times as much each time: 110 KiB, 0.9 MiB, 7 MiB, 56 MiB.
    let fill = "cd /data; seq 1 20000 > a; cat a a a a a a a a > b; cat b b b b b b b b > c; \
                cat c c c c c c c c > d; exit 1";
    let fill = format!(r#"{volume}, containers: [{container}, command: [sh, -c, "{fill}"]}}]"#);
    town.pod("filler", &fill);
    town.watch("a volume filler", |town| {
        town.until_told("filler", PATIENCE, "No space left on device");
    });
    town.delete("pod", "filler");

    let bomb = folder.path().join("bomb.wasm");
    std::fs::write(&bomb, compile_bomb()).unwrap();
    let image = town.push("bomb-image", &bomb);
    town.pod("bomb", &format!("containers: [{{name: app, image: {image}}}]"));
    town.watch("a compile bomb", |town| {
        town.until_told("bomb", COMPILE_PATIENCE, "CreateContainerError");
    });
    let why = town.of_pod("bomb", ".status.containerStatuses[0].state.waiting.message");
    assert!(why.contains("ran out of memory") || why.contains("took longer than"), "{why}");
    town.delete("pod", "bomb");
    let image = town.push("stranger-image", &guest("bad-unknown-import-component"));
    town.pod("stranger", &format!("containers: [{{name: app, image: {image}}}]"));
    town.watch("imports that nobody gives", |town| {
        town.until_told("stranger", PATIENCE, "RunContainerError");
    });
    town.delete("pod", "stranger");

    town.watch("generated modules", |town| town.run_generated(folder.path()));
    town.watch("nobody any more", |_| ());
}

/// Length of all files below `root` whose name has `part`.
fn bytes_below(root: &Path, part: &str) -> u64 {
    let (mut folders, mut bytes): (Vec<PathBuf>, u64) = (vec![root.to_owned()], 0);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => folders.push(entry.path()),
                Ok(meta) if entry.file_name().to_string_lossy().contains(part) => {
                    bytes += meta.len();
                }
                _ => {}
            }
        }
    }
    bytes
}
