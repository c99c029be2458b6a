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

mod adapt;
mod code;
mod command;
mod compile;
mod container;
mod engine;
mod guest;
mod hold;
mod imports;
mod keyvalue;
mod lanes;
mod limits;
mod linker;
mod logs;
mod machine;
mod meter;
mod network;
mod plugin;
mod pod;
mod serve;
mod shares;
mod sockets;
mod stdio;
mod tasks;
mod tls;
mod types;
mod volumes;
mod wasm;

pub use compile::{
    WASM_BYTES_MAX, compatibility_hash, compatibility_hash_for, compile, compile_file,
    compile_file_for, inspect,
};
pub use engine::{Allocator, CodeClass, Plan};
pub use keyvalue::{
    KEY_BYTES_MAX, MemoryKeyValue, NoKeyValue, VALUE_BYTES_MAX, incremented, is_bucket_name,
};
pub use machine::{Executor, Machine};
pub use network::{HttpError, Unsent, VirtualNetwork};
pub use plugin::{PluginEngine, PluginError, PluginNode, PluginPod, SchedulerPlugin};
pub use stdio::{Input, Stdio};
pub use tasks::GuestThreads;
pub use types::*;
pub use wasm::{RuntimeConfig, WallClock, WasmRuntime};
