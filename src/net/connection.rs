//! One authenticated QUIC connection, and the byte streams on it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use quinn::VarInt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::net::config::NetConfig;
use crate::net::driver::Home;
use crate::net::fabric;
use crate::net::identity::Peer;

/// An agent hears by its heartbeats, too, that its server is gone; that and one more heartbeat have to
/// fit into the time after which a silent node counts as lost.
const AGENT_API_PATIENCE: u32 = 2;
/// Nobody waits to hear that an agent is gone which a server could ask for logs, and each agent keeps a
/// connection to every server for that.
const NODE_PATIENCE: u32 = 10;

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
    /// Packets of the above through TLS over TCP: never on QUIC itself. See [`crate::net::Tunnels`].
    Tunnel,
}

impl Alpn {
    /// Every protocol on QUIC.
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
            Self::Tunnel => "edgeorc-tunnel/1",
        }
    }

    pub(super) fn as_bytes(self) -> &'static [u8] {
        self.as_str().as_bytes()
    }

    pub(super) fn from_bytes(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|alpn| alpn.as_bytes() == name)
    }

    /// How many times as long as other connections this one may be silent when `dialler` opened it, and
    /// how much less often it is pinged, on a good link: an idle fleet costs what its pings cost.
    #[must_use]
    pub fn patience(self, dialler: &Peer) -> u32 {
        match self {
            Self::Api if !dialler.is_server() => AGENT_API_PATIENCE,
            Self::Node => NODE_PATIENCE,
            _ => 1,
        }
    }

    /// The same for the side that was dialled. A server does not wait to hear that a client has gone, and
    /// a client that is late for once must not have to come again: in a large fleet all would, at once.
    pub(super) fn patience_of_listener(self, dialler: &Peer) -> u32 {
        match self {
            Self::Api => NODE_PATIENCE,
            _ => self.patience(dialler),
        }
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
            Self::Tunnel => false,
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
/// Stops of streams whose sender has answered all it read: what else was sent was not looked at.
const CODE_UNREAD: u32 = 2;
/// Connections that were closed after all that was read was answered, and the answers had arrived.
const CODE_DRAINED: u32 = 3;

/// An authenticated connection. Cheap to clone; it closes when the last clone and the last
/// [`Stream`] are dropped, or at [`Self::close`].
#[derive(Clone)]
pub struct Connection(Arc<Held>);

/// What a connection, its streams and the endpoint's watchdog share.
pub(super) struct Held {
    pub(super) quic: quinn::Connection,
    pub(super) peer: Arc<Peer>,
    pub(super) alpn: Alpn,
    /// See [`Alpn::patience`].
    pub(super) patience: u32,
    is_dialled: bool,
    home: Home,
    stall_max: Duration,
    /// Streams of ours that are open, whoever opened them.
    streams: AtomicUsize,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("peer", &self.0.peer.node)
            .field("alpn", &self.0.alpn)
            .field("remote_address", &self.0.quic.remote_address())
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// A connection that this side dialled (`is_dialled`) or accepted; see [`Alpn::patience`].
    pub(super) fn new(
        quic: quinn::Connection,
        peer: Peer,
        alpn: Alpn,
        (is_dialled, patience): (bool, u32),
        config: &NetConfig,
        home: Home,
    ) -> Self {
        let (peer, streams) = (Arc::new(peer), AtomicUsize::new(0));
        let stall_max = config.stall_max;
        Self(Arc::new(Held { quic, peer, alpn, patience, is_dialled, home, stall_max, streams }))
    }

    pub(super) fn held(&self) -> Weak<Held> {
        Arc::downgrade(&self.0)
    }

    /// The other end.
    #[must_use]
    pub fn peer(&self) -> &Arc<Peer> {
        &self.0.peer
    }

    /// What the connection is for.
    #[must_use]
    pub fn alpn(&self) -> Alpn {
        self.0.alpn
    }

    /// Whether this side opened the connection.
    #[must_use]
    pub fn is_dialled(&self) -> bool {
        self.0.is_dialled
    }

    /// Lets the connection's packets be handled on the threads of those who use its streams. Once.
    pub fn drive_on(&self, threads: &tokio::runtime::Handle) {
        self.0.home.move_to(threads);
    }

    /// Where the peer is now; it may move. To show, not to decide by.
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        self.0.quic.remote_address()
    }

    /// Whether its packets go through a tunnel instead of UDP.
    #[must_use]
    pub fn is_tunnelled(&self) -> bool {
        fabric::is_way(self.remote_address())
    }

    /// Smoothed round trip time.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.0.quic.rtt()
    }

    /// Streams that are open now.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.0.streams.load(Ordering::Relaxed)
    }

    /// Frames of streams that were sent so far: whether any was used.
    pub(super) fn stream_frames_sent(&self) -> u64 {
        self.0.quic.stats().frame_tx.stream
    }

    fn stream(&self, (send, recv): (quinn::SendStream, quinn::RecvStream)) -> Stream {
        self.0.streams.fetch_add(1, Ordering::Relaxed);
        Stream {
            send,
            recv,
            is_finished: false,
            stall: None,
            is_stalled: false,
            is_clean: Arc::default(),
            held: Arc::clone(&self.0),
        }
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
        Ok(self.stream(self.0.quic.open_bi().await.map_err(|err| self.lost(&err))?))
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
        Ok(self.stream(self.0.quic.accept_bi().await.map_err(|err| self.lost(&err))?))
    }

    /// Waits for the end of the connection.
    pub async fn closed(&self) -> ConnectionLost {
        let reason = self.0.quic.closed().await;
        self.lost(&reason)
    }

    /// Whether the connection has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.quic.close_reason().is_some()
    }

    /// Ends the connection and every stream on it at once.
    pub fn close(&self, reason: &str) {
        self.0.quic.close(VarInt::from_u32(CODE_CLOSED), reason.as_bytes());
    }

    /// The same, for an end that has answered all it has read and whose answers have arrived: what the
    /// peer still waits for was not looked at, and it is told so ([`Unread`]).
    pub fn close_drained(&self) {
        self.0.quic.close(VarInt::from_u32(CODE_DRAINED), b"drained");
    }

    /// Tells connections of one process apart; never used twice while one of them lives.
    #[must_use]
    pub fn id(&self) -> usize {
        self.0.quic.stable_id()
    }

    /// Key material that only the two ends of this connection can derive (RFC 5705).
    pub(super) fn export_key(&self, label: &[u8], context: &[u8]) -> Option<[u8; 32]> {
        let mut key = [0; 32];
        self.0.quic.export_keying_material(&mut key, label, context).ok()?;
        Some(key)
    }

    fn lost(&self, reason: &quinn::ConnectionError) -> ConnectionLost {
        let peer = &self.0.peer;
        let peer = if peer.node.is_empty() { peer.user.clone() } else { peer.node.clone() };
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
        has_cause::<Self>(err)
    }
}

