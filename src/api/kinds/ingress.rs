//! Ingress.

use jiff::Timestamp;
use k8s_openapi::api::networking::v1::Ingress;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::Errors;
use crate::api::json::{items_at, text_at};
use crate::api::meta;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;

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

fn validate(object: &Value, errors: &mut Errors) {
    let rules = items_at(object, "/spec/rules");
    if rules.is_empty() && object.pointer("/spec/defaultBackend").is_none_or(Value::is_null) {
        errors.invalid(
            "spec",
            &Value::Null,
            "either `defaultBackend` or `rules` must be specified",
        );
    }
    for (at, rule) in rules.iter().enumerate() {
        for (path_at, path) in items_at(rule, "/http/paths").iter().enumerate() {
            let field = format!("spec.rules[{at}].http.paths[{path_at}]");
            let kind = path.get("pathType").unwrap_or(&Value::Null);
            errors.one_of(
                format!("{field}.pathType"),
                kind,
                &["Exact", "ImplementationSpecific", "Prefix"],
            );
            let text = text_at(path, "/path");
            if matches!(kind.as_str(), Some("Exact" | "Prefix")) && !text.starts_with('/') {
                errors.invalid(format!("{field}.path"), &json!(text), "must be an absolute path");
            }
        }
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
