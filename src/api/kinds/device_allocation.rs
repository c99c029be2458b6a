//! Checks of what was given to a claim of devices: `status.allocation`.

use serde_json::{Value, json};

use crate::api::field_error::{Errors, FieldError};
use crate::api::json::{items_at, text_at};
use crate::api::kinds::device_requests::{
    CONFIG_MAX, UNKNOWN_REQUEST, request_names, validate_driver, validate_driver_config,
    validate_name, validate_references,
};
use crate::api::kinds::pod_placement::validate_node_selector;
use crate::api::kinds::resource_slice::validate_pool_name;

/// Devices of one claim.
const DEVICES_MAX: usize = 32;
/// Configurations: those of classes and those of the claim.
const CONFIGS_MAX: usize = 2 * CONFIG_MAX;
const PATH: &str = "status.allocation";

/// Checks the allocation of a claim, if it has one.
pub(super) fn validate(claim: &Value, errors: &mut Errors) {
    let Some(allocation) = claim.pointer("/status/allocation").filter(|it| !it.is_null()) else {
        return;
    };
    let known = request_names(claim.get("spec").unwrap_or(&Value::Null));
    let devices = items_at(allocation, "/devices/results");
    let path = format!("{PATH}.devices.results");
    if devices.len() > DEVICES_MAX {
        errors.push(FieldError::too_many(path.as_str(), devices.len(), DEVICES_MAX));
    }
    for (at, device) in devices.iter().enumerate() {
        let path = format!("{path}[{at}]");
        let request = text_at(device, "/request");
        if !known.contains(request) {
            errors.invalid(format!("{path}.request"), &json!(request), UNKNOWN_REQUEST);
        }
        validate_driver(text_at(device, "/driver"), &format!("{path}.driver"), errors);
        validate_pool_name(text_at(device, "/pool"), &format!("{path}.pool"), errors);
        validate_name(text_at(device, "/device"), &format!("{path}.device"), errors);
    }
    let configs = items_at(allocation, "/devices/config");
    let path = format!("{PATH}.devices.config");
    if configs.len() > CONFIGS_MAX {
        errors.push(FieldError::too_many(path.as_str(), configs.len(), CONFIGS_MAX));
    }
    for (at, config) in configs.iter().enumerate() {
        let path = format!("{path}[{at}]");
        let source = config.get("source").unwrap_or(&Value::Null);
        errors.one_of(format!("{path}.source"), source, &["FromClaim", "FromClass"]);
        validate_references(config, &path, &known, errors);
        validate_driver_config(config, &path, errors);
    }
    if let Some(selector) = allocation.get("nodeSelector").filter(|it| !it.is_null()) {
        validate_node_selector(selector, &format!("{PATH}.nodeSelector"), errors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(allocation: Value) -> Vec<String> {
        let claim = json!({"spec": {"devices": {"requests": [
            {"name": "a", "exactly": {"deviceClassName": "x"}},
            {"name": "b", "firstAvailable": [{"name": "c", "deviceClassName": "x"}]}]}},
            "status": {"allocation": allocation}});
        let mut errors = Errors::default();
        validate(&claim, &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    fn given(request: &str, pool: &str) -> Value {
        json!({"request": request, "driver": "edgeorc.io", "pool": pool, "device": "d"})
    }

    #[test]
    fn what_is_given_answers_a_request() {
        let good = json!({"devices": {"results": [given("a", "one"), given("b/c", "one/two")],
            "config": [{"source": "FromClass", "requests": ["a"],
                "opaque": {"driver": "edgeorc.io", "parameters": {}}}]},
            "nodeSelector": {"nodeSelectorTerms": [{"matchFields":
                [{"key": "metadata.name", "operator": "In", "values": ["one"]}]}]}});
        assert_eq!(texts(good), Vec::<String>::new());
        assert_eq!(texts(Value::Null), Vec::<String>::new());
        let place = "status.allocation.devices";
        for (allocation, wanted) in [
            (
                json!({"devices": {"results": [given("c", "one")]}}),
                format!("{place}.results[0].request: Invalid value: \"c\": {UNKNOWN_REQUEST}"),
            ),
            (
                json!({"devices": {"results": [given("a", "")]}}),
                format!("{place}.results[0].pool: Required value"),
            ),
            (
                json!({"devices": {"config": [{"source": "FromNowhere",
                    "opaque": {"driver": "edgeorc.io", "parameters": {}}}]}}),
                format!("{place}.config[0].source: Unsupported value: \"FromNowhere\""),
            ),
            (
                json!({"nodeSelector": {"nodeSelectorTerms": []}}),
                "status.allocation.nodeSelector.nodeSelectorTerms: Required value".to_owned(),
            ),
        ] {
            let found = texts(allocation);
            assert!(found.len() == 1 && found[0].starts_with(&wanted), "{wanted} in {found:?}");
        }
        let many = vec![given("a", "one"); DEVICES_MAX + 1];
        let found = texts(json!({"devices": {"results": many}}));
        assert_eq!(found, [format!("{place}.results: Too many: 33: must have at most 32 items")]);
    }
}
