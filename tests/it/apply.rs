//! Server-side apply, managers of fields, and bodies of protobuf, over HTTP.

use edgeorc::api::user::UserInfo;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Answer, Api};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const APPLY: &str = "application/apply-patch+yaml";

fn map(data: &Value) -> String {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": data})
        .to_string()
}

/// What a manager owns.
fn fields(answer: &Answer, manager: &str) -> Value {
    let list = answer.at("/metadata/managedFields");
    let entry = list.as_array().unwrap().iter().find(|entry| entry["manager"] == manager);
    entry.unwrap_or_else(|| panic!("{manager}: {list}"))["fieldsV1"].clone()
}

#[tokio::test]
async fn an_apply_makes_owns_conflicts_and_gives_up() {
    let api = Api::start().await;
    let apply = async |query: &str, body: String| {
        api.send(Method::PATCH, &format!("{MAPS}/m?{query}"), APPLY, body).await
    };
    let nobody = apply("", map(&json!({}))).await;
    assert_eq!(nobody.code, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(nobody.at("/message").as_str().unwrap().contains("is required for apply patch"));
    let tried = apply("fieldManager=a&dryRun=All", map(&json!({"k": "1"}))).await;
    assert_eq!(tried.code, StatusCode::CREATED);
    assert_eq!(api.get(&format!("{MAPS}/m")).await.code, StatusCode::NOT_FOUND);

    let made = apply("fieldManager=a", map(&json!({"k": "1"}))).await;
    assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
    assert_eq!(made.at("/metadata/managedFields/0/manager"), "a");
    let same = apply("fieldManager=a", map(&json!({"k": "1"}))).await;
    assert_eq!(same.code, StatusCode::OK);
    assert_eq!(same.at("/metadata/resourceVersion"), made.at("/metadata/resourceVersion"));

    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {k: '2'}\n";
    let conflict = apply("fieldManager=b", yaml.to_owned()).await;
    assert_eq!((conflict.code, conflict.at("/reason")), (StatusCode::CONFLICT, json!("Conflict")));
    assert_eq!(
        conflict.at("/details/causes"),
        json!([{"reason": "FieldManagerConflict", "message": "conflict with \"a\"", "field": ".data.k"}])
    );
    let forced = apply("fieldManager=b&force=true", yaml.to_owned()).await;
    assert_eq!((forced.code, forced.at("/data/k")), (StatusCode::OK, json!("2")));
    assert_eq!(apply("fieldManager=b", map(&json!({}))).await.at("/data"), json!({}));

    let with_managers = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "m", "managedFields": [{"manager": "x"}]}});
    let refused = apply("fieldManager=b", with_managers.to_string()).await;
    assert_eq!(refused.at("/message"), "metadata.managedFields must be nil");
    let bare = apply("fieldManager=b", "{}".to_owned()).await;
    assert_eq!(bare.code, StatusCode::BAD_REQUEST);
    let unknown = map(&json!({})).replace("\"data\"", "\"dota\"");
    let strict = apply("fieldManager=b&fieldValidation=Strict", unknown).await;
    assert!(strict.at("/message").as_str().unwrap().contains("unknown field"), "{strict:?}");
}

