//! The instances of one HTTP container, and which request goes to which.
//!
//! ```text
//! request ─► an idle instance, the one used last first: polled by the caller, then by a task
//!         ─► one that waits for something and has room (WASI 0.3): its task takes it
//!         ─► a new one, while there may be more: as an idle one
//!         ─► the first that has nothing to do any more
//! ```
//!
//! # Invariants
//!
//! - An instance is in one hand: idle in the list, or with whoever drives it.
//! - Where a request goes, and whether an instance may rest, is decided under one lock: no request
//!   waits while an instance is idle.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use wasmtime::Store;
use wasmtime_wasi_http::handler::{Proxy, ProxyPre};

use super::life::{self, Life, Origin};
use super::reuse::{Retry, Reuse, Turn};
use super::slot::{Activity, Job, NoRoom, Slot};
use super::worker::{Membership, Seed, Shared};
use crate::guest::{Guest, Template};
use crate::hold::Hold;
use crate::lanes::{self, Lane, Ride};
use crate::tasks::Guests;
use crate::types::Exit;

/// An instance that is not the last one goes after this long without a request.
const IDLE_MAX: Duration = Duration::from_secs(5);
/// A request that took longer is given up together with its instance.
const REQUEST_MAX: Duration = Duration::from_secs(600);
/// How long a request waits for an instance when there is no room for another one.
const INSTANCE_WAIT_MAX: Duration = Duration::from_millis(500);
/// Requests in a row that have to be short before a container that computes is interactive again.
const CALM_REQUESTS: u8 = 8;

/// What the log is told of a component whose instances answer one request.
const ONE_REQUEST: &str = "the instances of this component answer one request each: from now on \
    every request gets a fresh one, as with the annotation edgeorc.io/instances: fresh";

/// See the module.
pub(super) struct Pool {
    template: Arc<Template>,
    guests: Arc<Guests>,
    pre: ProxyPre<Guest>,
    shared: Arc<Shared>,
    inner: Mutex<Inner>,
    /// Told when more than one instance is idle.
    crowd: Notify,
    /// Short requests that are still to come before this container is interactive again.
    heavy: AtomicU8,
}

struct Inner {
    /// Made when the container started, and not used yet.
    first: Option<(Store<Guest>, Proxy)>,
    /// Longest unused first.
    idle: VecDeque<Idle>,
    /// At work, with room for another request.
    roomy: Vec<Arc<Slot>>,
    waiting: VecDeque<(u64, Job)>,
    /// Number of the request that waited last.
    number: u64,
}

struct Idle {
    slot: Arc<Slot>,
    life: Life,
    since: Instant,
}

/// Where a request went.
pub(super) enum Way {
    /// To this instance, which somebody has to drive.
    To(Driver),
    /// To an instance that is driven, or it waits for one.
    Elsewhere,
}

impl Pool {
    /// Of the container that `template` describes, beginning with the instance in `seed`.
    pub(super) fn new(template: Arc<Template>, seed: Seed) -> Arc<Self> {
        let Seed { pre, first } = seed;
        let inner = Inner {
            first: Some(first),
            idle: VecDeque::new(),
            roomy: Vec::new(),
            waiting: VecDeque::new(),
            number: 0,
        };
        Arc::new(Self {
            guests: Arc::clone(template.net().guests()),
            // The first instance counts from now on, so that nobody waits for the end too early.
            shared: Shared::with_one(),
            template,
            pre,
            inner: Mutex::new(inner),
            crowd: Notify::new(),
            heavy: AtomicU8::new(0),
        })
    }

    pub(super) fn template(&self) -> &Arc<Template> {
        &self.template
    }

    pub(super) fn pre(&self) -> &ProxyPre<Guest> {
        &self.pre
    }

    /// What is known of instances with a request behind them.
    pub(super) fn reuse(&self) -> &Arc<Reuse> {
        &self.template.reuse
    }

