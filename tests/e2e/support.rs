//! Processes, addresses, HTTP and waiting.

use std::fmt::Debug;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How long anything may take unless a test says otherwise.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks while waiting.
const LOOK: Duration = Duration::from_millis(50);
/// Port of the API and of QUIC.
pub(crate) const API_PORT: u16 = 6443;
/// Port of the ingress.
pub(crate) const INGRESS_PORT: u16 = 8080;

/// A block of loopback addresses that no other test of any process uses: the whole of 127/8 is
/// this machine, so default ports never collide.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block([u8; 2]);

impl Block {
    pub(crate) fn take() -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let process = std::process::id();
        let high = 64 + u8::try_from(process % 128).unwrap();
        let low = u8::try_from((process / 128) % 64).unwrap() * 4;
        Self([high, low.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed))])
    }

    pub(crate) fn address(self, host: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(127, self.0[0], self.0[1], host))
    }
}

/// The binary under test: `EDGEORC`, or the one built with the tests.
pub(crate) fn edgeorc() -> Command {
    let mut command = std::env::var_os("EDGEORC")
        .map_or_else(|| Command::new(env!("CARGO_BIN_EXE_edgeorc")), Command::new);
    for name in ["KUBECONFIG", "EDGEORC_LOG", "EDGEORC_DATA_DIR"] {
        command.env_remove(name);
    }
    command
}

/// A built guest, for example `ticker`.
pub(crate) fn guest(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("wasm-apps/dist/{name}.wasm"));
    assert!(path.exists(), "{} is missing: run wasm-apps/build first", path.display());
    path
}

/// The committed hello component.
pub(crate) fn hello() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("wasm-apps/hello.wasm")
}

/// Runs to the end and returns what it wrote; fails unless it succeeds.
pub(crate) fn succeed(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?} failed:\n{}", both(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Both channels as text.
pub(crate) fn both(output: &Output) -> String {
    format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Waits until `look` gives a value; fails with the last refusal after `limit`.
pub(crate) fn eventually<T, E: Debug>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<T, E>,
) -> T {
    let start = Instant::now();
    loop {
        match look() {
            Ok(value) => return value,
            Err(why) if start.elapsed() > limit => panic!("{what}: not after {limit:?}: {why:?}"),
            Err(_) => std::thread::sleep(LOOK),
        }
    }
}

/// A running edgeorc with its stdout line by line and its stderr in a file.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    lines: Receiver<String>,
    log: PathBuf,
}

impl Process {
    pub(crate) fn spawn(command: &mut Command, log: PathBuf) -> Self {
        let stderr = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines, log }
    }

    /// The next line on stdout.
    pub(crate) fn line(&self, limit: Duration) -> String {
        self.lines.recv_timeout(limit).unwrap_or_else(|_| {
            panic!("no line on stdout after {limit:?}; stderr:\n{}", self.stderr())
        })
    }

    /// Lines on stdout not read yet.
    pub(crate) fn rest(&self) -> Vec<String> {
        self.lines.try_iter().collect()
    }

    pub(crate) fn stderr(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn signal(&self, name: &str) {
        succeed(Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()));
    }

    /// Waits for the end; the exit code, or `None` when a signal ended it.
    pub(crate) fn end(&mut self, limit: Duration) -> Option<i32> {
        let status = eventually("the process ends", limit, || {
            self.child.try_wait().unwrap().ok_or("still running")
        });
        status.code()
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- {}:\n{}", self.log.display(), self.stderr());
        }
    }
}

/// A cluster node as a child process.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) address: IpAddr,
    pub(crate) data_dir: PathBuf,
    pub(crate) process: Process,
}

impl Node {
    /// Starts a node; `join` is a server's address and a token.
    pub(crate) fn start(
        folder: &Path,
        name: &str,
        address: IpAddr,
        join: Option<(&Node, &str)>,
    ) -> Self {
        Self::start_with(folder, name, address, join, &[])
    }

