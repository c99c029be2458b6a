//! A stream of changes.
//!
//! A watch has no queue: it is a place in the history. It wakes when something in its range changes,
//! now and then when something else does, and takes what is new, so it misses and repeats nothing;
//! one that falls behind the kept history ends with [`ReadError::Compacted`].

use std::sync::Arc;

use tokio::sync::watch::Receiver;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::state::Shared;
use crate::state::watchers::{Group, PROGRESS_EVERY};
use crate::{Event, ReadError, Revision};

/// Events taken at once, give or take one revision.
const BATCH_EVENTS_MAX: usize = 512;

/// Changes at consecutive revisions, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchBatch {
    /// Changes of keys in the watched range; empty when only time (the revision) went on.
    pub events: Vec<Event>,
    /// Everything up to this revision has been delivered.
    pub revision: Revision,
}

/// Delivers every change in a key range exactly once, in revision order.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    /// Woken as long as this is held.
    _group: Arc<Group>,
    changed: Receiver<Revision>,
    ended: CancellationToken,
    start: Vec<u8>,
    end: Vec<u8>,
    /// Everything up to here was looked at.
    cursor: Revision,
    /// Everything up to here was told.
    told: Revision,
    told_at: Instant,
}

impl Watch {
    pub(crate) fn new(
        shared: Arc<Shared>,
        ended: CancellationToken,
        (start, end): (Vec<u8>, Vec<u8>),
        after: Revision,
    ) -> Result<Self, ReadError> {
        let group = shared.watchers.group((start.clone(), end.clone()));
        let changed = group.subscribe();
        // Refuses a revision that is gone or not here yet.
        shared.mvcc.read().events(&start, &end, after, 1)?;
        let told_at = Instant::now();
        Ok(Self {
            shared,
            _group: group,
            changed,
            ended,
            start,
            end,
            cursor: after,
            told: after,
            told_at,
        })
    }

    /// The next batch; waits for one. A batch without events tells progress only.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// [`ReadError::Compacted`] when this watcher was too slow: list again, then watch.
    /// [`ReadError::Stopped`] when the replica ended.
    pub async fn next(&mut self) -> Result<WatchBatch, ReadError> {
        loop {
            if self.ended.is_cancelled() {
                return Err(ReadError::Stopped("the replica has ended".to_owned()));
            }
            self.changed.mark_unchanged();
            let (events, upto) = {
                let mvcc = self.shared.mvcc.read();
                mvcc.events(&self.start, &self.end, self.cursor, BATCH_EVENTS_MAX)?
            };
            self.cursor = upto;
            let progress_at = self.told_at + PROGRESS_EVERY;
            let is_behind = self.cursor > self.told;
            if !events.is_empty() || (is_behind && Instant::now() >= progress_at) {
                self.told = self.cursor;
                self.told_at = Instant::now();
                return Ok(WatchBatch { events, revision: self.cursor });
            }
            tokio::select! {
                // The group is held: it does not end.
                _ = self.changed.changed() => {}
                () = self.ended.cancelled() => {}
                () = tokio::time::sleep_until(progress_at), if is_behind => {}
            }
        }
    }
}
