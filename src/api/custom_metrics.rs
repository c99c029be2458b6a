//! `custom.metrics.k8s.io`: what the mesh measures of pods and Services, as a metrics adapter serves it.
//! Nothing of it is stored: each answer is made when it is asked for.

use serde_json::{Value, json};

use crate::api::resource::{Column, Resource, Strategy, Subresource};

/// The API group.
pub const GROUP: &str = "custom.metrics.k8s.io";
/// The version.
pub const VERSION: &str = "v1beta2";
/// The one metric there is: HTTP requests per second, over the last half minute or so.
pub const REQUESTS_PER_SECOND: &str = "requests-per-second";

/// What the group serves.
pub static RESOURCES: [Resource; 2] = [
    resource("pods", "What pods are asked, by all nodes together."),
    resource("services", "What Services are asked, through all nodes together."),
];

const fn resource(plural: &'static str, description: &'static str) -> Resource {
    Resource {
        group: GROUP,
        version: VERSION,
        plural,
        singular: "",
        kind: "MetricValueList",
        list_kind: "MetricValueList",
        description,
        short_names: &[],
        categories: &[],
        is_namespaced: true,
        verbs: &["get"],
        is_volatile: false,
        has_status: false,
        has_scale: false,
        has_generation: false,
        subresources: &[Subresource {
            name: REQUESTS_PER_SECOND,
            kind: "MetricValueList",
            group: "",
            version: "",
            verbs: &["get"],
        }],
        columns: &[Column::NAME],
        field_selectors: &[],
        // It is never written, so never decoded.
        strategy: Strategy::plain(|object| Ok(object.clone())),
    }
}

/// The resource that a URL names.
#[must_use]
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    let is_it =
        |found: &&Resource| (found.group, found.version, found.plural) == (group, version, plural);
    RESOURCES.iter().find(is_it)
}

/// One measure: of which object, when, over how many seconds, and thousandths of the amount.
#[must_use]
pub fn value(object: &Value, time: &str, window_seconds: u64, millis: u64) -> Value {
    let text = |pointer: &str| object.pointer(pointer).cloned().unwrap_or_default();
    json!({
        "describedObject": {
            "kind": text("/kind"),
            "namespace": text("/metadata/namespace"),
            "name": text("/metadata/name"),
            "apiVersion": "v1",
        },
        "metric": { "name": REQUESTS_PER_SECOND },
        "timestamp": time,
        "windowSeconds": window_seconds,
        "value": format!("{millis}m"),
    })
}
