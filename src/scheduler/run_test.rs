//! The scheduler's task, turn by turn. The test fills the caches; the API takes every write, which is
//! noted, unless the test says what it answers.

use http::{Method, StatusCode};
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use super::*;
use crate::client::{Informers, in_process};
use crate::rt::{Rng, TaskGroup, WallClock};
use crate::scheduler::demand::key_of;
use crate::scheduler::no_plugins;
use crate::scheduler::testing::{named, node, pod};

const PODS: &str = "/api/v1/namespaces/default/pods";
const CLAIMS: &str = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims";

/// What was written: how, where and what.
type Writes = Arc<Mutex<Vec<(Method, String, Value)>>>;

/// What the API answers, by method and path, as in `GET /api/v1/nodes/a`.
type Answers = Arc<Mutex<BTreeMap<String, (StatusCode, Value)>>>;

/// Takes every write, and never lists anything.
fn api(writes: &Writes, answers: &Answers) -> axum::Router {
    let (writes, answers) = (Arc::clone(writes), Arc::clone(answers));
    axum::Router::new().fallback(move |method: Method, uri: http::Uri, body: bytes::Bytes| {
        let (writes, answers) = (Arc::clone(&writes), Arc::clone(&answers));
        async move {
            let path = uri.path().to_owned();
            let answer = answers.lock().get(&format!("{method} {path}")).cloned();
            if method == Method::GET && answer.is_none() {
                std::future::pending::<()>().await;
            }
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            let taken = || (StatusCode::OK, taken(&method, &path, &body));
            let (code, answer) = answer.unwrap_or_else(taken);
            if method != Method::GET {
                writes.lock().push((method, path, body));
            }
            (code, answer.to_string())
        }
    })
}

/// What the API answers to a write that it takes: as much of the object as it was told.
fn taken(method: &Method, path: &str, body: &Value) -> Value {
    if method == Method::DELETE {
        return json!({});
    }
    let mut object = body.clone();
    if method == Method::PATCH {
        let name = path.trim_end_matches("/status").rsplit('/').next();
        object["metadata"]["name"] = json!(name);
    }
    object
}

struct World {
    scheduler: Scheduler,
    writes: Writes,
    answers: Answers,
}

impl World {
    fn new(node: &Node) -> Self {
        let (writes, answers) = (Writes::default(), Answers::default());
        let tasks = TaskGroup::new(&CancellationToken::new());
        let client = in_process(api(&writes, &answers), "system:kube-scheduler", &[]);
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
        Self { scheduler, writes, answers }
    }

    /// Node `a` with one camera, and a class of cameras.
    fn with_camera() -> Self {
        let world = Self::new(&node("a", &json!({})));
        let class = json!({ "metadata": { "name": "camera" }, "spec": {} });
        let slice = json!({ "metadata": { "name": "a" }, "spec": {
            "driver": "edgeorc.io", "nodeName": "a", "devices": [{ "name": "only" }],
            "pool": { "name": "a", "generation": 1, "resourceSliceCount": 1 },
        }});
        let informers = &world.scheduler.context.informers;
        informers.device_classes.store.insert(&Arc::new(serde_json::from_value(class).unwrap()));
        informers.resource_slices.store.insert(&Arc::new(serde_json::from_value(slice).unwrap()));
        world
    }

    /// The cache has the claim, and nobody hears of it.
    fn have_claim(&self, claim: &Value) {
        let claim = serde_json::from_value(claim.clone()).unwrap();
        self.scheduler.context.informers.resource_claims.store.insert(&Arc::new(claim));
    }

    /// What the API answers to this method and path.
    fn answer(&self, what: &str, code: StatusCode, body: Value) {
        self.answers.lock().insert(what.to_owned(), (code, body));
    }

    /// Turns after the longest back-off.
    async fn turn_later(&mut self) {
        tokio::time::advance(Duration::from_secs(20)).await;
        self.turn().await;
    }

