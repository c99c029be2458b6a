//! The `tcp-socket` of `wasi:sockets/types` 0.3.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::sync::oneshot;
use wasmtime::StoreContextMut;
use wasmtime::component::{
    Access, Accessor, Destination, FutureReader, Resource, Source, StreamConsumer, StreamProducer,
    StreamReader, StreamResult,
};
use wasmtime_wasi::p3::bindings::sockets::types::{
    Duration, ErrorCode, HostTcpSocket, HostTcpSocketWithStore, IpAddressFamily, IpSocketAddress,
};
use wasmtime_wasi::p3::sockets::SocketResult;
use wasmtime_wasi::sockets::TcpSocket;

use super::udp::trap;
use super::{GuestSockets, SocketsView, family, is_ipv6, ours, theirs};
use crate::sockets::code::Code;
use crate::sockets::options::Options;
use crate::sockets::stream::Connection;
use crate::sockets::tcp::{Backlog, Tcp};

/// Bytes that one read brings, if the guest has no buffer of its own waiting.
const READ_BYTES: usize = 8 << 10;

/// How a direction of a connection ended.
type End = Result<(), ErrorCode>;

impl SocketsView<'_> {
    fn tcp_p3(&mut self, this: &Resource<TcpSocket>) -> wasmtime::Result<&mut Tcp> {
        Ok(self.table.get_mut(&ours::<_, Tcp>(this))?)
    }

    fn option_p3<T>(
        &mut self,
        this: &Resource<TcpSocket>,
        read: impl FnOnce(&Options) -> T,
    ) -> SocketResult<T> {
        Ok(trap(self.tcp_p3(this))?.option(read)?)
    }

    fn set_option_p3(
        &mut self,
        this: &Resource<TcpSocket>,
        change: impl FnOnce(&mut Options) -> Result<(), Code>,
    ) -> SocketResult<()> {
        Ok(trap(self.tcp_p3(this))?.set_option(change)?)
    }
}

/// What a stream that was asked for nothing, or for something that is not there yet, answers.
fn when_ready(ready: Poll<()>, finish: bool) -> Poll<wasmtime::Result<StreamResult>> {
    match ready {
        Poll::Ready(()) => Poll::Ready(Ok(StreamResult::Completed)),
        Poll::Pending if finish => Poll::Ready(Ok(StreamResult::Cancelled)),
        Poll::Pending => Poll::Pending,
    }
}

/// The connections that a listener takes.
struct Listening<T> {
    backlog: Backlog,
    view: for<'a> fn(&'a mut T) -> SocketsView<'a>,
}

impl<T: 'static> StreamProducer<T> for Listening<T> {
    type Item = Resource<TcpSocket>;
    type Buffer = Option<Self::Item>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, T>,
        mut destination: Destination<'a, Self::Item, Self::Buffer>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        if destination.remaining(&mut store) == Some(0) {
            return when_ready(self.backlog.poll_waiting(cx), finish);
        }
        let Poll::Ready(socket) = self.backlog.poll_accept(cx) else {
            return when_ready(Poll::Pending, finish);
        };
        let socket = (self.view)(store.data_mut()).table.push(socket)?;
        destination.set_buffer(Some(theirs(&socket)));
        Poll::Ready(Ok(StreamResult::Completed))
    }
}

/// One direction of a connection, until it ends.
struct Direction {
    connection: Connection,
    end: Option<oneshot::Sender<End>>,
    /// What to do with the connection then.
    close: fn(&Connection),
}

impl Direction {
    fn new(connection: Connection, close: fn(&Connection)) -> (Self, oneshot::Receiver<End>) {
        let (end, ended) = oneshot::channel();
        (Self { connection, end: Some(end), close }, ended)
    }

    fn is_open(&self) -> bool {
        self.end.is_some()
    }

    fn end(&mut self, result: Result<(), Code>) {
        if let Some(end) = self.end.take() {
            (self.close)(&self.connection);
            // The guest may not want to know.
            let _ = end.send(result.map_err(Into::into));
        }
    }
}

impl Drop for Direction {
    fn drop(&mut self) {
        self.end(Ok(()));
    }
}

/// What the peer sends.
struct Receiving(Direction);

