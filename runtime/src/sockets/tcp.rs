//! `wasi:sockets/tcp` and `tcp-create-socket`.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use tokio::sync::mpsc;
use tokio_util::task::task_tracker::TaskTrackerToken;
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

use super::options::{Options, set};
use super::stream::Connection;
use super::{SocketsView, code, is_of_family, ours, theirs};
use crate::network::{Accepted, Binding, Listener, SocketSlot};
use crate::types::BoxIo;

/// Connections that wait to be accepted, unless the guest says less; also the most it can say.
const BACKLOG_DEFAULT: usize = 128;
const BACKLOG_MAX: u64 = 4096;

/// One socket.
struct Tcp {
    /// Counts it among the pod's sockets.
    _slot: SocketSlot,
    /// Counts it among the connections that the container has taken, if it is one.
    taken: Option<TaskTrackerToken>,
    is_ipv6: bool,
    options: Options,
    backlog: usize,
    binding: Option<Binding>,
    state: State,
}

enum State {
    /// Neither connected nor listening; bound if there is a binding.
    Fresh,
    /// Between `start-bind` and `finish-bind`.
    BindStarted,
    Connecting {
        attempt: Attempt,
        local: SocketAddr,
        remote: SocketAddr,
    },
    Connected {
        connection: Connection,
        local: SocketAddr,
        remote: SocketAddr,
    },
    /// Between `start-listen` and `finish-listen`.
    ListenStarted(Backlog),
    Listening(Backlog),
    /// A connect failed: good for nothing any more.
    Failed,
}

/// Connections not yet accepted.
struct Backlog {
    queue: mpsc::Receiver<Accepted>,
    next: Option<Accepted>,
}

enum Attempt {
    Running(Pin<Box<dyn Future<Output = io::Result<BoxIo>> + Send>>),
    Done(io::Result<BoxIo>),
}

impl Backlog {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.next.is_none() {
            self.next = ready!(self.queue.poll_recv(cx));
        }
        Poll::Ready(())
    }
}

impl Attempt {
    fn poll_done(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Self::Running(future) = self {
            *self = Self::Done(ready!(future.as_mut().poll(cx)));
        }
        Poll::Ready(())
    }
}

impl Tcp {
    fn new(slot: SocketSlot, is_ipv6: bool) -> Self {
        Self {
            _slot: slot,
            taken: None,
            is_ipv6,
            options: Options::default(),
            backlog: BACKLOG_DEFAULT,
            binding: None,
            state: State::Fresh,
        }
    }

    /// A fresh socket may begin something; one that has begun must finish first.
    fn check_fresh(&self) -> SocketResult<()> {
        match self.state {
            State::Fresh => Ok(()),
            State::BindStarted | State::Connecting { .. } | State::ListenStarted(_) => {
                Err(ErrorCode::ConcurrencyConflict.into())
            }
            State::Connected { .. } | State::Listening(_) | State::Failed => {
                Err(ErrorCode::InvalidState.into())
            }
        }
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.state {
            State::Connecting { attempt, .. } => attempt.poll_done(cx),
            State::Listening(backlog) => backlog.poll_next(cx),
            State::Fresh
            | State::BindStarted
            | State::Connected { .. }
            | State::ListenStarted(_)
            | State::Failed => Poll::Ready(()),
        }
    }
}

#[async_trait]
impl Pollable for Tcp {
    async fn ready(&mut self) {
        std::future::poll_fn(|cx| self.poll_ready(cx)).await;
    }
}

type Streams = (Resource<DynInputStream>, Resource<DynOutputStream>);

impl SocketsView<'_> {
    fn tcp(&mut self, this: &Resource<TcpSocket>) -> SocketResult<&mut Tcp> {
        Ok(self.table.get_mut(&ours::<_, Tcp>(this))?)
    }

    fn options(&mut self, this: &Resource<TcpSocket>) -> SocketResult<&mut Options> {
        Ok(&mut self.tcp(this)?.options)
    }

    fn streams(
        &mut self,
        socket: &Resource<Tcp>,
        connection: &Connection,
    ) -> SocketResult<Streams> {
        let input = self.table.push_child(connection.input(), socket)?;
        let output = self.table.push_child(connection.output(), socket)?;
        Ok((input, output))
    }
}

