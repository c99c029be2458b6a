//! UDP sockets of guests: what waits for them, and the flows that bring and take datagrams.
//!
//! A datagram within the pod goes straight into the other socket's queue. Everything else is part
//! of a flow, which joins one socket with one address elsewhere: the guest's first datagram to that
//! address opens it, or the mesh brings one from another pod or node. Answers go back on the flow
//! on which the question came, so that a client of a Service sees answers from the Service.
//!
//! # Invariants
//!
//! - A socket's queue, a flow and all of a pod's datagrams together are bounded, in number and in
//!   bytes. What arrives beyond that is dropped.
//! - A flow ends with its socket, with its pod, and when nothing passed for [`FLOW_IDLE_MAX`].

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::pod::PodNet;
use super::ports::{BindError, Binding, Listener};
use crate::types::Datagrams;

/// Largest payload of a datagram: what IPv4 leaves of 64 KiB.
pub(crate) const DATAGRAM_BYTES_MAX: usize = 65_507;
/// Datagrams that one socket holds for its guest.
const INBOX_DATAGRAMS_MAX: usize = 256;
/// Bytes that one socket holds for its guest, whatever receive buffer it asks for.
const INBOX_BYTES_MAX: usize = 1 << 20;
/// Bytes of all datagrams of a pod that are on their way or wait, each counted with
/// [`DATAGRAM_COST`].
const POD_BYTES_MAX: usize = 8 << 20;
/// What a datagram costs beside its payload, in bytes.
const DATAGRAM_COST: usize = 128;
/// Flows of one socket; beyond, the one that was used least recently ends.
const FLOWS_PER_SOCKET_MAX: usize = 256;
/// Flows that the guests of one pod have opened.
const FLOWS_PER_POD_MAX: usize = 1024;
/// How long a flow lasts on which nothing passes: as long as Linux tracks a UDP stream.
pub(crate) const FLOW_IDLE_MAX: Duration = Duration::from_secs(120);

/// What a pod's datagrams and flows may take.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    bytes: Arc<AtomicUsize>,
    flows: Arc<AtomicUsize>,
}

/// A part of a budget, given back when dropped.
#[derive(Debug)]
struct Part {
    of: Arc<AtomicUsize>,
    amount: usize,
}

