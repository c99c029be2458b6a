//! Volumes from the API to a container: API server, controllers, scheduler and agent in one
//! process; only the sandboxes are a script, which notes what it is given.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use bytes::Bytes;
use edgeorc_raft::{Config, Member, Replica, Role, Transport, TransportError};
use edgeorc_runtime::{
    Container, ContainerConfig, Exit, ExitReason, Pod as Sandbox, PodConfig, PodRuntime,
    StartError, Usage, VirtualNetwork,
};
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::runtime::watcher;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::agent::{
    Agent, AgentConfig, Capacity, CodeCompiler, CodeMetrics, Compiler, Figures, ImageSettings,
    LocalPods, Machine, NodeApi, RestartBackoff,
};
use crate::api::user::UserInfo;
use crate::apiserver::{self, ApiServer, ApiServerConfig};
use crate::client::{self, Informers, Interned, informer};
use crate::mesh::{Mesh, MeshConfig};
use crate::roles::api_service;
use crate::rt::{Rng, TaskGroup, WallClock};
use crate::store::Store;
use crate::telemetry::Metrics;
use crate::{controllers, scheduler};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Where every container finds its account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

struct Nobody;

#[async_trait]
impl Transport for Nobody {
    async fn call(&self, peer: &Member, _: Bytes, _: Duration) -> Result<Bytes, TransportError> {
        Err(TransportError::Unreachable { peer: peer.name.clone(), reason: "alone".to_owned() })
    }
}

/// A machine that nobody knows anything of: it is never short of anything.
struct Nowhere;

impl Machine for Nowhere {
    fn read(&self) -> Figures {
        Figures::default()
    }
}

/// What was started, by pod.
type Started = Arc<Mutex<BTreeMap<String, ContainerConfig>>>;

struct Script(Started);
struct ScriptedPod(String, Started);
struct ScriptedContainer(CancellationToken);

#[async_trait]
impl PodRuntime for Script {
    async fn create(&self, pod: PodConfig) -> Result<Arc<dyn Sandbox>, StartError> {
        Ok(Arc::new(ScriptedPod(pod.id.name, Arc::clone(&self.0))))
    }

    fn compatibility_hash(&self) -> String {
        "script".to_owned()
    }
}

#[async_trait]
impl Sandbox for ScriptedPod {
    async fn start(&self, container: ContainerConfig) -> Result<Arc<dyn Container>, StartError> {
        self.1.lock().insert(self.0.clone(), container);
        Ok(Arc::new(ScriptedContainer(CancellationToken::new())))
    }

    async fn destroy(&self) {
        self.1.lock().remove(&self.0);
    }
}

#[async_trait]
impl Container for ScriptedContainer {
    async fn wait(&self) -> Exit {
        self.0.cancelled().await;
        Exit { code: 137, reason: ExitReason::Killed, message: String::new() }
    }

    async fn stop(&self, _: Duration) {
        self.0.cancel();
    }

    fn usage(&self) -> Usage {
        Usage::default()
    }
}

struct Cluster {
    router: axum::Router,
    started: Started,
    folder: tempfile::TempDir,
    cancel: CancellationToken,
    tasks: TaskGroup,
}

