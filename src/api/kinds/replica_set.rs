//! ReplicaSet.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::kinds::workload::{self, number};
use crate::api::meta;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;

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
    columns: &[
        Column::NAME,
        Column::integer("Desired"),
        Column::integer("Current"),
        Column::integer("Ready"),
        Column::AGE,
        Column::wide("Containers"),
        Column::wide("Images"),
        Column::wide("Selector"),
    ],
    field_selectors: &["status.replicas"],
    strategy: Strategy {
        default: workload::default,
        validate: |object, errors| workload::validate(object, "replicaset", errors),
        validate_update: workload::validate_update,
        warnings: workload::warnings,
        cells,
        ..Strategy::plain(typed::<ReplicaSet>)
    },
};

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let [containers, images, selector] = workload::wide_cells(object);
    vec![
        json!(meta::name(object)),
        json!(number(object, "/spec/replicas")),
        json!(number(object, "/status/replicas")),
        json!(number(object, "/status/readyReplicas")),
        json!(age(object, now)),
        containers,
        images,
        selector,
    ]
}
