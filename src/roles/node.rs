//! Starts a node: its parts, in their order.

use std::net::SocketAddr;
use std::sync::Arc;

use edgeorc_runtime::VirtualNetwork;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::runtime::watcher;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::agent::{Agent, CodeCompiler, LocalPods, NodeApi};
use crate::client::{self, Informer, Interned, informer};
use crate::config::NodeSettings;
use crate::mesh::{Mesh, MeshConfig};
use crate::net::{BindError, Endpoint, NetConfig, Peers};
use crate::roles::addresses::Directory;
use crate::roles::agent_config::{AgentDoors, agent_config};
use crate::roles::data_dir::DataDir;
use crate::roles::dispatch::{self, Doors};
use crate::roles::engine::{Engine, Hollow};
use crate::roles::identity::{Membership, certified_addresses};
use crate::roles::listeners::{Listeners, listen};
use crate::roles::renewal::{Issuer, Renewal};
use crate::roles::server::{Server, server_doors, start_server};
use crate::roles::verify::AgentVerifier;
use crate::roles::{NodeError, RunningNode, addresses, clock_floor, compiled, relay};
use crate::rt::{Rng, TaskGroup, Threads, WallClock};
use crate::telemetry::Metrics;
use crate::telemetry::trace::{Tracer, TracerTools};

/// Raft and the packets of all connections are less than a core's work.
const NET_WORKERS: usize = 1;
/// Raft's log, its state file, snapshots and what followers read of the log.
const NET_BLOCKING_THREADS_MAX: usize = 8;

/// What every part of the node shares.
pub(super) struct Base {
    pub(super) settings: NodeSettings,
    pub(super) dir: Arc<DataDir>,
    pub(super) clock: WallClock,
    pub(super) rng: Rng,
    pub(super) metrics: Metrics,
    /// Ends everything but the agent, which ends before.
    pub(super) tasks: TaskGroup,
    pub(super) membership: Membership,
    pub(super) endpoint: Endpoint,
    pub(super) peers: Peers,
    pub(super) node_api: NodeApi,
    /// What the controllers of a server and its agent hold of pods.
    pub(super) pods: Interned<Pod>,
    /// Of the agent, and on a server of the API for all nodes: one child at a time for both.
    pub(super) compiler: CodeCompiler,
    /// Where Raft and the packets of connections are worked on.
    pub(super) net: Handle,
    /// These, on a server. What waits for its turn among the API's tasks is a heartbeat too late, or
    /// a connection taken for dead, once these are many.
    pub(super) net_threads: Option<Threads>,
}

/// Starts the node that `settings` describe. Returns once its parts run.
///
/// # Errors
///
/// [`NodeError`]: one sentence; nothing is left running.
pub async fn start(settings: NodeSettings) -> Result<RunningNode, NodeError> {
    begin(settings, None).await
}

/// Starts an agent that runs its pods by a script: see [`Hollow`]. It must join a cluster.
///
/// # Errors
///
/// As [`start`].
pub async fn start_hollow(
    settings: NodeSettings,
    hollow: Hollow,
) -> Result<RunningNode, NodeError> {
    begin(settings, Some(hollow)).await
}

async fn begin(settings: NodeSettings, hollow: Option<Hollow>) -> Result<RunningNode, NodeError> {
    let cancel = CancellationToken::new();
    let started = Box::pin(assemble(settings, hollow, &cancel)).await;
    if started.is_err() {
        cancel.cancel();
    }
    started
}

