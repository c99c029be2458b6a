use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::controllers::deployment::plan::{Plan, View, plan};
use crate::controllers::deployment::template::{HASH_LABEL, REVISION, Wish};
use crate::controllers::object::selector_of;
use crate::controllers::template::hash;

pub(super) const START: &str = "2026-01-01T00:00:00Z";

pub(super) fn at(time: &str) -> Timestamp {
    time.parse().unwrap()
}

/// A deployment of 3 replicas of `image`, with `changes` merged in.
pub(super) fn deployment(image: &str, changes: &Value) -> Deployment {
    let mut deployment = json!({
        "metadata": { "name": "web", "namespace": "default", "uid": "d", "generation": 2 },
        "spec": {
            "replicas": 3, "progressDeadlineSeconds": 600,
            "selector": { "matchLabels": { "app": "web" } },
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": { "maxSurge": "25%", "maxUnavailable": "25%" },
            },
            "template": {
                "metadata": { "labels": { "app": "web" } },
                "spec": { "containers": [{ "name": "web", "image": image }] },
            },
        },
    });
    json_patch::merge(&mut deployment, changes);
    serde_json::from_value(deployment).unwrap()
}

/// The replica set the controller makes for that deployment, as the server stores it.
fn set_of(
    deployment: &Deployment,
    revision: u32,
    replicas: i32,
    available: i32,
) -> Arc<ReplicaSet> {
    let mut set = *plan_of(deployment, &[]).create.unwrap();
    let name = set.metadata.name.clone();
    set.metadata.uid = name;
    set.metadata.generation = Some(1);
    set.metadata.resource_version = Some("7".into());
    set.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
        at(START) + jiff::SignedDuration::from_secs(i64::from(revision)),
    ));
    set.metadata.annotations.as_mut().unwrap().insert(REVISION.into(), revision.to_string());
    set.spec.as_mut().unwrap().replicas = Some(replicas);
    set.status = Some(
        serde_json::from_value(json!({
            "replicas": replicas, "readyReplicas": available, "availableReplicas": available,
            "observedGeneration": 1,
        }))
        .unwrap(),
    );
    Arc::new(set)
}

fn plan_at(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    pods: &[Arc<Pod>],
    now: &str,
) -> Plan {
    let selector = selector_of(&deployment.spec.as_ref().unwrap().selector);
    plan(&View { deployment, selector: selector.as_ref(), replica_sets: sets, pods, now: at(now) })
}

fn plan_of(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> Plan {
    plan_at(deployment, sets, &[], START)
}

fn scalings(plan: &Plan) -> Vec<(String, i32)> {
    let name = |set: &ReplicaSet| set.metadata.annotations.as_ref().unwrap()[REVISION].clone();
    plan.edits.iter().filter_map(|edit| Some((name(&edit.of), edit.replicas?))).collect()
}

fn reason(status: &DeploymentStatus, type_: &str) -> Option<String> {
    let conditions = status.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == type_)?.reason.clone()
}

#[test]
fn percentages_round_up_for_surge_and_down_for_unavailability() {
    let with = |replicas: i32, surge: Value, unavailable: Value| {
        Wish::of(&deployment(
            "v1",
            &json!({ "spec": { "replicas": replicas, "strategy": {
                "rollingUpdate": { "maxSurge": surge, "maxUnavailable": unavailable },
            }}}),
        ))
    };
    for (replicas, surge, unavailable, fenceposts) in [
        (3, json!("25%"), json!("25%"), (1, 0)),
        (10, json!("25%"), json!("25%"), (3, 2)),
        (10, json!(0), json!(0), (0, 1)),
        (10, json!("0%"), json!("5%"), (0, 1)),
        (4, json!(2), json!(9), (2, 4)),
        (10, Value::Null, Value::Null, (3, 2)),
    ] {
        let wish = with(replicas, surge, unavailable);
        assert_eq!((wish.max_surge, wish.max_unavailable), fenceposts);
    }
}

