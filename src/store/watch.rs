//! Changes of a collection, of either tier.

use std::sync::Arc;

use edgeorc_raft::{Entry, Event, Watch};
use serde_json::Value;

use crate::store::StoreError;
use crate::store::object::{Change, Stored};
use crate::store::volatile::VolatileWatch;

/// Follows a collection. Every change comes once and in order.
#[derive(Debug)]
pub struct StoreWatch(Feed);

#[derive(Debug)]
enum Feed {
    Durable(Box<Watch>),
    Volatile(VolatileWatch),
}

/// Changes, and how far they reach.
#[derive(Debug)]
pub struct Batch {
    /// In revision order; empty when only the revision went on.
    pub changes: Vec<Change>,
    /// Everything up to here has been delivered.
    pub revision: u64,
}

impl StoreWatch {
    pub(super) fn durable(watch: Watch) -> Self {
        Self(Feed::Durable(Box::new(watch)))
    }

    pub(super) fn volatile(watch: VolatileWatch) -> Self {
        Self(Feed::Volatile(watch))
    }

    /// Waits for changes.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a dropped call loses nothing.
    ///
    /// # Errors
    ///
    /// [`StoreError::Compacted`] when this watcher fell too far behind: list again.
    pub async fn next(&mut self) -> Result<Batch, StoreError> {
        let (events, revision) = match &mut self.0 {
            Feed::Durable(watch) => {
                let batch = watch.next().await?;
                (batch.events, batch.revision)
            }
            Feed::Volatile(watch) => watch.next().await?,
        };
        let changes = events.iter().map(change).collect::<Result<_, _>>()?;
        Ok(Batch { changes, revision })
    }
}

fn change(event: &Event) -> Result<Change, StoreError> {
    let read = |entry: &Option<Entry>| -> Result<Option<Arc<Value>>, StoreError> {
        let Some(entry) = entry else { return Ok(None) };
        let stored = Stored::read(entry)?;
        // Kubernetes shows a deleted object with the revision of its deletion.
        Ok(Some(Arc::new(Stored::new(stored.object, event.revision).object)))
    };
    Ok(Change {
        revision: event.revision,
        current: read(&event.entry)?,
        previous: read(&event.previous)?,
    })
}
