//! Claims of devices: the API server and the controllers together. The test has the scheduler's part.

use serde_json::{Value, json};

use crate::support::Cluster;

const CLAIMS: &str = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims";
const TEMPLATES: &str = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaimtemplates";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn devices() -> Value {
    json!({"devices": {"requests": [{"name": "one", "exactly": {"deviceClassName": "camera"}}]}})
}

fn pod(name: &str, source: &Value) -> Value {
    let mut claim = json!({"name": "cam"});
    claim.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
    json!({"metadata": {"name": name}, "spec": {"resourceClaims": [claim],
        "containers": [{"name": "a", "image": "x"}]}})
}

/// Gives the claim a device for these pods, as the scheduler does.
async fn give(cluster: &Cluster, claim: &str, pods: &[&Value]) {
    let keep = json!({"metadata": {"finalizers": ["resource.kubernetes.io/delete-protection"]}});
    cluster.api.patch(&format!("{CLAIMS}/{claim}"), "merge", &keep).await;
    let users: Vec<Value> = pods
        .iter()
        .map(|pod| json!({"resource": "pods", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}))
        .collect();
    let status = json!({"status": {"reservedFor": users, "allocation": {"devices": {"results": [
        {"request": "one", "driver": "edgeorc.io", "pool": "n", "device": "a"}]}}}});
    let given = cluster.api.patch(&format!("{CLAIMS}/{claim}/status"), "merge", &status).await;
    assert!(given.code.is_success(), "{given:?}");
}

/// Goal: a pod with a template gets a claim of its own, once, also when the template comes late, and the
/// claim goes with the pod.
#[tokio::test]
async fn a_claim_is_made_for_the_pod_and_goes_with_it() {
    let cluster = Cluster::start().await;
    let made = cluster.make(PODS, &pod("p", &json!({"resourceClaimTemplateName": "t"}))).await;
    let events = "/api/v1/namespaces/default/events";
    cluster.until_it(events, |list| list.to_string().contains("FailedResourceClaimCreation")).await;
    let template = json!({"metadata": {"name": "t"},
        "spec": {"metadata": {"labels": {"of": "t"}}, "spec": devices()}});
    cluster.make(TEMPLATES, &template).await;
    let told = cluster
        .until_it(&format!("{PODS}/p"), |pod| {
            !pod["status"]["resourceClaimStatuses"][0]["resourceClaimName"].is_null()
        })
        .await;
    let name = told["status"]["resourceClaimStatuses"][0]["resourceClaimName"].as_str().unwrap();
    let claim = cluster.api.get(&format!("{CLAIMS}/{name}")).await.json();
    assert_eq!(claim["metadata"]["ownerReferences"][0]["uid"], made["metadata"]["uid"]);
    assert_eq!(claim["metadata"]["labels"]["of"], "t");
    give(&cluster, name, &[&made]).await;
    // Deleted before it had a node: it will not run.
    cluster.api.delete(&format!("{PODS}/p?gracePeriodSeconds=0")).await;
    cluster.until_gone(&format!("{CLAIMS}/{name}")).await;
    cluster.end().await;
}

/// Goal: a claim that several pods share keeps its devices until the last of them is over, and then is
/// free for others; one that is deleted stays as long as somebody uses it.
#[tokio::test]
async fn a_shared_claim_is_free_after_its_last_pod() {
    let cluster = Cluster::start().await;
    cluster.make(CLAIMS, &json!({"metadata": {"name": "own"}, "spec": devices()})).await;
    let source = json!({"resourceClaimName": "own"});
    let first = cluster.make(PODS, &pod("first", &source)).await;
    let second = cluster.make(PODS, &pod("second", &source)).await;
    give(&cluster, "own", &[&first, &second]).await;
    let own = format!("{CLAIMS}/own");
    let over = json!({"status": {"phase": "Succeeded"}});
    cluster.api.patch(&format!("{PODS}/first/status"), "merge", &over).await;
    let left = cluster
        .until_it(&own, |claim| {
            claim["status"]["reservedFor"].as_array().is_some_and(|users| users.len() == 1)
        })
        .await;
    assert_eq!(left["status"]["reservedFor"][0]["name"], "second");
    assert!(!left["status"]["allocation"].is_null());
    cluster.api.delete(&own).await;
    let going = cluster.api.get(&own).await.json();
    assert!(!going["metadata"]["deletionTimestamp"].is_null(), "{going}");
    cluster.api.delete(&format!("{PODS}/second?gracePeriodSeconds=0")).await;
    cluster.until_gone(&own).await;
    cluster.end().await;
}
