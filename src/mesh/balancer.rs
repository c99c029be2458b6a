//! Chooses endpoints: the cheaper of two at random, as near as possible.
//!
//! The endpoints of a Service stand in three tiers: this node, this node's zone, the rest. Two of
//! the nearest tier that has an available endpoint are drawn, and the cheaper is taken (latency ×
//! requests in flight, [`EndpointState::cost`]). It is *overloaded* when it costs more than
//! [`OVERLOAD_FACTOR`] times what the cheaper of two further away does; then that one is taken.
//! One request in [`EXPLORE_ONE_IN`] goes further away all the same: otherwise nothing would be
//! known of the endpoints there when they are needed.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::affinity::Affinity;
use super::decisions::{Choice, Fault, Verdict};
use super::endpoint::EndpointState;
use super::traffic::Subject;
use super::waiting::Awaited;
use crate::rt::Rng;

/// How much dearer than one further away an endpoint must be for the way to be worth it.
const OVERLOAD_FACTOR: f64 = 4.0;
/// One request in so many goes beyond the nearest tier.
const EXPLORE_ONE_IN: usize = 16;
/// One endpoint in so many may be ejected at most; the others serve, however bad they are.
const EJECTED_ONE_IN_MAX: usize = 2;

/// How near an endpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tier {
    /// On this node.
    Node,
    /// On a node of this node's zone.
    Zone,
    /// Anywhere else.
    Cluster,
}

/// Cheap random numbers without a lock (SplitMix64), seeded once.
#[derive(Debug)]
pub(super) struct Dice(AtomicU64);

impl Dice {
    pub(super) fn new(rng: &Rng) -> Self {
        Self(AtomicU64::new(rng.below(u64::MAX)))
    }

    /// As [`Self::below`], for shares.
    pub(super) fn below64(&self, bound: u64) -> u64 {
        let bound = usize::try_from(bound).unwrap_or(usize::MAX);
        u64::try_from(self.below(bound)).unwrap_or(u64::MAX)
    }

    /// A number in `0..bound`; 0 when `bound` is 0.
    pub(super) fn below(&self, bound: usize) -> usize {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let scaled = (u128::from(z) * bound as u128) >> 64;
        usize::try_from(scaled).unwrap_or(0)
    }
}

/// Why no endpoint was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoChoice {
    /// There is none that was not tried.
    NoEndpoint,
    /// All that are left have as many requests in flight as they may.
    CircuitOpen,
}

/// The endpoints of one Service port.
#[derive(Debug, Default)]
pub(super) struct Backend {
    /// Nearest first.
    pub(super) endpoints: Vec<Arc<EndpointState>>,
    /// How many of them are on this node, and how many are there or in this zone.
    near: [usize; 2],
    /// Who had which of them, with session affinity.
    affinity: Option<Arc<Affinity>>,
    /// The one for a certain client, as long as it is available.
    preferred: Option<Arc<EndpointState>>,
    /// The Service, if they are one's.
    pub(super) service: Option<Arc<Subject>>,
    /// Where the next one is told, if it is worth a wait when there is no endpoint.
    pub(super) awaited: Option<Arc<Awaited>>,
}

impl Backend {
    /// Of `endpoints`, each as near as `tier` says.
    pub(super) fn new(
        mut endpoints: Vec<Arc<EndpointState>>,
        tier: impl Fn(&EndpointState) -> Tier,
    ) -> Self {
        endpoints.sort_by_key(|endpoint| tier(endpoint));
        let until = |last: Tier| endpoints.iter().take_while(|e| tier(e) <= last).count();
        let near = [until(Tier::Node), until(Tier::Zone)];
        Self { endpoints, near, affinity: None, preferred: None, service: None, awaited: None }
    }

    /// The same with session affinity.
    pub(super) fn with_affinity(mut self, affinity: Option<Arc<Affinity>>) -> Self {
        self.affinity = affinity;
        self
    }

    /// The same, counted for a Service.
    pub(super) fn of_service(mut self, service: &Arc<Subject>) -> Self {
        self.service = Some(Arc::clone(service));
        self
    }

    /// The same, worth a wait when it has no endpoint.
    pub(super) fn awaiting(mut self, awaited: Option<Arc<Awaited>>) -> Self {
        self.awaited = awaited;
        self
    }

    pub(super) fn affinity(&self) -> Option<&Arc<Affinity>> {
        self.affinity.as_ref()
    }

    /// A copy that gives `preferred` first; another one when that fails.
    pub(super) fn preferring(&self, preferred: Arc<EndpointState>) -> Self {
        let (endpoints, near) = (self.endpoints.clone(), self.near);
        let (service, awaited) = (self.service.clone(), self.awaited.clone());
        Self { endpoints, near, affinity: None, preferred: Some(preferred), service, awaited }
    }

    /// As [`Self::choose`], for connections: the circuit does not count for them.
    pub(super) fn pick(
        &self,
        tried: &[Arc<EndpointState>],
        dice: &Dice,
        now_ms: u64,
    ) -> Option<Arc<EndpointState>> {
        let draw = Draw { backend: self, tried, dice, now_ms, is_request: false };
        draw.choose().ok().map(|(endpoint, _)| Arc::clone(endpoint))
    }

