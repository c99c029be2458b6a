//! Whole processes for benches: start, load, memory, and the table at the end.

use std::fmt;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

/// Address of the node under test.
pub(crate) const NODE: &str = "127.31.0.1";
/// Where `wasmtime serve` listens.
pub(crate) const PEER: &str = "127.31.0.2:8080";
/// Length of one turn of load.
pub(crate) const LOAD: &str = "4s";
/// Connections of the load.
const CONNECTIONS: &str = "32";
/// How long anything may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// One line of the report.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    pub(crate) peer: String,
    pub(crate) ratio: Option<f64>,
    /// Infinite: there is none.
    pub(crate) budget: f64,
    pub(crate) met: bool,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ratio = self.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
        let budget = if self.budget.is_finite() { self.budget.to_string() } else { String::new() };
        let (name, value, unit, peer) = (&self.name, self.value, self.unit, &self.peer);
        let met = if self.met { "yes" } else { "NO" };
        write!(f, "{name:<62} {value:>12.1} {unit:<5} {peer:<24} {ratio:>7} {budget:>8} {met}")
    }
}

/// A row without a measured peer; met when the value is not above the budget.
pub(crate) fn row(name: &str, value: f64, unit: &'static str, peer: &str, budget: f64) -> Row {
    let (name, peer) = (name.to_owned(), peer.to_owned());
    Row { name, value, unit, peer, ratio: None, budget, met: value <= budget }
}

/// A row of a rate beside that of `wasmtime serve`; met from the ratio `budget` on.
pub(crate) fn against(name: &str, ours: f64, theirs: f64, budget: f64) -> Row {
    let ratio = ours / theirs;
    Row {
        name: name.to_owned(),
        value: ours,
        unit: "1/s",
        peer: format!("wasmtime serve {theirs:.0}"),
        ratio: Some(ratio),
        budget,
        met: ratio >= budget,
    }
}

/// The binary under test: `EDGEORC`, or the one built with the bench.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("EDGEORC")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_edgeorc")), PathBuf::from)
}

/// The peer's binary; `just` installs it.
pub(crate) fn wasmtime(root: &Path) -> PathBuf {
    let path = std::env::var_os("WASMTIME")
        .map_or_else(|| root.join("target/peers/bin/wasmtime"), PathBuf::from);
    assert!(path.exists(), "{} is missing: run `just bench-skeleton`", path.display());
    path
}

/// Prints the table and writes `target/bench/NAME.json`.
pub(crate) fn report(root: &Path, name: &str, rows: &[Row]) {
    println!(
        "{:<62} {:>12} {:<5} {:<24} {:>7} {:>8} met",
        "name", "value", "unit", "peer", "ratio", "budget"
    );
    rows.iter().for_each(|row| println!("{row}"));
    let list: Vec<_> = rows
        .iter()
        .map(|r| {
            json!({
                "name": r.name, "value": r.value, "unit": r.unit, "peer": r.peer, "ratio": r.ratio,
                "budget": r.budget.is_finite().then_some(r.budget), "met": r.met,
            })
        })
        .collect();
    let path = root.join(format!("target/bench/{name}.json"));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, serde_json::to_string_pretty(&list).unwrap()).unwrap();
    println!("written to {}", path.display());
}

/// Starts a node on an empty folder; milliseconds until the API is ready. `program` is the binary
/// with what may stand before it.
pub(crate) fn start(program: &mut Command, dir: &Path, flags: &[&str]) -> (Child, f64) {
    std::fs::create_dir_all(dir).unwrap();
    let log = std::fs::File::create(dir.join("log")).unwrap();
    let began = Instant::now();
    let child = program
        .args(["node", "start", "--node-name", "bench", "--bind-address", NODE, "--data-dir"])
        .arg(dir)
        .args(flags)
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
        assert!(began.elapsed() < PATIENCE, "not ready:\n{log}");
        std::thread::sleep(Duration::from_millis(2));
    }
    (child, began.elapsed().as_secs_f64() * 1e3)
}

/// Ends a node in order.
pub(crate) fn stop(node: &mut Child) {
    run(Command::new("kill").arg("-TERM").arg(node.id().to_string()));
    node.wait().unwrap();
}

/// Deploys and asks until the app answers; milliseconds.
pub(crate) fn deploy(binary: &Path, kubeconfig: &Path, hello: &Path, name: &str) -> f64 {
    let began = Instant::now();
    run(Command::new(binary)
        .arg("deploy")
        .arg(hello)
        .args(["--name", name, "--kubeconfig"])
        .arg(kubeconfig));
    until_answers(&format!("{NODE}:8080"), &format!("{name}.default.localhost"));
    began.elapsed().as_secs_f64() * 1e3
}

/// Waits for a 200.
pub(crate) fn until_answers(address: &str, host: &str) {
    let began = Instant::now();
    while !is_answered(address, host) {
        assert!(began.elapsed() < PATIENCE, "{host} does not answer at {address}");
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
pub(crate) fn load(url: &str, host: &str) -> f64 {
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

/// Runs to the end and gives what was printed; fails unless it succeeds.
pub(crate) fn run(command: &mut Command) -> String {
    let output =
        command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {text}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// VmRSS of a process.
pub(crate) fn resident_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The largest.
pub(crate) fn worst(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}
