//! The server on loopback, asked by a client that reads its answers with another's code.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;

use super::{DnsConfig, DnsSockets};
use crate::mesh::local::{Local, LocalError};
use crate::mesh::routes::Routes;
use crate::mesh::testing::{service, slice_of};
use crate::mesh::{BoxIo, Mesh, MeshConfig};
use crate::net::Body;
use crate::rt::{Rng, TaskGroup};

const SOON: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Nothing;

#[async_trait::async_trait]
impl Local for Nothing {
    async fn connect(&self, _: Option<SocketAddr>, _: SocketAddr) -> std::io::Result<BoxIo> {
        Err(std::io::ErrorKind::ConnectionRefused.into())
    }

    async fn http(
        &self,
        _: SocketAddr,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, LocalError> {
        Err(LocalError::Refused(Box::new(request)))
    }
}

/// A server, with an upstream that counts what it is asked.
struct Server {
    at: SocketAddr,
    upstream: Arc<AtomicUsize>,
    tasks: TaskGroup,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.token().cancel();
    }
}

async fn sockets() -> (UdpSocket, TcpListener) {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
            return (udp, tcp);
        }
    }
}

fn routes() -> Routes {
    let many: Vec<_> =
        (0..100).map(|at| json!({ "addresses": [format!("10.42.0.{at}")] })).collect();
    let slices = [
        slice_of("many", &json!([{ "port": 1 }]), &json!(many)),
        slice_of(
            "db",
            &json!([{ "name": "sql", "port": 5432 }]),
            &json!([{ "addresses": ["10.42.0.5"], "hostname": "db-0" }]),
        ),
    ];
    let services = [
        service(
            "web",
            json!({ "clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9", "fd00:43::9"],
                "ports": [{ "name": "http", "port": 80 }] }),
        ),
        service("many", json!({ "clusterIP": "None" })),
        service("db", json!({ "clusterIP": "None", "ports": [{ "name": "sql", "port": 5432 }] })),
        service("ext", json!({ "type": "ExternalName", "externalName": "a.example" })),
        service(
            "inner",
            json!({ "type": "ExternalName", "externalName": "web.default.svc.cluster.local" }),
        ),
        service(
            "ring",
            json!({ "type": "ExternalName", "externalName": "ring.default.svc.cluster.local" }),
        ),
    ];
    Routes::build(&services, &slices, [], [], "a")
}

/// Knows `a.example`, and by TCP only `long.example`.
fn upstream_answer(bytes: &[u8], is_udp: bool) -> Vec<u8> {
    let query = Message::from_vec(bytes).unwrap();
    let mut answer = Message::response(query.metadata.id, OpCode::Query);
    answer.add_query(query.queries[0].clone());
    let name = query.queries[0].name().clone();
    match name.to_ascii().as_str() {
        "a.example." => {
            let data = RData::A(A::new(192, 0, 2, 7));
            answer.add_answer(Record::from_rdata(name, 300, data));
        }
        "long.example." if is_udp => answer.metadata.truncation = true,
        "long.example." => {
            let data = RData::A(A::new(192, 0, 2, 8));
            answer.add_answer(Record::from_rdata(name, 300, data));
        }
        _ => answer.metadata.response_code = ResponseCode::NXDomain,
    }
    answer.to_vec().unwrap()
}

async fn start() -> Server {
    let tasks = TaskGroup::new(&CancellationToken::new());
    let mut config = MeshConfig::new("a", Arc::new(Nothing), tasks.clone(), Rng::seeded(1));
    config.node_port_ip = None;
    let mesh = Mesh::new(config);
    mesh.publish(routes());
    let (upstream_udp, upstream_tcp) = sockets().await;
    let upstream_at = upstream_udp.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    tasks.spawn_until_cancelled("upstream-udp", async move {
        let mut buffer = [0; 4096];
        loop {
            let (size, from) = upstream_udp.recv_from(&mut buffer).await.unwrap();
            counter.fetch_add(1, Ordering::SeqCst);
            let answer = upstream_answer(&buffer[..size], true);
            upstream_udp.send_to(&answer, from).await.unwrap();
        }
    });
    tasks.spawn_until_cancelled("upstream-tcp", async move {
        loop {
            let (mut client, _) = upstream_tcp.accept().await.unwrap();
            let mut query = vec![0; client.read_u16().await.unwrap().into()];
            client.read_exact(&mut query).await.unwrap();
            let answer = upstream_answer(&query, false);
            client.write_u16(u16::try_from(answer.len()).unwrap()).await.unwrap();
            client.write_all(&answer).await.unwrap();
        }
    });
    let (udp, tcp) = sockets().await;
    let at = udp.local_addr().unwrap();
    let config =
        DnsConfig { upstreams: vec![upstream_at], service_ranges: vec!["10.43.0.0/16".to_owned()] };
    tasks.spawn_until_cancelled("dns", async move {
        mesh.serve_dns(DnsSockets { udp, tcp }, config, Rng::seeded(2)).await;
    });
    Server { at, upstream: asked, tasks }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut query = Message::query();
    query.metadata.id = 7;
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    query
}

