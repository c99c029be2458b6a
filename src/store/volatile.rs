//! The tier in the leader's memory: Events and node Leases.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use edgeorc_raft::{Entry, Event};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::store::changes::Changes;
use crate::store::object::{Listed, Page, Stored};
use crate::store::{Key, Scope, StoreError, StoreWatch};

/// Most objects kept; the oldest written goes first.
const OBJECTS_MAX: usize = 10_000;
/// Most changes kept for watches.
const HISTORY_MAX: usize = 10_000;
/// How long an object is kept after its last write: Kubernetes' event TTL.
const AGE_MAX: Duration = Duration::from_secs(3600);
/// Revisions of one term: the term stands above these bits, so that a new leader's revisions are
/// higher than any of the leader before.
const TERM_SHIFT: u32 = 32;

/// Objects of the present leader; empty elsewhere.
#[derive(Debug)]
pub(super) struct Volatile {
    inner: Mutex<Inner>,
    revision: watch::Sender<u64>,
    changes: Arc<Changes>,
}

#[cfg(test)]
impl Default for Volatile {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// 0 while this server does not lead.
    revision: u64,
    /// The history begins after this revision.
    oldest: u64,
    objects: BTreeMap<Bytes, (Entry, Instant)>,
    /// Revision of the last write to key, for evicting the oldest.
    by_revision: BTreeMap<u64, Bytes>,
    history: VecDeque<Event>,
    /// Of objects that are renewed without a write: when they were last.
    renewals: BTreeMap<Bytes, Instant>,
}

impl Volatile {
    /// An empty tier whose watches share what they parse through `changes`.
    pub(super) fn new(changes: Arc<Changes>) -> Self {
        Self { inner: Mutex::default(), revision: watch::Sender::new(0), changes }
    }

    /// This server leads from now on: starts empty, above every earlier revision.
    pub(super) fn begin(&self, term: u64) {
        let base = (term << TERM_SHIFT) | 1;
        let mut inner = self.inner.lock();
        if inner.revision >> TERM_SHIFT == term {
            return;
        }
        *inner = Inner { revision: base, oldest: base, ..Inner::default() };
        drop(inner);
        self.revision.send_replace(base);
    }

    /// This server no longer leads: watchers end, readers are sent to the leader.
    pub(super) fn end(&self) {
        *self.inner.lock() = Inner::default();
        self.revision.send_if_modified(|revision| std::mem::replace(revision, 0) != 0);
    }

    pub(super) fn revision(&self) -> u64 {
        self.inner.lock().revision
    }

    pub(super) fn get(&self, key: &Key) -> Result<Option<Stored>, StoreError> {
        let inner = self.leading()?;
        inner.objects.get(key.bytes().as_slice()).map(|(entry, _)| Stored::read(entry)).transpose()
    }

    pub(super) fn list(&self, scope: &Scope, page: &Page) -> Result<Listed, StoreError> {
        let inner = self.leading()?;
        let (mut start, end) = (scope.start(), scope.end());
        // A place outside the collection is before its first object or after its last.
        if let Some(after) = page.after.as_ref().filter(|after| **after >= start) {
            start.clone_from(after);
            // The first key after this one.
            start.push(0);
        }
        let at = page.at.unwrap_or(inner.revision);
        let objects = inner.at(at, start, end)?;
        let limit = if page.limit == 0 { usize::MAX } else { page.limit };
        let shown = objects.iter().take(limit);
        let items =
            shown.clone().map(|(_, entry)| Stored::read(entry)).collect::<Result<_, _>>()?;
        let last_key = shown.last().map(|(key, _)| key.to_vec());
        let remaining = objects.len().saturating_sub(limit) as u64;
        Ok(Listed { items, revision: at, remaining, last_key })
    }

    /// Waits until `revision` is there, or for `limit`.
    pub(super) async fn wait_for(&self, revision: u64, limit: Duration) -> Result<(), StoreError> {
        let mut changed = self.revision.subscribe();
        self.leading().map(drop)?;
        let arrived = changed.wait_for(|current| *current >= revision || *current == 0);
        let _ = tokio::time::timeout(limit, arrived).await;
        let current = self.leading()?.revision;
        if current >= revision {
            return Ok(());
        }
        Err(StoreError::Future { asked: revision, current })
    }

