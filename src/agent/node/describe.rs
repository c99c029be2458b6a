//! What this machine is and has.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::agent::config::AgentConfig;
use crate::agent::eviction::Pressure;
use crate::agent::node::hardware::Hardware;
use crate::api::json::{child, entries_at};
use crate::api::local_volume::VOLUMES_PATH;
use crate::api::node_place;
use crate::api::resource_names::is_extended;
use crate::api::schema::canonicalize_type;
use crate::config::{Signal, Threshold};

/// Version of the kubelet's part, as clients read it.
const KUBELET_VERSION: &str = concat!("v1.36.0+edgeorc", env!("CARGO_PKG_VERSION"));
/// What runs the containers.
const RUNTIME_VERSION: &str = "wasmtime://48";

/// Annotation that names the labels which follow from what the machine is like, and from the node's flags.
const FACTS: &str = "edgeorc.io/fact-labels";

/// Thousandths of a core and bytes of memory that pods may use together.
pub(crate) fn allocatable(config: &AgentConfig) -> (u64, u64) {
    let (cpu, memory) = capacity(config);
    (cpu, memory.saturating_sub(config.capacity.memory_reserved_bytes))
}

/// Bytes of the disk that holds `dir`; 0 when nobody can tell.
fn disk_bytes(dir: &std::path::Path) -> u64 {
    rustix::fs::statvfs(dir).map_or(0, |disk| disk.f_blocks.saturating_mul(disk.f_frsize))
}

fn capacity(config: &AgentConfig) -> (u64, u64) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cpu = match config.capacity.cpu_millis {
        0 => u64::try_from(cores).unwrap_or(1) * 1000,
        set => set,
    };
    let memory = match config.capacity.memory_bytes {
        0 => {
            let info = rustix::system::sysinfo();
            let unit = u64::from(info.mem_unit).max(1);
            #[expect(
                clippy::useless_conversion,
                reason = "the field's type differs between machines"
            )]
            let total = u64::try_from(info.totalram).unwrap_or(u64::MAX);
            total.saturating_mul(unit)
        }
        set => set,
    };
    (cpu, memory)
}

/// Kubernetes' name of this machine's architecture.
fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Labels of the Node.
pub(super) fn labels(
    config: &AgentConfig,
    facts: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut labels = facts.clone();
    labels.extend(config.labels.clone());
    let own = [
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()));
    labels.extend(own);
    if config.is_server {
        labels.insert(node_place::SERVER.to_owned(), String::new());
    }
    labels
}

/// The labels that this node told before and does not tell any more: its own, so that nobody else's go.
pub(super) fn gone_labels(node: &Value, labels: &BTreeMap<String, String>) -> Vec<String> {
    let told = crate::api::meta::annotation(node, FACTS).unwrap_or_default();
    let is_gone =
        |name: &&str| !labels.contains_key(*name) && crate::api::meta::label(node, name).is_some();
    told.split(',').filter(is_gone).map(str::to_owned).collect()
}

/// Annotations of the Node: where others reach it, where its volumes are, and which labels follow from
/// what the machine is like.
pub(super) fn annotations(
    config: &AgentConfig,
    facts: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let addresses = [
        (node_place::QUIC_ADDRESS, config.quic_address),
        (node_place::INGRESS_ADDRESS, config.ingress_address),
    ];
    let set = addresses.into_iter().filter_map(|(key, at)| Some((key.to_owned(), at?.to_string())));
    let volumes = config.data_dir.join("volumes").display().to_string();
    let facts: BTreeSet<&String> = facts.keys().chain(config.labels.keys()).collect();
    let facts = facts.into_iter().map(String::as_str).collect::<Vec<_>>().join(",");
    set.chain([(VOLUMES_PATH.to_owned(), volumes), (FACTS.to_owned(), facts)]).collect()
}

/// Bytes of disk that pods may use together: without what is left when they are evicted.
pub(crate) fn allocatable_disk(config: &AgentConfig) -> u64 {
    let disk = disk_bytes(&config.data_dir);
    let of_disk = |threshold: &&Threshold| threshold.signal == Signal::NodeFsAvailable;
    let kept = config.eviction.thresholds.iter().find(of_disk);
    disk.saturating_sub(kept.map_or(0, |threshold| threshold.least.of(disk)))
}

