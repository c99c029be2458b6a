//! Measured use through kubectl, limits, and nodes that are short of something.
//!
//! Method: a node is short because its threshold says so, never because this machine is.

use std::time::Duration;

use crate::support::{Block, Node, PATIENCE, Process, both, edgeorc, eventually, guest, succeed};

/// Thresholds that no machine meets.
const NEVER: &str = "none";
/// Memory that no machine has left.
const SHORT_OF_MEMORY: &str = "memory.available<1000Ti";
/// A limit is looked at every 10 s, and a folder walked every 60 s.
const LIMIT_PATIENCE: Duration = Duration::from_secs(120);

fn start(folder: &std::path::Path, eviction: &str) -> Node {
    let address = Block::take().address(1);
    let data_dir = folder.join("one");
    let mut command = edgeorc();
    command
        .args(["node", "start", "--node-name", "one", "--bind-address", &address.to_string()])
        .args(["--eviction-hard", eviction, "--eviction-transition", "1s"])
        .arg("--data-dir")
        .arg(&data_dir);
    let process = Process::spawn(&mut command, folder.join("one.log"));
    let node = Node { name: "one".to_owned(), address, data_dir, process };
    node.wait_ready();
    node
}

fn image(node: &Node, name: &str) -> String {
    let file = guest(name).to_str().unwrap().to_owned();
    let seed = format!("seed-{name}");
    succeed(&mut node.edgeorc(&["deploy", &file, "--name", &seed, "--replicas", "0"]));
    let image = "jsonpath={.spec.template.spec.containers[0].image}";
    succeed(&mut node.kubectl(&["get", "deploy", &seed, "-o", image]))
}

fn apply(node: &Node, text: &str) {
    let file = node.data_dir.with_extension("yaml");
    std::fs::write(&file, text).unwrap();
    succeed(&mut node.kubectl(&["apply", "-f", file.to_str().unwrap()]));
}

/// Waits until the JSONPath of a pod gives `wanted`.
fn until(node: &Node, pod: &str, path: &str, wanted: &str, limit: Duration) {
    eventually(&format!("{pod} {path}"), limit, || {
        let path = format!("jsonpath={{{path}}}");
        let output = node.kubectl(&["get", "pod", pod, "-o", &path]).output().unwrap();
        let got = String::from_utf8_lossy(&output.stdout).into_owned();
        if got == wanted { Ok(()) } else { Err(got) }
    });
}

#[test]
fn kubectl_top_shows_what_nodes_and_pods_use() {
    let folder = tempfile::tempdir().unwrap();
    let node = start(folder.path(), NEVER);
    let ticker = image(&node, "ticker");
    apply(
        &node,
        &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, labels: {{app: web}}}}\nspec:\n  containers:\n  - {{name: a, image: {ticker}}}\n  - {{name: b, image: {ticker}}}\n"
        ),
    );
    until(&node, "web", ".status.phase", "Running", PATIENCE);
    let top = |args: &[&str]| succeed(node.kubectl(&["top"]).args(args));
    let pods = eventually("kubectl top pod", PATIENCE, || {
        let output = node.kubectl(&["top", "pod", "-l", "app=web"]).output().unwrap();
        if output.status.success() { Ok(both(&output)) } else { Err(both(&output)) }
    });
    let words: Vec<_> = pods.split_whitespace().collect();
    assert_eq!(words.get(..4), Some(&["NAME", "CPU(cores)", "MEMORY(bytes)", "web"][..]), "{pods}");
    assert!(words[4].ends_with('m') && words[5].ends_with("Mi"), "{pods}");
    let containers = top(&["pod", "web", "--containers"]);
    assert_eq!(containers.lines().count(), 3, "{containers}");
    let disk =
        "jsonpath={.status.capacity.ephemeral-storage} {.status.allocatable.ephemeral-storage}";
    let disk = succeed(&mut node.kubectl(&["get", "node", "one", "-o", disk]));
    let disk: Vec<u64> =
        disk.split(' ').map(|size| size.trim_end_matches("Ki").parse().unwrap()).collect();
    assert!(disk[0] > 0 && disk[1] <= disk[0], "{disk:?}");
    let nodes = top(&["node"]);
    assert!(nodes.contains("one") && nodes.contains('%'), "{nodes}");
    let raw = |path: &str| succeed(&mut node.kubectl(&["get", "--raw", path]));
    let summary = raw("/api/v1/nodes/one/proxy/stats/summary");
    assert!(summary.contains("\"ephemeral-storage\""), "{summary}");
    let metrics = raw("/api/v1/nodes/one/proxy/metrics/resource");
    assert!(metrics.contains("container_cpu_usage_seconds_total{container=\"a\""), "{metrics}");
    let listed = succeed(&mut node.kubectl(&["api-resources", "--api-group=metrics.k8s.io"]));
    assert!(listed.contains("NodeMetrics") && listed.contains("PodMetrics"), "{listed}");
    let table = succeed(&mut node.kubectl(&["get", "pods.metrics.k8s.io"]));
    assert!(table.contains("MEMORY") && table.contains("web"), "{table}");
}

