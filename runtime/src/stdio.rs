//! Standard streams of a guest that somebody talks to: `exec`, and containers with `stdin: true`.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi_io::async_trait;
use wasmtime_wasi_io::poll::Pollable;
use wasmtime_wasi_io::streams::{OutputStream, StreamError, StreamResult};

/// What one write may bring, in bytes: one message of the channel.
const WRITE_BYTES_MAX: usize = 32 << 10;

/// Where a guest's input comes from.
pub type Input = Box<dyn AsyncRead + Send + Sync + Unpin>;

/// Standard streams in place of the log. The receivers end once the guest has ended and everything
/// it wrote was received; a guest that writes faster than they are read waits.
pub struct Stdio {
    /// Standard input; `None` is at its end from the start.
    pub stdin: Option<Input>,
    /// Takes standard output.
    pub stdout: mpsc::Sender<Bytes>,
    /// Takes standard error.
    pub stderr: mpsc::Sender<Bytes>,
    /// What the guest is told of output: whether a terminal is at the other end.
    pub is_terminal: bool,
}

impl std::fmt::Debug for Stdio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stdio")
            .field("has_stdin", &self.stdin.is_some())
            .field("is_terminal", &self.is_terminal)
            .finish_non_exhaustive()
    }
}

/// The streams of a container's one guest, until it takes them.
#[derive(Default)]
pub(crate) struct Pipes {
    stdin: Mutex<Option<Input>>,
    /// Whether a terminal is where output goes.
    is_terminal: bool,
    output: Mutex<Option<(PipeStream, PipeStream)>>,
}

impl Pipes {
    /// Input alone: output goes to the log.
    pub(crate) fn input(stdin: Input, is_terminal: bool) -> Self {
        Self { stdin: Mutex::new(Some(stdin)), is_terminal, output: Mutex::default() }
    }

    pub(crate) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    pub(crate) fn new(stdio: Stdio) -> Self {
        let pipe = |sender| PipeStream { sender, is_terminal: stdio.is_terminal };
        Self {
            stdin: Mutex::new(stdio.stdin),
            is_terminal: stdio.is_terminal,
            output: Mutex::new(Some((pipe(stdio.stdout), pipe(stdio.stderr)))),
        }
    }

    pub(crate) fn take_stdin(&self) -> Option<Input> {
        self.stdin.lock().take()
    }

    /// Standard output and standard error.
    pub(crate) fn take_output(&self) -> Option<(PipeStream, PipeStream)> {
        self.output.lock().take()
    }
}

/// One output stream of a guest, as messages.
#[derive(Debug, Clone)]
pub(crate) struct PipeStream {
    sender: mpsc::Sender<Bytes>,
    is_terminal: bool,
}

impl IsTerminal for PipeStream {
    fn is_terminal(&self) -> bool {
        self.is_terminal
    }
}

impl StdoutStream for PipeStream {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(AsyncPipe(Mutex::new(PollSender::new(self.sender.clone()))))
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Pollable for PipeStream {
    async fn ready(&mut self) {
        // A failed wait is a reader that went away, which the next call tells.
        let _ = self.sender.reserve().await;
    }
}

impl OutputStream for PipeStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.len() > WRITE_BYTES_MAX {
            return Err(StreamError::trap("wrote more than check-write permits"));
        }
        // There is room: `check_write` said so, and a stream has one writer at a time.
        self.sender.try_send(bytes).map_err(|_| StreamError::Closed)
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        if self.sender.is_closed() {
            return Err(StreamError::Closed);
        }
        Ok(if self.sender.capacity() > 0 { WRITE_BYTES_MAX } else { 0 })
    }
}

/// The same as [`AsyncWrite`], for WASI p3.
struct AsyncPipe(Mutex<PollSender<Bytes>>);

impl AsyncWrite for AsyncPipe {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let gone = |_| std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let sender = self.get_mut().0.get_mut();
        std::task::ready!(sender.poll_reserve(cx)).map_err(gone)?;
        let bytes = bytes.get(..WRITE_BYTES_MAX).unwrap_or(bytes);
        sender.send_item(Bytes::copy_from_slice(bytes)).map_err(gone)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_pipe_takes_nothing_until_it_is_read_and_ends_with_its_reader() {
        let (sender, mut receiver) = mpsc::channel(1);
        let mut pipe = PipeStream { sender, is_terminal: false };
        assert_eq!(pipe.check_write().unwrap(), WRITE_BYTES_MAX);
        pipe.write(Bytes::from_static(b"one")).unwrap();
        assert_eq!(pipe.check_write().unwrap(), 0);
        assert_eq!(receiver.recv().await.unwrap(), "one");
        pipe.ready().await;
        assert_eq!(pipe.check_write().unwrap(), WRITE_BYTES_MAX);
        // WASI's interface does not check it: one that was not asked for would be copied whole.
        let unasked = pipe.write(vec![0; WRITE_BYTES_MAX + 1].into());
        assert!(matches!(unasked, Err(StreamError::Trap(_))));
        drop(receiver);
        assert!(matches!(pipe.check_write(), Err(StreamError::Closed)));
    }
}
