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

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use support::{
    NODE, PEER, against, binary, deploy, load, median, report, resident_mib, row, run, start, stop,
    until_answers, wasmtime, worst,
};

/// Turns of each side; the median counts.
const TURNS: usize = 5;
/// Repetitions of start and deploy.
const REPEATS: usize = 10;

fn main() {
    // `cargo bench` and `cargo test --benches` pass flags that mean nothing here.
    if std::env::args().any(|a| a == "--list") {
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let binary = binary();
    let hello = root.join("wasm-apps/hello.wasm");
    let mut rows = Vec::new();
    let folder = tempfile::tempdir().unwrap();

    let mib = std::fs::metadata(&binary).unwrap().len() as f64 / 1024.0 / 1024.0;
    rows.push(row("binary, stripped", mib, "MiB", "k3s < 100", 30.0));

    let mut starts = Vec::new();
    for turn in 0..REPEATS {
        let (mut node, took) =
            start(&mut Command::new(&binary), &folder.path().join(format!("start-{turn}")), &[]);
        starts.push(took);
        stop(&mut node);
    }
    let p99 = worst(&starts);
    rows.push(row("process start to API ready, worst of 10", p99, "ms", "k3s 30,000", 300.0));

    let dir = folder.path().join("main");
    let (mut node, _) = start(&mut Command::new(&binary), &dir, &[]);
    let kubeconfig = dir.join("admin.kubeconfig");
    let cold = deploy(&binary, &kubeconfig, &hello, "cold");
    rows.push(row("deploy to first response, cold compile", cold, "ms", "", f64::INFINITY));
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
    ));

    let memory = resident_mib(node.id());
    rows.push(row("RSS, server with one pod", memory, "MiB", "KubeSolo < 200", 40.0));
    let (cpu, written) = idle(node.id(), Duration::from_secs(20));
    rows.push(row("idle CPU of one core", cpu, "%", "k3s 20-30", 0.5));
    rows.push(row("idle bytes written in 20 s", written, "B", "k3s 500 KiB/s", 0.0));

    let mut peer = Command::new(wasmtime(root))
        .args(["serve", "--addr", PEER, "-Scli"])
        // As in a pod: instances live on, spare ones for five seconds.
        .args(["--max-instance-reuse-count", "1000000000", "--idle-instance-timeout", "5s"])
        .arg(&hello)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
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
    rows.push(against("requests/s through the ingress", ours, theirs, 0.95));
    let memory = resident_mib(node.id());
    rows.push(row("RSS after the load", memory, "MiB", "", f64::INFINITY));
    stop(&mut node);
    report(root, "skeleton", &rows);
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
