//! The cluster of a simulation, and what can be done to it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use edgeorc::agent::{
    Agent, AgentConfig, Capacity, CodeCompiler, CodeMetrics, Compiler, ImageSettings, LocalPods,
    NodeApi, RestartBackoff,
};
use edgeorc::client::{Informers, Interned, in_process, informer};
use edgeorc::config::EvictionSettings;
use edgeorc::mesh::{Mesh, MeshConfig};
use edgeorc::rt::{Rng, TaskGroup, WallClock};
use edgeorc::{controllers, scheduler};
use edgeorc_runtime::VirtualNetwork;
use futures_util::StreamExt as _;
use http::{Method, StatusCode};
use kube::runtime::watcher;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::promises::{NODE_MILLIS, is_ready};
use crate::hollow::{Board, CalmMachine, Script};
use crate::support::Api;

/// Time the tasks of a node get to end that is lost: none of them is asked.
const AT_ONCE: Duration = Duration::ZERO;
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// The way to the API: while it is shut, nothing passes, and what was under way breaks off.
#[derive(Clone)]
struct Gate(watch::Sender<bool>);

impl Gate {
    fn open() -> Self {
        Self(watch::Sender::new(true))
    }

    fn before(&self, router: axum::Router) -> axum::Router {
        router.layer(from_fn_with_state(self.clone(), pass))
    }
}

async fn pass(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let mut open = gate.0.subscribe();
    let mut shut = gate.0.subscribe();
    let answered = async {
        if !*open.borrow_and_update() {
            return None;
        }
        tokio::select! {
            response = next.run(request) => Some(response),
            _ = open.wait_for(|is_open| !is_open) => None,
        }
    };
    let Some(response) = answered.await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let (head, body) = response.into_parts();
    let broken = async move { drop(shut.wait_for(|is_open| !is_open).await) };
    let body = Body::from_stream(body.into_data_stream().take_until(Box::pin(broken)));
    Response::from_parts(head, body)
}

struct Node {
    gate: Gate,
    /// `None`: the machine is off.
    tasks: Option<TaskGroup>,
    /// Until when it is cut off.
    opener: Option<tokio::task::JoinHandle<()>>,
}

pub(super) struct World {
    pub(super) api: Arc<Api>,
    pub(super) board: Arc<Board>,
    nodes: BTreeMap<String, Node>,
    controllers: Gate,
    folder: tempfile::TempDir,
    tasks: TaskGroup,
    clock: WallClock,
    rng: Rng,
}

impl Drop for World {
    fn drop(&mut self) {
        for node in self.nodes.values() {
            if let Some(tasks) = &node.tasks {
                tasks.token().cancel();
            }
        }
        self.tasks.token().cancel();
    }
}

impl World {
    pub(super) async fn start(seed: u64, nodes: u64) -> Self {
        let api = Arc::new(Api::start().await);
        let mut world = Self {
            api,
            board: Arc::default(),
            nodes: BTreeMap::new(),
            controllers: Gate::open(),
            folder: tempfile::tempdir().unwrap(),
            tasks: TaskGroup::new(&CancellationToken::new()),
            clock: WallClock::system(),
            rng: Rng::seeded(seed),
        };
        world.push_image().await;
        world.lead();
        for at in 0..nodes {
            let node = Node { gate: Gate::open(), tasks: None, opener: None };
            world.nodes.insert(format!("n{at}"), node);
            world.come_back(&format!("n{at}"));
        }
        world
    }

    fn lead(&self) {
        let router = self.controllers.before(self.api.router.clone());
        let client = in_process(router, "system:kube-controller-manager", &["system:masters"]);
        let informers = Informers::start(&client, &self.tasks);
        let (clock, rng) = (self.clock.clone(), self.rng.clone());
        let context = controllers::Context {
            client: client.clone(),
            informers: informers.clone(),
            clock: clock.clone(),
            rng: rng.clone(),
            node_name: "n0".to_owned(),
            settings: controllers::Settings::default(),
            predecessor: None,
            last_heartbeat: self.api.last_heartbeat(),
            root_ca: "ca".into(),
        };
        self.tasks.spawn("controllers", |cancel| controllers::run(context, cancel));
        let context =
            scheduler::Context { client, informers, clock, rng, profiles: scheduler::no_plugins() };
        self.tasks.spawn("scheduler", |cancel| scheduler::run(context, cancel));
    }

