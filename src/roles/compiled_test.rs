//! Goal: code at the door of the API server: made once, signed, given to nodes only, bounded. Method:
//! a cluster of one server in this process, and a compiler that copies.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tower::ServiceExt as _;

use crate::agent::CodeTrust as _;
use crate::api::compiled_code::{Absence, NoCode, TICKET_HEADER, Ticket, path as code_path};
use crate::api::user::UserInfo;
use crate::apiserver::{CodeMaker, CompiledConfig, MakeError};
use crate::net::Identity;
use crate::net::pki::NodeClass;
use crate::roles::compiled::ServersOnly;
use crate::roles::testing::Cluster;

const COMPONENT: &[u8] = b"component";
const BROKEN: &[u8] = b"broken";

/// Writes what it reads behind `code of `, when it may; refuses [`BROKEN`].
struct Copier {
    engine: Option<String>,
    runs: Arc<AtomicUsize>,
    may: Arc<Semaphore>,
}

impl CodeMaker for Copier {
    fn engine(&self) -> Option<&str> {
        self.engine.as_deref()
    }

    fn make<'a>(
        &'a self,
        component: &'a Path,
        code: &'a Path,
    ) -> BoxFuture<'a, Result<(), MakeError>> {
        async move {
            self.runs.fetch_add(1, Ordering::Relaxed);
            let _permit = self.may.acquire().await.unwrap();
            let bytes = std::fs::read(component).unwrap();
            if bytes == BROKEN {
                return Err(MakeError::Refused("it is broken".to_owned()));
            }
            std::fs::write(code, [b"code of ", &bytes[..]].concat()).unwrap();
            Ok(())
        }
        .boxed()
    }
}

struct Answer {
    code: StatusCode,
    headers: http::HeaderMap,
    bytes: Bytes,
}

impl Answer {
    fn none(&self) -> NoCode {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|_| panic!("{:?}", self.bytes))
    }
}

struct Server {
    cluster: Cluster,
    router: Router,
    identity: Identity,
    runs: Arc<AtomicUsize>,
    may: Arc<Semaphore>,
    folder: tempfile::TempDir,
}

fn engine() -> String {
    "e".repeat(64)
}