impl<T> StreamProducer<T> for Receiving {
    type Item = u8;
    type Buffer = BytesMut;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, T>,
        destination: Destination<'a, Self::Item, Self::Buffer>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let direction = &mut self.0;
        if !direction.is_open() {
            return Poll::Ready(Ok(StreamResult::Dropped));
        }
        if destination.remaining(&mut store) == Some(0) {
            return when_ready(direction.connection.poll_input(cx), finish);
        }
        let mut destination = destination.as_direct(store, READ_BYTES);
        let Poll::Ready(read) = direction.connection.poll_read(cx, destination.remaining()) else {
            return when_ready(Poll::Pending, finish);
        };
        match read {
            Ok(0) => direction.end(Ok(())),
            Ok(read) => {
                destination.mark_written(read);
                return Poll::Ready(Ok(StreamResult::Completed));
            }
            Err(code) => direction.end(Err(code)),
        }
        Poll::Ready(Ok(StreamResult::Dropped))
    }
}

/// What the guest sends.
struct Sending(Direction);

impl<T> StreamConsumer<T> for Sending {
    type Item = u8;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        store: StoreContextMut<'_, T>,
        source: Source<'_, Self::Item>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let direction = &mut self.0;
        if !direction.is_open() {
            return Poll::Ready(Ok(StreamResult::Dropped));
        }
        let mut source = source.as_direct(store);
        if source.remaining().is_empty() {
            return when_ready(direction.connection.poll_output(cx), finish);
        }
        let Poll::Ready(written) = direction.connection.poll_write(cx, source.remaining()) else {
            return when_ready(Poll::Pending, finish);
        };
        match written {
            Ok(written) => {
                source.mark_read(written);
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Err(code) => {
                direction.end(Err(code));
                Poll::Ready(Ok(StreamResult::Dropped))
            }
        }
    }
}

impl<T: Send + 'static> HostTcpSocketWithStore<T> for GuestSockets {
    async fn connect(
        store: &Accessor<T, Self>,
        socket: Resource<TcpSocket>,
        remote_address: IpSocketAddress,
    ) -> SocketResult<()> {
        store.with(|mut view| -> SocketResult<()> {
            let mut view = view.get();
            let net = Arc::clone(view.net);
            Ok(trap(view.tcp_p3(&socket))?.start_connect(&net, remote_address.into())?)
        })?;
        std::future::poll_fn(|cx| {
            store.with(|mut view| -> Poll<SocketResult<()>> {
                let mut view = view.get();
                let net = Arc::clone(view.net);
                let connected = trap(view.tcp_p3(&socket))?.poll_connected(&net, cx);
                Poll::Ready(ready!(connected).map_err(Into::into))
            })
        })
        .await
    }

    async fn listen(
        mut store: Access<'_, T, Self>,
        socket: Resource<TcpSocket>,
    ) -> SocketResult<StreamReader<Resource<TcpSocket>>> {
        let view = store.getter();
        let backlog = {
            let mut view = store.get();
            let (net, intake) = (Arc::clone(view.net), view.intake.clone());
            trap(view.tcp_p3(&socket))?.listen(&net, &intake)?
        };
        trap(StreamReader::new(&mut store, Listening { backlog, view }))
    }

    fn send(
        mut store: Access<'_, T, Self>,
        socket: Resource<TcpSocket>,
        mut data: StreamReader<u8>,
    ) -> wasmtime::Result<FutureReader<End>> {
        match store.get().tcp_p3(&socket)?.take_output() {
            Ok(connection) => {
                let (direction, ended) = Direction::new(connection, Connection::close_output);
                data.pipe(&mut store, Sending(direction))?;
                FutureReader::new(&mut store, ended)
            }
            Err(code) => {
                data.close(&mut store)?;
                FutureReader::new(&mut store, async move { wasmtime::error::Ok(Err(code.into())) })
            }
        }
    }

    fn receive(
        mut store: Access<'_, T, Self>,
        socket: Resource<TcpSocket>,
    ) -> wasmtime::Result<(StreamReader<u8>, FutureReader<End>)> {
        match store.get().tcp_p3(&socket)?.take_input() {
            Ok(connection) => {
                let (direction, ended) = Direction::new(connection, Connection::close_input);
                let stream = StreamReader::new(&mut store, Receiving(direction))?;
                Ok((stream, FutureReader::new(&mut store, ended)?))
            }
            Err(code) => {
                let stream = StreamReader::new(&mut store, std::iter::empty())?;
                let end = async move { wasmtime::error::Ok(Err(code.into())) };
                Ok((stream, FutureReader::new(&mut store, end)?))
            }
        }
    }
}

