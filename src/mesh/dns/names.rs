//! What a name within the cluster's domain stands for: a pure function of the routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::mesh::CLUSTER_DOMAIN;
use crate::mesh::routes::{Protocol, Routes, ServiceKey, ServiceRoute};

/// Longest name.
pub(super) const NAME_BYTES_MAX: usize = 253;

/// What a name stands for.
#[derive(Debug)]
pub(super) enum Named<'a> {
    /// The domain itself.
    Apex,
    /// Which version of the specification is spoken.
    Version,
    /// Nothing itself, but there are names below it.
    Branch,
    /// A Service.
    Service(ServiceKey, &'a ServiceRoute),
    /// An endpoint with a name of its own; it may have several addresses.
    Host(Vec<IpAddr>),
    /// A pod by its address.
    Pod(IpAddr),
    /// A named port of a Service.
    Port { key: ServiceKey, route: &'a ServiceRoute, name: String, protocol: Protocol },
}

/// The part of a name before the cluster's domain, if it is in it: "" is the domain itself.
pub(super) fn within(name: &str) -> Option<&str> {
    let rest = name.strip_suffix(CLUSTER_DOMAIN)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_suffix('.') }
}

/// What stands at `within`, which is in lower case and without the cluster's domain.
pub(super) fn find<'a>(routes: &'a Routes, within: &str) -> Option<Named<'a>> {
    if within.is_empty() {
        return Some(Named::Apex);
    }
    let labels: Vec<&str> = within.rsplit('.').collect();
    match labels.as_slice() {
        ["dns-version"] => Some(Named::Version),
        ["svc" | "pod"] => Some(Named::Branch),
        ["svc" | "pod", namespace] => has_namespace(routes, namespace).then_some(Named::Branch),
        ["pod", _, address] => undashed(address).map(Named::Pod),
        ["svc", namespace, service, rest @ ..] => {
            let key = ((*namespace).to_owned(), (*service).to_owned());
            let route = routes.services.get(&key)?;
            below_service(key, route, rest)
        }
        _ => None,
    }
}

fn below_service<'a>(key: ServiceKey, route: &'a ServiceRoute, rest: &[&str]) -> Option<Named<'a>> {
    match rest {
        [] => Some(Named::Service(key, route)),
        [label] => match protocol(label) {
            Some(protocol) => route.has_protocol(protocol).then_some(Named::Branch),
            None => {
                let hosts = route.hosts.iter().filter(|host| host.label() == *label);
                let ips: Vec<IpAddr> = hosts.map(|host| host.ip).collect();
                (!ips.is_empty()).then_some(Named::Host(ips))
            }
        },
        [label, port] => {
            let (protocol, name) = (protocol(label)?, port.strip_prefix('_')?);
            let mut ports = route.ports.iter();
            ports.find(|port| port.protocol == protocol && port.name == name)?;
            Some(Named::Port { key, route, name: name.to_owned(), protocol })
        }
        _ => None,
    }
}

fn protocol(label: &str) -> Option<Protocol> {
    match label {
        "_tcp" => Some(Protocol::Tcp),
        "_udp" => Some(Protocol::Udp),
        "_sctp" => Some(Protocol::Sctp),
        _ => None,
    }
}

fn has_namespace(routes: &Routes, namespace: &str) -> bool {
    let first = (namespace.to_owned(), String::new());
    routes.services.range(first..).next().is_some_and(|((of, _), _)| of == namespace)
}

/// The address in a label such as `10-42-0-5` or `fd00-42--5`.
pub(super) fn undashed(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    v4.or_else(|| label.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6))
}

/// The names of an address: of the Service that has it, and of the endpoints of headless Services.
pub(super) fn pointers(routes: &Routes, ip: IpAddr) -> Vec<String> {
    let mut names = Vec::new();
    for ((namespace, name), route) in &routes.services {
        let domain = format!("{name}.{namespace}.svc.{CLUSTER_DOMAIN}");
        if route.cluster_ips.contains(&ip) {
            return vec![domain];
        }
        let hosts = route.hosts.iter().filter(|host| host.ip == ip);
        names.extend(hosts.map(|host| format!("{}.{domain}", host.label())));
        if names.len() >= POINTERS_MAX {
            break;
        }
    }
    names
}

/// Names of one address that are told.
const POINTERS_MAX: usize = 32;

/// The address that a name of the reverse zones is of; `None` for any other.
pub(super) fn arpa(name: &str) -> Option<IpAddr> {
    if let Some(digits) = name.strip_suffix(".in-addr.arpa") {
        let mut parts: Vec<&str> = digits.split('.').collect();
        parts.reverse();
        return parts.join(".").parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    }
    let digits: Vec<&str> = name.strip_suffix(".ip6.arpa")?.split('.').collect();
    if digits.len() != 32 {
        return None;
    }
    let mut bits = 0_u128;
    for digit in digits.iter().rev() {
        if digit.len() != 1 {
            return None;
        }
        bits = (bits << 4) | u128::from(digit.chars().next()?.to_digit(16)?);
    }
    Some(Ipv6Addr::from_bits(bits).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_from_labels_and_reverse_names() {
        assert_eq!(undashed("10-42-0-5"), "10.42.0.5".parse().ok());
        assert_eq!(undashed("fd00-42--5"), "fd00:42::5".parse().ok());
        assert_eq!(undashed("web"), None);
        assert_eq!(arpa("9.0.43.10.in-addr.arpa"), "10.43.0.9".parse().ok());
        let six = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.4.0.0.0.0.d.f.ip6.arpa";
        assert_eq!(arpa(six), "fd00:42::1".parse().ok());
        for other in ["43.10.in-addr.arpa", "x.0.43.10.in-addr.arpa", "1.ip6.arpa", "a.b"] {
            assert_eq!(arpa(other), None, "{other}");
        }
    }

    #[test]
    fn only_names_in_the_domain_are_within_it() {
        assert_eq!(within("web.default.svc.cluster.local"), Some("web.default.svc"));
        assert_eq!(within("cluster.local"), Some(""));
        assert_eq!(within("mycluster.local"), None);
        assert_eq!(within("example.org"), None);
    }
}
