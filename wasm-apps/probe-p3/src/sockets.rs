//! Sockets of WASI 0.3.

use std::net::SocketAddr;

use wasip3::clocks::monotonic_clock::wait_for;
use wasip3::sockets::ip_name_lookup::resolve_addresses;
use wasip3::sockets::types::{
    ErrorCode, IpAddress, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, Ipv6SocketAddress,
    TcpSocket, UdpSocket,
};
use wasip3::{spawn_local, wit_stream};

/// Longer than any test, in nanoseconds.
const HOUR: u64 = 3_600_000_000_000;

/// Gives every connection its own bytes back, and then the end.
pub async fn tcp_echo(address: &str) -> Result<(), String> {
    let mut connections = listen(address)?;
    while let Some(socket) = connections.next().await {
        spawn_local(async move {
            let (received, _) = socket.receive();
            let _ = socket.send(received).await;
        });
    }
    Err("the listener has ended".to_owned())
}

/// Takes one connection, and never reads from it.
pub async fn tcp_serve_once(address: &str) -> Result<(), String> {
    let mut connections = listen(address)?;
    let _kept = connections.next().await;
    println!("taken");
    wait_for(HOUR).await;
    Ok(())
}

/// Sends a text and the end, prints what comes back.
pub async fn tcp_ask(address: &str, text: &str) -> Result<(), String> {
    let (to, family) = parse(address)?;
    let socket = TcpSocket::create(family).map_err(words)?;
    socket.connect(to).await.map_err(|code| format!("connect: {}", words(code)))?;
    let (mut data, to_send) = wit_stream::new();
    let sent = socket.send(to_send);
    let (received, end) = socket.receive();
    let text = text.as_bytes().to_vec();
    spawn_local(async move {
        let _unsent = data.write_all(text).await;
    });
    let answer = received.collect().await;
    println!("{}", String::from_utf8_lossy(&answer));
    end.await.map_err(words)?;
    sent.await.map_err(words)
}

/// Gives back every datagram.
pub async fn udp_echo(address: &str) -> Result<(), String> {
    let (at, family) = parse(address)?;
    let socket = UdpSocket::create(family).map_err(words)?;
    socket.bind(at).map_err(words)?;
    println!("bound to {address}");
    loop {
        let (data, from) = socket.receive().await.map_err(words)?;
        socket.send(data, Some(from)).await.map_err(words)?;
    }
}

/// Sends a text, prints the answer.
pub async fn udp_ask(address: &str, text: &str) -> Result<(), String> {
    let (to, family) = parse(address)?;
    let socket = UdpSocket::create(family).map_err(words)?;
    socket.connect(to).map_err(words)?;
    socket.send(text.into(), None).await.map_err(words)?;
    let (data, from) = socket.receive().await.map_err(words)?;
    println!("{} from {}", String::from_utf8_lossy(&data), from_wasi(from));
    Ok(())
}

/// Prints the addresses of a name.
pub async fn lookup(name: &str) -> Result<(), String> {
    let found = resolve_addresses(name.to_owned()).await.map_err(|code| format!("{code:?}"))?;
    for address in found {
        let at = match address {
            IpAddress::Ipv4(address) => {
                IpSocketAddress::Ipv4(Ipv4SocketAddress { port: 0, address })
            }
            IpAddress::Ipv6(address) => IpSocketAddress::Ipv6(Ipv6SocketAddress {
                port: 0,
                flow_info: 0,
                address,
                scope_id: 0,
            }),
        };
        println!("{}", from_wasi(at).ip());
    }
    Ok(())
}

fn listen(address: &str) -> Result<wit_bindgen::StreamReader<TcpSocket>, String> {
    let (at, family) = parse(address)?;
    let socket = TcpSocket::create(family).map_err(words)?;
    socket.bind(at).map_err(words)?;
    let connections = socket.listen().map_err(words)?;
    println!("listening on {address}");
    Ok(connections)
}

fn words(code: ErrorCode) -> String {
    format!("{code:?}")
}

fn parse(address: &str) -> Result<(IpSocketAddress, IpAddressFamily), String> {
    let at: SocketAddr = address.parse().map_err(|_| "no address".to_owned())?;
    Ok(match at {
        SocketAddr::V4(at) => {
            let [a, b, c, d] = at.ip().octets();
            let at = Ipv4SocketAddress { port: at.port(), address: (a, b, c, d) };
            (IpSocketAddress::Ipv4(at), IpAddressFamily::Ipv4)
        }
        SocketAddr::V6(at) => {
            let [a, b, c, d, e, f, g, h] = at.ip().segments();
            let at = Ipv6SocketAddress {
                port: at.port(),
                flow_info: 0,
                address: (a, b, c, d, e, f, g, h),
                scope_id: 0,
            };
            (IpSocketAddress::Ipv6(at), IpAddressFamily::Ipv6)
        }
    })
}

fn from_wasi(at: IpSocketAddress) -> SocketAddr {
    match at {
        IpSocketAddress::Ipv4(at) => {
            let (a, b, c, d) = at.address;
            ([a, b, c, d], at.port).into()
        }
        IpSocketAddress::Ipv6(at) => {
            let (a, b, c, d, e, f, g, h) = at.address;
            ([a, b, c, d, e, f, g, h], at.port).into()
        }
    }
}
