//! Budgets, quotas and limit ranges: the API server and the controllers together.

use futures_util::future::join_all;
use http::StatusCode;
use serde_json::{Value, json};

use crate::support::{Answer, Api, Cluster};

const PODS: &str = "/api/v1/namespaces/default/pods";
const BUDGETS: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
const QUOTAS: &str = "/api/v1/namespaces/default/resourcequotas";
const LIMITS: &str = "/api/v1/namespaces/default/limitranges";
const SETS: &str = "/apis/apps/v1/namespaces/default/replicasets";

impl Cluster {
    /// Makes a pod that serves, as its agent would say.
    async fn serving_pod(&self, name: &str) {
        let made = self.api.post(PODS, &pod(name, &json!({}))).await;
        assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
        self.say(name, "Running", "True").await;
    }

    async fn say(&self, name: &str, phase: &str, ready: &str) {
        let status = json!({"status": {"phase": phase,
            "conditions": [{"type": "Ready", "status": ready}]}});
        let said = self.api.patch(&format!("{PODS}/{name}/status"), "merge", &status).await;
        assert_eq!(said.code, StatusCode::OK, "{said:?}");
    }

    async fn evict(&self, name: &str, query: &str, options: &Value) -> Answer {
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": {"name": name, "namespace": "default"}, "deleteOptions": options});
        self.api.post(&format!("{PODS}/{name}/eviction{query}"), &eviction).await
    }
}

fn pod(name: &str, resources: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "a", "image": "x", "resources": resources}]}})
}

fn budget(spec: &Value) -> Value {
    let mut budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": {"app": "web"}}}});
    json_patch::merge(&mut budget["spec"], spec);
    budget
}

#[tokio::test]
async fn a_budget_lets_as_many_go_as_it_can_spare_and_no_more() {
    let cluster = Cluster::start().await;
    for name in ["a", "b", "c"] {
        cluster.serving_pod(name).await;
    }
    cluster.api.post(BUDGETS, &budget(&json!({"minAvailable": 2}))).await;
    let web = format!("{BUDGETS}/web");
    cluster.until(&web, "/status/disruptionsAllowed", json!(1)).await;
    cluster.until(&web, "/status/conditions/0/reason", json!("SufficientPods")).await;

    let tried = cluster.evict("a", "?dryRun=All", &json!({})).await;
    assert_eq!(tried.code, StatusCode::CREATED, "{tried:?}");
    let tried = cluster.evict("a", "", &json!({"dryRun": ["All"]})).await;
    assert_eq!(tried.code, StatusCode::CREATED, "{tried:?}");
    let other = cluster.evict("a", "", &json!({"preconditions": {"uid": "other"}})).await;
    assert_eq!(other.code, StatusCode::CONFLICT, "{other:?}");
    assert_eq!(cluster.api.get(&web).await.at("/status/disruptionsAllowed"), json!(1));

    // All at once: one may go.
    let answers = join_all(["a", "b", "c"].map(|name| async {
        let options = json!({});
        cluster.evict(name, "", &options).await
    }))
    .await;
    let mut codes: Vec<_> = answers.iter().map(|answer| answer.code.as_u16()).collect();
    codes.sort_unstable();
    assert_eq!(codes, [201, 429, 429], "{answers:?}");
    let refused = answers.iter().find(|answer| answer.code == 429).unwrap();
    assert_eq!(refused.at("/details/causes/0/reason"), json!("DisruptionBudget"));
    assert_eq!(
        refused.at("/message"),
        json!("Cannot evict pod as it would violate the pod's disruption budget.")
    );
    cluster.until(&web, "/status/currentHealthy", json!(2)).await;
    cluster.until(&web, "/status/disruptionsAllowed", json!(0)).await;
    let list = cluster.api.get(PODS).await.json();
    assert_eq!(list["items"].as_array().unwrap().len(), 2);

    // One that takes its place makes room for the next.
    cluster.serving_pod("d").await;
    cluster.until(&web, "/status/disruptionsAllowed", json!(1)).await;
    let gone = cluster.evict("d", "", &json!({"gracePeriodSeconds": 0})).await;
    assert_eq!(gone.code, StatusCode::CREATED, "{gone:?}");
    assert_eq!(cluster.evict("d", "", &json!({})).await.code, StatusCode::NOT_FOUND);
    cluster.end().await;
}

