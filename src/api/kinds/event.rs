//! Event.

use k8s_openapi::api::core::v1::Event;

use crate::api::decode::typed;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};

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
    columns: &[Column::NAME, Column::AGE],
    field_selectors: &[],
    strategy: Strategy::plain(typed::<Event>),
};
