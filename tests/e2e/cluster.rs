//! Three nodes as three processes: spread, balance, lose the leader, take it back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::{Block, Node, PATIENCE, both, eventually, get, guest, hello, succeed};

/// Longest a request may take; a failed one is one without a 200 by then.
pub(crate) const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// Concurrent users of the load.
const USERS: usize = 4;
/// After the kill, no request started later than this may fail.
const HEALED_AFTER: Duration = Duration::from_secs(1);
/// After the kill, writes are accepted again within this.
const WRITES_WITHIN: Duration = Duration::from_secs(3);
/// After the kill, all replicas are ready again within this.
const REPLICAS_WITHIN: Duration = Duration::from_secs(10);

/// Requests that failed: when they started, and why.
pub(crate) type Failures = Vec<(Instant, String)>;

/// Asks `at` from several threads until told to stop.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    users: Vec<std::thread::JoinHandle<(usize, Failures)>>,
}

impl Load {
    pub(crate) fn start(at: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let users = (0..USERS)
            .map(|_| {
                let stop = Arc::clone(&stop);
                std::thread::spawn(move || {
                    let (mut asked, mut failures) = (0, Vec::new());
                    while !stop.load(Ordering::Relaxed) {
                        let started = Instant::now();
                        asked += 1;
                        match get(at, "hello.default.localhost", "/", REQUEST_LIMIT) {
                            Ok(answer) if answer.code == 200 => {}
                            other => failures.push((started, format!("{other:?}"))),
                        }
                    }
                    (asked, failures)
                })
            })
            .collect();
        Self { stop, users }
    }

    pub(crate) fn stop(self) -> (usize, Failures) {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = (0, Vec::new());
        for user in self.users {
            let (asked, failures) = user.join().unwrap();
            all.0 += asked;
            all.1.extend(failures);
        }
        all
    }
}

/// Node name of each Ready pod of hello.
pub(crate) fn ready_pods(node: &Node) -> Result<BTreeMap<String, String>, String> {
    let template = "jsonpath={range .items[*]}{.metadata.name} {.spec.nodeName} \
        {.status.conditions[?(@.type=='Ready')].status} {.metadata.deletionTimestamp}{'\\n'}{end}";
    let output = node
        .kubectl(&[
            "get",
            "pods",
            "-l",
            "app.kubernetes.io/name=hello",
            "--request-timeout=2s",
            "-o",
            template,
        ])
        .output()
        .unwrap();
    if !output.status.success() {
        return Err(both(&output));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text
        .lines()
        .filter_map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            (words.len() == 3 && words[2] == "True")
                .then(|| (words[0].to_owned(), words[1].to_owned()))
        })
        .collect())
}

fn nodes_of(pods: &BTreeMap<String, String>) -> BTreeSet<String> {
    pods.values().cloned().collect()
}

/// Index of the node that leads, as the cluster's status says.
pub(crate) fn leader(nodes: &[Node]) -> usize {
    eventually("a leader is known", PATIENCE, || {
        for (at, node) in nodes.iter().enumerate() {
            let metrics = succeed(&mut node.kubectl(&["get", "--raw", "/metrics"]));
            if metrics.lines().any(|line| line == "edgeorc_store_is_leader 1") {
                return Ok(at);
            }
        }
        Err("nobody leads")
    })
}

pub(crate) fn start_three(folder: &std::path::Path) -> Vec<Node> {
    let block = Block::take();
    let first = Node::start(folder, "one", block.address(1), None);
    first.wait_ready();
    let mut nodes = vec![first];
    for (name, host) in [("two", 2), ("three", 3)] {
        let token = succeed(&mut nodes[0].edgeorc(&["node", "token", "create"]));
        let node = Node::start(folder, name, block.address(host), Some((&nodes[0], token.trim())));
        node.wait_ready();
        nodes.push(node);
    }
    eventually("all three are voters", PATIENCE, || {
        let metrics = succeed(&mut nodes[0].kubectl(&["get", "--raw", "/metrics"]));
        if metrics.lines().any(|line| line == "edgeorc_store_voters 3") {
            Ok(())
        } else {
            Err(metrics)
        }
    });
    nodes
}

