//! Goal: a namespace with an image policy takes no pod with an unsigned image, by any door. Method: a
//! server with its own registry in process, and signatures as `cosign` makes them.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use crate::agent::SignatureVerifier;
use crate::api::image_policy::testing::{Signer, digest_of};
use crate::api::image_policy::{MODE_LABEL, SIGNATURE_ANNOTATION, SIMPLE_SIGNING_LAYER};
use crate::config::Proxies;
use crate::roles::testing::Cluster;
use crate::roles::verify::AgentVerifier;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An answer: code, `Warning` header, body.
type Answer = (u16, String, Value);

async fn send(cluster: &Cluster, method: Method, path: &str, kind: &str, body: Vec<u8>) -> Answer {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, kind)
        .body(kube::client::Body::from(body))
        .unwrap();
    let answer = cluster.client.send(request).await.unwrap();
    let code = answer.status().as_u16();
    let warning = answer.headers().get(http::header::WARNING);
    let warning = warning.map_or(String::new(), |value| value.to_str().unwrap().to_owned());
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    (code, warning, serde_json::from_slice(&bytes).unwrap_or_default())
}

async fn post(cluster: &Cluster, path: &str, object: &Value) -> Answer {
    send(cluster, Method::POST, path, "application/json", object.to_string().into_bytes()).await
}

async fn push(cluster: &Cluster, tag: &str, content: &str) {
    let path = format!("/v2/shop/app/manifests/{tag}");
    let pushed = send(cluster, Method::PUT, &path, MANIFEST, content.as_bytes().to_vec()).await;
    assert_eq!(pushed.0, 201, "{pushed:?}");
}

/// Pushes an image; hex of its digest.
async fn image(cluster: &Cluster, tag: &str) -> String {
    let manifest = json!({"schemaVersion": 2, "annotations": {"tag": tag}, "layers": []});
    push(cluster, tag, &manifest.to_string()).await;
    digest_of(manifest.to_string().as_bytes())
}

async fn sign(cluster: &Cluster, signer: &Signer, hex: &str) {
    let (payload, signature) = signer.payload(hex);
    let digest = format!("sha256:{}", digest_of(payload.as_bytes()));
    let path = format!("/v2/shop/app/blobs/uploads/?digest={digest}");
    let size = payload.len();
    let pushed = send(cluster, Method::POST, &path, "text/plain", payload.into_bytes()).await;
    assert_eq!(pushed.0, 201, "{pushed:?}");
    let layer = json!({"mediaType": SIMPLE_SIGNING_LAYER, "digest": digest, "size": size,
        "annotations": {SIGNATURE_ANNOTATION: signature}});
    let manifest = json!({"schemaVersion": 2, "layers": [layer]}).to_string();
    push(cluster, &format!("sha256-{hex}.sig"), &manifest).await;
}

/// A cluster with the namespace `shop`, whose policy has this mode.
async fn cluster(mode: &str, signer: &Signer) -> Cluster {
    let cluster = Cluster::start().await;
    let verifier = SignatureVerifier::open(cluster.client.clone(), None, &Proxies::default());
    cluster.api.set_image_verifier(Arc::new(AgentVerifier(verifier)));
    let namespace = json!({"metadata": {"name": "shop", "labels": {MODE_LABEL: mode}}});
    assert_eq!(post(&cluster, "/api/v1/namespaces", &namespace).await.0, 201);
    let keys =
        json!({"metadata": {"name": "image-policy"}, "data": {"cosign.pub": signer.public_pem()}});
    assert_eq!(post(&cluster, "/api/v1/namespaces/shop/configmaps", &keys).await.0, 201);
    cluster
}

