//! Preemption: who goes, by Kubernetes' order, and what is said when nobody can.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::scheduler::placer::{Placement, Placer};
use crate::scheduler::preempt::{Budget, Plan};
use crate::scheduler::testing::{named, node, pod, view};

fn of(name: &str, priority: i32, cpu: &str, more: &Value) -> Pod {
    let mut changes = json!({
        "metadata": { "labels": { "app": name } },
        "spec": { "priority": priority, "containers": [{
            "name": "c", "resources": { "requests": { "cpu": cpu } } }] },
    });
    json_patch::merge(&mut changes, more);
    named(&pod(&changes), name)
}

fn started(name: &str, priority: i32, cpu: &str, second: u32) -> Pod {
    let at = format!("2026-01-01T00:00:{second:02}Z");
    of(name, priority, cpu, &json!({ "status": { "startTime": at } }))
}

fn full(pods: &[(&str, Pod)]) -> Placer {
    let names: BTreeSet<_> = pods.iter().map(|(node, _)| *node).collect();
    let nodes: Vec<_> = names.into_iter().map(|name| node(name, &json!({}))).collect();
    let mut placer = Placer { view: view(&nodes) };
    for (node, pod) in pods {
        placer.view.place(pod, node);
    }
    placer
}

fn plan(placer: &mut Placer, pod: &Pod) -> Plan {
    match placer.place(pod, 7) {
        Placement::Preempting(plan) => plan,
        other => panic!("{other:?}"),
    }
}

fn victims(plan: &Plan) -> Vec<&str> {
    plan.victims.iter().map(|victim| victim.key.1.as_str()).collect()
}

/// What it is about, pods by their node, the node chosen, who goes.
type Case = (&'static str, Vec<(&'static str, Pod)>, &'static str, &'static [&'static str]);

#[test]
fn the_least_harm_is_done() {
    let p = |name: &str, priority| of(name, priority, "2", &json!({}));
    let s = |name: &str, second| started(name, 1, "4", second);
    let small = |name: &str| of(name, 1, "1", &json!({}));
    let cases: &[Case] = &[
        (
            "the lowest highest priority",
            vec![("a", p("a1", 5)), ("a", p("a2", 5)), ("b", p("b1", 6)), ("b", p("b2", 3))],
            "a",
            &["a1", "a2"],
        ),
        (
            "the least sum",
            vec![("a", p("a1", 5)), ("a", p("a2", 4)), ("b", p("b1", 5)), ("b", p("b2", 3))],
            "b",
            &["b1", "b2"],
        ),
        (
            "the fewest",
            vec![("a", p("a1", 1)), ("a", p("a2", 1)), ("b", of("b1", 1, "4", &json!({})))],
            "b",
            &["b1"],
        ),
        (
            "the latest",
            vec![("a", s("a1", 10)), ("b", s("b1", 40)), ("c", s("c1", 20))],
            "b",
            &["b1"],
        ),
        (
            "no more than needed",
            vec![("a", of("a1", 1, "2", &json!({}))), ("a", small("a2")), ("a", small("a3"))],
            "a",
            &["a1", "a2", "a3"],
        ),
    ];
    for (what, pods, node, expected) in cases {
        let mut placer = full(pods);
        let plan = plan(&mut placer, &of("new", 100, "4", &json!({})));
        assert_eq!((plan.node.as_str(), &victims(&plan)[..]), (*node, *expected), "{what}");
    }
}

#[test]
fn the_important_stay_where_the_others_are_enough() {
    let mut placer = full(&[
        ("a", of("vital", 50, "1", &json!({}))),
        ("a", of("useful", 10, "1", &json!({}))),
        ("a", of("idle", 1, "1", &json!({}))),
        ("a", of("spare", 0, "1", &json!({}))),
    ]);
    let plan = plan(&mut placer, &of("new", 100, "2", &json!({})));
    assert_eq!(victims(&plan), ["idle", "spare"]);
}

#[test]
fn a_budget_is_kept_where_that_is_possible() {
    let pods = [("a", of("a1", 1, "4", &json!({}))), ("b", of("b1", 5, "4", &json!({})))];
    let mut placer = full(&pods);
    let budget = json!({
        "metadata": { "name": "b", "namespace": "default" },
        "spec": { "selector": { "matchLabels": { "app": "a1" } } },
        "status": { "disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1,
            "expectedPods": 1 },
    });
    let budget = Budget::of(&serde_json::from_value(budget).unwrap()).unwrap();
    placer.view.set_budgets(vec![budget.clone()]);
    let new = of("new", 100, "4", &json!({}));
    assert_eq!(plan(&mut placer, &new).node, "b");
    placer.view.set_budgets(vec![Budget { allowed: 1, ..budget }]);
    assert_eq!(plan(&mut placer, &new).node, "a");
}

/// Goal: a pod that the eviction API let go is not taken from the budget twice, neither by itself nor
/// beside another one.
#[test]
fn who_was_let_go_is_not_taken_from_the_budget_again() {
    let web = json!({ "metadata": { "labels": { "app": "web" } } });
    for (allowed, pods) in [(0, &["a1"][..]), (1, &["a1", "a2"])] {
        let cpu = (4 / pods.len()).to_string();
        let mut there: Vec<_> = pods.iter().map(|name| ("a", of(name, 1, &cpu, &web))).collect();
        there.push(("b", of("b1", 5, "4", &json!({}))));
        let mut placer = full(&there);
        let budget = json!({
            "metadata": { "name": "b", "namespace": "default" },
            "spec": { "selector": { "matchLabels": { "app": "web" } } },
            "status": { "disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 1,
                "expectedPods": 1, "disruptedPods": { "a1": "2026-01-01T00:00:00Z" } },
        });
        let budget = Budget::of(&serde_json::from_value(budget).unwrap()).unwrap();
        placer.view.set_budgets(vec![budget]);
        let plan = plan(&mut placer, &of("new", 100, "4", &json!({})));
        assert_eq!((plan.node.as_str(), &victims(&plan)[..]), ("a", pods));
    }
}

#[test]
fn who_is_in_the_way_goes_and_nobody_else() {
    let apart = json!({ "spec": { "affinity": { "podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [{
            "topologyKey": "kubernetes.io/hostname",
            "labelSelector": { "matchLabels": { "app": "foe" } } }]}}}});
    let mut placer =
        full(&[("a", of("foe", 1, "1", &json!({}))), ("a", of("friend", 1, "1", &json!({})))]);
    let plan = plan(&mut placer, &of("new", 100, "1", &apart));
    assert_eq!(victims(&plan), ["foe"]);
}

