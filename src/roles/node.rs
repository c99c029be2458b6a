//! Starts a node and stops it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use edgeorc_raft::{Config, Member, Replica, Role, Status};
use edgeorc_runtime::{GuestThreads, RuntimeConfig, VirtualNetwork, WasmRuntime};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::runtime::watcher;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::agent::{
    Agent, AgentConfig, Capacity, ClusterKeyValue, CodeCompiler, GuestUplink, ImageGcSettings,
    ImageSettings, LocalPods, NodeApi, ThisMachine,
};
use crate::apiserver::{self, ApiServer, ApiServerConfig};
use crate::client::{self, Informer, informer};
use crate::config::NodeSettings;
use crate::mesh::{DnsConfig, DnsSockets, Mesh, MeshConfig};
use crate::net::{Alpn, Endpoint, NetConfig, Peers};
use crate::roles::addresses::Directory;
use crate::roles::data_dir::DataDir;
use crate::roles::dispatch::{self, Doors, ServerDoors};
use crate::roles::enroll::Admission;
use crate::roles::identity::{FIRST_RAFT_ID, Membership, certified_addresses};
use crate::roles::leader::Leader;
use crate::roles::renewal::{self, Issuer, Renewal, Renewals};
use crate::roles::roll::Roll;
use crate::roles::verify::AgentVerifier;
use crate::roles::{NodeError, addresses, blobs, bundle, compiled, kubeconfig, relay};
use crate::rt::{Rng, TaskGroup, WallClock};
use crate::store::{PeerTransport, Store};
use crate::telemetry::Metrics;
use crate::telemetry::trace::{Tracer, TracerTools};

/// How long the start of a lone server waits for it to lead before it goes on without.
const LEADER_WAIT: Duration = Duration::from_secs(30);
/// How long a stop waits for another server to take the leadership.
const HAND_OVER_WAIT: Duration = Duration::from_secs(2);
/// Pause between bookmarks of a watch.
const BOOKMARKS: Duration = Duration::from_secs(60);

/// What every part of the node shares.
struct Base {
    settings: NodeSettings,
    dir: Arc<DataDir>,
    clock: WallClock,
    rng: Rng,
    metrics: Metrics,
    /// Ends everything but the agent, which ends before.
    tasks: TaskGroup,
    membership: Membership,
    endpoint: Endpoint,
    peers: Peers,
    node_api: NodeApi,
    /// Of the agent, and on a server of the API for all nodes: one child at a time for both.
    compiler: CodeCompiler,
}

/// The parts that only a server has.
struct Server {
    api: ApiServer,
    replica: Replica,
    router: Router,
    client: kube::Client,
}

/// A node that runs.
pub struct RunningNode {
    client: kube::Client,
    base: Base,
    replica: Option<Replica>,
    /// The ingress drains on them, after the agent and its pods have ended.
    guest_threads: GuestThreads,
    agent_cancel: CancellationToken,
    agent_tasks: TaskGroup,
}

impl std::fmt::Debug for RunningNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunningNode")
            .field("name", &self.base.settings.node_name)
            .finish_non_exhaustive()
    }
}

/// Starts the node that `settings` describe. Returns once its parts run.
///
/// # Errors
///
/// [`NodeError`]: one sentence; nothing is left running.
pub async fn start(settings: NodeSettings) -> Result<RunningNode, NodeError> {
    let cancel = CancellationToken::new();
    let started = Box::pin(assemble(settings, &cancel)).await;
    if started.is_err() {
        cancel.cancel();
    }
    started
}

async fn assemble(
    settings: NodeSettings,
    cancel: &CancellationToken,
) -> Result<RunningNode, NodeError> {
    let dir = Arc::new(DataDir::open(&settings.data_dir)?);
    let api_at = SocketAddr::new(settings.bind_address, settings.api_port);
    let ingress_at = SocketAddr::new(settings.bind_address, settings.ingress_port);
    let api_listener = listen("API", "--api-port", api_at).await?;
    let ingress_listener = listen("ingress", "--ingress-port", ingress_at).await?;
    let https = listen_https(&settings).await?;
    let dns = match &settings.dns {
        Some(dns) => Some(listen_dns(dns.bind).await?),
        None => None,
    };
    let (clock, rng) = (WallClock::system(), Rng::from_os());
    let membership = Membership::establish(&dir, &settings, &clock, &rng).await?;
    let tasks = TaskGroup::new(cancel);
    let identity = membership.identity.clone();
    let endpoint = Endpoint::bind(api_at, identity, NetConfig::default(), &tasks).map_err(
        |cause| match cause {
            crate::net::BindError::InUse { address } => {
                NodeError::PortInUse { what: "QUIC", address, flag: "--api-port" }
            }
            other => NodeError::failed(other),
        },
    )?;
    let peers = Peers::new(endpoint.clone(), &tasks, rng.clone());
    peers.set_addresses(membership.servers());
    peers.set_servers(membership.servers());
    relay::wake_by_request(&peers, &tasks);
    let node_api = NodeApi::new(clock.clone());
    let metrics = Metrics::new();
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
        compiler,
    };
    let server = match base.membership.state.raft_id {
        Some(id) => Some(start_server(&base, id, api_listener).await?),
        None => None,
    };
    start_agent(base, server, Listeners { http: ingress_listener, https, dns })
}

