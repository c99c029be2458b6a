//! The kinds of resource.k8s.io: kept, checked, shown, and taken by pods.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::Api;

const GROUP: &str = "/apis/resource.k8s.io/v1";
const CLAIMS: &str = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

fn request(class: &str) -> Value {
    json!({"requests": [{"name": "one", "exactly": {"deviceClassName": class}}]})
}

#[tokio::test]
async fn classes_claims_templates_and_slices_are_kept_and_shown() {
    let api = Api::start().await;
    let class = json!({"metadata": {"name": "camera"}, "spec": {"selectors": [
        {"cel": {"expression": "device.driver == 'edgeorc.io'"}}]}});
    let template =
        json!({"metadata": {"name": "t"}, "spec": {"spec": {"devices": request("camera")}}});
    let claim = json!({"metadata": {"name": "c"}, "spec": {"devices": request("camera")}});
    let slice = json!({"metadata": {"name": "s"}, "spec": {"driver": "edgeorc.io", "nodeName": "one",
        "pool": {"name": "one", "generation": 1, "resourceSliceCount": 1},
        "devices": [{"name": "a", "capacity": {"memory": {"value": "1024Mi"}}}]}});
    for (plural, object, shown) in [
        ("deviceclasses", &class, json!(["camera"])),
        ("namespaces/default/resourceclaimtemplates", &template, json!(["t"])),
        ("namespaces/default/resourceclaims", &claim, json!(["c", "pending"])),
        ("resourceslices", &slice, json!(["s", "one", "edgeorc.io", "one"])),
    ] {
        let path = format!("{GROUP}/{plural}");
        let made = api.post(&path, object).await;
        assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
        let table = api.get_in(&path, TABLE).await.json();
        let cells = table["rows"][0]["cells"].as_array().unwrap();
        assert_eq!(cells[..cells.len() - 1], shown.as_array().unwrap()[..], "{plural}");
    }
    let kept = api.get(&format!("{CLAIMS}/c")).await;
    assert_eq!(kept.at("/spec/devices/requests/0/exactly/allocationMode"), "ExactCount");
    assert_eq!(kept.at("/spec/devices/requests/0/exactly/count"), 1);
    let kept = api.get(&format!("{GROUP}/resourceslices?fieldSelector=spec.nodeName=one")).await;
    assert_eq!(kept.at("/items/0/spec/devices/0/capacity/memory/value"), "1Gi");
    let found = api.get(&format!("{GROUP}/resourceslices?fieldSelector=spec.nodeName=two")).await;
    assert_eq!(found.at("/items"), json!([]));
}

