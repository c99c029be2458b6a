//! Goal: blobs between nodes. Method: the images of several nodes in one process, whose requests to
//! each other are calls, and a registry that counts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::IntoResponse as _;
use axum::routing::get;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::image_test::{COPY, CUT, Node, WASM, digest_of, failure, manifest_of};
use super::peers::PEERS_FIRST;
use super::pull_test::listen;
use super::*;
use crate::rt::TaskGroup;

const IMAGE: &str = "default/app:v1";

/// Who can be reached, by name.
#[derive(Clone, Default)]
struct Net(Arc<Mutex<BTreeMap<String, Router>>>);

struct Dialler {
    net: Net,
    me: String,
}

struct Line {
    router: Router,
    me: String,
}

impl PeerDialler for Dialler {
    fn dial<'a>(
        &'a self,
        node: &'a str,
    ) -> BoxFuture<'a, Result<Box<dyn PeerConnection>, PeerError>> {
        let router = self.net.0.lock().get(node).cloned();
        let me = self.me.clone();
        async move {
            let router = router.ok_or("nobody there")?;
            Ok(Box::new(Line { router, me }) as Box<dyn PeerConnection>)
        }
        .boxed()
    }
}

impl PeerConnection for Line {
    fn send(&self, request: Request<()>) -> BoxFuture<'_, Result<Response<PeerBody>, PeerError>> {
        let mut request = request.map(|()| Body::empty());
        request.extensions_mut().insert(AskingNode(self.me.clone()));
        let router = self.router.clone();
        async move {
            let answer = router.oneshot(request).await?;
            Ok(answer.map(|body| body.map_err(PeerError::from).boxed_unsync()))
        }
        .boxed()
    }
}

impl Net {
    /// A node that pulls from `registry`, and gives what it has.
    fn join(&self, name: &str, registry: Router) -> Node {
        let net = self.clone();
        let peering = Peering {
            me: name.to_owned(),
            is_server: false,
            dialler: Arc::new(Dialler { net: self.clone(), me: name.to_owned() }),
            others: Arc::new(move || net.0.lock().keys().cloned().collect()),
            unreachable: Arc::default(),
        };
        let node = Node::among(registry, COPY, "", Some(peering));
        let shelf = BlobShelf::default();
        let tasks = TaskGroup::new(&CancellationToken::new());
        shelf.open(Arc::clone(&node.images), name.to_owned(), tasks);
        self.0.lock().insert(name.to_owned(), shelf.router());
        node
    }

    /// Something in the place of a node.
    fn pose(&self, name: &str, router: Router) {
        self.0.lock().insert(name.to_owned(), router);
    }
}

fn path() -> String {
    format!("/blobs/{}", digest_of(WASM))
}

/// A registry that counts the blobs it gives, and answers questions after them with `code`. Its manifest does
/// not say how small they are.
fn registry(code: StatusCode, given: &Arc<AtomicUsize>) -> Router {
    let mut manifest: Value = serde_json::from_str(&manifest_of("application/wasm", WASM)).unwrap();
    manifest["layers"][0].as_object_mut().unwrap().remove("size");
    registry_with(manifest.to_string(), code, given)
}

fn registry_with(manifest: String, code: StatusCode, given: &Arc<AtomicUsize>) -> Router {
    let given = Arc::clone(given);
    let blob = move |method: Method, headers: HeaderMap| async move {
        if method == Method::HEAD {
            return code.into_response();
        }
        given.fetch_add(1, Ordering::Relaxed);
        tokio::task::yield_now().await;
        match headers.get(header::RANGE) {
            None => WASM.into_response(),
            Some(range) => {
                let range = range.to_str().unwrap();
                let from = range.trim_start_matches("bytes=").trim_end_matches('-');
                let from: usize = from.parse().unwrap();
                let content = format!("bytes {from}-{}/{}", WASM.len() - 1, WASM.len());
                let head = [(header::CONTENT_RANGE, content)];
                (StatusCode::PARTIAL_CONTENT, head, &WASM[from..]).into_response()
            }
        }
    };
    Router::new()
        .route("/v2/default/app/manifests/v1", get(|| async move { manifest }))
        .route(&format!("/v2/default/app/blobs/{}", digest_of(WASM)), get(blob))
}

async fn pull(node: &Node) {
    node.pull(IMAGE).await.unwrap();
}

/// Bytes from peers, registries and servers.
fn pulled(node: &Node) -> [u64; 3] {
    node.images.compiler.metrics().pulled_bytes()
}