    pub(super) fn create(&self, key: &Key, object: &Value) -> Result<Stored, StoreError> {
        let key = key.bytes();
        let mut inner = self.leading()?;
        if inner.objects.contains_key(key.as_slice()) {
            return Err(StoreError::Exists);
        }
        let revision = inner.put(key, Stored::bytes(object)?);
        self.announce(inner);
        Ok(Stored::new(object.clone(), revision))
    }

    pub(super) fn update(
        &self,
        key: &Key,
        revision: u64,
        object: &Value,
    ) -> Result<Stored, StoreError> {
        let key = key.bytes();
        let mut inner = self.leading()?;
        inner.expect(&key, revision)?;
        let revision = inner.put(key, Stored::bytes(object)?);
        self.announce(inner);
        Ok(Stored::new(object.clone(), revision))
    }

    pub(super) fn delete(&self, key: &Key, revision: u64) -> Result<u64, StoreError> {
        let key = key.bytes();
        let mut inner = self.leading()?;
        inner.expect(&key, revision)?;
        let revision = inner.remove(&key);
        self.announce(inner);
        Ok(revision)
    }

    /// Notes that the object is renewed, which no watch is told. Returns how long ago it was renewed last.
    pub(super) fn renew(&self, key: &Key) -> Result<Option<Duration>, StoreError> {
        let key = key.bytes();
        let mut inner = self.leading()?;
        let Some((key, _)) = inner.objects.get_key_value(key.as_slice()) else {
            return Err(StoreError::NotFound);
        };
        let (key, now) = (key.clone(), Instant::now());
        let before = inner.renewals.insert(key, now);
        Ok(before.map(|at| now - at))
    }

    /// When the object was last renewed or written; `None` where this server does not lead.
    pub(super) fn last_heard(&self, key: &Key) -> Option<Instant> {
        let (key, inner) = (key.bytes(), self.inner.lock());
        let written = inner.objects.get(key.as_slice()).map(|(_, at)| *at);
        written.max(inner.renewals.get(key.as_slice()).copied())
    }

    pub(super) fn watch(
        self: &Arc<Self>,
        scope: &Scope,
        revision: u64,
    ) -> Result<StoreWatch, StoreError> {
        let inner = self.leading()?;
        inner.check_readable(revision)?;
        drop(inner);
        let feed = VolatileWatch {
            tier: Arc::clone(self),
            changed: self.revision.subscribe(),
            range: (scope.start(), scope.end()),
            after: revision,
        };
        Ok(StoreWatch::volatile(feed, Arc::clone(&self.changes)))
    }

    fn leading(&self) -> Result<parking_lot::MutexGuard<'_, Inner>, StoreError> {
        let inner = self.inner.lock();
        if inner.revision == 0 { Err(StoreError::NotLeader) } else { Ok(inner) }
    }

    fn announce(&self, inner: parking_lot::MutexGuard<'_, Inner>) {
        let revision = inner.revision;
        drop(inner);
        self.revision.send_replace(revision);
    }

    /// Changes in `range` after `after`, and the revision they reach to.
    fn changes(
        &self,
        range: &(Vec<u8>, Vec<u8>),
        after: u64,
    ) -> Result<(Vec<Event>, u64), StoreError> {
        let inner = self.inner.lock();
        if inner.revision == 0 || after < inner.oldest {
            return Err(StoreError::Compacted { asked: after, oldest: inner.oldest });
        }
        let from = inner.history.partition_point(|event| event.revision <= after);
        let is_inside =
            |event: &&Event| range.0.as_slice() <= &event.key[..] && event.key[..] < range.1[..];
        Ok((inner.history.range(from..).filter(is_inside).cloned().collect(), inner.revision))
    }
}

impl Inner {
    fn check_readable(&self, at: u64) -> Result<(), StoreError> {
        if at < self.oldest {
            return Err(StoreError::Compacted { asked: at, oldest: self.oldest });
        }
        if at > self.revision {
            return Err(StoreError::Future { asked: at, current: self.revision });
        }
        Ok(())
    }

    /// The objects from `start` up to `end` as they were at a revision that the history reaches.
    fn at(
        &self,
        at: u64,
        start: Vec<u8>,
        end: Vec<u8>,
    ) -> Result<BTreeMap<Bytes, Entry>, StoreError> {
        self.check_readable(at)?;
        if start >= end {
            return Ok(BTreeMap::new());
        }
        let range = (Bound::Included(start.as_slice()), Bound::Excluded(end.as_slice()));
        let now = self.objects.range::<[u8], _>(range);
        let mut objects: BTreeMap<Bytes, Entry> =
            now.map(|(_, (entry, _))| (entry.key.clone(), entry.clone())).collect();
        // What happened since is undone, the newest first.
        for event in self.history.iter().rev().take_while(|event| event.revision > at) {
            if event.key < start || event.key >= end {
                continue;
            }
            match &event.previous {
                Some(previous) => objects.insert(event.key.clone(), previous.clone()),
                None => objects.remove(&event.key),
            };
        }
        Ok(objects)
    }