/// Which pods answer at this node's ingress in `count` requests.
fn who_answers(node: &Node, count: usize) -> BTreeSet<String> {
    (0..count)
        .filter_map(|_| get(node.ingress(), "hello.default.localhost", "/", REQUEST_LIMIT).ok())
        .filter(|answer| answer.code == 200)
        .filter_map(|answer| answer.body.split_whitespace().nth(3).map(str::to_owned))
        .collect()
}

#[test]
fn three_nodes_spread_balance_and_survive_the_loss_of_the_leader() {
    let folder = tempfile::tempdir().unwrap();
    let mut nodes = start_three(folder.path());
    let hello = hello();
    let hello = hello.to_str().unwrap();
    succeed(&mut nodes[0].edgeorc(&["deploy", hello, "--replicas", "6", "--wait"]));

    // Spread: two pods on each node.
    let pods = ready_pods(&nodes[0]).unwrap();
    assert_eq!(pods.len(), 6, "{pods:?}");
    for node in &nodes {
        assert_eq!(pods.values().filter(|name| **name == node.name).count(), 2, "{pods:?}");
    }

    // Balance: any node's ingress reaches pods on all nodes.
    for node in &nodes {
        let mut seen = BTreeSet::new();
        eventually("every pod answers", PATIENCE, || {
            seen.extend(who_answers(node, 60));
            if seen.len() == 6 { Ok(()) } else { Err(seen.clone()) }
        });
    }

    // Lose the leader under load.
    let lost = leader(&nodes);
    let survivor = (lost + 1) % nodes.len();
    let load = Load::start(nodes[survivor].ingress());
    let mut seen = BTreeSet::new();
    eventually("the load runs", PATIENCE, || {
        seen.extend(who_answers(&nodes[survivor], 20));
        if seen.len() > 2 { Ok(()) } else { Err(seen.clone()) }
    });
    nodes[lost].process.kill();
    let killed = Instant::now();
    eventually("writes are accepted", PATIENCE, || {
        let output = nodes[survivor]
            .kubectl(&[
                "annotate",
                "deploy/hello",
                "touched=yes",
                "--overwrite",
                "--request-timeout=1s",
            ])
            .output()
            .unwrap();
        if output.status.success() { Ok(()) } else { Err(both(&output)) }
    });
    let writes = killed.elapsed();
    eventually("six pods are ready on the nodes left", PATIENCE, || {
        let pods = ready_pods(&nodes[survivor])?;
        let is_moved = !nodes_of(&pods).contains(&nodes[lost].name);
        if pods.len() == 6 && is_moved { Ok(()) } else { Err(format!("{pods:?}")) }
    });
    let replicas = killed.elapsed();
    let (asked, failures) = load.stop();
    eprintln!(
        "leader killed: writes again after {writes:?}, six pods ready after {replicas:?}, {asked} requests, {} failed",
        failures.len()
    );
    let late: Vec<_> = failures
        .iter()
        .filter(|(started, _)| started.saturating_duration_since(killed) > HEALED_AFTER)
        .collect();
    assert!(late.is_empty(), "failed later than {HEALED_AFTER:?} after the kill: {late:?}");
    assert!(writes <= WRITES_WITHIN, "writes only after {writes:?}");
    assert!(replicas <= REPLICAS_WITHIN, "replicas only after {replicas:?}");

    // Take it back: it gets what was pushed meanwhile, becomes ready and gets pods again.
    let busybox = guest("busybox");
    succeed(&mut nodes[survivor].edgeorc(&["push", busybox.to_str().unwrap(), "tools:v1"]));
    nodes[lost].restart();
    nodes[lost].wait_ready();
    eventually("it has what was pushed without it", PATIENCE, || {
        let blobs = |node: &Node| -> BTreeSet<_> {
            let files = std::fs::read_dir(node.data_dir.join("registry/sha256")).unwrap();
            files.map(|file| file.unwrap().file_name()).collect()
        };
        let (all, own) = (blobs(&nodes[survivor]), blobs(&nodes[lost]));
        if all == own { Ok(()) } else { Err((all, own)) }
    });
    ready_and_untainted(&nodes[survivor], &nodes[lost].name, "True");
    succeed(&mut nodes[survivor].edgeorc(&["scale", "deploy/hello", "--replicas", "9"]));
    eventually("the node that came back is used", PATIENCE, || {
        let pods = ready_pods(&nodes[survivor])?;
        let is_used = nodes_of(&pods).contains(&nodes[lost].name);
        if pods.len() == 9 && is_used { Ok(()) } else { Err(format!("{pods:?}")) }
    });
    for node in &mut nodes {
        node.process.signal("TERM");
    }
    for node in &mut nodes {
        assert_eq!(node.process.end(Duration::from_secs(20)), Some(0), "{}", node.process.stderr());
    }
}

