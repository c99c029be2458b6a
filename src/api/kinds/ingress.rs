//! Ingress.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::networking::v1::Ingress;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::Errors;
use crate::api::json::{int_at, items_at, str_at, text_at};
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;
use crate::api::{meta, names};

pub(super) const RESOURCE: Resource = Resource {
    group: "networking.k8s.io",
    version: "v1",
    plural: "ingresses",
    singular: "ingress",
    kind: "Ingress",
    list_kind: "IngressList",
    description: "HTTP rules that lead from outside to services.",
    short_names: &["ing"],
    categories: &[],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: true,
    has_scale: false,
    has_generation: true,
    subresources: &[],
    columns: &[
        Column::NAME,
        Column::text("Class"),
        Column::text("Hosts"),
        Column::text("Address"),
        Column::text("Ports"),
        Column::AGE,
    ],
    field_selectors: &[],
    strategy: Strategy { validate, cells, ..Strategy::plain(typed::<Ingress>) },
};

/// What a path may not contain, and how it may not end: two readers may take such a path for two.
const NOT_IN_PATHS: [&str; 5] = ["//", "/./", "/../", "%2f", "%2F"];
const NOT_AT_ENDS: [&str; 2] = ["/..", "/."];

fn validate(object: &Value, errors: &mut Errors) {
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let rules = items_at(spec, "/rules");
    let default = spec.get("defaultBackend").filter(|backend| !backend.is_null());
    if rules.is_empty() && default.is_none() {
        errors.invalid(
            "spec",
            &Value::Null,
            "either `defaultBackend` or `rules` must be specified",
        );
    }
    if let Some(class) = str_at(spec, "/ingressClassName")
        && let Err(rule) = names::check_dns1123_subdomain(class)
    {
        errors.invalid("spec.ingressClassName", &json!(class), rule);
    }
    if let Some(default) = default {
        check_backend(default, "spec.defaultBackend", errors);
    }
    for (at, tls) in items_at(spec, "/tls").iter().enumerate() {
        for (host_at, host) in items_at(tls, "/hosts").iter().enumerate() {
            let host = host.as_str().unwrap_or_default();
            check_host(host, &format!("spec.tls[{at}].hosts[{host_at}]"), errors);
        }
        if let Some(name) = str_at(tls, "/secretName").filter(|name| !name.is_empty())
            && let Err(rule) = names::check_dns1123_subdomain(name)
        {
            errors.invalid(format!("spec.tls[{at}].secretName"), &json!(name), rule);
        }
    }
    for (at, rule) in rules.iter().enumerate() {
        check_rule(rule, &format!("spec.rules[{at}]"), errors);
    }
}

fn check_rule(rule: &Value, field: &str, errors: &mut Errors) {
    if let Some(host) = str_at(rule, "/host").filter(|host| !host.is_empty()) {
        if host.parse::<IpAddr>().is_ok() {
            let detail = "must be a DNS name, not an IP address";
            errors.invalid(format!("{field}.host"), &json!(host), detail);
        } else {
            check_host(host, &format!("{field}.host"), errors);
        }
    }
    let paths = items_at(rule, "/http/paths");
    if rule.get("http").is_some_and(|http| !http.is_null()) && paths.is_empty() {
        errors.required(format!("{field}.http.paths"));
    }
    for (at, path) in paths.iter().enumerate() {
        let field = format!("{field}.http.paths[{at}]");
        check_path(path, &field, errors);
        let backend = path.get("backend").unwrap_or(&Value::Null);
        check_backend(backend, &format!("{field}.backend"), errors);
    }
}

/// A host name, or `*.` and one.
fn check_host(host: &str, field: &str, errors: &mut Errors) {
    let name = host.strip_prefix("*.").unwrap_or(host);
    if let Err(rule) = names::check_dns1123_subdomain(name) {
        let wildcard = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS \
                        subdomain (e.g. '*.example.com')";
        errors.invalid(field, &json!(host), if host.contains('*') { wildcard } else { rule });
    }
}

