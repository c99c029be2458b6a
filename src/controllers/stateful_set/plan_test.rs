use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::controllers::object::{is_deleting, selector_of};
use crate::controllers::revisions::{POD_LABEL, Write, stored};
use crate::controllers::stateful_set::plan::{Plan, View, Why, plan};

/// The API as far as one stateful set sees it; the test plays kubelet, scheduler and user.
struct World {
    set: StatefulSet,
    pods: BTreeMap<String, Pod>,
    revisions: BTreeMap<String, ControllerRevision>,
    claims: BTreeMap<String, PersistentVolumeClaim>,
    now: i64,
    uids: u32,
}

fn set(changes: &Value) -> StatefulSet {
    let mut set = json!({
        "metadata": { "name": "db", "namespace": "default", "uid": "set", "generation": 1 },
        "spec": {
            "replicas": 3, "serviceName": "db", "podManagementPolicy": "OrderedReady",
            "selector": { "matchLabels": { "app": "db" } },
            "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "partition": 0 } },
            "template": {
                "metadata": { "labels": { "app": "db" } },
                "spec": { "containers": [{ "name": "db", "image": "v1" }] },
            },
        },
    });
    json_patch::merge(&mut set, changes);
    serde_json::from_value(set).unwrap()
}

impl World {
    fn new(changes: &Value) -> Self {
        let (pods, revisions, claims) = Default::default();
        Self { set: set(changes), pods, revisions, claims, now: 1_000, uids: 0 }
    }

    fn uid(&mut self) -> String {
        self.uids += 1;
        format!("uid-{}", self.uids)
    }

    fn change(&mut self, changes: &Value) {
        let mut set = serde_json::to_value(&self.set).unwrap();
        json_patch::merge(&mut set, changes);
        self.set = serde_json::from_value(set).unwrap();
        self.set.metadata.generation = self.set.metadata.generation.map(|n| n + 1);
    }

    fn image(&mut self, image: &str) {
        let containers = json!([{ "name": "db", "image": image }]);
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
            claims: &all(&self.claims),
            now: Timestamp::from_second(self.now).unwrap(),
        })
    }

    /// One run of the controller, its writes done.
    fn run(&mut self) -> Plan {
        let plan = self.plan();
        if let Some(write) = &plan.revision {
            let uid = match write {
                Write::Create(_) => self.uid(),
                Write::Renumber { of, .. } => of.uid().unwrap(),
            };
            let revision = stored(write, &uid);
            self.revisions.insert(revision.name_any(), revision.as_ref().clone());
        }
        self.set.status = Some(plan.status.clone());
        for (claim, owners) in &plan.own_claims {
            let claim = self.claims.get_mut(&claim.name_any()).unwrap();
            claim.metadata.owner_references = Some(owners.clone());
        }
        let births = plan.create.iter().flat_map(|birth| &birth.claims);
        for claim in births.chain(&plan.claims) {
            self.claims.insert(claim.name_any(), claim.clone());
        }
        for birth in &plan.create {
            let mut pod = birth.pod.clone();
            pod.metadata.uid = Some(self.uid());
            pod.status = serde_json::from_value(json!({"phase": "Pending"})).unwrap();
            let had = self.pods.insert(pod.name_any(), pod);
            assert!(had.is_none(), "an ordinal has two pods");
        }
        for (pod, _) in &plan.delete {
            let pod = self.pods.get_mut(&pod.name_any()).unwrap();
            assert!(!is_deleting(&pod.metadata), "{} is deleted twice", pod.name_any());
            pod.metadata.deletion_timestamp = Some(Time(Timestamp::from_second(self.now).unwrap()));
        }
        for revision in &plan.forget {
            self.revisions.remove(&revision.name_any()).unwrap();
        }
        plan
    }

    fn set_status(&mut self, name: &str, phase: &str, is_ready: bool) {
        let since = Timestamp::from_second(self.now).unwrap().to_string();
        let ready = if is_ready { "True" } else { "False" };
        let status = json!({"phase": phase, "conditions": [
            {"type": "Ready", "status": ready, "lastTransitionTime": since}]});
        self.pods.get_mut(name).unwrap().status = serde_json::from_value(status).unwrap();
    }

    fn ready(&mut self, name: &str) {
        self.set_status(name, "Running", true);
    }

    /// Agents end what is deleted.
    fn end(&mut self) {
        self.pods.retain(|_, pod| !is_deleting(&pod.metadata));
    }

    /// Runs until nothing happens any more, with agents that do what they are told.
    fn settle(&mut self) {
        for _ in 0..200 {
            self.end();
            let waiting: Vec<_> = self.pods.keys().cloned().collect();
            for name in waiting {
                let image = self.image_of(&name);
                let phase = self.pods[&name].status.clone().and_then(|s| s.phase);
                if image != "broken" && phase.as_deref() == Some("Pending") {
                    self.ready(&name);
                }
            }
            let plan = self.run();
            if plan.create.is_empty() && plan.delete.is_empty() && plan.revision.is_none() {
                self.run();
                return;
            }
        }
        panic!("it never settles: {:?}", self.images());
    }

    fn image_of(&self, name: &str) -> String {
        self.pods[name].spec.as_ref().unwrap().containers[0].image.clone().unwrap()
    }

    fn images(&self) -> Vec<(&str, String)> {
        self.pods.keys().map(|name| (name.as_str(), self.image_of(name))).collect()
    }

    fn is(&self, wanted: &[(&str, &str)]) {
        let images = self.images();
        let images: Vec<_> = images.iter().map(|(name, image)| (*name, image.as_str())).collect();
        assert_eq!(images, wanted);
    }
}

