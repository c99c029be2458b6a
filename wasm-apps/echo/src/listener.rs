//! The listening socket.

use wasip2::io::poll::Pollable;
use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress};
use wasip2::sockets::tcp::TcpSocket;
use wasip2::sockets::tcp_create_socket::create_tcp_socket;

use crate::connection::Connection;

/// A bound and listening socket. Its pollable is a child of the socket and goes first.
pub struct Listener {
    ready: Pollable,
    socket: TcpSocket,
}

impl Listener {
    /// Listens on all IPv4 addresses.
    pub fn bind(port: u16) -> Result<Self, ErrorCode> {
        let network = instance_network();
        let socket = create_tcp_socket(IpAddressFamily::Ipv4)?;
        let ready = socket.subscribe();
        let address = IpSocketAddress::Ipv4(Ipv4SocketAddress { port, address: (0, 0, 0, 0) });
        socket.start_bind(&network, address)?;
        finish(&ready, || socket.finish_bind())?;
        socket.start_listen()?;
        finish(&ready, || socket.finish_listen())?;
        Ok(Self { ready, socket })
    }

    /// Ready when a connection waits.
    pub fn ready(&self) -> &Pollable {
        &self.ready
    }

    /// Takes the next connection; `None` when it went away meanwhile.
    pub fn accept(&self) -> Result<Option<Connection>, ErrorCode> {
        match self.socket.accept() {
            Ok((socket, input, output)) => Ok(Some(Connection::new(socket, input, output))),
            Err(
                ErrorCode::WouldBlock | ErrorCode::ConnectionAborted | ErrorCode::ConnectionReset,
            ) => Ok(None),
            Err(code) => Err(code),
        }
    }
}

/// Waits for the second half of a two-step socket call.
fn finish(ready: &Pollable, step: impl Fn() -> Result<(), ErrorCode>) -> Result<(), ErrorCode> {
    loop {
        match step() {
            Err(ErrorCode::WouldBlock) => ready.block(),
            outcome => return outcome,
        }
    }
}