impl HostTcpSocket for SocketsView<'_> {
    fn create(&mut self, address_family: IpAddressFamily) -> SocketResult<Resource<TcpSocket>> {
        let slot = self.net.socket().ok_or(Code::SocketLimit)?;
        let socket = Tcp::new(slot, is_ipv6(address_family));
        Ok(theirs(&trap(self.table.push(socket).map_err(Into::into))?))
    }

    async fn bind(
        &mut self,
        socket: Resource<TcpSocket>,
        local_address: IpSocketAddress,
    ) -> SocketResult<()> {
        let net = Arc::clone(self.net);
        Ok(trap(self.tcp_p3(&socket))?.bind(&net, local_address.into())?)
    }

    fn get_local_address(&mut self, socket: Resource<TcpSocket>) -> SocketResult<IpSocketAddress> {
        Ok(trap(self.tcp_p3(&socket))?.local_address()?.into())
    }

    fn get_remote_address(&mut self, socket: Resource<TcpSocket>) -> SocketResult<IpSocketAddress> {
        Ok(trap(self.tcp_p3(&socket))?.remote_address()?.into())
    }

    fn get_is_listening(&mut self, socket: Resource<TcpSocket>) -> wasmtime::Result<bool> {
        Ok(self.tcp_p3(&socket)?.is_listening())
    }

    fn get_address_family(
        &mut self,
        socket: Resource<TcpSocket>,
    ) -> wasmtime::Result<IpAddressFamily> {
        Ok(family(self.tcp_p3(&socket)?.is_ipv6()))
    }

    fn set_listen_backlog_size(
        &mut self,
        socket: Resource<TcpSocket>,
        value: u64,
    ) -> SocketResult<()> {
        Ok(trap(self.tcp_p3(&socket))?.set_backlog(value)?)
    }

    fn get_keep_alive_enabled(&mut self, socket: Resource<TcpSocket>) -> SocketResult<bool> {
        self.option_p3(&socket, |options| options.keep_alive_enabled)
    }

    fn set_keep_alive_enabled(
        &mut self,
        socket: Resource<TcpSocket>,
        value: bool,
    ) -> SocketResult<()> {
        self.set_option_p3(&socket, |options| {
            options.keep_alive_enabled = value;
            Ok(())
        })
    }

    fn get_keep_alive_idle_time(&mut self, socket: Resource<TcpSocket>) -> SocketResult<Duration> {
        self.option_p3(&socket, |options| options.keep_alive_idle_time)
    }

    fn set_keep_alive_idle_time(
        &mut self,
        socket: Resource<TcpSocket>,
        value: Duration,
    ) -> SocketResult<()> {
        self.set_option_p3(&socket, |options| options.set_keep_alive_idle_time(value))
    }

    fn get_keep_alive_interval(&mut self, socket: Resource<TcpSocket>) -> SocketResult<Duration> {
        self.option_p3(&socket, |options| options.keep_alive_interval)
    }

    fn set_keep_alive_interval(
        &mut self,
        socket: Resource<TcpSocket>,
        value: Duration,
    ) -> SocketResult<()> {
        self.set_option_p3(&socket, |options| options.set_keep_alive_interval(value))
    }

    fn get_keep_alive_count(&mut self, socket: Resource<TcpSocket>) -> SocketResult<u32> {
        self.option_p3(&socket, |options| options.keep_alive_count)
    }

    fn set_keep_alive_count(
        &mut self,
        socket: Resource<TcpSocket>,
        value: u32,
    ) -> SocketResult<()> {
        self.set_option_p3(&socket, |options| options.set_keep_alive_count(value))
    }

    fn get_hop_limit(&mut self, socket: Resource<TcpSocket>) -> SocketResult<u8> {
        self.option_p3(&socket, |options| options.hop_limit)
    }

    fn set_hop_limit(&mut self, socket: Resource<TcpSocket>, value: u8) -> SocketResult<()> {
        self.set_option_p3(&socket, |options| options.set_hop_limit(value))
    }

    fn get_receive_buffer_size(&mut self, socket: Resource<TcpSocket>) -> SocketResult<u64> {
        self.option_p3(&socket, |options| options.receive_buffer_size)
    }

    fn set_receive_buffer_size(
        &mut self,
        socket: Resource<TcpSocket>,
        value: u64,
    ) -> SocketResult<()> {
        self.set_option_p3(&socket, |options| options.set_receive_buffer_size(value))
    }

    fn get_send_buffer_size(&mut self, socket: Resource<TcpSocket>) -> SocketResult<u64> {
        self.option_p3(&socket, |options| options.send_buffer_size)
    }

    fn set_send_buffer_size(
        &mut self,
        socket: Resource<TcpSocket>,
        value: u64,
    ) -> SocketResult<()> {
        self.set_option_p3(&socket, |options| options.set_send_buffer_size(value))
    }

    fn drop(&mut self, socket: Resource<TcpSocket>) -> wasmtime::Result<()> {
        self.table.delete(Resource::<Tcp>::new_own(socket.rep()))?;
        Ok(())
    }
}
