//! Constraints between pods: spreading, being near, being apart. Tables, and a model that knows no
//! tricks.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::scheduler::decide::decide;
use crate::scheduler::demand::key_of;
use crate::scheduler::node::Facts;
use crate::scheduler::placer::{Placement, Placer};
use crate::scheduler::testing::{named, node, owned, pod, view};
use crate::scheduler::view::ClusterView;

/// Nodes `a0 a1 b0 b1 c0`, in zones by their first letter.
fn zones() -> ClusterView {
    let nodes = ["a0", "a1", "b0", "b1", "c0"].map(|name| {
        let zone = &name[..1];
        node(name, &json!({ "metadata": { "labels": { "zone": zone, "disk": zone } } }))
    });
    view(&nodes)
}

fn app(name: &str, app: &str, spec: &Value) -> Pod {
    named(&pod(&json!({ "metadata": { "labels": { "app": app } }, "spec": spec })), name)
}

fn selects(app: &str) -> Value {
    json!({ "matchLabels": { "app": app } })
}

fn spread(more: &Value) -> Value {
    let mut constraint = json!({
        "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": selects("web"),
    });
    json_patch::merge(&mut constraint, more);
    json!({ "topologySpreadConstraints": [constraint] })
}

fn required(kind: &str, app: &str, key: &str) -> Value {
    json!({ "affinity": { kind: { "requiredDuringSchedulingIgnoredDuringExecution": [
        { "topologyKey": key, "labelSelector": selects(app) },
    ]}}})
}

fn preferred(kind: &str, app: &str, key: &str) -> Value {
    json!({ "affinity": { kind: { "preferredDuringSchedulingIgnoredDuringExecution": [
        { "weight": 100, "podAffinityTerm": { "topologyKey": key, "labelSelector": selects(app) } },
    ]}}})
}

/// The nodes that take the pod at all, found by cordoning all others: not for pods that leave cordoned
/// nodes out of what they count.
fn fitting(view: &ClusterView, pod: &Pod) -> String {
    let names: Vec<_> = view.nodes().map(|node| node.name.clone()).collect();
    let takes = |name: &&String| {
        let mut only = view.clone();
        for other in names.iter().filter(|other| other != name) {
            let Some(facts) = view.node(other).unwrap().facts.clone() else { continue };
            only.set_node(other, Some(Facts { is_unschedulable: true, ..facts }));
        }
        decide(&only, pod, 0).is_ok()
    };
    let mut found: Vec<_> = names.iter().filter(takes).map(String::as_str).collect();
    found.sort_unstable();
    found.join(" ")
}

/// What it is about, pods that are there (app and node), what the pod asks for, where it can go.
type Case = (&'static str, &'static [(&'static str, &'static str)], Value, &'static str);

#[expect(clippy::too_many_lines, reason = "a table of cases")]
#[test]
fn each_constraint_leaves_the_nodes_it_should() {
    let cases: &[Case] = &[
        ("nothing is there yet", &[], spread(&json!({})), "a0 a1 b0 b1 c0"),
        ("the fullest zone is out", &[("web", "a0")], spread(&json!({})), "b0 b1 c0"),
        ("others do not count", &[("db", "a0")], spread(&json!({})), "a0 a1 b0 b1 c0"),
        (
            "a wider skew",
            &[("web", "a0"), ("web", "a1"), ("web", "b0")],
            spread(&json!({ "maxSkew": 2 })),
            "b0 b1 c0",
        ),
        (
            "each zone has one",
            &[("web", "a0"), ("web", "b0"), ("web", "c0")],
            spread(&json!({})),
            "a0 a1 b0 b1 c0",
        ),
        (
            "soft is soft",
            &[("web", "a0")],
            spread(&json!({ "whenUnsatisfiable": "ScheduleAnyway" })),
            "a0 a1 b0 b1 c0",
        ),
        (
            "zones the pod cannot go to do not count",
            &[("web", "a0"), ("web", "b0")],
            {
                let mut spec = spread(&json!({}));
                spec["affinity"] = json!({ "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
                        { "matchExpressions": [
                            { "key": "disk", "operator": "In", "values": ["a", "b"] }] }]}}});
                spec
            },
            "a0 a1 b0 b1",
        ),
        (
            "but they do if it says so",
            &[("web", "a0"), ("web", "b0")],
            {
                let mut spec = spread(&json!({ "nodeAffinityPolicy": "Ignore" }));
                spec["nodeSelector"] = json!({ "disk": "a" });
                spec
            },
            "",
        ),
        (
            "too few zones",
            &[("web", "a0"), ("web", "b0"), ("web", "c0")],
            spread(&json!({ "minDomains": 4 })),
            "",
        ),
        ("the label is missing", &[], spread(&json!({ "topologyKey": "rack" })), ""),
        ("near", &[("db", "a0")], required("podAffinity", "db", "zone"), "a0 a1"),
        ("near nobody", &[], required("podAffinity", "db", "zone"), ""),
        ("the first of its kind", &[], required("podAffinity", "web", "zone"), "a0 a1 b0 b1 c0"),
        ("apart", &[("db", "a0")], required("podAntiAffinity", "db", "zone"), "b0 b1 c0"),
        (
            "apart by node",
            &[("web", "a0"), ("web", "b1")],
            required("podAntiAffinity", "web", "kubernetes.io/hostname"),
            "a1 b0 c0",
        ),
        (
            "wishes forbid nothing",
            &[("db", "a0")],
            preferred("podAntiAffinity", "db", "zone"),
            "a0 a1 b0 b1 c0",
        ),
    ];
    for (what, there, spec, expected) in cases {
        let mut view = zones();
        for (at, (name, node)) in there.iter().enumerate() {
            view.place(&app(&format!("p{at}"), name, &json!({})), node);
        }
        assert_eq!(fitting(&view, &app("new", "web", spec)), *expected, "{what}");
    }
}

