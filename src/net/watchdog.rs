//! Ends connections that have gone silent, sooner on a LAN than on a slow or lossy link.
//!
//! QUIC's own idle timeout is one number, agreed in the handshake, before anything is known of the
//! link. Here it is only the upper end; what counts is the silence that the link makes unlikely.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::debug;

use crate::net::connection::{Alpn, Held};
use crate::net::fabric;
use crate::net::identity::Peer;

/// Pause between two looks at connections that have to be given up soon, and at others.
const LOOK: Duration = Duration::from_millis(100);
const LOOK_PATIENT: Duration = Duration::from_millis(200);
/// Round trips that are added to the silence allowed on an ideal link.
const ROUND_TRIPS: u32 = 4;
/// Packets sent before their losses say something of the link.
const SAMPLE_MIN: u64 = 32;
/// One packet lost of so many is a lossy link.
const LOSS_ONE_IN: u64 = 100;
/// How much longer a lossy link, or a tunnel, may be silent: a probe and its answer get lost as well.
const LOSSY_FACTOR: u32 = 4;
/// Close code of a connection that was silent for too long.
const CODE_SILENT: u32 = 3;

/// What is known of a link.
#[derive(Debug, Clone, Copy, Default)]
struct Quality {
    rtt: Duration,
    sent: u64,
    lost: u64,
    is_tunnelled: bool,
}

/// Silence after which a connection is dead, given `base` on an ideal link and `most` on any. Where nobody
/// waits, `patience` times as long is as good as what a lossy link is given.
fn silence_max(base: Duration, most: Duration, patience: u32, link: Quality) -> Duration {
    let is_lossy = link.sent >= SAMPLE_MIN && link.lost.saturating_mul(LOSS_ONE_IN) > link.sent;
    let factor = if is_lossy || link.is_tunnelled { LOSSY_FACTOR } else { 1 }.max(patience);
    base.saturating_mul(factor).saturating_add(link.rtt.saturating_mul(ROUND_TRIPS)).min(most)
}

/// How long connections may be silent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Silence {
    /// On an ideal link.
    pub(super) base: Duration,
    /// On any link.
    pub(super) most: Duration,
}

/// All connections of one endpoint.
#[derive(Default)]
pub(super) struct Watchdog {
    watched: Mutex<Vec<Watched>>,
}

impl std::fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watchdog").field("watched", &self.watched.lock().len()).finish()
    }
}

struct Watched {
    held: Weak<Held>,
    datagrams: u64,
    heard: Instant,
}

impl Watchdog {
    pub(super) fn watch(&self, held: Weak<Held>) {
        self.watched.lock().push(Watched { held, datagrams: 0, heard: Instant::now() });
    }

    /// Live connections of one peer for one purpose.
    pub(super) fn count(&self, peer: &Peer, alpn: Alpn) -> usize {
        let watched = self.watched.lock();
        let live = watched.iter().filter_map(|watched| watched.held.upgrade());
        live.filter(|held| {
            held.alpn == alpn && held.peer.user == peer.user && held.quic.close_reason().is_none()
        })
        .count()
    }

    /// Looks at all of them again and again.
    pub(super) async fn run(self: Arc<Self>, limits: Silence) {
        let (mut looked, mut pause) = (Instant::now(), LOOK);
        loop {
            tokio::time::sleep(pause).await;
            // When this process itself was stopped, the peers' packets wait in the socket.
            let late = looked.elapsed().saturating_sub(2 * pause);
            looked = Instant::now();
            pause = self.look(looked, late, limits);
        }
    }

    /// Returns when to look again.
    fn look(&self, now: Instant, late: Duration, limits: Silence) -> Duration {
        let mut pause = LOOK_PATIENT;
        // Nothing is dropped under the lock: the last handle of a connection closes it.
        let mut kept = Vec::new();
        let mut watched = self.watched.lock();
        watched.retain_mut(|watched| {
            let Some(held) = watched.held.upgrade() else { return false };
            let is_alive = held.quic.close_reason().is_none();
            if is_alive {
                watched.look(&held, now, late, limits);
                if held.patience == 1 {
                    pause = LOOK;
                }
            }
            kept.push(held);
            is_alive
        });
        drop(watched);
        pause
    }
}

impl Watched {
    fn look(&mut self, held: &Held, now: Instant, late: Duration, limits: Silence) {
        let stats = held.quic.stats();
        if stats.udp_rx.datagrams != self.datagrams {
            self.datagrams = stats.udp_rx.datagrams;
            self.heard = now;
            return;
        }
        self.heard += late;
        let link = Quality {
            rtt: stats.path.rtt,
            sent: stats.path.sent_packets,
            lost: stats.path.lost_packets,
            is_tunnelled: fabric::is_way(held.quic.remote_address()),
        };
        let silence = now.saturating_duration_since(self.heard);
        if silence > silence_max(limits.base, limits.most, held.patience, link) {
            debug!(peer = %held.peer.user, alpn = %held.alpn, ?silence, ?link, "peer is silent");
            held.quic.close(CODE_SILENT.into(), b"silent");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_may_be_silent_for_as_long_as_it_is_slow_and_lossy() {
        let (base, most) = (Duration::from_millis(700), Duration::from_secs(10));
        let ms = |link| silence_max(base, most, 1, link).as_millis();
        let lan = Quality { rtt: Duration::from_micros(300), sent: 1000, ..Quality::default() };
        assert!((700..720).contains(&ms(lan)));
        let far = Quality { rtt: Duration::from_millis(100), ..lan };
        assert_eq!(ms(far), 1100);
        let lossy = Quality { lost: 50, ..far };
        assert_eq!(ms(lossy), 3200);
        let unknown = Quality { sent: 10, lost: 5, ..far };
        assert_eq!(ms(unknown), 1100);
        let satellite = Quality { rtt: Duration::from_secs(2), ..lossy };
        assert_eq!(ms(satellite), 10_000);
        assert!(ms(Quality { is_tunnelled: true, ..lan }) > 2_800);
        let patient = |patience, link| silence_max(base, most, patience, link).as_millis();
        assert_eq!((patient(2, far), patient(2, lossy), patient(10, lossy)), (1800, 3200, 7400));
    }
}
