//! Whole-process figures of one node: size, memory, start, deploy, requests per second.
//!
//! Method: the shipped binary (`just dist`; another one by `EDGEORC`) is started as a user would, with
//! the committed `hello` component.
//! Requests per second are measured by wrk, in turns with `wasmtime serve` on the same component,
//! in the same reuse mode, with the same load in the same run. Prints a table and writes
//! `target/bench/skeleton.json`. Run it with `just bench-skeleton`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::too_many_lines,
    reason = "a bench that cannot run should stop at once, and it measures real time"
)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

/// Address of the node under test.
const NODE: &str = "127.31.0.1";
/// Where `wasmtime serve` listens.
const PEER: &str = "127.31.0.2:8080";
/// Turns of each side; the median counts.
const TURNS: usize = 5;
/// Length of one turn of load.
const LOAD: &str = "4s";
/// Connections of the load.
const CONNECTIONS: &str = "32";
/// Repetitions of start and deploy.
const REPEATS: usize = 10;

struct Row {
    name: &'static str,
    value: f64,
    unit: &'static str,
    peer: &'static str,
    ratio: Option<f64>,
    budget: f64,
    met: bool,
}

fn main() {
    // `cargo bench` and `cargo test --benches` pass flags that mean nothing here.
    if std::env::args().any(|a| a == "--list") {
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let binary = std::env::var_os("EDGEORC")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_edgeorc")), PathBuf::from);
    let hello = root.join("wasm-apps/hello.wasm");
    let mut rows = Vec::new();
    let folder = tempfile::tempdir().unwrap();

    let mib = std::fs::metadata(&binary).unwrap().len() as f64 / 1024.0 / 1024.0;
    rows.push(row("binary, stripped", mib, "MiB", "k3s < 100", 30.0, mib <= 30.0));

    let mut starts = Vec::new();
    for turn in 0..REPEATS {
        let (mut node, took) = start(&binary, &folder.path().join(format!("start-{turn}")));
        starts.push(took);
        stop(&mut node);
    }
    let p99 = worst(&starts);
    rows.push(row(
        "process start to API ready, worst of 10",
        p99,
        "ms",
        "k3s 30,000",
        300.0,
        p99 <= 300.0,
    ));

    let dir = folder.path().join("main");
    let (mut node, _) = start(&binary, &dir);
    let kubeconfig = dir.join("admin.kubeconfig");
    let cold = deploy(&binary, &kubeconfig, &hello, "cold");
    rows.push(row("deploy to first response, cold compile", cold, "ms", "", f64::INFINITY, true));
    let mut warm = Vec::new();
    for turn in 0..REPEATS {
        warm.push(deploy(&binary, &kubeconfig, &hello, &format!("warm{turn}")));
        let name = format!("warm{turn}");
        run(Command::new(&binary).args(["delete", "app", &name, "--kubeconfig"]).arg(&kubeconfig));
    }
    let p99 = worst(&warm);
    rows.push(row(
        "deploy to first response, compiled, worst of 10",
        p99,
        "ms",
        "Kubernetes SLO 5,000",
        50.0,
        p99 <= 50.0,
    ));

    let memory = resident_mib(node.id());
    rows.push(row(
        "RSS, server with one pod",
        memory,
        "MiB",
        "KubeSolo < 200",
        40.0,
        memory <= 40.0,
    ));
    let (cpu, written) = idle(node.id(), Duration::from_secs(20));
    rows.push(row("idle CPU of one core", cpu, "%", "k3s 20-30", 0.5, cpu <= 0.5));
    rows.push(row(
        "idle bytes written in 20 s",
        written,
        "B",
        "k3s 500 KiB/s",
        0.0,
        written == 0.0,
    ));

    let wasmtime = root.join("target/peers/bin/wasmtime");
    let mut peer = Command::new(&wasmtime)
        .args(["serve", "--addr", PEER, "-Scli"])
        // As in a pod: instances live on, spare ones for five seconds.
        .args(["--max-instance-reuse-count", "1000000000", "--idle-instance-timeout", "5s"])
        .arg(&hello)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|cause| {
            panic!("{}: {cause}: run `just bench-skeleton`", wasmtime.display())
        });
    until_answers(PEER, "x");
    let host = "cold.default.localhost";
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        ours.push(load(&format!("http://{NODE}:8080/"), host));
        theirs.push(load(&format!("http://{PEER}/"), "x"));
    }
    peer.kill().unwrap();
    peer.wait().unwrap();
    let (ours, theirs) = (median(ours), median(theirs));
    let ratio = ours / theirs;
    rows.push(Row {
        name: "requests/s through the ingress",
        value: ours,
        unit: "1/s",
        peer: Box::leak(format!("wasmtime serve {theirs:.0}").into_boxed_str()),
        ratio: Some(ratio),
        budget: 0.95,
        met: ratio >= 0.95,
    });
    let memory = resident_mib(node.id());
    rows.push(row("RSS after the load", memory, "MiB", "", f64::INFINITY, true));
    stop(&mut node);
    report(root, &rows);
}