impl Part {
    fn take(of: &Arc<AtomicUsize>, amount: usize, max: usize) -> Option<Self> {
        // Dropping the part takes the count back.
        let part = Self { of: Arc::clone(of), amount };
        (of.fetch_add(amount, Ordering::Relaxed) + amount <= max).then_some(part)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.of.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

/// A payload that counts for as long as anybody holds it.
struct Held {
    data: Bytes,
    _part: Part,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Budget {
    /// Counts a payload; `None` when too much is on its way already.
    fn hold(&self, data: Bytes) -> Option<Bytes> {
        let part = Part::take(&self.bytes, data.len() + DATAGRAM_COST, POD_BYTES_MAX)?;
        Some(Bytes::from_owner(Held { data, _part: part }))
    }
}

/// A datagram that has arrived.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) data: Bytes,
    pub(crate) from: SocketAddr,
}

/// What the network said of a datagram that a connected socket sent. Told once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused(pub(crate) io::ErrorKind);

/// What waits for a guest.
#[derive(Debug)]
struct Inbox {
    queue: VecDeque<Arrived>,
    bytes: usize,
    bytes_max: usize,
    /// The only address from which datagrams are taken.
    peer: Option<SocketAddr>,
    refused: Option<Refused>,
}

/// The network's side of a bound UDP socket.
#[derive(Debug)]
pub(crate) struct Endpoint {
    inbox: Mutex<Inbox>,
    arrived: Notify,
    flows: Mutex<BTreeMap<SocketAddr, Arc<Flow>>>,
    /// Cancelled when the guest has let go of the socket.
    closed: CancellationToken,
}

/// The way to one address elsewhere.
#[derive(Debug)]
struct Flow {
    out: mpsc::Sender<Bytes>,
    used: Mutex<Instant>,
    /// It was brought by the mesh.
    is_inbound: bool,
    /// Cancelled when it must give way to others.
    evicted: CancellationToken,
    _part: Option<Part>,
}

impl Flow {
    fn new(out: mpsc::Sender<Bytes>, is_inbound: bool, part: Option<Part>) -> Arc<Self> {
        let (used, evicted) = (Mutex::new(Instant::now()), CancellationToken::new());
        Arc::new(Self { out, used, is_inbound, evicted, _part: part })
    }

    fn touch(&self) {
        *self.used.lock() = Instant::now();
    }

    /// Ends when nothing has passed for long.
    async fn idle(&self) {
        loop {
            let until = *self.used.lock() + FLOW_IDLE_MAX;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

impl Endpoint {
    fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            inbox: Mutex::new(Inbox {
                queue: VecDeque::new(),
                bytes: 0,
                bytes_max: bytes_max.min(INBOX_BYTES_MAX),
                peer: None,
                refused: None,
            }),
            arrived: Notify::new(),
            flows: Mutex::default(),
            closed: CancellationToken::new(),
        })
    }

    /// Queues a datagram, or drops it: if there is no room, or it is from the wrong address.
    fn deliver(&self, net: &PodNet, from: SocketAddr, data: Bytes) {
        {
            let mut inbox = self.inbox.lock();
            let has_room = inbox.queue.len() < INBOX_DATAGRAMS_MAX
                && inbox.bytes + data.len() <= inbox.bytes_max.max(DATAGRAM_BYTES_MAX);
            if !has_room || inbox.peer.is_some_and(|peer| peer != from) {
                return;
            }
            let Some(data) = net.budget.hold(data) else { return };
            inbox.bytes += data.len();
            inbox.queue.push_back(Arrived { data, from });
        }
        self.arrived.notify_waiters();
    }

    /// Tells a connected socket why its datagrams do not arrive.
    fn refuse(&self, to: SocketAddr, kind: io::ErrorKind) {
        let mut inbox = self.inbox.lock();
        if inbox.peer == Some(to) {
            inbox.refused = Some(Refused(kind));
            drop(inbox);
            self.arrived.notify_waiters();
        }
    }

    fn forget(&self, at: SocketAddr, flow: &Arc<Flow>) {
        let mut flows = self.flows.lock();
        if flows.get(&at).is_some_and(|known| Arc::ptr_eq(known, flow)) {
            flows.remove(&at);
        }
    }

    /// A flow that may still be used.
    fn flow(&self, to: SocketAddr) -> Option<Arc<Flow>> {
        let mut flows = self.flows.lock();
        let flow = flows.get(&to)?;
        if flow.out.is_closed() {
            flows.remove(&to);
            return None;
        }
        Some(Arc::clone(flow))
    }

    /// Keeps a flow; beyond the limit, the one that was used least recently goes.
    fn keep(&self, at: SocketAddr, flow: &Arc<Flow>) {
        let mut flows = self.flows.lock();
        if flows.len() >= FLOWS_PER_SOCKET_MAX {
            let oldest = flows.iter().min_by_key(|(_, flow)| *flow.used.lock());
            if let Some(oldest) = oldest.map(|(at, _)| *at)
                && let Some(flow) = flows.remove(&oldest)
            {
                flow.evicted.cancel();
            }
        }
        flows.insert(at, Arc::clone(flow));
    }
}

/// Why a datagram was not sent.
#[derive(Debug)]
pub(crate) enum SendError {
    /// The flow is full. Wait for room with [`mpsc::Sender::reserve`], then send again.
    Full(mpsc::Sender<Bytes>),
    /// A socket at a loopback address reaches nothing else.
    Unreachable,
}

/// A UDP socket that is bound. Its port is free again when it is dropped.
#[derive(Debug)]
pub(crate) struct DatagramSocket {
    net: Arc<PodNet>,
    binding: Binding,
    endpoint: Arc<Endpoint>,
    _closes: DropGuard,
}

impl DatagramSocket {
    /// Binds a port of the pod; 0 is any free one.
    pub(crate) fn bind(
        net: &Arc<PodNet>,
        at: SocketAddr,
        bytes_max: usize,
    ) -> Result<Arc<Self>, BindError> {
        let binding = net.udp_ports().bind(at)?;
        let endpoint = Endpoint::new(bytes_max);
        binding.listen(Some(Listener::Udp(Arc::clone(&endpoint))));
        let closes = endpoint.closed.clone().drop_guard();
        Ok(Arc::new(Self { net: Arc::clone(net), binding, endpoint, _closes: closes }))
    }

    /// Where it is bound.
    pub(crate) fn address(&self) -> SocketAddr {
        self.binding.address()
    }

    /// Its address as a peer at `to` sees it.
    pub(crate) fn address_towards(&self, to: SocketAddr) -> SocketAddr {
        let at = self.binding.address();
        let ip = if at.ip().is_unspecified() { self.net.source_ip(to.ip()) } else { at.ip() };
        SocketAddr::new(ip, at.port())
    }

    /// Takes datagrams from this address only, or from every one. Those of others that wait are
    /// dropped.
    pub(crate) fn set_peer(&self, peer: Option<SocketAddr>) {
        let mut inbox = self.endpoint.inbox.lock();
        inbox.peer = peer;
        inbox.refused = None;
        if let Some(peer) = peer {
            inbox.queue.retain(|arrived| arrived.from == peer);
            inbox.bytes = inbox.queue.iter().map(|arrived| arrived.data.len()).sum();
        }
    }

    /// Sets how many bytes may wait.
    pub(crate) fn set_bytes_max(&self, bytes: usize) {
        self.endpoint.inbox.lock().bytes_max = bytes.min(INBOX_BYTES_MAX);
    }

    /// The next datagram, if one waits.
    pub(crate) fn try_receive(&self) -> Option<Result<Arrived, Refused>> {
        let mut inbox = self.endpoint.inbox.lock();
        if let Some(refused) = inbox.refused.take() {
            return Some(Err(refused));
        }
        let arrived = inbox.queue.pop_front()?;
        inbox.bytes -= arrived.data.len();
        Some(Ok(arrived))
    }

    /// Waits until there is something to receive.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn readable(&self) {
        loop {
            let arrived = self.endpoint.arrived.notified();
            {
                let inbox = self.endpoint.inbox.lock();
                if !inbox.queue.is_empty() || inbox.refused.is_some() {
                    return;
                }
            }
            arrived.await;
        }
    }

    /// Waits for the next datagram.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing is lost.
    pub(crate) async fn receive(&self) -> Result<Arrived, Refused> {
        loop {
            if let Some(received) = self.try_receive() {
                return received;
            }
            self.readable().await;
        }
    }

    /// Sends a datagram, as far as that can be said of one: to a socket of this pod at once, to
    /// all else on a flow.
    pub(crate) fn try_send(&self, to: SocketAddr, data: &[u8]) -> Result<(), SendError> {
        let from = self.address_towards(to);
        if let Some(flow) = self.endpoint.flow(to) {
            flow.touch();
            return self.put(&flow, data);
        }
        if self.net.is_own(to.ip()) {
            match self.net.udp_ports().listener(to) {
                Some(Listener::Udp(other)) => {
                    other.deliver(&self.net, from, Bytes::copy_from_slice(data));
                }
                _ => self.endpoint.refuse(to, io::ErrorKind::ConnectionRefused),
            }
            return Ok(());
        }
        if from.ip().is_loopback() {
            return Err(SendError::Unreachable);
        }
        match self.open(from, to) {
            Some(flow) => self.put(&flow, data),
            // Too many flows: a datagram may be lost.
            None => Ok(()),
        }
    }

    /// As [`DatagramSocket::try_send`]; waits while the flow is full.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the datagram was sent or it was not.
    pub(crate) async fn send(&self, to: SocketAddr, data: &[u8]) -> Result<(), SendError> {
        loop {
            match self.try_send(to, data) {
                // An error says that the flow has ended; the next turn opens another one.
                Err(SendError::Full(flow)) => drop(flow.reserve().await),
                done => return done,
            }
        }
    }

    fn put(&self, flow: &Flow, data: &[u8]) -> Result<(), SendError> {
        if flow.out.capacity() == 0 && !flow.out.is_closed() {
            return Err(SendError::Full(flow.out.clone()));
        }
        if let Some(data) = self.net.budget.hold(Bytes::copy_from_slice(data)) {
            // It ended this moment, or another thread was faster: a datagram may be lost.
            let _ = flow.out.try_send(data);
        }
        Ok(())
    }

    fn open(&self, from: SocketAddr, to: SocketAddr) -> Option<Arc<Flow>> {
        let part = Part::take(&self.net.budget.flows, 1, FLOWS_PER_POD_MAX)?;
        let (near, far) = Datagrams::pair();
        let flow = Flow::new(near.tx, false, Some(part));
        self.endpoint.keep(to, &flow);
        let (net, endpoint) = (Arc::clone(&self.net), Arc::clone(&self.endpoint));
        let carried = Arc::clone(&flow);
        // Ends with the socket, with the pod, or when the flow is idle.
        drop(self.net.guests().spawn(async move {
            carry(&net, &endpoint, (from, to), &carried, (far, near.rx)).await;
            endpoint.forget(to, &carried);
        }));
        Some(flow)
    }
}

/// Carries a flow that a guest has opened.
async fn carry(
    net: &Arc<PodNet>,
    endpoint: &Endpoint,
    (from, to): (SocketAddr, SocketAddr),
    flow: &Flow,
    (far, mut answers): (Datagrams, mpsc::Receiver<Bytes>),
) {
    let carrying = net.uplink.datagrams(net.id(), from, to, far);
    let receiving = async {
        while let Some(data) = answers.recv().await {
            flow.touch();
            endpoint.deliver(net, to, data);
        }
        std::future::pending::<()>().await;
    };
    let carried = tokio::select! {
        carried = carrying => carried,
        () = receiving => Ok(()),
        () = flow.idle() => Ok(()),
        () = flow.evicted.cancelled() => Ok(()),
        () = endpoint.closed.cancelled() => Ok(()),
        () = net.over.cancelled() => Ok(()),
    };
    while let Ok(data) = answers.try_recv() {
        endpoint.deliver(net, to, data);
    }
    if let Err(error) = carried {
        endpoint.refuse(to, error.kind());
    }
}

impl PodNet {
    /// Takes a flow that the mesh brings for a socket of this pod, until one side lets go of it.
    pub(super) async fn receive(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        flow: Datagrams,
    ) -> io::Result<()> {
        let Some(Listener::Udp(endpoint)) = self.udp_ports().listener(to) else {
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        let Datagrams { tx, mut rx } = flow;
        let known = endpoint.flow(from);
        let peer = match &known {
            // Another client behind the same address, or the same one by another way: answers
            // must be told apart.
            Some(known) if known.is_inbound => {
                SocketAddr::new(from.ip(), self.udp_ports().ephemeral())
            }
            _ => from,
        };
        let flow = Flow::new(tx, true, None);
        // If the guest has opened a flow to this very address, answers go there.
        if known.is_none_or(|known| known.is_inbound) {
            endpoint.keep(peer, &flow);
        }
        let delivering = async {
            while let Some(data) = rx.recv().await {
                flow.touch();
                endpoint.deliver(self, peer, data);
            }
        };
        tokio::select! {
            () = delivering => {}
            () = flow.evicted.cancelled() => {}
            () = endpoint.closed.cancelled() => {}
            () = self.over.cancelled() => {}
        }
        endpoint.forget(peer, &flow);
        Ok(())
    }
}

#[cfg(test)]
#[path = "datagrams_test.rs"]
mod tests;
