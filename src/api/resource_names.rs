//! The names of what can be asked for, limited and counted: `cpu`, `example.com/camera`, `count/pods`.

use crate::api::names;

/// What a container can ask for, besides huge pages.
const CONTAINER: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
/// What a quota can limit, besides what has a domain or is a huge page.
const QUOTA: [&str; 20] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "services.nodeports",
    "services.loadbalancers",
];
/// What a limit range can be about.
const LIMITED: [&str; 3] = ["Pod", "Container", "PersistentVolumeClaim"];

/// Whether it is an extended resource: it has a domain, which is not Kubernetes'. Such things are counted one by
/// one, and never given twice.
#[must_use]
pub fn is_extended(name: &str) -> bool {
    name.split_once('/').is_some_and(|(domain, _)| !domain.ends_with("kubernetes.io"))
        && !name.starts_with("requests.")
}

fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Whether it comes in whole numbers, and requests are limits.
#[must_use]
pub fn is_never_overcommitted(name: &str) -> bool {
    is_extended(name) || is_huge_page(name)
}

/// What a container, or all containers of a pod, may ask for.
///
/// # Errors
///
/// The rule that is broken, in Kubernetes' words.
pub fn check_of_container(name: &str) -> Result<(), &'static str> {
    let is_known = CONTAINER.contains(&name) || is_huge_page(name);
    check(name, is_known, "must be a standard resource for containers")
}

/// What a quota may limit.
///
/// # Errors
///
/// The rule that is broken, in Kubernetes' words.
pub fn check_of_quota(name: &str) -> Result<(), &'static str> {
    let is_known =
        QUOTA.contains(&name) || is_huge_page(name.strip_prefix("requests.").unwrap_or(name));
    check(name, is_known, "must be a standard resource for quotas")
}

/// What a limit range may be about.
///
/// # Errors
///
/// The rule that is broken, in Kubernetes' words.
pub fn check_limit_type(name: &str) -> Result<(), &'static str> {
    check(name, LIMITED.contains(&name), "must be a standard limit type or fully qualified")
}

/// What a limit range of another type than containers and pods may bound.
///
/// # Errors
///
/// The rule that is broken, in Kubernetes' words.
pub fn check_of_limit(name: &str) -> Result<(), &'static str> {
    let is_known = QUOTA.contains(&name) || is_huge_page(name);
    check(name, is_known, "must be a standard resource type or fully qualified")
}

/// Others' names have a domain.
fn check(name: &str, is_known: bool, rule: &'static str) -> Result<(), &'static str> {
    names::check_qualified_name(name)?;
    if is_known || name.contains('/') { Ok(()) } else { Err(rule) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_standard_one_or_has_a_domain() {
        type Check = fn(&str) -> Result<(), &'static str>;
        for (check, good, bad) in [
            (
                check_of_container as Check,
                &["cpu", "hugepages-2Mi", "example.com/camera"][..],
                &["foo", "pods", "", "a b"][..],
            ),
            (
                check_of_quota,
                &["pods", "requests.cpu", "count/jobs.batch", "requests.example.com/camera"],
                &["pod", "foo", "requests.foo", "bogus.cpu"],
            ),
            (check_limit_type, &["Pod", "example.com/Thing"], &["Foo", "pod"]),
            (check_of_limit, &["storage", "example.com/x"], &["x"]),
        ] {
            for name in good {
                assert_eq!(check(name), Ok(()), "{name}");
            }
            for name in bad {
                assert!(check(name).is_err(), "{name}");
            }
        }
        assert!(is_extended("example.com/camera") && !is_extended("cpu"));
        assert!(!is_extended("kubernetes.io/x") && !is_extended("requests.example.com/camera"));
    }
}
