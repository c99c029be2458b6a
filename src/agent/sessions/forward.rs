//! One forwarded connection.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use edgeorc_runtime::BoxIo;
use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

/// Bytes read from the pod at once.
const READ_BYTES: usize = 32 * 1024;

/// Carries bytes until the pod has sent its last, or the client is gone. A client that has sent its
/// last still gets the answer.
pub(super) async fn run(io: BoxIo, mut body: Body, out: mpsc::Sender<Bytes>) {
    let (mut read, mut write) = tokio::io::split(io);
    let to_pod = async {
        while let Some(frame) = body.frame().await {
            // A body that breaks off is a client that is gone.
            let Ok(frame) = frame else { return };
            let Ok(bytes) = frame.into_data() else { continue };
            if write.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = write.shutdown().await;
        std::future::pending().await
    };
    let from_pod = async {
        let mut buffer = BytesMut::with_capacity(READ_BYTES);
        while let Ok(1..) = read.read_buf(&mut buffer).await {
            if out.send(buffer.split().freeze()).await.is_err() {
                return;
            }
            buffer.reserve(READ_BYTES);
        }
    };
    tokio::select! {
        () = to_pod => {}
        () = from_pod => {}
        () = out.closed() => {}
    }
}
