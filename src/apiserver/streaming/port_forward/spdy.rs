//! SPDY/3.1, on the connection itself or within WebSocket messages.

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::half_open::HalfOpen;
use super::{Connections, Event, QUEUE_MAX};
use crate::apiserver::context::Context;
use crate::apiserver::streaming::client::{Activity, ClientIo, GOODBYE_MAX, goodbye, websocket};
use crate::apiserver::streaming::spdy_command::next_frame;
use crate::apiserver::streaming::target::Target;
use crate::streaming::spdy::{Decoder, Encoder, Frame};

/// Bytes of a tunnel in memory, and in one message.
const TUNNEL_BYTES: usize = 32 * 1024;

/// Serves a client that speaks SPDY.
pub(in crate::apiserver::streaming) async fn over_spdy(
    io: impl AsyncRead + AsyncWrite + Send + Unpin,
    context: &Context,
    target: &Target,
) {
    let (mut read, mut write) = tokio::io::split(io);
    let (events, mut happened) = mpsc::channel(QUEUE_MAX);
    let activity = Activity::new();
    let connections = Connections::new(context, target, events);
    let to_client = async {
        while let Some(event) = happened.recv().await {
            activity.touch();
            for frame in frames(event).into_iter().flatten() {
                if write.write_all(&frame).await.is_err() {
                    return;
                }
            }
            if write.flush().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = heed(&mut read, connections, &activity) => {}
        () = to_client => {}
        () = activity.idle() => {}
    }
    let _ = tokio::time::timeout(GOODBYE_MAX, write.shutdown()).await;
}

/// Does what the client's frames ask for, until the client is gone.
async fn heed(
    read: &mut (impl AsyncRead + Unpin),
    mut connections: Connections<'_>,
    activity: &Activity,
) {
    let (mut decoder, mut encoder) = (Decoder::default(), Encoder::default());
    let mut half_open = HalfOpen::default();
    loop {
        let frame = match next_frame(read, &mut decoder).await {
            Ok(Some(frame)) => frame,
            Ok(None) => return,
            Err(err) => {
                tracing::debug!(%err, "a port-forward client broke off");
                return;
            }
        };
        activity.touch();
        match frame {
            Frame::SynStream { stream, headers, .. } => {
                let added =
                    if connections.is_full() { Err(()) } else { half_open.add(stream, &headers) };
                let answer = match added {
                    Ok(_) => encoder.reply(stream),
                    Err(()) => Encoder::refuse(stream),
                };
                // The answer goes first: the connection's bytes use the same queue.
                connections.answer(answer).await;
                if let Ok(Some((pair, port))) = added {
                    connections.open(pair, port);
                }
            }
            Frame::Data { stream, is_last, bytes } => {
                connections.data(stream, is_last, bytes).await;
            }
            Frame::Reset { stream } => {
                half_open.reset(stream);
                connections.reset(stream);
            }
            Frame::Ping { id } => connections.answer(Encoder::ping(id)).await,
            Frame::GoAway | Frame::Other => {}
        }
    }
}

/// What the client is sent.
fn frames(event: Event) -> [Option<Bytes>; 2] {
    match event {
        Event::Data(pair, bytes) => [Some(Encoder::data(pair.data, false, &bytes)), None],
        Event::Failed(pair, text) => {
            [Some(Encoder::data(pair.error, false, text.as_bytes())), None]
        }
        Event::Ended(pair) => {
            [Some(Encoder::data(pair.error, true, &[])), Some(Encoder::data(pair.data, true, &[]))]
        }
        Event::Raw(frame) => [Some(frame), None],
    }
}

/// Serves a client whose SPDY bytes come in WebSocket messages.
pub(in crate::apiserver::streaming) async fn over_tunnel(
    io: ClientIo,
    context: &Context,
    target: &Target,
) {
    let (mut sink, mut stream) = websocket(io).await.split();
    let (near, far) = tokio::io::duplex(TUNNEL_BYTES);
    let (mut read, mut write) = tokio::io::split(near);
    let from_client = async {
        while let Some(Ok(message)) = stream.next().await {
            match message {
                Message::Binary(bytes) => {
                    if write.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
                Message::Close(_) | Message::Text(_) => return,
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    };
    let to_client = async {
        let mut buffer = bytes::BytesMut::with_capacity(TUNNEL_BYTES);
        while let Ok(1..) = read.read_buf(&mut buffer).await {
            let message = Message::Binary(buffer.split().freeze());
            if sink.send(message).await.is_err() {
                return;
            }
            buffer.reserve(TUNNEL_BYTES);
        }
    };
    tokio::select! {
        () = from_client => {}
        () = to_client => {}
        () = over_spdy(far, context, target) => {}
    }
    goodbye(sink, stream).await;
}
