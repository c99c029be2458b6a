//! Settings of the QUIC endpoint.

use std::time::Duration;

#[cfg(doc)]
use crate::net::Alpn;

/// Limits and timers of every connection of one endpoint.
///
/// The defaults suit a LAN of small machines: a killed node is noticed in less than a second, and
/// a peer that sends as fast as it can costs a Raspberry Pi a few MiB.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// Pause after which the dialler of a silent connection sends a ping. Default 200 ms. Longer saves battery
    /// and mobile data, and must stay well below a third of `idle_timeout`.
    pub keep_alive: Duration,
    /// Silence after which a connection on an ideal link is given up and everything on it fails.
    /// Default 700 ms, so that a dead node is noticed within 900 ms and no request waits a second
    /// for it. A link that is slow or lossy is given longer by itself, up to `silence_max`: four
    /// round trips more, and four times as long where packets get lost or go through a tunnel. This and
    /// `keep_alive` are longer where nobody waits to be told: see [`Alpn::patience`].
    pub idle_timeout: Duration,
    /// Silence after which any connection is given up. Default 10 s.
    pub silence_max: Duration,
    /// Time for a handshake, TLS included. Default 2 s: a node that was away answers the first
    /// packet it gets, and a short attempt is soon followed by the next.
    pub handshake_timeout: Duration,
    /// Bytes of one stream that may wait unread. Default 512 KiB: 100 Mbit/s at 40 ms.
    pub stream_window_bytes: u32,
    /// Bytes of one connection that may wait unread, over all its streams. Default 4 MiB.
    pub connection_window_bytes: u32,
    /// Bytes of one connection sent but not acknowledged. Default 4 MiB.
    pub send_window_bytes: u64,
    /// Longest time in which a peer may read nothing of a stream that has something for it; then the
    /// stream is reset. Default 5 min.
    pub stall_max: Duration,
    /// Streams that a peer may have open at once. Default 1,024.
    pub streams_max: u32,
    /// Connections of the endpoint, both directions. Default 4,096; more are refused.
    pub connections_max: usize,
    /// Connections from which on a dialler must first prove its address (QUIC Retry). Default 1,024.
    pub connections_until_retry: usize,
    /// Handshakes of inbound connections at once. Default 256; more are refused.
    pub handshakes_max: usize,
    /// Such handshakes from which on a dialler must first prove its address: those whose address does
    /// not answer take no more places than these. Default 64.
    pub handshakes_until_retry: usize,
    /// Connections that one peer may open for one purpose. Default 16; more are refused.
    pub connections_per_peer_max: usize,
    /// How long an attempt over UDP goes on alone, before one through a tunnel is started beside
    /// it. Default 400 ms.
    pub tunnel_head_start: Duration,
    /// Pause before the first and before any later attempt to replace a tunnelled connection by a
    /// direct one. Default 5 s doubling to 5 min.
    pub retry_direct: (Duration, Duration),
    /// Pause before the first and before any later attempt to dial a lost peer again.
    /// Default 100 ms doubling to 5 s, each shortened at random by up to a half.
    pub redial: (Duration, Duration),
    /// How long a connection stays that nobody uses and on which only this side opens streams: each costs
    /// pings, and an agent that goes from server to server has one to all of them before long. Default 30 s.
    pub unused_after: Duration,
}

impl Default for NetConfig {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_millis(200),
            idle_timeout: Duration::from_millis(700),
            silence_max: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(2),
            stream_window_bytes: 512 * 1024,
            connection_window_bytes: 4 * 1024 * 1024,
            send_window_bytes: 4 * 1024 * 1024,
            stall_max: Duration::from_secs(300),
            streams_max: 1024,
            connections_max: 4096,
            connections_until_retry: 1024,
            handshakes_max: 256,
            handshakes_until_retry: 64,
            connections_per_peer_max: 16,
            tunnel_head_start: Duration::from_millis(400),
            retry_direct: (Duration::from_secs(5), Duration::from_secs(300)),
            redial: (Duration::from_millis(100), Duration::from_secs(5)),
            unused_after: Duration::from_secs(30),
        }
    }
}
