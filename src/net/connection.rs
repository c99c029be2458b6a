//! One authenticated QUIC connection, and the byte streams on it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::VarInt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::net::identity::Peer;

/// What a connection is for; negotiated in its TLS handshake. See the table in [`crate::net`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alpn {
    /// Raft RPCs between servers.
    Raft,
    /// Kubernetes API.
    Api,
    /// Traffic between pods.
    Mesh,
    /// Kubelet's requests to an agent.
    Node,
    /// Blobs of images, from one agent to another.
    Blobs,
    /// A new node asks for its certificate.
    Join,
}

impl Alpn {
    /// Every protocol.
    pub const ALL: [Self; 6] =
        [Self::Raft, Self::Api, Self::Mesh, Self::Node, Self::Blobs, Self::Join];

    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raft => "edgeorc-raft/1",
            Self::Api => "edgeorc-api/1",
            Self::Mesh => "edgeorc-mesh/1",
            Self::Node => "edgeorc-node/1",
            Self::Blobs => "edgeorc-blobs/1",
            Self::Join => "edgeorc-join/1",
        }
    }

    pub(super) fn as_bytes(self) -> &'static [u8] {
        self.as_str().as_bytes()
    }

    pub(super) fn from_bytes(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|alpn| alpn.as_bytes() == name)
    }

    pub(super) fn listener_must_be_server(self) -> bool {
        !matches!(self, Self::Mesh | Self::Blobs)
    }

    /// Whether `peer` may dial us for this.
    pub(super) fn admits_dialler(self, peer: &Peer) -> bool {
        match self {
            Self::Raft => peer.is_server(),
            Self::Api => peer.is_authenticated(),
            Self::Mesh | Self::Node | Self::Blobs => peer.is_node(),
            Self::Join => true,
        }
    }

    /// Whether the listener opens streams on connections it did not dial.
    pub(super) fn listener_opens_streams(self) -> bool {
        matches!(self, Self::Raft | Self::Mesh | Self::Node)
    }
}

impl fmt::Display for Alpn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The connection has ended: the peer is gone, closed it, or we did. Nothing more comes of it;
/// what was sent may or may not have been read.
#[derive(Debug, Clone, thiserror::Error)]
#[error("connection to {peer} lost: {reason}")]
pub struct ConnectionLost {
    /// Name of the node, or what else is known of the peer.
    pub peer: String,
    /// How it ended.
    pub reason: String,
}

/// Stops and resets of streams that were given up, not finished.
const CODE_CANCELLED: u32 = 1;
/// Connections that were closed on purpose.
const CODE_CLOSED: u32 = 0;

