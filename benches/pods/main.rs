//! Whole-process figures of pods: cold start, deploy, a thousand idle ones, requests per second in each
//! way instances are kept, and the neighbours of hostile guests; then the first four once more with
//! addresses of 39 bits.
//!
//! Method: the shipped binary (`just dist`; another one by `EDGEORC`) is started as a user would, with
//! one flag more for 39 bits and a limit of the address space that holds it to them. Times of starts are
//! those that the node logs, from the moment its agent sees the pod. Requests are sent by wrk, in turns
//! with `wasmtime serve` on the same component in the same reuse mode. Prints a table and writes
//! `target/bench/pods.json`. Run it with `just bench-pods`; smaller by
//! `--starts N --pods N --turns N --seconds N --modules N`, and in part by
//! `--only starts,deploys,requests,idle,neighbours,modules` and `--bits 64` or `--bits 39`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    clippy::too_many_lines,
    reason = "a bench that cannot run should stop at once, and it measures real time"
)]

#[path = "../../tests/e2e/bad_guests.rs"]
mod bad_guests;
mod neighbours;
#[path = "../support/mod.rs"]
mod support;

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::{
    NODE, PEER, Row, against, binary, deploy, load, median, report, resident_mib, row, run, start,
    stop, until_answers, wasmtime,
};

/// Components with the same code that take turns: more than the runtime keeps loaded without a pod.
const COPIES: usize = 8;
/// Addresses of the small machine, in bits.
const SMALL_BITS: u32 = 39;
/// How long a fleet of pods may take to start.
const PODS_PATIENCE: Duration = Duration::from_secs(600);
/// How long what was just done may echo before memory is read.
const SETTLE: Duration = Duration::from_secs(10);
/// Pause between two looks at the node's log.
const LOOK: Duration = Duration::from_millis(5);
/// What the end of a pod sets off is over by then: the next one starts on an idle node.
const CALM: Duration = Duration::from_millis(300);
/// Most that an idle pod may take beyond its guest's memory, in KiB.
const POD_KIB_MAX: f64 = 100.0;

/// What `--only` names.
const PARTS: [&str; 6] = ["starts", "deploys", "requests", "idle", "neighbours", "modules"];

/// How much is done.
struct Size {
    starts: usize,
    pods: usize,
    turns: usize,
    seconds: u64,
    modules: usize,
    /// The parts that are run; `None`: all.
    only: Option<String>,
    /// The one width of addresses that is measured; `None`: both.
    bits: Option<String>,
}

impl Size {
    fn from_args() -> Self {
        let (only, bits) = (None, None);
        let mut size =
            Self { starts: 200, pods: 1000, turns: 5, seconds: 10, modules: 10_000, only, bits };
        let args: Vec<_> = std::env::args().collect();
        for pair in args.windows(2) {
            let number = || pair[1].parse::<usize>().expect("a number");
            match pair[0].as_str() {
                "--starts" => size.starts = number(),
                "--pods" => size.pods = number(),
                "--turns" => size.turns = number(),
                "--seconds" => size.seconds = number() as u64,
                "--modules" => size.modules = number(),
                "--only" => size.only = Some(pair[1].clone()),
                "--bits" => size.bits = Some(pair[1].clone()),
                _ => {}
            }
        }
        let known = |part| assert!(PARTS.contains(&part), "no part {part}: there are {PARTS:?}");
        size.only.iter().flat_map(|only| only.split(',')).for_each(known);
        let has_some = [None, Some(SMALL_BITS)].into_iter().any(|bits| size.has_bits(bits));
        assert!(has_some, "--bits is {} or {SMALL_BITS}", u64::BITS);
        size
    }

    fn has(&self, part: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.split(',').any(|one| one == part))
    }

    fn has_bits(&self, bits: Option<u32>) -> bool {
        let wanted = bits.unwrap_or(u64::BITS).to_string();
        self.bits.as_ref().is_none_or(|only| *only == wanted)
    }
}

/// What the node's log has told so far.
#[derive(Debug)]
struct Log {
    file: BufReader<File>,
    /// The line that is not whole yet.
    line: String,
    /// How long each start took, in milliseconds.
    starts: Vec<f64>,
    /// Pods that are gone.
    gone: usize,
}

