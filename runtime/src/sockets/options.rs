//! Socket options: kept and read back. A pipe in memory needs none of them.
//!
//! Values out of range are brought into it, as Linux does; 0 is refused, as WASI says.

use std::sync::Arc;

use parking_lot::Mutex;

use super::code::Code;
use crate::network::PIPE_BYTES;

const SECOND: u64 = 1_000_000_000;
/// Range of keep-alive times.
const KEEP_ALIVE_MIN: u64 = SECOND;
const KEEP_ALIVE_MAX: u64 = 32_767 * SECOND;
/// Most keep-alive probes.
const KEEP_ALIVE_COUNT_MAX: u32 = 127;
/// Largest buffer that can be asked for.
const BUFFER_BYTES_MAX: u64 = 0x7fff_ffff;
/// Buffer of a UDP socket, as on Linux.
pub(super) const UDP_BUFFER_BYTES: u64 = 212_992;

/// The options of one socket, with Linux' defaults. Times are in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    pub(super) keep_alive_enabled: bool,
    pub(super) keep_alive_idle_time: u64,
    pub(super) keep_alive_interval: u64,
    pub(super) keep_alive_count: u32,
    pub(super) hop_limit: u8,
    pub(super) receive_buffer_size: u64,
    pub(super) send_buffer_size: u64,
}

/// Options of a socket and of what it will accept.
pub(super) type SharedOptions = Arc<Mutex<Options>>;

impl Options {
    pub(super) fn tcp() -> SharedOptions {
        Arc::new(Mutex::new(Self::with_buffers(PIPE_BYTES as u64)))
    }

    pub(super) fn udp() -> Self {
        Self::with_buffers(UDP_BUFFER_BYTES)
    }

    fn with_buffers(bytes: u64) -> Self {
        Self {
            keep_alive_enabled: false,
            keep_alive_idle_time: 7200 * SECOND,
            keep_alive_interval: 75 * SECOND,
            keep_alive_count: 9,
            hop_limit: 64,
            receive_buffer_size: bytes,
            send_buffer_size: bytes,
        }
    }

    pub(super) fn set_keep_alive_idle_time(&mut self, value: u64) -> Result<(), Code> {
        self.keep_alive_idle_time = not_zero(value)?.clamp(KEEP_ALIVE_MIN, KEEP_ALIVE_MAX);
        Ok(())
    }

    pub(super) fn set_keep_alive_interval(&mut self, value: u64) -> Result<(), Code> {
        self.keep_alive_interval = not_zero(value)?.clamp(KEEP_ALIVE_MIN, KEEP_ALIVE_MAX);
        Ok(())
    }

    pub(super) fn set_keep_alive_count(&mut self, value: u32) -> Result<(), Code> {
        self.keep_alive_count = not_zero(value)?.min(KEEP_ALIVE_COUNT_MAX);
        Ok(())
    }

    pub(super) fn set_hop_limit(&mut self, value: u8) -> Result<(), Code> {
        self.hop_limit = not_zero(value)?;
        Ok(())
    }

    pub(super) fn set_receive_buffer_size(&mut self, value: u64) -> Result<(), Code> {
        self.receive_buffer_size = not_zero(value)?.min(BUFFER_BYTES_MAX);
        Ok(())
    }

    pub(super) fn set_send_buffer_size(&mut self, value: u64) -> Result<(), Code> {
        self.send_buffer_size = not_zero(value)?.min(BUFFER_BYTES_MAX);
        Ok(())
    }
}

/// A value of which 0 means nothing.
pub(super) fn not_zero<T: Default + PartialEq>(value: T) -> Result<T, Code> {
    if value == T::default() { Err(Code::InvalidArgument) } else { Ok(value) }
}
