//! Kubelet's `/stats/summary`.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::agent::usage::{Cpu, Disk, NodeUse, PodUse, Tally};

/// The document.
pub(super) fn summary(node: &NodeUse) -> Value {
    let time = node.time.to_string();
    let pods = node.pods.iter().filter(|pod| !pod.containers.is_empty());
    let figures = &node.figures;
    json!({
        "node": {
            "nodeName": node.name,
            "startTime": seconds(node.since),
            "cpu": cpu(node.cpu, &time),
            "memory": {
                "time": time,
                "availableBytes": figures.memory_available_bytes,
                "usageBytes": figures.memory_used_bytes(),
                "workingSetBytes": figures.memory_used_bytes(),
            },
            "fs": disk(figures.node_disk, &time),
            "runtime": { "imageFs": disk(figures.image_disk, &time) },
            "rlimit": { "time": time, "maxpid": figures.pids_max, "curproc": figures.pids },
        },
        "pods": pods.map(|one| pod(one, node, &time)).collect::<Vec<_>>(),
    })
}

fn pod(pod: &PodUse, node: &NodeUse, time: &str) -> Value {
    let walked = pod.disk.as_ref();
    let fs = |tally: Tally| {
        let at = walked.map_or_else(|| time.to_owned(), |walked| walked.time.to_string());
        json!({
            "time": at,
            "availableBytes": node.figures.node_disk.available_bytes,
            "capacityBytes": node.figures.node_disk.capacity_bytes,
            "usedBytes": tally.bytes,
            "inodesFree": node.figures.node_disk.inodes_free,
            "inodes": node.figures.node_disk.inodes,
            "inodesUsed": tally.inodes,
        })
    };
    let containers = pod.containers.iter().map(|container| {
        let mut shown = json!({
            "name": container.name,
            "startTime": seconds(container.since),
            "cpu": cpu(container.cpu, time),
            "memory": memory(container.memory_bytes, time),
        });
        if let (Some(walked), Some(fields)) = (walked, shown.as_object_mut()) {
            let of = |part: &std::collections::BTreeMap<String, Tally>| {
                fs(part.get(&container.name).copied().unwrap_or_default())
            };
            fields.insert("rootfs".to_owned(), of(&walked.disk.files));
            fields.insert("logs".to_owned(), of(&walked.disk.logs));
        }
        shown
    });
    let mut shown = json!({
        "podRef": { "name": pod.name(), "namespace": pod.namespace(), "uid": pod.uid },
        "startTime": seconds(pod.since),
        "containers": containers.collect::<Vec<_>>(),
        "cpu": cpu(pod.cpu, time),
        "memory": memory(pod.memory_bytes, time),
    });
    if let (Some(walked), Some(fields)) = (walked, shown.as_object_mut()) {
        let volumes = walked.disk.volumes.iter().map(|(name, tally)| {
            let mut volume = fs(*tally);
            if let Some(fields) = volume.as_object_mut() {
                fields.insert("name".to_owned(), json!(name));
            }
            volume
        });
        fields.insert("volume".to_owned(), volumes.collect());
        fields.insert("ephemeral-storage".to_owned(), fs(walked.disk.total()));
    }
    shown
}

fn cpu(cpu: Cpu, time: &str) -> Value {
    json!({
        "time": time,
        "usageNanoCores": cpu.rate_nanos,
        "usageCoreNanoSeconds": nanos(cpu.total),
    })
}

fn memory(bytes: u64, time: &str) -> Value {
    json!({ "time": time, "usageBytes": bytes, "workingSetBytes": bytes })
}

fn disk(disk: Disk, time: &str) -> Value {
    json!({
        "time": time,
        "availableBytes": disk.available_bytes,
        "capacityBytes": disk.capacity_bytes,
        "usedBytes": disk.capacity_bytes.saturating_sub(disk.available_bytes),
        "inodesFree": disk.inodes_free,
        "inodes": disk.inodes,
        "inodesUsed": disk.inodes.saturating_sub(disk.inodes_free),
    })
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn seconds(time: Timestamp) -> String {
    crate::agent::pod::status::time(time).0.to_string()
}
