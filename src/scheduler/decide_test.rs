use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::scheduler::decide::decide;
use crate::scheduler::need::Resources;
use crate::scheduler::testing::{node, owned, pod, schedule, view};
use crate::scheduler::view::ClusterView;

#[test]
fn replicas_are_spread_evenly_over_unequal_nodes() {
    let mut view = view(&[
        node("a", &json!({})),
        node("b", &json!({ "status": { "allocatable": { "cpu": "64", "memory": "256Gi" } } })),
        node("c", &json!({ "status": { "allocatable": { "cpu": "1", "memory": "1Gi" } } })),
    ]);
    let mut counts = BTreeMap::new();
    for at in 0..6 {
        let chosen = schedule(&mut view, &owned("web", "100m", "64Mi"), at).unwrap();
        *counts.entry(chosen).or_insert(0) += 1;
    }
    assert_eq!(counts.into_values().collect::<Vec<_>>(), [2, 2, 2]);
}

#[test]
fn a_pod_without_requests_is_spread_too() {
    let mut view = view(&["a", "b", "c"].map(|name| node(name, &json!({}))));
    let mut counts = BTreeMap::new();
    for at in 0..30 {
        let mut pod = owned("web", "0", "0");
        pod.spec.as_mut().unwrap().containers[0].resources = None;
        *counts.entry(schedule(&mut view, &pod, at).unwrap()).or_insert(0) += 1;
    }
    assert_eq!(counts.into_values().collect::<Vec<_>>(), [10, 10, 10]);
}

fn measured(cpu_millis: i64, memory_bytes: i64) -> Option<Resources> {
    Some(Resources { cpu_millis, memory_bytes, ..Resources::default() })
}

#[test]
fn pods_without_requests_go_away_from_a_busy_node() {
    let mut view = view(&["busy", "idle"].map(|name| node(name, &json!({}))));
    view.set_measured("busy", measured(3600, 1 << 30));
    view.set_measured("idle", measured(200, 1 << 30));
    for at in 0..20 {
        assert_eq!(schedule(&mut view, &pod(&json!({})), at).unwrap(), "idle");
    }
    // Full of memory is busy as well.
    view.set_measured("busy", measured(200, 4 << 30));
    view.set_measured("idle", measured(200, 1 << 30));
    assert_eq!(schedule(&mut view, &pod(&json!({})), 20).unwrap(), "idle");
}

#[test]
fn the_least_busy_node_does_not_get_all_pods_of_a_burst() {
    let mut view = view(&["a", "b", "c"].map(|name| node(name, &json!({}))));
    for (name, cpu) in [("a", 0), ("b", 200), ("c", 400)] {
        view.set_measured(name, measured(cpu, 0));
    }
    let mut counts = BTreeMap::new();
    for at in 0..90 {
        *counts.entry(schedule(&mut view, &pod(&json!({})), at).unwrap()).or_insert(0) += 1;
    }
    assert!(counts["a"] > counts["c"], "{counts:?}");
    assert!(counts.values().all(|count| *count >= 15), "{counts:?}");
}

#[test]
fn a_busy_node_still_takes_what_fits_nowhere_else() {
    let mut view = view(&[
        node("busy", &json!({})),
        node("small", &json!({ "status": { "allocatable": { "cpu": "100m" } } })),
    ]);
    view.set_measured("busy", measured(4000, 4 << 30));
    view.set_measured("small", measured(0, 0));
    assert_eq!(schedule(&mut view, &owned("web", "1", "1Gi"), 0).unwrap(), "busy");
}

#[test]
fn the_refusal_counts_each_reason() {
    let tainted =
        json!({ "spec": { "taints": [{ "key": "gpu", "value": "no", "effect": "NoSchedule" }] } });
    let mut view = view(&[
        node("small", &json!({ "status": { "allocatable": { "cpu": "1", "memory": "1Mi" } } })),
        node("tainted", &tainted),
        node("cordoned", &json!({ "spec": { "unschedulable": true } })),
        node("full", &json!({ "status": { "allocatable": { "pods": "0" } } })),
    ]);
    assert_eq!(
        schedule(&mut view, &owned("web", "2", "1Gi"), 0).unwrap_err(),
        "0/4 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, 1 Too many pods, \
         1 node(s) had untolerated taint {gpu: no}, 1 node(s) were unschedulable."
    );
    let text = schedule(&mut ClusterView::new(), &pod(&json!({})), 0).unwrap_err();
    assert_eq!(text, "no nodes available to schedule pods");
}

#[test]
fn each_filter_keeps_a_pod_off_the_wrong_node() {
    let wrong_or_right = |wrong: &Value, pod_changes: &Value, reason: &str| {
        let pod = pod(pod_changes);
        let mut alone = view(&[node("wrong", wrong)]);
        let text = schedule(&mut alone, &pod, 0).unwrap_err();
        assert!(text.contains(reason), "{text}");
        let right = json!({ "metadata": { "labels": { "disk": "ssd", "cores": "8" } } });
        let mut both = view(&[node("wrong", wrong), node("right", &right)]);
        for at in 0..4 {
            assert_eq!(decide(&both, &pod, at).unwrap(), "right");
        }
        both.set_node("wrong", None);
        assert_eq!(schedule(&mut both, &pod, 0).unwrap(), "right");
    };
    let plain = json!({});
    let selector = "node(s) didn't match Pod's node affinity/selector";
    wrong_or_right(&plain, &json!({ "spec": { "nodeSelector": { "disk": "ssd" } } }), selector);
    let required = json!({ "spec": { "affinity": { "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
            { "matchExpressions": [{ "key": "cores", "operator": "Gt", "values": ["4"] }] },
        ]},
    }}}});
    wrong_or_right(&plain, &required, selector);
    let by_name = json!({ "spec": { "affinity": { "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
            { "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["right"] }] },
        ]},
    }}}});
    wrong_or_right(&plain, &by_name, selector);
    let elsewhere = "node(s) didn't match the requested node name";
    wrong_or_right(&plain, &json!({ "spec": { "nodeName": "right" } }), elsewhere);
    let down = json!({ "spec": { "taints": [
        { "key": "node.kubernetes.io/unreachable", "effect": "NoExecute" },
    ]}});
    wrong_or_right(&down, &plain, "untolerated taint {node.kubernetes.io/unreachable: }");
}

