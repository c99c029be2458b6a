//! CSINode.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::storage::v1::CSINode;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::Errors;
use crate::api::json::{items_at, text_at};
use crate::api::kinds::csi_driver::validate_name;
use crate::api::meta;
use crate::api::names;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;

pub(super) const RESOURCE: Resource = Resource {
    group: "storage.k8s.io",
    version: "v1",
    plural: "csinodes",
    singular: "csinode",
    kind: "CSINode",
    list_kind: "CSINodeList",
    description: "The drivers of storage that a node has.",
    short_names: &[],
    categories: &[],
    is_namespaced: false,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: false,
    has_scale: false,
    has_generation: false,
    subresources: &[],
    columns: &[Column::NAME, Column::integer("Drivers"), Column::AGE],
    field_selectors: &[],
    strategy: Strategy { validate, validate_update, cells, ..Strategy::plain(typed::<CSINode>) },
};

/// Longest name that a driver has for a node.
const NODE_ID_LEN_MAX: usize = 256;

fn validate(object: &Value, errors: &mut Errors) {
    let mut known = BTreeSet::new();
    for (at, driver) in items_at(object, "/spec/drivers").iter().enumerate() {
        let path = format!("spec.drivers[{at}]");
        let name = text_at(driver, "/name");
        validate_name(name, &format!("{path}.name"), errors);
        if !known.insert(name) {
            errors.duplicate(format!("{path}.name"), &json!(name));
        }
        validate_driver(driver, &path, errors);
    }
}

fn validate_driver(driver: &Value, path: &str, errors: &mut Errors) {
    let id = text_at(driver, "/nodeID");
    if id.is_empty() {
        errors.required(format!("{path}.nodeID"));
    } else if id.len() > NODE_ID_LEN_MAX {
        let detail = format!("must be {NODE_ID_LEN_MAX} characters or less");
        errors.invalid(format!("{path}.nodeID"), &json!(id), &detail);
    }
    let count = driver.pointer("/allocatable/count").unwrap_or(&Value::Null);
    if count.as_i64().is_some_and(|count| count < 0) {
        let detail = "must be greater than or equal to 0";
        errors.invalid(format!("{path}.allocatable.count"), count, detail);
    }
    let path = format!("{path}.topologyKeys");
    let mut known = BTreeSet::new();
    for key in items_at(driver, "/topologyKeys") {
        let text = key.as_str().unwrap_or_default();
        if text.is_empty() {
            errors.required(path.as_str());
            continue;
        }
        if !known.insert(text) {
            errors.duplicate(path.as_str(), key);
        }
        if let Err(rule) = names::check_qualified_name(text) {
            errors.invalid(path.as_str(), key, rule);
        }
    }
}

/// Drivers come and go; of one that stays only the number of volumes changes.
fn validate_update(old: &Value, new: &Value, errors: &mut Errors) {
    for driver in items_at(new, "/spec/drivers") {
        let is_other = |had: &Value| {
            text_at(had, "/name") == text_at(driver, "/name")
                && (text_at(had, "/nodeID") != text_at(driver, "/nodeID")
                    || items_at(had, "/topologyKeys") != items_at(driver, "/topologyKeys"))
        };
        if items_at(old, "/spec/drivers").iter().any(is_other) {
            errors.invalid("spec.drivers", driver, "field is immutable");
        }
    }
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(meta::name(object)),
        json!(items_at(object, "/spec/drivers").len()),
        json!(age(object, now)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(drivers: Value) -> Value {
        json!({"metadata": {"name": "n"}, "spec": {"drivers": drivers}})
    }

    fn texts(check: impl Fn(&mut Errors)) -> Vec<String> {
        let mut errors = Errors::default();
        check(&mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_driver_is_named_once_and_knows_the_node_by_a_name() {
        let good = node(json!([
            {"name": "Disk.example.com", "nodeID": "i-1", "topologyKeys": ["example.com/zone"]},
            {"name": "file.example.com", "nodeID": "i-1", "allocatable": {"count": 0}},
        ]));
        assert_eq!(texts(|errors| validate(&good, errors)), Vec::<String>::new());
        assert_eq!(cells(&good, Timestamp::UNIX_EPOCH)[..2], [json!("n"), json!(2)]);
        let bad = node(json!([
            {"name": "", "nodeID": "x".repeat(257), "topologyKeys": ["", "z", "z", "a b"]},
            {"name": "d", "nodeID": "i"},
            {"name": "d", "allocatable": {"count": -1}},
            {"name": "d_".repeat(32), "nodeID": "i"},
        ]));
        let found = texts(|errors| validate(&bad, errors));
        let wanted = [
            "spec.drivers[0].name: Required value",
            "spec.drivers[0].nodeID: Invalid value",
            "spec.drivers[0].topologyKeys: Required value",
            "spec.drivers[0].topologyKeys: Duplicate value: \"z\"",
            "spec.drivers[0].topologyKeys: Invalid value: \"a b\"",
            "spec.drivers[2].name: Duplicate value: \"d\"",
            "spec.drivers[2].nodeID: Required value",
            "spec.drivers[2].allocatable.count: Invalid value: -1",
            "spec.drivers[3].name: Too long",
            "spec.drivers[3].name: Invalid value",
        ];
        assert_eq!(found.len(), wanted.len(), "{found:?}");
        for (found, wanted) in found.iter().zip(wanted) {
            assert!(found.starts_with(wanted), "{wanted} in {found}");
        }
    }

    #[test]
    fn a_driver_that_stays_keeps_its_name_for_the_node() {
        let old = node(json!([{"name": "d", "nodeID": "i", "allocatable": {"count": 1}}]));
        let changed = |drivers: Value| {
            texts(|errors| validate_update(&old, &node(drivers.clone()), errors)).len()
        };
        assert_eq!(changed(json!([])), 0);
        assert_eq!(changed(json!([{"name": "d", "nodeID": "i", "topologyKeys": []}])), 0);
        assert_eq!(changed(json!([{"name": "d", "nodeID": "i"}, {"name": "e", "nodeID": "j"}])), 0);
        assert_eq!(changed(json!([{"name": "d", "nodeID": "j"}])), 1);
        assert_eq!(changed(json!([{"name": "d", "nodeID": "i", "topologyKeys": ["z"]}])), 1);
    }
}
