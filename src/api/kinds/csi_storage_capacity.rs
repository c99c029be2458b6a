//! CSIStorageCapacity.

use jiff::Timestamp;
use k8s_openapi::api::storage::v1::CSIStorageCapacity;
use serde_json::{Map, Value, json};

use crate::api::decode::typed;
use crate::api::field_error::Errors;
use crate::api::json::{is_empty, str_at, text_at};
use crate::api::meta;
use crate::api::names;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::selector::LabelSelector;

pub(super) const RESOURCE: Resource = Resource {
    group: "storage.k8s.io",
    version: "v1",
    plural: "csistoragecapacities",
    singular: "csistoragecapacity",
    kind: "CSIStorageCapacity",
    list_kind: "CSIStorageCapacityList",
    description: "How much storage of a class there is for some nodes.",
    short_names: &[],
    categories: &[],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: false,
    has_scale: false,
    has_generation: false,
    subresources: &[],
    columns: &[Column::NAME, Column::text("StorageClassName"), Column::text("Capacity")],
    field_selectors: &[],
    strategy: Strategy {
        validate,
        validate_update,
        cells,
        ..Strategy::plain(typed::<CSIStorageCapacity>)
    },
};

fn validate(object: &Value, errors: &mut Errors) {
    if let Some(selector) = object.get("nodeTopology").filter(|selector| !selector.is_null())
        && let Err(cause) = LabelSelector::from_json(selector)
    {
        errors.invalid("nodeTopology", selector, &cause.to_string());
    }
    let class = text_at(object, "/storageClassName");
    if class.is_empty() {
        errors.required("storageClassName");
    } else if let Err(rule) = names::check_dns1123_subdomain(class) {
        errors.invalid("storageClassName", &json!(class), rule);
    }
    let capacity = text_at(object, "/capacity");
    if capacity.starts_with('-') {
        errors.invalid("capacity", &json!(capacity), "must be greater than or equal to 0");
    }
}

/// What was asked of the driver stays; its answer changes.
fn validate_update(old: &Value, new: &Value, errors: &mut Errors) {
    let immutable = "field is immutable";
    if topology(old) != topology(new) {
        let sent = new.get("nodeTopology").unwrap_or(&Value::Null);
        errors.invalid("nodeTopology", sent, immutable);
    }
    let class = text_at(new, "/storageClassName");
    if text_at(old, "/storageClassName") != class {
        errors.invalid("storageClassName", &json!(class), immutable);
    }
}

/// The selector without what says nothing; an empty one, all nodes, is not the same as none.
fn topology(object: &Value) -> Option<Map<String, Value>> {
    let mut selector = object.get("nodeTopology")?.as_object()?.clone();
    selector.retain(|_, value| !is_empty(Some(value)));
    Some(selector)
}

fn cells(object: &Value, _: Timestamp) -> Vec<Value> {
    vec![
        json!(meta::name(object)),
        json!(text_at(object, "/storageClassName")),
        json!(str_at(object, "/capacity").unwrap_or("<unset>")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(check: impl Fn(&mut Errors)) -> Vec<String> {
        let mut errors = Errors::default();
        check(&mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_capacity_is_of_a_class_and_not_negative() {
        let good = json!({"metadata": {"name": "c"}, "storageClassName": "fast"});
        assert_eq!(texts(|errors| validate(&good, errors)), Vec::<String>::new());
        assert_eq!(cells(&good, Timestamp::UNIX_EPOCH), ["c", "fast", "<unset>"]);
        let bad = json!({"capacity": "-1Gi", "nodeTopology": {"matchLabels": {"a b": "c"}}});
        let found = texts(|errors| validate(&bad, errors));
        assert_eq!(found.len(), 3, "{found:?}");
        for (found, wanted) in found.iter().zip([
            "nodeTopology: Invalid value",
            "storageClassName: Required value",
            "capacity: Invalid value: \"-1Gi\": must be greater than or equal to 0",
        ]) {
            assert!(found.starts_with(wanted), "{wanted} in {found}");
        }
        let named = json!({"storageClassName": "Fast!"});
        assert!(texts(|errors| validate(&named, errors))[0].starts_with("storageClassName: Inv"));
    }

    #[test]
    fn class_and_nodes_of_a_capacity_stay() {
        let of = |class: &str, topology: Value| json!({"storageClassName": class, "nodeTopology": topology, "capacity": "1Gi"});
        let everywhere = of("fast", json!({}));
        let changed = |new: &Value| texts(|e| validate_update(&everywhere, new, e)).len();
        assert_eq!(changed(&json!({"storageClassName": "fast", "nodeTopology": {}})), 0);
        assert_eq!(changed(&of("fast", json!({"matchLabels": {}}))), 0);
        assert_eq!(changed(&of("fast", Value::Null)), 1);
        assert_eq!(changed(&of("slow", json!({"matchLabels": {"zone": "a"}}))), 2);
    }
}
