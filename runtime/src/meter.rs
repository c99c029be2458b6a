//! CPU time of guests: counting it, sharing it out, and the tick that interrupts them.
//!
//! Wasmtime's epoch is raised every [`TICK`] while any guest runs, and every guest yields when it
//! sees that. Between ticks the clock is read when a guest starts and stops running:
//! commands are timed around each poll; for HTTP instances, whose tasks belong to wasmtime's
//! handler, the start is the first sign of life (a request, a host call, an epoch check) and the
//! stop is the end of the request or of the poll.
//!
//! # Invariants
//!
//! - While no guest runs, no thread wakes up for them.
//! - One stretch of running is never counted longer than the ticks that it saw, plus a few.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wasmtime::{Engine, Store, UpdateDeadline};

use crate::hold::{self, MayRun};
use crate::lanes::{self, Lane};
use crate::shares::{Share, Shares, WAIT_STEP};
use crate::tasks;
use crate::types::StartError;

/// How often guests are interrupted: what a neighbour waits at most for one that computes.
pub(crate) const TICK: Duration = Duration::from_millis(2);
/// Ticks without a running guest after which the ticker sleeps.
const QUIET_TICKS_MAX: u32 = 15;
/// A guest that has computed for less than this since its first tick is not made to yield.
const YIELD_AFTER: Duration = Duration::from_millis(1);
/// Time over which a CPU limit is evened out, as in Linux' bandwidth control.
const THROTTLE_PERIOD: Duration = Duration::from_millis(100);
/// Longest single sleep of a throttled guest.
const THROTTLE_SLEEP_MAX: Duration = Duration::from_secs(1);
/// Ticks by which a stretch of running may exceed those it saw: the ticker may be late.
const TICKS_UNSEEN: u64 = 10;

/// Raises the engine's epoch while guests run.
#[derive(Debug)]
pub(crate) struct Ticker {
    pulse: Arc<Pulse>,
}

/// The guests' side of the ticker.
#[derive(Debug)]
pub(crate) struct Pulse {
    /// Guests that run, or would if the kernel let them.
    running: AtomicUsize,
    /// Whether one has run since the last tick.
    is_beating: AtomicBool,
    is_parked: AtomicBool,
    is_over: AtomicBool,
    thread: Mutex<Option<Thread>>,
}

impl Ticker {
    pub(crate) fn start(engine: &Engine) -> Result<Self, StartError> {
        let pulse = Arc::new(Pulse {
            running: AtomicUsize::new(0),
            is_beating: AtomicBool::new(false),
            is_parked: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            thread: Mutex::new(None),
        });
        let engine = engine.clone();
        let its = Arc::clone(&pulse);
        let thread = tasks::start_thread("edgeorc-ticker", move || its.run(&engine))?;
        *pulse.thread.lock() = Some(thread.thread().clone());
        Ok(Self { pulse })
    }

    pub(crate) fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.pulse.is_over.store(true, Ordering::SeqCst);
        self.pulse.wake();
    }
}

impl Pulse {
    fn run(&self, engine: &Engine) {
        let mut quiet = 0;
        while !self.is_over.load(Ordering::SeqCst) {
            std::thread::sleep(TICK);
            engine.increment_epoch();
            // One that runs may not have had a processor since the last tick: it needs the next.
            let is_running = self.running.load(Ordering::SeqCst) > 0;
            if self.is_beating.swap(false, Ordering::SeqCst) || is_running {
                quiet = 0;
                continue;
            }
            quiet += 1;
            if quiet >= QUIET_TICKS_MAX {
                self.park();
                quiet = 0;
            }
        }
    }

    fn park(&self) {
        self.is_parked.store(true, Ordering::SeqCst);
        while !self.is_beating.load(Ordering::SeqCst) && !self.is_over.load(Ordering::SeqCst) {
            std::thread::park();
        }
        self.is_parked.store(false, Ordering::SeqCst);
    }

