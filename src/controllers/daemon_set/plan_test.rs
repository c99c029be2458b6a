use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::controllers::daemon_set::nodes::{Fitness, fitness, pod_for, target};
use crate::controllers::daemon_set::plan::{Plan, View, Why, Wish, plan};
use crate::controllers::object::{is_deleting, is_ready, selector_of};
use crate::controllers::revisions::{POD_LABEL, Write, stored};

/// The API as far as one daemon set sees it; the test plays kubelet, scheduler and user.
struct World {
    set: DaemonSet,
    nodes: BTreeMap<String, Node>,
    pods: BTreeMap<String, Pod>,
    revisions: BTreeMap<String, ControllerRevision>,
    backing_off: BTreeMap<String, Duration>,
    uids: u32,
}

const NOW: &str = "2026-01-01T01:00:00Z";

fn node(name: &str, changes: &Value) -> Node {
    let mut node = json!({"metadata": {"name": name, "labels": {"os": "wasi"}}});
    json_patch::merge(&mut node, changes);
    serde_json::from_value(node).unwrap()
}

fn set(changes: &Value) -> DaemonSet {
    let mut set = json!({
        "metadata": {"name": "ds", "namespace": "default", "uid": "set", "generation": 1},
        "spec": {
            "selector": {"matchLabels": {"app": "ds"}},
            "updateStrategy": {"type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
            "template": {"metadata": {"labels": {"app": "ds"}},
                "spec": {"containers": [{"name": "a", "image": "v1"}]}},
        },
    });
    json_patch::merge(&mut set, changes);
    serde_json::from_value(set).unwrap()
}

impl World {
    fn new(nodes: &[&str], changes: &Value) -> Self {
        let nodes = nodes.iter().map(|name| ((*name).to_owned(), node(name, &json!({})))).collect();
        let (pods, revisions, backing_off) = Default::default();
        Self { set: set(changes), nodes, pods, revisions, backing_off, uids: 0 }
    }

    fn change(&mut self, changes: &Value) {
        let mut set = serde_json::to_value(&self.set).unwrap();
        json_patch::merge(&mut set, changes);
        self.set = serde_json::from_value(set).unwrap();
    }

    fn image(&mut self, image: &str) {
        let containers = json!([{"name": "a", "image": image}]);
        self.change(&json!({"spec": {"template": {"spec": {"containers": containers}}}}));
    }

    fn plan(&self) -> Plan {
        fn all<K: Clone>(map: &BTreeMap<String, K>) -> Vec<Arc<K>> {
            map.values().cloned().map(Arc::new).collect()
        }
        let selector = selector_of(&self.set.spec.as_ref().unwrap().selector);
        plan(&View {
            set: &self.set,
            selector: selector.as_ref(),
            pods: &all(&self.pods),
            revisions: &all(&self.revisions),
            nodes: &all(&self.nodes),
            backing_off: &self.backing_off,
            now: NOW.parse().unwrap(),
        })
    }

    /// One run of the controller, its writes done, and the pods bound.
    fn run(&mut self) -> Plan {
        let plan = self.plan();
        if let Some(write) = &plan.revision {
            let uid = match write {
                Write::Create(made) => made.name_any(),
                Write::Renumber { of, .. } => of.uid().unwrap(),
            };
            let revision = stored(write, &uid);
            self.revisions.insert(revision.name_any(), revision.as_ref().clone());
        }
        self.set.status = Some(plan.status.clone());
        for (pod, _) in &plan.delete {
            let pod = self.pods.get_mut(&pod.name_any()).unwrap();
            assert!(!is_deleting(&pod.metadata), "{} is deleted twice", pod.name_any());
            pod.metadata.deletion_timestamp = Some(Time(NOW.parse().unwrap()));
        }
        for pod in &plan.create {
            let mut pod = pod.clone();
            self.uids += 1;
            let node = target(&pod).unwrap().to_owned();
            let name = format!("{node}-{:03}", self.uids);
            pod.metadata.uid = Some(name.clone());
            pod.metadata.name = Some(name.clone());
            let born = NOW.parse::<Timestamp>().unwrap().as_second() + i64::from(self.uids);
            pod.metadata.creation_timestamp = Some(Time(Timestamp::from_second(born).unwrap()));
            pod.spec.as_mut().unwrap().node_name = Some(node);
            self.pods.insert(name, pod);
        }
        for revision in &plan.forget {
            self.revisions.remove(&revision.name_any()).unwrap();
        }
        plan
    }

    fn set_status(&mut self, name: &str, phase: &str, is_ready: bool) {
        let ready = if is_ready { "True" } else { "False" };
        let status = json!({"phase": phase, "conditions": [
            {"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        self.pods.get_mut(name).unwrap().status = serde_json::from_value(status).unwrap();
    }

    fn end(&mut self) {
        self.pods.retain(|_, pod| !is_deleting(&pod.metadata));
    }

    /// All pods that are not broken serve.
    fn ready(&mut self) {
        let names: Vec<_> = self.pods.keys().cloned().collect();
        for name in names {
            if self.image_of(&name) != "broken" {
                self.set_status(&name, "Running", true);
            }
        }
    }

    fn settle(&mut self) {
        for _ in 0..100 {
            self.end();
            self.ready();
            let plan = self.run();
            if plan.create.is_empty() && plan.delete.is_empty() {
                self.run();
                return;
            }
        }
        panic!("it never settles");
    }

    fn image_of(&self, name: &str) -> String {
        self.pods[name].spec.as_ref().unwrap().containers[0].image.clone().unwrap()
    }

    /// Node and image of each pod that is not on its way out.
    fn places(&self) -> Vec<(String, String)> {
        let alive = self.pods.iter().filter(|(_, pod)| !is_deleting(&pod.metadata));
        alive.map(|(name, pod)| (target(pod).unwrap().to_owned(), self.image_of(name))).collect()
    }
}

fn born(plan: &Plan) -> Vec<&str> {
    plan.create.iter().map(|pod| target(pod).unwrap()).collect()
}

fn doomed(plan: &Plan) -> Vec<(&str, Why)> {
    plan.delete.iter().map(|(pod, why)| (target(pod).unwrap(), *why)).collect()
}

#[test]
fn a_node_is_judged_by_selectors_affinity_and_taints() {
    let taint =
        |key: &str, effect: &str| json!({"spec": {"taints": [{"key": key, "effect": effect}]}});
    let spec = |spec: Value| set(&json!({"spec": {"template": {"spec": spec}}}));
    let affinity = |operator: &str, values: Value| {
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "os", "operator": operator, "values": values}]}]}}}})
    };
    let (yes, no, stay) = ((true, true), (false, false), (false, true));
    for (spec, node_changes, wanted) in [
        (spec(json!({})), json!({}), yes),
        (spec(json!({"nodeSelector": {"os": "wasi"}})), json!({}), yes),
        (spec(json!({"nodeSelector": {"os": "linux"}})), json!({}), no),
        (spec(affinity("In", json!(["wasi"]))), json!({}), yes),
        (spec(affinity("NotIn", json!(["wasi"]))), json!({}), no),
        (spec(json!({"nodeName": "other"})), json!({}), no),
        (spec(json!({})), taint("mine", "NoSchedule"), stay),
        (spec(json!({})), taint("mine", "NoExecute"), no),
        (spec(json!({})), taint("mine", "PreferNoSchedule"), yes),
        (spec(json!({"tolerations": [{"operator": "Exists"}]})), taint("mine", "NoExecute"), yes),
        (spec(json!({})), json!({"spec": {"unschedulable": true}}), yes),
        (spec(json!({})), taint("node.kubernetes.io/unschedulable", "NoSchedule"), yes),
        (spec(json!({})), taint("node.kubernetes.io/unreachable", "NoExecute"), yes),
        (spec(json!({})), taint("node.kubernetes.io/not-ready", "NoExecute"), yes),
        (spec(json!({})), taint("node.kubernetes.io/not-ready", "NoSchedule"), stay),
        (spec(json!({})), taint("node.kubernetes.io/memory-pressure", "NoSchedule"), yes),
        (spec(json!({})), taint("node.kubernetes.io/disk-pressure", "NoSchedule"), yes),
        (spec(json!({})), taint("node.kubernetes.io/pid-pressure", "NoSchedule"), yes),
        (spec(json!({})), taint("node.kubernetes.io/network-unavailable", "NoSchedule"), stay),
        (
            spec(json!({"hostNetwork": true})),
            taint("node.kubernetes.io/network-unavailable", "NoSchedule"),
            yes,
        ),
    ] {
        let Fitness { should_run, may_stay } = fitness(&spec, &node("n", &node_changes));
        let template = spec.spec.unwrap().template.spec;
        assert_eq!((should_run, may_stay), wanted, "{template:?} on {node_changes}");
    }
}

