//! Places for transfers and questions, so many for each registry.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::agent::image::distribution::Fault;

/// Places by registry: what is slow keeps nobody waiting but those who want the same registry.
#[derive(Debug)]
pub(super) struct Places {
    of_each: usize,
    taken: Mutex<BTreeMap<String, Weak<Semaphore>>>,
}

impl Places {
    /// So many for each registry.
    pub(super) fn new(of_each: usize) -> Self {
        Self { of_each, taken: Mutex::default() }
    }

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
        let mut all = self.taken.lock();
        if let Some(places) = all.get(registry).and_then(Weak::upgrade) {
            return places;
        }
        // Their number is bounded by the pods that pull, and they are swept here.
        all.retain(|_, places| places.strong_count() > 0);
        let places = Arc::new(Semaphore::new(self.of_each));
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
        let places = Places::new(3);
        let mut slow = Vec::new();
        for _ in 0..3 {
            slow.push(places.take("slow.example").await.unwrap());
        }
        assert!(places.take("slow.example").now_or_never().is_none());
        assert!(places.take("registry.edgeorc.local").now_or_never().is_some());
        slow.pop();
        assert!(places.take("slow.example").now_or_never().is_some());
        slow.clear();
        drop(places.of("other.example"));
        drop(places.of("another.example"));
        assert_eq!(places.taken.lock().len(), 1);
    }
}
