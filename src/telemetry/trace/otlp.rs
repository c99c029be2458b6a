//! Spans as OTLP has them, in protobuf.

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message as _;

use super::span::{Kind, Record, Value};
use crate::config::TracingSettings;

/// Flags of a span whose parent is known to be in another process, or not (opentelemetry.proto).
const HAS_IS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

/// What all spans of this process have in common.
pub(super) fn resource(settings: &TracingSettings, node_name: &str) -> Resource {
    let version = env!("CARGO_PKG_VERSION");
    let own = [
        ("service.name", settings.service_name.as_str()),
        ("service.version", version),
        ("service.instance.id", node_name),
        ("k8s.node.name", node_name),
        ("telemetry.sdk.name", "edgeorc"),
        ("telemetry.sdk.language", "rust"),
        ("telemetry.sdk.version", version),
    ];
    // What the user says goes before what we know.
    let is_ours = |key: &str| !settings.resource.iter().any(|(other, _)| other == key);
    let own = own.iter().filter(|(key, _)| is_ours(key)).map(|(key, text)| text_pair(key, text));
    let given = settings.resource.iter().map(|(key, text)| text_pair(key, text));
    Resource { attributes: own.chain(given).collect(), ..Resource::default() }
}

/// A request that exports `records`.
pub(super) fn encode(resource: &Resource, records: &[Box<Record>]) -> Vec<u8> {
    let scope =
        InstrumentationScope { name: "edgeorc".to_owned(), ..InstrumentationScope::default() };
    let spans = ScopeSpans {
        scope: Some(scope),
        spans: records.iter().map(|record| span(record)).collect(),
        ..ScopeSpans::default()
    };
    let spans = ResourceSpans {
        resource: Some(resource.clone()),
        scope_spans: vec![spans],
        ..ResourceSpans::default()
    };
    ExportTraceServiceRequest { resource_spans: vec![spans] }.encode_to_vec()
}

/// How many spans the collector says it did not take; what cannot be read says nothing.
pub(super) fn rejected(answer: &[u8]) -> u64 {
    let read = ExportTraceServiceResponse::decode(answer).unwrap_or_default();
    let count = read.partial_success.map_or(0, |partial| partial.rejected_spans);
    u64::try_from(count).unwrap_or(0)
}

fn span(record: &Record) -> Span {
    let start = record.start_nanos();
    let (kind, place) = match record.kind {
        // Whoever asks a server is elsewhere, or the mesh in front of it.
        Kind::Server => (SpanKind::Server, HAS_IS_REMOTE | IS_REMOTE),
        Kind::Client => (SpanKind::Client, HAS_IS_REMOTE),
    };
    let place = if record.parent.is_some() { place } else { HAS_IS_REMOTE };
    let code = if record.is_error { StatusCode::Error } else { StatusCode::Unset };
    Span {
        trace_id: record.context.trace_id.to_vec(),
        span_id: record.context.span_id.to_vec(),
        trace_state: record.state.clone().unwrap_or_default(),
        parent_span_id: record.parent.map(|id| id.to_vec()).unwrap_or_default(),
        flags: u32::from(record.context.flags) | place,
        name: record.name.clone(),
        kind: kind.into(),
        start_time_unix_nano: start,
        end_time_unix_nano: start.saturating_add(record.took_nanos),
        attributes: record.attributes.iter().map(|(key, value)| pair(key, value)).collect(),
        dropped_attributes_count: record.attributes_left_out,
        status: Some(Status { message: String::new(), code: code.into() }),
        ..Span::default()
    }
}

fn pair(key: &str, value: &Value) -> KeyValue {
    match value {
        Value::Text(text) => text_pair(key, text),
        Value::Number(number) => with(key, Any::IntValue(*number)),
    }
}

fn text_pair(key: &str, text: &str) -> KeyValue {
    with(key, Any::StringValue(text.to_owned()))
}

fn with(key: &str, value: Any) -> KeyValue {
    let value = Some(AnyValue { value: Some(value) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}