/// Where clients from outside come in.
struct Listeners {
    http: TcpListener,
    https: Option<TcpListener>,
    dns: Option<DnsSockets>,
}

/// The port for TLS, unless there is to be none. One that nobody asked for may be in use.
async fn listen_https(settings: &NodeSettings) -> Result<Option<TcpListener>, NodeError> {
    if settings.ingress_https_port == 0 {
        return Ok(None);
    }
    let at = SocketAddr::new(settings.bind_address, settings.ingress_https_port);
    match listen("HTTPS ingress", "--ingress-https-port", at).await {
        Err(err) if !settings.is_https_port_required => {
            tracing::warn!(%err, "no HTTPS at the ingress");
            Ok(None)
        }
        listening => listening.map(Some),
    }
}

async fn listen(
    what: &'static str,
    flag: &'static str,
    address: SocketAddr,
) -> Result<TcpListener, NodeError> {
    TcpListener::bind(address).await.map_err(|cause| NodeError::listen(what, flag, address, cause))
}

/// The port of DNS is one by UDP and by TCP.
async fn listen_dns(at: SocketAddr) -> Result<DnsSockets, NodeError> {
    let tcp = listen("DNS", "--dns-bind", at).await?;
    let udp = UdpSocket::bind(at)
        .await
        .map_err(|cause| NodeError::listen("DNS", "--dns-bind", at, cause))?;
    tracing::info!(address = %at, "the cluster's names are served");
    Ok(DnsSockets { udp, tcp })
}

/// Serves the cluster's names to the host and its network.
fn spawn_dns(base: &Base, mesh: Mesh, sockets: DnsSockets) {
    let settings = &base.settings;
    let config = DnsConfig {
        upstreams: settings.dns.as_ref().map(|dns| dns.upstreams.clone()).unwrap_or_default(),
        service_ranges: settings.service_cidrs.iter().map(ToString::to_string).collect(),
    };
    let rng = base.rng.clone();
    base.tasks.spawn("dns", |_| async move { mesh.serve_dns(sockets, config, rng).await });
}