    /// Whether instances may turn out to answer one request each. Those of WASI 0.3, which answer
    /// several at the same time, do not.
    pub(super) fn may_be_single_use(&self) -> bool {
        matches!(self.pre, ProxyPre::P2(_)) && self.reuse().is_unknown()
    }

    /// A response was given: traps before it are not in a row with those after it.
    pub(super) fn answered(&self, turn: &Turn, retry: Option<&Retry>) {
        self.reuse().answered(turn);
        if retry.is_some_and(Retry::helped) {
            self.template.log.say(ONE_REQUEST);
        }
        self.shared.answered();
    }

    pub(super) fn verdict(&self) -> Option<Exit> {
        self.shared.verdict()
    }

    /// Says how the container ends, unless that is clear already.
    pub(super) fn conclude(&self, exit: Exit) {
        self.shared.conclude(exit);
    }

    /// Finds out where a request goes.
    ///
    /// # Errors
    ///
    /// Why there is no store for a new instance.
    pub(super) fn place(self: &Arc<Self>, job: Job) -> wasmtime::Result<Way> {
        let mut inner = self.inner.lock();
        let found = inner.first.take().map(|(store, proxy)| {
            life::begin(self, Origin::Made(store, proxy), Membership::of_first(&self.shared))
        });
        let found = found.or_else(|| inner.idle.pop_back().map(|idle| (idle.slot, idle.life)));
        if let Some((slot, life)) = found {
            drop(inner);
            slot.put(job);
            return Ok(Way::To(Driver { pool: Arc::clone(self), slot, life: Some(life) }));
        }
        if let Some(slot) = inner.roomy.iter().find(|slot| !slot.has_jobs()) {
            slot.put(job);
            return Ok(Way::Elsewhere);
        }
        if let Some(member) = Membership::enter(&self.shared, self.template.instances_max) {
            drop(inner);
            let (slot, life) = life::begin(self, Origin::Fresh(self.template.store()?), member);
            slot.put(job);
            return Ok(Way::To(Driver { pool: Arc::clone(self), slot, life: Some(life) }));
        }
        self.wait(&mut inner, job);
        Ok(Way::Elsewhere)
    }

    /// Has a request wait for the first instance with nothing to do, at most [`INSTANCE_WAIT_MAX`].
    fn wait(self: &Arc<Self>, inner: &mut Inner, job: Job) {
        inner.number += 1;
        let number = inner.number;
        inner.waiting.push_back((number, job));
        let pool = Arc::clone(self);
        drop(self.guests.spawn(async move {
            tokio::time::sleep(INSTANCE_WAIT_MAX).await;
            pool.refuse(number);
        }));
    }

    /// Gives a request back that still waits.
    fn refuse(&self, number: u64) {
        let mut inner = self.inner.lock();
        let at = inner.waiting.iter().position(|(waiting, _)| *waiting == number);
        if let Some((_, job)) = at.and_then(|at| inner.waiting.remove(at)) {
            // Its caller may be gone.
            let _ = job.answer.send(Err(NoRoom(Mutex::new(job.request)).into()));
        }
    }

    /// Places a request whose caller is not here.
    fn place_again(self: &Arc<Self>, job: Job) {
        if job.is_given_up() {
            return;
        }
        // A store that cannot be made drops the request, and its caller hears that.
        if let Ok(Way::To(driver)) = self.place(job) {
            driver.start(Lane::Interactive);
        }
    }

    /// No instance could be made for the requests in `slot`: others may answer them.
    pub(super) fn not_made(self: &Arc<Self>, slot: &Slot, error: wasmtime::Error) {
        slot.fail();
        let mut jobs = slot.left_over();
        let mut inner = self.inner.lock();
        if self.shared.has_instances() && inner.idle.is_empty() {
            jobs.drain(..).for_each(|job| self.wait(&mut inner, job));
        }
        let has_idle = !inner.idle.is_empty();
        drop(inner);
        if has_idle {
            jobs.drain(..).for_each(|job| self.place_again(job));
        }
        if let Some(job) = jobs.pop_front() {
            let _ = job.answer.send(Err(error));
        }
    }

