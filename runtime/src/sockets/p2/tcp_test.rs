//! The host functions as a guest calls them, between two pods and within one.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wasmtime::component::{Resource, ResourceTable};
use wasmtime_wasi::p2::bindings::sockets::instance_network::Host as _;
use wasmtime_wasi::p2::bindings::sockets::ip_name_lookup::{
    Host as _, HostResolveAddressStream as _,
};
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily};
use wasmtime_wasi::p2::bindings::sockets::tcp::{HostTcpSocket, ShutdownType};
use wasmtime_wasi::p2::bindings::sockets::tcp_create_socket::Host as _;
use wasmtime_wasi::p2::{SocketResult, TcpSocket};
use wasmtime_wasi_io::streams::{DynInputStream, DynOutputStream};

use super::SocketsView;
use crate::network::{Intake, PodNet, VirtualNetwork};
use crate::tasks::Guests;
use crate::types::{Body, BodyError, BoxIo, PodConfig, PodId, Uplink};

struct Mesh(Weak<VirtualNetwork>);

#[async_trait]
impl Uplink for Mesh {
    async fn connect(
        &self,
        _: &PodId,
        source: SocketAddr,
        to: SocketAddr,
    ) -> std::io::Result<BoxIo> {
        self.0.upgrade().unwrap().connect_from(source, to).await
    }

    async fn resolve(&self, _: &PodId, name: &str) -> Vec<IpAddr> {
        // Not at once, as over a network.
        tokio::task::yield_now().await;
        if name == "server." { vec!["10.0.0.1".parse().unwrap()] } else { Vec::new() }
    }

    async fn http(
        &self,
        _: &PodId,
        _: http::Request<Body>,
    ) -> Result<http::Response<Body>, BodyError> {
        Err("no http here".into())
    }
}

/// One pod and the handles of its guest.
struct Guest {
    net: Arc<PodNet>,
    table: ResourceTable,
    intake: Intake,
}

impl Guest {
    fn new(network: &Arc<VirtualNetwork>, guests: &Arc<Guests>, ip: &str) -> Self {
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
        let mesh = Arc::new(Mesh(Arc::downgrade(network)));
        let net = PodNet::new(&pod, Arc::clone(guests), mesh, CancellationToken::new());
        network.attach(&net).unwrap();
        let intake = Intake { taken: TaskTracker::new(), over: CancellationToken::new() };
        Self { net, table: ResourceTable::new(), intake }
    }

    fn view(&mut self) -> SocketsView<'_> {
        let Self { net, table, intake } = self;
        SocketsView { table, net, intake }
    }

    fn socket(&mut self) -> Resource<TcpSocket> {
        self.view().create_tcp_socket(IpAddressFamily::Ipv4).unwrap()
    }

    async fn listen(&mut self, at: &str) -> SocketResult<Resource<TcpSocket>> {
        let socket = self.socket();
        let mut view = self.view();
        let network = view.instance_network().unwrap();
        let at: SocketAddr = at.parse().unwrap();
        view.start_bind(same(&socket), network, at.into()).await?;
        view.finish_bind(same(&socket))?;
        view.start_listen(same(&socket)).await?;
        view.finish_listen(same(&socket))?;
        Ok(socket)
    }

    async fn connect(&mut self, to: &str) -> SocketResult<End> {
        let socket = self.socket();
        self.connect_by(socket, to).await
    }

    async fn connect_from(&mut self, at: &str, to: &str) -> SocketResult<End> {
        let socket = self.socket();
        let network = self.view().instance_network().unwrap();
        let at: SocketAddr = at.parse().unwrap();
        self.view().start_bind(same(&socket), network, at.into()).await?;
        self.view().finish_bind(same(&socket))?;
        self.connect_by(socket, to).await
    }

    async fn connect_by(&mut self, socket: Resource<TcpSocket>, to: &str) -> SocketResult<End> {
        let network = self.view().instance_network().unwrap();
        let to: SocketAddr = to.parse().unwrap();
        self.view().start_connect(same(&socket), network, to.into())?;
        let (input, output) = loop {
            match self.view().finish_connect(same(&socket)) {
                Err(error) if error.downcast_ref() == Some(&ErrorCode::WouldBlock) => {
                    tokio::task::yield_now().await;
                }
                other => break other?,
            }
        };
        Ok(End { socket, input, output })
    }

    fn accept(&mut self, listener: &Resource<TcpSocket>) -> SocketResult<End> {
        let (socket, input, output) = self.view().accept(same(listener))?;
        Ok(End { socket, input, output })
    }

    fn write(&mut self, end: &End, text: &'static str) {
        let output = self.table.get_mut(&end.output).unwrap();
        assert!(output.check_write().unwrap() >= text.len());
        output.write(Bytes::from_static(text.as_bytes())).unwrap();
    }

    async fn read(&mut self, end: &End) -> Option<Bytes> {
        self.table.get_mut(&end.input).unwrap().blocking_read(1024).await.ok()
    }
}

