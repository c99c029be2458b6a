//! The command line against one node: formats, completions, progress.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{Block, Node, both, edgeorc, hello, succeed};

/// A node that runs `hello` with two pods.
fn node_with_app(folder: &std::path::Path) -> Node {
    let node = Node::start(folder, "one", Block::take().address(1), None);
    node.wait_ready();
    let file = hello();
    let file = file.to_str().unwrap();
    let made =
        succeed(&mut node.edgeorc(&["deploy", file, "--replicas", "2", "--wait", "-o", "name"]));
    assert_eq!(made, "deployment.apps/hello\n");
    node
}

#[test]
fn get_prints_tables_documents_and_names() {
    let folder = tempfile::tempdir().unwrap();
    let node = node_with_app(folder.path());
    let run = |args: &[&str]| succeed(&mut node.edgeorc(args));

    let table = run(&["get", "deploy"]);
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let lines: Vec<_> = table.lines().map(words).collect();
    assert_eq!(lines[0], ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]);
    assert_eq!(lines[1][..4], ["hello", "2/2", "2", "2"]);
    let wide = run(&["get", "pods", "-o", "wide"]);
    assert!(wide.lines().next().unwrap().contains("NOMINATED NODE"), "{wide}");
    assert_eq!(wide.lines().filter(|line| line.contains(" one ")).count(), 2, "{wide}");

    // One object is one document, several are a List; kubectl prints the same fields.
    let one: Value = serde_json::from_str(&run(&["get", "deploy/hello", "-o", "json"])).unwrap();
    assert_eq!(one["kind"], "Deployment");
    let theirs = succeed(&mut node.kubectl(&["get", "deploy/hello", "-o", "json"]));
    let theirs: Value = serde_json::from_str(&theirs).unwrap();
    assert_eq!(one["spec"], theirs["spec"]);
    let list: Value = serde_json::from_str(&run(&["get", "pods", "-o", "json"])).unwrap();
    assert_eq!((&list["kind"], list["items"].as_array().unwrap().len()), (&"List".into(), 2));
    let yaml = run(&["get", "deploy/hello", "-o", "yaml"]);
    let parsed: Value = serde_saphyr::from_str(&yaml).unwrap();
    assert_eq!(parsed["spec"], one["spec"]);

    let names = run(&["get", "deploy,svc,ingress", "-o", "name"]);
    assert!(names.contains("deployment.apps/hello\nservice/hello\n"), "{names}");
    assert!(names.contains("ingress.networking.k8s.io/hello"), "{names}");
    let labelled = run(&["get", "pods", "-l", "app.kubernetes.io/name=nobody", "-o", "name"]);
    assert_eq!(labelled, "");

    let missing = node.edgeorc(&["get", "deploy/absent"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(1));
    assert!(both(&missing).contains("\"absent\" not found"), "{}", both(&missing));
    let unknown = node.edgeorc(&["get", "unicorns"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(2), "{}", both(&unknown));
    assert!(both(&unknown).contains("unicorns"), "{}", both(&unknown));
}

#[test]
fn describe_reads_like_kubectl() {
    let folder = tempfile::tempdir().unwrap();
    let node = node_with_app(folder.path());
    let describe = |args: &[&str]| {
        let text = succeed(node.edgeorc(&["describe"]).args(args));
        assert!(!text.contains("managedFields") && !text.contains("last-applied"), "{text}");
        let (_, events) = text.split_once("\nEvents:").expect("events at the end");
        (text.clone(), events.to_owned())
    };
    let (deployment, events) = describe(&["deploy/hello"]);
    assert!(deployment.contains("2 desired | 2 updated | 2 total | 2 available"), "{deployment}");
    assert!(deployment.contains("NewReplicaSet:"), "{deployment}");
    assert!(events.contains("ScalingReplicaSet"), "{deployment}");
    let pods = succeed(&mut node.edgeorc(&["get", "pods", "-o", "name"]));
    let (pod, _) = describe(&[pods.lines().next().unwrap()]);
    assert!(pod.contains("State:") && pod.contains("Restart Count:  0"), "{pod}");
    let (service, _) = describe(&["svc/hello"]);
    assert!(service.contains("Endpoints:") && service.contains("NodePort:"), "{service}");
    let (one, _) = describe(&["node", "one"]);
    assert!(one.contains("Non-terminated Pods (2 in total)"), "{one}");
    assert!(one.contains("  Ready ") && one.contains("Allocated resources:"), "{one}");
}

#[test]
fn completions_are_taken_by_the_shell() {
    let script = succeed(edgeorc().args(["completions", "bash"]));
    let mut bash = Command::new("bash")
        .args([
            "--norc",
            "-c",
            "source /dev/stdin && complete -p edgeorc && \
            COMP_WORDS=(edgeorc de) COMP_CWORD=1 && _edgeorc edgeorc de edgeorc && \
            echo \"${COMPREPLY[@]}\"",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    bash.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = bash.wait_with_output().unwrap();
    let text = both(&output);
    assert!(output.status.success(), "{text}");
    for verb in ["deploy", "describe", "delete"] {
        assert!(text.trim_end().lines().last().unwrap_or_default().contains(verb), "{text}");
    }
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        assert!(succeed(edgeorc().args(["completions", shell])).contains("deploy"), "{shell}");
    }
}

#[test]
fn progress_is_drawn_on_a_terminal_only() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    let file = hello();
    let args = ["deploy", file.to_str().unwrap(), "--wait", "--name", "piped"];
    let piped = node.edgeorc(&args).output().unwrap();
    let text = both(&piped);
    assert!(!text.contains('\u{1b}') && text.contains("pushing "), "{text}");
    assert!(text.contains("http://piped.default.localhost:8080/"), "{text}");

    // `script` of util-linux gives the command a terminal of its own.
    let mut command = node.edgeorc(&args[..3]);
    command.args(["--name", "drawn"]);
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let line = words.join(" ");
    let drawn =
        succeed(Command::new("script").args(["-qec", &line, "/dev/null"]).env("TERM", "xterm"));
    assert!(drawn.contains('\u{1b}'), "{drawn:?}");
    assert!(drawn.contains("deployment.apps/drawn deployed"), "{drawn:?}");
}
