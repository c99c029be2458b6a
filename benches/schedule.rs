//! How fast the scheduler chooses, and how that grows with the cluster.
//!
//! Method: the scheduler's own code in this process, on a simulated cluster of equal nodes in zones:
//! a million pods of a thousand workloads are placed one after the other, each read from its object,
//! chosen for and counted, as the scheduler does it, without the API. On the cluster that is full of
//! them, pods with constraints follow; preemption has a cluster of its own that is full of pods of
//! low priority. Prints a table and writes `target/bench/schedule.json`. Run it with
//! `just bench-schedule`; smaller by `--nodes N --pods N --constrained N`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    dead_code,
    reason = "a bench that cannot run should stop at once, and it measures real time"
)]

#[path = "support/mod.rs"]
mod support;

use std::path::Path;
use std::time::Instant;

use edgeorc::scheduler::{Facts, Placement, Placer};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};
use support::{Row, report, resident_mib, row};

/// Zones of the cluster.
const ZONES: usize = 20;
/// Workloads whose pods have no constraints.
const WORKLOADS: usize = 1000;
/// Pods of one workload with constraints.
const REPLICAS: usize = 100;
/// What others reach, by their own word.
const NOMAD: &str = "Nomad C1M 3750";
const KUBE: &str = "kube-scheduler 680-810";
const KUBE_CONSTRAINED: &str = "kube-scheduler 24-60";

/// How much is done.
struct Size {
    nodes: usize,
    pods: usize,
    constrained: usize,
}

impl Size {
    fn from_args() -> Self {
        let mut size = Self { nodes: 10_000, pods: 1_000_000, constrained: 20_000 };
        let mut args = std::env::args().skip(1);
        while let Some(flag) = args.next() {
            let mut number = || args.next().unwrap().parse().unwrap();
            match flag.as_str() {
                "--nodes" => size.nodes = number(),
                "--pods" => size.pods = number(),
                "--constrained" => size.constrained = number(),
                _ => {}
            }
        }
        size
    }
}

/// Time of each choice, in microseconds.
#[derive(Default)]
struct Times(Vec<f64>);

impl Times {
    fn percentile(&mut self, percent: usize) -> f64 {
        self.0.sort_by(f64::total_cmp);
        self.0[(self.0.len() - 1) * percent / 100]
    }

    fn per_second(&self) -> f64 {
        self.0.len() as f64 / (self.0.iter().sum::<f64>() / 1e6)
    }
}

fn node(at: usize, cpu: &str) -> Node {
    serde_json::from_value(json!({
        "metadata": { "name": format!("node-{at:05}"), "labels": {
            "kubernetes.io/hostname": format!("node-{at:05}"),
            "kubernetes.io/arch": if at.is_multiple_of(4) { "amd64" } else { "arm64" },
            "topology.kubernetes.io/zone": format!("zone-{:02}", at % ZONES),
            "disk": if at.is_multiple_of(2) { "ssd" } else { "sd" },
        }},
        "status": { "allocatable": { "cpu": cpu, "memory": "128Gi", "pods": "1000" } },
    }))
    .unwrap()
}

fn cluster(nodes: usize, cpu: &str) -> Placer {
    let mut placer = Placer::default();
    for at in 0..nodes {
        let node = node(at, cpu);
        placer.view.set_node(&format!("node-{at:05}"), Some(Facts::of(&node)));
    }
    placer
}

/// A pod of a workload, with `spec` merged in.
fn template(workload: &str, cpu: &str, spec: &Value) -> Pod {
    let mut pod = json!({
        "metadata": {
            "name": "", "namespace": "default", "uid": "",
            "labels": { "app": workload, "pod-template-hash": "5d4f8c7b9" },
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": workload,
                "uid": workload, "controller": true }],
        },
        "spec": {
            "schedulerName": "default-scheduler",
            "containers": [{ "name": "c", "image": format!("registry/{workload}:v1"),
                "resources": { "requests": { "cpu": cpu, "memory": "64Mi" } } }],
            "tolerations": [
                { "key": "node.kubernetes.io/not-ready", "operator": "Exists",
                  "effect": "NoExecute", "tolerationSeconds": 2 },
                { "key": "node.kubernetes.io/unreachable", "operator": "Exists",
                  "effect": "NoExecute", "tolerationSeconds": 2 },
            ],
        },
    });
    json_patch::merge(&mut pod["spec"], spec);
    serde_json::from_value(pod).unwrap()
}

/// Places `pods` pods of the workloads in turn; the time of each.
fn place(placer: &mut Placer, templates: &mut [Pod], pods: usize, kind: &str) -> Times {
    let mut times = Times(Vec::with_capacity(pods));
    for at in 0..pods {
        let workloads = templates.len();
        let pod = &mut templates[at % workloads];
        pod.metadata.name = Some(format!("{kind}-{at}"));
        pod.metadata.uid = Some(format!("8e7a2b9c-3c1d-4f5e-9a8b-{at:012}"));
        let began = Instant::now();
        let placed = placer.place(pod, at as u64);
        times.0.push(began.elapsed().as_secs_f64() * 1e6);
        assert!(matches!(placed, Placement::Placed { .. }), "{kind} {at}: {placed:?}");
    }
    times
}

fn rate(name: &str, value: f64, peer: &str, budget: f64) -> Row {
    let (name, peer) = (name.to_owned(), peer.to_owned());
    Row { name, value, unit: "1/s", peer, ratio: None, budget, met: value >= budget }
}

