//! A node that boots with no server in reach starts what it ran, and serves it; when servers return,
//! nothing is restarted.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster::start_three;
use crate::support::{Block, Node, PATIENCE, eventually, get, guest, succeed};

/// A node keeps its copy of the routes at the latest this long after they changed.
const ROUTES_KEPT_AFTER: Duration = Duration::from_secs(11);
/// From the start of the process to the first answer of a pod, without a server.
const ALONE_WITHIN: Duration = Duration::from_secs(20);
/// What must not lie in the open on the node's disk.
const SECRET: &str = "hush-4711-hush";

fn apply(node: &Node, objects: &[Value]) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    let mut command = node.kubectl(&["apply", "-f", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(list.to_string().as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "apply");
}

/// Pushes a guest; its image.
fn push(node: &Node, name: &str) -> String {
    let file = guest(name);
    let seed = format!("seed-{name}");
    let deploy = ["deploy", file.to_str().unwrap(), "--name", &seed, "--replicas", "0"];
    succeed(&mut node.edgeorc(&deploy));
    let image = "jsonpath={.spec.template.spec.containers[0].image}";
    succeed(&mut node.kubectl(&["get", "deploy", &seed, "-o", image]))
}

/// One pod on the node `home`.
fn deployment(name: &str, home: &str, container: &Value, volumes: &Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
        "replicas": 1, "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {
            "nodeSelector": {"kubernetes.io/hostname": home},
            "containers": [container], "volumes": volumes}}}})
}

fn service(name: &str, kind: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {
        "type": kind, "selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]}})
}

/// `front` asks `back` by the name of its Service; `back` serves a ConfigMap from a folder that a
/// Secret names. Gives the node port of `front`.
fn deploy(node: &Node, home: &str) -> u16 {
    let (httpd, agnhost) = (push(node, "httpd"), push(node, "agnhost"));
    let back = json!({"name": "back", "image": httpd, "ports": [{"containerPort": 8080}],
        "env": [
            {"name": "DOCUMENT_ROOT",
                "valueFrom": {"secretKeyRef": {"name": "hidden", "key": "root"}}},
            {"name": "HUSH", "valueFrom": {"secretKeyRef": {"name": "hidden", "key": "hush"}}},
        ],
        "volumeMounts": [{"name": "site", "mountPath": "/site"}]});
    let front = json!({"name": "front", "image": agnhost, "args": ["netexec", "--http-port=8080"],
        "ports": [{"containerPort": 8080}]});
    let site = json!([{"name": "site", "configMap": {"name": "site"}}]);
    apply(
        node,
        &[
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "site"},
            "data": {"index.html": "seventeen"}}),
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hidden"},
            "stringData": {"root": "/site", "hush": SECRET}}),
            deployment("back", home, &back, &site),
            deployment("front", home, &front, &json!([])),
            service("back", "ClusterIP"),
            service("front", "NodePort"),
        ],
    );
    for name in ["back", "front"] {
        let deploy = format!("deploy/{name}");
        succeed(&mut node.kubectl(&["rollout", "status", &deploy, "--timeout=60s"]));
    }
    let port = "jsonpath={.spec.ports[0].nodePort}";
    succeed(&mut node.kubectl(&["get", "service", "front", "-o", port])).parse().unwrap()
}

/// Waits until `front` on this node has asked `back`.
fn answers(at: SocketAddr, limit: Duration) {
    let path = "/dial?host=back&port=80&protocol=http&request=index.html";
    eventually("front asks back", limit, || match get(at, "front", path, PATIENCE) {
        Ok(answer) if answer.body.contains("seventeen") => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            files(&entry.path(), found);
        } else {
            found.push(entry.path());
        }
    }
}

/// The logs of all runs of all containers: a restart is one more.
fn runs(node: &Node) -> BTreeSet<PathBuf> {
    let mut found = Vec::new();
    files(&node.data_dir.join("agent/pods"), &mut found);
    found.into_iter().filter(|path| path.extension().is_some_and(|ext| ext == "log")).collect()
}

fn is_anywhere(node: &Node, text: &str) -> Option<PathBuf> {
    let mut found = Vec::new();
    files(&node.data_dir.join("agent"), &mut found);
    found.into_iter().find(|path| {
        let bytes = std::fs::read(path).unwrap_or_default();
        bytes.windows(text.len()).any(|part| part == text.as_bytes())
    })
}

/// Uid and restarts of each pod on the node.
fn pods(asked: &Node, home: &str) -> String {
    let path = "jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[0].restartCount} \
        {.status.containerStatuses[0].containerID}{'\\n'}{end}";
    let selector = format!("spec.nodeName={home}");
    let output = asked
        .kubectl(&["get", "pods", "--field-selector", &selector, "-o", path])
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// All nodes lose their power; the last of them starts alone.
fn survives_alone(mut nodes: Vec<Node>) {
    let mut home = nodes.pop().unwrap();
    let port = deploy(&nodes[0], &home.name);
    let at = SocketAddr::new(home.address, port);
    answers(at, PATIENCE);
    assert_eq!(is_anywhere(&home, SECRET), None, "a Secret lies in the open");
    let uids = |text: &str| -> BTreeSet<String> {
        text.lines().filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect()
    };
    let before = uids(&pods(&nodes[0], &home.name));
    std::thread::sleep(ROUTES_KEPT_AFTER);
    home.process.kill();
    for node in &mut nodes {
        node.process.kill();
    }

    home.restart();
    let started = Instant::now();
    answers(at, ALONE_WITHIN);
    eprintln!("{} served alone after {:?}", home.name, started.elapsed());
    let alone = runs(&home);

    for node in &mut nodes {
        node.restart();
    }
    nodes[0].wait_ready();
    let mut shown = String::new();
    eventually("the pods are seen to run again", PATIENCE, || {
        let path = "jsonpath={range .items[*]}{.status.conditions[?(@.type=='Ready')].status}{end}";
        let selector = format!("spec.nodeName={}", home.name);
        let args = ["get", "pods", "--field-selector", &selector, "-o", path];
        let ready = nodes[0].kubectl(&args).output().unwrap();
        let ready = String::from_utf8_lossy(&ready.stdout).into_owned();
        shown = pods(&nodes[0], &home.name);
        if ready == "TrueTrue" { Ok(()) } else { Err(format!("{ready} {shown}")) }
    });
    assert_eq!(uids(&shown), before, "pods are matched by uid");
    // Long enough for a controller that would replace what it took for lost.
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!(runs(&home), alone, "a container was restarted when the servers came back");
    assert_eq!(pods(&nodes[0], &home.name), shown);
    answers(at, PATIENCE);
}

#[test]
fn an_agent_without_servers_runs_its_pods_and_keeps_them_when_they_return() {
    let folder = tempfile::tempdir().unwrap();
    let block = Block::take();
    let server = Node::start(folder.path(), "one", block.address(1), None);
    server.wait_ready();
    let token = succeed(&mut server.edgeorc(&["node", "token", "create"]));
    let agent = Node::start(folder.path(), "two", block.address(2), Some((&server, token.trim())));
    eventually("the agent is ready", PATIENCE, || {
        let status = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
        let output = server.kubectl(&["get", "node", "two", "-o", status]).output().unwrap();
        if output.stdout == b"True" { Ok(()) } else { Err(output) }
    });
    survives_alone(vec![server, agent]);
}

#[test]
fn a_server_without_a_quorum_runs_its_pods_and_keeps_them_when_the_others_return() {
    let folder = tempfile::tempdir().unwrap();
    survives_alone(start_three(folder.path()));
}
