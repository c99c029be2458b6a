//! Goal: code from servers at the door of [`Images`]: what is taken, what is refused, and that a node
//! helps itself without them. Method: servers that are routers in this process, a signature that is a
//! hash, and a shell script for a compiler.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Path as InPath;
use axum::response::Response;
use axum::routing::get;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::image_test::{Node, WASM, digest_of, registry};
use super::*;
use crate::agent::config::Compiler;
use crate::api::compiled_code::{
    Absence, NoCode, ROUTE, Statement, TICKET_HEADER, Ticket, path as code_path,
};

/// What the server makes, and what this node's own compiler makes.
const CODE: &[u8] = b"code that a server made";
const OWN: &str = "printf own >$2";
const IMAGE: &str = "default/app:v1";

/// Accepts the hash of a message for a signature, of whoever says that it is a server.
struct Hash;

impl CodeTrust for Hash {
    fn signer(
        &self,
        message: &[u8],
        certificate: &[u8],
        signature: &[u8],
    ) -> Result<String, String> {
        let is_good = certificate == b"server" && Sha256::digest(message)[..] == *signature;
        if is_good { Ok("one".to_owned()) } else { Err("the signature does not fit".to_owned()) }
    }
}

fn engine() -> String {
    "e".repeat(64)
}

fn component() -> String {
    digest_of(WASM).trim_start_matches("sha256:").to_owned()
}

fn ticket(code: &[u8]) -> Ticket {
    let statement = Statement {
        engine: engine(),
        component: component(),
        code: hex::encode(Sha256::digest(code)),
        bytes: code.len() as u64,
    };
    let signature = Sha256::digest(statement.message()).to_vec();
    Ticket { statement, certificate: b"server".to_vec(), signature }
}

fn answer(ticket: &Ticket, body: impl Into<Body>) -> Response {
    Response::builder().header(TICKET_HEADER, ticket.to_text()).body(body.into()).unwrap()
}

fn absent(reason: Absence, server: Option<&str>) -> Response {
    let message = "there is none".to_owned();
    let none = NoCode { reason, message, server: server.map(str::to_owned) };
    let body = serde_json::to_vec(&none).unwrap();
    Response::builder().status(404).body(body.into()).unwrap()
}

/// A cluster's API with images, and the given answer to questions for code.
fn api(code: impl Fn() -> Response + Clone + Send + Sync + 'static) -> Router {
    registry(0, &Arc::default()).route(
        ROUTE,
        get(move |InPath((of, what)): InPath<(String, String)>| async move {
            assert_eq!((of, what), (engine(), component()));
            code()
        }),
    )
}

fn node(api: Router) -> Node {
    let mut node = Node::new(api, OWN, "");
    node.images_mut().engine = engine();
    node.images_mut().code_trust = Some(Arc::new(Hash));
    node
}

async fn code(node: &Node) -> String {
    let ready = node.ready(IMAGE, PullPolicy::IfNotPresent).await.unwrap();
    assert_eq!(node.files("compiled").len(), 1, "{:?}", node.files("compiled"));
    std::fs::read_to_string(ready.compiled).unwrap()
}

/// Compiles that worked; questions by `ok absent refused tampered unreachable`.
fn counts(node: &Node) -> (u64, Vec<u64>) {
    let (compiles, fetched) = node.images.compiler.metrics().counts();
    (compiles[0], fetched)
}

#[tokio::test]
async fn two_nodes_run_what_one_server_compiled() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let server = api(move || {
        count.fetch_add(1, Ordering::Relaxed);
        answer(&ticket(CODE), CODE)
    });
    for _ in 0..2 {
        let node = node(server.clone());
        assert_eq!(code(&node).await.as_bytes(), CODE);
        assert_eq!(counts(&node), (0, vec![1, 0, 0, 0, 0]));
        // A second pod finds it on the disk.
        assert_eq!(code(&node).await.as_bytes(), CODE);
    }
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn what_a_server_did_not_sign_is_refused_counted_and_compiled_here() {
    let signed = |change: fn(&mut Ticket)| {
        let mut ticket = ticket(CODE);
        change(&mut ticket);
        ticket
    };
    let mut flipped = CODE.to_vec();
    flipped[3] ^= 1;
    let longer = [CODE, b"!"].concat();
    let cases = [
        ("other bytes", signed(|_| ()), flipped),
        ("more bytes", signed(|_| ()), longer),
        ("another key", signed(|t| t.signature[0] ^= 1), CODE.to_vec()),
        ("no server", signed(|t| t.certificate = b"agent".to_vec()), CODE.to_vec()),
        ("another digest", signed(|t| t.statement.code = "a".repeat(64)), CODE.to_vec()),
        ("another component", signed(|t| t.statement.component = "a".repeat(64)), CODE.to_vec()),
        ("another engine", signed(|t| t.statement.engine = "a".repeat(64)), CODE.to_vec()),
    ];
    for (what, ticket, body) in cases {
        let node = node(api(move || answer(&ticket, body.clone())));
        assert_eq!(code(&node).await, "own", "{what}");
        assert_eq!(counts(&node), (1, vec![0, 0, 0, 1, 0]), "{what}");
    }
    let node = node(api(|| Response::new(CODE.into())));
    assert_eq!(code(&node).await, "own", "no ticket");
    assert_eq!(counts(&node), (1, vec![0, 0, 0, 1, 0]));
}