fn pod(name: &str, image: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

const PODS: &str = "/api/v1/namespaces/shop/pods";

#[tokio::test]
async fn a_pod_with_an_unsigned_image_is_refused_with_the_reason_and_what_to_do() {
    let signer = Signer::new();
    let cluster = cluster("enforce", &signer).await;
    let (signed, unsigned) = (image(&cluster, "signed").await, image(&cluster, "unsigned").await);
    sign(&cluster, &signer, &signed).await;

    let (code, _, status) = post(&cluster, PODS, &pod("a", "shop/app:unsigned")).await;
    assert_eq!((code, &status["reason"]), (403, &json!("Forbidden")), "{status}");
    assert_eq!(
        status["message"],
        "pods \"a\" is forbidden: the image policy of namespace \"shop\" refuses image \"shop/app:unsigned\": \
         it has no signature; sign with a key of ConfigMap shop/image-policy (cosign sign --key), or change \
         the label edgeorc.io/image-policy of the namespace"
    );
    assert_eq!(post(&cluster, PODS, &pod("a", "shop/app:signed")).await.0, 201);
    let by_digest = format!("shop/app@sha256:{signed}");
    assert_eq!(post(&cluster, PODS, &pod("b", &by_digest)).await.0, 201);
    let by_digest = format!("shop/app@sha256:{unsigned}");
    assert_eq!(post(&cluster, PODS, &pod("c", &by_digest)).await.0, 403);
    let missing = post(&cluster, PODS, &pod("c", "shop/app:missing")).await;
    assert!(
        missing.0 == 403 && missing.2["message"].as_str().unwrap().contains("not found"),
        "{missing:?}"
    );
    // A sidecar counts as well, and so does a dry run.
    let mut two = pod("c", "shop/app:signed");
    two["spec"]["initContainers"] = json!([{"name": "i", "image": "shop/app:unsigned"}]);
    assert_eq!(post(&cluster, PODS, &two).await.0, 403);
    assert_eq!(post(&cluster, &format!("{PODS}?dryRun=All"), &two).await.0, 403);
    // Other namespaces are left alone.
    let elsewhere = "/api/v1/namespaces/default/pods";
    assert_eq!(post(&cluster, elsewhere, &pod("a", "shop/app:unsigned")).await.0, 201);
}

#[tokio::test]
async fn an_image_comes_into_a_running_pod_only_when_it_is_signed() {
    let signer = Signer::new();
    let cluster = cluster("enforce", &signer).await;
    let hex = image(&cluster, "signed").await;
    image(&cluster, "unsigned").await;
    sign(&cluster, &signer, &hex).await;
    assert_eq!(post(&cluster, PODS, &pod("a", "shop/app:signed")).await.0, 201);
    let merge = "application/strategic-merge-patch+json";
    let patch = |image: &str, at: &'static str| {
        let list = json!([{"name": "c", "image": image}]);
        let patch = if at.is_empty() {
            json!({"spec": {"containers": list}})
        } else {
            json!({"spec": {"ephemeralContainers": [{"name": "d", "image": image}]}})
        };
        let (cluster, path) = (&cluster, format!("{PODS}/a{at}"));
        async move { send(cluster, Method::PATCH, &path, merge, patch.to_string().into_bytes()).await }
    };
    for at in ["", "/ephemeralcontainers"] {
        let refused = patch("shop/app:unsigned", at).await;
        assert_eq!(refused.0, 403, "{at}: {refused:?}");
        let by_digest = format!("shop/app@sha256:{hex}");
        let taken = patch(&by_digest, at).await;
        assert_eq!(taken.0, 200, "{at}: {taken:?}");
    }
    // What is there already is not judged again: the key may have been taken away.
    let none = json!({"data": {"cosign.pub": Signer::new().public_pem()}});
    let path = "/api/v1/namespaces/shop/configmaps/image-policy";
    assert_eq!(
        send(&cluster, Method::PATCH, path, merge, none.to_string().into_bytes()).await.0,
        200
    );
    let label = json!({"metadata": {"labels": {"a": "b"}}}).to_string().into_bytes();
    assert_eq!(send(&cluster, Method::PATCH, &format!("{PODS}/a"), merge, label).await.0, 200);
    assert_eq!(post(&cluster, PODS, &pod("b", "shop/app:signed")).await.0, 403);
}

#[tokio::test]
async fn a_policy_that_only_warns_says_so_and_a_broken_one_takes_nothing() {
    let signer = Signer::new();
    let warns = cluster("warn", &signer).await;
    image(&warns, "unsigned").await;
    let (code, warning, _) = post(&warns, PODS, &pod("a", "shop/app:unsigned")).await;
    assert!(code == 201 && warning.contains("it has no signature"), "{code} {warning}");

    let broken = cluster("Enforce", &signer).await;
    let hex = image(&broken, "signed").await;
    sign(&broken, &signer, &hex).await;
    let (code, _, status) = post(&broken, PODS, &pod("a", "shop/app:signed")).await;
    assert!(code == 403 && status["message"].as_str().unwrap().contains("\"Enforce\""), "{status}");
}

#[tokio::test]
async fn a_registry_that_does_not_answer_is_not_waited_for_for_long() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let image = format!("{}/app:v1", silent.local_addr().unwrap());
    let cluster = cluster("enforce", &Signer::new()).await;
    tokio::time::pause();
    let asked = tokio::time::Instant::now();
    let (code, _, status) = post(&cluster, PODS, &pod("a", &image)).await;
    assert!(asked.elapsed() < Duration::from_secs(12), "{:?}", asked.elapsed());
    assert!(code == 403 && status["message"].as_str().unwrap().contains("try again"), "{status}");
}

#[tokio::test]
async fn a_registry_that_does_not_answer_keeps_nobody_from_another_registry() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let signer = Signer::new();
    let cluster = cluster("enforce", &signer).await;
    let hex = image(&cluster, "signed").await;
    sign(&cluster, &signer, &hex).await;
    tokio::time::pause();
    let asked = tokio::time::Instant::now();
    let stuck = (0..40).map(|n| {
        let (cluster, image) = (&cluster, format!("{address}/app:v{n}"));
        async move { post(cluster, PODS, &pod(&format!("stuck-{n}"), &image)).await }
    });
    let stuck = futures_util::future::join_all(stuck);
    let good = async {
        // Behind all of them.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        post(&cluster, PODS, &pod("a", "shop/app:signed")).await
    };
    tokio::select! {
        biased;
        _ = stuck => panic!("the good one came last"),
        (code, _, status) = good => assert_eq!(code, 201, "{status}"),
    }
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
}
