//! The task that sends spans to the collector, in batches.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use opentelemetry_proto::tonic::resource::v1::Resource;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::connection::{Answer, Cause, Collector};
use super::otlp;
use super::span::Record;
use crate::config::TracingSettings;
use crate::rt::Rng;

/// Spans that wait to be exported; further ones are dropped and counted.
pub(super) const QUEUE_MAX: usize = 2048;
/// Spans of one batch.
const BATCH_MAX: usize = 512;
/// How long the first span of a batch waits for others.
const BATCH_DELAY: Duration = Duration::from_secs(1);
/// Wait before the second try; doubled each time, and anything up to a quarter more.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// Longest wait between two tries, also when the collector asks for more.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Tries for one batch. With the waits between them it is given up after about half a minute, while
/// newer spans fill the queue.
const TRIES_MAX: u32 = 6;
/// Time for the last batches when the process ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);
/// When nothing came for so long after the end began, nothing more will.
const FLUSH_PAUSE: Duration = Duration::from_millis(200);
/// Pause between two lines in the log on batches that were lost.
const LOG_PAUSE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// What became of spans. Cheap to clone; all clones count into one.
#[derive(Debug, Clone)]
pub struct ExportMetrics {
    family: Family<Outcome, Counter>,
    exported: Counter,
    queue_full: Counter,
    rejected: Counter,
    lost: Counter,
}

impl Default for ExportMetrics {
    fn default() -> Self {
        let family: Family<Outcome, Counter> = Family::default();
        let [exported, queue_full, rejected, lost] = ["exported", "queue_full", "rejected", "lost"]
            .map(|outcome| family.get_or_create_owned(&Outcome { outcome }));
        Self { family, exported, queue_full, rejected, lost }
    }
}

impl ExportMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "edgeorc_telemetry_spans",
            "Spans, by what became of them: exported, dropped for a full queue, rejected by the collector, or lost on the way",
            self.family.clone(),
        );
    }

    pub(super) fn queue_was_full(&self) {
        self.queue_full.inc();
    }

    /// Spans the collector has taken.
    #[must_use]
    pub fn exported(&self) -> u64 {
        self.exported.get()
    }

    /// Spans that nobody will see.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.queue_full.get() + self.rejected.get() + self.lost.get()
    }
}

/// What to do about a batch after one try.
enum Verdict {
    Taken { rejected: u64 },
    Again { after: Option<Duration>, cause: Cause },
    Refused(StatusCode),
}

/// See the module.
pub(super) struct Exporter {
    collector: Collector,
    resource: Resource,
    metrics: ExportMetrics,
    rng: Rng,
    spans: mpsc::Receiver<Box<Record>>,
    logged: Option<Instant>,
}

impl Exporter {
    pub(super) fn new(
        settings: TracingSettings,
        node_name: &str,
        metrics: ExportMetrics,
        rng: Rng,
        spans: mpsc::Receiver<Box<Record>>,
    ) -> Self {
        let resource = otlp::resource(&settings, node_name);
        info!(endpoint = %settings.endpoint, ratio = settings.sampling.ratio, "traces are exported");
        Self { collector: Collector::new(settings), resource, metrics, rng, spans, logged: None }
    }

    /// Exports until `cancel`, then for a short while what is left.
    pub(super) async fn run(mut self, cancel: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        loop {
            if cancel.run_until_cancelled(self.fill(&mut batch)).await.is_none() {
                break;
            }
            if batch.is_empty() {
                return;
            }
            if cancel.run_until_cancelled(self.export(&batch)).await.is_none() {
                break;
            }
            batch.clear();
        }
        let count = batch.len();
        if tokio::time::timeout(FLUSH_TIMEOUT, self.flush(&mut batch)).await.is_err() {
            debug!(spans = count.max(batch.len()), "the collector was too slow for the last spans");
            self.metrics.lost.inc_by(count_of(batch.len()));
        }
        self.spans.close();
        while self.spans.try_recv().is_ok() {
            self.metrics.lost.inc();
        }
    }

