//! Goal: a node runs what the policy of the pod's namespace takes, and nothing else. Method: an API
//! and a registry in process, made of paths and what they answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::Router;
use axum::http::{StatusCode, Uri};
use axum::response::IntoResponse as _;
use serde_json::{Value, json};

use super::image_test::{COPY, Node, WASM, digest_of, failure, manifest_of};
use super::policies::Policies;
use super::pull_test::listen;
use super::*;
use crate::agent::pod::mirror::{SOURCE_ANNOTATION, SOURCE_FILE};
use crate::api::image_policy::testing::Signer;
use crate::api::image_policy::{MODE_LABEL, SIGNATURE_ANNOTATION, SIMPLE_SIGNING_LAYER};

const IMAGE: &str = "default/app:v1";
const BUNDLE_LAYER: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// What is answered at which path.
#[derive(Clone, Default)]
struct World {
    answers: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    is_down: Arc<AtomicBool>,
    /// Questions after signatures.
    asked: Arc<AtomicUsize>,
}

impl World {
    /// With the image, unsigned.
    fn new() -> Self {
        let world = Self::default();
        world.manifest("v1", &manifest_of("application/wasm", WASM));
        world.blob(WASM);
        world
    }

    fn put(&self, path: String, content: impl Into<Vec<u8>>) {
        self.answers.lock().insert(path, content.into());
    }

    fn manifest(&self, reference: &str, content: &str) {
        self.put(format!("/v2/default/app/manifests/{reference}"), content);
        self.put(format!("/v2/default/app/manifests/{}", digest_of(content.as_bytes())), content);
    }

    fn blob(&self, content: &[u8]) -> String {
        let digest = digest_of(content);
        self.put(format!("/v2/default/app/blobs/{digest}"), content);
        digest
    }

    /// A namespace that wants a signature by this key.
    fn demand(&self, mode: &str, signer: &Signer) {
        let namespace = json!({"kind": "Namespace", "apiVersion": "v1",
            "metadata": {"name": "default", "labels": {MODE_LABEL: mode}}});
        let keys = json!({"kind": "ConfigMap", "apiVersion": "v1",
            "metadata": {"name": "image-policy"}, "data": {"cosign.pub": signer.public_pem()}});
        self.put("/api/v1/namespaces/default".to_owned(), namespace.to_string());
        let path = "/api/v1/namespaces/default/configmaps/image-policy";
        self.put(path.to_owned(), keys.to_string());
    }

    fn layer(&self, signer: &Signer, hex: &str) -> Value {
        let (payload, signature) = signer.payload(hex);
        json!({
            "mediaType": SIMPLE_SIGNING_LAYER,
            "digest": self.blob(payload.as_bytes()),
            "size": payload.len(),
            "annotations": {SIGNATURE_ANNOTATION: signature},
        })
    }

    /// Signs the image as `cosign sign --key` does with tags.
    fn sign(&self, signers: &[&Signer]) {
        let layers: Vec<_> = signers.iter().map(|signer| self.layer(signer, &hex())).collect();
        self.signatures(&layers);
    }

    fn signatures(&self, layers: &[Value]) {
        let manifest = json!({"schemaVersion": 2, "layers": layers}).to_string();
        self.manifest(&format!("sha256-{}.sig", hex()), &manifest);
    }

    /// A manifest with a bundle, and an index that names it.
    fn bundle(&self, signer: &Signer) -> String {
        let bundle = signer.bundle(&hex());
        let layer = json!({"mediaType": BUNDLE_LAYER, "digest": self.blob(bundle.as_bytes()), "size": bundle.len()});
        let manifest = json!({"schemaVersion": 2, "layers": [layer]}).to_string();
        let digest = digest_of(manifest.as_bytes());
        self.manifest(&digest, &manifest);
        let sbom = json!({"digest": digest_of(b"sbom"), "artifactType": "application/spdx+json"});
        let signed = json!({"digest": digest, "artifactType": BUNDLE_LAYER});
        json!({"schemaVersion": 2, "manifests": [sbom, signed]}).to_string()
    }

    fn router(&self) -> Router {
        let world = self.clone();
        Router::new().fallback(move |uri: Uri| async move {
            if world.is_down.load(Ordering::Relaxed) {
                return StatusCode::SERVICE_UNAVAILABLE.into_response();
            }
            if uri.path().contains("sha256-") {
                world.asked.fetch_add(1, Ordering::Relaxed);
            }
            match world.answers.lock().get(uri.path()) {
                Some(content) => content.clone().into_response(),
                None => StatusCode::NOT_FOUND.into_response(),
            }
        })
    }

