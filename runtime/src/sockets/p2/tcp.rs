//! `wasi:sockets/tcp` and `tcp-create-socket` 0.2.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use wasmtime::component::Resource;
use wasmtime_wasi::p2::bindings::sockets::network::{
    ErrorCode, IpAddressFamily, IpSocketAddress, Network,
};
use wasmtime_wasi::p2::bindings::sockets::tcp::{Host, HostTcpSocket, ShutdownType};
use wasmtime_wasi::p2::bindings::sockets::tcp_create_socket;
use wasmtime_wasi::p2::{SocketResult, TcpSocket};
use wasmtime_wasi_io::async_trait;
use wasmtime_wasi_io::poll::{DynPollable, Pollable, subscribe};
use wasmtime_wasi_io::streams::{DynInputStream, DynOutputStream};

use super::{SocketsView, family, is_ipv6, ours, theirs};
use crate::sockets::code::Code;
use crate::sockets::options::Options;
use crate::sockets::tcp::{Backlog, Tcp};

/// A socket, and the half of an operation that the guest has begun.
struct Socket {
    tcp: Tcp,
    begun: Option<Begun>,
    backlog: Option<Backlog>,
}

/// What was started and not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begun {
    Bind,
    Connect,
    Listen,
}

impl Socket {
    fn new(tcp: Tcp) -> Self {
        Self { tcp, begun: None, backlog: None }
    }

    /// One that has begun something must finish it first.
    fn check_idle(&self) -> SocketResult<()> {
        if self.begun.is_some() { Err(ErrorCode::ConcurrencyConflict.into()) } else { Ok(()) }
    }

    fn finish(&mut self, begun: Begun) -> SocketResult<()> {
        if self.begun != Some(begun) {
            return Err(ErrorCode::NotInProgress.into());
        }
        self.begun = None;
        Ok(())
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.backlog {
            Some(backlog) => backlog.poll_waiting(cx),
            None => self.tcp.poll_settled(cx),
        }
    }
}

#[async_trait]
impl Pollable for Socket {
    async fn ready(&mut self) {
        std::future::poll_fn(|cx| self.poll_ready(cx)).await;
    }
}

type Streams = (Resource<DynInputStream>, Resource<DynOutputStream>);

impl SocketsView<'_> {
    fn tcp_socket(&mut self, this: &Resource<TcpSocket>) -> SocketResult<&mut Socket> {
        Ok(self.table.get_mut(&ours::<_, Socket>(this))?)
    }

    fn option<T>(
        &mut self,
        this: &Resource<TcpSocket>,
        read: impl FnOnce(&Options) -> T,
    ) -> SocketResult<T> {
        Ok(self.tcp_socket(this)?.tcp.option(read)?)
    }

    fn set_option(
        &mut self,
        this: &Resource<TcpSocket>,
        change: impl FnOnce(&mut Options) -> Result<(), Code>,
    ) -> SocketResult<()> {
        Ok(self.tcp_socket(this)?.tcp.set_option(change)?)
    }

    fn streams(&mut self, this: &Resource<Socket>) -> SocketResult<Streams> {
        let tcp = &mut self.table.get_mut(this)?.tcp;
        let (input, output) = (tcp.take_input()?.input(), tcp.take_output()?.output());
        Ok((self.table.push_child(input, this)?, self.table.push_child(output, this)?))
    }
}

impl Host for SocketsView<'_> {}

impl tcp_create_socket::Host for SocketsView<'_> {
    fn create_tcp_socket(&mut self, family: IpAddressFamily) -> SocketResult<Resource<TcpSocket>> {
        let slot = self.net.socket().ok_or(Code::SocketLimit)?;
        let socket = Socket::new(Tcp::new(slot, is_ipv6(family)));
        // The table is bounded: a guest that hoards sockets traps.
        Ok(theirs(&self.table.push(socket)?))
    }
}

