//! Deployments and ReplicaSets: the API server and the controllers together, without a node.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use edgeorc::controllers::Settings;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{Api, Cluster};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const SETS: &str = "/apis/apps/v1/namespaces/default/replicasets";
const PODS: &str = "/api/v1/namespaces/default/pods";
const QUOTAS: &str = "/api/v1/namespaces/default/resourcequotas";

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "a", "image": image}]}})
}

fn deployment() -> Value {
    json!({"metadata": {"name": "web"}, "spec": {"replicas": 2,
        "selector": {"matchLabels": {"app": "web"}}, "template": template("x:1")}})
}

fn names(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().unwrap().iter();
    items.map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

/// Goal: a name that somebody else's ReplicaSet has costs the Deployment another name, no more.
/// Method: the name is that of an earlier Deployment of the same template.
#[tokio::test]
async fn a_name_that_is_taken_by_another_template_is_counted_and_gone_around() {
    let cluster = Cluster::start().await;
    cluster.make(DEPLOYMENTS, &deployment()).await;
    let list = cluster
        .until_it(SETS, |list| list["items"].as_array().is_some_and(|items| items.len() == 1))
        .await;
    let taken = names(&list).remove(0);
    let web = format!("{DEPLOYMENTS}/web");
    cluster.api.delete(&format!("{web}?propagationPolicy=Foreground")).await;
    cluster.until_gone(&web).await;
    let strangers = json!({"metadata": {"name": taken}, "spec": {"replicas": 0,
        "selector": {"matchLabels": {"app": "other"}},
        "template": {"metadata": {"labels": {"app": "other"}},
            "spec": {"containers": [{"name": "a", "image": "y"}]}}}});
    let strangers = cluster.make(SETS, &strangers).await;

    cluster.make(DEPLOYMENTS, &deployment()).await;
    cluster.until(&web, "/status/collisionCount", json!(1)).await;
    cluster.until(&web, "/status/replicas", json!(2)).await;
    let list = names(&cluster.api.get(SETS).await.json());
    assert_eq!(list.len(), 2, "{list:?}");
    let is = cluster.api.get(&format!("{SETS}/{taken}")).await.json();
    assert_eq!(
        (&is["spec"], &is["metadata"]["uid"]),
        (&strangers["spec"], &strangers["metadata"]["uid"])
    );
    cluster.end().await;
}

/// Goal: what must fail fails a few times, not once for every pod. Method: a hundred are wanted, one is
/// allowed; every attempt of the controllers is counted at the API's door.
#[tokio::test]
async fn pods_are_made_in_batches_that_double_and_stop_at_the_first_refusal() {
    let api = Api::start().await;
    let attempts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&attempts);
    let router = api.router.clone().layer(axum::middleware::map_request(
        move |request: http::Request<axum::body::Body>| {
            if request.method() == Method::POST && request.uri().path() == PODS {
                counted.fetch_add(1, Ordering::Relaxed);
            }
            async move { request }
        },
    ));
    let client = edgeorc::client::in_process(router, "admin", &["system:masters"]);
    let cluster = Cluster::with(api, client, Settings::default());
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"count/pods": "4"}}});
    cluster.make(QUOTAS, &quota).await;
    cluster.until(&format!("{QUOTAS}/q"), "/status/used/count~1pods", json!("0")).await;
    let set = json!({"metadata": {"name": "many"}, "spec": {"replicas": 100,
        "selector": {"matchLabels": {"app": "web"}}, "template": template("x:1")}});
    cluster.make(SETS, &set).await;
    let many = format!("{SETS}/many");
    cluster.until(&many, "/status/conditions/0/reason", json!("FailedCreate")).await;
    cluster.until(&many, "/status/replicas", json!(4)).await;
    // 1, 2 and 4 of the first run; then one for each of the few runs since.
    let count = attempts.load(Ordering::Relaxed);
    assert!((7..30).contains(&count), "{count} attempts");
    let list = names(&cluster.api.get(PODS).await.json());
    for name in &list {
        let suffix = name.strip_prefix("many-").unwrap();
        let is_safe = suffix.bytes().all(|c| b"bcdfghjklmnpqrstvwxz2456789".contains(&c));
        assert!(suffix.len() == 5 && is_safe, "{name}");
    }
    let is_told = |events: &Value| {
        let items = events["items"].as_array().unwrap();
        items.iter().any(|it| it["reason"] == "FailedCreate" && it["type"] == "Warning")
    };
    cluster.until_it("/api/v1/namespaces/default/events", is_told).await;
    cluster.end().await;
}