fn born(plan: &Plan) -> Vec<String> {
    plan.create.iter().map(|birth| birth.pod.name_any()).collect()
}

fn doomed(plan: &Plan) -> Vec<(String, Why)> {
    plan.delete.iter().map(|(pod, why)| (pod.name_any(), *why)).collect()
}

const PARALLEL: &str = "Parallel";

#[test]
fn pods_come_one_after_the_other_each_when_those_before_it_serve() {
    let mut world = World::new(&json!({}));
    assert_eq!(born(&world.run()), ["db-0"]);
    assert_eq!(born(&world.run()), Vec::<String>::new());
    world.ready("db-0");
    assert_eq!(born(&world.run()), ["db-1"]);
    world.ready("db-1");
    world.set_status("db-0", "Running", false);
    assert_eq!(born(&world.run()), Vec::<String>::new(), "db-0 does not serve");
    world.ready("db-0");
    assert_eq!(born(&world.run()), ["db-2"]);
    world.ready("db-2");
    let status = world.run().status;
    assert_eq!(
        (status.replicas, status.ready_replicas, status.available_replicas),
        (3, Some(3), Some(3))
    );
    assert_eq!((status.current_replicas, status.updated_replicas), (Some(3), Some(3)));
    assert_eq!(status.current_revision, status.update_revision);
    assert_eq!(status.observed_generation, Some(1));
}

#[test]
fn a_pod_says_who_it_is() {
    let mut world = World::new(
        &json!({"spec": {"ordinals": {"start": 5}, "volumeClaimTemplates": [
        {"metadata": {"name": "data", "labels": {"l": "m"}}, "spec": {"accessModes": ["ReadWriteOnce"]}}],
        "template": {"spec": {"volumes": [{"name": "data", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]}}}}),
    );
    let plan = world.run();
    let birth = &plan.create[0];
    let labels = birth.pod.labels();
    assert_eq!(birth.pod.name_any(), "db-5");
    for (key, value) in [
        ("app", "db"),
        ("statefulset.kubernetes.io/pod-name", "db-5"),
        ("apps.kubernetes.io/pod-index", "5"),
        (POD_LABEL, plan.status.update_revision.as_deref().unwrap()),
    ] {
        assert_eq!(labels[key], value, "{key}");
    }
    let spec = birth.pod.spec.as_ref().unwrap();
    assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("db-5"), Some("db")));
    let volumes = spec.volumes.as_ref().unwrap();
    let names: Vec<_> = volumes.iter().map(|volume| volume.name.as_str()).collect();
    assert_eq!(names, ["data", "tmp"]);
    assert_eq!(volumes[0].persistent_volume_claim.as_ref().unwrap().claim_name, "data-db-5");
    let claim = &birth.claims[0];
    assert_eq!(claim.name_any(), "data-db-5");
    assert_eq!(claim.labels().len(), 2, "its own and those that are selected: {claim:?}");
    assert_eq!(claim.metadata.owner_references, None);
}

