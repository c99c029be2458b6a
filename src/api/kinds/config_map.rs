//! ConfigMap.

use k8s_openapi::api::core::v1::ConfigMap;

use crate::api::decode::typed;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};

pub(super) const RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    plural: "configmaps",
    singular: "configmap",
    kind: "ConfigMap",
    list_kind: "ConfigMapList",
    description: "Configuration that pods read.",
    short_names: &["cm"],
    categories: &[],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: false,
    has_scale: false,
    has_generation: false,
    subresources: &[],
    columns: &[Column::NAME, Column::AGE],
    field_selectors: &[],
    strategy: Strategy::plain(typed::<ConfigMap>),
};
