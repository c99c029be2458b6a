//! Guests that may not run for now: they are not polled until they may, or are stopped.
//!
//! A process that was stopped, or whose machine was suspended, goes on where it was, and its guests before
//! anybody can stop them. So whether a guest may run is asked where it would: before each poll, and at each
//! tick of one that computes.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::Sleep;

use crate::meter::{Burst, Meter};

/// Pause between two looks at whether a guest may go on.
pub(crate) const LOOK: Duration = Duration::from_millis(20);

/// Says whether a guest may run now. Asked often, and from any thread: must be quick and not wait.
#[derive(Clone)]
pub struct MayRun(Arc<dyn Fn() -> bool + Send + Sync>);

impl fmt::Debug for MayRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MayRun").field(&(self.0)()).finish()
    }
}

impl MayRun {
    /// Asks `may_run`.
    #[must_use]
    pub fn new(may_run: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(may_run))
    }

    pub(crate) fn now(&self) -> bool {
        (self.0)()
    }
}

/// Keeps one guest from being polled.
#[derive(Debug, Default)]
pub(crate) struct Hold(Option<Pin<Box<Sleep>>>);

impl Hold {
    /// Ready while the guest of `meter` may run. What woke it meanwhile is not lost: it is polled when it
    /// may run again.
    pub(crate) fn poll(&mut self, meter: &Meter, cx: &mut Context<'_>) -> Poll<()> {
        while meter.is_held() {
            let look = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep(LOOK)));
            ready!(look.as_mut().poll(cx));
            self.0 = None;
        }
        self.0 = None;
        Poll::Ready(())
    }
}

pin_project! {
    /// A future whose polls are a guest's running.
    pub(crate) struct Metered<F> {
        #[pin]
        future: F,
        burst: Arc<Burst>,
        hold: Hold,
    }
}

impl<F> Metered<F> {
    pub(crate) fn new(burst: Arc<Burst>, future: F) -> Self {
        Self { future, burst, hold: Hold::default() }
    }
}

impl<F: Future> Future for Metered<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        ready!(this.hold.poll(this.burst.meter(), cx));
        this.burst.touch();
        let poll = this.future.poll(cx);
        this.burst.settle();
        poll
    }
}
