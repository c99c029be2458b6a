//! The runtime with real guests: hand-made ones in WAT, and those of `wasm-apps/`.

mod commands;
mod compiling;
mod http;
mod limits;
mod sockets;
mod support;
