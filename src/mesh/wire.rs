//! The head of a mesh stream: what it carries, and to which pod.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;

use super::policy::{Denied, Sender, Way};
use crate::net::frame::{self, FrameError, Kind};
use crate::net::{Connection, PeerHandle, Stream};

/// Version of the answer's body.
const VERSION: u16 = 1;
/// Version of the head's body. Version 1 did not say who sends.
const OPEN_VERSION: u16 = 2;
/// Wait for a stream or its head; also for the answer to a TCP connect.
pub(super) const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Wait for a connection to a node that there is none to yet. Shorter than a handshake may take: a
/// request has better things to do than wait for a node that may be dead.
const DIAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Field of a response with which a node, not a pod, says why there is none. Removed from what
/// pods answer.
pub(super) const MESH_ERROR: http::HeaderName = http::HeaderName::from_static("edgeorc-mesh-error");
/// Value of [`MESH_ERROR`]: no pod has seen the request.
pub(super) const REFUSED: http::HeaderValue = http::HeaderValue::from_static("refused");
/// Value of [`MESH_ERROR`]: a network policy forbids it.
pub(super) const DENIED: http::HeaderValue = http::HeaderValue::from_static("denied");
/// Value of [`MESH_ERROR`]: the pod had it and gave no answer.
pub(super) const FAILED: http::HeaderValue = http::HeaderValue::from_static("failed");

/// What follows on the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Carries {
    /// HTTP/1.1 requests, one after the other.
    Http,
    /// Bytes, after an [`Opened`] in the other direction.
    Tcp,
    /// Datagrams of one flow, each after its length, in both directions.
    Udp {
        /// Who sends.
        from: SocketAddr,
    },
}

/// First frame of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Open {
    pub(super) carries: Carries,
    pub(super) to: SocketAddr,
    /// Who sends; of HTTP each request says it for itself.
    pub(super) sender: Sender,
}

/// Its first version.
#[derive(Debug, Serialize, Deserialize)]
struct OpenV1 {
    carries: Carries,
    to: SocketAddr,
}

/// Answer to an [`Open`] that carries TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Opened {
    Connected,
    Refused,
    Unreachable,
    /// By a network policy of the pod.
    Denied,
}

/// The mesh connection to a node: the kept one, or one that is made soon.
pub(super) async fn connection(peer: &PeerHandle) -> io::Result<Connection> {
    if let Some(conn) = peer.connection() {
        return Ok(conn);
    }
    match tokio::time::timeout(DIAL_TIMEOUT, peer.get()).await {
        Ok(Ok(conn)) => Ok(conn),
        Ok(Err(err)) => Err(io::Error::new(io::ErrorKind::HostUnreachable, err)),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Opens a stream to a pod of the peer. HTTP may follow at once; TCP waits for the answer.
pub(super) async fn open(
    conn: &Connection,
    carries: Carries,
    to: SocketAddr,
    sender: Sender,
) -> io::Result<Stream> {
    let opening = async {
        let mut stream = conn.open_bi().await.map_err(not_connected)?;
        let (version, body) = if sender == Sender::Untold {
            // Nodes of the version before read it too.
            (1, frame::to_body(&OpenV1 { carries, to }))
        } else {
            (OPEN_VERSION, frame::to_body(&Open { carries, to, sender }))
        };
        let body = body.map_err(to_io)?;
        let written = frame::write_frame(&mut stream, Kind::MESH_OPEN, version, &body);
        written.await.map_err(to_io)?;
        if carries == Carries::Tcp {
            let frame = frame::read_frame(&mut stream, &[Kind::MESH_OPENED]).await;
            match frame::from_body(&frame.map_err(to_io)?.body).map_err(to_io)? {
                Opened::Connected => {}
                Opened::Refused => return Err(io::ErrorKind::ConnectionRefused.into()),
                Opened::Unreachable => return Err(io::ErrorKind::HostUnreachable.into()),
                Opened::Denied => return Err(Denied(Way::Ingress).into()),
            }
        }
        Ok(stream)
    };
    tokio::time::timeout(OPEN_TIMEOUT, opening).await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// Reads the head of a stream that a peer opened.
pub(super) async fn accept(stream: &mut Stream) -> io::Result<Open> {
    let reading = frame::read_frame(stream, &[Kind::MESH_OPEN]);
    let frame = tokio::time::timeout(OPEN_TIMEOUT, reading).await;
    let frame = frame.map_err(|_| io::ErrorKind::TimedOut)?.map_err(to_io)?;
    if frame.version < OPEN_VERSION {
        let OpenV1 { carries, to } = frame::from_body(&frame.body).map_err(to_io)?;
        return Ok(Open { carries, to, sender: Sender::Untold });
    }
    frame::from_body(&frame.body).map_err(to_io)
}

/// Answers the head of a TCP stream; ends the stream unless it is connected.
pub(super) async fn answer(stream: &mut Stream, opened: Opened) -> io::Result<()> {
    let body = frame::to_body(&opened).map_err(to_io)?;
    frame::write_frame(stream, Kind::MESH_OPENED, VERSION, &body).await.map_err(to_io)?;
    if opened != Opened::Connected {
        stream.shutdown().await?;
    }
    Ok(())
}

fn not_connected(err: crate::net::ConnectionLost) -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, err)
}

fn to_io(err: FrameError) -> io::Error {
    match err {
        FrameError::Io(err) => err,
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}