fn rows_of(rows: &mut Vec<Row>, name: &str, mut times: Times, peer: &str, budget: f64) {
    let per_second = times.per_second();
    let budget = if budget > 0.0 { budget } else { f64::NEG_INFINITY };
    rows.push(rate(&format!("{name}: placements"), per_second, peer, budget));
    for percent in [50, 99] {
        let time = times.percentile(percent);
        let name = format!("{name}: decision p{percent}");
        rows.push(row(&name, time, "us", "", f64::INFINITY));
    }
    println!("{name}: {per_second:.0}/s, p99 {:.1} us", times.percentile(99));
}

fn workloads(kind: &str, count: usize, spec: impl Fn(&str) -> Value) -> Vec<Pod> {
    (0..count.max(1))
        .map(|at| {
            let name = format!("{kind}-{at}");
            template(&name, "50m", &spec(&name))
        })
        .collect()
}

/// Pods with constraints, on the cluster that is full of others.
fn constrained(placer: &mut Placer, size: &Size, rows: &mut Vec<Row>) {
    let count = size.constrained / REPLICAS;
    let selects = |name: &str| json!({ "matchLabels": { "app": name } });
    let mut pods = workloads("affine", count, |_| {
        json!({ "affinity": { "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
                { "matchExpressions": [{ "key": "disk", "operator": "In", "values": ["ssd"] }] },
            ]},
            "preferredDuringSchedulingIgnoredDuringExecution": [{ "weight": 10, "preference":
                { "matchExpressions": [
                    { "key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"] }] },
            }],
        }}})
    });
    let times = place(placer, &mut pods, size.constrained, "affine");
    rows_of(rows, "node affinity", times, KUBE, 0.0);
    let mut pods = workloads("spread", count, |name| {
        json!({ "topologySpreadConstraints": [
            { "maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
              "whenUnsatisfiable": "DoNotSchedule", "labelSelector": selects(name) },
            { "maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
              "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": selects(name) },
        ]})
    });
    let times = place(placer, &mut pods, size.constrained, "spread");
    rows_of(rows, "topology spread, hard by zone, soft by host", times, KUBE_CONSTRAINED, 0.0);
    let mut pods = workloads("apart", count, |name| {
        json!({ "affinity": { "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                { "topologyKey": "kubernetes.io/hostname", "labelSelector": selects(name) }],
        }}})
    });
    let times = place(placer, &mut pods, size.constrained, "apart");
    rows_of(rows, "required anti-affinity by host", times, KUBE_CONSTRAINED, 1000.0);
    let mut pods = workloads("near", count, |name| {
        json!({ "affinity": { "podAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                { "topologyKey": "topology.kubernetes.io/zone", "labelSelector": selects(name) }],
        }}})
    });
    let times = place(placer, &mut pods, size.constrained, "near");
    rows_of(rows, "required affinity by zone", times, KUBE_CONSTRAINED, 0.0);
}

/// A full cluster: pods of high priority, each of which makes others leave.
fn preemption(size: &Size, rows: &mut Vec<Row>) {
    let mut placer = cluster(size.nodes, "1");
    let mut low: Vec<_> =
        (0..WORKLOADS).map(|at| template(&format!("low-{at}"), "100m", &json!({}))).collect();
    let _ = place(&mut placer, &mut low, size.nodes * 10, "low");
    let mut high = template("high", "300m", &json!({ "priority": 1000 }));
    let mut times = Times::default();
    for at in 0..(size.constrained / 20).clamp(1, size.nodes) {
        high.metadata.name = Some(format!("high-{at}"));
        high.metadata.uid = Some(format!("high-{at}"));
        let began = Instant::now();
        let plan = match placer.place(&high, at as u64) {
            Placement::Preempting(plan) => plan,
            other => panic!("{other:?}"),
        };
        times.0.push(began.elapsed().as_secs_f64() * 1e6);
        assert_eq!(plan.victims.len(), 3);
        for victim in &plan.victims {
            placer.view.remove(&victim.key);
        }
        placer.view.assume(&high, &plan.node);
    }
    rows_of(rows, "preemption of three", times, "", 0.0);
}

fn main() {
    let size = Size::from_args();
    let mut rows = Vec::new();
    for nodes in [size.nodes / 100, size.nodes / 10] {
        let mut placer = cluster(nodes, "32");
        let mut pods = workloads("plain", (WORKLOADS * nodes / size.nodes).max(1), |_| json!({}));
        let times = place(&mut placer, &mut pods, size.pods * nodes / size.nodes, "plain");
        rows_of(&mut rows, &format!("no constraints, {nodes} nodes"), times, "", 0.0);
    }
    let before = resident_mib(std::process::id());
    let mut placer = cluster(size.nodes, "32");
    let of_nodes = resident_mib(std::process::id()) - before;
    let mut pods = workloads("plain", WORKLOADS, |_| json!({}));
    let times = place(&mut placer, &mut pods, size.pods, "plain");
    let of_pods = resident_mib(std::process::id()) - before - of_nodes;
    let peer = format!("{NOMAD}, {KUBE}");
    let name = format!("no constraints, {} nodes", size.nodes);
    rows_of(&mut rows, &name, times, &peer, 20_000.0);
    rows.push(row("memory of the nodes", of_nodes, "MiB", "", f64::INFINITY));
    rows.push(row("memory of the pods", of_pods, "MiB", "", f64::INFINITY));
    let counts = || placer.view.nodes().map(|node| node.used.pods as f64);
    let mean = size.pods as f64 / size.nodes as f64;
    let least = counts().fold(f64::INFINITY, f64::min) / mean;
    let most = counts().fold(0.0, f64::max) / mean;
    rows.push(row("fullest node against the mean", most, "", "", 1.25));
    rows.push(row("mean against the emptiest node", 1.0 / least, "", "", 1.25));
    constrained(&mut placer, &size, &mut rows);
    drop(placer);
    preemption(&size, &mut rows);
    report(Path::new(env!("CARGO_MANIFEST_DIR")), "schedule", &rows);
}
