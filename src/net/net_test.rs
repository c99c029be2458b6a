//! Goal: connections are made between the right nodes only, and carry what they should.
//! Method: real endpoints on loopback in one process.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::pki::{CertificateAuthority, NodeClass, NodeKey, PkiError};
use super::testing::{LOOPBACK, authority, endpoint, endpoint_with, identity};
use super::*;
use crate::rt::{Rng, TaskGroup, Threads, WallClock};

const SOON: Duration = Duration::from_secs(10);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.expect("in time")
}

fn address(endpoint: &Endpoint) -> SocketAddr {
    endpoint.local_addr().unwrap()
}

#[test]
fn a_certificate_says_what_the_authority_decided_and_not_what_was_asked() {
    let ca = authority();
    let key = NodeKey::generate().unwrap();
    let ip = "192.168.1.7".parse().unwrap();
    let pem = ca.issue_node(&key.csr_der, "pi-1", &[ip], NodeClass::Server).unwrap();
    let der = pki::pem_to_der(&pem).unwrap();
    let peer = Peer::from_certificate(&der).unwrap();
    assert_eq!(peer.node, "pi-1");
    assert_eq!(peer.user, "system:node:pi-1");
    assert_eq!(peer.groups, ["system:nodes", "edgeorc:servers"]);
    let (_, cert) = x509_parser::parse_x509_certificate(&der).unwrap();
    let names = format!("{:?}", cert.subject_alternative_name().unwrap().unwrap().value);
    for name in ["spiffe://test/node/pi-1", "\"pi-1\"", "localhost", "kubernetes.default.svc"] {
        assert!(names.contains(name), "{names}");
    }
    let life = cert.validity().not_after.timestamp() - cert.validity().not_before.timestamp();
    assert_eq!(life, 30 * 86_400 + 3600);
    assert!(!cert.is_ca());

    // An agent has no HTTPS, and no name or address that an HTTPS client would ask for.
    let pem = ca.issue_node(&key.csr_der, "pi-2", &[ip], NodeClass::Agent).unwrap();
    let der = pki::pem_to_der(&pem).unwrap();
    let (_, cert) = x509_parser::parse_x509_certificate(&der).unwrap();
    let names = &cert.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names.len(), 1, "{names:?}");
    for reserved in ["localhost", "kubernetes", "kubernetes.default.svc", "10.0.0.1"] {
        let refused = ca.issue_node(&key.csr_der, reserved, &[], NodeClass::Agent);
        assert!(matches!(refused, Err(PkiError::Reserved { .. })), "{reserved}");
    }
    // The first node of a cluster is called as its machine is, which may be `localhost`.
    ca.issue_node(&key.csr_der, "localhost", &[], NodeClass::Server).unwrap();

    assert!(matches!(
        ca.issue_node(&key.csr_der, "Not/A/Name", &[], NodeClass::Agent),
        Err(PkiError::Name { .. })
    ));
    let mut broken = key.csr_der.clone();
    let last = broken.len() - 1;
    broken[last] ^= 1;
    assert!(ca.issue_node(&broken, "pi-1", &[], NodeClass::Agent).is_err());
}

#[test]
fn an_authority_is_rebuilt_from_its_pem_and_people_get_groups() {
    let ca = authority();
    let clock = WallClock::system();
    let again = CertificateAuthority::from_pem(ca.cert_pem(), ca.key_pem(), &clock).unwrap();
    assert_eq!(again.hash(), ca.hash());
    assert_eq!(again.cluster(), "test");
    assert_eq!(pki::public_key_hash(ca.cert_pem()).unwrap(), ca.hash());
    assert!(CertificateAuthority::from_pem(ca.cert_pem(), authority().key_pem(), &clock).is_err());
    let admin = again.issue_client("admin", &["system:masters"]).unwrap();
    let peer = Peer::from_certificate(&pki::pem_to_der(&admin.cert_pem).unwrap()).unwrap();
    assert_eq!((peer.user.as_str(), peer.groups.len()), ("admin", 1));
    assert!(!peer.is_node() && peer.is_authenticated());
    assert!(again.issue_client("x", &["a", "b", "c"]).is_err());
}

