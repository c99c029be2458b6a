//! Places for transfers, so many for each registry.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::agent::image::distribution::Fault;

/// Transfers from one registry at a time.
const PLACES_MAX: usize = 3;

/// Places by registry: what is slow keeps nobody waiting but those who want the same registry.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<BTreeMap<String, Weak<Semaphore>>>);

impl Places {
    /// Waits for a place at `registry`; first come, first served.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe; the turn is lost.
    pub(super) async fn take(&self, registry: &str) -> Result<OwnedSemaphorePermit, Fault> {
        let place = self.of(registry).acquire_owned().await;
        place.map_err(|_| Fault::unavailable("the agent is stopping"))
    }

    fn of(&self, registry: &str) -> Arc<Semaphore> {
        let mut all = self.0.lock();
        if let Some(places) = all.get(registry).and_then(Weak::upgrade) {
            return places;
        }
        // Their number is bounded by the pods that pull, and they are swept here.
        all.retain(|_, places| places.strong_count() > 0);
        let places = Arc::new(Semaphore::new(PLACES_MAX));
        all.insert(registry.to_owned(), Arc::downgrade(&places));
        places
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_registry_whose_places_are_taken_does_not_keep_others_waiting() {
        let places = Places::default();
        let mut slow = Vec::new();
        for _ in 0..PLACES_MAX {
            slow.push(places.take("slow.example").await.unwrap());
        }
        assert!(places.take("slow.example").now_or_never().is_none());
        assert!(places.take("registry.edgeorc.local").now_or_never().is_some());
        slow.pop();
        assert!(places.take("slow.example").now_or_never().is_some());
        slow.clear();
        drop(places.of("other.example"));
        drop(places.of("another.example"));
        assert_eq!(places.0.lock().len(), 1);
    }
}
