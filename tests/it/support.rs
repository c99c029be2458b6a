//! One API server in this process.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use bytes::Bytes;
use edgeorc::api::user::UserInfo;
use edgeorc::apiserver::{self, ApiServer, ApiServerConfig};
use edgeorc::client::Informers;
use edgeorc::controllers::{self, Settings};
use edgeorc::rt::{Rng, TaskGroup, WallClock};
use edgeorc::store::Store;
use edgeorc::telemetry::Metrics;
use edgeorc_raft::{Config, Member, Replica, Role, Transport, TransportError};
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// A transport of a group with one member: there is nobody to call.
struct Nobody;

#[async_trait]
impl Transport for Nobody {
    async fn call(&self, peer: &Member, _: Bytes, _: Duration) -> Result<Bytes, TransportError> {
        Err(TransportError::Unreachable { peer: peer.name.clone(), reason: "alone".to_owned() })
    }
}

/// An API server with its store on disk.
pub(crate) struct Api {
    pub(crate) router: axum::Router,
    pub(crate) store: Store,
    pub(crate) server: ApiServer,
    cancel: CancellationToken,
    folder: tempfile::TempDir,
}

impl Drop for Api {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: StatusCode,
    pub(crate) headers: http::HeaderMap,
    pub(crate) bytes: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|cause| panic!("{cause}: {self:?}"))
    }

    pub(crate) fn at(&self, pointer: &str) -> Value {
        self.json().pointer(pointer).cloned().unwrap_or(Value::Null)
    }
}

impl Api {
    pub(crate) async fn start() -> Self {
        Self::start_on(None).await
    }

    /// With an agent, in the place of the node `one`.
    pub(crate) async fn start_with_node(agent: axum::Router) -> Self {
        Self::start_on(Some(agent)).await
    }

    async fn start_on(node_api: Option<axum::Router>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let me =
            Member { id: 1, name: "one".to_owned(), address: String::new(), store_uuid: [1; 16] };
        let config = Config::new(folder.path().join("raft"), me);
        let replica = Replica::open(config, Arc::new(Nobody)).await.unwrap();
        replica.bootstrap().await.unwrap();
        let mut status = replica.status();
        status.wait_for(|status| status.role == Role::Leader).await.unwrap();
        let cancel = CancellationToken::new();
        let store = Store::new(replica);
        let (follower, token) = (store.clone(), cancel.clone());
        tokio::spawn(async move { follower.run(token).await });
        let (clock, rng) = (WallClock::system(), Rng::seeded(7));
        apiserver::bootstrap(&store, &clock, &rng, "ca").await.unwrap();
        let server = ApiServer::new(ApiServerConfig {
            node_name: "one".to_owned(),
            store: store.clone(),
            peers: None,
            node_api,
            clock,
            rng,
            metrics: Metrics::new(),
            service_cidrs: edgeorc::config::ServiceCidrs::default(),
            blob_dir: folder.path().join("registry"),
            bookmark_interval: Duration::from_millis(100),
            cancel: cancel.clone(),
        });
        Self { router: server.router(), store, server, cancel, folder }
    }

    /// The file of a blob of the registry.
    pub(crate) fn blob(&self, digest: &str) -> std::path::PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        self.folder.path().join("registry/sha256").join(hex)
    }

    /// What the controllers are told of heartbeats.
    pub(crate) fn last_heartbeat(&self) -> controllers::LastHeartbeat {
        let store = self.store.clone();
        Arc::new(move |node| store.last_heartbeat(node))
    }

    /// As the administrator.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        media: &str,
        body: impl Into<Body>,
    ) -> Answer {
        let user = UserInfo::new("admin", &["system:masters"]);
        self.send_as(Some(user), method, path, media, body).await
    }

    pub(crate) async fn send_as(
        &self,
        user: Option<UserInfo>,
        method: Method,
        path: &str,
        media: &str,
        body: impl Into<Body>,
    ) -> Answer {
        let request = Request::builder().method(method).uri(path).header(CONTENT_TYPE, media);
        let mut request = request.body(body.into()).unwrap();
        if let Some(user) = user {
            request.extensions_mut().insert(user);
        }
        self.answer(request).await
    }

    /// Reads `path` in the form that `accept` asks for.
    pub(crate) async fn get_in(&self, path: &str, accept: &str) -> Answer {
        let request = Request::builder().uri(path).header(ACCEPT, accept);
        let mut request = request.body(Body::empty()).unwrap();
        request.extensions_mut().insert(UserInfo::new("admin", &["system:masters"]));
        self.answer(request).await
    }

    async fn answer(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer { code: head.status, headers: head.headers, bytes }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, "", Body::empty()).await
    }

    pub(crate) async fn post(&self, path: &str, object: &Value) -> Answer {
        self.send(Method::POST, path, "application/json", object.to_string()).await
    }

    pub(crate) async fn put(&self, path: &str, object: &Value) -> Answer {
        self.send(Method::PUT, path, "application/json", object.to_string()).await
    }

    pub(crate) async fn patch(&self, path: &str, media: &str, patch: &Value) -> Answer {
        self.send(
            Method::PATCH,
            path,
            &format!("application/{media}-patch+json"),
            patch.to_string(),
        )
        .await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, "", Body::empty()).await
    }

    /// A real Kubernetes client on this router.
    pub(crate) fn client(&self) -> kube::Client {
        edgeorc::client::in_process(self.router.clone(), "admin", &["system:masters"])
    }
}

/// An API server whose controllers run. No node is there: pods stay as they are made.
pub(crate) struct Cluster {
    pub(crate) api: Api,
    tasks: TaskGroup,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let api = Api::start().await;
        let client = api.client();
        Self::with(api, client, Settings::default())
    }

    /// Controllers that go to the API through `client`.
    pub(crate) fn with(api: Api, client: kube::Client, settings: Settings) -> Self {
        let tasks = TaskGroup::new(&CancellationToken::new());
        let context = controllers::Context {
            informers: Informers::start(&client, &tasks),
            client,
            clock: WallClock::system(),
            rng: Rng::seeded(5),
            node_name: "one".to_owned(),
            settings,
            predecessor: None,
            last_heartbeat: api.last_heartbeat(),
            root_ca: "ca".into(),
        };
        tasks.spawn("controllers", |cancel| controllers::run(context, cancel));
        Self { api, tasks }
    }

    /// Waits until the value at `pointer` of an object is `wanted`.
    pub(crate) async fn until(&self, path: &str, pointer: &str, wanted: Value) {
        self.until_it(path, |object| object.pointer(pointer).unwrap_or(&Value::Null) == &wanted)
            .await;
    }

    /// Waits until what is at `path` is as it should be; returns it.
    pub(crate) async fn until_it(&self, path: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        for _ in 0..1000 {
            last = self.api.get(path).await.json();
            if is_it(&last) {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{path} is not as it should be: {last:#}");
    }

    /// Waits until there is nothing at `path`.
    pub(crate) async fn until_gone(&self, path: &str) {
        self.until_it(path, |answer| answer["reason"] == "NotFound").await;
    }

    /// Makes an object, which must be taken; returns it.
    pub(crate) async fn make(&self, path: &str, object: &Value) -> Value {
        let made = self.api.post(path, object).await;
        assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
        made.json()
    }

    pub(crate) async fn end(self) {
        self.tasks.shutdown(Duration::from_secs(5)).await;
    }
}
