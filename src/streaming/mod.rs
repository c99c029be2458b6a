//! What `exec`, `attach`, `port-forward` and heartbeats speak, as codecs without sockets.
//!
//! Data in: bytes of a connection. Data out: frames, and bytes to send.
//!
//! - [`frame`]: between an API server and the agent of the pod's node; the only one an agent knows.
//! - [`channel`]: `v4.channel.k8s.io` and `v5.channel.k8s.io`, the messages of a client's WebSocket.
//! - [`renewals`]: heartbeats of nodes, on a stream that stays open.
//! - [`spdy`]: SPDY/3.1 as kubectl uses it, on an upgraded connection or within a WebSocket.
//!
//! # Invariants
//!
//! - Nothing here waits, and nothing is believed before its length was judged: every frame, header
//!   block and buffer has a limit.
//! - A malformed input is an error, never a panic, and ends its own session only.

pub(crate) mod channel;
pub(crate) mod frame;
pub(crate) mod renewals;
pub(crate) mod spdy;
