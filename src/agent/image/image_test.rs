//! Goal: pulling, keeping and compiling at the door of [`Images`]. Method: registries in process,
//! on the API's own connection or on a loopback socket, and a shell script for a compiler.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use axum::routing::{get, post};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::credentials::Keyring;
use super::distribution::Fault;
use super::*;
use crate::agent::config::Compiler;
use crate::agent::pod::start::StartFailure;
use crate::config::Proxies;
use crate::rt::{Disk, TaskGroup};

pub(super) const WASM: &[u8] = b"\0asm\x0d\0\x01\0 a component, as far as a shell script can tell";
/// Where the line of a registry that breaks is cut.
pub(super) const CUT: usize = 20;
pub(super) const COPY: &str = "cp $1 $2";

pub(super) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// A manifest with one layer.
pub(super) fn manifest_of(media: &str, layer: &[u8]) -> String {
    json!({
        "schemaVersion": 2,
        "layers": [{"mediaType": media, "digest": digest_of(layer), "size": layer.len()}],
    })
    .to_string()
}

/// Half of the blob and then the end of the line, or all of it.
pub(super) fn cut_body(is_cut: bool, bytes: &'static [u8]) -> Body {
    let (first, rest) = bytes.split_at(CUT.min(bytes.len()));
    let rest = if is_cut {
        Err(std::io::Error::other("the line is dead"))
    } else {
        Ok(Bytes::from_static(rest))
    };
    let rest = async move {
        // The server sends what it has when it is told to wait.
        tokio::task::yield_now().await;
        rest
    };
    let first = futures_util::stream::iter([Ok(Bytes::from_static(first))]);
    Body::from_stream(first.chain(futures_util::stream::once(rest)))
}

/// A registry under `/v2/default/app` that knows no ranges, and ends its first `breaks` blobs early.
pub(super) fn registry(breaks: usize, asked: &Arc<AtomicUsize>) -> Router {
    let manifest = manifest_of("application/wasm", WASM);
    let asked = Arc::clone(asked);
    Router::new().route("/v2/default/app/manifests/v1", get(|| async move { manifest })).route(
        &format!("/v2/default/app/blobs/{}", digest_of(WASM)),
        get(move || async move { cut_body(asked.fetch_add(1, Ordering::Relaxed) < breaks, WASM) }),
    )
}

/// The images of a node, and what its events were told.
pub(super) struct Node {
    folder: tempfile::TempDir,
    pub(super) images: Arc<Images>,
    events: Arc<Mutex<Vec<String>>>,
    clock: WallClock,
    pub(super) pod: Pod,
}

impl Node {
    /// `api` answers what the node asks of the API, the cluster's registry among it.
    pub(super) fn new(api: Router, compiler: &str, registries: &str) -> Self {
        Self::among(api, compiler, registries, None)
    }

