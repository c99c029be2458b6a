//! How much slower a pod answers while another one misbehaves.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::bad_guests::{compile_bomb, generated};
use crate::support::{NODE, Row, median, row};
use crate::{Bench, PODS_PATIENCE, giving_way, percentile};

/// Requests per second at the neighbour: light, so that only the culprit can hold it up.
const RATE: u32 = 200;
/// How much its p99 may rise, as a ratio.
const RISE_MAX: f64 = 1.10;
/// How long a culprit may take to get going.
const WARM_UP: Duration = Duration::from_secs(2);
/// Generated modules that run at once.
const BATCH: usize = 50;
/// What is left of a bomb's compiler after its pod is gone.
const COMPILER_PATIENCE: Duration = Duration::from_secs(150);

/// One who misbehaves: its guest (`None`: a bomb for the compiler, another one in each turn), its
/// number, and what is special of its container, as JSON.
struct Culprit {
    name: &'static str,
    guest: Option<&'static str>,
    pods: usize,
    special: &'static str,
}

const CULPRITS: &[Culprit] = &[
    Culprit { name: "a compile bomb", guest: None, pods: 1, special: "" },
    Culprit {
        name: "imports that nobody gives",
        guest: Some("bad-unknown-import-component"),
        pods: 4,
        special: "",
    },
    Culprit { name: "four spinners", guest: Some("bad-spinner"), pods: 4, special: "" },
    Culprit {
        name: "a memory grower",
        guest: Some("bad-grower"),
        pods: 1,
        special: r#","resources":{"limits":{"memory":"256Mi"}}"#,
    },
    Culprit {
        name: "a log flood",
        guest: Some("busybox"),
        pods: 1,
        special: r#","command":["sh","-c","x=0123456789; x=$x$x$x$x$x$x$x$x$x$x; x=$x$x$x$x$x$x$x$x$x$x; x=$x$x$x$x$x$x$x$x$x$x; cd /data; echo $x > a; cat a a a a a a a a > b; cat b b b b b b b b > c; cat c c c c c c c c; cat c c c c c c c c; exit 1"],
            "volumeMounts":[{"name":"data","mountPath":"/data"}]"#,
    },
    Culprit {
        name: "a volume filler",
        guest: Some("busybox"),
        pods: 1,
        special: r#","command":["sh","-c","cd /data; seq 1 20000 > a; cat a a a a a a a a > b; cat b b b b b b b b > c; cat c c c c c c c c > d; exit 1"],
            "volumeMounts":[{"name":"data","mountPath":"/data"}]"#,
    },
];

/// p99 of `hello` beside each culprit, in turns with its p99 alone.
pub(crate) fn rows(bench: &Bench, folder: &Path, turns: usize, length: Duration) -> Vec<Row> {
    let mut rows = Vec::new();
    for culprit in CULPRITS {
        eprintln!("beside {}", culprit.name);
        let file =
            |turn| culprit.guest.map_or_else(|| bomb(folder, turn), |name| bench.guest(name));
        bench.push("culprit", &file(0));
        // A spinner hears no request to end.
        let patch = format!(
            r#"{{"spec":{{"template":{{"spec":{{"terminationGracePeriodSeconds":0,
            "volumes":[{{"name":"data","emptyDir":{{"sizeLimit":"16Mi"}}}}],
            "containers":[{{"name":"culprit"{}}}]}}}}}}}}"#,
            culprit.special
        );
        bench.kubectl(&["patch", "deploy", "culprit", "-p", &patch]);
        let (mut alone, mut beside) = (Vec::new(), Vec::new());
        for turn in 0..turns {
            bench.scale("culprit", 0);
            if culprit.guest.is_none() {
                bench.push("culprit", &file(turn));
                until_no_compiler(bench.pid());
            }
            std::thread::sleep(WARM_UP);
            alone.push(p99_ms(length));
            bench.scale("culprit", culprit.pods);
            std::thread::sleep(WARM_UP);
            beside.push(p99_ms(length));
        }
        bench.edgeorc(&["delete", "app", "culprit"]);
        rows.push(rise(culprit.name, median(alone), median(beside)));
    }
    rows.push(beside_native_spinners(turns, length));
    until_no_compiler(bench.pid());
    rows
}

/// What is left to the kernel: p99 beside four processes that compute at the same policy as guests do
/// (`SCHED_IDLE`), and that the node knows nothing of.
fn beside_native_spinners(turns: usize, length: Duration) -> Row {
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..turns {
        std::thread::sleep(WARM_UP);
        alone.push(p99_ms(length));
        let _spinners: [_; 4] = std::array::from_fn(|_| Spinner::start());
        std::thread::sleep(WARM_UP);
        beside.push(p99_ms(length));
    }
    let (alone, beside) = (median(alone), median(beside));
    Row {
        budget: f64::INFINITY,
        met: true,
        ..rise("four native processes of SCHED_IDLE", alone, beside)
    }
}

/// A native process that computes until it is dropped.
struct Spinner(Child);

