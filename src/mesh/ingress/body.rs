//! Bodies at the ingress: requests with a limit, and the bodies of its answers.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt as _, Full};
use tokio::time::{Instant, Sleep};

use super::stalled;
use crate::mesh::call::Tracked;
use crate::net::{Body, BodyError};
use crate::telemetry::trace::Span;

/// Longest pause within a request's body.
pub(super) const BODY_PAUSE_MAX: Duration = Duration::from_secs(60);

/// A pod's body, or a line of ours.
pub(super) enum AnswerBody {
    Pod {
        body: Tracked,
    },
    Line {
        body: Full<Bytes>,
    },
    Other {
        body: Body,
    },
    /// Any of them, with the span of a sampled trace that lasts as long.
    Traced {
        body: Box<AnswerBody>,
        _span: Span,
    },
}

impl std::fmt::Debug for AnswerBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AnswerBody").finish_non_exhaustive()
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = match self.get_mut() {
            Self::Pod { body } => HttpBody::poll_frame(Pin::new(body), cx),
            Self::Line { body } => {
                HttpBody::poll_frame(Pin::new(body), cx).map_err(|never| match never {})
            }
            Self::Other { body } => HttpBody::poll_frame(Pin::new(body), cx),
            Self::Traced { body, .. } => HttpBody::poll_frame(Pin::new(body.as_mut()), cx),
        };
        match &polled {
            Poll::Ready(Some(Ok(_))) => stalled::gave_data(),
            _ => stalled::waits_for_nobody(),
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Pod { body } => HttpBody::is_end_stream(body),
            Self::Line { body } => HttpBody::is_end_stream(body),
            Self::Other { body } => HttpBody::is_end_stream(body),
            Self::Traced { body, .. } => HttpBody::is_end_stream(body.as_ref()),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Pod { body } => HttpBody::size_hint(body),
            Self::Line { body } => HttpBody::size_hint(body),
            Self::Other { body } => HttpBody::size_hint(body),
            Self::Traced { body, .. } => HttpBody::size_hint(body.as_ref()),
        }
    }
}

/// The body of a client's request, by whatever version of HTTP it came.
pub(super) trait ClientBody:
    HttpBody<Data = Bytes, Error: Into<BodyError>> + Send + Unpin + 'static
{
}

impl<B> ClientBody for B where
    B: HttpBody<Data = Bytes, Error: Into<BodyError>> + Send + Unpin + 'static
{
}

/// Whether a request's body was cut off for its size: what failed later failed for that.
#[derive(Debug, Clone, Default)]
pub(super) struct WasTooLarge(Option<Arc<AtomicBool>>);

impl WasTooLarge {
    pub(super) fn get(&self) -> bool {
        self.0.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed))
    }
}

/// A request's body that ends with an error beyond `bytes_max`, or after too long a pause.
///
/// `None`: it says itself that it is larger.
pub(super) fn limited<B: ClientBody>(body: B, bytes_max: u64) -> Option<(Body, WasTooLarge)> {
    if HttpBody::is_end_stream(&body) {
        return Some((body.map_err(Into::into).boxed_unsync(), WasTooLarge::default()));
    }
    let flag = match HttpBody::size_hint(&body).exact() {
        Some(bytes) if bytes > bytes_max => return None,
        // The length is kept by the codec; nothing needs to be counted.
        Some(_) => None,
        None => Some(Arc::new(AtomicBool::new(false))),
    };
    let too_large = WasTooLarge(flag.clone());
    let limited = Limited { body, left: bytes_max, too_large: flag, pause: None };
    Some((limited.boxed_unsync(), too_large))
}

struct Limited<B> {
    body: B,
    left: u64,
    too_large: Option<Arc<AtomicBool>>,
    /// Made when the client first lets us wait.
    pause: Option<Pin<Box<Sleep>>>,
}

impl<B: ClientBody> HttpBody for Limited<B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let Poll::Ready(frame) = HttpBody::poll_frame(Pin::new(&mut this.body), cx) else {
            let pause =
                this.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep(BODY_PAUSE_MAX)));
            return match pause.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Some(Err("the client sends too slowly".into()))),
                Poll::Pending => Poll::Pending,
            };
        };
        if let Some(pause) = &mut this.pause {
            pause.as_mut().reset(Instant::now() + BODY_PAUSE_MAX);
        }
        let Some(frame) = frame else { return Poll::Ready(None) };
        let frame = match frame {
            Ok(frame) => frame,
            Err(err) => return Poll::Ready(Some(Err(err.into()))),
        };
        if let (Some(flag), Some(data)) = (&this.too_large, frame.data_ref()) {
            let bytes = u64::try_from(data.len()).unwrap_or(u64::MAX);
            match this.left.checked_sub(bytes) {
                Some(left) => this.left = left,
                None => {
                    flag.store(true, Ordering::Relaxed);
                    return Poll::Ready(Some(Err("the body is too large".into())));
                }
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        HttpBody::is_end_stream(&self.body)
    }

    fn size_hint(&self) -> SizeHint {
        HttpBody::size_hint(&self.body)
    }
}
