//! Pods that wait for a node: ready ones by priority and age, refused ones until something changes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::client::{RetryLimits, retry_delay};
use crate::rt::Rng;
use crate::scheduler::demand::Demand;
use crate::scheduler::reason::Changes;
use crate::scheduler::view::PodKey;

/// The least time between two tries of one pod, doubling with each.
const RETRY: RetryLimits =
    RetryLimits { delay_min: Duration::from_millis(50), delay_max: Duration::from_secs(10) };
/// A refused pod is tried again after this long even if nothing was seen to change.
const REFUSED_MAX: Duration = Duration::from_secs(60);

/// A place in line: higher priority first, then first come, first served.
type Place = (Reverse<i32>, u64);

/// The queue. Owned by one task; knows nothing of nodes.
#[derive(Debug)]
pub(super) struct Queue {
    pods: BTreeMap<PodKey, Waiting>,
    ready: BTreeMap<Place, PodKey>,
    /// Pods that wait for a time, by time.
    timeline: BTreeSet<(Instant, PodKey)>,
    /// Refused pods that wait for a change, by the changes that may help.
    unhelped: BTreeMap<Changes, BTreeSet<PodKey>>,
    arrivals: u64,
    rng: Rng,
}

#[derive(Debug)]
struct Waiting {
    place: Place,
    attempts: u32,
    state: State,
    /// What it asked for when it was tried last.
    asked: Option<Asked>,
}

/// What a pod asked for when it was tried.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) demand: Arc<Demand>,
    /// How many of its claims of devices were still to be made from their templates.
    pub(super) unmade: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Ready,
    /// Taken by [`Queue::pop`].
    Taken,
    /// Tried in vain; comes back at `until`, or at `earliest` when something changes that may help.
    Refused {
        earliest: Instant,
        until: Instant,
        helped_by: Changes,
    },
}

impl Queue {
    pub(super) fn new(rng: Rng) -> Self {
        Self {
            pods: BTreeMap::new(),
            ready: BTreeMap::new(),
            timeline: BTreeSet::new(),
            unhelped: BTreeMap::new(),
            arrivals: 0,
            rng,
        }
    }

    /// Lines `key` up, unless it waits already. Returns whether it did not.
    pub(super) fn add(&mut self, key: &PodKey, priority: i32) -> bool {
        if self.pods.contains_key(key) {
            return false;
        }
        self.arrivals += 1;
        let place = (Reverse(priority), self.arrivals);
        let waiting = Waiting { place, attempts: 0, state: State::Ready, asked: None };
        self.pods.insert(key.clone(), waiting);
        self.ready.insert(place, key.clone());
        true
    }

    /// The pod needs no node any more.
    pub(super) fn remove(&mut self, key: &PodKey) {
        if let Some(waiting) = self.pods.remove(key) {
            self.ready.remove(&waiting.place);
            self.leave(key, waiting.state);
        }
    }

    /// Takes a refused pod out of what would bring it back.
    fn leave(&mut self, key: &PodKey, state: State) {
        let State::Refused { until, helped_by, .. } = state else { return };
        self.timeline.remove(&(until, key.clone()));
        if let Some(keys) = self.unhelped.get_mut(&helped_by) {
            keys.remove(key);
            if keys.is_empty() {
                self.unhelped.remove(&helped_by);
            }
        }
    }

    /// The next pod to try. It stays known until [`Self::remove`] or [`Self::refuse`].
    pub(super) fn pop(&mut self, now: Instant) -> Option<PodKey> {
        while self.timeline.first().is_some_and(|(until, _)| *until <= now) {
            if let Some((_, key)) = self.timeline.pop_first() {
                self.make_ready(&key);
            }
        }
        let (_, key) = self.ready.pop_first()?;
        if let Some(waiting) = self.pods.get_mut(&key) {
            waiting.state = State::Taken;
            waiting.attempts = waiting.attempts.saturating_add(1);
        }
        Some(key)
    }

