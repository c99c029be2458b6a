//! What a Service must be like.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::api::field_error::Errors;
use crate::api::json::{entries_at, int_at, is_true, items_at, str_at, text_at};
use crate::api::kinds::endpoint_slice::special;
use crate::api::kinds::service::{has_health_port, has_node_ports, is_reached_from_outside};
use crate::api::names;

/// Kinds of Service.
const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const FAMILIES: &[&str] = &["IPv4", "IPv6"];
const FAMILY_POLICIES: &[&str] = &["PreferDualStack", "RequireDualStack", "SingleStack"];
const TRAFFIC_POLICIES: &[&str] = &["Cluster", "Local"];
const DISTRIBUTIONS: &[&str] = &["PreferClose", "PreferSameNode", "PreferSameZone"];
/// Longest time that a client keeps its endpoint: a day.
const AFFINITY_SECONDS_MAX: i64 = 86_400;
/// Ranges and addresses in one list; beyond what anyone writes by hand.
const LIST_MAX: usize = 256;

/// Checks a Service on its own.
pub(super) fn validate(object: &Value, errors: &mut Errors) {
    let Some(spec) = object.get("spec") else { return errors.required("spec") };
    errors.one_of("spec.type", spec.get("type").unwrap_or(&Value::Null), TYPES);
    validate_type(spec, errors);
    validate_ports(spec, errors);
    validate_affinity(spec, errors);
    validate_addresses(spec, errors);
    validate_traffic(spec, errors);
    validate_outside(spec, errors);
    for (key, value) in entries_at(spec, "/selector") {
        if let Err(rule) = names::check_qualified_name(key) {
            errors.invalid("spec.selector", &key.as_str().into(), rule);
        }
        if let Err(rule) = names::check_label_value(value.as_str().unwrap_or("")) {
            errors.invalid("spec.selector", value, rule);
        }
    }
    validate_status(object, errors);
}

fn is_headless(spec: &Value) -> bool {
    text_at(spec, "/clusterIP") == "None"
}

fn validate_type(spec: &Value, errors: &mut Errors) {
    match text_at(spec, "/type") {
        "ExternalName" => {
            for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                if !crate::api::json::is_empty(spec.get(key)) {
                    let detail = "may not be set for ExternalName services";
                    errors.forbidden(format!("spec.{key}"), detail);
                }
            }
            // One that ends with a dot is whole already.
            let name = text_at(spec, "/externalName");
            let bare = name.strip_suffix('.').unwrap_or(name);
            if bare.is_empty() {
                errors.required("spec.externalName");
            } else if let Err(rule) = names::check_dns1123_subdomain(bare) {
                errors.invalid("spec.externalName", &name.into(), rule);
            }
        }
        kind @ ("NodePort" | "LoadBalancer") if is_headless(spec) => {
            let detail = format!("may not be set to 'None' for {kind} services");
            errors.invalid("spec.clusterIPs[0]", &"None".into(), &detail);
        }
        _ => {}
    }
}

fn validate_ports(spec: &Value, errors: &mut Errors) {
    let ports = items_at(spec, "/ports");
    let needs_ports = !is_headless(spec) && text_at(spec, "/type") != "ExternalName";
    if ports.is_empty() && needs_ports {
        errors.required("spec.ports");
    }
    if ports.len() > LIST_MAX {
        errors.push(crate::api::FieldError::too_many("spec.ports", ports.len(), LIST_MAX));
        return;
    }
    let (mut port_names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (at, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{at}]");
        validate_port(port, &path, errors);
        let name = text_at(port, "/name");
        if name.is_empty() {
            if ports.len() > 1 {
                errors.required(format!("{path}.name"));
            }
        } else if !port_names.insert(name) {
            errors.duplicate(format!("{path}.name"), &name.into());
        }
        let number = int_at(port, "/port").unwrap_or(0);
        let protocol = text_at(port, "/protocol");
        if !numbers.insert((number, protocol)) {
            let twice = json!({"port": number, "protocol": protocol});
            errors.duplicate(path.clone(), &twice);
        }
        if int_at(port, "/nodePort").unwrap_or(0) != 0 && !has_node_ports(spec) {
            let kind = text_at(spec, "/type");
            let detail = format!("may not be used when `type` is '{kind}'");
            errors.forbidden(format!("{path}.nodePort"), &detail);
        }
    }
}

