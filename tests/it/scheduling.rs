//! The scheduler against the real API: what nodes say in their heartbeats decides where pods go.

use std::sync::Arc;
use std::time::Duration;

use edgeorc::client::Informers;
use edgeorc::rt::{Rng, TaskGroup, WallClock};
use edgeorc::scheduler;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::support::Api;

const PODS: &str = "/api/v1/namespaces/default/pods";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

/// A node of 4 cores and 4 GiB whose heartbeat says what is in use there.
async fn node(api: &Api, name: &str, cpu: &str, memory: &str) {
    let made = api.post("/api/v1/nodes", &json!({"metadata": {"name": name}})).await;
    assert_eq!(made.code, 201, "{made:?}");
    let status = json!({"status": {
        "allocatable": {"cpu": "4", "memory": "4Gi", "pods": "110"},
        "conditions": [{"type": "Ready", "status": "True"}],
    }});
    let path = format!("/api/v1/nodes/{name}/status");
    assert_eq!(api.patch(&path, "merge", &status).await.code, 200);
    // As the node controller, which does not run here, does with a node that is ready.
    assert_eq!(made.at("/spec/taints/0/key"), "node.kubernetes.io/not-ready");
    let ready = json!({"spec": {"taints": null}});
    assert_eq!(api.patch(&format!("/api/v1/nodes/{name}"), "merge", &ready).await.code, 200);
    let lease = json!({"metadata": {"name": name, "annotations": annotations(cpu, memory)},
        "spec": {"holderIdentity": name}});
    let made = api.post(LEASES, &lease).await;
    assert_eq!(made.code, 201, "{made:?}");
}

fn annotations(cpu: &str, memory: &str) -> Value {
    json!({"edgeorc.io/used-cpu": cpu, "edgeorc.io/used-memory": memory})
}

/// Makes a pod without requests; the node it is bound to.
async fn place(api: &Api, name: &str) -> String {
    let pod =
        json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "x"}]}});
    let made = api.post(PODS, &pod).await;
    assert_eq!(made.code, 201, "{made:?}");
    for _ in 0..1000 {
        let node = api.get(&format!("{PODS}/{name}")).await.at("/spec/nodeName");
        if let Some(node) = node.as_str() {
            return node.to_owned();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{name} is bound to no node");
}

#[tokio::test]
async fn pods_without_requests_go_where_less_is_in_use() {
    let api = Api::start().await;
    node(&api, "a", "3600m", "1Gi").await;
    node(&api, "b", "200m", "1Gi").await;
    let tasks = TaskGroup::new(&CancellationToken::new());
    let client = api.client();
    let informers = Informers::start(&client, &tasks);
    let (clock, rng) = (WallClock::system(), Rng::seeded(3));
    let context =
        scheduler::Context { client, informers, clock, rng, profiles: scheduler::no_plugins() };
    tasks.spawn("scheduler", |cancel| scheduler::run(context, cancel));
    for at in 0..5 {
        assert_eq!(place(&api, &format!("first-{at}")).await, "b");
    }
    // The load moves; that writes nothing to the log.
    let revision = async || api.get(PODS).await.at("/metadata/resourceVersion");
    let before = revision().await;
    for (name, cpu) in [("a", "200m"), ("b", "3800m")] {
        let change = json!({"metadata": {"annotations": annotations(cpu, "1Gi")}});
        assert_eq!(api.patch(&format!("{LEASES}/{name}"), "merge", &change).await.code, 200);
    }
    assert_eq!(revision().await, before);
    // A binding that was decided before the heartbeat was heard may still go to the old node.
    let mut last = String::new();
    for at in 0..10 {
        last = place(&api, &format!("second-{at}")).await;
    }
    assert_eq!(last, "a");
    tasks.shutdown(Duration::from_secs(1)).await;
}

/// The scheduler on this API, until the test ends.
fn schedule(api: &Api, seed: u64) -> TaskGroup {
    let tasks = TaskGroup::new(&CancellationToken::new());
    let client = api.client();
    let informers = Informers::start(&client, &tasks);
    let (clock, rng) = (WallClock::system(), Rng::seeded(seed));
    let context =
        scheduler::Context { client, informers, clock, rng, profiles: scheduler::no_plugins() };
    tasks.spawn("scheduler", |cancel| scheduler::run(context, cancel));
    tasks
}

fn asking(name: &str, cpu: &str, spec: &Value) -> Value {
    let mut pod = json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {"containers": [
        {"name": "c", "image": "x:1", "resources": {"requests": {"cpu": cpu}}}]}});
    json_patch::merge(&mut pod["spec"], spec);
    pod
}