#[test]
fn a_person_with_a_nodes_name_but_not_its_group_is_no_node() {
    let ca = authority();
    let fake = ca.issue_client("system:node:pi-1", &["edgeorc:servers"]).unwrap();
    let peer = Peer::from_certificate(&pki::pem_to_der(&fake.cert_pem).unwrap()).unwrap();
    assert!(!peer.is_node() && !peer.is_server());
    let made = Identity::new(&fake.cert_pem, &fake.key_pem, ca.cert_pem(), &WallClock::system());
    assert!(matches!(made, Err(IdentityError::NotANode { .. })));
}

#[tokio::test]
async fn two_nodes_connect_and_know_each_other() {
    let ca = authority();
    let (a, _ta) = endpoint(&ca, "a", NodeClass::Agent);
    let (b, _tb) = endpoint(&ca, "b", NodeClass::Agent);
    let dialled = soon(a.connect(address(&b), Some("b"), Alpn::Mesh)).await.unwrap();
    let accepted = soon(b.accept()).await.unwrap();
    assert_eq!(dialled.peer().node, "b");
    assert_eq!(accepted.peer().node, "a");
    assert_eq!(accepted.alpn(), Alpn::Mesh);
    assert!(dialled.is_dialled() && !accepted.is_dialled());

    let mut out = dialled.open_bi().await.unwrap();
    out.write_all(b"ping").await.unwrap();
    out.shutdown().await.unwrap();
    let mut got = soon(accepted.accept_bi()).await.unwrap();
    let mut text = String::new();
    soon(got.read_to_string(&mut text)).await.unwrap();
    assert_eq!(text, "ping");
    drop(got);
    let err = soon(out.read_u8()).await.unwrap_err();
    assert!(StreamReset::is_cause_of(&err), "{err:?}");

    dialled.close("enough");
    soon(accepted.closed()).await;
    assert!(accepted.is_closed());
}

/// Whether a peer takes a connection for dead while the thread that runs this is taken, if the packets
/// are worked on by `packets`.
async fn is_lost_while_busy(packets: &Handle) -> bool {
    let ca = authority();
    let elsewhere = Threads::start("elsewhere", 1, 1).unwrap();
    let config = NetConfig {
        keep_alive: Duration::from_millis(20),
        idle_timeout: Duration::from_millis(200),
        ..NetConfig::default()
    };
    let tasks = TaskGroup::new(&CancellationToken::new());
    let id = identity(&ca, "a", NodeClass::Server);
    let a = Endpoint::bind_on(packets, LOOPBACK, id, config.clone(), &tasks).unwrap();
    let (at, group) = (address(&a), tasks.clone());
    let (tell, told) = std::sync::mpsc::channel();
    tasks.spawn_on(elsewhere.handle(), "b", |_| async move {
        let id = identity(&ca, "b", NodeClass::Server);
        let b = Endpoint::bind(LOOPBACK, id, config, &group).unwrap();
        let conn = soon(b.connect(at, Some("a"), Alpn::Mesh)).await.unwrap();
        let lost = tokio::time::timeout(Duration::from_secs(2), conn.closed()).await;
        tell.send(lost.is_ok()).unwrap();
    });
    let _accepted = soon(a.accept()).await.unwrap();
    // Takes the thread.
    told.recv_timeout(SOON).unwrap()
}

#[tokio::test]
async fn pings_are_answered_while_the_threads_of_all_else_are_taken() {
    let packets = Threads::start("packets", 1, 1).unwrap();
    assert!(!is_lost_while_busy(packets.handle()).await);
    assert!(is_lost_while_busy(&Handle::current()).await, "what it would be otherwise");
}