/// The store, the API over it, and the leader's work.
async fn start_server(base: &Base, id: u64, listener: TcpListener) -> Result<Server, NodeError> {
    let name = base.settings.node_name.clone();
    let me = Member {
        id,
        name: name.clone(),
        address: base.settings.quic_address().to_string(),
        store_uuid: base.membership.state.store_uuid_bytes(),
    };
    let transport = Arc::new(PeerTransport::new(id, base.peers.clone()));
    let config = Config::new(base.dir.join("raft"), me);
    let replica = Replica::open(config, transport)
        .await
        .map_err(|cause| NodeError::Store(cause.to_string()))?;
    if base.membership.is_new_cluster || (id == FIRST_RAFT_ID && !replica.is_initialized()) {
        replica.bootstrap().await.map_err(|cause| NodeError::Store(cause.to_string()))?;
    }
    let store = Store::new(replica.clone());
    let follower = store.clone();
    base.tasks.spawn("volatile-tier", |cancel| async move { follower.run(cancel).await });
    let api = ApiServer::new(ApiServerConfig {
        node_name: name.clone(),
        store: store.clone(),
        peers: Some(base.peers.clone()),
        node_api: Some(base.node_api.router()),
        clock: base.clock.clone(),
        rng: base.rng.clone(),
        metrics: base.metrics.clone(),
        service_cidrs: base.settings.service_cidrs,
        blob_dir: base.dir.join("registry"),
        bookmark_interval: BOOKMARKS,
        cancel: base.tasks.token().clone(),
    });
    let sharing =
        compiled::sharing(&base.dir, &base.membership.identity, &base.compiler, &base.settings);
    let router = api.router().merge(api.compiled(sharing));
    let as_user = |user: &str| client::in_process(router.clone(), user, &["system:masters"]);
    let authority = base
        .membership
        .authority
        .clone()
        .ok_or_else(|| NodeError::Failed("a server without the cluster's CA key".to_owned()))?;
    let leader = Leader {
        replica: replica.clone(),
        store,
        clients: (as_user("system:kube-controller-manager"), as_user("system:kube-scheduler")),
        clock: base.clock.clone(),
        rng: base.rng.clone(),
        node_name: name,
        ca_pem: authority.cert_pem().to_owned(),
        pod_cidrs: base.settings.pod_cidrs,
        service_cidrs: base.settings.service_cidrs,
    };
    let url = format!("https://{}", base.settings.quic_address());
    kubeconfig::write(&base.dir, &authority, &url)?;
    // Only a server that is alone elects itself. Others need the connections that are accepted
    // further down, so nobody may wait for them here.
    if id == FIRST_RAFT_ID && replica.status().borrow().members.len() <= 1 {
        lead_alone(&replica, &leader).await;
    }
    let group = base.tasks.clone();
    base.tasks.spawn("leader", |cancel| leader.run(group, cancel));
    serve_https(base, listener, router.clone())?;
    tracing::info!(url, "the API is ready");
    let client = as_user("edgeorc-admin");
    let (images, loader) = (base.dir.join("images"), client.clone());
    base.tasks.spawn("images-folder", |cancel| async move {
        let _ = cancel.run_until_cancelled(bundle::load_folder(&images, &loader)).await;
    });
    Ok(Server { api, replica, router, client })
}

/// The API for everybody, and tunnels for nodes that UDP does not reach.
fn serve_https(base: &Base, listener: TcpListener, router: Router) -> Result<(), NodeError> {
    let tls = base.membership.identity.https_server_config().map_err(NodeError::failed)?;
    let (tunnels, group) = (base.endpoint.tunnels().clone(), base.tasks.clone());
    base.tasks.spawn("https", |_| async move {
        apiserver::serve_tls(listener, tls, router, tunnels, &group).await;
    });
    Ok(())
}

/// Waits until this server leads, and does what a new cluster needs first.
async fn lead_alone(replica: &Replica, leader: &Leader) {
    let mut status = replica.status();
    let led = status.wait_for(|status| status.role == Role::Leader);
    let _ = tokio::time::timeout(LEADER_WAIT, led).await;
    if replica.status().borrow().role == Role::Leader {
        leader.bootstrap().await;
    }
}

/// The network, the sandboxes and the agent; then connections are accepted.
fn start_agent(
    base: Base,
    server: Option<Server>,
    mut ingress: Listeners,
) -> Result<RunningNode, NodeError> {
    let name = base.settings.node_name.clone();
    let tasks = base.tasks.clone();
    let network = Arc::new(VirtualNetwork::new());
    let uplink = Arc::new(GuestUplink::default());
    let clock = base.clock.clone();
    let keyvalue = Arc::new(ClusterKeyValue::default());
    let mut config = RuntimeConfig::new(Arc::new(move || clock.system_time()));
    config.keyvalue = keyvalue.clone();
    config.address_bits_max = base.settings.sandboxes.address_bits_max;
    config.is_interpreted = base.settings.sandboxes.are_interpreted;
    let runtime = WasmRuntime::new(config, uplink.clone(), network.clone())
        .map_err(|cause| NodeError::Failed(format!("cannot start the Wasm runtime: {cause}")))?;
    tracing::info!(machine = runtime.machine(), "the Wasm runtime is ready");
    let guest_threads = runtime.threads();
    let mesh = make_mesh(&base, &network, &guest_threads);
    uplink.set(mesh.clone());
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
    keyvalue.set(agent_client.clone());
    let nodes = informer(Api::all(agent_client.clone()), watcher::Config::default(), &tasks);
    let doors = AgentDoors { client: agent_client.clone(), nodes: nodes.clone() };
    let agent = Agent::new(agent_config(&base, server.is_some(), doors, runtime, network))
        .map_err(NodeError::failed)?;
    if let Some(server) = &server {
        server.api.set_image_verifier(Arc::new(AgentVerifier(agent.signature_verifier())));
    }
    spawn_renewal(&base, &server, agent_client);
    spawn_links(&base, &server, nodes, servers, known_servers);
    if let Some(sockets) = ingress.dns.take() {
        spawn_dns(&base, mesh.clone(), sockets);
    }
    serve_ingress(&mesh, ingress, &guest_threads, &tasks);
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
    Ok(RunningNode { client, base, replica, guest_threads, agent_cancel, agent_tasks })
}

