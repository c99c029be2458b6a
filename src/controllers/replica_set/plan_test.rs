use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::core::Selector;
use serde_json::{Value, json};

use crate::controllers::object::selector_of;
use crate::controllers::replica_set::plan::{BURST_MAX, Plan, View, plan, status};

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

fn replica_set(replicas: i32) -> ReplicaSet {
    serde_json::from_value(json!({
        "metadata": { "name": "web", "namespace": "default", "uid": "rs-uid", "generation": 3 },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": "web" } },
            "template": { "metadata": { "labels": { "app": "web" } } },
        },
    }))
    .unwrap()
}

fn selector(replica_set: &ReplicaSet) -> Selector {
    selector_of(&replica_set.spec.as_ref().unwrap().selector).unwrap()
}

/// A ready pod of the replica set on node `n`, with `changes` merged in.
fn pod(name: &str, changes: &Value) -> Arc<Pod> {
    let mut pod = json!({
        "metadata": {
            "name": name, "namespace": "default", "uid": name, "labels": { "app": "web" },
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "rs-uid",
                "controller": true,
            }],
        },
        "spec": { "nodeName": "n", "containers": [] },
        "status": { "phase": "Running", "conditions": [{
            "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:10Z",
        }]},
    });
    json_patch::merge(&mut pod, changes);
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn plan_for(replica_set: &ReplicaSet, pods: &[Arc<Pod>]) -> Plan {
    let selector = selector(replica_set);
    plan(&View {
        replica_set,
        selector: Some(&selector),
        pods,
        siblings: &BTreeSet::from(["rs-uid".to_owned()]),
        now: now(),
    })
}

fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
    pods.iter().map(|pod| pod.metadata.name.as_deref().unwrap()).collect()
}

#[test]
fn missing_pods_are_created_and_surplus_ones_deleted() {
    let ready = |name: &str| pod(name, &json!({}));
    for (wanted, have, creates, deletes) in
        [(3, 0, 3, 0), (3, 2, 1, 0), (3, 3, 0, 0), (1, 3, 0, 2), (0, 2, 0, 2)]
    {
        let pods: Vec<_> = (0..have).map(|at| ready(&format!("p{at}"))).collect();
        let plan = plan_for(&replica_set(wanted), &pods);
        assert_eq!((plan.create, plan.delete.len()), (creates, deletes), "{wanted} of {have}");
    }
    assert_eq!(plan_for(&replica_set(10_000), &[]).create, BURST_MAX);
}

#[test]
fn failed_and_terminating_pods_are_replaced() {
    let pods = [
        pod("failed", &json!({ "status": { "phase": "Failed", "reason": "Evicted" } })),
        pod("leaving", &json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:59:00Z" } })),
        pod("good", &json!({})),
    ];
    let plan = plan_for(&replica_set(3), &pods);
    assert_eq!(plan.create, 2);
    assert!(plan.delete.is_empty());
    assert_eq!(names(&plan.active), ["good"]);
}

#[test]
fn orphans_are_adopted_and_strangers_left_alone() {
    let other = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "x", "uid": "x", "controller": true,
    }]);
    let pods = [
        pod("orphan", &json!({ "metadata": { "ownerReferences": null } })),
        pod("foreign", &json!({ "metadata": { "ownerReferences": other } })),
        pod(
            "unlike",
            &json!({ "metadata": { "ownerReferences": null, "labels": { "app": "y" } } }),
        ),
    ];
    let plan = plan_for(&replica_set(1), &pods);
    assert_eq!(names(&plan.adopt), ["orphan"]);
    assert_eq!((plan.create, plan.delete.len(), plan.release.len()), (0, 0, 0));
}

#[test]
fn a_pod_that_no_longer_matches_is_let_go_and_replaced() {
    let pods = [pod("debug", &json!({ "metadata": { "labels": { "app": "debug" } } }))];
    let plan = plan_for(&replica_set(1), &pods);
    assert_eq!(names(&plan.release), ["debug"]);
    assert_eq!(plan.create, 1);
}

