use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use crate::controllers::Settings;
use crate::controllers::node::plan::{
    EFFECTS, Heard, NOT_READY, Step, UNREACHABLE, View, plan, troubled,
};
use crate::controllers::object::node_name;

const SILENT: Duration = Duration::from_secs(4);

fn node(name: &str, ready: &str, taint: Option<&str>) -> Arc<Node> {
    let taints = taint
        .into_iter()
        .flat_map(|key| EFFECTS.map(|effect| json!({ "key": key, "effect": effect })));
    let node = json!({
        "metadata": { "name": name, "uid": name },
        "spec": { "taints": taints.collect::<Vec<_>>() },
        "status": { "conditions": [{ "type": "Ready", "status": ready, "reason": "KubeletReady" }] },
    });
    Arc::new(serde_json::from_value(node).unwrap())
}

fn ready(name: &str) -> Heard {
    Heard { node: node(name, "True", None), silent_for: Duration::ZERO }
}

/// A node whose silence has been noted.
fn dead(name: &str) -> Heard {
    Heard { node: node(name, "Unknown", Some(UNREACHABLE)), silent_for: SILENT }
}

fn pod(name: &str, node: &str, changes: &Value) -> Arc<Pod> {
    let mut pod = json!({
        "metadata": { "name": name, "namespace": "default", "uid": name, "ownerReferences": [{
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "rs",
            "controller": true,
        }]},
        "spec": { "nodeName": node, "containers": [] },
        "status": { "phase": "Running" },
    });
    json_patch::merge(&mut pod, changes);
    Arc::new(serde_json::from_value(pod).unwrap())
}

/// The plan of a leader on node `a` that has listened for a minute.
fn plan_for(nodes: &[Heard], pods: &[Arc<Pod>], tainted_secs: u64) -> Vec<Step> {
    plan_after(nodes, pods, tainted_secs, Duration::from_secs(60))
}

fn plan_after(
    nodes: &[Heard],
    pods: &[Arc<Pod>],
    tainted_secs: u64,
    listening_for: Duration,
) -> Vec<Step> {
    let mut tainted_for = BTreeMap::new();
    for heard in nodes {
        for taint in heard.node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()) {
            let name = heard.node.metadata.name.clone().unwrap();
            tainted_for.insert((name, taint.key.clone()), Duration::from_secs(tainted_secs));
        }
    }
    let settings = Settings::default();
    let plan_of = |pods: &[Arc<Pod>]| {
        plan(&View {
            settings: &settings,
            me: "a",
            nodes,
            pods,
            listening_for,
            tainted_for: &tainted_for,
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
        })
    };
    let steps = plan_of(pods);
    // The pods that are not looked at would not have changed the plan.
    let looked_at = troubled(&settings, nodes);
    let is_looked_at =
        |pod: &&Arc<Pod>| node_name(pod).is_some_and(|node| looked_at.contains(node));
    let fewer: Vec<_> = pods.iter().filter(is_looked_at).cloned().collect();
    assert_eq!(plan_of(&fewer), steps);
    steps
}

fn evictions(steps: &[Step]) -> Vec<(&str, bool)> {
    steps
        .iter()
        .filter_map(|step| match step {
            Step::Evict { pod, is_forced } => {
                Some((pod.metadata.name.as_deref().unwrap(), *is_forced))
            }
            _ => None,
        })
        .collect()
}

#[test]
fn a_node_that_falls_silent_is_unknown_and_tainted() {
    let mut value = serde_json::to_value(&*node("b", "True", None)).unwrap();
    let of_another = json!({ "type": "NetworkUnavailable", "status": "True" });
    value["status"]["conditions"].as_array_mut().unwrap().push(of_another);
    let node = Arc::new(serde_json::from_value(value).unwrap());
    let silent = Heard { node, silent_for: SILENT };
    let serving = json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
    let steps = plan_for(&[ready("a"), silent], &[pod("p", "b", &serving)], 0);
    let [Step::SetUnknown { conditions, .. }, Step::SetTaints { taints, .. }, Step::SetNotReady(_)] =
        steps.as_slice()
    else {
        panic!("{steps:?}");
    };
    assert_eq!(conditions[0].status, "Unknown");
    assert_eq!(conditions[0].reason.as_deref(), Some("NodeStatusUnknown"));
    let taints: Vec<_> = taints.iter().map(|t| (t.key.as_str(), t.effect.as_str())).collect();
    let network = ("node.kubernetes.io/network-unavailable", "NoSchedule");
    let unreachable = EFFECTS.map(|effect| (UNREACHABLE, effect));
    assert_eq!(conditions[1].status, "True", "who wrote it may be well");
    assert_eq!(taints, [&unreachable[..], &[network]].concat());
}