#[test]
fn what_is_said_when_nobody_can_go() {
    let text = |placer: &mut Placer, pod: &Pod| match placer.place(pod, 3) {
        Placement::Refused(refusal) => refusal.to_string(),
        other => panic!("{other:?}"),
    };
    let mut placer = full(&[("a", of("a1", 100, "4", &json!({})))]);
    let tainted =
        json!({ "spec": { "taints": [{ "key": "k", "value": "v", "effect": "NoSchedule" }] } });
    let facts = crate::scheduler::node::Facts::of(&node("t", &tainted));
    placer.view.set_node("t", Some(facts));
    assert_eq!(
        text(&mut placer, &of("new", 100, "1", &json!({}))),
        "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {k: v}. \
         preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, \
         1 Preemption is not helpful for scheduling."
    );
    assert!(text(&mut placer, &of("new", 200, "5", &json!({}))).ends_with(
        "preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
    ));
    let never = json!({ "spec": { "preemptionPolicy": "Never" } });
    assert!(
        text(&mut placer, &of("new", 200, "4", &never))
            .ends_with("preemption: not eligible due to preemptionPolicy=Never.")
    );
    placer.view.nominate(&of("new", 200, "4", &json!({})), "a");
    placer.view.set_ending(&("default".into(), "a1".into()));
    assert!(
        text(&mut placer, &of("new", 200, "4", &json!({})))
            .ends_with("preemption: not eligible due to terminating pod on the nominated node.")
    );
}

#[test]
fn the_place_is_kept_for_the_pod_that_others_left_for() {
    let mut placer = full(&[("a", of("a1", 1, "4", &json!({})))]);
    let new = of("new", 100, "4", &json!({}));
    let plan = plan(&mut placer, &new);
    placer.view.nominate(&new, &plan.node);
    placer.view.remove(&plan.victims[0].key);
    let rival = of("rival", 50, "1", &json!({}));
    assert!(matches!(placer.place(&rival, 1), Placement::Refused(_)), "the place is taken");
    let higher = of("higher", 200, "4", &json!({}));
    let mut other = Placer { view: placer.view.clone() };
    assert_eq!(other.place(&higher, 1), Placement::Placed { node: "a".to_owned() });
    assert_eq!(placer.place(&new, 1), Placement::Placed { node: "a".to_owned() });
    assert!(!placer.view.denominate(&("default".into(), "new".into())));
}