#[test]
fn a_new_deployment_makes_its_replica_set() {
    let deployment = deployment(
        "v1",
        &json!({ "metadata": { "annotations": {
            "kubernetes.io/change-cause": "first",
            "kubectl.kubernetes.io/last-applied-configuration": "{}",
        }}}),
    );
    let plan = plan_of(&deployment, &[]);
    let set = plan.create.as_ref().unwrap();
    let hash = hash(&deployment.spec.as_ref().unwrap().template, 0);
    assert_eq!(set.metadata.name, Some(format!("web-{hash}")));
    let spec = set.spec.as_ref().unwrap();
    assert_eq!(spec.replicas, Some(3));
    assert_eq!(spec.selector.match_labels.as_ref().unwrap()[HASH_LABEL], hash);
    let template = spec.template.as_ref().unwrap().metadata.as_ref().unwrap();
    assert_eq!(template.labels.as_ref().unwrap()[HASH_LABEL], hash);
    let annotations = set.metadata.annotations.as_ref().unwrap();
    assert_eq!(annotations[REVISION], "1");
    assert_eq!(annotations["kubernetes.io/change-cause"], "first");
    assert_eq!(annotations.len(), 4, "revision, cause, desired, max: {annotations:?}");
    assert_eq!(plan.revision.as_deref(), Some("1"));
    assert_eq!(reason(&plan.status, "Progressing").as_deref(), Some("NewReplicaSetCreated"));
    assert_eq!(reason(&plan.status, "Available").as_deref(), Some("MinimumReplicasUnavailable"));
}

#[test]
fn a_finished_rollout_has_nothing_left_to_do() {
    let mut deployment =
        deployment("v1", &json!({ "metadata": { "annotations": { REVISION: "1" } } }));
    let set = set_of(&deployment, 1, 3, 3);
    let plan = plan_of(&deployment, &[Arc::clone(&set)]);
    assert!(plan.create.is_none() && plan.edits.is_empty() && plan.delete.is_empty());
    assert_eq!(plan.revision, None);
    assert_eq!(reason(&plan.status, "Progressing").as_deref(), Some("NewReplicaSetAvailable"));
    assert_eq!(plan.status.observed_generation, Some(2));
    assert_eq!(plan.recheck_after, None);
    deployment.status = Some(plan.status.clone());
    let again = plan_at(&deployment, &[set], &[], "2026-01-01T05:00:00Z");
    assert_eq!(again.status, plan.status, "an idle deployment is not written again");
}

#[test]
fn a_new_template_rolls_and_takes_the_next_revision() {
    let (v1, v2) = (deployment("v1", &json!({})), deployment("v2", &json!({})));
    let old = set_of(&v1, 1, 3, 3);
    let plan = plan_of(&v2, &[Arc::clone(&old)]);
    let new = plan.create.as_ref().unwrap();
    assert_eq!(new.spec.as_ref().unwrap().replicas, Some(1), "one of surge");
    assert_eq!(new.metadata.annotations.as_ref().unwrap()[REVISION], "2");
    assert!(scalings(&plan).is_empty());
    let plan = plan_of(&v2, &[Arc::clone(&old), set_of(&v2, 2, 1, 1)]);
    assert_eq!(scalings(&plan), [("1".to_owned(), 2)]);
    assert_eq!(reason(&plan.status, "Available").as_deref(), Some("MinimumReplicasAvailable"));
}

#[test]
fn going_back_reuses_the_old_replica_set_with_a_higher_revision() {
    let (v1, v2) = (deployment("v1", &json!({})), deployment("v2", &json!({})));
    let sets = [set_of(&v1, 1, 0, 0), set_of(&v2, 2, 3, 3)];
    let plan = plan_of(&v1, &sets);
    assert!(plan.create.is_none());
    let edit = plan.edits.iter().find(|edit| edit.of.metadata.uid == sets[0].metadata.uid).unwrap();
    assert_eq!(edit.replicas, Some(1));
    assert_eq!(edit.annotations[REVISION], "3");
    assert_eq!(edit.annotations["deployment.kubernetes.io/revision-history"], "1");
    assert_eq!(plan.revision.as_deref(), Some("3"));
}

