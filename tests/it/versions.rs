//! The Gateway API in both of its versions: one object, asked for in either.

use futures_util::TryStreamExt as _;
use http::StatusCode;
use kube::Api as Kube;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, WatchEvent, WatchParams};
use serde_json::{Value, json};

use crate::support::Api;

const GROUP: &str = "gateway.networking.k8s.io";

fn paths(of: &str, version: &str) -> String {
    format!("/apis/{GROUP}/{version}/{of}")
}

fn gateway(version: &str) -> Value {
    json!({"apiVersion": format!("{GROUP}/{version}"), "kind": "Gateway", "metadata": {"name": "g"},
        "spec": {"gatewayClassName": "edgeorc",
            "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}]}})
}

#[tokio::test]
async fn a_gateway_is_one_object_in_both_versions() {
    let api = Api::start().await;
    let of = |version| paths("namespaces/default/gateways", version);
    let made = api.post(&of("v1beta1"), &gateway("v1beta1")).await;
    assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
    assert_eq!(made.at("/apiVersion"), format!("{GROUP}/v1beta1"));
    for version in ["v1", "v1beta1"] {
        let named = format!("{GROUP}/{version}");
        let one = format!("{}/g", of(version));
        let got = api.get(&one).await;
        assert_eq!(got.at("/apiVersion"), named);
        assert_eq!(got.at("/metadata/uid"), made.at("/metadata/uid"));
        let list = api.get(&of(version)).await;
        assert_eq!(
            (list.at("/apiVersion"), list.at("/kind")),
            (json!(named), json!("GatewayList"))
        );
        assert!(list.at("/items/0/apiVersion").is_null());
        let mut whole = got.json();
        whole["metadata"]["labels"] = json!({"by": version});
        let put = api.put(&one, &whole).await;
        assert_eq!((put.code, put.at("/apiVersion")), (StatusCode::OK, json!(named)), "{put:?}");
        let patch = json!({"apiVersion": named, "metadata": {"annotations": {"by": version}}});
        let patched = api.patch(&one, "merge", &patch).await;
        assert_eq!(patched.at("/metadata/annotations/by"), version);
        assert_eq!(patched.at("/apiVersion"), named);
        let status = api.patch(&format!("{one}/status"), "merge", &json!({"status": {}})).await;
        assert_eq!(status.code, StatusCode::OK, "{status:?}");
    }
    let wrong = api.post(&of("v1"), &gateway("v1beta1")).await;
    assert_eq!(wrong.code, StatusCode::BAD_REQUEST, "{wrong:?}");
    let gone = api.delete(&format!("{}/g", of("v1beta1"))).await;
    assert_eq!(gone.code, StatusCode::OK);
    assert_eq!(api.get(&format!("{}/g", of("v1"))).await.code, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_real_client_watches_the_other_version() {
    let api = Api::start().await;
    let kind = GroupVersionKind::gvk(GROUP, "v1beta1", "Gateway");
    let row = ApiResource::from_gvk_with_plural(&kind, "gateways");
    let kube: Kube<DynamicObject> = Kube::namespaced_with(api.client(), "default", &row);
    let version = kube.list(&Default::default()).await.unwrap().metadata.resource_version.unwrap();
    api.post(&paths("namespaces/default/gateways", "v1"), &gateway("v1")).await;
    let events = kube.watch(&WatchParams::default(), &version).await.unwrap();
    let mut events = std::pin::pin!(events);
    let Some(WatchEvent::Added(seen)) = events.try_next().await.unwrap() else { panic!() };
    assert_eq!(seen.types.unwrap().api_version, format!("{GROUP}/v1beta1"));
}

#[tokio::test]
async fn all_kinds_of_the_gateway_api_are_found_in_both_versions() {
    let api = Api::start().await;
    for version in ["v1", "v1beta1"] {
        let list = api.get(&format!("/apis/{GROUP}/{version}")).await;
        let names: Vec<Value> = list.json()["resources"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["name"].clone())
            .filter(|name| !name.as_str().unwrap().contains('/'))
            .collect();
        for plural in ["gatewayclasses", "gateways", "httproutes", "referencegrants"] {
            assert!(names.contains(&json!(plural)), "{version}: {names:?}");
        }
        let document = api.get(&format!("/openapi/v3/apis/{GROUP}/{version}")).await;
        assert_eq!(document.code, StatusCode::OK);
    }
    let group = api.get(&format!("/apis/{GROUP}")).await;
    assert_eq!(group.at("/preferredVersion/version"), "v1");
    let grant = json!({"apiVersion": format!("{GROUP}/v1"), "kind": "ReferenceGrant",
        "metadata": {"name": "r"},
        "spec": {"from": [{"group": GROUP, "kind": "HTTPRoute", "namespace": "a"}],
            "to": [{"group": "", "kind": "Service"}]}});
    let made = api.post(&paths("namespaces/default/referencegrants", "v1"), &grant).await;
    assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
    let stored = api.get(&paths("namespaces/default/referencegrants/r", "v1beta1")).await;
    assert_eq!(stored.at("/apiVersion"), format!("{GROUP}/v1beta1"));
}
