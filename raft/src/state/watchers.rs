//! Who is woken by which change: waking every watch at every commit would cost a fleet's servers more
//! than the commit itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::Revision;
use crate::state::mvcc::is_within;

/// How often watches hear of changes outside their range, at most: they have to know how far they
/// are.
pub(crate) const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// First key of a range, and the first one behind it; empty is open.
type Range = (Vec<u8>, Vec<u8>);

/// All watches, by what they follow.
#[derive(Debug, Default)]
pub(crate) struct Watchers {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    groups: BTreeMap<Range, Weak<Group>>,
    /// When all of them were woken last.
    told_at: Option<Instant>,
}

/// The watches of one range.
#[derive(Debug)]
pub(crate) struct Group {
    range: Range,
    /// The newest revision that they were told.
    revision: watch::Sender<Revision>,
}

impl Group {
    /// Hears of every change in the range, and of some others.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }

    fn has(&self, key: &[u8]) -> bool {
        is_within(key, &self.range.0, &self.range.1)
    }
}

impl Watchers {
    /// The group of `range`, woken until it is dropped.
    pub(crate) fn group(&self, range: Range) -> Arc<Group> {
        let mut inner = self.inner.lock();
        if let Some(group) = inner.groups.get(&range).and_then(Weak::upgrade) {
            return group;
        }
        inner.groups.retain(|_, group| group.strong_count() > 0);
        let made = Arc::new(Group { range: range.clone(), revision: watch::Sender::new(0) });
        inner.groups.insert(range, Arc::downgrade(&made));
        made
    }

    /// Wakes whoever follows one of `keys`, which have changed up to `revision`.
    pub(crate) fn wake<'a>(
        &self,
        keys: impl Iterator<Item = &'a [u8]> + Clone,
        revision: Revision,
    ) {
        let mut inner = self.inner.lock();
        let is_due = inner.told_at.is_none_or(|at| at.elapsed() >= PROGRESS_EVERY);
        if is_due {
            inner.told_at = Some(Instant::now());
        }
        for group in inner.groups.values().filter_map(Weak::upgrade) {
            if is_due || keys.clone().any(|key| group.has(key)) {
                group.revision.send_replace(revision);
            }
        }
    }

    /// Wakes all of them: anything may have changed.
    pub(crate) fn wake_all(&self, revision: Revision) {
        for group in self.inner.lock().groups.values().filter_map(Weak::upgrade) {
            group.revision.send_replace(revision);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wake(watchers: &Watchers, keys: &[&str], revision: Revision) {
        watchers.wake(keys.iter().map(|key| key.as_bytes()), revision);
    }

    #[tokio::test(start_paused = true)]
    async fn only_those_are_woken_whose_range_has_changed_and_now_and_then_all() {
        let watchers = Watchers::default();
        let range = |start: &str, end: &str| (start.as_bytes().to_vec(), end.as_bytes().to_vec());
        let (pods, nodes) = (watchers.group(range("p", "q")), watchers.group(range("n", "o")));
        let (mut on_pods, mut on_nodes) = (pods.subscribe(), nodes.subscribe());
        let mut seen = || {
            let seen = (on_pods.has_changed().unwrap(), on_nodes.has_changed().unwrap());
            on_pods.mark_unchanged();
            on_nodes.mark_unchanged();
            seen
        };
        wake(&watchers, &["x"], 1);
        assert_eq!(seen(), (true, true), "nobody was told anything yet");
        wake(&watchers, &["x", "pa"], 2);
        assert_eq!(seen(), (true, false));
        wake(&watchers, &["q", "o"], 3);
        assert_eq!(seen(), (false, false), "the end is not part of a range");
        tokio::time::advance(PROGRESS_EVERY).await;
        wake(&watchers, &["n"], 4);
        assert_eq!(seen(), (true, true));
        watchers.wake_all(5);
        assert_eq!(seen(), (true, true));
        assert!(Arc::ptr_eq(&watchers.group(range("p", "q")), &pods));
        drop(nodes);
        drop(watchers.group(range("a", "b")));
        assert_eq!(watchers.inner.lock().groups.len(), 2, "what is gone is forgotten");
    }
}
