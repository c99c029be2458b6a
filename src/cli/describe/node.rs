//! Nodes.

use jiff::Timestamp;
use serde_json::Value;

use crate::api::quantity::{format_bytes, format_cpu_millis, parse_bytes, parse_cpu_millis};
use crate::api::{meta, table};
use crate::cli::describe::sheet::{Sheet, annotations, entries, list, text};

/// Labels that make a role.
const ROLE: &str = "node-role.kubernetes.io/";
/// What the node reports of itself, in kubectl's words.
const SYSTEM: &[(&str, &str)] = &[
    ("Machine ID", "machineID"),
    ("System UUID", "systemUUID"),
    ("Boot ID", "bootID"),
    ("Kernel Version", "kernelVersion"),
    ("OS Image", "osImage"),
    ("Operating System", "operatingSystem"),
    ("Architecture", "architecture"),
    ("Container Runtime Version", "containerRuntimeVersion"),
    ("Kubelet Version", "kubeletVersion"),
];

/// Describes a node, with its pods.
pub(super) fn write(sheet: &mut Sheet, node: &Value, pods: &[Value], now: Timestamp) {
    sheet.pair(0, "Name", meta::name(node));
    let labels = meta::labels(node);
    let roles: Vec<_> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, _)| key.strip_prefix(ROLE).map(str::to_owned))
        .collect();
    sheet.pair(0, "Roles", if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") });
    sheet.pairs(0, "Labels", entries(node, "/metadata/labels", "="));
    sheet.pairs(0, "Annotations", annotations(node, "/metadata/annotations"));
    sheet.pair(0, "CreationTimestamp", meta::creation_timestamp(node).unwrap_or_default());
    let taints = list(node, "/spec/taints").iter().map(|taint| {
        let (key, value) = (text(taint, "/key"), text(taint, "/value"));
        let value = if value.is_empty() { value } else { format!("={value}") };
        format!("{key}{value}:{}", text(taint, "/effect"))
    });
    sheet.pairs(0, "Taints", taints.collect());
    let is_closed = node.pointer("/spec/unschedulable").and_then(Value::as_bool) == Some(true);
    sheet.pair(0, "Unschedulable", is_closed.to_string());
    let columns =
        ["Type", "Status", "LastHeartbeatTime", "LastTransitionTime", "Reason", "Message"];
    let paths =
        ["/type", "/status", "/lastHeartbeatTime", "/lastTransitionTime", "/reason", "/message"];
    let conditions = list(node, "/status/conditions");
    if !conditions.is_empty() {
        sheet.head(0, "Conditions");
        let rows = conditions.iter().map(|c| paths.map(|path| text(c, path)).to_vec());
        sheet.table(1, &columns, rows.collect());
    }
    sheet.head(0, "Addresses");
    for address in list(node, "/status/addresses") {
        sheet.pair(1, &text(address, "/type"), text(address, "/address"));
    }
    for (title, path) in [("Capacity", "/status/capacity"), ("Allocatable", "/status/allocatable")]
    {
        sheet.head(0, title);
        let amounts = node.pointer(path).and_then(Value::as_object);
        for (name, _) in amounts.into_iter().flatten() {
            sheet.pair(1, name, text(node, &format!("{path}/{}", name.replace('/', "~1"))));
        }
    }
    sheet.head(0, "System Info");
    for (title, key) in SYSTEM {
        sheet.known(1, title, text(node, &format!("/status/nodeInfo/{key}")));
    }
    sheet.known(0, "PodCIDR", text(node, "/spec/podCIDR"));
    write_pods(sheet, node, pods, now);
}

/// What one pod asks for: thousandths of a core and bytes, as requests and limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Share {
    cpu: [i64; 2],
    memory: [i64; 2],
}

impl Share {
    /// The sum over the containers, and the largest of the init containers when that is more.
    fn of(pod: &Value) -> Self {
        let amounts = |container: &Value| {
            let at = |kind: &str, name: &str| text(container, &format!("/resources/{kind}/{name}"));
            let both = |name: &str, parse: &dyn Fn(&str) -> i64| {
                ["requests", "limits"].map(|kind| parse(&at(kind, name)))
            };
            Self {
                cpu: both("cpu", &|text| parse_cpu_millis(text).unwrap_or(0)),
                memory: both("memory", &|text| parse_bytes(text).unwrap_or(0)),
            }
        };
        let mains = list(pod, "/spec/containers").iter().map(amounts);
        // Sidecars run beside the mains, other init containers before them.
        let (sidecars, inits): (Vec<_>, Vec<_>) = list(pod, "/spec/initContainers")
            .iter()
            .partition(|c| text(c, "/restartPolicy") == "Always");
        let total =
            mains.chain(sidecars.into_iter().map(amounts)).fold(Self::default(), Self::plus);
        inits.into_iter().map(amounts).fold(total, Self::max)
    }

