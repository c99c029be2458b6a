//! Service addresses and node ports: unique by keys written in the same transaction as the Service.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::api::status::Status;
use crate::api::{FieldError, Resource, meta};
use crate::apiserver::context::ContextInner;
use crate::apiserver::error::ApiError;
use crate::store::Side;

/// First address of the Service range 10.43.0.0/16.
const SERVICE_BASE: u32 = u32::from_be_bytes([10, 43, 0, 0]);
/// Addresses in the range.
const SERVICE_COUNT: u32 = 1 << 16;
/// Low addresses kept for people who choose their own; Kubernetes' band for a /16.
const SERVICE_STATIC: u32 = 256;
/// First and one past the last node port.
const NODE_PORTS: std::ops::Range<u16> = 30_000..32_768;
/// How often a random choice is repeated when it was taken.
pub(super) const TRIES_MAX: usize = 64;

/// Chooses what `service` leaves open and returns the keys that make it unique. `old` is the
/// Service as stored; what it already holds is kept, what it no longer holds is released.
pub(super) fn claims(
    context: &ContextInner,
    resource: &Resource,
    old: Option<&Value>,
    service: &mut Value,
) -> Result<Vec<Side>, ApiError> {
    if resource.plural != "services" || !resource.group.is_empty() {
        return Ok(Vec::new());
    }
    choose_address(context, service)?;
    choose_ports(context, service)?;
    let before = old.map(held).unwrap_or_default();
    let after = held(service);
    let claims = after.iter().filter(|name| !before.contains(name)).cloned().map(Side::Claim);
    let releases = before.iter().filter(|name| !after.contains(name)).cloned().map(Side::Release);
    Ok(claims.chain(releases).collect())
}

/// The keys a deleted Service gives back.
pub(super) fn releases(resource: &Resource, object: &Value) -> Vec<Side> {
    if resource.plural != "services" || !resource.group.is_empty() {
        return Vec::new();
    }
    held(object).into_iter().map(Side::Release).collect()
}

/// Why a create failed for good: the address or port that the client itself chose is taken.
/// `None` when the server chose it and may choose another.
pub(super) fn refuse(resource: &Resource, sent: &Value, taken: &str) -> Option<ApiError> {
    let is_chosen = held(sent).iter().any(|name| name == taken);
    let (kind, value) = taken.rsplit_once('/')?;
    let field =
        if kind.ends_with("nodeport") { "spec.ports[0].nodePort" } else { "spec.clusterIPs[0]" };
    let error = FieldError::invalid(field, &json!(value), "provided value is already allocated");
    is_chosen.then(|| Status::invalid(resource, meta::name(sent), &[error]).into())
}

/// Names of everything unique that the Service holds.
fn held(service: &Value) -> Vec<String> {
    let mut names = Vec::new();
    if let Some(address) = service.pointer("/spec/clusterIP").and_then(Value::as_str)
        && !matches!(address, "" | "None")
    {
        names.push(format!("clusterip/{address}"));
    }
    for port in ports(service) {
        if let Some(node_port) = port.get("nodePort").and_then(Value::as_u64).filter(|p| *p > 0) {
            let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or("TCP");
            names.push(format!("{}-nodeport/{node_port}", protocol.to_lowercase()));
        }
    }
    names
}

fn ports(service: &Value) -> &[Value] {
    service.pointer("/spec/ports").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text<'a>(service: &'a Value, path: &str) -> &'a str {
    service.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

fn choose_address(context: &ContextInner, service: &mut Value) -> Result<(), ApiError> {
    let is_external_name = text(service, "/spec/type") == "ExternalName";
    let chosen = text(service, "/spec/clusterIP").to_owned();
    let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    if is_external_name {
        spec.shift_remove("clusterIP");
        spec.shift_remove("clusterIPs");
        return Ok(());
    }
    let address = if chosen.is_empty() {
        let free = u64::from(SERVICE_COUNT - SERVICE_STATIC - 1);
        let offset = SERVICE_STATIC + u32::try_from(context.rng.below(free)).unwrap_or(0);
        Ipv4Addr::from(SERVICE_BASE + offset).to_string()
    } else {
        if chosen != "None" && !is_in_range(&chosen) {
            let detail = "must be an address of 10.43.0.0/16, or None";
            let error = FieldError::invalid("spec.clusterIPs", &json!([chosen]), detail);
            return Err(Status::unprocessable(error.to_string()).into());
        }
        chosen
    };
    spec.insert("clusterIP".to_owned(), json!(address));
    spec.insert("clusterIPs".to_owned(), json!([address]));
    spec.entry("ipFamilies").or_insert_with(|| json!(["IPv4"]));
    spec.entry("ipFamilyPolicy").or_insert_with(|| json!("SingleStack"));
    Ok(())
}

fn is_in_range(address: &str) -> bool {
    address
        .parse::<Ipv4Addr>()
        .is_ok_and(|ip| (SERVICE_BASE..SERVICE_BASE + SERVICE_COUNT).contains(&u32::from(ip)))
}

fn choose_ports(context: &ContextInner, service: &mut Value) -> Result<(), ApiError> {
    let has_node_ports = matches!(text(service, "/spec/type"), "NodePort" | "LoadBalancer");
    let list = service.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
    for port in list.into_iter().flatten().filter_map(Value::as_object_mut) {
        if !has_node_ports {
            port.shift_remove("nodePort");
            continue;
        }
        match port.get("nodePort").and_then(Value::as_u64).unwrap_or(0) {
            0 => {
                let count = u64::from(NODE_PORTS.end - NODE_PORTS.start);
                let chosen = u64::from(NODE_PORTS.start) + context.rng.below(count);
                port.insert("nodePort".to_owned(), json!(chosen));
            }
            sent if !u16::try_from(sent).is_ok_and(|sent| NODE_PORTS.contains(&sent)) => {
                let detail = "provided port is not in the valid range. The range of valid ports is 30000-32767";
                let error = FieldError::invalid("spec.ports[0].nodePort", &json!(sent), detail);
                return Err(Status::unprocessable(error.to_string()).into());
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_holds_its_address_and_its_ports() {
        let service = json!({"spec": {"clusterIP": "10.43.1.1", "ports": [
            {"nodePort": 30001}, {"nodePort": 30001, "protocol": "UDP"}, {"port": 80}
        ]}});
        assert_eq!(
            held(&service),
            ["clusterip/10.43.1.1", "tcp-nodeport/30001", "udp-nodeport/30001"]
        );
        assert!(held(&json!({"spec": {"clusterIP": "None"}})).is_empty());
    }

    #[test]
    fn only_addresses_of_the_range_may_be_chosen() {
        assert!(is_in_range("10.43.0.1") && is_in_range("10.43.255.255"));
        assert!(!is_in_range("10.44.0.0") && !is_in_range("x"));
    }
}
