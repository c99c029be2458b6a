//! ResourceSlice.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::resource::v1::ResourceSlice;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::{Errors, FieldError};
use crate::api::json::{entries_at, int_at, is_true, is_unset, items_at, text_at};
use crate::api::kinds::device_counters::{validate_consumed, validate_shared};
use crate::api::kinds::device_requests::{check_device_key, validate_driver, validate_name};
use crate::api::kinds::pod_placement::validate_node_selector;
use crate::api::quota::amount;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;
use crate::api::{meta, names};

pub(super) const RESOURCE: Resource = Resource {
    group: "resource.k8s.io",
    version: "v1",
    plural: "resourceslices",
    singular: "resourceslice",
    kind: "ResourceSlice",
    list_kind: "ResourceSliceList",
    description: "Devices that a driver has on a node, or for several.",
    short_names: &[],
    categories: &[],
    is_namespaced: false,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: false,
    has_scale: false,
    has_generation: true,
    subresources: &[],
    columns: &[
        Column::NAME,
        Column::text("Node"),
        Column::text("Driver"),
        Column::text("Pool"),
        Column::AGE,
    ],
    field_selectors: &["spec.nodeName", "spec.driver"],
    strategy: Strategy {
        validate,
        validate_update,
        cells,
        ..Strategy::plain(typed::<ResourceSlice>)
    },
};

/// Devices of one slice.
const DEVICES_MAX: usize = 128;
/// Devices of one slice some of which have taints or draw on counters.
const SPECIAL_DEVICES_MAX: usize = 64;
/// Attributes and capacities of one device.
const PROPERTIES_MAX: usize = 32;
/// Characters of a text among the attributes.
const TEXT_LEN_MAX: usize = 64;
/// Taints of one device.
const TAINTS_MAX: usize = 16;
/// Conditions of one kind that a device waits for.
const CONDITIONS_MAX: usize = 4;
/// Bytes of the name of a pool.
const POOL_BYTES_MAX: usize = 253;
/// Who can reach the devices: one of these.
const PLACES: [&str; 4] = ["nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"];

fn validate(object: &Value, errors: &mut Errors) {
    let spec = object.get("spec").unwrap_or(&Value::Null);
    validate_driver(text_at(spec, "/driver"), "spec.driver", errors);
    validate_pool(spec, errors);
    let is_per_device = is_true(spec, "/perDeviceNodeSelection");
    if places(spec, &PLACES) != 1 {
        let detail = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
        errors.required_because("spec", detail);
    }
    validate_place(spec, "spec", errors);
    validate_shared(spec, errors);
    let devices = items_at(spec, "/devices");
    let is_special = |device: &Value| {
        ["/taints", "/consumesCounters"].iter().any(|list| !items_at(device, list).is_empty())
    };
    let most = if devices.iter().any(is_special) { SPECIAL_DEVICES_MAX } else { DEVICES_MAX };
    if devices.len() > most {
        errors.push(FieldError::too_many("spec.devices", devices.len(), most));
    }
    let mut known = BTreeSet::new();
    for (at, device) in devices.iter().enumerate() {
        let path = format!("spec.devices[{at}]");
        let name = text_at(device, "/name");
        validate_name(name, &format!("{path}.name"), errors);
        if !name.is_empty() && !known.insert(name) {
            errors.duplicate(format!("{path}.name"), &json!(name));
        }
        validate_place(device, &path, errors);
        let own = places(device, &["nodeName", "nodeSelector", "allNodes"]);
        if is_per_device && own != 1 {
            let detail = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
            errors.required_because(path.as_str(), detail);
        } else if !is_per_device && own != 0 {
            let detail = "can only be set when `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
            errors.forbidden(path.as_str(), detail);
        }
        validate_properties(device, &path, errors);
        validate_taints(device, &path, errors);
        validate_conditions(device, &path, errors);
        validate_consumed(device, &path, errors);
    }
}