    fn expect(&self, key: &[u8], revision: u64) -> Result<(), StoreError> {
        match self.objects.get(key) {
            None => Err(StoreError::NotFound),
            Some((entry, _)) if entry.mod_revision != revision => {
                Err(StoreError::Conflict { current: entry.mod_revision })
            }
            Some(_) => Ok(()),
        }
    }

    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) -> u64 {
        self.evict();
        self.revision += 1;
        let revision = self.revision;
        // Once for all that hold them, and as large as they are.
        let key = Bytes::from(key.into_boxed_slice());
        let value = Bytes::from(value.into_boxed_slice());
        let previous = self.objects.get(&key).map(|(entry, _)| entry.clone());
        let entry = Entry {
            key: key.clone(),
            value,
            create_revision: previous.as_ref().map_or(revision, |entry| entry.create_revision),
            mod_revision: revision,
        };
        if let Some(previous) = &previous {
            self.by_revision.remove(&previous.mod_revision);
        }
        self.by_revision.insert(revision, key.clone());
        self.record(entry.key.clone(), Some(entry.clone()), previous);
        self.objects.insert(key, (entry, Instant::now()));
        revision
    }

    fn remove(&mut self, key: &[u8]) -> u64 {
        self.revision += 1;
        self.renewals.remove(key);
        if let Some((entry, _)) = self.objects.remove(key) {
            self.by_revision.remove(&entry.mod_revision);
            self.record(entry.key.clone(), None, Some(entry));
        }
        self.revision
    }

    fn record(&mut self, key: Bytes, entry: Option<Entry>, previous: Option<Entry>) {
        self.history.push_back(Event { revision: self.revision, key, entry, previous });
        if self.history.len() > HISTORY_MAX
            && let Some(forgotten) = self.history.pop_front()
        {
            self.oldest = forgotten.revision;
        }
    }

    /// Makes room for one more, and drops what is too old.
    fn evict(&mut self) {
        while let Some((_, key)) = self.by_revision.first_key_value() {
            let is_old = self.objects.get(key).is_none_or(|(_, at)| at.elapsed() > AGE_MAX);
            if !is_old && self.objects.len() < OBJECTS_MAX {
                return;
            }
            let key = key.clone();
            self.remove(&key);
        }
    }
}

/// Follows the changes in a range.
#[derive(Debug)]
pub(super) struct VolatileWatch {
    tier: Arc<Volatile>,
    changed: watch::Receiver<u64>,
    range: (Vec<u8>, Vec<u8>),
    after: u64,
}

