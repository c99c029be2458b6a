//! A stream of changes.

use crate::{Event, ReadError, Revision};

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
pub struct Watch {}

impl Watch {
    /// The next batch; waits for one.
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
        Err(ReadError::Stopped(String::new()))
    }
}