    /// The machine is switched on, if it is off. Its disk is as it was.
    pub(super) fn come_back(&mut self, name: &str) {
        let is_off = self.nodes.get(name).is_some_and(|node| node.tasks.is_none());
        if !is_off {
            return;
        }
        let tasks = TaskGroup::new(&CancellationToken::new());
        let router = self.nodes[name].gate.before(self.api.router.clone());
        let client = in_process(router, &format!("system:node:{name}"), &["system:nodes"]);
        let network = Arc::new(VirtualNetwork::new());
        let pods = Arc::new(LocalPods::new(network.clone()));
        let mesh = Mesh::new(MeshConfig {
            node_port_ip: None,
            ..MeshConfig::new(name, pods, tasks.clone(), self.rng.clone())
        });
        let agent = Agent::new(self.agent_config(name, client, network, &tasks)).unwrap();
        tasks.spawn("agent", |cancel| agent.run(mesh, cancel));
        self.nodes.get_mut(name).unwrap().tasks = Some(tasks);
    }

    fn agent_config(
        &self,
        name: &str,
        client: kube::Client,
        network: Arc<VirtualNetwork>,
        tasks: &TaskGroup,
    ) -> AgentConfig {
        let compiler = Compiler {
            args: Vec::new(),
            memory_bytes_max: None,
            ..Compiler::new(PathBuf::from("/bin/cp"))
        };
        let script =
            Script { node: name.to_owned(), board: Some(Arc::clone(&self.board)), has_logs: true };
        AgentConfig {
            extended_resources: BTreeMap::new(),
            devices: Vec::new(),
            node_name: name.to_owned(),
            nodes: informer(kube::Api::all(client.clone()), watcher::Config::default(), tasks),
            pods: Interned::default(),
            static_pods: self.folder.path().join("pod-manifests"),
            images: ImageSettings::default(),
            node_ips: vec![Ipv4Addr::LOCALHOST.into()],
            data_dir: self.folder.path().join(name),
            memory_dirs: Vec::new(),
            client,
            runtime: Arc::new(script),
            network,
            compiler: CodeCompiler::new(compiler, CodeMetrics::default()),
            code_trust: None,
            node_api: NodeApi::new(self.clock.clone()),
            clock: self.clock.clone(),
            rng: self.rng.clone(),
            is_server: false,
            labels: BTreeMap::new(),
            quic_address: None,
            ingress_address: None,
            capacity: Capacity { cpu_millis: NODE_MILLIS, ..Capacity::default() },
            restart: RestartBackoff::default(),
            shutdown_grace: Duration::from_secs(1),
            host_paths: Vec::new(),
            peers: None,
            machine: Arc::new(CalmMachine),
            machine_root: PathBuf::from("/"),
            eviction: EvictionSettings::default(),
        }
    }

    /// The machine is off at once, and all that ran on it.
    pub(super) async fn lose(&mut self, name: &str) {
        let node = self.nodes.get_mut(name).unwrap();
        let Some(tasks) = node.tasks.take() else { return };
        node.gate.0.send_replace(false);
        tasks.shutdown(AT_ONCE).await;
        self.board.lose(name);
        if node.opener.is_none() {
            node.gate.0.send_replace(true);
        }
    }

    /// Nothing gets from the node to the API and back for a while; its pods run on.
    pub(super) fn cut_off(&mut self, name: &str, length: Duration) {
        let node = self.nodes.get_mut(name).unwrap();
        if let Some(opener) = node.opener.take() {
            opener.abort();
        }
        node.gate.0.send_replace(false);
        let gate = node.gate.clone();
        node.opener = Some(tokio::spawn(async move {
            tokio::time::sleep(length).await;
            gate.0.send_replace(true);
        }));
    }

    /// Everything that the controllers and the scheduler wait for breaks off.
    pub(super) fn break_watches(&self) {
        self.controllers.0.send_replace(false);
        self.controllers.0.send_replace(true);
    }

    /// All machines are on, and all ways are open.
    pub(super) fn heal(&mut self) {
        let names: Vec<String> = self.nodes.keys().cloned().collect();
        for name in names {
            let node = self.nodes.get_mut(&name).unwrap();
            if let Some(opener) = node.opener.take() {
                opener.abort();
            }
            node.gate.0.send_replace(true);
            self.come_back(&name);
        }
    }