#[tokio::test]
async fn of_many_nodes_that_want_an_image_at_once_one_goes_to_the_registry() {
    let given: Arc<AtomicUsize> = Arc::default();
    let net = Net::default();
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let nodes = names.map(|name| net.join(name, registry(StatusCode::OK, &given)));
    futures_util::future::join_all(nodes.iter().map(pull)).await;
    assert_eq!(given.load(Ordering::Relaxed), 1);
    let size = WASM.len() as u64;
    let all: Vec<_> = nodes.iter().map(pulled).collect();
    assert_eq!(all.iter().filter(|bytes| **bytes == [0, 0, size]).count(), 1, "{all:?}");
    assert_eq!(all.iter().filter(|bytes| **bytes == [size, 0, 0]).count(), 7, "{all:?}");
    // One that comes later, after a restart of those that have it.
    let blob = digest_of(WASM).trim_start_matches("sha256:").to_owned();
    // Its references are written once it is ready.
    nodes[0].ready(IMAGE, PullPolicy::IfNotPresent).await.unwrap();
    let again = Swarm::read(&nodes[0].images.dirs);
    assert!(again.is_ours(&(blob, "registry.edgeorc.local".to_owned())), "not after a restart");
    pull(&net.join("later", registry(StatusCode::OK, &given))).await;
    assert_eq!(given.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn no_node_is_asked_for_what_the_registry_does_not_say_it_would_give() {
    let given: Arc<AtomicUsize> = Arc::default();
    let net = Net::default();
    pull(&net.join("has", registry(StatusCode::OK, &given))).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let has = net.0.lock().remove("has").unwrap();
    let counted = has.layer(axum::middleware::from_fn(
        move |request: axum::extract::Request, next: axum::middleware::Next| {
            count.fetch_add(1, Ordering::Relaxed);
            next.run(request)
        },
    ));
    net.pose("has", counted);
    for code in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, StatusCode::NOT_FOUND] {
        let node = net.join(code.as_str(), registry(code, &given));
        pull(&node).await;
        assert_eq!(pulled(&node)[0], 0, "{code}");
        net.0.lock().remove(code.as_str());
    }
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    // A pod without a right to the image does not get it from a neighbour either.
    let denied = Router::new().route(
        "/v2/default/app/manifests/v1",
        get(|| async { StatusCode::FORBIDDEN.into_response() }),
    );
    let node = net.join("denied", denied);
    let failed = failure(node.ready(IMAGE, PullPolicy::IfNotPresent).await);
    assert_eq!(failed.reason, "ErrImagePull");
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_node_that_lies_is_found_out_and_the_registry_asked() {
    let given: Arc<AtomicUsize> = Arc::default();
    let net = Net::default();
    let lie = WASM.iter().map(|byte| byte ^ 1).collect::<Vec<_>>();
    for bytes in [lie, vec![0; WASM.len() + 1]] {
        net.pose(
            "liar",
            Router::new().route(&path(), get(move || std::future::ready(bytes.clone()))),
        );
        given.store(0, Ordering::Relaxed);
        pull(&net.join("honest", registry(StatusCode::OK, &given))).await;
        assert_eq!(given.load(Ordering::Relaxed), 1);
        net.0.lock().clear();
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_slow_or_breaks_off_is_left_and_the_next_goes_on_where_it_ended() {
    let given: Arc<AtomicUsize> = Arc::default();
    let net = Net::default();
    // It sends the first bytes, and then nothing more.
    let slow = || async {
        let first = futures_util::stream::iter([Ok::<_, std::io::Error>(&WASM[..CUT])]);
        let rest = futures_util::stream::pending();
        Body::from_stream(futures_util::StreamExt::chain(first, rest))
    };
    net.pose("slow", Router::new().route(&path(), get(slow)));
    let has = net.join("has", registry(StatusCode::OK, &given));
    let slow = net.0.lock().remove("slow").unwrap();
    pull(&has).await;
    // The slow one is the first to answer.
    let router = net.0.lock().remove("has").unwrap();
    let late = router.layer(axum::middleware::from_fn(
        |request: axum::extract::Request, next: axum::middleware::Next| async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            next.run(request).await
        },
    ));
    net.pose("has", late);
    net.pose("slow", slow);
    let node = net.join("wants", registry(StatusCode::OK, &given));
    pull(&node).await;
    assert_eq!(given.load(Ordering::Relaxed), 1);
    assert_eq!(pulled(&node), [WASM.len() as u64, 0, 0], "no byte came twice");
}

#[tokio::test(start_paused = true)]
async fn a_node_without_a_free_place_is_waited_for() {
    let given: Arc<AtomicUsize> = Arc::default();
    let net = Net::default();
    let turns = Arc::new(AtomicUsize::new(0));
    let busy = move || async move {
        // Twice somebody else is first, and once between question and request.
        match turns.fetch_add(1, Ordering::Relaxed) {
            0 | 1 | 3 => StatusCode::TOO_MANY_REQUESTS.into_response(),
            _ => WASM.into_response(),
        }
    };
    net.pose("busy", Router::new().route(&path(), get(busy)));
    let node = net.join("wants", registry(StatusCode::OK, &given));
    pull(&node).await;
    assert_eq!(given.load(Ordering::Relaxed), 0);
}

/// Goal: who knows the digest of a private image's layer cannot run it by a registry of their own that
/// claims to have it: neither from a neighbour, nor from the disk of the node itself.
#[tokio::test]
async fn a_registry_that_claims_to_have_a_blob_does_not_open_another_repositorys() {
    let given: Arc<AtomicUsize> = Arc::default();
    let net = Net::default();
    let private = listen(registry(StatusCode::OK, &given)).await;
    let has = net.join("has", Router::new());
    let image = format!("{private}/default/app:v1");
    has.ready(&image, PullPolicy::IfNotPresent).await.unwrap();
    let manifest = manifest_of("application/wasm", WASM);
    let claims =
        Router::new().route("/v2/default/app/manifests/v1", get(|| async { manifest })).route(
            &format!("/v2/default/app/blobs/{}", digest_of(WASM)),
            get(|method: Method| async move {
                if method == Method::HEAD { StatusCode::OK } else { StatusCode::NOT_FOUND }
            }),
        );
    let evil = format!("{}/default/app:v1", listen(claims).await);
    let lured = net.join("lured", Router::new());
    for node in [&lured, &has] {
        let failed = failure(node.ready(&evil, PullPolicy::IfNotPresent).await);
        assert_eq!(failed.reason, "ErrImagePull");
    }
    assert_eq!(pulled(&lured), [0, 0, 0]);
    // Who may pull from the private one gets it from the neighbour.
    lured.ready(&image, PullPolicy::IfNotPresent).await.unwrap();
    assert_eq!((given.load(Ordering::Relaxed), pulled(&lured)), (1, [WASM.len() as u64, 0, 0]));
}

#[tokio::test]
async fn nobody_is_asked_for_what_is_small_and_in_the_clusters_registry() {
    let (given, net) = (Arc::<AtomicUsize>::default(), Net::default());
    let asked = Arc::<AtomicUsize>::default();
    let answer = {
        let asked = Arc::clone(&asked);
        move || {
            asked.fetch_add(1, Ordering::Relaxed);
            std::future::ready(WASM.into_response())
        }
    };
    net.pose("has", Router::new().route(&path(), get(answer)));
    let manifest = manifest_of("application/wasm", WASM);
    pull(&net.join("wants", registry_with(manifest, StatusCode::OK, &given))).await;
    assert_eq!((given.load(Ordering::Relaxed), asked.load(Ordering::Relaxed)), (1, 0));
}

#[tokio::test]
async fn what_came_out_of_a_volume_is_not_given_away() {
    let net = Net::default();
    let node = net.join("has", Router::new());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), WASM).unwrap();
    node.images.adopt(file.path(), None).await.unwrap();
    assert!(node.images.blob(digest_of(WASM).trim_start_matches("sha256:")).exists());
    let router = net.0.lock()["has"].clone();
    for method in [Method::HEAD, Method::GET] {
        let request = Request::builder().method(method).uri(path());
        let request =
            request.header("edgeorc-repository", "registry.edgeorc.local").body(Body::empty());
        let mut request = request.unwrap();
        request.extensions_mut().insert(AskingNode("other".to_owned()));
        let answer = router.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_that_cannot_be_reached_cost_a_moment_and_no_more() {
    let given: Arc<AtomicUsize> = Arc::default();
    let net = Net::default();
    let hangs = || async { std::future::pending::<StatusCode>().await };
    for name in ["x", "y", "z"] {
        net.pose(name, Router::new().route(&path(), get(hangs)));
    }
    let node = net.join("wants", registry(StatusCode::OK, &given));
    let started = Instant::now();
    pull(&node).await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(given.load(Ordering::Relaxed), 1);
}

/// Each question costs a handshake: in a fleet that wants an image at once, they are what costs most.
#[tokio::test(start_paused = true)]
async fn a_few_nodes_are_asked_and_more_only_if_none_of_them_knows_the_blob() {
    for (has_it, questions, from_registry) in [(true, PEERS_FIRST, 0), (false, 12, 1)] {
        let given: Arc<AtomicUsize> = Arc::default();
        let asked: Arc<Mutex<BTreeSet<usize>>> = Arc::default();
        let net = Net::default();
        for at in 0..12 {
            let asked = Arc::clone(&asked);
            let answer = move || {
                asked.lock().insert(at);
                let answer = if has_it {
                    WASM.into_response()
                } else {
                    StatusCode::NOT_FOUND.into_response()
                };
                std::future::ready(answer)
            };
            net.pose(&at.to_string(), Router::new().route(&path(), get(answer)));
        }
        pull(&net.join("wants", registry(StatusCode::OK, &given))).await;
        let asked = asked.lock().len();
        assert!(if has_it { asked <= questions } else { asked == questions }, "{asked} were asked");
        assert_eq!(given.load(Ordering::Relaxed), from_registry);
    }
}