fn validate_pool(spec: &Value, errors: &mut Errors) {
    validate_pool_name(text_at(spec, "/pool/name"), "spec.pool.name", errors);
    let generation = int_at(spec, "/pool/generation").unwrap_or(0);
    if generation < 0 {
        let detail = "must be greater than or equal to zero";
        errors.invalid("spec.pool.generation", &json!(generation), detail);
    }
    let count = int_at(spec, "/pool/resourceSliceCount").unwrap_or(0);
    if count <= 0 {
        let detail = "must be greater than zero";
        errors.invalid("spec.pool.resourceSliceCount", &json!(count), detail);
    }
}

/// Checks the name of a pool: one or more subdomains.
pub(super) fn validate_pool_name(name: &str, path: &str, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(path);
    } else if name.len() > POOL_BYTES_MAX {
        errors.push(FieldError::too_long(path, POOL_BYTES_MAX));
    } else if let Some(rule) = name.split('/').find_map(|p| names::check_dns1123_subdomain(p).err())
    {
        errors.invalid(path, &json!(name), rule);
    }
}

/// Checks the nodes that a slice or a device names.
fn validate_place(holder: &Value, path: &str, errors: &mut Errors) {
    let node = text_at(holder, "/nodeName");
    if !node.is_empty()
        && let Err(rule) = names::check_dns1123_subdomain(node)
    {
        errors.invalid(format!("{path}.nodeName"), &json!(node), rule);
    }
    if let Some(selector) = holder.get("nodeSelector").filter(|it| !it.is_null()) {
        let path = format!("{path}.nodeSelector");
        validate_node_selector(selector, &path, errors);
        let terms = items_at(selector, "/nodeSelectorTerms");
        if terms.len() > 1 {
            let detail = "must have exactly one node selector term";
            errors.invalid(format!("{path}.nodeSelectorTerms"), &json!(terms), detail);
        }
    }
}

/// How many of these are said.
fn places(holder: &Value, keys: &[&str]) -> usize {
    let is_said = |key: &&&str| match holder.get(**key) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(_) => true,
    };
    keys.iter().filter(is_said).count()
}

fn validate_properties(device: &Value, path: &str, errors: &mut Errors) {
    let attributes = entries_at(device, "/attributes").count();
    let count = attributes + entries_at(device, "/capacity").count();
    if count > PROPERTIES_MAX {
        errors.push(FieldError::too_many(path, count, PROPERTIES_MAX));
    }
    for (name, attribute) in entries_at(device, "/attributes") {
        let path = format!("{path}.attributes[{name}]");
        if let Err(rule) = check_device_key(name) {
            errors.invalid(path.as_str(), &json!(name), rule);
        }
        validate_attribute(attribute, &path, errors);
    }
    for (name, capacity) in entries_at(device, "/capacity") {
        let path = format!("{path}.capacity[{name}]");
        if let Err(rule) = check_device_key(name) {
            errors.invalid(path.as_str(), &json!(name), rule);
        }
        let value = capacity.get("value").unwrap_or(&Value::Null);
        if amount(value).is_none() {
            errors.invalid(
                format!("{path}.value"),
                value,
                "must be a quantity such as 100m or 64Mi",
            );
        }
    }
}

fn validate_attribute(attribute: &Value, path: &str, errors: &mut Errors) {
    const TYPES: [&str; 8] =
        ["bool", "bools", "int", "ints", "string", "strings", "version", "versions"];
    let said = TYPES.iter().filter(|kind| !is_unset(attribute.get(**kind))).count();
    match said {
        0 => return errors.required_because(path, "exactly one value must be specified"),
        1 => {}
        _ => return errors.invalid(path, attribute, "exactly one value must be specified"),
    }
    let listed = |one: &str, several: &str| {
        let one = attribute.get(one).and_then(Value::as_str).into_iter();
        let several = items_at(attribute, several).iter().filter_map(Value::as_str);
        one.chain(several).map(str::to_owned).collect::<Vec<_>>()
    };
    for text in listed("string", "/strings") {
        if text.len() > TEXT_LEN_MAX {
            errors.push(FieldError::too_long(format!("{path}.string"), TEXT_LEN_MAX));
        }
    }
    for text in listed("version", "/versions") {
        if text.len() > TEXT_LEN_MAX {
            errors.push(FieldError::too_long(format!("{path}.version"), TEXT_LEN_MAX));
        } else if text.parse::<semver::Version>().is_err() {
            let detail = "must be a string compatible with semver.org spec 2.0.0";
            errors.invalid(format!("{path}.version"), &json!(text), detail);
        }
    }
}

