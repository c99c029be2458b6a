//! Lease.

use k8s_openapi::api::coordination::v1::Lease;

use crate::api::decode::typed;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};

pub(super) const RESOURCE: Resource = Resource {
    group: "coordination.k8s.io",
    version: "v1",
    plural: "leases",
    singular: "lease",
    kind: "Lease",
    list_kind: "LeaseList",
    description: "A claim that its holder renews.",
    short_names: &[],
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
    strategy: Strategy::plain(typed::<Lease>),
};