/// Goal: a zone that the pod cannot go to for its taints, or that is cordoned, counts as one without
/// pods, unless the constraint leaves it out and the pod does not tolerate it.
#[test]
fn zones_that_the_pod_cannot_stand_are_left_out_when_it_says_so() {
    let taints = json!({ "taints": [{ "key": "k", "effect": "NoSchedule" }] });
    for closed in [taints, json!({ "unschedulable": true })] {
        let mut view = zones();
        let labels = json!({ "zone": "c", "disk": "c" });
        let changes = json!({ "metadata": { "labels": labels }, "spec": closed });
        view.set_node("c0", Some(Facts::of(&node("c0", &changes))));
        for (name, on) in [("p0", "a0"), ("p1", "b0")] {
            view.place(&app(name, "web", &json!({})), on);
        }
        let plain = spread(&json!({}));
        assert!(decide(&view, &app("new", "web", &plain), 1).is_err(), "{closed}");
        let mut honoring = spread(&json!({ "nodeTaintsPolicy": "Honor" }));
        assert!(decide(&view, &app("new", "web", &honoring), 1).is_ok(), "{closed}");
        honoring["tolerations"] = json!([{ "operator": "Exists" }]);
        assert_eq!(decide(&view, &app("new", "web", &honoring), 1), Ok("c0"), "{closed}");
    }
}

#[test]
fn who_must_be_apart_is_left_alone() {
    let mut view = zones();
    view.place(&app("hermit", "db", &required("podAntiAffinity", "web", "zone")), "b0");
    assert_eq!(fitting(&view, &app("new", "web", &json!({}))), "a0 a1 c0");
    assert_eq!(fitting(&view, &app("new", "other", &json!({}))), "a0 a1 b0 b1 c0");
    view.remove(&("default".into(), "hermit".into()));
    assert_eq!(fitting(&view, &app("new", "web", &json!({}))), "a0 a1 b0 b1 c0");
}

#[test]
fn terms_in_other_namespaces_are_found_by_their_labels() {
    let mut view = zones();
    let mut db = app("db", "db", &json!({}));
    db.metadata.namespace = Some("bank".to_owned());
    view.place(&db, "a0");
    let near = app(
        "new",
        "web",
        &json!({ "affinity": { "podAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [{
            "topologyKey": "zone", "labelSelector": selects("db"),
            "namespaceSelector": { "matchLabels": { "team": "money" } },
        }]}}}),
    );
    assert_eq!(fitting(&view, &near), "");
    let labels = BTreeMap::from([("team".to_owned(), "money".to_owned())]);
    view.set_namespace("bank", Some(labels));
    assert_eq!(fitting(&view, &near), "a0 a1");
    // Known before, and changed after.
    let mut placer = Placer { view };
    assert!(matches!(placer.place(&near, 1), Placement::Placed { .. }));
    placer.view.set_namespace("bank", Some(BTreeMap::new()));
    let mut second = near.clone();
    second.metadata.name = Some("second".to_owned());
    assert_eq!(fitting(&placer.view, &second), "");
}

