//! A command over WebSocket messages: `v4.channel.k8s.io` and `v5.channel.k8s.io`.

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;

use super::client::{Activity, ClientIo, goodbye, pings, websocket};
use super::node;
use super::target::Target;
use crate::apiserver::context::Context;
use crate::streaming::channel;
use crate::streaming::frame::Frame;

/// Serves one client.
pub(super) async fn run(io: ClientIo, context: &Context, target: &Target, path: &str, is_v5: bool) {
    let (mut sink, mut stream) = websocket(io).await.split();
    let (input, mut output) = node::command(context, target, path).await;
    let activity = Activity::new();
    let from_client = async {
        while let Some(Ok(message)) = stream.next().await {
            let Message::Binary(bytes) = message else {
                // Pings are answered below this; a text is from a client that speaks otherwise.
                if matches!(message, Message::Close(_) | Message::Text(_)) {
                    return;
                } else {
                    continue;
                }
            };
            activity.touch();
            match channel::read(&bytes, is_v5) {
                Ok(Some(frame)) => input.send(frame).await,
                Ok(None) => {}
                Err(err) => {
                    tracing::debug!(%err, "a streaming client broke the protocol");
                    return;
                }
            }
        }
    };
    let to_client = async {
        let mut ping = pings();
        loop {
            let frame = tokio::select! {
                frame = output.next() => frame,
                _ = ping.tick() => {
                    if sink.send(Message::Ping(Bytes::new())).await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            let (message, is_last) = match frame {
                Frame::Stdout(bytes) => (channel::write(channel::STDOUT, &bytes), false),
                Frame::Stderr(bytes) => (channel::write(channel::STDERR, &bytes), false),
                last => {
                    let status = node::status(&last).to_string();
                    (channel::write(channel::ERROR, status.as_bytes()), true)
                }
            };
            activity.touch();
            if sink.send(Message::Binary(message)).await.is_err() || is_last {
                return;
            }
        }
    };
    tokio::select! {
        () = from_client => {}
        () = to_client => {}
        () = activity.idle() => {}
    }
    drop((input, output));
    goodbye(sink, stream).await;
}