fn noop() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

impl Host for SocketsView<'_> {}

impl tcp_create_socket::Host for SocketsView<'_> {
    fn create_tcp_socket(&mut self, family: IpAddressFamily) -> SocketResult<Resource<TcpSocket>> {
        let slot = self.net.socket().ok_or(ErrorCode::NewSocketLimit)?;
        let tcp = Tcp::new(slot, matches!(family, IpAddressFamily::Ipv6));
        // The table is bounded: a guest that hoards sockets traps.
        Ok(theirs(&self.table.push(tcp)?))
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
        let local = SocketAddr::from(local_address);
        let ports = Arc::clone(self.net.ports());
        let tcp = self.tcp(&this)?;
        tcp.check_fresh()?;
        if tcp.binding.is_some() {
            return Err(ErrorCode::InvalidState.into());
        }
        if !is_of_family(local, tcp.is_ipv6) {
            return Err(ErrorCode::InvalidArgument.into());
        }
        tcp.binding = Some(ports.bind(local).map_err(ErrorCode::from)?);
        tcp.state = State::BindStarted;
        Ok(())
    }

    fn finish_bind(&mut self, this: Resource<TcpSocket>) -> SocketResult<()> {
        let tcp = self.tcp(&this)?;
        if !matches!(tcp.state, State::BindStarted) {
            return Err(ErrorCode::NotInProgress.into());
        }
        tcp.state = State::Fresh;
        Ok(())
    }

    fn start_connect(
        &mut self,
        this: Resource<TcpSocket>,
        network: Resource<Network>,
        remote_address: IpSocketAddress,
    ) -> SocketResult<()> {
        self.check(&network)?;
        let remote = SocketAddr::from(remote_address);
        let net = Arc::clone(self.net);
        let tcp = self.tcp(&this)?;
        tcp.check_fresh()?;
        let is_possible = is_of_family(remote, tcp.is_ipv6)
            && !remote.ip().is_unspecified()
            && remote.port() != 0;
        if !is_possible {
            return Err(ErrorCode::InvalidArgument.into());
        }
        let mut local = net.source(remote.ip());
        if let Some(binding) = &tcp.binding {
            local.set_port(binding.address().port());
        }
        let mut attempt = Attempt::Running(Box::pin(net.connect(local, remote)));
        // Starts it; a pipe in memory is there at once.
        let _ = attempt.poll_done(&mut noop());
        tcp.state = State::Connecting { attempt, local, remote };
        Ok(())
    }

    fn finish_connect(&mut self, this: Resource<TcpSocket>) -> SocketResult<Streams> {
        let guests = Arc::clone(self.net.guests());
        let tcp = self.tcp(&this)?;
        match &mut tcp.state {
            State::Connecting { attempt, .. } => {
                if attempt.poll_done(&mut noop()).is_pending() {
                    return Err(ErrorCode::WouldBlock.into());
                }
            }
            _ => return Err(ErrorCode::NotInProgress.into()),
        }
        let state = std::mem::replace(&mut tcp.state, State::Failed);
        let State::Connecting { attempt: Attempt::Done(result), local, remote } = state else {
            return Err(ErrorCode::NotInProgress.into());
        };
        let io = result.map_err(|error| code(error.kind()))?;
        let connection = Connection::new(io, guests);
        tcp.state = State::Connected { connection: connection.clone(), local, remote };
        self.streams(&ours(&this), &connection)
    }

    async fn start_listen(&mut self, this: Resource<TcpSocket>) -> SocketResult<()> {
        let taken = self.taken.clone();
        let tcp = self.tcp(&this)?;
        tcp.check_fresh()?;
        let binding = tcp.binding.as_ref().ok_or(ErrorCode::InvalidState)?;
        let (sender, queue) = mpsc::channel(tcp.backlog);
        binding.listen(Some(Listener::Tcp(sender, taken)));
        tcp.state = State::ListenStarted(Backlog { queue, next: None });
        Ok(())
    }

    fn finish_listen(&mut self, this: Resource<TcpSocket>) -> SocketResult<()> {
        let tcp = self.tcp(&this)?;
        match std::mem::replace(&mut tcp.state, State::Failed) {
            State::ListenStarted(backlog) => {
                tcp.state = State::Listening(backlog);
                Ok(())
            }
            other => {
                tcp.state = other;
                Err(ErrorCode::NotInProgress.into())
            }
        }
    }

    fn accept(
        &mut self,
        this: Resource<TcpSocket>,
    ) -> SocketResult<(Resource<TcpSocket>, Resource<DynInputStream>, Resource<DynOutputStream>)>
    {
        let guests = Arc::clone(self.net.guests());
        let slot = self.net.socket();
        let tcp = self.tcp(&this)?;
        let State::Listening(backlog) = &mut tcp.state else {
            return Err(ErrorCode::InvalidState.into());
        };
        let _ = backlog.poll_next(&mut noop());
        if backlog.next.is_none() {
            return Err(ErrorCode::WouldBlock.into());
        }
        // The connection stays in the backlog: it may be accepted once another socket is closed.
        let slot = slot.ok_or(ErrorCode::NewSocketLimit)?;
        let accepted = backlog.next.take().ok_or(ErrorCode::WouldBlock)?;
        let mut socket = Tcp::new(slot, tcp.is_ipv6);
        socket.options = tcp.options;
        socket.taken = Some(accepted.token);
        let connection = Connection::new(accepted.io, guests);
        socket.state = State::Connected {
            connection: connection.clone(),
            local: accepted.local,
            remote: accepted.peer,
        };
        let socket = self.table.push(socket)?;
        let (input, output) = self.streams(&socket, &connection)?;
        Ok((theirs(&socket), input, output))
    }

    fn local_address(&mut self, this: Resource<TcpSocket>) -> SocketResult<IpSocketAddress> {
        let tcp = self.tcp(&this)?;
        match &tcp.state {
            State::Connected { local, .. } => Ok((*local).into()),
            State::BindStarted => Err(ErrorCode::InvalidState.into()),
            State::Fresh
            | State::Connecting { .. }
            | State::ListenStarted(_)
            | State::Listening(_)
            | State::Failed => {
                let binding = tcp.binding.as_ref().ok_or(ErrorCode::InvalidState)?;
                Ok(binding.address().into())
            }
        }
    }

    fn remote_address(&mut self, this: Resource<TcpSocket>) -> SocketResult<IpSocketAddress> {
        match &self.tcp(&this)?.state {
            State::Connected { remote, .. } => Ok((*remote).into()),
            _ => Err(ErrorCode::InvalidState.into()),
        }
    }

    fn is_listening(&mut self, this: Resource<TcpSocket>) -> wasmtime::Result<bool> {
        let tcp = self.table.get(&ours::<_, Tcp>(&this))?;
        Ok(matches!(tcp.state, State::Listening(_)))
    }

    fn address_family(&mut self, this: Resource<TcpSocket>) -> wasmtime::Result<IpAddressFamily> {
        let tcp = self.table.get(&ours::<_, Tcp>(&this))?;
        Ok(if tcp.is_ipv6 { IpAddressFamily::Ipv6 } else { IpAddressFamily::Ipv4 })
    }

    fn set_listen_backlog_size(
        &mut self,
        this: Resource<TcpSocket>,
        value: u64,
    ) -> SocketResult<()> {
        let tcp = self.tcp(&this)?;
        if value == 0 {
            return Err(ErrorCode::InvalidArgument.into());
        }
        match tcp.state {
            State::Fresh | State::BindStarted => {
                tcp.backlog = usize::try_from(value.min(BACKLOG_MAX)).unwrap_or(BACKLOG_DEFAULT);
                Ok(())
            }
            // The queue is made when the guest begins to listen.
            State::ListenStarted(_) | State::Listening(_) => Err(ErrorCode::NotSupported.into()),
            State::Connecting { .. } | State::Connected { .. } | State::Failed => {
                Err(ErrorCode::InvalidState.into())
            }
        }
    }

    fn keep_alive_enabled(&mut self, this: Resource<TcpSocket>) -> SocketResult<bool> {
        Ok(self.options(&this)?.keep_alive_enabled)
    }

    fn set_keep_alive_enabled(
        &mut self,
        this: Resource<TcpSocket>,
        value: bool,
    ) -> SocketResult<()> {
        self.options(&this)?.keep_alive_enabled = value;
        Ok(())
    }

    fn keep_alive_idle_time(&mut self, this: Resource<TcpSocket>) -> SocketResult<u64> {
        Ok(self.options(&this)?.keep_alive_idle_time)
    }

    fn set_keep_alive_idle_time(
        &mut self,
        this: Resource<TcpSocket>,
        value: u64,
    ) -> SocketResult<()> {
        set(&mut self.options(&this)?.keep_alive_idle_time, value)
    }

    fn keep_alive_interval(&mut self, this: Resource<TcpSocket>) -> SocketResult<u64> {
        Ok(self.options(&this)?.keep_alive_interval)
    }

    fn set_keep_alive_interval(
        &mut self,
        this: Resource<TcpSocket>,
        value: u64,
    ) -> SocketResult<()> {
        set(&mut self.options(&this)?.keep_alive_interval, value)
    }

    fn keep_alive_count(&mut self, this: Resource<TcpSocket>) -> SocketResult<u32> {
        Ok(self.options(&this)?.keep_alive_count)
    }

    fn set_keep_alive_count(&mut self, this: Resource<TcpSocket>, value: u32) -> SocketResult<()> {
        set(&mut self.options(&this)?.keep_alive_count, value)
    }

    fn hop_limit(&mut self, this: Resource<TcpSocket>) -> SocketResult<u8> {
        Ok(self.options(&this)?.hop_limit)
    }

    fn set_hop_limit(&mut self, this: Resource<TcpSocket>, value: u8) -> SocketResult<()> {
        set(&mut self.options(&this)?.hop_limit, value)
    }

    fn receive_buffer_size(&mut self, this: Resource<TcpSocket>) -> SocketResult<u64> {
        Ok(self.options(&this)?.receive_buffer_size)
    }

    fn set_receive_buffer_size(
        &mut self,
        this: Resource<TcpSocket>,
        value: u64,
    ) -> SocketResult<()> {
        set(&mut self.options(&this)?.receive_buffer_size, value)
    }

    fn send_buffer_size(&mut self, this: Resource<TcpSocket>) -> SocketResult<u64> {
        Ok(self.options(&this)?.send_buffer_size)
    }

    fn set_send_buffer_size(&mut self, this: Resource<TcpSocket>, value: u64) -> SocketResult<()> {
        set(&mut self.options(&this)?.send_buffer_size, value)
    }

    fn subscribe(&mut self, this: Resource<TcpSocket>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, ours::<_, Tcp>(&this))
    }

    fn shutdown(&mut self, this: Resource<TcpSocket>, how: ShutdownType) -> SocketResult<()> {
        let State::Connected { connection, .. } = &self.tcp(&this)?.state else {
            return Err(ErrorCode::InvalidState.into());
        };
        if matches!(how, ShutdownType::Receive | ShutdownType::Both) {
            connection.close_input();
        }
        if matches!(how, ShutdownType::Send | ShutdownType::Both) {
            connection.close_output();
        }
        Ok(())
    }

    fn drop(&mut self, this: Resource<TcpSocket>) -> wasmtime::Result<()> {
        self.table.delete(Resource::<Tcp>::new_own(this.rep()))?;
        Ok(())
    }
}
