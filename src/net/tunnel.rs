//! Tunnels: packets of QUIC on TLS over TCP, between a node and a server, and through the server
//! to other nodes.
//!
//! ```text
//!  node a ══ TLS/TCP 6443 ══ server ══ TLS/TCP 6443 ══ node b      each opened by the node
//!     └──────────── QUIC with mutual TLS, end to end ───────┘
//! ```
//!
//! For nodes that UDP does not reach: it is blocked, or both are behind NAT. The server forwards
//! packets between nodes that have shown it a certificate of the cluster; what is in them is
//! encrypted for the other end. It sees who talks to whom, and how much. A joiner, who has no
//! certificate yet, reaches the server itself and nobody else.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{debug, info};

use crate::net::connection::Alpn;
use crate::net::fabric::{Fabric, Link, Packet, QUEUE_MAX, Way};
use crate::net::identity::{Identity, Peer};
use crate::net::verify;
use crate::rt::TaskGroup;

/// Time to open a tunnel, TLS included.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);
/// A tunnel on which something was sent and nothing came back for so long is dead: what is carried
/// is answered within a round trip.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// A tunnel that carried nothing for so long is closed.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Largest packet: QUIC's own are smaller on any path.
const PACKET_BYTES_MAX: usize = 4096;
/// Longest name of a node.
const NAME_BYTES_MAX: usize = 253;
/// Bytes that are read or written at once.
const BUFFER_BYTES: usize = 32 * 1024;
/// Tunnels that a server keeps open; more are refused.
const LINKS_MAX: usize = 2048;
/// Of these, tunnels of joiners.
const JOINERS_MAX: usize = 32;
/// Pause between two requests to one node to open its tunnel.
const WAKE_PAUSE: Duration = Duration::from_secs(1);
/// Nodes whose last request is remembered.
const WAKES_MAX: usize = 4096;
/// Longest wait for a node to open the tunnel it was asked for.
const WAKE_WAIT: Duration = Duration::from_secs(1);
/// Pause between two looks for it.
const WAKE_LOOK: Duration = Duration::from_millis(25);

/// Asks the node named first to open its tunnel to this server, because the node named second
/// cannot reach it.
type Waker = Arc<dyn Fn(&str, &str) + Send + Sync>;

/// The tunnels of this node: those it opened, and as a server those that others opened. Cheap to
/// clone.
#[derive(Clone)]
pub struct Tunnels(Arc<Inner>);

struct Inner {
    fabric: Fabric,
    identity: Identity,
    tasks: TaskGroup,
    /// One attempt at a time for each server.
    opening: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
    waker: Mutex<Option<Waker>>,
    woken: Mutex<BTreeMap<String, Instant>>,
    joiners: AtomicU64,
    joiners_open: AtomicU64,
    forwarded_bytes: Counter,
}

impl std::fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnels").field("fabric", &self.0.fabric).finish_non_exhaustive()
    }
}

impl Tunnels {
    pub(super) fn new(fabric: Fabric, identity: Identity, tasks: &TaskGroup) -> Self {
        Self(Arc::new(Inner {
            fabric,
            identity,
            tasks: tasks.child(),
            opening: Mutex::default(),
            waker: Mutex::default(),
            woken: Mutex::default(),
            joiners: AtomicU64::new(0),
            joiners_open: AtomicU64::new(0),
            forwarded_bytes: Counter::default(),
        }))
    }

    /// Sets how a node is asked to open its tunnel to this server: `wake(node, wanted_by)`. It must
    /// not block.
    pub fn on_wake(&self, wake: impl Fn(&str, &str) + Send + Sync + 'static) {
        *self.0.waker.lock() = Some(Arc::new(wake));
    }

    /// Opens a tunnel to a server, unless there is one.
    ///
    /// # Errors
    ///
    /// When nobody answers there, or not that server.
    pub async fn open(&self, server: &str, at: SocketAddr) -> io::Result<()> {
        let link = Link::Up(server.to_owned());
        if self.0.fabric.is_open(&link) {
            return Ok(());
        }
        let one = Arc::clone(self.0.opening.lock().entry(server.to_owned()).or_default());
        let _one_at_a_time = one.lock().await;
        if self.0.fabric.is_open(&link) {
            return Ok(());
        }
        let tls = verify::client_config(&self.0.identity, Some(server), Alpn::Tunnel)
            .map_err(io::Error::other)?;
        let stream = dial(at, tls).await?;
        info!(peer = server, "tunnel opened");
        self.spawn(link, stream);
        Ok(())
    }