/// The Node's status, but for the conditions that others own. `had` keeps transition times, and what others
/// say that the machine has: it can be asked for, as from a kubelet.
pub(super) fn status(
    config: &AgentConfig,
    pressure: Pressure,
    hardware: Hardware,
    had: &Value,
    now: &str,
) -> Value {
    let ((cpu, memory), (cpu_free, memory_free)) = (capacity(config), allocatable(config));
    let (disk, disk_free) = (disk_bytes(&config.data_dir), allocatable_disk(config));
    let of_others: Vec<(&String, &Value)> = entries_at(had, "/capacity")
        .filter(|(name, _)| is_extended(name) && !config.extended_resources.contains_key(*name))
        .collect();
    let resources = |cpu: u64, memory: u64, disk: u64| {
        let mut amounts = json!({
            "cpu": crate::api::quantity::format_cpu_millis(i64::try_from(cpu).unwrap_or(i64::MAX)),
            "memory": format!("{}Ki", memory / 1024),
            "ephemeral-storage": format!("{}Ki", disk / 1024),
            "pods": config.capacity.pods.to_string(),
        });
        for (name, count) in &config.extended_resources {
            crate::api::json::set(&mut amounts, name, count.to_string());
        }
        for (name, count) in &of_others {
            crate::api::json::set(&mut amounts, name, (*count).clone());
        }
        amounts
    };
    let mut addresses: Vec<Value> = config
        .node_ips
        .iter()
        .map(|ip| json!({"type": "InternalIP", "address": ip.to_string()}))
        .collect();
    addresses.push(json!({"type": "Hostname", "address": config.node_name}));
    let always = [
        memory_condition(pressure.memory),
        disk_condition(pressure.disk),
        pid_condition(pressure.pid),
        ("Ready", "True", "KubeletReady", "edgeorc is posting ready status"),
    ];
    let measured =
        [hardware.under_voltage.map(voltage_condition), hardware.overheated.map(heat_condition)];
    let all = always.into_iter().chain(measured.into_iter().flatten());
    let conditions: Vec<Value> =
        all.map(|condition| self::condition(had, condition, now)).collect();
    let mut status = json!({
        "capacity": resources(cpu, memory, disk),
        "allocatable": resources(cpu_free, memory_free, disk_free),
        "addresses": addresses,
        "conditions": conditions,
        "nodeInfo": node_info(),
    });
    // What the machine does not have any more is not given out: as from a kubelet.
    if let Some(allocatable) = child(&mut status, "allocatable") {
        for (name, _) in entries_at(had, "/allocatable") {
            if is_extended(name) && allocatable.get(name).is_none() {
                crate::api::json::set(allocatable, name, Value::Null);
            }
        }
    }
    // As the server stores them: what is the same is not sent again and again.
    if let Err(what) = canonicalize_type("v1", "NodeStatus", &mut status) {
        tracing::warn!(what, "the node's status has a bad quantity");
    }
    status
}

/// Type, status, reason and message.
type Condition = (&'static str, &'static str, &'static str, &'static str);

fn memory_condition(is_short: bool) -> Condition {
    if is_short {
        let message = "kubelet has insufficient memory available";
        ("MemoryPressure", "True", "KubeletHasInsufficientMemory", message)
    } else {
        let message = "kubelet has sufficient memory available";
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", message)
    }
}

fn disk_condition(is_short: bool) -> Condition {
    if is_short {
        ("DiskPressure", "True", "KubeletHasDiskPressure", "kubelet has disk pressure")
    } else {
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure")
    }
}

fn pid_condition(is_short: bool) -> Condition {
    if is_short {
        let message = "kubelet has insufficient PID available";
        ("PIDPressure", "True", "KubeletHasInsufficientPID", message)
    } else {
        let message = "kubelet has sufficient PID available";
        ("PIDPressure", "False", "KubeletHasSufficientPID", message)
    }
}

fn voltage_condition(is_low: bool) -> Condition {
    if is_low {
        let message = "the supply voltage is too low: a stronger supply or a shorter cable helps";
        ("UnderVoltage", "True", "SupplyTooWeak", message)
    } else {
        ("UnderVoltage", "False", "SupplySufficient", "the supply voltage is sufficient")
    }
}

fn heat_condition(is_hot: bool) -> Condition {
    if is_hot {
        let message = "the processor is too hot and is slowed down";
        ("Overheated", "True", "TemperatureTooHigh", message)
    } else {
        ("Overheated", "False", "TemperatureNormal", "the processor is not too hot")
    }
}

fn condition(had: &Value, (kind, status, reason, message): Condition, now: &str) -> Value {
    let before = had
        .pointer("/conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .find(|c| c.get("type").and_then(Value::as_str) == Some(kind));
    let text = |key: &str| before.and_then(|c| c.get(key)).and_then(Value::as_str);
    let is_same = text("status") == Some(status);
    let since = text("lastTransitionTime").filter(|_| is_same).unwrap_or(now);
    // The heartbeat is the Lease; a time that changed by itself would be a write every time.
    let seen = text("lastHeartbeatTime").filter(|_| is_same).unwrap_or(now);
    json!({
        "type": kind, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": since, "lastHeartbeatTime": seen,
    })
}

fn node_info() -> Value {
    let uname = rustix::system::uname();
    let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let os_release = file("/etc/os-release");
    let os_image = os_release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned());
    json!({
        "architecture": arch(),
        "bootID": file("/proc/sys/kernel/random/boot_id"),
        "containerRuntimeVersion": RUNTIME_VERSION,
        "kernelVersion": uname.release().to_string_lossy(),
        "kubeProxyVersion": "",
        "kubeletVersion": KUBELET_VERSION,
        "machineID": file("/etc/machine-id"),
        "operatingSystem": "linux",
        "osImage": os_image,
        "systemUUID": "",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_labels_that_the_node_told_itself_go() {
        let node = json!({ "metadata": {
            "annotations": { FACTS: "edgeorc.io/link,edgeorc.io/model,edgeorc.io/power" },
            "labels": { "edgeorc.io/link": "wired", "edgeorc.io/model": "x",
                "edgeorc.io/temperature": "by hand" },
        }});
        let labels = [("edgeorc.io/model".to_owned(), "y".to_owned())].into();
        assert_eq!(gone_labels(&node, &labels), ["edgeorc.io/link"]);
        assert_eq!(gone_labels(&json!({}), &labels), Vec::<String>::new());
    }
}
