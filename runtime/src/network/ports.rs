//! The ports of one pod.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::datagrams::Endpoint;
use crate::serve::HttpService;
use crate::types::BoxIo;

/// Ports given to guests that ask for any, as Linux does by default.
const EPHEMERAL_FIRST: u16 = 32_768;
const EPHEMERAL_LAST: u16 = 60_999;
/// How long connections wait for a listener that went with its container. A first restart takes
/// some ten milliseconds; what takes longer than this is better tried at another endpoint.
pub(crate) const RESTART_WAIT_MAX: Duration = Duration::from_secs(1);
/// Connections of one pod that wait so at the same time; further ones are refused.
const RESTART_WAITERS_MAX: usize = 128;
/// Listeners that are remembered after they went.
const LOST_MAX: usize = 64;

/// A connection on its way to a guest's listener.
pub(crate) struct Accepted {
    /// The guest's end.
    pub(crate) io: BoxIo,
    /// Who calls.
    pub(crate) peer: SocketAddr,
    /// The address that was called.
    pub(crate) local: SocketAddr,
    /// Counts it among the container's connections.
    pub(crate) token: TaskTrackerToken,
    /// Counts it among those of the pod that nobody has accepted: they hold what was sent.
    pub(crate) _waits: OwnedSemaphorePermit,
}

/// What is behind a port.
#[derive(Clone)]
pub(crate) enum Listener {
    /// An HTTP component, served by the host.
    Http(Arc<HttpService>),
    /// A guest's listening socket.
    Tcp(mpsc::Sender<Accepted>, Intake),
    /// A guest's UDP socket.
    Udp(Arc<Endpoint>),
}

impl Listener {
    /// Whether it goes because its container ended or gave it up: another one may soon listen in its place.
    fn goes_with_its_container(&self) -> bool {
        match self {
            Self::Http(service) => service.is_over() || service.has_heir(),
            Self::Tcp(_, intake) => intake.over.is_cancelled(),
            Self::Udp(_) => false,
        }
    }
}

/// What a container says of the connections to its listeners.
#[derive(Debug, Clone)]
pub(crate) struct Intake {
    /// All connections that it has taken. A closed tracker takes no more.
    pub(crate) taken: TaskTracker,
    /// Cancelled when the container ends.
    pub(crate) over: CancellationToken,
}

/// Why a port could not be bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BindError {
    /// A sibling has it.
    #[error("address in use")]
    InUse,
    /// Not an address of the pod.
    #[error("address not bindable")]
    NotBindable,
}

struct Bound {
    ip: IpAddr,
    /// Tells this binding from a later one of the same address.
    serial: u64,
    listener: Option<Listener>,
}

#[derive(Default)]
struct Table {
    by_port: BTreeMap<u16, Vec<Bound>>,
    /// Where a listener went with its container, and until when one is waited for.
    lost: BTreeMap<SocketAddr, Instant>,
    serial: u64,
    next_ephemeral: u16,
}

/// All ports of one pod, of one protocol.
pub(crate) struct Ports {
    ips: Vec<IpAddr>,
    table: RwLock<Table>,
    /// Told when something begins to listen.
    opened: Notify,
    waiters: Semaphore,
}

impl Ports {
    pub(crate) fn new(ips: Vec<IpAddr>) -> Arc<Self> {
        Arc::new(Self {
            ips,
            table: RwLock::default(),
            opened: Notify::new(),
            waiters: Semaphore::new(RESTART_WAITERS_MAX),
        })
    }

    /// Takes a port; 0 is any free one. It is given back when the binding is dropped.
    pub(crate) fn bind(self: &Arc<Self>, at: SocketAddr) -> Result<Binding, BindError> {
        let ip = at.ip();
        if !ip.is_unspecified() && !ip.is_loopback() && !self.ips.contains(&ip) {
            return Err(BindError::NotBindable);
        }
        let mut table = self.table.write();
        let port = match at.port() {
            0 => table.free_port(ip).ok_or(BindError::InUse)?,
            port if table.is_free(ip, port) => port,
            _ => return Err(BindError::InUse),
        };
        table.serial += 1;
        let serial = table.serial;
        table.by_port.entry(port).or_default().push(Bound { ip, serial, listener: None });
        Ok(Binding { ports: Arc::clone(self), at: SocketAddr::new(ip, port), serial })
    }

    /// A number for the near end of an outgoing connection. Nothing is reserved: connections are
    /// told apart by their pipes.
    pub(crate) fn ephemeral(&self) -> u16 {
        self.table.write().next_ephemeral()
    }

