//! Inbound QUIC connections, each to the room it is for.

use std::sync::Arc;

use axum::Router;
use edgeorc_raft::Replica;

use crate::apiserver;
use crate::mesh::Mesh;
use crate::net::join::{self, Enroller};
use crate::net::{Alpn, Connection, Endpoint, Peers, http};
use crate::rt::TaskGroup;
use crate::store;

/// What a server answers beyond what every node does.
#[derive(Clone)]
pub(super) struct ServerDoors {
    pub(super) replica: Replica,
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
    pub(super) server: Option<ServerDoors>,
}

/// Accepts connections until `tasks` are cancelled.
pub(super) async fn run(endpoint: Endpoint, doors: Doors, tasks: TaskGroup) {
    let token = tasks.token().clone();
    while let Some(Some(conn)) = token.run_until_cancelled(endpoint.accept()).await {
        let (doors, group) = (doors.clone(), tasks.clone());
        tasks.spawn_until_cancelled("connection", async move {
            serve(conn, doors, &group).await;
        });
    }
}

/// Also for connections that this node dialled: the other side may open streams on them.
async fn serve(conn: Connection, doors: Doors, tasks: &TaskGroup) {
    doors.peers.adopt(&conn);
    match (conn.alpn(), doors.server) {
        (Alpn::Mesh, _) => doors.mesh.serve_peer(conn).await,
        // What an agent does for servers it does not do for other agents: they could run commands.
        (Alpn::Node, _) if conn.peer().is_server() => {
            http::serve(conn, doors.node_api, tasks).await;
        }
        // Held for the requests that this side sends on it.
        (Alpn::Node, _) => drop(conn.closed().await),
        (Alpn::Raft, Some(server)) => store::serve_peer(conn, server.replica, tasks).await,
        (Alpn::Api, Some(server)) => apiserver::serve_quic(conn, server.api, tasks).await,
        (Alpn::Join, Some(server)) => join::serve(conn, server.enroller).await,
        (Alpn::Raft | Alpn::Api | Alpn::Join, None) => conn.close("this node is no server"),
    }
}