    /// The address that stands for `node` behind the tunnel to `server`.
    pub(super) fn way_up(&self, server: &str, node: &str) -> Option<SocketAddr> {
        let way = Way { link: Link::Up(server.to_owned()), node: node.to_owned() };
        self.0.fabric.address_of(&way)
    }

    /// The address of a node that has a tunnel to this server, or opens one when asked to.
    pub(super) async fn way_down(&self, node: &str) -> Option<SocketAddr> {
        let link = Link::Down(node.to_owned());
        if !self.0.fabric.is_open(&link) {
            self.wake(node, self.0.fabric.me());
            let opened = async {
                while !self.0.fabric.is_open(&link) {
                    tokio::time::sleep(WAKE_LOOK).await;
                }
            };
            tokio::time::timeout(WAKE_WAIT, opened).await.ok()?;
        }
        self.0.fabric.address_of(&Way { link, node: node.to_owned() })
    }

    /// Serves a tunnel that somebody opened to this server, until it ends. `chain` is what the
    /// client showed in its TLS handshake.
    pub async fn serve<S>(&self, stream: S, chain: Option<&[CertificateDer<'static>]>)
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let peer = chain.and_then(<[_]>::first).and_then(|der| Peer::from_certificate(der).ok());
        if self.0.fabric.links_down() >= LINKS_MAX {
            debug!("too many tunnels, refusing one");
            return;
        }
        let name = match peer {
            Some(peer) if peer.is_node() => peer.node,
            // A person has no business here.
            Some(_) => return,
            None => {
                let limit = u64::try_from(JOINERS_MAX).unwrap_or(u64::MAX);
                if self.0.joiners_open.load(Ordering::Relaxed) >= limit {
                    return;
                }
                // No name of a node has a space in it.
                format!("joiner {}", self.0.joiners.fetch_add(1, Ordering::Relaxed))
            }
        };
        let is_joiner = name.contains(' ');
        if is_joiner {
            self.0.joiners_open.fetch_add(1, Ordering::Relaxed);
        }
        debug!(peer = %name, "tunnel accepted");
        self.run(Link::Down(name), stream).await;
        if is_joiner {
            self.0.joiners_open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Adds what is counted here to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "edgeorc_net_tunnel_forwarded_bytes",
            "Bytes of packets that this server passed on between two other nodes",
            self.0.forwarded_bytes.clone(),
        );
        registry.register(
            "edgeorc_net_tunnel_dropped_packets",
            "Packets dropped because a tunnel was full or gone",
            self.0.fabric.dropped().clone(),
        );
    }

    /// Bytes that were passed on between two other nodes.
    #[must_use]
    pub fn forwarded_bytes(&self) -> u64 {
        self.0.forwarded_bytes.get()
    }

    pub(super) fn spawn<S>(&self, link: Link, stream: S)
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let tunnels = self.clone();
        let (queue, packets) = mpsc::channel(QUEUE_MAX);
        self.0.fabric.open(link.clone(), queue.clone());
        self.0.tasks.spawn_until_cancelled("tunnel", async move {
            tunnels.carry(link, stream, queue, packets).await;
        });
    }

