//! Classes of priority: which the system has, and what a pod gets of one.

use serde_json::{Value, json};

use crate::api::json::{int_at, is_true, set, text_at};
use crate::api::meta;

/// API group of PriorityClass.
pub const GROUP: &str = "scheduling.k8s.io";
/// Names of the system's classes begin with it.
pub const SYSTEM_PREFIX: &str = "system-";
/// The largest value of a class that is not the system's.
pub const USER_VALUE_MAX: i64 = 1_000_000_000;
/// Pods of lower priority may have to go.
pub const PREEMPT_LOWER: &str = "PreemptLowerPriority";

/// The system's classes: name, value, description.
pub const SYSTEM: [(&str, i64, &str); 2] = [
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another \
         node if necessary.",
    ),
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
];

/// The value of a class of the system.
#[must_use]
pub fn system_value(name: &str) -> Option<i64> {
    SYSTEM.iter().find(|(system, ..)| *system == name).map(|(_, value, _)| *value)
}

/// Of these classes, the one of pods that name none: the lowest, if two should be marked.
#[must_use]
pub fn global_default(classes: &[Value]) -> Option<&Value> {
    let marked = classes.iter().filter(|class| is_true(class, "/globalDefault"));
    marked.min_by_key(|class| int_at(class, "/value").unwrap_or(0))
}

/// Gives a new pod what its class says; `None`: there is no class for it.
///
/// # Errors
///
/// When the pod says something else itself.
pub fn apply(pod: &mut Value, class: Option<&Value>) -> Result<(), String> {
    let (value, policy) = match class {
        Some(class) => (int_at(class, "/value").unwrap_or(0), text_at(class, "/preemptionPolicy")),
        None => (0, PREEMPT_LOWER),
    };
    let policy = if policy.is_empty() { PREEMPT_LOWER } else { policy };
    if let Some(own) = int_at(pod, "/spec/priority").filter(|own| *own != value) {
        return Err(format!(
            "the integer value of priority ({own}) must not be provided in pod spec; priority \
             admission controller computed {value} from the given PriorityClass name"
        ));
    }
    let own = text_at(pod, "/spec/preemptionPolicy");
    if !own.is_empty() && own != policy {
        return Err(format!(
            "the string value of PreemptionPolicy ({own}) must not be provided in pod spec; priority \
             admission controller computed {policy} from the given PriorityClass name"
        ));
    }
    let name = class.map(|class| meta::name(class).to_owned());
    let Some(spec) = pod.get_mut("spec") else { return Ok(()) };
    if let Some(name) = name {
        set(spec, "priorityClassName", name);
    }
    set(spec, "priority", json!(value));
    set(spec, "preemptionPolicy", policy);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_gets_what_its_class_says_and_says_nothing_else() {
        let class = json!({"metadata": {"name": "high"}, "value": 7, "preemptionPolicy": "Never"});
        let mut pod = json!({"spec": {}});
        assert_eq!(apply(&mut pod, Some(&class)), Ok(()));
        assert_eq!(
            pod["spec"],
            json!({"priorityClassName": "high", "priority": 7, "preemptionPolicy": "Never"})
        );
        assert_eq!(apply(&mut pod, Some(&class)), Ok(()), "what it has is what it gets");
        let refused = apply(&mut pod, None).unwrap_err();
        assert!(refused.contains("computed 0 from the given PriorityClass name"), "{refused}");
        let mut pod = json!({"spec": {"preemptionPolicy": "Never"}});
        let refused = apply(&mut pod, None).unwrap_err();
        assert!(refused.contains("PreemptionPolicy (Never)"), "{refused}");
        let mut pod = json!({"spec": {}});
        assert_eq!(apply(&mut pod, None), Ok(()));
        assert_eq!(pod["spec"], json!({"priority": 0, "preemptionPolicy": PREEMPT_LOWER}));
    }

    #[test]
    fn the_lowest_of_two_defaults_counts() {
        let class =
            |value: i64, is_default: bool| json!({"value": value, "globalDefault": is_default});
        assert_eq!(global_default(&[class(1, false)]), None);
        let classes = [class(9, true), class(3, true), class(1, false)];
        assert_eq!(global_default(&classes), Some(&classes[1]));
    }
}
