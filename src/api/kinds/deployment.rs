//! Deployment.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::json::{child, set_default, set_default_text, text_at};
use crate::api::kinds::workload::{self, number};
use crate::api::meta;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;

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
    columns: &[
        Column::NAME,
        Column::text("Ready"),
        Column::integer("Up-to-date"),
        Column::integer("Available"),
        Column::AGE,
        Column::wide("Containers"),
        Column::wide("Images"),
        Column::wide("Selector"),
    ],
    field_selectors: &[],
    strategy: Strategy {
        default,
        validate: workload::validate,
        validate_update: workload::validate_update,
        cells,
        ..Strategy::plain(typed::<Deployment>)
    },
};

/// Old ReplicaSets kept for `kubectl rollout undo`.
const REVISIONS: i64 = 10;
/// Seconds without progress after which a rollout is reported as stuck.
const PROGRESS_SECONDS: i64 = 600;

fn default(object: &mut Value) {
    workload::default(object);
    let Some(spec) = child(object, "spec") else { return };
    set_default(spec, "revisionHistoryLimit", REVISIONS);
    set_default(spec, "progressDeadlineSeconds", PROGRESS_SECONDS);
    let Some(strategy) = child(spec, "strategy") else { return };
    set_default_text(strategy, "type", "RollingUpdate");
    if text_at(strategy, "/type") == "RollingUpdate"
        && let Some(rolling) = child(strategy, "rollingUpdate")
    {
        set_default(rolling, "maxSurge", "25%");
        set_default(rolling, "maxUnavailable", "25%");
    }
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let (ready, wanted) =
        (number(object, "/status/readyReplicas"), number(object, "/spec/replicas"));
    let [containers, images, selector] = workload::wide_cells(object);
    vec![
        json!(meta::name(object)),
        json!(format!("{ready}/{wanted}")),
        json!(number(object, "/status/updatedReplicas")),
        json!(number(object, "/status/availableReplicas")),
        json!(age(object, now)),
        containers,
        images,
        selector,
    ]
}
