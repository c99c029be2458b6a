//! Service.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::Errors;
use crate::api::json::{
    child, entries_at, int_at, items_at, set, set_default, set_default_text, text_at,
};
use crate::api::meta;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;

pub(super) const RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    plural: "services",
    singular: "service",
    kind: "Service",
    list_kind: "ServiceList",
    description: "A name and an address for a set of pods.",
    short_names: &["svc"],
    categories: &["all"],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: true,
    has_scale: false,
    has_generation: false,
    subresources: &[],
    columns: &[
        Column::NAME,
        Column::text("Type"),
        Column::text("Cluster-IP"),
        Column::text("External-IP"),
        Column::text("Port(s)"),
        Column::AGE,
        Column::wide("Selector"),
    ],
    field_selectors: &["spec.clusterIP", "spec.type"],
    strategy: Strategy {
        default,
        prepare_create: |object| set(object, "status", json!({ "loadBalancer": {} })),
        prepare_update,
        validate,
        validate_update,
        cells,
        ..Strategy::plain(typed::<Service>)
    },
};

/// Shown where there is nothing.
const NONE: &str = "<none>";
/// Kinds of Service.
const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];

fn default(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    set_default_text(spec, "type", "ClusterIP");
    set_default_text(spec, "sessionAffinity", "None");
    set_default_text(spec, "internalTrafficPolicy", "Cluster");
    if matches!(text_at(spec, "/type"), "NodePort" | "LoadBalancer") {
        set_default_text(spec, "externalTrafficPolicy", "Cluster");
    }
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        set_default_text(port, "protocol", "TCP");
        let number = port.get("port").cloned();
        if let Some(number) = number {
            set_default(port, "targetPort", number);
        }
    }
}

/// What the server allocated stays when a client leaves it out.
fn prepare_update(old: &Value, new: &mut Value) {
    let is_external = text_at(new, "/spec/type") == "ExternalName";
    let kept = ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"];
    let Some(spec) = child(new, "spec") else { return };
    for key in kept.into_iter().filter(|_| !is_external) {
        if let Some(value) = old.pointer(&format!("/spec/{key}")) {
            set_default(spec, key, value.clone());
        }
    }
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let is_same = |had: &&Value| {
            had.get("port") == port.get("port")
                && text_at(had, "/protocol") == text_at(port, "/protocol")
        };
        let had =
            items_at(old, "/spec/ports").iter().find(is_same).and_then(|had| had.get("nodePort"));
        if let Some(node_port) = had.cloned() {
            set_default(port, "nodePort", node_port);
        }
    }
}

fn validate(object: &Value, errors: &mut Errors) {
    let kind = object.pointer("/spec/type").unwrap_or(&Value::Null);
    errors.one_of("spec.type", kind, TYPES);
    let ports = items_at(object, "/spec/ports");
    let is_headless = text_at(object, "/spec/clusterIP") == "None";
    if ports.is_empty() && !is_headless && kind != "ExternalName" {
        errors.required("spec.ports");
    }
    if kind == "ExternalName" && text_at(object, "/spec/externalName").is_empty() {
        errors.required("spec.externalName");
    }
    for (at, port) in ports.iter().enumerate() {
        let number = port.get("port").unwrap_or(&Value::Null);
        if !number.as_i64().is_some_and(|number| (1..=65535).contains(&number)) {
            let detail = "must be between 1 and 65535, inclusive";
            errors.invalid(format!("spec.ports[{at}].port"), number, detail);
        }
        if ports.len() > 1 && text_at(port, "/name").is_empty() {
            errors.required(format!("spec.ports[{at}].name"));
        }
        let protocol = port.get("protocol").unwrap_or(&Value::Null);
        errors.one_of(format!("spec.ports[{at}].protocol"), protocol, &["SCTP", "TCP", "UDP"]);
    }
}

/// The address is the service's for its life; only an ExternalName has none.
fn validate_update(old: &Value, new: &Value, errors: &mut Errors) {
    let is_external = |object: &Value| text_at(object, "/spec/type") == "ExternalName";
    let had = text_at(old, "/spec/clusterIP");
    if had.is_empty() || is_external(old) || is_external(new) {
        return;
    }
    if text_at(new, "/spec/clusterIP") != had {
        let sent = json!([text_at(new, "/spec/clusterIP")]);
        errors.invalid("spec.clusterIPs[0]", &sent, "may not change once set");
    }
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let or_none = |text: String| if text.is_empty() { NONE.to_owned() } else { text };
    let ports = items_at(object, "/spec/ports").iter().map(|port| {
        let number = int_at(port, "/port").unwrap_or(0);
        let protocol = text_at(port, "/protocol");
        match int_at(port, "/nodePort") {
            Some(node_port) if node_port > 0 => format!("{number}:{node_port}/{protocol}"),
            _ => format!("{number}/{protocol}"),
        }
    });
    let selector = entries_at(object, "/spec/selector")
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
    let external = text_at(object, "/spec/externalName").to_owned();
    vec![
        json!(meta::name(object)),
        json!(text_at(object, "/spec/type")),
        json!(or_none(text_at(object, "/spec/clusterIP").to_owned())),
        json!(or_none(external)),
        json!(or_none(ports.collect::<Vec<_>>().join(","))),
        json!(age(object, now)),
        json!(or_none(selector.collect::<Vec<_>>().join(","))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_ip_stays_for_life_but_for_external_names() {
        let service =
            |kind: &str, address: &str| json!({"spec": {"type": kind, "clusterIP": address}});
        let refused = |old: &Value, new: &Value| {
            let mut errors = Errors::default();
            validate_update(old, new, &mut errors);
            errors.into_vec().len()
        };
        let old = service("ClusterIP", "10.43.1.1");
        assert_eq!(refused(&old, &service("NodePort", "10.43.1.1")), 0);
        assert_eq!(refused(&old, &service("ClusterIP", "10.43.1.2")), 1);
        assert_eq!(refused(&old, &service("ClusterIP", "None")), 1);
        assert_eq!(refused(&service("ClusterIP", "None"), &old), 1);
        assert_eq!(refused(&old, &service("ExternalName", "")), 0);
        assert_eq!(refused(&service("ExternalName", ""), &old), 0);
    }
}
