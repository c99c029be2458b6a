//! Watches: every change once, in order, as the selector sees it.

use std::collections::BTreeMap;

use axum::body::Body;
use edgeorc::api::user::UserInfo;
use futures_util::StreamExt as _;
use http::{Method, Request, StatusCode};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::support::Api;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// The events of a watch, one by one.
struct Watch {
    body: axum::body::BodyDataStream,
    rest: Vec<u8>,
}

impl Watch {
    async fn open(api: &Api, query: &str) -> Self {
        Self::open_at(api, MAPS, query).await
    }

    async fn open_at(api: &Api, path: &str, query: &str) -> Self {
        Self::open_as(api, UserInfo::new("admin", &["system:masters"]), path, query).await
    }

    async fn open_as(api: &Api, user: UserInfo, path: &str, query: &str) -> Self {
        let mut request =
            Request::get(format!("{path}?watch=true&{query}")).body(Body::empty()).unwrap();
        request.extensions_mut().insert(user);
        let response = api.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        Self { body: response.into_body().into_data_stream(), rest: Vec::new() }
    }

    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            self.rest.extend_from_slice(&self.body.next().await?.unwrap());
        }
    }

    /// Type and name of the next event that is no bookmark.
    async fn change(&mut self) -> (String, String) {
        loop {
            let event = self.next().await.unwrap();
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            if event["type"] != "BOOKMARK" {
                return (text(&event["type"]), text(&event["object"]["metadata"]["name"]));
            }
        }
    }
}

fn map(name: &str, label: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"l": label}}})
}