    /// The endpoint for the next request, and why it is this one. Endpoints that are down or
    /// ejected come last.
    pub(super) fn choose(
        &self,
        tried: &[Arc<EndpointState>],
        dice: &Dice,
        now_ms: u64,
    ) -> Result<(Arc<EndpointState>, Choice), NoChoice> {
        let draw = Draw { backend: self, tried, dice, now_ms, is_request: true };
        draw.choose().map(|(endpoint, choice)| (Arc::clone(endpoint), choice))
    }

    /// Counts a fault of `endpoint`, and ejects it if it had too many and not too many others are
    /// ejected.
    pub(super) fn failed(&self, endpoint: &EndpointState, fault: Fault, now_ms: u64) -> Verdict {
        if !endpoint.is_too_bad(fault, now_ms) {
            return Verdict::Kept;
        }
        let ejected = self.endpoints.iter().filter(|other| other.is_ejected(now_ms)).count();
        if (ejected + 1) * EJECTED_ONE_IN_MAX > self.endpoints.len() {
            return Verdict::Spared;
        }
        endpoint.eject(now_ms);
        Verdict::Ejected
    }

    /// The tiers, nearest first, with what to say of a choice from them.
    fn tiers(&self) -> [(Range<usize>, Choice); 3] {
        let [node, zone] = self.near;
        let all = self.endpoints.len();
        [(0..node, Choice::Node), (node..zone, Choice::Zone), (zone..all, Choice::Cluster)]
    }
}

/// One choice.
struct Draw<'a> {
    backend: &'a Backend,
    tried: &'a [Arc<EndpointState>],
    dice: &'a Dice,
    now_ms: u64,
    is_request: bool,
}

impl<'a> Draw<'a> {
    fn choose(&self) -> Result<(&'a Arc<EndpointState>, Choice), NoChoice> {
        if let [only] = self.backend.endpoints.as_slice() {
            return match (self.is_fresh(only), self.is_full(only)) {
                (true, false) => Ok((only, Choice::Only)),
                (true, true) => Err(NoChoice::CircuitOpen),
                (false, _) => Err(NoChoice::NoEndpoint),
            };
        }
        if let Some(preferred) = self.backend.preferred.as_ref().filter(|one| self.is_good(one)) {
            return Ok((preferred, Choice::Kept));
        }
        for (tier, choice) in self.backend.tiers() {
            let beyond = tier.end..self.backend.endpoints.len();
            let Some(near) = self.cheaper_of_two(tier) else { continue };
            if choice == Choice::Cluster {
                return Ok((near, choice));
            }
            let Some(far) = self.cheaper_of_two(beyond) else { return Ok((near, choice)) };
            if near.cost(self.now_ms) > OVERLOAD_FACTOR * far.cost(self.now_ms) {
                return Ok((far, Choice::Spilled));
            }
            if self.dice.below(EXPLORE_ONE_IN) == 0 {
                return Ok((far, Choice::Explored));
            }
            return Ok((near, choice));
        }
        // Better one that failed lately than none.
        let mut ring = self.ring(0..self.backend.endpoints.len());
        let fresh = |e: &&Arc<EndpointState>| self.is_fresh(e) && !self.is_full(e);
        if let Some(endpoint) = ring.find(fresh) {
            return Ok((endpoint, Choice::LastResort));
        }
        let is_any_left = self.backend.endpoints.iter().any(|e| self.is_fresh(e));
        Err(if is_any_left { NoChoice::CircuitOpen } else { NoChoice::NoEndpoint })
    }

    /// Power of two choices; a look at all of them when neither of the two will do.
    fn cheaper_of_two(&self, range: Range<usize>) -> Option<&'a Arc<EndpointState>> {
        let endpoints = self.backend.endpoints.get(range.clone())?;
        let count = endpoints.len();
        if count == 0 {
            return None;
        }
        let first = self.dice.below(count);
        let second = (first + 1 + self.dice.below(count.saturating_sub(1))) % count;
        let is_good = |e: &&Arc<EndpointState>| self.is_good(e);
        let a = endpoints.get(first).filter(is_good);
        let b = endpoints.get(second).filter(is_good);
        match (a, b) {
            (Some(a), Some(b)) if b.cost(self.now_ms) < a.cost(self.now_ms) => Some(b),
            (Some(a), _) => Some(a),
            (None, Some(b)) => Some(b),
            (None, None) => self.ring(range).find(is_good),
        }
    }

    /// Those in `range`, from a random one on.
    fn ring(&self, range: Range<usize>) -> impl Iterator<Item = &'a Arc<EndpointState>> {
        let endpoints = self.backend.endpoints.get(range).unwrap_or_default();
        let (before, after) =
            endpoints.split_at_checked(self.dice.below(endpoints.len())).unwrap_or_default();
        after.iter().chain(before)
    }

    fn is_fresh(&self, endpoint: &Arc<EndpointState>) -> bool {
        !self.tried.iter().any(|tried| Arc::ptr_eq(tried, endpoint))
    }

    fn is_full(&self, endpoint: &EndpointState) -> bool {
        self.is_request && endpoint.is_full()
    }

    fn is_good(&self, endpoint: &Arc<EndpointState>) -> bool {
        endpoint.is_available(self.now_ms) && !self.is_full(endpoint) && self.is_fresh(endpoint)
    }
}

#[cfg(test)]
#[path = "balancer_test.rs"]
mod tests;