/// Goal: an owner that is gone adopts nothing, whatever the controller's cache says. Method: the
/// controllers see an owner that the server, asked for it alone, does not have.
#[tokio::test]
async fn an_owner_is_asked_for_again_before_it_adopts() {
    let api = Api::start().await;
    let path = format!("{SETS}/ghost");
    let router = api.router.clone().layer(axum::middleware::from_fn(
        move |request: http::Request<axum::body::Body>, next: axum::middleware::Next| {
            let is_ghost = request.method() == Method::GET && request.uri().path() == path;
            async move {
                let mut answer = next.run(request).await;
                if is_ghost {
                    let gone = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                        "reason": "NotFound", "code": 404, "message": "gone"});
                    *answer.status_mut() = StatusCode::NOT_FOUND;
                    answer.headers_mut().remove(http::header::CONTENT_LENGTH);
                    *answer.body_mut() = axum::body::Body::from(gone.to_string());
                }
                answer
            }
        },
    ));
    let client = edgeorc::client::in_process(router, "admin", &["system:masters"]);
    let cluster = Cluster::with(api, client, Settings::default());
    let orphan = json!({"metadata": {"name": "orphan", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "a", "image": "x:1"}]}});
    cluster.make(PODS, &orphan).await;
    for name in ["ghost", "real"] {
        let mut labels = json!({"app": "web"});
        if name == "real" {
            labels["own"] = json!("yes");
        }
        let mut template = template("x:1");
        template["metadata"]["labels"] = labels.clone();
        let set = json!({"metadata": {"name": name}, "spec": {"replicas": 1,
            "selector": {"matchLabels": labels}, "template": template}});
        cluster.make(SETS, &set).await;
    }
    // The second set shows that the controller works; the first would have taken the orphan by then.
    cluster.until(&format!("{SETS}/real"), "/status/replicas", json!(1)).await;
    cluster.until(&format!("{SETS}/ghost"), "/status/observedGeneration", json!(1)).await;
    let orphan = cluster.api.get(&format!("{PODS}/orphan")).await;
    assert_eq!(orphan.at("/metadata/ownerReferences"), Value::Null);
    cluster.end().await;
}

#[tokio::test]
async fn a_selector_matches_its_template_and_never_changes() {
    let api = Api::start().await;
    for (group, plural, extra) in [
        ("/apis/apps/v1", "deployments", json!({})),
        ("/apis/apps/v1", "replicasets", json!({})),
        ("/apis/apps/v1", "daemonsets", json!({})),
        ("/apis/apps/v1", "statefulsets", json!({"serviceName": "web"})),
        ("/apis/batch/v1", "jobs", json!({"manualSelector": true})),
    ] {
        let path = format!("{group}/namespaces/default/{plural}");
        let mut object = deployment();
        if plural == "daemonsets" || plural == "jobs" {
            object["spec"].as_object_mut().unwrap().remove("replicas");
        }
        if plural == "jobs" {
            object["spec"]["template"]["spec"]["restartPolicy"] = json!("Never");
        }
        json_patch::merge(&mut object["spec"], &extra);
        let mut unlike = object.clone();
        unlike["spec"]["selector"]["matchLabels"] = json!({"app": "other"});
        let refused = api.post(&path, &unlike).await;
        assert_eq!(refused.code, StatusCode::UNPROCESSABLE_ENTITY, "{plural}: {refused:?}");
        assert!(refused.at("/message").as_str().unwrap().contains("selector"), "{refused:?}");
        if group == "/apis/apps/v1" {
            let mut without = object.clone();
            without["spec"].as_object_mut().unwrap().remove("selector");
            let refused = api.post(&path, &without).await;
            assert_eq!(refused.code, StatusCode::UNPROCESSABLE_ENTITY, "{plural}: {refused:?}");
            let message = refused.at("/message");
            assert!(message.as_str().unwrap().contains("spec.selector: Required value"));
        }
        let made = api.post(&path, &object).await;
        assert_eq!(made.code, StatusCode::CREATED, "{plural}: {made:?}");
        let more = json!({"spec": {"selector": {"matchLabels": {"tier": "a"}},
            "template": {"metadata": {"labels": {"tier": "a"}}}}});
        let refused = api.patch(&format!("{path}/web"), "merge", &more).await;
        assert_eq!(refused.code, StatusCode::UNPROCESSABLE_ENTITY, "{plural}: {refused:?}");
    }
}

