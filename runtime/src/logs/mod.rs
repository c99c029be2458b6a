//! Container logs: guests' stdout and stderr to files in the CRI format.
//!
//! Data in: bytes that guests write. Data out: lines
//! `2026-11-21T01:02:03.123456789Z stdout F text` in the container's log file, which is renamed
//! to `<path>.1` when it has reached its size.
//!
//! # Invariants
//!
//! - A guest that logs faster than [`BYTES_PER_SECOND_MAX`] or than the disk waits alone: what is
//!   not written yet is bounded, and the disk is touched by background threads only.
//! - Lines of one instance never mix with lines of another, however they are cut into writes.

mod file;
mod stamp;
mod stream;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::sync::Notify;

use self::file::LogFileWriter;
pub(crate) use self::stream::LogStream;
use crate::tasks::Guests;
use crate::wasm::WallClock;

/// Longest line in the file; a longer one is cut into `P` parts, in bytes.
pub(crate) const LINE_BYTES_MAX: usize = 16 << 10;
/// What may wait for the disk before guests have to wait, in bytes.
const PENDING_BYTES_MAX: usize = 256 << 10;
/// Lasting rate at which one container may log.
const BYTES_PER_SECOND_MAX: u64 = 8 << 20;
/// Pauses shorter than this are not worth a timer.
const PAUSE_MIN: Duration = Duration::from_millis(1);

/// Which of the two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    /// Standard output.
    Stdout,
    /// Standard error, and what the runtime itself has to say.
    Stderr,
}

impl Channel {
    fn word(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The log of one container.
pub(crate) struct Log {
    path: PathBuf,
    bytes_max: u64,
    clock: WallClock,
    guests: Arc<Guests>,
    pending: Mutex<Pending>,
    /// Told whenever `pending` has shrunk.
    shrunk: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    bytes: BytesMut,
    is_draining: bool,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Log {
    /// Makes the file, so that a silent container has an empty log instead of none.
    ///
    /// # Errors
    ///
    /// Whatever the file system says. Blocks: call it on a blocking thread.
    pub(crate) fn create(
        path: PathBuf,
        bytes_max: u64,
        clock: WallClock,
        guests: Arc<Guests>,
    ) -> std::io::Result<Arc<Self>> {
        drop(LogFileWriter::open(&path, bytes_max)?);
        let pending = Mutex::new(Pending::default());
        Ok(Arc::new(Self { path, bytes_max, clock, guests, pending, shrunk: Notify::new() }))
    }

    /// A log that keeps nothing, for guests whose streams are somebody's.
    pub(crate) fn none(clock: WallClock, guests: Arc<Guests>) -> Arc<Self> {
        let pending = Mutex::new(Pending::default());
        let path = PathBuf::new();
        Arc::new(Self { path, bytes_max: 0, clock, guests, pending, shrunk: Notify::new() })
    }

    /// Adds a line without its line end.
    pub(crate) fn line(self: &Arc<Self>, channel: Channel, is_full: bool, text: &[u8]) {
        if self.path.as_os_str().is_empty() {
            return;
        }
        let stamp = stamp::rfc3339((self.clock)());
        let mut pending = self.pending.lock();
        let bytes = &mut pending.bytes;
        bytes.extend_from_slice(stamp.as_bytes());
        bytes.extend_from_slice(b" ");
        bytes.extend_from_slice(channel.word().as_bytes());
        bytes.extend_from_slice(if is_full { b" F " } else { b" P " });
        bytes.extend_from_slice(text);
        bytes.extend_from_slice(b"\n");
        if !std::mem::replace(&mut pending.is_draining, true) {
            // Ends when nothing is pending; started again by the next line.
            drop(self.guests.spawn(Arc::clone(self).drain()));
        }
    }

    /// Adds what the runtime has to say about the container, one line per line of `text`.
    pub(crate) fn say(self: &Arc<Self>, text: &str) {
        for line in text.lines() {
            let line = line.as_bytes();
            self.line(Channel::Stderr, true, line.get(..LINE_BYTES_MAX).unwrap_or(line));
        }
    }

    fn has_room(&self) -> bool {
        self.pending.lock().bytes.len() < PENDING_BYTES_MAX
    }

    /// Waits until guests may write again.
    async fn room(&self) {
        self.wait_until(Self::has_room).await;
    }

    /// Waits until everything written so far is in the file.
    pub(crate) async fn flush(&self) {
        self.wait_until(|log| !log.pending.lock().is_draining).await;
    }

    async fn wait_until(&self, is_met: impl Fn(&Self) -> bool) {
        loop {
            let mut shrunk = std::pin::pin!(self.shrunk.notified());
            shrunk.as_mut().enable();
            if is_met(self) {
                return;
            }
            shrunk.await;
        }
    }

    async fn drain(self: Arc<Self>) {
        let (path, bytes_max) = (self.path.clone(), self.bytes_max);
        let open = self.guests.spawn_blocking(move || LogFileWriter::open(&path, bytes_max));
        let mut writer = match open.await {
            Ok(Ok(writer)) => Some(writer),
            Ok(Err(error)) => {
                tracing::warn!(path = %self.path.display(), err = %error, "cannot open log");
                None
            }
            // The runtime only goes away with its guests.
            Err(_) => return,
        };
        loop {
            let bytes = {
                let mut pending = self.pending.lock();
                pending.is_draining = !pending.bytes.is_empty();
                pending.bytes.split()
            };
            self.shrunk.notify_waiters();
            if bytes.is_empty() {
                return;
            }
            let count = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            let work = self.guests.spawn_blocking(move || {
                let result = writer.as_mut().map(|writer| writer.write(&bytes));
                (writer, result)
            });
            let Ok((back, result)) = work.await else { return };
            writer = back;
            if let Some(Err(error)) = result {
                // The lines are lost: waiting for a full disk would stop the guest.
                tracing::warn!(path = %self.path.display(), err = %error, "cannot write log");
            }
            let pause =
                Duration::from_micros(count.saturating_mul(1_000_000) / BYTES_PER_SECOND_MAX);
            if pause >= PAUSE_MIN {
                tokio::time::sleep(pause).await;
            }
        }
    }
}
