//! Rollouts of a Deployment that go wrong, are held, are changed on the way and have a quota before
//! them: by a real kubectl, and under load where requests could be lost.

use std::collections::BTreeSet;
use std::process::Output;

use serde_json::{Value, json};

use crate::cluster::{Load, ready_pods, start_three};
use crate::support::{Block, Node, PATIENCE, both, eventually, hello, succeed};

const DEPLOYMENT: &str = "deploy/hello";
const LABEL: &str = "app.kubernetes.io/name=hello";

/// A ReplicaSet of the Deployment.
#[derive(Debug, Clone, PartialEq)]
struct Set {
    name: String,
    revision: u32,
    wanted: u64,
    ready: u64,
    annotations: Value,
    conditions: Value,
}

/// Its ReplicaSets, the oldest revision first.
fn sets(node: &Node) -> Vec<Set> {
    let text = succeed(&mut node.kubectl(&["get", "rs", "-l", LABEL, "-o", "json"]));
    let list: Value = serde_json::from_str(&text).unwrap();
    let of = |set: &Value| {
        let count = |pointer| set.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
        let annotations = set["metadata"]["annotations"].clone();
        let revision = annotations["deployment.kubernetes.io/revision"].as_str().unwrap();
        Set {
            name: set["metadata"]["name"].as_str().unwrap().to_owned(),
            revision: revision.parse().unwrap(),
            wanted: count("/spec/replicas"),
            ready: count("/status/readyReplicas"),
            annotations,
            conditions: set["status"]["conditions"].clone(),
        }
    };
    let mut sets: Vec<_> = list["items"].as_array().unwrap().iter().map(of).collect();
    sets.sort_by_key(|set| set.revision);
    sets
}

/// Revision, pods that are wanted and pods that are ready of each ReplicaSet.
fn shape(node: &Node) -> Vec<(u32, u64, u64)> {
    sets(node).iter().map(|set| (set.revision, set.wanted, set.ready)).collect()
}

fn until_shape(node: &Node, what: &str, wanted: &[(u32, u64, u64)]) {
    eventually(what, PATIENCE, || {
        let found = shape(node);
        if found == wanted { Ok(()) } else { Err(found) }
    });
}

fn read(node: &Node, path: &str) -> String {
    succeed(&mut node.kubectl(&["get", DEPLOYMENT, "-o", &format!("jsonpath={path}")]))
}

/// Status and reason of a condition of the Deployment.
fn condition(node: &Node, name: &str) -> String {
    let of = |field| format!("{{.status.conditions[?(@.type=='{name}')].{field}}}");
    read(node, &format!("{} {}", of("status"), of("reason")))
}

fn until_condition(node: &Node, name: &str, wanted: &str) {
    eventually(&format!("{name} is {wanted}"), PATIENCE, || {
        let found = condition(node, name);
        if found == wanted { Ok(()) } else { Err(found) }
    });
}

/// Waits until the controller has seen the newest spec, and acted on it.
fn until_observed(node: &Node) {
    eventually("the newest spec is observed", PATIENCE, || {
        let found = read(node, "{.metadata.generation} {.status.observedGeneration}");
        let (generation, observed) = found.split_once(' ').unwrap();
        if generation == observed { Ok(()) } else { Err(found.clone()) }
    });
}

fn kubectl(node: &Node, args: &[&str]) -> String {
    succeed(&mut node.kubectl(args))
}

fn rollout_status(node: &Node, timeout: &str) -> Output {
    let timeout = format!("--timeout={timeout}");
    node.kubectl(&["rollout", "status", DEPLOYMENT, &timeout]).output().unwrap()
}

fn rolled_out(node: &Node) {
    let said = rollout_status(node, "120s");
    assert!(said.status.success(), "{}\n{:#?}", both(&said), sets(node));
    assert!(both(&said).contains("successfully rolled out"), "{}", both(&said));
}

fn names(node: &Node) -> BTreeSet<String> {
    ready_pods(node).unwrap().into_keys().collect()
}

/// Runs `replicas` of hello whose rollouts go by this spec.
fn deploy(node: &Node, replicas: u32, spec: &Value) {
    let file = hello();
    let replicas = replicas.to_string();
    succeed(&mut node.edgeorc(&["deploy", file.to_str().unwrap(), "--replicas", &replicas]));
    rolled_out(node);
    kubectl(node, &["patch", DEPLOYMENT, "-p", &json!({ "spec": spec }).to_string()]);
    rolled_out(node);
}

