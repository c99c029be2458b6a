//! Flows of datagrams: to a Service, a pod anywhere, or outside.
//!
//! A flow joins one socket with one address. Which endpoint of a Service it goes to is decided when
//! it begins, and holds until it ends: by whoever opened it, when it is idle. Between nodes each
//! flow has a stream of its own, on which every datagram follows its length: so long datagrams fit
//! whatever the path, and a full stream holds its sender back rather than the other flows.
//!
//! NodePorts call [`Mesh::datagrams_to`] with one end of [`Datagrams::pair`] per client address.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::sync::mpsc;
use tracing::{trace, warn};

use super::Mesh;
use super::balancer::Backend;
use super::caller;
use super::endpoint::InFlight;
use super::outside;
use super::policy::{Caller, Origin, Sender};
use super::routes::{Place, Protocol};
use super::wire::{self, Carries};
use crate::net::{Io, Stream};

/// Largest datagram, with what IP adds to it.
pub(super) const DATAGRAM_BYTES_MAX: usize = 64 << 10;
/// Datagrams that one flow may hold in each direction before its sender waits or drops.
const FLOW_DATAGRAMS_MAX: usize = 32;
/// Flows that leave the cluster from one node; each has a socket of the host.
pub(super) const OUTSIDE_FLOWS_MAX: usize = 4096;

/// One end of a flow of datagrams between two addresses. Dropping it ends the flow.
#[derive(Debug)]
pub struct Datagrams {
    /// To the other end.
    pub tx: mpsc::Sender<Bytes>,
    /// From the other end.
    pub rx: mpsc::Receiver<Bytes>,
}

impl Datagrams {
    /// The two ends of a new flow.
    #[must_use]
    pub fn pair() -> (Self, Self) {
        let (near_tx, far_rx) = mpsc::channel(FLOW_DATAGRAMS_MAX);
        let (far_tx, near_rx) = mpsc::channel(FLOW_DATAGRAMS_MAX);
        (Self { tx: near_tx, rx: near_rx }, Self { tx: far_tx, rx: far_rx })
    }
}

impl Mesh {
    /// Carries a flow of datagrams from the socket `from` of the pod `caller` of this node to a Service's address, a pod of any
    /// node, or an address outside, until one side lets go of it.
    ///
    /// # Errors
    ///
    /// As [`Mesh::connect`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the flow ends.
    pub async fn datagrams(
        &self,
        caller: Caller<'_>,
        from: SocketAddr,
        to: SocketAddr,
        flow: Datagrams,
    ) -> io::Result<()> {
        let backend = {
            let table = self.0.table.load();
            match table.cluster_ip_udp(to) {
                Some(backend) => backend,
                None if table.is_cluster_ip(to.ip()) => {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                None => Arc::new(table.single(to, |node| self.peer(node))),
            }
        };
        let backend = self.for_client(backend, &from.ip().to_string());
        self.datagrams_to(&backend, Origin::Pod(caller), from, flow).await
    }

    /// Carries a flow to one of a Service's endpoints, which sees `from` as the sender.
    pub(super) async fn datagrams_to(
        &self,
        backend: &Backend,
        origin: Origin<'_>,
        from: SocketAddr,
        flow: Datagrams,
    ) -> io::Result<()> {
        let endpoint = backend.pick(&[], &self.0.dice, self.now_ms());
        let endpoint = endpoint.ok_or(io::ErrorKind::ConnectionRefused)?;
        self.admit(origin, &endpoint, Protocol::Udp).await?;
        let _in_flight = InFlight::new(&endpoint);
        let to = endpoint.address;
        let from = caller::shown(from, to.ip());
        match &endpoint.place {
            Place::Local => self.0.local.datagrams(from, to, flow).await,
            Place::Outside => {
                let _one = self.0.outside_flows.try_acquire();
                let _one = _one.map_err(|_| io::ErrorKind::QuotaExceeded)?;
                outside::datagrams(to, flow).await
            }
            Place::Node(_) => {
                let peer = endpoint.peer.as_ref().ok_or(io::ErrorKind::HostUnreachable)?;
                let conn = wire::connection(peer).await?;
                let open = wire::open(&conn, Carries::Udp { from }, to, origin.into());
                carried_there(carry(open.await?, flow).await)
            }
        }
    }

    /// Carries a flow that a peer has opened to a pod of this node.
    pub(super) async fn serve_mesh_datagrams(
        &self,
        stream: Stream,
        (peer, sender): (&str, &Sender),
        from: SocketAddr,
        to: SocketAddr,
    ) -> io::Result<()> {
        if !self.0.table.load().is_local_pod(to.ip()) {
            return Ok(());
        }
        let place = self.0.table.load().routes.place_of(from.ip().to_canonical());
        if !caller::speaks_for(&place, peer) {
            warn!(%peer, address = %from, "datagrams in the name of another node's pod");
            return Ok(());
        }
        // The end of the stream tells the peer.
        if self.admit_peer(peer, sender, to, Protocol::Udp).await.is_err() {
            return Ok(());
        }
        let (near, far) = Datagrams::pair();
        let carried = tokio::select! {
            carried = self.0.local.datagrams(caller::shown(from, to.ip()), to, far) => carried,
            carried = carry(stream, near) => carried.map(|_| ()),
        };
        if let Err(err) = carried {
            // The end of the stream tells the peer.
            trace!(%err, address = %to, "flow of datagrams ended");
        }
        Ok(())
    }
}

/// Which side let go of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Here,
    There { is_answered: bool },
}

