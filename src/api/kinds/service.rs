//! Service.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::json::{
    child, entries_at, int_at, items_at, remove, set, set_default, set_default_text, text_at,
};
use crate::api::kinds::service_rules::{validate, validate_update, warnings};
use crate::api::meta;
use crate::api::names::check_dns1123_label;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy, Subresource};
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
    subresources: &[Subresource {
        name: "proxy",
        kind: "ServiceProxyOptions",
        group: "",
        version: "",
        verbs: &["create", "delete", "get", "patch", "update"],
    }],
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
        warnings,
        check_name: check_dns1123_label,
        cells,
        ..Strategy::plain(typed::<Service>)
    },
};

/// Shown where there is nothing.
const NONE: &str = "<none>";
/// How long a client keeps its endpoint when the Service does not say.
const AFFINITY_SECONDS: i64 = 10_800;

fn default(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    set_default_text(spec, "type", "ClusterIP");
    set_default_text(spec, "sessionAffinity", "None");
    if text_at(spec, "/sessionAffinity") == "ClientIP" {
        if let Some(config) = child(spec, "sessionAffinityConfig")
            && let Some(client) = child(config, "clientIP")
        {
            set_default(client, "timeoutSeconds", AFFINITY_SECONDS);
        }
    } else if text_at(spec, "/sessionAffinity") == "None" {
        remove(spec, "sessionAffinityConfig");
    }
    if text_at(spec, "/type") != "ExternalName" {
        set_default_text(spec, "internalTrafficPolicy", "Cluster");
    }
    if text_at(spec, "/type") == "LoadBalancer" {
        set_default(spec, "allocateLoadBalancerNodePorts", true);
    }
    if is_reached_from_outside(spec) {
        set_default_text(spec, "externalTrafficPolicy", "Cluster");
    }
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        set_default_text(port, "protocol", "TCP");
        let number = port.get("port").cloned();
        let is_open = matches!(port.get("targetPort"), Some(Value::String(name)) if name.is_empty())
            || port.get("targetPort").and_then(Value::as_i64) == Some(0);
        if is_open {
            remove(port, "targetPort");
        }
        if let Some(number) = number {
            set_default(port, "targetPort", number);
        }
    }
    default_status(object);
    let Some(spec) = child(object, "spec") else { return };
    // A client may write the address in either field.
    let first = text_at(spec, "/clusterIP").to_owned();
    if !first.is_empty() && items_at(spec, "/clusterIPs").is_empty() {
        set(spec, "clusterIPs", json!([first]));
    } else if first.is_empty()
        && let Some(first) = spec.pointer("/clusterIPs/0").cloned()
    {
        set(spec, "clusterIP", first);
    }
}

fn default_status(object: &mut Value) {
    let addresses =
        object.pointer_mut("/status/loadBalancer/ingress").and_then(Value::as_array_mut);
    for address in addresses.into_iter().flatten() {
        if !text_at(address, "/ip").is_empty() {
            set_default_text(address, "ipMode", "VIP");
        }
    }
}

/// Whether clients outside the cluster get at a Service with this spec.
pub(super) fn is_reached_from_outside(spec: &Value) -> bool {
    match text_at(spec, "/type") {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => !items_at(spec, "/externalIPs").is_empty(),
        _ => false,
    }
}

/// Whether a Service with this spec may have node ports.
pub(super) fn has_node_ports(spec: &Value) -> bool {
    matches!(text_at(spec, "/type"), "NodePort" | "LoadBalancer")
}

/// Whether a Service with this spec has a port at which nodes tell of its endpoints.
pub(super) fn has_health_port(spec: &Value) -> bool {
    text_at(spec, "/type") == "LoadBalancer" && text_at(spec, "/externalTrafficPolicy") == "Local"
}

/// Whether a Service with this spec has addresses, if only `None`.
fn has_address(spec: &Value) -> bool {
    text_at(spec, "/type") != "ExternalName"
}

/// What the server allocated stays when a client leaves it out, and goes with the type that needed
/// it.
fn prepare_update(old: &Value, new: &mut Value) {
    let Some(old) = old.get("spec") else { return };
    let Some(spec) = child(new, "spec") else { return };
    // What is not written is the default, and decides what is needed.
    set_default_text(spec, "type", "ClusterIP");
    if has_node_ports(spec) {
        set_default_text(spec, "externalTrafficPolicy", "Cluster");
    }
    keep_allocated(old, spec);
    drop_unneeded(old, spec);
    // One who knows only the first field has changed it.
    let (had, has) = (text_at(old, "/clusterIP"), text_at(spec, "/clusterIP").to_owned());
    if !has.is_empty() && has != had && spec.get("clusterIPs") == old.get("clusterIPs") {
        set(spec, "clusterIPs", json!([has]));
    }
    // A Service that goes back to one family gives the second address back.
    let is_single = text_at(spec, "/ipFamilyPolicy") == "SingleStack";
    if is_single && text_at(old, "/ipFamilyPolicy") != "SingleStack" {
        for key in ["clusterIPs", "ipFamilies"] {
            if spec.get(key) == old.get(key)
                && let Some(list) = spec.get_mut(key).and_then(Value::as_array_mut)
            {
                list.truncate(1);
            }
        }
    }
}

