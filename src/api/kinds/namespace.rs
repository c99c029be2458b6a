//! Namespace.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::json::{copy_key, text_at};
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy, Subresource};
use crate::api::table::age;
use crate::api::{meta, names};

pub(super) const RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    plural: "namespaces",
    singular: "namespace",
    kind: "Namespace",
    list_kind: "NamespaceList",
    description: "A scope for names.",
    short_names: &["ns"],
    categories: &[],
    is_namespaced: false,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: true,
    has_scale: false,
    has_generation: false,
    subresources: &[Subresource {
        name: "finalize",
        kind: "Namespace",
        group: "",
        version: "",
        verbs: &["update"],
    }],
    columns: &[Column::NAME, Column::text("Status"), Column::AGE],
    field_selectors: &["status.phase"],
    strategy: Strategy {
        prepare_update: |old, new| copy_key(old, new, "spec"),
        check_name: names::check_dns1123_label,
        cells,
        ..Strategy::plain(typed::<Namespace>)
    },
};

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(meta::name(object)),
        json!(text_at(object, "/status/phase")),
        json!(age(object, now)),
    ]
}
