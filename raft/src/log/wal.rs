//! The segments: opening, writing a batch, starting and dropping segments. Synchronous; one
//! owner.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use crate::OpenError;
use crate::envelope::{encode_body, kind};
use crate::frozen::{LogIdV1, PayloadV1, VoteV1};
use crate::log::record::{self, RecordHeader, SECTOR_BYTES};
use crate::log::scan::{
    CheckpointV1, End, Found, HEAD_SALT, Location, RECORD_VERSION, Replay, Segment, SegmentV1, Tail,
};
use crate::log::{Disk, DiskFile};
use crate::type_config::LogEntry;

/// Bytes of a segment, unless one batch needs more.
pub(crate) const SEGMENT_BYTES: u64 = 1024 * 1024;
/// Purged segments kept for reuse: writing over them spares the flash the zeroing.
const SPARES_MAX: usize = 16;
const SEGMENT_SUFFIX: &str = ".log";
const SPARE_SUFFIX: &str = ".spare";
const NEW_NAME: &str = "new.tmp";
/// New segments are zeroed in pieces of this size.
const ZERO_BYTES: usize = 64 * 1024;

/// One thing to write.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Vote(VoteV1),
    /// The ticket comes back with the entry's place.
    Entry {
        ticket: u64,
        entry: Arc<LogEntry>,
    },
    /// Entries from this index on are gone.
    Truncate(u64),
    Purge(LogIdV1),
    Committed(Option<LogIdV1>),
}

/// Where a written entry is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Placed {
    pub(crate) ticket: u64,
    pub(crate) index: u64,
    pub(crate) at: Location,
}

/// What a batch changed.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) placed: Vec<Placed>,
    /// A segment that was started.
    pub(crate) opened: Option<(u64, Arc<dyn DiskFile>)>,
    /// Segments that are gone.
    pub(crate) dropped: Vec<u64>,
}

/// What an opened log holds.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) checkpoint: CheckpointV1,
    pub(crate) entries: VecDeque<Found>,
    pub(crate) files: BTreeMap<u64, Arc<dyn DiskFile>>,
    pub(crate) salt: u32,
}

#[derive(Debug)]
struct Held {
    segment: u64,
    file: Arc<dyn DiskFile>,
    bytes: u64,
    last_index: Option<u64>,
}

/// The log's files and the state of their end.
#[derive(Debug)]
pub(crate) struct Wal {
    disk: Arc<dyn Disk>,
    /// Oldest first; the last one is written to.
    segments: VecDeque<Held>,
    spares: Vec<String>,
    salt: u32,
    offset: u64,
    chain: u32,
    next: u64,
    checkpoint: CheckpointV1,
    buffer: Vec<u8>,
    is_broken: bool,
}

impl Wal {
    /// Opens the log in `disk` or makes one, then with `salt`. Cuts a torn tail.
    pub(crate) fn open(disk: Arc<dyn Disk>, salt: u32) -> Result<(Self, Recovered), OpenError> {
        let io =
            |action, name: &str, source| OpenError::Io { action, path: disk.path(name), source };
        let (numbers, spares) = tidy_folder(disk.as_ref()).map_err(|e| io("list", "", e))?;
        let mut wal = Self {
            disk: disk.clone(),
            segments: VecDeque::new(),
            spares,
            salt,
            offset: 0,
            chain: 0,
            next: 1,
            checkpoint: CheckpointV1::default(),
            buffer: Vec::new(),
            is_broken: false,
        };
        let mut replay = Replay::default();
        if numbers.is_empty() {
            wal.start_segment(1, 0).map_err(|e| io("create", &segment_name(1), e))?;
        } else {
            wal.load(&numbers, &mut replay)?;
        }
        wal.checkpoint = replay.checkpoint;
        let files = wal.segments.iter().map(|held| (held.segment, held.file.clone())).collect();
        let Replay { checkpoint, entries } = replay;
        let salt = wal.salt;
        Ok((wal, Recovered { checkpoint, entries, files, salt }))
    }

