//! Wasm sandboxes and the guest side of the virtual network.
//!
//! Data in: pod and container configurations with compiled components, requests and connections
//! for pod addresses. Data out: exits, usage, log lines, guests' outgoing connections.
//!
//! # Invariants
//!
//! - Knows no Kubernetes object and no consensus: the agent translates.
//! - A guest reaches the host only through what its linker was given; imports are denied by default.
//! - No guest can delay the control plane: guests run on their own threads at lower priority.
//! - The interface to the node ([`PodRuntime`], [`Uplink`]) is narrow enough for a process
//!   boundary to stand behind it.

mod compile;
mod network;
mod types;
mod wasm;

pub use compile::{compatibility_hash, compile, compile_file, inspect};
pub use network::{HttpError, Unsent, VirtualNetwork};
pub use types::*;
pub use wasm::{RuntimeConfig, WallClock, WasmRuntime};
