//! NetworkPolicy.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::{Errors, FieldError};
use crate::api::json::{int_at, is_empty, is_unset, items_at, set, set_default_text, text_at};
use crate::api::meta;
use crate::api::names;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::selector::LabelSelector;
use crate::api::table::age;

pub(super) const RESOURCE: Resource = Resource {
    group: "networking.k8s.io",
    version: "v1",
    plural: "networkpolicies",
    singular: "networkpolicy",
    kind: "NetworkPolicy",
    list_kind: "NetworkPolicyList",
    description: "Which traffic pods may have with whom.",
    short_names: &["netpol"],
    categories: &[],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: false,
    has_scale: false,
    has_generation: true,
    subresources: &[],
    columns: &[Column::NAME, Column::text("Pod-Selector"), Column::AGE],
    field_selectors: &[],
    strategy: Strategy {
        default,
        validate,
        warnings,
        cells,
        ..Strategy::plain(typed::<NetworkPolicy>)
    },
};

const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";
const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
/// The lists of rules, and how a rule calls its peers.
const DIRECTIONS: [(&str, &str); 2] = [("ingress", "from"), ("egress", "to")];

fn default(object: &mut Value) {
    let Some(spec) = object.get_mut("spec").filter(|spec| spec.is_object()) else { return };
    if is_unset(spec.get("podSelector")) {
        set(spec, "podSelector", json!({}));
    }
    if is_empty(spec.get("policyTypes")) {
        let has_egress = !is_empty(spec.get("egress"));
        let types = if has_egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        set(spec, "policyTypes", types);
    }
    for (rules, _) in DIRECTIONS {
        let rules = spec.get_mut(rules).and_then(Value::as_array_mut).into_iter().flatten();
        let ports = rules.filter_map(|rule| rule.get_mut("ports")?.as_array_mut()).flatten();
        for port in ports {
            set_default_text(port, "protocol", "TCP");
        }
    }
}

fn validate(object: &Value, errors: &mut Errors) {
    let spec = object.get("spec").unwrap_or(&Value::Null);
    selector(spec.get("podSelector"), "spec.podSelector", errors);
    for (rules, peers) in DIRECTIONS {
        for (at, rule) in items_at(spec, &format!("/{rules}")).iter().enumerate() {
            let path = format!("spec.{rules}[{at}]");
            for (at, one) in items_at(rule, "/ports").iter().enumerate() {
                port(one, &format!("{path}.ports[{at}]"), errors);
            }
            for (at, one) in items_at(rule, &format!("/{peers}")).iter().enumerate() {
                peer(one, &format!("{path}.{peers}[{at}]"), errors);
            }
        }
    }
    let types = items_at(spec, "/policyTypes");
    if types.len() > DIRECTIONS.len() {
        let detail = "may not specify more than two policyTypes";
        errors.invalid("spec.policyTypes", &json!(types), detail);
        return;
    }
    for (at, one) in types.iter().enumerate() {
        errors.one_of(format!("spec.policyTypes[{at}]"), one, &["Egress", "Ingress"]);
    }
}

fn selector(value: Option<&Value>, path: &str, errors: &mut Errors) {
    let Some(value) = value.filter(|value| !value.is_null()) else { return };
    if let Err(cause) = LabelSelector::from_json(value) {
        errors.invalid(path, value, &cause.to_string());
    }
}

fn port(port: &Value, path: &str, errors: &mut Errors) {
    if let Some(protocol) = port.get("protocol").filter(|protocol| !protocol.is_null()) {
        errors.one_of(format!("{path}.protocol"), protocol, &["SCTP", "TCP", "UDP"]);
    }
    let number = port.get("port").unwrap_or(&Value::Null);
    let last = port.get("endPort").unwrap_or(&Value::Null);
    let end_path = format!("{path}.endPort");
    let is_port = |number: i64| (1..=65_535).contains(&number);
    match number {
        Value::Null if !last.is_null() => {
            errors.invalid(end_path, last, "may not be specified when `port` is not specified");
        }
        Value::Null => {}
        Value::String(name) => {
            if !last.is_null() {
                errors.invalid(end_path, last, "may not be specified when `port` is non-numeric");
            }
            if let Err(rule) = names::check_port_name(name) {
                errors.invalid(format!("{path}.port"), number, rule);
            }
        }
        _ => {
            let first = int_at(port, "/port").unwrap_or(0);
            if !is_port(first) {
                errors.invalid(format!("{path}.port"), number, PORT_RANGE);
            }
            let Some(end) = last.as_i64() else { return };
            if end < first {
                let detail = "must be greater than or equal to `port`";
                errors.invalid(end_path.clone(), number, detail);
            }
            if !is_port(end) {
                errors.invalid(end_path, last, PORT_RANGE);
            }
        }
    }
}