fn validate_taints(device: &Value, path: &str, errors: &mut Errors) {
    let taints = items_at(device, "/taints");
    if taints.len() > TAINTS_MAX {
        errors.push(FieldError::too_many(format!("{path}.taints"), taints.len(), TAINTS_MAX));
    }
    for (at, taint) in taints.iter().enumerate() {
        let path = format!("{path}.taints[{at}]");
        let key = text_at(taint, "/key");
        if let Err(rule) = names::check_qualified_name(key) {
            errors.invalid(format!("{path}.key"), &json!(key), rule);
        }
        let value = text_at(taint, "/value");
        if let Err(rule) = names::check_label_value(value) {
            errors.invalid(format!("{path}.value"), &json!(value), rule);
        }
        let effect = taint.get("effect").unwrap_or(&Value::Null);
        errors.one_of(format!("{path}.effect"), effect, &["NoExecute", "NoSchedule", "None"]);
    }
}

fn validate_conditions(device: &Value, path: &str, errors: &mut Errors) {
    for list in ["bindingConditions", "bindingFailureConditions"] {
        let path = format!("{path}.{list}");
        let conditions = items_at(device, &format!("/{list}"));
        if conditions.len() > CONDITIONS_MAX {
            errors.push(FieldError::too_many(path.as_str(), conditions.len(), CONDITIONS_MAX));
        }
        for (at, kind) in conditions.iter().enumerate() {
            if let Err(rule) = names::check_qualified_name(kind.as_str().unwrap_or_default()) {
                errors.invalid(format!("{path}[{at}]"), kind, rule);
            }
        }
    }
}

