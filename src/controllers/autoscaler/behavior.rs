//! From what the load asks for to what is done: stabilization, limits and policies, pure but for the
//! memory of what was.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerSpec,
};

use crate::controllers::autoscaler::calculator::ceil;
use crate::controllers::object::elapsed;

/// How long the highest recommendation counts on the way down, unless it is said otherwise.
const DOWN_WINDOW: Duration = Duration::from_secs(300);
/// Recommendations and changes that are remembered, each.
const MEMORY_MAX: usize = 4096;
/// How long anything is remembered: the longest window and period.
const MEMORY: Duration = Duration::from_secs(3600);

/// What was recommended and done of late.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory {
    recommended: VecDeque<(Timestamp, u32)>,
    /// Replicas added, or taken away.
    added: VecDeque<(Timestamp, u32)>,
    taken: VecDeque<(Timestamp, u32)>,
}

impl Memory {
    /// Begins with what is there, so that a controller that has just started takes nothing away at once.
    pub(super) fn begin(&mut self, current: u32, now: Timestamp) {
        if self.recommended.is_empty() {
            self.recommended.push_back((now, current));
        }
    }

    /// Notes that replicas went from `from` to `to`.
    pub(super) fn changed(&mut self, from: u32, to: u32, now: Timestamp) {
        if to > from {
            remember(&mut self.added, now, to - from);
        } else if from > to {
            remember(&mut self.taken, now, from - to);
        }
    }
}

fn remember(list: &mut VecDeque<(Timestamp, u32)>, now: Timestamp, number: u32) {
    while list.front().is_some_and(|(at, _)| elapsed(*at, now) > MEMORY) || list.len() >= MEMORY_MAX
    {
        list.pop_front();
    }
    list.push_back((now, number));
}

fn within(
    list: &VecDeque<(Timestamp, u32)>,
    window: Duration,
    now: Timestamp,
) -> impl Iterator<Item = u32> {
    list.iter().filter(move |(at, _)| elapsed(*at, now) < window).map(|(_, number)| *number)
}

/// A condition's reason and message.
pub(super) type Why = (&'static str, &'static str);

/// What is to be done, and why it is not what was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) replicas: u32,
    /// For `AbleToScale`.
    pub(super) able: Why,
    /// For `ScalingLimited`; whether it is true.
    pub(super) limited: (bool, Why),
}

const IN_RANGE: (bool, Why) =
    (false, ("DesiredWithinRange", "the desired count is within the acceptable range"));
const TOO_FEW: (bool, Why) =
    (true, ("TooFewReplicas", "the desired replica count is less than the minimum replica count"));
const TOO_MANY: (bool, Why) =
    (true, ("TooManyReplicas", "the desired replica count is more than the maximum replica count"));
const UP_LIMIT: (bool, Why) = (
    true,
    ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate"),
);
const DOWN_LIMIT: (bool, Why) = (
    true,
    (
        "ScaleDownLimit",
        "the desired replica count is decreasing faster than the maximum scale rate",
    ),
);
const READY: Why = ("ReadyForNewScale", "recommended size matches current size");
const HELD_DOWN: Why = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const HELD_UP: Why = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);