#[test]
fn a_replica_set_being_deleted_only_counts() {
    let mut replica_set = replica_set(3);
    replica_set.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
    let pods = [
        pod("own", &json!({})),
        pod("orphan", &json!({ "metadata": { "ownerReferences": null } })),
    ];
    let plan = plan_for(&replica_set, &pods);
    assert_eq!((plan.create, plan.delete.len(), plan.adopt.len()), (0, 0, 0));
    assert_eq!(names(&plan.active), ["own"]);
}

#[test]
fn the_least_useful_pods_are_deleted_first() {
    let not_ready = json!({ "status": { "conditions": [] } });
    let pods = [
        pod("settled", &json!({ "spec": { "nodeName": "quiet" } })),
        pod(
            "restarted",
            &json!({
                "spec": { "nodeName": "quiet" },
                "status": { "containerStatuses": [{
                    "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 4,
                }]},
            }),
        ),
        pod("crowded-1", &json!({})),
        pod("crowded-2", &json!({})),
        pod("crowded-3", &json!({})),
        pod(
            "cheap",
            &json!({ "metadata": {
                "annotations": { "controller.kubernetes.io/pod-deletion-cost": "-5" },
            }}),
        ),
        pod("unready", &not_ready),
        pod("pending", &json!({ "status": { "phase": "Pending", "conditions": [] } })),
        pod("unbound", &json!({ "spec": { "nodeName": null }, "status": { "phase": "Pending" } })),
    ];
    let plan = plan_for(&replica_set(1), &pods);
    assert_eq!(
        names(&plan.delete),
        [
            "unbound",
            "pending",
            "unready",
            "cheap",
            "crowded-1",
            "crowded-2",
            "crowded-3",
            "restarted",
        ]
    );
}

#[test]
fn the_pod_that_became_ready_last_goes_before_its_elders() {
    let ready_at = |name: &str, time: &str| {
        pod(
            name,
            &json!({ "status": { "conditions": [{
                "type": "Ready", "status": "True", "lastTransitionTime": time,
            }]}}),
        )
    };
    let pods =
        [ready_at("elder", "2026-01-01T00:00:10Z"), ready_at("newcomer", "2026-01-01T00:59:50Z")];
    assert_eq!(names(&plan_for(&replica_set(1), &pods).delete), ["newcomer"]);
}

#[test]
fn the_status_counts_ready_and_available_pods() {
    let mut replica_set = replica_set(3);
    replica_set.spec.as_mut().unwrap().min_ready_seconds = Some(30);
    let pods = [
        pod("old", &json!({})),
        pod(
            "young",
            &json!({ "status": { "conditions": [{
                "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:59:40Z",
            }]}}),
        ),
        pod("unready", &json!({ "status": { "conditions": [] } })),
    ];
    let plan = plan_for(&replica_set, &pods);
    assert_eq!(plan.recheck_after, Some(std::time::Duration::from_secs(10)));
    let status = status(&replica_set, &plan.active, None, now());
    assert_eq!(
        status,
        ReplicaSetStatus {
            replicas: 3,
            fully_labeled_replicas: Some(3),
            ready_replicas: Some(2),
            available_replicas: Some(1),
            observed_generation: Some(3),
            ..ReplicaSetStatus::default()
        }
    );
}

#[test]
fn a_failure_is_a_condition_until_it_is_over() {
    let mut replica_set = replica_set(3);
    let failed = status(&replica_set, &[], Some(("FailedCreate", "quota".into())), now());
    let conditions = failed.conditions.clone().unwrap();
    assert_eq!(conditions[0].reason.as_deref(), Some("FailedCreate"));
    replica_set.status = Some(failed);
    assert_eq!(status(&replica_set, &[], None, now()).conditions, Some(Vec::new()));
}
