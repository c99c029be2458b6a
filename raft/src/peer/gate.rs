//! When a leader that nobody answers must be quiet.
//!
//! A follower that hears a leader does not elect another, even when its answers never arrive.
//! openraft makes such a leader's heartbeats pause; its log replication, which refreshes the
//! followers' lease just the same, goes on. This gate pauses that too, in the same rhythm: quiet
//! for a period once the lease is over, then heard for a period, and so on until a quorum answers.

use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::metrics::RaftMetrics;
use openraft::type_config::alias::WatchReceiverOf;
use tokio::time::Instant;

use crate::type_config::TypeConfig;

/// Opens and shuts with the answers of a quorum.
pub(crate) struct Gate {
    /// Known once Raft runs.
    metrics: OnceLock<WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>>,
    lease: Duration,
    period: Duration,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("lease", &self.lease).finish_non_exhaustive()
    }
}

impl Gate {
    pub(crate) fn new(lease: Duration, period: Duration) -> Self {
        Self { metrics: OnceLock::new(), lease, period }
    }

    /// Says where to look for the answers.
    pub(crate) fn follow(&self, metrics: WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>) {
        // Set before: then it is the same Raft.
        let _ = self.metrics.set(metrics);
    }

    /// `true` while nothing may be sent. `since` is when this leader began to send.
    pub(crate) fn is_shut(&self, since: Instant) -> bool {
        let Some(metrics) = self.metrics.get() else { return false };
        let metrics = metrics.borrow_watched();
        // A single voter is its own quorum.
        if metrics.membership_config.voter_ids().nth(1).is_none() {
            return false;
        }
        let acked = metrics.last_quorum_acked.as_ref().map(|acked| acked.elapsed());
        let silent = acked.map_or(since.elapsed(), |acked| acked.min(since.elapsed()));
        is_quiet(silent, self.lease, self.period)
    }
}

fn is_quiet(silent: Duration, lease: Duration, period: Duration) -> bool {
    let Some(over) = silent.checked_sub(lease) else { return false };
    let slot = over.as_millis() / period.as_millis().max(1);
    slot.is_multiple_of(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quiet_and_heard_periods_alternate_after_the_lease() {
        let quiet = |ms| {
            let (lease, period) = (Duration::from_millis(100), Duration::from_millis(300));
            is_quiet(Duration::from_millis(ms), lease, period)
        };
        assert_eq!(
            [0, 99, 100, 399, 400, 699, 700].map(quiet),
            [false, false, true, true, false, false, true]
        );
    }
}
