//! Checks of the environment of containers, and of the fields and resources that files and variables of
//! a pod are made from.

use serde_json::{Value, json};

use crate::api::field_error::Errors;
use crate::api::json::{is_unset, items_at, text_at};
use crate::api::names;
use crate::api::quantity::Quantity;
use crate::api::quota::amount;

/// Fields of its pod that a variable can have.
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Fields of its pod that a file can have.
const FILE_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];
/// Fields of a pod that have a label in Kubernetes, beside those above: known, and of no use here.
const OTHER_FIELDS: &[&str] = &[
    "spec.host",
    "spec.hostNetwork",
    "spec.restartPolicy",
    "spec.schedulerName",
    "status.nominatedNodeName",
    "status.phase",
];
/// Maps of a pod whose entries can be had one by one.
const MAPS: [&str; 2] = ["metadata.annotations", "metadata.labels"];
const RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const CPU_DIVISORS: [&str; 2] = ["1m", "1"];
const BYTE_DIVISORS: [&str; 13] =
    ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
/// Where the value of a variable comes from.
const SOURCES: [&str; 5] =
    ["configMapKeyRef", "fieldRef", "fileKeyRef", "resourceFieldRef", "secretKeyRef"];

/// Checks `env` and `envFrom` of a container; `field` is its path.
pub(super) fn validate(container: &Value, field: &str, errors: &mut Errors) {
    for (at, variable) in items_at(container, "/env").iter().enumerate() {
        let field = format!("{field}.env[{at}]");
        let name = text_at(variable, "/name");
        if name.is_empty() {
            errors.required(format!("{field}.name"));
        } else if let Err(detail) = names::check_env_name(name) {
            errors.invalid(format!("{field}.name"), &json!(name), detail);
        }
        validate_source(variable, &format!("{field}.valueFrom"), errors);
    }
    for (at, source) in items_at(container, "/envFrom").iter().enumerate() {
        let prefix = text_at(source, "/prefix");
        if !prefix.is_empty()
            && let Err(detail) = names::check_env_name(prefix)
        {
            errors.invalid(format!("{field}.envFrom[{at}].prefix"), &json!(prefix), detail);
        }
        let named = ["configMapRef", "secretRef"].map(|key| (key, source.get(key)));
        let named: Vec<_> = named.into_iter().filter(|(_, value)| !is_unset(*value)).collect();
        let detail = match named.as_slice() {
            [] => "must specify one of: `configMapRef` or `secretRef`",
            [(key, _)] => {
                let name = text_at(source, &format!("/{key}/name"));
                check_object_name(name, &format!("{field}.envFrom[{at}].{key}.name"), errors);
                continue;
            }
            _ => "may not have more than one field specified at a time",
        };
        errors.invalid(format!("{field}.envFrom[{at}]"), &json!(""), detail);
    }
}

fn validate_source(variable: &Value, field: &str, errors: &mut Errors) {
    let Some(source) = variable.get("valueFrom").filter(|source| source.is_object()) else {
        return;
    };
    let named: Vec<&str> = SOURCES.into_iter().filter(|key| !is_unset(source.get(*key))).collect();
    let one_of_them = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or \
                       `secretKeyRef`";
    let detail = match named.as_slice() {
        [] => Some(one_of_them),
        _ if !text_at(variable, "/value").is_empty() => {
            Some("may not be specified when `value` is not empty")
        }
        [_] => None,
        _ => Some("may not have more than one field specified at a time"),
    };
    if let Some(detail) = detail {
        errors.invalid(field, &json!(""), detail);
    }
    for key in named {
        let field = format!("{field}.{key}");
        let source = source.get(key).unwrap_or(&Value::Null);
        match key {
            "fieldRef" => validate_field(source, ENV_FIELDS, &field, errors),
            "resourceFieldRef" => validate_resource(source, &field, errors),
            "configMapKeyRef" | "secretKeyRef" => validate_key(source, &field, errors),
            _ => {}
        }
    }
}

/// Checks an item of a downward API volume: one field or one resource; `field` is the item's path.
pub(super) fn validate_file(item: &Value, field: &str, errors: &mut Errors) {
    let of = |key: &str| item.get(key).filter(|value| value.is_object());
    match (of("fieldRef"), of("resourceFieldRef")) {
        (Some(source), None) => {
            validate_field(source, FILE_FIELDS, &format!("{field}.fieldRef"), errors);
        }
        (None, Some(source)) => {
            let field = format!("{field}.resourceFieldRef");
            if text_at(source, "/containerName").is_empty() {
                errors.required(format!("{field}.containerName"));
            }
            validate_resource(source, &field, errors);
        }
        (None, None) => {
            errors.required_because(field, "one of fieldRef and resourceFieldRef is required");
        }
        (Some(_), Some(_)) => {
            let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
            errors.invalid(field, &json!("resource"), detail);
        }
    }
}

