//! What decides between nodes that all take the pod.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::api::node_place::ZONE;
use crate::scheduler::decide::decide;
use crate::scheduler::testing::{named, node, owned, pod, schedule, view};
use crate::scheduler::view::ClusterView;

const HOST: &str = "kubernetes.io/hostname";

/// The nodes that are chosen for some seed: several are equally good.
fn chosen(view: &ClusterView, pod: &Pod) -> String {
    let nodes: BTreeSet<_> = (0..40).map(|seed| decide(view, pod, seed).unwrap()).collect();
    nodes.into_iter().collect::<Vec<_>>().join(" ")
}

/// A pod that takes so much.
fn taking(cpu: &str, memory: &str) -> Pod {
    let requests = json!({ "requests": { "cpu": cpu, "memory": memory } });
    pod(&json!({ "spec": { "containers": [{ "name": "c", "resources": requests }] } }))
}

/// Goal: emptiness and evenness together are two hundred without the larger of the two shares in use.
#[test]
fn evenness_counts_half_of_what_is_between_cpu_and_memory() {
    let cases = [
        ("as empty, and more even", ("2", "2Gi"), ("3", "1Gi"), "a"),
        ("much emptier, and less even", ("1600m", "0"), ("2", "2Gi"), "a"),
        ("a little emptier, and less even", ("1600m", "0"), ("1500m", "1536Mi"), "b"),
    ];
    for (what, on_a, on_b, expected) in cases {
        let mut view = view(&["a", "b"].map(|name| node(name, &json!({}))));
        for (name, (cpu, memory)) in [("a", on_a), ("b", on_b)] {
            view.place(&named(&taking(cpu, memory), &format!("on-{name}")), name);
        }
        assert_eq!(chosen(&view, &pod(&json!({}))), expected, "{what}");
    }
}

/// Something that speaks for one of two nodes, with all the points of its kind.
#[derive(Debug, Clone, Copy)]
enum For {
    /// Weight 3: the other one has a taint of effect `PreferNoSchedule`.
    Taint,
    /// Weight 2: the pod prefers its label.
    Label,
    /// Weight 2: the pod prefers to be near one that is there.
    Neighbour,
    /// Weight 2: those that it wants to be spread with are on the other one.
    Spread,
    /// Weight 1.
    Image,
    /// Weight 1: the other one is full.
    Room,
    /// Half of weight 5: a pod of the same controller is on the other one.
    Replica,
}

/// What a cluster of the nodes `a` and `b` is like, and what a pod asks of it.
struct Scene {
    a: Value,
    b: Value,
    asks: Value,
    pods: Vec<(Pod, &'static str)>,
}

impl Scene {
    fn add(&mut self, what: For, here: &'static str, other: &'static str) {
        let of_app = |app: &str| pod(&json!({ "metadata": { "labels": { "app": app } } }));
        let selects = |app: &str| json!({ "matchLabels": { "app": app } });
        let preferred =
            |wish: Value| json!({ "preferredDuringSchedulingIgnoredDuringExecution": [wish] });
        match what {
            For::Taint => {
                let taint = json!({ "key": "k", "effect": "PreferNoSchedule" });
                self.change(other, &json!({ "spec": { "taints": [taint] } }));
            }
            For::Label => {
                let wanted = json!({ "key": HOST, "operator": "In", "values": [here] });
                let term = json!({ "matchExpressions": [wanted] });
                let affinity = preferred(json!({ "weight": 1, "preference": term }));
                self.ask(&json!({ "spec": { "affinity": { "nodeAffinity": affinity } } }));
            }
            For::Neighbour => {
                let term = json!({ "topologyKey": HOST, "labelSelector": selects("db") });
                let affinity = preferred(json!({ "weight": 1, "podAffinityTerm": term }));
                self.ask(&json!({ "spec": { "affinity": { "podAffinity": affinity } } }));
                self.pods.push((of_app("db"), here));
            }
            For::Spread => {
                let constraint = json!({
                    "maxSkew": 1, "topologyKey": HOST, "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": selects("cache"),
                });
                self.ask(&json!({ "spec": { "topologySpreadConstraints": [constraint] } }));
                self.pods.push((of_app("cache"), other));
            }
            For::Image => {
                // One of two nodes has it: half of its bytes count.
                let image = json!({ "names": ["big:1"], "sizeBytes": 128 << 20 });
                self.change(here, &json!({ "status": { "images": [image] } }));
                let container = json!({ "name": "c", "image": "big:1" });
                self.ask(&json!({ "spec": { "containers": [container] } }));
            }
            For::Room => self.pods.push((taking("4", "4Gi"), other)),
            For::Replica => {
                let replica = owned("web", "0", "0");
                let owners = json!(replica.metadata.owner_references);
                self.ask(&json!({ "metadata": { "ownerReferences": owners } }));
                self.pods.push((replica, other));
            }
        }
    }

    fn change(&mut self, node: &str, changes: &Value) {
        json_patch::merge(if node == "a" { &mut self.a } else { &mut self.b }, changes);
    }

    fn ask(&mut self, more: &Value) {
        json_patch::merge(&mut self.asks, more);
    }

    fn chosen(&self) -> String {
        let mut view = view(&[node("a", &self.a), node("b", &self.b)]);
        for (at, (pod, node)) in self.pods.iter().enumerate() {
            view.place(&named(pod, &format!("there-{at}")), node);
        }
        chosen(&view, &pod(&self.asks))
    }
}

/// Goal: each kind of wish has Kubernetes' weight, and spreading a controller's pods its own. Method:
/// what speaks for two nodes is weighed against each other; where it is equal, both are chosen.
#[test]
fn each_wish_has_its_weight_against_the_others() {
    let cases: &[(&[For], &[For], &str)] = &[
        (&[For::Taint], &[For::Label], "a"),
        (&[For::Taint], &[For::Label, For::Image], "a b"),
        (&[For::Label], &[For::Neighbour], "a b"),
        (&[For::Neighbour], &[For::Spread], "a b"),
        (&[For::Spread], &[For::Image, For::Room], "a b"),
        (&[For::Image], &[For::Room], "a b"),
        (&[For::Replica], &[For::Label], "a"),
        (&[For::Replica], &[For::Taint], "b"),
    ];
    for (for_a, for_b, expected) in cases {
        let mut scene = Scene { a: json!({}), b: json!({}), asks: json!({}), pods: Vec::new() };
        for_a.iter().for_each(|what| scene.add(*what, "a", "b"));
        for_b.iter().for_each(|what| scene.add(*what, "b", "a"));
        assert_eq!(scene.chosen(), *expected, "{for_a:?} against {for_b:?}");
    }
}

#[test]
fn the_pods_of_a_controller_are_spread_over_zones() {
    let in_zone =
        |name: &str| node(name, &json!({ "metadata": { "labels": { ZONE: &name[..1] } } }));
    let nodes = ["a1", "a2", "b1"].map(in_zone);
    for round in 0..20 {
        let mut view = view(&nodes);
        let place = |at: usize| schedule(&mut view, &owned("web", "100m", "64Mi"), at).unwrap();
        let [first, second] = [2 * round, 2 * round + 1].map(place);
        assert_ne!(first[..1], second[..1], "{first} {second}");
    }
}
