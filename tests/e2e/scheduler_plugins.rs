//! Plugins of the scheduler and what nodes say of their images, as a user sees them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Block, Node, PATIENCE, eventually, guest, hello, succeed};

/// Longer than a node waits before it tells of a change in its images.
const QUIET: Duration = Duration::from_secs(7);

/// The sample decides for everybody; the probe, which does harm when a pod's label says so, decides for
/// those who ask for it.
fn configuration(thermal: &str, probe: &str) -> String {
    let profile = |scheduler: &str, policy: &str| {
        json!({
            "schedulerName": scheduler,
            "plugins": {"filter": {"enabled": [{"name": "probe"}]}},
            "pluginConfig": [{"name": "probe", "args": {
                "image": probe, "failurePolicy": policy, "memory": "8Mi"}}],
        })
    };
    json!({
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "profiles": [
            {
                "plugins": {
                    "filter": {"enabled": [{"name": "thermal"}]},
                    "score": {"enabled": [{"name": "thermal", "weight": 50}]},
                },
                "pluginConfig": [{"name": "thermal", "args": {"image": thermal}}],
            },
            profile("lenient", "Ignore"),
            profile("strict", "Fail"),
        ],
    })
    .to_string()
}

fn apply(node: &Node, name: &str, object: &Value) {
    let file = node.data_dir.with_extension(format!("{name}.json"));
    std::fs::write(&file, object.to_string()).unwrap();
    succeed(&mut node.kubectl(&["apply", "-f", file.to_str().unwrap()]));
}

fn configure(node: &Node, text: &str) {
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "kube-scheduler", "namespace": "kube-system"},
        "data": {"config.yaml": text},
    });
    apply(node, "scheduler", &map);
}

fn pod(node: &Node, name: &str, image: &str, scheduler: &str, does: &str) {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"do": does}},
        "spec": {"schedulerName": scheduler, "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "app", "image": image}]},
    });
    apply(node, name, &pod);
}

fn field(node: &Node, pod: &str, path: &str) -> String {
    let path = format!("jsonpath={{{path}}}");
    succeed(&mut node.kubectl(&["get", "pod", pod, "-o", &path]))
}

fn until(node: &Node, pod: &str, path: &str, is_it: impl Fn(&str) -> bool) -> String {
    eventually(&format!("{pod} {path}"), PATIENCE, || {
        let got = field(node, pod, path);
        if is_it(&got) { Ok(got) } else { Err(got) }
    })
}

/// The node that the pod is bound to.
fn place(node: &Node, pod: &str) -> String {
    until(node, pod, ".spec.nodeName", |got| !got.is_empty())
}

fn label(node: &Node, name: &str, temperature: &str) {
    let label = format!("edgeorc.io/heat={temperature}");
    succeed(&mut node.kubectl(&["label", "node", name, &label, "--overwrite"]));
}

fn events(node: &Node, words: &[&str]) {
    eventually(&format!("events with {words:?}"), PATIENCE, || {
        let told = succeed(&mut node.kubectl(&["get", "events", "-n", "kube-system"]));
        let is_there = |line: &str| words.iter().all(|word| line.contains(word));
        if told.lines().any(is_there) { Ok(()) } else { Err(told) }
    });
}

/// Images of hello, the sample and the probe.
fn images(node: &Node) -> [String; 3] {
    let push = |file: std::path::PathBuf, name: &str| {
        let file = file.to_str().unwrap().to_owned();
        succeed(&mut node.edgeorc(&["push", &file, name, "-o", "name"])).trim().to_owned()
    };
    [
        push(hello(), "infra/hello:1"),
        push(guest("thermal"), "infra/thermal:1"),
        push(guest("probe-plugin"), "infra/probe:1"),
    ]
}

