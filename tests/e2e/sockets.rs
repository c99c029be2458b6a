//! Guests' sockets over the whole path: two nodes, pods on both, a Service between them.

use crate::support::{Block, Node, PATIENCE, eventually, guest, succeed};

/// Pushes a guest, and gives the reference that pods name.
fn push(node: &Node, name: &str) -> String {
    let file = guest(name);
    let seed = format!("seed-{name}");
    let args = ["deploy", file.to_str().unwrap(), "--name", &seed, "--replicas", "0"];
    succeed(&mut node.edgeorc(&args));
    let path = "jsonpath={.spec.template.spec.containers[0].image}";
    succeed(&mut node.kubectl(&["get", "deploy", &seed, "-o", path])).trim().to_owned()
}

fn apply(node: &Node, text: &str) {
    let file = node.data_dir.with_extension("yaml");
    std::fs::write(&file, text).unwrap();
    succeed(&mut node.kubectl(&["apply", "-f", file.to_str().unwrap()]));
}

fn field(node: &Node, object: &str, path: &str) -> String {
    let path = format!("jsonpath={{{path}}}");
    let output = node.kubectl(&["get", object, "-o", &path]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn until(node: &Node, object: &str, path: &str, wanted: &str) {
    eventually(&format!("{object} {path}"), PATIENCE, || {
        let got = field(node, object, path);
        if got == wanted { Ok(()) } else { Err(got) }
    });
}

/// A pod on a node that runs a probe with these arguments.
fn pod(name: &str, on: &str, image: &str, restart: &str, args: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  nodeName: {on}
  restartPolicy: {restart}
  terminationGracePeriodSeconds: 1
  containers: [{{name: main, image: '{image}', args: [{args}]}}]
---
"
    )
}

#[test]
fn datagrams_and_connections_of_guests_cross_nodes_and_services() {
    let folder = tempfile::tempdir().unwrap();
    let block = Block::take();
    let one = Node::start(folder.path(), "one", block.address(1), None);
    one.wait_ready();
    let token = succeed(&mut one.edgeorc(&["node", "token", "create"]));
    let two = Node::start(folder.path(), "two", block.address(2), Some((&one, token.trim())));
    two.wait_ready();
    let (probe, probe_p3) = (push(&one, "probe"), push(&one, "probe-p3"));
    let service = "apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  selector: {app: server}
  ports:
  - {name: dns, port: 53, targetPort: 5353, protocol: UDP}
  - {name: tcp, port: 80, targetPort: 7000}
";
    let mut all = String::new();
    all += &pod("server", "two", &probe, "Always", "udp-echo, '5353'");
    all += &pod("echo", "two", &probe_p3, "Always", "tcp-echo, '0.0.0.0:7000'");
    apply(&one, &(all + service));
    until(&one, "pod/server", ".status.phase", "Running");
    until(&one, "pod/echo", ".status.phase", "Running");
    until(&one, "endpoints/server", ".subsets[0].addresses[*].nodeName", "two");
    let server = field(&one, "pod/server", ".status.podIP");
    let echo = field(&one, "pod/echo", ".status.podIP");
    let cluster_ip = field(&one, "service/server", ".spec.clusterIP");

    let asks = [
        ("direct-p2", "one", &probe, "udp-ask", format!("{server}:5353")),
        ("service-p2", "one", &probe, "udp-ask", format!("{cluster_ip}:53")),
        ("service-p3", "one", &probe_p3, "udp-ask", format!("{cluster_ip}:53")),
        ("same-node", "two", &probe_p3, "udp-ask", format!("{server}:5353")),
        ("tcp-p3", "one", &probe_p3, "tcp-ask", format!("{echo}:7000")),
    ];
    for (name, on, image, verb, to) in asks {
        // A route may arrive at the node after the pod: what is asked too early is asked again.
        let args = format!("{verb}, '{to}', hello");
        apply(&one, &pod(name, on, image, "OnFailure", &args));
        until(&one, &format!("pod/{name}"), ".status.phase", "Succeeded");
        let said = succeed(&mut one.kubectl(&["logs", name]));
        let wanted = match verb {
            "udp-ask" => format!("hello from {to}"),
            _ => "hello".to_owned(),
        };
        assert_eq!(said.trim(), wanted, "{name}");
    }
    apply(&one, &pod("lookup", "one", &probe_p3, "OnFailure", "lookup, server"));
    until(&one, "pod/lookup", ".status.phase", "Succeeded");
    assert_eq!(succeed(&mut one.kubectl(&["logs", "lookup"])).trim(), cluster_ip);
    // The host is nobody's business.
    apply(&one, &pod("host", "one", &probe_p3, "Never", "udp-ask, '169.254.169.254:53', hello"));
    until(&one, "pod/host", ".status.phase", "Failed");
    let said = succeed(&mut one.kubectl(&["logs", "host"]));
    assert!(said.contains("AccessDenied"), "{said}");
}
