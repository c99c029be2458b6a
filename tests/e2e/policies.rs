//! Network policies as their users see them: applied with kubectl, felt by guests over TCP, UDP and
//! HTTP, on one node and between two.

use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Block, Node, PATIENCE, eventually, get, guest, hello, succeed};

/// Longest wait for one answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Two nodes; the servers on the second, clients on both.
struct Fixture {
    one: Node,
    two: Node,
    images: [String; 4],
    _folder: tempfile::TempDir,
}

/// Pushes a guest, and gives the reference that pods name.
fn push(node: &Node, name: &str) -> String {
    let file = if name == "hello" { hello() } else { guest(name) };
    let seed = format!("seed-{name}");
    let args = ["deploy", file.to_str().unwrap(), "--name", &seed, "--replicas", "0"];
    succeed(&mut node.edgeorc(&args));
    let path = "jsonpath={.spec.template.spec.containers[0].image}";
    succeed(&mut node.kubectl(&["get", "deploy", &seed, "-o", path])).trim().to_owned()
}

impl Fixture {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let block = Block::take();
        let one = Node::start(folder.path(), "one", block.address(1), None);
        one.wait_ready();
        let token = succeed(&mut one.edgeorc(&["node", "token", "create"]));
        let two = Node::start(folder.path(), "two", block.address(2), Some((&one, token.trim())));
        two.wait_ready();
        let images = ["agnhost", "probe", "probe-p3", "busybox"].map(|name| push(&one, name));
        let all = Self { one, two, images, _folder: folder };
        all.apply(&json!({ "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": "shop", "labels": { "team": "shop" } } }));
        all
    }

    fn apply(&self, object: &Value) {
        let mut command = self.one.kubectl(&["apply", "-f", "-"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(object.to_string().as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "apply {object}");
    }

    fn policy(&self, name: &str, spec: &Value) {
        self.apply(&json!({ "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "name": name, "namespace": "shop" }, "spec": spec }));
    }

    fn remove(&self, name: &str) {
        succeed(&mut self.one.kubectl(&["delete", "netpol", name, "-n", "shop"]));
    }

    fn pod(&self, namespace: &str, name: &str, node: &str, image: usize, args: &[&str], port: u16) {
        let protocol = if image == 1 { "UDP" } else { "TCP" };
        self.apply(&json!({ "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": namespace, "labels": { "app": name } },
            "spec": { "nodeName": node, "terminationGracePeriodSeconds": 1, "containers": [{
                "name": "main", "image": self.images[image], "args": args,
                "ports": [{ "name": "main", "containerPort": port, "protocol": protocol }],
            }]},
        }));
    }

    fn field(&self, namespace: &str, object: &str, path: &str) -> String {
        let path = format!("jsonpath={{{path}}}");
        let mut command = self.one.kubectl(&["get", object, "-n", namespace, "-o", &path]);
        String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned()
    }

    /// The address of a pod that runs.
    fn address(&self, name: &str) -> String {
        eventually(&format!("{name} runs"), PATIENCE, || {
            let phase = self.field("shop", &format!("pod/{name}"), ".status.phase");
            let ip = self.field("shop", &format!("pod/{name}"), ".status.podIP");
            if phase == "Running" && !ip.is_empty() { Ok(ip) } else { Err(phase) }
        })
    }

    /// Whether a command in a pod succeeds, with what it said.
    fn try_exec(&self, (namespace, pod): (&str, &str), command: &[&str]) -> (bool, String) {
        let mut args = vec!["exec", "-n", namespace, pod, "--"];
        args.extend(command);
        let output = self.one.kubectl(&args).output().unwrap();
        (output.status.success(), crate::support::both(&output))
    }

    /// Waits until a command in a pod does what it should: a change reaches a node within moments.
    fn until(&self, from: (&str, &str), command: &[&str], is_wanted: bool) -> String {
        eventually(&format!("{from:?} {command:?}: {is_wanted}"), PATIENCE, || {
            let (is, said) = self.try_exec(from, command);
            if is == is_wanted { Ok(said) } else { Err(said) }
        })
    }
}

const CLIENTS: [(&str, &str); 4] =
    [("shop", "near"), ("shop", "far"), ("default", "near"), ("default", "far")];

/// Goal: each kind of traffic is let through and refused as the policies say, wherever the two pods
/// are. Method: servers on node two, clients `near` on two and `far` on one, in two namespaces; each
/// asks by `exec`, which the policies must never stop.
#[test]
fn guests_feel_the_policies_that_kubectl_applies() {
    let all = Fixture::start();
    all.pod("shop", "web", "two", 0, &["netexec", "--http-port", "8080"], 8080);
    all.pod("shop", "echo", "two", 2, &["tcp-echo", "0.0.0.0:7000"], 7000);
    all.pod("shop", "dns", "two", 1, &["udp-echo", "5353"], 5353);
    for (namespace, name) in CLIENTS {
        let node = if name == "near" { "two" } else { "one" };
        all.pod(namespace, name, node, 0, &["netexec", "--http-port", "8080"], 8080);
    }
    all.apply(&json!({ "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "web", "namespace": "shop" },
        "spec": { "type": "NodePort", "selector": { "app": "web" },
            "ports": [{ "port": 80, "targetPort": 8080, "nodePort": 31080 }] } }));
    let web = format!("{}:8080", all.address("web"));
    let echo = format!("{}:7000", all.address("echo"));
    let dns = format!("{}:5353", all.address("dns"));
    let service = "web.shop.svc.cluster.local:80";
    let connect =
        |to: &str| vec!["main".to_owned(), "connect".into(), to.into(), "--timeout=5s".into()];
    let check = |from: (&str, &str), to: &str, is_wanted: bool| {
        let command = connect(to);
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let said = all.until(from, &command, is_wanted);
        assert!(is_wanted || said.contains("REFUSED"), "{from:?} {to}: {said}");
    };
    for from in CLIENTS {
        for to in [&web, &echo, service] {
            check(from, to, true);
        }
    }

    // Nobody may come in, from wherever; exec and probes go on.
    all.policy("deny", &json!({ "podSelector": {} }));
    for from in CLIENTS {
        for to in [&web, &echo, service] {
            check(from, to, false);
        }
    }
    let listed = succeed(&mut all.one.kubectl(&["get", "netpol", "-n", "shop"]));
    assert!(listed.contains("deny") && listed.contains("<none>"), "{listed}");
    let asked = get((all.two.address, 31080).into(), "web", "/hostname", ANSWER_LIMIT);
    assert!(asked.is_err(), "{asked:?}");

    // Those of the namespace may, at the port that the pod calls `main`.
    all.policy(
        "same",
        &json!({ "podSelector": { "matchLabels": { "app": "web" } },
        "ingress": [{ "from": [{ "podSelector": {} }], "ports": [{ "port": "main" }] }] }),
    );
    for from in CLIENTS {
        check(from, service, from.0 == "shop");
        check(from, &web, from.0 == "shop");
        check(from, &echo, false);
    }
    // And clients of the nodes' ports, by their address.
    let node = format!("{}/32", all.two.address);
    all.policy(
        "nodes",
        &json!({ "podSelector": { "matchLabels": { "app": "web" } },
        "ingress": [{ "from": [{ "ipBlock": { "cidr": node } }] }] }),
    );
    eventually("the node port answers", PATIENCE, || {
        get((all.two.address, 31080).into(), "web", "/hostname", ANSWER_LIMIT)
            .map_err(|err| err.to_string())
            .and_then(|answer| if answer.body == "web" { Ok(()) } else { Err(answer.body) })
    });
    for name in ["deny", "same", "nodes"] {
        all.remove(name);
    }

    // UDP, asked by pods that end with what they got.
    all.policy(
        "udp",
        &json!({ "podSelector": { "matchLabels": { "app": "dns" } },
        "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "allowed" } } }],
            "ports": [{ "protocol": "UDP", "port": 5353, "endPort": 5400 }] }] }),
    );
    check(("shop", "far"), &web, true);
    for (image, node) in [(1, "one"), (2, "two"), (2, "one")] {
        all.pod("shop", "allowed", node, image, &["udp-ask", &dns, "hi"], 9);
        all.pod("shop", "denied", node, image, &["udp-ask", &dns, "hi"], 9);
        let said = eventually("datagrams come back", PATIENCE, || {
            let said = all.one.kubectl(&["logs", "-n", "shop", "allowed"]).output().unwrap();
            let said = crate::support::both(&said);
            if said.contains("hi from") { Ok(said) } else { Err(said) }
        });
        assert!(said.contains(&dns), "{said}");
        eventually("datagrams are refused", PATIENCE, || {
            let said = all.one.kubectl(&["logs", "-n", "shop", "denied"]).output().unwrap();
            let said = crate::support::both(&said).to_lowercase();
            if said.contains("refused") { Ok(()) } else { Err(said) }
        });
        let gone = ["delete", "pod", "-n", "shop", "allowed", "denied"];
        succeed(&mut all.one.kubectl(&gone));
    }
    all.remove("udp");

    // Egress: to the Service's pods and nowhere else; names are found all the same.
    all.policy(
        "out",
        &json!({ "podSelector": { "matchLabels": { "app": "far" } },
        "policyTypes": ["Egress"],
        "egress": [{ "to": [{ "podSelector": { "matchLabels": { "app": "web" } } }] }] }),
    );
    check(("shop", "far"), &echo, false);
    check(("shop", "far"), service, true);
    check(("shop", "near"), &echo, true);
    check(("default", "far"), &echo, true);
    all.remove("out");
    check(("shop", "far"), &echo, true);

    // What was denied is told and counted.
    let metrics = succeed(&mut all.one.kubectl(&["get", "--raw", "/metrics"]));
    let counted = metrics.lines().any(|line| {
        line.starts_with("edgeorc_mesh_policy_denials_total{")
            && line.contains("direction=\"egress\"")
            && !line.ends_with(" 0")
    });
    assert!(counted, "{metrics}");
    assert!(all.two.process.stderr().contains("a network policy denied a connection"));
}

/// A node that starts without a server obeys what it knew last.
#[test]
fn policies_hold_on_a_node_that_starts_without_a_server() {
    let mut all = Fixture::start();
    all.pod("shop", "near", "two", 0, &["netexec", "--http-port", "8080"], 8080);
    all.pod("shop", "web", "two", 0, &["netexec", "--http-port", "8080"], 8080);
    all.address("web");
    all.policy("deny", &json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] }));
    let file = all.two.data_dir.join("agent/network-policies.json");
    eventually("the copy is written", PATIENCE, || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        if text.contains("shop") && text.contains("near") { Ok(()) } else { Err(text) }
    });
    all.two.process.kill();
    all.one.process.kill();
    all.two.restart();
    eventually("the policies are in force", PATIENCE, || {
        let log = all.two.process.stderr();
        if log.contains("network policies of the last run are in force") {
            Ok(())
        } else {
            Err(log)
        }
    });
}
