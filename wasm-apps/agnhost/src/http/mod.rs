//! HTTP/1.1 as far as test servers need it: requests in, answers out, and a client for GET.
//!
//! Data in: bytes of a connection. Data out: [`Request`] to a handler, its [`Response`] to the
//! client. Connections are kept alive; bodies have a length or come in chunks.
//!
//! # Invariants
//!
//! Every part of a message has a limit that is checked before the part is kept.

mod client;
mod message;
mod server;

pub(crate) use client::get;
pub(crate) use message::{Body, Request, Response};
pub(crate) use server::{handler, serve};
