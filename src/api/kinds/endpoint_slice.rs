//! EndpointSlice.

use std::collections::BTreeSet;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::{Errors, FieldError};
use crate::api::json::{int_at, items_at, set_default, set_default_text, str_at, text_at};
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;
use crate::api::{meta, names};

pub(super) const RESOURCE: Resource = Resource {
    group: "discovery.k8s.io",
    version: "v1",
    plural: "endpointslices",
    singular: "endpointslice",
    kind: "EndpointSlice",
    list_kind: "EndpointSliceList",
    description: "A part of the endpoints of a service.",
    short_names: &[],
    categories: &[],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: false,
    has_scale: false,
    has_generation: true,
    subresources: &[],
    columns: &[
        Column::NAME,
        Column::text("AddressType"),
        Column::text("Ports"),
        Column::text("Endpoints"),
        Column::AGE,
    ],
    field_selectors: &[],
    strategy: Strategy {
        default,
        validate,
        validate_update,
        cells,
        ..Strategy::plain(typed::<EndpointSlice>)
    },
};

/// Endpoints of one slice; Kubernetes' figure.
const ENDPOINTS_MAX: usize = 1000;
/// Addresses of one endpoint; Kubernetes' figure.
const ADDRESSES_MAX: usize = 100;
/// Ports of one slice; Kubernetes' figure.
const PORTS_MAX: usize = 20_000;
/// Endpoints listed in a table; the others are counted.
const SHOWN_MAX: usize = 3;

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports = items_at(object, "/ports").iter().filter_map(|port| int_at(port, "/port"));
    let ports: Vec<String> = ports.map(|port| port.to_string()).collect();
    let endpoints = items_at(object, "/endpoints");
    let addresses = endpoints.iter().map(|endpoint| text_at(endpoint, "/addresses/0"));
    let mut listed = addresses.take(SHOWN_MAX).collect::<Vec<_>>().join(",");
    if endpoints.len() > SHOWN_MAX {
        listed.push_str(&format!(" + {} more...", endpoints.len() - SHOWN_MAX));
    }
    let or_unset = |text: String| if text.is_empty() { "<unset>".to_owned() } else { text };
    vec![
        json!(meta::name(object)),
        json!(text_at(object, "/addressType")),
        json!(or_unset(ports.join(","))),
        json!(or_unset(listed)),
        json!(age(object, now)),
    ]
}

fn default(object: &mut Value) {
    for port in object.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        set_default(port, "name", "");
        set_default_text(port, "protocol", "TCP");
    }
}

fn validate(object: &Value, errors: &mut Errors) {
    let kind = object.get("addressType").unwrap_or(&Value::Null);
    if kind.is_null() || kind == "" {
        errors.required("addressType");
    } else {
        errors.one_of("addressType", kind, &["FQDN", "IPv4", "IPv6"]);
    }
    let endpoints = items_at(object, "/endpoints");
    if endpoints.len() > ENDPOINTS_MAX {
        errors.push(FieldError::too_many("endpoints", endpoints.len(), ENDPOINTS_MAX));
        return;
    }
    for (at, endpoint) in endpoints.iter().enumerate() {
        let of =
            Addresses { kind: kind.as_str().unwrap_or_default(), is_of_api: is_of_api(object) };
        validate_endpoint(endpoint, of, at, errors);
    }
    let ports = items_at(object, "/ports");
    if ports.len() > PORTS_MAX {
        errors.push(FieldError::too_many("ports", ports.len(), PORTS_MAX));
        return;
    }
    let mut seen = BTreeSet::new();
    for (at, port) in ports.iter().enumerate() {
        let path = format!("ports[{at}]");
        let name = text_at(port, "/name");
        if !name.is_empty()
            && let Err(rule) = names::check_dns1123_label(name)
        {
            errors.invalid(format!("{path}.name"), &name.into(), rule);
        }
        if !seen.insert(name) {
            errors.duplicate(format!("{path}.name"), &name.into());
        }
        let protocol = port.get("protocol").unwrap_or(&Value::Null);
        errors.one_of(format!("{path}.protocol"), protocol, &["SCTP", "TCP", "UDP"]);
        if let Some(number) = int_at(port, "/port").filter(|n| !(1..=65535).contains(n)) {
            let detail = "must be between 1 and 65535, inclusive";
            errors.invalid(format!("{path}.port"), &number.into(), detail);
        }
    }
}

/// What addresses a slice may have.
#[derive(Debug, Clone, Copy)]
struct Addresses<'a> {
    kind: &'a str,
    is_of_api: bool,
}

/// Whether the endpoints are the API's own: a server that is alone may listen on loopback only.
pub(super) fn is_of_api(object: &Value) -> bool {
    meta::namespace(object) == "default"
        && (meta::name(object) == "kubernetes"
            || meta::label(object, "kubernetes.io/service-name") == Some("kubernetes"))
}