impl Server {
    async fn raw(&self, bytes: &[u8]) -> Message {
        let asking = async {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            socket.send_to(bytes, self.at).await.unwrap();
            let mut buffer = vec![0; 65_535];
            let size = socket.recv(&mut buffer).await.unwrap();
            Message::from_vec(&buffer[..size]).unwrap()
        };
        tokio::time::timeout(SOON, asking).await.unwrap()
    }

    async fn udp(&self, query: &Message) -> Message {
        let answer = self.raw(&query.to_vec().unwrap()).await;
        assert_eq!(answer.metadata.id, query.metadata.id);
        assert_eq!(answer.metadata.message_type, MessageType::Response);
        answer
    }

    async fn tcp(&self, query: &Message) -> Message {
        let asking = async {
            let mut stream = TcpStream::connect(self.at).await.unwrap();
            let bytes = query.to_vec().unwrap();
            // In two parts, as any stream may bring it.
            let framed = [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), &bytes[..]].concat();
            stream.write_all(&framed[..5]).await.unwrap();
            stream.write_all(&framed[5..]).await.unwrap();
            let mut answer = vec![0; stream.read_u16().await.unwrap().into()];
            stream.read_exact(&mut answer).await.unwrap();
            Message::from_vec(&answer).unwrap()
        };
        tokio::time::timeout(SOON, asking).await.unwrap()
    }

    /// Type and data of each answer.
    async fn said(&self, name: &str, kind: RecordType) -> Vec<String> {
        let answer = self.udp(&query(name, kind)).await;
        let shown = |record: &Record| format!("{} {}", record.record_type(), record.data);
        answer.answers.iter().map(shown).collect()
    }
}

