//! Sockets of pods on one node; the mesh is played by the switch itself.

use std::net::IpAddr;
use std::sync::Weak;

use async_trait::async_trait;

use super::*;
use crate::network::VirtualNetwork;
use crate::tasks::Guests;
use crate::types::{Body, BodyError, BoxIo, PodConfig, PodId, Uplink};

/// The address of a Service whose endpoint is the first pod.
const SERVICE: &str = "10.43.0.9:53";
/// An address whose flows are held by the test.
const HELD: &str = "192.0.2.1:9";

struct Mesh {
    network: Weak<VirtualNetwork>,
    held: mpsc::Sender<Datagrams>,
}

#[async_trait]
impl Uplink for Mesh {
    async fn connect(&self, _: &PodId, _: SocketAddr, _: SocketAddr) -> io::Result<BoxIo> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn datagrams(
        &self,
        _: &PodId,
        source: SocketAddr,
        to: SocketAddr,
        flow: Datagrams,
    ) -> io::Result<()> {
        if to == at(HELD) {
            let _ = self.held.send(flow).await;
            return std::future::pending().await;
        }
        let to = if to == at(SERVICE) { at("10.0.0.1:53") } else { to };
        self.network.upgrade().unwrap().datagrams(source, to, flow).await
    }

    async fn resolve(&self, _: &PodId, _: &str) -> Vec<IpAddr> {
        Vec::new()
    }

    async fn http(
        &self,
        _: &PodId,
        _: http::Request<Body>,
    ) -> Result<http::Response<Body>, BodyError> {
        Err("no http here".into())
    }
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

struct Node {
    network: Arc<VirtualNetwork>,
    guests: Arc<Guests>,
    held: mpsc::Receiver<Datagrams>,
    keep: mpsc::Sender<Datagrams>,
}

impl Node {
    fn new() -> Self {
        let (keep, held) = mpsc::channel(FLOWS_PER_POD_MAX + 1);
        let guests = Arc::new(Guests::start(1).unwrap());
        Self { network: Arc::new(VirtualNetwork::new()), guests, held, keep }
    }

