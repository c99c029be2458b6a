//! Goal: nodes that UDP does not reach are reached all the same, by nobody but themselves, and
//! whoever floods an endpoint is bounded. Method: real endpoints on loopback; UDP is "blocked" by
//! telling a node an address at which nobody answers.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::join::{Enroller, JoinGrant, JoinRefusal, JoinRequest, JoinToken, TokenVerifier};
use super::pki::{CertificateAuthority, NodeClass, NodeKey};
use super::testing::{LOOPBACK, authority, identity};
use super::*;
use crate::rt::{Rng, TaskGroup, WallClock};

const SOON: Duration = Duration::from_secs(20);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.expect("in time")
}

struct Node {
    endpoint: Endpoint,
    tasks: TaskGroup,
    peers: Peers,
    /// Where a server takes tunnels.
    tcp: Option<SocketAddr>,
    /// What was asked of the waker.
    wakes: Arc<Mutex<Vec<(String, String)>>>,
}

fn config() -> NetConfig {
    NetConfig {
        tunnel_head_start: Duration::from_millis(20),
        retry_direct: (Duration::from_millis(50), Duration::from_millis(200)),
        ..NetConfig::default()
    }
}

async fn node(ca: &CertificateAuthority, name: &str, class: NodeClass, config: NetConfig) -> Node {
    let tasks = TaskGroup::new(&CancellationToken::new());
    let id = identity(ca, name, class);
    let endpoint = Endpoint::bind(LOOPBACK, id, config, &tasks).unwrap();
    let peers = Peers::new(endpoint.clone(), &tasks, Rng::seeded(3));
    let (accepting, adopting) = (endpoint.clone(), peers.clone());
    // Every node echoes what comes on any stream.
    let group = tasks.clone();
    tasks.spawn_until_cancelled("accept", async move {
        while let Some(conn) = accepting.accept().await {
            adopting.adopt(&conn);
            let echoing = group.clone();
            group.spawn_until_cancelled("serve", async move {
                while let Ok(stream) = conn.accept_bi().await {
                    echoing.spawn_until_cancelled("echo", async move {
                        let (mut read, mut write) = tokio::io::split(stream);
                        let _ = tokio::io::copy(&mut read, &mut write).await;
                        let _ = write.shutdown().await;
                    });
                }
            });
        }
    });
    let wakes: Arc<Mutex<Vec<_>>> = Arc::default();
    let woken = Arc::clone(&wakes);
    endpoint.tunnels().on_wake(move |node, by| woken.lock().push((node.into(), by.into())));
    let tcp = match class {
        NodeClass::Server => Some(serve_tunnels(&endpoint, &tasks).await),
        NodeClass::Agent => None,
    };
    Node { endpoint, tasks, peers, tcp, wakes }
}

async fn serve_tunnels(endpoint: &Endpoint, tasks: &TaskGroup) -> SocketAddr {
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let at = listener.local_addr().unwrap();
    let tls = endpoint.identity().https_server_config().unwrap();
    let (tunnels, group) = (endpoint.tunnels().clone(), tasks.clone());
    tasks.spawn_until_cancelled("tunnels", async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(tls);
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, tunnels) = (acceptor.clone(), tunnels.clone());
            group.spawn_until_cancelled("tunnel", async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let (_, tls) = stream.get_ref();
                assert!(is_tunnel(tls.alpn_protocol()));
                let chain = tls.peer_certificates().map(<[_]>::to_vec);
                tunnels.serve(stream, chain.as_deref()).await;
            });
        }
    });
    at
}

/// An address that swallows every packet, for as long as the socket lives.
fn blocked() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind(LOOPBACK).unwrap();
    let at = socket.local_addr().unwrap();
    (socket, at)
}

async fn echoes(conn: &Connection, bytes: usize) {
    let mut stream = soon(conn.open_bi()).await.unwrap();
    let sent = vec![7; bytes];
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let writing = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    let (_, read) = soon(async { tokio::join!(writing, read.read_to_end(&mut got)) }).await;
    read.unwrap();
    assert_eq!(got, sent);
}