#[test]
fn a_node_is_silent_at_three_seconds_and_not_before() {
    for (silent_ms, steps) in [(2_999, 0), (3_000, 2)] {
        let heard =
            Heard { node: node("b", "True", None), silent_for: Duration::from_millis(silent_ms) };
        assert_eq!(plan_for(&[ready("a"), heard], &[], 0).len(), steps, "{silent_ms} ms");
    }
}

#[test]
fn a_node_that_is_back_loses_its_health_taints_and_no_others() {
    let mut back = node("b", "True", Some(UNREACHABLE));
    let own: k8s_openapi::api::core::v1::Taint =
        serde_json::from_value(json!({ "key": "gpu", "effect": "NoSchedule" })).unwrap();
    Arc::make_mut(&mut back).spec.as_mut().unwrap().taints.as_mut().unwrap().push(own.clone());
    let steps = plan_for(&[ready("a"), Heard { node: back, silent_for: Duration::ZERO }], &[], 60);
    let [Step::SetTaints { taints, .. }] = steps.as_slice() else { panic!("{steps:?}") };
    assert_eq!(*taints, [own]);
}

#[test]
fn a_node_that_says_it_is_not_ready_is_tainted_as_such() {
    let unready = Heard { node: node("b", "False", None), silent_for: Duration::ZERO };
    let steps = plan_for(&[ready("a"), unready], &[], 0);
    let [Step::SetTaints { taints, .. }] = steps.as_slice() else { panic!("{steps:?}") };
    assert!(taints.iter().all(|taint| taint.key == NOT_READY));
}

#[test]
fn pressure_keeps_new_pods_away_for_as_long_as_it_lasts() {
    let with = |pressed: &str, taints: Value| {
        let mut value = serde_json::to_value(&*node("b", "True", None)).unwrap();
        value["spec"]["taints"] = taints;
        for kind in ["MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable"] {
            let status = if kind == pressed { "True" } else { "False" };
            let condition = json!({ "type": kind, "status": status });
            value["status"]["conditions"].as_array_mut().unwrap().push(condition);
        }
        let node = Arc::new(serde_json::from_value(value).unwrap());
        plan_for(&[ready("a"), Heard { node, silent_for: Duration::ZERO }], &[], 0)
    };
    let taint = |key: &str| json!({ "key": key, "effect": "NoSchedule" });
    let own = json!({ "key": "gpu", "effect": "NoSchedule" });
    for (kind, key) in [
        ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
        ("DiskPressure", "node.kubernetes.io/disk-pressure"),
        ("PIDPressure", "node.kubernetes.io/pid-pressure"),
        ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
    ] {
        let steps = with(kind, json!([own]));
        let [Step::SetTaints { taints, .. }] = steps.as_slice() else { panic!("{steps:?}") };
        let told: Vec<_> = taints.iter().map(|t| (t.key.as_str(), t.effect.as_str())).collect();
        assert_eq!(told, [("gpu", "NoSchedule"), (key, "NoSchedule")]);
        assert_eq!(with(kind, json!([own, taint(key)])), [], "it is so already");
        let over = with("", json!([own, taint(key)]));
        let [Step::SetTaints { taints, .. }] = over.as_slice() else { panic!("{over:?}") };
        assert_eq!(taints.len(), 1);
    }
}

#[test]
fn pods_of_a_silent_node_are_evicted_when_their_toleration_is_over() {
    let for_seconds = |seconds: Value| {
        json!({ "spec": { "tolerations": [{
            "key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute",
            "tolerationSeconds": seconds,
        }]}})
    };
    let nodes = [ready("a"), ready("c"), dead("b")];
    for (pod_changes, tainted_secs, evicted) in [
        (json!({}), 1, false),
        (json!({}), 2, true),
        (for_seconds(json!(10)), 9, false),
        (for_seconds(json!(10)), 10, true),
        (for_seconds(json!(0)), 0, true),
        (for_seconds(Value::Null), 10_000, false),
        (json!({ "status": { "phase": "Succeeded" } }), 10_000, false),
    ] {
        let steps = plan_for(&nodes, &[pod("p", "b", &pod_changes)], tainted_secs);
        assert_eq!(!evictions(&steps).is_empty(), evicted, "{pod_changes} {tainted_secs}");
    }
}

