//! Keys waiting to be reconciled: each once, one run at a time, later when a run says so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Debug;
use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, debug_span, warn};

use crate::client::{
    Change, Handler, RetryLimits, is_already_exists, is_conflict, is_not_found, retry_delay,
};
use crate::rt::Rng;

/// Waits of a key whose runs fail. The first is short: most failures are a conflict.
const RETRY: RetryLimits =
    RetryLimits { delay_min: Duration::from_millis(20), delay_max: Duration::from_secs(30) };
/// A run that takes longer is dropped and counts as failed.
const RUN_TIMEOUT: Duration = Duration::from_secs(120);

/// A run at least this long is followed by a rest of its key as long as it, [`REST_MAX`] at most: an
/// owner of thousands of pods that all change is not looked through for each of them.
const REST_FROM: Duration = Duration::from_millis(10);
const REST_MAX: Duration = Duration::from_millis(100);

/// What a run wants next for its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing until something changes.
    Wait,
    /// Another look after this time, even if nothing changes.
    After(Duration),
}

impl Next {
    /// Another look after `delay`, if there is one.
    pub(crate) fn after(delay: Option<Duration>) -> Self {
        delay.map_or(Self::Wait, Self::After)
    }
}

/// A queue of keys. Cheap to clone; all clones are one. Bounded by the number of objects.
#[derive(Debug)]
pub(crate) struct Queue<K>(Arc<Shared<K>>);

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Shared<K> {
    state: Mutex<State<K>>,
    wake: Notify,
}

#[derive(Debug)]
struct State<K> {
    ready: VecDeque<K>,
    /// What is in `ready`.
    waiting: BTreeSet<K>,
    /// Since when each key runs.
    running: BTreeMap<K, Instant>,
    /// Until when keys rest that had a long run.
    resting: BTreeMap<K, Instant>,
    /// Came in while their twin ran.
    again: BTreeSet<K>,
    /// When each delayed key is due, and the same by time.
    due: BTreeMap<K, Instant>,
    timeline: BTreeSet<(Instant, K)>,
    failures: BTreeMap<K, u32>,
}

impl<K: Ord + Clone> Queue<K> {
    /// An empty queue.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                waiting: BTreeSet::new(),
                running: BTreeMap::new(),
                resting: BTreeMap::new(),
                again: BTreeSet::new(),
                due: BTreeMap::new(),
                timeline: BTreeSet::new(),
                failures: BTreeMap::new(),
            }),
            wake: Notify::new(),
        }))
    }

    /// Wants `key` reconciled now, or once its present run has ended.
    #[cfg(test)]
    fn add(&self, key: K) {
        self.0.state.lock().add(key);
        self.0.wake.notify_one();
    }

    /// Wants `key` reconciled after `delay`; the earliest of several wishes counts.
    #[cfg(test)]
    fn add_after(&self, key: K, delay: Duration) {
        let mut state = self.0.state.lock();
        state.delay(key, Instant::now() + delay);
        drop(state);
        self.0.wake.notify_one();
    }

    /// A handler that adds the keys `keys_of` finds in a change, while the queue is in use.
    pub(crate) fn feed<T>(
        &self,
        mut keys_of: impl FnMut(&Change<'_, T>, &mut Vec<K>) + Send + 'static,
    ) -> Handler<T>
    where
        K: Send + 'static,
    {
        let shared: Weak<Shared<K>> = Arc::downgrade(&self.0);
        let mut keys = Vec::new();
        Box::new(move |change| {
            let Some(shared) = shared.upgrade() else {
                return false;
            };
            keys_of(change, &mut keys);
            if !keys.is_empty() {
                let mut state = shared.state.lock();
                keys.drain(..).for_each(|key| state.add(key));
                drop(state);
                shared.wake.notify_one();
            }
            true
        })
    }

    /// The next key; it counts as running until [`Self::done`].
    ///
    /// # Cancel safety
    ///
    /// Safe: a key is taken in the same poll that returns it.
    async fn next(&self) -> K {
        loop {
            let next_due = {
                let mut state = self.0.state.lock();
                state.wake_due(Instant::now());
                if let Some(key) = state.take() {
                    return key;
                }
                state.timeline.first().map(|(at, _)| *at)
            };
            let woken = self.0.wake.notified();
            match next_due {
                Some(at) => {
                    let _ = tokio::time::timeout_at(at, woken).await;
                }
                None => woken.await,
            }
        }
    }

    fn done(&self, key: &K, outcome: Result<Next, ()>, rng: &Rng) {
        let mut state = self.0.state.lock();
        state.ended(key, Instant::now());
        match outcome {
            Ok(next) => {
                state.failures.remove(key);
                if let Next::After(delay) = next {
                    state.delay(key.clone(), Instant::now() + delay);
                }
                if state.again.remove(key) {
                    state.add(key.clone());
                }
            }
            Err(()) => {
                // Waits out its back-off even if it came in again: events do not mend failures.
                state.again.remove(key);
                let failures = state.failures.entry(key.clone()).or_insert(0);
                let delay = retry_delay(RETRY, *failures, rng);
                *failures = failures.saturating_add(1);
                state.delay(key.clone(), Instant::now() + delay);
            }
        }
        drop(state);
        self.0.wake.notify_one();
    }
}

