//! Which threads a guest runs on: the interactive ones, or the batch ones.
//!
//! A guest begins on the interactive threads, where a request is served without a change of thread.
//! Once it has computed for a tick or two it goes on in the batch lane, whose threads the kernel lets
//! run only where nobody else wants the processor; it comes back when it has blocked of its own will
//! a few times. So neighbours never wait longer than that for a guest that computes, and who
//! computes still gets all that is idle. Where nothing is idle for long, it is given some of the time
//! that it has waited for back on the interactive threads: it is slow then, and does not stand still.
//!
//! # Invariants
//!
//! - A future is polled in one lane at a time; going to another one is a new task there.
//! - Waiting for one's share or for the end of a throttle is computing as far as lanes are concerned.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::meter::TICK;
use crate::tasks::Guests;

/// Polls in a row that a guest of the batch lane has to end by itself before it is interactive again.
const CALM_POLLS: u8 = 8;

/// Part of the time that a guest of the batch lane was kept from running that it is given back.
const CREDIT_PART: u32 = 4;
/// Most that is given back at a time.
const CREDIT_MAX: Duration = Duration::from_millis(500);
/// Shorter waits are those of any thread.
const STARVED_MIN: Duration = Duration::from_millis(50);

/// A set of threads for guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// For guests that answer and wait.
    Interactive,
    /// For guests that compute.
    Batch,
}

thread_local! {
    /// Whether the guest that this thread polls has computed for a tick.
    static OVERRAN: Cell<bool> = const { Cell::new(false) };
    /// Time that it is given back.
    static CREDIT: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    /// Whether this thread polls a guest.
    static IS_IN_GUEST: Cell<bool> = const { Cell::new(false) };
}

/// The guest that this thread polls wants more time than a tick.
pub(crate) fn overrun() {
    OVERRAN.set(true);
}

/// The guest that this thread polls, of the batch lane, was kept from running for so long.
pub(crate) fn starved(time: Duration) {
    if time >= STARVED_MIN {
        CREDIT.set((time / CREDIT_PART).min(CREDIT_MAX));
    }
}

/// Whether the guest has computed for a tick in the poll that goes on.
pub(crate) fn has_overrun() -> bool {
    OVERRAN.get()
}

/// Whether this thread may poll a guest beside what else it does: it is an interactive one, and not in
/// the middle of another guest.
pub(crate) fn may_poll_here() -> bool {
    crate::tasks::lane_of_this_thread() == Some(Lane::Interactive) && !IS_IN_GUEST.get()
}

/// Polls a guest; says whether it has computed for a tick.
pub(crate) fn poll<T>(poll: impl FnOnce() -> Poll<T>) -> (Poll<T>, bool) {
    let outer = (OVERRAN.replace(false), IS_IN_GUEST.replace(true));
    let polled = poll();
    IS_IN_GUEST.set(outer.1);
    (polled, OVERRAN.replace(outer.0))
}

/// Where a guest that is in `lane` goes on after a poll that left it unfinished.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    lane: Lane,
    calm: u8,
    /// Time that it may compute on interactive threads.
    credit: Duration,
}

impl Place {
    pub(crate) fn new(lane: Lane) -> Self {
        Self { lane, calm: 0, credit: Duration::ZERO }
    }

    /// Takes note of a poll, and of time that is given back; the lane to change to, if it is another
    /// one.
    fn after(&mut self, has_overrun: bool, credit: Duration) -> Option<Lane> {
        self.calm = if has_overrun { 0 } else { self.calm.saturating_add(1) };
        let next = match self.lane {
            Lane::Interactive if has_overrun && self.credit.is_zero() => Lane::Batch,
            Lane::Interactive if has_overrun => {
                self.credit = self.credit.saturating_sub(TICK);
                Lane::Interactive
            }
            Lane::Batch if !credit.is_zero() => {
                self.credit = credit;
                Lane::Interactive
            }
            Lane::Batch if self.calm >= CALM_POLLS => Lane::Interactive,
            lane => lane,
        };
        (std::mem::replace(&mut self.lane, next) != next).then_some(next)
    }
}

/// A task that goes from lane to lane with the guest in it.
pub(crate) struct Ride<F> {
    /// Taken when it goes to another lane.
    future: Option<F>,
    guests: Arc<Guests>,
    place: Place,
}

impl<F: Future<Output = ()> + Unpin + Send + 'static> Ride<F> {
    /// Starts `future` in `lane`. Its end is its owner's business, as that of [`Guests::spawn`].
    pub(crate) fn start(guests: Arc<Guests>, lane: Lane, future: F) {
        let place = Place::new(lane);
        let ride = Self { future: Some(future), guests: Arc::clone(&guests), place };
        drop(guests.spawn_in(lane, ride));
    }

    /// As [`Ride::start`] in the interactive lane, with the first poll on this thread, which has to be one of
    /// the guests': a sleeping one takes a while to wake, now and then a tick of the kernel.
    pub(crate) fn start_here(guests: Arc<Guests>, future: F) {
        debug_assert!(crate::tasks::lane_of_this_thread().is_some(), "a thread of somebody else");
        let (lane, spawner) = (Lane::Interactive, Arc::clone(&guests));
        let mut ride = Self { future: Some(future), guests, place: Place::new(lane) };
        // A task polls at once: nothing is lost without a waker until then.
        if Pin::new(&mut ride).poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            drop(spawner.spawn_in(lane, ride));
        }
    }
}

