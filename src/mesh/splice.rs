//! Copies bytes between two streams, both ways, until both are done.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;
use tracing::trace;

use super::endpoint::InFlight;
use crate::net::{BoxIo, Io};

/// Bytes held per direction.
const BUFFER_BYTES: usize = 32 * 1024;

/// Runs until both directions have ended, one of them broke, or `cancel`.
pub(super) async fn splice(mut a: impl Io, mut b: impl Io, cancel: &CancellationToken) {
    let copying =
        tokio::io::copy_bidirectional_with_sizes(&mut a, &mut b, BUFFER_BYTES, BUFFER_BYTES);
    if let Some(Err(err)) = cancel.run_until_cancelled(copying).await {
        trace!(%err, "connection broke off");
    }
}

/// A connection that counts as in flight at its endpoint.
pub(super) struct Counted {
    pub(super) io: BoxIo,
    pub(super) _in_flight: InFlight,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
