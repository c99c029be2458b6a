//! Requests whose bodies come into being while they are sent.

use std::sync::Arc;

use http::{Extensions, Request, Response};
use parking_lot::Mutex;

use crate::net::{self, Body};

/// A body beside its request: those of [`kube::Client`] are whole before they are sent.
#[derive(Clone)]
struct Streamed(Arc<Mutex<Option<Body>>>);

/// Sends `request` with `body` to the server in use, once. The answer may begin, and go on, while the
/// body does; whoever reads the answer drives the body.
///
/// # Errors
///
/// As [`kube::Client::send`]; an answer that is no success is none.
pub async fn send_streamed(
    client: &kube::Client,
    request: Request<()>,
    body: Body,
) -> kube::Result<Response<kube::client::Body>> {
    let mut request = request.map(|()| kube::client::Body::empty());
    request.extensions_mut().insert(Streamed(Arc::new(Mutex::new(Some(body)))));
    client.send(request).await
}

/// The body that is to be sent with the request of these extensions, if it has one. Once.
pub(super) fn take(extensions: &mut Extensions) -> Option<Body> {
    extensions.remove::<Streamed>()?.0.lock().take()
}

/// `body`, or the one beside the request.
pub(super) fn body_of<B>(request: Request<B>) -> Request<Body>
where
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<net::BodyError>,
{
    use http_body_util::BodyExt as _;
    let (mut parts, body) = request.into_parts();
    let streamed = take(&mut parts.extensions);
    let body = streamed.unwrap_or_else(|| body.map_err(Into::into).boxed_unsync());
    Request::from_parts(parts, body)
}