/// Decides from `current` replicas and those that the load asks for.
pub(super) fn decide(
    spec: &HorizontalPodAutoscalerSpec,
    memory: &mut Memory,
    current: u32,
    asked: u32,
    now: Timestamp,
) -> Decision {
    let count = |n: i32| u32::try_from(n).unwrap_or(0);
    let (min, max) = (count(spec.min_replicas.unwrap_or(1)), count(spec.max_replicas));
    let behavior = spec.behavior.as_ref();
    let up = behavior.and_then(|behavior| behavior.scale_up.as_ref());
    let down = behavior.and_then(|behavior| behavior.scale_down.as_ref());
    let window = |rules: Option<&HPAScalingRules>, default| {
        let seconds = rules.and_then(|rules| rules.stabilization_window_seconds);
        seconds.map_or(default, |n| Duration::from_secs(u64::from(count(n))))
    };
    let lowest = within(&memory.recommended, window(up, Duration::ZERO), now).fold(asked, u32::min);
    let highest = within(&memory.recommended, window(down, DOWN_WINDOW), now).fold(asked, u32::max);
    remember(&mut memory.recommended, now, asked);
    // What is there stays unless the window agrees that there should be more, or less.
    let (stable, able) = if current < lowest {
        (lowest, if lowest < asked { HELD_UP } else { READY })
    } else if current > highest {
        (highest, if highest > asked { HELD_DOWN } else { READY })
    } else if asked < current {
        (current, HELD_DOWN)
    } else if asked > current {
        (current, HELD_UP)
    } else {
        (current, READY)
    };
    let (replicas, limited) = if stable > current {
        let limit = match up {
            Some(rules) => up_limit(rules, memory, current, now),
            None => current.saturating_mul(2).max(4),
        };
        // A limit that fell while replicas were added never takes any away.
        cap(stable, limit.max(current), max)
    } else if stable < current {
        let floor = down.map_or(0, |rules| down_limit(rules, memory, current, now));
        raise(stable, floor.min(current), min)
    } else if stable < min {
        (min, TOO_FEW)
    } else if stable > max {
        (max, TOO_MANY)
    } else {
        (stable, IN_RANGE)
    };
    Decision { replicas: replicas.clamp(min, max), able, limited }
}

fn cap(asked: u32, limit: u32, max: u32) -> (u32, (bool, Why)) {
    let (most, why) = if limit < max { (limit, UP_LIMIT) } else { (max, TOO_MANY) };
    if asked > most { (most, why) } else { (asked, IN_RANGE) }
}

fn raise(asked: u32, floor: u32, min: u32) -> (u32, (bool, Why)) {
    let (least, why) = if floor > min { (floor, DOWN_LIMIT) } else { (min, TOO_FEW) };
    if asked < least { (least, why) } else { (asked, IN_RANGE) }
}

/// Most replicas that the policies allow now.
fn up_limit(rules: &HPAScalingRules, memory: &Memory, current: u32, now: Timestamp) -> u32 {
    let is_least = rules.select_policy.as_deref() == Some("Min");
    if rules.select_policy.as_deref() == Some("Disabled") {
        return current;
    }
    let limits = rules.policies.iter().flatten().map(|policy| {
        let (added, taken) = of_period(policy, memory, now);
        let before = current.saturating_add(taken).saturating_sub(added);
        let value = u32::try_from(policy.value).unwrap_or(0);
        match policy.type_.as_str() {
            "Pods" => before.saturating_add(value),
            // From zero any percentage is nothing, and nothing would ever begin.
            _ => ceil(f64::from(before) * (1.0 + f64::from(value) / 100.0)).max(1),
        }
    });
    (if is_least { limits.min() } else { limits.max() }).unwrap_or(u32::MAX)
}

/// Fewest replicas that the policies allow now.
fn down_limit(rules: &HPAScalingRules, memory: &Memory, current: u32, now: Timestamp) -> u32 {
    let is_least = rules.select_policy.as_deref() == Some("Min");
    if rules.select_policy.as_deref() == Some("Disabled") {
        return current;
    }
    let limits = rules.policies.iter().flatten().map(|policy| {
        let (added, taken) = of_period(policy, memory, now);
        let before = current.saturating_add(taken).saturating_sub(added);
        let value = u32::try_from(policy.value).unwrap_or(0);
        match policy.type_.as_str() {
            "Pods" => before.saturating_sub(value),
            _ => floor(f64::from(before) * (1.0 - f64::from(value) / 100.0)),
        }
    });
    (if is_least { limits.max() } else { limits.min() }).unwrap_or(0)
}

/// What was added and taken within the policy's period.
fn of_period(policy: &HPAScalingPolicy, memory: &Memory, now: Timestamp) -> (u32, u32) {
    let period = Duration::from_secs(u64::try_from(policy.period_seconds).unwrap_or(0));
    let sum = |list| within(list, period, now).fold(0, u32::saturating_add);
    (sum(&memory.added), sum(&memory.taken))
}