    /// A guest begins to run.
    pub(crate) fn enter(&self) {
        self.running.fetch_add(1, Ordering::SeqCst);
        self.beat();
    }

    /// A guest does not run any more.
    pub(crate) fn leave(&self) {
        self.running.fetch_sub(1, Ordering::SeqCst);
    }

    /// A guest runs.
    fn beat(&self) {
        if !self.is_beating.load(Ordering::Relaxed) {
            self.is_beating.store(true, Ordering::SeqCst);
            if self.is_parked.load(Ordering::SeqCst) {
                self.wake();
            }
        }
    }

    fn wake(&self) {
        if let Some(thread) = &*self.thread.lock() {
            thread.unpark();
        }
    }
}

/// CPU time of one container.
#[derive(Debug)]
pub(crate) struct Meter {
    used_nanos: AtomicU64,
    budget: Option<Budget>,
    share: Arc<Share>,
    shares: Arc<Shares>,
    may_run: Option<MayRun>,
}

impl Meter {
    /// A meter; with `millis_max`, thousandths of a core, it also throttles. `millis` is what the
    /// container requests: its weight among the others.
    pub(crate) fn new(
        millis_max: Option<u64>,
        millis: Option<u64>,
        shares: &Arc<Shares>,
        may_run: Option<MayRun>,
    ) -> Arc<Self> {
        Arc::new(Self {
            may_run,
            used_nanos: AtomicU64::new(0),
            budget: millis_max.map(Budget::new),
            share: Share::new(millis),
            shares: Arc::clone(shares),
        })
    }

    pub(crate) fn used(&self) -> Duration {
        Duration::from_nanos(self.used_nanos.load(Ordering::Relaxed))
    }

    /// Whether the guest may not run now.
    pub(crate) fn is_held(&self) -> bool {
        self.may_run.as_ref().is_some_and(|may_run| !may_run.now())
    }

    fn add(&self, nanos: u64) {
        self.used_nanos.fetch_add(nanos, Ordering::Relaxed);
        self.share.spend(nanos);
        if let Some(budget) = &self.budget {
            budget.spend(nanos);
        }
    }

    /// Counts work that the host did for the container beside it.
    pub(crate) fn charge(&self, time: Duration) {
        self.add(nanos(time));
    }

    /// How long the container must pause to stay within its share.
    fn pause(&self) -> Option<Duration> {
        self.budget.as_ref().and_then(Budget::pause)
    }
}

/// A bucket of CPU time that fills at the container's share.
#[derive(Debug)]
struct Budget {
    millis: u64,
    state: Mutex<BudgetState>,
}

#[derive(Debug)]
struct BudgetState {
    /// CPU time left; negative when overdrawn, in nanoseconds.
    left: i128,
    filled: Instant,
}

impl Budget {
    fn new(millis: u64) -> Self {
        let millis = millis.max(1);
        let state = BudgetState { left: Self::full(millis), filled: Instant::now() };
        Self { millis, state: Mutex::new(state) }
    }

    fn full(millis: u64) -> i128 {
        Self::earned(millis, THROTTLE_PERIOD)
    }

    fn earned(millis: u64, elapsed: Duration) -> i128 {
        i128::try_from(elapsed.as_nanos().saturating_mul(u128::from(millis)) / 1000)
            .unwrap_or(i128::MAX)
    }

    fn spend(&self, nanos: u64) {
        self.state.lock().left -= i128::from(nanos);
    }

    fn pause(&self) -> Option<Duration> {
        let mut state = self.state.lock();
        let now = Instant::now();
        state.left = (state.left + Self::earned(self.millis, now - state.filled))
            .min(Self::full(self.millis));
        state.filled = now;
        let debt = u64::try_from(-state.left).ok().filter(|debt| *debt > 0)?;
        let wait = Duration::from_nanos(debt.saturating_mul(1000) / self.millis);
        Some(wait.min(THROTTLE_SLEEP_MAX))
    }
}

