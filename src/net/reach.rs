//! How another node is reached: directly, or through a tunnel, and directly again.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::{Either, select};
use tracing::{debug, info};

use crate::net::connection::{Alpn, Connection};
use crate::net::endpoint::{ConnectError, Effort};
use crate::net::peers::{Peers, Slot};

/// Servers that are tried as relays for one connection.
const RELAYS_MAX: usize = 3;
/// How many times as long as its waiters an attempt itself waits: given up sooner, all that a busy peer has
/// done for it would be for nothing.
const ATTEMPT_LENGTH: u32 = 3;
/// Pause between two looks at a connection that is to be closed when it is unused.
const RETIRE_LOOK: Duration = Duration::from_secs(10);

/// The first of two that succeeds, or the failure of the last.
pub(super) async fn first_ok<T, E>(
    first: impl Future<Output = Result<T, E>> + Unpin,
    second: impl Future<Output = Result<T, E>> + Unpin,
) -> Result<T, E> {
    match select(first, second).await {
        Either::Left((Err(_), other)) => other.await,
        Either::Right((Err(_), other)) => other.await,
        Either::Left((done, _)) | Either::Right((done, _)) => done,
    }
}

impl Peers {
    /// Dials directly, and a little later through a tunnel as well; takes what is there first.
    /// The slot is told at once when the direct way fails: who waits need not wait for the other.
    pub(super) async fn reach(&self, slot: &Slot, strain: u32) -> Result<Connection, ConnectError> {
        let (node, alpn) = (slot.node.as_str(), slot.alpn);
        let config = self.0.endpoint.config();
        let mut direct = std::pin::pin!(self.directly(slot, strain));
        // Where packets got through before, the other end is rather slow than out of reach.
        let was_direct = slot.was_direct.load(Ordering::Acquire);
        let head_start =
            if was_direct { config.handshake_timeout } else { config.tunnel_head_start };
        let mut relayed = std::pin::pin!(async {
            tokio::time::sleep(head_start).await;
            self.through_tunnel(node, alpn).await
        });
        tokio::select! {
            biased;
            conn = &mut direct => match conn {
                Ok(conn) => Ok(conn),
                Err(err) => {
                    slot.failed(err.clone());
                    relayed.await.ok_or(err)
                }
            },
            conn = &mut relayed => match conn {
                Some(conn) => Ok(conn),
                None => direct.await,
            },
        }
    }

    /// One attempt, and a second one beside it when the first got no answer: a node that is back hears the
    /// second soon, and one that is too busy is asked no more than twice for what it has begun.
    async fn directly(&self, slot: &Slot, strain: u32) -> Result<Connection, ConnectError> {
        let node = slot.node.as_str();
        let address = self.known_address(node)?;
        let patience = self.0.endpoint.config().handshake_timeout;
        let effort = Effort { timeout: patience.saturating_mul(ATTEMPT_LENGTH), strain };
        let attempt = || self.0.endpoint.connect_within(address, Some(node), slot.alpn, &effort);
        let mut first = std::pin::pin!(attempt());
        if let Ok(ended) = tokio::time::timeout(patience, &mut first).await {
            return ended;
        }
        let reason = "no answer in time".to_owned();
        slot.failed(ConnectError::Failed { peer: node.to_owned(), address, reason });
        first_ok(first, std::pin::pin!(attempt())).await
    }

    /// A connection whose packets a server carries: the node itself if it is one, else one that
    /// both reach.
    async fn through_tunnel(&self, node: &str, alpn: Alpn) -> Option<Connection> {
        let (endpoint, tunnels) = (&self.0.endpoint, self.0.endpoint.tunnels());
        let me = endpoint.identity().node_name();
        if endpoint.identity().peer().is_server() {
            let way = tunnels.way_down(node).await;
            if let Some(way) = way
                && let Ok(conn) = endpoint.connect(way, Some(node), alpn).await
            {
                return Some(conn);
            }
        }
        let mut servers: Vec<(String, SocketAddr)> = {
            let servers = self.0.servers.read();
            servers.iter().filter(|(name, _)| *name != me).map(|(n, at)| (n.clone(), *at)).collect()
        };
        // Itself first, then those that are known to be there.
        servers.sort_by_key(|(name, _)| {
            (
                name != node,
                !self.is_connected(name, Alpn::Node),
                !self.is_connected(name, Alpn::Api),
            )
        });
        for (server, at) in servers.into_iter().take(RELAYS_MAX) {
            if let Err(err) = tunnels.open(&server, at).await {
                debug!(peer = %server, %err, "no tunnel to the server");
                continue;
            }
            let Some(way) = tunnels.way_up(&server, node) else { continue };
            match endpoint.connect(way, Some(node), alpn).await {
                Ok(conn) => return Some(conn),
                Err(err) => debug!(peer = %node, via = %server, %err, "peer not reached"),
            }
        }
        None
    }

    /// Tries, less and less often, to replace a tunnelled connection; returns when it has been.
    pub(super) async fn find_direct(&self, slot: &Slot, tunnelled: &Connection) {
        if !tunnelled.is_tunnelled() {
            return std::future::pending().await;
        }
        let (mut pause, longest) = self.0.endpoint.config().retry_direct;
        loop {
            tokio::time::sleep(self.jittered(pause)).await;
            pause = pause.saturating_mul(2).min(longest);
            // The peer may have come by itself meanwhile.
            if slot.live().is_some_and(|conn| conn.id() != tunnelled.id()) {
                return;
            }
            let Some(address) = self.address(&slot.node) else { continue };
            let endpoint = &self.0.endpoint;
            if let Ok(conn) = endpoint.connect(address, Some(&slot.node), slot.alpn).await {
                info!(peer = %slot.node, alpn = %slot.alpn, "peer connected directly again");
                return self.use_dialled(slot, conn).await;
            }
        }
    }

    /// Closes a connection that has been replaced once nothing runs on it any more.
    pub(super) fn retire(&self, conn: Connection) {
        self.0.tasks.spawn_until_cancelled("peer-retire", async move {
            loop {
                tokio::time::sleep(RETIRE_LOOK).await;
                if conn.is_closed() || conn.streams() == 0 {
                    return conn.close("replaced");
                }
            }
        });
    }
}
