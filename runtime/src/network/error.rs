//! Why a request got no response.

use parking_lot::Mutex;

use crate::types::Body;

/// A request of which nothing was sent, handed back so that it can go to another endpoint.
pub struct Unsent(Mutex<http::Request<Body>>);

impl Unsent {
    /// Keeps a request that was not sent.
    #[must_use]
    pub fn new(request: http::Request<Body>) -> Box<Self> {
        Box::new(Self(Mutex::new(request)))
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