/// Waits until a node is ready, and free of the taints that go a moment later; or lost, and tainted.
pub(crate) fn ready_and_untainted(asked: &Node, name: &str, wanted: &str) {
    eventually(&format!("the Ready condition of {name} is {wanted}"), PATIENCE, || {
        let template = "jsonpath={.status.conditions[?(@.type=='Ready')].status}\
            {range .spec.taints[*]} {.key}{end}";
        let output = asked.kubectl(&["get", "node", name, "-o", template]).output();
        let text = both(&output.unwrap());
        let is_tainted = text.contains("node.kubernetes.io/");
        let is_so = text.starts_with(wanted) && is_tainted == (wanted != "True");
        if is_so { Ok(()) } else { Err(text) }
    });
}

/// The value of a line of `/metrics` on this very node; labels included in `name`.
fn metric(node: &Node, name: &str) -> u64 {
    let metrics = succeed(&mut node.kubectl(&["get", "--raw", "/metrics"]));
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} is not among\n{metrics}")).parse().unwrap()
}

/// Goal: ten pods on three nodes cost one compile. Method: counters of all nodes, summed.
#[test]
fn what_ten_pods_on_three_nodes_run_is_compiled_once() {
    let folder = tempfile::tempdir().unwrap();
    let nodes = start_three(folder.path());
    let hello = hello();
    let hello = hello.to_str().unwrap();
    succeed(&mut nodes[0].edgeorc(&["deploy", hello, "--replicas", "10", "--wait"]));
    let pods = ready_pods(&nodes[0]).unwrap();
    assert_eq!((pods.len(), nodes_of(&pods).len()), (10, 3), "{pods:?}");
    let sum = |name: &str| nodes.iter().map(|node| metric(node, name)).sum::<u64>();
    let results = ["ok", "refused", "unfinished"];
    let compiles: Vec<_> = results
        .iter()
        .map(|result| sum(&format!("edgeorc_compiles_total{{result=\"{result}\"}}")))
        .collect();
    assert_eq!(compiles, [1, 0, 0]);
    assert_eq!(sum("edgeorc_compile_seconds_count"), 1);
    for node in &nodes {
        assert_eq!(
            metric(node, "edgeorc_compiled_fetched_total{result=\"ok\"}"),
            1,
            "{}",
            node.name
        );
    }

    // A node that lost its compiled code takes it from a server again.
    let mut nodes = nodes;
    let lost = nodes.last_mut().unwrap();
    lost.process.signal("TERM");
    assert_eq!(lost.process.end(Duration::from_secs(20)), Some(0), "{}", lost.process.stderr());
    std::fs::remove_dir_all(lost.data_dir.join("agent/compiled")).unwrap();
    lost.restart();
    lost.wait_ready();
    // More of it, should its pods have been replaced meanwhile.
    succeed(&mut nodes[0].edgeorc(&["scale", "deploy/hello", "--replicas", "16"]));
    let fetched = "edgeorc_compiled_fetched_total{result=\"ok\"}";
    eventually("it fetched the code", PATIENCE, || match metric(&nodes[2], fetched) {
        1 => Ok(()),
        other => Err(other),
    });
    eventually("its pods run again", PATIENCE, || {
        let pods = ready_pods(&nodes[0])?;
        let is_used = nodes_of(&pods).contains("three");
        if pods.len() == 16 && is_used { Ok(()) } else { Err(format!("{pods:?}")) }
    });
    assert_eq!(metric(&nodes[2], "edgeorc_compiles_total{result=\"ok\"}"), 0);
}

