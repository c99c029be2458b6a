//! How many replicas a measured load asks for: Kubernetes' replica calculator, pure.
//!
//! Amounts are in thousandths, as Kubernetes counts them.

use std::collections::BTreeMap;

/// What is known of one pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PodState {
    /// It is on its way out or has failed: it counts for nothing.
    Ignored,
    /// It does not serve yet, or has not been measured since it does.
    Unready,
    /// It serves.
    Ready,
}

/// One pod with its measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) state: PodState,
    /// What it uses; `None` if that is not known.
    pub(super) used: Option<i64>,
    /// What it asks for, which utilization is a share of; `None` if a part of it does not say.
    pub(super) requested: Option<i64>,
}

/// How much more or less than the target changes nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tolerance {
    pub(super) up: f64,
    pub(super) down: f64,
}

impl Default for Tolerance {
    fn default() -> Self {
        Self { up: 0.1, down: 0.1 }
    }
}

impl Tolerance {
    fn covers(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// What pods should use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// Percent of what they ask for.
    Utilization(i64),
    /// So much each.
    Average(i64),
}

/// What comes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Proposal {
    pub(super) replicas: u32,
    /// Percent of what is asked for, with [`Target::Utilization`].
    pub(super) utilization: Option<i64>,
    /// What a pod uses on average, or the whole for an object.
    pub(super) value: i64,
}

/// Why nothing comes out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CalculationError {
    /// No pod was measured: try again at the next look.
    #[error("did not receive metrics for targeted pods (pods might be unready)")]
    NoMetrics,
    /// Utilization is a share of requests, and the sample at this place has none: the workload must
    /// be changed.
    #[error("missing request for the resource")]
    NoRequest {
        /// Number of the sample.
        at: usize,
    },
    /// Utilization is a share of requests, and they are all zero: the workload must be changed.
    #[error("the requests for the resource are zero")]
    ZeroRequests,
}

/// By name, what the pods that count use, and what they ask for.
struct Sums {
    used: BTreeMap<usize, i64>,
    requested: BTreeMap<usize, i64>,
}

impl Sums {
    fn ratio(&self, target: Target) -> Result<(f64, Option<i64>), CalculationError> {
        let used: i64 = self.used.values().fold(0, |sum, one| sum.saturating_add(*one));
        match target {
            Target::Utilization(percent) => {
                let asked = self.used.keys().filter_map(|at| self.requested.get(at));
                let asked: i64 = asked.fold(0, |sum, one| sum.saturating_add(*one));
                if asked <= 0 {
                    return Err(CalculationError::ZeroRequests);
                }
                let utilization = used.saturating_mul(100) / asked;
                Ok((f64_of(utilization) / f64_of(percent.max(1)), Some(utilization)))
            }
            Target::Average(target) => {
                let count = i64::try_from(self.used.len()).unwrap_or(i64::MAX).max(1);
                let average = used / count;
                Ok((f64_of(average) / f64_of(target.max(1)), None))
            }
        }
    }

    fn average(&self) -> i64 {
        let used: i64 = self.used.values().fold(0, |sum, one| sum.saturating_add(*one));
        used / i64::try_from(self.used.len()).unwrap_or(i64::MAX).max(1)
    }
}

/// Replicas for what is measured at pods.
pub(super) fn by_pods(
    current: u32,
    samples: &[Sample],
    target: Target,
    tolerance: Tolerance,
) -> Result<Proposal, CalculationError> {
    let mut sums = Sums { used: BTreeMap::new(), requested: BTreeMap::new() };
    let (mut missing, mut unready, mut silent) = (Vec::new(), Vec::new(), None);
    for (at, sample) in samples.iter().enumerate() {
        if sample.state == PodState::Ignored {
            continue;
        }
        match sample.requested {
            Some(requested) => drop(sums.requested.insert(at, requested)),
            None => silent = silent.or(Some(at)),
        }
        match (sample.state, sample.used) {
            (PodState::Unready, _) => unready.push(at),
            (_, None) => missing.push(at),
            (_, Some(used)) => drop(sums.used.insert(at, used)),
        }
    }
    if sums.used.is_empty() {
        return Err(CalculationError::NoMetrics);
    }
    if let (Target::Utilization(_), Some(at)) = (target, silent) {
        return Err(CalculationError::NoRequest { at });
    }
    let ready = sums.used.len();
    let (ratio, utilization) = sums.ratio(target)?;
    let proposal = |replicas| Proposal { replicas, utilization, value: sums.average() };
    let is_up_with_unready = !unready.is_empty() && ratio > 1.0;
    if !is_up_with_unready && missing.is_empty() {
        let replicas = if tolerance.covers(ratio) { current } else { ceil(ratio * len(ready)) };
        return Ok(proposal(replicas));
    }
    let mut guessed = Sums { used: sums.used.clone(), requested: sums.requested.clone() };
    for at in missing {
        // On the way down they are held to use what they may; on the way up, nothing.
        let full = match target {
            Target::Utilization(percent) => {
                let asked = sums.requested.get(&at).copied().unwrap_or(0);
                asked.saturating_mul(percent.max(100)) / 100
            }
            Target::Average(target) => target,
        };
        if ratio < 1.0 {
            guessed.used.insert(at, full);
        } else if ratio > 1.0 {
            guessed.used.insert(at, 0);
        }
    }
    if is_up_with_unready {
        guessed.used.extend(unready.into_iter().map(|at| (at, 0)));
    }
    let (guess, _) = guessed.ratio(target)?;
    let has_turned = (ratio < 1.0 && guess > 1.0) || (ratio > 1.0 && guess < 1.0);
    if tolerance.covers(guess) || has_turned {
        return Ok(proposal(current));
    }
    let replicas = ceil(guess * len(guessed.used.len()));
    let is_backwards = (guess < 1.0 && replicas > current) || (guess > 1.0 && replicas < current);
    Ok(proposal(if is_backwards { current } else { replicas }))
}

