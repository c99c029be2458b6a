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
/// Version of the head's body. Version 1 did not say who sends, version 2 not from which address a
/// TCP connection comes.
const OPEN_VERSION: u16 = 3;
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
    Tcp {
        /// Who calls, as the pod sees it.
        from: Option<SocketAddr>,
    },
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

/// Its second version.
#[derive(Debug, Serialize, Deserialize)]
struct OpenV2 {
    carries: CarriesV1,
    to: SocketAddr,
    sender: Sender,
}

/// Its first version.
#[derive(Debug, Serialize, Deserialize)]
struct OpenV1 {
    carries: CarriesV1,
    to: SocketAddr,
}

/// What follows, before version 3.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum CarriesV1 {
    Http,
    Tcp,
    Udp { from: SocketAddr },
}

impl From<CarriesV1> for Carries {
    fn from(old: CarriesV1) -> Self {
        match old {
            CarriesV1::Http => Self::Http,
            CarriesV1::Tcp => Self::Tcp { from: None },
            CarriesV1::Udp { from } => Self::Udp { from },
        }
    }
}

/// The head, in the oldest version that says all of it. What tells who connects, as guests' own connections do, no node
/// reads that knows version 2 only: nodes are updated together.
fn to_frame(open: Open) -> Result<(u16, Vec<u8>), FrameError> {
    let carries = match open.carries {
        Carries::Http => CarriesV1::Http,
        Carries::Tcp { from: None } => CarriesV1::Tcp,
        Carries::Udp { from } => CarriesV1::Udp { from },
        Carries::Tcp { from: Some(_) } => return Ok((OPEN_VERSION, frame::to_body(&open)?)),
    };
    let Open { to, sender, .. } = open;
    match sender {
        Sender::Untold => Ok((1, frame::to_body(&OpenV1 { carries, to })?)),
        sender => Ok((2, frame::to_body(&OpenV2 { carries, to, sender })?)),
    }
}

fn from_frame(version: u16, body: &[u8]) -> Result<Open, FrameError> {
    match version {
        0 | 1 => {
            let OpenV1 { carries, to } = frame::from_body(body)?;
            Ok(Open { carries: carries.into(), to, sender: Sender::Untold })
        }
        2 => {
            let OpenV2 { carries, to, sender } = frame::from_body(body)?;
            Ok(Open { carries: carries.into(), to, sender })
        }
        _ => frame::from_body(body),
    }
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
        let (version, body) = to_frame(Open { carries, to, sender }).map_err(to_io)?;
        let written = frame::write_frame(&mut stream, Kind::MESH_OPEN, version, &body);
        written.await.map_err(to_io)?;
        if let Carries::Tcp { .. } = carries {
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
    from_frame(frame.version, &frame.body).map_err(to_io)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn open(carries: Carries, sender: Sender) -> Open {
        Open { carries, to: "10.42.0.2:80".parse().unwrap(), sender }
    }

    #[test]
    fn a_head_is_written_in_the_oldest_version_that_says_all_of_it() {
        let from = "10.42.1.2:40000".parse().unwrap();
        for (carries, sender, version) in [
            (Carries::Http, Sender::Untold, 1),
            (Carries::Tcp { from: None }, Sender::Untold, 1),
            (Carries::Tcp { from: None }, Sender::Node, 2),
            (Carries::Udp { from }, Sender::Pod("u".to_owned()), 2),
            (Carries::Tcp { from: Some(from) }, Sender::Pod("u".to_owned()), 3),
        ] {
            let open = open(carries, sender);
            let (written, body) = to_frame(open.clone()).unwrap();
            assert_eq!(written, version, "{open:?}");
            assert_eq!(from_frame(written, &body).unwrap(), open);
        }
    }

    #[test]
    fn what_nodes_of_older_versions_write_stays_as_it_is() {
        // An enum's number, then an address: its family's number, its bytes, its port.
        let to = [0, 0, 0, 0, 10, 42, 0, 2, 80, 0];
        let first = [&[1, 0, 0, 0], to.as_slice()].concat();
        let tcp = open(Carries::Tcp { from: None }, Sender::Untold);
        assert_eq!(from_frame(1, &first).unwrap(), tcp);
        let second = [&[0, 0, 0, 0], to.as_slice(), &[1, 0, 0, 0]].concat();
        assert_eq!(from_frame(2, &second).unwrap(), open(Carries::Http, Sender::Node));
        assert!(from_frame(2, &first).is_err());
    }
}