/// Goal: deleted without a word on its pods, a Job or ReplicationController leaves them, and says so;
/// all else takes them along.
#[tokio::test]
async fn only_old_kinds_leave_their_pods_behind_when_nobody_says_what_becomes_of_them() {
    let cluster = Cluster::start().await;
    let mut job = json!({"metadata": {"name": "j"}, "spec": {"template": template("x:1")}});
    job["spec"]["template"]["spec"]["restartPolicy"] = json!("Never");
    // The pod that it leaves is nobody's: the ReplicaSet must not take it in.
    job["spec"]["template"]["metadata"]["labels"] = json!({"app": "j"});
    let jobs = "/apis/batch/v1/namespaces/default/jobs";
    let controllers = "/api/v1/namespaces/default/replicationcontrollers";
    let controller = json!({"metadata": {"name": "rc"}, "spec": {"replicas": 1,
        "template": {"metadata": {"labels": {"app": "rc"}},
            "spec": {"containers": [{"name": "a", "image": "x:1"}]}}}});
    let set = json!({"metadata": {"name": "rs"}, "spec": {"replicas": 1,
        "selector": {"matchLabels": {"app": "web"}}, "template": template("x:1")}});
    for (path, object, pointer, stay) in [
        (jobs, &job, "/status/active", true),
        (controllers, &controller, "/status/replicas", true),
        (SETS, &set, "/status/replicas", false),
    ] {
        let name = object["metadata"]["name"].as_str().unwrap();
        cluster.make(path, object).await;
        let own = format!("{path}/{name}");
        cluster.until(&own, pointer, json!(1)).await;
        let list = names(&cluster.api.get(PODS).await.json());
        let pod = list.into_iter().find(|pod| pod.starts_with(&format!("{name}-"))).unwrap();
        let pod = format!("{PODS}/{pod}");
        let deleted = cluster.api.delete(&own).await;
        assert_eq!(deleted.code, StatusCode::OK, "{deleted:?}");
        cluster.until_gone(&own).await;
        if stay {
            let pod = cluster.api.get(&pod).await;
            assert_eq!(pod.at("/metadata/ownerReferences"), Value::Null, "{pod:?}");
        } else {
            cluster.until_gone(&pod).await;
        }
        let is_warned = deleted.headers.contains_key("warning");
        assert_eq!(is_warned, stay, "{name}: {:?}", deleted.headers);
    }
    cluster.end().await;
}

/// The one pod that is there, once it is another one than `before`.
async fn pod_after(cluster: &Cluster, before: &str) -> String {
    let is_it = |list: &Value| names(list).first().is_some_and(|name| name != before);
    names(&cluster.until_it(PODS, is_it).await).remove(0)
}

async fn say_phase(cluster: &Cluster, pod: &str, phase: &str) {
    let path = format!("{PODS}/{pod}/status");
    let said = cluster.api.patch(&path, "merge", &json!({"status": {"phase": phase}})).await;
    assert_eq!(said.code, StatusCode::OK, "{said:?}");
}

/// Goal: a pod that fails again and again is not replaced again and again. Method: the second failure is
/// replaced a second after the first one at the earliest.
#[tokio::test]
async fn the_second_pod_of_a_daemon_set_that_fails_stays_for_a_while() {
    let cluster = Cluster::start().await;
    cluster.make("/api/v1/nodes", &json!({"metadata": {"name": "n"}})).await;
    let mut set = deployment();
    set["spec"].as_object_mut().unwrap().remove("replicas");
    // The node has no agent, and is soon said to be unreachable.
    set["spec"]["template"]["spec"]["tolerations"] = json!([{"operator": "Exists"}]);
    cluster.make("/apis/apps/v1/namespaces/default/daemonsets", &set).await;
    let first = pod_after(&cluster, "").await;
    let began = Instant::now();
    say_phase(&cluster, &first, "Failed").await;
    let second = pod_after(&cluster, &first).await;
    say_phase(&cluster, &second, "Failed").await;
    pod_after(&cluster, &second).await;
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    cluster.end().await;
}

/// Goal: a Job whose time is over goes after its pods. Method: somebody holds its pod.
#[tokio::test]
async fn a_job_whose_time_is_over_waits_for_its_pods_to_go_first() {
    let cluster = Cluster::start().await;
    let jobs = "/apis/batch/v1/namespaces/default/jobs";
    let mut template = template("x:1");
    template["spec"]["restartPolicy"] = json!("Never");
    template["metadata"]["finalizers"] = json!(["example.com/hold"]);
    let job = json!({"metadata": {"name": "j"},
        "spec": {"ttlSecondsAfterFinished": 0, "template": template}});
    cluster.make(jobs, &job).await;
    let pod = pod_after(&cluster, "").await;
    say_phase(&cluster, &pod, "Succeeded").await;
    let job = format!("{jobs}/j");
    cluster.until(&job, "/metadata/finalizers", json!(["foregroundDeletion"])).await;
    let free = json!({"metadata": {"finalizers": null}});
    let freed = cluster.api.patch(&format!("{PODS}/{pod}"), "merge", &free).await;
    assert_eq!(freed.code, StatusCode::OK, "{freed:?}");
    cluster.until_gone(&job).await;
    cluster.end().await;
}