impl<F: Future<Output = ()> + Unpin + Send + 'static> Future for Ride<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(mut future) = self.future.take() else { return Poll::Ready(()) };
        let (polled, has_overrun) = poll(|| Pin::new(&mut future).poll(cx));
        if polled.is_ready() {
            return Poll::Ready(());
        }
        let Some(next) = self.place.after(has_overrun, CREDIT.take()) else {
            self.future = Some(future);
            return Poll::Pending;
        };
        let (guests, place) = (Arc::clone(&self.guests), self.place);
        drop(self.guests.spawn_in(next, Self { future: Some(future), guests, place }));
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::tasks::lane_of_this_thread;

    #[test]
    fn who_computes_goes_to_the_batch_lane_and_comes_back_when_calm() {
        let mut place = Place::new(Lane::Interactive);
        let mut after = |has_overrun| place.after(has_overrun, Duration::ZERO);
        assert_eq!(after(false), None);
        assert_eq!(after(true), Some(Lane::Batch));
        for _ in 1..CALM_POLLS {
            assert_eq!(after(false), None);
        }
        assert_eq!(after(true), None, "it computes again");
        for _ in 1..CALM_POLLS {
            assert_eq!(after(false), None);
        }
        assert_eq!(after(false), Some(Lane::Interactive));
    }

    #[test]
    fn who_was_kept_from_running_gets_some_of_the_time_back() {
        let mut place = Place::new(Lane::Batch);
        starved(STARVED_MIN / 2);
        assert_eq!(place.after(true, CREDIT.take()), None, "that was a short wait");
        starved(TICK * 3 * CREDIT_PART + STARVED_MIN);
        let credit = CREDIT.take();
        assert_eq!(place.after(true, credit), Some(Lane::Interactive));
        for _ in 0..credit.as_micros().div_ceil(TICK.as_micros()) {
            assert_eq!(place.after(true, CREDIT.take()), None);
        }
        assert_eq!(place.after(true, CREDIT.take()), Some(Lane::Batch));
    }

    #[test]
    fn a_poll_within_a_poll_leaves_the_outer_mark_alone() {
        let (_, outer) = poll(|| {
            overrun();
            let (_, inner) = poll(|| Poll::Ready(()));
            assert!(!inner);
            Poll::Ready(())
        });
        assert!(outer);
        assert!(!poll(|| Poll::Ready(())).1);
    }

    #[tokio::test]
    async fn a_ride_that_starts_here_goes_on_with_the_others() {
        let guests = Arc::new(Guests::start(1).unwrap());
        let (tell, told) = oneshot::channel();
        let mut tell = Some(tell);
        let mut seen = Vec::new();
        let future = std::future::poll_fn(move |cx| {
            seen.push(std::thread::current().id());
            cx.waker().wake_by_ref();
            if seen.len() < 3 {
                return Poll::Pending;
            }
            let _ = tell.take().map(|tell| tell.send(std::mem::take(&mut seen)));
            Poll::Ready(())
        });
        let ours = Arc::clone(&guests);
        let start = move || {
            Ride::start_here(ours, future);
            std::thread::current().id()
        };
        let here = guests.spawn_blocking(start).await.unwrap();
        let seen = told.await.unwrap();
        assert_eq!(seen[0], here);
        assert!(seen[1] != here && seen[2] == seen[1], "{here:?} {seen:?}");
    }

    #[tokio::test]
    async fn a_ride_goes_on_where_its_guest_belongs() {
        let guests = Arc::new(Guests::start(1).unwrap());
        let (tell, told) = oneshot::channel();
        let mut tell = Some(tell);
        let mut seen = Vec::new();
        let future = std::future::poll_fn(move |cx| {
            seen.push(lane_of_this_thread());
            if seen.len() == 1 {
                overrun();
            }
            cx.waker().wake_by_ref();
            if seen.len() < usize::from(CALM_POLLS) + 3 {
                return Poll::Pending;
            }
            let _ = tell.take().map(|tell| tell.send(std::mem::take(&mut seen)));
            Poll::Ready(())
        });
        Ride::start(Arc::clone(&guests), Lane::Interactive, future);
        let seen = told.await.unwrap();
        assert_eq!(seen[0], Some(Lane::Interactive));
        assert!(seen[1..=usize::from(CALM_POLLS)].iter().all(|lane| *lane == Some(Lane::Batch)));
        assert_eq!(seen[usize::from(CALM_POLLS) + 1], Some(Lane::Interactive));
    }
}