/// The pod, once `is_it` holds.
async fn seen(api: &Api, name: &str, is_it: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    for _ in 0..1000 {
        let answer = api.get(&format!("{PODS}/{name}")).await;
        last = answer.json();
        if is_it(&last) {
            return last;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{name} is not as it should be: {last}");
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    pod.pointer("/status/conditions")?.as_array()?.iter().find(|c| c["type"] == kind)
}

fn is_bound(pod: &Value) -> bool {
    pod.pointer("/spec/nodeName").is_some_and(Value::is_string)
}

#[tokio::test]
async fn a_pod_of_higher_priority_takes_the_place_of_a_lower_one() {
    const CLASSES: &str = "/apis/scheduling.k8s.io/v1/priorityclasses";
    let api = Api::start().await;
    node(&api, "a", "100m", "1Gi").await;
    let high = json!({"metadata": {"name": "high"}, "value": 1000});
    assert_eq!(api.post(CLASSES, &high).await.code, 201);
    let tasks = schedule(&api, 5);
    assert_eq!(api.post(PODS, &asking("low", "3", &json!({}))).await.code, 201);
    seen(&api, "low", is_bound).await;
    let wants = asking("vital", "2", &json!({"priorityClassName": "high"}));
    let made = api.post(PODS, &wants).await;
    assert_eq!((made.code.as_u16(), made.at("/spec/priority")), (201, json!(1000)));
    // Told to leave, with the reason; no agent is there to see it out.
    let low = seen(&api, "low", |pod| !pod["metadata"]["deletionTimestamp"].is_null()).await;
    let target = condition(&low, "DisruptionTarget").unwrap();
    assert_eq!(
        (&target["status"], &target["reason"]),
        (&json!("True"), &json!("PreemptionByScheduler"))
    );
    let vital = seen(&api, "vital", |pod| pod["status"]["nominatedNodeName"] == "a").await;
    assert_eq!(condition(&vital, "PodScheduled").unwrap()["reason"], "Unschedulable");
    let delete = format!("{PODS}/low?gracePeriodSeconds=0");
    assert_eq!(api.delete(&delete).await.code, 200);
    let vital = seen(&api, "vital", is_bound).await;
    assert_eq!(vital["spec"]["nodeName"], "a");
    tasks.shutdown(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn a_pod_gets_the_priority_of_its_class_and_no_other() {
    const CLASSES: &str = "/apis/scheduling.k8s.io/v1/priorityclasses";
    let api = Api::start().await;
    let plain = api.post(PODS, &asking("plain", "1", &json!({}))).await;
    assert_eq!(
        (plain.at("/spec/priority"), plain.at("/spec/preemptionPolicy")),
        (json!(0), json!("PreemptLowerPriority"))
    );
    let class = |name: &str, value: i64, is_default: bool| {
        json!({"metadata": {"name": name}, "value": value, "globalDefault": is_default,
            "preemptionPolicy": "Never"})
    };
    assert_eq!(api.post(CLASSES, &class("usual", 7, true)).await.code, 201);
    let second = api.post(CLASSES, &class("second", 8, true)).await;
    assert_eq!(second.code, 403, "{second:?}");
    let message = second.at("/message").as_str().unwrap().to_owned();
    assert!(message.contains("PriorityClass usual is already marked as default"), "{message}");
    assert_eq!(api.post(CLASSES, &class("high", 9, false)).await.code, 201);
    let marked =
        api.patch(&format!("{CLASSES}/high"), "merge", &json!({"globalDefault": true})).await;
    assert_eq!(marked.code, 403, "{marked:?}");
    let usual = api.post(PODS, &asking("usual", "1", &json!({}))).await;
    assert_eq!(
        (usual.at("/spec/priorityClassName"), usual.at("/spec/priority")),
        (json!("usual"), json!(7))
    );
    assert_eq!(usual.at("/spec/preemptionPolicy"), "Never");
    let system = json!({"priorityClassName": "system-node-critical"});
    let system = api.post(PODS, &asking("system", "1", &system)).await;
    assert_eq!(system.at("/spec/priority"), json!(2_000_001_000));
    let unknown = api.post(PODS, &asking("odd", "1", &json!({"priorityClassName": "none"}))).await;
    assert_eq!(unknown.code, 403);
    let message = unknown.at("/message").as_str().unwrap().to_owned();
    assert!(message.ends_with("no PriorityClass with name none was found"), "{message}");
    let own = api.post(PODS, &asking("own", "1", &json!({"priority": 5}))).await;
    assert_eq!(own.code, 403, "{own:?}");
}

#[tokio::test]
async fn a_gated_pod_and_a_lonely_one_wait_for_what_they_wait_for() {
    let api = Api::start().await;
    node(&api, "a", "100m", "1Gi").await;
    let tasks = schedule(&api, 9);
    let near = json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname",
         "labelSelector": {"matchLabels": {"app": "gated"}}}]}}});
    let gates = json!({"schedulingGates": [{"name": "acme.io/wait"}]});
    assert_eq!(
        api.patch(
            "/api/v1/nodes/a",
            "merge",
            &json!({"metadata": {"labels": {"kubernetes.io/hostname": "a"}}})
        )
        .await
        .code,
        200
    );
    assert_eq!(api.post(PODS, &asking("gated", "1", &gates)).await.code, 201);
    assert_eq!(api.post(PODS, &asking("lonely", "1", &near)).await.code, 201);
    let lonely = seen(&api, "lonely", |pod| condition(pod, "PodScheduled").is_some()).await;
    let message = condition(&lonely, "PodScheduled").unwrap()["message"].as_str().unwrap();
    assert_eq!(
        message,
        "0/1 nodes are available: 1 node(s) didn't match pod affinity rules. preemption: 0/1 nodes \
         are available: 1 Preemption is not helpful for scheduling."
    );
    let open = json!({"spec": {"schedulingGates": []}});
    assert_eq!(api.patch(&format!("{PODS}/gated"), "merge", &open).await.code, 200);
    seen(&api, "gated", is_bound).await;
    seen(&api, "lonely", is_bound).await;
    tasks.shutdown(Duration::from_secs(1)).await;
}