fn row(
    name: &'static str,
    value: f64,
    unit: &'static str,
    peer: &'static str,
    budget: f64,
    met: bool,
) -> Row {
    Row { name, value, unit, peer, ratio: None, budget, met }
}

fn report(root: &Path, rows: &[Row]) {
    println!(
        "{:<50} {:>12} {:<5} {:<24} {:>7} {:>8} met",
        "name", "value", "unit", "peer", "ratio", "budget"
    );
    for r in rows {
        let ratio = r.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
        let budget = if r.budget.is_finite() { r.budget.to_string() } else { String::new() };
        println!(
            "{:<50} {:>12.1} {:<5} {:<24} {:>7} {:>8} {}",
            r.name,
            r.value,
            r.unit,
            r.peer,
            ratio,
            budget,
            if r.met { "yes" } else { "NO" }
        );
    }
    let list: Vec<_> = rows
        .iter()
        .map(|r| {
            json!({
                "name": r.name, "value": r.value, "unit": r.unit, "peer": r.peer, "ratio": r.ratio,
                "budget": r.budget.is_finite().then_some(r.budget), "met": r.met,
            })
        })
        .collect();
    let path = root.join("target/bench/skeleton.json");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, serde_json::to_string_pretty(&list).unwrap()).unwrap();
    println!("written to {}", path.display());
}

/// Starts a node on an empty folder; milliseconds until `/readyz` says so.
fn start(binary: &Path, dir: &Path) -> (Child, f64) {
    std::fs::create_dir_all(dir).unwrap();
    let log = std::fs::File::create(dir.join("log")).unwrap();
    let began = Instant::now();
    let child = Command::new(binary)
        .args(["node", "start", "--node-name", "bench", "--bind-address", NODE, "--data-dir"])
        .arg(dir)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let kubeconfig = dir.join("admin.kubeconfig");
    loop {
        // The log line is written when the API answers; asking the API would cost a TLS handshake
        // of another process per look.
        let log = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
        if log.contains("the API is ready") && kubeconfig.exists() {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "not ready:\n{log}");
        std::thread::sleep(Duration::from_millis(2));
    }
    (child, began.elapsed().as_secs_f64() * 1e3)
}

fn stop(node: &mut Child) {
    run(Command::new("kill").arg("-TERM").arg(node.id().to_string()));
    node.wait().unwrap();
}

/// Deploys and asks until the app answers; milliseconds.
fn deploy(binary: &Path, kubeconfig: &Path, hello: &Path, name: &str) -> f64 {
    let began = Instant::now();
    run(Command::new(binary)
        .arg("deploy")
        .arg(hello)
        .args(["--name", name, "--kubeconfig"])
        .arg(kubeconfig));
    until_answers(&format!("{NODE}:8080"), &format!("{name}.default.localhost"));
    began.elapsed().as_secs_f64() * 1e3
}

fn until_answers(address: &str, host: &str) {
    let began = Instant::now();
    while !is_answered(address, host) {
        assert!(began.elapsed() < Duration::from_secs(60), "{host} does not answer at {address}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn is_answered(address: &str, host: &str) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(address)?;
        write!(stream, "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        Ok(head.ends_with(b"200"))
    };
    ask().unwrap_or(false)
}

/// Requests per second by wrk.
fn load(url: &str, host: &str) -> f64 {
    let mut child = Command::new("wrk")
        .args(["-t", "1", "-c", CONNECTIONS, "-d", LOAD, "-H", &format!("Host: {host}"), url])
        .stdout(Stdio::piped())
        .spawn()
        .expect("wrk is missing: install the package wrk");
    let output = BufReader::new(child.stdout.take().unwrap());
    let mut rate = 0.0;
    for line in output.lines().map_while(Result::ok) {
        assert!(!line.contains("Non-2xx"), "{url}: {line}");
        if let Some(value) = line.strip_prefix("Requests/sec:") {
            rate = value.trim().parse().unwrap();
        }
    }
    child.wait().unwrap();
    rate
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {text}");
}

fn resident_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

/// CPU in percent of one core, and bytes sent to storage, while nothing is asked.
fn idle(pid: u32, length: Duration) -> (f64, f64) {
    let cpu = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields = stat.rsplit_once(')').unwrap().1.to_owned();
        fields.split_whitespace().skip(11).take(2).map(|f| f.parse::<f64>().unwrap()).sum::<f64>()
    };
    let written = || {
        let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
        let line = io.lines().find(|line| line.starts_with("write_bytes:")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap()
    };
    // What the deploys left in flight is not idleness.
    std::thread::sleep(Duration::from_secs(5));
    let (cpu_before, written_before) = (cpu(), written());
    std::thread::sleep(length);
    let ticks = cpu() - cpu_before;
    (ticks / length.as_secs_f64(), written() - written_before)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn worst(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}
