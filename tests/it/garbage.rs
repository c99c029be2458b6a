//! What goes with what: dependents with their owners, and all there is with its namespace.

use http::StatusCode;
use serde_json::{Value, json};

use crate::support::{Api, Cluster};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const NAMESPACES: &str = "/api/v1/namespaces";

impl Cluster {
    /// Makes a ConfigMap that these own; returns its uid.
    async fn owned(&self, name: &str, owners: &[(&str, &str)]) -> String {
        let owners: Vec<_> = owners.iter().map(|(name, uid)| reference(name, uid)).collect();
        let metadata = json!({"name": name, "ownerReferences": owners});
        let made = self.make(MAPS, &json!({"metadata": metadata})).await;
        made["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    async fn delete_with(&self, name: &str, policy: &str) {
        let path = format!("{MAPS}/{name}?propagationPolicy={policy}");
        let answer = self.api.delete(&path).await;
        assert_eq!(answer.code, StatusCode::OK, "{answer:?}");
    }
}

fn map(name: &str) -> String {
    format!("{MAPS}/{name}")
}

fn reference(name: &str, uid: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid,
        "blockOwnerDeletion": true})
}

#[tokio::test]
async fn dependents_go_before_or_after_their_owner_or_stay_as_the_policy_says() {
    let cluster = Cluster::start().await;
    let background = cluster.owned("background", &[]).await;
    cluster.owned("behind", &[("background", &background)]).await;
    cluster.delete_with("background", "Background").await;
    cluster.until_gone(&map("background")).await;
    cluster.until_gone(&map("behind")).await;

    // In the foreground the owner stays until the last one that blocks it has gone.
    let foreground = cluster.owned("foreground", &[]).await;
    cluster.owned("held", &[("foreground", &foreground)]).await;
    let hold = json!({"metadata": {"finalizers": ["example.com/hold"]}});
    assert_eq!(cluster.api.patch(&map("held"), "merge", &hold).await.code, StatusCode::OK);
    cluster.delete_with("foreground", "Foreground").await;
    cluster.until_it(&map("held"), |map| !map["metadata"]["deletionTimestamp"].is_null()).await;
    let owner = cluster.api.get(&map("foreground")).await;
    assert_eq!(owner.at("/metadata/finalizers"), json!(["foregroundDeletion"]));
    let go = json!({"metadata": {"finalizers": []}});
    assert_eq!(cluster.api.patch(&map("held"), "merge", &go).await.code, StatusCode::OK);
    cluster.until_gone(&map("held")).await;
    cluster.until_gone(&map("foreground")).await;

    let orphaned = cluster.owned("orphaned", &[]).await;
    cluster.owned("kept", &[("orphaned", &orphaned)]).await;
    cluster.delete_with("orphaned", "Orphan").await;
    cluster.until_gone(&map("orphaned")).await;
    let kept = cluster.api.get(&map("kept")).await;
    assert_eq!(kept.at("/metadata/ownerReferences"), Value::Null);

    // With another owner that stays, only the reference goes; an owner of the same name is another.
    let (one, two) = (cluster.owned("one", &[]).await, cluster.owned("two", &[]).await);
    cluster.owned("shared", &[("one", &one), ("two", &two)]).await;
    cluster.delete_with("one", "Foreground").await;
    cluster.until_gone(&map("one")).await;
    cluster
        .until_it(&map("shared"), |map| {
            map["metadata"]["ownerReferences"] == json!([reference("two", &two)])
        })
        .await;
    cluster.owned("late", &[("two", &one)]).await;
    cluster.until_gone(&map("late")).await;
    assert_eq!(cluster.api.get(&map("shared")).await.code, StatusCode::OK);
    cluster.end().await;
}

