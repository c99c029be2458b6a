//! Connections to ports of a pod: many over one client connection.
//!
//! Data in: a client's streams, over SPDY (as it is, or within WebSocket messages) or over WebSocket
//! channels. Data out: one request to the agent per connection.
//!
//! # Invariants
//!
//! - A connection is a pair of streams, `data` and `error`. Whatever goes wrong with it is told on
//!   its `error` stream, in kubelet's words, and concerns no other connection.
//! - A pod that reads nothing holds up its client's other connections for [`STALL_MAX`] at most.
//! - Connections end with their client.

mod channels;
mod half_open;
mod spdy;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::node;
use super::target::Target;
use crate::apiserver::context::Context;
use crate::rt::TaskGroup;

pub(super) use channels::over_channels;
pub(super) use spdy::{over_spdy, over_tunnel};

/// Connections of one client at once.
const CONNECTIONS_MAX: usize = 128;
/// Messages that wait for the client.
const QUEUE_MAX: usize = 32;
/// Messages of one connection that wait for its pod; clients send at most 32 KiB in one. Neither SPDY
/// nor the channels hold back one stream alone: beyond this all the client's connections wait.
const TO_POD_MAX: usize = 64;
/// How long they wait for a pod that takes not one message. Then that connection ends: the others
/// have done nothing.
const STALL_MAX: Duration = Duration::from_secs(10);

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
    /// Cancelled to end it, and by itself when it has ended.
    cancel: CancellationToken,
    /// Cancelled when its pod takes nothing: it ends, and tells its client why.
    stalled: CancellationToken,
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
        let (to_pod, from_client) = mpsc::channel(TO_POD_MAX);
        let cancel = self.tasks.token().child_token();
        let stalled = CancellationToken::new();
        let (context, target) = (Context::clone(self.context), self.target.clone());
        let (events, own, stops) = (self.events.clone(), cancel.clone(), stalled.clone());
        self.tasks.spawn("port-forward-connection", |_| async move {
            let serving = async {
                let carried = connection(&context, &target, port, pair, from_client, &events);
                if stops.run_until_cancelled(carried).await.is_none() {
                    let text = failure(port, &target, "the pod reads nothing");
                    let _ = events.send(Event::Failed(pair, text)).await;
                    let _ = events.send(Event::Ended(pair)).await;
                }
            };
            let _ = own.run_until_cancelled(serving).await;
            // Says that its place is free.
            own.cancel();
        });
        self.open.insert(pair.data, Connection { to_pod: Some(to_pod), cancel, stalled });
    }

    /// Whether there is no place for another one.
    fn is_full(&mut self) -> bool {
        self.open.retain(|_, connection| !connection.cancel.is_cancelled());
        self.open.len() >= CONNECTIONS_MAX
    }

    /// Bytes of the client; waits while the pod does not read, and not for ever.
    async fn data(&mut self, stream: u32, is_last: bool, bytes: Bytes) {
        let Some(connection) = self.open.get_mut(&stream) else { return };
        if let Some(to_pod) = connection.to_pod.as_ref().filter(|_| !bytes.is_empty()) {
            // A pod that is gone is told by the connection's own task.
            if tokio::time::timeout(STALL_MAX, to_pod.send(bytes)).await.is_err() {
                tracing::debug!(k8s.pod.name = self.target.pod, "a forwarded connection stalls");
                connection.stalled.cancel();
                connection.to_pod = None;
            }
        }
        if is_last {
            connection.to_pod = None;
        }
    }

    /// An answer to the client that concerns no connection.
    async fn answer(&self, bytes: Bytes) {
        let _ = self.events.send(Event::Raw(bytes)).await;
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
                // Nothing to tell: on a channel it would be a message without content.
                let Some(bytes) = frame.into_data().ok().filter(|bytes| !bytes.is_empty()) else {
                    continue;
                };
                if events.send(Event::Data(pair, bytes)).await.is_err() {
                    return;
                }
            }
        }
        Err(text) => {
            let _ = events.send(Event::Failed(pair, failure(port, target, &text))).await;
        }
    }
    let _ = events.send(Event::Ended(pair)).await;
}

/// In kubelet's words.
fn failure(port: u16, target: &Target, why: &str) -> String {
    format!("error forwarding port {port} to pod {}, uid {}: {why}", target.pod, target.uid)
}
