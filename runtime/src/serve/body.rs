//! Bodies on their way between the network and instances.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use pin_project_lite::pin_project;
use wasmtime_wasi_http::{Error, WasiBody};

use super::Ticket;
use crate::types::{Body, BodyError};

/// The body as a guest reads it.
pub(crate) fn to_wasi(body: Body) -> WasiBody {
    body.map_err(|error: BodyError| match error.downcast::<Error>() {
        Ok(error) => *error,
        Err(error) => Error::InternalError(Some(error.to_string())),
    })
    .boxed_unsync()
}

/// The body as the network reads it.
pub(crate) fn from_wasi(body: WasiBody) -> Body {
    body.map_err(BodyError::from).boxed_unsync()
}

/// A body's error as hyper takes it.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct HyperBodyError(BodyError);

pin_project! {
    /// The body as hyper sends it. A type of its own and not a mapping, because the compiler
    /// cannot prove tasks with the mapping to be `Send`.
    pub(crate) struct HyperBody {
        #[pin]
        body: Body,
    }
}

/// The body as hyper sends it.
pub(crate) fn to_hyper(body: Body) -> HyperBody {
    HyperBody { body }
}

impl HttpBody for HyperBody {
    type Data = Bytes;
    type Error = HyperBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HyperBodyError>>> {
        let frame = std::task::ready!(self.project().body.poll_frame(cx));
        Poll::Ready(frame.map(|frame| frame.map_err(HyperBodyError)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

pin_project! {
    /// The body of a response; its request is in flight until the end.
    pub(super) struct Tracked {
        #[pin]
        body: WasiBody,
        ticket: Option<Ticket>,
    }
}

impl Tracked {
    pub(super) fn new(body: WasiBody, ticket: Ticket) -> Self {
        Self { body, ticket: Some(ticket) }
    }
}

impl HttpBody for Tracked {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.project();
        let frame = std::task::ready!(this.body.poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            *this.ticket = None;
        }
        Poll::Ready(frame.map(|frame| frame.map_err(|error| BodyError::from(Box::new(error)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
