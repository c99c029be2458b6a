//! A TLS session over a TCP connection.

use std::io::{Write as _, stdout};

use wasip2::io::streams::{InputStream, StreamError};
use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::ip_name_lookup::resolve_addresses;
use wasip2::sockets::network::{
    IpAddress, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, Ipv6SocketAddress,
};
use wasip2::sockets::tcp::TcpSocket;
use wasip2::sockets::tcp_create_socket::create_tcp_socket;

use self::bindings::wasi::tls::types::ClientHandshake;

/// Bytes read at once.
const READ_BYTES: u64 = 16 << 10;

mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "edgeorc:probe/imports",
        with: {
            "wasi:io/error@0.2.12": wasip2::io::error,
            "wasi:io/poll@0.2.12": wasip2::io::poll,
            "wasi:io/streams@0.2.12": wasip2::io::streams,
        },
        generate_all,
    });
}

/// Sends "hello", and prints what comes back.
pub fn session(host: &str, port: &str, name: &str) -> Result<(), String> {
    let port = port.parse().map_err(|_| format!("{port} is no port"))?;
    let words = |what: &'static str| move |code| format!("{what}: {code:?}");
    let network = instance_network();
    let lookup = resolve_addresses(&network, host).map_err(words("lookup"))?;
    lookup.subscribe().block();
    let address = lookup.resolve_next_address().map_err(words("lookup"))?;
    let address = address.ok_or_else(|| format!("{host} has no address"))?;
    let (family, address) = at(address, port);
    let socket = create_tcp_socket(family).map_err(words("socket"))?;
    socket.start_connect(&network, address).map_err(words("connect"))?;
    socket.subscribe().block();
    let (input, output) = socket.finish_connect().map_err(words("connect"))?;
    talk(&socket, name, input, output)
}

fn talk(
    _socket: &TcpSocket,
    name: &str,
    input: InputStream,
    output: wasip2::io::streams::OutputStream,
) -> Result<(), String> {
    let future = ClientHandshake::finish(ClientHandshake::new(name, input, output));
    future.subscribe().block();
    let streams = future.get().ok_or("not ready")?.map_err(|()| "taken already")?;
    let (connection, input, output) =
        streams.map_err(|error| format!("handshake: {}", error.to_debug_string()))?;
    output.blocking_write_and_flush(b"hello").map_err(|error| format!("write: {error:?}"))?;
    connection.close_output();
    output.subscribe().block();
    loop {
        match input.blocking_read(READ_BYTES) {
            Ok(bytes) => print!("{}", String::from_utf8_lossy(&bytes)),
            // Nobody flushes at the end of a component's `run`.
            Err(StreamError::Closed) => return stdout().flush().map_err(|error| error.to_string()),
            Err(StreamError::LastOperationFailed(error)) => {
                return Err(format!("read: {}", error.to_debug_string()));
            }
        }
    }
}

fn at(address: IpAddress, port: u16) -> (IpAddressFamily, IpSocketAddress) {
    match address {
        IpAddress::Ipv4(address) => {
            (IpAddressFamily::Ipv4, IpSocketAddress::Ipv4(Ipv4SocketAddress { port, address }))
        }
        IpAddress::Ipv6(address) => {
            let address = Ipv6SocketAddress { port, flow_info: 0, address, scope_id: 0 };
            (IpAddressFamily::Ipv6, IpSocketAddress::Ipv6(address))
        }
    }
}
