//! Deployment.

use k8s_openapi::api::apps::v1::Deployment;

use crate::api::decode::typed;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};

pub(super) const RESOURCE: Resource = Resource {
    group: "apps",
    version: "v1",
    plural: "deployments",
    singular: "deployment",
    kind: "Deployment",
    list_kind: "DeploymentList",
    description: "Keeps replicas of a pod, and replaces them step by step when it changes.",
    short_names: &["deploy"],
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
    strategy: Strategy::plain(typed::<Deployment>),
};
