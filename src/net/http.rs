//! HTTP/1.1 on byte streams: one exchange at a time, bodies streamed both ways.
//!
//! No task is spawned for a request: whoever waits for the response, and then reads its body,
//! drives the exchange. Dropping either resets the stream, which the other end sees at once.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ::http::header::{HOST, HeaderValue};
use ::http::{Request, Response, Uri};
use bytes::Bytes;
use futures_util::TryFutureExt as _;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::trace;

use crate::net::connection::{Connection, ConnectionLost, Unread};
use crate::net::identity::Peer;
use crate::rt::TaskGroup;

/// Why a body could not be read to its end.
pub type BodyError = Box<dyn StdError + Send + Sync>;
/// Body of every HTTP message that crosses the seams of `net` and `mesh`.
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, BodyError>;

/// A byte stream in both directions.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}
/// Owned [`Io`].
pub type BoxIo = Box<dyn Io>;

/// Bytes of a head, and of a body's chunk in memory.
const BUFFER_BYTES_MAX: usize = 128 * 1024;
/// Header fields of one message.
const HEADERS_MAX: usize = 128;

/// A body with nothing in it.
#[must_use]
pub fn empty() -> Body {
    http_body_util::Empty::new().map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// A body of bytes that are here already.
#[must_use]
pub fn full(bytes: impl Into<Bytes>) -> Body {
    http_body_util::Full::new(bytes.into())
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

/// Why an exchange failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// There is no connection; nothing was sent. Safe to retry elsewhere.
    #[error(transparent)]
    NotSent(#[from] ConnectionLost),
    /// The exchange broke before the response's head: the peer may have acted.
    #[error("exchange failed: {0}")]
    Exchange(#[from] hyper::Error),
    /// The stream ended before the response's head: the peer may have acted.
    #[error("the peer closed the stream without an answer")]
    Closed,
}

impl HttpError {
    /// Whether the peer, a node, ended in order without looking at the request: it closes streams
    /// between two requests only, and gives up all others by a reset. Not for streams to others than
    /// nodes.
    #[must_use]
    pub fn is_unread(&self) -> bool {
        match self {
            Self::NotSent(_) => true,
            Self::Exchange(err) => err.is_incomplete_message() || Unread::is_cause_of(err),
            Self::Closed => false,
        }
    }
}

/// A failed [`HttpStream::send`].
#[derive(Debug)]
pub struct SendError {
    /// What went wrong.
    pub error: HttpError,
    /// The request, when not a byte of it was sent.
    pub unsent: Option<Box<Request<Body>>>,
}

/// Takes back a stream on which an exchange has ended well, for the next one.
pub type Recycle = Box<dyn FnOnce(HttpStream) + Send>;

/// The client's end of one byte stream that carries HTTP/1.1. Exchanges follow one another on it.
pub struct HttpStream {
    sender: http1::SendRequest<Body>,
    /// Boxed: it is moved through several futures, which would each be as large.
    driver: Box<http1::Connection<TokioIo<BoxIo>, Body>>,
}

impl fmt::Debug for HttpStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpStream").finish_non_exhaustive()
    }
}

impl HttpStream {
    /// Speaks HTTP/1.1 on `io`. Sends nothing yet.
    ///
    /// # Errors
    ///
    /// [`HttpError::Exchange`].
    pub async fn new(io: impl Io) -> Result<Self, HttpError> {
        let io: BoxIo = Box::new(io);
        let (sender, driver) = http1::Builder::new()
            .max_buf_size(BUFFER_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .handshake(TokioIo::new(io))
            .await?;
        Ok(Self { sender, driver: Box::new(driver) })
    }

    /// Sends `request` and waits for the head of the response, no longer than the caller does.
    /// `recycle`, if given, gets the stream back once request and response are complete.
    ///
    /// The request's URI goes on the wire as it stands; it needs a `Host` field.
    ///
    /// # Errors
    ///
    /// See [`HttpError`]; the request comes back if it was not sent.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future resets the stream; the peer may have acted.
    pub async fn send(
        self,
        request: Request<Body>,
        recycle: Option<Recycle>,
    ) -> Result<Response<Body>, SendError> {
        let Self { mut sender, driver } = self;
        let mut driver = Some(driver);
        let mut answer = Box::pin(sender.try_send_request(request));
        let result = std::future::poll_fn(|cx| {
            loop {
                if let Poll::Ready(result) = answer.as_mut().poll(cx) {
                    return Poll::Ready(Some(result));
                }
                let Some(running) = driver.as_mut() else { return Poll::Ready(None) };
                if Pin::new(running).poll(cx).is_ready() {
                    // Its error, if any, is in the answer, which is looked at once more.
                    driver = None;
                } else {
                    return answer.as_mut().poll(cx).map(Some);
                }
            }
        });
        let result = result.await;
        drop(answer);
        match result {
            Some(Ok(response)) => {
                let stream = driver.map(|driver| Self { sender, driver });
                Ok(response.map(|incoming| Driven { incoming, stream, recycle }.boxed_unsync()))
            }
            Some(Err(mut failed)) => {
                let unsent = failed.take_message().map(Box::new);
                Err(SendError { error: failed.into_error().into(), unsent })
            }
            None => Err(SendError { error: HttpError::Closed, unsent: None }),
        }
    }
}

/// A response's body that drives its own exchange.
struct Driven {
    incoming: Incoming,
    stream: Option<HttpStream>,
    recycle: Option<Recycle>,
}

impl Driven {
    /// Lets the exchange move on.
    fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(stream) = self.stream.as_mut()
            && Pin::new(&mut stream.driver).poll(cx).is_ready()
        {
            // How it ended is told by the body: complete, or broken off.
            self.stream = None;
        }
    }

    /// The body is complete: gives the stream back if the request is complete too.
    fn finish(&mut self, cx: &mut Context<'_>) {
        let Some(recycle) = self.recycle.take() else {
            self.stream = None;
            return;
        };
        self.drive(cx);
        if let Some(stream) = self.stream.take()
            && stream.sender.is_ready()
        {
            recycle(stream);
        }
    }
}

impl http_body::Body for Driven {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let mut polled = Pin::new(&mut this.incoming).poll_frame(cx);
        if polled.is_pending() && this.stream.is_some() {
            this.drive(cx);
            polled = Pin::new(&mut this.incoming).poll_frame(cx);
        }
        match polled {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => {
                this.finish(cx);
                Poll::Ready(None)
            }
            Poll::Ready(Some(Ok(frame))) => {
                // A reader that knows the length does not ask again after the last byte.
                if this.incoming.is_end_stream() {
                    this.finish(cx);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(err))) => {
                this.stream = None;
                Poll::Ready(Some(Err(err.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        // Empty bodies are often dropped unread.
        if self.stream.is_some() && self.incoming.is_end_stream() {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            self.finish(&mut cx);
        }
    }
}

/// Sends one request on a stream of its own and waits for the head of the response.
///
/// The URI is put into origin form, and `Host` is taken from it if the request has none.
///
/// # Errors
///
/// See [`HttpError`].
///
/// # Cancel safety
///
/// Dropping the future, or later the body, resets the stream.
pub async fn send(
    conn: &Connection,
    mut request: Request<Body>,
) -> Result<Response<Body>, HttpError> {
    to_origin_form(&mut request);
    let stream = HttpStream::new(conn.open_bi().await?).await?;
    stream.send(request, None).await.map_err(|failed| failed.error)
}

/// Reduces the URI to path and query, keeping its authority as `Host`.
pub fn to_origin_form<B>(request: &mut Request<B>) {
    if !request.headers().contains_key(HOST) {
        let host = request.uri().authority().map_or("edgeorc.invalid", |host| host.as_str());
        let host = HeaderValue::from_str(host);
        request.headers_mut().insert(HOST, host.unwrap_or(HeaderValue::from_static("")));
    }
    if request.uri().scheme().is_some() || request.uri().authority().is_some() {
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    }
}

/// Serves every stream that the peer opens, until the connection ends or `tasks` are cancelled.
///
/// Each request has the peer as an extension, `Arc<Peer>`. `service` is any tower service over
/// [`Body`] that is always ready; an `axum::Router` is one.
pub async fn serve<S, B>(conn: Connection, service: S, tasks: &TaskGroup)
where
    S: tower::Service<Request<Body>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    let accept = tasks.token().clone();
    while let Some(Ok(stream)) = accept.run_until_cancelled(conn.accept_bi()).await {
        let peer = Some(Arc::clone(conn.peer()));
        tasks.spawn_until_cancelled(
            "http-stream",
            serve_io(stream, Handler::new(service.clone(), peer)),
        );
    }
}

/// Serves the requests of one stream, one after the other, until the peer ends it.
pub async fn serve_stream<S, B>(io: impl Io, service: S)
where
    S: tower::Service<Request<Body>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    serve_io(io, Handler::new(service, None)).await;
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// A service without its type: the compiler cannot prove that a task is `Send` when it is generic
/// over a service's associated types.
struct Handler(Box<dyn Fn(Request<Body>) -> Answer + Send>);

impl Handler {
    fn new<S, B>(service: S, peer: Option<Arc<Peer>>) -> Self
    where
        S: tower::Service<Request<Body>, Response = Response<B>, Error = Infallible>,
        S: Clone + Send + 'static,
        S::Future: Send + 'static,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        Self(Box::new(move |mut request| {
            if let Some(peer) = &peer {
                request.extensions_mut().insert(Arc::clone(peer));
            }
            let answer = service.clone().call(request);
            Box::pin(answer.map_ok(|response: Response<B>| {
                response.map(|body| body.map_err(Into::into).boxed_unsync())
            }))
        }))
    }
}

impl hyper::service::Service<Request<Incoming>> for Handler {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        (self.0)(request.map(|body| body.map_err(into_body_error).boxed_unsync()))
    }
}

async fn serve_io(io: impl Io, handler: Handler) {
    let ended = hyper::server::conn::http1::Builder::new()
        .max_buf_size(BUFFER_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(io), handler)
        .await;
    if let Err(err) = ended {
        // A client that has its answer, or does not want it, resets the stream.
        trace!(%err, "http stream ended");
    }
}

fn into_body_error(err: hyper::Error) -> BodyError {
    err.into()
}