#[tokio::test]
async fn pods_that_serve_nobody_and_pods_of_two_budgets() {
    let cluster = Cluster::start().await;
    for name in ["a", "b", "c"] {
        cluster.serving_pod(name).await;
    }
    cluster.api.post(BUDGETS, &budget(&json!({"minAvailable": 3}))).await;
    let web = format!("{BUDGETS}/web");
    cluster.until(&web, "/status/currentHealthy", json!(3)).await;
    assert_eq!(cluster.evict("a", "", &json!({})).await.code.as_u16(), 429);
    // Ended, or never started: there is nothing to lose.
    cluster.say("a", "Failed", "False").await;
    assert_eq!(cluster.evict("a", "", &json!({})).await.code, StatusCode::CREATED);
    cluster.api.post(PODS, &pod("waiting", &json!({}))).await;
    assert_eq!(cluster.evict("waiting", "", &json!({})).await.code, StatusCode::CREATED);
    // Not ready while others are missing: only if the budget says so.
    cluster.say("b", "Running", "False").await;
    cluster.until(&web, "/status/currentHealthy", json!(1)).await;
    assert_eq!(cluster.evict("b", "", &json!({})).await.code.as_u16(), 429);
    let always = json!({"spec": {"unhealthyPodEvictionPolicy": "AlwaysAllow"}});
    assert_eq!(cluster.api.patch(&web, "merge", &always).await.code, StatusCode::OK);
    assert_eq!(cluster.evict("b", "", &json!({})).await.code, StatusCode::CREATED);

    let mut second = budget(&json!({"maxUnavailable": 1}));
    second["metadata"]["name"] = json!("second");
    cluster.api.post(BUDGETS, &second).await;
    let refused = cluster.evict("c", "", &json!({})).await;
    assert_eq!(refused.code.as_u16(), 500, "{refused:?}");
    assert!(refused.at("/message").as_str().unwrap().contains("more than one"), "{refused:?}");
    // A pod without an owner: nobody can tell of how many one may miss.
    cluster.until(&format!("{BUDGETS}/second"), "/status/disruptionsAllowed", json!(0)).await;
    let found = cluster.api.get("/api/v1").await.json();
    let eviction =
        found["resources"].as_array().unwrap().iter().find(|row| row["name"] == "pods/eviction");
    let eviction = eviction.unwrap();
    assert_eq!(
        [&eviction["group"], &eviction["version"], &eviction["kind"]],
        ["policy", "v1", "Eviction"]
    );
    cluster.end().await;
}

fn replica_set(replicas: u32) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "web"}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "a", "image": "x"}]}}}})
}

#[tokio::test]
async fn what_an_owner_wants_is_what_a_percentage_is_of() {
    let cluster = Cluster::start().await;
    cluster.api.post(SETS, &replica_set(4)).await;
    cluster.until(&format!("{SETS}/web"), "/status/replicas", json!(4)).await;
    cluster.api.post(BUDGETS, &budget(&json!({"maxUnavailable": "30%"}))).await;
    let web = format!("{BUDGETS}/web");
    cluster.until(&web, "/status/expectedPods", json!(4)).await;
    // 30 % of 4, rounded up, may miss.
    cluster.until(&web, "/status/desiredHealthy", json!(2)).await;
    let list = cluster.api.get(PODS).await.json();
    for item in list["items"].as_array().unwrap() {
        cluster.say(item["metadata"]["name"].as_str().unwrap(), "Running", "True").await;
    }
    cluster.until(&web, "/status/disruptionsAllowed", json!(2)).await;
    let more = json!({"spec": {"replicas": 8}});
    cluster.api.patch(&format!("{SETS}/web"), "merge", &more).await;
    cluster.until(&web, "/status/expectedPods", json!(8)).await;
    cluster.until(&web, "/status/disruptionsAllowed", json!(0)).await;
    cluster.end().await;
}

fn quota(hard: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"},
        "spec": {"hard": hard}})
}

fn asks(cpu: &str) -> Value {
    json!({"requests": {"cpu": cpu}})
}

