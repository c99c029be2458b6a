//! edgeorc: WebAssembly pods on edge nodes, behind a Kubernetes-compatible API.
//!
//! Read the rooms in this order; it is the order in which data flows:
//! a verb of the [`cli`] reaches the [`apiserver`], which writes to the [`store`] (replicated by
//! the `edgeorc-raft` crate); watches wake the [`controllers`] and the [`scheduler`] through the
//! [`client`]; the [`agent`] of the chosen node runs the pod in `edgeorc-runtime`; the [`mesh`]
//! carries calls between pods over [`net`]. `tests/tidy.rs` holds the list of who may import whom.

#![recursion_limit = "256"]

pub mod cli;
pub mod roles;

pub mod apiserver;
pub mod store;

pub mod client;
pub mod controllers;
pub mod scheduler;

pub mod agent;
pub mod mesh;

pub mod api;
pub mod config;
pub mod net;
pub mod rt;
mod streaming;
pub mod telemetry;
