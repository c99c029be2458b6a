//! Signed images, and images without a way to their registry: a registry of one image on a loopback
//! address, with signatures as `cosign sign --key` makes them.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::support::{Block, Node, PATIENCE, both, eventually, hello, succeed};

/// Port of the registry.
const REGISTRY_PORT: u16 = 5000;
/// What stands before the point of a P-256 key in its SubjectPublicKeyInfo.
const P256_INFO: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// A key pair as `cosign generate-key-pair` makes it.
struct Signer(EcdsaKeyPair);

impl Signer {
    fn new() -> Self {
        let (rng, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_ASN1_SIGNING);
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &rng).unwrap();
        Self(EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &rng).unwrap())
    }

    fn public_pem(&self) -> String {
        let info = [&P256_INFO, self.0.public_key().as_ref()].concat();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(info))
    }
}

/// A registry that is only read. Dropped, it is out of reach.
struct Registry {
    address: SocketAddr,
    answers: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    is_over: Arc<AtomicBool>,
}

impl Registry {
    fn start(address: IpAddr) -> Self {
        let listener = TcpListener::bind((address, REGISTRY_PORT)).unwrap();
        let address = listener.local_addr().unwrap();
        let answers: Arc<Mutex<BTreeMap<String, Vec<u8>>>> = Arc::default();
        let is_over = Arc::new(AtomicBool::new(false));
        let (known, over) = (Arc::clone(&answers), Arc::clone(&is_over));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(mut stream) = stream else { continue };
                let known = Arc::clone(&known);
                std::thread::spawn(move || {
                    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                    let Some(Ok(first)) = lines.next() else { return };
                    for line in lines.map_while(Result::ok) {
                        if line.is_empty() {
                            break;
                        }
                    }
                    let path = first.split(' ').nth(1).unwrap_or_default();
                    let found = known.lock().unwrap().get(path).cloned();
                    let status = if found.is_some() { "200 OK" } else { "404 Not Found" };
                    let content = found.unwrap_or_default();
                    let length = content.len();
                    let _ = write!(
                        stream,
                        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
                    );
                    let _ = stream.write_all(&content);
                    let _ = stream.shutdown(Shutdown::Write);
                });
            }
        });
        Self { address, answers, is_over }
    }

    fn put(&self, path: &str, content: &[u8]) {
        self.answers.lock().unwrap().insert(format!("/v2/team/{path}"), content.to_vec());
    }

    fn blob(&self, name: &str, content: &[u8]) -> String {
        let digest = digest(content);
        self.put(&format!("{name}/blobs/{digest}"), content);
        digest
    }

    fn manifest(&self, name: &str, tag: &str, content: &str) -> String {
        let digest = digest(content.as_bytes());
        for reference in [tag, &digest] {
            self.put(&format!("{name}/manifests/{reference}"), content.as_bytes());
        }
        digest
    }

    /// An image with a mark of its own; its digest.
    fn image(&self, name: &str, tag: &str, mark: &str) -> String {
        let wasm = std::fs::read(hello()).unwrap();
        let config = self.blob(name, b"{}");
        let layer = self.blob(name, &wasm);
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": kind, "annotations": {"mark": mark},
            "config": {"mediaType": "application/vnd.wasm.config.v0+json", "digest": config, "size": 2},
            "layers": [{"mediaType": "application/wasm", "digest": layer, "size": wasm.len()}],
        });
        self.manifest(name, tag, &manifest.to_string())
    }

    fn sign(&self, name: &str, digest: &str, signer: &Signer) {
        let payload = json!({"critical": {
            "identity": {"docker-reference": name},
            "image": {"docker-manifest-digest": digest},
            "type": "cosign container image signature",
        }, "optional": null})
        .to_string();
        let signature = signer.0.sign(&SystemRandom::new(), payload.as_bytes()).unwrap();
        let layer = json!({
            "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
            "digest": self.blob(name, payload.as_bytes()), "size": payload.len(),
            "annotations": {"dev.cosignproject.cosign/signature": STANDARD.encode(signature)},
        });
        let config = json!({"mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": self.blob(name, b"{}"), "size": 2});
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
        self.manifest(name, &format!("{}.sig", digest.replace(':', "-")), &manifest.to_string());
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        let _ = std::net::TcpStream::connect(self.address);
    }
}

/// A namespace that takes what this key signed.
fn demand(node: &Node, folder: &Path, signer: &Signer) {
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}},
        {"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "image-policy", "namespace": "shop"},
            "data": {"cosign.pub": signer.public_pem()}},
    ]});
    let file = folder.join("policy.json");
    std::fs::write(&file, objects.to_string()).unwrap();
    succeed(&mut node.kubectl(&["apply", "-f", &file.display().to_string()]));
    succeed(&mut node.kubectl(&["label", "namespace", "shop", "edgeorc.io/image-policy=enforce"]));
}

fn deployment(name: &str, image: &str) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{{name: web, image: '{image}', imagePullPolicy: Always}}]
"
    )
}

