//! Kept connections to the other nodes: dialled on first use, shared, dialled again when lost.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::{Mutex, RwLock};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tracing::{debug, info};

use crate::net::connection::{Alpn, Connection};
use crate::net::endpoint::{ConnectError, Endpoint};
use crate::rt::{Rng, TaskGroup};

/// A connection to the API that lasted no longer was lost to strain, perhaps.
const STRAINED_FOR: Duration = Duration::from_secs(60);
/// How many times as long as others a connection may be silent at most, after such losses.
const STRAIN_MAX: u32 = 4;

/// Connections to other nodes, one per node and ALPN. Cheap to clone; all clones are one pool.
///
/// A connection is dialled when it is first asked for, and again, with back-off, whenever it is
/// lost, for as long as the node's address is known; where only this side opens streams, it ends when it
/// has not been used for a while. Inbound connections handed to
/// [`Self::adopt`] serve as well as dialled ones.
#[derive(Debug, Clone)]
pub struct Peers(pub(super) Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) endpoint: Endpoint,
    pub(super) tasks: TaskGroup,
    rng: Rng,
    addresses: RwLock<BTreeMap<String, SocketAddr>>,
    /// Through whom other nodes are reached that cannot be reached directly.
    pub(super) servers: RwLock<BTreeMap<String, SocketAddr>>,
    slots: RwLock<BTreeMap<String, BTreeMap<Alpn, Arc<Slot>>>>,
    dialled: Family<Way, Counter>,
}

/// How a connection was made.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Way {
    way: &'static str,
}

/// One node and ALPN.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) node: String,
    pub(super) alpn: Alpn,
    connection: ArcSwapOption<Connection>,
    /// The last attempt failed, or the connection was lost, and none has been made since.
    is_down: AtomicBool,
    /// The last one that this side made was direct.
    pub(super) was_direct: AtomicBool,
    /// Counts changes of the above, to wait for.
    changed: watch::Sender<u64>,
    keeper: Mutex<Keeper>,
}

/// The task that dials for a slot.
#[derive(Debug, Default)]
struct Keeper {
    is_running: bool,
    last_error: Option<ConnectError>,
}

impl Slot {
    pub(super) fn live(&self) -> Option<Connection> {
        let kept = self.connection.load();
        let conn = kept.as_deref()?;
        (!conn.is_closed()).then(|| conn.clone())
    }