#[tokio::test]
async fn code_that_ends_early_is_asked_for_again_from_there() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let server = registry(0, &Arc::default()).route(
        ROUTE,
        get(move |headers: http::HeaderMap| async move {
            let ticket = ticket(CODE);
            if count.fetch_add(1, Ordering::Relaxed) == 0 {
                return answer(&ticket, &CODE[..7]);
            }
            assert_eq!(headers[http::header::RANGE], "bytes=7-");
            let mut rest = answer(&ticket, &CODE[7..]);
            *rest.status_mut() = http::StatusCode::PARTIAL_CONTENT;
            rest
        }),
    );
    let node = node(server);
    assert_eq!(code(&node).await.as_bytes(), CODE);
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    assert_eq!(counts(&node), (0, vec![1, 0, 0, 0, 0]));
}

#[tokio::test]
async fn a_server_that_never_sends_the_end_is_left() {
    let node = node(api(|| answer(&ticket(CODE), &CODE[..7])));
    assert_eq!(code(&node).await, "own");
    assert_eq!(counts(&node), (1, vec![0, 0, 0, 0, 1]));
}

#[tokio::test]
async fn a_node_waits_for_the_servers_compiler() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let node = node(api(move || match count.fetch_add(1, Ordering::Relaxed) {
        0 | 1 => Response::builder().status(202).body(Body::empty()).unwrap(),
        _ => answer(&ticket(CODE), CODE),
    }));
    assert_eq!(code(&node).await.as_bytes(), CODE);
    assert_eq!(asked.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn without_servers_or_their_code_a_node_compiles_for_itself() {
    let failing = || Response::builder().status(503).body(Body::empty()).unwrap();
    let plain = || Response::builder().status(404).body(Body::empty()).unwrap();
    let other = || absent(Absence::OtherEngine, None);
    let refused = || absent(Absence::Refused, None);
    let cases = [
        (api(failing), [0, 0, 0, 0, 1]),
        // Servers of an older version.
        (api(plain), [0, 1, 0, 0, 0]),
        (api(other), [0, 1, 0, 0, 0]),
        // Whose server is older may know fewer worlds.
        (api(refused), [0, 0, 1, 0, 0]),
    ];
    for (server, fetched) in cases {
        let node = node(server);
        assert_eq!(code(&node).await, "own");
        assert_eq!(counts(&node), (1, fetched.to_vec()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_is_not_waited_for() {
    let server = Router::new().route(ROUTE, get(std::future::pending::<&'static str>));
    let node = node(server);
    let output = node.images.dirs.compiled().join("code.cwasm");
    let started = Instant::now();
    let fetched = node.images.fetch_code(&component(), &output).await;
    assert!(matches!(fetched, Err(fleet::NotFetched::Unreachable(_))), "{fetched:?}");
    assert!(started.elapsed() <= Duration::from_secs(15), "{:?}", started.elapsed());
    assert!(node.files("compiled").is_empty());
}

#[tokio::test]
async fn a_component_that_servers_do_not_have_is_brought_to_them() {
    let brought: Arc<Mutex<Option<Bytes>>> = Arc::default();
    let (to, from) = (Arc::clone(&brought), Arc::clone(&brought));
    let server = registry(0, &Arc::default()).route(
        ROUTE,
        get(move || async move {
            match from.lock().as_deref() {
                Some(WASM) => answer(&ticket(CODE), CODE),
                _ => absent(Absence::NoComponent, Some("two")),
            }
        })
        .put(move |uri: http::Uri, body: Bytes| async move {
            assert_eq!(uri.to_string(), format!("{}?to=two", code_path(&engine(), &component())));
            *to.lock() = Some(body);
            http::StatusCode::ACCEPTED
        }),
    );
    let node = node(server);
    assert_eq!(code(&node).await.as_bytes(), CODE);
    assert_eq!(counts(&node), (0, vec![1, 0, 0, 0, 0]));
}

#[tokio::test]
async fn a_node_without_a_compiler_runs_code_of_servers_and_says_when_there_is_none() {
    let without = |server: Router| {
        let mut node = node(server);
        let compiler = Compiler { is_here: false, ..Compiler::new("/bin/false".into()) };
        node.images_mut().compiler = CodeCompiler::new(compiler, CodeMetrics::default());
        node
    };
    let node = without(api(|| answer(&ticket(CODE), CODE)));
    assert_eq!(code(&node).await.as_bytes(), CODE);

    let node = without(api(|| absent(Absence::OtherEngine, None)));
    let failed = node.ready(IMAGE, PullPolicy::IfNotPresent).await.unwrap_err();
    assert!(matches!(failed, ImageError::Compile { .. }), "{failed:?}");
    let told = "this node does not compile, and has no code for its engine eeeeeeeeeeee from a server: there is none";
    assert_eq!(failed.to_string(), told);

    let node = without(api(|| absent(Absence::Refused, None)));
    let failed = node.ready(IMAGE, PullPolicy::IfNotPresent).await.unwrap_err();
    assert!(matches!(failed, ImageError::Refused { .. }), "{failed:?}");
}

#[tokio::test]
async fn code_is_not_asked_for_without_trust_or_engine() {
    let mut node = node(api(|| panic!("asked")));
    node.images_mut().code_trust = None;
    assert_eq!(code(&node).await, "own");
    assert_eq!(counts(&node), (1, vec![0; 5]));
}
