//! Inbound QUIC connections, each to the room it is for.

use std::sync::Arc;

use axum::Router;
use edgeorc_raft::Replica;
use tokio::runtime::Handle;

use crate::apiserver;
use crate::mesh::Mesh;
use crate::net::join::{self, Enroller};
use crate::net::{Alpn, Connection, Endpoint, Peers, http};
use crate::roles::blobs;
use crate::rt::TaskGroup;
use crate::store;

/// What a server answers beyond what every node does.
#[derive(Clone)]
pub(super) struct ServerDoors {
    pub(super) replica: Replica,
    /// Where Raft runs.
    pub(super) net: Handle,
    pub(super) api: Router,
    pub(super) enroller: Arc<dyn Enroller>,
}

/// What connections are handed to.
#[derive(Clone)]
pub(super) struct Doors {
    pub(super) mesh: Mesh,
    pub(super) peers: Peers,
    /// The agent's own API, for servers.
    pub(super) node_api: Router,
    /// Blobs of this node's images, for every node.
    pub(super) blobs: Router,
    pub(super) server: Option<ServerDoors>,
}

/// Accepts connections until `tasks` are cancelled.
pub(super) async fn run(endpoint: Endpoint, doors: Doors, tasks: TaskGroup) {
    let token = tasks.token().clone();
    while let Some(Some(conn)) = token.run_until_cancelled(endpoint.accept()).await {
        let (doors, group) = (doors.clone(), tasks.clone());
        if conn.alpn() == Alpn::Mesh {
            // Ends by itself, in order, when the tasks are cancelled.
            tasks.spawn("connection", |_| async move {
                doors.peers.adopt(&conn);
                doors.mesh.serve_peer(conn).await;
            });
            continue;
        }
        let threads = match (conn.alpn(), &doors.server) {
            (Alpn::Raft, Some(server)) => server.net.clone(),
            _ => Handle::current(),
        };
        tasks.spawn_on(&threads, "connection", |cancel| async move {
            let _ = cancel.run_until_cancelled(serve(conn, doors, &group)).await;
        });
    }
}

/// Also for connections that this node dialled: the other side may open streams on them.
async fn serve(conn: Connection, doors: Doors, tasks: &TaskGroup) {
    doors.peers.adopt(&conn);
    match (conn.alpn(), doors.server) {
        (Alpn::Mesh, _) => {}
        (Alpn::Node, server) => {
            serve_node(conn, doors.node_api, server.is_some(), tasks).await;
        }
        (Alpn::Blobs, _) => blobs::serve(conn, doors.blobs, tasks).await,
        (Alpn::Raft, Some(server)) => store::serve_peer(conn, server.replica, tasks).await,
        (Alpn::Api, Some(server)) => apiserver::serve_quic(conn, server.api, tasks).await,
        (Alpn::Join, Some(server)) => join::serve(conn, server.enroller).await,
        (Alpn::Raft | Alpn::Api | Alpn::Join, None) => conn.close("this node is no server"),
        (Alpn::Tunnel, _) => conn.close("tunnels are not carried by QUIC"),
    }
}

/// The agent's API answers servers only: on connections that this node dialled to one, and on those
/// of another server. An agent that dials a server is asked, and may not ask.
async fn serve_node(conn: Connection, node_api: Router, is_server: bool, tasks: &TaskGroup) {
    if conn.peer().is_server() {
        return http::serve(conn, node_api, tasks).await;
    }
    if !is_server {
        return conn.close("this node is no server");
    }
    let peer = conn.peer().node.clone();
    let token = tasks.token().clone();
    // Dropping a stream resets it: who asks is refused at once.
    while let Some(Ok(refused)) = token.run_until_cancelled(conn.accept_bi()).await {
        tracing::debug!(peer, "an agent may not ask this node's agent");
        drop(refused);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::routing::get;

    use super::*;
    use crate::net::pki::NodeClass;
    use crate::net::testing::{authority, endpoint};

    const SOON: Duration = Duration::from_secs(10);

    async fn soon<T>(future: impl Future<Output = T>) -> T {
        tokio::time::timeout(SOON, future).await.expect("in time")
    }

    fn node_api() -> Router {
        Router::new().route("/logs", get(async || "secret"))
    }

    async fn ask(conn: &Connection) -> bool {
        let request = ::http::Request::get("/logs").body(http::empty()).unwrap();
        soon(http::send(conn, request)).await.is_ok_and(|answer| answer.status().is_success())
    }

    #[tokio::test]
    async fn only_servers_ask_an_agent_whoever_dialled() {
        let ca = authority();
        let (agent, of_agent) = endpoint(&ca, "agent", NodeClass::Agent);
        let (server, of_server) = endpoint(&ca, "server", NodeClass::Server);
        let (other, _of_other) = endpoint(&ca, "other", NodeClass::Server);
        let at = server.local_addr().unwrap();
        let dialled = soon(agent.connect(at, Some("server"), Alpn::Node)).await.unwrap();
        let accepted = soon(server.accept()).await.unwrap();
        let (group, conn) = (of_server.clone(), accepted.clone());
        of_server.spawn_until_cancelled("serve", async move {
            serve_node(conn, node_api(), true, &group).await;
        });
        let (group, conn) = (of_agent.clone(), dialled.clone());
        of_agent.spawn_until_cancelled("serve", async move {
            serve_node(conn, node_api(), false, &group).await;
        });
        assert!(!ask(&dialled).await, "an agent read a server's logs");
        assert!(ask(&accepted).await, "the server could not ask the agent");

        let dialled = soon(other.connect(at, Some("server"), Alpn::Node)).await.unwrap();
        let accepted = soon(server.accept()).await.unwrap();
        let group = of_server.clone();
        of_server.spawn_until_cancelled("serve", async move {
            serve_node(accepted, node_api(), true, &group).await;
        });
        assert!(ask(&dialled).await, "another server could not ask");
    }
}