/// The running of one store: from when it runs, and how many ticks it saw since.
#[derive(Debug)]
pub(crate) struct Burst {
    meter: Arc<Meter>,
    pulse: Arc<Pulse>,
    base: Instant,
    /// [`Burst::now`] when the guest began to run; 0 while it does not.
    since: AtomicU64,
    /// Nanoseconds from `base` to that time, in the batch lane.
    since_base: AtomicU64,
    ticks: AtomicU64,
    /// What its thread had run when it saw the first of them, in nanoseconds.
    ran_at_tick: AtomicU64,
}

impl Drop for Burst {
    fn drop(&mut self) {
        if *self.since.get_mut() != 0 {
            self.meter.share.leave();
            self.pulse.leave();
        }
    }
}

impl Burst {
    pub(crate) fn new(meter: Arc<Meter>, pulse: Arc<Pulse>) -> Arc<Self> {
        Arc::new(Self {
            meter,
            pulse,
            base: Instant::now(),
            since: AtomicU64::new(0),
            since_base: AtomicU64::new(0),
            ticks: AtomicU64::new(0),
            ran_at_tick: AtomicU64::new(0),
        })
    }

    /// Nanoseconds, never 0. In the batch lane those that the thread has run, since the kernel lets
    /// others go first there: a stretch begins and ends in one poll, so on one thread.
    fn now(&self) -> u64 {
        if is_batch() { nanos(thread_time()) + 1 } else { nanos(self.base.elapsed()) + 1 }
    }

    pub(crate) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// The guest runs. Cheap when that is known already.
    pub(crate) fn touch(&self) {
        if self.since.load(Ordering::Relaxed) == 0 {
            if is_batch() {
                self.since_base.store(nanos(self.base.elapsed()), Ordering::Relaxed);
            }
            self.since.store(self.now(), Ordering::Relaxed);
            self.meter.share.enter();
            self.pulse.enter();
        }
    }

    /// Tells the lanes for how long the kernel let others go first.
    fn tell_starved(&self, since: u64) {
        if since != 0 && is_batch() {
            let ran = self.now().saturating_sub(since);
            let began = self.since_base.load(Ordering::Relaxed);
            let passed = nanos(self.base.elapsed()).saturating_sub(began);
            lanes::starved(Duration::from_nanos(passed.saturating_sub(ran)));
        }
    }

    /// The guest does not run any more: counts what it used.
    pub(crate) fn settle(&self) {
        let since = self.since.swap(0, Ordering::Relaxed);
        if since == 0 {
            return;
        }
        self.meter.share.leave();
        self.pulse.leave();
        let ticks = self.ticks.swap(0, Ordering::Relaxed);
        let seen = ticks.saturating_add(TICKS_UNSEEN).saturating_mul(nanos(TICK));
        self.meter.add(self.now().saturating_sub(since).min(seen));
    }

    /// The guest saw a tick. Says whether it has to yield, and what to wait for then.
    fn tick(self: &Arc<Self>) -> UpdateDeadline {
        let since = self.since.load(Ordering::Relaxed);
        self.touch();
        self.pulse.beat();
        let seen = self.ticks.fetch_add(1, Ordering::Relaxed);
        self.tell_starved(since);
        // Time on the clock is not time of computing: the kernel may have let others go first. Asking
        // for the latter is a system call, so it is not asked at the beginning of each stretch.
        let ran = nanos(thread_time());
        if seen == 0 {
            self.ran_at_tick.store(ran, Ordering::Relaxed);
        }
        let has_run = ran.saturating_sub(self.ran_at_tick.load(Ordering::Relaxed));
        let is_fresh = seen == 0 || has_run < nanos(YIELD_AFTER);
        let is_held = self.meter.is_held();
        if is_fresh && self.meter.budget.is_none() && !is_held {
            return UpdateDeadline::Continue(1);
        }
        self.settle();
        let pause = self.meter.pause();
        let computes = !is_fresh || pause.is_some();
        if computes {
            lanes::overrun();
        }
        UpdateDeadline::YieldCustom(1, Box::pin(Arc::clone(self).its_turn(pause, computes)))
    }