fn hex_of(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

impl Server {
    async fn start(bytes_max: u64) -> Self {
        let cluster = Cluster::start().await;
        let keys = cluster.authority.generate_node("one", &[], NodeClass::Server).unwrap();
        let ca = cluster.authority.cert_pem();
        let identity = Identity::new(&keys.cert_pem, &keys.key_pem, ca, &cluster.clock).unwrap();
        let (runs, may) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(1)));
        let maker =
            Copier { engine: Some(engine()), runs: Arc::clone(&runs), may: Arc::clone(&may) };
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("compiled");
        let config = CompiledConfig::new(identity.clone(), Arc::new(maker), dir);
        let images = folder.path().join("images");
        std::fs::create_dir(&images).unwrap();
        let config = CompiledConfig { components: vec![images], bytes_max, ..config };
        let router = cluster.api.router().merge(cluster.api.compiled(config));
        Self { cluster, router, identity, runs, may, folder }
    }

    /// An image of a pod of this machine.
    fn has(&self, component: &[u8]) {
        std::fs::write(self.folder.path().join("images").join(hex_of(component)), component)
            .unwrap();
    }

    async fn send(&self, method: Method, path: &str, range: Option<&str>, body: Body) -> Answer {
        let mut request = Request::builder().method(method).uri(path).body(body).unwrap();
        if let Some(range) = range {
            request.headers_mut().insert(header::RANGE, range.parse().unwrap());
        }
        request.extensions_mut().insert(UserInfo::new("system:node:n", &["system:nodes"]));
        self.answer(request).await
    }

    async fn answer(&self, request: Request<Body>) -> Answer {
        let (head, body) = self.router.clone().oneshot(request).await.unwrap().into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer { code: head.status, headers: head.headers, bytes }
    }

    async fn get(&self, component: &[u8]) -> Answer {
        let path = code_path(&engine(), &hex_of(component));
        self.send(Method::GET, &path, None, Body::empty()).await
    }

    fn runs(&self) -> usize {
        self.runs.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn many_questions_are_one_compile_and_a_signed_answer() {
    let server = Server::start(1000).await;
    server.has(COMPONENT);
    let path = code_path(&engine(), &hex_of(COMPONENT));
    let head = server.send(Method::HEAD, &path, None, Body::empty()).await;
    assert_eq!((head.code, server.runs()), (StatusCode::NOT_FOUND, 0), "asking starts nothing");

    let ask = || server.get(COMPONENT);
    let all = tokio::join!(ask(), ask(), ask(), ask(), ask());
    assert_eq!(server.runs(), 1);
    for answer in [all.0, all.1, all.2, all.3, all.4] {
        assert_eq!(answer.code, StatusCode::OK);
        assert_eq!(answer.bytes, &b"code of component"[..]);
        let header = answer.headers[TICKET_HEADER].to_str().unwrap();
        let ticket = Ticket::parse(header, &engine(), &hex_of(COMPONENT)).unwrap();
        assert_eq!(ticket.statement.code, hex_of(&answer.bytes));
        // As an agent checks it.
        let trust = ServersOnly(server.identity.clone());
        let message = ticket.statement.message();
        let signer = trust.signer(&message, &ticket.certificate, &ticket.signature);
        assert_eq!(signer.as_deref(), Ok("one"));
    }
    let head = server.send(Method::HEAD, &path, None, Body::empty()).await;
    assert_eq!(head.code, StatusCode::OK);
    assert!(head.headers.contains_key(TICKET_HEADER) && head.bytes.is_empty());
    let rest = server.send(Method::GET, &path, Some("bytes=8-"), Body::empty()).await;
    assert_eq!((rest.code, &rest.bytes[..]), (StatusCode::PARTIAL_CONTENT, COMPONENT));
}

#[tokio::test]
async fn a_question_is_answered_later_while_the_compiler_runs() {
    let server = Server::start(1000).await;
    server.has(COMPONENT);
    let busy = server.may.acquire().await.unwrap();
    assert_eq!(server.get(COMPONENT).await.code, StatusCode::ACCEPTED);
    drop(busy);
    assert_eq!(server.get(COMPONENT).await.code, StatusCode::OK);
    assert_eq!(server.runs(), 1);
}

#[tokio::test]
async fn code_is_for_nodes_and_names_are_digests() {
    let server = Server::start(1000).await;
    let path = code_path(&engine(), &hex_of(COMPONENT));
    for user in
        [None, Some(UserInfo::new("system:serviceaccount:a:b", &["system:serviceaccounts"]))]
    {
        let mut request = Request::get(&path).body(Body::empty()).unwrap();
        if let Some(user) = user {
            request.extensions_mut().insert(user);
        }
        assert_eq!(server.answer(request).await.code, StatusCode::FORBIDDEN);
    }
    for bad in ["/edgeorc/compiled/v1/x/y", "/edgeorc/compiled/v1/..%2f../y"] {
        let answer = server.send(Method::GET, bad, None, Body::empty()).await;
        assert_eq!(answer.code, StatusCode::BAD_REQUEST, "{bad}");
    }
    assert_eq!(server.runs(), 0);
    // The rest of the API is where it was.
    let pods =
        server.cluster.client.request_text(Request::get("/api/v1/pods").body(vec![]).unwrap());
    assert!(pods.await.is_ok());
}

#[tokio::test]
async fn the_reason_why_there_is_no_code_is_told() {
    let server = Server::start(1000).await;
    let other = code_path(&"f".repeat(64), &hex_of(COMPONENT));
    let answer = server.send(Method::GET, &other, None, Body::empty()).await;
    let none = answer.none();
    assert_eq!((answer.code, none.reason), (StatusCode::NOT_FOUND, Absence::OtherEngine));
    assert_eq!(none.message, "no server can compile for this engine");

    let answer = server.get(COMPONENT).await;
    let none = answer.none();
    assert_eq!((answer.code, none.reason), (StatusCode::NOT_FOUND, Absence::NoComponent));
    assert_eq!(none.server.as_deref(), Some("one"));

    server.has(BROKEN);
    for _ in 0..2 {
        let answer = server.get(BROKEN).await;
        let none = answer.none();
        assert_eq!(answer.code, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!((none.reason, &*none.message), (Absence::Refused, "it is broken"));
    }
    assert_eq!(server.runs(), 1, "a refusal is remembered for a while");
}

#[tokio::test]
async fn a_component_that_is_brought_is_compiled_if_it_is_what_it_is_called() {
    let server = Server::start(1000).await;
    let path = format!("{}?to=one", code_path(&engine(), &hex_of(COMPONENT)));
    let put = async |path: String, body: &'static [u8]| {
        server.send(Method::PUT, &path, None, Body::from(body)).await.code
    };
    assert_eq!(put(path.clone(), b"another").await, StatusCode::BAD_REQUEST);
    assert_eq!(put(path.replace("to=one", "to=two"), COMPONENT).await, StatusCode::NOT_FOUND);
    let other = path.replace(&engine(), &"f".repeat(64));
    assert_eq!(put(other, COMPONENT).await, StatusCode::NOT_FOUND);
    assert_eq!(server.runs(), 0);
    assert_eq!(put(path.clone(), COMPONENT).await, StatusCode::ACCEPTED);
    assert_eq!(server.get(COMPONENT).await.bytes, &b"code of component"[..]);
    assert_eq!(put(path, COMPONENT).await, StatusCode::ACCEPTED);
    assert_eq!(server.runs(), 1);
    let incoming = server.folder.path().join("compiled/incoming");
    assert_eq!(std::fs::read_dir(incoming).unwrap().count(), 0);
}

#[tokio::test]
async fn the_shelf_is_bounded_and_what_is_lost_is_made_again() {
    let server = Server::start(30).await;
    for component in [COMPONENT, b"another one"] {
        server.has(component);
        assert_eq!(server.get(component).await.code, StatusCode::OK);
    }
    assert_eq!(server.get(COMPONENT).await.code, StatusCode::OK);
    assert_eq!(server.runs(), 3);
    // A disk that lost the end of a file.
    let folder = server.folder.path().join("compiled").join(engine());
    let file = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    std::fs::write(file, "code").unwrap();
    assert_eq!(server.get(COMPONENT).await.bytes, &b"code of component"[..]);
    assert_eq!(server.runs(), 4);
}