/// Goal: taken back at once, a rollout counts only pods that stay. Method: the first replica set was
/// scaled down to one, and its status still tells of all three.
#[test]
fn a_status_from_before_the_spec_takes_nothing_away() {
    let (v1, v2) = (deployment("v1", &json!({})), deployment("v2", &json!({})));
    let mut first = set_of(&v1, 1, 1, 3);
    Arc::make_mut(&mut first).metadata.generation = Some(2);
    let second = set_of(&v2, 2, 2, 2);
    let plan = plan_of(&v1, &[Arc::clone(&first), Arc::clone(&second)]);
    assert_eq!(scalings(&plan), [("1".to_owned(), 2)]);
    let first = set_of(&v1, 1, 2, 2);
    let plan = plan_of(&v1, &[first, second]);
    assert_eq!(scalings(&plan), [("2".to_owned(), 1)], "it is told: one may go");
}

#[test]
fn new_pods_wait_until_those_are_gone_that_were_to_make_room() {
    let (v1, v2) = (deployment("v1", &json!({})), deployment("v2", &json!({})));
    let mut old = set_of(&v1, 1, 3, 3);
    Arc::make_mut(&mut old).metadata.generation = Some(2);
    Arc::make_mut(&mut old).spec.as_mut().unwrap().replicas = Some(2);
    let new = set_of(&v2, 2, 1, 1);
    let plan = plan_of(&v2, &[Arc::clone(&old), Arc::clone(&new)]);
    assert!(scalings(&plan).is_empty(), "three are there, and one more is allowed");
    let plan = plan_of(&v2, &[set_of(&v1, 1, 2, 3), new]);
    assert_eq!(scalings(&plan), [("2".to_owned(), 2)]);
}

#[test]
fn a_template_changed_again_mid_rollout_demotes_the_half_done_one() {
    let images = ["v1", "v2", "v3"].map(|image| deployment(image, &json!({})));
    let sets = [set_of(&images[0], 1, 3, 3), set_of(&images[1], 2, 1, 0)];
    let plan = plan_of(&images[2], &sets);
    assert_eq!(plan.create.as_ref().unwrap().spec.as_ref().unwrap().replicas, Some(0));
    assert_eq!(scalings(&plan), [("2".to_owned(), 0)], "its pod that never served goes first");
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let recreate = json!({ "spec": { "strategy": { "type": "Recreate", "rollingUpdate": null } } });
    let (v1, v2) = (deployment("v1", &recreate), deployment("v2", &recreate));
    let plan = plan_of(&v2, &[set_of(&v1, 1, 3, 3)]);
    assert_eq!(scalings(&plan), [("1".to_owned(), 0)]);
    assert!(plan.create.is_none());
    let old = set_of(&v1, 1, 0, 0);
    let lingering: Pod = serde_json::from_value(json!({
        "metadata": {
            "name": "p", "namespace": "default", "deletionTimestamp": START,
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true,
                "name": old.metadata.name, "uid": old.metadata.uid,
            }],
        },
        "status": { "phase": "Running" },
    }))
    .unwrap();
    let old = [old];
    assert!(plan_at(&v2, &old, &[Arc::new(lingering)], START).create.is_none());
    let plan = plan_of(&v2, &old);
    assert_eq!(plan.create.unwrap().spec.unwrap().replicas, Some(3));
}

#[test]
fn recreate_does_not_wait_for_pods_that_ended() {
    let recreate = json!({ "spec": { "strategy": { "type": "Recreate", "rollingUpdate": null } } });
    let (v1, v2) = (deployment("v1", &recreate), deployment("v2", &recreate));
    let old = [set_of(&v1, 1, 0, 0)];
    for (phase, is_made) in
        [("Running", false), ("Pending", false), ("Failed", true), ("Succeeded", true)]
    {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "default", "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true,
                "name": old[0].metadata.name, "uid": old[0].metadata.uid,
            }]},
            "status": {"phase": phase},
        }))
        .unwrap();
        let plan = plan_at(&v2, &old, &[Arc::new(pod)], START);
        assert_eq!(plan.create.is_some(), is_made, "{phase}");
    }
}

