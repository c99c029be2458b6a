//! Goal: a flood on the UDP port between nodes takes no memory and shuts nobody out. Method:
//! datagrams that are no QUIC, and handshakes whose dialler never answers, on loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;

use super::*;
use crate::net::pki::NodeClass;
use crate::net::testing::{LOOPBACK, authority, endpoint};
use crate::rt::{Rng, TaskGroup};

/// Datagrams that are no QUIC.
const GARBAGE: usize = 20_000;
/// Handshakes whose dialler never answers: more than there are places.
const HALF: usize = 400;

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("in time")
}

/// Sends what is no QUIC: random bytes, and heads that promise more than follows.
pub(crate) async fn garbage(to: SocketAddr) {
    let rng = Rng::seeded(9);
    let socket = UdpSocket::bind(LOOPBACK).await.unwrap();
    for at in 0..GARBAGE {
        let len = usize::try_from(rng.below(1400)).unwrap();
        let mut bytes = vec![0; len];
        rng.fill(&mut bytes);
        let head: &[u8] = match at % 5 {
            0 => &[],
            // Initial packets of version 1 with connection ids, a version nobody knows, a short head.
            1 => &[0xc3, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0x44, 0xd0],
            2 => &[0xc3, 0, 0, 0, 1, 20],
            3 => &[0xff, 0xba, 0xba, 0xba, 0xba, 8],
            _ => &[0x40],
        };
        let kept = head.len().min(len);
        bytes[..kept].copy_from_slice(&head[..kept]);
        if at % 10 == 1 {
            bytes.resize(1200, 0);
        }
        // A full socket drops them, as a network would.
        let _ = socket.send_to(&bytes, to).await;
        if at % 64 == 0 {
            tokio::task::yield_now().await;
        }
    }
}

/// Passes on what diallers send and drops what they are answered: to the server they are addresses
/// that do not answer.
async fn one_way(to: SocketAddr, tasks: &TaskGroup) -> SocketAddr {
    let front = Arc::new(UdpSocket::bind(LOOPBACK).await.unwrap());
    let at = front.local_addr().unwrap();
    let back = UdpSocket::bind(LOOPBACK).await.unwrap();
    tasks.spawn_until_cancelled("one-way", async move {
        let mut buffer = vec![0; 2048];
        while let Ok((size, _)) = front.recv_from(&mut buffer).await {
            let _ = back.send_to(&buffer[..size], to).await;
        }
    });
    at
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_that_are_no_quic_leave_nothing_behind() {
    let ca = authority();
    let (server, _tasks) = endpoint(&ca, "server", NodeClass::Server);
    let (node, _tasks) = endpoint(&ca, "node", NodeClass::Agent);
    let at = server.local_addr().unwrap();
    garbage(at).await;
    let dialling = node.connect(at, Some("server"), Alpn::Mesh);
    let (dialled, accepted) = soon(async { tokio::join!(dialling, server.accept()) }).await;
    assert_eq!(dialled.unwrap().peer().node, "server");
    assert_eq!(accepted.unwrap().peer().node, "node");
    assert_eq!(server.open_connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_handshakes_shut_nobody_out_who_can_prove_an_address() {
    let ca = authority();
    let (server, tasks) = endpoint(&ca, "server", NodeClass::Server);
    let (flood, _tasks) = endpoint(&ca, "flood", NodeClass::Agent);
    let (node, _tasks) = endpoint(&ca, "node", NodeClass::Agent);
    let at = server.local_addr().unwrap();
    let through = one_way(at, &tasks).await;
    for _ in 0..HALF {
        let flood = flood.clone();
        tasks.spawn_until_cancelled("half", async move {
            let _ = flood.connect(through, Some("server"), Alpn::Mesh).await;
        });
    }
    soon(async {
        while server.open_connections() < server.config().handshakes_until_retry {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let dialling = node.connect(at, Some("server"), Alpn::Mesh);
    let (dialled, accepted) = soon(async { tokio::join!(dialling, server.accept()) }).await;
    assert_eq!(dialled.unwrap().peer().node, "server");
    assert_eq!(accepted.unwrap().peer().node, "node");
    // Those without an address took no more than their part of the places.
    assert!(server.open_connections() <= server.config().handshakes_until_retry + 2);
    soon(async {
        while server.open_connections() > 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}
