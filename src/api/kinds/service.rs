//! Service.

use k8s_openapi::api::core::v1::Service;

use crate::api::decode::typed;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};

pub(super) const RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    plural: "services",
    singular: "service",
    kind: "Service",
    list_kind: "ServiceList",
    description: "A name and an address for a set of pods.",
    short_names: &["svc"],
    categories: &["all"],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: true,
    has_scale: false,
    has_generation: false,
    subresources: &[],
    columns: &[Column::NAME, Column::AGE],
    field_selectors: &[],
    strategy: Strategy::plain(typed::<Service>),
};
