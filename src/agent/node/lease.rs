//! The heartbeat: a line each second on a stream to the leader, and the Lease itself, written more seldom.
//! While there is no stream, the Lease is written each second.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::agent::fence::Fence;
use crate::agent::node::renewals::Renewals;
use crate::agent::usage::{Load, Usage};
use crate::api::node_load::{self, LEASE_NAMESPACE};
use crate::client::is_not_found;
use crate::mesh::Mesh;
use crate::rt::WallClock;

/// Pause between two heartbeats.
const INTERVAL: Duration = Duration::from_secs(1);
/// Pause between two writes of the Lease while heartbeats go on the stream: kubelet's.
const LEASE_INTERVAL: Duration = Duration::from_secs(10);
/// Shortest pause between two writes: streams may end one after the other.
const WRITE_INTERVAL_MIN: Duration = Duration::from_millis(250);
/// Time for a write of the Lease, and for a stream to open. A server that is gone is noticed sooner.
const DEADLINE: Duration = Duration::from_secs(2);
/// Answers so long after one another may have had the node called silent in between.
const ANSWERS_APART_MAX: Duration = Duration::from_secs(2);
/// Pause after a stream that was not taken. A server that is older knows of none.
const STREAM_RETRY: Duration = Duration::from_secs(3);
/// What begins to wait together is told together.
const SETTLE: Duration = Duration::from_millis(20);
/// Why a heartbeat failed that has no other reason.
const LATE: &str = "no answer in time";
/// What the Lease promises, in seconds; the leader itself decides sooner.
const DURATION_SECONDS: i32 = 40;

/// The Services that have requests waiting here.
type Waiting = watch::Receiver<BTreeMap<(String, String), usize>>;

/// What the heartbeat of a node needs.
pub(crate) struct Heartbeat {
    pub(crate) client: kube::Client,
    pub(crate) node: String,
    pub(crate) clock: WallClock,
    pub(crate) usage: Usage,
    /// Is told when heartbeats begin to be answered: the node may have been called lost until then.
    pub(crate) heard: Arc<Notify>,
    /// Open as long as heartbeats are answered.
    pub(crate) fence: Fence,
}

impl Heartbeat {
    /// Keeps the node alive in the eyes of the leader until `cancel`.
    pub(crate) async fn renew(self, cancel: CancellationToken) {
        let answers = Answers {
            fence: self.fence.clone(),
            heard: Arc::clone(&self.heard),
            last: Mutex::default(),
        };
        let (has_stream, streams) = watch::channel(false);
        // The Lease was written: there is one to renew.
        let written = Notify::new();
        let both = async {
            tokio::join!(
                self.write(&answers, &written, streams),
                self.stream(&answers, &written, &has_stream)
            )
        };
        let _ = cancel.run_until_cancelled(both).await;
    }

    /// Writes the Lease, for ever.
    async fn write(
        &self,
        answers: &Answers,
        written: &Notify,
        mut has_stream: watch::Receiver<bool>,
    ) {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), LEASE_NAMESPACE);
        let mut waiting = self.usage.mesh().map(Mesh::waiting_services);
        loop {
            let began = Instant::now();
            let told = (self.usage.load(), node_load::waiting_text(names_of(waiting.as_ref())));
            let sent = self.fence.now();
            let beat =
                tokio::time::timeout(DEADLINE, once(&api, &self.node, &self.clock, told)).await;
            let failed = match beat {
                Ok(Ok(())) => None,
                Ok(Err(err)) => Some(err.to_string()),
                Err(_) => Some(LATE.to_owned()),
            };
            let pause = if failed.is_none() { LEASE_INTERVAL } else { INTERVAL };
            match failed {
                None => {
                    answers.came(sent);
                    written.notify_one();
                }
                // Heartbeats go on without it.
                Some(err) if *has_stream.borrow() => debug!(err, "the Lease was not written"),
                Some(err) => answers.failed(&err),
            }
            next_write(began, pause, &mut waiting, &mut has_stream).await;
        }
    }

    /// Sends heartbeats on streams, one after the other, for ever.
    async fn stream(&self, answers: &Answers, written: &Notify, has_stream: &watch::Sender<bool>) {
        loop {
            written.notified().await;
            let opening = Renewals::open(&self.client, &self.node);
            match tokio::time::timeout(DEADLINE, opening).await {
                Ok(Ok(stream)) => {
                    has_stream.send_replace(true);
                    self.beat(stream, answers).await;
                    // The Lease is written at once: perhaps by way of another server.
                    has_stream.send_replace(false);
                }
                Ok(Err(err)) => {
                    debug!(%err, "heartbeats are not taken on a stream");
                    tokio::time::sleep(STREAM_RETRY).await;
                }
                Err(_) => tokio::time::sleep(STREAM_RETRY).await,
            }
        }
    }

    /// Sends heartbeats until the stream is over.
    async fn beat(&self, mut stream: Renewals, answers: &Answers) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    if !stream.beat(self.fence.now()) {
                        return answers.failed(LATE);
                    }
                }
                answered = stream.answered() => match answered {
                    Some(sent) => answers.came(sent),
                    None => return debug!("the stream of heartbeats is over"),
                }
            }
        }
    }
}

