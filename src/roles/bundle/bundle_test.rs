//! Goal: what is taken from one registry comes into another byte for byte, with its signatures, and
//! nothing that an archive says can do harm. Method: a registry on a loopback socket, and a server
//! with its own registry in process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::api::image_policy::testing::{Signer, digest_of};
use crate::api::image_policy::{SIGNATURE_ANNOTATION, SIMPLE_SIGNING_LAYER};
use crate::config::Proxies;
use crate::roles::testing::Cluster;
use crate::rt::TaskGroup;

/// Where the line of the registry is cut, once for each blob.
const CUT: usize = 1000;

/// Answers by path; each blob's first transfer breaks off.
#[derive(Clone, Default)]
struct Outside {
    answers: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    cut: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Outside {
    fn blob(&self, content: &[u8]) -> String {
        let digest = format!("sha256:{}", digest_of(content));
        self.answers.lock().insert(format!("/v2/org/app/blobs/{digest}"), content.to_vec());
        digest
    }

    fn manifest(&self, tag: &str, content: &str) -> String {
        let digest = format!("sha256:{}", digest_of(content.as_bytes()));
        for reference in [tag, &digest] {
            let path = format!("/v2/org/app/manifests/{reference}");
            self.answers.lock().insert(path, content.as_bytes().to_vec());
        }
        digest
    }

    /// An index of a WebAssembly image and one for containers, signed in both forms; its digest.
    fn image(&self, wasm: &[u8], signer: &Signer) -> String {
        let config = self.blob(b"{}");
        let layer = self.blob(wasm);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": "application/vnd.wasm.config.v0+json", "digest": config, "size": 2},
            "layers": [{"mediaType": "application/wasm", "digest": layer, "size": wasm.len()}],
        })
        .to_string();
        let wasm_digest = self.manifest("wasm", &manifest);
        let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [
            {"mediaType": MANIFEST_TYPE, "digest": format!("sha256:{}", digest_of(b"linux")), "size": 1,
                "platform": {"os": "linux", "architecture": "amd64"}},
            {"mediaType": MANIFEST_TYPE, "digest": wasm_digest, "size": manifest.len(),
                "platform": {"os": "wasip2", "architecture": "wasm"}},
        ]})
        .to_string();
        let digest = self.manifest("v1", &index);
        let hex = digest.trim_start_matches("sha256:");
        let (payload, signature) = signer.payload(hex);
        let layer = json!({"mediaType": SIMPLE_SIGNING_LAYER, "digest": self.blob(payload.as_bytes()),
            "size": payload.len(), "annotations": {SIGNATURE_ANNOTATION: signature}});
        self.manifest(
            &format!("sha256-{hex}.sig"),
            &json!({"schemaVersion": 2, "layers": [layer]}).to_string(),
        );
        let bundle = signer.bundle(hex);
        let kind = "application/vnd.dev.sigstore.bundle.v0.3+json";
        let layer = json!({"mediaType": kind, "digest": self.blob(bundle.as_bytes()), "size": bundle.len()});
        let manifest = json!({"schemaVersion": 2, "layers": [layer]}).to_string();
        let referrer = self.manifest("bundle", &manifest);
        let sbom = json!({"digest": format!("sha256:{}", digest_of(b"sbom")), "size": 1, "artifactType": "application/spdx+json"});
        let found = json!({"digest": referrer, "size": manifest.len(), "artifactType": kind});
        let referrers = json!({"schemaVersion": 2, "manifests": [sbom, found]}).to_string();
        self.answers
            .lock()
            .insert(format!("/v2/org/app/referrers/{digest}"), referrers.into_bytes());
        digest
    }

    fn answer(&self, uri: &Uri, headers: &HeaderMap) -> Response {
        let Some(content) = self.answers.lock().get(uri.path()).cloned() else {
            return StatusCode::NOT_FOUND.into_response();
        };
        if !uri.path().contains("/blobs/") || content.len() <= CUT {
            return content.into_response();
        }
        let range = headers.get(header::RANGE).and_then(|range| range.to_str().ok());
        let from =
            range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        let from: usize = from.unwrap_or(0);
        let mut cut = self.cut.lock();
        let times = cut.entry(uri.path().to_owned()).or_default();
        *times += 1;
        // It ends early without an error, and the first time without having begun where it should.
        let end = if *times <= 2 { (from + CUT).min(content.len()) } else { content.len() };
        let rest = content[from..end].to_vec();
        let length = content.len();
        let place = format!("bytes {from}-{}/{length}", length - 1);
        if from == 0 {
            return rest.into_response();
        }
        (StatusCode::PARTIAL_CONTENT, [(header::CONTENT_RANGE, place)], rest).into_response()
    }

    /// Serves; `registries.yaml` that leads here, and a token that ends it.
    async fn serve(&self, folder: &Path) -> (PathBuf, CancellationToken) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let this = self.clone();
        let router = Router::new().fallback(move |uri: Uri, headers: HeaderMap| async move {
            this.answer(&uri, &headers)
        });
        let cancel = CancellationToken::new();
        TaskGroup::new(&cancel).spawn_until_cancelled("registry", async move {
            axum::serve(listener, router).await.unwrap();
        });
        let file = folder.join("registries.yaml");
        let text = format!("mirrors: {{reg.test: {{endpoint: [\"http://{address}\"]}}}}\n");
        std::fs::write(&file, text).unwrap();
        (file, cancel)
    }
}