fn validate_field(source: &Value, supported: &[&str], field: &str, errors: &mut Errors) {
    let field = format!("{field}.fieldPath");
    let path = text_at(source, "/fieldPath");
    if path.is_empty() {
        return errors.required(field);
    }
    if let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        if !MAPS.contains(&map) {
            errors.invalid(field, &json!(path), "does not support subscript");
        } else if let Err(rule) = names::check_qualified_name(&key.to_lowercase()) {
            errors.invalid(field, &json!(key), rule);
        }
        return;
    }
    let is_known = [ENV_FIELDS, FILE_FIELDS, OTHER_FIELDS].iter().any(|list| list.contains(&path));
    if is_known {
        errors.one_of(field, &json!(path), supported);
    } else {
        let detail = format!("error converting fieldPath: field label not supported: {path}");
        errors.invalid(field, &json!(path), &detail);
    }
}

fn validate_resource(source: &Value, field: &str, errors: &mut Errors) {
    let resource = text_at(source, "/resource");
    if resource.is_empty() {
        return errors.required(format!("{field}.resource"));
    }
    let (_, name) = resource.split_once('.').unwrap_or_default();
    if !RESOURCES.contains(&resource) && !name.starts_with("hugepages-") {
        return errors.one_of(format!("{field}.resource"), &json!(resource), RESOURCES);
    }
    let (allowed, shown): (&[&str], _) = match name {
        "cpu" => (&CPU_DIVISORS, "1m and 1".to_owned()),
        _ => (&BYTE_DIVISORS, BYTE_DIVISORS.join(", ")),
    };
    let nanos = |value: &Value| amount(value).map(Quantity::nanos);
    let divisor = source.get("divisor").unwrap_or(&Value::Null);
    let given = nanos(divisor).filter(|nanos| *nanos != 0);
    if given.is_some() && !allowed.iter().any(|text| nanos(&json!(text)) == given) {
        let detail =
            format!("only divisor's values {shown} are supported with the {name} resource");
        errors.invalid(format!("{field}.divisor"), &json!(resource), &detail);
    }
}

fn validate_key(source: &Value, field: &str, errors: &mut Errors) {
    check_object_name(text_at(source, "/name"), &format!("{field}.name"), errors);
    let key = text_at(source, "/key");
    if key.is_empty() {
        errors.required(format!("{field}.key"));
    } else if let Err(rule) = names::check_config_key(key) {
        errors.invalid(format!("{field}.key"), &json!(key), rule);
    }
}

