//! What is done to the fleet, and what it costs.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster::{Cluster, Failed, IMAGE, until};
use crate::gauge::{Changes, Reading, Spent};
use crate::support::{Row, row};

/// How long any part may take.
const PATIENCE: Duration = Duration::from_secs(1800);
/// Rest before an idle fleet is measured: what the part before left in flight is not idleness, nor are the
/// connections that it made and nobody uses any more.
const REST: Duration = Duration::from_secs(75);
/// Nodes in one process: each with ten pods has some thirty files open.
const PROCESS_NODES_MAX: usize = 450;
/// Part of the replicas that are added while the leader is killed.
const SCALE_UP_SHARE: usize = 10;
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/default/deployments/web";

pub(crate) struct Size {
    nodes: usize,
    replicas: usize,
    lost: usize,
    idle: Duration,
}

impl Size {
    pub(crate) fn from_args(args: &[String]) -> Self {
        let mut size =
            Self { nodes: 1000, replicas: 10_000, lost: 100, idle: Duration::from_secs(60) };
        let mut args = args.iter();
        while let Some(flag) = args.next() {
            let mut number = || args.next().unwrap().parse().unwrap();
            match flag.as_str() {
                "--nodes" => size.nodes = number(),
                "--replicas" => size.replicas = number(),
                "--lost" => size.lost = number(),
                "--idle" => size.idle = Duration::from_secs(args.next().unwrap().parse().unwrap()),
                _ => {}
            }
        }
        assert!(size.lost < size.nodes, "some nodes have to be left");
        size
    }
}

/// Rows of the report, told as they come.
struct Told<'a>(&'a mut Vec<Row>);

impl Told<'_> {
    fn plain(&mut self, name: &str, value: f64, unit: &'static str) {
        self.budgeted(name, value, unit, f64::INFINITY);
    }

    fn budgeted(&mut self, name: &str, value: f64, unit: &'static str, budget: f64) {
        let row = row(name, value, unit, "", budget);
        eprintln!("{row}");
        self.0.push(row);
    }

    /// What a part cost since `mark`: time, and the use of the leader, of all servers, of the agents.
    async fn part(&mut self, name: &str, mark: &Mark, cluster: &Cluster) {
        let spent = mark.reading.until(&cluster.reading());
        let all =
            |part: fn(&crate::gauge::Used) -> f64| -> f64 { spent.servers.iter().map(part).sum() };
        self.plain(name, spent.time, "s");
        let mut more = |what: &str, value: f64, unit| {
            self.plain(&format!("{name}: {what}"), value, unit);
        };
        if let Some(leader) = spent.servers.get(mark.leader) {
            more("CPU of the leader", leader.cpu, "s");
            more("memory of the leader at most", leader.peak, "MiB");
            more("written by the leader", leader.written / 1048576.0, "MiB");
        }
        more("CPU of all servers", all(|used| used.cpu), "s");
        more("CPU of all agents", spent.agents.cpu, "s");
        more("memory of all agents", spent.agents.resident, "MiB");
        more("on the wire", spent.carried / 1048576.0, "MiB");
        let mut writes = 0.0;
        for ((verb, resource), count) in cluster.changes().await {
            let before = mark.changes.get(&(verb.clone(), resource.clone()));
            let count = count - before.copied().unwrap_or(0.0);
            if count > 0.0 {
                eprintln!("    {verb} {resource}: {count}");
            }
            writes += count;
        }
        more("writes", writes, "");
    }
}

/// When a part began.
struct Mark {
    reading: Reading,
    changes: Changes,
    /// Which server leads.
    leader: usize,
}

impl Mark {
    async fn take(cluster: &Cluster) -> Result<Self, Failed> {
        let (leader, changes) = (cluster.leader().await?, cluster.changes().await);
        Ok(Self { reading: cluster.reading(), changes, leader })
    }
}

pub(crate) async fn run(size: &Size, rows: &mut Vec<Row>) -> Result<(), Failed> {
    let mut told = Told(rows);
    let mut cluster = Cluster::start().await?;
    tokio::time::sleep(REST).await;
    let alone = idle(&cluster, size.idle).await;
    told.plain("three servers alone: CPU of one core", percent(&alone), "%");
    told.plain("three servers alone: on the wire", alone.carried / alone.time, "B/s");

    join(&mut cluster, size, &mut told).await?;
    tokio::time::sleep(REST).await;
    let fleet = idle(&cluster, size.idle).await;
    tell_idle("idle fleet", &mut told, size, &alone, &fleet);

    deploy(&cluster, size, &mut told).await?;
    tokio::time::sleep(REST).await;
    let full = idle(&cluster, size.idle).await;
    tell_idle("idle fleet with pods", &mut told, size, &alone, &full);

    roll(&cluster, size, &mut told).await?;
    lose_nodes(&mut cluster, size, &mut told).await?;
    lose_leader(&mut cluster, size, &mut told).await
}

