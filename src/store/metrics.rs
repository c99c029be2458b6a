//! What the store tells of itself.

use edgeorc_raft::{Role, Status};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::watch;

use crate::telemetry::Metrics;

/// Reads the replica's status when asked.
#[derive(Debug)]
struct Group(watch::Receiver<Status>);

/// Upper bounds of the time between two heartbeats of a node, in seconds: they come once a second, and
/// a node is silent after three.
const INTERVALS: [f64; 7] = [1.25, 1.5, 2.0, 2.5, 3.0, 5.0, 10.0];

/// Times between two heartbeats of a node, as this server hears them while it leads.
pub(super) fn intervals() -> Histogram {
    Histogram::new(INTERVALS)
}

/// Registers the gauges of the group, and the heartbeats it hears.
pub(super) fn register(metrics: &Metrics, status: watch::Receiver<Status>, intervals: Histogram) {
    metrics.register(|registry| {
        registry.register_collector(Box::new(Group(status)));
        let help = "Time between two heartbeats of a node, as the leader hears them";
        registry.register("edgeorc_node_heartbeat_interval_seconds", help, intervals);
    });
}

impl Collector for Group {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let status = self.0.borrow().clone();
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let gauges = [
            (
                "edgeorc_store_is_leader",
                "1 while this server leads",
                i64::from(status.role == Role::Leader),
            ),
            (
                "edgeorc_store_has_leader",
                "1 while a leader is known",
                i64::from(status.leader.is_some()),
            ),
            ("edgeorc_store_voters", "Servers with a vote", count(status.voters.len())),
            ("edgeorc_store_members", "Servers of the group", count(status.members.len())),
            ("edgeorc_store_term", "Raft term", number(status.term)),
            ("edgeorc_store_applied_index", "Last applied log index", number(status.applied_index)),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            let head = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(head)?;
        }
        Ok(())
    }
}
