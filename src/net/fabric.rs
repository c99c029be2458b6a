//! One socket under QUIC for two kinds of ways: UDP, and tunnels through a server.
//!
//! QUIC sees nothing but addresses. A way through a tunnel has an address that no host has (class
//! E, `240.0.0.0/4`); what is sent there goes into the tunnel, and what comes out of it seems to
//! come from there. So every connection is QUIC with mutual TLS between its two ends, whatever
//! carries its packets, and a server that relays them can neither read nor change them.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use parking_lot::{Mutex, RwLock};
use prometheus_client::metrics::counter::Counter;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::sync::mpsc;

/// Packets out of tunnels that QUIC has not read yet; more are dropped, as on any network.
const INBOUND_MAX: usize = 1024;
/// Packets that wait to go into one tunnel; more are dropped.
pub(super) const QUEUE_MAX: usize = 256;
/// Ways that are remembered: two for each node of the largest cluster, and some for joiners.
const WAYS_MAX: usize = 16_384;
/// First number of the addresses of ways.
const BASE: u32 = 0xf000_0000;
/// Port of all of them: QUIC takes no address without one.
const PORT: u16 = 6443;

/// The other end of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Link {
    /// A server, whose tunnel this node opened.
    Up(String),
    /// A node that opened a tunnel to this server. Joiners have a number instead of a name.
    Down(String),
}

/// A node behind a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Way {
    pub(super) link: Link,
    pub(super) node: String,
}

/// A packet for the other end of a tunnel: where it goes to (up) or comes from (down).
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) node: String,
    pub(super) payload: Bytes,
}

/// What is shared by the socket and the tunnels. Cheap to clone.
#[derive(Clone)]
pub(super) struct Fabric(Arc<Inner>);

struct Inner {
    socket: Arc<dyn AsyncUdpSocket>,
    /// Name of this node: what packets down a tunnel say they are from.
    me: String,
    ways: RwLock<Ways>,
    links: RwLock<BTreeMap<Link, mpsc::Sender<Packet>>>,
    inbound: Mutex<VecDeque<(SocketAddr, Bytes)>>,
    reader: AtomicWaker,
    /// Tunnels and the socket are read in turns.
    is_tunnels_turn: AtomicBool,
    dropped: Counter,
}

#[derive(Default)]
struct Ways {
    addresses: BTreeMap<Way, u32>,
    ways: Vec<Way>,
}

impl fmt::Debug for Fabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fabric").field("me", &self.0.me).finish_non_exhaustive()
    }
}

impl Fabric {
    pub(super) fn new(socket: Arc<dyn AsyncUdpSocket>, me: &str) -> Self {
        Self(Arc::new(Inner {
            socket,
            me: me.to_owned(),
            ways: RwLock::default(),
            links: RwLock::default(),
            inbound: Mutex::default(),
            reader: AtomicWaker::new(),
            is_tunnels_turn: AtomicBool::new(true),
            dropped: Counter::default(),
        }))
    }

    pub(super) fn me(&self) -> &str {
        &self.0.me
    }

    /// The address that stands for a way. `None` when too many are known.
    pub(super) fn address_of(&self, way: &Way) -> Option<SocketAddr> {
        if let Some(at) = self.0.ways.read().addresses.get(way) {
            return Some(address(*at));
        }
        let mut ways = self.0.ways.write();
        if let Some(at) = ways.addresses.get(way) {
            return Some(address(*at));
        }
        if ways.ways.len() >= WAYS_MAX {
            return None;
        }
        let at = u32::try_from(ways.ways.len()).ok()?;
        ways.ways.push(way.clone());
        ways.addresses.insert(way.clone(), at);
        Some(address(at))
    }

    /// Registers the sending half of a tunnel; the newest wins.
    pub(super) fn open(&self, link: Link, queue: mpsc::Sender<Packet>) {
        self.0.links.write().insert(link, queue);
    }

    /// Forgets a tunnel, unless another one has taken its place.
    pub(super) fn close(&self, link: &Link, queue: &mpsc::Sender<Packet>) {
        let mut links = self.0.links.write();
        if links.get(link).is_some_and(|kept| kept.same_channel(queue)) {
            links.remove(link);
        }
    }

    pub(super) fn is_open(&self, link: &Link) -> bool {
        self.0.links.read().get(link).is_some_and(|queue| !queue.is_closed())
    }

    /// Tunnels that other nodes have opened to this one.
    pub(super) fn links_down(&self) -> usize {
        self.0.links.read().keys().filter(|link| matches!(link, Link::Down(_))).count()
    }

