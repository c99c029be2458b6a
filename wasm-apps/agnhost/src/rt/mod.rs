//! Many things at once on the one thread a guest has: futures that wait for WASI's pollables.
//!
//! ```text
//! run(main) ──► poll what was woken ──► all asleep: wasi:io/poll blocks ──► wake whose turn it is ─┐
//!                    ▲                                                                            │
//!                    └────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! # Invariants
//!
//! A pollable is a child of the stream or socket it belongs to and must go first: it is dropped with
//! the future that waits for it, and that is dropped before what it borrows from.

mod time;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

pub(crate) use time::{sleep, timeout};
use wasip2::io::poll::{Pollable, poll};

type Task = Pin<Box<dyn Future<Output = ()>>>;

#[derive(Default)]
struct Reactor {
    waits: BTreeMap<u64, (Pollable, Option<Waker>)>,
    next: u64,
    spawned: Vec<Task>,
}

thread_local! {
    static REACTOR: RefCell<Reactor> = RefCell::default();
}

/// Whether a task has to be polled again.
struct Flag(AtomicBool);

impl Flag {
    fn raised() -> Arc<Self> {
        Arc::new(Self(AtomicBool::new(true)))
    }

    fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `main` to its end, and what it spawns beside it.
pub(crate) fn run<T>(main: impl Future<Output = T>) -> T {
    let mut main = pin!(main);
    let main_flag = Flag::raised();
    let mut tasks: Vec<(Arc<Flag>, Task)> = Vec::new();
    loop {
        if main_flag.take() {
            let waker = Waker::from(Arc::clone(&main_flag));
            if let Poll::Ready(value) = main.as_mut().poll(&mut Context::from_waker(&waker)) {
                return value;
            }
        }
        tasks.retain_mut(|(flag, task)| {
            if !flag.take() {
                return true;
            }
            let waker = Waker::from(Arc::clone(flag));
            task.as_mut().poll(&mut Context::from_waker(&waker)).is_pending()
        });
        let newcomers = REACTOR.with_borrow_mut(|reactor| std::mem::take(&mut reactor.spawned));
        let is_awake = !newcomers.is_empty()
            || main_flag.0.load(Ordering::Relaxed)
            || tasks.iter().any(|(flag, _)| flag.0.load(Ordering::Relaxed));
        tasks.extend(newcomers.into_iter().map(|task| (Flag::raised(), task)));
        if !is_awake {
            REACTOR.with_borrow(wait);
        }
    }
}

/// Runs `task` beside the others until it ends or the main one does.
pub(crate) fn spawn(task: impl Future<Output = ()> + 'static) {
    REACTOR.with_borrow_mut(|reactor| reactor.spawned.push(Box::pin(task)));
}

fn wait(reactor: &Reactor) {
    let (pollables, wakers): (Vec<_>, Vec<_>) =
        reactor.waits.values().map(|(pollable, waker)| (pollable, waker)).unzip();
    for index in poll(&pollables) {
        let waker = usize::try_from(index).ok().and_then(|index| wakers.get(index));
        if let Some(Some(waker)) = waker {
            waker.wake_by_ref();
        }
    }
}

/// Waits for a pollable.
pub(crate) struct Ready {
    id: u64,
}

/// Waits until `pollable` is ready.
pub(crate) fn ready(pollable: Pollable) -> Ready {
    REACTOR.with_borrow_mut(|reactor| {
        let id = reactor.next;
        reactor.next += 1;
        reactor.waits.insert(id, (pollable, None));
        Ready { id }
    })
}

impl Future for Ready {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        REACTOR.with_borrow_mut(|reactor| match reactor.waits.get_mut(&self.id) {
            Some((pollable, waker)) if !pollable.ready() => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        })
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        REACTOR.with_borrow_mut(|reactor| drop(reactor.waits.remove(&self.id)));
    }
}
