//! Frames of a session's bodies.

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use tokio::sync::mpsc;

use crate::streaming::frame::{self, Decoder, Frame, PAYLOAD_BYTES_MAX};

/// The frames that an API server sends.
pub(super) struct Incoming {
    body: Body,
    decoder: Decoder,
}

impl Incoming {
    pub(super) fn new(body: Body) -> Self {
        Self { body, decoder: Decoder::default() }
    }

    /// The next frame; `None` once the client is gone or has broken the protocol.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        loop {
            match self.decoder.next() {
                Ok(Some(frame)) => return Some(frame),
                Ok(None) => {}
                Err(err) => {
                    tracing::warn!(%err, "a session's frames cannot be read");
                    return None;
                }
            }
            if let Ok(bytes) = self.body.frame().await?.ok()?.into_data() {
                self.decoder.push(&bytes);
            }
        }
    }
}

/// The frames for an API server.
#[derive(Clone)]
pub(super) struct Outgoing(mpsc::Sender<Bytes>);

impl Outgoing {
    /// Begins the body.
    pub(super) async fn begin(sender: mpsc::Sender<Bytes>) -> Self {
        // Nobody left to read it is seen by whoever waits for `closed`.
        let _ = sender.send(frame::preface()).await;
        Self(sender)
    }

    pub(super) async fn send(&self, frame: &Frame) {
        let _ = self.0.send(frame.encode()).await;
    }

    /// Resolves when nobody reads any more.
    pub(super) async fn closed(&self) {
        self.0.closed().await;
    }

    /// Sends on what a guest writes, until it has ended.
    pub(super) async fn pump(
        &self,
        mut output: mpsc::Receiver<Bytes>,
        frame: impl Fn(Bytes) -> Frame,
    ) {
        while let Some(mut bytes) = output.recv().await {
            while !bytes.is_empty() {
                let part = bytes.split_to(bytes.len().min(PAYLOAD_BYTES_MAX));
                self.send(&frame(part)).await;
            }
        }
    }
}