impl<K: Ord + Clone> State<K> {
    fn add(&mut self, key: K) {
        if self.running.contains_key(&key) {
            self.again.insert(key);
        } else if let Some(until) = self.resting.get(&key).copied() {
            self.delay(key, until);
        } else if self.waiting.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    fn delay(&mut self, key: K, at: Instant) {
        if let Some(known) = self.due.get(&key).copied() {
            if known <= at {
                return;
            }
            self.timeline.remove(&(known, key.clone()));
        }
        self.due.insert(key.clone(), at);
        self.timeline.insert((at, key));
    }

    fn wake_due(&mut self, now: Instant) {
        self.resting.retain(|_, until| *until > now);
        while self.timeline.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, key)) = self.timeline.pop_first() {
                self.due.remove(&key);
                self.add(key);
            }
        }
    }

    fn take(&mut self) -> Option<K> {
        let key = self.ready.pop_front()?;
        self.waiting.remove(&key);
        self.running.insert(key.clone(), Instant::now());
        Some(key)
    }

    fn ended(&mut self, key: &K, now: Instant) {
        let Some(since) = self.running.remove(key) else { return };
        let took = now.saturating_duration_since(since);
        if took >= REST_FROM {
            self.resting.insert(key.clone(), now + took.min(REST_MAX));
        }
    }
}

/// How a controller's runs are made.
#[derive(Debug, Clone)]
pub(crate) struct Workers {
    /// The controller, in logs.
    pub(crate) controller: &'static str,
    /// How many keys are reconciled at once.
    pub(crate) runs_max: usize,
    /// Jitter of the back-off.
    pub(crate) rng: Rng,
}

impl Workers {
    /// Reconciles what `queue` gives until `cancel`; runs under way are then dropped, which is
    /// safe since each write stands alone.
    pub(crate) async fn run<K, F, Fut>(
        self,
        queue: Queue<K>,
        cancel: CancellationToken,
        reconcile: F,
    ) where
        K: Ord + Clone + Debug,
        F: Fn(K) -> Fut,
        Fut: Future<Output = Result<Next, kube::Error>>,
    {
        let mut runs = FuturesUnordered::new();
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                Some((key, outcome)) = runs.next() => queue.done(&key, outcome, &self.rng),
                key = queue.next(), if runs.len() < self.runs_max => {
                    let span = debug_span!("reconcile", controller = self.controller, object.key = ?key);
                    let run = reconcile(key.clone());
                    runs.push(async move { (key, judge(run).await) }.instrument(span));
                }
            }
        }
    }
}

