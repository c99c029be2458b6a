//! StatefulSets, DaemonSets and ReplicationControllers by a real kubectl.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::cluster::start_three;
use crate::kubectl::push;
use crate::support::{Block, Node, PATIENCE, both, eventually, hello, succeed};

fn stateful_set(image: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: db}}
spec:
  clusterIP: None
  selector: {{app: db}}
  ports: [{{port: 8080}}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: db}}
spec:
  serviceName: db
  replicas: 2
  selector: {{matchLabels: {{app: db}}}}
  template:
    metadata: {{labels: {{app: db}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: db
        image: {image}
        volumeMounts: [{{name: data, mountPath: /data}}]
  volumeClaimTemplates:
  - metadata: {{name: data}}
    spec:
      accessModes: [ReadWriteOnce]
      resources: {{requests: {{storage: 1Mi}}}}
"
    )
}

fn daemon_set(image: &str) -> String {
    format!(
        "apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: ds}}
spec:
  selector: {{matchLabels: {{app: ds}}}}
  template:
    metadata: {{labels: {{app: ds}}}}
    spec:
      nodeSelector: {{disk: ssd}}
      terminationGracePeriodSeconds: 1
      containers: [{{name: ds, image: {image}}}]
"
    )
}

fn replication_controller(image: &str) -> String {
    format!(
        "apiVersion: v1
kind: ReplicationController
metadata: {{name: old}}
spec:
  replicas: 2
  selector: {{app: old}}
  template:
    metadata: {{labels: {{app: old}}}}
    spec: {{containers: [{{name: old, image: {image}}}]}}
"
    )
}

fn create(node: &Node, folder: &Path, name: &str, manifest: &str) -> String {
    let file = folder.join(name);
    std::fs::write(&file, manifest).unwrap();
    succeed(&mut node.kubectl(&["create", "-f", file.to_str().unwrap()]))
}

fn rolled_out(node: &Node, what: &str) {
    succeed(&mut node.kubectl(&["rollout", "status", what, "--timeout=90s"]));
}

fn query(node: &Node, args: &[&str], path: &str) -> String {
    let path = format!("jsonpath={path}");
    let args: Vec<&str> = args.iter().copied().chain(["-o", path.as_str()]).collect();
    succeed(&mut node.kubectl(&args))
}

fn pods(node: &Node, label: &str) -> String {
    query(
        node,
        &["get", "pods", "-l", label, "--sort-by=.metadata.name"],
        "{.items[*].metadata.name}",
    )
}

/// The variable `V` of the pod, empty when it has none.
fn version(node: &Node, pod: &str) -> String {
    query(node, &["get", "pod", pod], "{.spec.containers[0].env[?(@.name=='V')].value}")
}

fn revisions(node: &Node, what: &str) -> Vec<String> {
    let history = succeed(&mut node.kubectl(&["rollout", "history", what]));
    let lines = history.lines().filter_map(|line| line.split_whitespace().next());
    lines.filter(|word| word.parse::<u32>().is_ok()).map(str::to_owned).collect()
}

#[test]
fn a_stateful_set_keeps_names_order_and_storage() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    let image = push(&node, hello().to_str().unwrap());
    let said = create(&node, folder.path(), "db.yaml", &stateful_set(&image));
    assert_eq!(said, "service/db created\nstatefulset.apps/db created\n");
    rolled_out(&node, "sts/db");
    assert_eq!(pods(&node, "app=db"), "db-0 db-1");
    let claims = succeed(&mut node.kubectl(&["get", "pvc", "-o", "name"]));
    assert_eq!(claims, "persistentvolumeclaim/data-db-0\npersistentvolumeclaim/data-db-1\n");
    let index = "{.metadata.labels.apps\\.kubernetes\\.io/pod-index} {.spec.hostname}";
    assert_eq!(query(&node, &["get", "pod", "db-1"], index), "1 db-1");
    eventually("the headless service has a name for each pod", PATIENCE, || {
        let slices = ["get", "endpointslices", "-l", "kubernetes.io/service-name=db"];
        let names = query(&node, &slices, "{.items[*].endpoints[*].hostname}");
        let has_all = ["db-0", "db-1"].iter().all(|name| names.contains(name));
        if has_all { Ok(()) } else { Err(names) }
    });

    // A partition: only the highest pod changes.
    succeed(&mut node.kubectl(&["scale", "sts/db", "--replicas=3"]));
    rolled_out(&node, "sts/db");
    let partition = |n: u32| {
        let patch = format!(
            "{{\"spec\":{{\"updateStrategy\":{{\"rollingUpdate\":{{\"partition\":{n}}}}}}}}}"
        );
        succeed(&mut node.kubectl(&["patch", "sts", "db", "-p", &patch]));
    };
    partition(2);
    succeed(&mut node.kubectl(&["set", "env", "sts/db", "V=2"]));
    rolled_out(&node, "sts/db");
    let versions = ["db-0", "db-1", "db-2"].map(|pod| version(&node, pod));
    assert_eq!(versions, ["", "", "2"]);
    assert_eq!(revisions(&node, "sts/db"), ["1", "2"]);
    let undone = succeed(&mut node.kubectl(&["rollout", "undo", "sts/db"]));
    assert_eq!(undone, "statefulset.apps/db rolled back\n");
    rolled_out(&node, "sts/db");
    eventually("the highest pod is as it was", PATIENCE, || match version(&node, "db-2") {
        none if none.is_empty() => Ok(()),
        other => Err(other),
    });
    assert_eq!(revisions(&node, "sts/db"), ["2", "3"], "the first one came back");
    partition(0);
    succeed(&mut node.kubectl(&["rollout", "restart", "sts/db"]));
    rolled_out(&node, "sts/db");
    let restarted = "{.items[*].metadata.annotations.kubectl\\.kubernetes\\.io/restartedAt}";
    let times = query(&node, &["get", "pods", "-l", "app=db"], restarted);
    assert_eq!(times.split_whitespace().count(), 3, "{times}");

    let other_service = "{\"spec\":{\"serviceName\":\"x\"}}";
    let refused = node.kubectl(&["patch", "sts", "db", "-p", other_service]).output().unwrap();
    assert!(both(&refused).contains("updates to statefulset spec for fields other than"));

    create(&node, folder.path(), "rc.yaml", &replication_controller(&image));
    create(&node, folder.path(), "ds.yaml", &daemon_set(&image));
    let wait = ["wait", "rc/old", "--for=jsonpath={.status.readyReplicas}=2", "--timeout=60s"];
    succeed(&mut node.kubectl(&wait));
    let table = succeed(&mut node.kubectl(&["get", "sts,ds,rc", "-o", "wide"]));
    for word in [
        "statefulset.apps/db",
        "3/3",
        "daemonset.apps/ds",
        "NODE SELECTOR",
        "disk=ssd",
        "replicationcontroller/old",
        "app=old",
    ] {
        assert!(table.contains(word), "{word:?} expected in:\n{table}");
    }
    // Without a word on its pods, a replication controller leaves them.
    let path = "/api/v1/namespaces/default/replicationcontrollers/old";
    succeed(&mut node.kubectl(&["delete", "--raw", path]));
    eventually("the pods are orphans", PATIENCE, || {
        let found = node.kubectl(&["get", "rc", "old"]).output().unwrap();
        let owners =
            query(&node, &["get", "pods", "-l", "app=old"], "{.items[*].metadata.ownerReferences}");
        if !found.status.success() && owners.is_empty() { Ok(()) } else { Err(both(&found)) }
    });
    assert_eq!(pods(&node, "app=old").split_whitespace().count(), 2);

    succeed(&mut node.kubectl(&["scale", "sts/db", "--replicas=1"]));
    eventually("the first is left", PATIENCE, || match pods(&node, "app=db").as_str() {
        "db-0" => Ok(()),
        other => Err(other.to_owned()),
    });
    succeed(&mut node.kubectl(&["delete", "sts", "db"]));
    eventually("the set is gone", PATIENCE, || match pods(&node, "app=db").as_str() {
        "" => Ok(()),
        other => Err(other.to_owned()),
    });
    let claims = succeed(&mut node.kubectl(&["get", "pvc", "-o", "name"]));
    assert_eq!(claims.lines().count(), 3, "claims stay: {claims}");
}