fn keep_allocated(old: &Value, spec: &mut Value) {
    if has_address(old) && has_address(spec) {
        let is_unset = text_at(spec, "/clusterIP").is_empty();
        for key in ["clusterIP", "clusterIPs"] {
            if let Some(value) = old.get(key).filter(|_| is_unset) {
                set_default(spec, key, value.clone());
            }
        }
        if is_unset && let Some(value) = old.get("clusterIP") {
            set(spec, "clusterIP", value.clone());
        }
        for key in ["ipFamilies", "ipFamilyPolicy"] {
            if let Some(value) = old.get(key) {
                set_default(spec, key, value.clone());
            }
        }
    }
    if has_health_port(old)
        && has_health_port(spec)
        && let Some(port) = old.get("healthCheckNodePort")
    {
        set_default(spec, "healthCheckNodePort", port.clone());
    }
    if !(has_node_ports(old) && has_node_ports(spec)) {
        return;
    }
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let protocol = Some(text_at(port, "/protocol")).filter(|text| !text.is_empty());
        let is_same = |had: &&Value| {
            had.get("port") == port.get("port")
                && text_at(had, "/protocol") == protocol.unwrap_or("TCP")
        };
        let had = items_at(old, "/ports").iter().find(is_same).and_then(|had| had.get("nodePort"));
        if let Some(node_port) = had.cloned() {
            set_default(port, "nodePort", node_port);
        }
    }
}

/// Takes away what the type no longer needs, unless the client has changed it: then it is told.
fn drop_unneeded(old: &Value, spec: &mut Value) {
    let node_ports = |spec: &Value| -> Vec<Option<i64>> {
        items_at(spec, "/ports").iter().map(|port| int_at(port, "/nodePort")).collect()
    };
    let mut gone = Vec::new();
    if has_address(old) && !has_address(spec) {
        gone.extend(["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"]);
        gone.push("internalTrafficPolicy");
    }
    if has_health_port(old) && !has_health_port(spec) {
        gone.push("healthCheckNodePort");
    }
    if text_at(old, "/type") == "LoadBalancer" && text_at(spec, "/type") != "LoadBalancer" {
        gone.extend(["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    }
    if is_reached_from_outside(old) && !is_reached_from_outside(spec) {
        gone.push("externalTrafficPolicy");
    }
    for key in gone {
        if spec.get(key) == old.get(key) {
            remove(spec, key);
        }
    }
    if has_node_ports(old) && !has_node_ports(spec) && node_ports(old) == node_ports(spec) {
        for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            remove(port, "nodePort");
        }
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
    vec![
        json!(meta::name(object)),
        json!(text_at(object, "/spec/type")),
        json!(or_none(text_at(object, "/spec/clusterIP").to_owned())),
        json!(outside(object)),
        json!(or_none(ports.collect::<Vec<_>>().join(","))),
        json!(age(object, now)),
        json!(or_none(selector.collect::<Vec<_>>().join(","))),
    ]
}

/// Where clients outside the cluster find the Service, as kubectl shows it.
fn outside(object: &Value) -> String {
    let external_ips = items_at(object, "/spec/externalIPs").iter().filter_map(Value::as_str);
    let mut all: Vec<&str> = Vec::new();
    match text_at(object, "/spec/type") {
        "ExternalName" => return text_at(object, "/spec/externalName").to_owned(),
        "LoadBalancer" => {
            for at in items_at(object, "/status/loadBalancer/ingress") {
                all.push(
                    Some(text_at(at, "/ip"))
                        .filter(|ip| !ip.is_empty())
                        .unwrap_or_else(|| text_at(at, "/hostname")),
                );
            }
            all.extend(external_ips);
            if all.is_empty() {
                return "<pending>".to_owned();
            }
        }
        _ => all.extend(external_ips),
    }
    if all.is_empty() { NONE.to_owned() } else { all.join(",") }
}

#[cfg(test)]
#[path = "service_test.rs"]
mod tests;
