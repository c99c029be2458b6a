//! Bodies at the ingress: requests with a limit, and the bodies of its answers.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt as _, Full};
use tokio::time::{Instant, Sleep};

use super::refusal::Refusal;
use super::stalled;
use crate::mesh::call::Tracked;
use crate::net::{Body, BodyError};
use crate::telemetry::trace::Span;

/// Longest pause within a request's body.
pub(super) const BODY_PAUSE_MAX: Duration = Duration::from_secs(60);

/// How long the first piece of an answer may keep back its head.
const BEGIN_MAX: Duration = Duration::from_millis(20);

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
    /// Any of them, whose first piece was taken already; `rest` is `None` if that was all.
    Begun {
        first: Option<Frame<Bytes>>,
        rest: Option<Box<AnswerBody>>,
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
            Self::Begun { first, rest } => match (first.take(), rest) {
                (Some(first), _) => Poll::Ready(Some(Ok(first))),
                (None, Some(rest)) => HttpBody::poll_frame(Pin::new(rest.as_mut()), cx),
                (None, None) => Poll::Ready(None),
            },
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
            Self::Begun { first, rest } => {
                first.is_none() && rest.as_ref().is_none_or(|rest| HttpBody::is_end_stream(&**rest))
            }
            Self::Traced { body, .. } => HttpBody::is_end_stream(body.as_ref()),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Pod { body } => HttpBody::size_hint(body),
            Self::Line { body } => HttpBody::size_hint(body),
            Self::Other { body } => HttpBody::size_hint(body),
            Self::Begun { first, rest } => {
                let data = first.as_ref().and_then(Frame::data_ref).map_or(0, Bytes::len);
                let data = u64::try_from(data).unwrap_or(u64::MAX);
                let rest = rest.as_ref().map(|rest| HttpBody::size_hint(&**rest));
                let rest = rest.unwrap_or_else(|| SizeHint::with_exact(0));
                let mut hint = SizeHint::new();
                hint.set_lower(rest.lower().saturating_add(data));
                if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(data)) {
                    hint.set_upper(upper);
                }
                hint
            }
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

/// What became of a request's body that was not there with its head.
#[derive(Debug, Default)]
pub(super) struct Fate {
    /// Why it was cut off; what failed later failed for that.
    refusal: OnceLock<Refusal>,
    is_whole: AtomicBool,
}

impl Fate {
    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.refusal.get().cloned()
    }

    fn is_whole(&self) -> bool {
        self.is_whole.load(Ordering::Relaxed)
    }
}

/// A request's body that ends with an error beyond `bytes_max`, or after too long a pause; and its fate, unless it
/// is at its end already.
///
/// # Errors
///
/// It says itself that it is larger.
pub(super) fn limited<B: ClientBody>(
    body: B,
    bytes_max: u64,
) -> Result<(Body, Option<Arc<Fate>>), Refusal> {
    if HttpBody::is_end_stream(&body) {
        return Ok((body.map_err(Into::into).boxed_unsync(), None));
    }
    if HttpBody::size_hint(&body).exact().is_some_and(|bytes| bytes > bytes_max) {
        return Err(Refusal::TooLarge);
    }
    let fate = Arc::new(Fate::default());
    let limited = Limited { body, left: bytes_max, fate: Arc::clone(&fate), pause: None };
    Ok((limited.boxed_unsync(), Some(fate)))
}

struct Limited<B> {
    body: B,
    left: u64,
    fate: Arc<Fate>,
    /// Made when the client first lets us wait.
    pause: Option<Pin<Box<Sleep>>>,
}

impl<B: ClientBody> Limited<B> {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Refusal>>> {
        let Poll::Ready(frame) = HttpBody::poll_frame(Pin::new(&mut self.body), cx) else {
            let pause =
                self.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep(BODY_PAUSE_MAX)));
            return pause.as_mut().poll(cx).map(|()| Some(Err(Refusal::TooSlow)));
        };
        if let Some(pause) = &mut self.pause {
            pause.as_mut().reset(Instant::now() + BODY_PAUSE_MAX);
        }
        let Some(frame) = frame else { return Poll::Ready(None) };
        let frame = match frame {
            Ok(frame) => frame,
            Err(err) => return Poll::Ready(Some(Err(unreadable(&err.into())))),
        };
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        match self.left.checked_sub(u64::try_from(bytes).unwrap_or(u64::MAX)) {
            Some(left) => self.left = left,
            None => return Poll::Ready(Some(Err(Refusal::TooLarge))),
        }
        Poll::Ready(Some(Ok(frame)))
    }
}

impl<B: ClientBody> HttpBody for Limited<B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let piece = std::task::ready!(self.poll_piece(cx));
        if piece.is_none() || HttpBody::is_end_stream(&self.body) {
            self.fate.is_whole.store(true, Ordering::Relaxed);
        }
        Poll::Ready(piece.map(|piece| {
            piece.map_err(|refusal| {
                let err = refusal.to_string();
                // The first reason is the one.
                let _ = self.fate.refusal.set(refusal);
                err.into()
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        HttpBody::is_end_stream(&self.body)
    }

    fn size_hint(&self) -> SizeHint {
        HttpBody::size_hint(&self.body)
    }
}

/// Why a body cannot be read: it is no chunks, or its client is gone.
fn unreadable(err: &BodyError) -> Refusal {
    let cause = err.downcast_ref::<hyper::Error>().and_then(std::error::Error::source);
    let kind = cause.and_then(|cause| cause.downcast_ref()).map(io::Error::kind);
    match kind {
        Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => Refusal::Malformed,
        _ => Refusal::Broken,
    }
}

/// Waits for the first piece of an answer that came before the client's body was whole, for [`BEGIN_MAX`] at
/// most: what turns out bad meanwhile can be refused, as it cannot once a head was sent.
///
/// # Errors
///
/// What the client's body was refused for; [`Refusal::BadGateway`] when the answer broke off.
pub(super) async fn begun(
    answer: Response<AnswerBody>,
    fate: &Fate,
) -> Result<Response<AnswerBody>, Refusal> {
    if fate.is_whole() || HttpBody::is_end_stream(answer.body()) {
        return fate.refusal().map_or(Ok(answer), Err);
    }
    let (parts, mut body) = answer.into_parts();
    let first = tokio::time::timeout(BEGIN_MAX, body.frame()).await;
    if let Some(refusal) = fate.refusal() {
        return Err(refusal);
    }
    let body = match first {
        Err(_) => body,
        Ok(None) => AnswerBody::Begun { first: None, rest: None },
        Ok(Some(Ok(first))) => AnswerBody::Begun { first: Some(first), rest: Some(body.into()) },
        Ok(Some(Err(_))) => return Err(Refusal::BadGateway),
    };
    Ok(Response::from_parts(parts, body))
}
