//! The newest changes as objects: an event is parsed once, however many watchers it has.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use edgeorc_raft::{Entry, Event};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::store::object::{Change, Shown, Stored};
use crate::store::{StoreError, packed};

/// Most changes kept. What was read first goes first, whatever its revision: those that are behind share
/// what one of them has read. A watcher that is further behind parses for itself.
const CHANGES_MAX: usize = 4096;
/// Most bytes of JSON behind them; parsed they take about six times that. The more watch, the further
/// behind some of them are on a busy server, and if each parses for itself they never catch up.
const BYTES_MAX: usize = 8 * 1024 * 1024;
/// What of these there is without watchers, and for each of them.
const BYTES_MIN: usize = 512 * 1024;
const BYTES_PER_WATCH: usize = 4 * 1024;
/// How long a change is kept: watchers are woken together, so those that share it come soon.
const KEPT_MAX: Duration = Duration::from_secs(1);

/// Revision and key of a change.
type Place = (u64, Bytes);

/// Changes that were read lately, of each tier for itself: heartbeats come so often that they would leave
/// no room for what all others watch. What is old in one tier is let go when something happens in the
/// other.
#[derive(Debug, Default)]
pub(super) struct Changes {
    durable: Mutex<Kept>,
    volatile: Mutex<Kept>,
}

/// Where a change was made.
#[derive(Debug, Clone, Copy)]
pub(super) enum Tier {
    /// In the log of Raft.
    Durable,
    /// In the leader's memory.
    Volatile,
}

#[derive(Debug, Default)]
struct Kept {
    changes: BTreeMap<Place, (Slot, usize)>,
    /// In the order they were read.
    order: VecDeque<Place>,
    bytes: usize,
    /// When the newest came.
    latest: Option<Instant>,
}

impl Kept {
    fn forget_if_old(&mut self) {
        if self.latest.is_some_and(|latest| latest.elapsed() >= KEPT_MAX) {
            *self = Self::default();
        }
    }

    fn add(&mut self, place: Place, event: &Event, bytes_max: usize) -> Slot {
        let slot = Slot::default();
        let size = bytes(event.entry.as_ref()).saturating_add(bytes(event.previous.as_ref()));
        self.latest = Some(Instant::now());
        self.bytes = self.bytes.saturating_add(size);
        self.order.push_back(place.clone());
        self.changes.insert(place, (Arc::clone(&slot), size));
        while self.changes.len() > CHANGES_MAX || self.bytes > bytes_max {
            let Some(oldest) = self.order.pop_front() else { break };
            let size = self.changes.remove(&oldest).map_or(0, |(_, size)| size);
            self.bytes = self.bytes.saturating_sub(size);
        }
        slot
    }
}

/// Filled by whoever comes first; the others wait for it instead of parsing too.
type Slot = Arc<OnceLock<Result<Change, String>>>;

impl Changes {
    /// The change that `event`, of `tier`, tells of.
    pub(super) fn read(self: &Arc<Self>, tier: Tier, event: &Event) -> Result<Change, StoreError> {
        // Each watch has one.
        let slot = self.slot(tier, event, bytes_max(Arc::strong_count(self)));
        let read = slot.get_or_init(|| parse(event).map_err(|error| error.to_string()));
        read.clone().map_err(StoreError::Damaged)
    }

    fn slot(&self, tier: Tier, event: &Event, bytes_max: usize) -> Slot {
        let (ours, other) = match tier {
            Tier::Durable => (&self.durable, &self.volatile),
            Tier::Volatile => (&self.volatile, &self.durable),
        };
        let place = (event.revision, event.key.clone());
        let mut kept = ours.lock();
        if let Some((slot, _)) = kept.changes.get(&place) {
            return Arc::clone(slot);
        }
        kept.forget_if_old();
        let slot = kept.add(place, event, bytes_max);
        drop(kept);
        other.lock().forget_if_old();
        slot
    }
}

/// Most bytes of JSON that are kept for so many watches.
fn bytes_max(watches: usize) -> usize {
    BYTES_MIN.saturating_add(watches.saturating_mul(BYTES_PER_WATCH)).min(BYTES_MAX)
}

fn bytes(entry: Option<&Entry>) -> usize {
    entry.map_or(0, |entry| packed::json_bytes(&entry.value))
}

