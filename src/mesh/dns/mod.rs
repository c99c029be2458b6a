//! Names: the cluster's own by the Kubernetes DNS specification 1.1, for guests and for everyone
//! who asks the node's DNS server.
//!
//! Data in: the routing table; names from guests; queries by UDP and TCP. Data out: addresses, and
//! DNS messages. What the cluster does not know is asked of the host's resolver (guests), or of the
//! server's upstreams.
//!
//! ```text
//!  guests ── guest ──┐
//!                    ├── names (what a name is) ── Routes
//!  LAN ──── server ──┴── records ── message
//!              └──── forward ── cache ── upstreams
//! ```
//!
//! # Invariants
//!
//! - Names below `cluster.local` never leave the cluster, nor do addresses of its pods and Services
//!   when their names are asked for.
//! - A name that is there but has nothing of the kind asked for is told from one that is not there.
//! - Every query, connection, cached answer and upstream has a bound.

mod cache;
mod forward;
mod guest;
mod message;
mod names;
mod records;
mod server;

#[cfg(test)]
mod server_test;

pub use self::server::{DnsConfig, DnsSockets};
