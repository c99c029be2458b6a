//! Limits that a pod sets on its own disk use, kept by eviction.
//!
//! Most writes of guests never get so far: an `emptyDir` with a `sizeLimit` answers
//! `insufficient-space` at once. What is left is what nobody asks about: logs, files beside volumes,
//! an `emptyDir` without a limit of its own, writes that do not go through WASI 0.2.

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::agent::pod::plan::bytes;
use crate::agent::usage::PodDisk;

const RESOURCE: &str = "ephemeral-storage";

/// Whether the pod limits its disk use at all: only then its folder is walked.
pub(super) fn has_limits(pod: &Pod) -> bool {
    containers(pod).any(|container| limit(container).is_some()) || sizes(pod).next().is_some()
}

/// The limit that is broken, in the words of the pod's status.
pub(super) fn broken(pod: &Pod, disk: &PodDisk) -> Option<String> {
    // By length, as the sandbox counts: what it granted is not held against the pod.
    let volume = sizes(pod)
        .find(|(name, most, _)| disk.volumes.get(*name).is_some_and(|tally| tally.length > *most));
    if let Some((name, _, shown)) = volume {
        return Some(format!("Usage of EmptyDir volume {name:?} exceeds the limit {shown:?}."));
    }
    let limits = containers(pod).filter_map(|container| limit(container).map(|(bytes, _)| bytes));
    let all = limits.fold(None, |sum: Option<u64>, one| Some(sum.unwrap_or(0).saturating_add(one)));
    if let Some(all) = all.filter(|all| disk.total().bytes > *all) {
        let shown = super::pressure::show_bytes(all);
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {shown}."
        ));
    }
    let container = containers(pod).find(|container| {
        let used = disk.of_container(&container.name).bytes;
        limit(container).is_some_and(|(most, _)| used > most)
    })?;
    let (_, shown) = limit(container)?;
    Some(format!(
        "Container {} exceeded its local ephemeral storage limit {shown:?}.",
        container.name
    ))
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.iter();
    spec.flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()))
}

/// Bytes that a container may use, and how its spec says that.
fn limit(container: &Container) -> Option<(u64, &str)> {
    let limits = container.resources.as_ref()?.limits.as_ref()?;
    let text = limits.get(RESOURCE)?.0.as_str();
    bytes(text).filter(|bytes| *bytes > 0).map(|bytes| (bytes, text))
}

/// Name and limit of each `emptyDir` that has one.
fn sizes(pod: &Pod) -> impl Iterator<Item = (&str, u64, &str)> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| {
        let text = volume.empty_dir.as_ref()?.size_limit.as_ref()?.0.as_str();
        let most = bytes(text).filter(|bytes| *bytes > 0)?;
        Some((volume.name.as_str(), most, text))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::agent::usage::Tally;

    fn pod(limits: Value, volume: Value) -> Pod {
        let pod = json!({"spec": {
            "containers": [{"name": "a", "resources": {"limits": limits}}, {"name": "b"}],
            "volumes": [{"name": "v", "emptyDir": volume}],
        }});
        serde_json::from_value(pod).unwrap()
    }

    fn disk(logs: u64, volume: u64) -> PodDisk {
        let tally = |bytes| Tally { bytes, length: bytes, inodes: 1 };
        PodDisk {
            logs: [("a".to_owned(), tally(logs))].into(),
            volumes: [("v".to_owned(), tally(volume))].into(),
            ..PodDisk::default()
        }
    }

    #[test]
    fn a_pod_that_keeps_its_limits_stays() {
        let limited = pod(json!({"ephemeral-storage": "1Mi"}), json!({"sizeLimit": "1000"}));
        assert!(has_limits(&limited));
        assert_eq!(broken(&limited, &disk(1000, 1000)), None);
        let free = pod(json!({"memory": "1Mi"}), json!({}));
        assert!(!has_limits(&free));
        assert_eq!(broken(&free, &disk(1 << 40, 1 << 40)), None);
    }

    #[test]
    fn each_broken_limit_is_named() {
        let limited = pod(json!({"ephemeral-storage": "1Ki"}), json!({"sizeLimit": "1000"}));
        assert_eq!(
            broken(&limited, &disk(0, 1001)).unwrap(),
            "Usage of EmptyDir volume \"v\" exceeds the limit \"1000\"."
        );
        assert_eq!(
            broken(&limited, &disk(500, 900)).unwrap(),
            "Pod ephemeral local storage usage exceeds the total limit of containers 1Ki."
        );
        let mut two = pod(json!({"ephemeral-storage": "1Ki"}), json!({}));
        let more = json!({"limits": {"ephemeral-storage": "1Mi"}});
        two.spec.as_mut().unwrap().containers[1].resources =
            Some(serde_json::from_value(more).unwrap());
        assert_eq!(
            broken(&two, &disk(2000, 0)).unwrap(),
            "Container a exceeded its local ephemeral storage limit \"1Ki\"."
        );
    }
}
