//! A cluster's authority and endpoints on loopback, for the tests of `net` and `mesh`.

use std::net::{Ipv4Addr, SocketAddr};

use tokio_util::sync::CancellationToken;

use crate::net::pki::{CertificateAuthority, NodeClass};
use crate::net::{Endpoint, Identity, NetConfig};
use crate::rt::{TaskGroup, WallClock};

pub(crate) const LOOPBACK: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

pub(crate) fn authority() -> CertificateAuthority {
    CertificateAuthority::generate("test", &WallClock::system()).unwrap()
}

pub(crate) fn identity(ca: &CertificateAuthority, name: &str, class: NodeClass) -> Identity {
    let pair = ca.generate_node(name, &[], class).unwrap();
    Identity::new(&pair.cert_pem, &pair.key_pem, ca.cert_pem(), &WallClock::system()).unwrap()
}

/// An endpoint on a free port of loopback.
pub(crate) fn endpoint(
    ca: &CertificateAuthority,
    name: &str,
    class: NodeClass,
) -> (Endpoint, TaskGroup) {
    endpoint_with(ca, name, class, NetConfig::default())
}

pub(crate) fn endpoint_with(
    ca: &CertificateAuthority,
    name: &str,
    class: NodeClass,
    config: NetConfig,
) -> (Endpoint, TaskGroup) {
    let tasks = TaskGroup::new(&CancellationToken::new());
    let identity = identity(ca, name, class);
    let endpoint = Endpoint::bind(LOOPBACK, identity, config, &tasks).unwrap();
    (endpoint, tasks)
}
