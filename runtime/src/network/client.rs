//! HTTP/1.1 to a guest that has only a TCP listener.

use http::header::HOST;
use http::uri::PathAndQuery;
use http_body_util::BodyExt as _;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio_util::sync::CancellationToken;

use super::error::HttpError;
use crate::serve::to_hyper;
use crate::tasks::Guests;
use crate::types::Body;

/// Sends one request over a pipe of its own.
pub(super) async fn send(
    guests: &Guests,
    over: CancellationToken,
    pipe: DuplexStream,
    mut request: http::Request<Body>,
) -> Result<http::Response<Body>, HttpError> {
    to_origin_form(&mut request);
    let (mut sender, connection) =
        http1::handshake::<_, _>(TokioIo::new(pipe)).await.map_err(|error| broken(&error))?;
    // Ends with the response's body, with the pipe, or with the pod.
    drop(guests.spawn(async move {
        let _ = over.run_until_cancelled(connection.with_upgrades()).await;
    }));
    let response =
        sender.send_request(request.map(to_hyper)).await.map_err(|error| broken(&error))?;
    Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
}

/// HTTP/1.1 wants the path in the request line and the authority in `Host`.
fn to_origin_form(request: &mut http::Request<Body>) {
    if let Some(authority) = request.uri().authority()
        && !request.headers().contains_key(HOST)
        && let Ok(host) = http::HeaderValue::from_str(authority.as_str())
    {
        request.headers_mut().insert(HOST, host);
    }
    let path = request.uri().path_and_query().cloned();
    let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = http::Uri::from(path);
    *request.version_mut() = http::Version::HTTP_11;
}

fn broken(error: &hyper::Error) -> HttpError {
    HttpError::Connection(std::io::Error::other(error.to_string()))
}
