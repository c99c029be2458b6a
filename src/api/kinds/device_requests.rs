//! What a claim of devices says: requests, constraints between them, configuration. Of `ResourceClaim`
//! and of `ResourceClaimTemplate`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::api::device_selector::DeviceSelector;
use crate::api::field_error::{Errors, FieldError};
use crate::api::json::{entries_at, int_at, is_true, items_at, set, set_default_text, text_at};
use crate::api::names;

/// Requests of one claim.
const REQUESTS_MAX: usize = 32;
/// Alternatives of one request.
const ALTERNATIVES_MAX: usize = 8;
/// Constraints of one claim.
const CONSTRAINTS_MAX: usize = 32;
/// Configurations of a claim or a class.
pub(super) const CONFIG_MAX: usize = 32;
/// Selectors of one request or class.
const SELECTORS_MAX: usize = 32;
/// Bytes of one expression.
const EXPRESSION_BYTES_MAX: usize = 10 << 10;
/// Bytes of the parameters of one configuration.
const PARAMETERS_BYTES_MAX: usize = 10 << 10;
/// Tolerations of one request.
const TOLERATIONS_MAX: usize = 16;
/// Bytes of the name of a driver.
const DRIVER_BYTES_MAX: usize = 63;
/// Said of a name that no request has.
pub(super) const UNKNOWN_REQUEST: &str = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";

/// Fills in what a request may leave out.
pub(super) fn default(spec: &mut Value) {
    let requests = spec.get_mut("devices").and_then(|devices| devices.get_mut("requests"));
    for request in requests.and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(exactly) = request.get_mut("exactly").filter(|exactly| exactly.is_object()) {
            default_request(exactly);
        }
        let alternatives = request.get_mut("firstAvailable").and_then(Value::as_array_mut);
        alternatives.into_iter().flatten().for_each(default_request);
    }
}

fn default_request(request: &mut Value) {
    set_default_text(request, "allocationMode", "ExactCount");
    if text_at(request, "/allocationMode") == "ExactCount"
        && int_at(request, "/count").unwrap_or(0) == 0
    {
        set(request, "count", 1);
    }
    let tolerations = request.get_mut("tolerations").and_then(Value::as_array_mut);
    for toleration in tolerations.into_iter().flatten() {
        set_default_text(toleration, "operator", "Equal");
    }
}

/// Checks the spec of a claim; `path` is its path, `spec` or `spec.spec`.
pub(super) fn validate(spec: &Value, path: &str, errors: &mut Errors) {
    let path = format!("{path}.devices");
    let requests = items_at(spec, "/devices/requests");
    let mut known = BTreeSet::new();
    if requests.len() > REQUESTS_MAX {
        errors.push(FieldError::too_many(format!("{path}.requests"), requests.len(), REQUESTS_MAX));
    }
    for (at, request) in requests.iter().enumerate() {
        validate_request(request, &format!("{path}.requests[{at}]"), &mut known, errors);
    }
    let constraints = items_at(spec, "/devices/constraints");
    if constraints.len() > CONSTRAINTS_MAX {
        errors.push(FieldError::too_many(
            format!("{path}.constraints"),
            constraints.len(),
            CONSTRAINTS_MAX,
        ));
    }
    for (at, constraint) in constraints.iter().enumerate() {
        let path = format!("{path}.constraints[{at}]");
        validate_references(constraint, &path, &known, errors);
        let (same, other) = ("/matchAttribute", "/distinctAttribute");
        match (text_at(constraint, same), text_at(constraint, other)) {
            ("", "") => {
                errors
                    .required_because(format!("{path}.matchAttribute"), "a constraint is required");
            }
            (name, "") => validate_attribute(name, &format!("{path}.matchAttribute"), errors),
            ("", name) => validate_attribute(name, &format!("{path}.distinctAttribute"), errors),
            _ => errors.forbidden(
                format!("{path}.distinctAttribute"),
                "exactly one of `matchAttribute` and `distinctAttribute` must be set",
            ),
        }
    }
    let configs = items_at(spec, "/devices/config");
    if configs.len() > CONFIG_MAX {
        errors.push(FieldError::too_many(format!("{path}.config"), configs.len(), CONFIG_MAX));
    }
    for (at, config) in configs.iter().enumerate() {
        let path = format!("{path}.config[{at}]");
        validate_references(config, &path, &known, errors);
        validate_driver_config(config, &path, errors);
    }
}

/// Requests by name, and alternatives as `request/alternative`.
type Known = BTreeSet<String>;

