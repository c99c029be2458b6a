//! Changes of a collection, of either tier.

use std::sync::Arc;

use edgeorc_raft::Watch;

use crate::store::StoreError;
use crate::store::changes::{Changes, Tier};
use crate::store::object::Change;
use crate::store::volatile::VolatileWatch;

/// Follows a collection. Every change comes once and in order.
#[derive(Debug)]
pub struct StoreWatch {
    feed: Feed,
    /// Shared by all watches.
    changes: Arc<Changes>,
}

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
    pub(super) fn durable(watch: Watch, changes: Arc<Changes>) -> Self {
        Self { feed: Feed::Durable(Box::new(watch)), changes }
    }

    pub(super) fn volatile(watch: VolatileWatch, changes: Arc<Changes>) -> Self {
        Self { feed: Feed::Volatile(watch), changes }
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
        self.next_of(&|_| true).await
    }

    /// As [`Self::next`], without those changes whose revisions are not `wanted`: they are not even read.
    ///
    /// # Cancel safety
    ///
    /// As [`Self::next`].
    ///
    /// # Errors
    ///
    /// As [`Self::next`].
    pub async fn next_of(
        &mut self,
        wanted: &(dyn Fn(u64) -> bool + Sync),
    ) -> Result<Batch, StoreError> {
        let (tier, events, revision) = match &mut self.feed {
            Feed::Durable(watch) => {
                let batch = watch.next().await?;
                (Tier::Durable, batch.events, batch.revision)
            }
            Feed::Volatile(watch) => {
                let (events, revision) = watch.next().await?;
                (Tier::Volatile, events, revision)
            }
        };
        let events = events.iter().filter(|event| wanted(event.revision));
        let changes = events.map(|event| self.changes.read(tier, event));
        let changes = changes.collect::<Result<_, _>>()?;
        Ok(Batch { changes, revision })
    }
}