#[test]
fn a_pod_is_meant_for_its_node_and_stays_on_it() {
    let affinity = json!({"affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "os", "operator": "Exists"}]}]},
            "preferredDuringSchedulingIgnoredDuringExecution": [],
        },
        "podAntiAffinity": {},
    }});
    let pod = pod_for(&set(&json!({"spec": {"template": {"spec": affinity}}})), "n", "hash");
    assert_eq!(pod.metadata.generate_name.as_deref(), Some("ds-"));
    assert_eq!(pod.labels()[POD_LABEL], "hash");
    let spec = serde_json::to_value(pod.spec.as_ref().unwrap()).unwrap();
    let terms =
        "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let wanted = json!([{"matchFields": [
        {"key": "metadata.name", "operator": "In", "values": ["n"]}]}]);
    assert_eq!(spec.pointer(terms), Some(&wanted));
    assert!(spec.pointer("/affinity/podAntiAffinity").is_some());
    let tolerated: Vec<Value> = [
        ("not-ready", "NoExecute"),
        ("unreachable", "NoExecute"),
        ("disk-pressure", "NoSchedule"),
        ("memory-pressure", "NoSchedule"),
        ("pid-pressure", "NoSchedule"),
        ("unschedulable", "NoSchedule"),
    ]
    .iter()
    .map(|(key, effect)| {
        let key = format!("node.kubernetes.io/{key}");
        json!({"key": key, "operator": "Exists", "effect": effect})
    })
    .collect();
    assert_eq!(spec["tolerations"], json!(tolerated));
    assert_eq!(target(&pod), Some("n"));
}