#[test]
fn ending_pods_do_not_count_for_spreading_but_for_neighbours() {
    let mut view = zones();
    let mut ending = app("old", "web", &json!({}));
    ending.metadata.deletion_timestamp =
        serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    view.place(&ending, "a0");
    assert_eq!(fitting(&view, &app("new", "web", &spread(&json!({})))), "a0 a1 b0 b1 c0");
    let apart = required("podAntiAffinity", "web", "zone");
    assert_eq!(fitting(&view, &app("new", "web", &apart)), "b0 b1 c0");
}

#[test]
fn a_node_that_moves_takes_its_pods_along() {
    let mut view = zones();
    let apart = app("new", "web", &required("podAntiAffinity", "db", "zone"));
    view.place(&app("db", "db", &json!({})), "a0");
    assert_eq!(fitting(&view, &apart), "b0 b1 c0");
    let mut class = view.clone();
    assert!(class.set_node("a0", {
        let mut facts = view.node("a0").unwrap().facts.clone().unwrap();
        facts.labels.insert("zone".to_owned(), "b".to_owned());
        Some(facts)
    }));
    assert_eq!(fitting(&class, &apart), "a1 c0");
    class.set_node("a0", None);
    assert_eq!(fitting(&class, &apart), "a1 b0 b1 c0");
}

#[test]
fn wishes_about_neighbours_decide_between_nodes() {
    let cases = [
        (preferred("podAffinity", "db", "zone"), "b"),
        (preferred("podAntiAffinity", "cache", "zone"), "bc"),
        (
            spread(
                &json!({ "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": selects("cache") }),
            ),
            "bc",
        ),
    ];
    let mut view = zones();
    view.place(&app("db", "db", &json!({})), "b0");
    for at in 0..3 {
        view.place(&app(&format!("c{at}"), "cache", &json!({})), "a0");
    }
    for (spec, zones) in &cases {
        for seed in 0..10 {
            let node = decide(&view, &app("new", "web", spec), seed).unwrap();
            assert!(zones.contains(&node[..1]), "{spec} {node}");
        }
    }
    // A pod's wish holds for those that come after it, too.
    view.place(&app("fan", "fan", &preferred("podAffinity", "star", "zone")), "c0");
    assert_eq!(decide(&view, &app("new", "star", &json!({})), 1).unwrap(), "c0");
    view.place(&app("bound", "bound", &required("podAffinity", "bound", "zone")), "b0");
    for seed in 0..5 {
        let node = decide(&view, &app("new", "bound", &json!({})), seed).unwrap();
        assert_eq!(&node[..1], "b");
    }
}

#[test]
fn images_that_are_there_are_worth_something() {
    let image = |name: &str, kib: i64| json!([{ "names": [name], "sizeBytes": kib << 10 }]);
    let has = json!({ "status": { "images": image("shop/big:latest", 40 << 10) } });
    let small = json!({ "status": { "images": image("small:1", 500) } });
    let view = view(&[node("has", &has), node("small", &small), node("none", &json!({}))]);
    let runs =
        |image: &str| pod(&json!({ "spec": { "containers": [{ "name": "c", "image": image }] } }));
    for seed in 0..10 {
        assert_eq!(decide(&view, &runs("shop/big"), seed).unwrap(), "has");
    }
    let chosen: BTreeSet<_> =
        (0..30).map(|s| decide(&view, &runs("small:1"), s).unwrap()).collect();
    assert_eq!(chosen.len(), 3, "too small to count");
    let first = json!([{ "name": "i", "image": "shop/big" }]);
    let prepared = pod(&json!({ "spec": { "initContainers": first } }));
    for seed in 0..10 {
        assert_eq!(decide(&view, &prepared, seed).unwrap(), "has");
    }
}

#[test]
fn pods_that_pack_fill_a_node_before_the_next() {
    let nodes: Vec<_> = (0..4).map(|at| node(&format!("n{at}"), &json!({}))).collect();
    let wants = json!({ "containers": [{
        "name": "c", "resources": { "requests": { "cpu": "500m", "memory": "512Mi" } } }],
        "schedulerName": "binpack" });
    let mut placer = Placer { view: view(&nodes) };
    for at in 0..16 {
        placer.place(&app(&format!("p{at}"), "web", &wants), at);
    }
    let used = placer.view.nodes().filter(|node| node.used.pods > 0).count();
    assert_eq!(used, 2);
}