impl Cluster {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = "192.0.2.10:6443".to_owned();
        let me = Member { id: 1, name: "one".to_owned(), address, store_uuid: [1; 16] };
        let config = Config::new(folder.path().join("raft"), me);
        let replica = Replica::open(config, Arc::new(Nobody)).await.unwrap();
        replica.bootstrap().await.unwrap();
        let mut status = replica.status();
        status.wait_for(|status| status.role == Role::Leader).await.unwrap();
        let cancel = CancellationToken::new();
        let tasks = TaskGroup::new(&cancel);
        let store = Store::new(replica.clone());
        let follower = store.clone();
        tasks.spawn("volatile-tier", |cancel| async move { follower.run(cancel).await });
        let (clock, rng) = (WallClock::system(), Rng::seeded(7));
        apiserver::bootstrap(&store, &clock, &rng, "the CA").await.unwrap();
        let server = ApiServer::new(ApiServerConfig {
            node_name: "one".to_owned(),
            store,
            peers: None,
            node_api: None,
            clock: clock.clone(),
            rng: rng.clone(),
            metrics: Metrics::new(),
            service_cidrs: crate::config::ServiceCidrs::default(),
            blob_dir: folder.path().join("registry"),
            bookmark_interval: Duration::from_secs(1),
            cancel: cancel.clone(),
        });
        let router = server.router();
        let cluster = Self { router, started: Started::default(), folder, cancel, tasks };
        cluster.push_image().await;
        let service = json!({"metadata": {"name": "db"}, "spec": {"ports": [{"port": 5432}],
            "clusterIP": "10.43.9.9"}});
        cluster.post("/api/v1/namespaces/default/services", &service).await;
        cluster.lead(&clock, &rng);
        let client = cluster.client("system:kube-controller-manager", "system:masters");
        cluster.tasks.spawn_until_cancelled(
            "api-service",
            api_service::keep(client, replica, crate::config::ServiceCidrs::default()),
        );
        cluster.run_agent(clock, rng);
        cluster
    }

    fn client(&self, user: &str, group: &str) -> kube::Client {
        client::in_process(self.router.clone(), user, &[group])
    }

    /// Controllers and scheduler.
    fn lead(&self, clock: &WallClock, rng: &Rng) {
        let client = self.client("system:kube-controller-manager", "system:masters");
        let informers = Informers::start(&client, &self.tasks);
        let context = controllers::Context {
            client: client.clone(),
            informers: informers.clone(),
            clock: clock.clone(),
            rng: rng.clone(),
            node_name: "one".to_owned(),
            predecessor: None,
            last_heartbeat: Arc::new(|_| None),
            root_ca: "the CA".into(),
            settings: controllers::Settings::default(),
        };
        self.tasks.spawn("controllers", |cancel| controllers::run(context, cancel));
        let context = scheduler::Context {
            client,
            informers,
            clock: clock.clone(),
            rng: rng.clone(),
            profiles: scheduler::no_plugins(),
        };
        self.tasks.spawn("scheduler", |cancel| scheduler::run(context, cancel));
    }

    fn run_agent(&self, clock: WallClock, rng: Rng) {
        let network = Arc::new(VirtualNetwork::new());
        let mesh = Mesh::new(MeshConfig {
            node_port_ip: None,
            ..MeshConfig::new(
                "one",
                Arc::new(LocalPods::new(network.clone())),
                self.tasks.clone(),
                rng.clone(),
            )
        });
        let compiler = Compiler {
            args: Vec::new(),
            memory_bytes_max: None,
            ..Compiler::new(PathBuf::from("/bin/cp"))
        };
        let client = self.client("system:node:one", "system:nodes");
        let nodes = Api::<Node>::all(client.clone());
        let agent = Agent::new(AgentConfig {
            extended_resources: BTreeMap::new(),
            machine_root: "/".into(),
            node_name: "one".to_owned(),
            nodes: informer(nodes, watcher::Config::default(), &self.tasks),
            pods: Interned::default(),
            static_pods: self.folder.path().join("pod-manifests"),
            images: ImageSettings::default(),
            node_ips: vec![Ipv4Addr::LOCALHOST.into()],
            data_dir: self.folder.path().join("agent"),
            memory_dirs: Vec::new(),
            client,
            runtime: Arc::new(Script(Arc::clone(&self.started))),
            network,
            compiler: CodeCompiler::new(compiler, CodeMetrics::default()),
            code_trust: None,
            peers: None,
            node_api: NodeApi::new(clock.clone()),
            clock,
            rng,
            is_server: true,
            labels: BTreeMap::new(),
            quic_address: None,
            ingress_address: None,
            capacity: Capacity::default(),
            restart: RestartBackoff::default(),
            shutdown_grace: Duration::from_secs(1),
            host_paths: Vec::new(),
            devices: Vec::new(),
            machine: Arc::new(Nowhere),
            eviction: crate::config::EvictionSettings::default(),
        });
        let agent = agent.unwrap();
        self.tasks.spawn("agent", |cancel| agent.run(mesh, cancel));
    }

    async fn send(&self, method: Method, path: &str, media: &str, body: Vec<u8>) -> (u16, Value) {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, media)
            .body(Body::from(body))
            .unwrap();
        request.extensions_mut().insert(UserInfo::new("admin", &["system:masters"]));
        self.answer(request).await
    }

    async fn answer(&self, request: Request<Body>) -> (u16, Value) {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        (head.status.as_u16(), serde_json::from_slice(&bytes).unwrap_or_default())
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.send(Method::GET, path, "", Vec::new()).await
    }

    async fn post(&self, path: &str, object: &Value) {
        let body = object.to_string().into_bytes();
        let (code, answer) = self.send(Method::POST, path, "application/json", body).await;
        assert_eq!(code, 201, "{answer}");
    }

    async fn delete(&self, path: &str) {
        let (code, answer) = self.send(Method::DELETE, path, "", Vec::new()).await;
        assert!(code < 300, "{answer}");
    }

    async fn push_image(&self) {
        let blob = b"component".to_vec();
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(&blob)));
        let path = format!("/v2/app/blobs/uploads/?digest={digest}");
        let media = "application/octet-stream";
        let (code, answer) = self.send(Method::POST, &path, media, blob).await;
        assert_eq!(code, StatusCode::CREATED.as_u16(), "{answer}");
        let manifest = json!({"schemaVersion": 2,
            "layers": [{"mediaType": "application/wasm", "digest": digest}]});
        let media = "application/vnd.oci.image.manifest.v1+json";
        let body = manifest.to_string().into_bytes();
        let (code, _) = self.send(Method::PUT, "/v2/app/manifests/v1", media, body).await;
        assert_eq!(code, StatusCode::CREATED.as_u16());
    }

    /// Looks until `found` finds something.
    async fn eventually<T>(&self, what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
        let look = async {
            loop {
                if let Some(found) = found().await {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, look).await {
            Ok(found) => found,
            Err(_) => {
                let (_, pods) = self.get("/api/v1/pods").await;
                let (_, claims) = self.get("/api/v1/persistentvolumeclaims").await;
                panic!("no {what}: {pods:#} {claims:#}");
            }
        }
    }

    async fn run_pod(&self, name: &str, volumes: Value, mounts: Value) -> ContainerConfig {
        let pod = json!({"metadata": {"name": name}, "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "app:v1", "volumeMounts": mounts}],
            "volumes": volumes,
        }});
        self.post("/api/v1/namespaces/default/pods", &pod).await;
        self.eventually("started container", async || self.started.lock().get(name).cloned()).await
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// The folder of the host that the container sees at `guest_path`.
fn at(config: &ContainerConfig, guest_path: &str) -> PathBuf {
    let mount = config.mounts.iter().find(|mount| mount.guest_path == guest_path);
    mount.unwrap_or_else(|| panic!("nothing at {guest_path}: {config:?}")).host_path.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_has_a_token_that_the_api_knows_and_files_that_follow_their_objects() {
    let cluster = Cluster::start().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    cluster.post(maps, &json!({"metadata": {"name": "settings"}, "data": {"a": "1"}})).await;
    let config = cluster
        .run_pod(
            "web",
            json!([{"name": "v", "configMap": {"name": "settings"}}]),
            json!([{"name": "v", "mountPath": "/etc/app"}]),
        )
        .await;
    let links = [("DB_SERVICE_HOST", "10.43.9.9"), ("DB_PORT_5432_TCP_PORT", "5432")];
    for (name, value) in links {
        assert!(config.env.contains(&(name.to_owned(), value.to_owned())), "{:?}", config.env);
    }
    let account = at(&config, ACCOUNT);
    let read = |name: &str| std::fs::read_to_string(account.join(name)).unwrap();
    assert_eq!((read("ca.crt"), read("namespace")), ("the CA".into(), "default".into()));
    let asked = |token: &str| {
        let request = Request::get("/api/v1/namespaces/kube-system/secrets")
            .header(header::AUTHORIZATION, format!("Bearer {token}"));
        request.body(Body::empty()).unwrap()
    };
    let (code, answer) = cluster.answer(asked(&read("token"))).await;
    assert_eq!(code, 403);
    let message = answer["message"].as_str().unwrap();
    assert!(message.contains("\"system:serviceaccount:default:default\""), "{message}");
    assert_eq!(cluster.answer(asked("a.b.c")).await.0, 401);

    let body = json!({"data": {"a": "2"}}).to_string().into_bytes();
    let path = format!("{maps}/settings");
    let media = "application/merge-patch+json";
    assert_eq!(cluster.send(Method::PATCH, &path, media, body).await.0, 200);
    let file = at(&config, "/etc/app").join("a");
    cluster
        .eventually("new content", async || {
            (std::fs::read_to_string(&file).ok()?.as_str() == "2").then_some(())
        })
        .await;
    let body = json!({"metadata": {"labels": {"x": "y"}}}).to_string().into_bytes();
    let pod = "/api/v1/namespaces/default/pods/web";
    assert_eq!(cluster.send(Method::PATCH, pod, media, body).await.0, 200);

    let (code, keys) = cluster.get("/openid/v1/jwks").await;
    assert_eq!((code, &keys["keys"][0]["crv"]), (200, &json!("P-256")));

    let slice = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
    let servers = cluster
        .eventually("the API's own service", async || {
            let (code, slice) = cluster.get(slice).await;
            (code == 200).then(|| slice["endpoints"][0]["addresses"].clone())
        })
        .await;
    assert_eq!(servers, json!(["192.0.2.10"]));
    let (_, service) = cluster.get("/api/v1/namespaces/default/services/kubernetes").await;
    assert_eq!(service["spec"]["clusterIP"], "10.43.0.1");

    // With the pod goes its token.
    let token = read("token");
    cluster.delete(pod).await;
    cluster
        .eventually("end of the pod", async || (cluster.get(pod).await.0 == 404).then_some(()))
        .await;
    assert_eq!(cluster.answer(asked(&token)).await.0, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_is_bound_where_its_pod_runs_and_its_data_goes_with_it() {
    let cluster = Cluster::start().await;
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    cluster.post(claims, &claim).await;
    let volumes = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
    let mounts = json!([{"name": "v", "mountPath": "/state"}]);
    let config = cluster.run_pod("first", volumes.clone(), mounts.clone()).await;
    std::fs::write(at(&config, "/state").join("x"), "kept").unwrap();
    let (_, bound) = cluster.get(&format!("{claims}/data")).await;
    assert_eq!(bound["status"]["phase"], "Bound");
    assert_eq!(bound["spec"]["storageClassName"], "local-path");
    let volume = bound["spec"]["volumeName"].as_str().unwrap().to_owned();
    let volume_path = format!("/api/v1/persistentvolumes/{volume}");
    let (_, shown) = cluster.get(&volume_path).await;
    assert_eq!(shown["status"]["phase"], "Bound");
    let folder = cluster.folder.path().join("agent/volumes").join(&volume);
    assert_eq!(shown["spec"]["local"]["path"], folder.display().to_string());

    let larger = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    let (path, media) = (format!("{claims}/data"), "application/merge-patch+json");
    let body = larger.to_string().into_bytes();
    assert_eq!(cluster.send(Method::PATCH, &path, media, body).await.0, 200);
    cluster
        .eventually("larger volume", async || {
            let (_, claim) = cluster.get(&path).await;
            (claim["status"]["capacity"]["storage"] == "2Gi").then_some(())
        })
        .await;

    // The claim is in use: its deletion waits for the pod.
    cluster.delete("/api/v1/namespaces/default/pods/first").await;
    let second = cluster.run_pod("second", volumes, mounts).await;
    let kept = std::fs::read_to_string(at(&second, "/state").join("x")).unwrap();
    assert_eq!(kept, "kept");
    cluster.delete(&format!("{claims}/data")).await;
    let (code, waiting) = cluster.get(&format!("{claims}/data")).await;
    assert_eq!(code, 200);
    assert!(waiting["metadata"]["deletionTimestamp"].is_string());
    assert!(folder.is_dir());
    cluster.delete("/api/v1/namespaces/default/pods/second").await;
    cluster
        .eventually("end of the volume", async || {
            (cluster.get(&volume_path).await.0 == 404).then_some(())
        })
        .await;
    assert!(!folder.exists());
}
