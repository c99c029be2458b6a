//! The newest changes as objects: an event is parsed once, however many watchers it has.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use edgeorc_raft::{Entry, Event};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::store::object::{Change, Shown, Stored};
use crate::store::{StoreError, packed};

/// Most changes kept; the oldest goes first. A watcher that is further behind parses for itself.
const CHANGES_MAX: usize = 512;
/// Most bytes of JSON behind them; parsed they take about six times that.
const BYTES_MAX: usize = 512 * 1024;
/// How long a change is kept: watchers are woken together, so those that share it come soon.
const KEPT_MAX: Duration = Duration::from_secs(1);

/// Revision and key of a change.
type Place = (u64, Bytes);

/// Changes of either tier that were read lately; no key is in both.
#[derive(Debug, Default)]
pub(super) struct Changes(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    changes: BTreeMap<Place, (Slot, usize)>,
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
}

/// Filled by whoever comes first; the others wait for it instead of parsing too.
type Slot = Arc<OnceLock<Result<Change, String>>>;

impl Changes {
    /// The change that `event` tells of.
    pub(super) fn read(&self, event: &Event) -> Result<Change, StoreError> {
        let slot = self.slot(event);
        let read = slot.get_or_init(|| parse(event).map_err(|error| error.to_string()));
        read.clone().map_err(StoreError::Damaged)
    }

    fn slot(&self, event: &Event) -> Slot {
        let place = (event.revision, event.key.clone());
        let mut kept = self.0.lock();
        if let Some((slot, _)) = kept.changes.get(&place) {
            return Arc::clone(slot);
        }
        kept.forget_if_old();
        kept.latest = Some(Instant::now());
        let slot = Slot::default();
        let size = bytes(event.entry.as_ref()).saturating_add(bytes(event.previous.as_ref()));
        kept.bytes = kept.bytes.saturating_add(size);
        kept.changes.insert(place, (Arc::clone(&slot), size));
        while (kept.changes.len() > CHANGES_MAX || kept.bytes > BYTES_MAX)
            && let Some((_, (_, size))) = kept.changes.pop_first()
        {
            kept.bytes = kept.bytes.saturating_sub(size);
        }
        slot
    }
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
        let changes = Changes::default();
        let event = event(7, r#"{"metadata":{"name":"a"}}"#);
        let [one, two] = [0; 2].map(|_| changes.read(&event).unwrap().current.unwrap());
        assert!(Arc::ptr_eq(&one, &two));
        assert_eq!(one.object()["metadata"]["resourceVersion"], "7");
        assert!(Arc::ptr_eq(&one, &two) && one.json().as_ptr() == two.json().as_ptr());
    }

    #[test]
    fn no_more_than_the_limits_are_kept() {
        let changes = Changes::default();
        for revision in 0..2 * CHANGES_MAX as u64 {
            changes.read(&event(revision, "{}")).unwrap();
        }
        assert_eq!(changes.0.lock().changes.len(), CHANGES_MAX);
        let large = format!("\"{}\"", "x".repeat(BYTES_MAX));
        changes.read(&event(u64::MAX, &large)).unwrap();
        let kept = changes.0.lock();
        assert_eq!((kept.changes.len(), kept.bytes), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_old_is_let_go() {
        let changes = Changes::default();
        changes.read(&event(1, "{}")).unwrap();
        changes.read(&event(2, "{}")).unwrap();
        assert_eq!(changes.0.lock().changes.len(), 2, "somebody may still ask for the first");
        tokio::time::advance(KEPT_MAX).await;
        changes.read(&event(3, "{}")).unwrap();
        let kept = changes.0.lock();
        assert_eq!((kept.changes.len(), kept.bytes), (1, 2));
    }

    #[test]
    fn a_damaged_object_is_told_to_everyone() {
        let changes = Changes::default();
        for _ in 0..2 {
            let read = changes.read(&event(1, "{"));
            assert!(matches!(read, Err(StoreError::Damaged(_))), "{read:?}");
        }
    }
}
