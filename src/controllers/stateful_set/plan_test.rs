use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use serde_json::json;

use crate::controllers::revisions::POD_LABEL;
use crate::controllers::stateful_set::plan::Why;
use crate::controllers::stateful_set::world_test::{PARALLEL, World, born, doomed};

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
fn a_pod_that_does_not_serve_is_waited_for_while_a_lower_one_does_not_either() {
    let down = |name: &str| [(name.to_owned(), Why::ScaledDown)];
    let mut world = World::new(&json!({}));
    world.settle();
    for name in ["db-0", "db-1", "db-2"] {
        world.set_status(name, "Running", false);
    }
    world.change(&json!({"spec": {"replicas": 0}}));
    let plan = world.run();
    assert_eq!((doomed(&plan), plan.status.replicas), (vec![], 3));
    world.ready("db-2");
    assert_eq!(doomed(&world.run()), down("db-2"), "it serves, whatever those below it do");
    assert_eq!(doomed(&world.run()), [], "it is still there");
    world.end();
    assert_eq!(doomed(&world.run()), [], "neither of the two that are left serves");
    world.ready("db-0");
    assert_eq!(doomed(&world.run()), down("db-1"), "all below it serve");
    world.end();
    world.set_status("db-0", "Running", false);
    assert_eq!(doomed(&world.run()), down("db-0"), "there is none below it");
}

#[test]
fn nothing_waits_for_pods_that_have_ended_when_a_set_is_scaled_down() {
    let mut world = World::new(&json!({}));
    world.settle();
    world.change(&json!({"spec": {"replicas": 1}}));
    for name in ["db-1", "db-2"] {
        world.set_status(name, "Failed", false);
    }
    for name in ["db-2", "db-1"] {
        assert_eq!(doomed(&world.run()), [(name.to_owned(), Why::ScaledDown)]);
        world.end();
    }
    let mut world = World::new(&json!({}));
    world.settle();
    world.change(&json!({"spec": {"replicas": 1}}));
    world.set_status("db-1", "Failed", false);
    world.set_status("db-2", "Running", false);
    let down = [("db-2".to_owned(), Why::ScaledDown)];
    assert_eq!(doomed(&world.run()), down, "the one below it will never serve");
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
fn a_parallel_set_too_is_updated_from_the_highest_to_the_lowest() {
    let outdated = |name: &str| [(name.to_owned(), Why::Outdated)];
    let mut world = World::new(&json!({"spec": {"podManagementPolicy": PARALLEL}}));
    world.settle();
    world.set_status("db-0", "Running", false);
    world.image("v2");
    assert_eq!(doomed(&world.run()), outdated("db-2"), "those above db-0 come first");
    assert_eq!(doomed(&world.run()), [], "db-2 is on its way out");
    world.end();
    assert_eq!(born(&world.run()), ["db-2"]);
    assert_eq!(doomed(&world.run()), [], "db-2 does not serve yet");
    world.ready("db-2");
    assert_eq!(doomed(&world.run()), outdated("db-1"));
    // A broken template does not get past the highest, and going on replaces that one first.
    world.settle();
    world.image("broken");
    world.settle();
    world.set_status("db-0", "Running", false);
    world.is(&[("db-0", "v2"), ("db-1", "v2"), ("db-2", "broken")]);
    world.image("v3");
    assert_eq!(doomed(&world.run()), outdated("db-2"));
    world.settle();
    world.is(&[("db-0", "v3"), ("db-1", "v3"), ("db-2", "v3")]);
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