    /// As [`Ports::listener`]; waits a moment for a listener that went with its container.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn listener_soon(&self, to: SocketAddr) -> Option<Listener> {
        let mut place = None;
        loop {
            let opened = self.opened.notified();
            let until = {
                // One look at both: between two, a listener could come.
                let table = self.table.read();
                if let Some(listener) = table.listener(to) {
                    return Some(listener.clone());
                }
                table.is_back_by(to)?
            };
            if place.is_none() {
                place = Some(self.waiters.try_acquire().ok()?);
            }
            tokio::time::timeout_at(until, opened).await.ok()?;
        }
    }

    /// Who listens at this address of the pod.
    pub(crate) fn listener(&self, to: SocketAddr) -> Option<Listener> {
        self.table.read().listener(to).cloned()
    }
}

impl Table {
    fn listener(&self, to: SocketAddr) -> Option<&Listener> {
        let bound = self.by_port.get(&to.port())?;
        let exact = bound.iter().find(|bound| bound.ip == to.ip());
        let wildcard = bound
            .iter()
            .find(|bound| bound.ip.is_unspecified() && bound.ip.is_ipv4() == to.ip().is_ipv4());
        exact.or(wildcard)?.listener.as_ref()
    }

    /// Until when a listener that went may come back.
    fn is_back_by(&self, to: SocketAddr) -> Option<Instant> {
        let lost = [to, SocketAddr::new(unspecified(to.ip()), to.port())];
        let until = lost.iter().filter_map(|at| self.lost.get(at)).max().copied();
        until.filter(|until| *until > Instant::now())
    }

    fn is_free(&self, ip: IpAddr, port: u16) -> bool {
        let collides = |bound: &Bound| {
            bound.ip.is_ipv4() == ip.is_ipv4()
                && (bound.ip == ip || bound.ip.is_unspecified() || ip.is_unspecified())
        };
        !self.by_port.get(&port).is_some_and(|bound| bound.iter().any(collides))
    }

    fn next_ephemeral(&mut self) -> u16 {
        let next = self.next_ephemeral.clamp(EPHEMERAL_FIRST, EPHEMERAL_LAST);
        self.next_ephemeral = if next == EPHEMERAL_LAST { EPHEMERAL_FIRST } else { next + 1 };
        next
    }

    fn bound(&mut self, binding: &Binding) -> Option<&mut Bound> {
        let bound = self.by_port.get_mut(&binding.at.port())?;
        bound.iter_mut().find(|bound| bound.serial == binding.serial)
    }

    fn lose(&mut self, at: SocketAddr) {
        let now = Instant::now();
        self.lost.retain(|_, until| *until > now);
        if self.lost.len() < LOST_MAX {
            self.lost.insert(at, now + RESTART_WAIT_MAX);
        }
    }

    fn free_port(&mut self, ip: IpAddr) -> Option<u16> {
        (EPHEMERAL_FIRST..=EPHEMERAL_LAST).find_map(|_| {
            let port = self.next_ephemeral();
            self.is_free(ip, port).then_some(port)
        })
    }
}

/// A port that is taken.
pub(crate) struct Binding {
    ports: Arc<Ports>,
    at: SocketAddr,
    serial: u64,
}

impl Binding {
    /// The address, with the port that was chosen.
    pub(crate) fn address(&self) -> SocketAddr {
        self.at
    }

    /// Starts to take connections. `None` stops.
    pub(crate) fn listen(&self, listener: Option<Listener>) {
        let is_opened = listener.is_some();
        let mut table = self.ports.table.write();
        let old =
            table.bound(self).and_then(|bound| std::mem::replace(&mut bound.listener, listener));
        // Under the same lock, so that nobody sees it gone and not remembered.
        if is_opened {
            table.lost.remove(&self.at);
        } else if old.as_ref().is_some_and(Listener::goes_with_its_container) {
            table.lose(self.at);
        }
        drop(table);
        if is_opened {
            self.ports.opened.notify_waiters();
        }
        // It may hold the last reference to something that has its own bindings: without the lock.
        drop(old);
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        self.listen(None);
        let mut table = self.ports.table.write();
        if let Some(bound) = table.by_port.get_mut(&self.at.port()) {
            bound.retain(|bound| bound.serial != self.serial);
            if bound.is_empty() {
                table.by_port.remove(&self.at.port());
            }
        }
    }
}

impl std::fmt::Debug for Binding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Binding").field(&self.at).finish()
    }
}

