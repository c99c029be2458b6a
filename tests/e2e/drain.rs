//! `kubectl drain`, `cordon` and `uncordon` under a disruption budget; pods that are spread again when a node
//! joins; quotas and limits as `kubectl describe` shows them.

use std::io::Write as _;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Block, Node, PATIENCE, both, eventually, hello, succeed};

fn apply(node: &Node, object: &Value) {
    let mut command = node.kubectl(&["apply", "-f", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(object.to_string().as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "apply {object}");
}

fn read(node: &Node, args: &[&str], path: &str) -> String {
    let path = format!("jsonpath={path}");
    let args: Vec<&str> = [&["get"], args, &["-o", &path]].concat();
    let output = node.kubectl(&args).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn start_server(folder: &std::path::Path, block: Block) -> Node {
    let server = Node::start(folder, "one", block.address(1), None);
    server.wait_ready();
    server
}

/// An agent that joins `server`.
fn join(server: &Node, folder: &std::path::Path, block: Block) -> Node {
    let token = succeed(&mut server.edgeorc(&["node", "token", "create"]));
    let agent = Node::start(folder, "two", block.address(2), Some((server, token.trim())));
    eventually("the agent is ready", PATIENCE, || {
        let ready = "{.status.conditions[?(@.type=='Ready')].status}{.spec.taints}";
        match read(server, &["node", "two"], ready).as_str() {
            "True" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    agent
}

#[test]
fn a_drain_empties_a_node_and_never_goes_below_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    let block = Block::take();
    let server = start_server(folder.path(), block);
    let agent = join(&server, folder.path(), block);
    let app = hello();
    succeed(&mut server.edgeorc(&["deploy", app.to_str().unwrap(), "--replicas", "6", "--wait"]));
    let selector = json!({"matchLabels": {"app.kubernetes.io/name": "hello"}});
    apply(
        &server,
        &json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": {"name": "hello"}, "spec": {"minAvailable": 5, "selector": selector}}),
    );
    let allowed = "{.status.disruptionsAllowed}";
    eventually("one may go", PATIENCE, || {
        match read(&server, &["pdb", "hello"], allowed).as_str() {
            "1" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    let table = succeed(&mut server.kubectl(&["get", "pdb"]));
    let heads: Vec<_> =
        table.lines().next().unwrap().split("  ").filter(|w| !w.is_empty()).collect();
    assert_eq!(
        heads.iter().map(|head| head.trim()).collect::<Vec<_>>(),
        ["NAME", "MIN AVAILABLE", "MAX UNAVAILABLE", "ALLOWED DISRUPTIONS", "AGE"]
    );
    let described = succeed(&mut server.kubectl(&["describe", "pdb", "hello"]));
    for words in
        ["Min available:  5", "Allowed disruptions:  1", "Current:  6", "Desired:  5", "Total:  6"]
    {
        let squeezed = described.split_whitespace().collect::<Vec<_>>().join(" ");
        let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(squeezed.contains(&words), "{words:?} expected in:\n{described}");
    }

    // Counts the ready pods all the while.
    let (least, stop) = (Arc::new(AtomicUsize::new(usize::MAX)), Arc::new(AtomicBool::new(false)));
    let on_two = ["pods", "--field-selector", "spec.nodeName=two"];
    let had = read(&server, &on_two, "{.items[*].metadata.name}");
    assert_eq!(had.split(' ').count(), 3, "{had}");
    let (seen, halt) = (Arc::clone(&least), Arc::clone(&stop));
    let mut look = server.kubectl(&["get", "pods", "-l", "app.kubernetes.io/name=hello", "-o",
        "jsonpath={range .items[*]}{.metadata.deletionTimestamp} {.status.conditions[?(@.type=='Ready')].status}{'\\n'}{end}"]);
    let watcher = std::thread::spawn(move || {
        while !halt.load(Ordering::Relaxed) {
            let output = look.output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let ready = text.lines().filter(|line| *line == " True").count();
            if output.status.success() {
                seen.fetch_min(ready, Ordering::Relaxed);
            }
        }
    });
    let drained =
        server.kubectl(&["drain", "two", "--ignore-daemonsets", "--timeout=90s"]).output().unwrap();
    stop.store(true, Ordering::Relaxed);
    watcher.join().unwrap();
    let said = both(&drained);
    assert!(drained.status.success(), "{said}");
    assert!(said.contains("node/two drained"), "{said}");
    assert!(said.contains("evicting pod default/hello-"), "{said}");
    let least = least.load(Ordering::Relaxed);
    assert!(least >= 5 && least != usize::MAX, "{least} of 6 were ready at the worst:\n{said}");
    assert_eq!(read(&server, &on_two, "{.items[*].metadata.name}"), "");
    eventually("six again", PATIENCE, || {
        match read(&server, &["deploy", "hello"], "{.status.readyReplicas}").as_str() {
            "6" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    let node = succeed(&mut server.kubectl(&["get", "node", "two"]));
    assert!(node.contains("Ready,SchedulingDisabled"), "{node}");
    let described = succeed(&mut server.kubectl(&["describe", "node", "two"]));
    assert!(described.contains("node.kubernetes.io/unschedulable:NoSchedule"), "{described}");

    // With nothing to spare, a drain says so and gives up when it is told to.
    succeed(&mut server.kubectl(&["uncordon", "two"]));
    let more = r#"{"spec":{"minAvailable":6}}"#;
    succeed(&mut server.kubectl(&["patch", "pdb", "hello", "--type=merge", "-p", more]));
    eventually("none may go", PATIENCE, || {
        match read(&server, &["pdb", "hello"], allowed).as_str() {
            "0" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    let refused = server.kubectl(&["drain", "one", "--timeout=7s"]).output().unwrap();
    let said = both(&refused);
    assert!(!refused.status.success(), "{said}");
    assert!(said.contains("violate the pod's disruption budget"), "{said}");
    let kept = "{.items[*].metadata.deletionTimestamp}";
    assert_eq!(read(&server, &["pods"], kept).trim(), "", "{said}");
    succeed(&mut server.kubectl(&["uncordon", "one"]));

    let mut agent = agent;
    agent.process.signal("TERM");
    assert_eq!(agent.process.end(Duration::from_secs(20)), Some(0), "{}", agent.process.stderr());
}

#[test]
fn who_asks_for_it_is_spread_again_when_a_node_joins() {
    let folder = tempfile::tempdir().unwrap();
    let block = Block::take();
    let server = start_server(folder.path(), block);
    let app = hello();
    for name in ["moves", "stays"] {
        let deploy = ["deploy", app.to_str().unwrap(), "--name", name, "--replicas", "4", "--wait"];
        succeed(&mut server.edgeorc(&deploy));
    }
    let annotation = "edgeorc.io/rebalance=true";
    succeed(&mut server.kubectl(&["annotate", "deployment", "moves", annotation]));
    let _agent = join(&server, folder.path(), block);

    let pods_of = |name: &str, path: &str| {
        let label = format!("app.kubernetes.io/name={name}");
        read(&server, &["pods", "-l", &label], path)
    };
    let stood = pods_of("stays", "{.items[*].metadata.uid}");
    eventually("two of four pods have moved", PATIENCE, || {
        let ready = read(&server, &["deploy", "moves"], "{.status.readyReplicas}");
        assert!(ready == "4" || ready == "3", "{ready} of 4 are ready: one moves at a time");
        let on = pods_of("moves", "{.items[*].spec.nodeName}");
        let mut nodes: Vec<_> = on.split_whitespace().collect();
        nodes.sort_unstable();
        if nodes == ["one", "one", "two", "two"] { Ok(()) } else { Err(on) }
    });
    assert_eq!(pods_of("stays", "{.items[*].metadata.uid}"), stood, "who does not ask is left");
    let events = ["events", "--field-selector", "reason=Rebalanced"];
    assert_eq!(read(&server, &events, "{.items[*].involvedObject.kind}"), "Pod Pod");
}

#[test]
fn quotas_and_limits_are_described_and_hold() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    apply(
        &node,
        &json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"},
        "spec": {"hard": {"pods": "2", "limits.memory": "256Mi", "count/deployments.apps": "5"}}}),
    );
    apply(
        &node,
        &json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "usual"},
        "spec": {"limits": [{"type": "Container", "default": {"memory": "64Mi"},
            "defaultRequest": {"memory": "32Mi"}, "max": {"memory": "128Mi"}}]}}),
    );
    eventually("the quota is counted", PATIENCE, || {
        match read(&node, &["quota", "small"], "{.status.used.pods}").as_str() {
            "0" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    let app = hello();
    succeed(&mut node.edgeorc(&["deploy", app.to_str().unwrap(), "--replicas", "4"]));
    let failure = "{.status.conditions[?(@.type=='ReplicaFailure')].message}";
    eventually("the deployment says why", PATIENCE, || {
        let said = read(&node, &["deploy", "hello"], failure);
        if said.contains("exceeded quota: small, requested: pods=1, used: pods=2, limited: pods=2")
        {
            Ok(())
        } else {
            Err(said)
        }
    });
    let described = succeed(&mut node.kubectl(&["describe", "quota", "small"]));
    let lines: Vec<Vec<&str>> =
        described.lines().map(|line| line.split_whitespace().collect()).collect();
    for wanted in [
        ["count/deployments.apps", "1", "5"],
        ["limits.memory", "128Mi", "256Mi"],
        ["pods", "2", "2"],
    ] {
        assert!(lines.iter().any(|line| *line == wanted), "{wanted:?} expected in:\n{described}");
    }
    let table = succeed(&mut node.kubectl(&["get", "quota"]));
    assert!(table.contains("pods: 2/2") && table.contains("limits.memory: 128Mi/256Mi"), "{table}");
    let described = succeed(&mut node.kubectl(&["describe", "limits", "usual"]));
    let row = "Container memory - 128Mi 32Mi 64Mi -";
    let squeezed: Vec<_> = described
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    assert!(squeezed.iter().any(|line| line == row), "{described}");
    let named = succeed(&mut node.kubectl(&["describe", "namespace", "default"]));
    assert!(named.contains("small") && named.contains("128Mi"), "{named}");

    // What goes makes room again.
    succeed(&mut node.edgeorc(&["scale", "deploy/hello", "--replicas", "1"]));
    eventually("one is counted", PATIENCE, || {
        match read(&node, &["quota", "small"], "{.status.used.pods}").as_str() {
            "1" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
}
