//! Endpoints.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Endpoints;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::json::{int_at, items_at, text_at};
use crate::api::meta;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;

pub(super) const RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    plural: "endpoints",
    singular: "endpoints",
    kind: "Endpoints",
    list_kind: "EndpointsList",
    description: "The endpoints of a service in one object, for clients that know no EndpointSlice.",
    short_names: &["ep"],
    categories: &[],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: false,
    has_scale: false,
    has_generation: false,
    subresources: &[],
    columns: &[Column::NAME, Column::text("Endpoints"), Column::AGE],
    field_selectors: &[],
    strategy: Strategy { cells, ..Strategy::plain(typed::<Endpoints>) },
};

/// Endpoints listed in a table; the others are counted.
const SHOWN_MAX: usize = 3;

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(meta::name(object)), json!(shown(object)), json!(age(object, now))]
}

/// The ready addresses, with each port.
fn shown(object: &Value) -> String {
    let subsets = items_at(object, "/subsets");
    if subsets.is_empty() {
        return "<none>".to_owned();
    }
    let mut listed = Vec::new();
    let mut count = 0_usize;
    for subset in subsets {
        let ports = items_at(subset, "/ports");
        let numbers: Vec<Option<i64>> = if ports.is_empty() {
            vec![None]
        } else {
            ports.iter().map(|port| int_at(port, "/port")).collect()
        };
        for number in numbers {
            for address in items_at(subset, "/addresses") {
                count = count.saturating_add(1);
                if listed.len() >= SHOWN_MAX {
                    continue;
                }
                let ip = text_at(address, "/ip");
                listed.push(number.map_or_else(|| ip.to_owned(), |port| format!("{ip}:{port}")));
            }
        }
    }
    let mut text = listed.join(",");
    if count > SHOWN_MAX {
        text.push_str(&format!(" + {} more...", count - SHOWN_MAX));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_three_endpoints_are_listed_and_the_others_counted() {
        let addresses: Vec<_> = (1..=2).map(|n| json!({"ip": format!("10.42.0.{n}")})).collect();
        let object = json!({"subsets": [
            {"addresses": addresses, "ports": [{"port": 80}, {"port": 443}],
             "notReadyAddresses": [{"ip": "10.42.0.9"}]},
        ]});
        assert_eq!(shown(&object), "10.42.0.1:80,10.42.0.2:80,10.42.0.1:443 + 1 more...");
        assert_eq!(shown(&json!({"subsets": [{"addresses": addresses}]})), "10.42.0.1,10.42.0.2");
        assert_eq!(shown(&json!({})), "<none>");
    }
}
