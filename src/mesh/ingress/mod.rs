//! The ingress: HTTP from outside, routed by Ingresses and the Gateway API.
//!
//! Data in: connections (TCP, with TLS or without) and the table of routes. Data out: the requests at
//! the Services they are for, and answers of its own: redirects, refusals.
//!
//! ```text
//! Ingress ──┐                      ┌─ filters ── mesh call (HTTP/1.1 to any pod)
//! HTTPRoute ┴─ RouteTable ── rule ─┼─ upgrade ── bytes (WebSocket)
//!              (swapped)           ├─ h2c ────── HTTP/2 (gRPC)
//!                                  └─ redirect, refusal
//! ```
//!
//! Ports are those of the objects: 80 and 443 mean the node's own HTTP and HTTPS ingress, whatever
//! their real numbers are, so that a Gateway made for any cluster works without root. Other ports of
//! Gateways are opened as they are.
//!
//! # Invariants
//!
//! - The table is swapped whole; a request runs by the one it began with.
//! - A request to a local pod changes no thread. What routes do not ask for costs nothing.
//! - Everything that a client can send or withhold has a limit. Refusals are counted, and logged at
//!   most once a minute for each kind.
//! - What two readers could understand differently (two hosts, two lengths) is refused.

mod action;
mod body;
mod from_gateway;
mod from_ingress;
mod h2c;
mod headers;
mod matcher;
mod mirror;
mod ports;
mod refusal;
mod request;
mod server;
mod stalled;
mod table;
mod tls;
mod upgrade;

#[cfg(test)]
mod filters_test;
#[cfg(test)]
mod hostile_test;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tls_test;

use std::sync::atomic::AtomicU16;
use std::sync::{Arc, OnceLock};

use http::HeaderValue;
use tokio::sync::Semaphore;

use self::h2c::Http2Connections;
pub(super) use self::ports::GatewayPorts;
use self::refusal::Refusals;
pub(super) use self::table::RouteTable;
pub use self::table::{HttpObjects, HttpRoutes, SecretName};
pub use self::tls::CertificatePem;
pub(super) use self::tls::Certificates;

/// Copies of requests that are under way at once; more are not made.
const MIRRORS_MAX: usize = 64;

/// What all listeners of a node share.
#[derive(Debug)]
pub(super) struct Ingress {
    pub(super) certificates: Arc<Certificates>,
    pub(super) ports: GatewayPorts,
    refusals: Refusals,
    http2: Http2Connections,
    mirrors: Arc<Semaphore>,
    /// Real ports of the node's HTTP and HTTPS ingress; 0: there is none.
    http_port: AtomicU16,
    https_port: AtomicU16,
    /// Tells clients of the HTTPS ingress that they can have HTTP/3.
    alt_svc: OnceLock<HeaderValue>,
    has_access_log: bool,
}

impl Ingress {
    pub(super) fn new(
        ports: GatewayPorts,
        has_access_log: bool,
        metrics: &crate::mesh::MeshMetrics,
    ) -> Self {
        Self {
            certificates: Arc::default(),
            ports,
            refusals: Refusals::new(metrics.clone()),
            http2: Http2Connections::default(),
            mirrors: Arc::new(Semaphore::new(MIRRORS_MAX)),
            http_port: AtomicU16::new(0),
            https_port: AtomicU16::new(0),
            alt_svc: OnceLock::new(),
            has_access_log,
        }
    }

    /// Lets go of kept connections to pods.
    pub(super) fn forget_http2(&self) {
        self.http2.clear();
    }

    /// Opens ports and shows certificates as the routes want it.
    pub(super) fn sync(&self, routes: &HttpRoutes, mesh: &crate::mesh::Mesh) {
        self.certificates.set_uses(&routes.certificates);
        self.ports.sync(&routes.ports, mesh);
    }
}
