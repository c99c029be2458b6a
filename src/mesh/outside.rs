//! The way out of the cluster: host sockets, for addresses that guests may reach.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use super::caller;
use super::udp::{DATAGRAM_BYTES_MAX, Datagrams};
use crate::net;

/// Wait for a TCP connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Wait for the host's resolver.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Datagrams that are read from a host socket before others get their turn.
const RECEIVE_MAX: usize = 16;
/// Names that are looked up at the same time: half of the threads that may be blocked.
const LOOKUPS_MAX: usize = 8;
static LOOKUPS: Semaphore = Semaphore::const_new(LOOKUPS_MAX);
/// Addresses of one name that are used.
const ADDRESSES_MAX: usize = 16;

/// Opens a TCP connection from the host.
///
/// `PermissionDenied` for addresses that are the host's own business.
pub(super) async fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    if !is_allowed(to.ip()) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(to))
        .await
        .map_err(|_| io::ErrorKind::TimedOut)??;
    net::attend(&stream);
    Ok(stream)
}

/// Carries a flow of datagrams through a socket of the host.
///
/// `PermissionDenied` for addresses that are the host's own business, `ConnectionRefused` when the
/// other machine says that nobody is there.
///
/// # Cancel safety
///
/// Cancel safe: the flow ends.
pub(super) async fn datagrams(to: SocketAddr, flow: Datagrams) -> io::Result<()> {
    if !is_allowed(to.ip()) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    // From then on the kernel drops what others send.
    socket.connect(to).await?;
    through(&socket, flow).await
}

async fn through(socket: &UdpSocket, flow: Datagrams) -> io::Result<()> {
    let Datagrams { tx, mut rx } = flow;
    loop {
        tokio::select! {
            data = rx.recv() => match data {
                Some(data) => send(socket, &data).await?,
                None => return Ok(()),
            },
            readable = socket.readable() => {
                readable?;
                receive(socket, &tx)?;
            }
        }
    }
}

/// Sends one datagram; one that is too long for the way is lost, as its sender's business.
async fn send(socket: &UdpSocket, data: &[u8]) -> io::Result<()> {
    match socket.send(data).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Err(error),
        // The host has no room, or there is no way at the moment: datagrams may be lost.
        _ => Ok(()),
    }
}

/// Brings what waits, as far as the flow has room.
fn receive(socket: &UdpSocket, tx: &tokio::sync::mpsc::Sender<Bytes>) -> io::Result<()> {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    for _ in 0..RECEIVE_MAX {
        match socket.try_recv(&mut buffer) {
            Ok(size) => {
                let data = buffer.get(..size).unwrap_or_default();
                // Nobody takes them fast enough: what is beyond is lost.
                let _ = tx.try_send(Bytes::copy_from_slice(data));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Asks the host's resolver; only addresses that may be reached.
///
/// It blocks a thread, and does so to its own end when nobody waits any more: those threads start
/// containers and write logs as well.
pub(super) async fn lookup(name: &str) -> Vec<IpAddr> {
    let name = name.to_owned();
    let looking = async move {
        let turn = LOOKUPS.acquire().await.ok()?;
        let look = move || {
            let _turn = turn;
            (name.as_str(), 0).to_socket_addrs().map(Iterator::collect::<Vec<_>>)
        };
        tokio::task::spawn_blocking(look).await.ok()?.ok()
    };
    let Ok(Some(found)) = tokio::time::timeout(LOOKUP_TIMEOUT, looking).await else {
        return Vec::new();
    };
    let found = found.into_iter().map(|at| at.ip());
    let mut ips: Vec<IpAddr> = found.filter(|ip| is_allowed(*ip)).take(ADDRESSES_MAX).collect();
    ips.dedup();
    ips
}

/// Unicast addresses of other machines. The host's loopback and link-local addresses (its
/// neighbours' configuration services, a cloud's metadata) are never reached, in whatever notation.
pub(super) fn is_allowed(ip: IpAddr) -> bool {
    match ip {
        ip if caller::is_nobody(ip) => false,
        IpAddr::V4(ip) => is_allowed_v4(ip),
        IpAddr::V6(ip) => match embedded_v4(ip) {
            Some(ip) => is_allowed_v4(ip),
            None => {
                let is_link_local = ip.segments()[0] & 0xffc0 == 0xfe80;
                !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || is_link_local)
            }
        },
    }
}

fn is_allowed_v4(ip: Ipv4Addr) -> bool {
    let [first, ..] = ip.octets();
    // 0.0.0.0/8 means this host to the kernel; 240.0.0.0/4 is nobody's.
    first != 0 && first < 240 && !ip.is_loopback() && !ip.is_link_local() && !ip.is_multicast()
}

/// The IPv4 address in `::a.b.c.d`, `::ffff:a.b.c.d` or `64:ff9b::a.b.c.d`.
fn embedded_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    if ip.is_loopback() || ip.is_unspecified() {
        return None;
    }
    let low = u32::try_from(ip.to_bits() & u128::from(u32::MAX)).ok()?;
    matches!(ip.segments(), [0, 0, 0, 0, 0, 0 | 0xffff, _, _] | [0x64, 0xff9b, 0, 0, 0, 0, _, _])
        .then(|| Ipv4Addr::from_bits(low))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_flow_passes_through_a_host_socket_both_ways_and_ends_with_its_owner() {
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (socket, far) =
            (UdpSocket::bind(loopback).await.unwrap(), UdpSocket::bind(loopback).await.unwrap());
        socket.connect(far.local_addr().unwrap()).await.unwrap();
        let (mut near, flow) = Datagrams::pair();
        let talk = async {
            near.tx.send("question".into()).await.unwrap();
            let mut buffer = [0; 16];
            let (size, from) = far.recv_from(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..size], b"question");
            far.send_to(b"answer", from).await.unwrap();
            assert_eq!(near.rx.recv().await.unwrap(), "answer");
            drop(near);
        };
        let (passed, ()) = tokio::join!(through(&socket, flow), talk);
        passed.unwrap();
    }

    #[test]
    fn the_hosts_own_addresses_are_refused_in_every_notation() {
        for ip in [
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "192.0.0.8",
            "100::8",
            "::1",
            "::",
            "fe80::1",
            "febf::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
        ] {
            assert!(!is_allowed(ip.parse().unwrap()), "{ip}");
        }
        for ip in ["1.1.1.1", "192.168.1.20", "10.0.0.7", "2606:4700::1111", "fd00::7"] {
            assert!(is_allowed(ip.parse().unwrap()), "{ip}");
        }
    }
}