#[test]
fn of_several_replica_sets_of_the_template_the_oldest_is_the_new_one() {
    let deployment = deployment("v1", &json!({}));
    let (mut younger, elder) = (set_of(&deployment, 2, 0, 0), set_of(&deployment, 1, 3, 3));
    let meta = &mut Arc::make_mut(&mut younger).metadata;
    (meta.name, meta.uid) = (Some("younger".into()), Some("younger".into()));
    for sets in [[Arc::clone(&younger), Arc::clone(&elder)], [elder, younger]] {
        let plan = plan_of(&deployment, &sets);
        assert!(plan.create.is_none());
        assert_eq!(scalings(&plan), [], "the elder has all its pods");
        assert_eq!(plan.status.updated_replicas, Some(3));
        assert_eq!(plan.revision.as_deref(), Some("3"));
    }
}

#[test]
fn a_replica_set_remembers_all_revisions_it_had() {
    let (v1, v2) = (deployment("v1", &json!({})), deployment("v2", &json!({})));
    let mut old = set_of(&v1, 3, 0, 0);
    let annotations = Arc::make_mut(&mut old).metadata.annotations.as_mut().unwrap();
    annotations.insert("deployment.kubernetes.io/revision-history".into(), "1".into());
    let plan = plan_of(&v1, &[old, set_of(&v2, 4, 3, 3)]);
    let edit = plan.edits.iter().find(|edit| edit.annotations.contains_key(REVISION)).unwrap();
    assert_eq!(edit.annotations[REVISION], "5");
    assert_eq!(edit.annotations["deployment.kubernetes.io/revision-history"], "1,3");
    let made = plan_of(&v1, &[]).create.unwrap().metadata.annotations.unwrap();
    assert_eq!(made["deployment.kubernetes.io/desired-replicas"], "3");
    assert_eq!(made["deployment.kubernetes.io/max-replicas"], "4");
}

#[test]
fn a_replica_set_that_is_found_is_told() {
    let v1 = deployment("v1", &json!({}));
    let plan = plan_of(&v1, &[set_of(&v1, 1, 3, 1)]);
    assert_eq!(reason(&plan.status, "Progressing").as_deref(), Some("FoundNewReplicaSet"));
}

#[test]
fn trouble_of_a_replica_set_is_the_deployments_until_it_is_over() {
    let mut v1 = deployment("v1", &json!({}));
    let mut set = set_of(&v1, 1, 3, 1);
    Arc::make_mut(&mut set).status.as_mut().unwrap().conditions = serde_json::from_value(json!([
        {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "quota"},
    ]))
    .unwrap();
    let status = plan_of(&v1, &[set]).status;
    assert_eq!(reason(&status, "ReplicaFailure").as_deref(), Some("FailedCreate"));
    v1.status = Some(status);
    let status = plan_of(&v1, &[set_of(&v1, 1, 3, 3)]).status;
    assert_eq!(reason(&status, "ReplicaFailure"), None);
}

#[test]
fn scaling_while_paused_keeps_the_proportions_and_rolls_nothing() {
    let paused = json!({ "spec": { "paused": true, "replicas": 10 } });
    let (v1, v2) = (deployment("v1", &json!({})), deployment("v2", &json!({})));
    let sets = [set_of(&v1, 1, 2, 2), set_of(&v2, 2, 2, 2)];
    let plan = plan_of(&deployment("v2", &paused), &sets);
    assert_eq!(scalings(&plan), [("2".to_owned(), 7), ("1".to_owned(), 6)], "13 with surge");
    assert_eq!(reason(&plan.status, "Progressing").as_deref(), Some("DeploymentPaused"));
    let plan = plan_of(&deployment("v3", &paused), &sets);
    assert!(plan.create.is_none());
}

#[test]
fn a_paused_deployment_with_a_new_template_is_scaled_from_nothing_with_its_last() {
    let paused = json!({ "spec": { "paused": true, "replicas": 3 } });
    let (v1, v2) = (deployment("v1", &json!({})), deployment("v2", &json!({})));
    let sets = [set_of(&v1, 1, 0, 0), set_of(&v2, 2, 0, 0)];
    let plan = plan_of(&deployment("v3", &paused), &sets);
    assert_eq!(scalings(&plan), [("2".to_owned(), 3)]);
    assert!(plan.create.is_none());
}