fn parse(event: &Event) -> Result<Change, StoreError> {
    let read = |entry: &Option<Entry>| -> Result<Option<Arc<Shown>>, StoreError> {
        let Some(entry) = entry else { return Ok(None) };
        let stored = Stored::read(entry)?;
        // Kubernetes shows a deleted object with the revision of its deletion.
        let object = Stored::new(stored.object, event.revision).object;
        Ok(Some(Arc::new(Shown::new(object))))
    };
    Ok(Change {
        revision: event.revision,
        current: read(&event.entry)?,
        previous: read(&event.previous)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(revision: u64, value: &str) -> Event {
        let key = Bytes::from_static(b"/k");
        let entry = Entry {
            key: key.clone(),
            value: Bytes::copy_from_slice(value.as_bytes()),
            create_revision: 1,
            mod_revision: revision,
        };
        Event { revision, key, entry: Some(entry), previous: None }
    }

    #[test]
    fn two_watchers_share_one_object() {
        let changes = Arc::<Changes>::default();
        let event = event(7, r#"{"metadata":{"name":"a"}}"#);
        let [one, two] =
            [0; 2].map(|_| changes.read(Tier::Durable, &event).unwrap().current.unwrap());
        assert!(Arc::ptr_eq(&one, &two));
        assert_eq!(one.object()["metadata"]["resourceVersion"], "7");
        assert!(Arc::ptr_eq(&one, &two) && one.json().as_ptr() == two.json().as_ptr());
    }

    #[test]
    fn no_more_than_the_limits_are_kept() {
        let changes = Arc::<Changes>::default();
        for revision in 0..2 * CHANGES_MAX as u64 {
            changes.read(Tier::Durable, &event(revision, "{}")).unwrap();
        }
        assert_eq!(changes.durable.lock().changes.len(), CHANGES_MAX);
        let large = format!("\"{}\"", "x".repeat(bytes_max(1)));
        changes.read(Tier::Durable, &event(u64::MAX, &large)).unwrap();
        let kept = changes.durable.lock();
        assert_eq!((kept.changes.len(), kept.bytes), (0, 0));
    }

    #[test]
    fn who_is_behind_shares_with_others_who_are() {
        let changes = Arc::<Changes>::default();
        let large = format!("\"{}\"", "x".repeat(BYTES_MIN / 4));
        for revision in 10..20 {
            changes.read(Tier::Durable, &event(revision, &large)).unwrap();
        }
        let behind = event(1, r#"{"metadata":{"name":"a"}}"#);
        let [one, two] =
            [0; 2].map(|_| changes.read(Tier::Durable, &behind).unwrap().current.unwrap());
        assert!(Arc::ptr_eq(&one, &two));
    }

    #[tokio::test(start_paused = true)]
    async fn heartbeats_leave_the_others_alone_while_these_are_new() {
        let changes = Arc::<Changes>::default();
        let read = |tier, revision| changes.read(tier, &event(revision, "{}")).unwrap();
        read(Tier::Durable, 1);
        for revision in 1000..1000 + 2 * CHANGES_MAX as u64 {
            read(Tier::Volatile, revision);
        }
        assert_eq!(changes.durable.lock().changes.len(), 1);
        tokio::time::advance(KEPT_MAX).await;
        read(Tier::Volatile, 1);
        assert_eq!(changes.durable.lock().changes.len(), 0);
    }

    #[test]
    fn with_many_watches_more_is_kept_for_those_that_are_behind() {
        let changes = Arc::<Changes>::default();
        let large = format!("\"{}\"", "x".repeat(BYTES_MIN));
        let kept = |watches: usize| {
            let watches = vec![Arc::clone(&changes); watches];
            for revision in 0..4 {
                changes
                    .read(Tier::Durable, &event(watches.len() as u64 * 10 + revision, &large))
                    .unwrap();
            }
            changes.durable.lock().changes.len()
        };
        assert_eq!([kept(0), kept(BYTES_MIN / BYTES_PER_WATCH * 2)], [1, 3]);
        assert_eq!(bytes_max(usize::MAX), BYTES_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_old_is_let_go() {
        let changes = Arc::<Changes>::default();
        changes.read(Tier::Durable, &event(1, "{}")).unwrap();
        changes.read(Tier::Durable, &event(2, "{}")).unwrap();
        assert_eq!(changes.durable.lock().changes.len(), 2, "somebody may still ask for the first");
        tokio::time::advance(KEPT_MAX).await;
        changes.read(Tier::Durable, &event(3, "{}")).unwrap();
        let kept = changes.durable.lock();
        assert_eq!((kept.changes.len(), kept.bytes), (1, 2));
    }

    #[test]
    fn a_damaged_object_is_told_to_everyone() {
        let changes = Arc::<Changes>::default();
        for _ in 0..2 {
            let read = changes.read(Tier::Durable, &event(1, "{"));
            assert!(matches!(read, Err(StoreError::Damaged(_))), "{read:?}");
        }
    }
}