fn pair(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

#[tokio::test]
async fn a_watch_from_a_revision_has_no_gap_and_no_double() {
    let api = Api::start().await;
    let start = api.get(MAPS).await.at("/metadata/resourceVersion");
    let mut watch =
        Watch::open(&api, &format!("resourceVersion={}", start.as_str().unwrap())).await;
    let writes = async {
        for n in 0..50 {
            assert_eq!(api.post(MAPS, &map(&format!("m{n}"), "x")).await.code, StatusCode::CREATED);
        }
    };
    let reads = async {
        let mut seen: BTreeMap<String, u32> = BTreeMap::new();
        let mut last = 0;
        while seen.len() < 50 {
            let event = watch.next().await.unwrap();
            let revision: u64 =
                event["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
            if event["type"] == "BOOKMARK" {
                continue;
            }
            assert!(revision > last, "revisions only grow");
            last = revision;
            *seen
                .entry(event["object"]["metadata"]["name"].as_str().unwrap().to_owned())
                .or_default() += 1;
        }
        seen
    };
    let ((), seen) = tokio::join!(writes, reads);
    assert!(seen.values().all(|count| *count == 1), "{seen:?}");
}

#[tokio::test]
async fn entering_and_leaving_a_selector_are_added_and_deleted() {
    let api = Api::start().await;
    api.post(MAPS, &map("a", "in")).await;
    let mut watch = Watch::open(&api, "labelSelector=l%3Din").await;
    assert_eq!(watch.change().await, pair("ADDED", "a"));
    let relabel = |label: &str| json!({"metadata": {"labels": {"l": label}}});
    let one = format!("{MAPS}/a");
    api.patch(&one, "merge", &relabel("out")).await;
    assert_eq!(watch.change().await, pair("DELETED", "a"));
    api.patch(&one, "merge", &relabel("in")).await;
    assert_eq!(watch.change().await, pair("ADDED", "a"));
    api.patch(&one, "merge", &json!({"data": {"k": "v"}})).await;
    assert_eq!(watch.change().await, pair("MODIFIED", "a"));
    api.delete(&one).await;
    assert_eq!(watch.change().await, pair("DELETED", "a"));
}

#[tokio::test]
async fn bookmarks_come_and_a_watch_ends_at_its_time() {
    let api = Api::start().await;
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1";
    let mut watch = Watch::open(&api, query).await;
    let first = watch.next().await.unwrap();
    assert_eq!(first["type"], "BOOKMARK");
    assert_eq!(first["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let mut bookmarks = 0;
    while let Some(event) = watch.next().await {
        assert_eq!(event["type"], "BOOKMARK");
        bookmarks += 1;
    }
    assert!(bookmarks >= 2, "{bookmarks}");
}

#[tokio::test]
async fn a_revision_that_is_gone_is_told_within_the_stream() {
    let api = Api::start().await;
    let events = "/api/v1/namespaces/default/events";
    let gone = api.get(&format!("{events}?watch=true&resourceVersion=1")).await;
    assert_eq!(gone.code, StatusCode::OK);
    let event = gone.json();
    assert_eq!(event["type"], "ERROR");
    assert_eq!(
        (&event["object"]["code"], &event["object"]["reason"]),
        (&json!(410), &json!("Expired"))
    );
}

#[tokio::test]
async fn a_revision_to_come_is_waited_for_and_then_given_up() {
    let api = Api::start().await;
    let start = api.get(MAPS).await.at("/metadata/resourceVersion");
    let start: u64 = start.as_str().unwrap().parse().unwrap();
    let query = format!("resourceVersion={}", start + 1);
    let writes = async {
        for name in ["a", "b"] {
            api.post(MAPS, &map(name, "x")).await;
        }
    };
    let (mut watch, ()) = tokio::join!(Watch::open(&api, &query), writes);
    assert_eq!(watch.change().await, pair("ADDED", "b"));
    let far = api.get(&format!("{MAPS}?watch=true&resourceVersion={}", start + 1000)).await;
    assert_eq!(far.code, StatusCode::GATEWAY_TIMEOUT);
    assert!(far.at("/message").as_str().unwrap().contains("Too large resource version"));
}

#[tokio::test]
async fn two_watchers_of_one_object_see_the_same() {
    let api = Api::start().await;
    let mut watches = [Watch::open(&api, "").await, Watch::open(&api, "").await];
    api.post(MAPS, &map("a", "x")).await;
    api.delete(&format!("{MAPS}/a")).await;
    let mut seen = Vec::new();
    for watch in &mut watches {
        let mut events = Vec::new();
        while events.len() < 2 {
            events.extend(watch.next().await.filter(|event| event["type"] != "BOOKMARK"));
        }
        seen.push(events);
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0][1]["type"], "DELETED");
}

/// Goal: what an agent sees of its pods is whole, whether it reads along, falls behind, or comes back
/// with an old revision. Method: more changes than wait for one watcher, read by nobody until all are made.
#[tokio::test]
async fn the_watch_of_a_nodes_pods_has_each_change_once_however_late_it_is_read() {
    const ALL: &str = "/api/v1/pods";
    const PODS: &str = "/api/v1/namespaces/default/pods";
    let api = Api::start().await;
    let pod = |name: &str, node: &str| {
        json!({"metadata": {"name": name},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i:1"}]}})
    };
    let listed = api.get(&format!("{ALL}?fieldSelector=spec.nodeName%3Done")).await;
    let revision = listed.at("/metadata/resourceVersion");
    let query =
        format!("fieldSelector=spec.nodeName%3Done&resourceVersion={}", revision.as_str().unwrap());
    let mut first = Watch::open_at(&api, ALL, &query).await;
    api.post(PODS, &pod("a", "one")).await;
    assert_eq!(first.change().await, pair("ADDED", "a"));
    let names: Vec<String> = (0..200).map(|at| format!("p{at}")).collect();
    for (at, name) in names.iter().enumerate() {
        let made = api.post(PODS, &pod(name, if at % 2 == 0 { "one" } else { "two" })).await;
        assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
    }
    let mut late = Watch::open_at(&api, ALL, &query).await;
    assert_eq!(late.change().await, pair("ADDED", "a"));
    for watch in [&mut first, &mut late] {
        for name in names.iter().step_by(2) {
            assert_eq!(watch.change().await, pair("ADDED", name));
        }
    }
    for round in 0..3 {
        let label = json!({"metadata": {"labels": {"round": round.to_string()}}});
        for name in ["p1", "p0"] {
            api.patch(&format!("{PODS}/{name}"), "merge", &label).await;
        }
        for watch in [&mut first, &mut late] {
            assert_eq!(watch.change().await, pair("MODIFIED", "p0"));
        }
    }
}

fn node_user(name: &str) -> UserInfo {
    UserInfo::new(&format!("system:node:{name}"), &["system:nodes"])
}

/// A fleet's nodes all follow all Nodes: what is told of one is told as often as there are others.
#[tokio::test]
async fn a_node_is_told_of_others_what_their_routes_are_made_of_and_nothing_else() {
    const NODES: &str = "/api/v1/nodes";
    let api = Api::start().await;
    let start = api.get(NODES).await.at("/metadata/resourceVersion");
    let query = format!("resourceVersion={}", start.as_str().unwrap());
    let mut watch = Watch::open_as(&api, node_user("a"), NODES, &query).await;
    let change = async |path: &str, patch: Value| {
        let answer = api.patch(&format!("{NODES}/{path}"), "merge", &patch).await;
        assert_eq!(answer.code, StatusCode::OK, "{answer:?}");
    };
    for name in ["a", "b"] {
        let labels = json!({"topology.kubernetes.io/zone": "z", "kubernetes.io/os": "linux"});
        let node = json!({"metadata": {"name": name, "labels": labels}});
        assert_eq!(api.post(NODES, &node).await.code, StatusCode::CREATED);
    }
    let own = watch.next().await.unwrap();
    assert_eq!(
        own["object"]["metadata"]["labels"]["kubernetes.io/os"], "linux",
        "its own is whole"
    );
    // Nobody knows yet where b is.
    change("b", json!({"spec": {"podCIDR": "10.42.1.0/24"}})).await;
    let ready = |since: &str| {
        json!([{"type": "Ready", "status": "True", "lastHeartbeatTime": since,
            "lastTransitionTime": since}])
    };
    let addresses = json!([{"type": "InternalIP", "address": "10.0.0.1"}]);
    let status = json!({"addresses": addresses, "conditions": ready("2026-01-01T00:00:00Z")});
    change("b/status", json!({"status": status})).await;
    let added = watch.next().await.unwrap();
    let object = &added["object"];
    assert_eq!((&added["type"], &object["metadata"]["name"]), (&json!("ADDED"), &json!("b")));
    assert_eq!(object["spec"], json!({"podCIDR": "10.42.1.0/24"}));
    assert_eq!(object["status"], json!({"addresses": addresses}));
    assert_eq!(object["metadata"]["labels"], json!({"topology.kubernetes.io/zone": "z"}));
    assert_eq!(object["metadata"]["managedFields"], Value::Null);
    // Nothing of this is for a, not even that b is not ready any more; that it has moved is.
    change("b", json!({"metadata": {"labels": {"x": "y"}}})).await;
    let images = json!([{"names": ["i"], "sizeBytes": 1}]);
    let conditions = ready("2026-01-01T00:00:10Z");
    change("b/status", json!({"status": {"images": images, "conditions": conditions}})).await;
    let gone = json!([{"type": "Ready", "status": "Unknown"}]);
    change("b/status", json!({"status": {"conditions": gone}})).await;
    let addresses = json!([{"type": "InternalIP", "address": "10.0.0.2"}]);
    change("b/status", json!({"status": {"addresses": addresses}})).await;
    let moved = watch.next().await.unwrap();
    assert_eq!(moved["object"]["status"], json!({"addresses": addresses}));
    assert_eq!(moved["object"]["metadata"]["labels"], json!({"topology.kubernetes.io/zone": "z"}));
    // A list says the same, a single Node is whole, and others see all of it.
    let read = async |path: &str, user| api.send_as(Some(user), Method::GET, path, "", "").await;
    let listed = read(NODES, node_user("a")).await;
    assert_eq!(listed.at("/items/1/metadata"), moved["object"]["metadata"]);
    let (one, admin) = (format!("{NODES}/b"), UserInfo::new("admin", &["system:masters"]));
    assert_eq!(read(&one, node_user("a")).await.at("/metadata/labels/x"), "y");
    assert_eq!(read(NODES, admin).await.at("/items/1/metadata/labels/x"), "y");
    assert_eq!(api.delete(&one).await.code, StatusCode::OK);
    assert_eq!(watch.change().await, pair("DELETED", "b"));
}
