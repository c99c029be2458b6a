//! A node is lost: killed, or frozen.

use std::time::{Duration, Instant};

use super::world::{Pod, Pods, World};

pub(super) const KILLED: &str = "node killed";
pub(super) const FROZEN: &str = "node frozen";
/// Requests succeed again, at the latest.
pub(super) const TRAFFIC_MS: f64 = 1_000.0;
/// All replicas are ready again, at the latest.
pub(super) const REPLICAS_MS: f64 = 6_000.0;
/// Nodes that run pods.
pub(super) const WORKERS: [&str; 4] = ["two", "three", "four", "five"];

/// A node loses its power: its pods are replaced, and it is used again when it is back.
pub(super) fn killed(world: &mut World, _: usize) {
    let lost = world.settle();
    let lost = world.at(&World::fullest(&lost, "hello-", &WORKERS));
    let load = World::load(world.observer(&[lost]));
    world.hosts[lost].process().kill();
    let struck = Instant::now();
    world.until_moved(world.observer(&[lost]), world.hosts[lost].name);
    world.figures.took(KILLED, "replicas", struck.elapsed(), Some(REPLICAS_MS));
    let outcome = load.stop();
    world.note_traffic(KILLED, &outcome, struck, TRAFFIC_MS);
    let back = Instant::now();
    world.hosts[lost].start(None);
    world.until_healthy(&world.hosts[0]);
    world.figures.took(KILLED, "back", back.elapsed(), None);
}

/// A node stands still, longer than it takes to replace all that ran there, and goes on as if nothing
/// had happened.
pub(super) fn frozen(world: &mut World, _: usize) {
    let before = world.settle();
    let lost = world.at(&World::fullest(&before, "db-", &WORKERS));
    let name = world.hosts[lost].name;
    let load = World::load(world.observer(&[lost]));
    world.hosts[lost].process().signal("STOP");
    let struck = Instant::now();
    world.until_moved(world.observer(&[lost]), name);
    world.figures.took(FROZEN, "replicas", struck.elapsed(), Some(REPLICAS_MS));
    let outcome = load.stop();
    world.note_traffic(FROZEN, &outcome, struck, TRAFFIC_MS);
    let after = world.until_unique_moved(world.observer(&[lost]), name);
    world.figures.took(FROZEN, "StatefulSet replicas", struck.elapsed(), None);
    until_logged(world, &after);
    let back = Instant::now();
    world.hosts[lost].process().signal("CONT");
    world.until_healthy(&world.hosts[0]);
    world.figures.took(FROZEN, "back", back.elapsed(), None);
}

/// Waits until the pods of the StatefulSet have logged: a double would be seen.
pub(super) fn until_logged(world: &World, pods: &Pods) {
    let unique = || pods.values().filter(|pod| pod.name.starts_with("db-"));
    crate::support::eventually("the set's pods log", Duration::from_secs(10), || {
        let logs = |pod: &Pod| {
            let run = world.doubles.run(&pod.name, &pod.uid);
            run.is_some_and(|run| run.node == pod.node)
        };
        let silent = unique().find(|pod| !logs(pod));
        silent.map_or(Ok(()), Err)
    });
}