    /// An instance has nothing to do. Gives it back if a request waits for it.
    fn rest(&self, slot: &Arc<Slot>, life: Life) -> Option<Life> {
        let mut inner = self.inner.lock();
        inner.roomy.retain(|other| !Arc::ptr_eq(other, slot));
        if slot.has_jobs() {
            return Some(life);
        }
        while let Some((_, job)) = inner.waiting.pop_front() {
            if !job.is_given_up() {
                slot.put(job);
                return Some(life);
            }
        }
        if self.template.kill().is_cancelled() {
            drop(inner);
            drop(life);
            return None;
        }
        inner.idle.push_back(Idle { slot: Arc::clone(slot), life, since: Instant::now() });
        if inner.idle.len() > 1 {
            self.crowd.notify_one();
        }
        None
    }

    /// An instance is gone: what it left, and who waits for room, goes elsewhere.
    fn left(self: &Arc<Self>, slot: &Arc<Slot>) {
        let mut inner = self.inner.lock();
        inner.roomy.retain(|other| !Arc::ptr_eq(other, slot));
        // From here on nobody gives it another one.
        let mut jobs = slot.left_over();
        if !slot.has_failed() {
            let waiting = std::iter::from_fn(|| inner.waiting.pop_front());
            jobs.extend(waiting.map(|(_, job)| job).find(|job| !job.is_given_up()));
        } else if !self.shared.has_instances() {
            // Nobody is left who would take them; their callers hear that.
            inner.waiting.clear();
        }
        drop(inner);
        if !self.template.kill().is_cancelled() {
            jobs.into_iter().for_each(|job| self.place_again(job));
        }
    }

    /// Says whether an instance may get another request beside those that it has.
    fn share(self: &Arc<Self>, slot: &Arc<Slot>) {
        // One that computes is not told apart from one that waits, but by its time.
        let is_roomy = slot.is(Activity::Roomy) && !lanes::has_overrun();
        if !is_roomy && matches!(self.pre, ProxyPre::P2(_)) {
            return;
        }
        let mut inner = self.inner.lock();
        let known = inner.roomy.iter().position(|other| Arc::ptr_eq(other, slot));
        match known {
            None if is_roomy => inner.roomy.push(Arc::clone(slot)),
            Some(at) if !is_roomy => {
                drop(inner.roomy.swap_remove(at));
                // What came while it had no room any more goes elsewhere: this one may be busy for long.
                let jobs = slot.left_over();
                drop(inner);
                jobs.into_iter().for_each(|job| self.place_again(job));
                return;
            }
            _ => {}
        }
        if is_roomy && let Some((_, job)) = inner.waiting.pop_front() {
            slot.put(job);
        }
    }

    /// The lane in which the container's next request begins.
    fn lane(&self) -> Lane {
        if self.heavy.load(Ordering::Relaxed) > 0 { Lane::Batch } else { Lane::Interactive }
    }

