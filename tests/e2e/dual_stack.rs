//! Pods with an address of each family, on two nodes.

use std::net::IpAddr;

use crate::support::{Block, Node, PATIENCE, eventually, guest, succeed};

const FLAGS: [&str; 4] =
    ["--cluster-cidr", "10.42.0.0/16,fd00:42::/48", "--service-cidr", "10.43.0.0/16,fd00:43::/112"];

fn apply(node: &Node, text: &str) {
    let file = node.data_dir.with_extension("yaml");
    std::fs::write(&file, text).unwrap();
    succeed(&mut node.kubectl(&["apply", "-f", file.to_str().unwrap()]));
}

/// The words of a field, once there are `count`.
fn words(node: &Node, object: &str, path: &str, count: usize) -> Vec<String> {
    let path = format!("jsonpath={{{path}}}");
    eventually(&format!("{object} {path}"), PATIENCE, || {
        let output = node.kubectl(&["get", object, "-o", &path]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        if words.len() == count { Ok(words) } else { Err(text) }
    })
}

fn is_v6(text: &str) -> bool {
    text.parse::<IpAddr>().unwrap().is_ipv6()
}

/// Goal: pods, Services and names have both families, within a node and between two. Method: servers
/// that listen in one family each, clients on both nodes that ask by address and by Service.
#[test]
fn pods_and_services_have_both_families() {
    let folder = tempfile::tempdir().unwrap();
    let block = Block::take();
    let one = Node::start_with(folder.path(), "one", block.address(1), None, &FLAGS);
    one.wait_ready();
    let token = succeed(&mut one.edgeorc(&["node", "token", "create"]));
    let join = Some((&one, token.trim()));
    let two = Node::start_with(folder.path(), "two", block.address(2), join, &FLAGS);
    two.wait_ready();
    for node in ["node/one", "node/two"] {
        let cidrs = words(&one, node, ".spec.podCIDRs[*]", 2);
        assert!(cidrs[0].starts_with("10.42.") && cidrs[1].starts_with("fd00:42:"), "{cidrs:?}");
    }
    let file = guest("probe-p3");
    succeed(&mut one.edgeorc(&[
        "deploy",
        file.to_str().unwrap(),
        "--name",
        "seed",
        "--replicas",
        "0",
    ]));
    let image = words(&one, "deploy/seed", ".spec.template.spec.containers[0].image", 1).remove(0);
    let pod = |name: &str, on: &str, restart: &str, args: &str| {
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
    };
    let service = |name: &str, app: &str, more: &str| {
        format!(
            "apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {{app: {app}}}
  {more}
  ports: [{{port: 80, targetPort: 7000}}]
---
"
        )
    };
    let mut all = pod("six", "two", "Always", "tcp-echo, '[::]:7000'");
    all += &pod("four", "two", "Always", "tcp-echo, '0.0.0.0:7000'");
    all += &service("six", "six", "");
    all += &service("four", "four", "");
    all += &service("names", "six", "clusterIP: None");
    apply(&one, &all);
    let six = words(&one, "pod/six", ".status.podIPs[*].ip", 2);
    let four = words(&one, "pod/four", ".status.podIPs[*].ip", 2);
    assert!(!is_v6(&six[0]) && is_v6(&six[1]) && !is_v6(&four[0]), "{six:?} {four:?}");
    assert_ne!(six[1], four[1]);
    let at_six = words(&one, "service/six", ".spec.clusterIPs[*]", 2).remove(1);
    let at_four = words(&one, "service/four", ".spec.clusterIPs[*]", 2).remove(0);
    let slices = words(
        &one,
        "endpointslices",
        ".items[?(@.metadata.labels.kubernetes\\.io/service-name==\"six\")].endpoints[*].addresses[*]",
        2,
    );
    assert!(slices.contains(&six[0]) && slices.contains(&six[1]), "{slices:?}");

    for (at, on, to) in [
        (0, "one", format!("[{}]:7000", six[1])),
        (1, "two", format!("[{}]:7000", six[1])),
        (2, "one", format!("[{at_six}]:80")),
        (3, "two", format!("[{at_six}]:80")),
        (4, "one", format!("{}:7000", four[0])),
        (5, "one", format!("{at_four}:80")),
    ] {
        let name = format!("ask-{at}");
        apply(&one, &pod(&name, on, "OnFailure", &format!("tcp-ask, '{to}', hello")));
        words(
            &one,
            &format!("pod/{name}"),
            ".status.containerStatuses[0].state.terminated.exitCode",
            1,
        );
        let said = succeed(&mut one.kubectl(&["logs", &name]));
        assert_eq!(said.trim(), "hello", "{to} from {on}");
    }
    apply(&one, &pod("lookup", "one", "OnFailure", "lookup, names"));
    words(&one, "pod/lookup", ".status.containerStatuses[0].state.terminated.exitCode", 1);
    let said = succeed(&mut one.kubectl(&["logs", "lookup"]));
    assert!(said.contains(&six[0]) && said.contains(&six[1]), "{said}");
}
