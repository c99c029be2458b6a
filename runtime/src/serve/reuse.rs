//! Components that answer only one request per instance, and how that is found out.
//!
//! Some toolchains make such components, and nothing in them says so: the second request traps. Until
//! an instance has answered a second request, a request that fails as the second of its instance is
//! given to a fresh one, if nothing of it was used up. When that has helped [`FAILURES_MAX`] times,
//! every request gets a fresh instance.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use wasmtime_wasi_http::{Error, WasiBody};

/// Second requests that failed, and did not on a fresh instance, after which there are no second ones.
const FAILURES_MAX: u32 = 3;

/// What is known of a component; shared by all containers that run it.
#[derive(Debug, Default)]
pub(crate) struct Reuse {
    /// An instance has answered a second request.
    works: AtomicBool,
    /// Second requests that only a fresh instance answered.
    failures: AtomicU32,
    /// Requests that are being given to a fresh instance.
    retries: AtomicUsize,
}

impl Reuse {
    /// Whether an instance with a request behind it takes none any more.
    pub(super) fn is_off(&self) -> bool {
        self.failures.load(Ordering::Relaxed) >= FAILURES_MAX
            || self.retries.load(Ordering::Relaxed) > 0
    }

    /// Whether it is still to be found out.
    pub(super) fn is_unknown(&self) -> bool {
        !self.works.load(Ordering::Relaxed) && self.failures.load(Ordering::Relaxed) < FAILURES_MAX
    }

    /// A request was answered; `turn` says which one of its instance.
    pub(super) fn answered(&self, turn: &Turn) {
        if turn.get() >= 2 && !self.works.load(Ordering::Relaxed) {
            self.works.store(true, Ordering::Relaxed);
        }
    }

    /// Until the guard is dropped, instances are fresh.
    pub(super) fn retry(self: &Arc<Self>) -> Retry {
        self.retries.fetch_add(1, Ordering::Relaxed);
        Retry(Arc::clone(self))
    }
}

/// A request on its second try.
pub(super) struct Retry(Arc<Reuse>);

impl Retry {
    /// A fresh instance has answered it. Says whether that settles it.
    pub(super) fn helped(&self) -> bool {
        !self.0.works.load(Ordering::Relaxed)
            && self.0.failures.fetch_add(1, Ordering::Relaxed) + 1 == FAILURES_MAX
    }
}

impl Drop for Retry {
    fn drop(&mut self) {
        self.0.retries.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Which request of its instance a request is; 0 before an instance took it.
#[derive(Debug, Clone, Default)]
pub(super) struct Turn(Arc<AtomicUsize>);

impl Turn {
    pub(super) fn set(&self, turn: usize) {
        self.0.store(turn, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// A copy of a request, with the same body.
pub(super) struct Spare {
    parts: http::request::Parts,
    body: Arc<Lent>,
}

/// A body that can be taken back as long as nothing was read of it.
struct Lent {
    body: Mutex<Option<WasiBody>>,
    is_touched: AtomicBool,
}

impl Spare {
    /// Makes one, and the request to be sent.
    pub(super) fn of(request: http::Request<WasiBody>) -> (Self, http::Request<WasiBody>) {
        let (parts, body) = request.into_parts();
        let lent =
            Arc::new(Lent { body: Mutex::new(Some(body)), is_touched: AtomicBool::new(false) });
        let loan = Loan(Arc::clone(&lent)).boxed_unsync();
        let request = http::Request::from_parts(parts.clone(), loan);
        (Self { parts, body: lent }, request)
    }

    /// The request again, if nothing of its body was read.
    pub(super) fn into_request(self) -> Option<http::Request<WasiBody>> {
        let body = self.body.body.lock().take()?;
        let is_touched = self.body.is_touched.load(Ordering::SeqCst);
        (!is_touched).then(|| http::Request::from_parts(self.parts, body))
    }
}

/// The body as it is lent.
struct Loan(Arc<Lent>);

impl HttpBody for Loan {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut body = self.0.body.lock();
        let Some(body) = body.as_mut() else { return Poll::Ready(None) };
        let frame = Pin::new(body).poll_frame(cx);
        if frame.is_ready() {
            self.0.is_touched.store(true, Ordering::SeqCst);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.0.body.lock().as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.body.lock().as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    fn request() -> http::Request<WasiBody> {
        let body = Full::new(Bytes::from_static(b"body")).map_err(|never| match never {});
        http::Request::post("http://a/b").header("c", "d").body(body.boxed_unsync()).unwrap()
    }

    #[tokio::test]
    async fn a_request_is_whole_again_as_long_as_nothing_was_read() {
        let (spare, sent) = Spare::of(request());
        assert_eq!((sent.uri().path(), sent.body().size_hint().exact()), ("/b", Some(4)));
        drop(sent);
        let again = spare.into_request().unwrap();
        assert_eq!(
            (again.method().as_str(), &again.headers()["c"]),
            ("POST", &"d".parse().unwrap())
        );
        assert_eq!(again.into_body().collect().await.unwrap().to_bytes(), "body");
        let (spare, mut sent) = Spare::of(request());
        sent.body_mut().frame().await.unwrap().unwrap();
        assert!(spare.into_request().is_none());
    }

    #[test]
    fn only_what_has_never_worked_is_found_to_fail() {
        let second = Turn::default();
        second.set(2);
        let reuse = Arc::new(Reuse::default());
        assert!(reuse.is_unknown() && !reuse.is_off());
        let retry = reuse.retry();
        assert!(reuse.is_off() && !retry.helped());
        drop(retry);
        assert!(!reuse.is_off() && !reuse.retry().helped() && reuse.retry().helped());
        assert!(reuse.is_off() && !reuse.is_unknown());
        let reuse = Arc::new(Reuse::default());
        reuse.answered(&second);
        for _ in 0..10 {
            assert!(!reuse.retry().helped());
        }
        assert!(!reuse.is_off() && !reuse.is_unknown());
    }
}
