//! Reading the log back: which records hold, where the tail is, and whether what is bad is torn
//! or corrupt.

use std::collections::VecDeque;
use std::io;

use serde::{Deserialize, Serialize};

use crate::envelope::{decode_body, kind};
use crate::frozen::{LogIdV1, VoteV1};
use crate::log::DiskFile;
use crate::log::record::{self, RecordHeader, SECTOR_BYTES};

/// What the log knows beside its entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CheckpointV1 {
    pub(crate) vote: Option<VoteV1>,
    pub(crate) purged: Option<LogIdV1>,
    pub(crate) committed: Option<LogIdV1>,
}

/// Payload of a segment's first record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SegmentV1 {
    /// Counts up by one from segment to segment.
    pub(crate) segment: u64,
    /// Goes into the checksum of every other record of the log.
    pub(crate) salt: u32,
    pub(crate) checkpoint: CheckpointV1,
}

/// Version of every record kind known here.
pub(crate) const RECORD_VERSION: u16 = 1;
/// The first record of a segment tells the salt, so it cannot use it.
pub(crate) const HEAD_SALT: u32 = 0;

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    /// Of the whole record.
    pub(crate) bytes: u32,
}

/// An entry found on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) id: LogIdV1,
    pub(crate) at: Location,
}

/// The log as replayed so far.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    pub(crate) checkpoint: CheckpointV1,
    pub(crate) entries: VecDeque<Found>,
}

impl Replay {
    fn truncate(&mut self, from: u64) {
        while self.entries.back().is_some_and(|last| last.id.index >= from) {
            self.entries.pop_back();
        }
    }

    fn purge(&mut self, upto: LogIdV1) {
        if self.checkpoint.purged.is_none_or(|purged| purged.index < upto.index) {
            self.checkpoint.purged = Some(upto);
        }
        while self.entries.front().is_some_and(|first| first.id.index <= upto.index) {
            self.entries.pop_front();
        }
    }

    fn entry(&mut self, found: Found) -> Result<(), String> {
        let index = found.id.index;
        if self.checkpoint.purged.is_some_and(|purged| index <= purged.index) {
            return Ok(());
        }
        self.truncate(index);
        if let Some(last) = self.entries.back()
            && last.id.index.checked_add(1) != Some(index)
        {
            return Err(format!("entry {index} follows entry {}", last.id.index));
        }
        self.entries.push_back(found);
        Ok(())
    }

    /// Takes over one record.
    fn record(
        &mut self,
        header: &RecordHeader,
        payload: &[u8],
        at: Location,
    ) -> Result<(), String> {
        if header.version != RECORD_VERSION {
            return Err(format!("kind {} version {} is unknown", header.kind, header.version));
        }
        let bad = |e: crate::envelope::EnvelopeError| e.to_string();
        match header.kind {
            kind::VOTE => self.checkpoint.vote = Some(decode_body(payload).map_err(bad)?),
            kind::COMMITTED => self.checkpoint.committed = decode_body(payload).map_err(bad)?,
            kind::PURGE => self.purge(decode_body(payload).map_err(bad)?),
            kind::TRUNCATE => self.truncate(header.index),
            kind::ENTRY => {
                let id = LogIdV1 { term: header.term, index: header.index };
                self.entry(Found { id, at })?;
            }
            other => return Err(format!("kind {other} is unknown")),
        }
        Ok(())
    }
}

/// A segment, read into memory, with its verified head.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) head: SegmentV1,
    pub(crate) head_record: RecordHeader,
    bytes: Vec<u8>,
}

/// Where a scan of a segment ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    /// Byte after the last good record.
    pub(crate) offset: u64,
    /// Checksum of the last good record.
    pub(crate) chain: u32,
    /// Number of the record that would come next.
    pub(crate) next: u64,
    /// Greatest index of an entry in the segment, purged or truncated ones included.
    pub(crate) last_index: Option<u64>,
}

/// What follows the last good record of the last segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tail {
    /// Nothing of this log.
    Clean,
    /// Rests of a batch that was never acknowledged.
    Torn,
    /// Records of a later batch: what is bad had been durable. The offset is theirs.
    Corrupt(u64),
}

impl Segment {
    /// Reads a segment; `None` when its first record does not hold.
    pub(crate) fn read(file: &dyn DiskFile) -> io::Result<Option<Self>> {
        let length = usize::try_from(file.len()?).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        file.read_at(0, &mut bytes)?;
        let Some((head_record, payload)) = record::read(HEAD_SALT, &bytes) else {
            return Ok(None);
        };
        if head_record.kind != kind::SEGMENT || head_record.version != RECORD_VERSION {
            return Ok(None);
        }
        let Ok(head) = decode_body(payload) else { return Ok(None) };
        Ok(Some(Self { head, head_record, bytes }))
    }

    /// Bytes of the file.
    pub(crate) fn bytes(&self) -> u64 {
        u64::try_from(self.bytes.len()).unwrap_or(u64::MAX)
    }

    /// Replays every good record. An `Err` names the offset of one that holds but contradicts.
    pub(crate) fn replay(&self, replay: &mut Replay) -> Result<End, (u64, String)> {
        let mut offset = self.head_record.padded_bytes();
        let mut end = End {
            offset: to_u64(offset),
            chain: self.head_record.crc,
            next: self.head_record.number.saturating_add(1),
            last_index: None,
        };
        while let Some((header, payload)) =
            self.bytes.get(offset..).and_then(|rest| record::read(self.head.salt, rest))
        {
            if header.number != end.next || header.prev_crc != end.chain {
                break;
            }
            let padded = header.padded_bytes();
            let at = Location {
                segment: self.head.segment,
                offset: to_u64(offset),
                bytes: u32::try_from(padded).unwrap_or(u32::MAX),
            };
            replay.record(&header, payload, at).map_err(|reason| (to_u64(offset), reason))?;
            if header.kind == kind::ENTRY {
                end.last_index = end.last_index.max(Some(header.index));
            }
            offset = offset.saturating_add(padded);
            end.offset = to_u64(offset);
            end.chain = header.crc;
            end.next = end.next.saturating_add(1);
        }
        Ok(end)
    }

    /// Looks behind the last good record.
    pub(crate) fn tail(&self, end: &End) -> Tail {
        let mut tail = Tail::Clean;
        let mut offset = usize::try_from(end.offset).unwrap_or(usize::MAX);
        while let Some(rest) = self.bytes.get(offset..).filter(|rest| !rest.is_empty()) {
            if let Some((header, _)) = record::read(self.head.salt, rest) {
                // A recycled segment holds older numbers: those mean nothing.
                if header.number > end.next && header.batch > end.next {
                    return Tail::Corrupt(to_u64(offset));
                }
                if header.number >= end.next {
                    tail = Tail::Torn;
                }
            }
            offset = offset.saturating_add(SECTOR_BYTES);
        }
        tail
    }
}

fn to_u64(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
