//! The verbs a user of kubectl expects: apply, wait, rollout, events, delete, version; pipes.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

use serde_json::Value;

use crate::support::{Block, Node, PATIENCE, both, edgeorc, eventually, guest, hello, succeed};

fn start(folder: &std::path::Path) -> Node {
    let node = Node::start(folder, "one", Block::take().address(1), None);
    node.wait_ready();
    node
}

#[test]
fn apply_creates_updates_and_goes_on_behind_a_broken_document() {
    let folder = tempfile::tempdir().unwrap();
    let node = start(folder.path());
    let apply = |text: &str| {
        let mut command = node.edgeorc(&["apply", "-f", "-"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let map = |name: &str, data: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {data}\n---\n")
    };
    let made = apply(&format!("{}{}", map("b", "{k: '1', old: x}"), map("a", "{k: '1'}")));
    assert_eq!(String::from_utf8_lossy(&made.stdout), "configmap/b created\nconfigmap/a created\n");
    let again = apply(&format!("{}{}", map("b", "{k: '2'}"), map("a", "{k: '1'}")));
    let text = String::from_utf8_lossy(&again.stdout);
    assert_eq!(text, "configmap/b configured\nconfigmap/a unchanged\n");
    let b: Value =
        serde_json::from_str(&succeed(&mut node.edgeorc(&["get", "cm/b", "-o", "json"]))).unwrap();
    assert_eq!(b["data"], serde_json::json!({"k": "2"}));
    let broken = apply(&format!("kind: Unicorn\napiVersion: v1\n---\n{}", map("c", "{}")));
    assert_eq!(broken.status.code(), Some(1), "{}", both(&broken));
    let text = both(&broken);
    assert!(text.contains("configmap/c created"), "{text}");
    assert!(text.contains("document 1") && text.contains("Unicorn"), "{text}");
    // kubectl takes its turn on the same object without a complaint.
    let path = folder.path().join("b.yaml");
    std::fs::write(&path, map("b", "{k: '3'}").replace("---\n", "")).unwrap();
    let theirs = node.kubectl(&["apply", "-f", path.to_str().unwrap()]).output().unwrap();
    assert!(!both(&theirs).contains("Warning"), "{}", both(&theirs));
}

#[test]
fn a_fix_is_rolled_out_over_pods_that_do_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let node = start(folder.path());
    let (bad, good) = (guest("bad-unknown-import-component"), hello());
    let deploy = |file: &std::path::Path| {
        let args = ["deploy", file.to_str().unwrap(), "--name", "app", "--wait"];
        node.edgeorc(&args).output().unwrap()
    };
    assert_eq!(deploy(&bad).status.code(), Some(1));
    let fixed = deploy(&good);
    assert!(fixed.status.success(), "{}", both(&fixed));
    let run = |args: &[&str]| succeed(&mut node.edgeorc(args));
    assert!(run(&["rollout", "status", "deploy/app"]).contains("successfully rolled out"));
    let history = run(&["rollout", "history", "deploy/app"]);
    assert_eq!(history.lines().count(), 4, "a title, a head, two revisions: {history}");
    run(&["rollout", "restart", "deploy/app"]);
    run(&["rollout", "status", "deploy/app", "--timeout", "60s"]);
    run(&["wait", "deploy/app", "--for=condition=Available", "--timeout=60s"]);
    assert!(run(&["events", "--for", "deploy/app"]).contains("ScalingReplicaSet"));
}

#[test]
fn delete_of_an_app_waits_for_its_pods_unless_told_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let node = start(folder.path());
    let run = |args: &[&str]| succeed(&mut node.edgeorc(args));
    let file = hello();
    let file = file.to_str().unwrap();
    run(&["deploy", file, "--replicas", "3", "--wait"]);
    run(&["delete", "app", "hello"]);
    assert_eq!(run(&["get", "pods", "-o", "name"]), "");
    run(&["deploy", file, "--wait"]);
    run(&["delete", "app", "hello", "--wait=false"]);
    eventually("the pods end by themselves", PATIENCE, || {
        let left = run(&["get", "pods", "-o", "name"]);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

#[test]
fn a_reader_that_goes_ends_a_followed_log_quietly() {
    let folder = tempfile::tempdir().unwrap();
    let node = start(folder.path());
    let file = guest("ticker");
    succeed(&mut node.edgeorc(&["deploy", file.to_str().unwrap(), "--name", "tick"]));
    let mut follow = eventually("a line of the log", PATIENCE, || {
        let mut child = node
            .edgeorc(&["logs", "deploy/tick", "-f"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line.is_empty() {
            child.wait().unwrap();
            return Err("no line");
        }
        Ok(child)
    });
    // The reader was dropped with its first line, as `head -1` does.
    let status = eventually("logs -f ends", PATIENCE, || follow.try_wait().unwrap().ok_or("runs"));
    assert_eq!(status.code(), Some(141));
    let mut words = String::new();
    std::io::Read::read_to_string(&mut follow.stderr.take().unwrap(), &mut words).unwrap();
    assert_eq!(words, "");
}

#[test]
fn doctor_and_version_need_no_node_and_a_bad_log_filter_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let address = Block::take().address(1).to_string();
    let doctor = |args: &[&str]| {
        let mut command = edgeorc();
        command.args(["doctor", "--bind-address", &address, "--data-dir"]).arg(folder.path());
        succeed(command.args(args))
    };
    assert!(doctor(&[]).contains("addressBits"));
    assert!(doctor(&[]).contains("guests are run by the processor"));
    assert!(doctor(&["--pulley"]).contains("guests are interpreted"));
    let found: Value = serde_json::from_str(&doctor(&["-o", "json"])).unwrap();
    assert!(found["findings"].as_array().unwrap().len() > 10, "{found}");
    let version = succeed(edgeorc().args(["version", "--client", "-o", "json"]));
    assert!(version.contains("clientVersion"), "{version}");
    let refused =
        edgeorc().args(["version", "--client"]).env("EDGEORC_LOG", "inof").output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", both(&refused));
    assert!(both(&refused).contains("\"inof\""), "{}", both(&refused));
}
