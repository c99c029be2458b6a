//! The two streams of a connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::AsyncWrite as _;
use tokio_util::io::{poll_read_buf, poll_write_buf};
use tokio_util::sync::CancellationToken;
use wasmtime_wasi_io::async_trait;
use wasmtime_wasi_io::poll::Pollable;
use wasmtime_wasi_io::streams::{InputStream, OutputStream, StreamError, StreamResult};

use super::code::Code;
use crate::tasks::Guests;
use crate::types::BoxIo;

/// What one read takes off the pipe, in bytes.
const READ_BYTES: usize = 16 << 10;
/// What one write may bring, in bytes.
const WRITE_BYTES_MAX: usize = 64 << 10;
/// How long what a guest wrote before it closed may take to reach its peer.
const LINGER_MAX: Duration = Duration::from_secs(30);

/// A connection; its streams and its socket share it.
///
/// Reads are polled by whoever waits for them. Writes that the pipe does not take at once are
/// finished by a task, because a guest may go on without ever asking for that stream again.
#[derive(Clone)]
pub(super) struct Connection {
    state: Arc<Mutex<State>>,
    /// Ends the connection in peace when the guest has let go of all of it.
    _held: Arc<Held>,
}

/// The guest's hold on a connection.
struct Held {
    state: Arc<Mutex<State>>,
    gone: CancellationToken,
}

impl Drop for Held {
    fn drop(&mut self) {
        // What was written is delivered, and then the end: dropping the pipe would break it off.
        close_output(&self.state);
        self.gone.cancel();
    }
}

struct State {
    io: BoxIo,
    guests: Arc<Guests>,
    /// Cancelled when the guest has let go.
    gone: CancellationToken,
    input: Input,
    output: Output,
}

struct Input {
    buffer: BytesMut,
    is_open: bool,
    error: Option<io::Error>,
}

struct Output {
    buffer: BytesMut,
    is_flushed: bool,
    /// The guest wants to write nothing more.
    is_closing: bool,
    is_open: bool,
    error: Option<io::Error>,
    /// A task is at it; it alone polls the pipe, and wakes the guest when it is done.
    is_draining: bool,
    guest: Option<Waker>,
}

impl Connection {
    pub(super) fn new(io: BoxIo, guests: Arc<Guests>) -> Self {
        let input = Input { buffer: BytesMut::new(), is_open: true, error: None };
        let output = Output {
            buffer: BytesMut::new(),
            is_flushed: true,
            is_closing: false,
            is_open: true,
            error: None,
            is_draining: false,
            guest: None,
        };
        let gone = CancellationToken::new();
        let state = State { io, guests, gone: gone.clone(), input, output };
        let state = Arc::new(Mutex::new(state));
        let held = Arc::new(Held { state: Arc::clone(&state), gone });
        Self { state, _held: held }
    }

    pub(super) fn input(&self) -> Box<dyn InputStream> {
        Box::new(Reader(self.clone()))
    }

    pub(super) fn output(&self) -> Box<dyn OutputStream> {
        Box::new(Writer(self.clone()))
    }

    /// No further read.
    pub(super) fn close_input(&self) {
        let mut state = self.state.lock();
        state.input.is_open = false;
        state.input.buffer = BytesMut::new();
    }

    /// No further write: tells the peer after what was written.
    pub(super) fn close_output(&self) {
        close_output(&self.state);
    }

    /// Reads what there is; 0 is the end.
    pub(super) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<Result<usize, Code>> {
        ready!(self.poll_input(cx));
        let input = &mut self.state.lock().input;
        let size = into.len().min(input.buffer.len());
        if let Some(into) = into.get_mut(..size)
            && size > 0
        {
            input.buffer.copy_to_slice(into);
            return Poll::Ready(Ok(size));
        }
        Poll::Ready(match input.error.take() {
            Some(error) => Err(error.kind().into()),
            None => Ok(0),
        })
    }

