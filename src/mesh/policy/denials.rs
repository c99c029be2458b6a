//! What was denied: counted always, told now and then.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tracing::info;

use super::facts::PodFacts;
use super::judge::Way;
use crate::mesh::routes::Protocol;

/// Pause between two lines of the log; what is denied meanwhile is counted in the next one.
const LOG_PAUSE_MS: u64 = 10_000;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    direction: &'static str,
    protocol: &'static str,
}

/// Counters by direction and protocol, and the time of the last line.
#[derive(Debug)]
pub(in crate::mesh) struct Denials {
    family: Family<Labels, Counter>,
    /// Ingress, then egress; of each TCP, then UDP.
    counters: [[Counter; 2]; 2],
    told_at_ms: AtomicU64,
    untold: AtomicU64,
}

impl Default for Denials {
    fn default() -> Self {
        let family: Family<Labels, Counter> = Family::default();
        let counters = [Way::Ingress, Way::Egress].map(|way| {
            ["tcp", "udp"].map(|protocol| {
                family.get_or_create(&Labels { direction: way.name(), protocol }).clone()
            })
        });
        let (told_at_ms, untold) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { family, counters, told_at_ms, untold }
    }
}

/// One denied connection.
#[derive(Debug)]
pub(super) struct Denial<'a> {
    pub(super) way: Way,
    pub(super) protocol: Protocol,
    pub(super) to: SocketAddr,
    /// The pod whose policies deny, if it is known.
    pub(super) pod: Option<&'a PodFacts>,
    /// Who came, or where to: in words.
    pub(super) other: &'a str,
}

impl Denials {
    pub(in crate::mesh) fn register(&self, registry: &mut Registry) {
        registry.register(
            "edgeorc_mesh_policy_denials",
            "Connections, requests and flows of datagrams that network policies denied",
            self.family.clone(),
        );
    }

    /// Denials so far, in both directions.
    #[cfg(test)]
    pub(super) fn count(&self, way: Way) -> u64 {
        let [ingress, egress] = &self.counters;
        let [tcp, udp] = if way == Way::Ingress { ingress } else { egress };
        tcp.get() + udp.get()
    }

    pub(super) fn denied(&self, denial: &Denial<'_>, now_ms: u64) {
        let [ingress, egress] = &self.counters;
        let [tcp, udp] = if denial.way == Way::Ingress { ingress } else { egress };
        let counter = if denial.protocol == Protocol::Udp { udp } else { tcp };
        counter.inc();
        let told_at = self.told_at_ms.load(Ordering::Relaxed);
        let is_due = told_at == 0 || now_ms.saturating_sub(told_at) >= LOG_PAUSE_MS;
        let now = now_ms.max(1);
        let is_mine = is_due
            && self
                .told_at_ms
                .compare_exchange(told_at, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if !is_mine {
            self.untold.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let more = self.untold.swap(0, Ordering::Relaxed);
        info!(
            k8s.namespace.name = denial.pod.map_or("", |pod| pod.namespace.as_str()),
            k8s.pod.name = denial.pod.map_or("", |pod| pod.name.as_str()),
            direction = denial.way.name(),
            protocol = denial.protocol.name(),
            address = %denial.to,
            other = denial.other,
            more_since_last = more,
            "a network policy denied a connection"
        );
    }
}