#[test]
fn no_more_than_so_many_pods_are_made_or_deleted_in_one_run() {
    let names: Vec<String> = (0..300).map(|at| format!("n{at}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut world = World::new(&names, &json!({}));
    assert_eq!(world.run().create.len(), 250);
    assert_eq!(world.run().create.len(), 50);
    world.change(&json!({"spec": {"template": {"spec": {"nodeSelector": {"os": "other"}}}}}));
    assert_eq!(world.run().delete.len(), 250);
    assert_eq!(world.run().delete.len(), 50);
}

#[test]
fn each_fit_node_gets_one_pod_and_the_others_lose_theirs() {
    let chosen = json!({"spec": {"template": {"spec": {"nodeSelector": {"disk": "ssd"}}}}});
    let mut world = World::new(&["a", "b", "c"], &chosen);
    assert_eq!(born(&world.run()), Vec::<&str>::new());
    let ssd = json!({"metadata": {"labels": {"disk": "ssd"}}});
    for name in ["a", "b"] {
        world.nodes.insert(name.to_owned(), node(name, &ssd));
    }
    assert_eq!(born(&world.run()), ["a", "b"]);
    assert_eq!(born(&world.run()), Vec::<&str>::new());
    world.ready();
    let status = world.run().status;
    assert_eq!((status.desired_number_scheduled, status.current_number_scheduled), (2, 2));
    assert_eq!((status.number_ready, status.number_available), (2, Some(2)));
    assert_eq!((status.updated_number_scheduled, status.number_unavailable), (Some(2), Some(0)));
    world.nodes.insert("a".to_owned(), node("a", &json!({})));
    let plan = world.run();
    assert_eq!(doomed(&plan), [("a", Why::Surplus)]);
    assert_eq!((plan.status.desired_number_scheduled, plan.status.number_misscheduled), (1, 1));
}

#[test]
fn a_failed_pod_is_replaced_after_its_pause() {
    let mut world = World::new(&["a"], &json!({}));
    world.settle();
    let name = world.pods.keys().next().unwrap().clone();
    world.set_status(&name, "Failed", false);
    world.backing_off.insert("a".to_owned(), Duration::from_secs(4));
    let plan = world.run();
    assert_eq!((doomed(&plan), plan.recheck_after), (vec![], Some(Duration::from_secs(4))));
    world.backing_off.clear();
    assert_eq!(doomed(&world.run()), [("a", Why::Failed)]);
    assert_eq!(born(&world.run()), Vec::<&str>::new(), "the old one is still there");
    world.end();
    assert_eq!(born(&world.run()), ["a"]);
}

#[test]
fn of_two_pods_on_a_node_the_older_stays() {
    let mut world = World::new(&["a"], &json!({}));
    world.settle();
    let mut twin = world.pods.values().next().unwrap().clone();
    twin.metadata.name = Some("zzz".to_owned());
    twin.metadata.creation_timestamp = Some(Time("2027-01-01T00:00:00Z".parse().unwrap()));
    world.pods.insert("zzz".to_owned(), twin);
    let plan = world.run();
    assert_eq!(plan.delete.len(), 1);
    assert_eq!(plan.delete[0].0.name_any(), "zzz");
}

#[test]
fn an_update_takes_one_node_after_the_other() {
    let mut world = World::new(&["a", "b", "c"], &json!({}));
    world.settle();
    world.image("v2");
    assert_eq!(doomed(&world.run()), [("a", Why::Outdated)]);
    let plan = world.run();
    assert_eq!((doomed(&plan), born(&plan)), (vec![], vec![]));
    world.end();
    assert_eq!(born(&world.run()), ["a"]);
    assert_eq!(doomed(&world.run()), [], "the new one does not serve yet");
    world.ready();
    assert_eq!(doomed(&world.run()), [("b", Why::Outdated)]);
    world.settle();
    assert!(world.places().iter().all(|(_, image)| image == "v2"));
    assert_eq!(world.set.status.as_ref().unwrap().updated_number_scheduled, Some(3));
    assert_eq!(world.revisions.len(), 2);
}

#[test]
fn a_broken_update_stops_at_what_may_be_missing_and_going_back_mends_it() {
    let mut world = World::new(&["a", "b", "c"], &json!({}));
    world.settle();
    world.image("broken");
    world.settle();
    let broken: Vec<_> =
        world.places().into_iter().filter(|(_, image)| image == "broken").collect();
    assert_eq!(broken.len(), 1);
    world.image("v1");
    world.settle();
    assert!(world.places().iter().all(|(_, image)| image == "v1"));
    assert_eq!(world.revisions.values().map(|one| one.revision).max(), Some(3));
}

#[test]
fn with_surge_the_new_pod_serves_before_the_old_one_goes() {
    let surge = json!({"spec": {"updateStrategy": {
        "rollingUpdate": {"maxSurge": "34%", "maxUnavailable": 0}}}});
    let mut world = World::new(&["a", "b", "c"], &surge);
    assert_eq!(Wish::of(&world.set, 3).max_surge, 2, "rounded up");
    world.settle();
    world.image("v2");
    let plan = world.run();
    assert_eq!((born(&plan), doomed(&plan)), (vec!["a", "b"], vec![]));
    let plan = world.run();
    assert_eq!((born(&plan), doomed(&plan)), (vec![], vec![]));
    world.ready();
    assert_eq!(doomed(&world.run()), [("a", Why::Outdated), ("b", Why::Outdated)]);
    world.settle();
    assert!(world.places().iter().all(|(_, image)| image == "v2"));
    assert_eq!(world.places().len(), 3);
}

#[test]
fn with_on_delete_a_pod_changes_when_somebody_deletes_it() {
    let by_hand = json!({"spec": {"updateStrategy": {"type": "OnDelete", "rollingUpdate": null}}});
    let mut world = World::new(&["a", "b"], &by_hand);
    world.settle();
    world.image("v2");
    world.settle();
    assert!(world.places().iter().all(|(_, image)| image == "v1"));
    let first = world.pods.keys().next().unwrap().clone();
    world.pods.remove(&first);
    world.settle();
    let places = world.places();
    assert!(
        places.contains(&("a".into(), "v2".into())) && places.contains(&("b".into(), "v1".into()))
    );
}

#[test]
fn a_pod_of_a_node_that_is_gone_is_left_to_the_collector_unless_it_was_never_bound() {
    let mut world = World::new(&["a", "b"], &json!({}));
    world.run();
    let names: Vec<_> = world.pods.keys().cloned().collect();
    world.pods.get_mut(&names[0]).unwrap().spec.as_mut().unwrap().node_name = None;
    world.nodes.clear();
    let plan = world.run();
    assert_eq!(plan.delete.len(), 1);
    assert_eq!(plan.delete[0].0.name_any(), names[0]);
}

#[derive(Debug, Clone)]
enum Happening {
    Ready(usize),
    Unready(usize),
    Fails(usize),
    Ends,
    Image(u8),
    Node(u8, bool),
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    prop::collection::vec(
        prop_oneof![
            5 => (0..8_usize).prop_map(Happening::Ready),
            1 => (0..8_usize).prop_map(Happening::Unready),
            1 => (0..8_usize).prop_map(Happening::Fails),
            4 => Just(Happening::Ends),
            1 => (0..3_u8).prop_map(Happening::Image),
            1 => (0..5_u8, any::<bool>()).prop_map(|(n, is_there)| Happening::Node(n, is_there)),
        ],
        1..80,
    )
}

proptest! {
    /// Goal: whatever happens, no node has two pods of one template or three at all, an update takes
    /// no more pods that serve than it may, and in the end each node has one pod of the present
    /// template. Method: plays users, agents and failures at random.
    #[test]
    fn no_order_of_events_breaks_a_set(
        happenings in happenings(),
        surge in 0..3_i32,
        unavailable in 1..3_i32,
    ) {
        let unavailable = if surge > 0 { 0 } else { unavailable };
        let rolling = json!({"maxSurge": surge, "maxUnavailable": unavailable});
        let changes = json!({"spec": {"updateStrategy": {"rollingUpdate": rolling}}});
        let mut world = World::new(&["0", "1", "2", "3"], &changes);
        for happening in &happenings {
            let serving = |world: &World| -> usize {
                let good = |pod: &&Pod| !is_deleting(&pod.metadata) && is_ready(pod);
                let on: BTreeSet<_> = world
                    .pods
                    .values()
                    .filter(good)
                    .filter_map(target)
                    .filter(|node| world.nodes.contains_key(*node))
                    .collect();
                on.len()
            };
            let before = serving(&world);
            let plan = world.run();
            if plan.delete.iter().all(|(_, why)| *why == Why::Outdated) && serving(&world) < before {
                let allowed = usize::try_from(unavailable).unwrap();
                prop_assert!(serving(&world) + allowed >= world.nodes.len());
            }
            let mut seen = BTreeMap::<String, Vec<String>>::new();
            for (node, image) in world.places() {
                seen.entry(node).or_default().push(image);
            }
            let most = if surge > 0 { 2 } else { 1 };
            prop_assert!(seen.values().all(|images| images.len() <= most), "{:?}", seen);
            let nth = |world: &World, n: usize| {
                let alive = world.pods.iter().filter(|(_, pod)| !is_deleting(&pod.metadata));
                alive.map(|(name, _)| name.clone()).nth(n)
            };
            match happening {
                Happening::Ready(n) => if let Some(name) = nth(&world, *n) {
                    world.set_status(&name, "Running", true);
                },
                Happening::Unready(n) => if let Some(name) = nth(&world, *n) {
                    world.set_status(&name, "Running", false);
                },
                Happening::Fails(n) => if let Some(name) = nth(&world, *n) {
                    world.set_status(&name, "Failed", false);
                },
                Happening::Ends => world.end(),
                Happening::Image(n) => world.image(&format!("v{n}")),
                Happening::Node(n, true) => {
                    world.nodes.insert(n.to_string(), node(&n.to_string(), &json!({})));
                }
                Happening::Node(n, false) => {
                    world.nodes.remove(&n.to_string());
                    world.pods.retain(|_, pod| target(pod) != Some(&n.to_string()));
                }
            }
        }
        world.settle();
        let image = world.set.spec.clone().unwrap().template.spec.unwrap().containers[0].image.clone();
        let wanted: Vec<_> =
            world.nodes.keys().map(|node| (node.clone(), image.clone().unwrap())).collect();
        let mut places = world.places();
        places.sort();
        prop_assert_eq!(places, wanted);
    }
}