    fn bindings(&self, pod: &str) -> usize {
        self.written(&Method::POST, &format!("{PODS}/{pod}/binding")).len()
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

/// A claim of a camera, with `changes` merged in.
fn claim(name: &str, changes: &Value) -> Value {
    let exactly =
        json!({ "deviceClassName": "camera", "allocationMode": "ExactCount", "count": 1 });
    let mut claim = json!({
        "metadata": {
            "name": name, "namespace": "default", "uid": name, "resourceVersion": "7",
        },
        "spec": { "devices": { "requests": [{ "name": "r", "exactly": exactly }] } },
    });
    json_patch::merge(&mut claim, changes);
    claim
}

/// The status of a claim that has the camera of `node` for the pod with this uid.
fn has_camera(node: &str, uid: &str) -> Value {
    let results =
        json!([{ "request": "r", "driver": "edgeorc.io", "pool": node, "device": "only" }]);
    let field = json!({ "key": "metadata.name", "operator": "In", "values": [node] });
    json!({ "status": {
        "allocation": {
            "devices": { "results": results },
            "nodeSelector": { "nodeSelectorTerms": [{ "matchFields": [field] }] },
        },
        "reservedFor": [{ "resource": "pods", "name": uid, "uid": uid }],
    }})
}

/// A pod that uses the claim.
fn user(name: &str, claim: &str) -> Pod {
    let claims = json!([{ "name": "camera", "resourceClaimName": claim }]);
    named(&pod(&json!({ "spec": { "resourceClaims": claims } })), name)
}

fn conflict() -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "reason": "Conflict", "message": "the object has been modified", "code": 409,
    })
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

/// Goal: the devices are the claim's, for the pod, before the pod has its node; what is written is
/// written on the version that was read.
#[tokio::test(start_paused = true)]
async fn a_claim_has_its_devices_before_its_pod_is_bound() {
    let mut world = World::with_camera();
    world.have_claim(&claim("c", &json!({})));
    world.show(&user("p", "c"));
    world.turn().await;
    let writes = world.writes.lock().clone();
    let paths: Vec<_> = writes.iter().map(|(_, path, _)| path.as_str()).collect();
    let (object, status) = (format!("{CLAIMS}/c"), format!("{CLAIMS}/c/status"));
    let binding = format!("{PODS}/p/binding");
    let in_order: Vec<_> = paths.into_iter().filter(|path| !path.ends_with("/events")).collect();
    assert_eq!(in_order, [object.as_str(), status.as_str(), binding.as_str()]);
    let kept = &world.written(&Method::PATCH, &object)[0];
    let finalizers = json!(["resource.kubernetes.io/delete-protection"]);
    assert_eq!(kept["metadata"]["finalizers"], finalizers);
    assert_eq!(kept["metadata"]["resourceVersion"], "7");
    let given = &world.written(&Method::PATCH, &status)[0]["status"];
    assert_eq!(given["allocation"]["devices"]["results"][0]["device"], "only");
    assert_eq!(given["allocation"]["allocationTimestamp"], "1970-01-01T00:00:00Z");
    let consumers = json!([{ "resource": "pods", "name": "p", "uid": "p" }]);
    assert_eq!(given["reservedFor"], consumers);
}

/// Goal: when somebody else wrote the claim, the pod is not bound, and what it did not get is free.
#[tokio::test(start_paused = true)]
async fn a_claim_that_changed_meanwhile_is_looked_at_again() {
    let mut world = World::with_camera();
    let open = claim("c", &json!({}));
    world.have_claim(&open);
    world.show(&user("p", "c"));
    let status = format!("PATCH {CLAIMS}/c/status");
    world.answer(&status, StatusCode::CONFLICT, conflict());
    world.answer(&format!("GET {CLAIMS}/c"), StatusCode::OK, open);
    world.turn().await;
    assert_eq!(world.bindings("p"), 0);
    world.answers.lock().remove(&status);
    world.turn_later().await;
    assert_eq!(world.bindings("p"), 1);
}

/// Goal: a device is given once, also when a write that was given up lands later. Method: the claim, which has none
/// yet, is changed on the version that was read before its device is given to another.
#[tokio::test(start_paused = true)]
async fn a_write_that_lands_late_gives_nothing() {
    let mut world = World::with_camera();
    let mut open = claim("c", &json!({}));
    world.have_claim(&open);
    world.show(&user("p", "c"));
    world.answer(&format!("PATCH {CLAIMS}/c/status"), StatusCode::CONFLICT, conflict());
    open["metadata"]["resourceVersion"] = json!("9");
    world.answer(&format!("GET {CLAIMS}/c"), StatusCode::OK, open);
    world.turn().await;
    let written = world.written(&Method::PATCH, &format!("{CLAIMS}/c"));
    let fence = &written.last().unwrap()["metadata"];
    assert_eq!(fence["resourceVersion"], "9");
    assert!(fence["annotations"]["edgeorc.io/allocation-fence"].is_string(), "{fence}");
    assert_eq!(world.bindings("p"), 0);
    world.answers.lock().remove(&format!("PATCH {CLAIMS}/c/status"));
    world.turn_later().await;
    assert_eq!(world.bindings("p"), 1);
}