/// A connected socket.
struct End {
    socket: Resource<TcpSocket>,
    input: Resource<DynInputStream>,
    output: Resource<DynOutputStream>,
}

fn same(socket: &Resource<TcpSocket>) -> Resource<TcpSocket> {
    Resource::new_borrow(socket.rep())
}

fn code<T>(result: SocketResult<T>) -> ErrorCode {
    result.err().unwrap().downcast().unwrap()
}

fn two_pods() -> (Guest, Guest, (Arc<VirtualNetwork>, Arc<Guests>)) {
    let network = Arc::new(VirtualNetwork::new());
    let guests = Arc::new(Guests::start(1).unwrap());
    let server = Guest::new(&network, &guests, "10.0.0.1");
    let client = Guest::new(&network, &guests, "10.0.0.2");
    (server, client, (network, guests))
}

#[tokio::test]
async fn nothing_leads_out_of_the_loopback() {
    let (mut server, mut client, _kept) = two_pods();
    let listener = server.listen("0.0.0.0:80").await.unwrap();
    let refused = client.connect_from("127.0.0.1:4000", "10.0.0.1:80").await;
    assert_eq!(code(refused), ErrorCode::RemoteUnreachable);
    assert_eq!(code(server.accept(&listener)), ErrorCode::WouldBlock);
    let _near = client.connect_from("10.0.0.2:4000", "10.0.0.1:80").await.unwrap();
    let far = server.accept(&listener).unwrap();
    let peer = server.view().remote_address(same(&far.socket)).unwrap();
    assert_eq!(SocketAddr::from(peer), "10.0.0.2:4000".parse().unwrap());
}

#[tokio::test]
async fn two_guests_talk_and_each_side_ends_for_itself() {
    let (mut server, mut client, _kept) = two_pods();
    let listener = server.listen("0.0.0.0:80").await.unwrap();
    assert_eq!(code(server.accept(&listener)), ErrorCode::WouldBlock);
    let near = client.connect("10.0.0.1:80").await.unwrap();
    let far = server.accept(&listener).unwrap();

    client.write(&near, "question");
    assert_eq!(server.read(&far).await.unwrap(), "question");
    client.view().shutdown(same(&near.socket), ShutdownType::Send).unwrap();
    assert_eq!(server.read(&far).await, None, "the client has said all");
    server.write(&far, "answer");
    assert_eq!(client.read(&near).await.unwrap(), "answer");

    let local = server.view().local_address(same(&far.socket)).unwrap();
    assert_eq!(SocketAddr::from(local), "10.0.0.1:80".parse().unwrap());
    let remote = client.view().remote_address(same(&near.socket)).unwrap();
    assert_eq!(SocketAddr::from(remote), "10.0.0.1:80".parse().unwrap());
    let caller = SocketAddr::from(client.view().local_address(same(&near.socket)).unwrap());
    assert_eq!(caller.ip(), "10.0.0.2".parse::<IpAddr>().unwrap());
    let peer = server.view().remote_address(same(&far.socket)).unwrap();
    assert_eq!(SocketAddr::from(peer), caller, "the server sees who calls");
}

#[tokio::test]
async fn callers_without_an_address_of_the_guests_family_are_unspecified() {
    let (mut server, _client, (network, _guests)) = two_pods();
    let listener = server.listen("0.0.0.0:80").await.unwrap();
    let to = "10.0.0.1:80".parse().unwrap();
    let _unknown = network.connect(to).await.unwrap();
    let _other = network.connect_from("[2001:db8::1]:4000".parse().unwrap(), to).await.unwrap();
    for _ in 0..2 {
        let end = server.accept(&listener).unwrap();
        let peer = server.view().remote_address(same(&end.socket)).unwrap();
        assert_eq!(SocketAddr::from(peer), "0.0.0.0:0".parse().unwrap());
    }
}