fn floor(n: f64) -> u32 {
    ceil(n.floor())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn spec(changes: &Value) -> HorizontalPodAutoscalerSpec {
        let mut spec = json!({"maxReplicas": 20, "minReplicas": 1,
            "scaleTargetRef": {"kind": "Deployment", "name": "web"}});
        json_patch::merge(&mut spec, changes);
        serde_json::from_value(spec).unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// Lets `asked` come in every 10 s, and does what is decided.
    fn run(spec: &HorizontalPodAutoscalerSpec, start: u32, asked: &[u32]) -> Vec<u32> {
        let (mut memory, mut current) = (Memory::default(), start);
        memory.begin(start, at(0));
        let steps = asked.iter().enumerate().map(|(step, asked)| {
            let now = at(10 * i64::try_from(step + 1).unwrap());
            let decision = decide(spec, &mut memory, current, *asked, now);
            memory.changed(current, decision.replicas, now);
            current = decision.replicas;
            current
        });
        steps.collect()
    }

    #[test]
    fn without_behavior_it_doubles_at_most_and_waits_five_minutes_to_go_down() {
        assert_eq!(run(&spec(&json!({})), 1, &[20, 20, 20, 20]), [4, 8, 16, 20]);
        let mut down = vec![1; 31];
        down[0] = 3;
        let got = run(&spec(&json!({})), 5, &down);
        assert_eq!(got[..29], [5; 29], "the first recommendation was what was there");
        assert_eq!(got[29..], [3, 1], "then those that came later");
    }

    #[test]
    fn windows_hold_both_ways() {
        let window = |up: u32, down: u32| {
            spec(&json!({"behavior": {
            "scaleUp": {"stabilizationWindowSeconds": up, "policies": [{"type": "Pods", "value": 100, "periodSeconds": 1}]},
            "scaleDown": {"stabilizationWindowSeconds": down, "policies": [{"type": "Percent", "value": 100, "periodSeconds": 1}]}}}))
        };
        assert_eq!(run(&window(0, 0), 5, &[9, 2, 7]), [9, 2, 7]);
        assert_eq!(run(&window(25, 0), 5, &[9, 8, 9, 9]), [5, 5, 8, 8]);
        assert_eq!(run(&window(0, 25), 5, &[2, 3, 2, 2]), [5, 5, 3, 3]);
    }

    #[test]
    fn policies_limit_how_fast() {
        let with = |up: Value, down: Value| {
            spec(&json!({"behavior": {
            "scaleUp": {"policies": up, "selectPolicy": "Max", "stabilizationWindowSeconds": 0},
            "scaleDown": {"policies": down, "selectPolicy": "Max", "stabilizationWindowSeconds": 0}}}))
        };
        let pods = |value: u32, period: u32| json!([{"type": "Pods", "value": value, "periodSeconds": period}]);
        let percent = |value: u32| json!([{"type": "Percent", "value": value, "periodSeconds": 5}]);
        assert_eq!(run(&with(pods(2, 15), pods(1, 5)), 2, &[9, 9, 9, 1]), [4, 4, 6, 5]);
        assert_eq!(
            run(&with(percent(50), percent(50)), 4, &[20, 20, 1, 1, 1, 1]),
            [6, 9, 4, 2, 1, 1]
        );
        let mut least = with(json!([pods(1, 5)[0], percent(100)[0]]), pods(1, 5));
        assert_eq!(run(&least, 4, &[20]), [8]);
        least.behavior.as_mut().unwrap().scale_up.as_mut().unwrap().select_policy =
            Some("Min".into());
        assert_eq!(run(&least, 4, &[20]), [5]);
        let mut never = with(pods(1, 5), pods(1, 5));
        never.behavior.as_mut().unwrap().scale_down.as_mut().unwrap().select_policy =
            Some("Disabled".into());
        assert_eq!(run(&never, 4, &[1, 5]), [4, 5]);
    }

    #[test]
    fn select_policy_is_the_wider_or_the_narrower_one_or_no_change_either_way() {
        let with = |direction: &str, select: &str| {
            spec(&json!({"behavior": {direction: {
                "stabilizationWindowSeconds": 0, "selectPolicy": select, "policies": [
                    {"type": "Pods", "value": 1, "periodSeconds": 5},
                    {"type": "Percent", "value": 50, "periodSeconds": 5}]}}}))
        };
        for (select, up, down) in [("Max", 12, 4), ("Min", 9, 7), ("Disabled", 8, 8)] {
            assert_eq!(run(&with("scaleUp", select), 8, &[20]), [up], "{select} up");
            assert_eq!(run(&with("scaleDown", select), 8, &[1]), [down], "{select} down");
        }
    }

    #[test]
    fn a_window_that_is_not_said_is_none_up_and_five_minutes_down() {
        let fast = json!({"policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]});
        let spec = spec(&json!({"behavior": {"scaleUp": fast, "scaleDown": fast}}));
        assert_eq!(run(&spec, 4, &[8]), [8]);
        let got = run(&spec, 5, &[1; 30]);
        assert_eq!(got[..29], [5; 29], "the first recommendation was what was there");
        assert_eq!(got[29], 1);
    }

    #[test]
    fn limits_are_told() {
        let told = |current, asked| {
            let decision = decide(
                &spec(&json!({"maxReplicas": 6})),
                &mut Memory::default(),
                current,
                asked,
                at(0),
            );
            (decision.replicas, decision.limited.0, decision.limited.1.0)
        };
        assert_eq!(told(2, 3), (3, false, "DesiredWithinRange"));
        assert_eq!(told(2, 9), (4, true, "ScaleUpLimit"));
        assert_eq!(told(4, 9), (6, true, "TooManyReplicas"));
        assert_eq!(told(4, 0), (1, true, "TooFewReplicas"));
        let held = decide(
            &spec(&json!({})),
            &mut Memory { recommended: [(at(0), 5)].into(), ..Memory::default() },
            5,
            2,
            at(1),
        );
        assert_eq!((held.replicas, held.able.0), (5, "ScaleDownStabilized"));
    }

    #[test]
    fn to_zero_and_back() {
        let zero = spec(&json!({"minReplicas": 0, "behavior": {
            "scaleUp": {"stabilizationWindowSeconds": 0, "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]},
            "scaleDown": {"stabilizationWindowSeconds": 0, "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]}}}));
        assert_eq!(run(&zero, 1, &[0, 0, 1, 0]), [0, 0, 1, 0]);
    }

    proptest! {
        /// Goal: whatever is asked for, replicas stay within their bounds, move no faster than policies
        /// let them, and end where a load that stays wants them. Method: a look every 10 s, policies
        /// over 15 s: two looks share one.
        #[test]
        fn no_load_breaks_bounds_or_policies(
            (min, max) in (0..4_u32, 4..20_u32),
            (up, down, window) in (1..6_u32, 1..6_u32, 0..60_u32),
            mut asked in prop::collection::vec(0..30_u32, 1..40),
            last in 0..30_u32,
        ) {
            let pods = |value: u32| json!([{"type": "Pods", "value": value, "periodSeconds": 15}]);
            let spec = spec(&json!({"minReplicas": min, "maxReplicas": max, "behavior": {
                "scaleUp": {"stabilizationWindowSeconds": 0, "policies": pods(up)},
                "scaleDown": {"stabilizationWindowSeconds": window, "policies": pods(down)}}}));
            asked.extend([last; 60]);
            let start = asked[0].clamp(min, max);
            let mut replicas = vec![start, start];
            replicas.extend(run(&spec, start, &asked));
            for (at, is) in replicas.iter().copied().enumerate().skip(2) {
                let (before, was) = (replicas[at - 2], replicas[at - 1]);
                prop_assert!((min..=max).contains(&is), "{} of {}..{}", is, min, max);
                prop_assert!(is <= was.max(before + up), "{} after {}, {}", is, before, was);
                prop_assert!(is >= was.min(before.saturating_sub(down)), "{} after {}, {}", is, before, was);
                let wanted = asked[at - 2].clamp(min, max);
                prop_assert!(is <= was || is <= wanted, "up to {}, {} are wanted", is, wanted);
                prop_assert!(is >= was || is >= wanted, "down to {}, {} are wanted", is, wanted);
            }
            prop_assert_eq!(replicas.last().copied(), Some(last.clamp(min, max)));
        }
    }
}