#[test]
fn a_parallel_set_waits_for_nothing() {
    let mut world = World::new(&json!({"spec": {"podManagementPolicy": PARALLEL}}));
    assert_eq!(born(&world.run()), ["db-0", "db-1", "db-2"]);
    world.change(&json!({"spec": {"replicas": 1}}));
    let down = [("db-2".to_owned(), Why::ScaledDown), ("db-1".to_owned(), Why::ScaledDown)];
    assert_eq!(doomed(&world.run()), down);
}

#[test]
fn scaling_down_takes_the_highest_and_waits_until_it_is_gone() {
    let mut world = World::new(&json!({}));
    world.settle();
    world.change(&json!({"spec": {"replicas": 1}}));
    world.set_status("db-0", "Running", false);
    assert_eq!(doomed(&world.run()), [], "a pod before them does not serve");
    world.ready("db-0");
    assert_eq!(doomed(&world.run()), [("db-2".to_owned(), Why::ScaledDown)]);
    assert_eq!(doomed(&world.run()), [], "it is still there");
    world.end();
    world.set_status("db-1", "Running", false);
    assert_eq!(doomed(&world.run()), [("db-1".to_owned(), Why::ScaledDown)]);
    world.end();
    assert_eq!(doomed(&world.run()), []);
    world.is(&[("db-0", "v1")]);
}

#[test]
fn a_pod_that_ended_is_replaced_once_the_old_one_is_gone() {
    for policy in ["OrderedReady", PARALLEL] {
        for (phase, why) in [("Failed", Why::Failed), ("Succeeded", Why::Succeeded)] {
            let mut world = World::new(&json!({"spec": {"podManagementPolicy": policy}}));
            world.settle();
            world.set_status("db-1", phase, false);
            assert_eq!(doomed(&world.run()), [("db-1".to_owned(), why)]);
            let plan = world.run();
            assert_eq!((born(&plan), doomed(&plan)), (vec![], vec![]), "the API still holds it");
            world.end();
            assert_eq!(born(&world.run()), ["db-1"]);
        }
    }
}

#[test]
fn a_new_template_comes_from_the_highest_to_the_lowest() {
    let mut world = World::new(&json!({}));
    world.settle();
    let first = world.set.status.clone().unwrap();
    world.image("v2");
    for (name, left) in [("db-2", 2), ("db-1", 1), ("db-0", 0)] {
        let plan = world.run();
        assert_eq!(doomed(&plan), [(name.to_owned(), Why::Outdated)]);
        assert_eq!(plan.status.current_revision, first.current_revision);
        assert_ne!(plan.status.update_revision, first.update_revision);
        assert_eq!(plan.status.current_replicas, Some(left + 1));
        world.end();
        assert_eq!(born(&world.run()), [name]);
        assert_eq!(doomed(&world.run()), [], "{name} does not serve yet");
        world.ready(name);
    }
    let status = world.run().status;
    assert_eq!(status.current_revision, status.update_revision);
    assert_eq!((status.current_replicas, status.updated_replicas), (Some(3), Some(3)));
    assert_ne!(status.current_revision, first.current_revision);
}

