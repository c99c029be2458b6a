//! Events: what happened to an object, for people to read.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, Node, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Resource};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::debug;

use crate::client::retry::is_not_found;
use crate::rt::{Rng, TaskGroup, WallClock};

/// Events waiting to be sent; more are dropped, since they inform and nothing depends on them.
const QUEUE_LEN_MAX: usize = 1024;
/// Events remembered to count repeats.
const SERIES_MAX: usize = 1024;
/// Events per second over any length of time.
const EVENTS_PER_SECOND: u32 = 50;
/// Events that may go at once after a quiet time.
const BURST_MAX: u32 = 500;
/// How long an event waits before it is sent: what it tells of has the machine for itself meanwhile.
const DELAY: Duration = Duration::from_millis(20);
/// Where events of cluster-scoped objects go.
const NAMESPACE_OF_CLUSTER_EVENTS: &str = "default";
/// What the API server accepts as the message of an event.
const MESSAGE_BYTES_MAX: usize = 1024;
/// How long one write of an event may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether an event tells of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventType {
    /// All is well.
    Normal,
    /// A person may want to look.
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// The object an event is about.
#[derive(Debug, Clone, PartialEq)]
pub struct Regarding(ObjectReference);

impl Regarding {
    /// A reference to `object`.
    #[must_use]
    pub fn of<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        Self(object.object_ref(&()))
    }

    /// The node of that name as its kubelet refers to it: by its name also for the uid.
    #[must_use]
    pub fn node(name: &str) -> Self {
        let name = Some(name.to_owned());
        let metadata = ObjectMeta { uid: name.clone(), name, ..ObjectMeta::default() };
        Self::of(&Node { metadata, ..Node::default() })
    }

    /// The part of the object at `path`, such as `spec.containers{web}`.
    #[must_use]
    pub fn field(mut self, path: &str) -> Self {
        self.0.field_path = Some(path.to_owned());
        self
    }
}

/// Sends events about objects; never makes its caller wait or fail. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EventRecorder(mpsc::Sender<Note>);

#[derive(Debug)]
struct Note {
    regarding: Regarding,
    event_type: EventType,
    reason: &'static str,
    message: String,
    at: Instant,
}

impl EventRecorder {
    /// A recorder that speaks for `component` and sends until `tasks` end.
    #[must_use]
    pub fn new(
        client: kube::Client,
        component: &'static str,
        clock: WallClock,
        rng: Rng,
        tasks: &TaskGroup,
    ) -> Self {
        let (sender, notes) = mpsc::channel(QUEUE_LEN_MAX);
        let writer = Writer { client, component, clock, rng, series: Series::default() };
        tasks.spawn_until_cancelled("event-recorder", writer.run(notes));
        Self(sender)
    }

    /// Records that `reason` happened to an object. Dropped when too many are waiting.
    pub fn record(
        &self,
        regarding: Regarding,
        event_type: EventType,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let (message, at) = (message.into(), Instant::now());
        let note = Note { regarding, event_type, reason, message, at };
        if self.0.try_send(note).is_err() {
            debug!(reason, "event dropped, too many are waiting");
        }
    }
}

/// What makes two events the same one, seen again.
type SeriesKey = (String, String, EventType, &'static str, String);

/// The events sent lately, oldest first.
#[derive(Debug, Default)]
struct Series {
    sent: BTreeMap<SeriesKey, Sent>,
    order: VecDeque<SeriesKey>,
}

#[derive(Debug, Clone)]
struct Sent {
    namespace: String,
    name: String,
    count: i32,
}

impl Series {
    fn remember(&mut self, key: SeriesKey, sent: Sent) {
        if self.sent.insert(key.clone(), sent).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > SERIES_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.sent.remove(&oldest);
            }
        }
    }
}

struct Writer {
    client: kube::Client,
    component: &'static str,
    clock: WallClock,
    rng: Rng,
    series: Series,
}

impl Writer {
    async fn run(mut self, mut notes: mpsc::Receiver<Note>) {
        let mut bucket = Bucket::full();
        while let Some(note) = notes.recv().await {
            tokio::time::sleep_until(note.at + DELAY).await;
            bucket.take().await;
            let reason = note.reason;
            match tokio::time::timeout(WRITE_TIMEOUT, self.write(note)).await {
                Ok(Ok(())) => {}
                Ok(Err(err)) => debug!(reason, %err, "event not written"),
                Err(_) => debug!(reason, "event not written in time"),
            }
        }
    }