fn validate_port(port: &Value, path: &str, errors: &mut Errors) {
    const RANGE: &str = "must be between 1 and 65535, inclusive";
    let is_port = |value: &Value| value.as_i64().is_some_and(|n| (1..=65535).contains(&n));
    let name = text_at(port, "/name");
    if !name.is_empty()
        && let Err(rule) = names::check_dns1123_label(name)
    {
        errors.invalid(format!("{path}.name"), &name.into(), rule);
    }
    let number = port.get("port").unwrap_or(&Value::Null);
    if !is_port(number) {
        errors.invalid(format!("{path}.port"), number, RANGE);
    }
    let protocol = port.get("protocol").unwrap_or(&Value::Null);
    errors.one_of(format!("{path}.protocol"), protocol, &["SCTP", "TCP", "UDP"]);
    match port.get("targetPort") {
        Some(Value::String(name)) => {
            if let Err(rule) = names::check_port_name(name) {
                errors.invalid(format!("{path}.targetPort"), &name.as_str().into(), rule);
            }
        }
        Some(number) if !is_port(number) => {
            errors.invalid(format!("{path}.targetPort"), number, RANGE);
        }
        _ => {}
    }
    if let Some(app) = str_at(port, "/appProtocol")
        && let Err(rule) = names::check_qualified_name(app)
    {
        errors.invalid(format!("{path}.appProtocol"), &app.into(), rule);
    }
}

fn validate_affinity(spec: &Value, errors: &mut Errors) {
    let affinity = spec.get("sessionAffinity").unwrap_or(&Value::Null);
    errors.one_of("spec.sessionAffinity", affinity, &["ClientIP", "None"]);
    if affinity == "ClientIP" {
        let path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        let seconds = spec.pointer("/sessionAffinityConfig/clientIP/timeoutSeconds");
        let seconds = seconds.unwrap_or(&Value::Null);
        if !seconds.as_i64().is_some_and(|n| (1..=AFFINITY_SECONDS_MAX).contains(&n)) {
            let detail =
                format!("must be greater than 0 and less than or equal to {AFFINITY_SECONDS_MAX}");
            errors.invalid(path, seconds, &detail);
        }
    }
}

fn validate_addresses(spec: &Value, errors: &mut Errors) {
    if text_at(spec, "/type") == "ExternalName" {
        return;
    }
    let ips = items_at(spec, "/clusterIPs");
    let families = items_at(spec, "/ipFamilies");
    let family_of = |text: &str| -> Option<&'static str> {
        let ip: IpAddr = text.parse().ok()?;
        Some(if ip.is_ipv6() { "IPv6" } else { "IPv4" })
    };
    if ips.len() > 2 {
        errors.invalid("spec.clusterIPs", &json!(ips), "may only hold up to 2 values");
    }
    let first = text_at(spec, "/clusterIP");
    if let Some(listed) = ips.first().and_then(Value::as_str)
        && listed != first
    {
        errors.invalid("spec.clusterIPs[0]", &listed.into(), "must match `clusterIP`");
    }
    let mut seen = BTreeSet::new();
    for (at, ip) in ips.iter().enumerate() {
        let path = format!("spec.clusterIPs[{at}]");
        let text = ip.as_str().unwrap_or_default();
        if text == "None" {
            if ips.len() > 1 {
                errors.invalid(path, ip, "`None` must be used as the only value");
            }
            continue;
        }
        let Some(family) = family_of(text) else {
            errors.invalid(
                path,
                ip,
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            );
            continue;
        };
        if !seen.insert(family) {
            let detail = "may specify no more than one IP for each IP family";
            errors.invalid("spec.clusterIPs", &json!(ips), detail);
        }
        if families.get(at).and_then(Value::as_str).is_some_and(|wanted| wanted != family) {
            let detail = format!("expected an {family} value as indicated by `ipFamilies[{at}]`");
            errors.invalid(path, ip, &detail);
        }
    }
    validate_families(spec, ips.len().max(families.len()), errors);
}

