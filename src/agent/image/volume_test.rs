//! Goal: images as volumes at the door of [`Images`]: pulled, unpacked, kept and collected. Method:
//! a registry in process; archives made by hand.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use serde_json::json;

use super::image_test::{COPY, Node, digest_of};
use super::tar::tests::entry;
use super::*;
use crate::rt::Disk;

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const FULL: Disk = Disk { capacity: 1_000_000, available: 1000 };

/// A registry with one image of these layers; counts the manifests it gave.
struct Registry {
    router: Router,
    asked: Arc<AtomicUsize>,
    is_down: Arc<AtomicBool>,
    id: String,
}

fn registry(layers: &[(&str, Option<&str>, Vec<u8>)]) -> Registry {
    let descriptors: Vec<_> = layers
        .iter()
        .map(|(media, title, bytes)| {
            json!({"mediaType": media, "digest": digest_of(bytes), "size": bytes.len(),
                "annotations": title.map(|t| json!({"org.opencontainers.image.title": t}))})
        })
        .collect();
    let manifest = json!({"schemaVersion": 2, "layers": descriptors}).to_string();
    let id = format!("registry.edgeorc.local/default/data@{}", digest_of(manifest.as_bytes()));
    let (asked, is_down) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
    let (counter, down) = (Arc::clone(&asked), Arc::clone(&is_down));
    let mut router = Router::new().route(
        "/v2/default/data/manifests/v1",
        get(move || async move {
            counter.fetch_add(1, Ordering::Relaxed);
            if down.load(Ordering::Relaxed) {
                return Err(StatusCode::SERVICE_UNAVAILABLE);
            }
            Ok(manifest)
        }),
    );
    for (_, _, bytes) in layers {
        let (path, bytes) = (format!("/v2/default/data/blobs/{}", digest_of(bytes)), bytes.clone());
        router = router.route(&path, get(|| async move { bytes }));
    }
    Registry { router, asked, is_down, id }
}

fn simple() -> Registry {
    let lower = [entry("d/a", b'0', "", b"1"), entry("d/b", b'0', "", b"1")].concat();
    let upper = entry("d/.wh.b", b'0', "", b"");
    registry(&[
        (TAR, None, lower),
        (TAR, None, upper),
        ("text/plain", Some("model.bin"), b"m".to_vec()),
    ])
}

async fn volume(
    node: &Node,
    pull: PullPolicy,
    had: Option<ReadyVolume>,
) -> Result<ReadyVolume, ImageError> {
    let pod = serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "default", "uid": "u1"},
        "spec": {"containers": [], "volumes": [{"name": "v", "image": {"reference": "default/data:v1"}}]},
    }))
    .unwrap();
    let wanted = Wanted { pod: &pod, field_path: String::new(), image: "default/data:v1", pull };
    node.images.volume(&wanted, had).await
}

fn read(node: &Node, volume: &ReadyVolume, path: &str) -> Option<String> {
    std::fs::read_to_string(node.images.dirs.image_tree(&volume.hex).join(path)).ok()
}

#[tokio::test]
async fn an_image_becomes_a_folder_once_and_a_pod_keeps_what_it_had() {
    let registry = simple();
    let node = Node::new(registry.router, COPY, "");
    let ready = volume(&node, PullPolicy::IfNotPresent, None).await.unwrap();
    assert_eq!(ready.id, registry.id);
    assert_eq!(read(&node, &ready, "d/a").as_deref(), Some("1"));
    assert_eq!(read(&node, &ready, "d/b"), None);
    assert_eq!(read(&node, &ready, "model.bin").as_deref(), Some("m"));
    let told = node.told(2).await;
    assert_eq!(told[0], "Normal Pulling: Pulling image \"default/data:v1\"");
    assert!(told[1].ends_with("Image size: 2561 bytes."), "{told:?}");
    volume(&node, PullPolicy::IfNotPresent, None).await.unwrap();
    assert_eq!(registry.asked.load(Ordering::Relaxed), 1);
    // A container that starts again in the same pod asks nobody, whatever the policy.
    let again = volume(&node, PullPolicy::Always, Some(ready.clone())).await.unwrap();
    assert_eq!((again, registry.asked.load(Ordering::Relaxed)), (ready.clone(), 1));
    // Another pod does; without a registry it has what is here.
    registry.is_down.store(true, Ordering::Relaxed);
    assert_eq!(volume(&node, PullPolicy::Always, None).await.unwrap(), ready);
    assert!(registry.asked.load(Ordering::Relaxed) > 1);
}

