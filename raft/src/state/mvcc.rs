//! Keys, versions and history in memory; applying commands; reading at a revision.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use bytes::Bytes;

use crate::frozen::{CommandV1, PreconditionV1, RememberedV1, RequestV1, RowV1, TxnV1};
use crate::state::requests::Requests;
use crate::{Entry, Event, NodeId, Page, ReadError, Revision, TxnOutcome};

/// Ids of removed members that are remembered.
const REMOVED_MAX: usize = 4096;

/// Place of a row: revision, then position among the changes of that revision.
pub(crate) type RowId = (Revision, u32);

#[derive(Debug, Clone)]
struct Version {
    id: RowId,
    create_revision: Revision,
    /// `None` is a deletion.
    value: Option<Bytes>,
}

impl Version {
    fn entry(&self, key: &Bytes) -> Option<Entry> {
        Some(Entry {
            key: key.clone(),
            value: self.value.clone()?,
            create_revision: self.create_revision,
            mod_revision: self.id.0,
        })
    }
}

/// What applying changed, for the durable copy, in order.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) rows: Vec<(RowId, RowV1)>,
    pub(crate) requests: Vec<(u64, RequestV1)>,
    /// Rows that compaction forgot; removed after `rows` are put.
    pub(crate) forgotten: Vec<RowId>,
    pub(crate) bytes: usize,
}

impl Changes {
    /// `true` when nothing changed.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.requests.is_empty() && self.forgotten.is_empty()
    }
}

/// The whole state in memory.
#[derive(Debug, Default)]
pub(crate) struct Mvcc {
    keys: BTreeMap<Bytes, Vec<Version>>,
    /// Keys changed at each revision above the floor, oldest first.
    history: VecDeque<(Revision, Vec<Bytes>)>,
    /// Keys and values of every version but the live ones, which no compaction could free.
    history_bytes: usize,
    revision: Revision,
    floor: Revision,
    requests: Requests,
    removed: BTreeSet<NodeId>,
}