    fn load(&mut self, numbers: &[u64], replay: &mut Replay) -> Result<(), OpenError> {
        let mut last: Option<(Segment, End)> = None;
        for number in numbers {
            let name = segment_name(*number);
            let path = self.disk.path(&name);
            let io = |action, source| OpenError::Io { action, path: path.clone(), source };
            let corrupt =
                |offset, reason| OpenError::Corrupt { path: path.clone(), offset, reason };
            let file = self.disk.open(&name).map_err(|e| io("open", e))?;
            let segment = Segment::read(file.as_ref())
                .map_err(|e| io("read", e))?
                .filter(|segment| segment.head.segment == *number)
                .ok_or_else(|| corrupt(0, "the head of the segment does not hold".to_owned()))?;
            if let Some((before, end)) = &last {
                let head = &segment.head_record;
                if head.number != end.next
                    || head.prev_crc != end.chain
                    || segment.head.salt != before.head.salt
                {
                    return Err(OpenError::Corrupt {
                        path: self.disk.path(&segment_name(before.head.segment)),
                        offset: end.offset,
                        reason: format!("record {} does not hold", end.next),
                    });
                }
            } else {
                self.salt = segment.head.salt;
                replay.checkpoint = segment.head.checkpoint;
            }
            let end = segment.replay(replay).map_err(|(offset, reason)| corrupt(offset, reason))?;
            self.segments.push_back(Held {
                segment: *number,
                file,
                bytes: segment.bytes(),
                last_index: end.last_index,
            });
            last = Some((segment, end));
        }
        if let Some((segment, end)) = last {
            self.settle(&segment, &end)?;
        }
        self.check_complete(replay)
    }

    /// Judges and cuts the tail; then everything read is durable and writing can go on.
    fn settle(&mut self, segment: &Segment, end: &End) -> Result<(), OpenError> {
        let path = self.disk.path(&segment_name(segment.head.segment));
        let tail = segment.tail(end);
        if let Tail::Corrupt(good) = tail {
            let reason = format!("record {} does not hold, a later one at {good} does", end.next);
            return Err(OpenError::Corrupt { path, offset: end.offset, reason });
        }
        let Some(held) = self.segments.back() else { return Ok(()) };
        let file = held.file.clone();
        let settled = if tail == Tail::Torn {
            tracing::warn!(offset = end.offset, "cutting a torn tail off the log");
            zero(file.as_ref(), end.offset, held.bytes)
        } else {
            Ok(())
        };
        // After a crash of the process alone the pages read may never have reached the disk.
        settled.and_then(|()| file.sync()).map_err(|source| OpenError::Io {
            action: "sync",
            path,
            source,
        })?;
        self.offset = end.offset;
        self.chain = end.chain;
        self.next = end.next;
        Ok(())
    }

    /// The first entry must follow what was purged.
    fn check_complete(&self, replay: &Replay) -> Result<(), OpenError> {
        let expected = replay.checkpoint.purged.map_or(0, |purged| purged.index.saturating_add(1));
        let Some(first) = replay.entries.front().filter(|first| first.id.index > expected) else {
            return Ok(());
        };
        Err(OpenError::Corrupt {
            path: self.disk.path(&segment_name(first.at.segment)),
            offset: first.at.offset,
            reason: format!("entries {expected} to {} are missing", first.id.index - 1),
        })
    }

    /// Writes a batch and makes it durable. After an error every call fails.
    pub(crate) fn write(&mut self, ops: &[Op]) -> io::Result<Written> {
        if self.is_broken {
            return Err(io::Error::other("an earlier write of the log failed"));
        }
        let written = self.try_write(ops);
        self.is_broken = written.is_err();
        written
    }