fn validate_endpoint(endpoint: &Value, of: Addresses<'_>, at: usize, errors: &mut Errors) {
    let path = format!("endpoints[{at}]");
    let addresses = items_at(endpoint, "/addresses");
    if addresses.is_empty() {
        errors.push(FieldError::required(
            format!("{path}.addresses"),
            "must contain at least 1 address",
        ));
    }
    if addresses.len() > ADDRESSES_MAX {
        let field = format!("{path}.addresses");
        errors.push(FieldError::too_many(field, addresses.len(), ADDRESSES_MAX));
    }
    for (index, address) in addresses.iter().enumerate().take(ADDRESSES_MAX) {
        let field = format!("{path}.addresses[{index}]");
        let text = address.as_str().unwrap_or_default();
        let ip = text.parse::<IpAddr>();
        match (of.kind, ip) {
            ("IPv4", Ok(ip)) if !ip.is_ipv4() => {
                errors.invalid(field, address, "must be a valid IPv4 address");
            }
            ("IPv6", Ok(ip)) if !ip.is_ipv6() => {
                errors.invalid(field, address, "must be a valid IPv6 address");
            }
            ("IPv4" | "IPv6", Ok(ip)) => {
                if let Some(detail) = special(ip).filter(|_| !of.is_of_api) {
                    errors.invalid(field, address, detail);
                }
            }
            ("IPv4" | "IPv6", Err(_)) => {
                let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
                errors.invalid(field, address, detail);
            }
            ("FQDN", _) => {
                if let Err(rule) = names::check_dns1123_subdomain(text.trim_end_matches('.')) {
                    errors.invalid(field, address, rule);
                }
            }
            _ => {}
        }
    }
    if let Some(hostname) = str_at(endpoint, "/hostname")
        && let Err(rule) = names::check_dns1123_label(hostname)
    {
        errors.invalid(format!("{path}.hostname"), &hostname.into(), rule);
    }
    if let Some(node) = str_at(endpoint, "/nodeName")
        && let Err(rule) = names::check_dns1123_subdomain(node)
    {
        errors.invalid(format!("{path}.nodeName"), &node.into(), rule);
    }
}

/// Why an address cannot be an endpoint's.
pub(super) fn special(ip: IpAddr) -> Option<&'static str> {
    let (is_link_local, is_multicast) = match ip {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.is_multicast()),
        IpAddr::V6(ip) => (ip.is_unicast_link_local(), ip.is_multicast()),
    };
    if ip.is_unspecified() {
        Some("may not be unspecified (0.0.0.0 or ::)")
    } else if ip.is_loopback() {
        Some("may not be in the loopback range (127.0.0.0/8, ::1/128)")
    } else if is_link_local {
        Some("may not be in the link-local range (169.254.0.0/16, fe80::/10)")
    } else if is_multicast {
        Some("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")
    } else {
        None
    }
}

fn validate_update(old: &Value, new: &Value, errors: &mut Errors) {
    if old.get("addressType") != new.get("addressType") {
        let kind = new.get("addressType").unwrap_or(&Value::Null);
        errors.invalid("addressType", kind, "field is immutable");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::strategy;

    fn refusals(slice: Value) -> Vec<String> {
        let mut object = slice;
        object["metadata"] = json!({"name": "s", "namespace": "default"});
        strategy::prepare_create(&RESOURCE, &mut object);
        strategy::validate_create(&RESOURCE, &object).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_slice_is_of_one_family_and_its_addresses_are_of_others() {
        let of = |kind: &str, ip: &str| {
            refusals(json!({"addressType": kind, "endpoints": [{"addresses": [ip]}]}))
        };
        assert!(of("IPv4", "10.42.0.1").is_empty());
        assert!(of("IPv6", "fd00::1").is_empty());
        assert!(of("FQDN", "a.example.org").is_empty());
        for (kind, ip) in [
            ("IPv4", "fd00::1"),
            ("IPv6", "10.42.0.1"),
            ("IPv4", "x"),
            ("IPv4", "127.0.0.1"),
            ("IPv4", "169.254.169.254"),
            ("IPv6", "::1"),
            ("FQDN", "A_b"),
            ("X", "10.42.0.1"),
        ] {
            assert_eq!(of(kind, ip).len(), 1, "{kind} {ip}");
        }
        assert!(
            refusals(json!({"addressType": "IPv4", "endpoints": [{}]}))[0].contains("at least")
        );
        let many = vec![json!({"addresses": ["10.42.0.1"]}); ENDPOINTS_MAX + 1];
        let refused = refusals(json!({"addressType": "IPv4", "endpoints": many}));
        assert!(refused[0].contains("must have at most 1000 items"), "{refused:?}");
    }

    #[test]
    fn the_family_of_a_slice_does_not_change() {
        let old = json!({"addressType": "IPv4"});
        let mut errors = Errors::default();
        validate_update(&old, &json!({"addressType": "IPv6"}), &mut errors);
        assert_eq!(errors.into_vec().len(), 1);
    }
}