    async fn push_image(&self) {
        let blob = b"component".to_vec();
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(&blob)));
        let path = format!("/v2/app/blobs/uploads/?digest={digest}");
        let sent = self.api.send(Method::POST, &path, "application/octet-stream", blob).await;
        assert_eq!(sent.code, StatusCode::CREATED, "{sent:?}");
        let manifest = json!({"schemaVersion": 2,
            "layers": [{"mediaType": "application/wasm", "digest": digest}]});
        let media = "application/vnd.oci.image.manifest.v1+json";
        let path = "/v2/app/manifests/v1";
        let sent = self.api.send(Method::PUT, path, media, manifest.to_string()).await;
        assert_eq!(sent.code, StatusCode::CREATED, "{sent:?}");
    }

    pub(super) async fn create(&self, object: &Value) {
        let kind = object["kind"].as_str().unwrap().to_lowercase();
        let path = format!("/apis/apps/v1/namespaces/default/{kind}s");
        let made = self.api.post(&path, object).await;
        assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
    }

    pub(super) async fn patch(&self, object: &str, patch: &Value) {
        let path = format!("/apis/apps/v1/namespaces/default/{object}");
        let done = self.api.patch(&path, "merge", patch).await;
        assert_eq!(done.code, StatusCode::OK, "{done:?}");
    }

    pub(super) async fn until(
        &self,
        what: &str,
        limit: Duration,
        look: impl AsyncFn(&Self) -> Result<(), String>,
    ) -> Result<(), String> {
        let began = Instant::now();
        while let Err(why) = look(self).await {
            if began.elapsed() > limit {
                return Err(format!("no {what}: {why}"));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    pub(super) async fn all_nodes_ready(&self) -> Result<(), String> {
        let list = self.api.get("/api/v1/nodes").await.json();
        let nodes = list["items"].as_array().cloned().unwrap_or_default();
        let ready = nodes.iter().filter(|node| is_ready(node) && node["spec"]["taints"].is_null());
        let ready = ready.count();
        if ready == self.nodes.len() { Ok(()) } else { Err(format!("{ready} nodes are ready")) }
    }

    /// Whether everything is as it was told to be: each workload has its pods, those that do not fail
    /// are ready, each runs on the node that it is bound to, and nothing else runs.
    pub(super) async fn at_rest(&self) -> Result<(), String> {
        self.all_nodes_ready().await?;
        for (path, name) in
            [("deployments", "steady"), ("deployments", "failing"), ("statefulsets", "named")]
        {
            let path = format!("/apis/apps/v1/namespaces/default/{path}/{name}");
            let found = self.api.get(&path).await.json();
            let (wanted, status) = (&found["spec"]["replicas"], &found["status"]);
            let is_seen = found["metadata"]["generation"] == status["observedGeneration"];
            let is_whole = status["replicas"] == *wanted && status["updatedReplicas"] == *wanted;
            let is_ready = name == "failing" || status["readyReplicas"] == *wanted;
            if !(is_seen && is_whole && is_ready) {
                return Err(format!("{name}: {status}"));
            }
        }
        let list = self.api.get("/api/v1/namespaces/default/pods").await.json();
        let pods = list["items"].as_array().cloned().unwrap_or_default();
        let living: Vec<&Value> =
            pods.iter().filter(|pod| pod["status"]["phase"] != "Failed").collect();
        if let Some(going) =
            living.iter().find(|pod| !pod["metadata"]["deletionTimestamp"].is_null())
        {
            return Err(format!("{} is still going", going["metadata"]["name"]));
        }
        self.runs_what_it_should(&living)
    }

    fn runs_what_it_should(&self, pods: &[&Value]) -> Result<(), String> {
        let of = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let is_steady = |app: &str| app != "failing";
        let wanted: BTreeSet<(String, String)> = pods
            .iter()
            .filter(|pod| is_steady(pod["metadata"]["labels"]["app"].as_str().unwrap_or_default()))
            .map(|pod| (of(&pod["metadata"]["name"]), of(&pod["spec"]["nodeName"])))
            .collect();
        let running = self.board.running();
        let there: BTreeSet<(String, String)> = running
            .iter()
            .filter(|([_, pod, _], _)| !pod.starts_with("failing"))
            .flat_map(|([_, pod, _], places)| {
                places.iter().map(|place| (pod.clone(), place.node.clone()))
            })
            .collect();
        if there == wanted {
            return Ok(());
        }
        let missing: Vec<_> = wanted.difference(&there).collect();
        let extra: Vec<_> = there.difference(&wanted).collect();
        Err(format!("not running: {missing:?}; running for nobody: {extra:?}"))
    }
}
