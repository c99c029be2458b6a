//! What a node uses and what waits at it, as its heartbeat tells it: annotations of its Lease, in coarse
//! steps.

use std::collections::BTreeMap;

use crate::api::quantity::{format_bytes, format_cpu_millis, parse_bytes, parse_cpu_millis};

/// Namespace of the Leases that are the nodes' heartbeats.
pub const LEASE_NAMESPACE: &str = "kube-node-lease";
/// Where the heartbeats of a node go as long as it is there, or those that a server passes on: its name.
#[must_use]
pub fn renewals_path(name: &str) -> String {
    format!("/apis/coordination.k8s.io/v1/namespaces/{LEASE_NAMESPACE}/leases/{name}/renewals")
}

/// CPU in use on the whole machine, over the last minute or so.
pub const CPU: &str = "edgeorc.io/used-cpu";
/// Memory in use on the whole machine.
pub const MEMORY: &str = "edgeorc.io/used-memory";

/// Services that have requests waiting at the node until there is a pod again: `namespace/name`, with
/// commas.
pub const WAITING: &str = "edgeorc.io/waiting-services";
/// On a Service: the autoscaler that may scale its workload to zero. Its requests then wait for a pod.
pub const SCALES_FROM_ZERO: &str = "edgeorc.io/scales-from-zero";
/// Services that a heartbeat names; more of them wait for their turn.
const WAITING_MAX: usize = 64;

/// The annotation's text for these Services.
#[must_use]
pub fn waiting_text(services: impl IntoIterator<Item = (String, String)>) -> String {
    let names = services.into_iter().take(WAITING_MAX).map(|(ns, name)| format!("{ns}/{name}"));
    names.collect::<Vec<_>>().join(",")
}

/// Namespace and name of the Services that wait.
#[must_use]
pub fn waiting(annotations: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let text = annotations.get(WAITING).map_or("", String::as_str);
    let names = text.split(',').filter_map(|one| one.split_once('/'));
    let names = names.map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
    names.take(WAITING_MAX).collect()
}

/// The annotations.
#[must_use]
pub fn annotations(cpu_millis: u64, memory_bytes: u64) -> BTreeMap<String, String> {
    let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    [
        (CPU.to_owned(), format_cpu_millis(whole(cpu_millis))),
        (MEMORY.to_owned(), format_bytes(whole(memory_bytes))),
    ]
    .into()
}

/// Thousandths of a core and bytes; `None` if a node does not tell.
#[must_use]
pub fn read(annotations: &BTreeMap<String, String>) -> Option<(i64, i64)> {
    let cpu = parse_cpu_millis(annotations.get(CPU)?).ok()?;
    let memory = parse_bytes(annotations.get(MEMORY)?).ok()?;
    (cpu >= 0 && memory >= 0).then_some((cpu, memory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_read() {
        assert_eq!(read(&annotations(1500, 3 << 20)), Some((1500, 3 << 20)));
        assert_eq!(read(&annotations(0, 0)), Some((0, 0)));
        assert_eq!(read(&BTreeMap::new()), None);
        let services = vec![("a".to_owned(), "b".to_owned()), ("c".to_owned(), "d".to_owned())];
        let told = [(WAITING.to_owned(), waiting_text(services.clone()))];
        assert_eq!(waiting(&told.into()), services);
        assert_eq!(waiting(&BTreeMap::new()), []);
        let wrong = [(CPU.to_owned(), "x".to_owned()), (MEMORY.to_owned(), "1".to_owned())];
        assert_eq!(read(&wrong.into()), None);
    }
}