    /// Waits for a batch; it stays empty when no more spans can come.
    ///
    /// # Cancel safety
    ///
    /// Safe: what was taken from the queue is in `batch`.
    #[expect(
        clippy::vec_box,
        reason = "the queue carries boxes: it sets room for what it may hold aside"
    )]
    async fn fill(&mut self, batch: &mut Vec<Box<Record>>) {
        if self.spans.recv_many(batch, BATCH_MAX).await == 0 {
            return;
        }
        let filling = async {
            while batch.len() < BATCH_MAX {
                let room = BATCH_MAX - batch.len();
                if self.spans.recv_many(batch, room).await == 0 {
                    return;
                }
            }
        };
        // A batch that is not full by then goes as it is.
        let _ = tokio::time::timeout(BATCH_DELAY, filling).await;
    }

    /// Exports one batch, in several tries if need be.
    async fn export(&mut self, batch: &[Box<Record>]) {
        let body = Bytes::from(otlp::encode(&self.resource, batch));
        let mut wait = RETRY_MIN;
        for tried in 1..=TRIES_MAX {
            match self.attempt(body.clone()).await {
                Verdict::Again { after, cause } if tried < TRIES_MAX => {
                    debug!(%cause, tried, "spans are sent again");
                    let jitter = Duration::from_millis(self.rng.below(millis(wait) / 4));
                    tokio::time::sleep(after.unwrap_or(wait + jitter).min(RETRY_MAX)).await;
                    wait = (wait * 2).min(RETRY_MAX);
                }
                verdict => return self.conclude(verdict, batch.len()),
            }
        }
    }

    #[expect(
        clippy::vec_box,
        reason = "the queue carries boxes: it sets room for what it may hold aside"
    )]
    async fn flush(&mut self, batch: &mut Vec<Box<Record>>) {
        loop {
            if !batch.is_empty() {
                let body = Bytes::from(otlp::encode(&self.resource, batch));
                let verdict = self.attempt(body).await;
                self.conclude(verdict, batch.len());
                batch.clear();
            }
            let more = self.spans.recv_many(batch, BATCH_MAX);
            if !matches!(tokio::time::timeout(FLUSH_PAUSE, more).await, Ok(1..)) {
                return;
            }
        }
    }

    async fn attempt(&mut self, body: Bytes) -> Verdict {
        match self.collector.post(body).await {
            Ok(answer) => judge(&answer),
            Err(cause) => Verdict::Again { after: None, cause },
        }
    }

    /// Counts what became of a batch, and writes of a lost one at most once a minute.
    fn conclude(&mut self, verdict: Verdict, spans: usize) {
        let count = count_of(spans);
        let why: Cause = match verdict {
            Verdict::Taken { rejected } => {
                let rejected = rejected.min(count);
                self.metrics.exported.inc_by(count - rejected);
                self.metrics.rejected.inc_by(rejected);
                return;
            }
            Verdict::Refused(status) => {
                self.metrics.rejected.inc_by(count);
                format!("the collector answers {status}").into()
            }
            Verdict::Again { cause, .. } => {
                self.metrics.lost.inc_by(count);
                cause
            }
        };
        if self.logged.is_none_or(|at| at.elapsed() >= LOG_PAUSE) {
            self.logged = Some(Instant::now());
            warn!(err = %why, spans, "spans were not exported");
        }
    }
}

/// By the specification of OTLP over HTTP.
fn judge(answer: &Answer) -> Verdict {
    match answer.status {
        status if status.is_success() => Verdict::Taken { rejected: otlp::rejected(&answer.body) },
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Verdict::Again {
            after: answer.retry_after,
            cause: format!("the collector answers {}", answer.status).into(),
        },
        status => Verdict::Refused(status),
    }
}

fn count_of(spans: usize) -> u64 {
    u64::try_from(spans).unwrap_or(u64::MAX)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
