//! The place of one instance: requests go in, and it says what it is doing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::Waker;

use futures_channel::oneshot;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::time::Instant;
use wasmtime_wasi_http::WasiBody;

use super::reuse::Turn;
use crate::meter::Burst;

/// What comes back for a request.
pub(super) type Answer = wasmtime::Result<http::Response<WasiBody>>;

/// A request on its way to an instance.
pub(super) struct Job {
    pub(super) request: http::Request<WasiBody>,
    pub(super) turn: Turn,
    pub(super) answer: oneshot::Sender<Answer>,
}

impl Job {
    /// Whether nobody waits for the answer any more.
    pub(super) fn is_given_up(&self) -> bool {
        self.answer.is_canceled()
    }
}

/// No instance had room for the request in time. Nobody has seen it.
#[derive(Debug, thiserror::Error)]
#[error("no instance has room for the request")]
pub(super) struct NoRoom(pub(super) Mutex<http::Request<WasiBody>>);

/// What an instance does between two polls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Activity {
    /// Nothing, and it takes the next request.
    Idle,
    /// It works, and takes no other request meanwhile.
    Busy,
    /// It waits for something, and takes another request meanwhile.
    Roomy,
}

/// A request that an instance has taken.
pub(super) struct Turnover<'a> {
    slot: &'a Slot,
    number: usize,
}

impl Drop for Turnover<'_> {
    fn drop(&mut self) {
        self.slot.began.lock().retain(|(number, _)| *number != self.number);
    }
}

/// One instance, as the others see it.
pub(super) struct Slot {
    inbox: Mutex<VecDeque<Job>>,
    waker: AtomicWaker,
    activity: AtomicU8,
    /// The requests that it has taken and not ended yet, by number, and when each began.
    began: Mutex<Vec<(usize, Instant)>>,
    /// One of them takes too long.
    is_late: AtomicBool,
    /// It could not be made.
    is_failed: AtomicBool,
    pub(super) burst: Arc<Burst>,
}

impl Slot {
    pub(super) fn new(burst: Arc<Burst>) -> Arc<Self> {
        Arc::new(Self {
            inbox: Mutex::default(),
            waker: AtomicWaker::new(),
            activity: AtomicU8::new(Activity::Busy as u8),
            began: Mutex::default(),
            is_late: AtomicBool::new(false),
            is_failed: AtomicBool::new(false),
            burst,
        })
    }

    /// Hands it a request. Whoever drives it is woken.
    pub(super) fn put(&self, job: Job) {
        self.inbox.lock().push_back(job);
        self.waker.wake();
    }

    /// The next request that somebody still waits for.
    pub(super) fn take(&self) -> Option<Job> {
        let mut inbox = self.inbox.lock();
        let job = std::iter::from_fn(|| inbox.pop_front()).find(|job| !job.is_given_up())?;
        Some(job)
    }

    /// A request begins; until what it gives is dropped.
    pub(super) fn begin(&self, number: usize) -> Turnover<'_> {
        self.began.lock().push((number, Instant::now()));
        Turnover { slot: self, number }
    }

    /// What nobody has taken.
    pub(super) fn left_over(&self) -> VecDeque<Job> {
        std::mem::take(&mut *self.inbox.lock())
    }

    pub(super) fn has_jobs(&self) -> bool {
        !self.inbox.lock().is_empty()
    }

    /// Who is woken when a request comes.
    pub(super) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    pub(super) fn set(&self, activity: Activity) {
        self.activity.store(activity as u8, Ordering::Release);
    }

    pub(super) fn is(&self, activity: Activity) -> bool {
        self.activity.load(Ordering::Acquire) == activity as u8
    }

    /// When the oldest request began that goes on.
    pub(super) fn began(&self) -> Option<Instant> {
        self.began.lock().iter().map(|(_, began)| *began).min()
    }

    /// A request takes too long: the instance ends at its next poll.
    pub(super) fn give_up(&self) {
        self.is_late.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.is_late.load(Ordering::Relaxed)
    }

    /// There was no room for it.
    pub(super) fn fail(&self) {
        self.is_failed.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_failed(&self) -> bool {
        self.is_failed.load(Ordering::Relaxed)
    }
}
