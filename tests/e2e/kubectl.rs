//! A real kubectl against one node.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use crate::support::{Block, Node, PATIENCE, both, eventually, get, guest, hello, succeed};

/// A Deployment and a Service as a user writes them.
fn manifest(image: &str) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {{app: web}}
spec:
  replicas: 2
  selector:
    matchLabels: {{app: web}}
  template:
    metadata:
      labels: {{app: web}}
    spec:
      containers:
      - name: web
        image: {image}
        ports:
        - containerPort: 8080
---
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  type: NodePort
  selector: {{app: web}}
  ports:
  - port: 80
    targetPort: 8080
"
    )
}

/// The image of an app, pushed by `edgeorc deploy`.
pub(crate) fn push(node: &Node, file: &str) -> String {
    succeed(&mut node.edgeorc(&["deploy", file, "--name", "seed", "--replicas", "0"]));
    succeed(&mut node.kubectl(&[
        "get",
        "deploy",
        "seed",
        "-o",
        "jsonpath={.spec.template.spec.containers[0].image}",
    ]))
}

#[test]
fn kubectl_applies_shows_scales_and_deletes() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    let image = push(&node, hello().to_str().unwrap());
    let file = folder.path().join("web.yaml");
    std::fs::write(&file, manifest(&image)).unwrap();
    let file = file.to_str().unwrap();

    let applied = succeed(&mut node.kubectl(&["apply", "-f", file]));
    assert_eq!(applied, "deployment.apps/web created\nservice/web created\n");
    let rollout = succeed(&mut node.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]));
    assert!(rollout.contains("successfully rolled out"), "{rollout}");
    let unchanged = succeed(&mut node.kubectl(&["apply", "-f", file]));
    assert_eq!(unchanged, "deployment.apps/web unchanged\nservice/web unchanged\n");

    let all = succeed(&mut node.kubectl(&["get", "all", "-o", "wide"]));
    for word in [
        "pod/web-",
        "1/1",
        "Running",
        "service/web",
        "NodePort",
        "deployment.apps/web",
        "2/2",
        "replicaset.apps/web-",
        "app=web",
        "10.42.",
    ] {
        assert!(all.contains(word), "{word:?} expected in:\n{all}");
    }
    let pods = succeed(&mut node.kubectl(&["get", "pods", "-l", "app=web", "-o", "name"]));
    let pod = pods.lines().next().unwrap().trim_start_matches("pod/").to_owned();
    let described = succeed(&mut node.kubectl(&["describe", "pod", &pod]));
    for word in [
        "Name:",
        &pod,
        "Node:",
        "one/",
        "Status:",
        "Running",
        "Image:",
        &image,
        "Ready:",
        "True",
        "Scheduled",
        "Started",
    ] {
        assert!(described.contains(word), "{word:?} expected in:\n{described}");
    }

    let port = succeed(&mut node.kubectl(&[
        "get",
        "svc",
        "web",
        "-o",
        "jsonpath={.spec.ports[0].nodePort}",
    ]));
    let at = format!("{}:{port}", node.address).parse().unwrap();
    eventually("the node port answers", PATIENCE, || {
        get(at, "web", "/", PATIENCE)
            .map_err(|e| e.to_string())
            .and_then(|a| if a.code == 200 { Ok(()) } else { Err(format!("{a:?}")) })
    });

    assert_eq!(
        succeed(&mut node.kubectl(&["scale", "deploy/web", "--replicas=4"])),
        "deployment.apps/web scaled\n"
    );
    succeed(&mut node.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]));
    let ready = succeed(&mut node.kubectl(&[
        "get",
        "deploy",
        "web",
        "-o",
        "jsonpath={.status.readyReplicas}",
    ]));
    assert_eq!(ready, "4");
    succeed(&mut node.kubectl(&["rollout", "restart", "deploy/web"]));
    succeed(&mut node.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]));

    succeed(&mut node.kubectl(&["create", "-f", &config_map(folder.path())]));
    let again = node.kubectl(&["create", "-f", &config_map(folder.path())]).output().unwrap();
    assert!(both(&again).contains("(AlreadyExists)"), "{}", both(&again));
    let missing = node.kubectl(&["get", "pod", "nobody"]).output().unwrap();
    assert!(
        both(&missing).contains("Error from server (NotFound): pods \"nobody\" not found"),
        "{}",
        both(&missing)
    );

    let deleted = succeed(&mut node.kubectl(&["delete", "-f", file, "--timeout=60s"]));
    assert!(deleted.contains("deployment.apps \"web\" deleted"), "{deleted}");
    eventually("the pods are gone", PATIENCE, || {
        let left = succeed(&mut node.kubectl(&["get", "pods", "-l", "app=web", "-o", "name"]));
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

fn config_map(folder: &std::path::Path) -> String {
    let path = folder.join("config.yaml");
    let text =
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: settings\ndata:\n  key: value\n";
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn kubectl_follows_the_log_of_a_p1_command() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    let ticker = guest("ticker");
    succeed(&mut node.edgeorc(&["deploy", ticker.to_str().unwrap(), "--wait"]));
    let mut follow = node
        .kubectl(&["logs", "-f", "deploy/ticker"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines: Vec<_> = BufReader::new(follow.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
        .take(3)
        .collect();
    follow.kill().unwrap();
    follow.wait().unwrap();
    assert_eq!(lines, ["tick 1", "tick 2", "tick 3"]);
    let last = succeed(&mut node.edgeorc(&["logs", "deploy/ticker", "--tail", "1"]));
    assert!(last.starts_with("tick "), "{last}");
    succeed(&mut node.edgeorc(&["delete", "app", "ticker"]));
}

#[test]
fn a_sidecar_shares_the_pod_and_its_loopback() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    let sidecar = format!("{}:9090", guest("sidecar").display());
    let hello = hello();
    succeed(&mut node.edgeorc(&[
        "deploy",
        hello.to_str().unwrap(),
        "--sidecar",
        &sidecar,
        "--wait",
    ]));
    let answer = eventually("hello asks its sidecar", PATIENCE, || {
        let answer = get(node.ingress(), "hello.default.localhost", "/sidecar", PATIENCE)
            .map_err(|e| e.to_string())?;
        if answer.code == 200 { Ok(answer) } else { Err(format!("{answer:?}")) }
    });
    assert!(answer.body.contains("sidecar of hello-"), "{answer:?}");
    let pods = succeed(&mut node.kubectl(&["get", "pods"]));
    assert!(pods.contains("2/2"), "{pods}");
}