/// Processor time of the servers, in percent of a core.
fn percent(spent: &Spent) -> f64 {
    spent.servers.iter().map(|used| used.cpu).sum::<f64>() * 100.0 / spent.time
}

async fn idle(cluster: &Cluster, length: Duration) -> Spent {
    let before = cluster.reading();
    tokio::time::sleep(length).await;
    before.until(&cluster.reading())
}

fn tell_idle(name: &str, told: &mut Told<'_>, size: &Size, alone: &Spent, spent: &Spent) {
    let nodes = size.nodes as f64;
    let (ours, theirs) = (percent(spent), percent(alone));
    told.plain(&format!("{name}: CPU of the servers, of one core"), ours, "%");
    let per_node = (ours - theirs) * 10_000.0 / nodes;
    told.plain(&format!("{name}: CPU of the servers, per node and second"), per_node, "us");
    let own = spent.agents.cpu * 1e6 / spent.time / nodes;
    told.plain(&format!("{name}: CPU of an agent, per second"), own, "us");
    let wire = (spent.carried / spent.time - alone.carried / alone.time) / nodes;
    told.plain(&format!("{name}: on the wire, per node and second"), wire, "B");
    let written: f64 = spent.servers.iter().map(|used| used.written).sum();
    told.budgeted(&format!("{name}: written by the servers"), written, "B", 0.0);
    told.budgeted(&format!("{name}: written by the agents"), spent.agents.written, "B", 0.0);
    let largest = spent.servers.iter().map(|used| used.resident).fold(0.0, f64::max);
    told.plain(&format!("{name}: memory of the largest server"), largest, "MiB");
    let agent = spent.agents.resident / nodes;
    told.budgeted(&format!("{name}: memory of an agent"), agent, "MiB", 2.0);
}

async fn join(cluster: &mut Cluster, size: &Size, told: &mut Told<'_>) -> Result<(), Failed> {
    cluster.make_tokens(size.nodes).await?;
    let changes = cluster.changes().await;
    let leader = cluster.leader().await?;
    let stay = size.nodes - size.lost;
    for first in (0..stay).step_by(PROCESS_NODES_MAX) {
        cluster.start_agents(first, PROCESS_NODES_MAX.min(stay - first));
    }
    cluster.start_agents(stay, size.lost);
    let mark = Mark { reading: cluster.reading(), changes, leader };
    let wanted = size.nodes + cluster.servers.len();
    until("all nodes are ready", PATIENCE, async || {
        let ready = ready_nodes(cluster).await?;
        if ready >= wanted { Ok(()) } else { Err(format!("{ready} of {wanted}")) }
    })
    .await?;
    told.part("start of the fleet", &mark, cluster).await;
    Ok(())
}

/// How many nodes are ready. Asks for all of them, a second apart at least.
async fn ready_nodes(cluster: &Cluster) -> Result<usize, String> {
    tokio::time::sleep(Duration::from_secs(1)).await;
    let list = cluster.get("/api/v1/nodes").await?;
    let is_ready = |node: &&Value| {
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
    };
    Ok(list["items"].as_array().map_or(0, |nodes| nodes.iter().filter(is_ready).count()))
}

fn deployment(replicas: usize, version: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{"name": "main", "image": IMAGE,
                        "env": [{"name": "VERSION", "value": version}]}],
                },
            },
        },
    })
}

/// Ready replicas of the Deployment, if it has caught up with its spec.
async fn settled(cluster: &Cluster) -> Result<(u64, u64, u64), String> {
    let found = cluster.get(DEPLOYMENT).await?;
    let number = |at: &str| found.pointer(at).and_then(Value::as_u64).unwrap_or(0);
    if number("/status/observedGeneration") < number("/metadata/generation") {
        return Err("not observed".to_owned());
    }
    let status = |key: &str| number(&format!("/status/{key}"));
    Ok((status("replicas"), status("updatedReplicas"), status("readyReplicas")))
}

