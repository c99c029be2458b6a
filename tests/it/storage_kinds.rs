//! The kinds of storage.k8s.io beside StorageClass. No driver runs here: they are kept, checked and shown.

use futures_util::TryStreamExt as _;
use http::{Method, StatusCode};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::Api as KubeApi;
use kube::api::{WatchEvent, WatchParams};
use serde_json::{Value, json};

use crate::support::Api;

const GROUP: &str = "/apis/storage.k8s.io/v1";
const ATTACHMENTS: &str = "/apis/storage.k8s.io/v1/volumeattachments";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

/// The collection of each kind, and an object of it.
fn objects() -> [(&'static str, Value); 5] {
    let of = |kind: &str, name: &str, rest: Value| {
        let mut object = json!({"apiVersion": "storage.k8s.io/v1", "kind": kind,
            "metadata": {"name": name}});
        for (key, value) in rest.as_object().unwrap() {
            object[key] = value.clone();
        }
        object
    };
    [
        (
            "csidrivers",
            of(
                "CSIDriver",
                "disk.example.com",
                json!({"spec": {"attachRequired": false, "tokenRequests": [{"audience": "a"}]}}),
            ),
        ),
        (
            "csinodes",
            of(
                "CSINode",
                "n1",
                json!({"spec": {"drivers": [{"name": "disk.example.com", "nodeID": "i-1",
                    "topologyKeys": ["example.com/zone"], "allocatable": {"count": 8}}]}}),
            ),
        ),
        (
            "namespaces/default/csistoragecapacities",
            of(
                "CSIStorageCapacity",
                "c",
                json!({"storageClassName": "fast", "capacity": "1024Mi",
                    "nodeTopology": {"matchLabels": {"example.com/zone": "a"}}}),
            ),
        ),
        (
            "volumeattachments",
            of(
                "VolumeAttachment",
                "a",
                json!({"spec": {"attacher": "disk.example.com", "nodeName": "n1",
                    "source": {"persistentVolumeName": "pv"}}}),
            ),
        ),
        (
            "volumeattributesclasses",
            of(
                "VolumeAttributesClass",
                "gold",
                json!({"driverName": "disk.example.com", "parameters": {"iops": "100"}}),
            ),
        ),
    ]
}

/// The object of a kind in [`objects`] with `change` merged in at its top.
fn changed(plural: &str, change: &Value) -> Value {
    let found = objects().into_iter().find(|(collection, _)| collection.ends_with(plural));
    let (_, mut object) = found.unwrap();
    for (key, value) in change.as_object().unwrap() {
        object[key] = value.clone();
    }
    object
}

fn collection(plural: &str) -> String {
    let found = objects().into_iter().find(|(collection, _)| collection.ends_with(plural));
    format!("{GROUP}/{}", found.unwrap().0)
}

#[tokio::test]
async fn each_kind_is_made_read_changed_applied_and_deleted() {
    let api = Api::start().await;
    for (plural, object) in objects() {
        let collection = format!("{GROUP}/{plural}");
        let one = format!("{collection}/{}", object["metadata"]["name"].as_str().unwrap());
        let made = api.post(&collection, &object).await;
        assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
        let version = made.at("/metadata/resourceVersion");
        assert_eq!(api.get(&one).await.at("/metadata/resourceVersion"), version, "{plural}");

        let label = json!({"metadata": {"labels": {"l": "v"}}});
        let patched = api.patch(&one, "strategic-merge", &label).await;
        assert_eq!(patched.code, StatusCode::OK, "{patched:?}");
        let mut put = patched.json();
        put["metadata"]["annotations"] = json!({"a": "b"});
        let put = api.put(&one, &put).await;
        assert_eq!(put.code, StatusCode::OK, "{put:?}");
        let path = format!("{one}?fieldManager=m&fieldValidation=Strict");
        let media = "application/apply-patch+yaml";
        let applied = api.send(Method::PATCH, &path, media, object.to_string()).await;
        assert_eq!(applied.code, StatusCode::OK, "{applied:?}");
        assert_eq!(applied.at("/metadata/labels/l"), "v");
        assert_eq!(applied.at("/metadata/annotations/a"), "b");

        let list = api.get(&format!("{collection}?labelSelector=l%3Dv")).await;
        let kind = object["kind"].as_str().unwrap();
        assert_eq!(list.at("/kind"), format!("{kind}List"));
        assert_eq!(list.at("/items/0/metadata/uid"), made.at("/metadata/uid"));
        assert_eq!(api.delete(&one).await.at("/status"), "Success", "{plural}");
        assert_eq!(api.get(&one).await.code, StatusCode::NOT_FOUND);
        assert_eq!(api.get(&collection).await.at("/items"), json!([]));
    }
}

#[tokio::test]
async fn each_kind_is_found_and_shown_as_kubectl_prints_it() {
    let api = Api::start().await;
    let listed = api.get(GROUP).await.at("/resources");
    let of = |name: &str| {
        let mut all = listed.as_array().unwrap().iter();
        all.find(|one| one["name"] == name).unwrap()
    };
    assert_eq!(of("volumeattributesclasses")["shortNames"], json!(["vac"]));
    assert_eq!(of("volumeattachments/status")["kind"], "VolumeAttachment");
    assert_eq!(of("csistoragecapacities")["namespaced"], true);
    let rows = [
        json!(["disk.example.com", false, false, false, "a", false, "Persistent"]),
        json!(["n1", 1]),
        json!(["c", "fast", "1Gi"]),
        json!(["a", "disk.example.com", "pv", "n1", false]),
        json!(["gold", "disk.example.com"]),
    ];
    for ((plural, object), wanted) in objects().into_iter().zip(rows) {
        let collection = format!("{GROUP}/{plural}");
        let made = api.post(&collection, &object).await;
        assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
        let table = api.get_in(&collection, TABLE).await;
        let cells = table.at("/rows/0/cells");
        let (cells, wanted) = (cells.as_array().unwrap(), wanted.as_array().unwrap());
        assert_eq!(cells[..wanted.len()], wanted[..], "{plural}");
        let columns = table.at("/columnDefinitions");
        assert_eq!(columns.as_array().unwrap().len(), cells.len(), "{plural}");
    }
}

#[tokio::test]
async fn a_real_client_watches_an_attachment() {
    let api = Api::start().await;
    let kube: KubeApi<VolumeAttachment> = KubeApi::all(api.client());
    let list = kube.list(&Default::default()).await.unwrap();
    let version = list.metadata.resource_version.unwrap();
    let made = api.post(ATTACHMENTS, &changed("volumeattachments", &json!({}))).await;
    assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
    api.delete(&format!("{ATTACHMENTS}/a")).await;
    let events = kube.watch(&WatchParams::default(), &version).await.unwrap();
    let mut events = std::pin::pin!(events);
    let mut seen = None;
    loop {
        match events.try_next().await.unwrap().unwrap() {
            WatchEvent::Added(attachment) => seen = Some(attachment),
            WatchEvent::Deleted(gone) => {
                assert_eq!(gone.metadata.name.as_deref(), Some("a"));
                break;
            }
            WatchEvent::Bookmark(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let seen = seen.unwrap();
    assert_eq!(seen.spec.node_name, "n1");
    assert!(!seen.status.unwrap().attached);
}

#[tokio::test]
async fn the_status_of_an_attachment_is_written_on_its_own() {
    let api = Api::start().await;
    let (one, status) = (format!("{ATTACHMENTS}/a"), format!("{ATTACHMENTS}/a/status"));
    let told = json!({"status": {"attached": true, "attachmentMetadata": {"path": "/dev/x"}}});
    let made = api.post(ATTACHMENTS, &changed("volumeattachments", &told)).await;
    assert_eq!(made.at("/status"), json!({"attached": false}), "{made:?}");
    let ignored = api.patch(&one, "merge", &told).await;
    assert_eq!(ignored.at("/status"), json!({"attached": false}), "{ignored:?}");

    let mut both = told.clone();
    both["spec"] = json!({"nodeName": "n2"});
    let attached = api.patch(&status, "merge", &both).await;
    assert_eq!((attached.code, attached.at("/status")), (StatusCode::OK, told["status"].clone()));
    assert_eq!(attached.at("/spec/nodeName"), "n1");
    assert_eq!(api.get(&status).await.at("/status/attached"), true);
    let mut failed = attached.json();
    failed["status"] = json!({"attached": false,
        "detachError": {"message": "busy", "time": "2026-01-02T03:04:05Z", "errorCode": 9}});
    let put = api.put(&status, &failed).await;
    assert_eq!((put.code, put.at("/status")), (StatusCode::OK, failed["status"].clone()));
    let long = json!({"status": {"attachError": {"message": "x".repeat(1025)}}});
    let refused = api.patch(&status, "merge", &long).await;
    assert_eq!(refused.code, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(refused.at("/details/causes/0/field"), "status.attachError.message");
}

#[tokio::test]
async fn what_is_wrong_with_an_object_of_storage_is_told_by_field() {
    let api = Api::start().await;
    for (plural, change, field) in [
        ("csidrivers", json!({"spec": {"fsGroupPolicy": "Some"}}), "spec.fsGroupPolicy"),
        ("csidrivers", json!({"metadata": {"name": "A B"}}), "metadata.name"),
        (
            "csinodes",
            json!({"spec": {"drivers": [{"name": "d", "nodeID": "i"}, {"name": "d", "nodeID": "j"}]}}),
            "spec.drivers[1].name",
        ),
        ("csistoragecapacities", json!({"storageClassName": null}), "storageClassName"),
        ("csistoragecapacities", json!({"capacity": "-1"}), "capacity"),
        (
            "volumeattachments",
            json!({"spec": {"nodeName": "n", "source": {"persistentVolumeName": "pv"}}}),
            "spec.attacher",
        ),
        (
            "volumeattachments",
            json!({"spec": {"attacher": "d", "nodeName": "n", "source": {}}}),
            "spec.source",
        ),
        ("volumeattributesclasses", json!({"driverName": ""}), "driverName"),
        ("volumeattributesclasses", json!({"parameters": {}}), "parameters"),
    ] {
        let refused = api.post(&collection(plural), &changed(plural, &change)).await;
        assert_eq!(refused.code, StatusCode::UNPROCESSABLE_ENTITY, "{change}: {refused:?}");
        assert_eq!(refused.at("/details/causes/0/field"), field, "{refused:?}");
        assert_eq!(refused.at("/details/causes/1"), Value::Null, "{refused:?}");
    }
}

#[tokio::test]
async fn what_is_fixed_in_an_object_of_storage_does_not_change() {
    let api = Api::start().await;
    for (plural, object) in objects() {
        let made = api.post(&format!("{GROUP}/{plural}"), &object).await;
        assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
    }
    let driver = json!({"name": "disk.example.com", "nodeID": "i-1",
        "topologyKeys": ["example.com/zone"], "allocatable": {"count": 9}});
    let mut other = driver.clone();
    other["nodeID"] = json!("i-2");
    for (one, patch, fixed) in [
        ("csidrivers/disk.example.com", json!({"spec": {"podInfoOnMount": true}}), None),
        (
            "csidrivers/disk.example.com",
            json!({"spec": {"attachRequired": true}}),
            Some("spec.attachRequired"),
        ),
        ("csinodes/n1", json!({"spec": {"drivers": [driver]}}), None),
        ("csinodes/n1", json!({"spec": {"drivers": [other]}}), Some("spec.drivers")),
        ("csistoragecapacities/c", json!({"capacity": "2Gi"}), None),
        ("csistoragecapacities/c", json!({"nodeTopology": null}), Some("nodeTopology")),
        ("csistoragecapacities/c", json!({"storageClassName": "slow"}), Some("storageClassName")),
        ("volumeattachments/a", json!({"spec": {"nodeName": "n2"}}), Some("spec")),
        ("volumeattributesclasses/gold", json!({"driverName": "d"}), Some("driverName")),
        ("volumeattributesclasses/gold", json!({"parameters": {"k": "v"}}), Some("parameters")),
    ] {
        let (plural, name) = one.split_once('/').unwrap();
        let answer = api.patch(&format!("{}/{name}", collection(plural)), "merge", &patch).await;
        let Some(field) = fixed else {
            assert_eq!(answer.code, StatusCode::OK, "{answer:?}");
            continue;
        };
        assert_eq!(answer.code, StatusCode::UNPROCESSABLE_ENTITY, "{answer:?}");
        assert_eq!(answer.at("/details/causes/0/field"), field, "{answer:?}");
    }
    let driver = api.get(&format!("{GROUP}/csidrivers/disk.example.com")).await;
    assert_eq!(driver.at("/metadata/generation"), 2);
    let node = api.get(&format!("{GROUP}/csinodes/n1")).await;
    assert_eq!(node.at("/metadata/generation"), Value::Null);
}
