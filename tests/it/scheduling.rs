//! The scheduler against the real API: what nodes say in their heartbeats decides where pods go.

use std::time::Duration;

use edgeorc::client::Informers;
use edgeorc::rt::{Rng, TaskGroup, WallClock};
use edgeorc::scheduler;
use serde_json::{Value, json};
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
    let context = scheduler::Context { client, informers, clock, rng };
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
