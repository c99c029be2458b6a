//! Whole-process figures of the mesh, each against its peer, all in one run on one machine.
//!
//! Method: two nodes of the shipped binary (`just dist`; another one by `EDGEORC`) on loopback, pods
//! on the second only or on the first only, load by wrk at the first node's ingress in turns with
//! `wasmtime serve` alone, and with nginx and haproxy in front of it, on the same component with the
//! same reuse of instances. Tables and watches are measured in this process with the same code.
//! Prints a table and writes `target/bench/mesh.json`. Run it with `just bench-mesh`; smaller by
//! `--turns N --seconds N --connections N --services N --watchers N`.

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
    dead_code,
    reason = "a bench that cannot run should stop at once, and it measures real time"
)]

mod growth;
mod peers;
#[path = "../support/mod.rs"]
mod support;
mod versions;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::{
    NODE, PEER, Row, binary, median, report, resident_mib, row, start, stop, until_answers,
    wasmtime,
};

/// The second node.
const OTHER: &str = "127.31.0.3";
/// How long anything may take to be there.
const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes written at once, and in flight, when throughput is measured.
const CHUNK_BYTES: usize = 256 * 1024;

/// How much is done.
pub(crate) struct Size {
    turns: usize,
    seconds: u64,
    connections: usize,
    pub(crate) services: usize,
    pub(crate) watchers: usize,
}

impl Size {
    fn from_args() -> Self {
        let mut size =
            Self { turns: 5, seconds: 5, connections: 10_000, services: 10_000, watchers: 50 };
        let args: Vec<_> = std::env::args().collect();
        for pair in args.windows(2) {
            let number = || pair[1].parse::<usize>().expect("a number");
            match pair[0].as_str() {
                "--turns" => size.turns = number(),
                "--seconds" => size.seconds = number() as u64,
                "--connections" => size.connections = number(),
                "--services" => size.services = number(),
                "--watchers" => size.watchers = number(),
                _ => {}
            }
        }
        size
    }
}

/// Two nodes.
pub(crate) struct Bench {
    binary: PathBuf,
    root: PathBuf,
    dir: PathBuf,
    nodes: Vec<Child>,
}

