//! Nothing is dropped: rolling updates, scaling down, draining and losing a node, all under load.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::cluster::start_three;
use crate::support::{Node, PATIENCE, eventually, hello, succeed};

/// Longest a request may take; a failed one is one without a 200 by then.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// Users of the load per method.
const USERS: usize = 2;
/// Pause of a user between two requests: constant load, and something left for the cluster.
const THINK: Duration = Duration::from_millis(2);
/// Rolling updates in an ordinary run, and in the long one.
const UPDATES: usize = 2;
const UPDATES_LONG: usize = 20;
/// After a kill, no idempotent request started later than this may fail.
const HEALED_AFTER: Duration = Duration::from_secs(1);

/// A request that failed: when it started, its method, and why.
type Failure = (Instant, &'static str, String);

/// What the users saw.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) asked: usize,
    pub(crate) failures: Vec<Failure>,
}

/// Users that ask one ingress, each on a connection it keeps, until told to stop.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    users: Vec<std::thread::JoinHandle<Outcome>>,
}

impl Load {
    /// Half of the users send GET, the others POST.
    pub(crate) fn start(at: SocketAddr) -> Self {
        Self::start_in(at, || {})
    }

    /// The same on threads that first do `enter`.
    pub(crate) fn start_in(at: SocketAddr, enter: impl Fn() + Clone + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let users = ["GET", "POST"].into_iter().flat_map(|method| (0..USERS).map(move |_| method));
        let users = users
            .map(|method| {
                let stop = Arc::clone(&stop);
                let enter = enter.clone();
                std::thread::spawn(move || {
                    enter();
                    user(at, method, &stop)
                })
            })
            .collect();
        Self { stop, users }
    }

    pub(crate) fn stop(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Outcome::default();
        for user in self.users {
            let outcome = user.join().unwrap();
            all.asked += outcome.asked;
            all.failures.extend(outcome.failures);
        }
        all
    }
}

fn user(at: SocketAddr, method: &'static str, stop: &AtomicBool) -> Outcome {
    let mut outcome = Outcome::default();
    let mut kept = None;
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        outcome.asked += 1;
        match ask(&mut kept, at, method) {
            Ok(200) => {}
            Ok(code) => outcome.failures.push((started, method, format!("status {code}"))),
            Err(err) => {
                kept = None;
                outcome.failures.push((started, method, err.to_string()));
            }
        }
        std::thread::sleep(THINK);
    }
    outcome
}

/// One exchange on the kept connection, or on a new one if there is none or it was closed unused.
fn ask(kept: &mut Option<TcpStream>, at: SocketAddr, method: &str) -> std::io::Result<u16> {
    if let Some(stream) = kept.as_mut() {
        match exchange(stream, method) {
            // The server may close a connection between two requests; then nothing was read.
            Err(err) if err.kind() == std::io::ErrorKind::UnexpectedEof => *kept = None,
            other => return other,
        }
    }
    let stream = TcpStream::connect_timeout(&at, REQUEST_LIMIT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(REQUEST_LIMIT))?;
    stream.set_write_timeout(Some(REQUEST_LIMIT))?;
    exchange(kept.insert(stream), method)
}

fn exchange(stream: &mut TcpStream, method: &str) -> std::io::Result<u16> {
    let invalid = |why: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, why.to_owned());
    let body = if method == "POST" { "content-length: 4\r\n\r\nbody" } else { "\r\n" };
    let head = format!("{method} / HTTP/1.1\r\nhost: hello.default.localhost\r\n{body}");
    stream.write_all(head.as_bytes())?;
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let len = stream.read(&mut chunk)?;
        if len == 0 {
            let kind = if bytes.is_empty() {
                std::io::ErrorKind::UnexpectedEof
            } else {
                std::io::ErrorKind::InvalidData
            };
            return Err(kind.into());
        }
        bytes.extend_from_slice(&chunk[..len]);
        let Some(head_end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&bytes[..head_end]).to_lowercase();
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let code = code.ok_or_else(|| invalid("no status"))?;
        let body = &bytes[head_end + 4..];
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let is_whole = match length.and_then(|length| length.trim().parse::<usize>().ok()) {
            Some(length) => body.len() >= length,
            None => body.ends_with(b"0\r\n\r\n"),
        };
        if is_whole {
            return Ok(code);
        }
    }
}

fn deploy(nodes: &[Node], replicas: &str) {
    let hello = hello();
    let hello = hello.to_str().unwrap();
    succeed(&mut nodes[0].edgeorc(&["deploy", hello, "--replicas", replicas, "--wait"]));
}

fn roll(node: &Node) {
    succeed(&mut node.kubectl(&["rollout", "restart", "deploy/hello"]));
    succeed(&mut node.kubectl(&["rollout", "status", "deploy/hello", "--timeout=180s"]));
}