/// Goal: an answer that does not tell what was written frees nothing that was.
#[tokio::test(start_paused = true)]
async fn a_device_that_was_given_after_all_is_nobody_elses() {
    let mut world = World::with_camera();
    world.have_claim(&claim("c", &json!({})));
    world.show(&user("p", "c"));
    let status = format!("PATCH {CLAIMS}/c/status");
    world.answer(&status, StatusCode::CONFLICT, conflict());
    let mut given = claim("c", &has_camera("a", "p"));
    given["metadata"]["resourceVersion"] = json!("8");
    world.answer(&format!("GET {CLAIMS}/c"), StatusCode::OK, given.clone());
    world.turn().await;
    world.have_claim(&claim("d", &json!({})));
    world.show(&user("q", "d"));
    world.turn_later().await;
    assert_eq!(world.bindings("q"), 0);
    let told = world.written(&Method::PATCH, &format!("{PODS}/q/status"));
    let message = told[0]["status"]["conditions"][0]["message"].as_str().unwrap();
    assert!(message.contains("1 cannot allocate all claims"), "{message}");
    // The cache shows it: the pod has what it needs.
    world.have_claim(&given);
    world.scheduler.dirty.devices.lock().insert(("default".to_owned(), "c".to_owned()));
    world.turn_later().await;
    assert_eq!((world.bindings("p"), world.bindings("q")), (1, 0));
}

/// Goal: a pod waits for the claims that are made for it, and is woken by its status, not by what the
/// scheduler wrote there.
#[tokio::test(start_paused = true)]
async fn a_pod_whose_claims_were_made_is_tried_again() {
    let mut world = World::with_camera();
    let claims = json!([{ "name": "camera", "resourceClaimTemplateName": "t" }]);
    let waiting = |status: Value| {
        named(&pod(&json!({ "spec": { "resourceClaims": claims }, "status": status })), "p")
    };
    world.show(&waiting(json!({})));
    world.turn().await;
    tokio::time::advance(Duration::from_secs(20)).await;
    let refused = json!({ "type": "PodScheduled", "status": "False", "reason": "Unschedulable" });
    world.show(&waiting(json!({ "conditions": [refused] })));
    world.scheduler.look();
    assert_eq!(world.scheduler.queue.pop(Instant::now()), None);
    let owner = json!({ "apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "p" });
    world.have_claim(&claim("p-camera", &json!({ "metadata": { "ownerReferences": [owner] } })));
    let made = json!([{ "name": "camera", "resourceClaimName": "p-camera" }]);
    world.show(&waiting(json!({ "resourceClaimStatuses": made })));
    world.turn().await;
    assert_eq!(world.bindings("p"), 1);
}

/// Goal: a pod that cannot go where its devices are gives them back, and looks elsewhere.
#[tokio::test(start_paused = true)]
async fn devices_of_a_node_that_is_gone_are_given_back() {
    let mut world = World::with_camera();
    let waiting = user("p", "c");
    world.have_claim(&claim("c", &has_camera("gone", "p")));
    world.answer(&format!("GET {PODS}/p"), StatusCode::OK, json!(waiting));
    world.show(&waiting);
    world.turn().await;
    let path = format!("{CLAIMS}/c/status");
    let nothing = json!({ "allocation": null, "reservedFor": null, "devices": null });
    assert_eq!(world.written(&Method::PATCH, &path)[0]["status"], nothing);
    assert_eq!(world.bindings("p"), 0);
    world.have_claim(&claim("c", &json!({})));
    world.scheduler.dirty.devices.lock().insert(("default".to_owned(), "c".to_owned()));
    world.turn_later().await;
    assert_eq!(world.bindings("p"), 1);
}

/// Goal: a pod that comes to a claim in use adds itself to those who use it, as it is by then.
#[tokio::test(start_paused = true)]
async fn a_second_pod_of_a_claim_is_added_to_its_users() {
    let mut world = World::with_camera();
    let used = claim("c", &has_camera("a", "first"));
    world.have_claim(&used);
    let mut live = used;
    live["metadata"]["resourceVersion"] = json!("8");
    live["status"]["reservedFor"] = json!([{ "resource": "pods", "name": "z", "uid": "z" }]);
    world.answer(&format!("GET {CLAIMS}/c"), StatusCode::OK, live);
    world.show(&user("p", "c"));
    world.turn().await;
    let joined = &world.written(&Method::PATCH, &format!("{CLAIMS}/c/status"))[0];
    assert_eq!(joined["metadata"]["resourceVersion"], "8");
    let names = joined["status"]["reservedFor"].as_array().unwrap().iter();
    let names: Vec<_> = names.map(|consumer| consumer["name"].clone()).collect();
    assert_eq!(names, ["z", "p"]);
    assert_eq!(joined["status"].get("allocation"), None);
    assert_eq!(world.bindings("p"), 1);
}
