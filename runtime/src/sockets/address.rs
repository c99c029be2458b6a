//! What WASI says of addresses, before the network is asked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Whether an address belongs to a socket's family. An IPv4 address in IPv6 clothes belongs to
/// none.
pub(super) fn is_of_family(address: SocketAddr, is_ipv6: bool) -> bool {
    match address {
        SocketAddr::V4(_) => !is_ipv6,
        SocketAddr::V6(v6) => {
            let ip = v6.ip();
            let is_compatible =
                ip.segments().starts_with(&[0; 6]) && !ip.is_unspecified() && !ip.is_loopback();
            is_ipv6 && ip.to_ipv4_mapped().is_none() && !is_compatible
        }
    }
}

/// Whether one may connect or send there, as far as the address tells.
pub(super) fn is_remote(address: SocketAddr) -> bool {
    !address.ip().to_canonical().is_unspecified() && address.port() != 0
}

/// Whether it is the address of one machine.
pub(super) fn is_unicast(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => !ip.is_multicast() && !ip.is_broadcast(),
        IpAddr::V6(ip) => !ip.is_multicast(),
    }
}

/// The address that stands for all of the pod's.
pub(super) fn any_address(is_ipv6: bool) -> IpAddr {
    if is_ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
}
