//! Scheduling as a user sees it: priorities, things only some machines have, and why a pod waits.

use serde_json::Value;

use crate::support::{Block, Node, PATIENCE, eventually, hello, succeed};

fn apply(node: &Node, name: &str, text: &str) {
    let file = node.data_dir.with_extension(format!("{name}.yaml"));
    std::fs::write(&file, text).unwrap();
    succeed(&mut node.kubectl(&["apply", "-f", file.to_str().unwrap()]));
}

fn pod(name: &str, image: &str, spec: &str, limits: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  {spec}\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: app\n    image: {image}\n    resources: {{limits: {limits}}}\n"
    )
}

fn until(node: &Node, pod: &str, path: &str, wanted: &str) {
    eventually(&format!("{pod} {path}"), PATIENCE, || {
        let path = format!("jsonpath={{{path}}}");
        let output = node.kubectl(&["get", "pod", pod, "-o", &path]).output().unwrap();
        let got = String::from_utf8_lossy(&output.stdout).into_owned();
        if got == wanted { Ok(()) } else { Err(got) }
    });
}

/// Goal: a pod of a higher class gets what a lower one has, end to end; a pod that waits is told why.
/// Method: one node with a single GPIO line, which pods ask for.
#[test]
fn a_gpio_line_goes_to_the_more_important_pod_and_the_other_is_told_why() {
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--extended-resource", "edgeorc.io/gpio=1"];
    let node = Node::start_with(folder.path(), "one", Block::take().address(1), None, &flags);
    node.wait_ready();
    let file = hello().to_str().unwrap().to_owned();
    succeed(&mut node.edgeorc(&["deploy", &file, "--name", "seed", "--replicas", "0"]));
    let path = "jsonpath={.spec.template.spec.containers[0].image}";
    let image = succeed(&mut node.kubectl(&["get", "deploy", "seed", "-o", path]));

    let classes = succeed(&mut node.kubectl(&["get", "priorityclasses"]));
    let rows: Vec<Vec<&str>> =
        classes.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "VALUE", "GLOBAL-DEFAULT", "AGE", "PREEMPTIONPOLICY"]);
    let system = rows.iter().find(|row| row[0] == "system-node-critical").unwrap();
    assert_eq!((system[1], system[2], system[4]), ("2000001000", "false", "PreemptLowerPriority"));
    succeed(&mut node.kubectl(&["create", "priorityclass", "vital", "--value=1000"]));
    let shown = succeed(&mut node.kubectl(&["describe", "priorityclass", "vital"]));
    assert!(shown.contains("Value:"), "{shown}");

    let line = "{edgeorc.io/gpio: 1}";
    apply(&node, "low", &pod("low", &image, "priorityClassName: \"\"", line));
    until(&node, "low", ".status.phase", "Running");
    apply(&node, "vital", &pod("vital", &image, "priorityClassName: vital", line));
    until(&node, "vital", ".status.phase", "Running");
    eventually("low is gone", PATIENCE, || {
        let output = node.kubectl(&["get", "pod", "low"]).output().unwrap();
        if output.status.success() { Err("still there") } else { Ok(()) }
    });
    let events = succeed(&mut node.kubectl(&["get", "events"]));
    assert!(events.contains("Preempted by pod"), "{events}");

    apply(&node, "late", &pod("late", &image, "restartPolicy: Always", line));
    let message = ".status.conditions[?(@.type=='PodScheduled')].message";
    until(
        &node,
        "late",
        message,
        "0/1 nodes are available: 1 Insufficient edgeorc.io/gpio. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.",
    );
    let told = succeed(&mut node.edgeorc(&["why", "late"]));
    for words in [
        "0/1 nodes are available: 1 Insufficient edgeorc.io/gpio",
        "NodeResourcesFit",
        "ask for less",
    ] {
        assert!(told.contains(words), "{words} in {told}");
    }
    let told = succeed(&mut node.edgeorc(&["why", "pod/late", "-o", "json"]));
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["nodes"][0]["reasons"][0]["plugin"], "NodeResourcesFit");
    let told = succeed(&mut node.edgeorc(&["why", "vital"]));
    assert!(told.starts_with("the pod is on node one"), "{told}");
    let refused = node.edgeorc(&["why", "nobody"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    succeed(&mut node.kubectl(&["delete", "pod", "vital"]));
    until(&node, "late", ".status.phase", "Running");

    // As Kubernetes' documentation has it: a thing that somebody says the node has can be asked for.
    apply(&node, "plugged", &pod("plugged", &image, "restartPolicy: Always", "{example.com/d: 1}"));
    until(&node, "plugged", ".status.conditions[?(@.type=='PodScheduled')].status", "False");
    let capacity = r#"[{"op":"add","path":"/status/capacity/example.com~1d","value":"2"}]"#;
    let patch = ["patch", "node", "one", "--subresource=status", "--type=json", "-p", capacity];
    succeed(&mut node.kubectl(&patch));
    until(&node, "plugged", ".status.phase", "Running");
    eventually("the node tells of it", PATIENCE, || {
        let path = "jsonpath={.status.allocatable.example\\.com/d}";
        let told = succeed(&mut node.kubectl(&["get", "node", "one", "-o", path]));
        if told == "2" { Ok(()) } else { Err(told) }
    });
    succeed(&mut node.kubectl(&["cordon", "one"]));
    eventually("events of the node", PATIENCE, || {
        let told = succeed(&mut node.kubectl(&["describe", "node", "one"]));
        let has = |word: &str| told.contains(word);
        if has("NodeReady") && has("NodeNotSchedulable") { Ok(()) } else { Err(told) }
    });
}
