//! Names and TCP connections on `wasi:sockets`: WASI 0.1 has none.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use wasip2::clocks::monotonic_clock::{Instant, now, subscribe_instant};
use wasip2::io::poll::{Pollable, poll};
use wasip2::io::streams::{InputStream, OutputStream, StreamError};
use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::ip_name_lookup::resolve_addresses;
use wasip2::sockets::network::{
    ErrorCode, IpAddress, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, Ipv6SocketAddress,
};
use wasip2::sockets::tcp::{ShutdownType, TcpSocket};
use wasip2::sockets::tcp_create_socket::create_tcp_socket;

/// Bytes read or written at once.
const CHUNK_BYTES: usize = 32 * 1024;

/// When something has taken too long.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// From now on.
    pub fn after(time: Duration) -> Self {
        Self(now().saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Waits for one thing, but not longer.
    fn wait(self, ready: &Pollable) -> io::Result<()> {
        let over = subscribe_instant(self.0);
        if poll(&[ready, &over]).contains(&0) {
            Ok(())
        } else {
            Err(io::ErrorKind::TimedOut.into())
        }
    }
}

/// The addresses of a name.
pub fn resolve(name: &str, deadline: Deadline) -> io::Result<Vec<IpAddr>> {
    if let Ok(ip) = name.trim_matches(['[', ']']).parse() {
        return Ok(vec![ip]);
    }
    let stream = resolve_addresses(&instance_network(), name).map_err(of_code)?;
    let mut found = Vec::new();
    loop {
        match stream.resolve_next_address() {
            Ok(Some(IpAddress::Ipv4((a, b, c, d)))) => {
                found.push(IpAddr::V4(Ipv4Addr::new(a, b, c, d)));
            }
            Ok(Some(IpAddress::Ipv6((a, b, c, d, e, f, g, h)))) => {
                found.push(IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h)));
            }
            Ok(None) => return Ok(found),
            Err(ErrorCode::WouldBlock) => deadline.wait(&stream.subscribe())?,
            Err(code) => return Err(of_code(code)),
        }
    }
}

/// A connection. The streams are children of the socket and go before it.
pub struct Connection {
    input: InputStream,
    output: OutputStream,
    socket: TcpSocket,
    deadline: Deadline,
}

impl Connection {
    /// Connects to an address. The deadline is for all that is done with the connection.
    pub fn open(ip: IpAddr, port: u16, deadline: Deadline) -> io::Result<Self> {
        let (family, address) = match ip {
            IpAddr::V4(ip) => {
                let [a, b, c, d] = ip.octets();
                let address = Ipv4SocketAddress { port, address: (a, b, c, d) };
                (IpAddressFamily::Ipv4, IpSocketAddress::Ipv4(address))
            }
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, g, h] = ip.segments();
                let address = (a, b, c, d, e, f, g, h);
                let address = Ipv6SocketAddress { port, flow_info: 0, address, scope_id: 0 };
                (IpAddressFamily::Ipv6, IpSocketAddress::Ipv6(address))
            }
        };
        let socket = create_tcp_socket(family).map_err(of_code)?;
        socket.start_connect(&instance_network(), address).map_err(of_code)?;
        loop {
            match socket.finish_connect() {
                Ok((input, output)) => {
                    return Ok(Self { input, output, socket, deadline });
                }
                Err(ErrorCode::WouldBlock) => deadline.wait(&socket.subscribe())?,
                Err(code) => return Err(of_code(code)),
            }
        }
    }
}

impl Connection {
    /// Tells the other end that nothing more comes.
    pub fn ends_sending(&self) {
        // One that is gone needs not be told.
        let _ = self.socket.shutdown(ShutdownType::Send);
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(CHUNK_BYTES);
        loop {
            match self.input.read(u64::try_from(wanted).unwrap_or(0)) {
                Ok(bytes) if bytes.is_empty() && wanted > 0 => {
                    self.deadline.wait(&self.input.subscribe())?;
                }
                Ok(bytes) => {
                    let into = buffer.get_mut(..bytes.len()).ok_or(io::ErrorKind::InvalidData)?;
                    into.copy_from_slice(&bytes);
                    return Ok(bytes.len());
                }
                Err(StreamError::Closed) => return Ok(0),
                Err(error) => return Err(io::Error::other(error.to_string())),
            }
        }
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let failed = |error: StreamError| io::Error::other(error.to_string());
        loop {
            let room = usize::try_from(self.output.check_write().map_err(failed)?);
            match room.unwrap_or(CHUNK_BYTES).min(bytes.len()) {
                0 if !bytes.is_empty() => self.deadline.wait(&self.output.subscribe())?,
                count => {
                    self.output.write(bytes.get(..count).unwrap_or_default()).map_err(failed)?;
                    return Ok(count);
                }
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush().map_err(|error| io::Error::other(error.to_string()))
    }
}

fn of_code(code: ErrorCode) -> io::Error {
    match code {
        ErrorCode::ConnectionRefused => io::ErrorKind::ConnectionRefused.into(),
        ErrorCode::Timeout => io::ErrorKind::TimedOut.into(),
        ErrorCode::NameUnresolvable => io::ErrorKind::NotFound.into(),
        other => io::Error::other(other.to_string()),
    }
}
