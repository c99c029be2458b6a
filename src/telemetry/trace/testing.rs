//! A collector that decodes what it gets with the published types.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span as Exported;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::span::Record;
use super::{QUEUE_MAX, Tracer, TracerTools};
use crate::config::{OtelEnvironment, Sampling, TracingSettings};
use crate::rt::{Rng, TaskGroup, WallClock};
use crate::telemetry::Metrics;

pub(crate) fn tools(tasks: &TaskGroup) -> TracerTools {
    TracerTools {
        metrics: Metrics::default(),
        tasks: tasks.clone(),
        clock: WallClock::system(),
        rng: Rng::seeded(11),
        node_name: "one".to_owned(),
    }
}

/// A tracer whose spans go nowhere but here.
pub(super) fn tracer(sampling: Sampling) -> (Tracer, mpsc::Receiver<Box<Record>>) {
    let (queue, spans) = mpsc::channel(QUEUE_MAX);
    let tasks = TaskGroup::new(&CancellationToken::new());
    (Tracer::feeding(queue, sampling, super::ExportMetrics::default(), &tools(&tasks)), spans)
}

/// Settings for a collector.
pub(crate) fn settings(at: SocketAddr) -> TracingSettings {
    let endpoint = format!("http://{at}");
    TracingSettings::build(Some(&endpoint), None, &OtelEnvironment::default()).unwrap().unwrap()
}

/// What the collector does with a batch.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Act {
    Take,
    Answer(StatusCode, Option<&'static str>),
    Hang,
}

/// An HTTP server that takes batches.
#[derive(Debug, Default)]
pub(crate) struct Collecting {
    act: Mutex<Option<Act>>,
    batches: Mutex<Vec<(http::HeaderMap, ExportTraceServiceRequest)>>,
    asked: Mutex<usize>,
    arrived: Notify,
}

impl Collecting {
    /// Serves until `tasks` end.
    pub(crate) async fn start(tasks: &TaskGroup) -> (Arc<Self>, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let this = Arc::new(Self::default());
        let (serving, group) = (Arc::clone(&this), tasks.clone());
        tasks.spawn_until_cancelled("collector", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let serving = Arc::clone(&serving);
                group.spawn_until_cancelled("collector-connection", async move {
                    let service = service_fn(move |request| {
                        let serving = Arc::clone(&serving);
                        async move { Ok::<_, Infallible>(serving.answer(request).await) }
                    });
                    let server = hyper::server::conn::http1::Builder::new();
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        (this, at)
    }

    pub(crate) fn set(&self, act: Act) {
        *self.act.lock() = Some(act);
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        assert_eq!(head.uri.path(), "/v1/traces");
        assert_eq!(head.headers["content-type"], "application/x-protobuf");
        *self.asked.lock() += 1;
        self.arrived.notify_waiters();
        let act = self.act.lock().clone().unwrap_or(Act::Take);
        let mut response = Response::new(Full::default());
        match act {
            Act::Hang => std::future::pending().await,
            Act::Answer(status, retry_after) => {
                *response.status_mut() = status;
                if let Some(seconds) = retry_after {
                    response.headers_mut().insert("retry-after", seconds.parse().unwrap());
                }
                return response;
            }
            Act::Take => {}
        }
        let decoded = ExportTraceServiceRequest::decode(body).unwrap();
        self.batches.lock().push((head.headers, decoded));
        self.arrived.notify_waiters();
        response
    }

    /// Requests so far.
    pub(crate) fn asked(&self) -> usize {
        *self.asked.lock()
    }

    /// All spans so far.
    pub(crate) fn spans(&self) -> Vec<Exported> {
        let batches = self.batches.lock();
        let resources = batches.iter().flat_map(|(_, batch)| &batch.resource_spans);
        let scopes = resources.flat_map(|resource| &resource.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    /// Waits until `done` says so, after each arrival.
    pub(crate) async fn wait(&self, mut done: impl FnMut(&Self) -> bool) {
        let waiting = async {
            loop {
                let arrived = self.arrived.notified();
                if done(self) {
                    return;
                }
                let _ = tokio::time::timeout(Duration::from_millis(100), arrived).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("in time");
    }

    /// The text of an attribute of the resource of the first batch.
    pub(crate) fn resource(&self, key: &str) -> Option<String> {
        let batches = self.batches.lock();
        let resource = batches.first()?.1.resource_spans.first()?.resource.clone()?;
        let found = resource.attributes.into_iter().find(|pair| pair.key == key)?;
        text_of(found.value?.value?)
    }

    /// Fields of the first request's header.
    pub(crate) fn header(&self) -> http::HeaderMap {
        self.batches.lock().first().unwrap().0.clone()
    }
}

fn text_of(value: Value) -> Option<String> {
    match value {
        Value::StringValue(text) => Some(text),
        Value::IntValue(number) => Some(number.to_string()),
        _ => None,
    }
}

/// An attribute of a span.
pub(crate) fn attribute(span: &Exported, key: &str) -> Option<String> {
    let found = span.attributes.iter().find(|pair| pair.key == key)?;
    text_of(found.value.clone()?.value?)
}