#[tokio::test]
async fn the_wrong_node_a_foreign_authority_and_a_strange_dialler_are_refused() {
    let ca = authority();
    let (a, _ta) = endpoint(&ca, "a", NodeClass::Agent);
    let (b, _tb) = endpoint(&ca, "b", NodeClass::Agent);
    let wrong = soon(a.connect(address(&b), Some("c"), Alpn::Mesh)).await;
    assert!(matches!(wrong, Err(ConnectError::Failed { .. })));
    // An agent may not listen as a server.
    assert!(soon(a.connect(address(&b), Some("b"), Alpn::Raft)).await.is_err());

    let foreign = authority();
    let (x, _tx) = endpoint(&foreign, "b", NodeClass::Server);
    assert!(soon(a.connect(address(&x), Some("b"), Alpn::Mesh)).await.is_err());
    // The other way round the dialler trusts the listener, who must not trust the dialler.
    let pair = foreign.generate_node("a", &[], NodeClass::Server).unwrap();
    let liar =
        Identity::new(&pair.cert_pem, &pair.key_pem, ca.cert_pem(), &WallClock::system()).unwrap();
    let tasks = TaskGroup::new(&CancellationToken::new());
    let liar = Endpoint::bind(LOOPBACK, liar, NetConfig::default(), &tasks).unwrap();
    if let Ok(conn) = soon(liar.connect(address(&b), Some("b"), Alpn::Mesh)).await {
        soon(conn.closed()).await;
    }
    let quiet = tokio::time::timeout(Duration::from_millis(100), b.accept()).await;
    assert!(quiet.is_err());
}