    fn node(&self) -> Node {
        Node::new(self.router(), COPY, "")
    }
}

/// Hex of the image's digest.
fn hex() -> String {
    let digest = digest_of(manifest_of("application/wasm", WASM).as_bytes());
    digest.trim_start_matches("sha256:").to_owned()
}

#[tokio::test]
async fn a_signed_image_runs_whoever_else_signed_it() {
    let (ours, theirs) = (Signer::new(), Signer::new());
    let world = World::new();
    world.demand("enforce", &ours);
    world.sign(&[&theirs, &ours]);
    world.node().ready(IMAGE, PullPolicy::IfNotPresent).await.unwrap();
}

#[tokio::test]
async fn a_bundle_among_the_referrers_is_a_signature_with_and_without_the_endpoint() {
    let signer = Signer::new();
    let world = World::new();
    world.demand("enforce", &signer);
    let index = world.bundle(&signer);
    world.put(format!("/v2/default/app/manifests/sha256-{}", hex()), index.clone());
    world.node().ready(IMAGE, PullPolicy::IfNotPresent).await.unwrap();

    let world = World::new();
    world.demand("enforce", &signer);
    let index = world.bundle(&signer);
    world.put(format!("/v2/default/app/referrers/sha256:{}", hex()), index);
    world.node().ready(IMAGE, PullPolicy::IfNotPresent).await.unwrap();
}