/// The names that the requests of a claim's spec have.
pub(super) fn request_names(spec: &Value) -> Known {
    let mut known = Known::new();
    for request in items_at(spec, "/devices/requests") {
        let name = text_at(request, "/name");
        known.insert(name.to_owned());
        for alternative in items_at(request, "/firstAvailable") {
            known.insert(format!("{name}/{}", text_at(alternative, "/name")));
        }
    }
    known
}

fn validate_request(request: &Value, path: &str, known: &mut Known, errors: &mut Errors) {
    let name = text_at(request, "/name");
    validate_name(name, &format!("{path}.name"), errors);
    if !name.is_empty() && !known.insert(name.to_owned()) {
        errors.duplicate(format!("{path}.name"), &json!(name));
    }
    let exactly = request.get("exactly").filter(|exactly| !exactly.is_null());
    let alternatives = items_at(request, "/firstAvailable");
    match (exactly, alternatives.is_empty()) {
        (Some(_), false) => {
            errors.invalid(
                path,
                &json!(name),
                "exactly one of `exactly` or `firstAvailable` is required",
            );
        }
        (None, true) => {
            let detail = "exactly one of `exactly` or `firstAvailable` is required";
            errors.required_because(path, detail);
        }
        (Some(exactly), true) => validate_wanted(exactly, &format!("{path}.exactly"), errors),
        (None, false) => {}
    }
    if alternatives.len() > ALTERNATIVES_MAX {
        errors.push(FieldError::too_many(
            format!("{path}.firstAvailable"),
            alternatives.len(),
            ALTERNATIVES_MAX,
        ));
    }
    for (at, alternative) in alternatives.iter().enumerate() {
        let path = format!("{path}.firstAvailable[{at}]");
        let own = text_at(alternative, "/name");
        validate_name(own, &format!("{path}.name"), errors);
        if !known.insert(format!("{name}/{own}")) {
            errors.duplicate(format!("{path}.name"), &json!(own));
        }
        validate_wanted(alternative, &path, errors);
    }
}

/// Checks the name of a request or a device.
pub(super) fn validate_name(name: &str, path: &str, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(path);
    } else if let Err(rule) = names::check_dns1123_label(name) {
        errors.invalid(path, &json!(name), rule);
    }
}

/// What one request asks for, alternatives aside.
fn validate_wanted(wanted: &Value, path: &str, errors: &mut Errors) {
    let class = text_at(wanted, "/deviceClassName");
    if class.is_empty() {
        errors.required(format!("{path}.deviceClassName"));
    } else if let Err(rule) = names::check_dns1123_subdomain(class) {
        errors.invalid(format!("{path}.deviceClassName"), &json!(class), rule);
    }
    validate_selectors(wanted, "/selectors", &format!("{path}.selectors"), errors);
    let count = int_at(wanted, "/count").unwrap_or(0);
    match text_at(wanted, "/allocationMode") {
        "ExactCount" if count <= 0 => {
            errors.invalid(format!("{path}.count"), &json!(count), "must be greater than zero");
        }
        "All" if count != 0 => {
            let detail = "must not be specified when allocationMode is 'All'";
            errors.invalid(format!("{path}.count"), &json!(count), detail);
        }
        "ExactCount" | "All" => {}
        _ => {
            let mode = wanted.get("allocationMode").unwrap_or(&Value::Null);
            let modes = ["All", "ExactCount"];
            errors.push(FieldError::not_supported(format!("{path}.allocationMode"), mode, &modes));
        }
    }
    if is_true(wanted, "/adminAccess") {
        let detail = "admin access to devices that are in use is not supported here";
        errors.forbidden(format!("{path}.adminAccess"), detail);
    }
    if entries_at(wanted, "/capacity/requests").next().is_some() {
        let detail = "shares of a device cannot be asked for here: devices are given out whole";
        errors.forbidden(format!("{path}.capacity"), detail);
    }
    let tolerations = items_at(wanted, "/tolerations");
    if tolerations.len() > TOLERATIONS_MAX {
        errors.push(FieldError::too_many(
            format!("{path}.tolerations"),
            tolerations.len(),
            TOLERATIONS_MAX,
        ));
    }
    for (at, toleration) in tolerations.iter().enumerate() {
        validate_toleration(toleration, &format!("{path}.tolerations[{at}]"), errors);
    }
}