    /// The same with further flags.
    pub(crate) fn start_with(
        folder: &Path,
        name: &str,
        address: IpAddr,
        join: Option<(&Node, &str)>,
        flags: &[&str],
    ) -> Self {
        let data_dir = folder.join(name);
        let mut command = edgeorc();
        command
            .args(["node", "start", "--node-name", name, "--bind-address", &address.to_string()])
            .arg("--data-dir")
            .arg(&data_dir)
            .args(flags);
        if let Some((server, token)) = join {
            command.args(["--join", &format!("https://{}:{API_PORT}", server.address)]);
            command.args(["--token", token]);
        }
        let process = Process::spawn(&mut command, folder.join(format!("{name}.log")));
        Self { name: name.to_owned(), address, data_dir, process }
    }

    /// The same node again, from its own disk.
    pub(crate) fn restart(&mut self) {
        let folder = self.data_dir.parent().unwrap().to_owned();
        self.process = Self::start(&folder, &self.name, self.address, None).process;
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.data_dir.join("admin.kubeconfig")
    }

    /// Runs `edgeorc` against this node's API.
    pub(crate) fn edgeorc(&self, args: &[&str]) -> Command {
        let mut command = edgeorc();
        command.args(args).arg("--kubeconfig").arg(self.kubeconfig());
        command
    }

    /// Runs kubectl against this node's API.
    pub(crate) fn kubectl(&self, args: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(self.kubeconfig());
        // Each test has its own discovery cache, so that none reads another's.
        command.arg("--cache-dir").arg(self.data_dir.with_extension("kube-cache")).args(args);
        command
    }

    /// Waits until this node is ready and takes pods.
    pub(crate) fn wait_ready(&self) {
        eventually(
            &format!("{} is ready: {}", self.name, self.process.log.display()),
            PATIENCE,
            || {
                let output = self.edgeorc(&["get", "nodes", "-o", "json"]).output().unwrap();
                match taking_pods(&output) {
                    Ok(names) if names.contains(&self.name) => Ok(()),
                    names => Err(format!("{names:?}\n{}", self.process.stderr())),
                }
            },
        );
    }

    pub(crate) fn ingress(&self) -> SocketAddr {
        SocketAddr::new(self.address, INGRESS_PORT)
    }
}

/// Names of the nodes among `edgeorc get nodes -o json` that are ready, and free of the taint that
/// goes a moment after that: a pod that is made before then lands elsewhere.
pub(crate) fn taking_pods(output: &Output) -> Result<Vec<String>, String> {
    let list: serde_json::Value =
        serde_json::from_slice(&output.stdout).map_err(|err| format!("{err}: {}", both(output)))?;
    let takes_pods = |node: &&serde_json::Value| {
        let mut conditions = node["status"]["conditions"].as_array().into_iter().flatten();
        let mut taints = node["spec"]["taints"].as_array().into_iter().flatten();
        conditions.any(|one| one["type"] == "Ready" && one["status"] == "True")
            && !taints.any(|one| one["key"] == "node.kubernetes.io/not-ready")
    };
    let nodes = list["items"].as_array().into_iter().flatten().filter(takes_pods);
    Ok(nodes.filter_map(|node| node["metadata"]["name"].as_str().map(str::to_owned)).collect())
}

/// An HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) body: String,
}

/// One GET on a connection of its own.
pub(crate) fn get(
    address: SocketAddr,
    host: &str,
    path: &str,
    limit: Duration,
) -> std::io::Result<Answer> {
    let invalid = |why: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, why.to_owned());
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| invalid("no end of head"))?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let is_chunked = head.to_lowercase().contains("transfer-encoding: chunked");
    Ok(Answer {
        code: code.ok_or_else(|| invalid("no status code"))?,
        body: if is_chunked { dechunk(body) } else { body.to_owned() },
    })
}

fn dechunk(body: &str) -> String {
    let mut text = String::new();
    let mut rest = body;
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        let Some(chunk) = after.get(..size).filter(|_| size > 0) else { break };
        text.push_str(chunk);
        rest = after.get(size..).unwrap_or_default().trim_start_matches("\r\n");
    }
    text
}