/// What became of heartbeats, of either kind.
struct Answers {
    fence: Fence,
    heard: Arc<Notify>,
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    /// When the last answer came.
    came: Option<Instant>,
    /// A heartbeat failed since, which was told.
    has_failed: bool,
}

impl Answers {
    /// A heartbeat that was sent then, by the fence's clock, was answered.
    fn came(&self, sent: Duration) {
        self.fence.heard(sent);
        let now = Instant::now();
        let mut last = self.last.lock();
        let is_apart = last.came.is_none_or(|came| now - came > ANSWERS_APART_MAX);
        if last.has_failed {
            info!("heartbeats are answered again");
        }
        if last.has_failed || is_apart {
            self.heard.notify_one();
        }
        *last = Last { came: Some(now), has_failed: false };
    }

    fn failed(&self, err: &str) {
        let mut last = self.last.lock();
        if std::mem::replace(&mut last.has_failed, true) {
            debug!(err, "a heartbeat was not answered");
        } else {
            info!(err, "a heartbeat was not answered");
        }
    }
}

/// Services that have requests waiting here, by namespace and name.
fn names_of(waiting: Option<&Waiting>) -> Vec<(String, String)> {
    waiting.map(|all| all.borrow().keys().cloned().collect()).unwrap_or_default()
}

/// Waits until the Lease is to be written again, which began to be last at `began`: after `pause` while there is
/// a stream, and each second while there is none; at once when the stream ends, or something begins or ends
/// to wait.
async fn next_write(
    began: Instant,
    pause: Duration,
    waiting: &mut Option<Waiting>,
    has_stream: &mut watch::Receiver<bool>,
) {
    let other_waits = async {
        match waiting {
            Some(waiting) => match waiting.changed().await {
                Ok(()) => tokio::time::sleep(SETTLE).await,
                Err(_) => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    };
    let is_due = async {
        let mut pause = if *has_stream.borrow_and_update() { pause } else { INTERVAL };
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(began + pause) => return,
                Ok(()) = has_stream.changed() => {
                    pause = if *has_stream.borrow() { LEASE_INTERVAL } else { WRITE_INTERVAL_MIN };
                }
            }
        }
    };
    tokio::select! {
        () = other_waits => {}
        () = is_due => {}
    }
}

/// Writes the Lease, which is not stored. What the node uses goes with it.
async fn once(
    api: &Api<Lease>,
    node: &str,
    clock: &WallClock,
    (load, waiting): (Option<Load>, String),
) -> kube::Result<()> {
    let spec = LeaseSpec {
        holder_identity: Some(node.to_owned()),
        lease_duration_seconds: Some(DURATION_SECONDS),
        renew_time: Some(MicroTime(clock.now())),
        ..LeaseSpec::default()
    };
    let told = load.map(|load| node_load::annotations(load.cpu_millis, load.memory_bytes));
    let mut annotations = told.unwrap_or_default();
    annotations.insert(node_load::WAITING.to_owned(), waiting);
    let patch = json!({"metadata": {"annotations": &annotations}, "spec": &spec});
    let patch = Patch::Merge(patch);
    match api.patch(node, &PatchParams::default(), &patch).await {
        Err(err) if is_not_found(&err) => {
            let name = Some(node.to_owned());
            let annotations = Some(annotations);
            let metadata = ObjectMeta { name, annotations, ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(spec) };
            api.create(&PostParams::default(), &lease).await.map(drop)
        }
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After how long the Lease is written again, if a stream is there from the start and, or not, ends then.
    async fn written_after(pause: Duration, has_stream: bool, ends_after: Option<u64>) -> Duration {
        let (stream, mut streams) = watch::channel(has_stream);
        let (began, mut nobody) = (Instant::now(), None);
        let end = async {
            if let Some(millis) = ends_after {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                stream.send_replace(false);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = next_write(began, pause, &mut nobody, &mut streams) => {}
            () = end => {}
        }
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn the_lease_is_written_each_second_unless_heartbeats_go_on_a_stream() {
        let millis = async |pause, has_stream, ends_after| {
            written_after(pause, has_stream, ends_after).await.as_millis()
        };
        assert_eq!(millis(LEASE_INTERVAL, false, None).await, 1000);
        assert_eq!(millis(LEASE_INTERVAL, true, None).await, 10_000);
        assert_eq!(millis(INTERVAL, true, None).await, 1000, "the last write failed");
        assert_eq!(millis(LEASE_INTERVAL, true, Some(3000)).await, 3000, "the stream ends");
        assert_eq!(millis(LEASE_INTERVAL, true, Some(1)).await, 250, "not again and again");
    }

    #[tokio::test(start_paused = true)]
    async fn what_begins_to_wait_is_told_at_once() {
        let (_stream, mut streams) = watch::channel(true);
        let (waiting, waits) = watch::channel(BTreeMap::new());
        let began = Instant::now();
        waiting.send_replace(BTreeMap::from([(("default".to_owned(), "web".to_owned()), 1)]));
        next_write(began, LEASE_INTERVAL, &mut Some(waits), &mut streams).await;
        assert_eq!(began.elapsed(), SETTLE);
    }
}
