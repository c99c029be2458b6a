use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::core::Selector;
use proptest::prelude::*;
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
    let many: Vec<_> = (0..501).map(|at| ready(&format!("p{at}"))).collect();
    assert_eq!(plan_for(&replica_set(0), &many).delete.len(), BURST_MAX);
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
fn what_is_not_known_goes_after_what_waits_and_before_what_runs() {
    let pods = [("a", "Running"), ("b", "Unknown"), ("c", "Pending")]
        .map(|(name, phase)| pod(name, &json!({ "status": { "phase": phase, "conditions": [] } })));
    assert_eq!(names(&plan_for(&replica_set(0), &pods).delete), ["c", "b", "a"]);
}

#[test]
fn pods_of_siblings_crowd_a_node_and_those_of_strangers_do_not() {
    let of = |uid: &str| {
        json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "n", "uid": uid,
            "controller": true}])
    };
    let other = |name: &str, owner: &str, node: &str| {
        let labels = json!({ "app": "other" });
        pod(
            name,
            &json!({
                "metadata": { "ownerReferences": of(owner), "labels": labels },
                "spec": { "nodeName": node },
            }),
        )
    };
    let pods = [
        pod("a", &json!({ "spec": { "nodeName": "two" } })),
        pod("z", &json!({ "spec": { "nodeName": "one" } })),
        other("s", "old", "one"),
        other("t", "stranger", "two"),
        other("u", "stranger", "two"),
    ];
    let replica_set = replica_set(1);
    let plan = plan(&View {
        replica_set: &replica_set,
        selector: Some(&selector(&replica_set)),
        pods: &pods,
        siblings: &BTreeSet::from(["rs-uid".to_owned(), "old".to_owned()]),
        now: now(),
    });
    assert_eq!(names(&plan.delete), ["z"]);
}

/// A pod that became ready so many seconds ago, and whose container restarted so often.
fn ready_for(name: &str, seconds: i64, restarts: i32) -> Arc<Pod> {
    let at = now() - jiff::SignedDuration::from_secs(seconds);
    pod(
        name,
        &json!({ "status": {
            "conditions":
                [{ "type": "Ready", "status": "True", "lastTransitionTime": at.to_string() }],
            "containerStatuses": [{
                "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": restarts,
            }],
        }}),
    )
}

#[test]
fn the_pod_that_became_ready_last_goes_before_its_elders() {
    let pods = [ready_for("elder", 3_590, 0), ready_for("newcomer", 10, 0)];
    assert_eq!(names(&plan_for(&replica_set(1), &pods).delete), ["newcomer"]);
}

#[test]
fn of_pods_ready_for_nearly_as_long_the_uid_decides_and_of_those_ready_at_once_restarts_do() {
    let doomed = |pods: &[Arc<Pod>]| {
        let plan = plan_for(&replica_set(0), pods);
        names(&plan.delete).concat()
    };
    // 40 s and 60 s are of one class.
    let of_one_class = [ready_for("z", 40, 4), ready_for("a", 60, 0), ready_for("y", 5, 0)];
    assert_eq!(doomed(&of_one_class), "yaz");
    assert_eq!(doomed(&[ready_for("a", 40, 0), ready_for("z", 40, 4)]), "za");
    // By uid a is before b and b before c, by restarts c before a: those ready at once stay together.
    let circle = [ready_for("a", 40, 0), ready_for("b", 60, 0), ready_for("c", 40, 4)];
    assert_eq!(doomed(&circle), "cab");
}

#[test]
fn restarts_of_containers_decide_before_those_of_sidecars_and_others_do_not_count() {
    let status = |restarts: i32, name: &str| {
        let mut status = json!({"image": "", "imageID": "", "ready": true});
        status["name"] = json!(name);
        status["restartCount"] = json!(restarts);
        json!([status])
    };
    let with = |name: &str, [container, sidecar, once]: [i32; 3]| {
        let mut inits = status(sidecar, "sidecar");
        inits.as_array_mut().unwrap().extend(status(once, "once").as_array().cloned().unwrap());
        pod(
            name,
            &json!({
                "spec": { "initContainers":
                    [{ "name": "sidecar", "restartPolicy": "Always" }, { "name": "once" }] },
                "status": {
                    "containerStatuses": status(container, "c"), "initContainerStatuses": inits,
                },
            }),
        )
    };
    let pods =
        [with("a", [0, 0, 9]), with("b", [0, 1, 0]), with("c", [1, 0, 0]), with("d", [1, 2, 0])];
    assert_eq!(names(&plan_for(&replica_set(0), &pods).delete), ["d", "c", "b", "a"]);
}

