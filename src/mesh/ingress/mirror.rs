//! Copies of requests for other backends. The request itself never waits for its copies.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::{Request, request};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tracing::debug;

use super::action;
use crate::mesh::Mesh;
use crate::mesh::balancer::Backend;
use crate::mesh::policy::Origin;
use crate::net::http::{empty, full};
use crate::net::{Body, BodyError};

/// Bytes of a request's body beyond which no copy is made.
const MIRROR_BYTES_MAX: usize = 256 * 1024;

type Mirror = action::Mirror<Arc<Backend>>;

impl Mesh {
    /// The request, of which copies go out once its body is complete.
    pub(super) fn mirror(&self, mirrors: &[Mirror], request: Request<Body>) -> Request<Body> {
        let is_chosen = |mirror: &&Mirror| {
            let denominator = usize::try_from(mirror.denominator).unwrap_or(usize::MAX).max(1);
            let below = self.0.dice.below(denominator);
            u32::try_from(below).is_ok_and(|below| below < mirror.numerator)
        };
        let backends: Vec<Arc<Backend>> =
            mirrors.iter().filter(is_chosen).filter_map(|mirror| mirror.backend.clone()).collect();
        if backends.is_empty() {
            return request;
        }
        if request.body().is_end_stream() {
            let (parts, body) = request.into_parts();
            self.send_copies(&backends, &parts, &Bytes::new());
            return Request::from_parts(parts, body);
        }
        let (parts, body) = request.into_parts();
        let mesh = self.clone();
        let head = parts.clone();
        let tee = Tee {
            body,
            copy: Some(BytesMut::new()),
            done: Some(Box::new(move |body| mesh.send_copies(&backends, &head, &body))),
        };
        Request::from_parts(parts, tee.boxed_unsync())
    }

    fn send_copies(&self, backends: &[Arc<Backend>], parts: &request::Parts, body: &Bytes) {
        for backend in backends {
            let Ok(permit) = Arc::clone(&self.0.ingress.mirrors).try_acquire_owned() else {
                debug!("too many copies of requests are under way");
                return;
            };
            let (mesh, backend, parts) = (self.clone(), Arc::clone(backend), parts.clone());
            let body = if body.is_empty() { empty() } else { full(body.clone()) };
            self.0.tasks.spawn_until_cancelled("ingress-mirror", async move {
                // What it answers is nobody's business.
                let copy = Request::from_parts(parts, body);
                if let Err(err) = mesh.call(&backend, Origin::Node, copy).await {
                    debug!(%err, "the copy of a request was not answered");
                }
                drop(permit);
            });
        }
    }
}

/// A body that keeps what passes, and hands it over at its end.
struct Tee {
    body: Body,
    /// `None`: it was too large.
    copy: Option<BytesMut>,
    done: Option<Box<dyn FnOnce(Bytes) + Send>>,
}

impl Tee {
    fn finish(&mut self) {
        if let (Some(copy), Some(done)) = (self.copy.take(), self.done.take()) {
            done(copy.freeze());
        }
    }
}

impl http_body::Body for Tee {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(data), Some(copy)) = (frame.data_ref(), &mut this.copy) {
                    if copy.len().saturating_add(data.len()) > MIRROR_BYTES_MAX {
                        this.copy = None;
                    } else {
                        copy.extend_from_slice(data);
                    }
                }
                // A reader that knows the length does not ask again after the last byte.
                if this.body.is_end_stream() {
                    this.finish();
                }
            }
            Poll::Ready(None) => this.finish(),
            Poll::Ready(Some(Err(_))) => this.copy = None,
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