/// "Any address" of the same family.
pub(crate) fn unspecified(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// The two addresses at which a port of all of a pod's addresses is bound.
pub(crate) fn wildcards(port: u16) -> [SocketAddr; 2] {
    [
        SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
        SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn ports() -> Arc<Ports> {
        Ports::new(vec!["10.0.0.1".parse().unwrap()])
    }

    fn listen(binding: &Binding) -> Intake {
        let intake = Intake { taken: TaskTracker::new(), over: CancellationToken::new() };
        binding.listen(Some(Listener::Tcp(mpsc::channel(1).0, intake.clone())));
        intake
    }

    #[tokio::test(start_paused = true)]
    async fn a_listener_that_went_with_its_container_is_waited_for_a_moment() {
        let ports = ports();
        let binding = ports.bind(at("0.0.0.0:80")).unwrap();
        listen(&binding).over.cancel();
        drop(binding);
        let start = Instant::now();
        assert!(ports.listener_soon(at("10.0.0.1:80")).await.is_none(), "nobody came");
        assert_eq!(start.elapsed(), RESTART_WAIT_MAX);

        let binding = ports.bind(at("0.0.0.0:80")).unwrap();
        listen(&binding).over.cancel();
        drop(binding);
        let again = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let binding = ports.bind(at("0.0.0.0:80")).unwrap();
            listen(&binding);
            binding
        };
        let (found, _binding) = tokio::join!(ports.listener_soon(at("10.0.0.1:80")), again);
        assert!(found.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_listener_that_its_guest_closed_is_not_waited_for_and_waiters_are_counted() {
        let ports = ports();
        let binding = ports.bind(at("0.0.0.0:80")).unwrap();
        listen(&binding);
        drop(binding);
        let start = Instant::now();
        assert!(ports.listener_soon(at("10.0.0.1:80")).await.is_none());
        assert_eq!(start.elapsed(), Duration::ZERO);

        let binding = ports.bind(at("0.0.0.0:81")).unwrap();
        listen(&binding).over.cancel();
        drop(binding);
        let all = (0..=RESTART_WAITERS_MAX).map(|_| async {
            let _ = ports.listener_soon(at("10.0.0.1:81")).await;
            start.elapsed() == Duration::ZERO
        });
        let waited = futures_util::future::join_all(all).await;
        assert_eq!(waited.iter().filter(|is_refused_at_once| **is_refused_at_once).count(), 1);
    }

    #[test]
    fn who_asks_while_a_listener_is_replaced_is_never_refused() {
        let ports = ports();
        let mut binding = ports.bind(at("0.0.0.0:80")).unwrap();
        let mut intake = listen(&binding);
        let is_done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let asker = scope.spawn(|| {
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                runtime.enable_time().build().unwrap().block_on(async {
                    while !is_done.load(std::sync::atomic::Ordering::Relaxed) {
                        if ports.listener_soon(at("10.0.0.1:80")).await.is_none() {
                            return false;
                        }
                    }
                    true
                })
            });
            for _ in 0..20_000 {
                intake.over.cancel();
                drop(binding);
                binding = ports.bind(at("0.0.0.0:80")).unwrap();
                intake = listen(&binding);
            }
            is_done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(asker.join().unwrap(), "refused");
        });
    }

    #[test]
    fn a_port_is_taken_once_per_address() {
        let ports = ports();
        let one = ports.bind(at("127.0.0.1:80")).unwrap();
        let _two = ports.bind(at("10.0.0.1:80")).unwrap();
        let _six = ports.bind(at("[::]:80")).unwrap();
        assert_eq!(ports.bind(at("127.0.0.1:80")).unwrap_err(), BindError::InUse);
        assert_eq!(ports.bind(at("0.0.0.0:80")).unwrap_err(), BindError::InUse);
        assert_eq!(ports.bind(at("10.0.0.2:80")).unwrap_err(), BindError::NotBindable);
        drop(one);
        assert!(ports.bind(at("127.0.0.1:80")).is_ok());
    }

    #[test]
    fn loopback_listeners_are_not_seen_from_outside() {
        let ports = ports();
        let inner = ports.bind(at("127.0.0.1:80")).unwrap();
        let outer = ports.bind(at("0.0.0.0:81")).unwrap();
        assert!(ports.listener(at("10.0.0.1:81")).is_none(), "bound is not listening");
        listen(&inner);
        listen(&outer);
        assert!(ports.listener(at("10.0.0.1:80")).is_none());
        assert!(ports.listener(at("127.0.0.1:80")).is_some());
        assert!(ports.listener(at("10.0.0.1:81")).is_some());
        assert!(ports.listener(at("[::1]:81")).is_none());
    }

    #[test]
    fn any_port_is_a_free_ephemeral_one() {
        let ports = ports();
        let one = ports.bind(at("0.0.0.0:0")).unwrap().address().port();
        let two = ports.bind(at("0.0.0.0:0")).unwrap().address().port();
        assert!(one >= EPHEMERAL_FIRST && two > one);
    }
}
