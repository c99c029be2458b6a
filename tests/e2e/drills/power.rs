//! The power goes everywhere and comes back before the network does; nodes are stopped in order.

use std::time::{Duration, Instant};

use serde_json::json;

use super::links::{AFTERWARDS, assert_kept};
use super::losses::{TRAFFIC_MS, WORKERS};
use super::world::{CALM, Pods, World};
use crate::support::{PATIENCE, eventually};

pub(super) const ALONE: &str = "all off and on without network";
pub(super) const SERVER: &str = "server without pods restarted under load";
pub(super) const AGENT: &str = "agent restarted under load";

/// A node has served its own pods without a server, at the latest, after its process was started.
const ALONE_MS: f64 = 20_000.0;
/// How long a node may take to stop.
const STOP_MAX: Duration = Duration::from_secs(30);

/// All nodes are off; each starts with its link down, and serves what it ran. When the links are back,
/// nothing is restarted.
pub(super) fn alone(world: &mut World, turn: usize) {
    let before = world.settle();
    until_routes_are_kept(world, turn);
    for host in &mut world.hosts {
        host.process().kill();
        host.space.set_link(false);
    }
    let on = Instant::now();
    for host in &mut world.hosts {
        host.start(None);
    }
    let runs_app = |host: &crate::hosts::Host, pods: &Pods| {
        pods.values().any(|pod| pod.node == host.name && pod.name.starts_with("hello-"))
    };
    for at in 0..world.hosts.len() {
        if runs_app(&world.hosts[at], &before) {
            world.serves(&world.hosts[at]);
            world.figures.took(ALONE, "own pods serve", on.elapsed(), Some(ALONE_MS));
        }
    }
    let back = Instant::now();
    for host in &world.hosts {
        host.space.set_link(true);
    }
    world.until_run_again(&world.hosts[0], &before, &WORKERS);
    world.until_healthy(&world.hosts[0]);
    let after = world.until_whole(&world.hosts[0]);
    world.figures.took(ALONE, "all ready with network", back.elapsed(), None);
    let replaced = before.keys().filter(|uid| !after.contains_key(*uid)).count();
    world.figures.counted(ALONE, "pods replaced", replaced, Some(0.0));
    std::thread::sleep(AFTERWARDS);
    assert_kept(&after, &world.settle(), &[]);
    assert_eq!(replaced, 0, "{before:#?} {after:#?}");
}

/// Waits until every node has written down what it routes by. The copy is sealed, so what tells is its
/// time: something new is routed, and what is written after that has all that was there before.
fn until_routes_are_kept(world: &World, turn: usize) {
    let name = format!("marker-{turn}");
    let before = std::time::SystemTime::now();
    world.apply(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"ports": [{"port": 80}]}}));
    for host in &world.hosts {
        let copy = host.data_dir.join("agent/routes.json");
        eventually("the routes are kept", PATIENCE, || {
            let written = std::fs::metadata(&copy).and_then(|file| file.modified());
            let written = written.map_err(|err| err.to_string())?;
            if written > before { Ok(()) } else { Err(format!("{}: {written:?}", copy.display())) }
        });
    }
}

/// A server that runs no pods is stopped in order and started again: no pod and no request notices.
pub(super) fn server_restarted(world: &mut World, _: usize) {
    let before = world.settle();
    let load = World::load(&world.hosts[1]);
    let began = Instant::now();
    world.hosts[0].process().signal("TERM");
    assert_eq!(world.hosts[0].process().end(STOP_MAX), Some(0));
    world.figures.took(SERVER, "stop", began.elapsed(), None);
    let started = Instant::now();
    world.hosts[0].start(None);
    world.until_healthy(&world.hosts[1]);
    world.figures.took(SERVER, "back", started.elapsed(), None);
    std::thread::sleep(CALM);
    let outcome = load.stop();
    world.note_traffic(SERVER, &outcome, began, 0.0);
    assert_kept(&before, &world.settle(), &[]);
}

/// A node with pods is stopped in order and started again: its pods are the same afterwards, and nobody
/// else's are touched.
pub(super) fn agent_restarted(world: &mut World, turn: usize) {
    let before = world.settle();
    let agents = &WORKERS[2..];
    let at = world.at(agents[turn % agents.len()]);
    let name = world.hosts[at].name;
    let load = World::load(&world.hosts[1]);
    let began = Instant::now();
    world.hosts[at].process().signal("TERM");
    assert_eq!(world.hosts[at].process().end(STOP_MAX), Some(0));
    world.figures.took(AGENT, "stop", began.elapsed(), None);
    let started = Instant::now();
    world.hosts[at].start(None);
    world.until_run_again(&world.hosts[0], &before, &[name]);
    world.until_healthy(&world.hosts[0]);
    let after = world.until_whole(&world.hosts[0]);
    world.figures.took(AGENT, "pods ready", started.elapsed(), None);
    std::thread::sleep(CALM);
    let outcome = load.stop();
    world.note_traffic(AGENT, &outcome, began, TRAFFIC_MS);
    let replaced = before.keys().filter(|uid| !after.contains_key(*uid)).count();
    world.figures.counted(AGENT, "pods replaced", replaced, Some(0.0));
    assert_kept(&before, &world.settle(), &[name]);
}