impl Bench {
    fn start(folder: &Path) -> Self {
        let (binary, dir) = (binary(), folder.join("one"));
        let (one, _) = start(&mut Command::new(&binary), &dir, &[]);
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let mut bench = Self { binary, root, dir, nodes: vec![one] };
        let token = bench.edgeorc(&["node", "token", "create"]);
        let other = folder.join("two");
        std::fs::create_dir_all(&other).unwrap();
        let log = std::fs::File::create(other.join("log")).unwrap();
        let two = Command::new(&bench.binary)
            .args(["node", "start", "--node-name", "two", "--bind-address", OTHER, "--data-dir"])
            .arg(&other)
            .args(["--join", &format!("https://{NODE}:6443"), "--token", token.trim()])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        bench.nodes.push(two);
        let began = Instant::now();
        while bench.kubectl(&["get", "nodes", "--no-headers"]).matches(" Ready").count() < 2 {
            assert!(began.elapsed() < PATIENCE, "the second node does not get ready");
            std::thread::sleep(Duration::from_millis(100));
        }
        bench
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    fn edgeorc(&self, args: &[&str]) -> String {
        output(Command::new(&self.binary).args(args).arg("--kubeconfig").arg(self.kubeconfig()))
    }

    fn kubectl(&self, args: &[&str]) -> String {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(self.kubeconfig());
        output(command.arg("--cache-dir").arg(self.dir.join("kube-cache")).args(args))
    }

    fn hello(&self) -> PathBuf {
        self.root.join("wasm-apps/hello.wasm")
    }

    /// One pod of a component, on one of the nodes.
    fn deploy(&self, name: &str, component: &Path, on: &str) {
        let others = ["bench", "two"].into_iter().filter(|node| *node != on);
        for other in others {
            self.kubectl(&["cordon", other]);
        }
        self.kubectl(&["uncordon", on]);
        self.edgeorc(&["deploy", component.to_str().unwrap(), "--name", name, "--wait"]);
        let node = self.kubectl(&["get", "pods", "-o", "wide", "--no-headers"]);
        let line = node.lines().find(|line| line.starts_with(&format!("{name}-"))).unwrap();
        assert!(line.contains(&format!(" {on} ")), "{name} is not on {on}: {line}");
    }
}

fn output(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {text}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn main() {
    // `cargo bench` and `cargo test --benches` pass flags that mean nothing here.
    if std::env::args().any(|a| a == "--list") {
        return;
    }
    let size = Size::from_args();
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(folder.path());
    let mut rows = requests(&bench, folder.path(), &size);
    rows.extend(throughput(&bench, &size));
    rows.extend(connections(&bench, &size));
    rows.extend(versions::rows(NODE, "here.default.localhost", &size));
    rows.extend(growth::rows(&bench, &size));
    for node in bench.nodes.iter_mut().rev() {
        stop(node);
    }
    report(Path::new(env!("CARGO_MANIFEST_DIR")), "mesh", &rows);
}

/// One turn of load.
#[derive(Debug, Clone, Copy)]
struct Turn {
    rate: f64,
    p50_ms: f64,
    p99_ms: f64,
}

/// Requests per second and latencies by wrk.
fn load(at: &str, host: &str, connections: usize, seconds: u64) -> Turn {
    let (duration, connections) = (format!("{seconds}s"), connections.to_string());
    let text = output(
        Command::new("wrk")
            .args(["--latency", "-t", "1", "-c", &connections, "-d", &duration])
            .args(["-H", &format!("Host: {host}"), &format!("http://{at}/")]),
    );
    assert!(!text.contains("Non-2xx"), "{at}: {text}");
    let value = |label: &str| {
        let line = text.lines().find(|line| line.trim_start().starts_with(label)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    Turn {
        rate: value("Requests/sec:").parse().unwrap(),
        p50_ms: millis(&value("50%")),
        p99_ms: millis(&value("99%")),
    }
}

fn millis(text: &str) -> f64 {
    let at = text.find(char::is_alphabetic).unwrap();
    let factor = match &text[at..] {
        "us" => 1e-3,
        "ms" => 1.0,
        "s" => 1e3,
        "m" => 60e3,
        other => panic!("{other}"),
    };
    text[..at].parse::<f64>().unwrap() * factor
}

fn middle(turns: &[Turn], of: impl Fn(&Turn) -> f64) -> f64 {
    median(turns.iter().map(of).collect())
}

/// Ingress to a pod here and to one on the other node, beside the same component behind others.
fn requests(bench: &Bench, folder: &Path, size: &Size) -> Vec<Row> {
    bench.deploy("here", &bench.hello(), "bench");
    bench.deploy("there", &bench.hello(), "two");
    let ingress = format!("{NODE}:8080");
    let peers = peers::Peers::start(folder, &wasmtime(&bench.root), &bench.hello());
    let mut ways = vec![
        ("ingress to a pod on this node", ingress.clone(), "here.default.localhost"),
        ("ingress to a pod on another node", ingress, "there.default.localhost"),
        ("wasmtime serve", PEER.to_owned(), "x"),
    ];
    for (name, at) in peers.proxies() {
        ways.push((name, at, "x"));
    }
    for (_, at, host) in &ways {
        until_answers(at, host);
    }
    let mut turns: Vec<Vec<Turn>> = vec![Vec::new(); ways.len()];
    for turn in 0..=size.turns {
        for (way, turns) in ways.iter().zip(&mut turns) {
            let took = load(&way.1, way.2, 32, size.seconds);
            // The first warms up.
            if turn > 0 || size.turns == 0 {
                turns.push(took);
            }
        }
    }
    let rate = |at: usize| middle(&turns[at], |turn| turn.rate);
    let mut rows = vec![ratio(ways[0].0, rate(0), ways[2].0, rate(2), 0.95)];
    for peer in 3..ways.len() {
        rows.push(ratio(ways[1].0, rate(1), ways[peer].0, rate(peer), 1.0));
    }
    for (way, turns) in ways.iter().zip(&turns) {
        let none = f64::INFINITY;
        let (p50, p99) = (middle(turns, |turn| turn.p50_ms), middle(turns, |turn| turn.p99_ms));
        rows.push(row(&format!("{}, p50", way.0), p50, "ms", "", none));
        rows.push(row(&format!("{}, p99", way.0), p99, "ms", "", none));
    }
    for connections in [1, 32] {
        let p50 = |way: &(&str, String, &str)| {
            let turns: Vec<Turn> = (0..size.turns.max(1))
                .map(|_| load(&way.1, way.2, connections, size.seconds))
                .collect();
            middle(&turns, |turn| turn.p50_ms)
        };
        let hop = (p50(&ways[1]) - p50(&ways[0])) * 1e3;
        let name = format!("added by one QUIC hop, p50, connections: {connections}");
        rows.push(row(&name, hop, "us", "", 200.0));
    }
    rows
}

fn ratio(name: &str, ours: f64, peer: &str, theirs: f64, budget: f64) -> Row {
    let ratio = ours / theirs;
    Row {
        name: format!("{name} / {peer}"),
        value: ours,
        unit: "1/s",
        peer: format!("{peer} {theirs:.0}"),
        ratio: Some(ratio),
        budget,
        met: ratio >= budget,
    }
}

/// Bytes through a NodePort to a pod that echoes them, here and on the other node.
fn throughput(bench: &Bench, size: &Size) -> Vec<Row> {
    let echo = bench.root.join("wasm-apps/dist/echo.wasm");
    assert!(echo.exists(), "{} is missing: run `just apps`", echo.display());
    let mut rows = Vec::new();
    for (name, on, what) in [
        ("echo-here", "bench", "TCP through a pod on this node and back"),
        ("echo-there", "two", "TCP over QUIC through a pod on another node and back"),
    ] {
        bench.deploy(name, &echo, on);
        let port = format!("{name}-port");
        let deployment = format!("deploy/{name}");
        bench.kubectl(&[
            "expose",
            &deployment,
            "--name",
            &port,
            "--type",
            "NodePort",
            "--port",
            "7000",
        ]);
        let number =
            bench.kubectl(&["get", "service", &port, "-o", "jsonpath={.spec.ports[0].nodePort}"]);
        let at = format!("{NODE}:{number}");
        let rate = echoed_mib_per_second(&at, Duration::from_secs(size.seconds));
        rows.push(row(what, rate, "MiB/s", "", f64::INFINITY));
    }
    rows
}

fn echoed_mib_per_second(at: &str, length: Duration) -> f64 {
    let began = Instant::now();
    let stream = loop {
        let attempt = TcpStream::connect(at).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(b"x")?;
            stream.read_exact(&mut [0])?;
            Ok(stream)
        });
        match attempt {
            Ok(stream) => break stream,
            Err(err) => assert!(began.elapsed() < PATIENCE, "{at}: {err}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let mut writer = stream.try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        let chunk = vec![7; CHUNK_BYTES];
        let began = Instant::now();
        while began.elapsed() < length {
            writer.write_all(&chunk).unwrap();
        }
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut reader = BufReader::with_capacity(CHUNK_BYTES, stream);
    let (began, mut bytes) = (Instant::now(), 0);
    loop {
        let got = reader.fill_buf().unwrap().len();
        if got == 0 {
            break;
        }
        bytes += got;
        reader.consume(got);
    }
    sending.join().unwrap();
    bytes as f64 / began.elapsed().as_secs_f64() / 1024.0 / 1024.0
}

/// Memory of client connections that are open and idle.
fn connections(bench: &Bench, size: &Size) -> Vec<Row> {
    let pid = bench.nodes[0].id();
    let before = resident_mib(pid);
    let mut open = Vec::with_capacity(size.connections);
    while open.len() < size.connections {
        let mut stream = TcpStream::connect(format!("{NODE}:8080"))
            .unwrap_or_else(|err| panic!("connection {}: {err}; see ulimit -n", open.len()));
        write!(stream, "GET / HTTP/1.1\r\nHost: here.default.localhost\r\n\r\n").unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let len = stream.read(&mut [0; 4096]).unwrap();
        assert!(len > 12, "connection {} was not answered", open.len());
        open.push(stream);
    }
    let each = (resident_mib(pid) - before) * 1024.0 / size.connections as f64;
    let name = format!("RSS per open ingress connection, of {}", size.connections);
    drop(open);
    vec![row(&name, each, "KiB", "", f64::INFINITY)]
}
