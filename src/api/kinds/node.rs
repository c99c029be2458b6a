//! Node.

use k8s_openapi::api::core::v1::Node;

use crate::api::decode::typed;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};

pub(super) const RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    plural: "nodes",
    singular: "node",
    kind: "Node",
    list_kind: "NodeList",
    description: "A machine that runs pods.",
    short_names: &["no"],
    categories: &[],
    is_namespaced: false,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: true,
    has_scale: false,
    has_generation: false,
    subresources: &[],
    columns: &[Column::NAME, Column::AGE],
    field_selectors: &[],
    strategy: Strategy::plain(typed::<Node>),
};
