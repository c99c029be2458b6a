//! The port at which a load balancer asks whether a node has endpoints of a Service, answered as
//! kube-proxy does: 200 if there are any, else 503, and how many in JSON.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpStream;
use tracing::trace;

use super::routes::ServiceKey;

/// Longest life of a connection: a probe asks once.
const CONNECTION_MAX: Duration = Duration::from_secs(10);
/// Bytes of a head.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// How many endpoints, for load balancers that weigh nodes by it.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// Answers one request.
pub(super) async fn serve(client: TcpStream, service: &ServiceKey, count: usize) {
    let answering =
        service_fn(|_: Request<Incoming>| async { Ok::<_, Infallible>(answer(service, count)) });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(CONNECTION_MAX)
        // What it answers is true now; who asks again shall ask anew.
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(client), answering);
    if let Ok(Err(err)) = tokio::time::timeout(CONNECTION_MAX, serving).await {
        trace!(%err, "health check connection ended");
    }
}

fn answer((namespace, name): &ServiceKey, count: usize) -> Response<Full<Bytes>> {
    let body = json!({
        "service": {"namespace": namespace, "name": name},
        "localEndpoints": count,
        "serviceProxyHealthy": true,
    });
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    if count == 0 {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(WEIGHT, HeaderValue::from(count));
    response
}