/// The peer ended in order and did not look at what it was sent: safe to send again, to another
/// one. Found by [`Unread::is_cause_of`] in the sources of an error.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the peer ended in order and did not look at it")]
pub struct Unread;

impl Unread {
    /// Whether `err` came of a peer that ended in order.
    #[must_use]
    pub fn is_cause_of(err: &(dyn std::error::Error + 'static)) -> bool {
        has_cause::<Self>(err)
    }
}

fn has_cause<E: std::error::Error + 'static>(err: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(err);
    while let Some(err) = next {
        if err.is::<E>() {
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

/// How the end of a stream can be seen to by who has given the stream away.
pub struct StreamEnd {
    is_clean: Arc<AtomicBool>,
    arrived: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl fmt::Debug for StreamEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamEnd").finish_non_exhaustive()
    }
}

impl StreamEnd {
    /// Says, before the stream is dropped, that all that was read of it was answered (or not, the
    /// default): what the peer sends beyond is told to be [`Unread`].
    #[must_use]
    pub fn marker(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_clean)
    }

    /// Waits until the peer has all that was sent on the finished stream, or wants no more of it.
    pub async fn arrived(self) {
        self.arrived.await;
    }
}

/// Bytes in both directions.
///
/// `shutdown` ends the sending half in good order. A stream that is dropped before is reset, so the
/// peer can tell a whole message from a broken one.
///
/// A peer that reads nothing for [`crate::net::NetConfig::stall_max`] while something waits to be
/// sent loses the stream: it must not hold this end's memory and tasks for ever.
pub struct Stream {
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    is_finished: bool,
    /// Runs out when a write has waited too long; kept between waits.
    stall: Option<Pin<Box<Sleep>>>,
    is_stalled: bool,
    /// See [`StreamEnd::marker`].
    is_clean: Arc<AtomicBool>,
    held: Arc<Held>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("id", &self.send.id()).finish_non_exhaustive()
    }
}

impl Stream {
    /// Gives the stream up: the peer sees a reset, and its own sending is stopped.
    pub fn reset(mut self) {
        self.cancel();
    }

    /// To see to the end of the stream when something else owns it by then.
    #[must_use]
    pub fn end(&self) -> StreamEnd {
        let stopped = self.send.stopped();
        let arrived = Box::pin(async move {
            // Stopped, lost or arrived: nothing more is to be waited for.
            let _ = stopped.await;
        });
        StreamEnd { is_clean: Arc::clone(&self.is_clean), arrived }
    }

    /// Lets this stream's data go before (positive) or after (negative) that of others.
    pub fn set_priority(&self, priority: i32) {
        // Fails only on a stream that is closed, whose data needs no order any more.
        let _ = self.send.set_priority(priority);
    }

    /// Whether a write has waited too long by now; wakes the task when it will have.
    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let until = Instant::now() + self.held.stall_max;
        let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if !self.is_stalled {
            self.is_stalled = true;
            stall.as_mut().reset(until);
        }
        stall.as_mut().poll(cx)
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
        } else if self.is_clean.load(Ordering::Relaxed) {
            // Fails only when the peer has ended too.
            let _ = self.recv.stop(VarInt::from_u32(CODE_UNREAD));
        }
        self.held.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

fn is_drained(lost: &quinn::ConnectionError) -> bool {
    matches!(lost, quinn::ConnectionError::ApplicationClosed(close)
        if close.error_code == VarInt::from_u32(CODE_DRAINED))
}

fn unread() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, Unread)
}

fn reset(code: VarInt) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, StreamReset { code: code.into_inner() })
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = std::task::ready!(self.get_mut().recv.poll_read_buf(cx, buf));
        Poll::Ready(result.map_err(|err| match err {
            quinn::ReadError::Reset(code) => reset(code),
            quinn::ReadError::ConnectionLost(lost) if is_drained(&lost) => unread(),
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
        let this = self.get_mut();
        let Poll::Ready(result) = Pin::new(&mut this.send).poll_write(cx, buf) else {
            std::task::ready!(this.poll_stall(cx));
            this.cancel();
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        };
        this.is_stalled = false;
        Poll::Ready(result.map_err(|err| match err {
            quinn::WriteError::Stopped(code) if code == VarInt::from_u32(CODE_UNREAD) => unread(),
            quinn::WriteError::Stopped(code) => reset(code),
            quinn::WriteError::ConnectionLost(lost) if is_drained(&lost) => unread(),
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