#[tokio::test]
async fn a_server_that_udp_does_not_reach_is_reached_through_tcp_for_every_protocol() {
    let ca = authority();
    let server = node(&ca, "s", NodeClass::Server, config()).await;
    let agent = node(&ca, "a", NodeClass::Agent, config()).await;
    let (_blocked, nowhere) = blocked();
    agent.peers.set_address("s", nowhere);
    agent.peers.set_servers([("s".to_owned(), server.tcp.unwrap())].into());
    for alpn in [Alpn::Api, Alpn::Mesh, Alpn::Node] {
        let conn = soon(agent.peers.get("s", alpn)).await.unwrap();
        assert!(conn.is_tunnelled());
        assert_eq!(conn.peer().node, "s");
        echoes(&conn, 300_000).await;
    }
    // The server uses what the agent dialled, which it could not dial itself.
    let back = soon(async {
        loop {
            match server.peers.handle("a", Alpn::Mesh).connection() {
                Some(conn) => return conn,
                None => tokio::task::yield_now().await,
            }
        }
    })
    .await;
    echoes(&back, 1000).await;
    // UDP is open again: the connection is replaced, and the one through the tunnel goes.
    agent.peers.set_address("s", server.endpoint.local_addr().unwrap());
    soon(async {
        while agent.peers.get("s", Alpn::Mesh).await.is_ok_and(|conn| conn.is_tunnelled()) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    echoes(&agent.peers.get("s", Alpn::Mesh).await.unwrap(), 1000).await;
}

#[tokio::test]
async fn two_nodes_that_cannot_reach_each_other_are_relayed_end_to_end() {
    let ca = authority();
    let server = node(&ca, "s", NodeClass::Server, config()).await;
    let a = node(&ca, "a", NodeClass::Agent, config()).await;
    let b = node(&ca, "b", NodeClass::Agent, config()).await;
    let (_blocked, nowhere) = blocked();
    for (this, other) in [(&a, "b"), (&b, "a")] {
        this.peers.set_address(other, nowhere);
        this.peers.set_servers([("s".to_owned(), server.tcp.unwrap())].into());
    }
    // The server has no tunnel to b yet, and asks it for one.
    let (opening, wakes) = (b.peers.clone(), Arc::clone(&server.wakes));
    b.tasks.spawn_until_cancelled("wake", async move {
        while wakes.lock().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        opening.open_tunnel("s").await.unwrap();
    });
    let conn = soon(async {
        loop {
            match a.peers.get("b", Alpn::Mesh).await {
                Ok(conn) => return conn,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    })
    .await;
    assert_eq!(server.wakes.lock().first().unwrap(), &("b".to_owned(), "a".to_owned()));
    assert_eq!(conn.peer().node, "b");
    assert!(conn.is_tunnelled());
    echoes(&conn, 500_000).await;
    assert!(server.endpoint.tunnels().forwarded_bytes() > 1_000_000);
    assert!(server.peers.handle("a", Alpn::Mesh).connection().is_none(), "the relay is no end");
}

#[tokio::test]
async fn a_stranger_gets_no_tunnel_and_a_tunnel_gives_nobody_another_name() {
    let ca = authority();
    let server = node(&ca, "s", NodeClass::Server, config()).await;
    let stranger = node(&authority(), "a", NodeClass::Server, config()).await;
    assert!(soon(stranger.endpoint.tunnels().open("s", server.tcp.unwrap())).await.is_err());
    let agent = node(&ca, "a", NodeClass::Agent, config()).await;
    // It is the server of this name that must answer.
    assert!(soon(agent.endpoint.tunnels().open("t", server.tcp.unwrap())).await.is_err());
    soon(agent.endpoint.tunnels().open("s", server.tcp.unwrap())).await.unwrap();
}

struct Admits(CertificateAuthority, JoinToken);

#[async_trait]
impl Enroller for Admits {
    async fn verifier(&self, token_id: &str) -> Option<TokenVerifier> {
        (token_id == self.1.id).then(|| self.1.verifier())
    }

    async fn enroll(&self, _: &str, request: JoinRequest) -> Result<JoinGrant, JoinRefusal> {
        let class = request.class;
        let cert_pem = self.0.issue_node(&request.csr_der, &request.node, &[], class).unwrap();
        Ok(JoinGrant {
            cluster: "test".to_owned(),
            cert_pem,
            ca_pem: self.0.cert_pem().to_owned(),
            ca_key_pem: None,
            servers: std::collections::BTreeMap::new(),
            details: std::collections::BTreeMap::new(),
        })
    }
}

#[tokio::test]
async fn a_node_joins_where_udp_is_blocked() {
    let ca = authority();
    let clock = WallClock::system();
    let token = JoinToken::generate(ca.hash(), &Rng::seeded(1));
    let tasks = TaskGroup::new(&CancellationToken::new());
    let id = identity(&ca, "s", NodeClass::Server);
    let endpoint = Endpoint::bind(LOOPBACK, id, config(), &tasks).unwrap();
    // Nothing answers on UDP at the port of the tunnels.
    let at = serve_tunnels(&endpoint, &tasks).await;
    let enroller = Arc::new(Admits(ca, token.clone()));
    let accepting = endpoint.clone();
    tasks.spawn_until_cancelled("accept", async move {
        while let Some(conn) = accepting.accept().await {
            join::serve(conn, Arc::clone(&enroller) as Arc<dyn Enroller>).await;
        }
    });
    let key = NodeKey::generate().unwrap();
    let request = JoinRequest {
        node: "pi-1".to_owned(),
        class: NodeClass::Agent,
        csr_der: key.csr_der.clone(),
        addresses: vec![LOOPBACK.ip()],
        quic_port: 1,
        version: String::new(),
        details: std::collections::BTreeMap::new(),
    };
    let grant = soon(join::request(at, &token, &request, &clock)).await.unwrap();
    assert!(grant.cert_pem.contains("BEGIN CERTIFICATE"));
}

#[tokio::test]
async fn a_flood_of_connections_is_refused_and_the_others_live() {
    let ca = authority();
    let few = NetConfig { connections_max: 5, connections_per_peer_max: 2, ..config() };
    let server = node(&ca, "s", NodeClass::Server, few).await;
    let at = server.endpoint.local_addr().unwrap();
    let agent = node(&ca, "a", NodeClass::Agent, config()).await;
    let mut kept = Vec::new();
    for _ in 0..2 {
        let conn = soon(agent.endpoint.connect(at, Some("s"), Alpn::Mesh)).await.unwrap();
        echoes(&conn, 10).await;
        kept.push(conn);
    }
    let third = soon(agent.endpoint.connect(at, Some("s"), Alpn::Mesh)).await.unwrap();
    soon(third.closed()).await;
    // Another purpose has room of its own, and so have other nodes, until the endpoint is full.
    let mut refused = 0;
    for name in ["b", "c", "d", "e"] {
        let other = node(&ca, name, NodeClass::Agent, config()).await;
        match soon(other.endpoint.connect(at, Some("s"), Alpn::Mesh)).await {
            Ok(conn) => kept.push(conn),
            Err(_) => refused += 1,
        }
        drop(other.tasks);
    }
    assert!(refused >= 1, "{refused}");
    for conn in kept.iter().take(2) {
        echoes(conn, 10).await;
    }
}

#[tokio::test]
async fn streams_that_are_never_read_hold_no_more_than_the_windows() {
    let ca = authority();
    let server = node(&ca, "s", NodeClass::Server, config()).await;
    let agent = node(&ca, "a", NodeClass::Agent, config()).await;
    let at = server.endpoint.local_addr().unwrap();
    let conn = soon(agent.endpoint.connect(at, Some("s"), Alpn::Mesh)).await.unwrap();
    // The server echoes, and nobody reads the echo: it must stop reading.
    let mut streams = Vec::new();
    let mut sent = 0_usize;
    let chunk = vec![0; 64 * 1024];
    for _ in 0..64 {
        let mut stream = soon(conn.open_bi()).await.unwrap();
        while tokio::time::timeout(Duration::from_millis(30), stream.write_all(&chunk))
            .await
            .is_ok_and(|written| written.is_ok())
        {
            sent += chunk.len();
            assert!(sent < 64 * 1024 * 1024, "nothing stops it");
        }
        streams.push(stream);
    }
    let limits = config();
    let windows = u64::from(limits.connection_window_bytes) + limits.send_window_bytes;
    assert!((sent as u64) < 3 * windows, "{sent} bytes went somewhere");
    assert!(!conn.is_closed());
    // The other connections of the server do not notice.
    let other = soon(agent.endpoint.connect(at, Some("s"), Alpn::Node)).await.unwrap();
    echoes(&other, 1000).await;
}

#[tokio::test]
async fn a_stream_whose_reader_stands_still_is_given_up_and_one_that_is_read_is_not() {
    let ca = authority();
    let short = NetConfig { stall_max: Duration::from_millis(300), ..config() };
    let writer = node(&ca, "w", NodeClass::Agent, short).await;
    let tasks = TaskGroup::new(&CancellationToken::new());
    let id = identity(&ca, "r", NodeClass::Agent);
    let reader = Endpoint::bind(LOOPBACK, id, config(), &tasks).unwrap();
    let at = reader.local_addr().unwrap();
    let conn = soon(writer.endpoint.connect(at, Some("r"), Alpn::Mesh)).await.unwrap();
    let accepted = soon(reader.accept()).await.unwrap();
    let (mut unread, mut read) = (conn.open_bi().await.unwrap(), conn.open_bi().await.unwrap());
    read.write_all(b"first").await.unwrap();
    unread.write_all(b"first").await.unwrap();
    // One after the other: they come in the order in which they were opened.
    let _one = soon(accepted.accept_bi()).await.unwrap();
    let mut two = soon(accepted.accept_bi()).await.unwrap();
    // Slowly, but never standing still for as long as that.
    let reading = async {
        let mut bytes = vec![0; 600_000];
        for _ in 0..8 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            two.read_exact(&mut bytes).await.unwrap();
        }
    };
    let chunk = vec![0; 100_000];
    let writing = async {
        for _ in 0..48 {
            read.write_all(&chunk).await.unwrap();
        }
        let mut written = Ok(());
        for _ in 0..200 {
            written = unread.write_all(&chunk).await;
            if written.is_err() {
                break;
            }
        }
        assert_eq!(written.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    };
    soon(async { tokio::join!(reading, writing) }).await;
    assert!(!conn.is_closed());
}