    /// Puts a packet into a tunnel. It is dropped when there is none, or it is full.
    pub(super) fn send(&self, link: &Link, packet: Packet) -> bool {
        let links = self.0.links.read();
        let is_sent = links.get(link).is_some_and(|queue| queue.try_send(packet).is_ok());
        if !is_sent {
            self.0.dropped.inc();
        }
        is_sent
    }

    /// Hands a packet that came out of a tunnel to QUIC.
    pub(super) fn receive(&self, way: &Way, payload: Bytes) {
        let Some(from) = self.address_of(way) else { return };
        let mut inbound = self.0.inbound.lock();
        if inbound.len() >= INBOUND_MAX {
            self.0.dropped.inc();
            return;
        }
        inbound.push_back((from, payload));
        drop(inbound);
        self.0.reader.wake();
    }

    /// Packets that were dropped because a queue was full or a tunnel was gone.
    pub(super) fn dropped(&self) -> &Counter {
        &self.0.dropped
    }

    fn way_at(&self, at: SocketAddr) -> Option<Way> {
        let number = number(at)?;
        self.0.ways.read().ways.get(usize::try_from(number).ok()?).cloned()
    }

    /// Sends to a way what QUIC would have sent in one or several datagrams.
    fn transmit(&self, way: &Way, transmit: &Transmit<'_>) {
        let node = match &way.link {
            Link::Up(_) => &way.node,
            Link::Down(_) => &self.0.me,
        };
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for segment in transmit.contents.chunks(size) {
            let payload = Bytes::copy_from_slice(segment);
            self.send(&way.link, Packet { node: node.clone(), payload });
        }
    }

    fn poll_tunnels(&self, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
        let mut inbound = self.0.inbound.lock();
        let mut filled = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta.iter_mut()) {
            let Some((addr, payload)) = inbound.pop_front() else { break };
            let len = payload.len().min(buf.len());
            if let (Some(to), Some(from)) = (buf.get_mut(..len), payload.get(..len)) {
                to.copy_from_slice(from);
            }
            *meta = RecvMeta { addr, len, stride: len.max(1), ..RecvMeta::default() };
            filled += 1;
        }
        filled
    }
}

/// Whether an address stands for a way through a tunnel.
pub(super) fn is_way(at: SocketAddr) -> bool {
    number(at).is_some()
}

fn number(at: SocketAddr) -> Option<u32> {
    match at.ip().to_canonical() {
        IpAddr::V4(ip) if at.port() == PORT => {
            ip.to_bits().checked_sub(BASE).filter(|_| !ip.is_broadcast())
        }
        _ => None,
    }
}

fn address(number: u32) -> SocketAddr {
    (Ipv4Addr::from_bits(BASE.saturating_add(number)), PORT).into()
}

impl AsyncUdpSocket for Fabric {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.0.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match self.way_at(transmit.destination) {
            Some(way) => {
                self.transmit(&way, transmit);
                Ok(())
            }
            // An address of ours that no way has: nobody to send to.
            None if is_way(transmit.destination) => Ok(()),
            None => self.0.socket.try_send(transmit),
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.0.reader.register(cx.waker());
        if self.0.is_tunnels_turn.fetch_xor(true, Ordering::Relaxed) {
            let filled = self.poll_tunnels(bufs, meta);
            if filled > 0 {
                return Poll::Ready(Ok(filled));
            }
            return self.0.socket.poll_recv(cx, bufs, meta);
        }
        let polled = self.0.socket.poll_recv(cx, bufs, meta);
        if polled.is_pending() {
            let filled = self.poll_tunnels(bufs, meta);
            if filled > 0 {
                return Poll::Ready(Ok(filled));
            }
        }
        polled
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.0.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.0.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.0.socket.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_have_addresses_that_no_host_has() {
        for (number_of, text) in [(0, "240.0.0.0:6443"), (70_000, "240.1.17.112:6443")] {
            assert_eq!(address(number_of).to_string(), text);
            assert_eq!(number(address(number_of)), Some(number_of));
        }
        for other in ["10.0.0.1:6443", "240.0.0.1:80", "255.255.255.255:6443", "[::1]:6443"] {
            assert!(!is_way(other.parse().unwrap()), "{other}");
        }
        // On an IPv6 socket QUIC maps them.
        assert!(is_way("[::ffff:240.0.0.7]:6443".parse().unwrap()));
    }
}