    /// With other nodes to ask for blobs.
    pub(super) fn among(
        api: Router,
        compiler: &str,
        registries: &str,
        peering: Option<Peering>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("registries.yaml");
        std::fs::write(&file, registries).unwrap();
        let events: Arc<Mutex<Vec<String>>> = Arc::default();
        let told = Arc::clone(&events);
        let api = api.route(
            "/api/v1/namespaces/default/events",
            post(|body: Bytes| async move {
                let event: Value = serde_json::from_slice(&body).unwrap();
                let text = |key: &str| event[key].as_str().unwrap().to_owned();
                told.lock().push(format!(
                    "{} {}: {}",
                    text("type"),
                    text("reason"),
                    text("message")
                ));
                body
            }),
        );
        let client = kube::Client::new(api, "default");
        let tasks = TaskGroup::new(&CancellationToken::new());
        let (clock, rng) = (WallClock::manual(4_000_000_000), Rng::seeded(1));
        let events_to =
            EventRecorder::new(client.clone(), "kubelet", clock.clone(), rng.clone(), &tasks);
        let tools = Tools {
            client,
            dirs: Dirs::create(folder.path().join("agent")).unwrap(),
            code_trust: None,
            compiler: compiler_script(compiler),
            engine: "engine".to_owned(),
            events: events_to,
            clock: clock.clone(),
            rng,
            registries: Registries::open(Some(file), None, &Proxies::default()),
            peering,
        };
        let images = Arc::new(Images::new(tools, &ImageSettings::default()));
        let pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "default", "uid": "u1"},
            "spec": {"containers": [], "serviceAccountName": "robot"},
        }));
        Self { folder, images, events, clock, pod: pod.unwrap() }
    }

    /// Before others hold them, too.
    pub(super) fn images_mut(&mut self) -> &mut Images {
        Arc::get_mut(&mut self.images).unwrap()
    }

    /// With the proxies of an environment.
    pub(super) fn through(&mut self, proxies: &Proxies) {
        let file = self.folder.path().join("registries.yaml");
        self.images_mut().registries = Registries::open(Some(file), None, proxies);
    }

    /// From now on another pod wants its images.
    pub(super) fn is_of(&mut self, namespace: &str, uid: &str) {
        self.pod.metadata.namespace = Some(namespace.to_owned());
        self.pod.metadata.uid = Some(uid.to_owned());
    }

    pub(super) async fn ready(
        &self,
        image: &str,
        pull: PullPolicy,
    ) -> Result<ReadyImage, ImageError> {
        let field_path = "spec.containers{c}".to_owned();
        self.images.ready(&Wanted { pod: &self.pod, field_path, image, pull }).await
    }

    /// Brings an image here without compiling it: a compiler is a process, which paused time does not
    /// wait for.
    pub(super) async fn pull(&self, image: &str) -> Result<(), Fault> {
        let reference = Reference::parse(image).unwrap();
        let (resolved, _) =
            self.images.pull(&reference, &Keyring::default(), Content::Component).await?;
        assert_eq!(std::fs::read(self.images.blob(&resolved.layer)).unwrap(), WASM);
        Ok(())
    }

    pub(super) fn files(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.folder.path().join("agent").join(folder)) else {
            return Vec::new();
        };
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Waits until the events were told, and gives them.
    pub(super) async fn told(&self, count: usize) -> Vec<String> {
        for _ in 0..1000 {
            if self.events.lock().len() >= count {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        std::mem::take(&mut *self.events.lock())
    }
}

/// A shell script for a compiler: its input is `$1`, its output `$2`.
fn compiler_script(script: &str) -> CodeCompiler {
    let compiler = Compiler {
        args: ["-c", script, "sh"].map(str::to_owned).to_vec(),
        time_max: Duration::from_millis(500),
        memory_bytes_max: None,
        ..Compiler::new("/bin/sh".into())
    };
    CodeCompiler::new(compiler, CodeMetrics::default())
}

pub(super) fn failure(result: Result<ReadyImage, ImageError>) -> StartFailure {
    StartFailure::from(result.unwrap_err())
}

#[tokio::test(start_paused = true)]
async fn a_broken_pull_leaves_no_heap_of_temporaries() {
    let node = Node::new(registry(1000, &Arc::default()), COPY, "");
    for _ in 0..3 {
        let failed = failure(node.ready("default/app:v1", PullPolicy::IfNotPresent).await);
        assert_eq!(failed.reason, "ErrImagePull");
        tokio::time::advance(Duration::from_secs(100)).await;
    }
    let wanted = format!("{}.part", digest_of(WASM).trim_start_matches("sha256:"));
    assert_eq!(node.files("images/sha256"), [wanted]);
}

#[tokio::test]
async fn replicas_of_one_image_fetch_it_once() {
    for pull in [PullPolicy::Always, PullPolicy::IfNotPresent] {
        let asked = Arc::default();
        let node = Node::new(registry(0, &asked), COPY, "");
        let ready = || node.ready("default/app:v1", pull);
        let all = tokio::join!(ready(), ready(), ready(), ready());
        assert!(all.0.is_ok() && all.1.is_ok() && all.2.is_ok() && all.3.is_ok(), "{all:?}");
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        let id = format!(
            "registry.edgeorc.local/default/app@{}",
            digest_of(manifest_of("application/wasm", WASM).as_bytes())
        );
        assert_eq!(all.0.unwrap().id, id);
    }
}

#[tokio::test]
async fn only_a_refusal_of_the_compiler_is_final() {
    let cases = [
        ("sleep 5", false, "took longer"),
        ("kill -9 $$", false, "killed"),
        ("echo memory allocation of 9 bytes failed >&2; ulimit -c 0; kill -6 $$", false, "memory"),
        ("echo 'error: cannot write: no space left' >&2; exit 1", false, "no space left"),
        ("echo 'error: mmap: Cannot allocate memory' >&2; exit 3", false, "memory"),
        ("echo 'error: not a valid WebAssembly module' >&2; exit 3", true, "not a valid"),
    ];
    for (script, is_final, word) in cases {
        let node = Node::new(registry(0, &Arc::default()), script, "");
        let failed = failure(node.ready("default/app:v1", PullPolicy::IfNotPresent).await);
        assert_eq!(failed.is_final, is_final, "{script}: {failed:?}");
        assert_eq!(failed.reason, "CreateContainerError");
        assert!(failed.message.contains(word), "{script}: {failed:?}");
        // Under `Always` the tag may name a better image later.
        let failed = failure(node.ready("default/app:v1", PullPolicy::Always).await);
        assert!(!failed.is_final, "{script}: {failed:?}");
    }
}

#[tokio::test]
async fn a_compiler_that_failed_for_now_is_tried_again_and_a_refused_module_is_not() {
    let script =
        "n=$(cat $0.n 2>/dev/null || echo 0); echo $((n+1)) >$0.n; [ $n -gt 0 ] && cp $1 $2";
    for (end, runs) in [("", "2"), ("; echo no >&2; exit 3", "1")] {
        let folder = tempfile::tempdir().unwrap();
        let count = folder.path().join("runs");
        let script = script.replace("$0.n", count.to_str().unwrap());
        let mut node = Node::new(registry(0, &Arc::default()), &format!("{script}{end}"), "");
        let none = BackoffSettings { min: Duration::ZERO, max: Duration::ZERO };
        node.images_mut().compile_backoffs = Backoffs::new(none);
        assert!(node.ready("default/app:v1", PullPolicy::IfNotPresent).await.is_err());
        let again = node.ready("default/app:v1", PullPolicy::IfNotPresent).await;
        assert_eq!(again.is_ok(), runs == "2", "{again:?}");
        assert_eq!(std::fs::read_to_string(&count).unwrap().trim(), runs);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_pull_is_told_in_kubelets_words() {
    let node = Node::new(Router::new(), COPY, "");
    let failed = failure(node.ready("default/app:v1", PullPolicy::IfNotPresent).await);
    assert_eq!(failed.reason, "ErrImagePull");
    assert!(failed.message.contains("not found"), "{failed:?}");
    assert_eq!(failed.delay_min, Duration::from_secs(1));
    let why = failed.message;
    let failed = failure(node.ready("default/app:v1", PullPolicy::IfNotPresent).await);
    assert_eq!(failed.reason, "ImagePullBackOff");
    assert_eq!(
        failed.message,
        format!("Back-off pulling image \"default/app:v1\": ErrImagePull: {why}")
    );
    assert_eq!(
        node.told(5).await,
        [
            "Normal Pulling: Pulling image \"default/app:v1\"".to_owned(),
            format!("Warning Failed: Failed to pull image \"default/app:v1\": {why}"),
            "Warning Failed: Error: ErrImagePull".to_owned(),
            "Normal BackOff: Back-off pulling image \"default/app:v1\"".to_owned(),
            "Warning Failed: Error: ImagePullBackOff".to_owned(),
        ]
    );
    tokio::time::advance(Duration::from_secs(2)).await;
    let failed = failure(node.ready("default/app:v1", PullPolicy::IfNotPresent).await);
    assert_eq!(failed.reason, "ErrImagePull");
    let failed = failure(node.ready("default/app:v1", PullPolicy::Never).await);
    assert_eq!(failed.reason, "ErrImageNeverPull");
    assert!(!failed.is_final);
    let failed = failure(node.ready("Default/App", PullPolicy::Never).await);
    assert_eq!(failed.reason, "InvalidImageName");
}

#[tokio::test]
async fn a_pulled_image_is_told_once_and_then_as_present() {
    let node = Node::new(registry(0, &Arc::default()), COPY, "");
    node.ready("default/app:v1", PullPolicy::IfNotPresent).await.unwrap();
    let told = node.told(2).await;
    assert_eq!(told[0], "Normal Pulling: Pulling image \"default/app:v1\"");
    assert!(told[1].starts_with("Normal Pulled: Successfully pulled image \"default/app:v1\" in "));
    assert!(told[1].ends_with(&format!("including waiting). Image size: {} bytes.", WASM.len())));
    // A restart of the same pod says nothing; another pod is told.
    node.ready("default/app:v1", PullPolicy::IfNotPresent).await.unwrap();
    let mut other = node.pod.clone();
    other.metadata.uid = Some("u2".to_owned());
    let (image, pull) = ("default/app:v1", PullPolicy::Never);
    let wanted = Wanted { pod: &other, field_path: "spec.containers{c}".into(), image, pull };
    node.images.ready(&wanted).await.unwrap();
    let present = "Normal Pulled: Container image \"default/app:v1\" already present on machine and can be accessed by the pod";
    assert_eq!(node.told(1).await, [present]);
}

#[tokio::test]
async fn always_asks_and_a_node_without_a_server_runs_what_it_has() {
    let state: Arc<Mutex<StatusCode>> = Arc::new(Mutex::new(StatusCode::OK));
    let now = Arc::clone(&state);
    let layer = axum::middleware::from_fn(
        move |request: axum::extract::Request, next: axum::middleware::Next| {
            let code = *now.lock();
            async move {
                if code == StatusCode::OK { next.run(request).await } else { code.into_response() }
            }
        },
    );
    let node = Node::new(registry(0, &Arc::default()).layer(layer), COPY, "");
    node.ready("default/app:v1", PullPolicy::Always).await.unwrap();
    for (code, is_ready) in
        [(StatusCode::SERVICE_UNAVAILABLE, true), (StatusCode::NOT_FOUND, false)]
    {
        *state.lock() = code;
        node.told(1).await;
        let ready = node.ready("default/app:v1", PullPolicy::Always).await;
        assert_eq!(ready.is_ok(), is_ready, "{code}: {ready:?}");
        let told = node.told(2).await.join("; ");
        assert_eq!(told.contains("is on this node is used"), is_ready, "{told}");
    }
}

#[tokio::test]
async fn a_full_disk_loses_what_no_pod_uses_and_nothing_else() {
    let node = Node::new(registry(0, &Arc::default()), COPY, "");
    node.ready("default/app:v1", PullPolicy::IfNotPresent).await.unwrap();
    let dirs = node.images.dirs.clone();
    dirs.pod("u1").create().unwrap();
    let unused = "a".repeat(64);
    let sha256 = node.folder.path().join("agent/images/sha256");
    let compiled = node.folder.path().join("agent/compiled");
    std::fs::write(sha256.join(&unused), "x").unwrap();
    std::fs::write(compiled.join(format!("{unused}-engine.cwasm")), "x").unwrap();
    std::fs::write(sha256.join(format!("{unused}.part")), "x").unwrap();
    std::fs::write(compiled.join(format!("{unused}-older.cwasm")), "x").unwrap();
    let full = Disk { capacity: 1_000_000, available: 1000 };
    let roomy = Disk { capacity: 1_000_000, available: 900_000 };

    // The clock stands years after the files were made: what is stale goes, what is whole stays.
    node.images.pass(roomy).unwrap();
    assert_eq!(node.files("images/sha256").len(), 2);
    assert_eq!(node.files("compiled").len(), 2);
    assert!(node.files("images").iter().all(|name| name != "used.json"), "a write without need");

    let collected = node.images.pass(full).unwrap();
    assert_eq!((collected.images, collected.freed_bytes), (1, 2));
    assert_eq!(node.files("images/sha256"), [digest_of(WASM).trim_start_matches("sha256:")]);

    // The pod goes: its image stays for the minimum age, and goes then.
    dirs.pod("u1").remove().unwrap();
    assert_eq!(node.images.pass(full).unwrap().images, 0);
    node.clock.set(4_000_000_000 + 121);
    assert_eq!(node.images.pass(full).unwrap().images, 1);
    for folder in ["images/sha256", "images/refs", "compiled"] {
        assert_eq!(node.files(folder), Vec::<String>::new(), "{folder}");
    }
    // And it is pulled again when somebody wants it.
    node.ready("default/app:v1", PullPolicy::IfNotPresent).await.unwrap();
}

#[tokio::test]
async fn a_pod_on_disk_keeps_its_image_after_a_restart_of_the_agent() {
    let node = Node::new(registry(0, &Arc::default()), COPY, "");
    node.ready("default/app:v1", PullPolicy::IfNotPresent).await.unwrap();
    *node.images.ledger.lock() = Ledger::default();
    let mut pod = node.pod.clone();
    let container = json!({"name": "c", "image": "default/app:v1"});
    pod.spec.as_mut().unwrap().containers = vec![serde_json::from_value(container).unwrap()];
    node.images.dirs.pod("u1").create().unwrap();
    node.images.dirs.pod("u1").write_pod(&pod).unwrap();
    let full = Disk { capacity: 1_000_000, available: 1000 };
    assert_eq!(node.images.pass(full).unwrap().images, 0);
}