/// What the end of a flow to another node says. A node that lets go of one on which nothing ever
/// came back has nobody who takes it, or a policy denies it: the host's network would say so too.
fn carried_there(carried: io::Result<Ended>) -> io::Result<()> {
    match carried {
        Ok(Ended::There { is_answered: false }) => Err(io::ErrorKind::ConnectionRefused.into()),
        Ok(_) => Ok(()),
        Err(err) if err.kind() == io::ErrorKind::ConnectionReset => {
            Err(io::Error::new(io::ErrorKind::ConnectionRefused, err))
        }
        Err(err) => Err(err),
    }
}

/// Carries a flow on a stream until one of them ends.
async fn carry(stream: impl Io, flow: Datagrams) -> io::Result<Ended> {
    let (read, mut write) = tokio::io::split(stream);
    let Datagrams { tx, mut rx } = flow;
    let out = async {
        while let Some(data) = rx.recv().await {
            // One that is too long for its length can only be a mistake of this node's.
            let Ok(length) = u16::try_from(data.len()) else { continue };
            let mut framed = Vec::with_capacity(data.len() + 2);
            framed.extend_from_slice(&length.to_be_bytes());
            framed.extend_from_slice(&data);
            write.write_all(&framed).await?;
            if rx.is_empty() {
                write.flush().await?;
            }
        }
        write.shutdown().await.map(|()| Ended::Here)
    };
    let back = async {
        let mut read = BufReader::new(read);
        let mut is_answered = false;
        while let Some(data) = read_datagram(&mut read).await? {
            is_answered = true;
            if tx.send(data).await.is_err() {
                return Ok(Ended::Here);
            }
        }
        Ok(Ended::There { is_answered })
    };
    tokio::select! {
        ended = out => ended,
        ended = back => ended,
    }
}

/// The next datagram; `None` at the end of the stream.
async fn read_datagram(
    read: &mut (impl tokio::io::AsyncRead + Unpin),
) -> io::Result<Option<Bytes>> {
    let length = match read.read_u16().await {
        Ok(length) => length,
        Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(err) => return Err(err),
    };
    let mut data = vec![0; usize::from(length)];
    read.read_exact(&mut data).await?;
    Ok(Some(data.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn datagrams_keep_their_bounds_on_a_stream() {
        let (here, there) = tokio::io::duplex(64);
        let (a, near) = Datagrams::pair();
        let (mut b, far) = Datagrams::pair();
        let carrying = async { tokio::join!(carry(here, near), carry(there, far)) };
        let talking = async move {
            let mut a = a;
            for size in [0, 1, 1500, 65_507] {
                a.tx.send(vec![7; size].into()).await.unwrap();
                assert_eq!(b.rx.recv().await.unwrap().len(), size);
            }
            b.tx.send("back".into()).await.unwrap();
            assert_eq!(a.rx.recv().await.unwrap(), "back");
            drop(a);
            assert!(b.rx.recv().await.is_none(), "the other end is told");
        };
        let ((one, other), ()) = tokio::join!(carrying, talking);
        one.unwrap();
        other.unwrap();
    }

    #[tokio::test]
    async fn a_flow_that_the_other_node_lets_go_of_unanswered_is_refused() {
        let ended = |is_answered: bool| async move {
            let (here, mut there) = tokio::io::duplex(64);
            let (_near, flow) = Datagrams::pair();
            if is_answered {
                there.write_all(&[0, 1, b'x']).await.unwrap();
            }
            drop(there);
            carried_there(carry(here, flow).await)
        };
        let refused = ended(false).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        ended(true).await.unwrap();
        let reset = carried_there(Err(io::ErrorKind::ConnectionReset.into())).unwrap_err();
        assert_eq!(reset.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn a_stream_that_breaks_within_a_datagram_is_an_error() {
        let mut broken: &[u8] = &[0, 5, b'a', b'b'];
        let error = read_datagram(&mut broken).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