#[test]
fn a_fourth_node_joins_as_an_agent_and_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let nodes = start_three(folder.path());
    let token = succeed(&mut nodes[0].edgeorc(&["node", "token", "create"]));
    let address = nodes[0].address.to_string();
    let block: Vec<_> = address.rsplitn(2, '.').collect();
    let address = format!("{}.4", block[1]).parse().unwrap();
    let mut agent = Node::start(folder.path(), "four", address, Some((&nodes[1], token.trim())));
    let readiness = |wanted: &str| ready_and_untainted(&nodes[0], "four", wanted);
    readiness("True");
    let metrics = succeed(&mut nodes[0].kubectl(&["get", "--raw", "/metrics"]));
    assert!(metrics.lines().any(|line| line == "edgeorc_store_voters 3"), "{metrics}");

    // The heartbeats of all four reach the leader, once a second each, whoever passes them on.
    let heard = || metric(&nodes[leader(&nodes)], "edgeorc_node_heartbeat_interval_seconds_count");
    let (before, began) = (heard(), Instant::now());
    eventually("heartbeats are heard", PATIENCE, || {
        let count = heard() - before;
        if count >= 24 { Ok(()) } else { Err(count) }
    });
    assert!(began.elapsed() < Duration::from_secs(11), "{:?}", began.elapsed());

    // It gets its share of the pods, and its ingress reaches all of them.
    let hello = hello();
    let hello = hello.to_str().unwrap();
    succeed(&mut nodes[0].edgeorc(&["deploy", hello, "--replicas", "8", "--wait"]));
    let pods = ready_pods(&nodes[0]).unwrap();
    assert_eq!(pods.values().filter(|name| **name == "four").count(), 2, "{pods:?}");
    let mut seen = BTreeSet::new();
    eventually("every pod answers at the agent", PATIENCE, || {
        seen.extend(who_answers(&agent, 80));
        if seen.len() == 8 { Ok(()) } else { Err(seen.clone()) }
    });
    let pod = pods.iter().find(|(_, node)| *node == "four").unwrap().0.clone();
    let log = succeed(&mut nodes[0].kubectl(&["logs", &pod]));
    assert!(!log.contains("rror"), "{log}");

    // It is missed when it is gone, and used again when it is back.
    agent.process.kill();
    readiness("Unknown");
    eventually("its pods moved", PATIENCE, || {
        let pods = ready_pods(&nodes[0])?;
        let is_moved = !nodes_of(&pods).contains("four");
        if pods.len() == 8 && is_moved { Ok(()) } else { Err(format!("{pods:?}")) }
    });
    agent.restart();
    readiness("True");
    succeed(&mut nodes[2].edgeorc(&["scale", "deploy/hello", "--replicas", "11"]));
    eventually("the agent that came back is used", PATIENCE, || {
        let pods = ready_pods(&nodes[0])?;
        let is_used = nodes_of(&pods).contains("four");
        if pods.len() == 11 && is_used { Ok(()) } else { Err(format!("{pods:?}")) }
    });
    agent.process.signal("TERM");
    assert_eq!(agent.process.end(Duration::from_secs(20)), Some(0), "{}", agent.process.stderr());
}

/// Goal: who asks a server that is left alone is told why, before losing patience; and the log of that
/// server says it a few times, not with every try. Method: two of three are killed.
#[test]
fn without_a_quorum_kubectl_is_told_so_and_the_log_stays_readable() {
    let folder = tempfile::tempdir().unwrap();
    let mut nodes = start_three(folder.path());
    for lost in [1, 2] {
        nodes[lost].process.kill();
    }
    for args in [&["get", "pods"][..], &["annotate", "namespace", "default", "a=b"]] {
        let asked = Instant::now();
        let output = nodes[0].kubectl(args).output().unwrap();
        let took = asked.elapsed();
        assert!(!output.status.success(), "{}", both(&output));
        assert!(took < Duration::from_secs(20), "{args:?} took {took:?}");
        let said = both(&output);
        assert!(said.contains("quorum") || said.contains("outcome unknown"), "{args:?}: {said}");
    }
    std::thread::sleep(Duration::from_secs(20));
    nodes[0].process.signal("TERM");
    assert_eq!(nodes[0].process.end(Duration::from_secs(30)), Some(0));
    let log = nodes[0].process.stderr();
    let loud: Vec<_> =
        log.lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")).collect();
    assert!(loud.len() < 20, "{} loud lines:\n{}", loud.len(), loud.join("\n"));
}
