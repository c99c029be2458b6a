//! EndpointSlice.

use jiff::Timestamp;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::json::{int_at, items_at, text_at};
use crate::api::meta;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;

pub(super) const RESOURCE: Resource = Resource {
    group: "discovery.k8s.io",
    version: "v1",
    plural: "endpointslices",
    singular: "endpointslice",
    kind: "EndpointSlice",
    list_kind: "EndpointSliceList",
    description: "A part of the endpoints of a service.",
    short_names: &[],
    categories: &[],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: false,
    has_scale: false,
    has_generation: true,
    subresources: &[],
    columns: &[
        Column::NAME,
        Column::text("AddressType"),
        Column::text("Ports"),
        Column::text("Endpoints"),
        Column::AGE,
    ],
    field_selectors: &[],
    strategy: Strategy { cells, ..Strategy::plain(typed::<EndpointSlice>) },
};

/// Endpoints listed in a table; the others are counted.
const SHOWN_MAX: usize = 3;

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports = items_at(object, "/ports").iter().filter_map(|port| int_at(port, "/port"));
    let ports: Vec<String> = ports.map(|port| port.to_string()).collect();
    let endpoints = items_at(object, "/endpoints");
    let addresses = endpoints.iter().map(|endpoint| text_at(endpoint, "/addresses/0"));
    let mut listed = addresses.take(SHOWN_MAX).collect::<Vec<_>>().join(",");
    if endpoints.len() > SHOWN_MAX {
        listed.push_str(&format!(" + {} more...", endpoints.len() - SHOWN_MAX));
    }
    let or_unset = |text: String| if text.is_empty() { "<unset>".to_owned() } else { text };
    vec![
        json!(meta::name(object)),
        json!(text_at(object, "/addressType")),
        json!(or_unset(ports.join(","))),
        json!(or_unset(listed)),
        json!(age(object, now)),
    ]
}
