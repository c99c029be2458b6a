//! Requests that a guest sends: to its own pod directly, to everything else over the uplink.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

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

/// A transfer that is over, or goes on in the background.
type Transfer = Box<dyn Future<Output = Result<(), Error>> + Send>;

impl WasiHttpHooks for OutgoingHttp {
    fn forbidden_header_filter(&mut self) -> ForbiddenHeaderFilter {
        Arc::clone(&FORBIDDEN)
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
            let sent = net.send(request.map(from_wasi));
            let response = tokio::time::timeout(limit, sent)
                .await
                .map_err(|_| Error::HttpResponseTimeout)?
                .map_err(to_wasi_error)?;
            let done: Transfer = Box::new(std::future::ready(Ok(())));
            Ok((response.map(to_wasi), done))
        })
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
    match error.downcast::<std::io::Error>() {
        Ok(error) => match error.kind() {
            std::io::ErrorKind::ConnectionRefused => Error::ConnectionRefused,
            std::io::ErrorKind::TimedOut => Error::ConnectionTimeout,
            std::io::ErrorKind::HostUnreachable => Error::DestinationUnavailable,
            std::io::ErrorKind::NotFound => Error::DestinationNotFound,
            std::io::ErrorKind::PermissionDenied => Error::HttpRequestDenied,
            std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::UnexpectedEof => {
                Error::ConnectionTerminated
            }
            _ => Error::Connect(*error),
        },
        Err(error) => Error::InternalError(Some(error.to_string())),
    }
}