/// Goal: whoever is lower in rank does not sit down beside a pod that is to come and wants none beside
/// it, or where it would be one too many.
#[test]
fn a_pod_that_is_to_come_has_neighbours_already() {
    let host = "kubernetes.io/hostname";
    let apart = |of: &str| {
        json!({ "affinity": { "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [
            { "topologyKey": host, "labelSelector": { "matchLabels": { "app": of } } }] } } })
    };
    let spread = json!({ "topologySpreadConstraints": [
        { "maxSkew": 1, "topologyKey": host, "whenUnsatisfiable": "DoNotSchedule",
          "labelSelector": { "matchLabels": { "kind": "web" } } }] });
    let web = json!({ "metadata": { "labels": { "kind": "web" } } });
    for (awaited, rival, refused) in [
        (apart("rival"), json!({}), true),
        (json!({}), apart("new"), true),
        (apart("other"), apart("other"), false),
        (json!({}), spread, true),
    ] {
        let mut awaited = json!({ "spec": awaited });
        let mut rival = json!({ "spec": rival });
        json_patch::merge(&mut awaited, &web);
        json_patch::merge(&mut rival, &web);
        // One web pod on each of two nodes: a second one, with the one to come, is a skew of two.
        let mut placer = full(&[("a", of("a1", 1, "1m", &web)), ("b", of("b1", 1, "4", &web))]);
        placer.view.nominate(&of("new", 100, "1m", &awaited), "a");
        let rival_pod = of("rival", 50, "1m", &rival);
        let placed = placer.place(&rival_pod, 1);
        assert_eq!(matches!(placed, Placement::Placed { .. }), !refused, "{rival}: {placed:?}");
        let mut above = rival_pod.clone();
        above.spec.as_mut().unwrap().priority = Some(200);
        let placed = placer.place(&above, 1);
        assert!(matches!(placed, Placement::Placed { .. }), "{rival}: {placed:?}");
    }
}

proptest! {
    /// Goal: preemption helps, takes only pods of lower priority, and none in vain. Method: random
    /// full nodes; the victims go, the pod is placed there; with any one of them back it is not.
    #[test]
    fn after_its_victims_the_pod_fits_and_with_one_of_them_it_does_not(
        pods in prop::collection::vec((0..3_usize, 0..10_i32, 1..20_i64, 0..60_u32), 1..30),
        wanted in (1..40_i64, 0..12_i32),
        seed in any::<u64>(),
    ) {
        let nodes: Vec<_> = (0..3).map(|at| node(&format!("n{at}"), &json!({}))).collect();
        let mut placer = Placer { view: view(&nodes) };
        for (at, (place, priority, cpu, second)) in pods.iter().enumerate() {
            let pod = started(&format!("p{at}"), *priority, &format!("{}m", cpu * 100), *second);
            let name = format!("n{place}");
            if placer.view.node(&name).unwrap().used.cpu_millis + cpu * 100 <= 4000 {
                placer.view.place(&pod, &name);
            }
        }
        let (cpu, priority) = wanted;
        let new = of("new", priority, &format!("{}m", cpu * 100), &json!({}));
        let before = Placer { view: placer.view.clone() };
        if let Placement::Preempting(plan) = placer.place(&new, seed) {
            prop_assert!(!plan.victims.is_empty());
            for victim in &plan.victims {
                let at: usize = victim.key.1[1..].parse().unwrap();
                prop_assert!(pods[at].1 < priority, "{victim:?}");
                prop_assert_eq!(format!("n{}", pods[at].0), plan.node.clone());
            }
            let node = || node_selector(&new, &plan.node);
            let mut after = Placer { view: before.view.clone() };
            plan.victims.iter().for_each(|victim| assert!(after.view.remove(&victim.key)));
            let placed = after.place(&node(), seed);
            prop_assert_eq!(placed, Placement::Placed { node: plan.node.clone() });
            for kept in &plan.victims {
                let mut almost = Placer { view: before.view.clone() };
                let others = plan.victims.iter().filter(|victim| *victim != kept);
                others.for_each(|victim| assert!(almost.view.remove(&victim.key)));
                let placed = almost.place(&node(), seed);
                prop_assert!(!matches!(placed, Placement::Placed { .. }), "{kept:?} in vain");
            }
        }
    }
}

/// The pod, for that node alone.
fn node_selector(pod: &Pod, node: &str) -> Pod {
    let mut pod = pod.clone();
    let label = [("kubernetes.io/hostname".to_owned(), node.to_owned())];
    pod.spec.as_mut().unwrap().node_selector = Some(label.into());
    pod
}
