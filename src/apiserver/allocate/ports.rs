//! Node ports of a Service, and the port at which nodes tell of its endpoints.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::api::FieldError;
use crate::apiserver::allocate::{Refused, Source, port_key, text};

/// First and one past the last node port.
const NODE_PORTS: std::ops::Range<u64> = 30_000..32_768;
/// The first one that is given to Services that ask for none in particular: Kubernetes' band for a
/// range of this size.
const DYNAMIC_FROM: u64 = NODE_PORTS.start + 86;
const NOT_IN_RANGE: &str =
    "provided port is not in the valid range. The range of valid ports is 30000-32767";

fn ports(service: &Value) -> &[Value] {
    service.pointer("/spec/ports").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn protocol(port: &Value) -> &str {
    port.get("protocol").and_then(Value::as_str).unwrap_or("TCP")
}

fn number(value: &Value, pointer: &str) -> Option<u64> {
    value.pointer(pointer).and_then(Value::as_u64).filter(|number| *number > 0)
}

/// Keys of the ports that the Service holds.
pub(super) fn held(service: &Value) -> impl Iterator<Item = String> + '_ {
    let of_ports = ports(service)
        .iter()
        .filter_map(|port| Some(port_key(protocol(port), number(port, "/nodePort")?)));
    let health = number(service, "/spec/healthCheckNodePort").map(|port| port_key("TCP", port));
    of_ports.chain(health)
}

/// The field in which the Service names the node port `wanted`.
pub(super) fn path_of(service: &Value, wanted: u64) -> String {
    let at = ports(service).iter().position(|port| number(port, "/nodePort") == Some(wanted));
    match at {
        Some(at) => format!("spec.ports[{at}].nodePort"),
        None => "spec.healthCheckNodePort".to_owned(),
    }
}

/// Gives every port that needs one a node port that no other port of its protocol has.
pub(super) fn choose(
    source: &Source<'_>,
    before: &[String],
    service: &mut Value,
) -> Result<(), Refused> {
    let kind = text(service, "/spec/type").to_owned();
    let has_node_ports = matches!(kind.as_str(), "NodePort" | "LoadBalancer");
    let is_wanted = kind == "NodePort"
        || service.pointer("/spec/allocateLoadBalancerNodePorts") != Some(&Value::Bool(false));
    // Keys of this Service, each with the number of its port.
    let mut used: BTreeMap<String, u64> = BTreeMap::new();
    for (at, port) in ports(service).iter().enumerate() {
        let Some(sent) = number(port, "/nodePort").filter(|_| has_node_ports) else { continue };
        let (path, key) = (format!("spec.ports[{at}].nodePort"), port_key(protocol(port), sent));
        if !NODE_PORTS.contains(&sent) && !before.contains(&key) {
            return Err(FieldError::invalid(path, &json!(sent), NOT_IN_RANGE).into());
        }
        if used.insert(key, number(port, "/port").unwrap_or(0)).is_some() {
            return Err(FieldError::duplicate(path, &json!(sent)).into());
        }
    }
    let list = service.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
    for port in list.into_iter().flatten() {
        if !has_node_ports {
            crate::api::json::remove(port, "nodePort");
        } else if is_wanted && number(port, "/nodePort").is_none() {
            let chosen = free(source, &used, protocol(port), number(port, "/port").unwrap_or(0));
            let chosen = chosen.ok_or(Refused::Full("nodePort"))?;
            used.insert(port_key(protocol(port), chosen), number(port, "/port").unwrap_or(0));
            crate::api::json::set(port, "nodePort", chosen);
        }
    }
    choose_health(source, before, &used, service)
}

/// A node port for the Service's port `number`. One that it has for the same number of another
/// protocol is as good for this one: clients then use one number for both.
fn free(
    source: &Source<'_>,
    used: &BTreeMap<String, u64>,
    protocol: &str,
    number: u64,
) -> Option<u64> {
    let is_free = |port: u64| {
        let key = port_key(protocol, port);
        !used.contains_key(&key) && !source.taken.contains(&key)
    };
    let twin = used
        .iter()
        .filter(|(_, of)| **of == number)
        .find_map(|(key, _)| key.rsplit_once('/')?.1.parse::<u64>().ok());
    if let Some(twin) = twin.filter(|twin| is_free(*twin)) {
        return Some(twin);
    }
    source.pick(DYNAMIC_FROM..NODE_PORTS.end, NODE_PORTS.start..DYNAMIC_FROM, is_free)
}

fn choose_health(
    source: &Source<'_>,
    before: &[String],
    used: &BTreeMap<String, u64>,
    service: &mut Value,
) -> Result<(), Refused> {
    let Some(spec) = service.get_mut("spec") else { return Ok(()) };
    let is_needed =
        text(spec, "/type") == "LoadBalancer" && text(spec, "/externalTrafficPolicy") == "Local";
    if !is_needed {
        crate::api::json::remove(spec, "healthCheckNodePort");
        return Ok(());
    }
    let path = "spec.healthCheckNodePort";
    match number(spec, "/healthCheckNodePort") {
        Some(sent) => {
            let key = port_key("TCP", sent);
            if used.contains_key(&key) {
                return Err(FieldError::duplicate(path, &json!(sent)).into());
            }
            if !NODE_PORTS.contains(&sent) && !before.contains(&key) {
                return Err(FieldError::invalid(path, &json!(sent), NOT_IN_RANGE).into());
            }
        }
        None => {
            let chosen =
                free(source, used, "TCP", 0).ok_or(Refused::Full("healthCheckNodePort"))?;
            crate::api::json::set(spec, "healthCheckNodePort", chosen);
        }
    }
    Ok(())
}
