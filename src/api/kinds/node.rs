//! Node.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::json::{is_true, items_at, text_at};
use crate::api::meta;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy, Subresource};
use crate::api::table::age;

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
    subresources: &[Subresource {
        name: "proxy",
        kind: "NodeProxyOptions",
        group: "",
        version: "",
        verbs: &["get"],
    }],
    columns: &[
        Column::NAME,
        Column::text("Status"),
        Column::text("Roles"),
        Column::AGE,
        Column::text("Version"),
        Column::wide("Internal-IP"),
        Column::wide("External-IP"),
        Column::wide("OS-Image"),
        Column::wide("Kernel-Version"),
        Column::wide("Container-Runtime"),
    ],
    field_selectors: &["spec.unschedulable"],
    strategy: Strategy { cells, ..Strategy::plain(typed::<Node>) },
};

/// Shown where there is nothing.
const NONE: &str = "<none>";
/// Prefix of the labels that name a node's roles.
const ROLE_LABEL: &str = "node-role.kubernetes.io/";

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let or_none = |text: &str| if text.is_empty() { NONE.to_owned() } else { text.to_owned() };
    let ready =
        items_at(object, "/status/conditions").iter().find(|c| text_at(c, "/type") == "Ready");
    let mut status = match ready.map(|condition| text_at(condition, "/status")) {
        Some("True") => "Ready".to_owned(),
        Some("False" | "Unknown") => "NotReady".to_owned(),
        _ => "Unknown".to_owned(),
    };
    if is_true(object, "/spec/unschedulable") {
        status.push_str(",SchedulingDisabled");
    }
    let labels = meta::labels(object).into_iter().flatten();
    let roles: Vec<&str> = labels.filter_map(|(key, _)| key.strip_prefix(ROLE_LABEL)).collect();
    let address = |kind: &str| {
        let addresses = items_at(object, "/status/addresses").iter();
        addresses.filter(|a| text_at(a, "/type") == kind).map(|a| text_at(a, "/address")).next()
    };
    let info = |key: &str| or_none(text_at(object, &format!("/status/nodeInfo/{key}")));
    vec![
        json!(meta::name(object)),
        json!(status),
        json!(or_none(&roles.join(","))),
        json!(age(object, now)),
        json!(info("kubeletVersion")),
        json!(or_none(address("InternalIP").unwrap_or_default())),
        json!(or_none(address("ExternalIP").unwrap_or_default())),
        json!(info("osImage")),
        json!(info("kernelVersion")),
        json!(info("containerRuntimeVersion")),
    ]
}