async fn assemble(
    mut settings: NodeSettings,
    hollow: Option<Hollow>,
    cancel: &CancellationToken,
) -> Result<RunningNode, NodeError> {
    let dir = Arc::new(DataDir::open(&settings.data_dir)?);
    settings.advertise_address = dir.advertised(settings.advertise_address, settings.bind_address);
    let api_at = SocketAddr::new(settings.bind_address, settings.api_port);
    let api_listener = listen("API", "--api-port", api_at).await?;
    let listeners = match hollow {
        None => Some(Listeners::bind(&settings).await?),
        Some(_) => None,
    };
    let (clock, rng) = (clock_floor::clock(&dir), Rng::from_os());
    let membership = Membership::establish(&dir, &settings, &clock, &rng).await?;
    let tasks = TaskGroup::new(cancel);
    let net_threads = membership.state.raft_id.map(|_| net_threads()).transpose()?;
    let net = match (&hollow, &net_threads) {
        (Some(hollow), _) => hollow.packets.clone(),
        (None, Some(threads)) => threads.handle().clone(),
        (None, None) => Handle::current(),
    };
    let endpoint = bind(api_at, &membership, &net, &tasks)?;
    let peers = Peers::new(endpoint.clone(), &tasks, rng.clone());
    peers.set_addresses(membership.servers());
    peers.set_servers(membership.servers());
    relay::wake_by_request(&peers, &tasks);
    let node_api = NodeApi::new(clock.clone());
    let metrics = Metrics::new();
    metrics.register(|registry| node_api.register(registry));
    let compiler = compiled::compiler(&settings, &metrics)?;
    let base = Base {
        settings,
        dir,
        clock,
        rng,
        metrics,
        tasks,
        membership,
        endpoint,
        peers,
        node_api,
        pods: Interned::default(),
        compiler,
        net,
        net_threads,
    };
    let server = match base.membership.state.raft_id {
        Some(id) => Some(start_server(&base, id, api_listener).await?),
        None => None,
    };
    let engine = match hollow {
        None => Engine::wasm(&base)?,
        Some(hollow) => Engine::hollow(hollow),
    };
    start_agent(base, server, engine, listeners)
}

fn net_threads() -> Result<Threads, NodeError> {
    Threads::start("edgeorc-net", NET_WORKERS, NET_BLOCKING_THREADS_MAX).map_err(|cause| {
        NodeError::failed(format!(
            "cannot start the threads of Raft and of connections: {cause}. Raise the user's limits of \
             processes and of open files (`ulimit -u`, `ulimit -n`), then start the node again"
        ))
    })
}

/// The endpoint of all connections between nodes.
fn bind(
    address: SocketAddr,
    membership: &Membership,
    threads: &Handle,
    tasks: &TaskGroup,
) -> Result<Endpoint, NodeError> {
    let (identity, config) = (membership.identity.clone(), NetConfig::default());
    Endpoint::bind_on(threads, address, identity, config, tasks).map_err(|cause| match cause {
        BindError::InUse { address } => {
            NodeError::PortInUse { what: "QUIC", address, flag: "--api-port" }
        }
        other => NodeError::failed(other),
    })
}

/// The network, the sandboxes and the agent; then connections are accepted.
fn start_agent(
    base: Base,
    server: Option<Server>,
    engine: Engine,
    listeners: Option<Listeners>,
) -> Result<RunningNode, NodeError> {
    let name = base.settings.node_name.clone();
    let tasks = base.tasks.clone();
    let threads = engine.guests.as_ref().map(|guests| guests.threads.handle().clone());
    let mesh = make_mesh(&base, &engine.network, threads);
    let (servers, known_servers) =
        watch::channel(base.membership.servers().into_keys().collect::<Vec<_>>());
    let client = match &server {
        Some(server) => server.client.clone(),
        None => client::over_quic(base.peers.clone(), known_servers.clone(), base.rng.clone()),
    };
    let agent_client = match &server {
        Some(server) => client::in_process(
            server.router.clone(),
            &format!("system:node:{name}"),
            &["system:nodes"],
        ),
        None => client.clone(),
    };
    let Engine { runtime, network, machine, guests } = engine;
    if let Some(guests) = &guests {
        guests.connect(&mesh, &agent_client);
    }
    let nodes = informer(Api::all(agent_client.clone()), watcher::Config::default(), &tasks);
    let doors = AgentDoors {
        client: agent_client.clone(),
        nodes: nodes.clone(),
        runtime,
        network,
        machine,
    };
    let agent =
        Agent::new(agent_config(&base, server.is_some(), doors)).map_err(NodeError::failed)?;
    if let Some(server) = &server {
        server.api.set_image_verifier(Arc::new(AgentVerifier(agent.signature_verifier())));
    }
    spawn_renewal(&base, &server, agent_client);
    spawn_links(&base, &server, nodes, servers, known_servers);
    if let (Some(listeners), Some(guests)) = (listeners, &guests) {
        listeners.serve(&base, &mesh, &guests.threads);
    }
    let doors = Doors {
        mesh: mesh.clone(),
        peers: base.peers.clone(),
        node_api: base.node_api.router().merge(relay::router(base.peers.clone(), tasks.clone())),
        blobs: base.node_api.blobs(),
        server: server.as_ref().and_then(|server| server_doors(&base, server)),
    };
    let (endpoint, group) = (base.endpoint.clone(), tasks.clone());
    tasks.spawn("quic", |_| dispatch::run(endpoint, doors, group));
    let agent_cancel = CancellationToken::new();
    let agent_tasks = TaskGroup::new(&CancellationToken::new());
    let cancel = agent_cancel.clone();
    agent_tasks.spawn("agent", |_| agent.run(mesh, cancel));
    let replica = server.map(|server| server.replica);
    let guest_threads = guests.map(|guests| guests.threads);
    Ok(RunningNode { client, base, replica, guest_threads, agent_cancel, agent_tasks })
}