    async fn run<S>(&self, link: Link, stream: S)
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (queue, packets) = mpsc::channel(QUEUE_MAX);
        self.0.fabric.open(link.clone(), queue.clone());
        let carrying = self.carry(link, stream, queue, packets);
        let _ = self.0.tasks.token().run_until_cancelled(carrying).await;
    }

    async fn carry<S>(
        &self,
        link: Link,
        stream: S,
        queue: mpsc::Sender<Packet>,
        packets: mpsc::Receiver<Packet>,
    ) where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (reader, writer) = tokio::io::split(stream);
        let is_answer_due = AtomicBool::new(false);
        let ended = tokio::select! {
            ended = self.read(&link, reader, &is_answer_due) => ended,
            ended = write(writer, packets, &is_answer_due) => ended,
        };
        self.0.fabric.close(&link, &queue);
        debug!(?link, err = ended.err().map(tracing::field::display), "tunnel ended");
    }

    async fn read(
        &self,
        link: &Link,
        mut reader: impl AsyncRead + Unpin,
        is_answer_due: &AtomicBool,
    ) -> io::Result<()> {
        let mut input = BytesMut::with_capacity(BUFFER_BYTES);
        let mut heard = Instant::now();
        loop {
            while let Some(packet) = decode(&mut input)? {
                self.arrived(link, packet);
            }
            input.reserve(BUFFER_BYTES);
            match tokio::time::timeout(SILENCE_MAX, reader.read_buf(&mut input)).await {
                Ok(Ok(0)) => return Ok(()),
                Ok(read) => drop(read?),
                Err(_) if is_answer_due.load(Ordering::Relaxed) || heard.elapsed() > IDLE_MAX => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(_) => continue,
            }
            heard = Instant::now();
            is_answer_due.store(false, Ordering::Relaxed);
        }
    }

    fn arrived(&self, link: &Link, packet: Packet) {
        let from = match link {
            Link::Up(_) => {
                let way = Way { link: link.clone(), node: packet.node };
                return self.0.fabric.receive(&way, packet.payload);
            }
            Link::Down(from) => from,
        };
        let me = self.0.fabric.me();
        if packet.node == me || from.contains(' ') {
            let way = Way { link: link.clone(), node: from.clone() };
            return self.0.fabric.receive(&way, packet.payload);
        }
        let to = Link::Down(packet.node);
        let Link::Down(node) = &to else { return };
        if !self.0.fabric.is_open(&to) {
            return self.wake(node, from);
        }
        let bytes = u64::try_from(packet.payload.len()).unwrap_or(0);
        self.0.forwarded_bytes.inc_by(bytes);
        self.0.fabric.send(&to, Packet { node: from.clone(), payload: packet.payload });
    }

    /// Asks a node to open its tunnel, not too often.
    fn wake(&self, node: &str, wanted_by: &str) {
        let now = Instant::now();
        {
            let mut woken = self.0.woken.lock();
            if woken.len() >= WAKES_MAX {
                woken.retain(|_, at| now.saturating_duration_since(*at) < WAKE_PAUSE);
            }
            let last = woken.get(node).copied();
            let is_due = last.is_none_or(|at| now.saturating_duration_since(at) >= WAKE_PAUSE);
            if !is_due || woken.len() >= WAKES_MAX {
                return;
            }
            woken.insert(node.to_owned(), now);
        }
        let waker = self.0.waker.lock().clone();
        if let Some(wake) = waker {
            wake(node, wanted_by);
        }
    }
}

/// Opens the tunnel of a joiner, and gives the address that stands for the server behind it. It
/// lives until the joiner's endpoint is gone and the server hears no more of it.
pub(super) async fn join(
    fabric: &Fabric,
    at: SocketAddr,
    tls: ClientConfig,
) -> io::Result<SocketAddr> {
    let stream = dial(at, tls).await?;
    let way = Way { link: Link::Up(String::new()), node: String::new() };
    let to = fabric.address_of(&way).ok_or(io::ErrorKind::AddrNotAvailable)?;
    let (queue, packets) = mpsc::channel(QUEUE_MAX);
    fabric.open(way.link.clone(), queue);
    let (mut reader, writer) = tokio::io::split(stream);
    let fabric = fabric.clone();
    let reading = async move {
        let mut input = BytesMut::with_capacity(BUFFER_BYTES);
        loop {
            while let Some(packet) = decode(&mut input)? {
                fabric.receive(&way, packet.payload);
            }
            if reader.read_buf(&mut input).await? == 0 {
                return io::Result::Ok(());
            }
        }
    };
    let carrying = async move {
        let is_answer_due = AtomicBool::new(false);
        let _ = tokio::time::timeout(IDLE_MAX, async {
            tokio::select! {
                ended = reading => ended,
                ended = write(writer, packets, &is_answer_due) => ended,
            }
        })
        .await;
    };
    joining().spawn_until_cancelled("join-tunnel", carrying);
    Ok(to)
}

/// A joiner has no group of tasks yet: its tunnel ends with its timeout.
fn joining() -> TaskGroup {
    TaskGroup::new(&tokio_util::sync::CancellationToken::new())
}

