//! The log as openraft's storage: calls change the index at once and queue for the writer.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::Arc;

use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{OptionalSend, RaftTypeConfig};
use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::log::index::{Index, Read};
use crate::log::wal::{Op, Recovered, Wal};
use crate::tasks::Tasks;
use crate::type_config::{LogEntry, LogId, TypeConfig, Vote};

/// Calls that may wait for the writer.
const QUEUE_LEN_MAX: usize = 1024;
/// Bytes and records of one batch, beyond which the rest waits for the next.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;
const BATCH_OPS_MAX: usize = 4096;
/// Bytes of entries in one request to a follower.
const SEND_BYTES_MAX: usize = 1024 * 1024;

enum Done {
    Nobody,
    Append(IOFlushed<TypeConfig>),
    Caller(oneshot::Sender<io::Result<()>>),
}

impl Done {
    fn tell(self, result: io::Result<()>) {
        match self {
            Self::Nobody => {}
            Self::Append(callback) => callback.io_completed(result),
            // A caller that no longer waits does not need the answer.
            Self::Caller(sender) => drop(sender.send(result)),
        }
    }
}

enum Request {
    Write { ops: Vec<Op>, bytes: usize, done: Done },
    Stop(oneshot::Sender<()>),
}

/// The log, for openraft.
#[derive(Debug, Clone)]
pub(crate) struct LogStore {
    index: Arc<RwLock<Index>>,
    queue: mpsc::Sender<Request>,
}

/// Reads entries while they are written.
#[derive(Debug, Clone)]
pub(crate) struct LogReader {
    index: Arc<RwLock<Index>>,
}

impl LogStore {
    /// Starts the writer of an opened log.
    pub(crate) fn start(wal: Wal, recovered: Recovered, tasks: &Tasks) -> Self {
        let index = Arc::new(RwLock::new(Index::new(recovered)));
        let (queue, requests) = mpsc::channel(QUEUE_LEN_MAX);
        let writer = Writer { wal: Some(wal), index: index.clone(), committed: None };
        tasks.spawn("log writer", writer.run(requests, tasks.token()));
        Self { index, queue }
    }

    /// Writes what waits and ends the writer. Later calls fail.
    pub(crate) async fn stop(&self) {
        let (sender, stopped) = oneshot::channel();
        if self.queue.send(Request::Stop(sender)).await.is_ok() {
            drop(stopped.await);
        }
    }

    async fn write(&self, ops: Vec<Op>, bytes: usize, done: Done) -> io::Result<()> {
        let sent = self.queue.send(Request::Write { ops, bytes, done }).await;
        sent.map_err(|_| io::Error::other("the log is closed"))
    }
}

struct Writer {
    /// Away while a batch is on its thread; gone after a panic there.
    wal: Option<Wal>,
    index: Arc<RwLock<Index>>,
    /// The commit mark on disk.
    committed: Option<LogId>,
}

impl Writer {
    async fn run(mut self, mut requests: mpsc::Receiver<Request>, token: CancellationToken) {
        loop {
            let first = tokio::select! {
                biased;
                request = requests.recv() => request,
                () = token.cancelled() => None,
            };
            let Some(first) = first else { break };
            let mut ops = Vec::new();
            let mut waiting = Vec::new();
            let mut stop = None;
            let mut bytes = 0_usize;
            let mut next = Some(first);
            while let Some(request) = next {
                match request {
                    Request::Write { ops: more, bytes: size, done } => {
                        ops.extend(more);
                        waiting.push(done);
                        bytes = bytes.saturating_add(size);
                    }
                    Request::Stop(sender) => stop = Some(sender),
                }
                let is_full = bytes >= BATCH_BYTES_MAX || ops.len() >= BATCH_OPS_MAX;
                next = if is_full || stop.is_some() { None } else { requests.try_recv().ok() };
            }
            let written = self.batch(ops, stop.is_some()).await;
            for done in waiting {
                done.tell(written.as_ref().copied().map_err(copy_error));
            }
            if let Some(stop) = stop {
                drop(self.wal.take());
                // The caller may have stopped waiting.
                let _ = stop.send(());
                break;
            }
        }
    }

    /// One write, one sync. The commit mark rides along and never costs a write of its own.
    async fn batch(&mut self, mut ops: Vec<Op>, is_last: bool) -> io::Result<()> {
        let (committed, mark) = {
            let index = self.index.read();
            (index.committed, index.committed_v1())
        };
        if committed != self.committed && (is_last || !ops.is_empty()) {
            ops.push(Op::Committed(mark));
        }
        if ops.is_empty() {
            return Ok(());
        }
        let Some(mut wal) = self.wal.take() else {
            return Err(io::Error::other("the log is closed"));
        };
        let work = tokio::task::spawn_blocking(move || {
            let written = wal.write(&ops);
            (wal, written)
        });
        let (wal, written) = work.await.map_err(io::Error::other)?;
        self.wal = Some(wal);
        match written {
            Ok(written) => {
                self.index.write().written(written);
                self.committed = committed;
                Ok(())
            }
            Err(e) => {
                tracing::error!(err = %e, "cannot write the log");
                Err(e)
            }
        }
    }
}

fn copy_error(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

impl LogReader {
    async fn entries(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<LogEntry>> {
        let reads = self.index.read().read(range, bytes_max);
        if reads.iter().all(Read::is_cached) {
            return reads.into_iter().map(Read::entry).collect();
        }
        let index = self.index.clone();
        let work = tokio::task::spawn_blocking(move || {
            let mut entries = Vec::with_capacity(reads.len());
            for read in reads {
                let at = match &read {
                    Read::Disk { id, .. } => Some(id.index),
                    Read::Cached(_) => None,
                };
                match read.entry() {
                    Ok(entry) => entries.push(entry),
                    // Purged and its segment reused since the index was read.
                    Err(_) if at <= index.read().purged().map(|purged| purged.index) => {}
                    Err(e) => return Err(e),
                }
            }
            Ok(entries)
        });
        work.await.map_err(io::Error::other)?
    }
}

fn half_open(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<LogEntry>> {
        self.entries(half_open(&range), usize::MAX).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.index.read().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<LogEntry>> {
        self.entries(start..end, SEND_BYTES_MAX).await
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let index = self.index.read();
        Ok(LogState { last_purged_log_id: index.purged(), last_log_id: index.last() })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader { index: self.index.clone() }
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (sender, saved) = oneshot::channel();
        self.write(vec![Op::Vote(vote.into())], 0, Done::Caller(sender)).await?;
        saved.await.map_err(io::Error::other)??;
        self.index.write().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.index.write().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.index.read().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = <TypeConfig as RaftTypeConfig>::Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut bytes = 0_usize;
        let ops = {
            let mut index = self.index.write();
            let mut ops = Vec::new();
            for entry in entries {
                let entry = Arc::new(entry);
                if let openraft::EntryPayload::Normal(command) = &entry.payload {
                    bytes = bytes.saturating_add(command.0.len());
                }
                let ticket = index.append(entry.clone())?;
                ops.push(Op::Entry { ticket, entry });
            }
            ops
        };
        self.write(ops, bytes, Done::Append(callback)).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let from = last_log_id.map_or(0, |last| last.index.saturating_add(1));
        self.index.write().truncate(from);
        self.write(vec![Op::Truncate(from)], 0, Done::Nobody).await
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        self.index.write().purge(log_id);
        self.write(vec![Op::Purge((&log_id).into())], 0, Done::Nobody).await
    }
}