    fn with(self, other: Self, join: impl Fn(i64, i64) -> i64) -> Self {
        let [cpu_request, cpu_limit] = self.cpu;
        let [memory_request, memory_limit] = self.memory;
        let ([other_cpu, other_cpu_limit], [other_memory, other_memory_limit]) =
            (other.cpu, other.memory);
        Self {
            cpu: [join(cpu_request, other_cpu), join(cpu_limit, other_cpu_limit)],
            memory: [join(memory_request, other_memory), join(memory_limit, other_memory_limit)],
        }
    }

    fn plus(self, other: Self) -> Self {
        self.with(other, i64::saturating_add)
    }

    fn max(self, other: Self) -> Self {
        self.with(other, Ord::max)
    }

    /// The four amounts, each with its part of what the node has.
    fn cells(self, cpu_of: i64, memory_of: i64) -> [String; 4] {
        let part = |amount: i64, of: i64| {
            let percent = amount.saturating_mul(100).checked_div(of).unwrap_or(0);
            format!("({percent}%)")
        };
        let cpu = |m: i64| format!("{} {}", format_cpu_millis(m), part(m, cpu_of));
        let memory = |b: i64| format!("{} {}", format_bytes(b), part(b, memory_of));
        let ([cpu_request, cpu_limit], [memory_request, memory_limit]) = (self.cpu, self.memory);
        [cpu(cpu_request), cpu(cpu_limit), memory(memory_request), memory(memory_limit)]
    }
}

fn write_pods(sheet: &mut Sheet, node: &Value, pods: &[Value], now: Timestamp) {
    let cpu_of = parse_cpu_millis(&text(node, "/status/allocatable/cpu")).unwrap_or(0);
    let memory_of = parse_bytes(&text(node, "/status/allocatable/memory")).unwrap_or(0);
    let is_over =
        |pod: &&Value| matches!(text(pod, "/status/phase").as_str(), "Succeeded" | "Failed");
    let running: Vec<_> = pods.iter().filter(|pod| !is_over(pod)).collect();
    let total = running.iter().map(|pod| Share::of(pod)).fold(Share::default(), Share::plus);
    let rows = running.iter().map(|pod| {
        let mut row = vec![meta::namespace(pod).to_owned(), meta::name(pod).to_owned()];
        row.extend(Share::of(pod).cells(cpu_of, memory_of));
        row.push(table::age(pod, now));
        row
    });
    sheet.head(0, &format!("Non-terminated Pods ({} in total)", running.len()));
    let columns = [
        "Namespace",
        "Name",
        "CPU Requests",
        "CPU Limits",
        "Memory Requests",
        "Memory Limits",
        "Age",
    ];
    sheet.table(1, &columns, rows.collect());
    sheet.head(0, "Allocated resources");
    let [cpu_requests, cpu_limits, memory_requests, memory_limits] = total.cells(cpu_of, memory_of);
    let rows = vec![
        vec!["cpu".to_owned(), cpu_requests, cpu_limits],
        vec!["memory".to_owned(), memory_requests, memory_limits],
    ];
    sheet.table(1, &["Resource", "Requests", "Limits"], rows);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_told_with_its_conditions_and_what_its_pods_ask_for() {
        let node = json!({
            "metadata": {"name": "one", "labels": {"node-role.kubernetes.io/control-plane": ""}},
            "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]},
            "status": {
                "conditions": [{"type": "Ready", "status": "True", "reason": "AgentReady"}],
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "capacity": {"cpu": "4", "memory": "1Gi"},
                "allocatable": {"cpu": "4", "memory": "1Gi"},
                "nodeInfo": {"architecture": "arm64"},
            },
        });
        let pod = |name: &str, phase: &str| {
            json!({
                "metadata": {"name": name, "namespace": "default"},
                "spec": {"containers": [{"resources": {
                    "requests": {"cpu": "500m", "memory": "256Mi"}, "limits": {"cpu": "1"},
                }}]},
                "status": {"phase": phase},
            })
        };
        let mut sheet = Sheet::default();
        let pods = [pod("a", "Running"), pod("b", "Running"), pod("done", "Succeeded")];
        write(&mut sheet, &node, &pods, Timestamp::UNIX_EPOCH);
        let text = sheet.render();
        for line in [
            "Roles:              control-plane",
            "Taints:             k:NoSchedule",
            "  Ready   True",
            "  InternalIP:  10.0.0.1",
            "  Architecture:  arm64",
            "Non-terminated Pods (2 in total):",
            "  cpu        1 (25%)       2 (50%)",
            "  memory     512Mi (50%)",
        ] {
            assert!(text.contains(line), "{line:?} expected in:\n{text}");
        }
        assert!(!text.contains("done"), "{text}");
    }
}
