//! Where a node is, as its Node tells the others. Whoever follows a fleet of nodes is told these, and of
//! labels and annotations nothing else.

/// Label: its zone; Kubernetes' own.
pub const ZONE: &str = "topology.kubernetes.io/zone";
/// Label: it is a server; Kubernetes' own.
pub const SERVER: &str = "node-role.kubernetes.io/control-plane";
/// Annotation: where other nodes open QUIC connections to.
pub const QUIC_ADDRESS: &str = "edgeorc.io/quic-address";
/// Annotation: where its ingress listens.
pub const INGRESS_ADDRESS: &str = "edgeorc.io/ingress-address";
