//! `v4.channel.k8s.io`: one connection per port.

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::{Connections, Event, Pair, QUEUE_MAX};
use crate::apiserver::context::Context;
use crate::apiserver::streaming::client::{Activity, ClientIo, goodbye, websocket};
use crate::apiserver::streaming::target::Target;
use crate::streaming::channel;

/// Ports in one request: a channel's number is a byte, and each port needs two.
const PORTS_MAX: usize = 64;

/// Serves a client of `v4.channel.k8s.io`: the ports are named by the request, and the n-th has the
/// channels 2n (data) and 2n + 1 (error), each of which begins with its port, little endian.
pub(in crate::apiserver::streaming) async fn over_channels(
    io: ClientIo,
    context: &Context,
    target: &Target,
    ports: &[&str],
) {
    let (mut sink, mut stream) = websocket(io).await.split();
    let ports: Vec<u16> = ports
        .iter()
        .flat_map(|list| list.split(','))
        .filter_map(|port| port.trim().parse().ok())
        .filter(|port| *port > 0)
        .take(PORTS_MAX)
        .collect();
    let (events, mut happened) = mpsc::channel(QUEUE_MAX);
    let activity = Activity::new();
    let channels = (0_u8..).step_by(2).zip(&ports);
    let channels: Vec<(u8, u16)> = channels.map(|(data, port)| (data, *port)).collect();
    let from_client = async {
        let mut connections = Connections::new(context, target, events);
        for (data, port) in &channels {
            for number in [*data, data + 1] {
                let begin = channel::write(number, &port.to_le_bytes());
                connections.answer(begin).await;
            }
            let pair = Pair { data: u32::from(*data), error: u32::from(data + 1) };
            connections.open(pair, *port);
        }
        while let Some(Ok(message)) = stream.next().await {
            activity.touch();
            match message {
                Message::Binary(bytes) => {
                    let Some(number) = bytes.first().copied() else { return };
                    connections.data(u32::from(number), false, bytes.slice(1..)).await;
                }
                Message::Close(_) | Message::Text(_) => return,
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    };
    let to_client = async {
        let number = |stream: u32| u8::try_from(stream).unwrap_or(u8::MAX);
        while let Some(event) = happened.recv().await {
            activity.touch();
            let message = match event {
                Event::Data(pair, bytes) => channel::write(number(pair.data), &bytes),
                Event::Failed(pair, text) => channel::write(number(pair.error), text.as_bytes()),
                Event::Ended(_) => continue,
                Event::Raw(message) => message,
            };
            if sink.send(Message::Binary(message)).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = from_client => {}
        () = to_client => {}
        () = activity.idle() => {}
    }
    goodbye(sink, stream).await;
}
