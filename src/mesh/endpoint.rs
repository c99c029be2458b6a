//! What is known of one endpoint: load, latency, failures, and kept streams to it.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::decisions::Fault;
use super::routes::Place;
use super::traffic::Subject;
use crate::net::PeerHandle;
use crate::net::http::HttpStream;

/// Time in which an old latency loses about two thirds of its weight.
const DECAY_MS: f64 = 5_000.0;
/// Latencies below this count as equal: a hop to a neighbour must not starve its pods of traffic.
const LATENCY_FLOOR_US: f64 = 5_000.0;
/// First ejection, doubled at each further one in a row.
const EJECT_MS_MIN: u64 = 500;
/// Longest ejection.
const EJECT_MS_MAX: u64 = 10_000;
/// Requests that may break off, or time out, in a row before the endpoint is ejected. One that is
/// not reached at all is ejected at once.
const BROKEN_MAX: u32 = 3;
/// Answers of 500 and more in a row that eject: the pod is there, but it does nobody any good.
const STATUS_MAX: u32 = 10;
/// Time in which an endpoint that nobody used before, or that was ejected, gets its full share.
const SLOW_START_MS: u32 = 2_000;
/// How much more an endpoint costs at the start of that time.
const SLOW_START_FACTOR: f64 = 8.0;
/// Requests in flight from this node to one endpoint; with one more the circuit is open.
pub(super) const REQUESTS_MAX: u32 = 1024;
/// Kept HTTP streams to one endpoint.
const STREAMS_KEPT_MAX: usize = 64;
/// Age at which an unused stream is closed.
const STREAM_IDLE_MAX: Duration = Duration::from_secs(30);

/// One endpoint of one or several Services. Lives as long as a table names it or a call uses it.
pub(super) struct EndpointState {
    pub(super) address: SocketAddr,
    pub(super) place: Place,
    /// The way to its node, when it is on another one.
    pub(super) peer: Option<PeerHandle>,
    /// The pod, if it is known which.
    pub(super) pod: Option<Arc<Subject>>,
    /// Requests and connections.
    in_flight: AtomicU32,
    /// Those of `in_flight` that are requests: only they open the circuit.
    requests: AtomicU32,
    /// Peak-sensitive moving average of the time to a response's head, in microseconds.
    latency_us: AtomicU64,
    latency_at_ms: AtomicU64,
    /// Since when it is used, in milliseconds plus one; 0 before.
    warm_since_ms: AtomicU64,
    /// Faults in a row since the last good answer or ejection.
    faults: AtomicU32,
    bad_statuses: AtomicU32,
    /// Ejections in a row.
    ejections: AtomicU32,
    ejected_until_ms: AtomicU64,
    streams: Mutex<Vec<(Instant, HttpStream)>>,
}

impl fmt::Debug for EndpointState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointState")
            .field("address", &self.address)
            .field("place", &self.place)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

impl EndpointState {
    pub(super) fn new(address: SocketAddr, place: Place, peer: Option<PeerHandle>) -> Self {
        Self {
            address,
            place,
            peer,
            pod: None,
            in_flight: AtomicU32::new(0),
            requests: AtomicU32::new(0),
            latency_us: AtomicU64::new(0),
            latency_at_ms: AtomicU64::new(0),
            warm_since_ms: AtomicU64::new(0),
            faults: AtomicU32::new(0),
            bad_statuses: AtomicU32::new(0),
            ejections: AtomicU32::new(0),
            ejected_until_ms: AtomicU64::new(0),
            streams: Mutex::default(),
        }
    }

    /// The same, counted for a pod.
    pub(super) fn of_pod(mut self, pod: Option<&Arc<Subject>>) -> Self {
        self.pod = pod.cloned();
        self
    }

    /// Whether traffic should go here: not ejected, and its node not known to be gone.
    pub(super) fn is_available(&self, now_ms: u64) -> bool {
        !self.is_ejected(now_ms) && !self.is_down()
    }

    pub(super) fn is_ejected(&self, now_ms: u64) -> bool {
        self.ejected_until_ms.load(Ordering::Relaxed) > now_ms
    }

    fn is_down(&self) -> bool {
        self.peer.as_ref().is_some_and(PeerHandle::is_down)
    }

    /// Whether one more request would be too many: the circuit is open.
    pub(super) fn is_full(&self) -> bool {
        self.requests.load(Ordering::Relaxed) >= REQUESTS_MAX
    }

    /// What one more request here costs, relative to others.
    pub(super) fn cost(&self, now_ms: u64) -> f64 {
        let latency = self.latency(now_ms).max(LATENCY_FLOOR_US);
        let load = f64::from(self.in_flight.load(Ordering::Relaxed)) + 1.0;
        latency * load * self.slowness(now_ms)
    }