/// Whether TLS agreed that a connection to the API port is a tunnel.
#[must_use]
pub fn is_tunnel(alpn: Option<&[u8]>) -> bool {
    alpn == Some(Alpn::Tunnel.as_bytes())
}

/// TLS to a server's API port, for packets.
pub(super) async fn dial(
    at: SocketAddr,
    tls: ClientConfig,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let opening = async {
        let stream = TcpStream::connect(at).await?;
        stream.set_nodelay(true)?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
        // Checked by key and name in the certificate, not by host name.
        let name = ServerName::IpAddress(at.ip().into());
        connector.connect(name, stream).await
    };
    tokio::time::timeout(OPEN_TIMEOUT, opening).await.map_err(|_| io::ErrorKind::TimedOut)?
}

async fn write(
    mut writer: impl AsyncWrite + Unpin,
    mut packets: mpsc::Receiver<Packet>,
    is_answer_due: &AtomicBool,
) -> io::Result<()> {
    let mut output = BytesMut::with_capacity(BUFFER_BYTES);
    loop {
        let waiting = tokio::time::timeout(IDLE_MAX, packets.recv());
        let Ok(Some(packet)) = waiting.await else { return Ok(()) };
        encode(&packet, &mut output);
        while output.len() < BUFFER_BYTES {
            let Ok(packet) = packets.try_recv() else { break };
            encode(&packet, &mut output);
        }
        is_answer_due.store(true, Ordering::Relaxed);
        // A peer that does not read is cut off: packets that are that old are of no use.
        let writing = async {
            writer.write_all_buf(&mut output).await?;
            writer.flush().await
        };
        tokio::time::timeout(IDLE_MAX, writing).await.map_err(|_| io::ErrorKind::TimedOut)??;
    }
}

/// `u16` bytes of the rest, `u8` bytes of the name, the name, the packet.
fn encode(packet: &Packet, into: &mut BytesMut) {
    let len = packet.payload.len() + packet.node.len() + 1;
    let (Ok(len), Ok(name)) = (u16::try_from(len), u8::try_from(packet.node.len())) else { return };
    into.put_u16(len);
    into.put_u8(name);
    into.put_slice(packet.node.as_bytes());
    into.put_slice(&packet.payload);
}

/// The next packet; `None` when it is not whole yet.
fn decode(input: &mut BytesMut) -> io::Result<Option<Packet>> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let Some(head) = input.first_chunk::<2>() else { return Ok(None) };
    let len = usize::from(u16::from_be_bytes(*head));
    if len == 0 || len > 1 + NAME_BYTES_MAX + PACKET_BYTES_MAX {
        return Err(invalid());
    }
    if input.len() < 2 + len {
        return Ok(None);
    }
    input.advance(2);
    let mut frame: Bytes = input.split_to(len).freeze();
    let name_len = usize::from(frame.get_u8());
    if name_len > frame.len() || name_len > NAME_BYTES_MAX {
        return Err(invalid());
    }
    let name = frame.split_to(name_len);
    let node = std::str::from_utf8(&name).map_err(|_| invalid())?.to_owned();
    Ok(Some(Packet { node, payload: frame }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn packets_survive_the_way_through_a_tunnel_in_any_pieces() {
        let mut wire = BytesMut::new();
        let sent = [("pi-1", &b"one"[..]), ("", b""), ("pi-2", &[7; 1452])];
        for (node, payload) in sent {
            let payload = Bytes::copy_from_slice(payload);
            encode(&Packet { node: node.to_owned(), payload }, &mut wire);
        }
        let (mut input, mut got) = (BytesMut::new(), Vec::new());
        for byte in wire {
            input.put_u8(byte);
            while let Some(packet) = decode(&mut input).unwrap() {
                got.push((packet.node, packet.payload.to_vec()));
            }
        }
        let sent: Vec<_> = sent.iter().map(|(n, p)| ((*n).to_owned(), p.to_vec())).collect();
        assert_eq!(got, sent);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_wait_for_more_than_a_packet(bytes: Vec<u8>) {
            let mut input = BytesMut::from(bytes.as_slice());
            while let Ok(Some(packet)) = decode(&mut input) {
                prop_assert!(packet.payload.len() <= PACKET_BYTES_MAX + NAME_BYTES_MAX);
            }
        }
    }
}