    /// Takes note of whether a request was short.
    fn note(&self, has_overrun: bool) {
        if has_overrun {
            self.heavy.store(CALM_REQUESTS, Ordering::Relaxed);
        } else if self.heavy.load(Ordering::Relaxed) > 0 {
            self.heavy.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Lets instances go that nobody has needed for a while, but not the last one. Runs until it is
    /// dropped.
    pub(super) async fn keep(&self) {
        loop {
            self.crowd.notified().await;
            while let Some(oldest) = self.oldest() {
                tokio::time::sleep_until(oldest + IDLE_MAX).await;
                // Dropped without the lock.
                let _gone = self.spare();
            }
        }
    }

    /// Since when the longest unused of several idle instances is idle.
    fn oldest(&self) -> Option<Instant> {
        let inner = self.inner.lock();
        (inner.idle.len() > 1).then(|| inner.idle.front().map(|idle| idle.since)).flatten()
    }

    fn spare(&self) -> Vec<Idle> {
        let mut inner = self.inner.lock();
        let mut spare = Vec::new();
        while inner.idle.len() > 1
            && inner.idle.front().is_some_and(|idle| idle.since.elapsed() >= IDLE_MAX)
        {
            spare.extend(inner.idle.pop_front());
        }
        spare
    }

    /// Lets go of what does nothing, and waits until the others are gone; they go once the container
    /// is killed.
    pub(super) async fn gone(&self) {
        let (idle, waiting, first) = {
            let mut inner = self.inner.lock();
            let first = inner.first.take();
            (std::mem::take(&mut inner.idle), std::mem::take(&mut inner.waiting), first)
        };
        if first.is_some() {
            drop(Membership::of_first(&self.shared));
        }
        drop((idle, waiting, first));
        self.shared.gone().await;
    }
}

/// An instance that has something to do, and somebody to drive it.
pub(super) struct Driver {
    pool: Arc<Pool>,
    slot: Arc<Slot>,
    /// Taken when it goes back to the idle ones.
    life: Option<Life>,
}

impl Driver {
    /// Drives the instance to where it waits for something: here if this is a thread for that, which
    /// spares two changes of task, else on the guests' threads. What is left to do is done there.
    pub(super) async fn run(mut self) {
        let lane = self.pool.lane();
        let is_held = self.slot.burst.meter().is_held();
        if lane == Lane::Batch || is_held || !lanes::may_poll_here() {
            return self.start(lane);
        }
        let mut has_overrun = false;
        let polled = std::future::poll_fn(|cx| {
            let (polled, overran) = lanes::poll(|| self.drive(cx));
            has_overrun = overran;
            Poll::Ready(polled)
        });
        let polled = polled.await;
        self.pool.note(has_overrun);
        if polled.is_pending() {
            self.start(if has_overrun { Lane::Batch } else { Lane::Interactive });
        }
    }

    /// Drives the instance by a task, which ends with the container at the latest.
    fn start(self, lane: Lane) {
        let guests = Arc::clone(&self.pool.guests);
        Ride::start(guests, lane, Box::pin(self.until_done()));
    }

    async fn until_done(mut self) {
        let pool = Arc::clone(&self.pool);
        let slot = Arc::clone(&self.slot);
        let killed = pool.template.kill().cancelled();
        let mut late = std::pin::pin!(tokio::time::sleep(REQUEST_MAX));
        let mut killed = std::pin::pin!(killed);
        let mut hold = Hold::default();
        std::future::poll_fn(|cx| {
            if killed.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            ready!(hold.poll(slot.burst.meter(), cx));
            while late.as_mut().poll(cx).is_ready() {
                let ends_at = slot.began().unwrap_or_else(Instant::now) + REQUEST_MAX;
                if ends_at <= Instant::now() {
                    slot.give_up();
                    return self.drive(cx);
                }
                late.as_mut().reset(ends_at);
            }
            let polled = self.drive(cx);
            if polled.is_ready() || lanes::has_overrun() {
                pool.note(lanes::has_overrun());
            }
            polled
        })
        .await;
    }

    /// Polls the instance until it waits for something, rests or is gone; ready if there is nothing
    /// to drive any more.
    fn drive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(mut life) = self.life.take() {
            self.slot.burst.touch();
            let polled = Pin::new(&mut life).poll(cx);
            self.slot.burst.settle();
            if polled.is_ready() {
                drop(life);
                self.pool.left(&self.slot);
            } else if self.slot.is(Activity::Idle) {
                self.life = self.pool.rest(&self.slot, life);
            } else {
                self.life = Some(life);
                self.pool.share(&self.slot);
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }
}