    /// Factor of the slow start: falls from [`SLOW_START_FACTOR`] to 1. The time begins when the
    /// endpoint is first considered, so that endpoints that were there from the start are equal.
    fn slowness(&self, now_ms: u64) -> f64 {
        let mut since = self.warm_since_ms.load(Ordering::Relaxed);
        if since == 0 {
            since = now_ms.saturating_add(1);
            self.warm_since_ms.store(since, Ordering::Relaxed);
        }
        let age = now_ms.saturating_add(1).saturating_sub(since);
        let age = u32::try_from(age).unwrap_or(u32::MAX).min(SLOW_START_MS);
        let left = 1.0 - f64::from(age) / f64::from(SLOW_START_MS);
        1.0 + (SLOW_START_FACTOR - 1.0) * left
    }

    /// The average, faded by the time since it was last fed, so that a slow moment is forgiven.
    fn latency(&self, now_ms: u64) -> f64 {
        let micros = f64::from_bits(self.latency_us.load(Ordering::Relaxed));
        micros * self.fade(now_ms)
    }

    fn fade(&self, now_ms: u64) -> f64 {
        let age = now_ms.saturating_sub(self.latency_at_ms.load(Ordering::Relaxed));
        let age = u32::try_from(age).unwrap_or(u32::MAX);
        (-f64::from(age) / DECAY_MS).exp()
    }

    /// A response's head came after `took`.
    ///
    /// Peak-EWMA as in Finagle's load balancer: up at once, down slowly, so that one slow answer
    /// counts before many have piled up behind it.
    pub(super) fn succeeded(&self, took: Duration, now_ms: u64) {
        let took = took.as_secs_f64() * 1e6;
        let old = self.latency(now_ms);
        let fade = self.fade(now_ms);
        // Two updates at a time lose one of them, which is no harm.
        let new = if took > old { took } else { old + took * (1.0 - fade) };
        self.latency_us.store(new.to_bits(), Ordering::Relaxed);
        self.latency_at_ms.store(now_ms, Ordering::Relaxed);
        self.faults.store(0, Ordering::Relaxed);
        if self.ejections.load(Ordering::Relaxed) != 0 {
            self.ejections.store(0, Ordering::Relaxed);
            self.ejected_until_ms.store(0, Ordering::Relaxed);
        }
    }

    /// An answer came with a status below 500.
    pub(super) fn answered_well(&self) {
        if self.bad_statuses.load(Ordering::Relaxed) != 0 {
            self.bad_statuses.store(0, Ordering::Relaxed);
        }
    }

    /// Counts a fault. Whether there have been so many that the endpoint is to be ejected.
    pub(super) fn is_too_bad(&self, fault: Fault, now_ms: u64) -> bool {
        if self.is_ejected(now_ms) {
            // Requests that were in flight together fail together: that is one failure.
            return false;
        }
        let (count, most) = match fault {
            Fault::Unreachable => return true,
            Fault::Broken | Fault::Timeout => (&self.faults, BROKEN_MAX),
            Fault::Status => (&self.bad_statuses, STATUS_MAX),
        };
        count.fetch_add(1, Ordering::Relaxed).saturating_add(1) >= most
    }

    /// Nothing goes there for a while: longer at each ejection in a row, and slowly afterwards.
    pub(super) fn eject(&self, now_ms: u64) {
        let before = self.ejections.fetch_add(1, Ordering::Relaxed).min(16);
        let pause = EJECT_MS_MIN.saturating_mul(1_u64 << before).min(EJECT_MS_MAX);
        let until = now_ms.saturating_add(pause);
        self.faults.store(0, Ordering::Relaxed);
        self.bad_statuses.store(0, Ordering::Relaxed);
        self.warm_since_ms.store(until.saturating_add(1), Ordering::Relaxed);
        self.ejected_until_ms.store(until, Ordering::Relaxed);
    }

    /// A kept stream, the one used last.
    pub(super) fn take_stream(&self) -> Option<HttpStream> {
        self.streams.lock().pop().map(|(_, stream)| stream)
    }

    pub(super) fn keep_stream(&self, stream: HttpStream) {
        let mut streams = self.streams.lock();
        if streams.len() < STREAMS_KEPT_MAX {
            streams.push((Instant::now(), stream));
        }
    }

    pub(super) fn close_unused_streams(&self) {
        let mut streams = self.streams.lock();
        let unused = streams.iter().take_while(|(at, _)| at.elapsed() > STREAM_IDLE_MAX).count();
        let closed: Vec<_> = streams.drain(..unused).collect();
        drop(streams);
        drop(closed);
    }
}

/// Counts a request or connection as in flight while it lives.
#[derive(Debug)]
pub(super) struct InFlight {
    endpoint: Arc<EndpointState>,
    is_request: bool,
}