fn apply(node: &Node, folder: &Path, text: &str) {
    let file = folder.join("objects.yaml");
    std::fs::write(&file, text).unwrap();
    succeed(&mut node.kubectl(&["apply", "-f", file.to_str().unwrap()]));
}

fn wait_running(node: &Node, name: &str) {
    let target = format!("deployment/{name}");
    let wait = ["-n", "shop", "wait", "--for=condition=Available", &target, "--timeout=60s"];
    succeed(&mut node.kubectl(&wait));
}

#[test]
fn a_namespace_with_a_policy_runs_what_its_key_signed_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let block = Block::take();
    let (registry, signer) = (Registry::start(block.address(9)), Signer::new());
    let signed = registry.image("web", "signed", "first");
    registry.sign("web", &signed, &signer);
    registry.image("web", "unsigned", "second");
    let image = |tag: &str| format!("{}/team/web:{tag}", registry.address);

    let node = Node::start(folder.path(), "one", block.address(1), None);
    node.wait_ready();
    demand(&node, folder.path(), &signer);
    apply(&node, folder.path(), &deployment("good", &image("signed")));
    apply(&node, folder.path(), &deployment("bad", &image("unsigned")));
    wait_running(&node, "good");
    eventually("the refusal is told", PATIENCE, || {
        let events = succeed(&mut node.kubectl(&["-n", "shop", "get", "events"]));
        let is_told = events.contains("FailedCreate") && events.contains("it has no signature");
        if is_told { Ok(()) } else { Err(events) }
    });
    let file = folder.path().join("pod.yaml");
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: bare, namespace: shop}}\n\
         spec: {{containers: [{{name: c, image: '{}'}}]}}\n",
        image("unsigned")
    );
    std::fs::write(&file, &pod).unwrap();
    let refused = node.kubectl(&["apply", "-f", file.to_str().unwrap()]).output().unwrap();
    let words = both(&refused);
    assert!(!refused.status.success() && words.contains("forbidden: the image policy"), "{words}");

    // The API never sees a static pod before it runs: the node judges.
    let manifests = node.data_dir.join("pod-manifests");
    std::fs::create_dir_all(&manifests).unwrap();
    std::fs::write(manifests.join("bare.yaml"), pod).unwrap();
    let reason = "jsonpath={.status.containerStatuses[0].state.waiting.reason}";
    eventually("the node refuses the static pod", PATIENCE, || {
        let shown = node.kubectl(&["-n", "shop", "get", "pod", "bare-one", "-o", reason]).output();
        let shown = both(&shown.unwrap());
        if shown.contains("SignatureValidationFailed") { Ok(()) } else { Err(shown) }
    });
}

#[test]
fn a_bundle_runs_without_the_registry_it_came_from() {
    let folder = tempfile::tempdir().unwrap();
    let block = Block::take();
    let (registry, signer) = (Registry::start(block.address(9)), Signer::new());
    let digest = registry.image("web", "v1", "first");
    registry.sign("web", &digest, &signer);
    let image = format!("{}/team/web:v1", registry.address);

    let node = Node::start(folder.path(), "one", block.address(1), None);
    node.wait_ready();
    demand(&node, folder.path(), &signer);
    let objects = folder.path().join("web.yaml");
    std::fs::write(&objects, deployment("web", &image)).unwrap();
    let file = folder.path().join("web.tar");
    let (file, objects) = (file.to_str().unwrap(), objects.to_str().unwrap());
    let create = ["bundle", "create", file, "-f", objects, "-o", "json"];
    let made = succeed(&mut node.edgeorc(&create));
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    assert_eq!(made["images"], json!([{"name": image, "digest": digest, "signatures": 1}]));

    drop(registry);
    let loaded = succeed(&mut node.edgeorc(&["bundle", "load", file, "-o", "name"]));
    assert_eq!(loaded.trim(), image);
    succeed(&mut node.kubectl(&["apply", "-f", objects]));
    wait_running(&node, "web");
    let id = "jsonpath={.items[0].status.containerStatuses[0].imageID}";
    let id = succeed(&mut node.kubectl(&["-n", "shop", "get", "pods", "-l", "app=web", "-o", id]));
    assert_eq!(id, format!("{}@{digest}", image.trim_end_matches(":v1")));
    // A machine that is set up with it: no load is needed.
    let images = folder.path().join("two/images");
    std::fs::create_dir_all(&images).unwrap();
    std::fs::copy(file, images.join("web.tar")).unwrap();
    let two = Node::start(folder.path(), "two", block.address(2), None);
    two.wait_ready();
    demand(&two, folder.path(), &signer);
    succeed(&mut two.kubectl(&["apply", "-f", objects]));
    wait_running(&two, "web");
    let again = succeed(&mut node.edgeorc(&["bundle", "load", file, "-o", "json"]));
    let again: serde_json::Value = serde_json::from_str(&again).unwrap();
    assert_eq!(again["blobsSent"], 0, "{again}");
}