    fn try_write(&mut self, ops: &[Op]) -> io::Result<Written> {
        let mut written = Written::default();
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut end = self.encode(ops, &mut buffer, &mut written.placed)?;
        let room = self.segments.back().map_or(0, |held| held.bytes.saturating_sub(self.offset));
        if to_u64(buffer.len()) > room {
            let segment = self.segments.back().map_or(1, |held| held.segment.saturating_add(1));
            self.start_segment(segment, buffer.len())?;
            written.opened = self.segments.back().map(|held| (held.segment, held.file.clone()));
            end = self.encode(ops, &mut buffer, &mut written.placed)?;
        }
        let held =
            self.segments.back_mut().ok_or_else(|| io::Error::other("the log has no segment"))?;
        held.file.write_at(self.offset, &buffer)?;
        held.file.sync()?;
        held.last_index = held.last_index.max(written.placed.iter().map(|p| p.index).max());
        (self.offset, self.chain, self.next) = (end.offset, end.chain, end.next);
        if buffer.capacity() <= ZERO_BYTES * 16 {
            self.buffer = buffer;
        }
        for op in ops {
            match op {
                Op::Vote(vote) => self.checkpoint.vote = Some(*vote),
                Op::Purge(upto) => self.checkpoint.purged = Some(*upto),
                Op::Committed(upto) => self.checkpoint.committed = *upto,
                Op::Entry { .. } | Op::Truncate(_) => {}
            }
        }
        if ops.iter().any(|op| matches!(op, Op::Purge(_))) {
            written.dropped = self.drop_purged()?;
        }
        Ok(written)
    }

    /// Fills `buffer` with the records of `ops` as they would follow the present end.
    fn encode(
        &self,
        ops: &[Op],
        buffer: &mut Vec<u8>,
        placed: &mut Vec<Placed>,
    ) -> io::Result<End> {
        buffer.clear();
        placed.clear();
        let segment = self.segments.back().map_or(0, |held| held.segment);
        let mut end =
            End { offset: self.offset, chain: self.chain, next: self.next, last_index: None };
        for op in ops {
            let (kind, index, term) = match op {
                Op::Vote(_) => (kind::VOTE, 0, 0),
                Op::Entry { entry, .. } => {
                    (kind::ENTRY, entry.log_id.index, entry.log_id.leader_id.term)
                }
                Op::Truncate(from) => (kind::TRUNCATE, *from, 0),
                Op::Purge(upto) => (kind::PURGE, upto.index, upto.term),
                Op::Committed(_) => (kind::COMMITTED, 0, 0),
            };
            let header = RecordHeader {
                kind,
                version: RECORD_VERSION,
                length: 0,
                crc: 0,
                prev_crc: end.chain,
                number: end.next,
                batch: self.next,
                index,
                term,
            };
            let header = record::append(buffer, self.salt, header, |out| match op {
                Op::Vote(vote) => encode_body(vote, out),
                Op::Entry { entry, .. } => encode_body(PayloadV1::from(&entry.payload), out),
                Op::Truncate(_) => Ok(()),
                Op::Purge(upto) => encode_body(upto, out),
                Op::Committed(upto) => encode_body(upto, out),
            })
            .map_err(io::Error::other)?;
            let bytes = header.padded_bytes();
            if let Op::Entry { ticket, .. } = op {
                let bytes = u32::try_from(bytes).map_err(io::Error::other)?;
                let at = Location { segment, offset: end.offset, bytes };
                placed.push(Placed { ticket: *ticket, index, at });
            }
            end.offset = end.offset.saturating_add(to_u64(bytes));
            end.chain = header.crc;
            end.next = end.next.saturating_add(1);
        }
        Ok(end)
    }