impl Spinner {
    fn start() -> Self {
        Self(giving_way("sh").args(["-c", "while :; do :; done"]).spawn().unwrap())
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        // Fails only when it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn rise(name: &str, alone: f64, beside: f64) -> Row {
    let ratio = beside / alone;
    let name = format!("p99 of a pod beside {name}");
    let row = row(&name, beside, "ms", &format!("alone {alone:.2}"), RISE_MAX);
    Row { ratio: Some(ratio), met: ratio <= RISE_MAX, ..row }
}

/// A file with a bomb: the same in all turns but for one byte of a custom section, so that what
/// became of the last one is not known of this one.
fn bomb(folder: &Path, turn: usize) -> PathBuf {
    let mut bomb = compile_bomb();
    bomb.extend([0, 2, 0, u8::try_from(turn).unwrap()]);
    let file = folder.join("bomb.wasm");
    std::fs::write(&file, bomb).unwrap();
    file
}

/// Waits until the node has no child process.
fn until_no_compiler(node: u32) {
    let began = Instant::now();
    while has_children(node) {
        assert!(began.elapsed() < COMPILER_PATIENCE, "a compiler does not end");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn has_children(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads.flatten().any(|thread| {
        let children = std::fs::read_to_string(thread.path().join("children"));
        children.is_ok_and(|children| !children.trim().is_empty())
    })
}

/// p99 of `hello` while so many generated modules run, each in a pod of its own; in turns of one
/// tenth with its p99 alone. Those who push and apply them give way, as if on another machine.
pub(crate) fn generated_modules(
    bench: &Bench,
    folder: &Path,
    count: usize,
    length: Duration,
) -> Vec<Row> {
    const TURNS: usize = 10;
    eprintln!("beside {count} generated modules");
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    let (mut ran, mut took) = (0, Duration::ZERO);
    for turn in 0..TURNS {
        let batches = batches(folder, turn * count / TURNS..(turn + 1) * count / TURNS);
        alone.push(p99_ms(length));
        let is_over = AtomicBool::new(false);
        let began = Instant::now();
        std::thread::scope(|scope| {
            let measure = scope.spawn(|| p99_while(|| !is_over.load(Ordering::Relaxed)));
            batches.iter().for_each(|files| run_batch(bench, folder, files));
            is_over.store(true, Ordering::Relaxed);
            beside.push(measure.join().unwrap());
        });
        took += began.elapsed();
        ran += batches.iter().map(Vec::len).sum::<usize>();
    }
    let rate = ran as f64 / took.as_secs_f64();
    let rate = row(&format!("generated modules run, of {ran}"), rate, "1/s", "", f64::INFINITY);
    vec![rise(&format!("{ran} generated modules"), median(alone), median(beside)), rate]
}

/// Files of generated modules, in batches that run at once; not every seed gives one.
fn batches(folder: &Path, seeds: std::ops::Range<usize>) -> Vec<Vec<PathBuf>> {
    let file = |seed: usize| {
        let path = folder.join(format!("generated-{seed}.wasm"));
        std::fs::write(&path, generated(seed as u64)?).unwrap();
        Some(path)
    };
    let files: Vec<_> = seeds.filter_map(file).collect();
    files.chunks(BATCH).map(<[_]>::to_vec).collect()
}

/// Pushes and runs modules, waits until each is started or refused, and deletes them.
fn run_batch(bench: &Bench, folder: &Path, files: &[PathBuf]) {
    let mut pods = String::new();
    for file in files {
        let name = file.file_stem().unwrap().to_str().unwrap();
        let push = ["push", file.to_str().unwrap(), name, "-o", "name"];
        let image = bench.edgeorc_elsewhere(&push);
        pods.push_str(&format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: generated}}}}\n\
             spec: {{terminationGracePeriodSeconds: 0, restartPolicy: Never, \
             containers: [{{name: app, image: {}}}]}}\n",
            image.trim()
        ));
    }
    let file = folder.join("generated.yaml");
    std::fs::write(&file, pods).unwrap();
    bench.kubectl_elsewhere(&["apply", "-f", file.to_str().unwrap()]);
    let path = r#"jsonpath={range .items[*]}{.status.containerStatuses[0].state}{"\n"}{end}"#;
    let began = Instant::now();
    loop {
        let states = bench.kubectl_elsewhere(&["get", "pods", "-l", "app=generated", "-o", path]);
        let words = ["running", "terminated", "CreateContainerError", "RunContainerError"];
        let is_judged = |state: &&str| words.iter().any(|word| state.contains(word));
        if states.lines().filter(is_judged).count() == files.len() {
            break;
        }
        assert!(began.elapsed() < PODS_PATIENCE, "not all are judged: {states}");
        std::thread::sleep(Duration::from_millis(100));
    }
    bench.kubectl_elsewhere(&["delete", "pods", "-l", "app=generated", "--timeout=60s"]);
}

/// p99 of requests at a steady rate, each timed from when it was due: a stall counts for all that it
/// held up.
fn p99_ms(length: Duration) -> f64 {
    let began = Instant::now();
    p99_while(|| began.elapsed() < length)
}

fn p99_while(goes_on: impl Fn() -> bool) -> f64 {
    let (mut next, mut took) = (Instant::now(), Vec::new());
    while goes_on() {
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        ask().unwrap_or_else(|cause| panic!("hello does not answer: {cause}"));
        took.push(next.elapsed().as_secs_f64() * 1e3);
        next += Duration::from_secs(1) / RATE;
    }
    percentile(&took, 99)
}

fn ask() -> std::io::Result<()> {
    let mut stream = TcpStream::connect((NODE, 8080))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: hello.default.localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    if answer.starts_with(b"HTTP/1.1 200") {
        Ok(())
    } else {
        Err(std::io::Error::other(String::from_utf8_lossy(&answer).into_owned()))
    }
}
