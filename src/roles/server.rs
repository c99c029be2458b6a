//! What a node has that is a server: the store, the API over it, and the leader's work.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use edgeorc_raft::{Config, Member, Replica, Role};
use tokio::net::TcpListener;

use crate::apiserver::{self, ApiServer, ApiServerConfig};
use crate::client;
use crate::roles::dispatch::ServerDoors;
use crate::roles::enroll::Admission;
use crate::roles::identity::FIRST_RAFT_ID;
use crate::roles::leader::Leader;
use crate::roles::node::Base;
use crate::roles::plugins::{self, PluginMetrics};
use crate::roles::renewal::{self, Renewals};
use crate::roles::roll::Roll;
use crate::roles::{NodeError, bundle, compiled, kubeconfig};
use crate::store::{PeerTransport, Store};

/// How long the start of a lone server waits for it to lead before it goes on without.
const LEADER_WAIT: Duration = Duration::from_secs(30);
/// Pause between bookmarks of a watch.
const BOOKMARKS: Duration = Duration::from_secs(60);

/// The parts that only a server has.
pub(super) struct Server {
    pub(super) api: ApiServer,
    pub(super) replica: Replica,
    pub(super) router: Router,
    pub(super) client: kube::Client,
}

fn leader_of(
    base: &Base,
    (replica, store): (Replica, Store),
    clients: (kube::Client, kube::Client),
    ca_pem: &str,
) -> Leader {
    let timing = &base.settings.timing;
    Leader {
        replica,
        store,
        clients,
        pods: base.pods.clone(),
        clock: base.clock.clone(),
        rng: base.rng.clone(),
        node_name: base.settings.node_name.clone(),
        ca_pem: ca_pem.to_owned(),
        pod_cidrs: base.settings.pod_cidrs,
        service_cidrs: base.settings.service_cidrs,
        plugins: plugin_tools(base),
        restart_backoff: (timing.restart_backoff_min, timing.restart_backoff_max),
    }
}

/// What the scheduler's plugins are made with.
fn plugin_tools(base: &Base) -> plugins::Tools {
    let metrics = PluginMetrics::default();
    base.metrics.register(|registry| metrics.register(registry));
    let named = base.settings.images.registries_file.clone();
    plugins::Tools {
        registries_file: named.unwrap_or_else(|| base.dir.join("registries.yaml")),
        proxies: base.settings.images.proxies.clone(),
        compiler: base.compiler.clone(),
        folder: base.dir.join("scheduler-plugins"),
        sandboxes: base.settings.sandboxes,
        metrics,
        clock: base.clock.clone(),
        rng: base.rng.clone(),
    }
}

/// The store, the API over it, and the leader's work.
pub(super) async fn start_server(
    base: &Base,
    id: u64,
    listener: TcpListener,
) -> Result<Server, NodeError> {
    let name = base.settings.node_name.clone();
    let me = Member {
        id,
        name: name.clone(),
        address: base.settings.quic_address().to_string(),
        store_uuid: base.membership.state.store_uuid_bytes(),
    };
    let transport = Arc::new(PeerTransport::new(id, base.peers.clone()));
    let config = Config::new(base.dir.join("raft"), me);
    // What opens the replica spawns its tasks, and those are to run there.
    let opened = base.net.spawn(Replica::open(config, transport)).await;
    let replica =
        opened.map_err(NodeError::failed)?.map_err(|cause| NodeError::Store(cause.to_string()))?;
    if base.membership.is_new_cluster || (id == FIRST_RAFT_ID && !replica.is_initialized()) {
        replica.bootstrap().await.map_err(|cause| NodeError::Store(cause.to_string()))?;
    }
    let store = Store::new(replica.clone());
    let follower = store.clone();
    base.tasks.spawn("volatile-tier", |cancel| async move { follower.run(cancel).await });
    let api = ApiServer::new(ApiServerConfig {
        node_name: name,
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
    let clients = (as_user("system:kube-controller-manager"), as_user("system:kube-scheduler"));
    let leader = leader_of(base, (replica.clone(), store), clients, authority.cert_pem());
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
    let (registry, marks) = (api.clone(), base.settings.images.gc_marks);
    base.tasks.spawn("registry-gc", |cancel| async move {
        registry.collect_garbage(marks, cancel).await;
    });
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

/// What a server answers on connections between nodes.
pub(super) fn server_doors(base: &Base, server: &Server) -> Option<ServerDoors> {
    let admission = Admission {
        client: server.client.clone(),
        replica: server.replica.clone(),
        authority: base.membership.authority.clone()?,
        clock: base.clock.clone(),
        swept: parking_lot::Mutex::default(),
    };
    let renewals = renewal::router(Renewals {
        authority: base.membership.authority.clone()?,
        roll: Roll::new(server.client.clone(), base.clock.clone()),
        group: server.replica.status(),
    });
    Some(ServerDoors {
        replica: server.replica.clone(),
        net: base.net.clone(),
        api: server.router.clone().merge(renewals),
        enroller: Arc::new(admission),
    })
}