/// Whose the devices are stays.
fn validate_update(old: &Value, new: &Value, errors: &mut Errors) {
    for (pointer, field) in [
        ("/spec/driver", "spec.driver"),
        ("/spec/pool/name", "spec.pool.name"),
        ("/spec/nodeName", "spec.nodeName"),
    ] {
        let said = |object: &Value| object.pointer(pointer).cloned().filter(|v| !is_unset(Some(v)));
        if said(old) != said(new) {
            errors.invalid(field, &said(new).unwrap_or_default(), "field is immutable");
        }
    }
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let node = match text_at(object, "/spec/nodeName") {
        "" if is_true(object, "/spec/allNodes") => "<all>",
        "" if is_true(object, "/spec/perDeviceNodeSelection") => "<per device>",
        "" => "<selected>",
        name => name,
    };
    vec![
        json!(meta::name(object)),
        json!(node),
        json!(text_at(object, "/spec/driver")),
        json!(text_at(object, "/spec/pool/name")),
        json!(age(object, now)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(changes: &[(&str, Value)]) -> Value {
        let mut slice = json!({"metadata": {"name": "s"}, "spec": {
            "driver": "edgeorc.io", "nodeName": "one",
            "pool": {"name": "one", "generation": 1, "resourceSliceCount": 1},
            "devices": [{"name": "a", "attributes": {"model": {"string": "x"},
                "acme.com/version": {"version": "1.0.0"}}, "capacity": {"memory": {"value": "1Gi"}},
                "taints": [{"key": "broken", "effect": "NoSchedule"}]}],
        }});
        for (pointer, value) in changes {
            let (holder, key) = pointer.rsplit_once('/').unwrap();
            slice.pointer_mut(holder).unwrap()[key] = value.clone();
        }
        slice
    }

    fn texts(slice: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        validate(slice, &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_slice_says_whose_devices_it_has_and_where() {
        assert_eq!(texts(&slice(&[])), Vec::<String>::new());
        for (pointer, value, wanted) in [
            ("/spec/driver", json!("A B"), "spec.driver: Invalid value"),
            ("/spec/pool/name", json!(""), "spec.pool.name: Required value"),
            (
                "/spec/pool/resourceSliceCount",
                json!(0),
                "spec.pool.resourceSliceCount: Invalid value",
            ),
            ("/spec/allNodes", json!(true), "spec: Required value: exactly one of"),
            ("/spec/nodeName", json!(""), "spec: Required value: exactly one of"),
            (
                "/spec/devices",
                json!([{"name": "a"}, {"name": "a"}]),
                "spec.devices[1].name: Duplicate",
            ),
            ("/spec/devices", json!([{"name": "A"}]), "spec.devices[0].name: Invalid value"),
            (
                "/spec/devices",
                json!([{"name": "a", "nodeName": "n"}]),
                "spec.devices[0]: Forbidden",
            ),
            (
                "/spec/devices",
                json!([{"name": "a", "attributes": {"a-b": {"int": 1}}}]),
                "spec.devices[0].attributes[a-b]: Invalid value",
            ),
            (
                "/spec/devices",
                json!([{"name": "a", "attributes": {"a": {"int": 1, "bool": true}}}]),
                "spec.devices[0].attributes[a]: Invalid value",
            ),
            (
                "/spec/devices",
                json!([{"name": "a", "attributes": {"a": {"version": "1"}}}]),
                "spec.devices[0].attributes[a].version: Invalid value",
            ),
            ("/spec/nodeName", json!("N"), "spec.nodeName: Invalid value: \"N\""),
            (
                "/spec/devices",
                json!([{"name": "a", "bindingConditions": ["a", "b", "c", "d", "e"]}]),
                "spec.devices[0].bindingConditions: Too many: 5",
            ),
            (
                "/spec/devices",
                json!([{"name": "a", "consumesCounters": [{"counterSet": "s"}]}]),
                "spec.devices[0].consumesCounters[0].counters: Required value",
            ),
        ] {
            let found = texts(&slice(&[(pointer, value)]));
            assert!(found.len() == 1 && found[0].starts_with(wanted), "{wanted} in {found:?}");
        }
    }

    #[test]
    fn a_slice_is_for_nodes_of_one_term() {
        let of = |terms: Value| {
            let selector = json!({ "nodeSelectorTerms": terms });
            texts(&slice(&[("/spec/nodeName", Value::Null), ("/spec/nodeSelector", selector)]))
        };
        let term = json!({"matchExpressions": [
            {"key": "zone", "operator": "In", "values": ["a"]}]});
        assert_eq!(of(json!([term])), Vec::<String>::new());
        let found = of(json!([]));
        let wanted = "spec.nodeSelector.nodeSelectorTerms: Required value";
        assert!(found.len() == 1 && found[0].starts_with(wanted), "{found:?}");
        let found = of(json!([term, term]));
        let wanted = "must have exactly one node selector term";
        assert!(found.len() == 1 && found[0].ends_with(wanted), "{found:?}");
    }

    #[test]
    fn fewer_devices_fit_where_some_have_taints() {
        let of = |first: Value| {
            let plain = (1..=SPECIAL_DEVICES_MAX).map(|at| json!({"name": format!("d{at}")}));
            let devices: Vec<Value> = std::iter::once(first).chain(plain).collect();
            texts(&slice(&[("/spec/devices", json!(devices))]))
        };
        assert_eq!(of(json!({"name": "a"})), Vec::<String>::new());
        let tainted = json!({"name": "a", "taints": [{"key": "broken", "effect": "NoSchedule"}]});
        assert_eq!(of(tainted), ["spec.devices: Too many: 65: must have at most 64 items"]);
    }

    #[test]
    fn devices_change_and_their_owner_does_not() {
        let texts = |changes: &[(&str, Value)]| {
            let mut errors = Errors::default();
            validate_update(&slice(&[]), &slice(changes), &mut errors);
            errors.into_vec().into_iter().map(|error| error.field).collect::<Vec<_>>()
        };
        let nothing = Vec::<String>::new();
        assert_eq!(
            texts(&[("/spec/devices", json!([])), ("/spec/pool/generation", json!(2))]),
            nothing
        );
        assert_eq!(texts(&[("/spec/driver", json!("b"))]), ["spec.driver"]);
        assert_eq!(texts(&[("/spec/nodeName", json!("two"))]), ["spec.nodeName"]);
    }
}