/// Logs how a run ended; what is expected at times is not worth a warning.
async fn judge(run: impl Future<Output = Result<Next, kube::Error>>) -> Result<Next, ()> {
    match tokio::time::timeout(RUN_TIMEOUT, run).await {
        Ok(Ok(next)) => Ok(next),
        Ok(Err(err)) if is_conflict(&err) || is_not_found(&err) || is_already_exists(&err) => {
            debug!(%err, "reconcile met a change");
            Err(())
        }
        Ok(Err(err)) => {
            warn!(%err, "reconcile failed");
            Err(())
        }
        Err(_) => {
            warn!("reconcile took too long");
            Err(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn now_or_never(queue: &Queue<&'static str>) -> Option<&'static str> {
        tokio::time::timeout(Duration::from_millis(1), queue.next()).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_added_twice_runs_once() {
        let queue = Queue::new();
        queue.add("a");
        queue.add("a");
        assert_eq!(now_or_never(&queue).await, Some("a"));
        assert_eq!(now_or_never(&queue).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_added_while_it_runs_waits_for_its_twin() {
        let (queue, rng) = (Queue::new(), Rng::seeded(1));
        queue.add("a");
        assert_eq!(now_or_never(&queue).await, Some("a"));
        queue.add("a");
        assert_eq!(now_or_never(&queue).await, None);
        queue.done(&"a", Ok(Next::Wait), &rng);
        assert_eq!(now_or_never(&queue).await, Some("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_rests_after_a_long_run_and_what_comes_meanwhile_is_one_run() {
        let (queue, rng) = (Queue::new(), Rng::seeded(1));
        for (took, rest) in [(1, 0), (40, 40), (5_000, 100)]
            .map(|(a, b)| (Duration::from_millis(a), Duration::from_millis(b)))
        {
            queue.add("a");
            assert_eq!(queue.next().await, "a");
            tokio::time::sleep(took).await;
            queue.add("a");
            queue.done(&"a", Ok(Next::Wait), &rng);
            let ended = Instant::now();
            queue.add("a");
            queue.add("b");
            assert_eq!(queue.next().await, if rest.is_zero() { "a" } else { "b" });
            if !rest.is_zero() {
                assert_eq!(queue.next().await, "a");
                assert_eq!(ended.elapsed(), rest);
            } else {
                assert_eq!(queue.next().await, "b");
            }
            queue.done(&"a", Ok(Next::Wait), &rng);
            queue.done(&"b", Ok(Next::Wait), &rng);
            assert_eq!(now_or_never(&queue).await, None);
            tokio::time::sleep(REST_MAX).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_of_several_delays_counts() {
        let queue = Queue::new();
        let start = Instant::now();
        queue.add_after("a", Duration::from_secs(5));
        queue.add_after("a", Duration::from_secs(2));
        queue.add_after("a", Duration::from_secs(9));
        assert_eq!(queue.next().await, "a");
        assert_eq!(start.elapsed(), Duration::from_secs(2));
        assert_eq!(now_or_never(&queue).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_and_success_forgets_them() {
        let (queue, rng) = (Queue::new(), Rng::seeded(1));
        queue.add("a");
        for attempt in 0..8_u32 {
            assert_eq!(queue.next().await, "a");
            let start = Instant::now();
            queue.done(&"a", Err(()), &rng);
            assert_eq!(queue.next().await, "a");
            let full = RETRY.delay_min * 2_u32.pow(2 * attempt);
            let full = full.min(RETRY.delay_max);
            assert!(start.elapsed() + Duration::from_millis(1) >= full / 2);
            queue.done(&"a", Err(()), &rng);
        }
        assert_eq!(queue.next().await, "a");
        queue.done(&"a", Ok(Next::Wait), &rng);
        assert!(queue.0.state.lock().failures.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn runs_of_different_keys_overlap_and_stop_when_cancelled() {
        let queue = Queue::new();
        let cancel = CancellationToken::new();
        let workers = Workers { controller: "test", runs_max: 2, rng: Rng::seeded(1) };
        ["a", "b", "c"].into_iter().for_each(|key| queue.add(key));
        let running = Mutex::new(BTreeSet::new());
        let most = Mutex::new(0);
        let ended = CancellationToken::new();
        let run = workers.run(queue, cancel.clone(), |key| {
            let (running, most, ended) = (&running, &most, &ended);
            async move {
                running.lock().insert(key);
                {
                    let mut most = most.lock();
                    *most = running.lock().len().max(*most);
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
                running.lock().remove(key);
                if key == "c" {
                    ended.cancel();
                }
                Ok(Next::Wait)
            }
        });
        let stop = async {
            ended.cancelled().await;
            cancel.cancel();
        };
        tokio::join!(run, stop);
        assert_eq!(*most.lock(), 2);
    }
}