#[test]
fn pods_below_the_partition_keep_the_old_template_even_when_they_come_back() {
    let partition =
        |n: i32| json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": n}}}});
    let mut world = World::new(&partition(2));
    world.settle();
    world.image("v2");
    world.settle();
    world.is(&[("db-0", "v1"), ("db-1", "v1"), ("db-2", "v2")]);
    let status = world.set.status.clone().unwrap();
    assert_ne!(status.current_revision, status.update_revision);
    assert_eq!((status.current_replicas, status.updated_replicas), (Some(2), Some(1)));
    world.set_status("db-0", "Failed", false);
    world.set_status("db-2", "Failed", false);
    world.settle();
    world.is(&[("db-0", "v1"), ("db-1", "v1"), ("db-2", "v2")]);
    world.change(&partition(0));
    world.settle();
    world.is(&[("db-0", "v2"), ("db-1", "v2"), ("db-2", "v2")]);
}

#[test]
fn with_on_delete_a_pod_changes_when_somebody_deletes_it() {
    let mut world = World::new(
        &json!({"spec": {"updateStrategy": {"type": "OnDelete", "rollingUpdate": null}}}),
    );
    world.settle();
    world.image("v2");
    world.settle();
    world.is(&[("db-0", "v1"), ("db-1", "v1"), ("db-2", "v1")]);
    world.pods.remove("db-1");
    world.settle();
    world.is(&[("db-0", "v1"), ("db-1", "v2"), ("db-2", "v1")]);
}

#[test]
fn several_at_once_may_be_missing_when_the_set_says_so() {
    let rolling = json!({"partition": 0, "maxUnavailable": "40%"});
    let mut world =
        World::new(&json!({"spec": {"replicas": 5, "updateStrategy": {"rollingUpdate": rolling}}}));
    world.settle();
    world.image("v2");
    let two = [("db-4".to_owned(), Why::Outdated), ("db-3".to_owned(), Why::Outdated)];
    assert_eq!(doomed(&world.run()), two);
    world.settle();
    assert!(world.images().iter().all(|(_, image)| image == "v2"));
}

#[test]
fn a_rollout_that_breaks_waits_and_one_that_is_given_up_is_cleared_away() {
    for back_to in ["v1", "v3"] {
        let mut world = World::new(&json!({}));
        world.settle();
        world.image("broken");
        world.settle();
        world.is(&[("db-0", "v1"), ("db-1", "v1"), ("db-2", "broken")]);
        assert_eq!(doomed(&world.run()), [], "it waits for ever, as in Kubernetes");
        world.image(back_to);
        assert_eq!(doomed(&world.run()), [("db-2".to_owned(), Why::Abandoned)]);
        world.settle();
        world.is(&[("db-0", back_to), ("db-1", back_to), ("db-2", back_to)]);
    }
}

#[test]
fn going_back_takes_up_the_old_revision_with_a_higher_number_and_only_so_many_are_kept() {
    let mut world = World::new(&json!({"spec": {"revisionHistoryLimit": 2, "replicas": 1}}));
    world.settle();
    let first = world.set.status.clone().unwrap().update_revision.unwrap();
    world.image("v2");
    world.settle();
    world.image("v1");
    world.settle();
    assert_eq!(world.set.status.clone().unwrap().update_revision.as_ref(), Some(&first));
    assert_eq!(world.revisions[&first].revision, 3);
    assert_eq!(world.revisions.len(), 2);
    for image in ["v3", "v4", "v5", "v6"] {
        world.image(image);
        world.settle();
    }
    let mut numbers: Vec<_> = world.revisions.values().map(|one| one.revision).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [5, 6, 7], "the present one and two before it");
}

#[test]
fn a_pod_serves_only_when_it_was_ready_for_long_enough() {
    let mut world = World::new(&json!({"spec": {"minReadySeconds": 10}}));
    world.run();
    world.ready("db-0");
    let plan = world.run();
    assert_eq!(born(&plan), Vec::<String>::new());
    assert_eq!(plan.recheck_after, Some(std::time::Duration::from_secs(10)));
    assert_eq!((plan.status.ready_replicas, plan.status.available_replicas), (Some(1), Some(0)));
    world.now += 10;
    assert_eq!(born(&world.run()), ["db-1"]);
}

fn with_claims(deleted: &str, scaled: &str) -> World {
    World::new(&json!({"spec": {
        "replicas": 2,
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}],
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": deleted, "whenScaled": scaled},
    }}))
}

