//! A node under pressure, from the machine's figures to the replica that runs elsewhere: API server,
//! controllers, scheduler and two agents in one process; only machines and sandboxes are a script.

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
use http::{Method, Request};
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
use crate::config::EvictionSettings;
use crate::mesh::{Mesh, MeshConfig};
use crate::rt::{Rng, TaskGroup, WallClock};
use crate::store::Store;
use crate::telemetry::Metrics;
use crate::{controllers, scheduler};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);
const PODS: &str = "/api/v1/namespaces/default/pods";
const GIB: u64 = 1 << 30;
/// What every pod uses.
const POD_BYTES: u64 = 64 << 20;

struct Nobody;

#[async_trait]
impl Transport for Nobody {
    async fn call(&self, peer: &Member, _: Bytes, _: Duration) -> Result<Bytes, TransportError> {
        Err(TransportError::Unreachable { peer: peer.name.clone(), reason: "alone".to_owned() })
    }
}

/// A machine as the test wants it.
#[derive(Clone)]
struct Scripted(Arc<Mutex<Figures>>);

impl Machine for Scripted {
    fn read(&self) -> Figures {
        *self.0.lock()
    }
}

struct Script;
struct ScriptedPod;
struct ScriptedContainer(CancellationToken);

const USE: Usage = Usage { cpu: Duration::from_millis(50), memory_bytes: POD_BYTES };

#[async_trait]
impl PodRuntime for Script {
    async fn create(&self, _: PodConfig) -> Result<Arc<dyn Sandbox>, StartError> {
        Ok(Arc::new(ScriptedPod))
    }

    fn compatibility_hash(&self) -> String {
        "script".to_owned()
    }
}

#[async_trait]
impl Sandbox for ScriptedPod {
    async fn start(&self, _: ContainerConfig) -> Result<Arc<dyn Container>, StartError> {
        Ok(Arc::new(ScriptedContainer(CancellationToken::new())))
    }

    fn usage(&self) -> Usage {
        USE
    }

    async fn destroy(&self) {}
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
        USE
    }
}

