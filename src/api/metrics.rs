//! `metrics.k8s.io`: measured use of nodes and pods, as metrics-server serves it. Nothing of it is
//! stored: each answer is made when it is asked for.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::json::{items_at, text_at};
use crate::api::meta;
use crate::api::quantity::Quantity;
use crate::api::resource::{Column, Resource, Strategy};

/// The API group.
pub const GROUP: &str = "metrics.k8s.io";
const VERSION: &str = "v1beta1";
const COLUMNS: &[Column] =
    &[Column::NAME, Column::text("CPU"), Column::text("Memory"), Column::text("Window")];

/// What the group serves.
pub static RESOURCES: [Resource; 2] = [
    resource("nodes", "NodeMetrics", "NodeMetricsList", "What a node uses.", false),
    resource("pods", "PodMetrics", "PodMetricsList", "What a pod's containers use.", true),
];

const fn resource(
    plural: &'static str,
    kind: &'static str,
    list_kind: &'static str,
    description: &'static str,
    is_namespaced: bool,
) -> Resource {
    Resource {
        group: GROUP,
        version: VERSION,
        plural,
        singular: "",
        kind,
        list_kind,
        description,
        short_names: &[],
        categories: &[],
        is_namespaced,
        verbs: &["get", "list"],
        is_volatile: false,
        has_status: false,
        has_scale: false,
        has_generation: false,
        subresources: &[],
        columns: COLUMNS,
        field_selectors: &[],
        // It is never written, so never decoded.
        strategy: Strategy { cells, ..Strategy::plain(|object| Ok(object.clone())) },
    }
}

/// The resource that a URL names.
#[must_use]
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    let is_it =
        |found: &&Resource| (found.group, found.version, found.plural) == (group, version, plural);
    RESOURCES.iter().find(is_it)
}

fn cells(object: &Value, _: Timestamp) -> Vec<Value> {
    let own = object.get("usage").into_iter();
    let usages = items_at(object, "/containers").iter().filter_map(|one| one.get("usage"));
    let (mut cpu, mut memory) = (0_i128, 0_i128);
    for usage in own.chain(usages) {
        let nanos = |key: &str| text_at(usage, key).parse().map_or(0, Quantity::nanos);
        cpu = cpu.saturating_add(nanos("/cpu"));
        memory = memory.saturating_add(nanos("/memory"));
    }
    let memory = i64::try_from(memory / 1_000_000_000 / 1024).unwrap_or(i64::MAX);
    vec![
        json!(meta::name(object)),
        json!(format!("{cpu}n")),
        json!(format!("{memory}Ki")),
        json!(text_at(object, "/window")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_sums_the_containers_of_a_pod() {
        let pod = json!({
            "metadata": {"name": "p"}, "window": "20s",
            "containers": [
                {"name": "a", "usage": {"cpu": "1500n", "memory": "2Mi"}},
                {"name": "b", "usage": {"cpu": "1m", "memory": "1Ki"}},
            ],
        });
        let row = cells(&pod, Timestamp::UNIX_EPOCH);
        assert_eq!(row, [json!("p"), json!("1001500n"), json!("2049Ki"), json!("20s")]);
        assert_eq!(find(GROUP, "v1beta1", "pods").unwrap().kind, "PodMetrics");
        assert!(find(GROUP, "v1", "pods").is_none() && find("", "v1beta1", "pods").is_none());
    }
}