    /// Waits until a guest that saw a tick may go on.
    async fn its_turn(self: Arc<Self>, pause: Option<Duration>, computes: bool) {
        let mut turn = std::pin::pin!(async {
            while self.meter.is_held() {
                self.pulse.beat();
                tokio::time::sleep(hold::LOOK).await;
            }
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
            let meter = &self.meter;
            let wanting = meter.share.want();
            tokio::task::yield_now().await;
            while meter.shares.must_wait(&meter.share) {
                // Others that run go on meanwhile; the ticker must not rest.
                self.pulse.beat();
                tokio::time::sleep(WAIT_STEP).await;
            }
            self.touch();
            drop(wanting);
        });
        std::future::poll_fn(|cx| {
            if computes {
                // Whoever waits for more time still wants it.
                lanes::overrun();
            }
            turn.as_mut().poll(cx)
        })
        .await;
    }

    /// Makes `store` yield at every tick, and trap once `kill` is cancelled.
    pub(crate) fn govern<T>(self: &Arc<Self>, store: &mut Store<T>, kill: CancellationToken) {
        let burst = Arc::clone(self);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(move |_| {
            Ok(if kill.is_cancelled() { UpdateDeadline::Interrupt } else { burst.tick() })
        });
    }
}

fn is_batch() -> bool {
    tasks::lane_of_this_thread() == Some(Lane::Batch)
}

/// In nanoseconds; less than the largest number, so that one may be added.
pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX - 1)
}

/// Processor time that this thread has used.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pulse() -> Arc<Pulse> {
        Arc::new(Pulse {
            running: AtomicUsize::new(0),
            is_beating: AtomicBool::new(false),
            is_parked: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            thread: Mutex::new(None),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_stretch_counts_its_time_up_to_the_ticks_it_saw() {
        let meter = Meter::new(None, None, &Shares::new(1), None);
        let burst = Burst::new(Arc::clone(&meter), pulse());
        burst.touch();
        tokio::time::advance(Duration::from_millis(3)).await;
        burst.settle();
        assert_eq!(meter.used(), Duration::from_millis(3));

        burst.touch();
        tokio::time::advance(Duration::from_secs(60)).await;
        burst.settle();
        assert_eq!(meter.used(), Duration::from_millis(23), "idle time is not used time");
    }

    #[tokio::test(start_paused = true)]
    async fn a_container_over_its_share_pauses_until_it_has_earned_it() {
        let meter = Meter::new(Some(250), None, &Shares::new(1), None);
        meter.add(25_000_000);
        assert_eq!(meter.pause(), None, "a period's worth may be spent at once");
        meter.add(5_000_000);
        assert_eq!(meter.pause(), Some(Duration::from_millis(20)));
        tokio::time::advance(Duration::from_millis(20)).await;
        assert_eq!(meter.pause(), None);
    }

    #[test]
    fn the_ticker_rests_while_no_guest_runs() {
        let engine = Engine::default();
        let ticker = Ticker::start(&engine).unwrap();
        let parked = || ticker.pulse.is_parked.load(Ordering::SeqCst);
        while !parked() {
            std::thread::yield_now();
        }
        ticker.pulse.beat();
        while parked() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_ticker_goes_on_for_a_guest_that_gets_no_processor() {
        let engine = Engine::default();
        let ticker = Ticker::start(&engine).unwrap();
        let meter = Meter::new(None, None, &Shares::new(1), None);
        let burst = Burst::new(meter, Arc::clone(ticker.pulse()));
        burst.touch();
        // Many times as long as the ticker needs to rest; nothing beats meanwhile.
        std::thread::sleep(TICK * QUIET_TICKS_MAX * 10);
        assert!(!ticker.pulse.is_parked.load(Ordering::SeqCst));
        burst.settle();
        while !ticker.pulse.is_parked.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
    }
}
