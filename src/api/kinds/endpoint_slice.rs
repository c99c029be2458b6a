//! EndpointSlice.

use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::api::decode::typed;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};

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
    columns: &[Column::NAME, Column::AGE],
    field_selectors: &[],
    strategy: Strategy::plain(typed::<EndpointSlice>),
};