/// Goal: who asks to be packed is packed, whoever made the pods and whatever they ask for.
#[test]
fn the_pods_of_a_controller_are_packed_if_they_ask_for_it() {
    for (cpu, memory) in [("500m", "512Mi"), ("500m", "0"), ("0", "512Mi")] {
        let nodes: Vec<_> = (0..4).map(|at| node(&format!("n{at}"), &json!({}))).collect();
        let mut placer = Placer { view: view(&nodes) };
        let mut web = owned("web", cpu, memory);
        web.spec.as_mut().unwrap().scheduler_name = Some("binpack".to_owned());
        for at in 0..16 {
            placer.place(&named(&web, &format!("p{at}")), at);
        }
        let used = placer.view.nodes().filter(|node| node.used.pods > 0).count();
        assert_eq!((placer.view.pods_placed(), used), (16, 2), "{cpu} {memory}");
    }
}

#[test]
fn what_only_some_nodes_have_is_given_once() {
    let lines = json!({ "status": { "allocatable": { "edgeorc.io/gpio": "2" } } });
    let mut placer = Placer { view: view(&[node("pi", &lines), node("pc", &json!({}))]) };
    let wants = json!({ "containers": [{
        "name": "c", "resources": { "limits": { "edgeorc.io/gpio": "1" } } }] });
    for at in 0..2 {
        let placed = placer.place(&app(&format!("p{at}"), "web", &wants), at);
        assert_eq!(placed, Placement::Placed { node: "pi".to_owned() });
    }
    let Placement::Refused(refusal) = placer.place(&app("p2", "web", &wants), 2) else {
        panic!("there are two lines")
    };
    assert_eq!(refusal.reasons, [("Insufficient edgeorc.io/gpio".to_owned(), 2)].into());
    placer.view.remove(&("default".into(), "p0".into()));
    assert!(matches!(placer.place(&app("p2", "web", &wants), 3), Placement::Placed { .. }));
}

#[test]
fn what_was_worked_out_ahead_is_forgotten_when_nodes_change() {
    let mut placer = Placer { view: zones() };
    let wants = json!({ "nodeSelector": { "disk": "c" } });
    let place = |placer: &mut Placer, at: u64| match placer
        .place(&app(&format!("p{at}"), "web", &wants), at)
    {
        Placement::Placed { node } => node,
        other => format!("{other:?}"),
    };
    for at in 0..3 {
        assert_eq!(place(&mut placer, at), "c0");
    }
    let facts =
        |placer: &Placer, name: &str| placer.view.node(name).unwrap().facts.clone().unwrap();
    let mut moved = facts(&placer, "a0");
    moved.labels.insert("disk".to_owned(), "c".to_owned());
    placer.view.set_node("a0", Some(moved));
    let cordoned = Facts { is_unschedulable: true, ..facts(&placer, "c0") };
    placer.view.set_node("c0", Some(cordoned));
    assert_eq!(place(&mut placer, 3), "a0");
    assert_eq!(place(&mut placer, 4), "a0");
    placer.view.set_node("a0", None);
    let refused = place(&mut placer, 5);
    assert!(refused.contains("node(s) were unschedulable"), "{refused}");
}

#[test]
fn a_large_cluster_is_filled_evenly_though_no_choice_sees_all_of_it() {
    let nodes: Vec<_> = (0..200).map(|at| node(&format!("n{at}"), &json!({}))).collect();
    let mut placer = Placer { view: view(&nodes) };
    let wants = json!({ "containers": [{
        "name": "c", "resources": { "requests": { "cpu": "200m" } } }] });
    for at in 0..1000 {
        placer.place(&app(&format!("p{at}"), "web", &wants), at);
    }
    let counts: Vec<_> = placer.view.nodes().map(|node| node.used.pods).collect();
    assert!(counts.iter().all(|count| (4..=6).contains(count)), "{counts:?}");
}

/// What a pod of the model is: its app, and what it asks of neighbours.
#[derive(Debug, Clone)]
struct Kind {
    app: usize,
    cpu: i64,
    apart: Option<(usize, bool)>,
    near: Option<usize>,
    spread: Option<u32>,
}

impl Kind {
    fn pod(&self, at: usize) -> Pod {
        let apps = ["x", "y", "z"];
        let mut spec = json!({ "containers": [{ "name": "c", "resources": {
            "requests": { "cpu": format!("{}m", self.cpu) } } }] });
        let key = |by_zone: bool| if by_zone { "zone" } else { "kubernetes.io/hostname" };
        if let Some((app, by_zone)) = self.apart {
            json_patch::merge(&mut spec, &required("podAntiAffinity", apps[app], key(by_zone)));
        }
        if let Some(app) = self.near {
            json_patch::merge(&mut spec, &required("podAffinity", apps[app], "zone"));
        }
        if let Some(skew) = self.spread {
            let more = json!({ "maxSkew": skew, "labelSelector": selects(apps[self.app]) });
            json_patch::merge(&mut spec, &spread(&more));
        }
        app(&format!("p{at}"), apps[self.app], &spec)
    }
}

