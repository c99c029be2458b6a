//! Whether this node may run pods that must be unique: only while servers hear it.
//!
//! Data in: heartbeats that were answered. Data out: whether the fence is open, to the workers of such
//! pods.
//!
//! # Invariants
//!
//! - Closed until the first heartbeat is answered, and whenever the last one that was is older than
//!   [`FENCED_AFTER`], counted from when it was sent.
//! - Time goes on while the machine sleeps; whoever acts asks the clock, not the last report.
//! - A fence that was closed is not the same again when it is open: a process that stood still may find it
//!   open without having seen it closed. What may run belongs to one [`Stretch`].

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::unique_pod::FENCED_AFTER;

/// How often the clock is looked at while somebody depends on it.
const TICK: Duration = Duration::from_millis(200);
/// How often while nobody does.
const TICK_IDLE: Duration = Duration::from_secs(2);

/// A time in which the fence was open without a break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stretch(u64);

/// The fence of one node. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(crate) struct Fence(Arc<Inner>);

struct Inner {
    clock: Box<dyn Fn() -> Duration + Send + Sync>,
    heard: Mutex<Heard>,
    open: watch::Sender<Option<Stretch>>,
}

#[derive(Default)]
struct Heard {
    /// When the newest heartbeat that was answered was sent.
    sent: Option<Duration>,
    /// How often it was opened.
    stretch: u64,
}

impl Heard {
    fn open(&self, now: Duration) -> Option<Stretch> {
        let is_open = self.sent.is_some_and(|sent| now.saturating_sub(sent) < FENCED_AFTER);
        is_open.then_some(Stretch(self.stretch))
    }
}

impl std::fmt::Debug for Fence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fence").field("open", &self.open()).finish_non_exhaustive()
    }
}

impl Fence {
    /// A closed fence over the clock of this machine.
    pub(crate) fn new() -> Self {
        Self::over(since_boot)
    }

    fn over(clock: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        let open = watch::Sender::new(None);
        Self(Arc::new(Inner { clock: Box::new(clock), heard: Mutex::default(), open }))
    }

    /// A fence over the tests' own time.
    #[cfg(test)]
    pub(crate) fn paused() -> Self {
        let start = tokio::time::Instant::now();
        Self::over(move || start.elapsed())
    }

    /// The time now, to be remembered when a heartbeat is sent.
    pub(crate) fn now(&self) -> Duration {
        (self.0.clock)()
    }

    /// The heartbeat sent at `sent` was answered.
    pub(crate) fn heard(&self, sent: Duration) {
        let now = self.now();
        let mut heard = self.0.heard.lock();
        if heard.open(now).is_none() {
            heard.stretch = heard.stretch.wrapping_add(1);
        }
        heard.sent = heard.sent.max(Some(sent));
        drop(heard);
        self.tell();
    }

    /// Whether pods that must be unique may run now, and since when without a break.
    pub(crate) fn open(&self) -> Option<Stretch> {
        self.0.heard.lock().open(self.now())
    }

    /// Hears when the fence opens or closes, a moment later.
    pub(crate) fn changed(&self) -> watch::Receiver<Option<Stretch>> {
        self.0.open.subscribe()
    }

    /// Waits until `stretch` is over.
    pub(crate) async fn ended(&self, stretch: Stretch) {
        let mut changed = self.changed();
        while self.open() == Some(stretch) {
            // The sender lives in `self`.
            let _ = changed.wait_for(|open| *open != Some(stretch)).await;
        }
    }

    /// Tells of changes until `cancel`.
    pub(crate) async fn run(self, cancel: CancellationToken) {
        loop {
            self.tell();
            let tick = if self.0.open.receiver_count() > 0 { TICK } else { TICK_IDLE };
            if cancel.run_until_cancelled(tokio::time::sleep(tick)).await.is_none() {
                return;
            }
        }
    }

    fn tell(&self) {
        let open = self.open();
        self.0.open.send_if_modified(|was| std::mem::replace(was, open) != open);
    }
}

/// Time since the machine was started, its sleep included.
fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::TaskGroup;

    #[tokio::test(start_paused = true)]
    async fn it_opens_with_an_answer_and_closes_when_none_came_for_long_enough() {
        let fence = Fence::paused();
        let tasks = TaskGroup::new(&CancellationToken::new());
        let ticker = fence.clone();
        tasks.spawn("fence", |cancel| ticker.run(cancel));
        assert_eq!(fence.open(), None);
        let mut changed = fence.changed();
        tokio::time::advance(Duration::from_secs(5)).await;
        fence.heard(Duration::from_secs(4));
        let stretch = fence.open().unwrap();
        assert_eq!(*changed.borrow_and_update(), Some(stretch));
        // Answers may come in another order than the heartbeats were sent.
        fence.heard(Duration::from_secs(3));
        let start = tokio::time::Instant::now();
        fence.ended(stretch).await;
        let took = start.elapsed();
        assert!(took >= Duration::from_secs(9) && took < Duration::from_secs(9) + 2 * TICK);
        assert_eq!((*changed.borrow_and_update(), fence.open()), (None, None));
        tasks.shutdown(Duration::from_secs(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_after_a_sleep_gets_the_truth_before_anybody_is_told() {
        let fence = Fence::paused();
        fence.heard(fence.now());
        let changed = fence.changed();
        tokio::time::advance(FENCED_AFTER).await;
        assert!(changed.borrow().is_some(), "nobody has ticked");
        assert_eq!(fence.open(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_fence_that_opens_before_anybody_saw_it_closed_is_not_the_same() {
        let fence = Fence::paused();
        fence.heard(fence.now());
        let (before, mut changed) = (fence.open().unwrap(), fence.changed());
        tokio::time::advance(FENCED_AFTER - Duration::from_secs(1)).await;
        fence.heard(fence.now());
        assert_eq!(fence.open(), Some(before));
        tokio::time::advance(FENCED_AFTER).await;
        fence.heard(fence.now());
        assert!(fence.open().is_some() && fence.open() != Some(before));
        assert_eq!(*changed.borrow_and_update(), fence.open());
        fence.ended(before).await;
    }

    #[test]
    fn the_clock_of_the_machine_goes_on() {
        let before = since_boot();
        assert!(!before.is_zero());
        assert!(since_boot() >= before);
    }
}