impl VolatileWatch {
    /// Waits for changes. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<(Vec<Event>, u64), StoreError> {
        loop {
            self.changed.borrow_and_update();
            let (events, revision) = self.tier.changes(&self.range, self.after)?;
            let is_progress = revision > self.after;
            self.after = revision;
            if !events.is_empty() || is_progress {
                return Ok((events, revision));
            }
            if self.changed.changed().await.is_err() {
                return Err(StoreError::NotLeader);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api;

    fn event(name: &str) -> Key {
        Key::new(api::find("", "v1", "events").unwrap(), Some("default"), name)
    }

    #[tokio::test]
    async fn a_watch_sees_every_change_once_and_ends_with_the_leadership() {
        let tier = Arc::new(Volatile::default());
        assert!(matches!(tier.get(&event("a")), Err(StoreError::NotLeader)));
        tier.begin(3);
        let scope = Scope::new(event("a").resource, Some("default"));
        let mut watch = tier.watch(&scope, tier.revision()).unwrap();
        let object = json!({"metadata": {"name": "a"}});
        let made = tier.create(&event("a"), &object).unwrap();
        assert!(matches!(tier.create(&event("a"), &object), Err(StoreError::Exists)));
        assert!(matches!(
            tier.update(&event("a"), made.revision - 1, &object),
            Err(StoreError::Conflict { .. })
        ));
        tier.delete(&event("a"), made.revision).unwrap();
        let batch = watch.next().await.unwrap();
        let seen: Vec<_> = batch.changes.iter().map(|c| c.current.is_some()).collect();
        assert_eq!(seen, [true, false]);
        assert_eq!(batch.revision, made.revision + 1);
        tier.end();
        assert!(watch.next().await.is_err());
    }

    #[tokio::test]
    async fn a_new_leader_starts_above_every_earlier_revision() {
        let tier = Arc::new(Volatile::default());
        tier.begin(1);
        tier.create(&event("a"), &json!({"metadata": {}})).unwrap();
        let before = tier.revision();
        tier.end();
        tier.begin(2);
        assert!(tier.revision() > before);
        let scope = Scope::new(event("a").resource, None);
        assert!(matches!(tier.watch(&scope, before), Err(StoreError::Compacted { .. })));
    }

    fn names(listed: &Listed) -> Vec<&str> {
        listed.items.iter().map(|stored| api::meta::name(&stored.object)).collect()
    }

    #[tokio::test]
    async fn a_place_outside_the_collection_neither_panics_nor_leaves_it() {
        let tier = Arc::new(Volatile::default());
        tier.begin(1);
        for namespace in ["a", "b", "c"] {
            let key = Key::new(event("x").resource, Some(namespace), "x");
            tier.create(&key, &json!({"metadata": {"name": namespace}})).unwrap();
        }
        let scope = Scope::new(event("x").resource, Some("b"));
        let page = |after: &[u8]| Page { after: Some(after.to_vec()), ..Page::default() };
        for (after, wanted) in [
            (&b""[..], vec!["b"]),
            (b"/registry/core/events/a/", vec!["b"]),
            (b"/registry/core/events/b/x", vec![]),
            (b"/registry/core/events/b/\xff", vec![]),
            (b"/registry/core/events/c/", vec![]),
            (b"\xff", vec![]),
        ] {
            assert_eq!(names(&tier.list(&scope, &page(after)).unwrap()), wanted, "{after:?}");
        }
    }

    #[tokio::test]
    async fn a_list_is_paged_at_one_revision() {
        let tier = Arc::new(Volatile::default());
        tier.begin(1);
        let object = |name: &str| json!({"metadata": {"name": name}});
        for name in ["a", "b", "c", "d"] {
            tier.create(&event(name), &object(name)).unwrap();
        }
        let scope = Scope::new(event("a").resource, Some("default"));
        let first = tier.list(&scope, &Page { limit: 2, ..Page::default() }).unwrap();
        assert_eq!((names(&first), first.remaining), (vec!["a", "b"], 2));
        tier.create(&event("bb"), &object("bb")).unwrap();
        tier.delete(&event("d"), first.revision).unwrap();
        let rest = Page { after: first.last_key, at: Some(first.revision), ..Page::default() };
        let rest = tier.list(&scope, &rest).unwrap();
        assert_eq!((names(&rest), rest.revision), (vec!["c", "d"], first.revision));
        let at = |at: u64| tier.list(&scope, &Page { at: Some(at), ..Page::default() });
        assert!(matches!(at(1), Err(StoreError::Compacted { .. })));
        assert!(matches!(at(u64::MAX), Err(StoreError::Future { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn a_revision_to_come_is_waited_for_but_not_for_ever() {
        let tier = Arc::new(Volatile::default());
        tier.begin(1);
        let next = tier.revision() + 1;
        let scope = Scope::new(event("a").resource, None);
        assert!(matches!(tier.watch(&scope, next), Err(StoreError::Future { .. })));
        let patience = Duration::from_secs(3);
        let late = tier.wait_for(next, patience).await;
        assert!(matches!(late, Err(StoreError::Future { .. })), "{late:?}");
        let write = async { tier.create(&event("a"), &json!({"metadata": {}})).unwrap() };
        let (arrived, _) = tokio::join!(tier.wait_for(next, patience), write);
        arrived.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn old_objects_make_room() {
        let tier = Arc::new(Volatile::default());
        tier.begin(1);
        tier.create(&event("old"), &json!({"metadata": {}})).unwrap();
        tokio::time::advance(AGE_MAX + Duration::from_secs(1)).await;
        tier.create(&event("young"), &json!({"metadata": {}})).unwrap();
        assert!(tier.get(&event("old")).unwrap().is_none());
        assert!(tier.get(&event("young")).unwrap().is_some());
    }
}
