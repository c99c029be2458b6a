//! Goal: the table follows every change, and a change costs what it touches.

use std::net::SocketAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::json;

use super::compiler::{KnownPolicies, PolicyCompiler};
use super::table::{Outgoing, PodRef, Policies, Ruling};
use super::testing::{namespace, namespaces, object, pod, pods, policy};
use crate::mesh::routes::Protocol;

const OUT: &str = "192.0.2.1:443";

fn may_leave(table: &Policies, namespace: &str, uid: &str) -> bool {
    let to: SocketAddr = OUT.parse().unwrap();
    let from = PodRef { namespace, uid };
    table.egress(from, Protocol::Tcp, to, Outgoing::Outside) == Ruling::Allowed
}

fn no_egress(namespace: &str, name: &str, label: &str) -> Arc<NetworkPolicy> {
    let spec =
        json!({ "podSelector": { "matchLabels": { "pod": label } }, "policyTypes": ["Egress"] });
    policy(namespace, name, &spec)
}

#[test]
fn the_table_follows_policies_labels_and_pods() {
    let mut compiler = PolicyCompiler::new("one");
    let (mut all, spaces) = (pods(), namespaces());
    let first = [no_egress("x", "p", "a")];
    let table = compiler.update(&first, &all, &spaces).unwrap();
    assert!(!may_leave(&table, "x", "x/a"));
    assert!(may_leave(&table, "x", "x/b"));
    assert!(compiler.update(&first, &all, &spaces).is_none(), "nothing has changed");
    // Another copy of the same things is no change.
    let again = [no_egress("x", "p", "a")];
    assert!(compiler.update(&again, &pods(), &namespaces()).is_none());

    // The policy selects others now.
    let table = compiler.update(&[no_egress("x", "p", "b")], &all, &spaces).unwrap();
    assert!(may_leave(&table, "x", "x/a"));
    assert!(!may_leave(&table, "x", "x/b"));
    // A pod takes another label.
    all[0] = pod("x", "a", &json!({ "pod": "b" }), "one", "10.42.0.10");
    let second = [no_egress("x", "p", "b")];
    let table = compiler.update(&second, &all, &spaces).unwrap();
    assert!(!may_leave(&table, "x", "x/a"));
    // A pod comes, and goes.
    all.push(pod("x", "new", &json!({ "pod": "b" }), "one", "10.42.0.99"));
    let table = compiler.update(&second, &all, &spaces).unwrap();
    assert!(!may_leave(&table, "x", "x/new"));
    all.pop();
    let table = compiler.update(&second, &all, &spaces).unwrap();
    assert!(table.pod("x/new").is_none());
    // The policy goes.
    let table = compiler.update(&[], &all, &spaces).unwrap();
    assert!(may_leave(&table, "x", "x/a"));
    assert!(table.is_empty());
}

#[test]
fn a_namespaces_labels_count_at_once() {
    let mut compiler = PolicyCompiler::new("one");
    let spec = json!({ "policyTypes": ["Egress"], "egress": [
        { "to": [{ "namespaceSelector": { "matchLabels": { "ns": "y" } } }] },
    ]});
    let policies = [policy("x", "p", &spec)];
    let (all, mut spaces) = (pods(), namespaces());
    let to = PodRef { namespace: "z", uid: "z/a" };
    let ask = |table: &Policies| {
        let from = PodRef { namespace: "x", uid: "x/a" };
        let at = "10.42.0.30:80".parse().unwrap();
        table.egress(from, Protocol::Tcp, at, Outgoing::Here(to)) == Ruling::Allowed
    };
    assert!(!ask(&compiler.update(&policies, &all, &spaces).unwrap()));
    spaces[2] = namespace("z", &json!({ "ns": "y" }));
    assert!(ask(&compiler.update(&policies, &all, &spaces).unwrap()));
}

#[test]
fn a_pod_that_has_ended_has_no_address_any_more() {
    let mut compiler = PolicyCompiler::new("one");
    let policies = [no_egress("x", "p", "a")];
    let mut all = pods();
    let table = compiler.update(&policies, &all, &namespaces()).unwrap();
    let ip = "10.42.1.12".parse().unwrap();
    assert!(table.by_ip["two"].contains_key(&ip));
    let mut ended = Pod::clone(&all[2]);
    ended.status.as_mut().unwrap().phase = Some("Succeeded".to_owned());
    all[2] = Arc::new(ended);
    let table = compiler.update(&policies, &all, &namespaces()).unwrap();
    assert!(!table.by_ip["two"].contains_key(&ip));
}

