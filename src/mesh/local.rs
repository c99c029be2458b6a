//! The pods of this node, as the mesh sees them.

use std::fmt::Debug;
use std::io;
use std::net::{IpAddr, SocketAddr};

use async_trait::async_trait;
use http::{Request, Response};

use super::policy::PodOwner;
use super::udp::Datagrams;
use crate::net::{Body, BodyError, BoxIo};

/// Why a request did not get its answer from a pod of this node.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalError {
    /// Nothing listens there; no guest has seen the request, which comes back. Safe to retry.
    #[error("nothing listens at the address")]
    Refused(Box<Request<Body>>),
    /// The guest had the request and gave no answer: it trapped, ended or ran out of time.
    #[error("the guest gave no answer: {0}")]
    Failed(#[source] BodyError),
}

/// Reaches the pods of this node, and knows whose addresses are whose. Implemented by the agent over the runtime's virtual network.
#[async_trait]
pub trait Local: Debug + Send + Sync + 'static {
    /// The pod of this node that has the address.
    fn owner(&self, ip: IpAddr) -> Option<PodOwner> {
        let _ = ip;
        None
    }

    /// Opens a byte stream to a listening guest, which sees `from` as its peer if there is one.
    ///
    /// # Errors
    ///
    /// `ConnectionRefused` or `HostUnreachable` when nothing listens there.
    async fn connect(&self, from: Option<SocketAddr>, to: SocketAddr) -> io::Result<BoxIo>;

    /// Carries a flow of datagrams to a guest's socket, until one side lets go of it.
    ///
    /// # Errors
    ///
    /// `ConnectionRefused` or `HostUnreachable` when no socket is bound there.
    async fn datagrams(&self, from: SocketAddr, to: SocketAddr, flow: Datagrams) -> io::Result<()> {
        drop((from, to, flow));
        Err(io::ErrorKind::ConnectionRefused.into())
    }

    /// Hands a request to the guest that listens at `to`, and waits for the head of its answer.
    ///
    /// # Errors
    ///
    /// See [`LocalError`].
    async fn http(
        &self,
        to: SocketAddr,
        request: Request<Body>,
    ) -> Result<Response<Body>, LocalError>;
}
