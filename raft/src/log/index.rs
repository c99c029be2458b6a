//! Which entries the log holds, where they are, and the newest of them in memory.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::envelope::decode_body;
use crate::frozen::{LogIdV1, PayloadV1};
use crate::log::DiskFile;
use crate::log::record;
use crate::log::scan::{Found, Location};
use crate::log::wal::{Placed, Recovered, Written};
use crate::type_config::{LogEntry, LogId, Payload, Vote, log_id};

/// Bytes of entries kept in memory; those not yet on disk are kept beyond it.
const CACHE_BYTES_MAX: usize = 1024 * 1024;
/// Counted for each cached entry beside its command.
const ENTRY_OVERHEAD_BYTES: usize = 128;

#[derive(Debug)]
struct Slot {
    term: u64,
    ticket: u64,
    at: Option<Location>,
    cached: Option<Arc<LogEntry>>,
}

/// The log as openraft sees it: changes at once, while the writer is still at it.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// Index of the first slot.
    first: u64,
    slots: VecDeque<Slot>,
    purged: Option<LogId>,
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    files: BTreeMap<u64, Arc<dyn DiskFile>>,
    salt: u32,
    next_ticket: u64,
    cached_bytes: usize,
    /// Below this index nothing is cached.
    cached_from: u64,
}

/// How to get one entry.
#[derive(Debug)]
pub(crate) enum Read {
    Cached(Arc<LogEntry>),
    Disk { file: Arc<dyn DiskFile>, at: Location, id: LogId, salt: u32 },
}

impl Read {
    /// The entry; reads the disk when it must.
    pub(crate) fn entry(self) -> io::Result<LogEntry> {
        match self {
            Self::Cached(entry) => Ok(LogEntry::clone(&entry)),
            Self::Disk { file, at, id, salt } => read_entry(file.as_ref(), at, id, salt),
        }
    }

    /// `true` when [`Read::entry`] does not touch the disk.
    pub(crate) fn is_cached(&self) -> bool {
        matches!(self, Self::Cached(_))
    }
}

fn read_entry(file: &dyn DiskFile, at: Location, id: LogId, salt: u32) -> io::Result<LogEntry> {
    let mut bytes = vec![0; usize::try_from(at.bytes).map_err(io::Error::other)?];
    file.read_at(at.offset, &mut bytes)?;
    let bad = || io::Error::other(format!("log entry {id} does not hold at byte {}", at.offset));
    let (header, payload) = record::read(salt, &bytes).ok_or_else(bad)?;
    if (header.term, header.index) != (id.leader_id.term, id.index) {
        return Err(bad());
    }
    let payload: PayloadV1 = decode_body(payload).map_err(io::Error::other)?;
    let payload = Payload::try_from(payload).map_err(io::Error::other)?;
    Ok(LogEntry { log_id: id, payload })
}

impl Index {
    /// The index of an opened log.
    pub(crate) fn new(recovered: Recovered) -> Self {
        let Recovered { checkpoint, entries, files, salt } = recovered;
        let first = entries.front().map_or(0, |found| found.id.index);
        let slots: VecDeque<Slot> = entries
            .into_iter()
            .map(|Found { id, at }| Slot { term: id.term, ticket: 0, at: Some(at), cached: None })
            .collect();
        let next = first.saturating_add(to_u64(slots.len()));
        Self {
            first,
            slots,
            purged: checkpoint.purged.map(Into::into),
            vote: checkpoint.vote.map(Into::into),
            committed: checkpoint.committed.map(Into::into),
            files,
            salt,
            next_ticket: 1,
            cached_bytes: 0,
            cached_from: next,
        }
    }

    /// Index after the last entry.
    fn next(&self) -> u64 {
        self.first.saturating_add(to_u64(self.slots.len()))
    }

    fn slot_number(&self, index: u64) -> Option<usize> {
        usize::try_from(index.checked_sub(self.first)?).ok()
    }

    /// Last purged entry.
    pub(crate) fn purged(&self) -> Option<LogId> {
        self.purged
    }

    /// Last entry, or the last purged one when there is none.
    pub(crate) fn last(&self) -> Option<LogId> {
        match self.slots.back() {
            Some(slot) => Some(log_id(slot.term, self.next().saturating_sub(1))),
            None => self.purged,
        }
    }