#[test]
fn only_pods_that_are_replaced_are_removed_by_force() {
    let terminating = json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } });
    let single = json!({ "metadata": { "ownerReferences": null } });
    let mut single_terminating = single.clone();
    json_patch::merge(&mut single_terminating, &terminating);
    let pods = [
        pod("replica", "b", &json!({})),
        pod("single", "b", &single),
        pod("replica-terminating", "b", &terminating),
        pod("single-terminating", "b", &single_terminating),
    ];
    let steps = plan_for(&[ready("a"), ready("c"), dead("b")], &pods, 60);
    assert_eq!(
        evictions(&steps),
        [("replica", true), ("single", false), ("replica-terminating", true)]
    );
}

#[test]
fn a_leader_that_may_be_cut_off_evicts_nothing() {
    let pods = [pod("p", "b", &json!({}))];
    let minute = Duration::from_secs(60);
    let others_dead = [ready("a"), dead("b"), dead("c")];
    let most_dead = [ready("a"), ready("d"), dead("b"), dead("c"), dead("e")];
    let half_dead = [ready("a"), ready("d"), dead("b"), dead("c")];
    let one_of_two = [ready("a"), dead("b")];
    let alone = [dead("b")];
    for (nodes, listening_for, evicted) in [
        (others_dead.as_slice(), minute, false),
        (&most_dead, minute, false),
        (&half_dead, minute, true),
        (&one_of_two, minute, true),
        (&alone, minute, false),
        (&one_of_two, Duration::from_millis(4_999), false),
        (&one_of_two, Duration::from_secs(5), true),
    ] {
        let steps = plan_after(nodes, &pods, 60, listening_for);
        assert_eq!(!evictions(&steps).is_empty(), evicted, "{} nodes", nodes.len());
    }
}

#[test]
fn what_ran_beside_the_leader_before_is_replaced_as_soon_as_anything_else() {
    let pods = [pod("p", "b", &json!({}))];
    let evicted = |silent_ms: u64| {
        let silent_for = Duration::from_millis(silent_ms);
        let nodes = [ready("a"), Heard { silent_for, ..dead("b") }];
        !evictions(&plan_after(&nodes, &pods, 2, Duration::from_millis(3_500))).is_empty()
    };
    assert!(!evicted(4_999) && evicted(5_000));
}

#[test]
fn a_taint_set_by_a_person_evicts_even_on_a_single_node() {
    let mut tainted = ready("a");
    Arc::make_mut(&mut tainted.node).spec.as_mut().unwrap().taints = Some(vec![
        serde_json::from_value(json!({ "key": "drain", "effect": "NoExecute" })).unwrap(),
    ]);
    let steps = plan_for(&[tainted], &[pod("p", "a", &json!({}))], 0);
    assert_eq!(evictions(&steps), [("p", false)]);
}

#[test]
fn a_node_heard_from_again_keeps_its_pods() {
    let back = Heard { silent_for: Duration::from_millis(100), ..dead("b") };
    let steps = plan_for(&[ready("a"), back], &[pod("p", "b", &json!({}))], 60);
    assert!(steps.is_empty(), "its agent says what it is: {steps:?}");
}

#[test]
fn a_stateful_sets_pod_is_marked_first_and_removed_when_its_node_has_stopped_it() {
    let of = |annotations: Value, is_marked: bool| {
        let marked = is_marked.then_some("2026-01-01T00:00:00Z");
        json!({ "metadata": {
            "annotations": annotations, "deletionTimestamp": marked,
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db",
                "uid": "s", "controller": true }],
        }})
    };
    let off = json!({ "edgeorc.io/fencing": "off" });
    for (pod_changes, silent_for, expected) in [
        (of(Value::Null, false), 20, Some(false)),
        (of(Value::Null, true), 14, None),
        (of(Value::Null, true), 15, Some(true)),
        (of(off.clone(), false), 20, Some(false)),
        (of(off, true), 1_000, None),
    ] {
        let silent = Heard {
            node: node("b", "Unknown", Some(UNREACHABLE)),
            silent_for: Duration::from_secs(silent_for),
        };
        let nodes = [ready("a"), ready("c"), silent];
        let steps = plan_for(&nodes, &[pod("p", "b", &pod_changes)], 20);
        let found = evictions(&steps).first().map(|(_, is_forced)| *is_forced);
        assert_eq!(found, expected, "{pod_changes} {silent_for}");
        // A leader that has just begun to listen does not know how long it was.
        let steps = plan_after(&nodes, &[pod("p", "b", &pod_changes)], 20, Duration::from_secs(14));
        assert!(evictions(&steps).iter().all(|(_, is_forced)| !is_forced), "{pod_changes}");
    }
}