#[tokio::test]
async fn a_full_disk_loses_unused_volumes_and_no_others() {
    let registry = simple();
    let node = Node::new(registry.router, COPY, "");
    let ready = volume(&node, PullPolicy::IfNotPresent, None).await.unwrap();
    let tree = node.images.dirs.image_tree(&ready.hex);
    let dir = node.images.dirs.pod("u1");
    dir.create().unwrap();
    // The layers are of no use any more.
    assert_eq!(node.images.pass(FULL).unwrap().images, 3);
    assert!(node.files("images/sha256").is_empty());
    assert_eq!(read(&node, &ready, "model.bin").as_deref(), Some("m"));
    // After a restart of the agent, the pod's own note tells.
    *node.images.ledger.lock() = Ledger::default();
    let pod = json!({"metadata": {"uid": "u1"}, "spec": {"containers": [],
        "volumes": [{"name": "v", "image": {"reference": "default/data:v1"}}]}});
    dir.write_pod(&serde_json::from_value(pod).unwrap()).unwrap();
    dir.keep("image", "v", &ready).unwrap();
    assert_eq!(node.images.pass(FULL).unwrap().images, 0);
    assert!(tree.exists());
    dir.remove().unwrap();
    // What a power cut left of unpacking goes at the next look.
    std::fs::create_dir(tree.with_extension("tmp")).unwrap();
    assert_eq!(node.images.pass(FULL).unwrap().images, 1);
    for folder in ["images/trees", "images/volumes"] {
        assert!(node.files(folder).is_empty(), "{folder}");
    }
}

#[tokio::test]
async fn a_hostile_image_leaves_nothing_and_is_told() {
    let evil = [entry("l", b'2', "/tmp", b""), entry("l/x", b'0', "", b"x")].concat();
    let node = Node::new(registry(&[(TAR, None, evil)]).router, COPY, "");
    let error = volume(&node, PullPolicy::IfNotPresent, None).await.unwrap_err();
    let failure = crate::agent::pod::start::StartFailure::from(error);
    assert_eq!(failure.reason, "ErrImagePull");
    assert!(failure.message.contains("below a link"), "{failure:?}");
    assert!(node.files("images/trees").is_empty());
    let error = volume(&node, PullPolicy::IfNotPresent, None).await.unwrap_err();
    assert!(matches!(error, ImageError::BackOff { .. }), "{error}");
}

#[tokio::test]
async fn one_image_may_be_a_component_and_a_volume() {
    let wasm = image_test::WASM.to_vec();
    let registry = registry(&[("application/wasm", None, wasm.clone())]);
    let node = Node::new(registry.router, COPY, "");
    let pod = serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": {"containers": []}}));
    let wanted = Wanted {
        pod: &pod.unwrap(),
        field_path: String::new(),
        image: "default/data:v1",
        pull: PullPolicy::IfNotPresent,
    };
    node.images.ready(&wanted).await.unwrap();
    let ready = node.images.volume(&wanted, None).await.unwrap();
    let name = digest_of(&wasm).trim_start_matches("sha256:").to_owned();
    let tree = node.images.dirs.image_tree(&ready.hex);
    assert_eq!(std::fs::read(tree.join(name)).unwrap(), wasm);
    node.images.ready(&wanted).await.unwrap();
    assert_eq!(registry.asked.load(Ordering::Relaxed), 2);
}
