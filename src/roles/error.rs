//! Why a node does not start or does not go on.

use std::net::SocketAddr;
use std::path::PathBuf;

/// One sentence for the operator: what was attempted, why it failed, what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// Another process listens there. Give up until it is gone.
    #[error("{what} address {address} is in use; stop the other process or set {flag}")]
    PortInUse {
        /// What it is for.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The flag that moves it.
        flag: &'static str,
    },
    /// The address cannot be listened on for another reason. Give up.
    #[error("cannot listen on {what} address {address}: {cause}; check --bind-address")]
    Listen {
        /// What it is for.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        cause: std::io::Error,
    },
    /// The data directory cannot be used. Give up; the text says what to change.
    #[error("cannot use the data directory {path}: {reason}")]
    DataDir {
        /// The folder.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// The cluster did not let this node in. Give up; the text says why.
    #[error("cannot join: {0}")]
    Join(String),
    /// The store did not open. Give up; the text says what to do.
    #[error("cannot open the store: {0}")]
    Store(String),
    /// Something else failed at start or while running.
    #[error("{0}")]
    Failed(String),
}

impl NodeError {
    /// Tells a taken port from other listen errors.
    pub(super) fn listen(
        what: &'static str,
        flag: &'static str,
        address: SocketAddr,
        cause: std::io::Error,
    ) -> Self {
        if cause.kind() == std::io::ErrorKind::AddrInUse {
            Self::PortInUse { what, address, flag }
        } else {
            Self::Listen { what, address, cause }
        }
    }

    /// With any cause that explains itself.
    pub(super) fn failed(cause: impl std::fmt::Display) -> Self {
        Self::Failed(cause.to_string())
    }
}