#[test]
fn disk_is_shared_out_where_nodes_say_how_much_they_have() {
    let disk =
        |amount: &str| json!({ "status": { "allocatable": { "ephemeral-storage": amount } } });
    let wants = pod(&json!({ "spec": { "containers": [{
        "name": "c", "resources": { "requests": { "ephemeral-storage": "6Gi" } },
    }]}}));
    let mut small = view(&[node("a", &disk("10Gi"))]);
    assert_eq!(schedule(&mut small, &wants, 0).as_deref(), Ok("a"));
    let refused = schedule(&mut small, &wants, 1).unwrap_err();
    assert_eq!(refused, "0/1 nodes are available: 1 Insufficient ephemeral-storage.");
    let mut silent = view(&[node("a", &json!({}))]);
    for at in 0..2 {
        assert_eq!(schedule(&mut silent, &wants, at).as_deref(), Ok("a"));
    }
}

#[test]
fn a_host_port_is_given_once_per_node() {
    let mut view = view(&["a", "b"].map(|name| node(name, &json!({}))));
    let pod = pod(&json!({ "spec": { "containers": [{
        "name": "c", "ports": [{ "containerPort": 80, "hostPort": 80 }],
    }]}}));
    let first = schedule(&mut view, &pod, 0).unwrap();
    let second = schedule(&mut view, &pod, 1).unwrap();
    assert_ne!(first, second);
    let text = schedule(&mut view, &pod, 2).unwrap_err();
    assert!(text.contains("2 node(s) didn't have free ports"), "{text}");
}

#[test]
fn preferences_win_between_nodes_that_are_else_alike() {
    let tainted = json!({ "spec": { "taints": [{ "key": "k", "effect": "PreferNoSchedule" }] } });
    let both = view(&[node("a", &tainted), node("b", &json!({}))]);
    let preferring = pod(&json!({ "spec": {
        "tolerations": [{ "key": "k", "operator": "Exists" }],
        "affinity": { "nodeAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [{
            "weight": 10, "preference": { "matchExpressions": [
                { "key": "kubernetes.io/hostname", "operator": "In", "values": ["a"] },
            ]},
        }]}},
    }}));
    for seed in 0..8 {
        assert_eq!(decide(&both, &pod(&json!({})), seed).unwrap(), "b", "the taint discourages");
        assert_eq!(decide(&both, &preferring, seed).unwrap(), "a", "the pod prefers it");
    }
}

#[test]
fn the_seed_decides_between_equals_and_nothing_else_does() {
    let nodes = ["a", "b", "c"].map(|name| node(name, &json!({})));
    let (forth, mut turned) = (view(&nodes), nodes.to_vec());
    turned.reverse();
    let back = view(&turned);
    let mut chosen = BTreeMap::new();
    for seed in 0..30 {
        let node = decide(&forth, &pod(&json!({})), seed).unwrap();
        assert_eq!(node, decide(&back, &pod(&json!({})), seed).unwrap());
        *chosen.entry(node.to_owned()).or_insert(0) += 1;
    }
    assert_eq!(chosen.len(), 3);
}

proptest! {
    /// Goal: capacity is never given twice. Method: schedules random pods on random nodes, some
    /// leaving again, and adds up what each node has given.
    #[test]
    fn no_node_is_ever_over_committed(
        capacities in prop::collection::vec((100..4000_i64, 100..4000_i64, 1..20_i64), 1..6),
        pods in prop::collection::vec((0..900_i64, 0..900_i64, 0..4_u8, any::<bool>()), 1..80),
    ) {
        let nodes: Vec<_> = capacities
            .iter()
            .enumerate()
            .map(|(at, (cpu, memory, pods))| node(&format!("n{at}"), &json!({
                "status": { "allocatable": {
                    "cpu": format!("{cpu}m"), "memory": format!("{memory}"), "pods": pods.to_string(),
                }},
            })))
            .collect();
        let mut view = view(&nodes);
        for (at, (cpu, memory, owner, leaves)) in pods.into_iter().enumerate() {
            let pod = owned(&format!("o{owner}"), &format!("{cpu}m"), &memory.to_string());
            let placed = schedule(&mut view, &pod, at).is_ok();
            for node in view.nodes() {
                let allocatable = node.facts.as_ref().unwrap().allocatable;
                prop_assert!(node.used.cpu_millis <= allocatable.cpu_millis);
                prop_assert!(node.used.memory_bytes <= allocatable.memory_bytes);
                prop_assert!(node.used.pods <= allocatable.pods);
            }
            if placed && leaves {
                let key = ("default".to_owned(), format!("p{at}"));
                prop_assert!(view.remove(&key));
            }
        }
    }
}
