//! Pods as a user of Kubernetes knows them: ends, restarts, words, static pods.

use std::time::Duration;

use crate::cluster::Load;
use crate::support::{Block, Node, PATIENCE, eventually, get, guest, hello, succeed};

/// Pushes guests under their own names; gives their images.
fn push<const N: usize>(node: &Node, names: [&str; N]) -> [String; N] {
    names.map(|name| {
        let file = if name == "hello" { hello() } else { guest(name) };
        let file = file.to_str().unwrap().to_owned();
        let seed = format!("seed-{name}");
        succeed(&mut node.edgeorc(&["deploy", &file, "--name", &seed, "--replicas", "0"]));
        let image = "jsonpath={.spec.template.spec.containers[0].image}";
        succeed(&mut node.kubectl(&["get", "deploy", &seed, "-o", image]))
    })
}

fn apply(node: &Node, name: &str, text: &str) {
    let file = node.data_dir.with_extension(format!("{name}.yaml"));
    std::fs::write(&file, text).unwrap();
    succeed(&mut node.kubectl(&["apply", "-f", file.to_str().unwrap()]));
}

/// Waits until the JSONPath of a pod gives `wanted`.
fn until(node: &Node, pod: &str, path: &str, wanted: &str) {
    eventually(&format!("{pod} {path}"), PATIENCE, || {
        let path = format!("jsonpath={{{path}}}");
        let output = node.kubectl(&["get", "pod", pod, "-o", &path]).output().unwrap();
        let got = String::from_utf8_lossy(&output.stdout).into_owned();
        if got == wanted { Ok(()) } else { Err(got) }
    });
}

#[test]
fn pods_end_restart_and_tell_why_in_kubernetes_words() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    let [ticker] = push(&node, ["ticker"]);
    let pod = |name: &str, policy: &str, args: &str, more: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: {policy}\n{more}  containers:\n  - name: app\n    image: {ticker}\n    args: [{args}]\n    terminationMessagePolicy: FallbackToLogsOnError\n"
        )
    };
    let quick = r#""--interval-ms", "10", "--count", "3", "--exit""#;
    apply(&node, "done", &pod("done", "Never", &format!("{quick}, \"0\""), ""));
    apply(&node, "failed", &pod("failed", "Never", &format!("{quick}, \"7\""), ""));
    apply(&node, "loop", &pod("loop", "Always", &format!("{quick}, \"7\""), ""));
    apply(&node, "late", &pod("late", "Never", "", "  activeDeadlineSeconds: 2\n"));

    until(&node, "done", ".status.phase", "Succeeded");
    until(&node, "done", ".status.containerStatuses[0].state.terminated.reason", "Completed");
    until(&node, "failed", ".status.phase", "Failed");
    until(&node, "failed", ".status.containerStatuses[0].state.terminated.exitCode", "7");
    until(
        &node,
        "failed",
        ".status.containerStatuses[0].state.terminated.message",
        "tick 1\ntick 2\ntick 3",
    );
    until(&node, "late", ".status.phase", "Failed");
    until(&node, "late", ".status.reason", "DeadlineExceeded");
    until(&node, "loop", ".status.containerStatuses[0].state.waiting.reason", "CrashLoopBackOff");
    eventually("the events of a crash loop", PATIENCE, || {
        let shown = succeed(&mut node.kubectl(&["describe", "pod", "loop"]));
        let words =
            ["Started container app", "Back-off restarting failed container app in pod loop"];
        if words.iter().all(|word| shown.contains(word)) { Ok(()) } else { Err(shown) }
    });
    let restarts = "jsonpath={.status.containerStatuses[0].restartCount}";
    let count: u32 =
        succeed(&mut node.kubectl(&["get", "pod", "loop", "-o", restarts])).parse().unwrap();
    assert!((1..30).contains(&count), "it backs off: {count}");
    succeed(&mut node.kubectl(&["delete", "pod", "done", "failed", "loop", "late"]));
}

