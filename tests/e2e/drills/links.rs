//! The network breaks, and is mended. Nothing of it is a reason to restart what runs on.

use std::time::{Duration, Instant};

use super::losses::{REPLICAS_MS, TRAFFIC_MS, WORKERS, until_logged};
use super::world::{CALM, Pod, Pods, World, healthy};
use crate::support::{PATIENCE, both, eventually};

pub(super) const CUT_SHORT: &str = "node cut off for 2 s";
pub(super) const CUT_OFF: &str = "node cut off and returning";
pub(super) const LEADER: &str = "leader cut off from all nodes";
pub(super) const MOST: &str = "most nodes cut off, returning one by one";

/// Shorter than the silence after which a node is lost.
const SHORT: Duration = Duration::from_secs(2);
/// Longer than it takes to replace the pods of a lost node; shorter than a StatefulSet's pods run on.
const LONG: Duration = Duration::from_secs(8);
/// Between two nodes that return: the first is heard long before the second.
const ONE_BY_ONE: Duration = Duration::from_secs(1);
/// Long enough for a controller that would replace what it took for lost.
pub(super) const AFTERWARDS: Duration = Duration::from_secs(4);

/// Fails unless all pods that were there, except those on nodes of `lost`, run as they did.
pub(super) fn assert_kept(before: &Pods, after: &Pods, lost: &[&str]) {
    for (uid, pod) in before.iter().filter(|(_, pod)| !lost.contains(&pod.node.as_str())) {
        let now = after.get(uid).unwrap_or_else(|| panic!("{pod:?} is gone: {after:#?}"));
        assert_eq!((&now.run, now.is_going), (&pod.run, false), "{} was restarted", pod.name);
    }
}

/// A link fails for a moment: nothing is moved, nothing is restarted.
pub(super) fn cut_short(world: &mut World, turn: usize) {
    let before = world.settle();
    let lost = world.at(WORKERS[turn % WORKERS.len()]);
    let load = World::load(world.observer(&[lost]));
    world.switch.cut(&world.hosts[lost]);
    let struck = Instant::now();
    std::thread::sleep(SHORT);
    world.switch.mend(&world.hosts[lost]);
    let back = Instant::now();
    world.serves(&world.hosts[lost]);
    world.until_healthy(&world.hosts[0]);
    world.figures.took(CUT_SHORT, "back", back.elapsed(), None);
    std::thread::sleep(CALM);
    let outcome = load.stop();
    world.note_traffic(CUT_SHORT, &outcome, struck, TRAFFIC_MS);
    assert_kept(&before, &world.settle(), &[]);
}

/// A node is cut off for longer than it takes to replace all that ran there. It serves its pods as long
/// as it is alone; the StatefulSet's it stops before they are replaced.
pub(super) fn cut_off(world: &mut World, _: usize) {
    let before = world.settle();
    let lost = world.at(&World::fullest(&before, "db-", &WORKERS));
    let name = world.hosts[lost].name;
    let has_app = before.values().any(|pod| pod.node == name && pod.name.starts_with("hello-"));
    let load = World::load(world.observer(&[lost]));
    world.switch.cut(&world.hosts[lost]);
    let struck = Instant::now();
    world.until_moved(world.observer(&[lost]), name);
    world.figures.took(CUT_OFF, "replicas", struck.elapsed(), Some(REPLICAS_MS));
    let outcome = load.stop();
    world.note_traffic(CUT_OFF, &outcome, struck, TRAFFIC_MS);
    if has_app {
        world.serves(&world.hosts[lost]);
    }
    let after = world.until_unique_moved(world.observer(&[lost]), name);
    world.figures.took(CUT_OFF, "StatefulSet replicas", struck.elapsed(), None);
    until_logged(world, &after);
    assert_kept(&before, &after, &[name]);
    let back = Instant::now();
    world.switch.mend(&world.hosts[lost]);
    world.until_healthy(&world.hosts[0]);
    world.figures.took(CUT_OFF, "back", back.elapsed(), None);
    std::thread::sleep(AFTERWARDS);
    assert_kept(&after, &world.settle(), &[]);
}