    fn set(&self, conn: Connection) {
        self.connection.store(Some(Arc::new(conn)));
        self.is_down.store(false, Ordering::Release);
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Forgets `conn` unless another one has taken its place.
    fn lost(&self, conn: &Connection) {
        let is_kept = self.connection.load().as_ref().is_some_and(|kept| kept.id() == conn.id());
        if is_kept {
            self.connection.store(None);
            self.is_down.store(true, Ordering::Release);
            self.changed.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    /// Nobody uses the connection: the next one who asks dials anew.
    fn forget(&self) {
        let mut keeper = self.keeper.lock();
        self.connection.store(None);
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
        keeper.is_running = false;
    }

    pub(super) fn failed(&self, err: ConnectError) {
        self.keeper.lock().last_error = Some(err);
        self.is_down.store(true, Ordering::Release);
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// A node and ALPN looked up once: for hot paths. Cheap to clone; stays valid for the pool's life.
#[derive(Debug, Clone)]
pub struct PeerHandle {
    peers: Peers,
    slot: Arc<Slot>,
}

impl PeerHandle {
    /// The connection, if there is a live one now. Never waits, never dials.
    #[must_use]
    pub fn connection(&self) -> Option<Connection> {
        self.slot.live()
    }

    /// Whether the peer was lost or could not be reached, and has not come back since.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.slot.is_down.load(Ordering::Acquire) && self.slot.live().is_none()
    }

    /// As [`Peers::get`].
    ///
    /// # Errors
    ///
    /// See [`Peers::get`].
    pub async fn get(&self) -> Result<Connection, ConnectError> {
        self.peers.get_slot(&self.slot).await
    }
}

/// Resolves once nothing is kept: what the peer dialled took the place of another connection, and was lost.
async fn bereft(slot: &Slot) {
    let mut changed = slot.changed.subscribe();
    while slot.live().is_some() {
        if changed.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Resolves once this side, if it alone opens streams, has none open and sent nothing on any for `time`.
async fn unused(slot: &Slot, conn: &Connection, time: Duration) {
    if slot.alpn.listener_opens_streams() {
        return std::future::pending().await;
    }
    let mut had = None;
    loop {
        let sent = conn.stream_frames_sent();
        if had == Some(sent) && conn.streams() == 0 {
            return;
        }
        had = Some(sent);
        tokio::time::sleep(time).await;
    }
}

/// How much longer than others the next connection may be silent, when one was lost after `lasted`: a server
/// that is too busy to answer in time gets no less so when its clients come anew.
pub(super) fn strained(alpn: Alpn, strain: u32, lasted: Duration) -> u32 {
    if alpn != Alpn::Api || lasted > STRAINED_FOR {
        return 1;
    }
    strain.saturating_mul(2).min(STRAIN_MAX)
}

impl Peers {
    /// An empty pool that dials from `endpoint`.
    #[must_use]
    pub fn new(endpoint: Endpoint, tasks: &TaskGroup, rng: Rng) -> Self {
        Self(Arc::new(Inner {
            endpoint,
            tasks: tasks.child(),
            rng,
            addresses: RwLock::default(),
            servers: RwLock::default(),
            slots: RwLock::default(),
            dialled: Family::default(),
        }))
    }

    /// The endpoint it dials from.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.0.endpoint
    }

    /// Replaces what is known of where nodes are. Connections stay; a node that is not named any
    /// more is not dialled again.
    pub fn set_addresses(&self, addresses: BTreeMap<String, SocketAddr>) {
        *self.0.addresses.write() = addresses;
    }

    /// Adds or changes the address of one node. Cheap when it is known already: callers say it
    /// before every call.
    pub fn set_address(&self, node: &str, address: SocketAddr) {
        if self.address(node) != Some(address) {
            self.0.addresses.write().insert(node.to_owned(), address);
        }
    }

    /// Sets the servers, with the addresses of their APIs: through one of them a node is reached to
    /// which there is no direct way.
    pub fn set_servers(&self, servers: BTreeMap<String, SocketAddr>) {
        *self.0.servers.write() = servers;
    }

    /// Opens a tunnel to a server, so that it can relay what others have for this node.
    ///
    /// # Errors
    ///
    /// When the server is not known, or does not answer.
    pub async fn open_tunnel(&self, server: &str) -> std::io::Result<()> {
        let at = self.0.servers.read().get(server).copied();
        let at = at.ok_or(std::io::ErrorKind::NotFound)?;
        self.0.endpoint.tunnels().open(server, at).await
    }

    /// The connection to `node`: the kept one, or a new one. The first attempt is waited for, at
    /// most the handshake timeout; while a node is down the answer comes at once.
    ///
    /// # Errors
    ///
    /// See [`ConnectError`]; nothing was sent.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the attempt goes on for others.
    pub async fn get(&self, node: &str, alpn: Alpn) -> Result<Connection, ConnectError> {
        let slot = self.slot(node, alpn);
        self.get_slot(&slot).await
    }

    /// A connection to `node` that nobody keeps, for work that is rare: it ends when it is dropped, and
    /// is not dialled again. Only directly: what is rare has other ways than through somebody else.
    ///
    /// # Errors
    ///
    /// See [`ConnectError`]; nothing was sent.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the attempt is given up.
    pub async fn dial(&self, node: &str, alpn: Alpn) -> Result<Connection, ConnectError> {
        self.0.endpoint.connect(self.known_address(node)?, Some(node), alpn).await
    }

    /// A handle for repeated use.
    #[must_use]
    pub fn handle(&self, node: &str, alpn: Alpn) -> PeerHandle {
        PeerHandle { peers: self.clone(), slot: self.slot(node, alpn) }
    }

    /// Starts dialling without waiting: for connections that should always be there.
    pub fn keep(&self, node: &str, alpn: Alpn) {
        let slot = self.slot(node, alpn);
        self.start_keeper(&slot);
    }

    /// Uses an inbound connection for outbound streams too, where its ALPN lets the listener open
    /// streams; ignores any other. The newest wins: a peer that dials again has lost what was kept
    /// before, though we may not know yet.
    pub fn adopt(&self, conn: &Connection) {
        let is_useful = conn.alpn().listener_opens_streams() && conn.peer().is_node();
        if !is_useful || conn.is_dialled() || conn.is_closed() {
            return;
        }
        let slot = self.slot(&conn.peer().node, conn.alpn());
        if slot.connection.load().as_ref().is_some_and(|kept| kept.id() == conn.id()) {
            return;
        }
        slot.set(conn.clone());
        let conn = conn.clone();
        self.0.tasks.spawn_until_cancelled("peer-watch", async move {
            conn.closed().await;
            slot.lost(&conn);
        });
    }

    /// Closes every connection to `node` and forgets its address: it has left the cluster.
    pub fn drop_peer(&self, node: &str) {
        self.0.addresses.write().remove(node);
        // The slots stay: a handle must see the node again if it comes back under its name.
        let slots = self.0.slots.read().get(node).cloned().unwrap_or_default();
        for slot in slots.into_values() {
            if let Some(conn) = slot.live() {
                conn.close("peer removed");
            }
        }
    }

    /// Whether there is a live connection now.
    #[must_use]
    pub fn is_connected(&self, node: &str, alpn: Alpn) -> bool {
        let slots = self.0.slots.read();
        slots.get(node).and_then(|slots| slots.get(&alpn)).is_some_and(|slot| slot.live().is_some())
    }

    fn slot(&self, node: &str, alpn: Alpn) -> Arc<Slot> {
        let found = self.0.slots.read().get(node).and_then(|slots| slots.get(&alpn)).cloned();
        if let Some(slot) = found {
            return slot;
        }
        let mut slots = self.0.slots.write();
        let slot = slots.entry(node.to_owned()).or_default().entry(alpn).or_insert_with(|| {
            Arc::new(Slot {
                node: node.to_owned(),
                alpn,
                connection: ArcSwapOption::empty(),
                is_down: AtomicBool::new(false),
                was_direct: AtomicBool::new(false),
                changed: watch::Sender::new(0),
                keeper: Mutex::default(),
            })
        });
        Arc::clone(slot)
    }

    pub(super) fn address(&self, node: &str) -> Option<SocketAddr> {
        self.0.addresses.read().get(node).copied()
    }

    /// As [`Self::address`], for who cannot do without.
    pub(super) fn known_address(&self, node: &str) -> Result<SocketAddr, ConnectError> {
        self.address(node).ok_or_else(|| ConnectError::NoAddress { peer: node.to_owned() })
    }

    async fn get_slot(&self, slot: &Arc<Slot>) -> Result<Connection, ConnectError> {
        if let Some(conn) = slot.live() {
            return Ok(conn);
        }
        if self.0.tasks.token().is_cancelled() {
            return Err(ConnectError::Closed);
        }
        self.known_address(&slot.node)?;
        let mut changed = slot.changed.subscribe();
        changed.mark_unchanged();
        self.start_keeper(slot);
        loop {
            if let Some(conn) = slot.live() {
                return Ok(conn);
            }
            if slot.is_down.load(Ordering::Acquire) {
                let reason = slot.keeper.lock().last_error.as_ref().map(ToString::to_string);
                let reason = reason.unwrap_or_else(|| "connection lost".to_owned());
                return Err(ConnectError::Down { peer: slot.node.clone(), reason });
            }
            let wait = self.0.tasks.token().run_until_cancelled(changed.changed());
            if !matches!(wait.await, Some(Ok(()))) {
                return Err(ConnectError::Closed);
            }
        }
    }

    fn start_keeper(&self, slot: &Arc<Slot>) {
        let mut keeper = slot.keeper.lock();
        if keeper.is_running || self.0.tasks.token().is_cancelled() {
            return;
        }
        keeper.is_running = true;
        let (peers, slot) = (self.clone(), Arc::clone(slot));
        self.0
            .tasks
            .spawn_until_cancelled("peer-keep", async move { peers.keep_slot(&slot).await });
    }

    /// Dials, waits for the loss, dials again; ends when the node's address is gone, or nobody needs the
    /// connection.
    async fn keep_slot(&self, slot: &Arc<Slot>) {
        let (first, longest) = self.0.endpoint.config().redial;
        let unused_after = self.0.endpoint.config().unused_after;
        let (mut pause, mut strain) = (first, 1);
        loop {
            if let Some(conn) = slot.live() {
                let since = tokio::time::Instant::now();
                let lost = tokio::select! {
                    biased;
                    lost = conn.closed() => lost,
                    () = bereft(slot), if !conn.is_closed() => {
                        // Both dialled at once, and the peer gave its own up for this one.
                        slot.set(conn);
                        continue;
                    }
                    () = self.find_direct(slot, &conn) => {
                        self.retire(conn);
                        continue;
                    }
                    () = unused(slot, &conn, unused_after) => {
                        slot.forget();
                        return self.retire(conn);
                    }
                };
                slot.lost(&conn);
                debug!(peer = %slot.node, alpn = %slot.alpn, reason = %lost.reason, "peer lost");
                strain = strained(slot.alpn, strain, since.elapsed());
                if since.elapsed() > longest {
                    pause = first;
                } else {
                    // A peer that hangs up at once is one that does not want us: no tight loop.
                    self.pause(slot, pause).await;
                    pause = pause.saturating_mul(2).min(longest);
                }
                if slot.live().is_some() {
                    continue;
                }
            }
            if self.address(&slot.node).is_none() {
                let mut keeper = slot.keeper.lock();
                keeper.is_running = false;
                // Should it come back, the first attempt is waited for again.
                slot.is_down.store(false, Ordering::Release);
                return;
            };
            match self.reach(slot, strain).await {
                Ok(conn) => {
                    let is_tunnelled = conn.is_tunnelled();
                    info!(peer = %slot.node, alpn = %slot.alpn, is_tunnelled, "peer connected");
                    self.use_dialled(slot, conn).await;
                    continue;
                }
                Err(err) => {
                    debug!(peer = %slot.node, alpn = %slot.alpn, %err, "peer not reached");
                    slot.failed(err);
                }
            }
            self.pause(slot, pause).await;
            pause = pause.saturating_mul(2).min(longest);
        }
    }

    /// Adds what is counted here to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "edgeorc_net_connections_dialled",
            "Connections to other nodes that this one made and keeps, by how",
            self.0.dialled.clone(),
        );
        self.0.endpoint.tunnels().register(registry);
    }

    /// Puts a connection that this side made in its place.
    pub(super) async fn use_dialled(&self, slot: &Slot, conn: Connection) {
        let way = if conn.is_tunnelled() { "tunnel" } else { "direct" };
        self.0.dialled.get_or_create(&Way { way }).inc();
        slot.was_direct.store(!conn.is_tunnelled(), Ordering::Release);
        slot.set(conn.clone());
        if slot.alpn.listener_opens_streams() {
            self.0.endpoint.offer(conn).await;
        }
    }

    pub(super) fn jittered(&self, pause: Duration) -> Duration {
        let half = u64::try_from(pause.as_micros() / 2).unwrap_or(u64::MAX);
        pause.saturating_sub(Duration::from_micros(self.0.rng.below(half)))
    }

    /// Waits out the back-off, less if the peer connects by itself meanwhile.
    async fn pause(&self, slot: &Slot, pause: Duration) {
        let jittered = self.jittered(pause);
        let mut changed = slot.changed.subscribe();
        let arrived = async {
            while slot.live().is_none() {
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(jittered, arrived).await;
    }
}
