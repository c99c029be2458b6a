//! Event.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::json::{int_at, str_at, text_at};
use crate::api::meta;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::since;

pub(super) const RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    plural: "events",
    singular: "event",
    kind: "Event",
    list_kind: "EventList",
    description: "Something that happened to an object.",
    short_names: &["ev"],
    categories: &[],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: true,
    has_status: false,
    has_scale: false,
    has_generation: false,
    subresources: &[],
    columns: &[
        Column::text("Last Seen"),
        Column::text("Type"),
        Column::text("Reason"),
        Column::text("Object"),
        Column::wide("Subobject"),
        Column::wide("Source"),
        Column::text("Message"),
        Column::wide("First Seen"),
        Column::wide("Count"),
        Column { is_wide: true, ..Column::NAME },
    ],
    field_selectors: &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ],
    strategy: Strategy { cells, ..Strategy::plain(typed::<Event>) },
};

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let time = |path: &str| str_at(object, path).filter(|text| !text.is_empty());
    let first = time("/firstTimestamp").or(time("/eventTime"));
    let last = time("/series/lastObservedTime").or(time("/lastTimestamp")).or(first);
    let kind = text_at(object, "/involvedObject/kind").to_lowercase();
    let component = text_at(object, "/source/component");
    let host = text_at(object, "/source/host");
    let source =
        if host.is_empty() { component.to_owned() } else { format!("{component}, {host}") };
    vec![
        json!(since(last, now)),
        json!(text_at(object, "/type")),
        json!(text_at(object, "/reason")),
        json!(format!("{kind}/{}", text_at(object, "/involvedObject/name"))),
        json!(text_at(object, "/involvedObject/fieldPath")),
        json!(source),
        json!(text_at(object, "/message").trim()),
        json!(since(first, now)),
        json!(int_at(object, "/count").unwrap_or(1)),
        json!(meta::name(object)),
    ]
}