    /// Writes what the pipe takes: what is written is with the peer, as far as this node can tell.
    pub(super) fn poll_write(
        &self,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<Result<usize, Code>> {
        ready!(self.poll_output(cx));
        let written = {
            let state = &mut *self.state.lock();
            let output = &mut state.output;
            if !output.is_writable() {
                return Poll::Ready(Err(output.broken()));
            }
            match ready!(Pin::new(&mut state.io).poll_write(cx, from)) {
                Ok(written) if written > 0 => {
                    output.is_flushed = false;
                    Ok(written)
                }
                other => {
                    output.is_open = false;
                    Err(other.err().map_or(Code::ConnectionBroken, |error| error.kind().into()))
                }
            }
        };
        let _ = self.poll_output(&mut noop());
        Poll::Ready(written)
    }

    /// Ready when there is something to read, or never will be.
    pub(super) fn poll_input(&self, cx: &mut Context<'_>) -> Poll<()> {
        let state = &mut *self.state.lock();
        let input = &mut state.input;
        if !input.buffer.is_empty() || !input.is_open {
            return Poll::Ready(());
        }
        input.buffer.reserve(READ_BYTES);
        match ready!(poll_read_buf(Pin::new(&mut state.io), cx, &mut input.buffer)) {
            Ok(0) => input.is_open = false,
            Ok(_) => {}
            Err(error) => {
                input.is_open = false;
                input.error = Some(error);
            }
        }
        Poll::Ready(())
    }

    /// Ready when everything written is with the peer, or never will be.
    pub(super) fn poll_output(&self, cx: &mut Context<'_>) -> Poll<()> {
        poll_output(&self.state, cx)
    }
}

fn close_output(state: &Arc<Mutex<State>>) {
    state.lock().output.is_closing = true;
    let _ = poll_output(state, &mut noop());
}

fn poll_output(shared: &Arc<Mutex<State>>, cx: &mut Context<'_>) -> Poll<()> {
    let state = &mut *shared.lock();
    if !state.output.is_draining {
        if state.poll_drain(&mut noop()).is_ready() {
            return Poll::Ready(());
        }
        state.output.is_draining = true;
        let drain = drain(Arc::clone(shared), state.gone.clone());
        // Ends when the pipe has taken everything, or a while after the guest has let go.
        drop(state.guests.spawn(drain));
    }
    state.output.guest = Some(cx.waker().clone());
    Poll::Pending
}

fn noop() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// Finishes what was written.
async fn drain(state: Arc<Mutex<State>>, gone: CancellationToken) {
    let patience = async {
        gone.cancelled().await;
        tokio::time::sleep(LINGER_MAX).await;
    };
    let done = std::future::poll_fn(|cx| state.lock().poll_drain(cx));
    tokio::select! {
        () = done => {}
        () = patience => {}
    }
    let guest = {
        let mut state = state.lock();
        state.output.is_draining = false;
        state.output.guest.take()
    };
    if let Some(guest) = guest {
        guest.wake();
    }
}

impl State {
    /// Writes, flushes and closes as far as the pipe goes along.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let output = &mut self.output;
        if !output.is_open {
            return Poll::Ready(());
        }
        let result = ready!(output.poll_drain(&mut self.io, cx));
        if let Err(error) = result {
            output.is_open = false;
            output.buffer = BytesMut::new();
            output.error = Some(error);
        } else if output.is_closing {
            output.is_open = false;
        }
        Poll::Ready(())
    }
}

