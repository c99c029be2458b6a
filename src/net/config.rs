//! Settings of the QUIC endpoint.

use std::time::Duration;

/// Limits and timers of every connection of one endpoint.
///
/// The defaults suit a LAN of small machines: a killed node is noticed in less than a second, and
/// a peer that sends as fast as it can costs a Raspberry Pi a few MiB.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// Pause after which a silent connection sends a ping. Default 200 ms. Longer saves battery
    /// and mobile data, and must stay well below a third of `idle_timeout`.
    pub keep_alive: Duration,
    /// Silence after which a connection is given up and everything on it fails. Default 700 ms. It
    /// counts from the first packet sent after the last one received, so a dead node is noticed at
    /// most `keep_alive` later: within 900 ms, so that no request waits a second for it. QUIC
    /// itself raises it to three times its probe timeout on slow links. Raise it on links that
    /// stall (LTE, busy Wi-Fi).
    pub idle_timeout: Duration,
    /// Time for a handshake, TLS included. Default 2 s: a node that was away answers the first
    /// packet it gets, and a short attempt is soon followed by the next.
    pub handshake_timeout: Duration,
    /// Bytes of one stream that may wait unread. Default 512 KiB: 100 Mbit/s at 40 ms.
    pub stream_window_bytes: u32,
    /// Bytes of one connection that may wait unread, over all its streams. Default 4 MiB.
    pub connection_window_bytes: u32,
    /// Bytes of one connection sent but not acknowledged. Default 4 MiB.
    pub send_window_bytes: u64,
    /// Streams that a peer may have open at once. Default 1,024.
    pub streams_max: u32,
    /// Connections of the endpoint, both directions. Default 4,096; more are refused.
    pub connections_max: usize,
    /// Connections from which on a dialler must first prove its address (QUIC Retry). Default 1,024.
    pub connections_until_retry: usize,
    /// Handshakes of inbound connections at once. Default 256; more are refused.
    pub handshakes_max: usize,
    /// Pause before the first and before any later attempt to dial a lost peer again.
    /// Default 100 ms doubling to 5 s, each shortened at random by up to a half.
    pub redial: (Duration, Duration),
}

impl Default for NetConfig {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_millis(200),
            idle_timeout: Duration::from_millis(700),
            handshake_timeout: Duration::from_secs(2),
            stream_window_bytes: 512 * 1024,
            connection_window_bytes: 4 * 1024 * 1024,
            send_window_bytes: 4 * 1024 * 1024,
            streams_max: 1024,
            connections_max: 4096,
            connections_until_retry: 1024,
            handshakes_max: 256,
            redial: (Duration::from_millis(100), Duration::from_secs(5)),
        }
    }
}