fn peer(peer: &Value, path: &str, errors: &mut Errors) {
    let get = |key: &str| peer.get(key).filter(|value| !value.is_null());
    for key in ["podSelector", "namespaceSelector"] {
        selector(get(key), &format!("{path}.{key}"), errors);
    }
    let has_selector = get("podSelector").is_some() || get("namespaceSelector").is_some();
    match get("ipBlock") {
        None if !has_selector => errors.push(FieldError::required(path, "must specify a peer")),
        None => {}
        Some(block) => {
            ip_block(block, &format!("{path}.ipBlock"), errors);
            if has_selector {
                errors.forbidden(path, "may not specify both ipBlock and another peer");
            }
        }
    }
}

fn ip_block(block: &Value, path: &str, errors: &mut Errors) {
    let text = text_at(block, "/cidr");
    if text.is_empty() {
        errors.required(format!("{path}.cidr"));
        return;
    }
    let Some(range) = cidr(text) else {
        errors.invalid(format!("{path}.cidr"), &json!(text), CIDR);
        return;
    };
    for (at, value) in items_at(block, "/except").iter().enumerate() {
        let path = format!("{path}.except[{at}]");
        match value.as_str().and_then(cidr) {
            None => errors.invalid(path, value, CIDR),
            Some(except) if !is_strict_part(range, except) => {
                errors.invalid(path, value, "must be a strict subset of `cidr`");
            }
            Some(_) => {}
        }
    }
}

/// Base and length of the prefix.
fn cidr(text: &str) -> Option<(IpAddr, u32)> {
    let (base, prefix) = text.split_once('/')?;
    let (base, prefix): (IpAddr, u32) = (base.parse().ok()?, prefix.parse().ok()?);
    (prefix <= if base.is_ipv4() { 32 } else { 128 }).then_some((base, prefix))
}

fn is_strict_part((whole, bits): (IpAddr, u32), (part, part_bits): (IpAddr, u32)) -> bool {
    let differs = match (whole, part) {
        (IpAddr::V4(a), IpAddr::V4(b)) => u128::from(a.to_bits() ^ b.to_bits()) << 96,
        (IpAddr::V6(a), IpAddr::V6(b)) => a.to_bits() ^ b.to_bits(),
        _ => return false,
    };
    part_bits > bits && differs.leading_zeros() >= bits
}