#[test]
fn of_pods_that_are_else_alike_the_younger_goes_by_powers_of_two() {
    let created = |name: &str, seconds: i64| {
        let at = now() - jiff::SignedDuration::from_secs(seconds);
        pod(name, &json!({ "metadata": { "creationTimestamp": at.to_string() } }))
    };
    // 40 s and 60 s are of one class: the uid decides, so that not all of a node's pods go at once.
    let pods = [created("z", 40), created("a", 60), created("old", 3600), created("new", 5)];
    assert_eq!(names(&plan_for(&replica_set(1), &pods).delete), ["new", "a", "z"]);
}

#[test]
fn a_pod_without_a_label_of_the_template_is_not_fully_labeled() {
    let mut replica_set = replica_set(2);
    let template = replica_set.spec.as_mut().unwrap().template.as_mut().unwrap();
    let labels = template.metadata.as_mut().unwrap().labels.as_mut().unwrap();
    labels.insert("tier".into(), "front".into());
    let pods = [
        pod("old", &json!({})),
        pod("new", &json!({ "metadata": { "labels": { "tier": "front" } } })),
    ];
    let plan = plan_for(&replica_set, &pods);
    let status = status(&replica_set, &plan.active, None, now());
    assert_eq!((status.replicas, status.fully_labeled_replicas), (2, Some(1)));
}

/// A pod as it may be found: whose it is, and how it does.
#[derive(Debug, Clone)]
struct Found {
    /// The replica set's, another's, or nobody's.
    owner: Option<&'static str>,
    matches: bool,
    is_leaving: bool,
    phase: &'static str,
    is_ready: bool,
    is_bound: bool,
}

fn found() -> impl Strategy<Value = Found> {
    (
        prop_oneof![4 => Just(Some("rs-uid")), 1 => Just(Some("x")), 1 => Just(None)],
        prop::bool::weighted(0.8),
        prop::bool::weighted(0.2),
        prop_oneof![4 => Just("Running"), 1 => Just("Pending"), 1 => Just("Failed"), 1 => Just("Succeeded")],
        any::<bool>(),
        prop::bool::weighted(0.9),
    )
        .prop_map(|(owner, matches, is_leaving, phase, is_ready, is_bound)| Found {
            owner,
            matches,
            is_leaving,
            phase,
            is_ready,
            is_bound,
        })
}

impl Found {
    fn pod(&self, name: &str) -> Arc<Pod> {
        let owners = self.owner.map(|uid| {
            json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "n", "uid": uid,
                "controller": true}])
        });
        let ready = if self.is_ready { "True" } else { "False" };
        let mut changes = json!({
            "metadata": {"ownerReferences": owners,
                "labels": {"app": if self.matches { "web" } else { "other" }}},
            "spec": {"nodeName": self.is_bound.then_some("n")},
            "status": {"phase": self.phase, "conditions": [{"type": "Ready", "status": ready,
                "lastTransitionTime": "2026-01-01T00:00:10Z"}]},
        });
        if self.is_leaving {
            changes["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:59:00Z");
        }
        pod(name, &changes)
    }

    fn counts(&self) -> bool {
        !self.is_leaving && !matches!(self.phase, "Failed" | "Succeeded")
    }
}

proptest! {
    /// Goal: whatever is found, one run makes it as many as wanted, of its own pods only, and keeps those
    /// that serve.
    #[test]
    fn no_order_of_pods_breaks_a_replica_set(
        wanted in 0..8_usize,
        found in prop::collection::vec(found(), 0..12),
    ) {
        let pods: Vec<_> =
            found.iter().enumerate().map(|(at, one)| one.pod(&format!("p{at}"))).collect();
        let of = |name: &str| &found[name[1..].parse::<usize>().unwrap()];
        let plan = plan_for(&replica_set(i32::try_from(wanted).unwrap()), &pods);
        prop_assert!(plan.create == 0 || plan.delete.is_empty(), "it makes and deletes at once");
        prop_assert_eq!(plan.active.len() + plan.create - plan.delete.len(), wanted);
        for name in names(&plan.active) {
            let one = of(name);
            prop_assert!(one.counts() && one.matches && one.owner != Some("x"), "{:?}", one);
        }
        let ours = found.iter().filter(|one| one.counts() && one.matches && one.owner != Some("x"));
        prop_assert_eq!(plan.active.len(), ours.count());
        for name in names(&plan.adopt) {
            prop_assert!(of(name).owner.is_none() && of(name).matches, "{:?}", of(name));
        }
        for name in names(&plan.release) {
            prop_assert!(of(name).owner == Some("rs-uid") && !of(name).matches, "{:?}", of(name));
        }
        let doomed = names(&plan.delete);
        let serves = |name: &&str| {
            let one = of(name);
            one.is_bound && one.phase == "Running" && one.is_ready
        };
        let kept = names(&plan.active).into_iter().filter(|name| !doomed.contains(name));
        let keeps_one_that_does_not = kept.clone().any(|name| !serves(&name));
        let takes_one_that_does = doomed.iter().any(serves);
        prop_assert!(!(keeps_one_that_does_not && takes_one_that_does), "{:?} of {:?}", doomed, found);
    }
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
