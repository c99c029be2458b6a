//! Ingress.

use k8s_openapi::api::networking::v1::Ingress;

use crate::api::decode::typed;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};

pub(super) const RESOURCE: Resource = Resource {
    group: "networking.k8s.io",
    version: "v1",
    plural: "ingresses",
    singular: "ingress",
    kind: "Ingress",
    list_kind: "IngressList",
    description: "HTTP rules that lead from outside to services.",
    short_names: &["ing"],
    categories: &[],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: true,
    has_scale: false,
    has_generation: true,
    subresources: &[],
    columns: &[Column::NAME, Column::AGE],
    field_selectors: &[],
    strategy: Strategy::plain(typed::<Ingress>),
};
