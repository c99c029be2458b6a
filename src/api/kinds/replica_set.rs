//! ReplicaSet.

use k8s_openapi::api::apps::v1::ReplicaSet;

use crate::api::decode::typed;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};

pub(super) const RESOURCE: Resource = Resource {
    group: "apps",
    version: "v1",
    plural: "replicasets",
    singular: "replicaset",
    kind: "ReplicaSet",
    list_kind: "ReplicaSetList",
    description: "Keeps a number of equal pods.",
    short_names: &["rs"],
    categories: &["all"],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: true,
    has_scale: true,
    has_generation: true,
    subresources: &[],
    columns: &[Column::NAME, Column::AGE],
    field_selectors: &[],
    strategy: Strategy::plain(typed::<ReplicaSet>),
};