#[tokio::test]
async fn a_second_delete_may_say_otherwise_what_becomes_of_dependents() {
    let cluster = Cluster::start().await;
    let owner = cluster.owned("owner", &[]).await;
    cluster.owned("held", &[("owner", &owner)]).await;
    let hold = json!({"metadata": {"finalizers": ["example.com/hold"]}});
    assert_eq!(cluster.api.patch(&map("held"), "merge", &hold).await.code, StatusCode::OK);
    cluster.delete_with("owner", "Foreground").await;
    cluster.until_it(&map("held"), |map| !map["metadata"]["deletionTimestamp"].is_null()).await;
    assert_eq!(cluster.api.get(&map("owner")).await.code, StatusCode::OK, "it waits");
    cluster.delete_with("owner", "Background").await;
    cluster.until_gone(&map("owner")).await;
    assert_eq!(cluster.api.get(&map("held")).await.code, StatusCode::OK);

    // As clients of old say it, and not in both ways at once.
    let one = cluster.owned("one", &[]).await;
    cluster.owned("left", &[("one", &one)]).await;
    let orphaning = format!("{}?orphanDependents=true", map("one"));
    let refused = cluster.api.delete(&format!("{orphaning}&propagationPolicy=Orphan")).await;
    assert_eq!(refused.code.as_u16(), 422, "{refused:?}");
    assert_eq!(refused.at("/details/causes/0/field"), "propagationPolicy");
    assert_eq!(cluster.api.delete(&orphaning).await.code, StatusCode::OK);
    cluster.until_gone(&map("one")).await;
    let left = cluster.api.get(&map("left")).await;
    assert_eq!(left.at("/metadata/ownerReferences"), Value::Null);
    cluster.end().await;
}

#[tokio::test]
async fn owners_in_a_circle_go_with_the_first_of_them() {
    let cluster = Cluster::start().await;
    let names = ["a", "b", "c"];
    let mut uids = Vec::new();
    for name in names {
        uids.push(cluster.owned(name, &[]).await);
    }
    for (at, name) in names.iter().enumerate() {
        let before = (at + 2) % 3;
        let owners =
            json!({"metadata": {"ownerReferences": [reference(names[before], &uids[before])]}});
        assert_eq!(cluster.api.patch(&map(name), "merge", &owners).await.code, StatusCode::OK);
    }
    cluster.delete_with("a", "Foreground").await;
    for name in names {
        cluster.until_gone(&map(name)).await;
    }
    cluster.end().await;
}