#[test]
fn claims_go_with_the_set_or_with_the_pod_as_the_policy_says() {
    for (deleted, scaled, kept, condemned) in [
        ("Retain", "Retain", None, None),
        ("Delete", "Retain", Some("StatefulSet"), Some("StatefulSet")),
        ("Retain", "Delete", None, Some("Pod")),
        ("Delete", "Delete", Some("StatefulSet"), Some("Pod")),
    ] {
        let mut world = with_claims(deleted, scaled);
        world.settle();
        world.change(&json!({"spec": {"replicas": 1}}));
        let plan = world.run();
        assert_eq!(doomed(&plan), [("db-1".to_owned(), Why::ScaledDown)]);
        let owner = |name: &str| {
            let owners = world.claims[name].metadata.owner_references.clone().unwrap_or_default();
            owners.first().map(|owner| owner.kind.clone())
        };
        assert_eq!(owner("data-db-0").as_deref(), kept, "{deleted} {scaled}");
        assert_eq!(owner("data-db-1").as_deref(), condemned, "{deleted} {scaled}");
        // Somebody changes their mind before the pod is gone: the claim stays.
        world.change(&json!({"spec": {"replicas": 2}}));
        world.run();
        let owners = world.claims["data-db-1"].metadata.owner_references.clone();
        assert_eq!(owners.unwrap_or_default().first().map(|o| o.kind.as_str()), kept);
    }
}

#[test]
fn a_pod_waits_for_the_claim_of_its_forerunner_to_be_gone_and_takes_up_one_that_stays() {
    let mut world = with_claims("Retain", "Delete");
    world.settle();
    world.change(&json!({"spec": {"replicas": 1}}));
    world.run();
    world.end();
    world.change(&json!({"spec": {"replicas": 2}}));
    assert_eq!(born(&world.run()), Vec::<String>::new(), "its claim is about to be collected");
    world.claims.remove("data-db-1");
    let plan = world.run();
    assert_eq!((born(&plan), plan.create[0].claims.len()), (vec!["db-1".to_owned()], 1));
    let mut world = with_claims("Retain", "Retain");
    world.settle();
    world.pods.remove("db-1");
    let plan = world.run();
    assert_eq!((born(&plan), plan.create[0].claims.len()), (vec!["db-1".to_owned()], 0));
    world.claims.remove("data-db-1");
    assert_eq!(world.run().claims.len(), 1, "a pod that waits gets its claim back");
}

#[test]
fn orphans_come_in_first_and_strangers_of_the_same_labels_do_not() {
    let mut world = World::new(&json!({}));
    world.settle();
    world.pods.get_mut("db-1").unwrap().metadata.owner_references = None;
    let mut stranger = world.pods["db-1"].clone();
    stranger.metadata.name = Some("db-x".to_owned());
    world.pods.insert("db-x".to_owned(), stranger);
    let plan = world.plan();
    let adopted: Vec<_> = plan.pods.adopt.iter().map(|pod| pod.name_any()).collect();
    assert_eq!(adopted, ["db-1"]);
    assert!(plan.create.is_empty() && plan.delete.is_empty());
}

#[test]
fn a_set_that_is_deleted_does_nothing_more() {
    let mut world = World::new(&json!({}));
    world.run();
    world.ready("db-0");
    world.set.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    let plan = world.plan();
    assert!(plan.create.is_empty() && plan.delete.is_empty() && plan.revision.is_none());
}

/// What users, agents and time do between two runs.
#[derive(Debug, Clone)]
enum Happening {
    Ready(usize),
    Unready(usize),
    Fails(usize),
    Ends,
    Deleted(usize),
    Scaled(i32),
    Image(u8),
    Partition(i32),
    Start(i32),
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    prop::collection::vec(
        prop_oneof![
            4 => (0..6_usize).prop_map(Happening::Ready),
            1 => (0..6_usize).prop_map(Happening::Unready),
            1 => (0..6_usize).prop_map(Happening::Fails),
            4 => Just(Happening::Ends),
            1 => (0..6_usize).prop_map(Happening::Deleted),
            1 => (0..5_i32).prop_map(Happening::Scaled),
            1 => (0..3_u8).prop_map(Happening::Image),
            1 => (0..5_i32).prop_map(Happening::Partition),
            1 => (0..3_i32).prop_map(Happening::Start),
        ],
        1..80,
    )
}

