//! What the balancer decided, counted.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Why an endpoint was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// The only one there is.
    Only,
    /// The one that the client had before.
    Kept,
    /// The cheaper of two on this node.
    Node,
    /// The cheaper of two in this zone.
    Zone,
    /// The cheaper of two anywhere: none is closer.
    Cluster,
    /// Further away, because the closer ones are overloaded.
    Spilled,
    /// Further away, to know how it is there.
    Explored,
    /// Ejected or down: there was no better one.
    LastResort,
}

/// Why an endpoint is held to be bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing listened, or its node did not answer.
    Unreachable,
    /// It had the request and broke off.
    Broken,
    /// It gave no answer in time.
    Timeout,
    /// It answered with a status of 500 or more.
    Status,
}

impl Fault {
    /// For spans.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Broken => "broken",
            Self::Timeout => "timeout",
            Self::Status => "status",
        }
    }
}

/// What became of a bad endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Not bad enough yet, or left out already.
    Kept,
    /// Left out for a while.
    Ejected,
    /// Kept because half of its kind are left out already.
    Spared,
}

/// Why a failed request was not sent again, or that it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    Sent,
    /// A pod may have acted on it, and the method is not idempotent.
    Unsafe,
    /// Tried as often as may be.
    Attempts,
    /// The budget is spent.
    Budget,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

type ByReason<const N: usize> = (Family<Reason, Counter>, [Counter; N]);

fn by_reason<const N: usize>(reasons: [&'static str; N]) -> ByReason<N> {
    let family: Family<Reason, Counter> = Family::default();
    let counters = reasons.map(|reason| family.get_or_create(&Reason { reason }).clone());
    (family, counters)
}

/// Counters of every decision. Labels come from the closed sets above.
#[derive(Debug, Clone)]
pub(super) struct Decisions {
    choices: ByReason<8>,
    ejections: ByReason<4>,
    spared: Counter,
    retries: ByReason<4>,
    refusals: ByReason<3>,
}

impl Default for Decisions {
    fn default() -> Self {
        Self {
            choices: by_reason([
                "only",
                "kept",
                "node",
                "zone",
                "cluster",
                "spilled",
                "explored",
                "last_resort",
            ]),
            ejections: by_reason(["unreachable", "broken", "timeout", "status"]),
            spared: Counter::default(),
            retries: by_reason(["sent", "unsafe", "attempts", "budget"]),
            refusals: by_reason(["no_endpoint", "circuit_open", "timeout"]),
        }
    }
}

impl Decisions {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "edgeorc_mesh_choices",
            "Endpoints chosen for requests, by why",
            self.choices.0.clone(),
        );
        registry.register(
            "edgeorc_mesh_ejections",
            "Endpoints left out for a while, by why",
            self.ejections.0.clone(),
        );
        registry.register(
            "edgeorc_mesh_ejections_spared",
            "Bad endpoints kept because half of the Service's are left out already",
            self.spared.clone(),
        );
        registry.register(
            "edgeorc_mesh_retry_decisions",
            "What was decided on requests whose endpoint failed",
            self.retries.0.clone(),
        );
        registry.register(
            "edgeorc_mesh_refusals",
            "Requests that no endpoint was asked for, or that none answered in time",
            self.refusals.0.clone(),
        );
    }

    pub(super) fn chose(&self, choice: Choice) {
        let [only, kept, node, zone, cluster, spilled, explored, last] = &self.choices.1;
        match choice {
            Choice::Only => only,
            Choice::Kept => kept,
            Choice::Node => node,
            Choice::Zone => zone,
            Choice::Cluster => cluster,
            Choice::Spilled => spilled,
            Choice::Explored => explored,
            Choice::LastResort => last,
        }
        .inc();
    }

    pub(super) fn judged(&self, fault: Fault, verdict: Verdict) {
        let [unreachable, broken, timeout, status] = &self.ejections.1;
        match (verdict, fault) {
            (Verdict::Kept, _) => return,
            (Verdict::Spared, _) => &self.spared,
            (Verdict::Ejected, Fault::Unreachable) => unreachable,
            (Verdict::Ejected, Fault::Broken) => broken,
            (Verdict::Ejected, Fault::Timeout) => timeout,
            (Verdict::Ejected, Fault::Status) => status,
        }
        .inc();
    }

    pub(super) fn retried(&self, retry: Retry) {
        let [sent, not_safe, attempts, budget] = &self.retries.1;
        match retry {
            Retry::Sent => sent,
            Retry::Unsafe => not_safe,
            Retry::Attempts => attempts,
            Retry::Budget => budget,
        }
        .inc();
    }

    pub(super) fn refused_without_endpoint(&self) {
        self.refusals.1[0].inc();
    }

    pub(super) fn refused_by_circuit(&self) {
        self.refusals.1[1].inc();
    }

    pub(super) fn timed_out(&self) {
        self.refusals.1[2].inc();
    }

    /// Requests that were sent again.
    pub(super) fn retries_sent(&self) -> u64 {
        self.retries.1[0].get()
    }
}
