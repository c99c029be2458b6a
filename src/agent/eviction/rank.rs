//! Which pod goes first, and what its status says of it.

use std::cmp::Reverse;

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::agent::eviction::pressure::Shortage;
use crate::agent::pod::mirror;
use crate::agent::pod::plan::bytes;
use crate::agent::usage::PodUse;
use crate::config::Signal;

/// Pods of this priority or more are never evicted: Kubernetes' `system-cluster-critical`.
const CRITICAL_PRIORITY: i32 = 2_000_000_000;
/// Kubernetes' two classes of such pods.
const CRITICAL_CLASSES: [&str; 2] = ["system-cluster-critical", "system-node-critical"];
/// A pod whose end frees less than this many bytes stays: the machine is short of something that
/// others have, and one such pod after another would be lost for nothing.
pub(super) const WORTH_BYTES: u64 = 4 << 20;
/// The same for files.
const WORTH_INODES: u64 = 1000;

/// Whether the pod stays whatever happens.
pub(super) fn is_critical(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    let class = spec.and_then(|spec| spec.priority_class_name.as_deref()).unwrap_or_default();
    mirror::is_static(pod)
        || priority(pod) >= CRITICAL_PRIORITY
        || CRITICAL_CLASSES.contains(&class)
}

fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0)
}

/// The pod that goes for `shortage`, in kubelet's order: those beyond their requests first, then
/// the lower priority, then who is further beyond.
pub(super) fn choose<'a>(shortage: &Shortage, pods: &'a [PodUse]) -> Option<&'a PodUse> {
    let worth = match shortage.signal {
        Signal::NodeFsInodesFree => WORTH_INODES,
        _ => WORTH_BYTES,
    };
    let may_go = |pod: &&PodUse| !is_critical(&pod.pod) && used(shortage, pod) >= worth;
    pods.iter().filter(may_go).min_by_key(|pod| {
        let (used, wanted) = (used(shortage, pod), requested(shortage, &pod.pod));
        let beyond = i128::from(used) - i128::from(wanted);
        (used <= wanted, priority(&pod.pod), Reverse(beyond), pod.uid.clone())
    })
}

/// What the pod uses of what is short.
fn used(shortage: &Shortage, pod: &PodUse) -> u64 {
    let disk = pod.disk.as_ref().map(|walked| walked.disk.total()).unwrap_or_default();
    match shortage.signal {
        Signal::MemoryAvailable => pod.memory_bytes,
        Signal::NodeFsAvailable | Signal::ImageFsAvailable => disk.bytes,
        Signal::NodeFsInodesFree => disk.inodes,
        Signal::PidAvailable => 0,
    }
}

fn key(shortage: &Shortage) -> Option<&'static str> {
    match shortage.signal {
        Signal::MemoryAvailable => Some("memory"),
        Signal::NodeFsAvailable | Signal::ImageFsAvailable => Some("ephemeral-storage"),
        Signal::NodeFsInodesFree | Signal::PidAvailable => None,
    }
}

/// What the pod requests of it.
fn requested(shortage: &Shortage, pod: &Pod) -> u64 {
    containers(pod).map(|container| request(shortage, container)).sum()
}

/// The containers that run together.
fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|spec| {
        let inits = spec.init_containers.iter().flatten();
        let sidecars = inits.filter(|one| one.restart_policy.as_deref() == Some("Always"));
        spec.containers.iter().chain(sidecars)
    })
}

fn request(shortage: &Shortage, container: &Container) -> u64 {
    let Some(key) = key(shortage) else { return 0 };
    let resources = container.resources.as_ref();
    let of = |list: Option<&std::collections::BTreeMap<String, _>>| list?.get(key).cloned();
    let requested = of(resources.and_then(|r| r.requests.as_ref()));
    let amount: Option<k8s_openapi::apimachinery::pkg::api::resource::Quantity> =
        requested.or_else(|| of(resources.and_then(|r| r.limits.as_ref())));
    amount.and_then(|amount| bytes(&amount.0)).unwrap_or(0)
}

/// What the pod's status says.
pub(super) fn message(shortage: &Shortage, pod: &PodUse) -> String {
    let resource = shortage.resource();
    let (least, left) = (shortage.show(shortage.least), shortage.show(shortage.available));
    let mut text = format!(
        "The node was low on resource: {resource}. Threshold quantity: {least}, available: {left}."
    );
    if key(shortage).is_none() {
        return text;
    }
    for container in containers(&pod.pod) {
        let used = match shortage.signal {
            Signal::MemoryAvailable => {
                let running = pod.containers.iter().find(|one| one.name == container.name);
                running.map_or(0, |one| one.memory_bytes)
            }
            _ => pod.disk.as_ref().map_or(0, |w| w.disk.of_container(&container.name).bytes),
        };
        let wanted = request(shortage, container);
        if used > wanted {
            let (used, wanted) = (shortage.show(used), shortage.show(wanted));
            text.push_str(&format!(
                " Container {} was using {used}, request is {wanted}, has larger consumption of {resource}.",
                container.name
            ));
        }
    }
    text
}