fn make_mesh(base: &Base, network: &Arc<VirtualNetwork>, guest_threads: &GuestThreads) -> Mesh {
    let pods = Arc::new(LocalPods::new(Arc::clone(network)));
    let name = &base.settings.node_name;
    let mesh = Mesh::new(MeshConfig {
        ingress_threads: Some(guest_threads.handle().clone()),
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

/// The ingress runs on the guests' threads, so that a request to a local pod changes no thread.
fn serve_ingress(
    mesh: &Mesh,
    listeners: Listeners,
    guest_threads: &GuestThreads,
    tasks: &TaskGroup,
) {
    let serving = mesh.clone();
    tasks.spawn_on(guest_threads.handle(), "ingress", |_| async move {
        serving.serve_ingress(listeners.http).await;
    });
    if let Some(https) = listeners.https {
        serve_http3(mesh, &https, guest_threads, tasks);
        let serving = mesh.clone();
        tasks.spawn_on(guest_threads.handle(), "ingress-https", |_| async move {
            serving.serve_ingress_tls(https).await;
        });
    }
}

/// HTTP/3 at the port of HTTPS. Without it clients go on with HTTP/2.
fn serve_http3(mesh: &Mesh, https: &TcpListener, threads: &GuestThreads, tasks: &TaskGroup) {
    let Ok(at) = https.local_addr() else { return };
    let bound = {
        let _threads = threads.handle().enter();
        mesh.bind_http3(at)
    };
    match bound {
        Ok(listener) => {
            let serving = mesh.clone();
            tasks.spawn_on(threads.handle(), "ingress-http3", |_| async move {
                serving.serve_ingress_http3(listener).await;
            });
        }
        Err(err) => tracing::warn!(%err, "no HTTP/3 at the ingress"),
    }
}

/// The agent's ways to the cluster.
struct AgentDoors {
    client: kube::Client,
    nodes: Informer<Node>,
}

/// What the agent is told at start.
fn agent_config(
    base: &Base,
    is_server: bool,
    doors: AgentDoors,
    runtime: WasmRuntime,
    network: Arc<VirtualNetwork>,
) -> AgentConfig {
    let data_dir = base.dir.join("agent");
    AgentConfig {
        machine: Arc::new(ThisMachine::new(&data_dir)),
        eviction: base.settings.eviction.clone(),
        node_name: base.settings.node_name.clone(),
        node_ips: vec![base.settings.advertise_address],
        data_dir,
        static_pods: base.dir.join("pod-manifests"),
        client: doors.client,
        nodes: doors.nodes,
        runtime: Arc::new(runtime),
        network,
        compiler: base.compiler.clone(),
        code_trust: Some(Arc::new(compiled::ServersOnly(base.membership.identity.clone()))),
        peers: Some(Arc::new(blobs::Nodes(base.peers.clone()))),
        images: image_settings(base),
        clock: base.clock.clone(),
        rng: base.rng.clone(),
        is_server,
        labels: std::collections::BTreeMap::new(),
        quic_address: Some(base.settings.quic_address()),
        ingress_address: Some(base.settings.ingress_address()),
        capacity: Capacity { pods: base.settings.max_pods, ..Capacity::default() },
        restart: crate::agent::RestartBackoff {
            min: base.settings.timing.restart_backoff_min,
            max: base.settings.timing.restart_backoff_max,
        },
        shutdown_grace: base.settings.timing.shutdown_grace,
        node_api: base.node_api.clone(),
        host_paths: base.settings.host_paths.clone(),
    }
}

/// Where images come from and when they go, from the node's settings.
fn image_settings(base: &Base) -> ImageSettings {
    let flags = &base.settings.images;
    let named = flags.registries_file.clone();
    ImageSettings {
        registries_file: Some(named.unwrap_or_else(|| base.dir.join("registries.yaml"))),
        proxies: flags.proxies.clone(),
        gc: ImageGcSettings {
            high_threshold_percent: flags.gc_high_threshold_percent,
            low_threshold_percent: flags.gc_low_threshold_percent,
            ..ImageGcSettings::default()
        },
        ..ImageSettings::default()
    }
}

fn server_doors(base: &Base, server: &Server) -> Option<ServerDoors> {
    let admission = Admission {
        client: server.client.clone(),
        replica: server.replica.clone(),
        authority: base.membership.authority.clone()?,
        clock: base.clock.clone(),
    };
    let renewals = renewal::router(Renewals {
        authority: base.membership.authority.clone()?,
        roll: Roll::new(server.client.clone()),
        group: server.replica.status(),
    });
    Some(ServerDoors {
        replica: server.replica.clone(),
        api: server.router.clone().merge(renewals),
        enroller: Arc::new(admission),
    })
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

impl RunningNode {
    /// A client with all rights, in this process on a server.
    #[must_use]
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// Resolves when the node can no longer go on: its store has failed.
    pub async fn ended(&mut self) {
        match &self.replica {
            Some(replica) => {
                let mut status = replica.status();
                let _ = status.wait_for(|status| status.role == Role::Stopped).await;
                tracing::error!("the store has stopped, ending the node");
            }
            None => std::future::pending().await,
        }
    }

    /// Stops everything, in the reverse order of the start.
    ///
    /// # Errors
    ///
    /// [`NodeError`] when the store had failed before.
    pub async fn stop(self) -> Result<(), NodeError> {
        let grace = self.base.settings.timing.shutdown_grace;
        let me = &self.base.settings.node_name;
        let has_failed = self
            .replica
            .as_ref()
            .is_some_and(|replica| replica.status().borrow().role == Role::Stopped);
        let peers = &self.base.peers;
        let is_alive = |name: &str| peers.is_connected(name, Alpn::Raft);
        if let Some(replica) = self.replica.as_ref().filter(|_| !has_failed) {
            let handing_over = Leader::hand_over(replica, is_alive);
            if !matches!(tokio::time::timeout(HAND_OVER_WAIT, handing_over).await, Ok(Ok(()))) {
                tracing::info!("no other server took the leadership in time");
            }
        }
        // What waits for a quorum that is gone is told so now, or the stop would wait with it.
        let cut_off = self
            .replica
            .as_ref()
            .filter(|replica| !has_failed && !can_write(&replica.status().borrow(), me, is_alive));
        if let Some(replica) = cut_off {
            tracing::info!("the other servers are gone, closing the store first");
            replica.shutdown().await;
        }
        let is_store_closed = cut_off.is_some();
        self.agent_cancel.cancel();
        self.agent_tasks.shutdown(grace).await;
        self.base.tasks.shutdown(grace).await;
        drop(self.guest_threads);
        if let Some(replica) = self.replica.as_ref().filter(|_| !is_store_closed) {
            replica.shutdown().await;
        }
        self.base.endpoint.close().await;
        if has_failed {
            let message = "the store failed; the log says why. Free disk space or replace the disk, then start the node again";
            return Err(NodeError::Store(message.to_owned()));
        }
        Ok(())
    }
}

/// Whether a write could still succeed, by who is connected: the group itself learns of a loss only
/// when its timers run out.
fn can_write(status: &Status, me: &str, is_alive: impl Fn(&str) -> bool) -> bool {
    let is_here = |name: &str| name == me || is_alive(name);
    let name = |id| status.members.get(id).map(|member| member.name.as_str());
    let voters = status.voters.iter().filter(|id| name(id).is_some_and(is_here));
    let has_majority = voters.count() * 2 > status.voters.len();
    let leader = status.leader.as_ref().and_then(name);
    has_majority && status.role != Role::Stopped && leader.is_some_and(is_here)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_server_of_a_group_waits_for_no_write() {
        let member = |id: u64| (id, Member { id, name: id.to_string(), ..Member::default() });
        let status = |leader: Option<u64>, role| Status {
            role,
            leader,
            voters: vec![1, 2, 3],
            members: (1..=3).map(member).collect(),
            ..Status::default()
        };
        let leads = status(Some(3), Role::Leader);
        assert!(can_write(&leads, "3", |name| name == "1"));
        assert!(!can_write(&leads, "3", |_| false));
        assert!(!can_write(&status(Some(2), Role::Follower), "3", |name| name == "1"));
        assert!(can_write(&status(Some(2), Role::Follower), "3", |name| name == "2"));
        assert!(!can_write(&status(None, Role::Candidate), "3", |_| true));
        let alone = Status { voters: vec![3], ..status(Some(3), Role::Leader) };
        assert!(can_write(&alone, "3", |_| false));
    }
}