fn happen(world: &mut World, happening: &Happening) {
    let nth = |world: &World, n: usize| {
        let alive = world.pods.iter().filter(|(_, pod)| !is_deleting(&pod.metadata));
        alive.map(|(name, _)| name.clone()).nth(n)
    };
    match happening {
        Happening::Ready(n) => {
            if let Some(name) = nth(world, *n) {
                world.ready(&name);
            }
        }
        Happening::Unready(n) => {
            if let Some(name) = nth(world, *n) {
                world.set_status(&name, "Running", false);
            }
        }
        Happening::Fails(n) => {
            if let Some(name) = nth(world, *n) {
                world.set_status(&name, "Failed", false);
            }
        }
        Happening::Ends => world.end(),
        Happening::Deleted(n) => {
            if let Some(name) = nth(world, *n) {
                let now = Time(Timestamp::from_second(world.now).unwrap());
                world.pods.get_mut(&name).unwrap().metadata.deletion_timestamp = Some(now);
            }
        }
        Happening::Scaled(replicas) => world.change(&json!({"spec": {"replicas": replicas}})),
        Happening::Image(n) => world.image(&format!("v{n}")),
        Happening::Partition(n) => {
            world.change(&json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": n}}}}))
        }
        Happening::Start(n) => world.change(&json!({"spec": {"ordinals": {"start": n}}})),
    }
    world.now += 1;
}

proptest! {
    /// Goal: whatever happens, an ordinal never has two pods (asserted by the world), an ordered set
    /// changes one pod a run and never takes one that serves while another does not, and in the end
    /// the wish is fulfilled. Method: plays users, agents and failures at random.
    #[test]
    fn no_order_of_events_breaks_a_set(happenings in happenings(), is_parallel in any::<bool>()) {
        let policy = if is_parallel { PARALLEL } else { "OrderedReady" };
        let mut world = World::new(&json!({"spec": {"podManagementPolicy": policy}}));
        for happening in &happenings {
            let serving = |world: &World| {
                let ready = |pod: &Pod| {
                    !is_deleting(&pod.metadata) && crate::controllers::object::is_ready(pod)
                };
                world.pods.values().filter(|pod| ready(pod)).count()
            };
            let wanted = world.set.spec.as_ref().unwrap().replicas.unwrap();
            let before = serving(&world);
            let plan = world.run();
            if !is_parallel {
                prop_assert!(plan.create.len() + plan.delete.len() <= 1);
            }
            let outdated = plan.delete.iter().filter(|(_, why)| *why == Why::Outdated).count();
            let is_down = plan.delete.iter().any(|(_, why)| *why == Why::ScaledDown);
            if outdated > 0 && !is_down {
                let after = i32::try_from(serving(&world)).unwrap();
                let costs = serving(&world) < before;
                prop_assert!(!costs || after >= wanted - 1, "{after} of {wanted} serve");
            }
            happen(&mut world, happening);
        }
        world.change(&json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": 0}}}}));
        let names: Vec<_> = world.pods.keys().cloned().collect();
        for name in names {
            if !is_deleting(&world.pods[&name].metadata) {
                world.ready(&name);
            }
        }
        world.settle();
        let spec = world.set.spec.clone().unwrap();
        let start = spec.ordinals.and_then(|ordinals| ordinals.start).unwrap_or(0);
        let wanted: Vec<_> =
            (start..start + spec.replicas.unwrap()).map(|n| format!("db-{n}")).collect();
        prop_assert_eq!(world.pods.keys().cloned().collect::<Vec<_>>(), wanted);
        let image = spec.template.spec.unwrap().containers[0].image.clone().unwrap();
        prop_assert!(world.images().iter().all(|(_, of)| *of == image));
        let status = world.set.status.clone().unwrap();
        prop_assert_eq!(status.current_revision, status.update_revision);
    }
}
