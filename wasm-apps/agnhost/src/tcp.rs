//! TCP on `wasi:sockets` 0.2: listening, connecting, reading, writing, names.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use wasip2::io::streams::{InputStream, OutputStream, StreamError};
use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::ip_name_lookup::resolve_addresses;
use wasip2::sockets::network::{
    ErrorCode, IpAddress, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, Ipv6SocketAddress,
};
use wasip2::sockets::tcp::{ShutdownType, TcpSocket};
use wasip2::sockets::tcp_create_socket::create_tcp_socket;

use crate::rt::ready;

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum ConnectError {
    /// The name has no address. Look at the name.
    Dns(String),
    /// Nobody listens there. Try again later, or look at the port.
    Refused,
    /// The network let it time out. Try again.
    TimedOut,
    /// Something else. Read it.
    Other(String),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(why) => write!(f, "DNS: {why}"),
            Self::Refused => write!(f, "REFUSED"),
            Self::TimedOut => write!(f, "TIMEOUT"),
            Self::Other(why) => write!(f, "OTHER: {why}"),
        }
    }
}

impl From<ErrorCode> for ConnectError {
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::ConnectionRefused => Self::Refused,
            ErrorCode::Timeout => Self::TimedOut,
            other => Self::Other(other.to_string()),
        }
    }
}

/// A listening socket.
pub(crate) struct Listener {
    socket: TcpSocket,
}

impl Listener {
    /// Listens on all IPv4 addresses.
    pub(crate) async fn bind(port: u16) -> Result<Self, ErrorCode> {
        let socket = create_tcp_socket(IpAddressFamily::Ipv4)?;
        let address = IpSocketAddress::Ipv4(Ipv4SocketAddress { port, address: (0, 0, 0, 0) });
        socket.start_bind(&instance_network(), address)?;
        finish(&socket, TcpSocket::finish_bind).await?;
        socket.start_listen()?;
        finish(&socket, TcpSocket::finish_listen).await?;
        Ok(Self { socket })
    }

    /// The next client.
    pub(crate) async fn accept(&self) -> Result<Stream, ErrorCode> {
        loop {
            match self.socket.accept() {
                Ok((socket, input, output)) => return Ok(Stream { input, output, socket }),
                Err(ErrorCode::WouldBlock) => ready(self.socket.subscribe()).await,
                // It went away meanwhile.
                Err(ErrorCode::ConnectionAborted | ErrorCode::ConnectionReset) => {}
                Err(code) => return Err(code),
            }
        }
    }
}

/// A connection. The streams are children of the socket and go before it.
pub(crate) struct Stream {
    input: InputStream,
    output: OutputStream,
    socket: TcpSocket,
}

impl Stream {
    /// Connects to the first address of `host` that answers.
    pub(crate) async fn connect(host: &str, port: u16) -> Result<Self, ConnectError> {
        let mut last = ConnectError::Dns(format!("{host} has no address"));
        for ip in resolve(host).await? {
            match Self::connect_to(SocketAddr::new(ip, port)).await {
                Ok(stream) => return Ok(stream),
                Err(why) => last = why.into(),
            }
        }
        Err(last)
    }

    async fn connect_to(address: SocketAddr) -> Result<Self, ErrorCode> {
        let family = match address {
            SocketAddr::V4(_) => IpAddressFamily::Ipv4,
            SocketAddr::V6(_) => IpAddressFamily::Ipv6,
        };
        let socket = create_tcp_socket(family)?;
        socket.start_connect(&instance_network(), to_wasi(address))?;
        let (input, output) = finish(&socket, TcpSocket::finish_connect).await?;
        Ok(Self { input, output, socket })
    }

    /// The other side's address.
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        self.socket.remote_address().ok().map(from_wasi)
    }

    /// Some bytes, at most `max`; none at the end.
    pub(crate) async fn read(&self, max: usize) -> Result<Vec<u8>, StreamError> {
        loop {
            match self.input.read(u64::try_from(max).unwrap_or(u64::MAX)) {
                Ok(bytes) if bytes.is_empty() => ready(self.input.subscribe()).await,
                Err(StreamError::Closed) => return Ok(Vec::new()),
                other => return other,
            }
        }
    }

    /// Writes all bytes.
    pub(crate) async fn write(&self, mut bytes: &[u8]) -> Result<(), StreamError> {
        while !bytes.is_empty() {
            let room = self.room().await?;
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.output.write(now)?;
            bytes = later;
        }
        self.output.flush()
    }

    /// Ends the sending half, once all bytes are gone.
    pub(crate) async fn finish(&self) -> Result<(), StreamError> {
        self.room().await?;
        let _gone = self.socket.shutdown(ShutdownType::Send);
        Ok(())
    }

    /// How much can be written at once; waits until it is something.
    async fn room(&self) -> Result<usize, StreamError> {
        loop {
            match self.output.check_write()? {
                0 => ready(self.output.subscribe()).await,
                room => return Ok(usize::try_from(room).unwrap_or(usize::MAX)),
            }
        }
    }
}

async fn resolve(host: &str) -> Result<Vec<IpAddr>, ConnectError> {
    if let Ok(ip) = host.trim_matches(['[', ']']).parse() {
        return Ok(vec![ip]);
    }
    let dns = |code: ErrorCode| ConnectError::Dns(format!("{host}: {code}"));
    let stream = resolve_addresses(&instance_network(), host).map_err(dns)?;
    let mut ips = Vec::new();
    loop {
        match stream.resolve_next_address() {
            Ok(Some(ip)) => ips.push(ip_from_wasi(ip)),
            Ok(None) => return Ok(ips),
            Err(ErrorCode::WouldBlock) => ready(stream.subscribe()).await,
            Err(code) => return Err(dns(code)),
        }
    }
}

/// Waits for the second half of a two-step socket call.
async fn finish<T>(
    socket: &TcpSocket,
    step: impl Fn(&TcpSocket) -> Result<T, ErrorCode>,
) -> Result<T, ErrorCode> {
    loop {
        match step(socket) {
            Err(ErrorCode::WouldBlock) => ready(socket.subscribe()).await,
            outcome => return outcome,
        }
    }
}

fn to_wasi(address: SocketAddr) -> IpSocketAddress {
    match address {
        SocketAddr::V4(v4) => {
            let [a, b, c, d] = v4.ip().octets();
            IpSocketAddress::Ipv4(Ipv4SocketAddress { port: v4.port(), address: (a, b, c, d) })
        }
        SocketAddr::V6(v6) => {
            let [a, b, c, d, e, f, g, h] = v6.ip().segments();
            IpSocketAddress::Ipv6(Ipv6SocketAddress {
                port: v6.port(),
                flow_info: v6.flowinfo(),
                address: (a, b, c, d, e, f, g, h),
                scope_id: v6.scope_id(),
            })
        }
    }
}

fn from_wasi(address: IpSocketAddress) -> SocketAddr {
    match address {
        IpSocketAddress::Ipv4(v4) => {
            SocketAddr::new(ip_from_wasi(IpAddress::Ipv4(v4.address)), v4.port)
        }
        IpSocketAddress::Ipv6(v6) => {
            SocketAddr::new(ip_from_wasi(IpAddress::Ipv6(v6.address)), v6.port)
        }
    }
}

fn ip_from_wasi(ip: IpAddress) -> IpAddr {
    match ip {
        IpAddress::Ipv4((a, b, c, d)) => [a, b, c, d].into(),
        IpAddress::Ipv6((a, b, c, d, e, f, g, h)) => [a, b, c, d, e, f, g, h].into(),
    }
}