impl HostTcpSocket for SocketsView<'_> {
    async fn start_bind(
        &mut self,
        this: Resource<TcpSocket>,
        network: Resource<Network>,
        local_address: IpSocketAddress,
    ) -> SocketResult<()> {
        self.check(&network)?;
        let net = Arc::clone(self.net);
        let socket = self.tcp_socket(&this)?;
        socket.check_idle()?;
        socket.tcp.bind(&net, local_address.into())?;
        socket.begun = Some(Begun::Bind);
        Ok(())
    }

    fn finish_bind(&mut self, this: Resource<TcpSocket>) -> SocketResult<()> {
        self.tcp_socket(&this)?.finish(Begun::Bind)
    }

    fn start_connect(
        &mut self,
        this: Resource<TcpSocket>,
        network: Resource<Network>,
        remote_address: IpSocketAddress,
    ) -> SocketResult<()> {
        self.check(&network)?;
        let net = Arc::clone(self.net);
        let socket = self.tcp_socket(&this)?;
        socket.check_idle()?;
        socket.tcp.start_connect(&net, SocketAddr::from(remote_address))?;
        socket.begun = Some(Begun::Connect);
        Ok(())
    }

    fn finish_connect(&mut self, this: Resource<TcpSocket>) -> SocketResult<Streams> {
        let net = Arc::clone(self.net);
        let socket = self.tcp_socket(&this)?;
        if socket.begun != Some(Begun::Connect) {
            return Err(ErrorCode::NotInProgress.into());
        }
        let mut noop = Context::from_waker(Waker::noop());
        let Poll::Ready(connected) = socket.tcp.poll_connected(&net, &mut noop) else {
            return Err(ErrorCode::WouldBlock.into());
        };
        socket.begun = None;
        connected?;
        self.streams(&ours(&this))
    }

    async fn start_listen(&mut self, this: Resource<TcpSocket>) -> SocketResult<()> {
        let (net, intake) = (Arc::clone(self.net), self.intake.clone());
        let socket = self.tcp_socket(&this)?;
        socket.check_idle()?;
        if !socket.tcp.is_bound() {
            return Err(ErrorCode::InvalidState.into());
        }
        socket.backlog = Some(socket.tcp.listen(&net, &intake)?);
        socket.begun = Some(Begun::Listen);
        Ok(())
    }

    fn finish_listen(&mut self, this: Resource<TcpSocket>) -> SocketResult<()> {
        self.tcp_socket(&this)?.finish(Begun::Listen)
    }

    fn accept(
        &mut self,
        this: Resource<TcpSocket>,
    ) -> SocketResult<(Resource<TcpSocket>, Resource<DynInputStream>, Resource<DynOutputStream>)>
    {
        let backlog = self.tcp_socket(&this)?.backlog.as_mut().ok_or(ErrorCode::InvalidState)?;
        let accepted = backlog.try_accept().ok_or(ErrorCode::WouldBlock)??;
        let socket = self.table.push(Socket::new(accepted))?;
        let (input, output) = self.streams(&socket)?;
        Ok((theirs(&socket), input, output))
    }

    fn local_address(&mut self, this: Resource<TcpSocket>) -> SocketResult<IpSocketAddress> {
        Ok(self.tcp_socket(&this)?.tcp.local_address()?.into())
    }

    fn remote_address(&mut self, this: Resource<TcpSocket>) -> SocketResult<IpSocketAddress> {
        Ok(self.tcp_socket(&this)?.tcp.remote_address()?.into())
    }

    fn is_listening(&mut self, this: Resource<TcpSocket>) -> wasmtime::Result<bool> {
        let socket = self.table.get(&ours::<_, Socket>(&this))?;
        Ok(socket.tcp.is_listening() && socket.begun.is_none())
    }

    fn address_family(&mut self, this: Resource<TcpSocket>) -> wasmtime::Result<IpAddressFamily> {
        Ok(family(self.table.get(&ours::<_, Socket>(&this))?.tcp.is_ipv6()))
    }

    fn set_listen_backlog_size(
        &mut self,
        this: Resource<TcpSocket>,
        value: u64,
    ) -> SocketResult<()> {
        Ok(self.tcp_socket(&this)?.tcp.set_backlog(value)?)
    }

    fn keep_alive_enabled(&mut self, this: Resource<TcpSocket>) -> SocketResult<bool> {
        self.option(&this, |options| options.keep_alive_enabled)
    }

    fn set_keep_alive_enabled(
        &mut self,
        this: Resource<TcpSocket>,
        value: bool,
    ) -> SocketResult<()> {
        self.set_option(&this, |options| {
            options.keep_alive_enabled = value;
            Ok(())
        })
    }

    fn keep_alive_idle_time(&mut self, this: Resource<TcpSocket>) -> SocketResult<u64> {
        self.option(&this, |options| options.keep_alive_idle_time)
    }

    fn set_keep_alive_idle_time(
        &mut self,
        this: Resource<TcpSocket>,
        value: u64,
    ) -> SocketResult<()> {
        self.set_option(&this, |options| options.set_keep_alive_idle_time(value))
    }

    fn keep_alive_interval(&mut self, this: Resource<TcpSocket>) -> SocketResult<u64> {
        self.option(&this, |options| options.keep_alive_interval)
    }

    fn set_keep_alive_interval(
        &mut self,
        this: Resource<TcpSocket>,
        value: u64,
    ) -> SocketResult<()> {
        self.set_option(&this, |options| options.set_keep_alive_interval(value))
    }

    fn keep_alive_count(&mut self, this: Resource<TcpSocket>) -> SocketResult<u32> {
        self.option(&this, |options| options.keep_alive_count)
    }

    fn set_keep_alive_count(&mut self, this: Resource<TcpSocket>, value: u32) -> SocketResult<()> {
        self.set_option(&this, |options| options.set_keep_alive_count(value))
    }

    fn hop_limit(&mut self, this: Resource<TcpSocket>) -> SocketResult<u8> {
        self.option(&this, |options| options.hop_limit)
    }

    fn set_hop_limit(&mut self, this: Resource<TcpSocket>, value: u8) -> SocketResult<()> {
        self.set_option(&this, |options| options.set_hop_limit(value))
    }

    fn receive_buffer_size(&mut self, this: Resource<TcpSocket>) -> SocketResult<u64> {
        self.option(&this, |options| options.receive_buffer_size)
    }

    fn set_receive_buffer_size(
        &mut self,
        this: Resource<TcpSocket>,
        value: u64,
    ) -> SocketResult<()> {
        self.set_option(&this, |options| options.set_receive_buffer_size(value))
    }

    fn send_buffer_size(&mut self, this: Resource<TcpSocket>) -> SocketResult<u64> {
        self.option(&this, |options| options.send_buffer_size)
    }

    fn set_send_buffer_size(&mut self, this: Resource<TcpSocket>, value: u64) -> SocketResult<()> {
        self.set_option(&this, |options| options.set_send_buffer_size(value))
    }

    fn subscribe(&mut self, this: Resource<TcpSocket>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, ours::<_, Socket>(&this))
    }

    fn shutdown(&mut self, this: Resource<TcpSocket>, how: ShutdownType) -> SocketResult<()> {
        let connection = self.tcp_socket(&this)?.tcp.connection()?;
        if matches!(how, ShutdownType::Receive | ShutdownType::Both) {
            connection.close_input();
        }
        if matches!(how, ShutdownType::Send | ShutdownType::Both) {
            connection.close_output();
        }
        Ok(())
    }

    fn drop(&mut self, this: Resource<TcpSocket>) -> wasmtime::Result<()> {
        self.table.delete(Resource::<Socket>::new_own(this.rep()))?;
        Ok(())
    }
}