impl Output {
    fn poll_drain(&mut self, io: &mut BoxIo, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.buffer.is_empty() {
            let written = ready!(poll_write_buf(Pin::new(&mut *io), cx, &mut self.buffer))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
        }
        if !self.is_flushed {
            ready!(Pin::new(&mut *io).poll_flush(cx))?;
            self.is_flushed = true;
        }
        if self.is_closing {
            ready!(Pin::new(&mut *io).poll_shutdown(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    fn is_writable(&self) -> bool {
        self.is_open && !self.is_closing
    }

    /// Why nothing can be written any more, as WASI 0.3 has it.
    fn broken(&mut self) -> Code {
        self.error.take().map_or(Code::ConnectionBroken, |error| error.kind().into())
    }

    /// Why nothing can be written any more, as WASI 0.2 has it. The cause is told once.
    fn closed(&mut self) -> StreamError {
        match self.error.take() {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                StreamError::LastOperationFailed(error.into())
            }
            _ => StreamError::Closed,
        }
    }
}

struct Reader(Connection);

#[async_trait]
impl Pollable for Reader {
    async fn ready(&mut self) {
        std::future::poll_fn(|cx| self.0.poll_input(cx)).await;
    }
}

#[async_trait]
impl InputStream for Reader {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        let _ = self.0.poll_input(&mut noop());
        let input = &mut self.0.state.lock().input;
        if !input.buffer.is_empty() {
            let size = size.min(input.buffer.len());
            return Ok(input.buffer.split_to(size).freeze());
        }
        match input.error.take() {
            Some(error) => Err(StreamError::LastOperationFailed(error.into())),
            None if !input.is_open => Err(StreamError::Closed),
            None => Ok(Bytes::new()),
        }
    }
}

struct Writer(Connection);

#[async_trait]
impl Pollable for Writer {
    async fn ready(&mut self) {
        std::future::poll_fn(|cx| self.0.poll_output(cx)).await;
    }
}

#[async_trait]
impl OutputStream for Writer {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        {
            let output = &mut self.0.state.lock().output;
            if !output.is_writable() {
                return Err(output.closed());
            }
            if output.buffer.len() + bytes.len() > WRITE_BYTES_MAX {
                return Err(StreamError::trap("wrote more than check-write permits"));
            }
            output.buffer.extend_from_slice(&bytes);
            output.is_flushed = false;
        }
        let _ = self.0.poll_output(&mut noop());
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        let output = &mut self.0.state.lock().output;
        if output.is_open { Ok(()) } else { Err(output.closed()) }
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        let is_ready = self.0.poll_output(&mut noop()).is_ready();
        let output = &mut self.0.state.lock().output;
        if !output.is_writable() {
            return Err(output.closed());
        }
        Ok(if is_ready { WRITE_BYTES_MAX } else { 0 })
    }

    async fn cancel(&mut self) {
        // What was written stays written.
        self.ready().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

    use super::*;

    fn connection(pipe_bytes: usize) -> (Connection, tokio::io::DuplexStream, Arc<Guests>) {
        let (near, far) = tokio::io::duplex(pipe_bytes);
        let guests = Arc::new(Guests::start(1).unwrap());
        (Connection::new(Box::new(near), Arc::clone(&guests)), far, guests)
    }

    #[tokio::test]
    async fn a_writer_waits_for_a_reader_that_does_not_read() {
        let (connection, mut far, _guests) = connection(8);
        let mut out = connection.output();
        assert_eq!(out.check_write().unwrap(), WRITE_BYTES_MAX);
        out.write(Bytes::from_static(b"twelve bytes")).unwrap();
        assert_eq!(out.check_write().unwrap(), 0, "the pipe is full");
        let mut got = [0; 12];
        let (read, ()) = tokio::join!(far.read_exact(&mut got), out.ready());
        read.unwrap();
        assert_eq!(&got, b"twelve bytes");
        assert_eq!(out.check_write().unwrap(), WRITE_BYTES_MAX);
    }

    #[tokio::test]
    async fn each_direction_ends_for_itself() {
        let (connection, mut far, _guests) = connection(64);
        let (mut input, mut out) = (connection.input(), connection.output());
        out.write(Bytes::from_static(b"bye")).unwrap();
        connection.close_output();
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"bye");
        assert!(matches!(out.check_write(), Err(StreamError::Closed)));

        assert!(input.read(10).unwrap().is_empty(), "the peer may still write");
        far.write_all(b"late").await.unwrap();
        drop(far);
        input.ready().await;
        assert_eq!(input.read(10).unwrap(), "late");
        assert!(matches!(input.read(10), Err(StreamError::Closed)));
    }

    /// A pipe of which it is known how it ended.
    struct Watched(tokio::io::DuplexStream, Arc<AtomicBool>);

    impl AsyncRead for Watched {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            into: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, into)
        }
    }

    impl AsyncWrite for Watched {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            from: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, from)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.1.store(true, Ordering::SeqCst);
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    #[tokio::test]
    async fn a_connection_that_its_guest_drops_ends_in_peace() {
        let guests = Arc::new(Guests::start(1).unwrap());
        for written in [0, 3, 64] {
            let (near, mut far) = tokio::io::duplex(8);
            let is_shut = Arc::new(AtomicBool::new(false));
            let io = Box::new(Watched(near, Arc::clone(&is_shut)));
            let connection = Connection::new(io, Arc::clone(&guests));
            let mut out = connection.output();
            out.write(Bytes::from(vec![7; written])).unwrap();
            drop((out, connection));
            let mut got = Vec::new();
            far.read_to_end(&mut got).await.unwrap();
            assert_eq!(got.len(), written);
            assert!(is_shut.load(Ordering::SeqCst), "{written}: broken off");
        }
    }

    #[tokio::test]
    async fn a_dropped_connection_still_delivers() {
        let (connection, mut far, _guests) = connection(4);
        let mut out = connection.output();
        out.write(Bytes::from_static(b"more than four")).unwrap();
        drop(out);
        drop(connection);
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"more than four");
    }
}
