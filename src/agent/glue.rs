//! Between the sandboxes and the network: the mesh reaches pods, guests reach the mesh.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use edgeorc_runtime::{
    Body, BodyError, BoxIo, Datagrams, HttpError, PodId, Uplink, VirtualNetwork,
};
use http::{Request, Response};

use crate::mesh::{CallError, Caller, Local, LocalError, Mesh, PodOwner};

/// The pods of this node for the mesh.
#[derive(Debug)]
pub struct LocalPods(Arc<VirtualNetwork>);

impl LocalPods {
    /// Over the switch that the runtime puts its pods on.
    #[must_use]
    pub fn new(network: Arc<VirtualNetwork>) -> Self {
        Self(network)
    }
}

#[async_trait]
impl Local for LocalPods {
    fn owner(&self, ip: IpAddr) -> Option<PodOwner> {
        let (namespace, uid) = self.0.owner(ip)?;
        Some(PodOwner { namespace, uid })
    }

    async fn connect(
        &self,
        from: Option<SocketAddr>,
        to: SocketAddr,
    ) -> std::io::Result<crate::mesh::BoxIo> {
        match from {
            Some(from) => self.0.connect_from(from, to).await.map(|io| Box::new(io) as _),
            None => self.0.connect(to).await.map(|io| Box::new(io) as _),
        }
    }

    async fn datagrams(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        flow: crate::mesh::Datagrams,
    ) -> std::io::Result<()> {
        let crate::mesh::Datagrams { tx, rx } = flow;
        self.0.datagrams(from, to, Datagrams { tx, rx }).await
    }

    async fn http(
        &self,
        to: SocketAddr,
        request: Request<Body>,
    ) -> Result<Response<Body>, LocalError> {
        self.0.http(to, request).await.map_err(|error| match error {
            HttpError::Refused(unsent) | HttpError::Busy(unsent) => {
                LocalError::Refused(Box::new(unsent.into_request()))
            }
            other => LocalError::Failed(Box::new(other)),
        })
    }
}

/// What went wrong, in words that the runtime has codes for. The guest's own words about its body
/// go back to it.
fn as_io(error: CallError) -> BodyError {
    let error = match error {
        CallError::RequestBody(cause) => return cause,
        other => other,
    };
    let kind = match &error {
        CallError::Timeout => std::io::ErrorKind::TimedOut,
        CallError::Denied => std::io::ErrorKind::ConnectionRefused,
        CallError::Forbidden(_) => std::io::ErrorKind::PermissionDenied,
        CallError::UnknownName(_) => std::io::ErrorKind::NotFound,
        CallError::Broken(cause) => match cause.downcast_ref::<std::io::Error>() {
            Some(cause) => cause.kind(),
            None => std::io::ErrorKind::UnexpectedEof,
        },
        // Nobody is there to take it.
        _ => std::io::ErrorKind::HostUnreachable,
    };
    std::io::Error::new(kind, error).into()
}

/// The mesh for guests. Made before the mesh, which needs the runtime that needs this; until the
/// mesh is set, guests are told that the network is unreachable.
#[derive(Debug, Default)]
pub struct GuestUplink(OnceLock<Mesh>);

impl GuestUplink {
    /// Gives guests their way out. Only the first call has an effect.
    pub fn set(&self, mesh: Mesh) {
        let _ = self.0.set(mesh);
    }

    fn mesh(&self) -> std::io::Result<&Mesh> {
        self.0.get().ok_or_else(|| std::io::ErrorKind::NetworkUnreachable.into())
    }
}

fn caller(pod: &PodId) -> Caller<'_> {
    Caller { namespace: &pod.namespace, uid: &pod.uid }
}

#[async_trait]
impl Uplink for GuestUplink {
    async fn connect(
        &self,
        from: &PodId,
        source: SocketAddr,
        to: SocketAddr,
    ) -> std::io::Result<BoxIo> {
        let stream = self.mesh()?.connect_from(caller(from), source, to).await?;
        Ok(Box::new(stream))
    }

    async fn datagrams(
        &self,
        from: &PodId,
        source: SocketAddr,
        to: SocketAddr,
        flow: Datagrams,
    ) -> std::io::Result<()> {
        let Datagrams { tx, rx } = flow;
        let flow = crate::mesh::Datagrams { tx, rx };
        self.mesh()?.datagrams(caller(from), source, to, flow).await
    }

    async fn resolve(&self, from: &PodId, name: &str) -> Vec<IpAddr> {
        match self.mesh() {
            Ok(mesh) => mesh.resolve(&from.namespace, name).await,
            Err(_) => Vec::new(),
        }
    }

    async fn http(
        &self,
        from: &PodId,
        request: Request<Body>,
    ) -> Result<Response<Body>, BodyError> {
        self.mesh()?.http_from(caller(from), request).await.map_err(as_io)
    }
}