#[tokio::test]
async fn each_kind_is_changed_applied_and_deleted() {
    let api = Api::start().await;
    let spec = json!({"devices": request("camera")});
    let slice = json!({"driver": "edgeorc.io", "allNodes": true, "devices": [
        {"name": "a", "attributes": {"model": {"string": "x"}, "lanes": {"int": 0}}}],
        "pool": {"name": "net", "generation": 1, "resourceSliceCount": 1}});
    for (plural, kind, spec) in [
        ("deviceclasses", "DeviceClass", json!({"extendedResourceName": "acme.com/camera"})),
        (
            "namespaces/default/resourceclaimtemplates",
            "ResourceClaimTemplate",
            json!({ "spec": spec }),
        ),
        ("namespaces/default/resourceclaims", "ResourceClaim", spec),
        ("resourceslices", "ResourceSlice", slice),
    ] {
        let collection = format!("{GROUP}/{plural}");
        let one = format!("{collection}/o");
        let object = json!({"apiVersion": "resource.k8s.io/v1", "kind": kind,
            "metadata": {"name": "o"}, "spec": spec});
        let made = api.post(&collection, &object).await;
        assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
        let label = json!({"metadata": {"labels": {"l": "v"}}});
        let mut put = api.patch(&one, "strategic-merge", &label).await.json();
        put["metadata"]["annotations"] = json!({"a": "b"});
        let put = api.put(&one, &put).await;
        assert_eq!(put.code, StatusCode::OK, "{put:?}");
        let path = format!("{one}?fieldManager=m&fieldValidation=Strict&force=true");
        let media = "application/apply-patch+yaml";
        let applied = api.send(Method::PATCH, &path, media, object.to_string()).await;
        assert_eq!(applied.code, StatusCode::OK, "{applied:?}");
        assert_eq!(applied.at("/metadata/labels/l"), "v");
        assert_eq!(applied.at("/metadata/annotations/a"), "b");
        let list = api.get(&format!("{collection}?labelSelector=l%3Dv")).await;
        assert_eq!(list.at("/kind"), format!("{kind}List"));
        assert_eq!(list.at("/items/0/metadata/uid"), made.at("/metadata/uid"));
        assert_eq!(api.delete(&one).await.at("/status"), "Success", "{plural}");
        assert_eq!(api.get(&one).await.code, StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn classes_and_slices_count_their_changes_and_a_slice_keeps_its_node() {
    let api = Api::start().await;
    let classes = format!("{GROUP}/deviceclasses");
    let made = api.post(&classes, &json!({"metadata": {"name": "c"}, "spec": {}})).await;
    assert_eq!(made.at("/metadata/generation"), 1, "{made:?}");
    let narrower = json!({"spec": {"selectors": [
        {"cel": {"expression": "device.driver == 'edgeorc.io'"}}]}});
    let changed = api.patch(&format!("{classes}/c"), "merge", &narrower).await;
    assert_eq!(changed.at("/metadata/generation"), 2, "{changed:?}");
    let slices = format!("{GROUP}/resourceslices");
    let slice = json!({"metadata": {"name": "s"}, "spec": {
        "driver": "edgeorc.io", "nodeName": "one",
        "pool": {"name": "one", "generation": 1, "resourceSliceCount": 1}}});
    let made = api.post(&slices, &slice).await;
    assert_eq!(made.at("/metadata/generation"), 1, "{made:?}");
    let moved = json!({"spec": {"nodeName": "two"}});
    let refused = api.patch(&format!("{slices}/s"), "merge", &moved).await;
    assert_eq!(
        (refused.code, refused.at("/details/causes/0/field")),
        (StatusCode::UNPROCESSABLE_ENTITY, json!("spec.nodeName"))
    );
    let claim = json!({"metadata": {"name": "c"}, "spec": {"devices": request("camera")}});
    let made = api.post(CLAIMS, &claim).await;
    assert_eq!(made.at("/metadata/generation"), Value::Null, "{made:?}");
}

#[tokio::test]
async fn what_a_claim_asks_for_stays_and_what_it_has_is_its_status() {
    let api = Api::start().await;
    let claim = json!({"metadata": {"name": "c"}, "spec": {"devices": request("camera")},
        "status": {"reservedFor": [{"resource": "pods", "name": "p", "uid": "u"}]}});
    let made = api.post(CLAIMS, &claim).await;
    assert_eq!((made.code, made.at("/status")), (StatusCode::CREATED, Value::Null));
    let one = format!("{CLAIMS}/c");
    let other = json!({"spec": {"devices": request("radio")}});
    let refused = api.patch(&one, "merge", &other).await;
    assert_eq!(refused.code.as_u16(), 422, "{refused:?}");
    assert_eq!(refused.at("/details/causes/0/field"), "spec");
    let given = json!({"status": {
        "allocation": {"devices": {"results": [
            {"request": "one", "driver": "edgeorc.io", "pool": "n", "device": "a"}]}},
        "reservedFor": [{"resource": "pods", "name": "p", "uid": "u"}]}});
    let patched = api.patch(&format!("{one}/status"), "merge", &given).await;
    assert_eq!(patched.code, StatusCode::OK, "{patched:?}");
    let moved = json!({"status": {"allocation": {"devices": {"results": [
        {"request": "one", "driver": "edgeorc.io", "pool": "n", "device": "b"}]}}}});
    let refused = api.patch(&format!("{one}/status"), "merge", &moved).await;
    assert_eq!(refused.at("/details/causes/0/field"), "status.allocation");
    let bad = json!({"metadata": {"name": "d"}, "spec": {"devices": {"requests": [{"name": "one",
        "exactly": {"deviceClassName": "x", "selectors": [{"cel": {"expression": "pod.name"}}]}}]}}});
    let refused = api.post(CLAIMS, &bad).await;
    let field = "spec.devices.requests[0].exactly.selectors[0].cel.expression";
    assert_eq!(refused.at("/details/causes/0/field"), field, "{refused:?}");
    let message = refused.at("/details/causes/0/message");
    assert!(message.as_str().unwrap().contains("undeclared reference to 'pod'"), "{message}");
}

#[tokio::test]
async fn pods_name_claims_and_their_containers_name_those() {
    let api = Api::start().await;
    let pods = "/api/v1/namespaces/default/pods";
    let mut pod = json!({"metadata": {"name": "p"}, "spec": {
        "resourceClaims": [{"name": "cam", "resourceClaimTemplateName": "t"}],
        "containers": [{"name": "a", "image": "x", "resources": {"claims": [{"name": "cam"}]}}]}});
    let made = api.post(pods, &pod).await;
    assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
    assert_eq!(made.at("/spec/containers/0/resources/claims/0/name"), "cam");
    let status = |entry: &str| {
        json!({"status": {"resourceClaimStatuses": [
            {"name": entry, "resourceClaimName": "p-cam-x"}]}})
    };
    let told = api.patch(&format!("{pods}/p/status"), "merge", &status("cam")).await;
    assert_eq!(told.at("/status/resourceClaimStatuses/0/resourceClaimName"), "p-cam-x");
    let refused = api.patch(&format!("{pods}/p/status"), "merge", &status("none")).await;
    let field = "status.resourceClaimStatuses[0].name";
    assert_eq!(refused.at("/details/causes/0/field"), field, "{refused:?}");
    let other = json!({"spec": {"resourceClaims": [{"name": "cam", "resourceClaimName": "own"}]}});
    let refused = api.patch(&format!("{pods}/p"), "merge", &other).await;
    assert_eq!(refused.at("/details/causes/0/field"), "spec", "{refused:?}");
    pod["metadata"]["name"] = json!("q");
    pod["spec"]["containers"][0]["resources"]["claims"] = json!([{"name": "none"}]);
    let refused = api.post(pods, &pod).await;
    let field = "spec.containers[0].resources.claims[0].name";
    assert_eq!(refused.at("/details/causes/0/field"), field, "{refused:?}");
}
