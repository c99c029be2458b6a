//! The scheduler's task, turn by turn. The test fills the caches; the API takes every write, which is
//! noted.

use http::Method;
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use super::*;
use crate::client::{Informers, in_process};
use crate::rt::{Rng, TaskGroup, WallClock};
use crate::scheduler::demand::key_of;
use crate::scheduler::no_plugins;
use crate::scheduler::testing::{named, node, pod};

const PODS: &str = "/api/v1/namespaces/default/pods";

/// What was written: how, where and what.
type Writes = Arc<Mutex<Vec<(Method, String, Value)>>>;

/// Takes every write, and never lists anything.
fn api(writes: &Writes) -> axum::Router {
    let writes = Arc::clone(writes);
    axum::Router::new().fallback(move |method: Method, uri: http::Uri, body: bytes::Bytes| {
        let writes = Arc::clone(&writes);
        async move {
            if method == Method::GET {
                std::future::pending::<()>().await;
            }
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            let answer = if method == Method::DELETE { "{}".to_owned() } else { body.to_string() };
            writes.lock().push((method, uri.path().to_owned(), body));
            answer
        }
    })
}

struct World {
    scheduler: Scheduler,
    writes: Writes,
}

impl World {
    fn new(node: &Node) -> Self {
        let (writes, tasks) = (Writes::default(), TaskGroup::new(&CancellationToken::new()));
        let client = in_process(api(&writes), "system:kube-scheduler", &[]);
        let informers = Informers::start(&client, &tasks);
        let (clock, rng) = (WallClock::manual(0), Rng::seeded(1));
        let events = EventRecorder::new(
            client.clone(),
            "default-scheduler",
            clock.clone(),
            rng.clone(),
            &tasks,
        );
        let context = Context { client, informers, clock, rng, profiles: no_plugins() };
        let scheduler = Scheduler::new(context, events);
        scheduler.context.informers.nodes.store.insert(&Arc::new(node.clone()));
        let name = node.metadata.name.clone().unwrap();
        scheduler.dirty.nodes.lock().insert((String::new(), name));
        Self { scheduler, writes }
    }

    /// The cache has the pod as it is now.
    fn show(&self, pod: &Pod) {
        self.scheduler.context.informers.pods.store.insert(&Arc::new(pod.clone()));
        self.scheduler.dirty.pods.lock().insert(key_of(pod));
    }

    /// One turn of the loop, until all that it wrote is answered.
    async fn turn(&mut self) {
        self.scheduler.look();
        self.scheduler.schedule();
        while let Some(done) = self.scheduler.requests.next().await {
            self.scheduler.finish(&done);
        }
    }

    fn written(&self, method: &Method, path: &str) -> Vec<Value> {
        let writes = self.writes.lock();
        let these = writes.iter().filter(|(how, to, _)| how == method && to == path);
        these.map(|(.., body)| body.clone()).collect()
    }
}

fn tainted() -> Node {
    node("a", &json!({ "spec": { "taints": [{ "key": "k", "effect": "NoSchedule" }] } }))
}

/// Goal: a refused pod is tried again when it asks for something else, and not because of what the
/// scheduler wrote into it, or of what is no matter to its place.
#[tokio::test(start_paused = true)]
async fn a_refused_pod_that_asks_for_something_else_is_tried_again() {
    let mut world = World::new(&tainted());
    let waiting = |changes: &Value| named(&pod(changes), "p");
    world.show(&waiting(&json!({})));
    world.turn().await;
    tokio::time::advance(Duration::from_secs(20)).await;
    let refused = json!({ "type": "PodScheduled", "status": "False", "reason": "Unschedulable" });
    let told = json!({
        "metadata": { "annotations": { "seen": "yes" }, "resourceVersion": "7" },
        "status": { "conditions": [refused], "nominatedNodeName": "a" },
    });
    world.show(&waiting(&told));
    world.scheduler.look();
    assert_eq!(world.scheduler.queue.pop(Instant::now()), None);
    let tolerant = json!({ "spec": { "tolerations": [{ "key": "k", "operator": "Exists" }] } });
    world.show(&waiting(&tolerant));
    world.turn().await;
    let bound = world.written(&Method::POST, &format!("{PODS}/p/binding"));
    assert_eq!(bound.len(), 1);
    assert_eq!(bound[0]["target"]["name"], "a");
}

#[tokio::test(start_paused = true)]
async fn condition_and_event_say_why_a_pod_waits() {
    let mut world = World::new(&tainted());
    world.show(&pod(&json!({})));
    world.turn().await;
    let told = world.written(&Method::PATCH, &format!("{PODS}/p/status"));
    let message = told[0]["status"]["conditions"][0]["message"].as_str().unwrap();
    let words = "0/1 nodes are available: 1 node(s) had untolerated taint {k: }.";
    assert!(message.starts_with(words), "{message}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let events = world.written(&Method::POST, "/api/v1/namespaces/default/events");
    let [event] = &events[..] else { panic!("{events:?}") };
    assert_eq!((&event["type"], &event["reason"]), (&json!("Warning"), &json!("FailedScheduling")));
    assert_eq!(event["involvedObject"]["name"], "p");
    assert_eq!(event["message"], message);
}

/// Goal: whoever waited for a place that a more important pod gets is told at once, and tried again.
#[tokio::test(start_paused = true)]
async fn who_loses_its_place_to_another_is_told_and_tried_again() {
    let asking = |name: &str, priority: i32, node: Option<&str>| {
        let requests = json!({ "requests": { "cpu": "4" } });
        let spec = json!({
            "priority": priority, "nodeName": node,
            "containers": [{ "name": "c", "resources": requests }],
        });
        named(&pod(&json!({ "spec": spec })), name)
    };
    let mut world = World::new(&node("a", &json!({})));
    let (middle, path) = (asking("middle", 10, None), format!("{PODS}/middle/status"));
    world.show(&asking("low", 0, Some("a")));
    world.show(&middle);
    world.turn().await;
    let told = world.written(&Method::PATCH, &path);
    assert_eq!(told[0]["status"]["nominatedNodeName"], "a");
    world.show(&asking("high", 20, None));
    world.turn().await;
    let told = world.written(&Method::PATCH, &path);
    assert_eq!(told[1]["status"], json!({ "nominatedNodeName": null }));
    let soon = Instant::now() + Duration::from_secs(1);
    assert_eq!(world.scheduler.queue.pop(soon), Some(key_of(&middle)));
}