fn check_object_name(name: &str, field: &str, errors: &mut Errors) {
    if let Err(rule) = names::check_dns1123_subdomain(name) {
        errors.invalid(field, &json!(name), rule);
    }
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
    fn a_variable_has_one_source_that_there_is() {
        let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
        let resource = |name: &str, divisor: &str| json!({"resourceFieldRef": {"resource": name, "divisor": divisor}});
        let refused = |variable: &Value| {
            let mut variable = variable.clone();
            variable["name"] = json!("A");
            texts(|errors| validate(&json!({"env": [variable]}), "c", errors))
        };
        for fine in [
            json!({"value": "x", "valueFrom": null}),
            json!({"valueFrom": field("metadata.annotations['example.com/Key']")}),
            json!({"valueFrom": field("status.podIPs")}),
            json!({"valueFrom": resource("limits.cpu", "1m")}),
            json!({"valueFrom": resource("requests.memory", "1024Ki")}),
            json!({"valueFrom": resource("limits.memory", "0")}),
            json!({"valueFrom": {"secretKeyRef": {"name": "s", "key": "a.b_C", "optional": true}}}),
        ] {
            assert_eq!(refused(&fine), Vec::<String>::new(), "{fine}");
        }
        let two = json!({"fieldRef": {"fieldPath": "metadata.name"},
            "configMapKeyRef": {"name": "m", "key": "k"}});
        let key = |name: &str, key: &str| json!({"configMapKeyRef": {"name": name, "key": key}});
        for (variable, said) in [
            (json!({"valueFrom": {}}), ": Invalid value: \"\": must specify one of: `fieldRef`"),
            (
                json!({"value": "x", "valueFrom": field("metadata.name")}),
                ": Invalid value: \"\": may not be specified when `value` is not empty",
            ),
            (
                json!({"valueFrom": two}),
                ": Invalid value: \"\": may not have more than one field specified at a time",
            ),
            (json!({"valueFrom": field("")}), ".fieldRef.fieldPath: Required value"),
            (
                json!({"valueFrom": field("spec.foo")}),
                ".fieldRef.fieldPath: Invalid value: \"spec.foo\": error converting fieldPath: field \
                 label not supported: spec.foo",
            ),
            (
                json!({"valueFrom": field("metadata.labels")}),
                ".fieldRef.fieldPath: Unsupported value: \"metadata.labels\": supported values: \
                 \"metadata.name\"",
            ),
            (
                json!({"valueFrom": field("metadata.name['a']")}),
                ".fieldRef.fieldPath: Invalid value: \"metadata.name['a']\": does not support subscript",
            ),
            (
                json!({"valueFrom": resource("limits.x", "1")}),
                ".resourceFieldRef.resource: Unsupported value: \"limits.x\": supported values: \
                 \"limits.cpu\"",
            ),
            (
                json!({"valueFrom": resource("limits.cpu", "2")}),
                ".resourceFieldRef.divisor: Invalid value: \"limits.cpu\": only divisor's values 1m and \
                 1 are supported with the cpu resource",
            ),
            (json!({"valueFrom": key("m", "")}), ".configMapKeyRef.key: Required value"),
            (json!({"valueFrom": key("m", "a b")}), ".configMapKeyRef.key: Invalid value: \"a b\""),
            (json!({"valueFrom": key("", "k")}), ".configMapKeyRef.name: Invalid value: \"\""),
        ] {
            let found = refused(&variable);
            let wanted = format!("c.env[0].valueFrom{said}");
            assert!(found.len() == 1 && found[0].starts_with(&wanted), "{wanted} in {found:?}");
        }
    }

    #[test]
    fn many_variables_come_from_one_object() {
        let refused =
            |source: &Value| texts(|errors| validate(&json!({"envFrom": [source]}), "c", errors));
        let fine = json!({"prefix": "A_", "configMapRef": {"name": "m", "optional": true}});
        assert_eq!(refused(&fine), Vec::<String>::new());
        for (source, said) in [
            (json!({}), "c.envFrom[0]: Invalid value: \"\": must specify one of: `configMapRef`"),
            (
                json!({"configMapRef": {"name": "m"}, "secretRef": {"name": "s"}}),
                "c.envFrom[0]: Invalid value: \"\": may not have more than one field",
            ),
            (
                json!({"secretRef": {"name": "A"}}),
                "c.envFrom[0].secretRef.name: Invalid value: \"A\"",
            ),
            (
                json!({"prefix": "a=", "secretRef": {"name": "s"}}),
                "c.envFrom[0].prefix: Invalid value: \"a=\"",
            ),
        ] {
            let found = refused(&source);
            assert!(found.len() == 1 && found[0].starts_with(said), "{said} in {found:?}");
        }
    }

    #[test]
    fn a_file_has_a_field_or_a_resource_of_a_container() {
        let refused = |item: &Value| texts(|errors| validate_file(item, "v.items[0]", errors));
        let resource = json!({"containerName": "a", "resource": "limits.memory"});
        for fine in [
            json!({"fieldRef": {"fieldPath": "metadata.labels"}}),
            json!({"fieldRef": {"fieldPath": "metadata.labels['a']"}}),
            json!({"resourceFieldRef": resource}),
        ] {
            assert_eq!(refused(&fine), Vec::<String>::new(), "{fine}");
        }
        for (item, said) in [
            (
                json!({"path": "x"}),
                "v.items[0]: Required value: one of fieldRef and resourceFieldRef",
            ),
            (
                json!({"fieldRef": {"fieldPath": "metadata.uid"}, "resourceFieldRef": resource}),
                "v.items[0]: Invalid value: \"resource\": fieldRef and resourceFieldRef can not",
            ),
            (
                json!({"fieldRef": {"fieldPath": "spec.nodeName"}}),
                "v.items[0].fieldRef.fieldPath: Unsupported value: \"spec.nodeName\": supported values: \
                 \"metadata.annotations\"",
            ),
            (
                json!({"resourceFieldRef": {"resource": "limits.cpu"}}),
                "v.items[0].resourceFieldRef.containerName: Required value",
            ),
        ] {
            let found = refused(&item);
            assert!(found.len() == 1 && found[0].starts_with(said), "{said} in {found:?}");
        }
    }
}
