//! Who goes first when more guests want to run than there are threads.
//!
//! Each container has a clock of its own, which runs slower the higher its weight is (Kubernetes'
//! `requests.cpu`). A guest that sees a tick lets those go first whose clocks are behind its own,
//! as the kernel's fair scheduler does. Guests that never run until a tick are not part of it.
//!
//! # Invariants
//!
//! - A thread is never idle while a guest waits here: who waits has at least as many guests ahead
//!   of it as there are threads, and looks again every [`WAIT_STEP`].
//! - Idle time earns nothing: who comes back begins where the slowest of the others is.
//! - What was used while nobody else wanted it is no debt, or a server of many days would wait as
//!   long for a newcomer: who comes back is at most [`DEBT_NANOS_MAX`] ahead of the slowest.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

/// Weight of a container that requests no CPU time, and the lowest: in thousandths of a core.
const WEIGHT_MIN: u64 = 10;
/// CPU time that a container may owe the others when it comes back, in nanoseconds: two ticks. None
/// at all would let a guest that naps after each turn have more than its part.
const DEBT_NANOS_MAX: u64 = 20_000_000;
/// How long a guest that waits for others sleeps before it looks again.
pub(crate) const WAIT_STEP: Duration = Duration::from_millis(2);

/// The containers that compete for the guests' threads.
#[derive(Debug)]
pub(crate) struct Shares {
    threads: usize,
    contenders: Mutex<Vec<Weak<Share>>>,
}

/// One container's part.
#[derive(Debug)]
pub(crate) struct Share {
    weight: u64,
    /// CPU time used, in nanoseconds, times 1000, divided by the weight.
    clock: AtomicU64,
    /// Stores of the container that run or wait for a thread.
    wanting: AtomicUsize,
    is_contender: AtomicBool,
}

/// One store that wants to run, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Wanting(Arc<Share>);

impl Drop for Wanting {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Share {
    /// A container with this `requests.cpu`.
    pub(crate) fn new(millis: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            weight: millis.unwrap_or(WEIGHT_MIN).max(WEIGHT_MIN),
            clock: AtomicU64::new(0),
            wanting: AtomicUsize::new(0),
            is_contender: AtomicBool::new(false),
        })
    }

    /// One of its stores begins to run.
    pub(crate) fn enter(&self) {
        self.wanting.fetch_add(1, Ordering::Relaxed);
    }

    /// One of its stores has nothing to do any more.
    pub(crate) fn leave(&self) {
        self.wanting.fetch_sub(1, Ordering::Relaxed);
    }

    /// One of its stores wants to run until the guard is dropped.
    pub(crate) fn want(self: &Arc<Self>) -> Wanting {
        self.enter();
        Wanting(Arc::clone(self))
    }

    /// Counts CPU time.
    pub(crate) fn spend(&self, nanos: u64) {
        self.clock.fetch_add(nanos.saturating_mul(1000) / self.weight, Ordering::Relaxed);
    }

    /// Sets the clock to where a container begins that competes again, the slowest of the others
    /// being at `floor`.
    fn come_back(&self, floor: u64) {
        let ceiling = floor.saturating_add(DEBT_NANOS_MAX.saturating_mul(1000) / self.weight);
        let begin = |clock: u64| Some(clock.clamp(floor, ceiling));
        let _ = self.clock.fetch_update(Ordering::Relaxed, Ordering::Relaxed, begin);
    }

    fn clock(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }
}

impl Shares {
    /// For so many threads.
    pub(crate) fn new(threads: usize) -> Arc<Self> {
        Arc::new(Self { threads: threads.max(1), contenders: Mutex::default() })
    }

    /// Whether a store of `share`, which wants to run, has to let others go first.
    pub(crate) fn must_wait(&self, share: &Arc<Share>) -> bool {
        let mut contenders = self.contenders.lock();
        let mut floor = u64::MAX;
        let mut ahead = 0_usize;
        contenders.retain(|other| {
            let Some(other) = other.upgrade() else { return false };
            if Arc::ptr_eq(&other, share) {
                return true;
            }
            let wanting = other.wanting.load(Ordering::Relaxed);
            if wanting == 0 {
                other.is_contender.store(false, Ordering::Relaxed);
                return false;
            }
            floor = floor.min(other.clock());
            if other.clock() < share.clock() {
                ahead = ahead.saturating_add(wanting);
            }
            true
        });
        if !share.is_contender.swap(true, Ordering::Relaxed) {
            contenders.push(Arc::downgrade(share));
            if floor != u64::MAX {
                share.come_back(floor);
            }
        }
        ahead >= self.threads
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_while_nobody_waited_is_no_debt() {
        const SLICE: u64 = 10_000_000;
        let shares = Shares::new(1);
        let (old, new) = (Share::new(None), Share::new(None));
        // An hour of work, in which it never had to share.
        old.spend(3_600_000_000_000);
        new.enter();
        assert!(!shares.must_wait(&new));
        old.enter();
        let mut turns = 0;
        while shares.must_wait(&old) {
            new.spend(SLICE);
            turns += 1;
            assert!(turns < 5, "the newcomer has it all");
        }
    }

    /// Plays `slices` turns of 10 ms on one thread and tells how many each got.
    fn play(shares: &Shares, all: &[Arc<Share>], slices: usize) -> Vec<usize> {
        let mut turns = vec![0; all.len()];
        for _ in 0..slices {
            let waits: Vec<_> = all.iter().map(|share| shares.must_wait(share)).collect();
            let next = waits.iter().position(|waits| !waits).unwrap();
            all[next].spend(10_000_000);
            turns[next] += 1;
        }
        turns
    }

    #[test]
    fn time_is_shared_by_weight() {
        let shares = Shares::new(1);
        let all = [Share::new(Some(100)), Share::new(Some(300))];
        let _wanting: Vec<_> = all.iter().map(Share::want).collect();
        assert_eq!(play(&shares, &all, 400), [100, 300]);
    }

    #[test]
    fn nobody_waits_while_there_are_threads() {
        let shares = Shares::new(2);
        let all = [Share::new(None), Share::new(Some(4000))];
        let _wanting: Vec<_> = all.iter().map(Share::want).collect();
        for _ in 0..10 {
            assert!(all.iter().all(|share| !shares.must_wait(share)));
            all[0].spend(10_000_000);
        }
    }

    #[test]
    fn who_is_idle_holds_nobody_up_and_earns_nothing() {
        let shares = Shares::new(1);
        let all = [Share::new(Some(100)), Share::new(Some(100))];
        let _first = all[0].want();
        let second = all[1].want();
        assert_eq!(play(&shares, &all, 100), [50, 50]);
        drop(second);
        assert_eq!(play(&shares, &all[..1], 1000), [1000]);
        let _second = all[1].want();
        let turns = play(&shares, &all, 100);
        assert!(turns[0] >= 49, "{turns:?}");
    }
}
