//! Goal: what kubectl sends in its own forms is understood: protobuf, patches of every kind, apply on
//! the server. Method: a real kubectl against one node.

use std::path::Path;

use crate::support::{Block, Node, both, hello, succeed};

/// One node with an image.
fn start(folder: &Path) -> (Node, String) {
    let node = Node::start(folder, "one", Block::take().address(1), None);
    node.wait_ready();
    let file = hello();
    succeed(&mut node.edgeorc(&[
        "deploy",
        file.to_str().unwrap(),
        "--name",
        "seed",
        "--replicas",
        "0",
    ]));
    let image = "jsonpath={.spec.template.spec.containers[0].image}";
    let image = succeed(&mut node.kubectl(&["get", "deploy", "seed", "-o", image]));
    (node, image)
}

/// Runs a line of kubectl; words are separated by spaces.
fn run(node: &Node, line: &str) -> String {
    succeed(&mut node.kubectl(&line.split(' ').collect::<Vec<_>>()))
}

/// The same, and it must fail.
fn refused(node: &Node, line: &str) -> String {
    let output = node.kubectl(&line.split(' ').collect::<Vec<_>>()).output().unwrap();
    assert!(!output.status.success(), "{line}: {}", both(&output));
    both(&output)
}

#[test]
fn kubectl_creates_by_protobuf_and_changes_step_by_step() {
    let folder = tempfile::tempdir().unwrap();
    let (node, image) = start(folder.path());
    for line in [
        "create ns team",
        "create configmap c -n team --from-literal=a=b",
        "create secret generic s -n team --from-literal=p=q",
        "create serviceaccount sa -n team",
        "create service clusterip web --tcp=80:8080",
        "create ingress web --rule=example.com/*=web:80",
        &format!("create deployment web --image={image} --replicas=2 --port=8080"),
    ] {
        let said = run(&node, line);
        assert!(said.ends_with(" created\n"), "{line}: {said}");
    }
    assert_eq!(run(&node, "get secret s -n team -o jsonpath={.data.p}/{.type}"), "cQ==/Opaque");
    assert_eq!(run(&node, "create token sa -n team").trim().split('.').count(), 3);
    let again = refused(&node, "create ns team");
    assert!(again.contains("AlreadyExists"), "{again}");

    let rolled = "rollout status deploy/web --timeout=60s";
    assert!(run(&node, rolled).contains("successfully rolled out"));
    let container = "jsonpath={.spec.template.spec.containers[0].name}";
    let container = run(&node, &format!("get deploy web -o {container}"));
    for line in [
        "set env deploy/web A=B",
        "set resources deploy/web --limits=memory=64Mi",
        rolled,
        "rollout history deploy/web",
        "rollout history deploy/web --revision=2",
        "rollout undo deploy/web --to-revision=1",
        rolled,
        "rollout pause deploy/web",
        "rollout resume deploy/web",
        "rollout restart deploy/web",
        "scale deploy/web --replicas=3",
        "scale deploy/web --replicas=1 --current-replicas=3",
        "expose deploy/web --name=web2 --port=80 --target-port=8080",
        "label deploy web x=y",
        "annotate deploy web x=y",
        &format!("set image deploy/web {container}={image}"),
        rolled,
        "wait deploy/web --for=condition=Available --timeout=30s",
        "explain deploy.spec.replicas",
    ] {
        run(&node, line);
    }
    let env = "jsonpath={.spec.template.spec.containers[0].env}";
    assert_eq!(run(&node, &format!("get deploy web -o {env}")), "", "undone");
    let stale = refused(&node, "scale deploy/web --replicas=2 --current-replicas=3");
    assert!(stale.contains("Expected replicas to be 3, was 1"), "{stale}");

    let mut edit = node.kubectl(&["edit", "deploy", "web"]);
    edit.env("KUBE_EDITOR", "sed -i 's/replicas: 1/replicas: 2/'");
    assert!(succeed(&mut edit).contains("edited"));
    assert_eq!(run(&node, "get deploy web -o jsonpath={.spec.replicas}"), "2");
    let json = r#"[{"op":"test","path":"/spec/replicas","value":2},{"op":"replace","path":"/spec/replicas","value":1}]"#;
    succeed(&mut node.kubectl(&["patch", "deploy", "web", "--type=json", "-p", json]));
    let failed = node.kubectl(&["patch", "deploy", "web", "--type=json", "-p", json]).output();
    assert!(both(&failed.unwrap()).contains("value did not match"));
    assert_eq!(run(&node, "auth can-i create pods"), "yes\n");
    assert!(run(&node, "auth whoami").contains("system:masters"));
    run(&node, "delete deploy web");
}