impl Mvcc {
    /// An empty state with the counters of a stored one; rows and requests follow.
    pub(crate) fn restore(
        revision: Revision,
        floor: Revision,
        next_request: u64,
        removed: impl IntoIterator<Item = NodeId>,
    ) -> Self {
        Self {
            revision,
            floor,
            requests: Requests::new(next_request),
            removed: removed.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Puts back a stored row; rows come in order of their ids.
    pub(crate) fn restore_row(&mut self, id: RowId, row: RowV1) {
        let RowV1 { key, create_revision, value } = row;
        self.put_version(key, Version { id, create_revision, value });
    }

    /// Puts back a remembered request; they come in order of their numbers.
    pub(crate) fn restore_request(&mut self, request: RequestV1) {
        self.requests.restore(request);
    }

    fn put_version(&mut self, key: Bytes, version: Version) {
        let revision = version.id.0;
        let mut kept = if version.value.is_none() { key.len() } else { 0 };
        let key = match self.keys.get_mut(&key) {
            Some(versions) => {
                if let Some(replaced) = versions.last().filter(|version| version.value.is_some()) {
                    kept = kept.saturating_add(version_bytes(&key, replaced));
                }
                versions.push(version);
                // The history shares the buffer of the key in the map.
                self.keys.get_key_value(&key).map_or_else(|| key.clone(), |(k, _)| k.clone())
            }
            None => {
                self.keys.insert(key.clone(), vec![version]);
                key
            }
        };
        self.history_bytes = self.history_bytes.saturating_add(kept);
        if revision <= self.floor {
            return;
        }
        match self.history.back_mut() {
            Some((last, keys)) if *last == revision => keys.push(key),
            _ => self.history.push_back((revision, vec![key])),
        }
    }

    /// Newest revision.
    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    /// Oldest revision that can be read.
    pub(crate) fn floor(&self) -> Revision {
        self.floor
    }

    /// Bytes of keys and values that only the history holds: replaced versions and deletions.
    pub(crate) fn history_bytes(&self) -> usize {
        self.history_bytes
    }

    /// Number of the next remembered request, and of the oldest kept.
    pub(crate) fn request_numbers(&self) -> (u64, u64) {
        (self.requests.next(), self.requests.floor())
    }

    /// Ids that were members and are no longer.
    pub(crate) fn removed(&self) -> &BTreeSet<NodeId> {
        &self.removed
    }

    /// Notes that members left.
    pub(crate) fn remove_members(&mut self, ids: impl IntoIterator<Item = NodeId>) {
        self.removed.extend(ids);
        while self.removed.len() > REMOVED_MAX {
            self.removed.pop_first();
        }
    }

    /// Applies the transactions of a command in order, each whole or not at all.
    pub(crate) fn apply(&mut self, command: CommandV1, changes: &mut Changes) -> Vec<TxnOutcome> {
        let outcomes = command.txns.into_iter().map(|txn| self.apply_txn(txn, changes)).collect();
        if command.compact > self.floor {
            self.compact(command.compact.min(self.revision), changes);
        }
        outcomes
    }

    fn apply_txn(&mut self, txn: TxnV1, changes: &mut Changes) -> TxnOutcome {
        if let Some(answer) = self.requests.get(&txn.request_id) {
            return self.recall(answer);
        }
        let request_id = txn.request_id;
        let (outcome, answer) = match self.first_failed(&txn.preconditions) {
            Some((index, key, current)) => {
                let revision = current.as_ref().map_or(0, |entry| entry.mod_revision);
                let number = u32::try_from(index).unwrap_or(u32::MAX);
                let answer = RememberedV1::Refused { index: number, key, revision };
                (TxnOutcome::Refused { index, current }, answer)
            }
            None => {
                let revision = self.change(txn.puts, txn.deletes, changes);
                (TxnOutcome::Committed(revision), RememberedV1::Committed(revision))
            }
        };
        let number = self.requests.push(request_id, answer.clone());
        changes.requests.push((number, RequestV1 { id: request_id, outcome: answer }));
        outcome
    }

    /// The first answer to a request that is seen again.
    fn recall(&self, answer: &RememberedV1) -> TxnOutcome {
        match answer {
            RememberedV1::Committed(revision) => TxnOutcome::Committed(*revision),
            RememberedV1::Refused { index, key, revision } => TxnOutcome::Refused {
                index: usize::try_from(*index).unwrap_or(usize::MAX),
                // Compacted since: what it holds now tells the caller as much.
                current: if *revision == 0 {
                    None
                } else {
                    self.get_at(key, *revision).unwrap_or_else(|_| self.get(key))
                },
            },
        }
    }

    fn first_failed(
        &self,
        preconditions: &[PreconditionV1],
    ) -> Option<(usize, Bytes, Option<Entry>)> {
        preconditions.iter().enumerate().find_map(|(index, precondition)| {
            let (PreconditionV1::Absent(key)
            | PreconditionV1::Present(key)
            | PreconditionV1::ModRevision(key, _)) = precondition;
            let current = self.get(key);
            let holds = match precondition {
                PreconditionV1::Absent(_) => current.is_none(),
                PreconditionV1::Present(_) => current.is_some(),
                PreconditionV1::ModRevision(_, at) => {
                    current.as_ref().is_some_and(|entry| entry.mod_revision == *at)
                }
            };
            (!holds).then(|| (index, key.clone(), current))
        })
    }

    /// Makes the changes at the next revision; without any the revision stays.
    fn change(
        &mut self,
        puts: Vec<(Bytes, Bytes)>,
        deletes: Vec<Bytes>,
        changes: &mut Changes,
    ) -> Revision {
        let mut wanted: BTreeMap<Bytes, Option<Bytes>> = BTreeMap::new();
        for key in deletes {
            if self.latest(&key).is_some() {
                wanted.insert(key, None);
            }
        }
        wanted.extend(puts.into_iter().map(|(key, value)| (key, Some(value))));
        if wanted.is_empty() {
            return self.revision;
        }
        let revision = self.revision.saturating_add(1);
        self.revision = revision;
        for (position, (key, value)) in (0_u32..).zip(wanted) {
            let id = (revision, position);
            let create_revision =
                self.latest(&key).map_or(revision, |version| version.create_revision);
            let row = RowV1 { key: key.clone(), create_revision, value: value.clone() };
            let size = key.len().saturating_add(value.as_ref().map_or(0, Bytes::len));
            changes.bytes = changes.bytes.saturating_add(size);
            changes.rows.push((id, row));
            self.put_version(key, Version { id, create_revision, value });
        }
        revision
    }

    /// Forgets what cannot be seen at `floor` or later.
    fn compact(&mut self, floor: Revision, changes: &mut Changes) {
        self.floor = floor;
        while self.history.front().is_some_and(|(revision, _)| *revision <= floor) {
            let Some((_, keys)) = self.history.pop_front() else { break };
            for key in keys {
                self.forget_versions(&key, floor, changes);
            }
        }
    }

    fn forget_versions(&mut self, key: &Bytes, floor: Revision, changes: &mut Changes) {
        let Some(versions) = self.keys.get_mut(key) else { return };
        let visible = versions.partition_point(|version| version.id.0 <= floor);
        // The newest one at the floor is what a read there sees, unless it is a deletion.
        let keep = versions.get(visible.wrapping_sub(1)).is_some_and(|v| v.value.is_some());
        let gone = visible.saturating_sub(usize::from(keep));
        let mut freed = 0_usize;
        for version in versions.drain(..gone) {
            freed = freed.saturating_add(version_bytes(key, &version));
            changes.forgotten.push(version.id);
        }
        self.history_bytes = self.history_bytes.saturating_sub(freed);
        if versions.is_empty() {
            self.keys.remove(key);
        }
    }

    /// The newest version, unless it is a deletion.
    fn latest(&self, key: &[u8]) -> Option<&Version> {
        self.keys.get(key)?.last().filter(|version| version.value.is_some())
    }

    /// The key's value now.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Entry> {
        let (key, versions) = self.keys.get_key_value(key)?;
        versions.last()?.entry(key)
    }

    fn check_readable(&self, at: Revision) -> Result<(), ReadError> {
        if at < self.floor {
            return Err(ReadError::Compacted { asked: at, oldest: self.floor });
        }
        if at > self.revision {
            return Err(ReadError::Future { asked: at, current: self.revision });
        }
        Ok(())
    }

    /// The key's value at a revision.
    fn get_at(&self, key: &[u8], at: Revision) -> Result<Option<Entry>, ReadError> {
        self.check_readable(at)?;
        let found = self.keys.get_key_value(key);
        Ok(found.and_then(|(key, versions)| visible_at(versions, at)?.entry(key)))
    }

    /// Keys of a range at a revision or now; `limit` 0 is all.
    pub(crate) fn range(
        &self,
        start: &[u8],
        end: &[u8],
        limit: usize,
        at: Option<Revision>,
    ) -> Result<Page, ReadError> {
        self.page((start, end), limit, at, u64::MAX)
    }

    /// As [`Self::range`], but at most `remaining_max` keys after the page are counted.
    pub(crate) fn page(
        &self,
        (start, end): (&[u8], &[u8]),
        limit: usize,
        at: Option<Revision>,
        remaining_max: u64,
    ) -> Result<Page, ReadError> {
        let at = at.unwrap_or(self.revision);
        self.check_readable(at)?;
        let mut page = Page { entries: Vec::new(), revision: at, remaining: 0 };
        if !end.is_empty() && start >= end {
            return Ok(page);
        }
        let upper = if end.is_empty() { Bound::Unbounded } else { Bound::Excluded(end) };
        for (key, versions) in self.keys.range::<[u8], _>((Bound::Included(start), upper)) {
            let Some(version) = visible_at(versions, at).filter(|v| v.value.is_some()) else {
                continue;
            };
            if limit > 0 && page.entries.len() >= limit {
                page.remaining = page.remaining.saturating_add(1);
                if page.remaining >= remaining_max {
                    break;
                }
            } else {
                page.entries.extend(version.entry(key));
            }
        }
        Ok(page)
    }

    /// Changes of keys in a range with a revision over `after`, at most about `limit`, whole
    /// revisions; and up to which revision that is everything.
    pub(crate) fn events(
        &self,
        start: &[u8],
        end: &[u8],
        after: Revision,
        limit: usize,
    ) -> Result<(Vec<Event>, Revision), ReadError> {
        self.check_readable(after)?;
        let mut events = Vec::new();
        let from = self.history.partition_point(|(revision, _)| *revision <= after);
        for (revision, keys) in self.history.range(from..) {
            for key in keys {
                if is_within(key, start, end) {
                    events.extend(self.event(key, *revision));
                }
            }
            if events.len() >= limit {
                return Ok((events, *revision));
            }
        }
        Ok((events, self.revision))
    }

    /// Keys that have changed since `revision`.
    pub(crate) fn changed_since(
        &self,
        revision: Revision,
    ) -> impl Iterator<Item = &[u8]> + Clone + '_ {
        let from = self.history.partition_point(|(at, _)| *at <= revision);
        self.history.range(from..).flat_map(|(_, keys)| keys).map(AsRef::as_ref)
    }

    fn event(&self, key: &Bytes, revision: Revision) -> Option<Event> {
        let (key, versions) = self.keys.get_key_value(key)?;
        let number = versions.binary_search_by_key(&revision, |version| version.id.0).ok()?;
        let before = number.checked_sub(1).and_then(|before| versions.get(before));
        Some(Event {
            revision,
            key: key.clone(),
            entry: versions.get(number)?.entry(key),
            previous: before.and_then(|before| before.entry(key)),
        })
    }
}

/// Whether a range that begins with `start` and ends before `end` has the key; empty is open.
pub(crate) fn is_within(key: &[u8], start: &[u8], end: &[u8]) -> bool {
    key >= start && (end.is_empty() || key < end)
}

fn visible_at(versions: &[Version], at: Revision) -> Option<&Version> {
    let visible = versions.partition_point(|version| version.id.0 <= at);
    versions.get(visible.checked_sub(1)?)
}

fn version_bytes(key: &Bytes, version: &Version) -> usize {
    key.len().saturating_add(version.value.as_ref().map_or(0, Bytes::len))
}
