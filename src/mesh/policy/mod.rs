//! NetworkPolicy: who may open a connection, send a request or a flow of datagrams to whom.
//!
//! Data in: NetworkPolicies, pods and namespaces by [`PolicyCompiler`]; who asks and which endpoint
//! was chosen, by the rest of the mesh. Data out: leave or a [`Denied`], counted and told.
//!
//! ```text
//!  NetworkPolicy ─ rules ─┐
//!  Pod, Namespace ─ facts ┴─ PolicyCompiler ── Policies (swapped) ── judged per connection
//! ```
//!
//! Egress is judged on the node of the pod that asks, after balancing; ingress on the node of the
//! pod that is asked. The node that sends says which of its pods asks; it is authenticated, and the
//! API says which pods are its own.
//!
//! # Invariants
//!
//! - Where no policy selects a pod, judging its connections takes no lock and allocates nothing.
//! - A change costs as much as what it touches: a policy is matched with the pods of its namespace,
//!   a pod with the policies of its own.
//! - What is not known yet is not allowed: a pod that the table has not heard of waits for it, and
//!   is refused in the end. Only pods whose namespace has no policies need not be known.
//! - A pod is known by its uid, never by its address.
//! - A pod always reaches itself.

mod compiler;
mod denials;
mod facts;
mod judge;
mod origin;
mod rules;
mod table;

#[cfg(test)]
mod cases_test;
#[cfg(test)]
mod compiler_test;
#[cfg(test)]
mod mesh_policy_test;
#[cfg(test)]
mod testing;

pub use self::compiler::{KnownPolicies, PolicyCompiler};
pub(super) use self::denials::Denials;
pub(super) use self::judge::{Denied, Way, is_denied};
pub use self::origin::{Caller, PodOwner};
pub(super) use self::origin::{Origin, SENDER, Sender};
pub use self::table::Policies;