#[test]
fn a_node_short_of_memory_says_so_and_takes_only_pods_that_said_what_they_need() {
    let folder = tempfile::tempdir().unwrap();
    let node = start(folder.path(), SHORT_OF_MEMORY);
    let ticker = image(&node, "ticker");
    let pod = |name: &str, resources: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  containers:\n  - {{name: app, image: {ticker}{resources}}}\n"
        )
    };
    let is_tainted = || {
        let shown = succeed(&mut node.kubectl(&["describe", "node", "one"]));
        let words =
            ["node.kubernetes.io/memory-pressure:NoSchedule", "KubeletHasInsufficientMemory"];
        if words.iter().all(|word| shown.contains(word)) { Ok(()) } else { Err(shown) }
    };
    eventually("memory pressure", PATIENCE, is_tainted);
    apply(&node, &pod("careless", ""));
    let asking = ", resources: {requests: {memory: 16Mi}}";
    apply(&node, &pod("careful", asking));
    until(&node, "careful", ".status.phase", "Running", PATIENCE);
    until(
        &node,
        "careless",
        ".status.conditions[?(@.type=='PodScheduled')].message",
        "0/1 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/memory-pressure: }. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
        PATIENCE,
    );
}

#[test]
fn a_pod_beyond_its_ephemeral_storage_is_evicted() {
    let folder = tempfile::tempdir().unwrap();
    let node = start(folder.path(), NEVER);
    let busybox = image(&node, "busybox");
    apply(
        &node,
        &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: greedy}}\nspec:\n  restartPolicy: Always\n  volumes: [{{name: data, emptyDir: {{}}}}]\n  containers:\n  - name: app\n    image: {busybox}\n    command: [sh, -c, \"seq 1 400000 > /data/numbers; sleep 3600\"]\n    resources: {{limits: {{ephemeral-storage: 1Mi}}}}\n    volumeMounts: [{{name: data, mountPath: /data}}]\n"
        ),
    );
    until(&node, "greedy", ".status.reason", "Evicted", LIMIT_PATIENCE);
    until(&node, "greedy", ".status.phase", "Failed", PATIENCE);
    until(
        &node,
        "greedy",
        ".status.message",
        "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi.",
        PATIENCE,
    );
    let shown = succeed(&mut node.kubectl(&["describe", "pod", "greedy"]));
    assert!(shown.contains("Evicted"), "{shown}");
    let metrics = succeed(&mut node.kubectl(&["get", "--raw", "/metrics"]));
    let count = "edgeorc_agent_evictions_total{signal=\"limits\"} 1";
    assert!(metrics.lines().any(|line| line == count), "{metrics}");
    let uid =
        succeed(&mut node.kubectl(&["get", "pod", "greedy", "-o", "jsonpath={.metadata.uid}"]));
    let volume = node.data_dir.join("agent/pods").join(uid).join("volumes");
    eventually("the space is given back", PATIENCE, || {
        if volume.exists() { Err("still there") } else { Ok(()) }
    });
}