#[test]
fn a_cordoned_node_is_tainted_until_it_is_not() {
    let with = |is_cordoned: bool, taints: Value| {
        let mut value = serde_json::to_value(&*node("b", "True", None)).unwrap();
        value["spec"] = json!({ "unschedulable": is_cordoned, "taints": taints });
        let node = Arc::new(serde_json::from_value(value).unwrap());
        plan_for(&[ready("a"), Heard { node, silent_for: Duration::ZERO }], &[], 0)
    };
    let ours = json!([{ "key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule" }]);
    let steps = with(true, json!([]));
    let [Step::SetTaints { taints, .. }] = steps.as_slice() else { panic!("{steps:?}") };
    assert_eq!(taints[0].key, "node.kubernetes.io/unschedulable");
    assert_eq!(with(true, ours.clone()), []);
    let steps = with(false, ours);
    let [Step::SetTaints { taints, .. }] = steps.as_slice() else { panic!("{steps:?}") };
    assert!(taints.is_empty());
}

#[test]
fn what_ran_on_a_node_that_is_out_of_service_is_removed_by_force() {
    let with = |word: &str, effect: &str| {
        let mut value = serde_json::to_value(&*node("b", word, None)).unwrap();
        value["spec"]["taints"] =
            json!([{ "key": "node.kubernetes.io/out-of-service", "effect": effect }]);
        let node = Arc::new(serde_json::from_value(value).unwrap());
        let silent_for = if word == "True" { Duration::ZERO } else { SILENT };
        let single = json!({ "metadata": { "ownerReferences": null } });
        let mut going = single.clone();
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let mut patient = single.clone();
        patient["spec"]["tolerations"] = json!([{ "operator": "Exists" }]);
        let pods =
            [pod("single", "b", &single), pod("going", "b", &going), pod("patient", "b", &patient)];
        let nodes = [ready("a"), ready("c"), Heard { node, silent_for }];
        let steps = plan_for(&nodes, &pods, 0);
        evictions(&steps)
            .iter()
            .map(|(name, forced)| ((*name).to_owned(), *forced))
            .collect::<Vec<_>>()
    };
    let is = |found: Vec<(String, bool)>, wanted: &[(&str, bool)]| {
        let found: Vec<_> = found.iter().map(|(name, forced)| (name.as_str(), *forced)).collect();
        assert_eq!(found, wanted);
    };
    is(with("Unknown", "NoExecute"), &[("single", true), ("going", true)]);
    is(with("Unknown", "NoSchedule"), &[("going", true)]);
    is(with("True", "NoExecute"), &[("single", false)]);
}

#[test]
fn evictions_are_spread_over_runs() {
    let pods: Vec<_> = (0..80).map(|at| pod(&format!("p{at}"), "b", &json!({}))).collect();
    let steps = plan_for(&[ready("a"), ready("c"), dead("b")], &pods, 60);
    assert_eq!(evictions(&steps).len(), Settings::default().evictions_per_run_max);
}

#[test]
fn the_shortest_of_all_taints_counts_and_a_taint_that_goes_cancels_it() {
    let tolerations = json!({ "spec": { "tolerations": [
        { "key": "gpu", "operator": "Equal", "value": "", "effect": "NoExecute", "tolerationSeconds": 10 },
        { "key": "gpu", "operator": "Exists", "tolerationSeconds": 30 },
        { "key": "hot", "operator": "Exists", "tolerationSeconds": 60 },
    ]}});
    let with = |keys: &[&str], secs: u64| {
        let mut tainted = ready("b");
        let taints = keys.iter().map(|key| json!({ "key": key, "effect": "NoExecute" }));
        let taints = serde_json::from_value(taints.collect()).unwrap();
        Arc::make_mut(&mut tainted.node).spec.as_mut().unwrap().taints = Some(taints);
        let steps = plan_for(&[ready("a"), tainted], &[pod("p", "b", &tolerations)], secs);
        !evictions(&steps).is_empty()
    };
    assert!(!with(&["gpu"], 9) && with(&["gpu"], 10));
    assert!(!with(&["hot"], 59) && with(&["hot"], 60) && with(&["hot", "gpu"], 10));
    assert!(!with(&[], 100));
    assert!(with(&["gpu", "other"], 0), "one of them is not tolerated at all");
}
