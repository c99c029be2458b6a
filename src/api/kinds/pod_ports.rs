//! Checks of the ports that containers say they listen on.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::api::field_error::Errors;
use crate::api::json::{items_at, text_at};
use crate::api::names;

const RANGE: &str = "must be between 1 and 65535, inclusive";

/// Checks the ports of one container; `field` is its path.
pub(super) fn validate(container: &Value, field: &str, errors: &mut Errors) {
    let mut names = BTreeSet::new();
    for (at, port) in items_at(container, "/ports").iter().enumerate() {
        let field = format!("{field}.ports[{at}]");
        let name = text_at(port, "/name");
        match names::check_port_name(name) {
            _ if name.is_empty() => {}
            Err(rule) => errors.invalid(format!("{field}.name"), &json!(name), rule),
            Ok(()) if !names.insert(name) => {
                errors.duplicate(format!("{field}.name"), &json!(name));
            }
            Ok(()) => {}
        }
        let number = |key: &str| port.get(key).unwrap_or(&Value::Null);
        let is_port = |number: &Value| number.as_i64().is_some_and(|n| (1..=65535).contains(&n));
        if !is_port(number("containerPort")) {
            errors.invalid(format!("{field}.containerPort"), number("containerPort"), RANGE);
        }
        let host = number("hostPort");
        if !host.is_null() && host.as_i64() != Some(0) && !is_port(host) {
            errors.invalid(format!("{field}.hostPort"), host, RANGE);
        }
        errors.one_of(format!("{field}.protocol"), number("protocol"), &["SCTP", "TCP", "UDP"]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_have_numbers_and_names_of_their_own() {
        let refused = |ports: Value| {
            let mut errors = Errors::default();
            validate(&json!({"ports": ports}), "c", &mut errors);
            errors.into_vec().iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        let port = |key: &str, value: Value| {
            let mut port = json!({"containerPort": 80, "protocol": "TCP"});
            port[key] = value;
            port
        };
        let fine =
            [port("hostPort", json!(0)), port("hostPort", json!(8080)), port("name", json!("a"))];
        assert_eq!(refused(json!(fine)), "");
        for (key, value, said) in [
            ("hostPort", json!(-1), "c.ports[0].hostPort: Invalid value: -1: must be between 1"),
            ("hostPort", json!(70_000), "c.ports[0].hostPort"),
            ("containerPort", json!(0), "c.ports[0].containerPort"),
            ("name", json!("UPPER_case"), "c.ports[0].name: Invalid value"),
            ("name", json!("longer-than-15-letters"), "c.ports[0].name: Invalid value"),
            ("protocol", json!("ICMP"), "c.ports[0].protocol: Unsupported value"),
        ] {
            let found = refused(json!([port(key, value)]));
            assert!(found.contains(said), "{found}");
        }
        let twice = refused(json!([port("name", json!("a")), port("name", json!("a"))]));
        assert_eq!(twice, "c.ports[1].name: Duplicate value: \"a\"");
    }
}
