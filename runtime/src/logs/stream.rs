//! What a guest sees of its log: stdout and stderr of WASI p2 and p3.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi_io::async_trait;
use wasmtime_wasi_io::poll::Pollable;
use wasmtime_wasi_io::streams::{OutputStream, StreamError, StreamResult};

use super::{Channel, LINE_BYTES_MAX, Log};

/// What one write may bring, in bytes.
const WRITE_BYTES_MAX: usize = 64 << 10;

/// stdout or stderr of one instance. The unfinished last line is written when it is dropped.
#[derive(Debug, Clone)]
pub(crate) struct LogStream {
    log: Arc<Log>,
    line: Arc<Mutex<Line>>,
}

impl LogStream {
    /// At a terminal, what has been written is logged at once: a prompt has no end of line.
    pub(crate) fn new(log: &Arc<Log>, channel: Channel, is_terminal: bool) -> Self {
        let line = Line { log: Arc::clone(log), channel, is_terminal, text: Vec::new() };
        Self { log: Arc::clone(log), line: Arc::new(Mutex::new(line)) }
    }
}

/// Collects a line.
#[derive(Debug)]
struct Line {
    log: Arc<Log>,
    channel: Channel,
    is_terminal: bool,
    text: Vec<u8>,
}

impl Line {
    fn push(&mut self, mut bytes: &[u8]) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = bytes.split_at(end);
            self.extend(line);
            self.log.line(self.channel, true, &self.text);
            self.text.clear();
            bytes = rest.get(1..).unwrap_or_default();
        }
        self.extend(bytes);
        if self.is_terminal && !self.text.is_empty() {
            self.log.line(self.channel, false, &self.text);
            self.text.clear();
        }
    }

    fn extend(&mut self, mut bytes: &[u8]) {
        while self.text.len() + bytes.len() > LINE_BYTES_MAX {
            let (part, rest) = bytes.split_at(LINE_BYTES_MAX - self.text.len());
            self.text.extend_from_slice(part);
            self.log.line(self.channel, false, &self.text);
            self.text.clear();
            bytes = rest;
        }
        self.text.extend_from_slice(bytes);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.text.is_empty() {
            self.log.line(self.channel, true, &self.text);
        }
    }
}

impl IsTerminal for LogStream {
    fn is_terminal(&self) -> bool {
        self.line.lock().is_terminal
    }
}

impl StdoutStream for LogStream {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(AsyncLog { stream: self.clone(), room: Mutex::new(None) })
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Pollable for LogStream {
    async fn ready(&mut self) {
        self.log.room().await;
    }
}

impl OutputStream for LogStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.len() > WRITE_BYTES_MAX {
            return Err(StreamError::trap("wrote more than check-write permits"));
        }
        self.line.lock().push(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(if self.log.has_room() { WRITE_BYTES_MAX } else { 0 })
    }
}

type Room = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The same as [`AsyncWrite`], for WASI p3.
struct AsyncLog {
    stream: LogStream,
    room: Mutex<Option<Room>>,
}

impl AsyncWrite for AsyncLog {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let this = self.get_mut();
        let room = this.room.get_mut();
        if !this.stream.log.has_room() {
            let log = Arc::clone(&this.stream.log);
            let wait = room.get_or_insert_with(|| Box::pin(async move { log.room().await }));
            std::task::ready!(wait.as_mut().poll(cx));
        }
        *room = None;
        let bytes = bytes.get(..WRITE_BYTES_MAX).unwrap_or(bytes);
        this.stream.line.lock().push(bytes);
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
    use crate::tasks::Guests;
    use std::time::{Duration, UNIX_EPOCH};

    fn log(dir: &std::path::Path) -> Arc<Log> {
        let guests = Arc::new(Guests::start(1).unwrap());
        let clock: crate::WallClock = Arc::new(|| UNIX_EPOCH + Duration::from_secs(1));
        let size = crate::logs::LogSize { file_bytes_max: 1 << 30, bytes_per_second_max: 1 << 30 };
        Log::create(dir.join("log"), size, clock, guests).unwrap()
    }

    #[tokio::test]
    async fn writes_become_lines_whatever_their_cuts() {
        let dir = tempfile::tempdir().unwrap();
        let log = log(dir.path());
        let mut out = LogStream::new(&log, Channel::Stdout, false);
        let mut err = LogStream::new(&log, Channel::Stderr, false);
        out.write(Bytes::from_static(b"he")).unwrap();
        err.write(Bytes::from_static(b"oops\n")).unwrap();
        out.write(Bytes::from_static(b"llo\n\nlast")).unwrap();
        drop(out);
        log.flush().await;
        let text = std::fs::read_to_string(dir.path().join("log")).unwrap();
        let stamp = "1970-01-01T00:00:01.000000000Z";
        assert_eq!(
            text,
            format!(
                "{stamp} stderr F oops\n{stamp} stdout F hello\n{stamp} stdout F \n\
                 {stamp} stdout F last\n"
            )
        );
    }

    #[tokio::test]
    async fn a_terminal_does_not_wait_for_the_end_of_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let log = log(dir.path());
        let mut out = LogStream::new(&log, Channel::Stdout, true);
        assert!(out.is_terminal());
        out.write(Bytes::from_static(b"/ # ")).unwrap();
        log.flush().await;
        let text = std::fs::read_to_string(dir.path().join("log")).unwrap();
        assert!(text.ends_with(" stdout P / # \n"), "{text}");
        out.write(Bytes::from_static(b"a\nb")).unwrap();
        drop(out);
        log.flush().await;
        let text = std::fs::read_to_string(dir.path().join("log")).unwrap();
        let said: Vec<_> = text.lines().filter_map(|line| line.splitn(3, ' ').nth(2)).collect();
        assert_eq!(said, ["P / # ", "F a", "P b"]);
    }

    #[tokio::test]
    async fn a_long_line_is_cut_into_parts() {
        let dir = tempfile::tempdir().unwrap();
        let log = log(dir.path());
        let mut out = LogStream::new(&log, Channel::Stdout, false);
        let mut line = vec![b'x'; LINE_BYTES_MAX + 1];
        line.push(b'\n');
        out.write(line.into()).unwrap();
        log.flush().await;
        let text = std::fs::read_to_string(dir.path().join("log")).unwrap();
        let kinds: Vec<_> = text.lines().filter_map(|line| line.split(' ').nth(2)).collect();
        assert_eq!(kinds, ["P", "F"]);
        assert!(text.ends_with(" F x\n"));
    }
}
