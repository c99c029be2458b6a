//! Requests that a guest sends: to its own pod directly, to everything else over the uplink.

use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::uri::Scheme;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::time::{Instant, Sleep};
use wasmtime_wasi_http::{
    DEFAULT_FORBIDDEN_HEADERS, Error, ForbiddenHeaderFilter, RequestOptions, WasiBody,
    WasiHttpHooks,
};

use crate::network::{HttpError, PodNet};
use crate::serve::{from_wasi, to_wasi};
use crate::types::BodyError;

/// Time to the response's head when the guest sets none.
const RESPONSE_WAIT_MAX: Duration = Duration::from_secs(600);

/// Made once: the filter is asked for with every message.
static FORBIDDEN: LazyLock<ForbiddenHeaderFilter> =
    LazyLock::new(|| Arc::new(|name| DEFAULT_FORBIDDEN_HEADERS.contains(name)));

/// The client side of `wasi:http`, p2 and p3.
pub(super) struct OutgoingHttp {
    net: Arc<PodNet>,
}

impl OutgoingHttp {
    pub(super) fn new(net: Arc<PodNet>) -> Self {
        Self { net }
    }
}

/// What a guest may write of a body at once: that much is in the host's memory for each body that nobody
/// reads.
const BODY_CHUNK_BYTES: usize = 64 << 10;

/// A transfer that is over, or goes on in the background.
type Transfer = Box<dyn Future<Output = Result<(), Error>> + Send>;

impl WasiHttpHooks for OutgoingHttp {
    fn forbidden_header_filter(&mut self) -> ForbiddenHeaderFilter {
        Arc::clone(&FORBIDDEN)
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK_BYTES
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK_BYTES
    }

    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _response_done: Transfer,
    ) -> Box<dyn Future<Output = Result<(http::Response<WasiBody>, Transfer), Error>> + Send> {
        let net = Arc::clone(&self.net);
        // Connecting and waiting are one step here: a kept connection has no first part.
        let limits = options.unwrap_or_default();
        let limit = match (limits.connect_timeout, limits.first_byte_timeout) {
            (None, None) => RESPONSE_WAIT_MAX,
            (connect, first_byte) => [connect, first_byte].into_iter().flatten().sum(),
        };
        Box::new(async move {
            let is_known = |scheme: &Scheme| *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS;
            if !request.uri().scheme().is_none_or(is_known) {
                return Err(Error::HttpProtocolError);
            }
            // Each may become a connection of the host.
            let _slot = net.socket().ok_or(Error::ConnectionLimitReached)?;
            let sent = Arc::clone(&net).send(request.map(from_wasi));
            let response = tokio::time::timeout(limit, sent)
                .await
                .map_err(|_| late(limits))?
                .map_err(to_wasi_error)?;
            let done: Transfer = Box::new(std::future::ready(Ok(())));
            let response = response.map(to_wasi).map(|body| match limits.between_bytes_timeout {
                Some(pause) => Paced::new(body, pause).boxed_unsync(),
                None => body,
            });
            Ok((response, done))
        })
    }
}

/// What took too long, as far as the guest's own limits tell.
fn late(limits: RequestOptions) -> Error {
    match (limits.connect_timeout, limits.first_byte_timeout) {
        (_, Some(_)) => Error::ConnectionReadTimeout,
        (Some(_), None) => Error::ConnectionTimeout,
        (None, None) => Error::HttpResponseTimeout,
    }
}

/// A response's body whose parts may not come further apart than this.
struct Paced {
    body: WasiBody,
    pause: Duration,
    end: Pin<Box<Sleep>>,
}

impl Paced {
    fn new(body: WasiBody, pause: Duration) -> Self {
        Self { body, pause, end: Box::pin(tokio::time::sleep(pause)) }
    }
}

impl HttpBody for Paced {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            let next = Instant::now() + this.pause;
            this.end.as_mut().reset(next);
            return Poll::Ready(frame);
        }
        ready!(this.end.as_mut().poll(cx));
        Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The WASI code for what the network says.
fn to_wasi_error(error: BodyError) -> Error {
    let error = match error.downcast::<HttpError>() {
        Ok(error) => {
            return match *error {
                HttpError::Refused(_) => Error::ConnectionRefused,
                HttpError::Busy(_) => Error::ConnectionLimitReached,
                HttpError::Guest(_) | HttpError::Connection(_) => Error::ConnectionTerminated,
            };
        }
        Err(error) => error,
    };
    // What the guest's own body said.
    let error = match error.downcast::<Error>() {
        Ok(error) => return *error,
        Err(error) => error,
    };
    match error.downcast::<std::io::Error>() {
        Ok(error) => match error.kind() {
            std::io::ErrorKind::ConnectionRefused => Error::ConnectionRefused,
            std::io::ErrorKind::TimedOut => Error::ConnectionTimeout,
            std::io::ErrorKind::HostUnreachable => Error::DestinationUnavailable,
            std::io::ErrorKind::NotFound => {
                Error::DnsError { rcode: Some("NXDOMAIN".to_owned()), info_code: None }
            }
            std::io::ErrorKind::PermissionDenied => Error::HttpRequestDenied,
            std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::UnexpectedEof => {
                Error::ConnectionTerminated
            }
            _ => Error::Connect(*error),
        },
        Err(error) => Error::InternalError(Some(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_pauses_for_too_long_ends_with_an_error() {
        let frame = |text: &'static str| Ok(Frame::data(Bytes::from_static(text.as_bytes())));
        let frames = futures_util::stream::iter([frame("a"), frame("b")])
            .chain(futures_util::stream::pending());
        let body = http_body_util::StreamBody::new(frames).boxed_unsync();
        let start = Instant::now();
        let mut body = Paced::new(body, Duration::from_secs(2));
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "a");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "b");
        let error = body.frame().await.unwrap().unwrap_err();
        assert!(matches!(error, Error::ConnectionReadTimeout), "{error:?}");
        assert_eq!(start.elapsed(), Duration::from_secs(3));
    }

    #[test]
    fn the_guests_own_words_come_back_to_it() {
        let own = to_wasi_error(Box::new(Error::HttpRequestBodySize(Some(3))));
        assert!(matches!(own, Error::HttpRequestBodySize(Some(3))), "{own:?}");
        let unknown = std::io::Error::from(std::io::ErrorKind::NotFound);
        let unknown = to_wasi_error(Box::new(unknown));
        assert!(matches!(unknown, Error::DnsError { .. }), "no such name: {unknown:?}");
        let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        assert!(matches!(to_wasi_error(Box::new(denied)), Error::HttpRequestDenied));
    }
}
