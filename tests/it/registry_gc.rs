//! What the registry deletes, and what it keeps.

use http::{Method, StatusCode};
use serde_json::json;

use crate::registry::{ask, digest, push_blob, push_manifest};
use crate::support::Api;

/// Lets nobody have counted on a blob for so many hours.
fn age(api: &Api, digest: &str, hours: u64) {
    let file = std::fs::File::options().write(true).open(api.blob(digest)).unwrap();
    let time = std::time::SystemTime::now() - std::time::Duration::from_secs(hours * 3600);
    file.set_modified(time).unwrap();
}

/// Lets manifests have been pushed as many hours ago.
async fn age_manifests(api: &Api, hours: i64) {
    for (key, value, _) in api.store.raw_entries("/oci/manifests/", "", 1000).await.unwrap() {
        let mut stored: serde_json::Value = serde_json::from_slice(&value).unwrap();
        let pushed_at = stored["pushed_at"].as_i64().unwrap();
        stored["pushed_at"] = json!(pushed_at - hours * 3600);
        api.store.raw_put(&key, stored.to_string().into_bytes()).await.unwrap();
    }
}

/// Frees so many bytes of the registry if it can; how many manifests and blobs went.
async fn collect(api: &Api, wanted: u64) -> (usize, usize) {
    let collected = api.server.collect_garbage_once(wanted).await.unwrap();
    (collected.manifests, collected.blobs)
}

/// Goal: blobs that nothing names go, and none that somebody counts on. Method: time by the files' own.
#[tokio::test]
async fn a_blob_that_no_manifest_names_goes_after_a_day_in_which_nobody_asked_for_it() {
    let api = Api::start().await;
    let digests = [
        push_blob(&api, "a", b"in a manifest").await,
        push_blob(&api, "a", b"fresh").await,
        push_blob(&api, "a", b"asked for").await,
        push_blob(&api, "a", b"mounted").await,
        push_blob(&api, "a", b"nobody's").await,
    ];
    let [named, fresh, asked, mounted, nobodys] = &digests;
    let manifest = json!({"schemaVersion": 2, "layers": [{"digest": named}]});
    push_manifest(&api, "/v2/a/manifests/v1", &manifest).await;
    for old in [named, asked, mounted, nobodys] {
        age(&api, old, 25);
    }
    age(&api, fresh, 23);
    let head = ask(&api, Method::HEAD, &format!("/v2/a/blobs/{asked}"), &[], "").await;
    assert_eq!(head.code, StatusCode::OK);
    let mount = format!("/v2/b/blobs/uploads/?mount={mounted}&from=a");
    assert_eq!(ask(&api, Method::POST, &mount, &[], "").await.code, StatusCode::CREATED);
    assert_eq!(collect(&api, 0).await, (0, 1));
    let left = |digests: &[String]| -> Vec<bool> {
        digests.iter().map(|digest| api.blob(digest).exists()).collect()
    };
    assert_eq!(left(&digests), [true, true, true, true, false]);
    assert_eq!(api.get(&format!("/v2/a/blobs/{nobodys}")).await.code, StatusCode::NOT_FOUND);
    // A manifest that is pushed again keeps its blobs, also while it is on its way.
    let delete = ask(&api, Method::DELETE, "/v2/a/manifests/v1", &[], "").await;
    assert_eq!(delete.code, StatusCode::ACCEPTED);
    assert_eq!(collect(&api, 0).await, (0, 0), "it is there by its digest");
    let digest = digest(manifest.to_string().as_bytes());
    let place = format!("/v2/a/manifests/{digest}");
    ask(&api, Method::DELETE, &place, &[], "").await;
    push_manifest(&api, "/v2/a/manifests/v1", &manifest).await;
    ask(&api, Method::DELETE, &place, &[], "").await;
    assert_eq!(collect(&api, 0).await, (0, 0), "its manifest was pushed a moment ago");
    age(&api, named, 25);
    assert_eq!(collect(&api, 0).await, (0, 1));
}

/// A ReplicaSet that names one image by its tag, a pod that names one by its digest, and a node that has one
/// on its disk.
async fn name_images(api: &Api, tag_of_set: &str, digest_of_pod: &str, tag_on_node: &str) {
    let spec = |image: String| json!({"containers": [{"name": "app", "image": image}]});
    let set = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "old"},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "b"}},
            "spec": spec(format!("registry.edgeorc.local/default/app:{}", tag_of_set))}}});
    let made = api.post("/apis/apps/v1/namespaces/default/replicasets", &set).await;
    assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
    // What a node has on its disk is no use of it.
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"},
        "status": {"images": [{"names": [format!("default/app:{}", tag_on_node)]}]}});
    assert_eq!(api.post("/api/v1/nodes", &node).await.code, StatusCode::CREATED);
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": spec(format!("default/app@{}", digest_of_pod))});
    let made = api.post("/api/v1/namespaces/default/pods", &pod).await;
    assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
}

