//! Families and cluster addresses of a Service.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::api::FieldError;
use crate::apiserver::allocate::{Refused, Source, address_key, text};
use crate::config::ServiceCidrs;

/// The addresses written in a Service; `None` of a headless one among them.
pub(super) fn of(service: &Value) -> Vec<&str> {
    let listed = service.pointer("/spec/clusterIPs").and_then(Value::as_array);
    let listed: Vec<&str> = listed.into_iter().flatten().filter_map(Value::as_str).collect();
    if !listed.is_empty() {
        return listed;
    }
    Some(text(service, "/spec/clusterIP")).filter(|ip| !ip.is_empty()).into_iter().collect()
}

/// Settles the families, and chooses an address of each that has none. An address that the Service
/// held `before` is not asked about again: its range may have been another.
pub(super) fn choose(
    source: &Source<'_>,
    before: &[String],
    service: &mut Value,
) -> Result<(), Refused> {
    let addresses: Vec<String> = of(service).into_iter().map(str::to_owned).collect();
    let Some(spec) = service.get_mut("spec") else { return Ok(()) };
    if text(spec, "/type") == "ExternalName" {
        for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            crate::api::json::remove(spec, key);
        }
        return Ok(());
    }
    let families = families(source.cidrs, &addresses, spec)?;
    let is_headless = addresses.first().is_some_and(|first| first == "None");
    let mut chosen = Vec::new();
    if is_headless {
        chosen.push("None".to_owned());
    } else {
        for (at, family) in families.iter().enumerate() {
            let address = match addresses.get(at) {
                Some(sent) if before.contains(&address_key(sent)) => sent.clone(),
                Some(sent) => checked(source.cidrs, family, sent, &addresses)?,
                None => free(source, family)?,
            };
            chosen.push(address);
        }
    }
    let set = |spec: &mut Value, key: &str, value: Value| crate::api::json::set(spec, key, value);
    set(spec, "clusterIP", json!(chosen.first()));
    set(spec, "clusterIPs", json!(chosen));
    set(spec, "ipFamilies", json!(families));
    Ok(())
}

/// The families of the Service, the first one first; sets the policy.
fn families(
    cidrs: &ServiceCidrs,
    addresses: &[String],
    spec: &mut Value,
) -> Result<Vec<String>, FieldError> {
    let list = spec.get("ipFamilies").and_then(Value::as_array);
    let mut families: Vec<String> =
        list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    for ip in addresses.iter().skip(families.len()).filter_map(|ip| ip.parse::<IpAddr>().ok()) {
        families.push(if ip.is_ipv6() { "IPv6" } else { "IPv4" }.to_owned());
    }
    let is_headless = addresses.first().is_some_and(|first| first == "None");
    let selector = spec.get("selector").and_then(Value::as_object);
    let is_bare = is_headless && selector.is_none_or(serde_json::Map::is_empty);
    let policy = Some(text(spec, "/ipFamilyPolicy")).filter(|policy| !policy.is_empty());
    // Endpoints that users write may be of any family, whatever the cluster has.
    let default_policy = if is_bare { "RequireDualStack" } else { "SingleStack" };
    let policy = policy.unwrap_or(default_policy).to_owned();
    if !is_bare {
        for (at, family) in families.iter().enumerate() {
            if cidrs.of_family(family).is_none() {
                let path = format!("spec.ipFamilies[{at}]");
                let detail = "not configured on this cluster";
                return Err(FieldError::invalid(path, &json!(family), detail));
            }
        }
        if policy == "RequireDualStack" && cidrs.secondary.is_none() {
            let detail = "this cluster is not configured for dual-stack services";
            return Err(FieldError::invalid("spec.ipFamilyPolicy", &json!(policy), detail));
        }
    }
    if families.is_empty() {
        families.push(cidrs.primary.family().to_owned());
    }
    let wants_both = policy != "SingleStack" && (is_bare || cidrs.secondary.is_some());
    if wants_both && families.len() == 1 {
        let other = if families.first().is_some_and(|one| one == "IPv4") { "IPv6" } else { "IPv4" };
        families.push(other.to_owned());
    }
    crate::api::json::set(spec, "ipFamilyPolicy", policy);
    Ok(families)
}

/// An address that the client chose, if it can be had.
fn checked(
    cidrs: &ServiceCidrs,
    family: &str,
    sent: &str,
    all: &[String],
) -> Result<String, FieldError> {
    let range = cidrs.of_family(family);
    let ip = sent.parse::<IpAddr>().ok();
    match (ip, range) {
        (Some(ip), Some(range)) if range.contains(ip) => Ok(ip.to_string()),
        _ => {
            let range = range.map(ToString::to_string).unwrap_or_default();
            let detail = format!(
                "failed to allocate IP {sent}: the provided IP ({sent}) is not in the valid range. \
                 The range of valid IPs is {range}"
            );
            Err(FieldError::invalid("spec.clusterIPs", &json!(all), &detail))
        }
    }
}

/// An address of the family that is free, as far as is known.
fn free(source: &Source<'_>, family: &str) -> Result<String, Refused> {
    let range = source.cidrs.of_family(family).ok_or(Refused::Full("serviceIP"))?;
    let (all, from) = (range.offsets(), range.dynamic_from());
    let is_free = |offset| !source.taken.contains(&address_key(range.address(offset)));
    // The first address is the API's own, whether or not its Service is there yet.
    let found =
        source.pick(from.max(2)..all.end, 2..from, is_free).ok_or(Refused::Full("serviceIP"))?;
    Ok(range.address(found).to_string())
}
