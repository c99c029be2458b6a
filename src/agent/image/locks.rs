//! One lock per name, for as long as somebody holds or wants it.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{Mutex as Turn, OwnedMutexGuard};

/// Locks by name: those of different names do not know each other.
#[derive(Debug, Default)]
pub(super) struct Locks(Mutex<BTreeMap<String, Weak<Turn<()>>>>);

impl Locks {
    /// Waits for the turn at `name`. Held across awaits on purpose: whoever waits wants the same
    /// work done, and finds it done.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(super) async fn lock(&self, name: &str) -> OwnedMutexGuard<()> {
        self.turn(name).lock_owned().await
    }

    /// Takes the turn at `name` if nobody has it.
    pub(super) fn try_lock(&self, name: &str) -> Option<OwnedMutexGuard<()>> {
        self.turn(name).try_lock_owned().ok()
    }

    fn turn(&self, name: &str) -> Arc<Turn<()>> {
        let mut turns = self.0.lock();
        if let Some(turn) = turns.get(name).and_then(Weak::upgrade) {
            return turn;
        }
        // The number of names is bounded by the number of pods that wait, and swept here.
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(Turn::new(()));
        turns.insert(name.to_owned(), Arc::downgrade(&turn));
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_name_is_one_lock_and_a_free_one_is_forgotten() {
        let locks = Locks::default();
        let held = locks.lock("a").await;
        assert!(locks.try_lock("a").is_none());
        assert!(locks.try_lock("b").is_some());
        drop(held);
        drop(locks.lock("c").await);
        assert!(locks.try_lock("d").is_some());
        assert_eq!(locks.0.lock().len(), 1);
    }
}
