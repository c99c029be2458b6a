//! Name lookup, for both versions of the interface.

use std::net::{IpAddr, Ipv6Addr};

use url::Host;

/// Longest name, as in DNS.
const NAME_BYTES_MAX: usize = 255;

/// What a guest asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// An address in words.
    Address(IpAddr),
    /// A domain name in ASCII.
    Domain(String),
}

/// Reads a name as WASI has it: an address, or a domain name in any script. `None` if it is
/// neither.
pub(super) fn parse(name: &str) -> Option<Name> {
    if name.len() > NAME_BYTES_MAX {
        return None;
    }
    // An address without the brackets that it has in a URL.
    if let Ok(ip) = name.parse::<Ipv6Addr>() {
        return Some(Name::Address(ip.into()));
    }
    match Host::parse(name).ok()? {
        Host::Domain(domain) => Some(Name::Domain(domain)),
        Host::Ipv4(ip) => Some(Name::Address(ip.into())),
        Host::Ipv6(ip) => Some(Name::Address(ip.into())),
    }
}

/// Addresses as they are told: an IPv4 address never in IPv6 clothes, each once.
pub(super) fn tell(found: Vec<IpAddr>) -> Vec<IpAddr> {
    let mut told: Vec<IpAddr> = Vec::with_capacity(found.len());
    for ip in found.into_iter().map(|ip| ip.to_canonical()) {
        if !told.contains(&ip) {
            told.push(ip);
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_addresses_or_domains_in_any_script() {
        let address = |ip: &str| Some(Name::Address(ip.parse().unwrap()));
        let domain = |name: &str| Some(Name::Domain(name.to_owned()));
        for (name, is) in [
            ("127.0.0.1", address("127.0.0.1")),
            ("::1", address("::1")),
            ("[::1]", address("::1")),
            ("DEAD:BEEF::0", address("dead:beef::")),
            ("web", domain("web")),
            ("Web.Default.", domain("web.default.")),
            ("_dns._udp.web", domain("_dns._udp.web")),
            ("bücher.example", domain("xn--bcher-kva.example")),
        ] {
            assert_eq!(parse(name), is, "{name}");
        }
        for name in ["", " ", "a.b<&>", "127.0.0.1:80", "[::]:80", "http://x/", &"a".repeat(256)] {
            assert_eq!(parse(name), None, "{name}");
        }
    }

    #[test]
    fn no_address_is_told_twice() {
        let ips = ["10.0.0.1", "::ffff:10.0.0.1", "::1"].map(|ip| ip.parse().unwrap());
        assert_eq!(tell(ips.to_vec()), [ips[0], ips[2]]);
    }
}