/// Replicas for an object's whole value of which each ready pod takes its part.
pub(super) fn by_value(
    current: u32,
    ready: usize,
    used: i64,
    target: i64,
    tolerance: Tolerance,
) -> Proposal {
    let ratio = f64_of(used) / f64_of(target.max(1));
    let replicas = if current == 0 {
        ceil(ratio)
    } else if tolerance.covers(ratio) {
        current
    } else {
        ceil(ratio * len(ready))
    };
    Proposal { replicas, utilization: None, value: used }
}

/// Replicas for an object's value that is shared evenly.
pub(super) fn by_share(current: u32, used: i64, target: i64, tolerance: Tolerance) -> Proposal {
    let target = f64_of(target.max(1));
    let ratio =
        if current == 0 { f64::INFINITY } else { f64_of(used) / (target * f64::from(current)) };
    let is_enough = current > 0 && tolerance.covers(ratio);
    let replicas = if is_enough { current } else { ceil(f64_of(used) / target) };
    let value = used / i64::from(current.max(1));
    Proposal { replicas, utilization: None, value }
}

fn len(n: usize) -> f64 {
    f64::from(u32::try_from(n).unwrap_or(u32::MAX))
}

#[expect(clippy::cast_precision_loss, reason = "amounts are far below what a float holds exactly")]
fn f64_of(n: i64) -> f64 {
    n as f64
}