const MAP: &str = "apiVersion: v1
kind: ConfigMap
metadata: {name: m, labels: {app: x}}
data: {a: '1', b: '1'}
";

#[test]
fn kubectl_applies_on_the_server_and_is_told_of_conflicts() {
    let folder = tempfile::tempdir().unwrap();
    let (node, image) = start(folder.path());
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (one, two) = (write("one.yaml", MAP), write("two.yaml", &MAP.replace("a: '1'", "a: '2'")));
    let apply = |file: &str, more: &str| format!("apply --server-side{more} -f {file}");
    assert_eq!(run(&node, &apply(&one, "")), "configmap/m serverside-applied\n");
    let version = || run(&node, "get cm m -o jsonpath={.metadata.resourceVersion}");
    let first = version();
    run(&node, &apply(&one, ""));
    assert_eq!(version(), first, "the same again writes nothing");
    let diff = node.kubectl(&["diff", "--server-side", "-f", &two]).output().unwrap();
    assert_eq!(diff.status.code(), Some(1), "{}", both(&diff));
    assert!(both(&diff).contains("+  a: \"2\""), "{}", both(&diff));

    let other = " --field-manager=other";
    let conflict = refused(&node, &apply(&two, other));
    assert!(conflict.contains("conflict with \"kubectl\": .data.a"), "{conflict}");
    run(&node, &apply(&two, &format!("{other} --dry-run=server --force-conflicts")));
    assert_eq!(run(&node, "get cm m -o jsonpath={.data.a}"), "1");
    run(&node, &apply(&two, &format!("{other} --force-conflicts")));
    assert_eq!(run(&node, "get cm m -o jsonpath={.data.a}"), "2");
    // `b` is owned by both, `a` by the other alone: kubectl, dropping both, takes away neither.
    let none = write("none.yaml", &MAP.replace("data: {a: '1', b: '1'}\n", ""));
    run(&node, &apply(&none, ""));
    assert_eq!(run(&node, "get cm m -o jsonpath={.data}"), r#"{"a":"2","b":"1"}"#);
    run(&node, &apply(&none, other));
    assert_eq!(run(&node, "get cm m -o jsonpath={.data}"), "");

    // An object applied in kubectl's own way is taken over without a conflict, lists by their keys.
    let text = |name: &str, port: u16| {
        format!(
            "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  replicas: 0
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec: {{containers: [{{name: c, image: {image:?}, ports: [{{containerPort: {port}}}]}}]}}
"
        )
    };
    run(&node, &format!("apply -f {}", write("d1.yaml", &text("d", 8080))));
    let second = write("d2.yaml", &text("d", 8081));
    run(&node, &apply(&second, ""));
    run(&node, &apply(&second, ""));
    let ports = "jsonpath={.spec.template.spec.containers[0].ports[*].containerPort}";
    assert_eq!(run(&node, &format!("get deploy d -o {ports}")), "8081");
    let managers = "jsonpath={.metadata.managedFields[*].manager}";
    let managers = run(&node, &format!("get deploy d --show-managed-fields -o {managers}"));
    assert!(managers.contains("kubectl") && !managers.contains("client-side"), "{managers}");
    // What somebody scales is theirs.
    let third = write("e.yaml", &text("e", 8080));
    run(&node, &apply(&third, ""));
    run(&node, "scale deploy e --replicas=1");
    let conflict = refused(&node, &apply(&third, ""));
    assert!(conflict.contains("with subresource \"scale\""), "{conflict}");
}