/// Bytes that are longer than one piece of an upload.
fn large() -> Vec<u8> {
    let mut state = 1_u32;
    let noise = (0..5 * 1024 * 1024).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    });
    b"\0asm".iter().copied().chain(noise).collect()
}

async fn get(cluster: &Cluster, path: &str) -> (u16, Vec<u8>) {
    let request = http::Request::get(path).body(kube::client::Body::empty()).unwrap();
    let answer = cluster.client.send(request).await.unwrap();
    let code = answer.status().as_u16();
    (code, answer.into_body().collect().await.unwrap().to_bytes().to_vec())
}

fn plan(folder: &Path, registries: PathBuf, images: &[&str]) -> BundlePlan {
    BundlePlan {
        file: folder.join("bundle.tar"),
        images: images.iter().map(|image| (*image).to_owned()).collect(),
        registries_file: Some(registries),
        docker_config: None,
        proxies: Proxies::default(),
        all_platforms: false,
    }
}

#[tokio::test]
async fn an_image_travels_with_its_signatures_over_a_line_that_breaks() {
    let folder = tempfile::tempdir().unwrap();
    let (outside, signer, wasm) = (Outside::default(), Signer::new(), large());
    let digest = outside.image(&wasm, &signer);
    let (registries, line) = outside.serve(folder.path()).await;
    let plan = plan(folder.path(), registries, &["reg.test/org/app:v1", "reg.test/org/app:v1"]);
    let mut steps = Vec::new();
    let bundled = create(&plan, None, &mut |step| steps.push(step.to_owned())).await.unwrap();
    line.cancel();
    let name = "reg.test/org/app:v1".to_owned();
    assert_eq!(bundled.images[0], (name.clone(), digest.clone(), 2));
    assert_eq!(steps[0], "fetching reg.test/org/app:v1");
    // Other tools see an OCI image layout.
    let listed = std::process::Command::new("tar").arg("-tf").arg(&plan.file).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.starts_with("oci-layout\n") && listed.ends_with("index.json\n"), "{listed}");
    assert!(listed.contains(&format!("blobs/sha256/{}\n", digest_of(&wasm))), "{listed}");
    assert!(!folder.path().join("bundle.tar.part").exists());

    let cluster = Cluster::start().await;
    let load_plan = LoadPlan { file: plan.file.clone(), name: None };
    let loaded = load(&load_plan, &cluster.client, &mut |_| {}).await.unwrap();
    assert_eq!(loaded.images, [(name, digest.clone())]);
    assert_eq!((loaded.signatures, loaded.present, loaded.sent), (2, 0, 4));
    let (code, blob) =
        get(&cluster, &format!("/v2/reg.test/org/app/blobs/sha256:{}", digest_of(&wasm))).await;
    assert!(code == 200 && blob == wasm);
    let tag = digest.replace(':', "-");
    let referrers = format!("/v2/reg.test/org/app/manifests/{tag}");
    for path in [
        "/v2/reg.test/org/app/manifests/v1".to_owned(),
        format!("/v2/reg.test/org/app/manifests/{tag}.sig"),
        referrers.clone(),
    ] {
        assert_eq!(get(&cluster, &path).await.0, 200, "{path}");
    }
    let index = String::from_utf8(get(&cluster, &referrers).await.1).unwrap();
    assert!(!index.contains("spdx"), "{index}");

    let again = load(&load_plan, &cluster.client, &mut |_| {}).await.unwrap();
    assert_eq!((again.sent, again.present, again.bytes), (0, 4, 0));
}