#[tokio::test]
async fn a_quota_is_never_exceeded_and_what_goes_is_given_back() {
    let cluster = Cluster::start().await;
    let hard = json!({"pods": "3", "requests.cpu": "1", "count/configmaps": "3", "services": "1",
        "services.nodeports": "0"});
    let made = cluster.api.post(QUOTAS, &quota(&hard)).await;
    assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
    let q = format!("{QUOTAS}/q");
    cluster.until(&q, "/status/hard", hard).await;
    cluster.until(&q, "/status/used/pods", json!("0")).await;

    // Ten at once of which three fit.
    let answers = join_all((0..10).map(|at| {
        let cluster = &cluster;
        async move { cluster.api.post(PODS, &pod(&format!("p{at}"), &asks("200m"))).await }
    }))
    .await;
    let made = answers.iter().filter(|answer| answer.code == 201).count();
    assert_eq!(made, 3, "{answers:?}");
    let refused = answers.iter().find(|answer| answer.code != 201).unwrap();
    assert_eq!(refused.code, StatusCode::FORBIDDEN);
    let said = refused.at("/message").as_str().unwrap().to_owned();
    let words = "exceeded quota: q, requested: pods=1, used: pods=3, limited: pods=3";
    assert!(said.starts_with("pods \"p") && said.ends_with(words), "{said}");
    assert_eq!(cluster.api.get(&q).await.at("/status/used/requests.cpu"), json!("600m"));
    let mute = cluster.api.post(PODS, &pod("mute", &json!({}))).await;
    let said = mute.at("/message").as_str().unwrap().to_owned();
    assert!(said.ends_with("failed quota: q: must specify requests.cpu for: a"), "{said}");

    let list = cluster.api.get(PODS).await.json();
    let first = list["items"][0]["metadata"]["name"].as_str().unwrap().to_owned();
    cluster.say(&first, "Succeeded", "False").await;
    cluster.until(&q, "/status/used/pods", json!("2")).await;
    let dear = cluster.api.post(PODS, &pod("dear", &asks("700m"))).await;
    let words = "exceeded quota: q, requested: requests.cpu=700m, used: requests.cpu=400m, limited: requests.cpu=1";
    assert!(dear.at("/message").as_str().unwrap().ends_with(words), "{dear:?}");
    let dry = cluster.api.post(&format!("{PODS}?dryRun=All"), &pod("dry", &asks("1"))).await;
    assert_eq!(dry.code, StatusCode::FORBIDDEN);
    assert_eq!(cluster.api.post(PODS, &pod("fits", &asks("600m"))).await.code, 201);
    cluster.api.delete(&format!("{PODS}/fits")).await;
    cluster.until(&q, "/status/used/requests.cpu", json!("400m")).await;

    let service = |name: &str, kind: &str| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"type": kind, "ports": [{"port": 80}]}})
    };
    let services = "/api/v1/namespaces/default/services";
    assert_eq!(cluster.api.post(services, &service("n", "NodePort")).await.code.as_u16(), 403);
    assert_eq!(cluster.api.post(services, &service("c", "ClusterIP")).await.code.as_u16(), 201);
    let opened = json!({"spec": {"type": "NodePort"}});
    let changed = cluster.api.patch(&format!("{services}/c"), "merge", &opened).await;
    assert_eq!(changed.code.as_u16(), 403, "a change may not exceed it either: {changed:?}");
    assert_eq!(cluster.api.post(services, &service("d", "ClusterIP")).await.code.as_u16(), 403);
    cluster.end().await;
}

#[tokio::test]
async fn a_replica_set_says_why_it_cannot_have_its_pods() {
    let cluster = Cluster::start().await;
    cluster.api.post(QUOTAS, &quota(&json!({"count/pods": "2"}))).await;
    cluster.until(&format!("{QUOTAS}/q"), "/status/used/count~1pods", json!("0")).await;
    cluster.api.post(SETS, &replica_set(4)).await;
    let set = format!("{SETS}/web");
    cluster.until(&set, "/status/conditions/0/type", json!("ReplicaFailure")).await;
    let failure = cluster.api.get(&set).await.at("/status/conditions/0");
    assert_eq!([&failure["status"], &failure["reason"]], ["True", "FailedCreate"]);
    assert!(failure["message"].as_str().unwrap().contains("exceeded quota: q"), "{failure}");
    assert_eq!(cluster.api.get(&set).await.at("/status/replicas"), json!(2));
    let more = json!({"spec": {"hard": {"count/pods": "10"}}});
    cluster.api.patch(&format!("{QUOTAS}/q"), "merge", &more).await;
    cluster.until(&set, "/status/replicas", json!(4)).await;
    cluster.until(&set, "/status/conditions", json!([])).await;
    cluster.end().await;
}

#[tokio::test]
async fn a_limit_range_fills_in_and_refuses_at_creation_only() {
    let api = Api::start().await;
    let range = json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "l"}, "spec": {
        "limits": [{"type": "Container", "max": {"cpu": "1"}, "min": {"cpu": "50m"},
            "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"}}]}});
    assert_eq!(api.post(LIMITS, &range).await.code, StatusCode::CREATED);
    let made = api.post(PODS, &pod("p", &json!({}))).await;
    let resources = made.at("/spec/containers/0/resources");
    assert_eq!(resources, json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "500m"}}));
    assert_eq!(made.at("/status/qosClass"), json!("Burstable"));
    let refused = api.post(PODS, &pod("q", &json!({"limits": {"cpu": "2"}}))).await;
    assert_eq!(
        refused.at("/message"),
        json!("pods \"q\" is forbidden: maximum cpu usage per Container is 1, but limit is 2")
    );
    let tighter = json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "10m"}}]}});
    assert_eq!(api.patch(&format!("{LIMITS}/l"), "merge", &tighter).await.code, StatusCode::OK);
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    assert_eq!(api.patch(&format!("{PODS}/p"), "merge", &label).await.code, StatusCode::OK);
}
