//! Whom a pod sees as the sender of what reaches it.
//!
//! # Invariants
//!
//! - A pod's own loopback is nobody's to speak for: neither the node's nor another pod's sender looks like it.
//! - A node speaks for its own pods and for who comes from outside, never for pods of others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::routes::Place;

/// Whom a pod sees in place of a sender that it must not take for one of its own, or whose address it cannot write:
/// the dummy address of RFC 7600 for IPv4, one of the discard prefix of RFC 6666 for IPv6.
const NOBODY: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(192, 0, 0, 8), Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 8));

/// The sender that the pod at `to` sees: `from` itself, unless that is a loopback, which is not the pod's, or of
/// another family than the pod's address.
pub(super) fn shown(from: SocketAddr, to: IpAddr) -> SocketAddr {
    let ip = from.ip().to_canonical();
    let is_itself = !ip.is_loopback() && ip.is_ipv4() == to.is_ipv4();
    let nobody = if to.is_ipv4() { NOBODY.0.into() } else { NOBODY.1.into() };
    SocketAddr::new(if is_itself { ip } else { nobody }, from.port())
}

/// Whether `ip` is one that stands for nobody, and leads nowhere.
pub(super) fn is_nobody(ip: IpAddr) -> bool {
    ip == NOBODY.0 || ip == NOBODY.1
}

/// Whether the node `peer` may speak for a sender at `place`: its own pods, and clients outside.
pub(super) fn speaks_for(place: &Place, peer: &str) -> bool {
    match place {
        Place::Node(node) => **node == *peer,
        Place::Local => false,
        Place::Outside => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_sees_its_client_unless_that_is_on_a_loopback_or_of_another_family() {
        let seen = |client: &str, to: &str| {
            shown(client.parse().unwrap(), to.parse().unwrap()).to_string()
        };
        let (v4, v6) = ("10.42.0.2", "fd00::2");
        assert_eq!(seen("192.0.2.7:9", v4), "192.0.2.7:9");
        assert_eq!(seen("[::ffff:192.0.2.7]:9", v4), "192.0.2.7:9");
        assert_eq!(seen("[2001:db8::7]:9", v6), "[2001:db8::7]:9");
        assert_eq!(seen("127.0.0.1:9", v4), "192.0.0.8:9");
        assert_eq!(seen("[::ffff:127.0.0.1]:9", v4), "192.0.0.8:9");
        assert_eq!(seen("[::1]:9", v6), "[100::8]:9");
        assert_eq!(seen("[2001:db8::7]:9", v4), "192.0.0.8:9");
        assert_eq!(seen("192.0.2.7:9", v6), "[100::8]:9");
        assert!(is_nobody("192.0.0.8".parse().unwrap()) && is_nobody("100::8".parse().unwrap()));
    }
}