    /// Starts a segment with room for a batch of `needed` bytes: whole and durable before it
    /// gets its name.
    fn start_segment(&mut self, segment: u64, needed: usize) -> io::Result<()> {
        let head = SegmentV1 { segment, salt: self.salt, checkpoint: self.checkpoint };
        let header = RecordHeader {
            kind: kind::SEGMENT,
            version: RECORD_VERSION,
            length: 0,
            crc: 0,
            prev_crc: self.chain,
            number: self.next,
            batch: self.next,
            index: segment,
            term: 0,
        };
        let mut record = Vec::with_capacity(SECTOR_BYTES);
        let header = record::append(&mut record, HEAD_SALT, header, |out| encode_body(head, out))
            .map_err(io::Error::other)?;
        let least = to_u64(record.len().saturating_add(needed));
        let bytes = SEGMENT_BYTES.max(least.next_multiple_of(to_u64(ZERO_BYTES)));
        let spare = if bytes == SEGMENT_BYTES { self.spares.pop() } else { None };
        let (from, file) = if let Some(spare) = spare {
            let file = self.disk.open(&spare)?;
            (spare, file)
        } else {
            let file = self.disk.create(NEW_NAME)?;
            zero(file.as_ref(), 0, bytes)?;
            (NEW_NAME.to_owned(), file)
        };
        file.write_at(0, &record)?;
        file.sync()?;
        self.disk.rename(&from, &segment_name(segment))?;
        self.disk.sync_dir()?;
        self.segments.push_back(Held { segment, file, bytes, last_index: None });
        self.offset = to_u64(record.len());
        self.chain = header.crc;
        self.next = self.next.saturating_add(1);
        Ok(())
    }

    /// Drops or recycles the oldest segments whose entries are all purged.
    fn drop_purged(&mut self) -> io::Result<Vec<u64>> {
        let mut dropped = Vec::new();
        let purged = self.checkpoint.purged.map(|purged| purged.index);
        while self.segments.len() > 1
            && self.segments.front().is_some_and(|oldest| oldest.last_index <= purged)
        {
            let Some(oldest) = self.segments.pop_front() else { break };
            let name = segment_name(oldest.segment);
            if oldest.bytes == SEGMENT_BYTES && self.spares.len() < SPARES_MAX {
                let spare = format!("{:016x}{SPARE_SUFFIX}", oldest.segment);
                self.disk.rename(&name, &spare)?;
                self.spares.push(spare);
            } else {
                self.disk.remove(&name)?;
            }
            dropped.push(oldest.segment);
        }
        if !dropped.is_empty() {
            self.disk.sync_dir()?;
        }
        Ok(dropped)
    }
}

/// Numbers of the segments to read, and the spares. Removes what a crash left half made.
fn tidy_folder(disk: &dyn Disk) -> io::Result<(Vec<u64>, Vec<String>)> {
    let mut numbers = Vec::new();
    let mut spares = Vec::new();
    for name in disk.list()? {
        if let Some(number) = name.strip_suffix(SEGMENT_SUFFIX) {
            if let Ok(number) = u64::from_str_radix(number, 16) {
                numbers.push(number);
            }
        } else if name.ends_with(SPARE_SUFFIX) && spares.len() < SPARES_MAX {
            if disk.open(&name)?.len()? == SEGMENT_BYTES {
                spares.push(name);
            } else {
                disk.remove(&name)?;
            }
        } else if name == NEW_NAME || name.ends_with(SPARE_SUFFIX) {
            disk.remove(&name)?;
        }
    }
    numbers.sort_unstable();
    spares.sort_unstable();
    // A crash may have kept the removal of a younger purged segment and lost that of an older
    // one: what is before a gap was purged. `check_complete` proves it.
    let gap = numbers.windows(2).rposition(|pair| match pair {
        [older, younger] => older.checked_add(1) != Some(*younger),
        _ => false,
    });
    if let Some(gap) = gap {
        for stale in numbers.drain(..=gap) {
            disk.remove(&segment_name(stale))?;
        }
    }
    Ok((numbers, spares))
}

fn zero(file: &dyn DiskFile, from: u64, to: u64) -> io::Result<()> {
    let zeros = vec![0; ZERO_BYTES];
    let mut at = from;
    while at < to {
        let piece = usize::try_from(to - at).unwrap_or(ZERO_BYTES).min(ZERO_BYTES);
        file.write_at(at, zeros.get(..piece).unwrap_or_default())?;
        at = at.saturating_add(to_u64(piece));
    }
    Ok(())
}

fn segment_name(segment: u64) -> String {
    format!("{segment:016x}{SEGMENT_SUFFIX}")
}

fn to_u64(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