/// The nodes on which pods with that label are, sorted.
fn nodes_of(node: &Node, label: &str) -> Vec<String> {
    let names = query(node, &["get", "pods", "-l", label], "{.items[*].spec.nodeName}");
    let mut names: Vec<_> = names.split_whitespace().map(str::to_owned).collect();
    names.sort();
    names
}

#[test]
fn daemon_sets_follow_labels_and_a_stateful_pod_moves_only_when_its_node_has_let_go() {
    let folder = tempfile::tempdir().unwrap();
    let nodes = start_three(folder.path());
    let (first, last) = (&nodes[0], &nodes[2]);
    let image = push(first, hello().to_str().unwrap());

    create(first, folder.path(), "ds.yaml", &daemon_set(&image));
    succeed(&mut first.kubectl(&["label", "node", "one", "two", "disk=ssd"]));
    rolled_out(first, "ds/ds");
    let are_on = |wanted: &[&str]| {
        eventually("pods are on the chosen nodes", PATIENCE, || {
            let found = nodes_of(first, "app=ds");
            if found == wanted { Ok(()) } else { Err(found) }
        });
    };
    are_on(&["one", "two"]);
    succeed(&mut first.kubectl(&["label", "node", "one", "disk-"]));
    succeed(&mut first.kubectl(&["label", "node", "three", "disk=ssd"]));
    are_on(&["three", "two"]);
    succeed(&mut first.kubectl(&["set", "env", "ds/ds", "V=2"]));
    rolled_out(first, "ds/ds");
    assert_eq!(revisions(first, "ds/ds"), ["1", "2"]);
    let undone = succeed(&mut first.kubectl(&["rollout", "undo", "ds/ds"]));
    assert_eq!(undone, "daemonset.apps/ds rolled back\n");
    rolled_out(first, "ds/ds");
    assert_eq!(revisions(first, "ds/ds"), ["2", "3"]);

    // A stateful pod of a node that stands still: it is replaced, but not before its own node would
    // have stopped it.
    succeed(&mut first.kubectl(&["cordon", "one"]));
    succeed(&mut first.kubectl(&["cordon", "two"]));
    let claimless = stateful_set(&image).replace("replicas: 2", "replicas: 1");
    let claimless = claimless
        .split("  volumeClaimTemplates:")
        .next()
        .unwrap()
        .replace("        volumeMounts: [{name: data, mountPath: /data}]\n", "");
    create(first, folder.path(), "db.yaml", &claimless);
    rolled_out(first, "sts/db");
    assert_eq!(nodes_of(first, "app=db"), ["three"]);
    succeed(&mut first.kubectl(&["uncordon", "one"]));
    succeed(&mut first.kubectl(&["uncordon", "two"]));
    let uid =
        |node: &Node| query(node, &["get", "pod", "db-0", "--ignore-not-found"], "{.metadata.uid}");
    let before = uid(first);
    last.process.signal("STOP");
    let stopped = Instant::now();
    eventually("the pod runs elsewhere", PATIENCE, || {
        let path = "jsonpath={.metadata.uid} {.spec.nodeName} {.status.phase}";
        let asked =
            ["get", "pod", "db-0", "--ignore-not-found", "--request-timeout=5s", "-o", path];
        // The one that stands still may have been the leader.
        let answer = first.kubectl(&asked).output().unwrap();
        let found = String::from_utf8_lossy(&answer.stdout).into_owned();
        let is_other = !found.starts_with(&before) && found.ends_with("Running");
        if is_other && !found.contains("three") { Ok(()) } else { Err(found) }
    });
    assert!(stopped.elapsed() > Duration::from_secs(10), "{:?}", stopped.elapsed());
    let moved = uid(first);
    last.process.signal("CONT");
    eventually("the third node is back", PATIENCE, || {
        let ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
        let answer = first.kubectl(&["get", "node", "three", "-o", ready]).output().unwrap();
        if answer.stdout == b"True" { Ok(()) } else { Err(both(&answer)) }
    });
    assert_eq!(uid(first), moved, "the pod that moved stays");
    assert_eq!(nodes_of(first, "app=db").len(), 1);
}
