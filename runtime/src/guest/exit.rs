//! How the end of a guest reads in Kubernetes' words.

use wasmtime::{PoolConcurrencyLimitError, Store};
use wasmtime_wasi::I32Exit;

use super::Guest;
use crate::types::{Exit, ExitReason};

/// 128 + SIGABRT: what a process that aborts exits with.
const CODE_TRAP: i32 = 134;
/// 128 + SIGKILL.
const CODE_KILLED: i32 = 137;
/// Longest message kept, in bytes; Kubernetes keeps 4096 of a termination message.
const MESSAGE_BYTES_MAX: usize = 2048;

/// The end of a guest that returned or called `exit`.
pub(crate) fn exit_of_code(code: i32) -> Exit {
    let reason = if code == 0 { ExitReason::Completed } else { ExitReason::Error };
    Exit { code, reason, message: String::new() }
}

/// The end of a guest that was stopped from outside.
pub(crate) fn killed() -> Exit {
    Exit { code: CODE_KILLED, reason: ExitReason::Killed, message: String::new() }
}

/// The end of a guest whose call or instantiation failed.
pub(crate) fn exit_of_error(store: &Store<Guest>, error: &wasmtime::Error) -> Exit {
    if let Some(I32Exit(code)) = error.downcast_ref() {
        return exit_of_code(*code);
    }
    let limiter = store.data().limiter();
    if limiter.is_hit() {
        let message = limiter.describe();
        return Exit { code: CODE_KILLED, reason: ExitReason::OomKilled, message };
    }
    // The cause first: people read the first line. Then where it happened.
    let chain: Vec<_> = error.chain().map(ToString::to_string).collect();
    let mut message = chain.into_iter().rev().collect::<Vec<_>>().join("\n");
    message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
    Exit { code: CODE_TRAP, reason: ExitReason::Error, message }
}

/// Whether an instance could not be made because the engine's pool is used up.
pub(crate) fn is_out_of_slots(error: &wasmtime::Error) -> bool {
    error.is::<PoolConcurrencyLimitError>()
}