#[test]
fn a_pod_of_a_file_is_known_by_the_uid_that_its_node_has_for_it() {
    let mirror: Arc<Pod> = object(json!({
        "metadata": {
            "namespace": "x", "name": "static-one", "uid": "mirror", "labels": { "pod": "a" },
            "annotations": { "kubernetes.io/config.mirror": "file" },
        },
        "spec": { "nodeName": "one", "containers": [] },
    }));
    let mut compiler = PolicyCompiler::new("one");
    let table = compiler.update(&[no_egress("x", "p", "a")], &[mirror], &namespaces()).unwrap();
    assert!(!may_leave(&table, "x", "file"));
    assert_eq!(table.pod("file").unwrap().name, "static-one");
}

#[test]
fn what_was_known_is_in_force_again_from_its_copy() {
    let mut compiler = PolicyCompiler::new("one");
    compiler.update(&[no_egress("x", "p", "a")], &pods(), &namespaces()).unwrap();
    let text = serde_json::to_string(&compiler.known()).unwrap();
    let known: KnownPolicies = serde_json::from_str(&text).unwrap();
    assert!(!known.is_empty());
    let table = known.table("one");
    assert!(!may_leave(&table, "x", "x/a"));
    assert!(may_leave(&table, "x", "x/b"));
    assert!(table.by_ip["two"].contains_key(&"10.42.1.12".parse().unwrap()));
    let from = PodRef { namespace: "x", uid: "newer" };
    let ruling = table.egress(from, Protocol::Tcp, OUT.parse().unwrap(), Outgoing::Outside);
    assert_eq!(ruling, Ruling::Unsettled, "it came after the copy was made");
}

/// A thousand of each in one namespace: the worst there is.
#[test]
fn a_change_among_a_thousand_policies_and_pods_is_matched_once_with_each() {
    const COUNT: usize = 1000;
    let label = |at: usize| json!({ "pod": format!("p{}", at % 100) });
    let mut all: Vec<Arc<Pod>> = (0..COUNT)
        .map(|at| {
            let ip = format!("10.42.{}.{}", at / 200, at % 200 + 2);
            pod("x", &format!("pod-{at:04}"), &label(at), "one", &ip)
        })
        .collect();
    let mut policies: Vec<Arc<NetworkPolicy>> = (0..COUNT)
        .map(|at| no_egress("x", &format!("policy-{at:04}"), &format!("p{}", at % 100)))
        .collect();
    let spaces: Vec<Arc<Namespace>> = namespaces();
    let mut compiler = PolicyCompiler::new("one");
    let table = compiler.update(&policies, &all, &spaces).unwrap();
    assert!(!may_leave(&table, "x", "x/pod-0007"));
    let count = u64::try_from(COUNT).unwrap();
    let cost = |compiler: &PolicyCompiler, before: u64| compiler.matched() - before;

    let before = compiler.matched();
    all[7] = pod("x", "pod-0007", &json!({ "pod": "free" }), "one", "10.42.0.9");
    let table = compiler.update(&policies, &all, &spaces).unwrap();
    assert!(may_leave(&table, "x", "x/pod-0007"));
    assert_eq!(cost(&compiler, before), count, "one pod with all policies");

    let before = compiler.matched();
    policies[9] = no_egress("x", "policy-0009", "free");
    let table = compiler.update(&policies, &all, &spaces).unwrap();
    assert!(!may_leave(&table, "x", "x/pod-0007"));
    assert_eq!(cost(&compiler, before), count, "one policy with all pods");

    // What no policy speaks of costs nothing.
    let before = compiler.matched();
    let mut changed = Pod::clone(&all[3]);
    changed.metadata.resource_version = Some("77".to_owned());
    changed.status.as_mut().unwrap().message = Some("fine".to_owned());
    all[3] = Arc::new(changed);
    assert!(compiler.update(&policies, &all, &spaces).is_none());
    // Pods of other nodes are matched with nothing.
    all.push(pod("x", "pod-2000", &label(1), "two", "10.43.0.2"));
    assert!(compiler.update(&policies, &all, &spaces).is_some());
    assert_eq!(cost(&compiler, before), 0);
}