fn kind() -> impl Strategy<Value = Kind> {
    (
        0..3_usize,
        0..900_i64,
        prop::option::weighted(0.3, (0..3_usize, any::<bool>())),
        prop::option::weighted(0.2, 0..3_usize),
        prop::option::weighted(0.3, 1..3_u32),
    )
        .prop_map(|(app, cpu, apart, near, spread)| Kind { app, cpu, apart, near, spread })
}

/// Which pods there are, counted one by one.
struct Model {
    zones: BTreeMap<String, String>,
    pods: BTreeMap<usize, (Kind, String)>,
}

impl Model {
    /// Whether the pod may be on the node, by the words of the constraints.
    fn allows(&self, kind: &Kind, node: &str) -> bool {
        let zone = |node: &str| self.zones[node].clone();
        let near = |by_zone: bool, other: &str| {
            if by_zone { zone(other) == zone(node) } else { other == node }
        };
        let of_app = |app: usize| self.pods.values().filter(move |(kind, _)| kind.app == app);
        let cpu: i64 =
            self.pods.values().filter(|(_, at)| at == node).map(|(kind, _)| kind.cpu).sum();
        if kind.cpu > 0 && cpu + kind.cpu > 4000 {
            return false;
        }
        if let Some((app, by_zone)) = kind.apart
            && of_app(app).any(|(_, at)| near(by_zone, at))
        {
            return false;
        }
        let repels = |other: &Kind, at: &str| {
            other.apart.is_some_and(|(app, by_zone)| app == kind.app && near(by_zone, at))
        };
        if self.pods.values().any(|(other, at)| repels(other, at)) {
            return false;
        }
        if let Some(app) = kind.near
            && !of_app(app).any(|(_, at)| near(true, at))
            && (of_app(app).next().is_some() || app != kind.app)
        {
            return false;
        }
        let Some(skew) = kind.spread else { return true };
        let names: BTreeSet<_> = self.zones.values().cloned().collect();
        let count = |name: &String| of_app(kind.app).filter(|(_, at)| zone(at) == *name).count();
        let least = names.iter().map(count).min().unwrap_or(0);
        count(&zone(node)) + 1 - least <= skew as usize
    }
}

proptest! {
    /// Goal: no hard constraint is ever violated, no pod is refused that fits somewhere, and what was
    /// worked out ahead changes no answer. Method: random pods come and go; each choice is compared
    /// with a model that counts pods one by one, and with a view that is made anew.
    #[test]
    fn every_choice_is_allowed_and_every_refusal_is_due(
        kinds in prop::collection::vec(kind(), 1..6),
        steps in prop::collection::vec((0..6_usize, any::<u64>(), prop::option::weighted(0.2, 0..40_usize)), 1..40),
    ) {
        let mut placer = Placer { view: zones() };
        let names: Vec<_> = placer.view.nodes().map(|node| node.name.clone()).collect();
        let zones_of = names.iter().map(|name| (name.clone(), name[..1].to_owned())).collect();
        let mut model = Model { zones: zones_of, pods: BTreeMap::new() };
        for (at, (kind, seed, leaves)) in steps.into_iter().enumerate() {
            let kind = &kinds[kind % kinds.len()];
            let pod = kind.pod(at);
            let mut anew = zones();
            for (at, (kind, node)) in &model.pods {
                anew.place(&kind.pod(*at), node);
            }
            let pure = decide(&anew, &pod, seed).map(str::to_owned);
            prop_assert_eq!(&pure, &decide(&anew, &pod, seed).map(str::to_owned));
            match placer.place(&pod, seed) {
                Placement::Placed { node } => {
                    prop_assert!(model.allows(kind, &node), "{kind:?} on {node}");
                    prop_assert_eq!(pure.as_deref(), Ok(node.as_str()));
                    model.pods.insert(at, (kind.clone(), node));
                }
                other => {
                    let fits: Vec<_> = names.iter().filter(|n| model.allows(kind, n)).collect();
                    prop_assert!(fits.is_empty(), "{kind:?} fits on {fits:?}: {other:?}");
                    prop_assert!(pure.is_err());
                }
            }
            if let Some(leaves) = leaves
                && let Some((kind, _)) = model.pods.remove(&leaves)
            {
                prop_assert!(placer.view.remove(&key_of(&kind.pod(leaves))));
            }
        }
    }
}
