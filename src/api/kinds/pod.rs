//! Pod.

use k8s_openapi::api::core::v1::Pod;

use crate::api::decode::typed;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};

pub(super) const RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    plural: "pods",
    singular: "pod",
    kind: "Pod",
    list_kind: "PodList",
    description: "WebAssembly containers that run together on one node.",
    short_names: &["po"],
    categories: &["all"],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: true,
    has_scale: false,
    has_generation: true,
    subresources: &[],
    columns: &[Column::NAME, Column::AGE],
    field_selectors: &[],
    strategy: Strategy::plain(typed::<Pod>),
};
