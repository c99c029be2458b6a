//! HTTP over a byte stream, for callers that opened a connection to an HTTP component.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::DuplexStream;

use super::to_hyper;
use crate::network::{HttpError, PodNet};
use crate::types::Body;

/// Serves one connection to a pod's port, HTTP/1.1 or HTTP/2 without TLS, until it ends or the pod is over.
pub(crate) async fn serve_pipe(pipe: DuplexStream, pod: Arc<PodNet>, to: SocketAddr) {
    let serve = service_fn(|request: http::Request<Incoming>| {
        let pod = Arc::clone(&pod);
        async move {
            let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
            let response = pod.http(to, request).await.unwrap_or_else(|error| answer(&error));
            Ok::<_, Infallible>(response.map(to_hyper))
        }
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    // A client that has sent its last still waits for its answer.
    server.http1().half_close(true);
    let connection = server.serve_connection(TokioIo::new(pipe), serve);
    // An error here is the peer's going away.
    let _ = pod.over.run_until_cancelled(connection).await;
}

/// What a client hears when the guest did not answer. The cause is in the container's log.
fn answer(error: &HttpError) -> http::Response<Body> {
    let (status, text) = match error {
        HttpError::Refused(_) => (StatusCode::SERVICE_UNAVAILABLE, "the pod is stopping\n"),
        HttpError::Busy(_) => (StatusCode::SERVICE_UNAVAILABLE, "the pod is overloaded\n"),
        HttpError::Guest(_) | HttpError::Connection(_) => {
            (StatusCode::BAD_GATEWAY, "the pod gave no response\n")
        }
    };
    let body = Full::new(Bytes::from_static(text.as_bytes()));
    let mut response = http::Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response
}