#[tokio::test]
async fn a_request_reaches_a_guest_that_speaks_http_over_tcp() {
    let (mut server, _client, (network, _guests)) = two_pods();
    let listener = server.listen("0.0.0.0:80").await.unwrap();
    let body = http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync();
    let request = http::Request::get("http://web/path").body(body).unwrap();
    let answer = async {
        let end = loop {
            match server.accept(&listener) {
                Ok(end) => break end,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let asked = server.read(&end).await.unwrap();
        assert!(asked.starts_with(b"GET /path HTTP/1.1\r\n"), "{asked:?}");
        assert!(asked.windows(9).any(|part| part == b"host: web"), "{asked:?}");
        server.write(&end, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        end
    };
    let sent = network.http("10.0.0.1:80".parse().unwrap(), request);
    let (response, _end) = tokio::join!(sent, answer);
    let body = response.unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "ok");
}

#[tokio::test]
async fn loopback_is_the_pods_own() {
    let (mut server, mut client, _kept) = two_pods();
    let listener = server.listen("127.0.0.1:80").await.unwrap();
    assert_eq!(code(client.connect("127.0.0.1:80").await), ErrorCode::ConnectionRefused);
    assert_eq!(code(client.connect("10.0.0.1:80").await), ErrorCode::ConnectionRefused);
    server.connect("127.0.0.1:80").await.unwrap();
    server.accept(&listener).unwrap();
}

#[tokio::test]
async fn errors_have_the_codes_of_the_interface() {
    let (mut server, mut client, _kept) = two_pods();
    server.listen("0.0.0.0:80").await.unwrap();
    assert_eq!(code(server.listen("0.0.0.0:80").await), ErrorCode::AddressInUse);
    assert_eq!(code(server.listen("10.0.0.2:81").await), ErrorCode::AddressNotBindable);
    assert_eq!(code(server.listen("[::1]:81").await), ErrorCode::InvalidArgument);
    assert_eq!(code(client.connect("0.0.0.0:80").await), ErrorCode::InvalidArgument);
    assert_eq!(code(client.connect("10.9.9.9:80").await), ErrorCode::RemoteUnreachable);

    let fresh = client.socket();
    assert_eq!(code(client.view().finish_bind(same(&fresh))), ErrorCode::NotInProgress);
    assert_eq!(code(client.view().start_listen(same(&fresh)).await), ErrorCode::InvalidState);
    assert_eq!(code(client.view().accept(same(&fresh))), ErrorCode::InvalidState);
    assert_eq!(code(client.view().set_hop_limit(same(&fresh), 0)), ErrorCode::InvalidArgument);
}

#[tokio::test]
async fn a_dropped_listener_frees_its_port() {
    let (mut server, mut client, _kept) = two_pods();
    let listener = server.listen("0.0.0.0:80").await.unwrap();
    let _waiting = client.connect("10.0.0.1:80").await.unwrap();
    HostTcpSocket::drop(&mut server.view(), listener).unwrap();
    assert_eq!(code(client.connect("10.0.0.1:80").await), ErrorCode::ConnectionRefused);
    server.listen("0.0.0.0:80").await.unwrap();
}

#[tokio::test]
async fn a_full_backlog_refuses() {
    let (mut server, mut client, _kept) = two_pods();
    let socket = server.socket();
    let network = server.view().instance_network().unwrap();
    let at: SocketAddr = "0.0.0.0:80".parse().unwrap();
    server.view().set_listen_backlog_size(same(&socket), 1).unwrap();
    server.view().start_bind(same(&socket), network, at.into()).await.unwrap();
    server.view().finish_bind(same(&socket)).unwrap();
    server.view().start_listen(same(&socket)).await.unwrap();
    client.connect("10.0.0.1:80").await.unwrap();
    assert_eq!(code(client.connect("10.0.0.1:80").await), ErrorCode::ConnectionRefused);
}

#[tokio::test]
async fn names_are_looked_up_near_before_far() {
    let (_server, mut client, _kept) = two_pods();
    for (name, expected) in [
        ("server", Ok("10.0.0.1")),
        ("me", Ok("10.0.0.2")),
        ("localhost", Ok("127.0.0.1")),
        ("10.1.2.3", Ok("10.1.2.3")),
        ("nobody", Err(ErrorCode::NameUnresolvable)),
    ] {
        let network = client.view().instance_network().unwrap();
        let lookup = client.view().resolve_addresses(network, name.to_owned()).unwrap();
        let first = loop {
            let lookup = Resource::new_borrow(lookup.rep());
            match client.view().resolve_next_address(lookup) {
                Err(error) if error.downcast_ref() == Some(&ErrorCode::WouldBlock) => {
                    tokio::task::yield_now().await;
                }
                other => break other.map_err(|error| error.downcast().unwrap()),
            }
        };
        let expected = expected.map(|ip| ip.parse::<IpAddr>().unwrap().into());
        assert_eq!(
            first.map(|ip| format!("{ip:?}")),
            expected.map(|ip: wasmtime_wasi::p2::bindings::sockets::network::IpAddress| format!(
                "{:?}",
                Some(ip)
            )),
            "{name}"
        );
    }
}

#[tokio::test]
async fn the_sockets_of_a_pod_are_counted() {
    let (_server, mut client, _kept) = two_pods();
    let sockets: Vec<_> =
        std::iter::repeat_with(|| client.view().create_tcp_socket(IpAddressFamily::Ipv4))
            .take_while(Result::is_ok)
            .take(10_000)
            .map(Result::unwrap)
            .collect();
    assert_eq!(sockets.len(), 1024);
    let refused = client.view().create_tcp_socket(IpAddressFamily::Ipv4);
    assert_eq!(code(refused), ErrorCode::NewSocketLimit);
    let first = sockets.into_iter().next().unwrap();
    HostTcpSocket::drop(&mut client.view(), first).unwrap();
    client.socket();
}
