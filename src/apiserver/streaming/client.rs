//! What both kinds of client connections need.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{Sink, SinkExt as _, Stream, StreamExt as _};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::time::{Instant, Interval};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{IDLE_MAX, PING};

/// Longest message and frame of a client, in bytes; kubectl sends at most 32 KiB at once.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// How long a client has to say goodbye.
pub(super) const GOODBYE_MAX: Duration = Duration::from_secs(5);

/// The client's connection once it has changed its protocol.
pub(super) type ClientIo = TokioIo<Upgraded>;

/// When something last moved. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Activity(Arc<Mutex<Instant>>);

impl Activity {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    pub(super) fn touch(&self) {
        *self.0.lock() = Instant::now();
    }

    /// Resolves when nothing has moved for [`IDLE_MAX`].
    pub(super) async fn idle(&self) {
        loop {
            let until = *self.0.lock() + IDLE_MAX;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

/// When a client is to be asked whether it is still there.
pub(super) fn pings() -> Interval {
    tokio::time::interval_at(Instant::now() + PING, PING)
}

/// Speaks WebSocket on a connection that has agreed to it.
pub(super) async fn websocket(io: ClientIo) -> WebSocketStream<ClientIo> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Ends a WebSocket: what the client still sends is read until it has answered, or the connection
/// would be reset under what it has not read yet.
pub(super) async fn goodbye(
    mut sink: impl Sink<Message, Error = Error> + Unpin,
    mut stream: impl Stream<Item = Result<Message, Error>> + Unpin,
) {
    let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    let parting = async {
        if sink.send(Message::Close(Some(close))).await.is_ok() {
            while let Some(Ok(_)) = stream.next().await {}
        }
    };
    let _ = tokio::time::timeout(GOODBYE_MAX, parting).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_session_is_idle_four_hours_after_the_last_move() {
        let activity = Activity::new();
        let began = Instant::now();
        let moves = async {
            tokio::time::sleep(IDLE_MAX / 2).await;
            activity.touch();
        };
        tokio::join!(activity.idle(), moves);
        assert_eq!(began.elapsed(), IDLE_MAX / 2 * 3);
    }
}