#[tokio::test]
async fn a_list_of_the_registry_without_the_signature_does_not_hide_the_one_under_the_tag() {
    let (ours, theirs) = (Signer::new(), Signer::new());
    let empty = json!({"schemaVersion": 2, "manifests": []}).to_string();
    for is_empty in [true, false] {
        let world = World::new();
        world.demand("enforce", &ours);
        let list = if is_empty { empty.clone() } else { world.bundle(&theirs) };
        world.put(format!("/v2/default/app/referrers/sha256:{}", hex()), list);
        let failed = failure(world.node().ready(IMAGE, PullPolicy::IfNotPresent).await);
        assert_eq!(failed.reason, "SignatureValidationFailed");
        let index = world.bundle(&ours);
        world.put(format!("/v2/default/app/manifests/sha256-{}", hex()), index);
        world.node().ready(IMAGE, PullPolicy::IfNotPresent).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_image_without_a_good_signature_waits_until_it_has_one() {
    let (ours, theirs) = (Signer::new(), Signer::new());
    let world = World::new();
    world.demand("enforce", &ours);
    let node = world.node();
    let failed = failure(node.ready(IMAGE, PullPolicy::IfNotPresent).await);
    assert_eq!(failed.reason, "SignatureValidationFailed");
    assert_eq!(
        failed.message,
        format!(
            "image pull failed for {IMAGE} because the signature validation failed: it has no signature"
        )
    );
    assert!(!failed.is_final && failed.is_paced, "{failed:?}");
    let told = node.told(4).await;
    assert_eq!(
        told[2],
        format!(
            "Warning Failed: Failed to pull image \"{IMAGE}\": SignatureValidationFailed: {}",
            failed.message
        )
    );
    assert_eq!(told[3], "Warning Failed: Error: SignatureValidationFailed");

    world.sign(&[&theirs]);
    // Not asked for again before its time.
    let again = failure(node.ready(IMAGE, PullPolicy::IfNotPresent).await);
    assert_eq!(again.message, failed.message);
    tokio::time::advance(Duration::from_secs(2)).await;
    let wrong = failure(node.ready(IMAGE, PullPolicy::IfNotPresent).await);
    assert!(wrong.message.contains("made by none of the policy's keys"), "{wrong:?}");
    world.sign(&[&theirs, &ours]);
    tokio::time::advance(Duration::from_secs(5)).await;
    // The compiler is a process: it takes real time.
    tokio::time::resume();
    node.ready(IMAGE, PullPolicy::IfNotPresent).await.unwrap();
}

#[tokio::test]
async fn a_tag_that_moved_to_an_unsigned_image_does_not_run() {
    let signer = Signer::new();
    let world = World::new();
    world.demand("enforce", &signer);
    world.sign(&[&signer]);
    let node = world.node();
    node.ready(IMAGE, PullPolicy::Always).await.unwrap();
    let other = manifest_of("application/vnd.wasm.content.layer.v1+wasm", WASM);
    world.manifest("v1", &other);
    let failed = failure(node.ready(IMAGE, PullPolicy::Always).await);
    assert_eq!(failed.reason, "SignatureValidationFailed");
    // The signature of the one does not count for the other, even under its tag.
    let layer = world.layer(&signer, &hex());
    let manifest = json!({"layers": [layer]}).to_string();
    let tag = digest_of(other.as_bytes()).replace(':', "-");
    world.manifest(&format!("{tag}.sig"), &manifest);
    let node = world.node();
    let failed = failure(node.ready(IMAGE, PullPolicy::Always).await);
    assert!(failed.message.contains(&format!("it signs \"sha256:{}\"", hex())), "{failed:?}");
}

#[tokio::test]
async fn a_signature_that_was_good_is_good_without_a_server() {
    let signer = Signer::new();
    let world = World::new();
    world.demand("enforce", &signer);
    world.sign(&[&signer]);
    let mut node = world.node();
    node.ready(IMAGE, PullPolicy::IfNotPresent).await.unwrap();
    world.is_down.store(true, Ordering::Relaxed);
    let forgotten = |node: &Node| {
        Policies::new(node.images.client.clone(), node.images.dirs.images().join("policies"))
    };
    let policies = forgotten(&node);
    node.images_mut().policies = policies;
    node.ready(IMAGE, PullPolicy::Always).await.unwrap();
    // It proves itself each time: with another key on disk in its place it does not.
    for file in std::fs::read_dir(node.images.dirs.images().join("signatures")).unwrap() {
        let evidence = serde_json::to_vec(&Signer::new().sign(&hex())).unwrap();
        std::fs::write(file.unwrap().path(), evidence).unwrap();
    }
    let policies = forgotten(&node);
    node.images_mut().policies = policies;
    let failed = failure(node.ready(IMAGE, PullPolicy::IfNotPresent).await);
    assert_eq!(failed.reason, "SignatureValidationFailed");
}

#[tokio::test]
async fn only_a_static_pod_runs_when_nobody_ever_said_what_its_namespace_wants() {
    let signer = Signer::new();
    let world = World::new();
    world.demand("enforce", &signer);
    for (is_static, is_ready) in [(true, true), (false, false)] {
        // The registry answers, and the API does not.
        let api = Router::new()
            .route(
                "/api/v1/namespaces/default",
                axum::routing::get(|| async { StatusCode::BAD_GATEWAY }),
            )
            .merge(world.router());
        let mut node = Node::new(api, COPY, "");
        if is_static {
            let annotations = [(SOURCE_ANNOTATION.to_owned(), SOURCE_FILE.to_owned())];
            node.pod.metadata.annotations = Some(annotations.into());
        }
        let ready = node.ready(IMAGE, PullPolicy::IfNotPresent).await;
        assert_eq!(ready.is_ok(), is_ready, "{ready:?}");
    }
    // Once it is known, it counts for static pods as well.
    let mut node = world.node();
    let annotations = [(SOURCE_ANNOTATION.to_owned(), SOURCE_FILE.to_owned())];
    node.pod.metadata.annotations = Some(annotations.into());
    let failed = failure(node.ready(IMAGE, PullPolicy::IfNotPresent).await);
    assert_eq!(failed.reason, "SignatureValidationFailed");
}

#[tokio::test]
async fn a_policy_that_only_warns_runs_the_image_and_tells_once() {
    let world = World::new();
    world.demand("warn", &Signer::new());
    let mut node = world.node();
    node.ready(IMAGE, PullPolicy::IfNotPresent).await.unwrap();
    let asked = world.asked.load(Ordering::Relaxed);
    node.ready(IMAGE, PullPolicy::IfNotPresent).await.unwrap();
    let told = node.told(3).await;
    assert_eq!(told.len(), 3, "{told:?}");
    assert_eq!(
        told[2],
        format!(
            "Warning SignatureValidationFailed: image \"{IMAGE}\" would be refused by the image policy of the namespace: it has no signature"
        )
    );
    // Another pod is told as well; nobody is asked again for some time.
    node.is_of("default", "u2");
    node.ready(IMAGE, PullPolicy::IfNotPresent).await.unwrap();
    let told = node.told(2).await;
    assert!(told.iter().any(|event| event.contains("it has no signature")), "{told:?}");
    assert!(asked > 0);
    assert_eq!(world.asked.load(Ordering::Relaxed), asked);
}

#[tokio::test]
async fn a_hostile_signature_manifest_neither_passes_nor_hides_a_good_one() {
    let signer = Signer::new();
    let good = |world: &World| world.layer(&signer, &hex());
    type Layer = Box<dyn Fn(&World) -> Value>;
    let broken: Vec<(&str, Layer)> = vec![
        (
            "another type",
            Box::new(|_| json!({"mediaType": "text/plain", "digest": "x", "size": 1})),
        ),
        (
            "too large",
            Box::new(
                |_| json!({"mediaType": SIMPLE_SIGNING_LAYER, "digest": digest_of(b""), "size": 1 << 30}),
            ),
        ),
        (
            "no annotation",
            Box::new(
                |world| json!({"mediaType": SIMPLE_SIGNING_LAYER, "digest": world.blob(b"{}"), "size": 2}),
            ),
        ),
        (
            "no Base64",
            Box::new(|world| {
                json!({"mediaType": SIMPLE_SIGNING_LAYER, "digest": world.blob(b"{}"), "size": 2,
            "annotations": {SIGNATURE_ANNOTATION: "\u{fc}!"}})
            }),
        ),
        (
            "no bundle",
            Box::new(
                |world| json!({"mediaType": BUNDLE_LAYER, "digest": world.blob(b"[]"), "size": 2}),
            ),
        ),
    ];
    for (what, layer) in &broken {
        for (is_signed, layers) in [(false, 1), (true, 2)] {
            let world = World::new();
            world.demand("enforce", &signer);
            let all = [layer(&world), good(&world)];
            world.signatures(&all[..layers]);
            let ready = world.node().ready(IMAGE, PullPolicy::IfNotPresent).await;
            assert_eq!(ready.is_ok(), is_signed, "{what}: {ready:?}");
        }
    }
    let world = World::new();
    world.demand("enforce", &signer);
    let mut escape = good(&world);
    escape["digest"] = json!("sha256:../../../etc/passwd");
    let mut changed = good(&world);
    changed["digest"] = json!(digest_of(b"other"));
    world.put(format!("/v2/default/app/blobs/{}", digest_of(b"other")), signer.payload(&hex()).0);
    for layer in [escape, changed] {
        world.signatures(&[layer]);
        let ready = world.node().ready(IMAGE, PullPolicy::IfNotPresent).await;
        assert!(ready.is_err(), "{ready:?}");
    }
    for text in ["", "[]", "{\"layers\": 1}", "{\"layers\": [{}]}"] {
        world.manifest(&format!("sha256-{}.sig", hex()), text);
        let failed = failure(world.node().ready(IMAGE, PullPolicy::IfNotPresent).await);
        assert_eq!(failed.reason, "SignatureValidationFailed", "{text}");
    }
}

#[tokio::test]
async fn an_image_from_a_mirror_has_its_signature_there() {
    let signer = Signer::new();
    let (mirror, api) = (World::new(), World::default());
    mirror.sign(&[&signer]);
    api.demand("enforce", &signer);
    let host = listen(mirror.router()).await;
    let file = format!("mirrors: {{reg.test: {{endpoint: [\"http://{host}\"]}}}}\n");
    let node = Node::new(api.router(), COPY, &file);
    let ready = node.ready("reg.test/default/app:v1", PullPolicy::IfNotPresent).await.unwrap();
    assert!(ready.id.starts_with("reg.test/default/app@sha256:"), "{}", ready.id);
}

#[tokio::test]
async fn a_copy_in_the_clusters_registry_stands_for_an_image_from_outside() {
    let signer = Signer::new();
    let world = World::new();
    world.sign(&[&signer]);
    let copies = World::default();
    copies.demand("enforce", &signer);
    for (path, content) in world.answers.lock().iter() {
        copies.put(path.replace("/v2/", "/v2/nowhere.test_5000/"), content.clone());
    }
    let image = "nowhere.test:5000/default/app:v1";
    let node = Node::new(copies.router(), COPY, "");
    let ready = node.ready(image, PullPolicy::Always).await.unwrap();
    assert_eq!(ready.id, format!("nowhere.test:5000/default/app@sha256:{}", hex()));
}