async fn until_settled(cluster: &Cluster, what: &str, replicas: usize) -> Result<(), Failed> {
    let wanted = u64::try_from(replicas).unwrap();
    let mut shown = Instant::now();
    until(what, PATIENCE, async || {
        let counts = settled(cluster).await?;
        if counts == (wanted, wanted, wanted) {
            return Ok(());
        }
        let why = format!("replicas, updated, ready: {counts:?} of {wanted}");
        if shown.elapsed() > Duration::from_secs(5) {
            shown = Instant::now();
            eprintln!("{what}: {why}");
        }
        Err(why)
    })
    .await
}

async fn deploy(cluster: &Cluster, size: &Size, told: &mut Told<'_>) -> Result<(), Failed> {
    let (mark, began) = (Mark::take(cluster).await?, Instant::now());
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    cluster.post(deployments, &deployment(size.replicas, "1")).await?;
    until_settled(cluster, "the Deployment is ready", size.replicas).await?;
    let took = began.elapsed();
    told.part("Deployment to ready", &mark, cluster).await;
    told.plain("Deployment to ready: rate", size.replicas as f64 / took.as_secs_f64(), "1/s");
    Ok(())
}

async fn roll(cluster: &Cluster, size: &Size, told: &mut Told<'_>) -> Result<(), Failed> {
    let (mark, began) = (Mark::take(cluster).await?, Instant::now());
    let spec = deployment(size.replicas, "2");
    cluster.patch(DEPLOYMENT, &json!({"spec": spec["spec"]})).await?;
    until_settled(cluster, "the Deployment is updated", size.replicas).await?;
    let took = began.elapsed();
    told.part("rolling update", &mark, cluster).await;
    told.plain("rolling update: rate", size.replicas as f64 / took.as_secs_f64(), "1/s");
    Ok(())
}

async fn lose_nodes(cluster: &mut Cluster, size: &Size, told: &mut Told<'_>) -> Result<(), Failed> {
    let wanted = u64::try_from(size.replicas).unwrap();
    let Mark { changes, leader, .. } = Mark::take(cluster).await?;
    cluster.lose_agents();
    let (mark, began) = (Mark { reading: cluster.reading(), changes, leader }, Instant::now());
    until("the loss is noticed", PATIENCE, async || {
        let (_, _, ready) = settled(cluster).await?;
        if ready < wanted { Ok(()) } else { Err("not noticed".to_owned()) }
    })
    .await?;
    told.plain("loss of nodes: noticed", began.elapsed().as_secs_f64(), "s");
    until_settled(cluster, "the lost pods are replaced", size.replicas).await?;
    told.part("loss of nodes: replaced", &mark, cluster).await;
    Ok(())
}

/// Kills the leader when half of what a scale-up adds is there.
async fn lose_leader(
    cluster: &mut Cluster,
    size: &Size,
    told: &mut Told<'_>,
) -> Result<(), Failed> {
    let leader = cluster.leader().await?;
    let added = size.replicas.div_ceil(SCALE_UP_SHARE);
    let (replicas, half) = (size.replicas + added, size.replicas + added / 2);
    cluster.patch(DEPLOYMENT, &json!({"spec": {"replicas": replicas}})).await?;
    let began = Instant::now();
    let half = u64::try_from(half).unwrap();
    until("half of the scale-up", PATIENCE, async || {
        let (_, _, ready) = settled(cluster).await?;
        if ready >= half { Ok(()) } else { Err(format!("{ready} of {half}")) }
    })
    .await?;
    told.plain("scale-up: half of it", began.elapsed().as_secs_f64(), "s");
    let lost = cluster.lose_server(leader);
    let (reading, changes, killed) = (cluster.reading(), cluster.changes().await, Instant::now());
    let mark = Mark { reading, changes, leader: cluster.leader().await? };
    told.plain("loss of the leader: another leads", killed.elapsed().as_secs_f64(), "s");
    eprintln!("{lost} was killed");
    until_settled(cluster, "the scale-up ends", replicas).await?;
    told.part("loss of the leader: scale-up done", &mark, cluster).await;
    // Nodes must not have been called lost for it.
    let ready = ready_nodes(cluster).await?;
    let wanted = size.nodes - size.lost + cluster.servers.len();
    // The one that was killed may not be missed yet.
    let missing = wanted.saturating_sub(ready) as f64;
    told.budgeted("loss of the leader: nodes not ready afterwards", missing, "", 0.0);
    Ok(())
}