fn validate_toleration(toleration: &Value, path: &str, errors: &mut Errors) {
    let (key, value) = (text_at(toleration, "/key"), text_at(toleration, "/value"));
    if !key.is_empty()
        && let Err(rule) = names::check_qualified_name(key)
    {
        errors.invalid(format!("{path}.key"), &json!(key), rule);
    }
    let operator = toleration.get("operator").unwrap_or(&Value::Null);
    match operator.as_str().unwrap_or_default() {
        "Exists" if !value.is_empty() => {
            let detail = "must be empty for operator `Exists`";
            errors.invalid(format!("{path}.value"), &json!(value), detail);
        }
        "Equal" if key.is_empty() => {
            errors.required_because(format!("{path}.key"), "required for operator `Equal`");
        }
        "Exists" | "Equal" => {}
        _ => errors.push(FieldError::not_supported(
            format!("{path}.operator"),
            operator,
            &["Equal", "Exists"],
        )),
    }
    let effect = toleration.get("effect").unwrap_or(&Value::Null);
    if !text_at(toleration, "/effect").is_empty() {
        errors.one_of(format!("{path}.effect"), effect, &["NoExecute", "NoSchedule", "None"]);
    }
}

/// Checks selectors at `pointer` of `holder`, whose path is `path`.
pub(super) fn validate_selectors(holder: &Value, pointer: &str, path: &str, errors: &mut Errors) {
    let selectors = items_at(holder, pointer);
    if selectors.len() > SELECTORS_MAX {
        errors.push(FieldError::too_many(path, selectors.len(), SELECTORS_MAX));
    }
    for (at, selector) in selectors.iter().enumerate().take(SELECTORS_MAX) {
        if selector.get("cel").is_none_or(Value::is_null) {
            errors.required(format!("{path}[{at}].cel"));
            continue;
        }
        let path = format!("{path}[{at}].cel.expression");
        let expression = text_at(selector, "/cel/expression");
        if expression.trim().is_empty() {
            errors.required(path);
        } else if expression.len() > EXPRESSION_BYTES_MAX {
            errors.push(FieldError::too_long(path, EXPRESSION_BYTES_MAX));
        } else if let Err(cause) = DeviceSelector::compile(expression) {
            errors.invalid(path, &json!(expression), &cause);
        }
    }
}

/// Checks `opaque` of a configuration.
pub(super) fn validate_driver_config(config: &Value, path: &str, errors: &mut Errors) {
    let Some(opaque) = config.get("opaque").filter(|opaque| !opaque.is_null()) else {
        return errors.required(format!("{path}.opaque"));
    };
    validate_driver(text_at(opaque, "/driver"), &format!("{path}.opaque.driver"), errors);
    let path = format!("{path}.opaque.parameters");
    match opaque.get("parameters").unwrap_or(&Value::Null) {
        Value::Null => errors.required(path),
        parameters if !parameters.is_object() => {
            errors.invalid(path, parameters, "must be a valid JSON object");
        }
        parameters if parameters.to_string().len() > PARAMETERS_BYTES_MAX => {
            errors.push(FieldError::too_long(path, PARAMETERS_BYTES_MAX));
        }
        _ => {}
    }
}

/// Checks the name of a driver.
pub(super) fn validate_driver(driver: &str, path: &str, errors: &mut Errors) {
    if driver.is_empty() {
        errors.required(path);
    } else if driver.len() > DRIVER_BYTES_MAX {
        errors.push(FieldError::too_long(path, DRIVER_BYTES_MAX));
    } else if let Err(rule) = names::check_dns1123_subdomain(driver) {
        errors.invalid(path, &json!(driver), rule);
    }
}

/// Checks names of requests, each of which there is.
pub(super) fn validate_references(holder: &Value, path: &str, known: &Known, errors: &mut Errors) {
    let mut named = BTreeSet::new();
    for (at, request) in items_at(holder, "/requests").iter().enumerate() {
        let text = request.as_str().unwrap_or_default();
        if !known.contains(text) {
            errors.invalid(format!("{path}.requests[{at}]"), request, UNKNOWN_REQUEST);
        } else if !named.insert(text) {
            errors.duplicate(format!("{path}.requests[{at}]"), request);
        }
    }
}

/// Checks the full name of an attribute: a domain and an identifier.
fn validate_attribute(name: &str, path: &str, errors: &mut Errors) {
    match name.split_once('/') {
        None => errors.invalid(path, &json!(name), "must include a domain"),
        Some(_) => {
            if let Err(rule) = check_device_key(name) {
                errors.invalid(path, &json!(name), rule);
            }
        }
    }
}

