//! Connections to ports of a pod: many over one client connection.
//!
//! A connection is a pair of streams, `data` and `error`. Whatever goes wrong with it is told on
//! its `error` stream, in kubelet's words, and concerns no other connection.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::BodyExt as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use super::client::{Activity, ClientIo, GOODBYE_MAX, goodbye, websocket};
use super::node;
use super::spdy_command::next_frame;
use super::target::Target;
use crate::apiserver::context::Context;
use crate::rt::TaskGroup;
use crate::streaming::channel;
use crate::streaming::spdy::{Decoder, Encoder, Frame, Headers};

/// Connections of one client at once.
const CONNECTIONS_MAX: usize = 128;
/// Streams whose partner has not come yet.
const HALF_OPEN_MAX: usize = 32;
/// Messages that wait for the client.
const QUEUE_MAX: usize = 32;
/// Ports in one request over WebSocket messages: a channel's number is a byte, and each needs two.
const CHANNEL_PORTS_MAX: usize = 64;
/// Bytes of a tunnel in memory, and in one message.
const TUNNEL_BYTES: usize = 32 * 1024;

/// The numbers of a connection's two streams.
#[derive(Debug, Clone, Copy)]
struct Pair {
    data: u32,
    error: u32,
}

/// What happened on a connection, for the client.
#[derive(Debug)]
enum Event {
    Data(Pair, Bytes),
    Failed(Pair, String),
    /// The last of a connection.
    Ended(Pair),
    /// An answer that is no connection's.
    Raw(Bytes),
}

/// The client's end of one connection.
#[derive(Debug)]
struct Connection {
    /// Gone once the client has sent its last.
    to_pod: Option<mpsc::Sender<Bytes>>,
    cancel: CancellationToken,
}

/// The connections of one client.
struct Connections<'a> {
    context: &'a Context,
    target: &'a Target,
    events: mpsc::Sender<Event>,
    tasks: TaskGroup,
    /// By the number of the data stream.
    open: BTreeMap<u32, Connection>,
}

impl<'a> Connections<'a> {
    fn new(context: &'a Context, target: &'a Target, events: mpsc::Sender<Event>) -> Self {
        let tasks = context.sessions.child();
        Self { context, target, events, tasks, open: BTreeMap::new() }
    }

    /// Opens a connection to the pod, in a task of its own.
    fn open(&mut self, pair: Pair, port: u16) {
        let (to_pod, from_client) = mpsc::channel(node::QUEUE_MAX);
        let cancel = self.tasks.token().child_token();
        let (context, target) = (Context::clone(self.context), self.target.clone());
        let (events, own) = (self.events.clone(), cancel.clone());
        self.tasks.spawn("port-forward-connection", |_| async move {
            let serving = connection(&context, &target, port, pair, from_client, &events);
            let _ = own.run_until_cancelled(serving).await;
        });
        self.open.retain(|_, connection| {
            connection.to_pod.as_ref().is_some_and(|sender| !sender.is_closed())
        });
        self.open.insert(pair.data, Connection { to_pod: Some(to_pod), cancel });
    }

    /// Bytes of the client; waits while the pod does not read.
    async fn data(&mut self, stream: u32, is_last: bool, bytes: Bytes) {
        let Some(connection) = self.open.get_mut(&stream) else { return };
        if let Some(to_pod) = connection.to_pod.as_ref().filter(|_| !bytes.is_empty()) {
            // A pod that is gone is told by the connection's own task.
            let _ = to_pod.send(bytes).await;
        }
        if is_last {
            connection.to_pod = None;
        }
    }

    fn reset(&mut self, stream: u32) {
        if let Some(connection) = self.open.remove(&stream) {
            connection.cancel.cancel();
        }
    }
}

impl Drop for Connections<'_> {
    fn drop(&mut self) {
        self.tasks.token().cancel();
    }
}

/// Carries one connection from its start to its end.
async fn connection(
    context: &Context,
    target: &Target,
    port: u16,
    pair: Pair,
    from_client: mpsc::Receiver<Bytes>,
    events: &mpsc::Sender<Event>,
) {
    match node::exchange(context, target, &target.port_path(port), from_client).await {
        Ok(mut body) => {
            while let Some(Ok(frame)) = body.frame().await {
                let Ok(bytes) = frame.into_data() else { continue };
                if events.send(Event::Data(pair, bytes)).await.is_err() {
                    return;
                }
            }
        }
        Err(text) => {
            let text = format!(
                "error forwarding port {port} to pod {}, uid {}: {text}",
                target.pod, target.uid
            );
            let _ = events.send(Event::Failed(pair, text)).await;
        }
    }
    let _ = events.send(Event::Ended(pair)).await;
}

/// Streams that wait for their partner: by request, the numbers of `data` and `error`.
#[derive(Debug, Default)]
struct HalfOpen(BTreeMap<String, (Option<u32>, Option<u32>)>);