    /// Keeps what the pod asked for when it was tried.
    pub(super) fn note(&mut self, key: &PodKey, asked: Asked) {
        if let Some(waiting) = self.pods.get_mut(key) {
            waiting.asked = Some(asked);
        }
    }

    /// What it asked for then; `None` if it was not tried yet.
    pub(super) fn asked(&self, key: &PodKey) -> Option<&Asked> {
        self.pods.get(key)?.asked.as_ref()
    }

    /// The pod was tried in vain: it waits for one of these changes, and at least its back-off.
    pub(super) fn refuse(&mut self, key: &PodKey, now: Instant, helped_by: Changes) {
        self.wait(key, now, REFUSED_MAX, helped_by);
    }

    /// The try failed for no fault of the pod: it is tried again after its back-off.
    pub(super) fn retry(&mut self, key: &PodKey, now: Instant) {
        self.wait(key, now, Duration::ZERO, Changes::NONE);
    }

    fn wait(&mut self, key: &PodKey, now: Instant, at_least: Duration, helped_by: Changes) {
        let Some(waiting) = self.pods.get_mut(key) else { return };
        let delay = retry_delay(RETRY, waiting.attempts.saturating_sub(1), &self.rng);
        let earliest = now + delay;
        let until = earliest.max(now + at_least);
        self.ready.remove(&waiting.place);
        let old =
            std::mem::replace(&mut waiting.state, State::Refused { earliest, until, helped_by });
        self.leave(key, old);
        self.timeline.insert((until, key.clone()));
        if earliest < until {
            self.unhelped.entry(helped_by).or_default().insert(key.clone());
        }
    }

    /// Something changed: the refused pods that it may help are tried once their back-off is over.
    pub(super) fn wake(&mut self, changes: Changes) {
        let met = self.unhelped.keys().copied().filter(|helped_by| helped_by.meets(changes));
        let met: Vec<_> = met.collect();
        for key in met.into_iter().filter_map(|group| self.unhelped.remove(&group)).flatten() {
            let Some(waiting) = self.pods.get_mut(&key) else { continue };
            let State::Refused { earliest, until, helped_by } = waiting.state else { continue };
            waiting.state = State::Refused { earliest, until: earliest, helped_by };
            self.timeline.remove(&(until, key.clone()));
            self.timeline.insert((earliest, key));
        }
    }

    /// The pod itself is another one: if it was refused, it is tried once its back-off is over.
    pub(super) fn wake_one(&mut self, key: &PodKey) {
        let Some(waiting) = self.pods.get_mut(key) else { return };
        let old = waiting.state;
        let State::Refused { earliest, helped_by, .. } = old else { return };
        waiting.state = State::Refused { earliest, until: earliest, helped_by };
        self.leave(key, old);
        self.timeline.insert((earliest, key.clone()));
    }

