//! RuntimeClass: the kind, and what a pod that names one gets of it.

use http::{Method, StatusCode};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Api as KubeApi;
use kube::api::PostParams;
use serde_json::{Value, json};

use crate::support::{Answer, Api};

const CLASSES: &str = "/apis/node.k8s.io/v1/runtimeclasses";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn class(name: &str) -> Value {
    json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name},
        "handler": "wasm", "overhead": {"podFixed": {"memory": "4096Ki"}},
        "scheduling": {"nodeSelector": {"kind": "pi"},
            "tolerations": [{"key": "wasm", "operator": "Exists", "effect": "NoSchedule"}]}})
}

async fn pod(api: &Api, name: &str, more: Value) -> Answer {
    let mut spec = json!({"containers": [{"name": "a", "image": "x"}]});
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
    api.post(PODS, &pod).await
}

#[tokio::test]
async fn a_class_is_made_shown_changed_applied_and_deleted() {
    let api = Api::start().await;
    let made = api.post(CLASSES, &class("wasm")).await;
    assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
    assert_eq!(made.at("/overhead/podFixed/memory"), json!("4Mi"));
    let typed: KubeApi<RuntimeClass> = KubeApi::all(api.client());
    let mut other = typed.get("wasm").await.unwrap();
    assert_eq!(other.handler, "wasm");
    other.metadata =
        kube::core::ObjectMeta { name: Some("other".to_owned()), ..Default::default() };
    typed.create(&PostParams::default(), &other).await.unwrap();
    let one = format!("{CLASSES}/wasm");
    let label = json!({"metadata": {"labels": {"l": "v"}}});
    let patched = api.patch(&one, "strategic-merge", &label).await;
    assert_eq!(patched.at("/metadata/labels/l"), "v", "{patched:?}");
    let handler = api.patch(&one, "merge", &json!({"handler": "other"})).await;
    assert_eq!(handler.code, StatusCode::UNPROCESSABLE_ENTITY, "{handler:?}");
    assert!(handler.at("/message").to_string().contains("field is immutable"), "{handler:?}");
    let path = format!("{one}?fieldManager=m&fieldValidation=Strict");
    let media = "application/apply-patch+yaml";
    let applied = api.send(Method::PATCH, &path, media, class("wasm").to_string()).await;
    assert_eq!(applied.code, StatusCode::OK, "{applied:?}");
    assert_eq!(api.get(CLASSES).await.at("/items").as_array().unwrap().len(), 2);
    let gone = api.send(Method::DELETE, CLASSES, "", "").await;
    assert_eq!(gone.code, StatusCode::OK, "{gone:?}");
    assert_eq!(api.get(&one).await.code, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_pod_gets_what_its_class_says_or_is_refused() {
    let api = Api::start().await;
    api.post(CLASSES, &class("wasm")).await;
    let made = pod(&api, "classed", json!({"runtimeClassName": "wasm"})).await;
    assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
    assert_eq!(made.at("/spec/overhead"), json!({"memory": "4Mi"}));
    assert_eq!(made.at("/spec/nodeSelector"), json!({"kind": "pi"}));
    let tolerations = made.at("/spec/tolerations");
    assert!(
        tolerations.as_array().unwrap().iter().any(|one| one["key"] == "wasm"),
        "{tolerations}"
    );
    for (name, spec, said) in [
        (
            "none",
            json!({"runtimeClassName": "nope"}),
            "pods \"none\" is forbidden: pod rejected: RuntimeClass \"nope\" not found",
        ),
        (
            "heavier",
            json!({"runtimeClassName": "wasm", "overhead": {"memory": "8Mi"}}),
            "pods \"heavier\" is forbidden: pod rejected: Pod's Overhead doesn't match RuntimeClass's \
             defined Overhead",
        ),
        (
            "own",
            json!({"overhead": {"memory": "8Mi"}}),
            "pods \"own\" is forbidden: pod rejected: Pod Overhead set without corresponding \
             RuntimeClass defined Overhead",
        ),
        (
            "elsewhere",
            json!({"runtimeClassName": "wasm", "nodeSelector": {"kind": "pc"}}),
            "pods \"elsewhere\" is forbidden: conflict: runtimeClass.scheduling.nodeSelector[kind] = pi; \
             pod.spec.nodeSelector[kind] = pc",
        ),
    ] {
        let refused = pod(&api, name, spec).await;
        assert_eq!(refused.code, StatusCode::FORBIDDEN, "{name}: {refused:?}");
        assert_eq!(refused.at("/message"), said);
    }
}