fn validate_families(spec: &Value, count: usize, errors: &mut Errors) {
    let families = items_at(spec, "/ipFamilies");
    if families.len() > 2 {
        errors.invalid("spec.ipFamilies", &json!(families), "may only hold up to 2 values");
    }
    let mut seen = BTreeSet::new();
    for (at, family) in families.iter().enumerate() {
        let path = format!("spec.ipFamilies[{at}]");
        errors.one_of(path.clone(), family, FAMILIES);
        if !seen.insert(family.as_str()) {
            errors.duplicate(path, family);
        }
    }
    let policy = spec.get("ipFamilyPolicy").filter(|policy| !policy.is_null());
    if let Some(policy) = policy {
        errors.one_of("spec.ipFamilyPolicy", policy, FAMILY_POLICIES);
    }
    let is_single = policy.is_none_or(|policy| policy == "SingleStack");
    if count > 1 && is_single && !(is_headless(spec) && policy.is_none()) {
        let detail = "must be RequireDualStack or PreferDualStack when multiple cluster IPs or \
            ipFamilies are specified";
        errors.invalid("spec.ipFamilyPolicy", policy.unwrap_or(&Value::Null), detail);
    }
}

fn validate_traffic(spec: &Value, errors: &mut Errors) {
    if text_at(spec, "/type") != "ExternalName" {
        let policy = spec.get("internalTrafficPolicy").unwrap_or(&Value::Null);
        errors.one_of("spec.internalTrafficPolicy", policy, TRAFFIC_POLICIES);
    }
    let external = spec.get("externalTrafficPolicy").filter(|policy| !policy.is_null());
    match external {
        Some(policy) if is_reached_from_outside(spec) => {
            errors.one_of("spec.externalTrafficPolicy", policy, TRAFFIC_POLICIES);
        }
        Some(policy) if policy != "" => errors.forbidden(
            "spec.externalTrafficPolicy",
            "may only be set for externally-accessible services",
        ),
        _ => {}
    }
    if let Some(distribution) = spec.get("trafficDistribution").filter(|value| !value.is_null()) {
        errors.one_of("spec.trafficDistribution", distribution, DISTRIBUTIONS);
    }
    if let Some(port) = int_at(spec, "/healthCheckNodePort").filter(|port| *port != 0) {
        if !has_health_port(spec) {
            let detail = "may only be set when `type` is 'LoadBalancer' and \
                `externalTrafficPolicy` is 'Local'";
            errors.forbidden("spec.healthCheckNodePort", detail);
        } else if !(1..=65535).contains(&port) {
            let detail = "must be between 1 and 65535, inclusive";
            errors.invalid("spec.healthCheckNodePort", &port.into(), detail);
        }
    }
}

fn validate_outside(spec: &Value, errors: &mut Errors) {
    let is_balanced = text_at(spec, "/type") == "LoadBalancer";
    let only_balanced = "may only be used when `type` is 'LoadBalancer'";
    for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
        if !is_balanced && spec.get(key).is_some_and(|value| !value.is_null()) {
            errors.forbidden(format!("spec.{key}"), only_balanced);
        }
    }
    if let Some(class) = str_at(spec, "/loadBalancerClass")
        && let Err(rule) = names::check_qualified_name(class)
    {
        errors.invalid("spec.loadBalancerClass", &class.into(), rule);
    }
    let ranges = items_at(spec, "/loadBalancerSourceRanges");
    if !ranges.is_empty() && !is_balanced {
        errors.forbidden("spec.loadBalancerSourceRanges", only_balanced);
    }
    for (at, range) in ranges.iter().enumerate().take(LIST_MAX + 1) {
        let text = range.as_str().unwrap_or_default().trim();
        if !is_cidr(text) {
            let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            errors.invalid(format!("spec.loadBalancerSourceRanges[{at}]"), range, detail);
        }
    }
    let external = items_at(spec, "/externalIPs");
    for (at, ip) in external.iter().enumerate().take(LIST_MAX + 1) {
        let path = format!("spec.externalIPs[{at}]");
        match ip.as_str().unwrap_or_default().parse::<IpAddr>() {
            Ok(parsed) => {
                if let Some(detail) = special(parsed) {
                    errors.invalid(path, ip, detail);
                }
            }
            Err(_) => errors.invalid(
                path,
                ip,
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ),
        }
    }
    for (key, count) in
        [("loadBalancerSourceRanges", ranges.len()), ("externalIPs", external.len())]
    {
        if count > LIST_MAX {
            let path = format!("spec.{key}");
            errors.push(crate::api::FieldError::too_many(path, count, LIST_MAX));
        }
    }
}

pub(super) fn is_cidr(text: &str) -> bool {
    let Some((base, prefix)) = text.split_once('/') else { return false };
    let Ok(base) = base.parse::<IpAddr>() else { return false };
    prefix.parse::<u8>().is_ok_and(|prefix| prefix <= if base.is_ipv4() { 32 } else { 128 })
}

