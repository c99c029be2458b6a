//! Gateway.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::{Errors, FieldError};
use crate::api::gateway::{GROUP, Gateway};
use crate::api::json::{child, items_at, set_default_text, str_at, text_at};
use crate::api::kinds::gateway_class::condition;
use crate::api::meta;
use crate::api::names::check_dns1123_subdomain;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;

/// Listeners of one Gateway: the spec's bound.
const LISTENERS_MAX: usize = 64;
/// Certificates of one listener: the spec's bound.
const CERTIFICATES_MAX: usize = 64;

pub(super) const RESOURCE: Resource = Resource {
    group: GROUP,
    version: "v1",
    plural: "gateways",
    singular: "gateway",
    kind: "Gateway",
    list_kind: "GatewayList",
    description: "Ports that the nodes listen on, for routes to attach to.",
    short_names: &["gtw"],
    categories: &["gateway-api"],
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
        Column::text("Address"),
        Column::text("Programmed"),
        Column::AGE,
    ],
    field_selectors: &[],
    strategy: Strategy { default, validate, cells, ..Strategy::plain(typed::<Gateway>) },
};

fn default(object: &mut Value) {
    let listeners = object.pointer_mut("/spec/listeners").and_then(Value::as_array_mut);
    for listener in listeners.into_iter().flatten() {
        if let Some(allowed) = child(listener, "allowedRoutes")
            && let Some(namespaces) = child(allowed, "namespaces")
        {
            set_default_text(namespaces, "from", "Same");
        }
        let Some(tls) = listener.get_mut("tls").filter(|tls| tls.is_object()) else { continue };
        set_default_text(tls, "mode", "Terminate");
        let certificates = tls.get_mut("certificateRefs").and_then(Value::as_array_mut);
        for certificate in certificates.into_iter().flatten() {
            crate::api::json::set_default(certificate, "group", "");
            set_default_text(certificate, "kind", "Secret");
        }
    }
}

fn validate(object: &Value, errors: &mut Errors) {
    if text_at(object, "/spec/gatewayClassName").is_empty() {
        errors.required("spec.gatewayClassName");
    }
    let listeners = items_at(object, "/spec/listeners");
    if listeners.is_empty() {
        errors.required("spec.listeners");
    }
    if listeners.len() > LISTENERS_MAX {
        errors.push(FieldError::too_many("spec.listeners", listeners.len(), LISTENERS_MAX));
    }
    let mut names = std::collections::BTreeSet::new();
    for (at, listener) in listeners.iter().enumerate() {
        let field = format!("spec.listeners[{at}]");
        let name = text_at(listener, "/name");
        if let Err(detail) = check_dns1123_subdomain(name) {
            errors.invalid(format!("{field}.name"), &json!(name), detail);
        }
        if !names.insert(name) {
            errors.duplicate(format!("{field}.name"), &json!(name));
        }
        validate_listener(listener, &field, errors);
    }
}

fn validate_listener(listener: &Value, field: &str, errors: &mut Errors) {
    let port = listener.get("port").and_then(Value::as_u64).unwrap_or(0);
    if !(1..=65_535).contains(&port) {
        let detail = "must be between 1 and 65535, inclusive";
        errors.invalid(format!("{field}.port"), &json!(port), detail);
    }
    let protocol = text_at(listener, "/protocol");
    if protocol.is_empty() {
        errors.required(format!("{field}.protocol"));
    }
    if let Some(host) = str_at(listener, "/hostname").filter(|host| !host.is_empty()) {
        check_host(host, &format!("{field}.hostname"), errors);
    }
    let tls = listener.get("tls").filter(|tls| !tls.is_null());
    if matches!(protocol, "HTTP" | "TCP" | "UDP") && tls.is_some() {
        let detail = "tls must not be specified for protocols ['HTTP', 'TCP', 'UDP']";
        errors.forbidden(format!("{field}.tls"), detail);
    }
    let certificates = items_at(listener, "/tls/certificateRefs");
    if certificates.len() > CERTIFICATES_MAX {
        let field = format!("{field}.tls.certificateRefs");
        errors.push(FieldError::too_many(field, certificates.len(), CERTIFICATES_MAX));
    }
    let is_terminated = text_at(listener, "/tls/mode") == "Terminate";
    if is_terminated && certificates.is_empty() && listener.pointer("/tls/options").is_none() {
        let detail = "certificateRefs or options must be specified when mode is Terminate";
        errors.push(FieldError::required(format!("{field}.tls.certificateRefs"), detail));
    }
}

/// A host name, or `*.` and one; no address.
pub(super) fn check_host(host: &str, field: &str, errors: &mut Errors) {
    let name = host.strip_prefix("*.").unwrap_or(host);
    if name.parse::<std::net::IpAddr>().is_ok() {
        errors.invalid(field, &json!(host), "must be a host name, not an address");
    } else if let Err(detail) = check_dns1123_subdomain(name) {
        errors.invalid(field, &json!(host), detail);
    }
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let addresses = items_at(object, "/status/addresses").iter().map(|at| text_at(at, "/value"));
    vec![
        json!(meta::name(object)),
        json!(text_at(object, "/spec/gatewayClassName")),
        json!(addresses.collect::<Vec<_>>().join(",")),
        json!(condition(object, "Programmed")),
        json!(age(object, now)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::strategy;

    fn errors(gateway: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        validate(gateway, &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_gateway_is_completed_and_its_fields_are_known() {
        let mut gateway = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": {"name": "gw", "namespace": "default"},
            "spec": {"gatewayClassName": "edgeorc", "listeners": [
                {"name": "http", "port": 80, "protocol": "HTTP"},
                {"name": "https", "port": 443, "protocol": "HTTPS", "hostname": "*.a.com",
                 "tls": {"certificateRefs": [{"name": "tls"}]}}]},
        });
        strategy::prepare_create(&RESOURCE, &mut gateway);
        let listeners = gateway.pointer("/spec/listeners").unwrap();
        assert_eq!(text_at(listeners, "/0/allowedRoutes/namespaces/from"), "Same");
        assert_eq!(text_at(listeners, "/1/tls/mode"), "Terminate");
        assert_eq!(text_at(listeners, "/1/tls/certificateRefs/0/kind"), "Secret");
        assert_eq!(errors(&gateway), Vec::<String>::new());
        assert_eq!(strategy::decode(&RESOURCE, &mut gateway, None), Ok(vec![]));
    }

    #[test]
    fn what_makes_no_gateway_is_refused_by_its_path() {
        let refused = errors(&json!({"spec": {"gatewayClassName": "", "listeners": [
            {"name": "a", "port": 0, "protocol": "HTTP", "hostname": "10.0.0.1"},
            {"name": "a", "port": 80, "protocol": "HTTP", "tls": {}},
            {"name": "b", "port": 443, "protocol": "HTTPS", "tls": {"mode": "Terminate"}},
        ]}}));
        let fields: Vec<_> = refused.iter().filter_map(|text| text.split(": ").next()).collect();
        assert_eq!(
            fields,
            [
                "spec.gatewayClassName",
                "spec.listeners[0].port",
                "spec.listeners[0].hostname",
                "spec.listeners[1].name",
                "spec.listeners[1].tls",
                "spec.listeners[2].tls.certificateRefs",
            ]
        );
    }
}