    /// When the next waiting pod is due; `None` when only changes can help.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.timeline.first().map(|(until, _)| *until)
    }

    /// Whether a pod could be tried now.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    fn make_ready(&mut self, key: &PodKey) {
        let Some(waiting) = self.pods.get_mut(key) else { return };
        let old = std::mem::replace(&mut waiting.state, State::Ready);
        self.ready.insert(waiting.place, key.clone());
        self.leave(key, old);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> PodKey {
        ("default".into(), name.into())
    }

    fn queue() -> Queue {
        Queue::new(Rng::seeded(1))
    }

    #[tokio::test(start_paused = true)]
    async fn priority_comes_before_age() {
        let mut queue = queue();
        for (name, priority) in [("first", 0), ("second", 0), ("urgent", 10), ("first", 99)] {
            queue.add(&key(name), priority);
        }
        let order: Vec<_> =
            std::iter::from_fn(|| queue.pop(Instant::now())).map(|(_, name)| name).collect();
        assert_eq!(order, ["urgent", "first", "second"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_pod_waits_for_a_change_and_for_its_back_off() {
        let mut queue = queue();
        queue.add(&key("p"), 0);
        for attempt in 0..4_u32 {
            assert!(queue.pop(Instant::now()).is_some());
            queue.refuse(&key("p"), Instant::now(), Changes::NODE);
            assert_eq!(queue.pop(Instant::now() + RETRY.delay_max), None, "nothing changed");
            queue.wake(Changes::NODE.and(Changes::STORAGE));
            assert_eq!(queue.pop(Instant::now()), None, "too early");
            let full = RETRY.delay_min * 2_u32.pow(attempt);
            let due = queue.next_due().unwrap();
            assert!(due <= Instant::now() + full && due >= Instant::now() + full / 2);
            tokio::time::advance(full).await;
        }
        assert!(queue.pop(Instant::now()).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_change_that_may_help_wakes_a_pod() {
        let cases = [
            ("full", Changes::NODE.and(Changes::POD_LEFT)),
            ("tainted", Changes::NODE),
            ("lonely", Changes::NODE.and(Changes::POD_CAME)),
            ("homeless", Changes::STORAGE),
        ];
        for (change, woken) in [
            (Changes::NODE, &["full", "tainted", "lonely"][..]),
            (Changes::POD_LEFT, &["full"]),
            (Changes::POD_CAME, &["lonely"]),
            (Changes::STORAGE, &["homeless"]),
            (Changes::NAMESPACE, &[]),
            (Changes::POD_LEFT.and(Changes::STORAGE), &["full", "homeless"]),
        ] {
            let mut queue = queue();
            for (name, helped_by) in cases {
                queue.add(&key(name), 0);
                queue.pop(Instant::now());
                queue.refuse(&key(name), Instant::now(), helped_by);
            }
            queue.wake(change);
            tokio::time::advance(RETRY.delay_max).await;
            let mut names: Vec<_> =
                std::iter::from_fn(|| queue.pop(Instant::now())).map(|(_, name)| name).collect();
            names.sort();
            let mut woken = woken.to_vec();
            woken.sort_unstable();
            assert_eq!(names, woken, "{change:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_woken_alone_wakes_no_other() {
        let mut queue = queue();
        for name in ["a", "b"] {
            queue.add(&key(name), 0);
            queue.pop(Instant::now());
            queue.refuse(&key(name), Instant::now(), Changes::NODE);
        }
        queue.wake_one(&key("a"));
        assert_eq!(queue.pop(Instant::now()), None, "too early");
        tokio::time::advance(RETRY.delay_max).await;
        assert_eq!(queue.pop(Instant::now()), Some(key("a")));
        assert_eq!(queue.pop(Instant::now()), None);
        // Refused again, it waits as before.
        queue.refuse(&key("a"), Instant::now(), Changes::NODE);
        tokio::time::advance(RETRY.delay_max).await;
        assert_eq!(queue.pop(Instant::now()), None);
        queue.wake(Changes::NODE);
        assert_eq!(queue.pop(Instant::now()), Some(key("a")));
        assert_eq!(queue.pop(Instant::now()), Some(key("b")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_pod_is_tried_now_and_then_without_a_change() {
        let mut queue = queue();
        queue.add(&key("p"), 0);
        queue.pop(Instant::now());
        queue.refuse(&key("p"), Instant::now(), Changes::NODE);
        tokio::time::advance(REFUSED_MAX).await;
        assert!(queue.pop(Instant::now()).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_removed_pod_does_not_come_back() {
        let mut queue = queue();
        for name in ["ready", "refused"] {
            queue.add(&key(name), 0);
        }
        queue.pop(Instant::now());
        queue.refuse(&key("ready"), Instant::now(), Changes::NODE);
        queue.remove(&key("ready"));
        queue.remove(&key("refused"));
        assert_eq!((queue.next_due(), queue.has_ready()), (None, false));
    }
}
