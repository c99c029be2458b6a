//! Goal: spans reach a real receiver, and one that is slow, broken or away costs nobody anything.
//! Method: an HTTP server on loopback that decodes with the published types.

use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tokio_util::sync::CancellationToken;

use super::testing::{Act, Collecting, attribute, settings, tools};
use super::*;

/// One span of a request that was answered.
fn work(tracer: &Tracer) {
    let mut span = tracer.enter(&mut HeaderMap::new(), || "GET".to_owned()).unwrap();
    span.text("url.path", "/x");
    span.answered(StatusCode::OK);
}

fn metrics(tracer: &Tracer) -> ExportMetrics {
    tracer.0.as_ref().unwrap().metrics.clone()
}

#[tokio::test]
async fn spans_reach_a_collector_with_what_they_are_about() {
    let tasks = TaskGroup::new(&CancellationToken::new());
    let (collector, at) = Collecting::start(&tasks).await;
    let mut settings = settings(at);
    settings.headers.push((HeaderName::from_static("x-key"), HeaderValue::from_static("k")));
    settings.resource.push(("deployment.environment.name".to_owned(), "lab".to_owned()));
    let tracer = Tracer::start(Some(settings), tools(&tasks));
    let mut span = tracer.enter(&mut HeaderMap::new(), || "GET".to_owned()).unwrap();
    let mut child = tracer.child(span.context(), "GET".to_owned()).unwrap();
    child.failed("timeout");
    drop(child);
    span.number("server.port", 80);
    span.answered(StatusCode::OK);
    drop(span);
    collector.wait(|collector| collector.spans().len() == 2).await;
    let spans = collector.spans();
    let [child, parent] = spans.as_slice() else { panic!("{spans:?}") };
    assert_eq!(child.trace_id, parent.trace_id);
    assert_eq!(child.parent_span_id, parent.span_id);
    assert!(parent.parent_span_id.is_empty());
    assert_eq!((child.kind(), parent.kind()), (SpanKind::Client, SpanKind::Server));
    assert_eq!(attribute(child, "error.type").unwrap(), "timeout");
    assert_eq!(attribute(parent, "http.response.status_code").unwrap(), "200");
    assert_eq!(attribute(parent, "server.port").unwrap(), "80");
    assert!(parent.end_time_unix_nano >= child.end_time_unix_nano);
    assert!(parent.start_time_unix_nano > 1_700_000_000_000_000_000);
    assert_eq!(collector.resource("service.name").unwrap(), "edgeorc");
    assert_eq!(collector.resource("k8s.node.name").unwrap(), "one");
    assert_eq!(collector.resource("deployment.environment.name").unwrap(), "lab");
    assert_eq!(collector.header()["x-key"], "k");
    collector.wait(|_| metrics(&tracer).exported() == 2).await;
}

#[tokio::test]
async fn a_batch_is_sent_again_when_the_collector_is_busy_and_not_when_it_refuses() {
    let tasks = TaskGroup::new(&CancellationToken::new());
    let (collector, at) = Collecting::start(&tasks).await;
    collector.set(Act::Answer(StatusCode::SERVICE_UNAVAILABLE, Some("0")));
    let tracer = Tracer::start(Some(settings(at)), tools(&tasks));
    work(&tracer);
    collector.wait(|collector| collector.asked() == 2).await;
    collector.set(Act::Take);
    collector.wait(|collector| collector.spans().len() == 1).await;
    let asked = collector.asked();
    collector.set(Act::Answer(StatusCode::BAD_REQUEST, None));
    work(&tracer);
    let metrics = metrics(&tracer);
    collector.wait(|_| metrics.dropped() == 1).await;
    assert_eq!(collector.asked(), asked + 1);
    assert_eq!(metrics.exported(), 1);
}

#[tokio::test]
async fn a_batch_that_nobody_takes_is_given_up_and_the_next_one_goes() {
    let tasks = TaskGroup::new(&CancellationToken::new());
    let (collector, at) = Collecting::start(&tasks).await;
    collector.set(Act::Answer(StatusCode::TOO_MANY_REQUESTS, Some("0")));
    let tracer = Tracer::start(Some(settings(at)), tools(&tasks));
    work(&tracer);
    let metrics = metrics(&tracer);
    collector.wait(|_| metrics.dropped() == 1).await;
    assert_eq!(collector.asked(), 6);
    collector.set(Act::Take);
    work(&tracer);
    collector.wait(|collector| collector.spans().len() == 1).await;
}

#[tokio::test]
async fn a_collector_that_hangs_costs_memory_up_to_the_queue_and_no_time() {
    let tasks = TaskGroup::new(&CancellationToken::new());
    let (collector, at) = Collecting::start(&tasks).await;
    collector.set(Act::Hang);
    let tracer = Tracer::start(Some(settings(at)), tools(&tasks));
    work(&tracer);
    collector.wait(|collector| collector.asked() == 1).await;
    let metrics = metrics(&tracer);
    let count = QUEUE_MAX + 100;
    let started = tokio::time::Instant::now();
    for _ in 0..count {
        work(&tracer);
    }
    // No await: nothing could have waited. What is beyond the queue is counted.
    assert!(started.elapsed() < Duration::from_secs(1));
    assert_eq!(metrics.dropped(), 100);
}

#[tokio::test]
async fn the_last_spans_are_sent_when_the_process_ends() {
    let tasks = TaskGroup::new(&CancellationToken::new());
    let (collector, at) = Collecting::start(&tasks).await;
    let exporting = TaskGroup::new(&CancellationToken::new());
    let tracer = Tracer::start(Some(settings(at)), tools(&exporting));
    for _ in 0..700 {
        work(&tracer);
    }
    exporting.shutdown(Duration::from_secs(10)).await;
    assert_eq!(collector.spans().len(), 700);
    assert!(exporting.is_empty());
}

#[tokio::test]
async fn the_end_of_the_process_waits_for_a_collector_that_hangs_only_so_long() {
    let tasks = TaskGroup::new(&CancellationToken::new());
    let (collector, at) = Collecting::start(&tasks).await;
    collector.set(Act::Hang);
    let exporting = TaskGroup::new(&CancellationToken::new());
    let tracer = Tracer::start(Some(settings(at)), tools(&exporting));
    work(&tracer);
    let started = tokio::time::Instant::now();
    exporting.shutdown(Duration::from_secs(30)).await;
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert!(exporting.is_empty());
    assert_eq!(metrics(&tracer).dropped(), 1);
}