/// Whether `name` is one of an attribute or a capacity: an identifier, maybe with a domain in front.
pub(super) fn check_device_key(name: &str) -> Result<(), &'static str> {
    const IDENTIFIER: &str = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')";
    const BYTES_MAX: usize = 32;
    let (domain, key) = match name.split_once('/') {
        Some((domain, key)) => (Some(domain), key),
        None => (None, name),
    };
    if let Some(domain) = domain {
        if domain.len() > DRIVER_BYTES_MAX {
            return Err("the domain must be no more than 63 bytes");
        }
        names::check_dns1123_subdomain(domain)?;
    }
    if key.len() > BYTES_MAX {
        return Err("the name must be no more than 32 bytes");
    }
    let is_first = |c: char| c.is_ascii_alphabetic() || c == '_';
    let is_identifier =
        key.starts_with(is_first) && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if is_identifier { Ok(()) } else { Err(IDENTIFIER) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(devices: Value) -> Vec<String> {
        let mut spec = json!({ "devices": devices });
        default(&mut spec);
        let mut errors = Errors::default();
        validate(&spec, "spec", &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    fn one(request: Value) -> Vec<String> {
        found(json!({ "requests": [request] }))
    }

    #[test]
    fn a_request_is_for_one_device_of_a_class_unless_it_says_otherwise() {
        let mut spec = json!({"devices": {"requests": [
            {"name": "a", "exactly": {"deviceClassName": "c"}},
            {"name": "b", "exactly": {"deviceClassName": "c", "allocationMode": "All"}},
            {"name": "d", "firstAvailable": [{"name": "x", "deviceClassName": "c", "count": 2,
                "tolerations": [{"key": "k"}]}]},
        ]}});
        default(&mut spec);
        let requests = &spec["devices"]["requests"];
        assert_eq!(requests[0]["exactly"]["allocationMode"], "ExactCount");
        assert_eq!(requests[0]["exactly"]["count"], 1);
        assert!(requests[1]["exactly"].get("count").is_none());
        assert_eq!(requests[2]["firstAvailable"][0]["count"], 2);
        assert_eq!(requests[2]["firstAvailable"][0]["tolerations"][0]["operator"], "Equal");
        assert_eq!(found(spec["devices"].clone()), Vec::<String>::new());
    }

    #[test]
    fn each_wrong_request_is_named() {
        for (request, wanted) in [
            (json!({"name": "a"}), "spec.devices.requests[0]: Required value: exactly one of"),
            (
                json!({"name": "A", "exactly": {"deviceClassName": "c"}}),
                "spec.devices.requests[0].name: Invalid value: \"A\"",
            ),
            (
                json!({"name": "a", "exactly": {}}),
                "spec.devices.requests[0].exactly.deviceClassName: Required value",
            ),
            (
                json!({"name": "a", "exactly": {"deviceClassName": "c", "allocationMode": "Some"}}),
                "spec.devices.requests[0].exactly.allocationMode: Unsupported value: \"Some\"",
            ),
            (
                json!({"name": "a", "exactly": {"deviceClassName": "c", "count": -1}}),
                "spec.devices.requests[0].exactly.count: Invalid value: -1: must be greater than zero",
            ),
            (
                json!({"name": "a", "exactly": {"deviceClassName": "c", "adminAccess": true}}),
                "spec.devices.requests[0].exactly.adminAccess: Forbidden",
            ),
            (
                json!({"name": "a", "exactly": {"deviceClassName": "c",
                    "tolerations": [{"operator": "Exists", "value": "x"}]}}),
                "spec.devices.requests[0].exactly.tolerations[0].value: Invalid value",
            ),
            (
                json!({"name": "a", "exactly": {"deviceClassName": "c",
                    "selectors": [{"cel": {"expression": "node.name == 'x'"}}]}}),
                "spec.devices.requests[0].exactly.selectors[0].cel.expression: Invalid value",
            ),
        ] {
            let texts = one(request);
            assert!(texts.len() == 1 && texts[0].starts_with(wanted), "{wanted} in {texts:?}");
        }
    }

    #[test]
    fn constraints_and_configurations_are_about_requests_that_there_are() {
        let request = json!({"name": "a", "exactly": {"deviceClassName": "c"}});
        let good = json!({"requests": [request],
            "constraints": [{"requests": ["a"], "matchAttribute": "acme.com/board"}],
            "config": [{"requests": ["a"], "opaque": {"driver": "acme.com", "parameters": {}}}]});
        assert_eq!(found(good), Vec::<String>::new());
        let bad = json!({"requests": [request],
            "constraints": [{"requests": ["b"], "matchAttribute": "board"}, {},
                {"matchAttribute": "acme.com/a-b"}],
            "config": [{"requests": ["a", "a"], "opaque": {"driver": "acme.com", "parameters": {}}}]});
        let fields: Vec<_> =
            found(bad).iter().filter_map(|t| t.split(": ").next().map(str::to_owned)).collect();
        assert_eq!(
            fields,
            [
                "spec.devices.constraints[0].requests[0]",
                "spec.devices.constraints[0].matchAttribute",
                "spec.devices.constraints[1].matchAttribute",
                "spec.devices.constraints[2].matchAttribute",
                "spec.devices.config[0].requests[1]",
            ]
        );
    }
}