/// Waits until exactly `count` pods are there, all ready and none on its way out.
fn settled(node: &Node, count: usize) {
    let template = "jsonpath={range .items[*]}{.status.conditions[?(@.type=='Ready')].status}\
        {.metadata.deletionTimestamp}{'\\n'}{end}";
    eventually("the pods have settled", PATIENCE, || {
        let output =
            node.kubectl(&["get", "pods", "-l", "app.kubernetes.io/name=hello", "-o", template]);
        let text = succeed(&mut { output });
        let is_settled = text.lines().count() == count && text.lines().all(|line| line == "True");
        if is_settled { Ok(()) } else { Err(text) }
    });
}

fn roll_under_load(updates: usize) {
    let folder = tempfile::tempdir().unwrap();
    let nodes = start_three(folder.path());
    deploy(&nodes, "10");
    for update in 0..updates {
        // Another node's ingress each time.
        let load = Load::start(nodes[update % nodes.len()].ingress());
        let started = Instant::now();
        roll(&nodes[0]);
        settled(&nodes[0], 10);
        let took = started.elapsed();
        let outcome = load.stop();
        eprintln!(
            "rolling update {update}: {took:?}, {} requests, {} failed",
            outcome.asked,
            outcome.failures.len()
        );
        assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    }
}

#[test]
fn a_rolling_update_and_a_scale_down_drop_no_request() {
    roll_under_load(UPDATES);
}

#[test]
#[ignore = "20 rolling updates take minutes: just test-network"]
fn twenty_rolling_updates_drop_no_request() {
    roll_under_load(UPDATES_LONG);
}

/// Goal: scaling down, draining a node and stopping one in good order lose nothing, and a killed
/// node costs idempotent requests at most a second. Method: constant load through the ingress of a
/// node that stays, one disturbance after the other.
#[test]
fn scaling_draining_stopping_and_killing_lose_no_idempotent_request() {
    let folder = tempfile::tempdir().unwrap();
    let mut nodes = start_three(folder.path());
    deploy(&nodes, "9");
    let at = nodes[0].ingress();

    let load = Load::start(at);
    succeed(&mut nodes[0].edgeorc(&["scale", "deploy/hello", "--replicas", "3"]));
    settled(&nodes[0], 3);
    succeed(&mut nodes[0].edgeorc(&["scale", "deploy/hello", "--replicas", "9"]));
    settled(&nodes[0], 9);
    let outcome = load.stop();
    eprintln!("scaled: {} requests, {} failed", outcome.asked, outcome.failures.len());
    assert!(outcome.failures.is_empty(), "scale: {:?}", outcome.failures);

    let load = Load::start(at);
    // As `kubectl drain` does it, whose evictions newer versions send as protobuf.
    succeed(&mut nodes[0].kubectl(&["cordon", "two"]));
    let on_two = ["delete", "pods", "--field-selector", "spec.nodeName=two", "--timeout=120s"];
    succeed(&mut nodes[0].kubectl(&on_two));
    settled(&nodes[0], 9);
    succeed(&mut nodes[0].kubectl(&["uncordon", "two"]));
    let outcome = load.stop();
    eprintln!("drained: {} requests, {} failed", outcome.asked, outcome.failures.len());
    assert!(outcome.failures.is_empty(), "drain: {:?}", outcome.failures);

    // A node that is told to stop takes its pods out of the endpoints before it goes.
    let load = Load::start(at);
    nodes[2].process.signal("TERM");
    assert_eq!(nodes[2].process.end(Duration::from_secs(30)), Some(0));
    std::thread::sleep(Duration::from_secs(1));
    nodes[2].restart();
    nodes[2].wait_ready();
    let outcome = load.stop();
    eprintln!("stopped: {} requests, {} failed", outcome.asked, outcome.failures.len());
    assert!(outcome.failures.is_empty(), "stop: {:?}", outcome.failures);

    roll(&nodes[0]);
    settled(&nodes[0], 9);
    let load = Load::start(at);
    std::thread::sleep(Duration::from_millis(500));
    nodes[2].process.kill();
    let killed = Instant::now();
    std::thread::sleep(Duration::from_secs(8));
    let outcome = load.stop();
    let (late, early): (Vec<_>, Vec<_>) = outcome
        .failures
        .iter()
        .filter(|(_, method, _)| *method == "GET")
        .partition(|(started, _, _)| started.saturating_duration_since(killed) > HEALED_AFTER);
    eprintln!(
        "killed: {} requests, {} failed, of them idempotent {} within a second and {} later",
        outcome.asked,
        outcome.failures.len(),
        early.len(),
        late.len()
    );
    assert!(late.is_empty(), "kill: {late:?}");
}