#[test]
fn a_failed_rollout_says_so_while_it_is_paused_and_nothing_without_a_deadline() {
    let (v1, mut v2) = (deployment("v1", &json!({})), deployment("v2", &json!({})));
    let sets = [set_of(&v1, 1, 3, 3), set_of(&v2, 2, 1, 0)];
    v2.status = Some(plan_of(&v2, &sets).status);
    v2.status = Some(plan_at(&v2, &sets, &[], "2026-01-01T00:11:00Z").status);
    v2.spec.as_mut().unwrap().paused = Some(true);
    let plan = plan_at(&v2, &sets, &[], "2026-01-01T00:12:00Z");
    assert_eq!(reason(&plan.status, "Progressing").as_deref(), Some("ProgressDeadlineExceeded"));
    v2.spec.as_mut().unwrap().progress_deadline_seconds = Some(i32::MAX);
    let plan = plan_at(&v2, &sets, &[], "2026-01-01T00:12:00Z");
    assert_eq!(reason(&plan.status, "Progressing"), None);
}

#[test]
fn scaling_an_idle_deployment_goes_to_its_only_replica_set() {
    let deployment = deployment("v1", &json!({}));
    let set = set_of(&deployment, 1, 3, 3);
    for replicas in [0, 1, 5] {
        let mut deployment = deployment.clone();
        deployment.spec.as_mut().unwrap().replicas = Some(replicas);
        let plan = plan_of(&deployment, &[Arc::clone(&set)]);
        assert_eq!(scalings(&plan), [("1".to_owned(), replicas)]);
    }
}

#[test]
fn a_rollout_without_progress_misses_its_deadline_and_goes_on() {
    let (v1, mut v2) = (deployment("v1", &json!({})), deployment("v2", &json!({})));
    let sets = [set_of(&v1, 1, 3, 3), set_of(&v2, 2, 1, 0)];
    v2.status = Some(plan_of(&v2, &sets).status);
    let plan = plan_at(&v2, &sets, &[], "2026-01-01T00:04:00Z");
    assert_eq!(plan.recheck_after, Some(std::time::Duration::from_secs(360)));
    let plan = plan_at(&v2, &sets, &[], "2026-01-01T00:10:00Z");
    assert_eq!(reason(&plan.status, "Progressing").as_deref(), Some("ProgressDeadlineExceeded"));
    v2.status = Some(plan.status);
    let sets = [set_of(&v1, 1, 3, 3), set_of(&v2, 2, 1, 1)];
    let plan = plan_at(&v2, &sets, &[], "2026-01-01T00:11:00Z");
    assert_eq!(reason(&plan.status, "Progressing").as_deref(), Some("ReplicaSetUpdated"));
    assert_eq!(scalings(&plan), [("1".to_owned(), 2)]);
}

#[test]
fn only_so_many_old_replica_sets_are_kept() {
    let limited = json!({
        "metadata": { "annotations": { REVISION: "5" } },
        "spec": { "revisionHistoryLimit": 2 },
    });
    let mut sets: Vec<_> =
        (1..5).map(|at| set_of(&deployment(&format!("v{at}"), &json!({})), at, 0, 0)).collect();
    let current = deployment("v5", &limited);
    sets.push(set_of(&current, 5, 3, 3));
    let deleted: Vec<_> = plan_of(&current, &sets).delete;
    let revisions: Vec<_> = deleted
        .iter()
        .map(|set| set.metadata.annotations.as_ref().unwrap()[REVISION].as_str())
        .collect();
    assert_eq!(revisions, ["1", "2"]);
    // One that is on its way out is not one of those that are kept.
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(START));
    Arc::make_mut(&mut sets[0]).metadata.deletion_timestamp = Some(now);
    let deleted = plan_of(&current, &sets).delete;
    assert_eq!(deleted.len(), 1);
    assert_eq!(deleted[0].metadata.name, sets[1].metadata.name);
}

#[test]
fn an_orphan_that_matches_is_adopted_before_anything_else() {
    let deployment = deployment("v1", &json!({}));
    let mut orphan = set_of(&deployment, 1, 3, 3);
    Arc::make_mut(&mut orphan).metadata.owner_references = None;
    let plan = plan_of(&deployment, &[orphan]);
    assert_eq!(plan.adopt.len(), 1);
    assert!(plan.create.is_none());
}

