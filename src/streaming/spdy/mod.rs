//! SPDY/3.1, the part that streaming requests use: streams a client opens, data, pings.
//!
//! Data in: bytes of a connection. Data out: [`Frame`]s; bytes of frames to send.
//!
//! # Invariants
//!
//! - Both header compression states are one per connection and direction, so every header block is
//!   read, wanted or not.
//! - Flow control is not kept: the peers of this protocol ignore it, and bytes that nobody takes
//!   stop the connection below.

mod decode;
mod encode;
mod headers;

pub(crate) use decode::{Decoder, Frame, Headers};
pub(crate) use encode::Encoder;

/// Version in each control frame.
const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;
/// Flag of a stream's last frame.
const FIN: u8 = 1;
/// Bytes before a frame's payload.
const HEAD_BYTES: usize = 8;
/// Longest payload of a data frame, in bytes; Go clients send at most 32 KiB at once.
const DATA_BYTES_MAX: usize = 1024 * 1024;
/// Longest payload of a control frame, in bytes.
const CONTROL_BYTES_MAX: usize = 16 * 1024;

/// The peer broke the protocol: end the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SpdyError {
    /// Another version of SPDY.
    #[error("version {0} of SPDY")]
    Version(u16),
    /// A frame that is longer than its kind may be.
    #[error("a frame of {0} bytes")]
    TooLong(usize),
    /// A control frame whose payload is not what its kind needs.
    #[error("a malformed frame of type {0}")]
    Malformed(u16),
    /// A header block that cannot be unpacked, or is too large.
    #[error("a malformed header block")]
    Headers,
    /// Stream 0 does not exist.
    #[error("a frame for stream 0")]
    StreamZero,
}