/// Goal: pods go where an extension says, `why` names it, and one that fails or never answers stops
/// nobody but those who said so. Method: two nodes, the sample for all pods, a probe that does harm for
/// two schedulers of their own.
#[test]
fn plugins_decide_and_those_that_fail_stop_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let block = Block::take();
    let node = Node::start(folder.path(), "one", block.address(1), None);
    node.wait_ready();
    let token = succeed(&mut node.edgeorc(&["node", "token", "create"]));
    let two = Node::start(folder.path(), "two", block.address(2), Some((&node, token.trim())));
    eventually("two nodes", PATIENCE, || {
        let nodes = succeed(&mut node.kubectl(&["get", "nodes"]));
        if nodes.matches(" Ready").count() == 2 { Ok(()) } else { Err(nodes) }
    });
    let [hello, thermal, probe] = images(&node);
    configure(&node, "apiVersion: v1\nkind: Pod\n");
    events(&node, &["InvalidConfiguration", "KubeSchedulerConfiguration"]);
    configure(&node, &configuration(&thermal, &probe));
    events(&node, &["PluginLoaded", "thermal: "]);
    events(&node, &["PluginLoaded", "probe: "]);

    label(&node, "one", "cool");
    label(&node, "two", "warm");
    for at in 0..4 {
        let name = format!("cool-{at}");
        pod(&node, &name, &hello, "default-scheduler", "");
        assert_eq!(place(&node, &name), "one");
    }
    label(&node, "one", "hot");
    pod(&node, "warm", &hello, "default-scheduler", "");
    assert_eq!(place(&node, "warm"), "two");
    label(&node, "two", "hot");
    pod(&node, "nowhere", &hello, "default-scheduler", "");
    let message = ".status.conditions[?(@.type=='PodScheduled')].message";
    let words = "0/2 nodes are available: 2 node(s) refused by plugin thermal: too hot.";
    until(&node, "nowhere", message, |got| got.starts_with(words));
    let told = succeed(&mut node.edgeorc(&["why", "nowhere", "-o", "json"]));
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["nodes"][1]["reasons"][0]["plugin"], "thermal", "{told}");
    assert!(told["message"].as_str().unwrap().starts_with(words), "{told}");

    // Whoever lets it fail goes on, whatever it does.
    for does in ["trap", "spin", "grow", "clock"] {
        let name = format!("lenient-{does}");
        pod(&node, &name, &hello, "lenient", does);
        until(&node, &name, ".status.phase", |got| got == "Running");
    }
    events(&node, &["PluginFailed", "probe: "]);
    pod(&node, "strict", &hello, "strict", "trap");
    until(&node, "strict", message, |got| got.contains("refused by plugin probe: it "));
    // The others never waited for it.
    label(&node, "two", "warm");
    assert_eq!(place(&node, "nowhere"), "two");
    let metrics = succeed(&mut node.kubectl(&["get", "--raw", "/metrics"]));
    for plugin in ["probe\",result=\"failed", "thermal\",result=\"ok"] {
        let line = format!("edgeorc_scheduler_plugin_calls_total{{plugin=\"{plugin}\"}}");
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
    // Without a configuration there is nothing but the scheduler's own plugins.
    succeed(&mut node.kubectl(&["delete", "configmap", "kube-scheduler", "-n", "kube-system"]));
    label(&node, "two", "hot");
    pod(&node, "free", &hello, "default-scheduler", "");
    place(&node, "free");
    drop(two);
}

/// Goal: a node says which images it has, so that a pod goes where its image is; and it does not say
/// so again and again.
#[test]
fn a_node_tells_its_images_and_pods_go_where_theirs_are() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    let [hello, ..] = images(&node);
    pod(&node, "web", &hello, "default-scheduler", "");
    until(&node, "web", ".status.phase", |got| got == "Running");
    let told = eventually("the image is told", PATIENCE, || {
        let path = "jsonpath={.status.images}";
        let told = succeed(&mut node.kubectl(&["get", "node", "one", "-o", path]));
        if told.contains("infra/hello") { Ok(told) } else { Err(told) }
    });
    let told: Value = serde_json::from_str(&told).unwrap();
    let size = std::fs::metadata(crate::support::hello()).unwrap().len();
    assert_eq!(told[0]["sizeBytes"], size, "{told}");
    let names: Vec<_> = told[0]["names"].as_array().unwrap().iter().collect();
    assert!(names.contains(&&json!("infra/hello:1")) && names.contains(&&json!(hello)), "{told}");
    let summary = succeed(&mut node.kubectl(&["get", "--raw", "/api/v1/nodes/one"]));
    let before: Value = serde_json::from_str(&summary).unwrap();
    // Another pod of the same image changes nothing.
    pod(&node, "again", &hello, "default-scheduler", "");
    until(&node, "again", ".status.phase", |got| got == "Running");
    // Nothing to wait for: it must not happen.
    std::thread::sleep(QUIET);
    let summary = succeed(&mut node.kubectl(&["get", "--raw", "/api/v1/nodes/one"]));
    let after: Value = serde_json::from_str(&summary).unwrap();
    let version = |node: &Value| node["metadata"]["resourceVersion"].clone();
    assert_eq!(version(&before), version(&after), "the node wrote its status for nothing");
}