fn validate_status(object: &Value, errors: &mut Errors) {
    let addresses = items_at(object, "/status/loadBalancer/ingress");
    let root = "status.loadBalancer.ingress";
    for (at, address) in addresses.iter().enumerate() {
        let (ip, hostname) = (text_at(address, "/ip"), text_at(address, "/hostname"));
        if !ip.is_empty() && ip.parse::<IpAddr>().is_err() {
            let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            errors.invalid(format!("{root}[{at}].ip"), &ip.into(), detail);
        }
        let mode = str_at(address, "/ipMode").filter(|mode| !mode.is_empty());
        if let Some(mode) = mode {
            if ip.is_empty() {
                let detail = "may not be specified when `ip` is not set";
                errors.forbidden(format!("{root}[{at}].ipMode"), detail);
            }
            errors.one_of(format!("{root}[{at}].ipMode"), &mode.into(), &["Proxy", "VIP"]);
        }
        if !hostname.is_empty() {
            if hostname.parse::<IpAddr>().is_ok() {
                let detail = "must be a DNS name, not an IP address";
                errors.invalid(format!("{root}[{at}].hostname"), &hostname.into(), detail);
            } else if let Err(rule) = names::check_dns1123_subdomain(hostname) {
                errors.invalid(format!("{root}[{at}].hostname"), &hostname.into(), rule);
            }
        }
    }
}

/// Addresses are a Service's for its life; only an ExternalName has none. The second one may come
/// and go.
pub(super) fn validate_update(old: &Value, new: &Value, errors: &mut Errors) {
    let (Some(old), Some(new)) = (old.get("spec"), new.get("spec")) else { return };
    let is_external = |spec: &Value| text_at(spec, "/type") == "ExternalName";
    if is_external(old) || is_external(new) {
        return;
    }
    let once = "may not change once set";
    for at in 0..2 {
        let had = text_at(old, &format!("/clusterIPs/{at}"));
        let had = if at == 0 && had.is_empty() { text_at(old, "/clusterIP") } else { had };
        let has = text_at(new, &format!("/clusterIPs/{at}"));
        let has = if at == 0 && has.is_empty() { text_at(new, "/clusterIP") } else { has };
        if !had.is_empty() && has != had && (at == 0 || !has.is_empty()) {
            errors.invalid(format!("spec.clusterIPs[{at}]"), &json!([has]), once);
        }
        let pointer = format!("/ipFamilies/{at}");
        let (had, has) = (text_at(old, &pointer), text_at(new, &pointer));
        if !had.is_empty() && has != had && (at == 0 || !has.is_empty()) {
            errors.invalid(format!("spec.ipFamilies[{at}]"), &json!([has]), once);
        }
    }
    let is_balanced = |spec: &Value| text_at(spec, "/type") == "LoadBalancer";
    if is_balanced(old) && is_balanced(new) {
        let class = new.get("loadBalancerClass");
        if old.get("loadBalancerClass") != class {
            errors.invalid("spec.loadBalancerClass", class.unwrap_or(&Value::Null), once);
        }
    }
    if has_health_port(old) && has_health_port(new) {
        let (had, has) = (int_at(old, "/healthCheckNodePort"), int_at(new, "/healthCheckNodePort"));
        if had.unwrap_or(0) != 0 && had != has {
            errors.invalid("spec.healthCheckNodePort", &json!(has), "field is immutable");
        }
    }
}

/// What is taken and has no effect, or not the one that is hoped for.
pub(super) fn warnings(object: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    let Some(spec) = object.get("spec") else { return warnings };
    if !text_at(spec, "/loadBalancerIP").is_empty() {
        warnings.push("spec.loadBalancerIP is deprecated and has no effect".to_owned());
    }
    if is_headless(spec) && text_at(spec, "/sessionAffinity") == "ClientIP" {
        warnings.push(
            "spec.SessionAffinity is ignored for headless services: see \
             https://kubernetes.io/docs/concepts/services-networking/service/#headless-services"
                .to_owned(),
        );
    }
    if items_at(spec, "/ports").iter().any(|port| text_at(port, "/protocol") == "SCTP") {
        warnings.push("spec.ports: SCTP is kept and not served".to_owned());
    }
    if is_true(spec, "/publishNotReadyAddresses") && text_at(spec, "/type") == "ExternalName" {
        warnings.push("spec.publishNotReadyAddresses is ignored for ExternalName services".into());
    }
    warnings
}
