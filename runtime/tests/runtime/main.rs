//! The runtime with real guests: hand-made ones in WAT, and those of `wasm-apps/`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

#[expect(dead_code, reason = "the bomb is for the end-to-end tests and the bench")]
#[path = "../../../tests/e2e/bad_guests.rs"]
mod bad_guests;
mod commands;
mod compiling;
mod conformance;
mod hostile;
mod http;
mod imports;
mod limits;
mod plugins;
mod pulley;
mod sockets;
mod sockets_p3;
mod support;
mod tls;
mod udp;
mod volumes;
mod worlds;
