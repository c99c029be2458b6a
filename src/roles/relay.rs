//! How a node that nobody can dial is reached: a server asks it, on the connection that the node
//! keeps to it, to open a tunnel, and to dial the one who wants it.

use axum::Router;
use axum::extract::{Query, State};
use axum::routing::post;
use http::{Request, StatusCode};
use serde::Deserialize;

use crate::net::{Alpn, Peers, http as net_http};
use crate::rt::TaskGroup;

/// Path of the request, on the agent's API.
const PATH: &str = "/tunnel";

/// What a server asks of a node.
#[derive(Debug, Deserialize)]
struct Ask {
    /// The server that relays.
    server: String,
    /// The node that cannot reach this one. Perhaps this one can reach it.
    wanted_by: String,
}

/// Lets the tunnels of a server call nodes. On an agent it is never used.
pub(super) fn wake_by_request(peers: &Peers, tasks: &TaskGroup) {
    let (pool, tasks) = (peers.clone(), tasks.clone());
    peers.endpoint().tunnels().on_wake(move |node, wanted_by| {
        // Anybody in the cluster can name any node: nothing is kept of one that is not here.
        if !pool.is_connected(node, Alpn::Node) {
            return;
        }
        let Some(conn) = pool.handle(node, Alpn::Node).connection() else { return };
        let server = pool.endpoint().identity().node_name().to_owned();
        // Names of nodes are DNS labels: nothing in them has to be escaped.
        let uri = format!("{PATH}?server={server}&wanted_by={wanted_by}");
        let node = node.to_owned();
        tasks.spawn_until_cancelled("tunnel-wake", async move {
            let Ok(request) = Request::post(uri).body(net_http::empty()) else { return };
            match net_http::send(&conn, request).await {
                Ok(answer) => {
                    tracing::debug!(peer = node, status = %answer.status(), "asked for a tunnel")
                }
                Err(err) => tracing::debug!(peer = node, %err, "cannot ask for a tunnel"),
            }
        });
    });
}

/// The node's side. Only servers are let to the agent's API.
pub(super) fn router(peers: Peers, tasks: TaskGroup) -> Router {
    Router::new().route(PATH, post(open)).with_state((peers, tasks))
}

async fn open(
    State((peers, tasks)): State<(Peers, TaskGroup)>,
    Query(ask): Query<Ask>,
) -> StatusCode {
    if ask.wanted_by != peers.endpoint().identity().node_name() {
        peers.keep(&ask.wanted_by, Alpn::Mesh);
    }
    tasks.spawn_until_cancelled("tunnel-open", async move {
        if let Err(err) = peers.open_tunnel(&ask.server).await {
            tracing::debug!(peer = ask.server, %err, "no tunnel to the server");
        }
    });
    StatusCode::ACCEPTED
}
