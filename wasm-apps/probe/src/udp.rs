//! Datagrams of WASI 0.2.

use std::net::SocketAddr;

use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::network::{
    ErrorCode, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, Ipv6SocketAddress,
};
use wasip2::sockets::udp::{
    IncomingDatagramStream, OutgoingDatagram, OutgoingDatagramStream, UdpSocket,
};
use wasip2::sockets::udp_create_socket::create_udp_socket;

/// Datagrams of one call.
const BATCH: u64 = 16;

/// Gives back every datagram.
pub fn echo(port: &str) -> Result<(), String> {
    let socket = bind(&format!("0.0.0.0:{port}"))?;
    let (incoming, outgoing) = socket.stream(None).map_err(words)?;
    println!("bound to {port}");
    let ready = incoming.subscribe();
    loop {
        ready.block();
        for datagram in incoming.receive(BATCH).map_err(words)? {
            let remote_address = Some(datagram.remote_address);
            send(&outgoing, OutgoingDatagram { data: datagram.data, remote_address })?;
        }
    }
}

/// Sends a text, prints the answer.
pub fn ask(address: &str, text: &str) -> Result<(), String> {
    let to: SocketAddr = address.parse().map_err(|_| "no address".to_owned())?;
    let socket = bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    let (incoming, outgoing) = socket.stream(Some(to_wasi(to))).map_err(words)?;
    send(&outgoing, OutgoingDatagram { data: text.into(), remote_address: None })?;
    let (data, from) = receive(&incoming)?;
    println!("{} from {from}", String::from_utf8_lossy(&data));
    Ok(())
}

/// Sends much, prints how much of it found room at once.
pub fn flood(address: &str, count: &str) -> Result<(), String> {
    let to: SocketAddr = address.parse().map_err(|_| "no address".to_owned())?;
    let count: u64 = count.parse().map_err(|_| "no number".to_owned())?;
    let socket = bind("0.0.0.0:0")?;
    let (_incoming, outgoing) = socket.stream(Some(to_wasi(to))).map_err(words)?;
    let mut sent = 0;
    while sent < count && outgoing.check_send().map_err(words)? > 0 {
        let datagram = OutgoingDatagram { data: vec![0; 1000], remote_address: None };
        sent += outgoing.send(&[datagram]).map_err(words)?;
    }
    println!("sent {sent}");
    Ok(())
}

fn bind(address: &str) -> Result<UdpSocket, String> {
    let at: SocketAddr = address.parse().map_err(|_| "no address".to_owned())?;
    let family = if at.is_ipv4() { IpAddressFamily::Ipv4 } else { IpAddressFamily::Ipv6 };
    let socket = create_udp_socket(family).map_err(words)?;
    socket.start_bind(&instance_network(), to_wasi(at)).map_err(words)?;
    socket.finish_bind().map_err(words)?;
    Ok(socket)
}

fn send(outgoing: &OutgoingDatagramStream, datagram: OutgoingDatagram) -> Result<(), String> {
    loop {
        outgoing.subscribe().block();
        if outgoing.check_send().map_err(words)? > 0
            && outgoing.send(std::slice::from_ref(&datagram)).map_err(words)? > 0
        {
            return Ok(());
        }
    }
}

fn receive(incoming: &IncomingDatagramStream) -> Result<(Vec<u8>, SocketAddr), String> {
    loop {
        incoming.subscribe().block();
        if let Some(datagram) = incoming.receive(1).map_err(words)?.pop() {
            return Ok((datagram.data, from_wasi(datagram.remote_address)));
        }
    }
}

fn words(code: ErrorCode) -> String {
    code.name().to_owned()
}

fn to_wasi(at: SocketAddr) -> IpSocketAddress {
    match at {
        SocketAddr::V4(at) => {
            let [a, b, c, d] = at.ip().octets();
            IpSocketAddress::Ipv4(Ipv4SocketAddress { port: at.port(), address: (a, b, c, d) })
        }
        SocketAddr::V6(at) => {
            let [a, b, c, d, e, f, g, h] = at.ip().segments();
            IpSocketAddress::Ipv6(Ipv6SocketAddress {
                port: at.port(),
                flow_info: 0,
                address: (a, b, c, d, e, f, g, h),
                scope_id: 0,
            })
        }
    }
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