fn strategy(surge: u32, unavailable: u32) -> Value {
    json!({"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}})
}

/// The image with a tag that nobody has pushed.
fn missing(image: &str, tag: &str) -> String {
    let (repository, _) = image.rsplit_once(':').unwrap();
    format!("{repository}:{tag}")
}

fn image(node: &Node) -> String {
    read(node, "{.spec.template.spec.containers[0].image}")
}

fn set_image(node: &Node, image: &str) {
    kubectl(node, &["set", "image", DEPLOYMENT, &format!("hello={image}")]);
}

/// Goal: a version that never serves costs nobody anything: it stops where `maxUnavailable` says, is
/// told as kubectl tells it, and goes again by hand or by itself. Method: three nodes, load at one of
/// them all the time, an image that is nowhere.
#[test]
fn a_bad_version_stops_at_max_unavailable_and_undo_takes_up_what_was_there() {
    let folder = tempfile::tempdir().unwrap();
    let nodes = start_three(folder.path());
    let node = &nodes[0];
    deploy(node, 6, &json!({"strategy": strategy(1, 2), "progressDeadlineSeconds": 8}));
    let (good, before, first) = (image(node), names(node), sets(node));
    assert_eq!((first.len(), before.len()), (1, 6));
    let load = Load::start(nodes[1].ingress());

    let bad = missing(&good, "nowhere");
    set_image(node, &bad);
    eventually("it is stuck with four old pods and three new", PATIENCE, || {
        let serving = names(node);
        assert!(serving.is_subset(&before), "a new one serves: {serving:?} of {before:?}");
        assert!(serving.len() >= 4, "more are missing than may be: {serving:?}");
        let found = shape(node);
        let pods: u64 = found.iter().map(|set| set.1).sum();
        assert!(pods <= 7, "more pods than surge allows: {found:?}");
        if found == [(1, 4, 4), (2, 3, 0)] { Ok(()) } else { Err(found) }
    });
    let kept = names(node);
    assert_eq!(kept.len(), 4);
    let said = rollout_status(node, "60s");
    assert_eq!(said.status.code(), Some(1));
    assert!(both(&said).contains("exceeded its progress deadline"), "{}", both(&said));
    assert_eq!(condition(node, "Progressing"), "False ProgressDeadlineExceeded");
    assert_eq!(condition(node, "Available"), "True MinimumReplicasAvailable");
    assert_eq!(shape(node), [(1, 4, 4), (2, 3, 0)], "a deadline only reports");
    assert_eq!(names(node), kept);

    let undone = kubectl(node, &["rollout", "undo", DEPLOYMENT]);
    assert_eq!(undone, "deployment.apps/hello rolled back\n");
    rolled_out(node);
    until_shape(node, "all is as it was", &[(2, 0, 0), (3, 6, 6)]);
    let back = sets(node).pop().unwrap();
    assert_eq!(back.name, first[0].name, "the ReplicaSet of before");
    assert_eq!(back.annotations["deployment.kubernetes.io/revision-history"], "1");
    assert!(names(node).is_superset(&kept), "pods that served went: {kept:?}");
    let history = kubectl(node, &["rollout", "history", DEPLOYMENT]);
    let numbers = history.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok());
    assert_eq!(numbers.collect::<Vec<u32>>(), [2, 3], "{history}");

    // The same by itself.
    kubectl(node, &["annotate", DEPLOYMENT, "edgeorc.io/rollback-on-failure=true"]);
    set_image(node, &bad);
    let reason = "--field-selector=reason=DeploymentRollback";
    eventually("it is taken back by itself", PATIENCE, || {
        let events = kubectl(node, &["get", "events", reason]);
        if events.contains("to revision 3") { Ok(()) } else { Err((events, shape(node))) }
    });
    assert_eq!(image(node), good);
    rolled_out(node);
    until_shape(node, "all is as it was", &[(4, 0, 0), (5, 6, 6)]);
    let marks: Vec<_> = sets(node)
        .into_iter()
        .map(|set| (set.name, set.annotations["edgeorc.io/rollout-failed"].clone()))
        .collect();
    assert_eq!(marks[0].1, "true");
    assert_eq!((marks[1].0.as_str(), &marks[1].1), (first[0].name.as_str(), &Value::Null));

    let (asked, failures) = load.stop();
    assert!(failures.is_empty(), "{} of {asked} failed: {failures:?}", failures.len());
    assert!(asked > 0);
}

/// Goal: what is on hold moves nothing; what is changed half-way goes down at once, and not when its
/// follower serves. Method: images that are nowhere stop each rollout where it can be looked at.
#[test]
fn a_paused_rollout_makes_no_pods_and_a_change_on_the_way_rolls_over() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    deploy(&node, 3, &json!({"strategy": strategy(1, 0)}));
    let (good, before) = (image(&node), names(&node));

    kubectl(&node, &["rollout", "pause", DEPLOYMENT]);
    kubectl(&node, &["set", "env", DEPLOYMENT, "V=1"]);
    kubectl(&node, &["set", "env", DEPLOYMENT, "V=2"]);
    until_condition(&node, "Progressing", "Unknown DeploymentPaused");
    until_observed(&node);
    assert_eq!(shape(&node), [(1, 3, 3)], "no ReplicaSet of the new template");
    assert_eq!(names(&node), before);
    let said = rollout_status(&node, "2s");
    assert_eq!(said.status.code(), Some(1));
    assert!(both(&said).contains("timed out"), "{}", both(&said));
    let undo = ["rollout", "undo", DEPLOYMENT, "--to-revision=1"];
    let refused = node.kubectl(&undo).output().unwrap();
    assert!(both(&refused).contains("cannot rollback a paused deployment"), "{}", both(&refused));
    kubectl(&node, &["scale", DEPLOYMENT, "--replicas=4"]);
    until_shape(&node, "what is paused can be scaled", &[(1, 4, 4)]);
    kubectl(&node, &["rollout", "resume", DEPLOYMENT]);
    rolled_out(&node);
    until_shape(&node, "two changes are one revision", &[(1, 0, 0), (2, 4, 4)]);
    let second = sets(&node).pop().unwrap();

    // Changed on the way: twice to what does not serve.
    let serving = names(&node);
    set_image(&node, &missing(&good, "nowhere"));
    until_shape(&node, "the third is stuck", &[(1, 0, 0), (2, 4, 4), (3, 1, 0)]);
    set_image(&node, &missing(&good, "nowhere-else"));
    until_shape(
        &node,
        "the third makes room though the fourth does not serve either",
        &[(1, 0, 0), (2, 4, 4), (3, 0, 0), (4, 1, 0)],
    );
    assert_eq!(names(&node), serving);

    // Held on the way, and changed back: what serves is what was there.
    kubectl(&node, &["rollout", "pause", DEPLOYMENT]);
    set_image(&node, &good);
    until_condition(&node, "Progressing", "Unknown DeploymentPaused");
    until_shape(
        &node,
        "the second is the newest, but nothing moves",
        &[(1, 0, 0), (3, 0, 0), (4, 1, 0), (5, 4, 4)],
    );
    assert_eq!(names(&node), serving);
    kubectl(&node, &["rollout", "resume", DEPLOYMENT]);
    rolled_out(&node);
    until_shape(
        &node,
        "the second is taken up again",
        &[(1, 0, 0), (3, 0, 0), (4, 0, 0), (5, 4, 4)],
    );
    assert_eq!(sets(&node).pop().unwrap().name, second.name);
    assert_eq!(names(&node), serving, "no pod that served was replaced");
    kubectl(&node, &["rollout", "undo", DEPLOYMENT, "--to-revision=1"]);
    rolled_out(&node);
    until_shape(&node, "the first of all is back", &[(3, 0, 0), (4, 0, 0), (5, 0, 0), (6, 4, 4)]);
}