/// Goal: a clock that is hours behind cuts nobody off, and one that says that certificates have ended
/// does. Method: one of two nodes has such a clock, and each dials the other.
#[tokio::test]
async fn a_node_whose_clock_is_hours_behind_talks_to_all_and_one_of_another_year_to_nobody() {
    let ca = authority();
    let (right, _tr) = endpoint(&ca, "right", NodeClass::Server);
    let now = WallClock::system().now().as_second();
    let year = 365 * 86_400;
    for (off, is_heard) in [(-5 * 3600, true), (-year, true), (5 * 3600, true), (year, false)] {
        let pair = ca.generate_node("wrong", &[], NodeClass::Server).unwrap();
        let clock = WallClock::manual(now + off);
        let identity = Identity::new(&pair.cert_pem, &pair.key_pem, ca.cert_pem(), &clock).unwrap();
        let tasks = TaskGroup::new(&CancellationToken::new());
        let wrong = Endpoint::bind(LOOPBACK, identity, NetConfig::default(), &tasks).unwrap();
        let to = soon(right.connect(address(&wrong), Some("wrong"), Alpn::Mesh)).await;
        let accepted = tokio::time::timeout(Duration::from_millis(200), wrong.accept()).await;
        assert_eq!(to.is_ok() && accepted.is_ok(), is_heard, "{off} s: {to:?}");
        let from = soon(wrong.connect(address(&right), Some("right"), Alpn::Mesh)).await;
        assert_eq!(from.is_ok(), is_heard, "{off} s: {from:?}");
        if is_heard {
            soon(right.accept()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn an_agent_may_not_speak_raft_to_a_server() {
    let ca = authority();
    let (agent, _ta) = endpoint(&ca, "agent", NodeClass::Agent);
    let (server, _ts) = endpoint(&ca, "server", NodeClass::Server);
    let conn = soon(agent.connect(address(&server), Some("server"), Alpn::Raft)).await.unwrap();
    soon(conn.closed()).await;
    soon(agent.connect(address(&server), Some("server"), Alpn::Api)).await.unwrap();
    let accepted = soon(server.accept()).await.unwrap();
    assert_eq!(accepted.alpn(), Alpn::Api);
}

#[tokio::test]
async fn a_renewed_certificate_serves_without_restart() {
    let ca = authority();
    let (a, _ta) = endpoint(&ca, "a", NodeClass::Agent);
    let (b, _tb) = endpoint(&ca, "b", NodeClass::Agent);
    let pair = ca.generate_node("b", &[], NodeClass::Server).unwrap();
    assert!(soon(a.connect(address(&b), Some("b"), Alpn::Raft)).await.is_err());
    b.identity().replace(&pair.cert_pem, &pair.key_pem).unwrap();
    let dialled = soon(a.connect(address(&b), Some("b"), Alpn::Api)).await.unwrap();
    assert!(dialled.peer().is_server());
    let other = ca.generate_node("c", &[], NodeClass::Agent).unwrap();
    assert!(b.identity().replace(&other.cert_pem, &other.key_pem).is_err());
}

/// Goal: what each agent keeps open to every server costs little. Method: two connections that carry
/// nothing, each of its kind, for longer than either kind may be silent without pings.
#[tokio::test]
async fn connections_on_which_nobody_waits_are_pinged_less_and_stay_as_well() {
    let ca = authority();
    let (server, _s) = endpoint(&ca, "one", NodeClass::Server);
    let (agent, _a) = endpoint(&ca, "two", NodeClass::Agent);
    let mut held = Vec::new();
    for alpn in [Alpn::Mesh, Alpn::Node] {
        let dialled = soon(agent.connect(address(&server), Some("one"), alpn)).await.unwrap();
        held.push((dialled, soon(server.accept()).await.unwrap()));
    }
    let silence = NetConfig::default().idle_timeout * Alpn::Node.patience(&Peer::default());
    tokio::time::sleep(silence + Duration::from_secs(1)).await;
    let sent = |at: usize| {
        let (dialled, accepted) = &held[at];
        assert!(!dialled.is_closed() && !accepted.is_closed());
        let of = |conn: &Connection| conn.held().upgrade().unwrap().quic.stats().udp_tx.datagrams;
        of(dialled) + of(accepted)
    };
    // Handshakes and probes of the path are the same for both: what differs are the pings.
    let (mesh, node) = (sent(0), sent(1));
    assert!(node + 40 <= mesh, "{node} packets beside {mesh}");
}

#[tokio::test]
async fn a_taken_port_is_named_in_one_sentence() {
    let ca = authority();
    let (a, tasks) = endpoint(&ca, "a", NodeClass::Agent);
    let id = identity(&ca, "b", NodeClass::Agent);
    let err = Endpoint::bind(address(&a), id, NetConfig::default(), &tasks).unwrap_err();
    let text = err.to_string();
    assert!(text.contains(&address(&a).to_string()) && text.contains("in use"), "{text}");
}

fn request(path: &str, body: Body) -> ::http::Request<Body> {
    ::http::Request::post(format!("http://server{path}")).body(body).unwrap()
}

#[tokio::test]
async fn http_streams_both_ways_and_the_service_knows_the_peer() {
    let ca = authority();
    let (a, _ta) = endpoint(&ca, "a", NodeClass::Agent);
    let (b, tb) = endpoint(&ca, "b", NodeClass::Server);
    let conn = soon(a.connect(address(&b), Some("b"), Alpn::Api)).await.unwrap();
    let accepted = soon(b.accept()).await.unwrap();
    // Echoes, head first: the request's body is still on its way when the response begins.
    let echo = tower::service_fn(|request: ::http::Request<Body>| async move {
        let peer = request.extensions().get::<Arc<Peer>>().unwrap().node.clone();
        assert_eq!(request.uri(), "/echo");
        assert_eq!(request.headers()["host"], "server");
        let response = ::http::Response::builder().header("peer", peer);
        Ok::<_, Infallible>(response.body(request.into_body()).unwrap())
    });
    tb.clone().spawn_until_cancelled("serve", async move {
        http::serve(accepted, echo, &tb).await;
    });

    let (send, chunks) = tokio::sync::mpsc::channel::<Bytes>(1);
    let chunks = futures_util::stream::unfold(chunks, |mut chunks| async {
        let chunk = chunks.recv().await?;
        Some((Ok::<_, BodyError>(http_body::Frame::data(chunk)), chunks))
    });
    let body = StreamBody::new(chunks).boxed_unsync();
    let response = soon(http::send(&conn, request("/echo", body))).await.unwrap();
    assert_eq!(response.headers()["peer"], "a");
    let mut body = response.into_body();
    for text in ["one", "two", "three"] {
        send.send(Bytes::from(text)).await.unwrap();
        let frame = soon(body.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), text);
    }
    drop(send);
    assert!(soon(body.frame()).await.is_none());

    let big = Bytes::from(vec![7_u8; 3_000_000]);
    let response = soon(http::send(&conn, request("/echo", http::full(big.clone())))).await;
    let echoed = soon(response.unwrap().into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(echoed, big);
}

/// Tells when it is dropped.
struct Bell(Option<tokio::sync::oneshot::Sender<()>>);
impl Drop for Bell {
    fn drop(&mut self) {
        let _ = self.0.take().unwrap().send(());
    }
}

#[tokio::test]
async fn dropping_a_response_ends_the_servers_body() {
    let ca = authority();
    let (a, _ta) = endpoint(&ca, "a", NodeClass::Agent);
    let (b, tb) = endpoint(&ca, "b", NodeClass::Server);
    let conn = soon(a.connect(address(&b), Some("b"), Alpn::Api)).await.unwrap();
    let accepted = soon(b.accept()).await.unwrap();
    let (ring, rung) = tokio::sync::oneshot::channel();
    let bell = Arc::new(Mutex::new(Some(Bell(Some(ring)))));
    let watch = tower::service_fn(move |_: ::http::Request<Body>| {
        let bell = bell.lock().take();
        async move {
            // A watch: one line, then silence for ever.
            let lines = futures_util::stream::unfold((bell, 0), |(bell, n)| async move {
                if n > 0 {
                    std::future::pending::<()>().await;
                }
                let frame = http_body::Frame::data(Bytes::from_static(b"event\n"));
                Some((Ok::<_, BodyError>(frame), (bell, n + 1)))
            });
            Ok::<_, Infallible>(::http::Response::new(StreamBody::new(lines).boxed_unsync()))
        }
    });
    tb.clone().spawn_until_cancelled("serve", async move {
        http::serve(accepted, watch, &tb).await;
    });
    let response = soon(http::send(&conn, request("/watch", http::empty()))).await.unwrap();
    let mut body = response.into_body();
    soon(body.frame()).await.unwrap().unwrap();
    drop(body);
    soon(rung).await.unwrap();
}

#[tokio::test]
async fn a_stream_is_recycled_after_each_exchange_and_reports_a_dead_one() {
    let (client, server) = tokio::io::duplex(4096);
    let tasks = TaskGroup::new(&CancellationToken::new());
    let answer = tower::service_fn(|request: ::http::Request<Body>| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        Ok::<_, Infallible>(::http::Response::new(http_body_util::Full::new(body)))
    });
    tasks.spawn_until_cancelled("serve", http::serve_stream(server, answer));
    let kept: Arc<Mutex<Option<http::HttpStream>>> = Arc::default();
    *kept.lock() = Some(http::HttpStream::new(client).await.unwrap());
    for body in ["", "first", "second"] {
        let stream = kept.lock().take().expect("recycled");
        let home = Arc::clone(&kept);
        let recycle = Box::new(move |stream| *home.lock() = Some(stream));
        let request = request("/", http::full(body));
        let response = soon(stream.send(request, Some(recycle))).await.unwrap();
        let got = soon(response.into_body().collect()).await.unwrap().to_bytes();
        assert_eq!(got, body);
    }
    let stream = kept.lock().take().expect("recycled");
    tasks.shutdown(SOON).await;
    let failed = soon(stream.send(request("/", http::full("late")), None)).await.unwrap_err();
    let unsent = failed.unsent.expect("the request comes back");
    let body = unsent.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "late");
}

fn peers(endpoint: &Endpoint, tasks: &TaskGroup) -> Peers {
    Peers::new(endpoint.clone(), tasks, Rng::seeded(1))
}

#[tokio::test]
async fn peers_are_dialled_once_shared_and_dialled_again_when_lost() {
    let ca = authority();
    let (a, ta) = endpoint(&ca, "a", NodeClass::Agent);
    let (b, _tb) = endpoint(&ca, "b", NodeClass::Agent);
    let pool = peers(&a, &ta);
    let unknown = soon(pool.get("b", Alpn::Mesh)).await;
    assert!(matches!(unknown, Err(ConnectError::NoAddress { .. })));
    pool.set_address("b", address(&b));
    let (one, two) = tokio::join!(soon(pool.get("b", Alpn::Mesh)), soon(pool.get("b", Alpn::Mesh)));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(one.id(), two.id());
    // The peer may open streams on what we dialled.
    let offered = soon(a.accept()).await.unwrap();
    assert!(offered.is_dialled());

    let accepted = soon(b.accept()).await.unwrap();
    accepted.close("lost");
    soon(one.closed()).await;
    let handle = pool.handle("b", Alpn::Mesh);
    soon(async {
        while handle.connection().is_none_or(|conn| conn.id() == one.id()) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(!handle.is_down() && pool.is_connected("b", Alpn::Mesh));
}

/// Goal: a node is found as long as there is a connection to it. Method: both dial; the peer's own takes the place
/// of ours, and is given up by it, as one through a tunnel is once there is a direct one.
#[tokio::test]
async fn a_connection_whose_place_another_took_serves_again_when_that_is_lost() {
    let ca = authority();
    let (a, ta) = endpoint(&ca, "a", NodeClass::Server);
    let (b, _tb) = endpoint(&ca, "b", NodeClass::Server);
    let pool = peers(&a, &ta);
    pool.set_address("b", address(&b));
    let ours = soon(pool.get("b", Alpn::Raft)).await.unwrap();
    assert!(soon(a.accept()).await.unwrap().is_dialled());
    let theirs = soon(b.connect(address(&a), Some("a"), Alpn::Raft)).await.unwrap();
    let inbound = soon(a.accept()).await.unwrap();
    pool.adopt(&inbound);
    assert_eq!(soon(pool.get("b", Alpn::Raft)).await.unwrap().id(), inbound.id());
    theirs.close("replaced");
    soon(inbound.closed()).await;
    let handle = pool.handle("b", Alpn::Raft);
    soon(async {
        while handle.connection().is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(handle.connection().unwrap().id(), ours.id());
    assert!(!handle.is_down());
}

/// Destination connection ID of a packet with a long header (RFC 9000, 17.2).
fn connection_id(packet: &[u8]) -> Option<Vec<u8>> {
    let length = usize::from(*packet.get(5)?);
    packet.get(6..6 + length).map(<[u8]>::to_vec)
}

/// Given up when its waiters are told, an attempt at a busy peer would come to nothing, time and again.
#[tokio::test]
async fn an_attempt_goes_on_after_its_waiters_were_told_that_it_takes_too_long() {
    let ca = authority();
    let (a, ta) = endpoint(&ca, "a", NodeClass::Agent);
    let mute = tokio::net::UdpSocket::bind(LOOPBACK).await.unwrap();
    let pool = peers(&a, &ta);
    pool.set_address("b", mute.local_addr().unwrap());
    let began = tokio::time::Instant::now();
    let told = async {
        assert!(soon(pool.get("b", Alpn::Api)).await.is_err());
        began.elapsed()
    };
    let patience = NetConfig::default().handshake_timeout;
    let heard = soon(async {
        let (mut packet, mut first) = ([0; 2048], None);
        loop {
            let (length, _) = mute.recv_from(&mut packet).await.unwrap();
            let id = connection_id(&packet[..length]);
            let is_first = *first.get_or_insert(id.clone()) == id;
            // A farewell would come at once when it is given up.
            if is_first && began.elapsed() > patience + Duration::from_millis(150) {
                return;
            }
        }
    });
    let (told, ()) = tokio::join!(told, heard);
    assert!(told < patience + Duration::from_secs(1), "{told:?}");
}

#[test]
fn only_a_connection_to_the_api_that_was_soon_lost_gives_the_next_one_more_time() {
    let (soon, late) = (Duration::from_secs(3), Duration::from_secs(300));
    let after = |strain, lasted| peers::strained(Alpn::Api, strain, lasted);
    assert_eq!([after(1, soon), after(2, soon), after(4, soon), after(4, late)], [2, 4, 4, 1]);
    assert_eq!(peers::strained(Alpn::Mesh, 1, soon), 1);
}

#[tokio::test]
async fn a_connection_that_nobody_uses_ends_and_is_made_again_when_it_is_wanted() {
    let ca = authority();
    let config = NetConfig { unused_after: Duration::from_millis(50), ..NetConfig::default() };
    let (agent, ta) = endpoint_with(&ca, "agent", NodeClass::Agent, config);
    let (server, _ts) = endpoint(&ca, "server", NodeClass::Server);
    let pool = peers(&agent, &ta);
    pool.set_address("server", address(&server));
    let used = soon(pool.get("server", Alpn::Api)).await.unwrap();
    let watch = used.open_bi().await.unwrap();
    pool.keep("server", Alpn::Node);
    // Several times as long as what is unused may stay.
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(soon(pool.get("server", Alpn::Api)).await.unwrap().id(), used.id(), "in use");
    drop(watch);
    soon(async {
        while pool.is_connected("server", Alpn::Api) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_ne!(soon(pool.get("server", Alpn::Api)).await.unwrap().id(), used.id());
    assert!(pool.is_connected("server", Alpn::Node), "the server may want to use it");
}

#[tokio::test]
async fn an_inbound_connection_carries_outbound_streams() {
    let ca = authority();
    let (agent, ta) = endpoint(&ca, "agent", NodeClass::Agent);
    let (server, ts) = endpoint(&ca, "server", NodeClass::Server);
    let of_agent = peers(&agent, &ta);
    of_agent.set_address("server", address(&server));
    of_agent.keep("server", Alpn::Node);
    let inbound = soon(server.accept()).await.unwrap();
    let of_server = peers(&server, &ts);
    of_server.adopt(&inbound);
    let down = soon(of_server.get("agent", Alpn::Node)).await.unwrap();
    let mut stream = down.open_bi().await.unwrap();
    stream.write_all(b"logs").await.unwrap();
    let at_agent = soon(agent.accept()).await.unwrap();
    let mut got = [0; 4];
    soon(soon(at_agent.accept_bi()).await.unwrap().read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"logs");
    of_server.drop_peer("agent");
    soon(inbound.closed()).await;
    assert!(soon(of_server.get("agent", Alpn::Node)).await.is_err());
}

#[tokio::test]
async fn a_peer_that_has_left_is_not_dialled_any_more() {
    let ca = authority();
    let (a, ta) = endpoint(&ca, "a", NodeClass::Agent);
    let (b, _tb) = endpoint(&ca, "b", NodeClass::Agent);
    let pool = peers(&a, &ta);
    pool.set_address("b", address(&b));
    soon(pool.get("b", Alpn::Mesh)).await.unwrap();
    let handle = pool.handle("b", Alpn::Mesh);
    let accepted = soon(b.accept()).await.unwrap();
    pool.drop_peer("b");
    soon(accepted.closed()).await;
    // Longer than any pause before a lost peer is dialled again.
    let again = tokio::time::timeout(Duration::from_millis(600), b.accept()).await;
    assert!(again.is_err(), "dialled again");
    assert!(matches!(soon(handle.get()).await, Err(ConnectError::NoAddress { .. })));
    // It is found again when it comes back under its name.
    pool.set_address("b", address(&b));
    soon(handle.get()).await.unwrap();
}

#[tokio::test]
async fn a_request_for_a_certificate_tells_the_key_it_is_for() {
    let ca = authority();
    let key = NodeKey::generate().unwrap();
    let pem = ca.issue_node(&key.csr_der, "a", &[], NodeClass::Agent).unwrap();
    let peer = Peer::from_certificate(&pki::pem_to_der(&pem).unwrap()).unwrap();
    assert_eq!(pki::request_key_hash(&key.csr_der).unwrap(), peer.key_hash);
    let again = NodeKey::from_pem(&key.key_pem).unwrap();
    assert_eq!(pki::request_key_hash(&again.csr_der).unwrap(), peer.key_hash);
    let other = NodeKey::generate().unwrap();
    assert_ne!(pki::request_key_hash(&other.csr_der).unwrap(), peer.key_hash);
}

#[tokio::test]
async fn a_peer_that_is_down_fails_fast_after_the_first_attempt() {
    let ca = authority();
    let (a, ta) = endpoint(&ca, "a", NodeClass::Agent);
    let (b, tb) = endpoint(&ca, "b", NodeClass::Agent);
    let pool = peers(&a, &ta);
    pool.set_address("b", address(&b));
    let conn = soon(pool.get("b", Alpn::Mesh)).await.unwrap();
    b.close().await;
    tb.shutdown(SOON).await;
    drop(b);
    soon(conn.closed()).await;
    let handle = pool.handle("b", Alpn::Mesh);
    soon(async {
        while !handle.is_down() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let before = tokio::time::Instant::now();
    assert!(matches!(handle.get().await, Err(ConnectError::Down { .. })));
    assert!(before.elapsed() < Duration::from_secs(1));
}
