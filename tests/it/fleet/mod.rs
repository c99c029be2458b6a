//! A fleet in this process: API server, controllers, scheduler and hollow nodes, and a seed that says
//! what goes wrong and when.
//!
//! Goal: whatever happens to nodes and pods, the cluster keeps its promises, and comes to rest as it was
//! told to be. Method: real agents on a scripted runtime, real time, no socket. While faults come, the
//! promises are checked against consistent lists of the API and against the board of what runs where;
//! then the faults end, and the fleet must heal. The seed decides which faults there are, on which nodes
//! and when, not how threads take turns: a failure names it, and `EDGEORC_SIM_SEED=N` plays it again.
//! `EDGEORC_SIM_SEEDS=N` plays N of them, as `just test-fleet` does.

mod promises;
mod world;

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use promises::Promises;
use world::World;

/// Nodes of a simulated fleet.
const NODES: u64 = 8;
/// How long faults come.
const TROUBLE: Duration = Duration::from_secs(12);
/// How long the fleet may take to heal once they have ended.
const HEALING_MAX: Duration = Duration::from_secs(60);
/// Pause between two looks at the promises.
const LOOK: Duration = Duration::from_millis(50);
/// Seeds that are played when nobody says otherwise.
const SEEDS: u64 = 1;

/// Numbers from a seed: the same ones everywhere.
#[derive(Debug)]
struct Dice(edgeorc::rt::Rng);

impl Dice {
    fn below(&self, bound: u64) -> u64 {
        self.0.below(bound)
    }

    fn millis(&self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

fn seeds() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().unwrap());
    match number("EDGEORC_SIM_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("EDGEORC_SIM_SEEDS").unwrap_or(SEEDS)).collect(),
    }
}

/// A workload of `kind`, whose container's script is `env`.
fn workload(kind: &str, name: &str, replicas: u64, env: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "automountServiceAccountToken": false,
                    "containers": [{"name": "main", "image": "app:v1", "env": env,
                        "resources": {"requests": {"cpu": "100m"}}}],
                },
            },
        },
    });
    let own = match kind {
        "Deployment" => {
            json!({"strategy": {"rollingUpdate": {"maxSurge": 2, "maxUnavailable": 1}}})
        }
        _ => json!({"serviceName": name, "podManagementPolicy": "Parallel"}),
    };
    json_patch::merge(&mut object["spec"], &own);
    object
}

fn var(name: &str, value: u64) -> Value {
    json!({"name": name, "value": value.to_string()})
}

/// What goes wrong once.
async fn trouble(world: &mut World, dice: &Dice) {
    let node = format!("n{}", dice.below(NODES));
    match dice.below(5) {
        // Too short for anybody to notice.
        0 => world.cut_off(&node, dice.millis(50, 900)),
        // Long enough to be called lost, with its pods still running.
        1 => world.cut_off(&node, dice.millis(4_000, 9_000)),
        2 => world.lose(&node).await,
        3 => world.come_back(&node),
        // All watches of the controllers break.
        _ => world.break_watches(),
    }
}

async fn play(seed: u64) -> Result<(), String> {
    let dice = Dice(edgeorc::rt::Rng::seeded(seed));
    let mut world = World::start(seed, NODES).await;
    world.until("ready nodes", HEALING_MAX, async |world| world.all_nodes_ready().await).await?;
    let steady = json!([var("HOLLOW_START_MS", dice.below(200))]);
    let failing = json!([var("HOLLOW_RUN_MS", 500 + dice.below(2_000)), var("HOLLOW_EXIT", 1)]);
    world.create(&workload("Deployment", "steady", 24, &steady)).await;
    world.create(&workload("Deployment", "failing", 4, &failing)).await;
    world.create(&workload("StatefulSet", "named", 6, &steady)).await;
    world.until("first rest", HEALING_MAX, async |world| world.at_rest().await).await?;

    let mut promises = Promises::new(&world);
    // A rolling update while nothing goes wrong loses no replica.
    let version = |n: u64| {
        let env = json!([var("HOLLOW_START_MS", n % 100), var("VERSION", n)]);
        let containers = json!([{"name": "main", "image": "app:v1", "env": env,
            "resources": {"requests": {"cpu": "100m"}}}]);
        json!({"spec": {"template": {"spec": {"containers": containers}}}})
    };
    world.patch("deployments/steady", &version(1)).await;
    let began = Instant::now();
    while world.at_rest().await.is_err() {
        promises.check(true).await?;
        if began.elapsed() > HEALING_MAX {
            return Err(format!("the calm update: {:?}", world.at_rest().await));
        }
        tokio::time::sleep(LOOK).await;
    }

    let began = Instant::now();
    let mut next = began;
    let mut updates = 1;
    while began.elapsed() < TROUBLE {
        if Instant::now() >= next {
            trouble(&mut world, &dice).await;
            if dice.below(3) == 0 {
                updates += 1;
                world.patch("deployments/steady", &version(updates)).await;
            }
            next = Instant::now() + dice.millis(300, 1_500);
        }
        promises.check(false).await?;
        tokio::time::sleep(LOOK).await;
    }
    world.heal();
    let began = Instant::now();
    loop {
        promises.check(false).await?;
        let Err(why) = world.at_rest().await else { return Ok(()) };
        if began.elapsed() > HEALING_MAX {
            return Err(format!("it does not heal: {why}"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_keeps_its_promises_and_heals_whatever_goes_wrong() {
    for seed in seeds() {
        if let Err(why) = Box::pin(play(seed)).await {
            panic!("EDGEORC_SIM_SEED={seed}: {why}");
        }
    }
}