    /// Takes an entry in, to be written later; returns the ticket its place will come with.
    pub(crate) fn append(&mut self, entry: Arc<LogEntry>) -> io::Result<u64> {
        let index = entry.log_id.index;
        if self.slots.is_empty() {
            self.first = index;
            self.cached_from = index;
        } else if index != self.next() {
            let last = self.next().saturating_sub(1);
            return Err(io::Error::other(format!("entry {index} does not follow entry {last}")));
        }
        let ticket = self.next_ticket;
        self.next_ticket = ticket.saturating_add(1);
        self.cached_bytes = self.cached_bytes.saturating_add(weight(&entry));
        let term = entry.log_id.leader_id.term;
        self.slots.push_back(Slot { term, ticket, at: None, cached: Some(entry) });
        Ok(ticket)
    }

    /// Forgets entries from `from` on.
    pub(crate) fn truncate(&mut self, from: u64) {
        while self.next() > from
            && let Some(slot) = self.slots.pop_back()
        {
            self.forget(&slot);
        }
        self.cached_from = self.cached_from.min(self.next());
    }

    /// Forgets entries up to `upto`.
    pub(crate) fn purge(&mut self, upto: LogId) {
        while self.first <= upto.index
            && let Some(slot) = self.slots.pop_front()
        {
            self.forget(&slot);
            self.first = self.first.saturating_add(1);
        }
        self.cached_from = self.cached_from.max(self.first);
        if self.purged.is_none_or(|purged| purged.index < upto.index) {
            self.purged = Some(upto);
        }
    }

    fn forget(&mut self, slot: &Slot) {
        if let Some(entry) = &slot.cached {
            self.cached_bytes = self.cached_bytes.saturating_sub(weight(entry));
        }
    }

    /// Takes over what a batch did.
    pub(crate) fn written(&mut self, written: Written) {
        if let Some((segment, file)) = written.opened {
            self.files.insert(segment, file);
        }
        for segment in written.dropped {
            self.files.remove(&segment);
        }
        for Placed { ticket, index, at } in written.placed {
            let number = self.slot_number(index);
            let slot = number.and_then(|number| self.slots.get_mut(number));
            // Truncated and written anew in the meantime: another ticket.
            if let Some(slot) = slot.filter(|slot| slot.ticket == ticket) {
                slot.at = Some(at);
            }
        }
        self.evict();
    }

    fn evict(&mut self) {
        while self.cached_bytes > CACHE_BYTES_MAX {
            let number = self.slot_number(self.cached_from);
            let slot = number.and_then(|number| self.slots.get_mut(number));
            let Some(slot) = slot.filter(|slot| slot.at.is_some()) else { break };
            if let Some(entry) = slot.cached.take() {
                self.cached_bytes = self.cached_bytes.saturating_sub(weight(&entry));
            }
            self.cached_from = self.cached_from.saturating_add(1);
        }
    }

    /// How to read the entries of `range` that are here, up to about `bytes_max`, at least one.
    pub(crate) fn read(&self, range: Range<u64>, bytes_max: usize) -> Vec<Read> {
        let from = range.start.max(self.first);
        let to = range.end.min(self.next());
        let mut reads = Vec::new();
        let mut bytes = 0_usize;
        for index in from..to {
            let number = self.slot_number(index);
            let Some(slot) = number.and_then(|number| self.slots.get(number)) else { break };
            let (read, size) = match (&slot.cached, slot.at) {
                (Some(entry), _) => (Read::Cached(entry.clone()), weight(entry)),
                (None, Some(at)) => {
                    let Some(file) = self.files.get(&at.segment) else { break };
                    let (file, id) = (file.clone(), log_id(slot.term, index));
                    let size = usize::try_from(at.bytes).unwrap_or(usize::MAX);
                    (Read::Disk { file, at, id, salt: self.salt }, size)
                }
                (None, None) => break,
            };
            bytes = bytes.saturating_add(size);
            if bytes > bytes_max && !reads.is_empty() {
                break;
            }
            reads.push(read);
        }
        reads
    }

    /// The commit mark in its frozen form.
    pub(crate) fn committed_v1(&self) -> Option<LogIdV1> {
        self.committed.as_ref().map(Into::into)
    }
}

fn weight(entry: &LogEntry) -> usize {
    let command = match &entry.payload {
        Payload::Normal(command) => command.0.len(),
        Payload::Blank => 0,
        Payload::Membership(_) => ENTRY_OVERHEAD_BYTES,
    };
    command.saturating_add(ENTRY_OVERHEAD_BYTES)
}

fn to_u64(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
