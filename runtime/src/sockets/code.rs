//! Why a call of a socket failed, for both versions of the interfaces.

use std::io;

use wasmtime_wasi::p2::SocketError as SocketErrorP2;
use wasmtime_wasi::p2::bindings::sockets::network::ErrorCode as ErrorCodeP2;
use wasmtime_wasi::p3::bindings::sockets::types::ErrorCode as ErrorCodeP3;
use wasmtime_wasi::p3::sockets::SocketError as SocketErrorP3;

use crate::network::BindError;

/// What both versions can say; each has its own word for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    AccessDenied,
    NotSupported,
    InvalidArgument,
    OutOfMemory,
    Timeout,
    InvalidState,
    AddressNotBindable,
    AddressInUse,
    RemoteUnreachable,
    ConnectionRefused,
    /// The other side takes no more. WASI 0.2 knows it only as the end of a stream.
    ConnectionBroken,
    ConnectionReset,
    ConnectionAborted,
    DatagramTooLarge,
    /// The pod has as many sockets as it may have.
    SocketLimit,
    Other,
}

impl From<io::ErrorKind> for Code {
    fn from(kind: io::ErrorKind) -> Self {
        match kind {
            io::ErrorKind::ConnectionRefused => Self::ConnectionRefused,
            io::ErrorKind::ConnectionReset => Self::ConnectionReset,
            io::ErrorKind::BrokenPipe | io::ErrorKind::WriteZero => Self::ConnectionBroken,
            io::ErrorKind::ConnectionAborted | io::ErrorKind::UnexpectedEof => {
                Self::ConnectionAborted
            }
            io::ErrorKind::TimedOut => Self::Timeout,
            io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::NotFound => Self::RemoteUnreachable,
            io::ErrorKind::PermissionDenied => Self::AccessDenied,
            io::ErrorKind::AddrInUse => Self::AddressInUse,
            io::ErrorKind::AddrNotAvailable => Self::AddressNotBindable,
            io::ErrorKind::InvalidInput => Self::InvalidArgument,
            io::ErrorKind::OutOfMemory => Self::OutOfMemory,
            io::ErrorKind::Unsupported => Self::NotSupported,
            io::ErrorKind::NotConnected => Self::InvalidState,
            _ => Self::Other,
        }
    }
}

impl From<BindError> for Code {
    fn from(error: BindError) -> Self {
        match error {
            BindError::InUse => Self::AddressInUse,
            BindError::NotBindable => Self::AddressNotBindable,
        }
    }
}

impl From<Code> for ErrorCodeP2 {
    fn from(code: Code) -> Self {
        match code {
            Code::AccessDenied => Self::AccessDenied,
            Code::NotSupported => Self::NotSupported,
            Code::InvalidArgument => Self::InvalidArgument,
            Code::OutOfMemory => Self::OutOfMemory,
            Code::Timeout => Self::Timeout,
            Code::InvalidState => Self::InvalidState,
            Code::AddressNotBindable => Self::AddressNotBindable,
            Code::AddressInUse => Self::AddressInUse,
            Code::RemoteUnreachable => Self::RemoteUnreachable,
            Code::ConnectionRefused => Self::ConnectionRefused,
            Code::ConnectionBroken | Code::ConnectionReset => Self::ConnectionReset,
            Code::ConnectionAborted => Self::ConnectionAborted,
            Code::DatagramTooLarge => Self::DatagramTooLarge,
            Code::SocketLimit => Self::NewSocketLimit,
            Code::Other => Self::Unknown,
        }
    }
}

impl From<Code> for ErrorCodeP3 {
    fn from(code: Code) -> Self {
        match code {
            Code::AccessDenied => Self::AccessDenied,
            Code::NotSupported => Self::NotSupported,
            Code::InvalidArgument => Self::InvalidArgument,
            Code::OutOfMemory => Self::OutOfMemory,
            Code::Timeout => Self::Timeout,
            Code::InvalidState => Self::InvalidState,
            Code::AddressNotBindable => Self::AddressNotBindable,
            Code::AddressInUse => Self::AddressInUse,
            Code::RemoteUnreachable => Self::RemoteUnreachable,
            Code::ConnectionRefused => Self::ConnectionRefused,
            Code::ConnectionBroken => Self::ConnectionBroken,
            Code::ConnectionReset => Self::ConnectionReset,
            Code::ConnectionAborted => Self::ConnectionAborted,
            Code::DatagramTooLarge => Self::DatagramTooLarge,
            Code::SocketLimit => Self::Other(Some("too many sockets are open".to_owned())),
            Code::Other => Self::Other(None),
        }
    }
}

impl From<Code> for SocketErrorP2 {
    fn from(code: Code) -> Self {
        ErrorCodeP2::from(code).into()
    }
}

impl From<Code> for SocketErrorP3 {
    fn from(code: Code) -> Self {
        ErrorCodeP3::from(code).into()
    }
}