impl Log {
    fn open(path: &Path) -> Self {
        let file = BufReader::new(File::open(path).unwrap());
        Self { file, line: String::new(), starts: Vec::new(), gone: 0 }
    }

    /// Takes note of what is new.
    fn read(&mut self) -> &Self {
        while self.file.read_line(&mut self.line).unwrap() > 0 && self.line.ends_with('\n') {
            if self.line.contains(r#""container started""#) {
                let told: serde_json::Value = serde_json::from_str(&self.line).unwrap();
                self.starts.push(told["elapsed_us"].as_f64().unwrap() / 1e3);
            }
            self.gone += usize::from(self.line.contains(r#""the pod is gone""#));
            self.line.clear();
        }
        self
    }
}

/// A node under test, and its log.
pub(crate) struct Bench {
    binary: PathBuf,
    root: PathBuf,
    dir: PathBuf,
    node: Child,
    log: RefCell<Log>,
    /// `None`: all that the machine has.
    bits: Option<u32>,
}

impl Bench {
    fn start(folder: &Path, bits: Option<u32>, pods: usize) -> Self {
        let dir = folder.join(format!("node-{}", bits.unwrap_or(0)));
        let binary = binary();
        let (max_pods, bits_text) = ((pods + 50).to_string(), bits.unwrap_or(0).to_string());
        // 2,048 addresses per node.
        let mut flags = vec!["--node-cidr-mask-size", "21", "--max-pods", &max_pods];
        let mut program = limited(&binary, bits);
        if bits.is_some() {
            flags.extend(["--address-bits-max", &bits_text]);
        }
        program.env("EDGEORC_LOG_FORMAT", "json");
        let (node, _) = start(&mut program, &dir, &flags);
        let log = Log::open(&dir.join("log"));
        Self {
            binary,
            root: PathBuf::from(env!("CARGO_MANIFEST_DIR")),
            dir,
            node,
            log: RefCell::new(log),
            bits,
        }
    }

    fn kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    /// A guest of `wasm-apps/`.
    pub(crate) fn guest(&self, name: &str) -> PathBuf {
        let path = self.root.join(format!("wasm-apps/dist/{name}.wasm"));
        assert!(path.exists(), "{} is missing: run `just apps`", path.display());
        path
    }

    fn hello(&self) -> PathBuf {
        self.root.join("wasm-apps/hello.wasm")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.node.id()
    }

    /// What a verb prints.
    pub(crate) fn edgeorc(&self, args: &[&str]) -> String {
        self.edgeorc_as(Command::new(&self.binary), args)
    }

    /// As [`Self::edgeorc`], as if on another machine.
    pub(crate) fn edgeorc_elsewhere(&self, args: &[&str]) -> String {
        self.edgeorc_as(giving_way(&self.binary), args)
    }

    fn edgeorc_as(&self, mut program: Command, args: &[&str]) -> String {
        run(program.args(args).arg("--kubeconfig").arg(self.kubeconfig()))
    }

    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        self.kubectl_as(Command::new("kubectl"), args)
    }

    /// As [`Self::kubectl`], as if on another machine.
    pub(crate) fn kubectl_elsewhere(&self, args: &[&str]) -> String {
        self.kubectl_as(giving_way("kubectl"), args)
    }

    fn kubectl_as(&self, mut kubectl: Command, args: &[&str]) -> String {
        kubectl.arg("--kubeconfig").arg(self.kubeconfig());
        run(kubectl.arg("--cache-dir").arg(self.dir.join("kube-cache")).args(args))
    }

    /// Since when the node is Ready; another text if it is not.
    fn ready(&self) -> String {
        let path = r#"jsonpath={.status.conditions[?(@.type=="Ready")]}"#;
        let told = self.kubectl(&["get", "node", "bench", "-o", path]);
        let condition: serde_json::Value = serde_json::from_str(&told).unwrap();
        format!("{} since {}", condition["status"], condition["lastTransitionTime"])
    }

    pub(crate) fn scale(&self, name: &str, replicas: usize) {
        let replicas = replicas.to_string();
        self.edgeorc(&["scale", &format!("deploy/{name}"), "--replicas", &replicas]);
    }

    /// Pushes an app that has no pod yet.
    pub(crate) fn push(&self, name: &str, file: &Path) {
        self.edgeorc(&["deploy", file.to_str().unwrap(), "--name", name, "--replicas", "0"]);
    }

    /// How long each start took by the node's log, in milliseconds, oldest first.
    fn starts(&self) -> Vec<f64> {
        self.log.borrow_mut().read().starts.clone()
    }

    /// Takes the pods of an app away, and waits until they are gone.
    fn scale_down(&self, name: &str, pods: usize) {
        let wanted = self.log.borrow_mut().read().gone + pods;
        self.scale(name, 0);
        self.until(|log| log.gone >= wanted);
    }

    fn until_started(&self, count: usize) {
        self.until(|log| log.starts.len() >= count);
    }

    /// Waits for what the log will say. Reads what is new only: the node has the machine to itself.
    fn until(&self, is_done: impl Fn(&Log) -> bool) {
        let began = Instant::now();
        while !is_done(self.log.borrow_mut().read()) {
            assert!(began.elapsed() < PODS_PATIENCE, "still waiting: {:?}", self.log.borrow());
            std::thread::sleep(LOOK);
        }
    }

    /// The name of a row, with the bits if they are few.
    fn name(&self, name: &str) -> String {
        self.bits.map_or_else(|| name.to_owned(), |bits| format!("{name}, {bits} bits"))
    }
}

/// A program that takes of the machine only what nobody else wants.
pub(crate) fn giving_way(program: impl AsRef<OsStr>) -> Command {
    let mut chrt = Command::new("chrt");
    chrt.args(["--idle", "0"]).arg(program);
    chrt
}

/// A program, held to so many bits of addresses.
fn limited(program: &Path, bits: Option<u32>) -> Command {
    let Some(bits) = bits else { return Command::new(program) };
    let kib = (1_u64 << (bits - 10)).to_string();
    let mut command = Command::new("sh");
    command.args(["-c", r#"ulimit -v "$0"; exec "$@""#, &kib]).arg(program);
    command
}

fn main() {
    // `cargo bench` and `cargo test --benches` pass flags that mean nothing here.
    if std::env::args().any(|a| a == "--list") {
        return;
    }
    let size = Size::from_args();
    let folder = tempfile::tempdir().unwrap();
    let mut rows: Vec<Row> = Vec::new();
    // As soon as there is something to tell: the rest takes an hour, and may fail.
    let mut add = |more: Vec<Row>| {
        more.iter().for_each(|row| eprintln!("{row}"));
        rows.extend(more);
    };
    for bits in [None, Some(SMALL_BITS)].into_iter().filter(|bits| size.has_bits(*bits)) {
        let mut bench = Bench::start(folder.path(), bits, size.pods);
        // Whatever comes first pays for what all share: threads, caches of the allocator.
        deploy(&bench.binary, &bench.kubeconfig(), &bench.hello(), "hello");
        if size.has("starts") {
            add(cold_starts(&bench, folder.path(), size.starts));
        }
        if size.has("deploys") {
            add(deploys(&bench, size.starts.div_ceil(10)));
        }
        if size.has("requests") {
            add(requests(&bench, size.turns));
        }
        if size.has("idle") {
            add(idle_pods(&bench, size.pods));
        }
        if bits.is_none() {
            let (length, since) = (Duration::from_secs(size.seconds), bench.ready());
            if size.has("neighbours") {
                add(neighbours::rows(&bench, folder.path(), size.turns, length));
            }
            if size.has("modules") {
                add(neighbours::generated_modules(&bench, folder.path(), size.modules, length));
            }
            assert_eq!(bench.ready(), since, "the node was not Ready all the time");
        }
        stop(&mut bench.node);
    }
    report(Path::new(env!("CARGO_MANIFEST_DIR")), "pods", &rows);
}

fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[(sorted.len() - 1) * percent / 100]
}

/// Starts of pods whose code is compiled, one at a time on an idle node.
fn cold_starts(bench: &Bench, folder: &Path, count: usize) -> Vec<Row> {
    eprintln!("{}", bench.name("cold starts"));
    let hello = std::fs::read(bench.hello()).unwrap();
    let names: Vec<_> = (0..COPIES).map(|at| format!("copy-{at}")).collect();
    for (at, name) in names.iter().enumerate() {
        // A custom section of one byte: another digest, the same code.
        let mut copy = hello.clone();
        copy.extend([0, 2, 0, u8::try_from(at).unwrap()]);
        let file = folder.join(format!("{name}.wasm"));
        std::fs::write(&file, copy).unwrap();
        bench.edgeorc(&["deploy", file.to_str().unwrap(), "--name", name, "--wait"]);
        bench.scale_down(name, 1);
    }
    let mut rows = Vec::new();
    let mapped = |of: &dyn Fn(usize) -> String| {
        let before = bench.starts().len();
        for turn in 0..count {
            let name = of(turn);
            bench.scale(&name, 1);
            bench.until_started(before + turn + 1);
            bench.scale_down(&name, 1);
            std::thread::sleep(CALM);
        }
        bench.starts()[before..].to_vec()
    };
    let cold = mapped(&|turn| names[turn % COPIES].clone());
    // The code stays loaded: `hello` runs it.
    bench.push("again", &bench.hello());
    let loaded = mapped(&|_| "again".to_owned());
    for (what, took) in [("mapped from disk", cold), ("loaded by another pod", loaded)] {
        for percent in [50, 99] {
            let name = format!("pod seen to container started, {what}, p{percent} of {count}");
            let (value, name) = (percentile(&took, percent), bench.name(&name));
            rows.push(row(&name, value, "ms", "container ~300", 5.0));
        }
    }
    for name in &names {
        bench.edgeorc(&["delete", "app", name]);
    }
    rows
}

/// From `edgeorc deploy` to the first answer, compiled.
fn deploys(bench: &Bench, count: usize) -> Vec<Row> {
    let took: Vec<_> = (0..count)
        .map(|turn| {
            let name = format!("deploy-{turn}");
            let took = deploy(&bench.binary, &bench.kubeconfig(), &bench.hello(), &name);
            bench.edgeorc(&["delete", "app", &name]);
            took
        })
        .collect();
    let name = bench.name(&format!("deploy to first response, compiled, worst of {count}"));
    vec![row(&name, support::worst(&took), "ms", "Kubernetes SLO 5,000", 50.0)]
}

/// Requests per second of one pod, against `wasmtime serve` in turns, in each mode of reuse.
fn requests(bench: &Bench, turns: usize) -> Vec<Row> {
    const KEPT: &[&str] =
        &["--max-instance-reuse-count", "1000000000", "--idle-instance-timeout", "5s"];
    let modes: [(&str, PathBuf, &[&str]); 3] = [
        ("p2 fresh", bench.hello(), &["--max-instance-reuse-count", "1"]),
        ("p2 reused", bench.hello(), KEPT),
        ("p3 reused", bench.guest("hello-p3"), KEPT),
    ];
    let mut rows = Vec::new();
    for (mode, component, flags) in modes {
        eprintln!("{}", bench.name(mode));
        let app = mode.replace(' ', "-");
        bench.push(&app, &component);
        if mode == "p2 fresh" {
            let fresh = r#"{"spec":{"template":{"metadata":{"annotations":{"edgeorc.io/instances":"fresh"}}}}}"#;
            bench.kubectl(&["patch", "deploy", &app, "--type", "merge", "-p", fresh]);
        }
        bench.scale(&app, 1);
        let host = format!("{app}.default.localhost");
        until_answers(&format!("{NODE}:8080"), &host);
        let mut serve = limited(&wasmtime(&bench.root), bench.bits);
        serve.args(["serve", "--addr", PEER, "-Scli"]).args(flags);
        if mode == "p3 reused" {
            serve.args(["-Sp3", "-Wcomponent-model-async"]);
        }
        let serve = serve.arg(&component).stdout(Stdio::null()).stderr(Stdio::null());
        let mut peer = serve.spawn().unwrap();
        until_answers(PEER, "x");
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..turns {
            ours.push(load(&format!("http://{NODE}:8080/"), &host));
            theirs.push(load(&format!("http://{PEER}/"), "x"));
        }
        peer.kill().unwrap();
        peer.wait().unwrap();
        let (ours, theirs) = (median(ours), median(theirs));
        let name = format!("requests/s through the ingress, {mode}");
        rows.push(against(&bench.name(&name), ours, theirs, 0.95));
        if mode == "p2 fresh" {
            rows.push(against(&bench.name("instances/s, one request each"), ours, theirs, 0.95));
        }
        bench.edgeorc(&["delete", "app", &app]);
    }
    rows
}

/// Memory of pods that nobody asks anything.
fn idle_pods(bench: &Bench, pods: usize) -> Vec<Row> {
    eprintln!("{}", bench.name("idle pods"));
    bench.push("idle", &bench.hello());
    std::thread::sleep(SETTLE);
    let pid = bench.node.id();
    let (rss, guests, before) = (resident_mib(pid), guests_kib(pid), bench.starts().len());
    let began = Instant::now();
    bench.scale("idle", pods);
    bench.until_started(before + pods);
    let took = began.elapsed().as_secs_f64();
    let starts = bench.starts()[before..].to_vec();
    bench.kubectl(&["rollout", "status", "deploy/idle", "--timeout=600s"]);
    std::thread::sleep(SETTLE);
    let each = |kib: f64| kib / pods as f64;
    let total = each((resident_mib(pid) - rss) * 1024.0);
    let guest = each(guests_kib(pid) - guests);
    let began = Instant::now();
    until_answers(&format!("{NODE}:8080"), "hello.default.localhost");
    let answer = began.elapsed().as_secs_f64() * 1e3;
    let name = |name: &str| bench.name(name);
    let none = f64::INFINITY;
    let rows = vec![
        row(&name(&format!("{pods} pods at once, until the last started")), took, "s", "", none),
        row(&name("... pod seen to started, p99"), percentile(&starts, 99), "ms", "", none),
        row(&name("... RSS per idle pod"), total, "KiB", "", none),
        row(&name("... of which its guest's memory"), guest, "KiB", "", none),
        row(&name("... the rest"), total - guest, "KiB", "", POD_KIB_MAX),
        row(&name("... RSS of the node"), resident_mib(pid), "MiB", "", none),
        row(&name("... first answer of another pod"), answer, "ms", "", none),
    ];
    bench.edgeorc(&["delete", "app", "idle", "--timeout", "10m"]);
    rows
}

/// Resident linear memory of all guests, in KiB: pages of the compiled files that memories start as
/// copies of (code is mapped read-only), and what lies in the same memory before and behind them.
fn guests_kib(pid: u32) -> f64 {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut areas: Vec<Area> = Vec::new();
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-') {
            let is_writable = words.next().is_some_and(|flags| flags.contains('w'));
            areas.push(Area {
                start: start.to_owned(),
                end: end.to_owned(),
                is_image: is_writable && line.ends_with(".cwasm"),
                is_anonymous: is_writable && words.count() <= 3,
                kib: 0.0,
            });
        } else if first == "Rss:" {
            areas.last_mut().unwrap().kib = words.next().unwrap().parse().unwrap();
        }
    }
    let touches = |a: &Area, b: &Area| a.end == b.start;
    let of_guest = |at: usize| {
        let area = &areas[at];
        let before = at.checked_sub(1).map(|at| &areas[at]);
        let is_behind = before.is_some_and(|b| b.is_image && touches(b, area));
        let is_before = areas.get(at + 1).is_some_and(|b| b.is_image && touches(area, b));
        area.is_image || (area.is_anonymous && (is_behind || is_before))
    };
    (0..areas.len()).filter(|at| of_guest(*at)).map(|at| areas[at].kib).sum()
}

/// A mapping of the node.
struct Area {
    start: String,
    end: String,
    is_image: bool,
    is_anonymous: bool,
    kib: f64,
}
