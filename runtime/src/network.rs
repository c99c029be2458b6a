//! The node's switch: which pod of this node listens at which address.

use std::net::{IpAddr, SocketAddr};

use crate::types::{Body, BoxIo};

/// A request of which nothing was sent, handed back so that it can go to another endpoint.
pub struct Unsent(parking_lot::Mutex<http::Request<Body>>);

impl Unsent {
    /// Keeps a request that was not sent.
    #[must_use]
    pub fn new(request: http::Request<Body>) -> Box<Self> {
        Box::new(Self(parking_lot::Mutex::new(request)))
    }

    /// Gives the request back.
    #[must_use]
    pub fn into_request(self) -> http::Request<Body> {
        self.0.into_inner()
    }
}

impl std::fmt::Debug for Unsent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unsent").finish_non_exhaustive()
    }
}

/// Why a pod of this node did not answer a request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// Nothing listens there. Nothing was sent: try another endpoint with the request inside.
    #[error("connection refused")]
    Refused(Box<Unsent>),
    /// The pod has too many requests in flight. Nothing was sent: try another endpoint.
    #[error("the pod has too many requests in flight")]
    Busy(Box<Unsent>),
    /// The guest took the request and gave no response (trap, end). Outcome unknown: retry only
    /// what is idempotent, else answer 502.
    #[error("the guest gave no response: {0}")]
    Guest(String),
    /// The connection to the guest broke. Outcome unknown: as for [`HttpError::Guest`].
    #[error("connection to the guest broke: {0}")]
    Connection(#[source] std::io::Error),
}

/// The node's switch.
#[derive(Debug, Default)]
pub struct VirtualNetwork {}

impl VirtualNetwork {
    /// An empty network.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a pod with this address lives on this node.
    #[must_use]
    pub fn has(&self, _ip: IpAddr) -> bool {
        false
    }

    /// Whether something listens at this address on this node.
    #[must_use]
    pub fn is_listening(&self, _at: SocketAddr) -> bool {
        false
    }

    /// Opens a byte stream to a pod on this node.
    ///
    /// # Errors
    ///
    /// `HostUnreachable` if no pod here has the address, `ConnectionRefused` if nothing listens at
    /// the port or its backlog is full.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a dropped call leaves no connection behind.
    pub async fn connect(&self, _to: SocketAddr) -> std::io::Result<BoxIo> {
        Err(std::io::ErrorKind::HostUnreachable.into())
    }

    /// Sends a request to a pod on this node: to an HTTP component directly, to a guest with a
    /// TCP listener by HTTP/1.1 over a pipe in memory.
    ///
    /// # Errors
    ///
    /// See [`HttpError`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a dropped call drops the request; a guest that took it already is not told.
    pub async fn http(
        &self,
        _to: SocketAddr,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, HttpError> {
        Err(HttpError::Refused(Unsent::new(request)))
    }
}
