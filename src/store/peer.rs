//! Raft's frames between servers, over QUIC: one stream per call.

use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use edgeorc_raft::{Member, NodeId, Replica, Transport, TransportError};
use tokio::io::AsyncWriteExt as _;

use crate::net::frame::{self, FrameError, Kind};
use crate::net::{Alpn, Connection, Peers, Stream};
use crate::rt::TaskGroup;

/// Version of the frames' bodies: the caller's id, then the replica's own envelope.
const VERSION: u16 = 1;
/// Raft goes before everything else on a connection.
const PRIORITY: i32 = 10;
/// Longest time the answering side works on one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Carries the replica's calls over the connections between servers.
#[derive(Debug, Clone)]
pub struct PeerTransport {
    me: NodeId,
    peers: Peers,
}

impl PeerTransport {
    /// For the replica with id `me`.
    #[must_use]
    pub fn new(me: NodeId, peers: Peers) -> Self {
        Self { me, peers }
    }
}

#[async_trait]
impl Transport for PeerTransport {
    async fn call(
        &self,
        peer: &Member,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, TransportError> {
        let name = || peer.name.clone();
        let unreachable = |reason: String| TransportError::Unreachable { peer: name(), reason };
        let lost = |reason: String| TransportError::Lost { peer: name(), reason };
        // A member's address may be news to the pool: this replica may not have applied it yet.
        if let Ok(address) = peer.address.parse() {
            self.peers.set_address(&peer.name, address);
        }
        let open = async {
            let conn = self.peers.get(&peer.name, Alpn::Raft).await.map_err(|e| e.to_string())?;
            conn.open_bi().await.map_err(|e| e.to_string())
        };
        let started = tokio::time::Instant::now();
        let mut stream = tokio::time::timeout(deadline, open)
            .await
            .map_err(|_| unreachable("no connection in time".to_owned()))?
            .map_err(unreachable)?;
        let left = deadline.saturating_sub(started.elapsed());
        match tokio::time::timeout(left, exchange(&mut stream, self.me, &request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(lost(error.to_string())),
            Err(_) => Err(lost("no answer in time".to_owned())),
        }
    }
}

async fn exchange(stream: &mut Stream, me: NodeId, request: &[u8]) -> Result<Bytes, FrameError> {
    stream.set_priority(PRIORITY);
    let mut body = BytesMut::with_capacity(size_of::<NodeId>() + request.len());
    body.put_u64(me);
    body.extend_from_slice(request);
    frame::write_frame(stream, Kind::RAFT_REQUEST, VERSION, &body).await?;
    stream.shutdown().await?;
    Ok(frame::read_frame(stream, &[Kind::RAFT_RESPONSE]).await?.body)
}

/// Answers the calls of one server until the connection ends.
pub async fn serve_peer(conn: Connection, replica: Replica, tasks: &TaskGroup) {
    let token = tasks.token().clone();
    while let Some(Ok(stream)) = token.run_until_cancelled(conn.accept_bi()).await {
        let replica = replica.clone();
        let peer = conn.peer().node.clone();
        tasks.spawn_until_cancelled("raft-call", async move {
            let answer = answer(stream, &replica, &peer);
            match tokio::time::timeout(CALL_TIMEOUT, answer).await {
                Ok(Ok(())) => {}
                Ok(Err(err)) => tracing::debug!(peer, %err, "raft call failed"),
                Err(_) => tracing::debug!(peer, "raft call took too long"),
            }
        });
    }
}

async fn answer(mut stream: Stream, replica: &Replica, peer: &str) -> Result<(), FrameError> {
    stream.set_priority(PRIORITY);
    let mut request = frame::read_frame(&mut stream, &[Kind::RAFT_REQUEST]).await?.body;
    if request.len() < size_of::<NodeId>() {
        return Ok(());
    }
    let from = request.get_u64();
    // The id is the caller's word, its name the certificate's: they must belong together.
    let is_liar = {
        let status = replica.status();
        let status = status.borrow();
        status.members.get(&from).is_some_and(|member| member.name != peer)
    };
    if is_liar {
        tracing::warn!(peer, raft.id = from, "a server used the id of another");
        return Ok(());
    }
    let answer = replica.handle(from, request).await;
    frame::write_frame(&mut stream, Kind::RAFT_RESPONSE, VERSION, &answer).await?;
    stream.shutdown().await?;
    Ok(())
}