fn warnings(object: &Value) -> Vec<String> {
    let rules =
        DIRECTIONS.iter().flat_map(|(rules, _)| items_at(object, &format!("/spec/{rules}")));
    let mut ports = rules.flat_map(|rule| items_at(rule, "/ports"));
    if ports.any(|port| text_at(port, "/protocol") == "SCTP") {
        return vec!["spec: SCTP is kept and nothing of it is carried".to_owned()];
    }
    Vec::new()
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let selector = object.pointer("/spec/podSelector").unwrap_or(&Value::Null);
    let selector = LabelSelector::from_json(selector).map(|selector| selector.to_string());
    let selector = selector.ok().filter(|text| !text.is_empty());
    vec![
        json!(meta::name(object)),
        json!(selector.unwrap_or_else(|| "<none>".to_owned())),
        json!(age(object, now)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(spec: Value) -> Vec<String> {
        let mut object = json!({ "spec": spec });
        default(&mut object);
        let mut errors = Errors::default();
        validate(&object, &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_types_of_a_policy_follow_from_its_rules() {
        for (spec, types) in [
            (json!({}), json!(["Ingress"])),
            (json!({ "egress": [] }), json!(["Ingress"])),
            (json!({ "egress": [{}] }), json!(["Ingress", "Egress"])),
            (json!({ "ingress": [{}] }), json!(["Ingress"])),
            (json!({ "policyTypes": ["Egress"], "ingress": [{}] }), json!(["Egress"])),
            (json!({ "policyTypes": [], "egress": [{}] }), json!(["Ingress", "Egress"])),
        ] {
            let mut object = json!({ "spec": spec });
            default(&mut object);
            assert_eq!(object["spec"]["policyTypes"], types, "{spec}");
            assert_eq!(object["spec"]["podSelector"], json!({}));
        }
        let mut object = json!({ "spec": { "egress": [{ "ports": [{ "port": 53 }] }] } });
        default(&mut object);
        assert_eq!(object["spec"]["egress"][0]["ports"][0]["protocol"], "TCP");
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "one table of all rules")]
    fn what_breaks_a_rule_of_policies_is_refused_with_the_field() {
        let ports = |port: Value| json!({ "ingress": [{ "ports": [port] }] });
        let from = |peer: Value| json!({ "ingress": [{ "from": [peer] }] });
        let block = |block: Value| json!({ "egress": [{ "to": [{ "ipBlock": block }] }] });
        for (spec, complaint) in [
            (
                ports(json!({ "port": 0 })),
                "spec.ingress[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            ),
            (
                ports(json!({ "port": "Web" })),
                "spec.ingress[0].ports[0].port: Invalid value: \"Web\": must contain only alpha-numeric",
            ),
            (
                ports(json!({ "port": 80, "endPort": 79 })),
                "spec.ingress[0].ports[0].endPort: Invalid value: 80: must be greater than or equal to `port`",
            ),
            (
                ports(json!({ "port": 80, "endPort": 70000 })),
                "spec.ingress[0].ports[0].endPort: Invalid value: 70000: must be between",
            ),
            (
                ports(json!({ "port": "web", "endPort": 90 })),
                "spec.ingress[0].ports[0].endPort: Invalid value: 90: may not be specified when `port` is non-numeric",
            ),
            (
                ports(json!({ "endPort": 90 })),
                "spec.ingress[0].ports[0].endPort: Invalid value: 90: may not be specified when `port` is not specified",
            ),
            (
                ports(json!({ "protocol": "ICMP" })),
                "spec.ingress[0].ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            ),
            (from(json!({})), "spec.ingress[0].from[0]: Required value: must specify a peer"),
            (
                from(json!({ "ipBlock": { "cidr": "10.0.0.0/8" }, "podSelector": {} })),
                "spec.ingress[0].from[0]: Forbidden: may not specify both ipBlock and another peer",
            ),
            (
                from(json!({ "podSelector": { "matchLabels": { "a b": "c" } } })),
                "spec.ingress[0].from[0].podSelector: Invalid value",
            ),
            (block(json!({ "cidr": "" })), "spec.egress[0].to[0].ipBlock.cidr: Required value"),
            (
                block(json!({ "cidr": "10.0.0.0" })),
                "spec.egress[0].to[0].ipBlock.cidr: Invalid value: \"10.0.0.0\": must be a valid CIDR value",
            ),
            (
                block(json!({ "cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"] })),
                "spec.egress[0].to[0].ipBlock.except[0]: Invalid value: \"10.0.0.0/8\": must be a strict subset of `cidr`",
            ),
            (
                block(json!({ "cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"] })),
                "must be a strict subset of `cidr`",
            ),
            (
                block(json!({ "cidr": "fd00::/8", "except": ["10.0.0.0/16"] })),
                "must be a strict subset of `cidr`",
            ),
            (
                block(json!({ "cidr": "10.0.0.0/8", "except": ["x"] })),
                "spec.egress[0].to[0].ipBlock.except[0]: Invalid value: \"x\": must be a valid CIDR value",
            ),
            (
                json!({ "podSelector": { "matchExpressions": [{ "key": "a", "operator": "Is" }] } }),
                "spec.podSelector: Invalid value",
            ),
            (
                json!({ "policyTypes": ["Ingress", "Egress", "Egress"] }),
                "spec.policyTypes: Invalid value: [\"Ingress\",\"Egress\",\"Egress\"]: may not specify more than two policyTypes",
            ),
            (
                json!({ "policyTypes": ["Out"] }),
                "spec.policyTypes[0]: Unsupported value: \"Out\": supported values: \"Egress\", \"Ingress\"",
            ),
        ] {
            let found = complaints(spec.clone());
            assert!(found.iter().any(|one| one.contains(complaint)), "{spec}: {found:?}");
        }
    }

    #[test]
    fn policies_as_people_write_them_are_taken() {
        for spec in [
            json!({}),
            json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] }),
            json!({ "ingress": [{ "from": [{ "podSelector": {}, "namespaceSelector": {} }], "ports": [{ "port": "web" }, { "port": 80, "endPort": 80 }, {}] }] }),
            json!({ "egress": [{ "to": [{ "ipBlock": { "cidr": "0.0.0.0/0", "except": ["10.0.0.0/8", "192.168.0.0/16"] } }] }] }),
            json!({ "egress": [{ "to": [{ "ipBlock": { "cidr": "::/0", "except": ["fd00::/8"] } }], "ports": [{ "protocol": "UDP", "port": 53 }] }] }),
        ] {
            assert_eq!(complaints(spec.clone()), Vec::<String>::new(), "{spec}");
        }
    }
}
