//! A deadline around a connector, over all that it does: name, TCP, TLS.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use tower::{BoxError, Service};

/// No connection came about in time: tell the user.
#[derive(Debug, thiserror::Error)]
#[error(
    "{server} did not complete the TCP connection and the TLS handshake within {} s; check that the address is right and that no firewall is in between", limit.as_secs()
)]
struct TooSlow {
    /// Host and port.
    server: String,
    /// How long it had.
    limit: Duration,
}

/// A connector that gives up after a while.
#[derive(Debug, Clone)]
pub(super) struct WithDeadline<C> {
    inner: C,
    limit: Duration,
}

impl<C> WithDeadline<C> {
    /// Every connection of `inner` has to be made within `limit`.
    pub(super) fn new(inner: C, limit: Duration) -> Self {
        Self { inner, limit }
    }
}

impl<C> Service<Uri> for WithDeadline<C>
where
    C: Service<Uri>,
    C::Future: Send + 'static,
    C::Error: Into<BoxError>,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<C::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let server = uri.authority().map_or_else(|| uri.to_string(), ToString::to_string);
        let (connect, limit) = (self.inner.call(uri), self.limit);
        Box::pin(async move {
            match tokio::time::timeout(limit, connect).await {
                Ok(connected) => connected.map_err(Into::into),
                Err(_) => Err(TooSlow { server, limit }.into()),
            }
        })
    }
}