    fn pod(&self, ip: &str) -> Arc<PodNet> {
        let id = PodId { namespace: String::new(), name: ip.to_owned(), uid: ip.to_owned() };
        let pod = PodConfig {
            id,
            ips: vec![ip.parse().unwrap()],
            hostname: "me".to_owned(),
            memory_bytes_max: None,
            hosts: Vec::new(),
            searches: Vec::new(),
            ndots: 1,
        };
        let mesh = Mesh { network: Arc::downgrade(&self.network), held: self.keep.clone() };
        let guests = Arc::clone(&self.guests);
        let net = PodNet::new(&pod, guests, Arc::new(mesh), CancellationToken::new());
        self.network.attach(&net).unwrap();
        net
    }
}

fn bind(net: &Arc<PodNet>, text: &str) -> Arc<DatagramSocket> {
    DatagramSocket::bind(net, at(text), 1 << 20).unwrap()
}

async fn received(socket: &DatagramSocket) -> (String, SocketAddr) {
    let patience = Duration::from_secs(20);
    let received = tokio::time::timeout(patience, socket.receive()).await.expect("in time");
    let Arrived { data, from } = received.unwrap();
    (String::from_utf8(data.to_vec()).unwrap(), from)
}

#[tokio::test]
async fn two_pods_exchange_datagrams_and_loopback_is_each_pods_own() {
    let node = Node::new();
    let (one, two) = (node.pod("10.0.0.1"), node.pod("10.0.0.2"));
    let server = bind(&one, "0.0.0.0:53");
    let client = bind(&two, "0.0.0.0:4000");
    client.try_send(at("10.0.0.1:53"), b"question").unwrap();
    assert_eq!(received(&server).await, ("question".to_owned(), at("10.0.0.2:4000")));
    server.try_send(at("10.0.0.2:4000"), b"answer").unwrap();
    assert_eq!(received(&client).await, ("answer".to_owned(), at("10.0.0.1:53")));

    let near = bind(&one, "127.0.0.1:54");
    server.try_send(at("127.0.0.1:54"), b"near").unwrap();
    assert_eq!(received(&near).await, ("near".to_owned(), at("127.0.0.1:53")));
    client.try_send(at("127.0.0.1:54"), b"lost").unwrap();
    client.try_send(at("10.0.0.1:54"), b"lost").unwrap();
    near.try_send(at("127.0.0.1:53"), b"back").unwrap();
    assert_eq!(received(&server).await, ("back".to_owned(), at("127.0.0.1:54")));
    assert!(near.try_receive().is_none(), "nothing of another pod");
    assert!(matches!(near.try_send(at("10.0.0.2:4000"), b"x"), Err(SendError::Unreachable)));
}

#[tokio::test]
async fn answers_of_a_service_come_from_the_service_and_two_ways_are_told_apart() {
    let node = Node::new();
    let (one, two) = (node.pod("10.0.0.1"), node.pod("10.0.0.2"));
    let server = bind(&one, "0.0.0.0:53");
    let client = bind(&two, "0.0.0.0:4000");
    client.try_send(at(SERVICE), b"by name").unwrap();
    let (_, by_service) = received(&server).await;
    client.try_send(at("10.0.0.1:53"), b"direct").unwrap();
    let (_, direct) = received(&server).await;
    assert_eq!((by_service.ip(), direct.ip()), (two.ips()[0], two.ips()[0]));
    assert_ne!(by_service, direct);
    server.try_send(by_service, b"1").unwrap();
    assert_eq!(received(&client).await, ("1".to_owned(), at(SERVICE)));
    server.try_send(direct, b"2").unwrap();
    assert_eq!(received(&client).await, ("2".to_owned(), at("10.0.0.1:53")));
}

#[tokio::test]
async fn a_connected_socket_hears_of_its_peer_only_and_that_nobody_is_there() {
    let node = Node::new();
    let (one, two) = (node.pod("10.0.0.1"), node.pod("10.0.0.2"));
    let socket = bind(&one, "0.0.0.0:53");
    let (peer, other) = (bind(&one, "0.0.0.0:1"), bind(&one, "0.0.0.0:2"));
    other.try_send(at("127.0.0.1:53"), b"too early").unwrap();
    socket.set_peer(Some(at("127.0.0.1:1")));
    other.try_send(at("127.0.0.1:53"), b"not you").unwrap();
    peer.try_send(at("127.0.0.1:53"), b"you").unwrap();
    assert_eq!(received(&socket).await.0, "you");
    assert!(socket.try_receive().is_none());
    drop(peer);
    socket.try_send(at("127.0.0.1:1"), b"anybody?").unwrap();
    assert_eq!(socket.receive().await.unwrap_err(), Refused(io::ErrorKind::ConnectionRefused));
    assert!(socket.try_receive().is_none(), "told once");

    let far = bind(&two, "0.0.0.0:9");
    far.set_peer(Some(at("10.0.0.1:7")));
    far.try_send(at("10.0.0.1:7"), b"anybody?").unwrap();
    assert_eq!(far.receive().await.unwrap_err(), Refused(io::ErrorKind::ConnectionRefused));
}

#[tokio::test]
async fn what_a_guest_does_not_read_is_dropped_by_number_by_bytes_and_by_pod() {
    let node = Node::new();
    let one = node.pod("10.0.0.1");
    let sender = bind(&one, "127.0.0.1:1");
    let count = |socket: &DatagramSocket| {
        std::iter::from_fn(|| socket.try_receive()).filter(Result::is_ok).count()
    };
    let small = bind(&one, "127.0.0.1:2");
    for _ in 0..2 * INBOX_DATAGRAMS_MAX {
        sender.try_send(at("127.0.0.1:2"), b"x").unwrap();
    }
    assert_eq!(count(&small), INBOX_DATAGRAMS_MAX);

    let data = vec![0; DATAGRAM_BYTES_MAX];
    let large = bind(&one, "127.0.0.1:3");
    for _ in 0..INBOX_DATAGRAMS_MAX {
        sender.try_send(at("127.0.0.1:3"), &data).unwrap();
    }
    assert_eq!(count(&large), INBOX_BYTES_MAX / DATAGRAM_BYTES_MAX);

    let sockets: Vec<_> = (10..30).map(|p| bind(&one, &format!("127.0.0.1:{p}"))).collect();
    for socket in &sockets {
        for _ in 0..INBOX_DATAGRAMS_MAX {
            sender.try_send(socket.address(), &data).unwrap();
        }
    }
    let held: usize = sockets.iter().map(|socket| count(socket)).sum();
    assert_eq!(held, POD_BYTES_MAX / (DATAGRAM_BYTES_MAX + DATAGRAM_COST));
    assert_eq!(one.budget.bytes.load(Ordering::Relaxed), 0, "all is given back");
}

#[tokio::test]
async fn a_flow_that_nobody_takes_from_holds_its_sender_back() {
    let mut node = Node::new();
    let one = node.pod("10.0.0.1");
    let sender = bind(&one, "0.0.0.0:1");
    let mut sent = 0;
    while sender.try_send(at(HELD), b"x").is_ok() {
        sent += 1;
    }
    assert_eq!(sent, crate::types::FLOW_DATAGRAMS_MAX);
    let mut flow = node.held.recv().await.unwrap();
    let sending = sender.send(at(HELD), b"last");
    let taking = async {
        for _ in 0..=sent {
            flow.rx.recv().await.unwrap();
        }
    };
    let (sent, ()) = tokio::join!(sending, taking);
    sent.unwrap();
}

#[tokio::test]
async fn flows_are_counted_by_socket_and_by_pod_and_end_with_their_socket() {
    let mut node = Node::new();
    let one = node.pod("10.0.0.1");
    let sender = bind(&one, "0.0.0.0:1");
    for port in 1..=u16::try_from(FLOWS_PER_SOCKET_MAX).unwrap() + 10 {
        sender.try_send(SocketAddr::new([10, 9, 9, 9].into(), port), b"x").unwrap();
    }
    assert!(sender.endpoint.flows.lock().len() <= FLOWS_PER_SOCKET_MAX);
    drop(sender);

    let sender = bind(&one, "0.0.0.0:1");
    sender.try_send(at(HELD), b"x").unwrap();
    let mut flow = node.held.recv().await.unwrap();
    assert_eq!(flow.rx.recv().await.unwrap(), "x");
    drop(sender);
    assert!(flow.rx.recv().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_flow_on_which_nothing_passes_is_idle_and_one_that_is_used_is_not() {
    let (out, _in) = mpsc::channel(1);
    let flow = Flow::new(out, false, None);
    let start = Instant::now();
    let using = async {
        tokio::time::sleep(FLOW_IDLE_MAX / 2).await;
        flow.touch();
    };
    tokio::join!(flow.idle(), using);
    assert_eq!(start.elapsed(), FLOW_IDLE_MAX + FLOW_IDLE_MAX / 2);
}