/// An authenticated connection. Cheap to clone; it closes when the last clone and the last
/// [`Stream`] are dropped, or at [`Self::close`].
#[derive(Clone)]
pub struct Connection {
    inner: quinn::Connection,
    peer: Arc<Peer>,
    alpn: Alpn,
    is_dialled: bool,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("peer", &self.peer.node)
            .field("alpn", &self.alpn)
            .field("remote_address", &self.inner.remote_address())
            .finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) fn new(inner: quinn::Connection, peer: Peer, alpn: Alpn, is_dialled: bool) -> Self {
        Self { inner, peer: Arc::new(peer), alpn, is_dialled }
    }

    /// The other end.
    #[must_use]
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// What the connection is for.
    #[must_use]
    pub fn alpn(&self) -> Alpn {
        self.alpn
    }

    /// Whether this side opened the connection.
    #[must_use]
    pub fn is_dialled(&self) -> bool {
        self.is_dialled
    }

    /// Where the peer is now; it may move. To show, not to decide by.
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        self.inner.remote_address()
    }

    /// Opens a stream. The peer sees it once something was written. Waits while the peer has as
    /// many streams open as it allows.
    ///
    /// # Errors
    ///
    /// [`ConnectionLost`]: nothing was sent.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn open_bi(&self) -> Result<Stream, ConnectionLost> {
        let (send, recv) = self.inner.open_bi().await.map_err(|err| self.lost(&err))?;
        Ok(Stream { send, recv, is_finished: false })
    }

    /// Waits for a stream that the peer opens.
    ///
    /// # Errors
    ///
    /// [`ConnectionLost`]: the ordinary end of a serving loop.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn accept_bi(&self) -> Result<Stream, ConnectionLost> {
        let (send, recv) = self.inner.accept_bi().await.map_err(|err| self.lost(&err))?;
        Ok(Stream { send, recv, is_finished: false })
    }

    /// Waits for the end of the connection.
    pub async fn closed(&self) -> ConnectionLost {
        let reason = self.inner.closed().await;
        self.lost(&reason)
    }

    /// Whether the connection has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.inner.close_reason().is_some()
    }

    /// Ends the connection and every stream on it at once.
    pub fn close(&self, reason: &str) {
        self.inner.close(VarInt::from_u32(CODE_CLOSED), reason.as_bytes());
    }

    /// Tells connections of one process apart; never used twice while one of them lives.
    #[must_use]
    pub fn id(&self) -> usize {
        self.inner.stable_id()
    }

    /// Key material that only the two ends of this connection can derive (RFC 5705).
    pub(super) fn export_key(&self, label: &[u8], context: &[u8]) -> Option<[u8; 32]> {
        let mut key = [0; 32];
        self.inner.export_keying_material(&mut key, label, context).ok()?;
        Some(key)
    }

    fn lost(&self, reason: &quinn::ConnectionError) -> ConnectionLost {
        let peer =
            if self.peer.node.is_empty() { self.peer.user.clone() } else { self.peer.node.clone() };
        ConnectionLost { peer, reason: reason.to_string() }
    }
}

/// The peer gave up the stream: found by [`StreamReset::is_cause_of`] in the sources of an error.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the peer reset the stream with code {code}")]
pub struct StreamReset {
    /// As the peer sent it.
    pub code: u64,
}

impl StreamReset {
    /// Whether `err` came of a reset stream while the connection lived.
    #[must_use]
    pub fn is_cause_of(err: &(dyn std::error::Error + 'static)) -> bool {
        let mut next = Some(err);
        while let Some(err) = next {
            if err.is::<Self>() {
                return true;
            }
            // An io::Error hides the error it was made of from `source`.
            let inner = err.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            next = match inner {
                Some(inner) => Some(inner),
                None => err.source(),
            };
        }
        false
    }
}

/// Bytes in both directions.
///
/// `shutdown` ends the sending half in good order. A stream that is dropped before is reset, so the
/// peer can tell a whole message from a broken one.
#[derive(Debug)]
pub struct Stream {
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    is_finished: bool,
}

impl Stream {
    /// Gives the stream up: the peer sees a reset, and its own sending is stopped.
    pub fn reset(mut self) {
        self.cancel();
    }

    /// Lets this stream's data go before (positive) or after (negative) that of others.
    pub fn set_priority(&self, priority: i32) {
        // Fails only on a stream that is closed, whose data needs no order any more.
        let _ = self.send.set_priority(priority);
    }

    fn cancel(&mut self) {
        // Both fail only when the half is closed already, which is what is wanted.
        let _ = self.send.reset(VarInt::from_u32(CODE_CANCELLED));
        let _ = self.recv.stop(VarInt::from_u32(CODE_CANCELLED));
        self.is_finished = true;
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.is_finished {
            self.cancel();
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = std::task::ready!(self.get_mut().recv.poll_read_buf(cx, buf));
        Poll::Ready(result.map_err(|err| match err {
            quinn::ReadError::Reset(code) => io::Error::new(
                io::ErrorKind::ConnectionReset,
                StreamReset { code: code.into_inner() },
            ),
            other => other.into(),
        }))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = std::task::ready!(Pin::new(&mut self.get_mut().send).poll_write(cx, buf));
        Poll::Ready(result.map_err(|err| match err {
            quinn::WriteError::Stopped(code) => io::Error::new(
                io::ErrorKind::ConnectionReset,
                StreamReset { code: code.into_inner() },
            ),
            other => other.into(),
        }))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.is_finished = true;
        // A stream the peer stopped, or that is finished already, is finished all the same.
        let _ = this.send.finish();
        Poll::Ready(Ok(()))
    }
}