/// Pushes as `edgeorc deploy` does: the tag is the start of the component's digest. Gives the digest of the
/// component, the tag, and the digest of the manifest.
async fn deployed(api: &Api, bytes: &'static [u8]) -> (String, String, String) {
    let layer = push_blob(api, "default/app", bytes).await;
    let tag = layer["sha256:".len()..][..12].to_owned();
    let manifest = json!({"schemaVersion": 2, "layers": [{"digest": layer}]});
    let place = format!("/v2/default/app/manifests/{tag}");
    let digest = push_manifest(api, &place, &manifest).await;
    (layer, tag, digest)
}

/// Goal: a full disk loses images that are nobody's, the oldest first, and no others. Method: one image for
/// each reason to stay.
#[tokio::test]
async fn a_full_disk_loses_images_that_nobody_named_and_nothing_runs() {
    let api = Api::start().await;
    let deployed = async |bytes: &'static [u8]| deployed(&api, bytes).await;
    let oldest = deployed(b"an old build").await;
    let signed = deployed(b"another old build").await;
    let rolled_back_to = deployed(b"in a ReplicaSet").await;
    let running = deployed(b"what a pod runs").await;
    let new = deployed(b"a build of today").await;
    let again = deployed(b"an old build that is deployed again").await;
    let named = deployed(b"somebody gave it a name").await;
    let layers = json!({"schemaVersion": 2, "layers": [{"digest": named.0}]});
    push_manifest(&api, "/v2/default/app/manifests/stable", &layers).await;
    let child = deployed(b"for one platform").await;
    let index = json!({"schemaVersion": 2, "manifests": [{"digest": child.2}]});
    push_manifest(&api, "/v2/default/app/manifests/v2", &index).await;
    let untagged = push_blob(&api, "default/app", b"pushed by digest").await;
    let manifest = json!({"schemaVersion": 2, "layers": [{"digest": untagged}]});
    let by_digest = digest(manifest.to_string().as_bytes());
    push_manifest(&api, &format!("/v2/default/app/manifests/{by_digest}"), &manifest).await;
    let signature = push_blob(&api, "default/app", b"signature").await;
    let manifest = json!({"schemaVersion": 2, "layers": [{"digest": signature}]});
    let place = format!("/v2/default/app/manifests/{}.sig", signed.2.replace(':', "-"));
    push_manifest(&api, &place, &manifest).await;
    let old = [&oldest, &signed, &rolled_back_to, &running, &named, &child];
    let old = old.map(|image| &image.0).into_iter().chain([&untagged, &signature]);
    old.for_each(|blob| age(&api, blob, 25));
    age(&api, &oldest.0, 100);
    age_manifests(&api, 25).await;
    // Pushed again: at another server, whose files are its own.
    let again = json!({"schemaVersion": 2, "layers": [{"digest": again.0}]});
    let place = format!("/v2/default/app/manifests/{}", digest(again.to_string().as_bytes()));
    let again = again["layers"][0]["digest"].as_str().unwrap().to_owned();
    push_manifest(&api, &place, &json!({"schemaVersion": 2, "layers": [{"digest": again}]})).await;
    age(&api, &again, 25);
    name_images(&api, &rolled_back_to.1, &running.2, &oldest.1).await;

    assert_eq!(collect(&api, 0).await, (0, 0), "the disk is not full");
    assert_eq!(collect(&api, 1).await, (1, 1), "one is enough");
    assert!(!api.blob(&oldest.0).exists());
    // The signature goes once what it signs is gone.
    assert_eq!(collect(&api, u64::MAX).await, (3, 3));
    for (what, digest, is_left) in [
        ("an old build", &signed.0, false),
        ("its signature", &signature, false),
        ("untagged", &untagged, false),
        ("in a ReplicaSet", &rolled_back_to.0, true),
        ("what a pod runs", &running.0, true),
        ("a build of today", &new.0, true),
        ("deployed again", &again, true),
        ("with a name", &named.0, true),
        ("listed by an index", &child.0, true),
    ] {
        assert_eq!(api.blob(digest).exists(), is_left, "{what}");
    }
    for (reference, code) in [
        (&oldest.1, StatusCode::NOT_FOUND),
        (&by_digest, StatusCode::NOT_FOUND),
        (&running.1, StatusCode::OK),
    ] {
        let path = format!("/v2/default/app/manifests/{reference}");
        assert_eq!(api.get(&path).await.code, code, "{reference}");
    }
    assert_eq!(collect(&api, u64::MAX).await, (0, 0));
    let stored = format!("/oci/manifests/default/app/{}", running.2);
    let (_, _, revision) = api.store.raw_entries(&stored, "", 1).await.unwrap().remove(0);
    let read = |revision| [(stored.clone(), revision)];
    let others = ["/oci/other".to_owned()];
    assert!(!api.store.raw_delete_unchanged(&read(revision - 1), &others).await.unwrap());
    assert!(api.store.raw_delete_unchanged(&read(revision), &others).await.unwrap());
}