#[tokio::test]
async fn a_namespace_has_what_it_needs_goes_with_all_it_holds_and_says_what_it_waits_for() {
    let cluster = Cluster::start().await;
    let made = cluster.make(NAMESPACES, &json!({"metadata": {"name": "team"}})).await;
    assert_eq!(made["spec"]["finalizers"], json!(["kubernetes"]));
    assert_eq!(made["metadata"]["labels"], json!({"kubernetes.io/metadata.name": "team"}));
    assert_eq!(made["status"]["phase"], json!("Active"));
    let team = format!("{NAMESPACES}/team");
    let named = |what: &str| format!("{team}/{what}");
    cluster.until(&named("serviceaccounts/default"), "/kind", json!("ServiceAccount")).await;
    let root_ca = named("configmaps/kube-root-ca.crt");
    let made = cluster.until_it(&root_ca, |map| map["kind"] == "ConfigMap").await;
    // So does the CA's certificate, as it was.
    let others = json!({"data": {"ca.crt": "none", "more": "x"}});
    assert_eq!(cluster.api.patch(&root_ca, "merge", &others).await.code, StatusCode::OK);
    cluster.until_it(&root_ca, |map| map["data"] == made["data"]).await;
    cluster.api.delete(&root_ca).await;
    let is_new = |map: &Value| {
        map["data"] == made["data"] && map["metadata"]["uid"] != made["metadata"]["uid"]
    };
    cluster.until_it(&root_ca, is_new).await;
    // The account of every namespace comes back.
    let before = cluster.api.get(&named("serviceaccounts/default")).await.at("/metadata/uid");
    cluster.api.delete(&named("serviceaccounts/default")).await;
    cluster
        .until_it(&named("serviceaccounts/default"), |account| {
            account["kind"] == "ServiceAccount" && account["metadata"]["uid"] != before
        })
        .await;

    for (name, finalizers) in [("free", json!([])), ("held", json!(["example.com/hold"]))] {
        let metadata = json!({"name": name, "finalizers": finalizers});
        cluster.make(&named("configmaps"), &json!({"metadata": metadata})).await;
    }
    let pod = json!({"metadata": {"name": "p", "finalizers": ["example.com/first"]},
        "spec": {"containers": [{"name": "a", "image": "x"}]}});
    cluster.make(&named("pods"), &pod).await;
    assert_eq!(cluster.api.delete(&team).await.code, StatusCode::OK);
    let condition = |namespace: &Value, name: &str| {
        let conditions = namespace["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.into_iter().find(|condition| condition["type"] == name);
        found.map(|found| format!("{} {}", found["status"], found["message"])).unwrap_or_default()
    };
    let waits = |kind: &str, finalizer: &str| {
        let resources = format!("Some resources are remaining: {kind}. has 1 resource instances");
        let finalizers = format!(
            "Some content in the namespace has finalizers remaining: {finalizer} in 1 resource instances"
        );
        move |namespace: &Value| {
            condition(namespace, "NamespaceContentRemaining") == format!("\"True\" {resources:?}")
                && condition(namespace, "NamespaceFinalizersRemaining")
                    == format!("\"True\" {finalizers:?}")
        }
    };
    // Pods first: what they rely on is there as long as they are.
    let seen = cluster.until_it(&team, waits("pods", "example.com/first")).await;
    assert_eq!(seen["status"]["phase"], json!("Terminating"));
    assert_eq!(cluster.api.get(&named("configmaps/free")).await.code, StatusCode::OK);
    let late = cluster.api.post(&named("configmaps"), &json!({"metadata": {"name": "late"}})).await;
    assert_eq!(late.code, StatusCode::FORBIDDEN);
    assert_eq!(late.at("/details/causes/0/reason"), json!("NamespaceTerminating"));
    let go = json!({"metadata": {"finalizers": null}});
    assert_eq!(cluster.api.patch(&named("pods/p"), "merge", &go).await.code, StatusCode::OK);
    cluster.until_it(&team, waits("configmaps", "example.com/hold")).await;
    assert_eq!(cluster.api.get(&named("configmaps/free")).await.code, StatusCode::NOT_FOUND);
    assert_eq!(
        cluster.api.patch(&named("configmaps/held"), "merge", &go).await.code,
        StatusCode::OK
    );
    cluster.until_gone(&team).await;

    for kept in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        let answer = cluster.api.delete(&format!("{NAMESPACES}/{kept}")).await;
        assert_eq!(answer.code, StatusCode::FORBIDDEN, "{kept}: {answer:?}");
    }
    cluster.end().await;
}

#[tokio::test]
async fn a_namespace_keeps_its_label_goes_alone_and_takes_nothing_more_when_it_goes() {
    let api = Api::start().await;
    let made = api.post(NAMESPACES, &json!({"metadata": {"generateName": "team-"}})).await;
    let name = made.at("/metadata/name").as_str().unwrap().to_owned();
    let labels = json!({"kubernetes.io/metadata.name": name});
    assert_eq!(made.at("/metadata/labels"), labels);
    let team = format!("{NAMESPACES}/{name}");
    let renamed = json!({"metadata": {"labels": {"kubernetes.io/metadata.name": "other"}}});
    assert_eq!(api.patch(&team, "merge", &renamed).await.at("/metadata/labels"), labels);
    let replaced = api.put(&team, &json!({"metadata": {"name": name}})).await;
    assert_eq!(replaced.at("/metadata/labels"), labels);

    let all = api.delete(NAMESPACES).await;
    assert_eq!(all.code, StatusCode::METHOD_NOT_ALLOWED, "{all:?}");
    let going = api.delete(&team).await;
    assert_eq!(going.at("/status/phase"), "Terminating");
    let late = format!("{team}/configmaps?dryRun=All");
    let late = api.post(&late, &json!({"metadata": {"name": "late"}})).await;
    assert_eq!(late.code, StatusCode::FORBIDDEN, "nor would it be taken: {late:?}");
}