impl HalfOpen {
    /// Adds a stream; the pair when it is complete, or `Err` for what is no stream of a pair.
    fn add(&mut self, stream: u32, headers: &Headers) -> Result<Option<(Pair, u16)>, ()> {
        let text = |name: &str| headers.get(name).map_or("", String::as_str);
        let port = text("port").parse::<u16>().ok().filter(|port| *port > 0).ok_or(())?;
        // Clients before requestID open the error stream right before the data stream.
        let request = match text("requestid") {
            "" => format!("port {port}"),
            id => id.to_owned(),
        };
        if !self.0.contains_key(&request) && self.0.len() >= HALF_OPEN_MAX {
            return Err(());
        }
        let known = self.0.entry(request.clone()).or_default();
        let place = match text("streamtype") {
            "data" => &mut known.0,
            "error" => &mut known.1,
            _ => return Err(()),
        };
        if place.replace(stream).is_some() {
            return Err(());
        }
        let (Some(data), Some(error)) = *known else { return Ok(None) };
        self.0.remove(&request);
        Ok(Some((Pair { data, error }, port)))
    }
}

/// Serves a client that speaks SPDY.
pub(super) async fn over_spdy(
    io: impl AsyncRead + AsyncWrite + Send + Unpin,
    context: &Context,
    target: &Target,
) {
    let (mut read, mut write) = tokio::io::split(io);
    let (events, mut happened) = mpsc::channel(QUEUE_MAX);
    let activity = Activity::new();
    let from_client = async {
        let mut connections = Connections::new(context, target, events.clone());
        let (mut decoder, mut encoder) = (Decoder::default(), Encoder::default());
        let mut half_open = HalfOpen::default();
        loop {
            let frame = match next_frame(&mut read, &mut decoder).await {
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
                    let is_full = connections.open.len() >= CONNECTIONS_MAX;
                    let added = if is_full { Err(()) } else { half_open.add(stream, &headers) };
                    let answer = match added {
                        Ok(_) => encoder.reply(stream),
                        Err(()) => Encoder::refuse(stream),
                    };
                    // The answer goes first: the connection's bytes use the same queue.
                    let _ = events.send(Event::Raw(answer)).await;
                    if let Ok(Some((pair, port))) = added {
                        connections.open(pair, port);
                    }
                }
                Frame::Data { stream, is_last, bytes } => {
                    connections.data(stream, is_last, bytes).await;
                }
                Frame::Reset { stream } => connections.reset(stream),
                Frame::Ping { id } => drop(events.send(Event::Raw(Encoder::ping(id))).await),
                Frame::GoAway | Frame::Other => {}
            }
        }
    };
    let to_client = async {
        while let Some(event) = happened.recv().await {
            activity.touch();
            let (first, second) = match event {
                Event::Data(pair, bytes) => (Encoder::data(pair.data, false, &bytes), None),
                Event::Failed(pair, text) => {
                    (Encoder::data(pair.error, false, text.as_bytes()), None)
                }
                Event::Ended(pair) => (
                    Encoder::data(pair.error, true, &[]),
                    Some(Encoder::data(pair.data, true, &[])),
                ),
                Event::Raw(frame) => (frame, None),
            };
            for frame in [Some(first), second].into_iter().flatten() {
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
        () = from_client => {}
        () = to_client => {}
        () = activity.idle() => {}
    }
    let _ = tokio::time::timeout(GOODBYE_MAX, write.shutdown()).await;
}

/// Serves a client whose SPDY bytes come in WebSocket messages.
pub(super) async fn over_tunnel(io: ClientIo, context: &Context, target: &Target) {
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

/// Serves a client of `v4.channel.k8s.io`: the ports are named by the request, and the n-th has the
/// channels 2n (data) and 2n + 1 (error), each of which begins with its port, little endian.
pub(super) async fn over_channels(
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
        .take(CHANNEL_PORTS_MAX)
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
                let _ = connections.events.send(Event::Raw(begin)).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(kind: &str, port: &str, request: &str) -> Headers {
        let pairs = [("streamtype", kind), ("port", port), ("requestid", request)];
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    #[test]
    fn streams_of_one_request_are_a_pair() {
        let mut half = HalfOpen::default();
        assert!(half.add(1, &headers("error", "80", "0")).unwrap().is_none());
        assert!(half.add(3, &headers("error", "80", "1")).unwrap().is_none());
        let (pair, port) = half.add(5, &headers("data", "80", "0")).unwrap().unwrap();
        assert_eq!((pair.data, pair.error, port), (5, 1, 80));
        assert!(half.add(7, &headers("error", "80", "1")).is_err(), "a second one");
    }

    #[test]
    fn what_is_no_stream_of_a_pair_is_refused() {
        let mut half = HalfOpen::default();
        assert!(half.add(1, &headers("stdin", "80", "0")).is_err());
        assert!(half.add(1, &headers("data", "0", "0")).is_err());
        assert!(half.add(1, &headers("data", "70000", "0")).is_err());
        for request in 0..u32::try_from(HALF_OPEN_MAX).unwrap() * 2 {
            let _ = half.add(request + 1, &headers("data", "80", &format!("r{request}")));
        }
        assert_eq!(half.0.len(), HALF_OPEN_MAX);
    }
}
