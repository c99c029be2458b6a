//! What is known of one endpoint: load, latency, failures, and kept streams to it.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::routes::Place;
use crate::net::PeerHandle;
use crate::net::http::HttpStream;

/// Time in which an old latency loses about two thirds of its weight.
const DECAY_MS: f64 = 10_000.0;
/// Latencies below this count as equal: a hop to a neighbour must not starve its pods of traffic.
const LATENCY_FLOOR_US: f64 = 5_000.0;
/// First ejection, doubled at each further failure in a row.
const EJECT_MS_MIN: u64 = 500;
/// Longest ejection.
const EJECT_MS_MAX: u64 = 10_000;
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
    in_flight: AtomicU32,
    /// Peak-sensitive moving average of the time to a response's head, in microseconds.
    latency_us: AtomicU64,
    latency_at_ms: AtomicU64,
    failures: AtomicU32,
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
            in_flight: AtomicU32::new(0),
            latency_us: AtomicU64::new(0),
            latency_at_ms: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            ejected_until_ms: AtomicU64::new(0),
            streams: Mutex::default(),
        }
    }

    /// Whether traffic should go here: not ejected, and its node not known to be gone.
    pub(super) fn is_available(&self, now_ms: u64) -> bool {
        self.ejected_until_ms.load(Ordering::Relaxed) <= now_ms
            && !self.peer.as_ref().is_some_and(PeerHandle::is_down)
    }

    /// What one more request here costs, relative to others.
    pub(super) fn cost(&self, now_ms: u64) -> f64 {
        let latency = self.latency(now_ms).max(LATENCY_FLOOR_US);
        latency * (f64::from(self.in_flight.load(Ordering::Relaxed)) + 1.0)
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
    pub(super) fn succeeded(&self, took: Duration, now_ms: u64) {
        let took = took.as_secs_f64() * 1e6;
        let old = self.latency(now_ms);
        let fade = self.fade(now_ms);
        // Up at once, down slowly. Two updates at a time lose one of them, which is no harm.
        let new = if took > old { took } else { old + took * (1.0 - fade) };
        self.latency_us.store(new.to_bits(), Ordering::Relaxed);
        self.latency_at_ms.store(now_ms, Ordering::Relaxed);
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.ejected_until_ms.store(0, Ordering::Relaxed);
        }
    }

    /// The endpoint could not be reached or broke off: nothing goes there for a while.
    pub(super) fn failed(&self, now_ms: u64) {
        if self.ejected_until_ms.load(Ordering::Relaxed) > now_ms {
            // Requests that were in flight together fail together: that is one failure.
            return;
        }
        let before = self.failures.fetch_add(1, Ordering::Relaxed).min(16);
        let pause = EJECT_MS_MIN.saturating_mul(1_u64 << before).min(EJECT_MS_MAX);
        self.ejected_until_ms.store(now_ms.saturating_add(pause), Ordering::Relaxed);
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
pub(super) struct InFlight(Arc<EndpointState>);

impl InFlight {
    pub(super) fn new(endpoint: &Arc<EndpointState>) -> Self {
        endpoint.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(endpoint))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
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
    fn failures_eject_for_longer_each_time_and_success_forgives() {
        let endpoint = endpoint();
        assert!(endpoint.is_available(0));
        endpoint.failed(1000);
        endpoint.failed(1000);
        assert!(!endpoint.is_available(1499));
        assert!(endpoint.is_available(1500));
        endpoint.failed(1500);
        assert!(!endpoint.is_available(2499));
        assert!(endpoint.is_available(2500));
        for _ in 0..20 {
            let now = endpoint.ejected_until_ms.load(Ordering::Relaxed);
            endpoint.failed(now);
            assert!(endpoint.is_available(now + EJECT_MS_MAX));
        }
        endpoint.succeeded(Duration::from_millis(1), 90_000);
        assert!(endpoint.is_available(90_000));
        endpoint.failed(90_000);
        assert!(endpoint.is_available(90_500));
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
}
