//! Delays and bounds of the controllers.

use std::time::Duration;

use crate::config::PodCidrs;

/// How the controllers behave. The defaults suit a cluster of any size.
#[derive(Debug, Clone)]
pub struct Settings {
    /// A node without a renewed Lease for this long is `NotReady`. Longer on links that stall.
    pub node_silent_after: Duration,
    /// A pod that does not tolerate its node's `not-ready` or `unreachable` taint is evicted this
    /// long after the taint, as if admission had added the toleration.
    pub default_toleration: Duration,
    /// No evictions in this time after a leader started: agents are still finding it.
    pub eviction_quiet_time: Duration,
    /// Pods evicted in one run of the node controller, which is made twice a second, and ten times a second
    /// while a node has just fallen silent: a network that
    /// breaks in many places must not set everything in motion at once.
    pub evictions_per_run_max: usize,
    /// How long a node must be gone before its pods are removed.
    pub orphaned_pod_after: Duration,
    /// Pods that ended are kept for their logs and status up to this number, then the oldest go.
    pub terminated_pods_max: usize,
    /// Wait before the first replacement of a Job's failed pod; it doubles with each failure. Kubernetes:
    /// 10 s.
    pub job_backoff_min: Duration,
    /// Longest such wait. Kubernetes: 10 min.
    pub job_backoff_max: Duration,
    /// Pause between two looks of an autoscaler at its metrics. Kubernetes: 15 s.
    pub autoscaler_interval: Duration,
    /// The range that each node gets its pod CIDR from.
    pub pod_cidrs: PodCidrs,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            node_silent_after: Duration::from_secs(3),
            default_toleration: Duration::from_secs(2),
            eviction_quiet_time: Duration::from_secs(5),
            evictions_per_run_max: 10,
            orphaned_pod_after: Duration::from_secs(5),
            terminated_pods_max: 1_000,
            job_backoff_min: Duration::from_millis(10),
            job_backoff_max: Duration::from_secs(10),
            autoscaler_interval: Duration::from_secs(10),
            pod_cidrs: PodCidrs::default(),
        }
    }
}