struct Cluster {
    router: axum::Router,
    folder: tempfile::TempDir,
    tasks: TaskGroup,
    machines: BTreeMap<&'static str, Scripted>,
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
        let tasks = TaskGroup::new(&CancellationToken::new());
        let store = Store::new(replica);
        let follower = store.clone();
        tasks.spawn("volatile-tier", |cancel| async move { follower.run(cancel).await });
        let (clock, rng) = (WallClock::system(), Rng::seeded(7));
        apiserver::bootstrap(&store, &clock, &rng, "the CA").await.unwrap();
        let node_api = NodeApi::new(clock.clone());
        let server = ApiServer::new(ApiServerConfig {
            node_name: "one".to_owned(),
            store,
            peers: None,
            node_api: Some(node_api.router()),
            clock: clock.clone(),
            rng: rng.clone(),
            metrics: Metrics::new(),
            service_cidrs: crate::config::ServiceCidrs::default(),
            blob_dir: folder.path().join("registry"),
            bookmark_interval: Duration::from_secs(1),
            cancel: tasks.token().clone(),
        });
        let mut cluster =
            Self { router: server.router(), folder, tasks, machines: BTreeMap::new() };
        cluster.push_image().await;
        cluster.lead(&clock, &rng);
        cluster.run_agent("one", node_api, clock.clone(), rng.clone());
        cluster.run_agent("two", NodeApi::new(clock.clone()), clock, rng);
        cluster
    }

    fn client(&self, user: &str, group: &str) -> kube::Client {
        client::in_process(self.router.clone(), user, &[group])
    }

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
        let (clock, rng) = (clock.clone(), rng.clone());
        let context =
            scheduler::Context { client, informers, clock, rng, profiles: scheduler::no_plugins() };
        self.tasks.spawn("scheduler", |cancel| scheduler::run(context, cancel));
    }

    fn run_agent(&mut self, name: &'static str, node_api: NodeApi, clock: WallClock, rng: Rng) {
        let figures = Figures {
            memory_bytes: 4 * GIB,
            memory_available_bytes: 2 * GIB,
            ..Figures::default()
        };
        let machine = Scripted(Arc::new(Mutex::new(figures)));
        self.machines.insert(name, machine.clone());
        let network = Arc::new(VirtualNetwork::new());
        let pods = Arc::new(LocalPods::new(network.clone()));
        let mesh = Mesh::new(MeshConfig {
            node_port_ip: None,
            ..MeshConfig::new(name, pods, self.tasks.clone(), rng.clone())
        });
        let compiler = Compiler {
            args: Vec::new(),
            memory_bytes_max: None,
            ..Compiler::new(PathBuf::from("/bin/cp"))
        };
        let client = self.client(&format!("system:node:{name}"), "system:nodes");
        let nodes = Api::<Node>::all(client.clone());
        let agent = Agent::new(AgentConfig {
            extended_resources: BTreeMap::new(),
            machine_root: "/".into(),
            node_name: name.to_owned(),
            nodes: informer(nodes, watcher::Config::default(), &self.tasks),
            pods: Interned::default(),
            static_pods: self.folder.path().join("pod-manifests"),
            images: ImageSettings::default(),
            node_ips: vec![Ipv4Addr::LOCALHOST.into()],
            data_dir: self.folder.path().join(name),
            memory_dirs: Vec::new(),
            client,
            runtime: Arc::new(Script),
            network,
            compiler: CodeCompiler::new(compiler, CodeMetrics::default()),
            code_trust: None,
            node_api,
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
            peers: None,
            machine: Arc::new(machine),
            eviction: EvictionSettings {
                interval: Duration::from_millis(50),
                transition_period: Duration::from_millis(200),
                ..EvictionSettings::default()
            },
        });
        let agent = agent.unwrap();
        self.tasks.spawn("agent", |cancel| agent.run(mesh, cancel));
    }

    async fn send(&self, method: Method, path: &str, media: &str, body: Vec<u8>) -> (u16, Value) {
        let request = Request::builder().method(method).uri(path).header("content-type", media);
        let mut request = request.body(Body::from(body)).unwrap();
        request.extensions_mut().insert(UserInfo::new("admin", &["system:masters"]));
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        (head.status.as_u16(), serde_json::from_slice(&bytes).unwrap_or(json!(text)))
    }

    async fn get(&self, path: &str) -> Value {
        self.send(Method::GET, path, "", Vec::new()).await.1
    }

    async fn post(&self, path: &str, object: &Value) {
        let body = object.to_string().into_bytes();
        let (code, answer) = self.send(Method::POST, path, "application/json", body).await;
        assert_eq!(code, 201, "{answer}");
    }

    async fn push_image(&self) {
        let blob = b"component".to_vec();
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(&blob)));
        let path = format!("/v2/app/blobs/uploads/?digest={digest}");
        let (code, answer) = self.send(Method::POST, &path, "application/octet-stream", blob).await;
        assert_eq!(code, 201, "{answer}");
        let manifest = json!({"schemaVersion": 2,
            "layers": [{"mediaType": "application/wasm", "digest": digest}]});
        let media = "application/vnd.oci.image.manifest.v1+json";
        let body = manifest.to_string().into_bytes();
        let (code, _) = self.send(Method::PUT, "/v2/app/manifests/v1", media, body).await;
        assert_eq!(code, 201);
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
            Err(_) => panic!(
                "no {what}: {:#} {:#}",
                self.get(PODS).await,
                self.get("/api/v1/nodes").await
            ),
        }
    }

    /// Phase, reason and node of each pod, in that order.
    async fn pods(&self) -> Vec<[String; 3]> {
        let list = self.get(PODS).await;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let text = |pod: &Value, at: &str| {
            pod.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let paths = ["/status/phase", "/status/reason", "/spec/nodeName"];
        let mut pods: Vec<_> = items.iter().map(|pod| paths.map(|at| text(pod, at))).collect();
        pods.sort();
        pods
    }

    async fn until_pods(&self, what: &str, wanted: &[[&str; 3]]) {
        let is_so = async || (self.pods().await == wanted).then_some(());
        self.eventually(what, is_so).await;
    }

    /// Status of a condition of a node, and the keys of its taints.
    async fn node(&self, name: &str, kind: &str) -> (String, Vec<String>) {
        let node = self.get(&format!("/api/v1/nodes/{name}")).await;
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.iter().find(|condition| condition["type"] == kind);
        let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        let key = |taint: &Value| taint["key"].as_str().unwrap_or_default().to_owned();
        let status = found.and_then(|found| found["status"].as_str()).unwrap_or_default();
        (status.to_owned(), taints.iter().map(key).collect())
    }

    fn is_short(&self, name: &str, is_short: bool) {
        let bytes = if is_short { 10 << 20 } else { 2 * GIB };
        self.machines[name].0.lock().memory_available_bytes = bytes;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.tasks.token().cancel();
    }
}