/// Takes pods to the nodes with this name only; without one, it fails.
struct Only(Option<&'static str>);

impl scheduler::Extension for Only {
    fn filter(
        &self,
        _: &scheduler::PodFacts<'_>,
        node: scheduler::NodeFacts<'_>,
        _: Duration,
    ) -> Result<Result<(), String>, scheduler::ExtensionError> {
        let name = self.0.ok_or_else(|| scheduler::ExtensionError("it is broken".to_owned()))?;
        Ok(if node.name == name { Ok(()) } else { Err(format!("not {name}")) })
    }

    fn score(
        &self,
        _: &scheduler::PodFacts<'_>,
        _: scheduler::NodeFacts<'_>,
        _: Duration,
    ) -> Result<i64, scheduler::ExtensionError> {
        Ok(0)
    }
}

fn only(name: Option<&'static str>) -> scheduler::Profiles {
    let plugin = scheduler::Plugin {
        name: "only".into(),
        extension: Arc::new(Only(name)),
        is_required: true,
        time_max: Duration::from_secs(1),
    };
    let profile = scheduler::Profile { plugins: vec![plugin], filters: vec![0], scores: vec![] };
    [("own".to_owned(), Arc::new(profile))].into()
}

/// Goal: pods that ask for a scheduler of a profile are placed once there is one, and those that a
/// plugin refused are tried again when it is mended: at once, not after a minute.
#[tokio::test]
async fn pods_wake_when_their_plugins_come_and_are_mended() {
    let api = Api::start().await;
    node(&api, "a", "100m", "1Gi").await;
    node(&api, "b", "100m", "1Gi").await;
    let (told, profiles) = watch::channel(scheduler::Profiles::new());
    let tasks = TaskGroup::new(&CancellationToken::new());
    let client = api.client();
    let informers = Informers::start(&client, &tasks);
    let (clock, rng) = (WallClock::system(), Rng::seeded(5));
    let context = scheduler::Context { client, informers, clock, rng, profiles };
    tasks.spawn("scheduler", |cancel| scheduler::run(context, cancel));
    let pod = asking("p", "1", &json!({"schedulerName": "own"}));
    assert_eq!(api.post(PODS, &pod).await.code, 201);
    // Of the default scheduler, after it in the queue: it is placed, the other one is nobody's.
    place(&api, "other").await;
    let seen_now = api.get(&format!("{PODS}/p")).await;
    assert_eq!(seen_now.at("/spec/nodeName"), Value::Null);
    told.send_replace(only(None));
    let refused = seen(&api, "p", |pod| condition(pod, "PodScheduled").is_some()).await;
    let message = condition(&refused, "PodScheduled").unwrap()["message"].as_str().unwrap();
    let words = "0/2 nodes are available: 2 node(s) refused by plugin only: it is broken.";
    assert!(message.starts_with(words), "{message}");
    told.send_replace(only(Some("c")));
    let words = "0/2 nodes are available: 2 node(s) refused by plugin only: not c.";
    let is_told = |pod: &Value| {
        condition(pod, "PodScheduled")
            .is_some_and(|c| c["message"].as_str().unwrap().starts_with(words))
    };
    seen(&api, "p", is_told).await;
    told.send_replace(only(Some("b")));
    assert_eq!(seen(&api, "p", is_bound).await["spec"]["nodeName"], "b");
    tasks.shutdown(Duration::from_secs(1)).await;
}