#[tokio::test]
async fn signatures_are_taken_from_the_registrys_list_and_from_the_tag_and_each_once() {
    let folder = tempfile::tempdir().unwrap();
    let outside = Outside::default();
    let digest = outside.image(b"\0asm", &Signer::new());
    let list = format!("/v2/org/app/referrers/{digest}");
    let known = outside.answers.lock().get(&list).cloned().unwrap();
    let tag = format!("/v2/org/app/manifests/{}", digest.replace(':', "-"));
    let (registries, _line) = outside.serve(folder.path()).await;
    let plan = plan(folder.path(), registries, &["reg.test/org/app:v1"]);
    let empty = json!({"schemaVersion": 2, "manifests": []}).to_string();
    for first in [empty.into_bytes(), known.clone()] {
        outside.answers.lock().extend([(list.clone(), first), (tag.clone(), known.clone())]);
        let bundled = create(&plan, None, &mut |_| {}).await.unwrap();
        assert_eq!(bundled.images[0].2, 2);
    }
}

#[tokio::test]
async fn a_bundle_that_cannot_be_made_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let outside = Outside::default();
    outside.image(b"\0asm", &Signer::new());
    outside.manifest(
        "linux",
        &json!({"manifests": [{"digest": format!("sha256:{}", digest_of(b"x")),
        "size": 1, "platform": {"os": "linux", "architecture": "arm64"}}]})
        .to_string(),
    );
    let (registries, _line) = outside.serve(folder.path()).await;
    for (image, why) in [
        ("reg.test/org/app:linux", "linux/arm64"),
        ("own/app:v1", "the cluster's own registry"),
        ("Bad Name", "invalid reference format"),
    ] {
        let plan = plan(folder.path(), registries.clone(), &["reg.test/org/app:v1", image]);
        let refused = create(&plan, None, &mut |_| {}).await.unwrap_err().to_string();
        assert!(refused.contains(image) && refused.contains(why), "{refused}");
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }
}

/// An archive of these files, by the system's tar.
fn archive(folder: &Path, files: &[(&str, &[u8])]) -> PathBuf {
    let root = folder.join("layout");
    let _ = std::fs::remove_dir_all(&root);
    for (name, content) in files {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let file = folder.join("made.tar");
    let made = std::process::Command::new("tar")
        .arg("-cf")
        .arg(&file)
        .arg("-C")
        .arg(&root)
        .arg(".")
        .status();
    assert!(made.unwrap().success());
    file
}

const WASM: &[u8] = b"\0asm";

/// A manifest whose layer is a component with this digest.
fn image(digest: &str) -> String {
    let layer = json!({"mediaType": "application/wasm", "digest": digest, "size": WASM.len()});
    json!({"schemaVersion": 2, "layers": [layer]}).to_string()
}

/// An index that names one manifest.
fn index(manifest: &str, name: &str) -> String {
    let digest = format!("sha256:{}", digest_of(manifest.as_bytes()));
    let annotations = json!({TAG_ANNOTATION: name});
    json!({"schemaVersion": 2, "manifests": [{"mediaType": MANIFEST_TYPE, "digest": digest, "size": 1,
        "annotations": annotations}]})
    .to_string()
}

fn blob_file(content: &[u8]) -> String {
    format!("blobs/sha256/{}", digest_of(content))
}

#[tokio::test]
async fn an_archive_of_another_tool_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start().await;
    let wasm = WASM;
    let good = image(&format!("sha256:{}", digest_of(wasm)));
    let good_digest = format!("sha256:{}", digest_of(good.as_bytes()));
    let (wasm_file, good_file) = (blob_file(wasm), blob_file(good.as_bytes()));
    let named = |name: &str| index(&good, name);

    let full = named("ghcr.io/org/tool:v2");
    let file = archive(
        folder.path(),
        &[("index.json", full.as_bytes()), (&good_file, good.as_bytes()), (&wasm_file, wasm)],
    );
    let loaded = load(&LoadPlan { file: file.clone(), name: None }, &cluster.client, &mut |_| {})
        .await
        .unwrap();
    assert_eq!(loaded.images, [("ghcr.io/org/tool:v2".to_owned(), good_digest.clone())]);
    assert_eq!(get(&cluster, "/v2/ghcr.io/org/tool/manifests/v2").await.1, good.as_bytes());

    let bare = named("v3");
    let file = archive(
        folder.path(),
        &[("index.json", bare.as_bytes()), (&good_file, good.as_bytes()), (&wasm_file, wasm)],
    );
    let mut plan = LoadPlan { file, name: None };
    let refused = load(&plan, &cluster.client, &mut |_| {}).await.unwrap_err().to_string();
    assert!(refused.contains("--name"), "{refused}");
    plan.name = Some("ghcr.io/org/tool".to_owned());
    load(&plan, &cluster.client, &mut |_| {}).await.unwrap();
    assert_eq!(get(&cluster, "/v2/ghcr.io/org/tool/manifests/v3").await.0, 200);
}