/// The server that leads hears nobody and is heard by nobody: it deletes nothing, another one leads, and
/// only what ran on the lost server's node is replaced.
pub(super) fn leader_cut_off(world: &mut World, _: usize) {
    let before = world.settle();
    let lost = world.leader();
    let name = world.hosts[lost].name;
    let load = World::load(world.observer(&[lost]));
    world.switch.cut(&world.hosts[lost]);
    let struck = Instant::now();
    eventually("writes are accepted", PATIENCE, || {
        let time = format!("touched={:?}", struck.elapsed());
        let write = ["annotate", "deploy/hello", &time, "--overwrite", "--request-timeout=1s"];
        let output = world.observer(&[lost]).kubectl(&write).output().unwrap();
        if output.status.success() { Ok(()) } else { Err(both(&output)) }
    });
    world.figures.took(LEADER, "writes", struck.elapsed(), None);
    world.until_moved(world.observer(&[lost]), name);
    world.figures.took(LEADER, "replicas", struck.elapsed(), None);
    std::thread::sleep(LONG.saturating_sub(struck.elapsed()));
    let outcome = load.stop();
    world.note_traffic(LEADER, &outcome, struck, TRAFFIC_MS);
    let after = World::pods(world.observer(&[lost])).unwrap();
    let deleted = |now: &Pods| {
        let others = before.iter().filter(|(_, pod)| pod.node != name);
        others.filter(|(uid, _)| now.get(*uid).is_none_or(|pod| pod.is_going)).count()
    };
    let back = Instant::now();
    world.switch.mend(&world.hosts[lost]);
    world.until_healthy(&world.hosts[0]);
    world.figures.took(LEADER, "back", back.elapsed(), None);
    std::thread::sleep(AFTERWARDS);
    let settled = world.settle();
    let count = deleted(&after).max(deleted(&settled));
    world.figures.counted(LEADER, "pods of others deleted", count, Some(0.0));
    assert_eq!(count, 0, "{before:#?} {after:#?}");
    assert_kept(&before, &settled, &[name]);
}

/// More than half of the nodes are not heard any more, a server among them: nothing is moved, and those
/// that return later are not punished for it when the first are heard.
pub(super) fn most_cut_off(world: &mut World, turn: usize) {
    let before = world.settle();
    let mut lost = [world.at("three"), world.at("four"), world.at("five")];
    let first = turn % lost.len();
    lost.rotate_left(first);
    for at in lost {
        world.switch.cut(&world.hosts[at]);
    }
    let struck = Instant::now();
    eventually("they are called lost", PATIENCE, || {
        let ready = healthy(&world.hosts[0]);
        let is_so =
            ready.contains("one") && lost.iter().all(|at| !ready.contains(world.hosts[*at].name));
        if is_so { Ok(()) } else { Err(ready) }
    });
    std::thread::sleep(LONG.saturating_sub(struck.elapsed()));
    let back = Instant::now();
    for at in lost {
        world.switch.mend(&world.hosts[at]);
        let name = world.hosts[at].name;
        eventually("the node is heard again", PATIENCE, || {
            let ready = healthy(&world.hosts[0]);
            if ready.contains(name) { Ok(()) } else { Err(ready) }
        });
        std::thread::sleep(ONE_BY_ONE);
    }
    world.until_healthy(&world.hosts[0]);
    world.figures.took(MOST, "back", back.elapsed(), None);
    std::thread::sleep(AFTERWARDS);
    let after = World::pods(&world.hosts[0]).unwrap();
    let is_app = |(_, pod): &(String, Pod)| pod.name.starts_with("hello-");
    let before: Pods = before.into_iter().filter(is_app).collect();
    let gone = before.keys().filter(|uid| after.get(*uid).is_none_or(|pod| pod.is_going)).count();
    world.figures.counted(MOST, "pods deleted", gone, Some(0.0));
    assert_kept(&before, &after, &[]);
}
