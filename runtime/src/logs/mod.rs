//! Container logs: guests' stdout and stderr to files in the CRI format.
//!
//! Data in: bytes that guests write. Data out: lines
//! `2026-11-21T01:02:03.123456789Z stdout F text` in the container's log file, which is renamed
//! to `<path>.1` when it has reached its size.
//!
//! # Invariants
//!
//! - A guest that logs faster than the disk waits alone: what is not written yet is bounded, and
//!   the disk is touched by background threads only.
//! - What a guest logs beyond its lasting rate is dropped, and the log says so: the next rotation
//!   would throw it away seconds later, and flash memory wears out.
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
use tokio::time::Instant;

use self::file::LogFileWriter;
pub(crate) use self::stream::LogStream;
use crate::tasks::Guests;
use crate::wasm::WallClock;

/// Longest line in the file; a longer one is cut into `P` parts, in bytes.
pub(crate) const LINE_BYTES_MAX: usize = 16 << 10;
/// What may wait for the disk before guests have to wait, in bytes.
const PENDING_BYTES_MAX: usize = 256 << 10;
/// Rate at which one container's lines go to the disk, in bytes per second.
const BYTES_PER_SECOND_MAX: u64 = 8 << 20;
/// Seconds' worth of its rate that a container may log at once.
const BURST_SECONDS: u64 = 10;
/// Part of a second's worth that must have been saved up before dropping ends.
const RESUME_PART: u64 = 2;
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

/// How much a container may log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogSize {
    /// Size at which the file is rotated, in bytes.
    pub(crate) file_bytes_max: u64,
    /// Lasting rate, in bytes per second.
    pub(crate) bytes_per_second_max: u64,
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

#[derive(Debug)]
struct Pending {
    bytes: BytesMut,
    is_draining: bool,
    rate: Rate,
}

/// A bucket of bytes that fills at the container's rate.
#[derive(Debug)]
struct Rate {
    bytes_per_second: u64,
    left: u64,
    filled: Instant,
    /// Lines and bytes dropped since dropping began, if it has.
    dropped: Option<(u64, u64)>,
}

/// What becomes of a line.
#[derive(Debug, PartialEq, Eq)]
enum Admission {
    Admit,
    /// The first line again, after so many lines and bytes were dropped.
    Resume(u64, u64),
    /// The first line that is dropped.
    Begin,
    Drop,
}

/// What stands around a line in the file: its time, its stream, its end. A flood of empty lines is one, too.
const ENVELOPE_BYTES: usize = 42;

impl Rate {
    fn new(bytes_per_second: u64) -> Self {
        let bytes_per_second = bytes_per_second.max(1);
        let left = bytes_per_second.saturating_mul(BURST_SECONDS);
        Self { bytes_per_second, left, filled: Instant::now(), dropped: None }
    }

    fn admit(&mut self, bytes: usize) -> Admission {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let now = Instant::now();
        let elapsed = u64::try_from((now - self.filled).as_millis()).unwrap_or(u64::MAX);
        let earned = self.bytes_per_second.saturating_mul(elapsed) / 1000;
        if earned > 0 {
            let full = self.bytes_per_second.saturating_mul(BURST_SECONDS);
            self.left = self.left.saturating_add(earned).min(full);
            self.filled = now;
        }
        let is_enough = match self.dropped {
            None => self.left >= bytes,
            // Else every second line would be a notice.
            Some(_) => self.left >= bytes.max(self.bytes_per_second / RESUME_PART),
        };
        if is_enough {
            self.left -= bytes;
            return self
                .dropped
                .take()
                .map_or(Admission::Admit, |(lines, bytes)| Admission::Resume(lines, bytes));
        }
        let is_first = self.dropped.is_none();
        let (lines, so_far) = self.dropped.unwrap_or_default();
        self.dropped = Some((lines + 1, so_far.saturating_add(bytes)));
        if is_first { Admission::Begin } else { Admission::Drop }
    }
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
        size: LogSize,
        clock: WallClock,
        guests: Arc<Guests>,
    ) -> std::io::Result<Arc<Self>> {
        let bytes_max = size.file_bytes_max;
        drop(LogFileWriter::open(&path, bytes_max)?);
        let pending = Mutex::new(Pending {
            bytes: BytesMut::new(),
            is_draining: false,
            rate: Rate::new(size.bytes_per_second_max),
        });
        Ok(Arc::new(Self { path, bytes_max, clock, guests, pending, shrunk: Notify::new() }))
    }

    /// A log that keeps nothing, for guests whose streams are somebody's.
    pub(crate) fn none(clock: WallClock, guests: Arc<Guests>) -> Arc<Self> {
        Arc::new(Self {
            path: PathBuf::new(),
            bytes_max: 0,
            clock,
            guests,
            pending: Mutex::new(Pending {
                bytes: BytesMut::new(),
                is_draining: false,
                rate: Rate::new(0),
            }),
            shrunk: Notify::new(),
        })
    }

    /// Adds a line of the guest, without its line end, unless the guest logs too fast.
    pub(crate) fn line(self: &Arc<Self>, channel: Channel, is_full: bool, text: &[u8]) {
        let admission = self.pending.lock().rate.admit(text.len() + ENVELOPE_BYTES);
        match admission {
            Admission::Admit => {}
            Admission::Resume(lines, bytes) => {
                self.say(&format!("edgeorc: {lines} lines ({bytes} bytes) were dropped"));
            }
            Admission::Begin => {
                self.say("edgeorc: the container logs too fast, lines are dropped");
                return;
            }
            Admission::Drop => return,
        }
        self.add(channel, is_full, text);
    }

    /// Adds what the runtime has to say about the container, one line per line of `text`.
    pub(crate) fn say(self: &Arc<Self>, text: &str) {
        for line in text.lines() {
            let line = line.as_bytes();
            self.add(Channel::Stderr, true, line.get(..LINE_BYTES_MAX).unwrap_or(line));
        }
    }

    fn add(self: &Arc<Self>, channel: Channel, is_full: bool, text: &[u8]) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_dropped_and_told_once_each_way() {
        let mut rate = Rate::new(100);
        for _ in 0..10 {
            assert_eq!(rate.admit(100), Admission::Admit, "a burst is free");
        }
        assert_eq!(rate.admit(100), Admission::Begin);
        assert_eq!(rate.admit(100), Admission::Drop);
        tokio::time::advance(Duration::from_millis(400)).await;
        assert_eq!(rate.admit(10), Admission::Drop, "not enough is saved up");
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(rate.admit(10), Admission::Resume(3, 210));
        assert_eq!(rate.admit(10), Admission::Admit);
    }

    #[tokio::test(start_paused = true)]
    async fn many_short_lines_at_the_rate_are_kept() {
        let mut rate = Rate::new(1000);
        for _ in 0..100_000 {
            tokio::time::advance(Duration::from_micros(1000)).await;
            assert_eq!(rate.admit(1), Admission::Admit);
        }
    }
}
