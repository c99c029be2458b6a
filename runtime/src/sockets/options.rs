//! Socket options: kept and read back. A pipe in memory needs none of them.

use wasmtime_wasi::p2::SocketResult;
use wasmtime_wasi::p2::bindings::sockets::network::ErrorCode;

use crate::network::PIPE_BYTES;

const SECOND: u64 = 1_000_000_000;

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

impl Default for Options {
    fn default() -> Self {
        Self {
            keep_alive_enabled: false,
            keep_alive_idle_time: 7200 * SECOND,
            keep_alive_interval: 75 * SECOND,
            keep_alive_count: 9,
            hop_limit: 64,
            receive_buffer_size: PIPE_BYTES as u64,
            send_buffer_size: PIPE_BYTES as u64,
        }
    }
}

/// Sets an option for which 0 means nothing.
pub(super) fn set<T: Default + PartialEq>(option: &mut T, value: T) -> SocketResult<()> {
    if value == T::default() {
        return Err(ErrorCode::InvalidArgument.into());
    }
    *option = value;
    Ok(())
}
