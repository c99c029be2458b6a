//! Service addresses and node ports: unique by keys written in the same transaction as the Service.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::api::status::Status;
use crate::api::{FieldError, Resource};
use crate::apiserver::error::ApiError;
use crate::rt::Rng;
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
    rng: &Rng,
    resource: &Resource,
    old: Option<&Value>,
    service: &mut Value,
) -> Result<Vec<Side>, ApiError> {
    if resource.plural != "services" || !resource.group.is_empty() {
        return Ok(Vec::new());
    }
    choose_address(rng, service)?;
    choose_ports(rng, service)?;
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

/// What an object holds as the client wrote it, before the server chose the rest.
pub(super) fn held_by(resource: &Resource, object: &Value) -> Vec<String> {
    if resource.plural != "services" || !resource.group.is_empty() {
        return Vec::new();
    }
    held(object)
}

/// Why a write failed for good: the address or port that the client itself chose is `taken`.
/// `None` when it is not among what the client `chose`: the server may choose another.
pub(super) fn refuse(
    resource: &Resource,
    name: &str,
    chose: &[String],
    taken: &str,
) -> Option<ApiError> {
    if !chose.iter().any(|chosen| chosen == taken) {
        return None;
    }
    let (kind, value) = taken.rsplit_once('/')?;
    let field =
        if kind.ends_with("nodeport") { "spec.ports[0].nodePort" } else { "spec.clusterIPs[0]" };
    let error = FieldError::invalid(field, &json!(value), "provided value is already allocated");
    Some(Status::invalid(resource, name, &[error]).into())
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
            names.push(format!("{}-nodeport/{node_port}", protocol(port).to_lowercase()));
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

fn choose_address(rng: &Rng, service: &mut Value) -> Result<(), ApiError> {
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
        let offset = SERVICE_STATIC + u32::try_from(rng.below(free)).unwrap_or(0);
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

/// Gives every port that needs one a node port that no other port of its protocol has.
fn choose_ports(rng: &Rng, service: &mut Value) -> Result<(), ApiError> {
    let has_node_ports = matches!(text(service, "/spec/type"), "NodePort" | "LoadBalancer");
    let list = service.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
    let Some(list) = list else { return Ok(()) };
    let mut used = BTreeSet::new();
    for (at, port) in list.iter_mut().enumerate() {
        let protocol = protocol(port).to_owned();
        let Some(fields) = port.as_object_mut() else { continue };
        if !has_node_ports {
            fields.shift_remove("nodePort");
            continue;
        }
        let sent = fields.get("nodePort").and_then(Value::as_u64).filter(|sent| *sent > 0);
        let Some(sent) = sent else { continue };
        let field = format!("spec.ports[{at}].nodePort");
        let error = if !u16::try_from(sent).is_ok_and(|sent| NODE_PORTS.contains(&sent)) {
            let detail =
                "provided port is not in the valid range. The range of valid ports is 30000-32767";
            FieldError::invalid(field, &json!(sent), detail)
        } else if !used.insert((protocol, sent)) {
            FieldError::duplicate(field, &json!(sent))
        } else {
            continue;
        };
        return Err(Status::unprocessable(error.to_string()).into());
    }
    for port in list.iter_mut().filter(|_| has_node_ports) {
        let protocol = protocol(port).to_owned();
        let Some(fields) = port.as_object_mut() else { continue };
        if fields.get("nodePort").and_then(Value::as_u64).unwrap_or(0) > 0 {
            continue;
        }
        let chosen = free_port(rng, |port| !used.contains(&(protocol.clone(), port)));
        let full = || Status::internal("no free node port is left");
        let chosen = chosen.ok_or_else(full)?;
        used.insert((protocol, chosen));
        fields.insert("nodePort".to_owned(), json!(chosen));
    }
    Ok(())
}

/// A node port chosen at random among those that are free.
fn free_port(rng: &Rng, is_free: impl Fn(u64) -> bool) -> Option<u64> {
    let (first, end) = (u64::from(NODE_PORTS.start), u64::from(NODE_PORTS.end));
    let begin = first + rng.below(end - first);
    (begin..end).chain(first..begin).find(|port| is_free(*port))
}

fn protocol(port: &Value) -> &str {
    port.get("protocol").and_then(Value::as_str).unwrap_or("TCP")
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

    #[test]
    fn ports_of_one_service_never_share_a_node_port() {
        for seed in 0..20 {
            let ports: Vec<Value> = (0..200).map(|n| json!({"port": n + 1})).collect();
            let mut service = json!({"spec": {"type": "NodePort", "ports": ports}});
            choose_ports(&Rng::seeded(seed), &mut service).unwrap();
            let names: BTreeSet<String> = held(&service).into_iter().collect();
            assert_eq!(names.len(), 200, "seed {seed}");
        }
    }

    #[test]
    fn a_node_port_given_twice_is_refused_but_protocols_do_not_clash() {
        let service = |second: Value| {
            json!({"spec": {"type": "NodePort", "ports": [
                {"port": 1, "nodePort": 30001, "protocol": "TCP"}, second,
            ]}})
        };
        let rng = Rng::seeded(1);
        let mut twice = service(json!({"port": 2, "nodePort": 30001}));
        let refused = choose_ports(&rng, &mut twice).unwrap_err().0;
        assert_eq!(refused.code, 422);
        assert!(refused.message.contains("spec.ports[1].nodePort: Duplicate"), "{refused}");
        let mut both = service(json!({"port": 1, "nodePort": 30001, "protocol": "UDP"}));
        choose_ports(&rng, &mut both).unwrap();
    }

    #[test]
    fn only_what_the_client_chose_is_refused_for_good() {
        let services = crate::api::find("", "v1", "services").unwrap();
        let sent = json!({"spec": {"type": "NodePort", "ports": [{"port": 1, "nodePort": 30001}]}});
        let chose = held_by(services, &sent);
        let refused = refuse(services, "s", &chose, "tcp-nodeport/30001").unwrap().0;
        assert_eq!(refused.code, 422);
        assert!(refused.message.contains("provided value is already allocated"), "{refused}");
        assert!(refuse(services, "s", &chose, "tcp-nodeport/30002").is_none());
        assert!(refuse(services, "s", &chose, "clusterip/10.43.0.9").is_none());
    }
}