/// Rounded up, in the range of replicas.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "cut to the range before"
)]
pub(super) fn ceil(n: f64) -> u32 {
    n.ceil().clamp(0.0, f64::from(i32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(used: i64) -> Sample {
        Sample { state: PodState::Ready, used: Some(used), requested: Some(1000) }
    }

    fn missing() -> Sample {
        Sample { state: PodState::Ready, used: None, requested: Some(1000) }
    }

    fn unready(used: i64) -> Sample {
        Sample { state: PodState::Unready, used: Some(used), requested: Some(1000) }
    }

    fn ignored() -> Sample {
        Sample { state: PodState::Ignored, used: Some(9000), requested: Some(1000) }
    }

    /// The classic cases, most of them those of Kubernetes' own tests.
    #[test]
    fn utilization_of_requests_gives_replicas() {
        for (what, current, samples, percent, wanted) in [
            ("up", 3, vec![ready(300), ready(500), ready(700)], 30, 5),
            ("up, one unready", 3, vec![unready(300), ready(500), ready(700)], 30, 4),
            ("up, two unready, less", 3, vec![ready(400), unready(500), unready(700)], 30, 3),
            ("up, one missing", 3, vec![missing(), ready(500), ready(700)], 30, 4),
            ("hot, one ignored", 4, vec![ignored(), ready(500), ready(500), ready(700)], 30, 6),
            ("down", 5, [100, 300, 500, 250, 250].map(ready).to_vec(), 50, 3),
            (
                "down, one unready counts for nothing",
                5,
                vec![ready(100), ready(300), ready(500), ready(250), unready(250)],
                50,
                3,
            ),
            (
                "down, one missing is at its limit",
                5,
                vec![missing(), ready(100), ready(100), ready(100), ready(100)],
                50,
                3,
            ),
            ("down, most missing: it would turn", 3, vec![missing(), missing(), ready(100)], 50, 3),
            ("within tolerance", 3, [1010, 1030, 1020].map(ready).to_vec(), 100, 3),
            ("just beyond tolerance", 3, [1110, 1110, 1110].map(ready).to_vec(), 100, 4),
            ("idle", 4, [0, 0, 0, 0].map(ready).to_vec(), 50, 0),
            ("one of one", 1, vec![ready(2000)], 50, 4),
        ] {
            let got =
                by_pods(current, &samples, Target::Utilization(percent), Tolerance::default());
            assert_eq!(got.unwrap().replicas, wanted, "{what}");
        }
    }

    #[test]
    fn values_per_pod_give_replicas() {
        for (what, current, samples, target, wanted) in [
            ("up", 3, vec![ready(20_000), ready(10_000), ready(30_000)], 15_000, 4),
            (
                "up, unready and missing",
                4,
                vec![unready(50_000), ready(30_000), missing(), ready(30_000)],
                15_000,
                4,
            ),
            ("down", 5, [12_000; 5].map(ready).to_vec(), 20_000, 3),
            (
                "down, one missing is at the target",
                3,
                vec![missing(), ready(10), ready(10)],
                20_000,
                2,
            ),
            ("within tolerance", 3, [19_000, 20_000, 21_000].map(ready).to_vec(), 20_000, 3),
        ] {
            let got = by_pods(current, &samples, Target::Average(target), Tolerance::default());
            assert_eq!(got.unwrap().replicas, wanted, "{what}");
        }
    }

    #[test]
    fn without_measures_or_requests_there_is_no_answer() {
        let of =
            |samples: &[Sample]| by_pods(1, samples, Target::Utilization(50), Tolerance::default());
        assert_eq!(of(&[]), Err(CalculationError::NoMetrics));
        assert_eq!(of(&[missing()]), Err(CalculationError::NoMetrics));
        assert_eq!(of(&[unready(5)]), Err(CalculationError::NoMetrics));
        let free = Sample { requested: Some(0), ..ready(5) };
        assert_eq!(of(&[free]), Err(CalculationError::ZeroRequests));
        assert!(of(&[free, ready(5)]).is_ok(), "nothing was asked for, and that was said");
    }

    #[test]
    fn one_pod_without_a_request_leaves_no_utilization() {
        let silent = |sample: Sample| Sample { requested: None, ..sample };
        let of = |samples: &[Sample], target| by_pods(1, samples, target, Tolerance::default());
        let share = Target::Utilization(50);
        for (what, one) in [
            ("ready", silent(ready(500))),
            ("unready", silent(unready(500))),
            ("not measured", silent(missing())),
        ] {
            let mixed = [ready(500), one, ready(500)];
            assert_eq!(of(&mixed, share), Err(CalculationError::NoRequest { at: 1 }), "{what}");
            assert!(of(&mixed, Target::Average(500)).is_ok(), "{what}: an amount is no share");
        }
        assert!(of(&[ready(500), silent(ignored())], share).is_ok(), "it counts for nothing");
    }

    #[test]
    fn what_is_found_is_told() {
        let got =
            by_pods(2, &[ready(300), ready(500)], Target::Utilization(40), Tolerance::default());
        assert_eq!(got.unwrap(), Proposal { replicas: 2, utilization: Some(40), value: 400 });
    }

    #[test]
    fn an_objects_value_gives_replicas_also_from_zero() {
        for (what, current, ready, used, target, wanted) in [
            ("up", 3, 3, 20_000, 15_000, 4),
            ("only ready pods count", 3, 1, 30_000, 10_000, 3),
            ("down", 5, 5, 12_000, 20_000, 3),
            ("within tolerance", 3, 3, 20_666, 20_000, 3),
            ("from zero", 0, 0, 25_000, 10_000, 3),
            ("nothing at zero", 0, 0, 0, 10_000, 0),
            ("to zero", 3, 3, 0, 10_000, 0),
        ] {
            let got = by_value(current, ready, used, target, Tolerance::default());
            assert_eq!(got.replicas, wanted, "{what}");
        }
        for (what, current, used, target, wanted) in [
            ("up", 3, 80_000, 20_000, 4),
            ("down", 5, 12_000, 6_000, 2),
            ("within tolerance", 4, 82_000, 20_000, 4),
            ("from zero", 0, 1, 10_000, 1),
            ("to zero", 2, 0, 10_000, 0),
        ] {
            let got = by_share(current, used, target, Tolerance::default());
            assert_eq!(got.replicas, wanted, "{what}");
        }
    }

    #[test]
    fn tolerance_may_differ_by_direction() {
        let wide = Tolerance { up: 0.5, down: 0.0 };
        assert_eq!(by_value(2, 2, 14_000, 10_000, wide).replicas, 2);
        assert_eq!(by_value(2, 2, 9_000, 10_000, wide).replicas, 2);
        assert_eq!(by_value(10, 10, 8_900, 10_000, wide).replicas, 9);
    }
}
