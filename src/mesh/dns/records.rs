//! The records that answer a question about the cluster's names.

use std::net::IpAddr;

use crate::mesh::CLUSTER_DOMAIN;
use crate::mesh::cidr::Cidr;
use crate::mesh::dns::names::{self, Named};
use crate::mesh::routes::{Place, Protocol, Routes, ServiceKey, ServiceRoute};

/// Version of the Kubernetes DNS specification.
const SPECIFICATION: &str = "1.1.0";
/// Records of one answer: clients of Services with more endpoints see some of them.
const RECORDS_MAX: usize = 512;
/// Sum of the weights of the records of one Service.
const WEIGHT: u16 = 100;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    A,
    Aaaa,
    Srv,
    Ptr,
    Txt,
    Cname,
    Soa,
    /// Of what the cluster has none.
    Other,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Data {
    Address(IpAddr),
    Service { weight: u16, port: u16, target: String },
    Pointer(String),
    Alias(String),
    Text(String),
    Authority,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) name: String,
    pub(super) data: Data,
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The cluster does not know the zone: others may.
    NotOurs,
    /// There is no such name.
    NoSuchName,
    /// There is; no records is "none of this kind".
    Records { answers: Vec<Record>, additional: Vec<Record> },
}

impl Found {
    fn of(name: &str, data: impl IntoIterator<Item = Data>) -> Self {
        let record = |data| Record { name: name.to_owned(), data };
        let answers = data.into_iter().take(RECORDS_MAX).map(record).collect();
        Self::Records { answers, additional: Vec::new() }
    }

    fn nothing(name: &str) -> Self {
        Self::of(name, [])
    }
}

/// Answers a question; `name` is in lower case and without the dot at its end. `ranges` are those of
/// Services: names of their addresses are not asked of others.
pub(super) fn look_up(routes: &Routes, ranges: &[Cidr], name: &str, kind: Kind) -> Found {
    if let Some(ip) = names::arpa(name) {
        return of_address(routes, ranges, name, ip, kind);
    }
    let Some(within) = names::within(name) else { return Found::NotOurs };
    match names::find(routes, within) {
        None => Found::NoSuchName,
        Some(Named::Apex) if kind == Kind::Soa => Found::of(name, [Data::Authority]),
        Some(Named::Version) if kind == Kind::Txt => {
            Found::of(name, [Data::Text(SPECIFICATION.to_owned())])
        }
        Some(Named::Apex | Named::Version | Named::Branch) => Found::nothing(name),
        Some(Named::Host(ips)) => addresses(name, &ips, kind),
        Some(Named::Pod(ip)) => addresses(name, &[ip], kind),
        Some(Named::Service(key, route)) => of_service(name, &key, route, kind),
        Some(Named::Port { key, route, name: port, protocol }) if kind == Kind::Srv => {
            of_ports(name, &key, route, |name, of| name == port && of == protocol)
        }
        Some(Named::Port { .. }) => Found::nothing(name),
    }
}

fn of_address(routes: &Routes, ranges: &[Cidr], name: &str, ip: IpAddr, kind: Kind) -> Found {
    let pointers = names::pointers(routes, ip);
    if pointers.is_empty() {
        let is_ours =
            ranges.iter().any(|range| range.contains(ip)) || routes.place_of(ip) != Place::Outside;
        return if is_ours { Found::NoSuchName } else { Found::NotOurs };
    }
    match kind {
        Kind::Ptr => Found::of(name, pointers.into_iter().map(Data::Pointer)),
        _ => Found::nothing(name),
    }
}

fn addresses(name: &str, ips: &[IpAddr], kind: Kind) -> Found {
    let ips = ips.iter().filter(|ip| match kind {
        Kind::A => ip.is_ipv4(),
        Kind::Aaaa => ip.is_ipv6(),
        _ => false,
    });
    Found::of(name, ips.map(|ip| Data::Address(*ip)))
}

fn of_service(name: &str, key: &ServiceKey, route: &ServiceRoute, kind: Kind) -> Found {
    if let Some(target) = &route.external_name {
        let target = target.trim_end_matches('.').to_ascii_lowercase();
        return Found::of(name, [Data::Alias(target)]);
    }
    if route.is_headless && route.hosts.is_empty() {
        // By the specification; what has endpoints later is there later.
        return Found::NoSuchName;
    }
    match kind {
        Kind::A | Kind::Aaaa if route.is_headless => {
            let ips: Vec<IpAddr> = route.hosts.iter().map(|host| host.ip).collect();
            addresses(name, &ips, kind)
        }
        Kind::A | Kind::Aaaa => addresses(name, &route.cluster_ips, kind),
        Kind::Srv => of_ports(name, key, route, |_, _| true),
        _ => Found::nothing(name),
    }
}

/// The places of those ports for which `is_asked` holds.
fn of_ports(
    name: &str,
    (namespace, service): &ServiceKey,
    route: &ServiceRoute,
    is_asked: impl Fn(&str, Protocol) -> bool,
) -> Found {
    let domain = format!("{service}.{namespace}.svc.{CLUSTER_DOMAIN}");
    let mut places: Vec<(u16, String)> = Vec::new();
    let mut additional = Vec::new();
    let address =
        |name: &str, ip: IpAddr| Record { name: name.to_owned(), data: Data::Address(ip) };
    if route.is_headless {
        for host in &route.hosts {
            let target = format!("{}.{domain}", host.label());
            let ports = host.ports.iter().filter(|(name, protocol, _)| is_asked(name, *protocol));
            let before = places.len();
            places.extend(ports.map(|(_, _, port)| (*port, target.clone())));
            if places.len() > before {
                additional.push(address(&target, host.ip));
            }
        }
    } else {
        let ports = route.ports.iter().filter(|port| is_asked(&port.name, port.protocol));
        places.extend(ports.map(|port| (port.port, domain.clone())));
        additional.extend(route.cluster_ips.iter().map(|ip| address(&domain, *ip)));
    }
    places.truncate(RECORDS_MAX);
    additional.truncate(RECORDS_MAX);
    let count = u16::try_from(places.len()).unwrap_or(u16::MAX).max(1);
    let weight = (WEIGHT / count).max(1);
    let answer = |(port, target)| Record {
        name: name.to_owned(),
        data: Data::Service { weight, port, target },
    };
    Found::Records { answers: places.into_iter().map(answer).collect(), additional }
}

#[cfg(test)]
#[path = "records_test.rs"]
mod tests;