#[test]
fn a_rollout_that_failed_is_taken_back_when_the_deployment_wants_that() {
    let wish = |value: &str| json!({"metadata": {"annotations": {"edgeorc.io/rollback-on-failure": value}}});
    let late = "2026-01-01T00:10:00Z";
    for (value, is_taken_back) in [("true", true), ("false", false)] {
        let (v1, mut v2) = (deployment("v1", &wish(value)), deployment("v2", &wish(value)));
        let sets = [set_of(&v1, 1, 3, 3), set_of(&v2, 2, 1, 0)];
        v2.status = Some(plan_of(&v2, &sets).status);
        assert_eq!(plan_at(&v2, &sets, &[], "2026-01-01T00:09:00Z").rollback, None);
        let plan = plan_at(&v2, &sets, &[], late);
        let template = plan.rollback.as_ref().map(|rollback| (rollback.to, &rollback.template));
        let wanted = (1, &v1.spec.as_ref().unwrap().template);
        assert_eq!(template, is_taken_back.then_some(wanted), "the hash label is gone: {value}");
        let marks: Vec<_> = plan
            .edits
            .iter()
            .filter_map(|edit| edit.annotations.get("edgeorc.io/rollout-failed"))
            .collect();
        assert_eq!(marks.len(), usize::from(is_taken_back));
    }
}

#[test]
fn nothing_is_taken_back_to_what_has_failed_before() {
    let wish = json!({"metadata": {"annotations": {"edgeorc.io/rollback-on-failure": "true"}}});
    let (v1, v2) = (deployment("v1", &wish), deployment("v2", &wish));
    let (mut v3, mut failed) = (deployment("v3", &wish), set_of(&v2, 2, 0, 0));
    let annotations = Arc::make_mut(&mut failed).metadata.annotations.as_mut().unwrap();
    annotations.insert("edgeorc.io/rollout-failed".into(), "true".into());
    let sets = [set_of(&v1, 1, 3, 3), Arc::clone(&failed), set_of(&v3, 3, 1, 0)];
    v3.status = Some(plan_of(&v3, &sets).status);
    let late = "2026-01-01T00:10:00Z";
    assert_eq!(plan_at(&v3, &sets, &[], late).rollback.unwrap().to, 1);
    let only_failed = [failed, set_of(&v3, 3, 1, 0)];
    assert_eq!(plan_at(&v3, &only_failed, &[], late).rollback, None);
}

#[test]
fn a_replica_set_that_cannot_be_made_is_told_once() {
    let was = plan_of(&deployment("v1", &json!({})), &[]).status;
    let status = crate::controllers::deployment::status::not_created(&was, "quota", at(START));
    assert_eq!(reason(&status, "Progressing").as_deref(), Some("ReplicaSetCreateError"));
    let later = at("2026-01-01T00:01:00Z");
    let again = crate::controllers::deployment::status::not_created(&status, "quota", later);
    assert_eq!(again, status);
}

#[test]
fn a_change_of_min_ready_seconds_goes_to_the_replica_set_without_a_rollout() {
    let deployment_ = deployment("v1", &json!({"spec": {"minReadySeconds": 7}}));
    let set = set_of(&deployment("v1", &json!({})), 1, 3, 3);
    let plan = plan_of(&deployment_, &[set]);
    assert!(plan.create.is_none());
    assert_eq!(plan.edits[0].min_ready_seconds, Some(7));
}

#[test]
fn a_paused_deployment_misses_no_deadline() {
    let (v1, mut v2) = (deployment("v1", &json!({})), deployment("v2", &json!({})));
    let sets = [set_of(&v1, 1, 3, 3), set_of(&v2, 2, 1, 0)];
    v2.spec.as_mut().unwrap().paused = Some(true);
    v2.status = Some(plan_of(&v2, &sets).status);
    let plan = plan_at(&v2, &sets, &[], "2026-01-01T05:00:00Z");
    assert_eq!(reason(&plan.status, "Progressing").as_deref(), Some("DeploymentPaused"));
    v2.spec.as_mut().unwrap().paused = None;
    v2.status = Some(plan.status);
    let plan = plan_at(&v2, &sets, &[], "2026-01-01T05:00:01Z");
    assert_eq!(reason(&plan.status, "Progressing").as_deref(), Some("DeploymentResumed"));
    assert_eq!(plan.recheck_after, Some(std::time::Duration::from_secs(600)));
}