fn make_mesh(base: &Base, network: &Arc<VirtualNetwork>, threads: Option<Handle>) -> Mesh {
    let pods = Arc::new(LocalPods::new(Arc::clone(network)));
    let name = &base.settings.node_name;
    let mesh = Mesh::new(MeshConfig {
        threads,
        has_access_log: base.settings.ingress_access_log,
        tracer: Tracer::start(
            base.settings.tracing.clone(),
            TracerTools {
                metrics: base.metrics.clone(),
                tasks: base.tasks.clone(),
                clock: base.clock.clone(),
                rng: base.rng.clone(),
                node_name: name.clone(),
            },
        ),
        peers: Some(base.peers.clone()),
        node_port_ip: Some(base.settings.bind_address),
        ..MeshConfig::new(name, pods, base.tasks.clone(), base.rng.clone())
    });
    base.metrics.register(|registry| mesh.metrics().register(registry));
    base.metrics.register(|registry| base.peers.register(registry));
    mesh
}

fn spawn_renewal(base: &Base, server: &Option<Server>, client: kube::Client) {
    let issuer = match (&base.membership.authority, server) {
        (Some(authority), Some(server)) => {
            Issuer::Own(Arc::clone(authority), server.replica.status())
        }
        _ => Issuer::Server(client),
    };
    let renewal = Renewal {
        identity: base.membership.identity.clone(),
        dir: Arc::clone(&base.dir),
        clock: base.clock.clone(),
        addresses: certified_addresses(&base.settings),
        issuer,
    };
    base.tasks.spawn("certificate-renewal", |cancel| renewal.run(cancel));
}

/// The tasks that know where other nodes are.
fn spawn_links(
    base: &Base,
    server: &Option<Server>,
    nodes: Informer<Node>,
    servers: watch::Sender<Vec<String>>,
    known_servers: watch::Receiver<Vec<String>>,
) {
    let (me, peers, tasks) = (&base.settings.node_name, &base.peers, &base.tasks);
    let (known, remembered) = watch::channel(addresses::Servers::new());
    let directory = Directory {
        me: me.clone(),
        peers: peers.clone(),
        nodes,
        group: server.as_ref().map(|server| server.replica.status()),
        servers,
        known,
    };
    tasks.spawn("directory", |cancel| directory.run(cancel));
    let (dir, state) = (Arc::clone(&base.dir), base.membership.state.clone());
    tasks.spawn("server-memory", |cancel| addresses::remember(dir, state, remembered, cancel));
    let (name, pool) = (me.clone(), peers.clone());
    tasks.spawn("server-links", |cancel| {
        addresses::keep_reachable(known_servers, name, pool, cancel)
    });
}
