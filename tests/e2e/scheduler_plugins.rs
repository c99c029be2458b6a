//! Plugins of the scheduler and what nodes say of their images, as a user sees them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Block, Node, PATIENCE, eventually, guest, hello, succeed};

/// What the probe does at a pod's wish.
const HARMS: [&str; 4] = ["trap", "spin", "grow", "clock"];

/// Longer than a node waits before it tells of a change in its images.
const QUIET: Duration = Duration::from_secs(7);

/// The sample decides for everybody; the probe, which does harm when a pod's label says so, decides for
/// those who ask for it.
fn configuration(thermal: &str, probe: &str) -> String {
    // A plugin of its own for each harm: one that failed is left alone for a while.
    let of_harm = |name: &str| {
        let policy = if name == "strict" { "Fail" } else { "Ignore" };
        json!({
            "schedulerName": name,
            "plugins": {"filter": {"enabled": [{"name": name}]}},
            "pluginConfig": [{"name": name, "args": {
                "image": probe, "failurePolicy": policy, "memory": "8Mi"}}],
        })
    };
    let mut profiles = vec![json!({
        "plugins": {
            "filter": {"enabled": [{"name": "thermal"}]},
            "score": {"enabled": [{"name": "thermal", "weight": 50}]},
        },
        // A busy machine may be late: then a pod waits, and does not go where it must not.
        "pluginConfig": [{"name": "thermal", "args": {
            "image": thermal, "failurePolicy": "Fail", "timeout": "200ms"}}],
    })];
    profiles.extend(HARMS.into_iter().chain(["strict"]).map(of_harm));
    json!({
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "profiles": profiles,
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

/// A second node of the cluster, once it is ready.
fn second(node: &Node, folder: &Path, block: Block) -> Node {
    let token = succeed(&mut node.edgeorc(&["node", "token", "create"]));
    let two = Node::start(folder, "two", block.address(2), Some((node, token.trim())));
    eventually("two nodes", PATIENCE, || {
        let nodes = succeed(&mut node.kubectl(&["get", "nodes"]));
        if nodes.matches(" Ready").count() == 2 { Ok(()) } else { Err(nodes) }
    });
    two
}

/// Images of hello, the sample and the probe.
fn images(node: &Node) -> [String; 3] {
    let push = |file: PathBuf, name: &str| {
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
    let two = second(&node, folder.path(), block);
    let [hello, thermal, probe] = images(&node);
    configure(&node, "apiVersion: v1\nkind: Pod\n");
    events(&node, &["InvalidConfiguration", "KubeSchedulerConfiguration"]);
    configure(&node, &configuration(&thermal, &probe));
    events(&node, &["PluginLoaded", "thermal: "]);
    events(&node, &["PluginLoaded", "strict: "]);

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
    for does in HARMS {
        let name = format!("with-{does}");
        pod(&node, &name, &hello, does, does);
        until(&node, &name, ".status.phase", |got| got == "Running");
        events(&node, &["PluginFailed", &format!("{does}: it ")]);
    }
    pod(&node, "strict", &hello, "strict", "trap");
    until(&node, "strict", message, |got| got.contains("refused by plugin strict: it "));
    // The others never waited for it.
    label(&node, "two", "warm");
    assert_eq!(place(&node, "nowhere"), "two");
    let metrics = succeed(&mut node.kubectl(&["get", "--raw", "/metrics"]));
    for plugin in ["spin\",result=\"failed", "thermal\",result=\"ok"] {
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

/// `hello` with 40 MiB of nothing in it, in a custom section: worth having.
fn large(folder: &Path) -> PathBuf {
    const BYTES: u32 = 40 << 20;
    let mut wasm = std::fs::read(hello()).unwrap();
    let name = b"\x04fill";
    let mut length = BYTES + u32::try_from(name.len()).unwrap();
    wasm.push(0);
    while length >= 0x80 {
        wasm.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
        length >>= 7;
    }
    wasm.push(u8::try_from(length).unwrap());
    wasm.extend(name);
    wasm.resize(wasm.len() + usize::try_from(BYTES).unwrap(), 0);
    let file = folder.join("large.wasm");
    std::fs::write(&file, wasm).unwrap();
    file
}

/// Goal: a node says which images it has, so that a pod goes where its image is; and it does not say
/// so again and again. Method: two nodes; a pod with a large image goes to one, two more follow it.
#[test]
fn a_node_tells_its_images_and_pods_go_where_theirs_are() {
    let folder = tempfile::tempdir().unwrap();
    let block = Block::take();
    let node = Node::start(folder.path(), "one", block.address(1), None);
    node.wait_ready();
    let two = second(&node, folder.path(), block);
    let file = large(folder.path());
    let push = ["push", file.to_str().unwrap(), "shop/large:1", "-o", "name"];
    let image = succeed(&mut node.edgeorc(&push)).trim().to_owned();
    pod(&node, "web", &image, "default-scheduler", "");
    until(&node, "web", ".status.phase", |got| got == "Running");
    let at = place(&node, "web");
    let get = |name: &str| -> Value {
        let path = format!("/api/v1/nodes/{name}");
        serde_json::from_str(&succeed(&mut node.kubectl(&["get", "--raw", &path]))).unwrap()
    };
    let told = eventually("the image is told", PATIENCE, || {
        let told = get(&at);
        let is_told = told["status"]["images"].to_string().contains("shop/large");
        if is_told { Ok(told) } else { Err(told) }
    });
    let first = &told["status"]["images"][0];
    assert_eq!(first["sizeBytes"], std::fs::metadata(&file).unwrap().len(), "{first}");
    let names: Vec<_> = first["names"].as_array().unwrap().iter().collect();
    assert!(names.contains(&&json!("shop/large:1")) && names.contains(&&json!(image)), "{first}");
    for name in ["second", "third"] {
        pod(&node, name, &image, "default-scheduler", "");
        assert_eq!(place(&node, name), at, "its image is there");
        until(&node, name, ".status.phase", |got| got == "Running");
    }
    // Nothing to wait for: a pod of an image that is there must not make the node write.
    std::thread::sleep(QUIET);
    let version = |node: &Value| node["metadata"]["resourceVersion"].clone();
    assert_eq!(version(&told), version(&get(&at)), "the node wrote its status for nothing");
    drop(two);
}