    async fn write(&mut self, mut note: Note) -> Result<(), kube::Error> {
        truncate(&mut note.message);
        let Regarding(object) = &note.regarding;
        let key = (
            object.uid.clone().unwrap_or_default(),
            object.name.clone().unwrap_or_default(),
            note.event_type,
            note.reason,
            note.message.clone(),
        );
        if let Some(sent) = self.series.sent.get(&key).cloned()
            && self.count_again(&key, sent).await?
        {
            return Ok(());
        }
        let event = self.event(&note);
        let sent = Sent {
            namespace: event.metadata.namespace.clone().unwrap_or_default(),
            name: event.metadata.name.clone().unwrap_or_default(),
            count: 1,
        };
        let api: Api<Event> = Api::namespaced(self.client.clone(), &sent.namespace);
        api.create(&PostParams::default(), &event).await?;
        self.series.remember(key, sent);
        Ok(())
    }

    /// Raises the count of an event sent before. `false` when the server has forgotten it.
    async fn count_again(&mut self, key: &SeriesKey, mut sent: Sent) -> Result<bool, kube::Error> {
        sent.count = sent.count.saturating_add(1);
        let api: Api<Event> = Api::namespaced(self.client.clone(), &sent.namespace);
        let patch = json!({ "count": sent.count, "lastTimestamp": self.clock.now_rfc3339() });
        match api.patch(&sent.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => {
                self.series.remember(key.clone(), sent);
                Ok(true)
            }
            Err(err) if is_not_found(&err) => Ok(false),
            Err(err) => Err(err),
        }
    }

    fn event(&self, note: &Note) -> Event {
        let Regarding(object) = &note.regarding;
        let namespace = object
            .namespace
            .clone()
            .filter(|namespace| !namespace.is_empty())
            .unwrap_or_else(|| NAMESPACE_OF_CLUSTER_EVENTS.to_owned());
        let base = object.name.clone().unwrap_or_default();
        let now = Time(self.clock.now());
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{base}.{:016x}", self.rng.below(u64::MAX))),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            involved_object: object.clone(),
            type_: Some(note.event_type.as_str().to_owned()),
            reason: Some(note.reason.to_owned()),
            message: Some(note.message.clone()),
            source: Some(EventSource { component: Some(self.component.to_owned()), host: None }),
            reporting_component: Some(self.component.to_owned()),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            count: Some(1),
            ..Event::default()
        }
    }
}

fn truncate(message: &mut String) {
    if message.len() > MESSAGE_BYTES_MAX {
        let end = (0..=MESSAGE_BYTES_MAX).rev().find(|&at| message.is_char_boundary(at));
        message.truncate(end.unwrap_or(0));
    }
}

/// A token bucket: [`BURST_MAX`] at once, [`EVENTS_PER_SECOND`] for good.
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn full() -> Self {
        Self { tokens: f64::from(BURST_MAX), at: Instant::now() }
    }

    async fn take(&mut self) {
        let now = Instant::now();
        let gained = now.duration_since(self.at).as_secs_f64() * f64::from(EVENTS_PER_SECOND);
        self.tokens = (self.tokens + gained).min(f64::from(BURST_MAX));
        self.at = now;
        if self.tokens < 1.0 {
            let missing = (1.0 - self.tokens) / f64::from(EVENTS_PER_SECOND);
            tokio::time::sleep(Duration::from_secs_f64(missing)).await;
            self.tokens = 1.0;
            self.at = Instant::now();
        }
        self.tokens -= 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let mut message = "ä".repeat(MESSAGE_BYTES_MAX);
        message.insert(0, 'x');
        truncate(&mut message);
        assert_eq!(message.len(), MESSAGE_BYTES_MAX - 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_goes_at_once_and_the_rest_at_the_rate() {
        let mut bucket = Bucket::full();
        let start = Instant::now();
        for _ in 0..BURST_MAX {
            bucket.take().await;
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        for _ in 0..EVENTS_PER_SECOND {
            bucket.take().await;
        }
        let elapsed = start.elapsed();
        assert!(elapsed > Duration::from_millis(900) && elapsed < Duration::from_millis(1200));
    }

    #[test]
    fn only_so_many_series_are_remembered() {
        let mut series = Series::default();
        for at in 0..=SERIES_MAX {
            let key = (format!("{at}"), String::new(), EventType::Normal, "Reason", String::new());
            let sent = Sent { namespace: String::new(), name: String::new(), count: 1 };
            series.remember(key, sent);
        }
        assert_eq!(series.sent.len(), SERIES_MAX);
    }
}