fn check_path(path: &Value, field: &str, errors: &mut Errors) {
    let kind = path.get("pathType").unwrap_or(&Value::Null);
    if kind.is_null() {
        errors.required_because(format!("{field}.pathType"), "pathType must be specified");
    } else {
        let kinds = ["Exact", "ImplementationSpecific", "Prefix"];
        errors.one_of(format!("{field}.pathType"), kind, &kinds);
    }
    let (text, field) = (text_at(path, "/path"), format!("{field}.path"));
    let is_literal = matches!(kind.as_str(), Some("Exact" | "Prefix"));
    if !text.starts_with('/') && (is_literal || !text.is_empty()) {
        errors.invalid(field, &json!(text), "must be an absolute path");
        return;
    }
    if !is_literal {
        return;
    }
    for part in NOT_IN_PATHS.iter().filter(|part| text.contains(**part)) {
        errors.invalid(field.as_str(), &json!(text), &format!("must not contain '{part}'"));
    }
    for end in NOT_AT_ENDS.iter().filter(|end| text.ends_with(**end)) {
        errors.invalid(field.as_str(), &json!(text), &format!("cannot end with '{end}'"));
    }
}

/// A Service and one of its ports, or another object; not both.
fn check_backend(backend: &Value, field: &str, errors: &mut Errors) {
    let has = |key: &str| backend.get(key).is_some_and(|value| !value.is_null());
    match (has("service"), has("resource")) {
        (true, true) => {
            let detail = "cannot set both resource and service backends";
            return errors.invalid(field, &json!(""), detail);
        }
        (false, true) => return,
        (false, false) => {
            return errors.invalid(field, &json!(""), "resource or service backend is required");
        }
        (true, false) => {}
    }
    let name = text_at(backend, "/service/name");
    if name.is_empty() {
        errors.required(format!("{field}.service.name"));
    } else if let Err(rule) = names::check_dns1035_label(name) {
        errors.invalid(format!("{field}.service.name"), &json!(name), rule);
    }
    let port_name = text_at(backend, "/service/port/name");
    let number = int_at(backend, "/service/port/number").unwrap_or(0);
    match (port_name, number) {
        ("", 0) => errors.required_because(field, "port name or number is required"),
        ("", number) if !(1..=65_535).contains(&number) => {
            let field = format!("{field}.service.port.number");
            errors.invalid(field, &json!(number), "must be between 1 and 65535, inclusive");
        }
        ("", _) => {}
        (name, 0) => {
            if let Err(rule) = names::check_port_name(name) {
                errors.invalid(format!("{field}.service.port.name"), &json!(name), rule);
            }
        }
        _ => errors.invalid(field, &json!(""), "cannot set both port name & port number"),
    }
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let or =
        |text: &str, other: &str| if text.is_empty() { other.to_owned() } else { text.to_owned() };
    let hosts = items_at(object, "/spec/rules").iter().map(|rule| text_at(rule, "/host"));
    let hosts: Vec<&str> = hosts.filter(|host| !host.is_empty()).collect();
    let addresses =
        items_at(object, "/status/loadBalancer/ingress").iter().map(|at| text_at(at, "/ip"));
    let ports = if items_at(object, "/spec/tls").is_empty() { "80" } else { "80, 443" };
    vec![
        json!(meta::name(object)),
        json!(or(text_at(object, "/spec/ingressClassName"), "<none>")),
        json!(or(&hosts.join(","), "*")),
        json!(addresses.collect::<Vec<_>>().join(",")),
        json!(ports),
        json!(age(object, now)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(spec: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        validate(&json!({ "spec": spec }), &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    fn rule(host: &str, path: &Value) -> Value {
        json!({"rules": [{"host": host, "http": {"paths": [path]}}]})
    }

    fn path(kind: &str, text: &str) -> Value {
        json!({"pathType": kind, "path": text, "backend": backend(&json!({"number": 80}))})
    }

    fn backend(port: &Value) -> Value {
        json!({"service": {"name": "web", "port": port}})
    }

    #[test]
    fn an_ingress_says_what_kubernetes_takes() {
        let none: [&str; 0] = [];
        for host in ["", "a.test", "*.a.test"] {
            assert_eq!(told(&rule(host, &path("Prefix", "/a/.b/c%20d"))), none, "{host}");
        }
        assert_eq!(told(&rule("", &path("ImplementationSpecific", "/a//b"))), none);
        assert_eq!(
            told(&json!({"defaultBackend": {"resource": {"kind": "K", "name": "n"}}})),
            none
        );
        let of_host = "spec.rules[0].host: Invalid value: ";
        for (host, wrong) in [
            ("Bad_host", "a lowercase RFC 1123 subdomain"),
            ("1.2.3.4", "must be a DNS name, not an IP address"),
            ("a.*.test", "a wildcard DNS-1123 subdomain must start with '*.'"),
            ("*", "a wildcard DNS-1123 subdomain must start with '*.'"),
        ] {
            let told = told(&rule(host, &path("Exact", "/")));
            assert!(told.len() == 1 && told[0].starts_with(of_host), "{told:?}");
            assert!(told[0].contains(wrong), "{told:?}");
        }
        let of_path = "spec.rules[0].http.paths[0]";
        for (kind, text, wrong) in [
            ("Prefix", "/a//b", "must not contain '//'"),
            ("Prefix", "/a/../b", "must not contain '/../'"),
            ("Exact", "/a%2fb", "must not contain '%2f'"),
            ("Exact", "/a/..", "cannot end with '/..'"),
            ("Exact", "a", "must be an absolute path"),
            ("ImplementationSpecific", "a", "must be an absolute path"),
        ] {
            let wanted = format!("{of_path}.path: Invalid value: {text:?}: {wrong}");
            assert_eq!(told(&rule("", &path(kind, text))), [wanted]);
        }
        let mut untyped = path("Exact", "/");
        untyped["pathType"] = Value::Null;
        let required = "Required value: pathType must be specified";
        assert_eq!(told(&rule("", &untyped)), [format!("{of_path}.pathType: {required}")]);
    }

    #[test]
    fn a_backend_is_one_thing_with_one_port() {
        for (wrong, message) in [
            (
                backend(&json!({"number": 80, "name": "http"})),
                ": Invalid value: \"\": cannot set both port name & port number",
            ),
            (backend(&json!({})), ": Required value: port name or number is required"),
            (
                backend(&json!({"number": 99_999})),
                ".service.port.number: Invalid value: 99999: must be between 1 and 65535, inclusive",
            ),
            (json!({}), ": Invalid value: \"\": resource or service backend is required"),
            (
                json!({"service": {"name": "a", "port": {"number": 1}}, "resource": {"name": "b"}}),
                ": Invalid value: \"\": cannot set both resource and service backends",
            ),
        ] {
            let wanted = format!("spec.defaultBackend{message}");
            assert_eq!(told(&json!({ "defaultBackend": wrong })), [wanted]);
        }
        let misnamed = json!({"service": {"name": "Bad_svc", "port": {"name": "no_port"}}});
        let told_of = told(&json!({"defaultBackend": misnamed, "ingressClassName": "Bad Class",
            "tls": [{"hosts": ["x_y"], "secretName": "No"}], "rules": [{"http": {"paths": []}}]}));
        let fields: Vec<_> = told_of.iter().filter_map(|one| one.split(':').next()).collect();
        assert_eq!(
            fields,
            [
                "spec.ingressClassName",
                "spec.defaultBackend.service.name",
                "spec.defaultBackend.service.port.name",
                "spec.tls[0].hosts[0]",
                "spec.tls[0].secretName",
                "spec.rules[0].http.paths",
            ]
        );
    }
}