/// Goal: a quota in the way is told where people look, takes nothing from those who are served, and the
/// rollout ends by itself once there is room. Method: as many pods are allowed as run; load all the time.
#[test]
fn a_quota_in_the_way_is_told_and_the_rollout_goes_on_once_it_is_raised() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    deploy(&node, 3, &json!({"strategy": strategy(1, 0), "progressDeadlineSeconds": 4}));
    kubectl(&node, &["create", "quota", "small", "--hard=pods=3"]);
    eventually("the quota is counted", PATIENCE, || {
        let used = kubectl(&node, &["get", "quota", "small", "-o", "jsonpath={.status.used.pods}"]);
        if used == "3" { Ok(()) } else { Err(used) }
    });
    let before = names(&node);
    let load = Load::start(node.ingress());

    kubectl(&node, &["set", "env", DEPLOYMENT, "V=2"]);
    until_condition(&node, "ReplicaFailure", "True FailedCreate");
    let failure = sets(&node).pop().unwrap().conditions[0].clone();
    assert_eq!(
        (&failure["type"], &failure["reason"]),
        (&json!("ReplicaFailure"), &json!("FailedCreate"))
    );
    let words = "exceeded quota: small, requested: pods=1, used: pods=3, limited: pods=3";
    assert!(failure["message"].as_str().unwrap().contains(words), "{failure}");
    let said = rollout_status(&node, "60s");
    assert_eq!(said.status.code(), Some(1));
    assert!(both(&said).contains("exceeded its progress deadline"), "{}", both(&said));
    assert_eq!(shape(&node), [(1, 3, 3), (2, 1, 0)]);
    assert_eq!(names(&node), before);

    kubectl(&node, &["patch", "quota", "small", "-p", "{\"spec\":{\"hard\":{\"pods\":\"4\"}}}"]);
    eventually("the rollout goes on", PATIENCE, || {
        let found = shape(&node);
        if found == [(1, 0, 0), (2, 3, 3)] { Ok(()) } else { Err(found) }
    });
    rolled_out(&node);
    until_condition(&node, "ReplicaFailure", " ");
    let conditions = sets(&node).pop().unwrap().conditions;
    assert!(conditions.as_array().is_none_or(Vec::is_empty), "{conditions}");
    let (asked, failures) = load.stop();
    assert!(failures.is_empty(), "{} of {asked} failed: {failures:?}", failures.len());
    assert!(asked > 0);
}
