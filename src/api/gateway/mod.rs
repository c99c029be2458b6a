//! Gateway API: its kinds, and the rules by which routes attach to Gateways.
//!
//! Data in: GatewayClasses, Gateways, HTTPRoutes, ReferenceGrants, and the labels of namespaces.
//! Data out: which listeners a route attaches to and for which hosts, which references count, and the
//! spec's reasons where they do not. The nodes route by it and the controller writes it into status,
//! so that both say the same.
//!
//! # Invariants
//!
//! - Pure: a function of the objects.
//! - A reference into another namespace counts only with a grant from there.

mod attach;
mod duration;
mod ingress;
mod listener;
mod pattern;
mod types;

pub use attach::{Attached, GatewayObjects, RefProblem, Refusal, ServiceRef, precedence};
pub use duration::parse_duration;
pub use ingress::ingress_is_ours;
pub use listener::{ListenerState, intersect, matches_host};
pub use pattern::compile_regex;
pub use types::*;

/// Controller name of the GatewayClasses that edgeorc looks after.
pub const CONTROLLER: &str = "edgeorc.io/gateway";
/// Controller name of the IngressClasses that edgeorc looks after.
pub const INGRESS_CONTROLLER: &str = "edgeorc.io/ingress";
/// The class that every cluster has, of Gateways and of Ingresses.
pub const CLASS_DEFAULT: &str = "edgeorc";
/// Annotation of the IngressClass that Ingresses without one get.
pub const IS_DEFAULT_CLASS: &str = "ingressclass.kubernetes.io/is-default-class";
/// Annotation that named an Ingress' class before there was a field.
pub const INGRESS_CLASS: &str = "kubernetes.io/ingress.class";
/// Annotation of a Node: Gateway ports that it could not open, `PORT: WHY` with `; ` in between.
pub const CLOSED_PORTS: &str = "edgeorc.io/closed-gateway-ports";
/// The port that the nodes' HTTP ingress stands for, whatever its real number is.
pub const HTTP_PORT: u16 = 80;
/// The port that the nodes' HTTPS ingress stands for, whatever its real number is.
pub const HTTPS_PORT: u16 = 443;
