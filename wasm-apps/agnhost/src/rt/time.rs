//! Waiting for time to pass.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use wasip2::clocks::monotonic_clock::subscribe_duration;

use super::ready;

/// Waits for a while.
pub(crate) async fn sleep(time: Duration) {
    ready(subscribe_duration(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))).await;
}

/// Waits for `work`, but not longer than `limit`: `None` then, and the work is dropped.
pub(crate) async fn timeout<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    let mut clock = pin!(sleep(limit));
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => clock.as_mut().poll(cx).map(|()| None),
    })
    .await
}
