//! Streams of HTTP/2 that their client does not read.
//!
//! A connection that takes nothing at all ends by its own timeout. One that goes on, but gives a
//! stream no window, keeps that stream's answer in memory: each stream has a timeout of its own.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};

use super::server::WRITE_PAUSE_MAX;

tokio::task_local! {
    static PROGRESS: Arc<Progress>;
}

/// Since when data waits for the client. One task at a time looks at it.
#[derive(Debug, Default)]
struct Progress(Mutex<Option<Instant>>);

/// An answer's body has given data, which is asked for only when the last has found room.
pub(super) fn gave_data() {
    let _ = PROGRESS.try_with(|progress| *progress.0.lock() = Some(Instant::now()));
}

/// An answer's body is at its end, or waits for a pod: nobody waits for the client.
pub(super) fn waits_for_nobody() {
    let _ = PROGRESS.try_with(|progress| *progress.0.lock() = None);
}

pin_project! {
    /// The future of one stream; it ends early when its client takes nothing for
    /// [`WRITE_PAUSE_MAX`], which resets the stream.
    pub(super) struct Watched<F> {
        #[pin]
        stream: F,
        progress: Arc<Progress>,
        // Made when the client first lets us wait.
        pause: Option<Pin<Box<Sleep>>>,
    }
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    InOrder,
    NotRead,
}

impl<F> Watched<F> {
    pub(super) fn new(stream: F) -> Self {
        Self { stream, progress: Arc::default(), pause: None }
    }
}

impl<F: Future<Output = ()>> Future for Watched<F> {
    type Output = Ended;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let this = self.project();
        let stream = this.stream;
        let polled = PROGRESS.sync_scope(Arc::clone(this.progress), || stream.poll(cx));
        if polled.is_ready() {
            return Poll::Ready(Ended::InOrder);
        }
        let Some(since) = *this.progress.0.lock() else { return Poll::Pending };
        let until = since + WRITE_PAUSE_MAX;
        let pause = this.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if pause.deadline() != until {
            pause.as_mut().reset(until);
        }
        pause.as_mut().poll(cx).map(|()| Ended::NotRead)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_when_its_data_finds_no_room_for_too_long_and_only_then() {
        let started = Instant::now();
        let never_read = async {
            gave_data();
            std::future::pending::<()>().await;
        };
        assert_eq!(Watched::new(never_read).await, Ended::NotRead);
        assert_eq!(started.elapsed(), WRITE_PAUSE_MAX);
        let slow = async {
            for _ in 0..10 {
                gave_data();
                tokio::time::sleep(WRITE_PAUSE_MAX - Duration::from_secs(1)).await;
            }
            // A pod that says nothing for long is no fault of the client.
            waits_for_nobody();
            tokio::time::sleep(10 * WRITE_PAUSE_MAX).await;
        };
        assert_eq!(Watched::new(slow).await, Ended::InOrder);
    }
}