impl InFlight {
    /// A connection.
    pub(super) fn new(endpoint: &Arc<EndpointState>) -> Self {
        Self::count(endpoint, false)
    }

    /// A request, which counts towards [`REQUESTS_MAX`].
    pub(super) fn request(endpoint: &Arc<EndpointState>) -> Self {
        Self::count(endpoint, true)
    }

    fn count(endpoint: &Arc<EndpointState>, is_request: bool) -> Self {
        endpoint.in_flight.fetch_add(1, Ordering::Relaxed);
        if is_request {
            endpoint.requests.fetch_add(1, Ordering::Relaxed);
        }
        Self { endpoint: Arc::clone(endpoint), is_request }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.endpoint.in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.is_request {
            self.endpoint.requests.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> Arc<EndpointState> {
        let address = "10.42.0.1:80".parse().unwrap();
        Arc::new(EndpointState::new(address, Place::Local, None))
    }

    #[test]
    fn ejections_last_longer_each_time_and_success_forgives() {
        let endpoint = endpoint();
        assert!(endpoint.is_available(0));
        assert!(endpoint.is_too_bad(Fault::Unreachable, 1000));
        endpoint.eject(1000);
        assert!(!endpoint.is_too_bad(Fault::Unreachable, 1000), "one failure, twice seen");
        assert!(!endpoint.is_available(1499));
        assert!(endpoint.is_available(1500));
        endpoint.eject(1500);
        assert!(!endpoint.is_available(2499));
        assert!(endpoint.is_available(2500));
        for _ in 0..20 {
            let now = endpoint.ejected_until_ms.load(Ordering::Relaxed);
            endpoint.eject(now);
            assert!(endpoint.is_available(now + EJECT_MS_MAX));
        }
        endpoint.succeeded(Duration::from_millis(1), 90_000);
        assert!(endpoint.is_available(90_000));
        endpoint.eject(90_000);
        assert!(endpoint.is_available(90_500));
    }

    #[test]
    fn only_faults_in_a_row_eject_a_pod_that_is_there() {
        let endpoint = endpoint();
        for _ in 0..3 {
            assert!(!endpoint.is_too_bad(Fault::Broken, 0));
            assert!(!endpoint.is_too_bad(Fault::Timeout, 0));
            endpoint.succeeded(Duration::from_millis(1), 0);
        }
        for _ in 1..STATUS_MAX {
            assert!(!endpoint.is_too_bad(Fault::Status, 0));
        }
        assert!(endpoint.is_too_bad(Fault::Status, 0));
        endpoint.answered_well();
        assert!(!endpoint.is_too_bad(Fault::Status, 0));
        assert!(!endpoint.is_too_bad(Fault::Broken, 0));
        assert!(!endpoint.is_too_bad(Fault::Broken, 0));
        assert!(endpoint.is_too_bad(Fault::Broken, 0));
    }

    #[test]
    fn cost_rises_at_once_with_latency_and_load_and_fades_with_time() {
        let (slow, fast) = (endpoint(), endpoint());
        assert!((slow.cost(0) - fast.cost(0)).abs() < f64::EPSILON);
        slow.succeeded(Duration::from_millis(100), 0);
        fast.succeeded(Duration::from_micros(50), 0);
        assert!(slow.cost(0) > 10.0 * fast.cost(0));
        let busy = InFlight::new(&fast);
        assert!(fast.cost(0) > 1.9 * LATENCY_FLOOR_US);
        drop(busy);
        assert!(slow.cost(60_000) < 2.0 * fast.cost(60_000));
    }

    #[test]
    fn a_new_endpoint_and_one_that_was_ejected_start_slowly() {
        let endpoint = endpoint();
        let usual = LATENCY_FLOOR_US;
        assert!(endpoint.cost(5_000) > 7.9 * usual);
        assert!(endpoint.cost(6_000) < 5.0 * usual);
        assert!(endpoint.cost(7_000) < 1.01 * usual);
        endpoint.eject(10_000);
        assert!(endpoint.cost(10_500) > 7.9 * usual);
        assert!(endpoint.cost(12_500) < 1.01 * usual);
    }

    #[test]
    fn only_requests_open_the_circuit() {
        let endpoint = endpoint();
        let connections: Vec<_> = (0..REQUESTS_MAX).map(|_| InFlight::new(&endpoint)).collect();
        assert!(!endpoint.is_full());
        let mut requests: Vec<_> =
            (0..REQUESTS_MAX).map(|_| InFlight::request(&endpoint)).collect();
        assert!(endpoint.is_full());
        requests.pop();
        assert!(!endpoint.is_full());
        drop((requests, connections));
        assert_eq!(endpoint.in_flight.load(Ordering::Relaxed), 0);
    }
}