#[tokio::test]
async fn a_hostile_archive_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start().await;
    let good = image(&format!("sha256:{}", digest_of(WASM)));
    let good_file = blob_file(good.as_bytes());
    let full = index(&good, "ghcr.io/org/tool:v2");
    let bad_name = index(&good, "../../v2/x/y:1");
    let escape = image("sha256:../../../etc/passwd");
    let (escape_file, escape_index) =
        (blob_file(escape.as_bytes()), index(&escape, "ghcr.io/a/b:1"));
    let fresh = image(&format!("sha256:{}", digest_of(b"\0as!")));
    let (fresh_file, fresh_index) = (blob_file(fresh.as_bytes()), index(&fresh, "ghcr.io/a/b:1"));
    let lied = blob_file(b"\0as!");
    let (index, escape_index) = ("index.json", escape_index.as_bytes());
    let (full, fresh_index) = (full.as_bytes(), fresh_index.as_bytes());
    type Files<'a> = Vec<(&'a str, &'a [u8])>;
    let cases: Vec<(Files<'_>, &str)> = vec![
        (vec![("other", b"x")], "no index.json"),
        (vec![(index, b"{")], "index.json"),
        (vec![(index, b"{}")], "0 images"),
        (vec![(index, full)], "is missing"),
        (vec![(index, full), (&good_file, b"{}")], "damaged"),
        (vec![(index, escape_index), (&escape_file, escape.as_bytes())], "no sha256 digest"),
        (vec![(index, fresh_index), (&fresh_file, fresh.as_bytes())], "is missing"),
        (
            vec![(index, fresh_index), (&fresh_file, fresh.as_bytes()), (&lied, b"\0asn")],
            "the bytes have the digest",
        ),
        (vec![(index, bad_name.as_bytes()), (&good_file, good.as_bytes())], "invalid"),
    ];
    for (files, why) in cases {
        let plan = LoadPlan { file: archive(folder.path(), &files), name: None };
        let refused = load(&plan, &cluster.client, &mut |_| {}).await.unwrap_err().to_string();
        assert!(refused.contains(why), "{why}: {refused}");
    }
}

#[tokio::test]
async fn what_is_no_archive_or_only_half_of_one_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start().await;
    let file = folder.path().join("file");
    let load_of = |content: Vec<u8>| {
        std::fs::write(&file, content).unwrap();
        let (plan, cluster) = (LoadPlan { file: file.clone(), name: None }, &cluster);
        async move { load(&plan, &cluster.client, &mut |_| {}).await.unwrap_err().to_string() }
    };
    assert!(load_of(Vec::new()).await.contains("no index.json"));
    assert!(load_of([0x1f, 0x8b].repeat(600)).await.contains("compressed must be unpacked"));
    let whole = std::fs::read(archive(folder.path(), &[("index.json", &[b' '; 5000])])).unwrap();
    let header = whole.windows(10).position(|window| window == b"index.json").unwrap() - 2;
    assert!(load_of(whole[..header + 1024].to_vec()).await.contains("ends early"));
    // A size that leads nowhere.
    let mut far = whole.clone();
    far[header + 124..header + 135].copy_from_slice(b"77777777777");
    assert!(load_of(far).await.contains("ends early"));
    let missing = LoadPlan { file: folder.path().join("missing"), name: None };
    let refused = load(&missing, &cluster.client, &mut |_| {}).await.unwrap_err();
    assert!(matches!(refused, BundleError::File { .. }), "{refused}");
}