#[test]
fn a_static_pod_runs_from_a_folder_and_is_mirrored() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    let [hello] = push(&node, ["hello"]);
    let manifests = node.data_dir.join("pod-manifests");
    std::fs::create_dir_all(&manifests).unwrap();
    let file = manifests.join("web.yaml");
    let text = |mode: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  labels: {{app: web}}\nspec:\n  containers:\n  - name: app\n    image: {hello}\n    env: [{{name: MODE, value: {mode}}}]\n    ports: [{{containerPort: 8080}}]\n"
        )
    };
    std::fs::write(&file, text("first")).unwrap();
    until(&node, "web-one", ".status.containerStatuses[0].ready", "true");
    until(&node, "web-one", r".metadata.annotations.kubernetes\.io/config\.source", "file");
    succeed(&mut node.kubectl(&["expose", "pod", "web-one", "--name", "web", "--port", "8080"]));
    let uid = "jsonpath={.metadata.uid}";
    let first = succeed(&mut node.kubectl(&["get", "pod", "web-one", "-o", uid]));

    // A picture that is deleted is painted again; the pod itself is not touched.
    succeed(&mut node.kubectl(&["delete", "pod", "web-one", "--wait=false"]));
    eventually("the mirror is back", PATIENCE, || {
        let output = node.kubectl(&["get", "pod", "web-one", "-o", uid]).output().unwrap();
        let now = String::from_utf8_lossy(&output.stdout).into_owned();
        if !now.is_empty() && now != first { Ok(()) } else { Err(now) }
    });
    until(&node, "web-one", ".status.containerStatuses[0].ready", "true");
    until(&node, "web-one", ".status.containerStatuses[0].restartCount", "0");

    // It starts from its folder after a power cut, before any API.
    node.process.kill();
    node.restart();
    node.wait_ready();
    until(&node, "web-one", ".status.containerStatuses[0].ready", "true");

    std::fs::write(&file, text("second")).unwrap();
    until(&node, "web-one", ".spec.containers[0].env[0].value", "second");
    until(&node, "web-one", ".status.containerStatuses[0].ready", "true");
    std::fs::remove_file(&file).unwrap();
    eventually("the mirror goes with the file", PATIENCE, || {
        let left = succeed(&mut node.kubectl(&["get", "pods", "-o", "name"]));
        if left.contains("web-one") { Err(left) } else { Ok(()) }
    });
    let gone = get(node.ingress(), "web", "/", Duration::from_secs(5));
    assert!(gone.is_ok_and(|answer| answer.code != 200));
}

#[test]
fn an_image_that_changes_loses_no_request() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    let [hello_p3] = push(&node, ["hello-p3"]);
    let file = hello();
    succeed(&mut node.edgeorc(&["deploy", file.to_str().unwrap(), "--wait"]));
    let get_pod = |path: &str| {
        let path = format!("jsonpath={{.items[0]{path}}}");
        let label = "app.kubernetes.io/name=hello";
        succeed(&mut node.kubectl(&["get", "pods", "-l", label, "-o", &path]))
    };
    let pod = get_pod(".metadata.name");
    let first = get_pod(".spec.containers[0].image");
    let load = Load::start(node.ingress());
    for swap in 1..=6 {
        let image = if swap % 2 == 1 { &hello_p3 } else { &first };
        let change = format!("hello={image}");
        succeed(&mut node.kubectl(&["set", "image", &format!("pod/{pod}"), &change]));
        let status = ".status.containerStatuses[0]['restartCount','ready','image']";
        until(&node, &pod, status, &format!("{swap} true {image}"));
    }
    // What cannot be had changes nothing of what serves.
    let change = format!("hello={}-none", first.split('@').next().unwrap());
    succeed(&mut node.kubectl(&["set", "image", &format!("pod/{pod}"), &change]));
    eventually("the failure is told", PATIENCE, || {
        let events =
            succeed(&mut node.kubectl(&["get", "events", "-o", "jsonpath={.items[*].message}"]));
        if events.contains("-none") { Ok(()) } else { Err(events) }
    });
    let (asked, failures) = load.stop();
    assert!(failures.is_empty(), "{} of {asked}: {failures:?}", failures.len());
    assert_eq!(get_pod(".status.containerStatuses[0]['restartCount','ready']"), "6 true");
}