#[tokio::test]
async fn the_clusters_records_are_served() {
    let server = start().await;
    for (name, kind, wanted) in [
        ("web.default.svc.cluster.local.", RecordType::A, vec!["A 10.43.0.9"]),
        ("web.default.svc.cluster.local.", RecordType::AAAA, vec!["AAAA fd00:43::9"]),
        (
            "_http._tcp.web.default.svc.cluster.local.",
            RecordType::SRV,
            vec!["SRV 0 100 80 web.default.svc.cluster.local."],
        ),
        ("9.0.43.10.in-addr.arpa.", RecordType::PTR, vec!["PTR web.default.svc.cluster.local."]),
        ("db.default.svc.cluster.local.", RecordType::A, vec!["A 10.42.0.5"]),
        ("db-0.db.default.svc.cluster.local.", RecordType::A, vec!["A 10.42.0.5"]),
        ("dns-version.cluster.local.", RecordType::TXT, vec!["TXT 1.1.0"]),
        (
            "inner.default.svc.cluster.local.",
            RecordType::A,
            vec!["CNAME web.default.svc.cluster.local.", "A 10.43.0.9"],
        ),
        ("ext.default.svc.cluster.local.", RecordType::CNAME, vec!["CNAME a.example."]),
    ] {
        assert_eq!(server.said(name, kind).await, wanted, "{name} {kind}");
    }
    assert_eq!(server.upstream.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_answer_spells_the_name_as_the_question_and_says_who_knows() {
    let server = start().await;
    let answer = server.udp(&query("WeB.Default.svc.cluster.local.", RecordType::A)).await;
    assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
    assert_eq!(answer.answers[0].name.to_ascii(), "WeB.Default.svc.cluster.local.");
    assert_eq!(answer.queries[0].name().to_ascii(), "WeB.Default.svc.cluster.local.");
}

#[tokio::test]
async fn no_such_name_is_told_from_nothing_of_the_kind() {
    let server = start().await;
    let none = server.udp(&query("none.default.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(none.metadata.response_code, ResponseCode::NXDomain);
    let nothing = server.udp(&query("db.default.svc.cluster.local.", RecordType::AAAA)).await;
    assert_eq!(nothing.metadata.response_code, ResponseCode::NoError);
    let address = server.udp(&query("99.0.43.10.in-addr.arpa.", RecordType::PTR)).await;
    assert_eq!(address.metadata.response_code, ResponseCode::NXDomain);
    // The zone of "no" is above the name, or nobody would keep it (RFC 2308).
    for (answer, zone) in
        [(none, "cluster.local."), (nothing, "cluster.local."), (address, "0.43.10.in-addr.arpa.")]
    {
        assert!(answer.answers.is_empty());
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
        assert_eq!(answer.authorities[0].name.to_ascii(), zone);
    }
}

#[tokio::test]
async fn other_names_are_asked_of_the_upstream_once() {
    let server = start().await;
    assert_eq!(server.said("a.example.", RecordType::A).await, ["A 192.0.2.7"]);
    assert_eq!(server.said("A.example.", RecordType::A).await, ["A 192.0.2.7"]);
    assert_eq!(server.upstream.load(Ordering::SeqCst), 1);
    let none = server.udp(&query("none.example.", RecordType::A)).await;
    assert_eq!(none.metadata.response_code, ResponseCode::NXDomain);
    // What was cut short by UDP is asked for by TCP.
    assert_eq!(server.said("long.example.", RecordType::A).await, ["A 192.0.2.8"]);
    // An alias that leads out brings what is there.
    let followed = server.said("ext.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!(followed, ["CNAME a.example.", "A 192.0.2.7"]);
    assert_eq!(server.upstream.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_ring_of_aliases_ends() {
    let server = start().await;
    let found = server.said("ring.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!(found.len(), 8);
}

#[tokio::test]
async fn what_does_not_fit_a_datagram_is_had_by_tcp() {
    let server = start().await;
    let mut asking = query("many.default.svc.cluster.local.", RecordType::A);
    let cut = server.udp(&asking).await;
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    assert_eq!(server.tcp(&asking).await.answers.len(), 100);
    // A client that takes more still gets no more than passes every path.
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    asking.set_edns(edns);
    let cut = server.udp(&asking).await;
    assert!(cut.metadata.truncation);
    assert_eq!(cut.edns.unwrap().max_payload(), 1232);
    let small = server.udp(&query("db.default.svc.cluster.local.", RecordType::A)).await;
    assert!(small.edns.is_none());
}

#[tokio::test]
async fn what_is_no_question_is_refused_or_ignored() {
    let server = start().await;
    let mut update = query("web.default.svc.cluster.local.", RecordType::A);
    update.metadata.op_code = OpCode::Update;
    let bytes = update.to_vec().unwrap();
    assert_eq!(server.raw(&bytes).await.metadata.response_code, ResponseCode::NotImp);
    let transfer = query("cluster.local.", RecordType::AXFR);
    assert_eq!(server.udp(&transfer).await.metadata.response_code, ResponseCode::Refused);
    let mut garbled = query("web.default.svc.cluster.local.", RecordType::A).to_vec().unwrap();
    garbled.truncate(20);
    assert_eq!(server.raw(&garbled).await.metadata.response_code, ResponseCode::FormErr);
    let mut newer = query("web.default.svc.cluster.local.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1);
    newer.set_edns(edns);
    // The code is that of BADSIG too, which is the name it is read back by.
    let code = server.udp(&newer).await.metadata.response_code;
    assert_eq!(u16::from(code), u16::from(ResponseCode::BADVERS));
    // An answer is never answered, nor is what is too short; the server goes on.
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let answer = Message::response(9, OpCode::Query).to_vec().unwrap();
    for silence in [&answer[..], b"x", b""] {
        socket.send_to(silence, server.at).await.unwrap();
    }
    socket
        .send_to(
            &query("db.default.svc.cluster.local.", RecordType::A).to_vec().unwrap(),
            server.at,
        )
        .await
        .unwrap();
    let mut buffer = [0; 512];
    let size = tokio::time::timeout(SOON, socket.recv(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(Message::from_vec(&buffer[..size]).unwrap().metadata.id, 7);
}