fn replica_set() -> Value {
    json!({"metadata": {"name": "web"}, "spec": {"replicas": 1,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "app:v1"}]}}}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_evicted_from_a_short_node_is_replaced_on_another() {
    let cluster = Cluster::start().await;
    for node in ["one", "two"] {
        let is_ready = async || (cluster.node(node, "Ready").await.0 == "True").then_some(());
        cluster.eventually("ready node", is_ready).await;
    }
    let sets = "/apis/apps/v1/namespaces/default/replicasets";
    cluster.post(sets, &replica_set()).await;
    // It may land on either: the scheduler may not know of both yet.
    let is_running = async || {
        let pods = cluster.pods().await;
        ["one", "two"].into_iter().find(|node| pods == [["Running", "", node]])
    };
    let short = cluster.eventually("running pod", is_running).await;
    let other = if short == "one" { "two" } else { "one" };

    cluster.is_short(short, true);
    let after = [["Failed", "Evicted", short], ["Running", "", other]];
    cluster.until_pods("replacement", &after).await;
    let (status, taints) = cluster.node(short, "MemoryPressure").await;
    assert_eq!(status, "True");
    assert_eq!(taints, ["node.kubernetes.io/memory-pressure"]);
    // The one that failed does not count, and is not replaced again and again.
    let is_settled = async || {
        let set = cluster.get(&format!("{sets}/web")).await;
        let count = |key: &str| set["status"][key].as_i64();
        (count("replicas") == Some(1) && count("readyReplicas") == Some(1)).then_some(())
    };
    cluster.eventually("status without the failed pod", is_settled).await;
    let pods = cluster.get(PODS).await;
    let pods = pods["items"].as_array().unwrap();
    let failed = pods.iter().find(|pod| pod["status"]["phase"] == "Failed").unwrap();
    let message = failed["status"]["message"].as_str().unwrap();
    assert!(message.starts_with("The node was low on resource: memory."), "{message}");
    let conditions = failed["status"]["conditions"].as_array().unwrap();
    let target = conditions.iter().find(|c| c["type"] == "DisruptionTarget").unwrap();
    assert_eq!(
        (&target["status"], &target["reason"]),
        (&json!("True"), &json!("TerminationByKubelet"))
    );

    cluster.is_short(short, false);
    let is_well = async || {
        let (status, taints) = cluster.node(short, "MemoryPressure").await;
        (status == "False" && taints.is_empty()).then_some(())
    };
    cluster.eventually("end of the pressure", is_well).await;
    cluster.until_pods("same pods", &after).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn measured_use_reaches_kubernetes_metrics_api_and_the_heartbeat() {
    let cluster = Cluster::start().await;
    let pod = json!({"metadata": {"name": "web", "labels": {"app": "web"}}, "spec": {
        "nodeName": "one", "containers": [{"name": "c", "image": "app:v1"}]}});
    cluster.post(PODS, &pod).await;
    cluster.until_pods("pod", &[["Running", "", "one"]]).await;
    let group = "/apis/metrics.k8s.io/v1beta1";
    let pods = format!("{group}/namespaces/default/pods");
    let list = cluster.get(&format!("{pods}?labelSelector=app%3Dweb")).await;
    assert_eq!(list["kind"], "PodMetricsList");
    let container = &list["items"][0]["containers"][0];
    assert_eq!(container["name"], "c", "{list:#}");
    assert_eq!(container["usage"]["memory"], "65536Ki");
    assert_eq!(list["items"][0]["metadata"]["labels"], json!({"app": "web"}));
    assert!(container["usage"]["cpu"].as_str().unwrap().ends_with('n'), "{container}");
    let one = cluster.get(&format!("{pods}/web")).await;
    assert_eq!((&one["kind"], &one["window"]), (&json!("PodMetrics"), &json!("20s")));
    let none = cluster.get(&format!("{pods}?labelSelector=app%3Dother")).await;
    assert_eq!(none["items"], json!([]));
    // The other node cannot be reached from here: it is left out, and missed by name.
    let nodes = cluster.get(&format!("{group}/nodes")).await;
    assert_eq!(nodes["items"].as_array().unwrap().len(), 1, "{nodes:#}");
    assert_eq!(nodes["items"][0]["metadata"]["name"], "one");
    assert_eq!(nodes["items"][0]["usage"]["memory"], "2097152Ki");
    let (code, missing) =
        cluster.send(Method::GET, &format!("{group}/nodes/two"), "", Vec::new()).await;
    assert_eq!(
        (code, &missing["message"]),
        (404, &json!("nodes.metrics.k8s.io \"two\" not found"))
    );
    let (code, _) =
        cluster.send(Method::DELETE, &format!("{group}/nodes/one"), "", Vec::new()).await;
    assert_eq!(code, 405);

    let proxy = "/api/v1/nodes/one/proxy";
    let summary = cluster.get(&format!("{proxy}/stats/summary")).await;
    assert_eq!(summary["node"]["nodeName"], "one");
    assert_eq!(summary["pods"][0]["podRef"]["name"], "web");
    let metrics = cluster.get(&format!("{proxy}/metrics/resource")).await;
    assert!(metrics.as_str().unwrap().contains("pod_memory_working_set_bytes{"), "{metrics}");
    for path in ["exec/default/web/c", "containerLogs/default/web/c", "", "pods"] {
        let (code, _) = cluster.send(Method::GET, &format!("{proxy}/{path}"), "", Vec::new()).await;
        assert_eq!(code, 404, "{path}");
    }
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/one";
    let told = async || {
        let lease = cluster.get(lease).await;
        let told = lease.pointer("/metadata/annotations/edgeorc.io~1used-memory").cloned()?;
        (told == "2040Mi").then_some(())
    };
    cluster.eventually("load in the heartbeat", told).await;
}