#[tokio::test]
async fn writes_are_written_down_under_the_manager_they_name() {
    let api = Api::start().await;
    let made = api
        .send(
            Method::POST,
            &format!("{MAPS}?fieldManager=maker"),
            "application/json",
            map(&json!({"k": "1"})),
        )
        .await;
    assert_eq!(made.at("/metadata/managedFields/0/manager"), "maker");
    assert_eq!(
        made.at("/metadata/managedFields/0/fieldsV1"),
        json!({"f:data": {".": {}, "f:k": {}}})
    );
    let patch = json!({"data": {"k": "2"}}).to_string();
    let path = format!("{MAPS}/m?fieldManager=editor");
    let edited = api.send(Method::PATCH, &path, "application/merge-patch+json", patch).await;
    assert_eq!(fields(&edited, "maker"), json!({"f:data": {}}), "the map itself is left to it");
    assert_eq!(fields(&edited, "editor"), json!({"f:data": {"f:k": {}}}));
    // A replacement that says nothing of managers keeps them.
    let path = format!("{MAPS}/m?fieldManager=editor");
    let put = api.send(Method::PUT, &path, "application/json", map(&json!({"k": "2"}))).await;
    assert_eq!(put.at("/metadata/managedFields"), edited.at("/metadata/managedFields"));
    let long = format!("{MAPS}?fieldManager={}", "x".repeat(129));
    let refused = api.send(Method::POST, &long, "application/json", map(&json!({}))).await;
    assert_eq!(refused.code, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn the_systems_own_writes_are_written_down_only_where_somebody_is() {
    let api = Api::start().await;
    let system = || Some(UserInfo::new("system:kube-controller-manager", &["system:masters"]));
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let pods = "/api/v1/namespaces/default/pods";
    let json = "application/json";
    let made = api.send_as(system(), Method::POST, pods, json, pod.to_string()).await;
    assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
    assert_eq!(made.at("/metadata/managedFields"), Value::Null);
    let status = json!({"status": {"phase": "Running"}}).to_string();
    let merge = "application/merge-patch+json";
    let path = format!("{pods}/p/status");
    let ran = api.send_as(system(), Method::PATCH, &path, merge, status.clone()).await;
    assert_eq!(ran.at("/metadata/managedFields"), Value::Null);
    // The first client is written down, with what it changes and no more.
    let label = json!({"metadata": {"labels": {"a": "b"}}}).to_string();
    let path = format!("{pods}/p?fieldManager=me");
    let labelled = api.send(Method::PATCH, &path, merge, label).await;
    let one = labelled.at("/metadata/managedFields");
    assert_eq!(one.as_array().unwrap().len(), 1);
    // Status of the system's own stays free; what takes a field from somebody does not.
    let status = status.replace("Running", "Failed");
    let failed =
        api.send_as(system(), Method::PATCH, &format!("{pods}/p/status"), merge, status).await;
    assert_eq!(failed.at("/metadata/managedFields"), one);
    let label = json!({"metadata": {"labels": {"a": "c"}}}).to_string();
    let taken = api.send_as(system(), Method::PATCH, &format!("{pods}/p"), merge, label).await;
    let mine = fields(&taken, "kube-controller-manager");
    assert_eq!(mine, json!({"f:metadata": {"f:labels": {"f:a": {}}}}));
}

#[tokio::test]
async fn bodies_of_protobuf_are_taken_and_malformed_ones_refused() {
    let api = Api::start().await;
    let media = "application/vnd.kubernetes.protobuf";
    // A Namespace named `team`, as kubectl 1.32 writes it.
    let mut body = b"k8s\0".to_vec();
    body.extend_from_slice(b"\x0a\x0f\x0a\x02v1\x12\x09Namespace");
    let metadata = b"\x0a\x04team\x12\x00\x1a\x00\x22\x00\x2a\x00\x32\x00\x38\x00\x42\x00";
    let mut raw = vec![0x0a, u8::try_from(metadata.len()).unwrap()];
    raw.extend_from_slice(metadata);
    raw.extend_from_slice(b"\x12\x00\x1a\x02\x0a\x00");
    body.extend_from_slice(&[0x12, u8::try_from(raw.len()).unwrap()]);
    body.extend_from_slice(&raw);
    body.extend_from_slice(b"\x1a\x00\x22\x00");
    let made = api.send(Method::POST, "/api/v1/namespaces", media, body.clone()).await;
    assert_eq!((made.code, made.at("/metadata/name")), (StatusCode::CREATED, json!("team")));
    body.truncate(body.len() - 12);
    let refused = api.send(Method::POST, "/api/v1/namespaces", media, body).await;
    assert_eq!(refused.code, StatusCode::BAD_REQUEST);
    let text = refused.at("/message");
    assert!(text.as_str().unwrap().contains("unexpected end of the message"), "{text}");
    let class = b"k8s\0\x0a\x2c\x0a\x1cgateway.networking.k8s.io/v1\x12\x0cGatewayClass".to_vec();
    let path = "/apis/gateway.networking.k8s.io/v1/gatewayclasses";
    let refused = api.send(Method::POST, path, media, class).await;
    assert_eq!(refused.code, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{refused:?}");
    // DeleteOptions bear the version of whatever they delete.
    let mut options = b"k8s\0\x0a\x13\x0a\x02v1\x12\x0dDeleteOptions".to_vec();
    options.extend_from_slice(b"\x12\x0a\x2a\x08All");
    let gone = api.send(Method::DELETE, "/api/v1/namespaces/team", media, options).await;
    assert_eq!(gone.code, StatusCode::BAD_REQUEST, "cut short: {gone:?}");
    let mut options = b"k8s\0\x0a\x13\x0a\x02v1\x12\x0dDeleteOptions".to_vec();
    options.extend_from_slice(b"\x12\x05\x2a\x03All");
    let tried = api.send(Method::DELETE, "/api/v1/namespaces/team", media, options).await;
    assert_eq!(tried.code, StatusCode::OK, "{tried:?}");
    assert_eq!(api.get("/api/v1/namespaces/team").await.code, StatusCode::OK, "a dry run");
}
